# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the lab, break it, diagnose, remediate, verify, roll back: what an engineer would type, typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(".venv/bin")
LAB = [str(BIN / "python"), "-m", "lab"]
PLAYBOOK = str(BIN / "ansible-playbook")
INVENTORY = ["-i", "inventories/lab"]
# The lab has settled within a second.
QUICK = ["-e", "runbook_settle_seconds=1"]
CONNECTION = [PLAYBOOK, "playbooks/kyrodb_connection_failure.yml", *INVENTORY, "--tags"]
LATENCY = [PLAYBOOK, "playbooks/high_latency.yml", *INVENTORY, "--tags"]
WORKERS = ["-e", "runbook_steps=scale_workers", "-e", "vritti_workers=2"]

METRICS = "http://127.0.0.1:18000/metrics"  # the lab's Vritti at its default port, as in inventories/lab
ENOUGH_REQUESTS = 30  # a percentile of fewer says little
PATIENCE = 10.0  # seconds


def run(command: list[str]) -> None:
    print(f"\n$ {' '.join(command)}", flush=True)
    # Ansible's own variables in somebody's shell must not decide what the demo shows.
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if status:
        sys.exit(status)


def answered() -> float:
    """How many requests Vritti has answered; 0 while it does not say."""
    try:
        with urllib.request.urlopen(METRICS, timeout=2) as response:
            text = response.read().decode()
    except OSError:
        return 0
    counts = re.findall(r"^episodic_memory_http_request_duration_seconds_count\S* (\S+)", text, re.MULTILINE)
    return sum(map(float, counts))


def say(text: str) -> None:
    print(f"\n... {text} ...", flush=True)


def used() -> None:
    """Wait until customers have sent enough requests to say something."""
    before, deadline = answered(), time.monotonic() + PATIENCE
    while answered() < before + ENOUGH_REQUESTS and time.monotonic() < deadline:
        time.sleep(0.25)


def plan(runbook: str) -> str:
    """The id in the last report, which the diagnosis has printed on its third line."""
    report = json.loads((ROOT / "reports" / runbook / "vritti-lab.json").read_text())
    return str(report["plan"]["id"])


def record() -> str:
    """The id of the last remediation, which its run has printed."""
    records = sorted((ROOT / ".lab" / "runbooks" / "records").glob("*.json"))
    return records[-1].stem


def main() -> None:
    run([*LAB, "up"])
    run([*LAB, "break", "vritti", "breaker-stuck"])
    say("customers are using it")
    used()
    run([*CONNECTION, "diagnose"])
    say("the third line is what to type")
    run([*CONNECTION, "remediate", "-e", f"runbook_plan={plan('kyrodb_connection_failure')}", *QUICK])
    run([*CONNECTION, "verify"])
    say("a step that can be undone: more workers, asked for by name")
    run([*LATENCY, "diagnose", *WORKERS])
    run([*LATENCY, "remediate", *WORKERS, "-e", f"runbook_plan={plan('high_latency')}", *QUICK, "--diff"])
    run([*LATENCY, "rollback", "-e", f"runbook_rollback_id={record()}", "--diff"])
    print("\nWhat to type next:")
    for command, effect in (
        ([*LAB, "faults"], "what else can be broken"),
        ([*LAB, "break", "vritti", "kyrodb-slow"], "for example"),
        ([*LATENCY, "diagnose"], "and see"),
        ([PLAYBOOK, "playbooks/check_timeline.yml"], "whether the record is whole"),
        (["make", "lab-down"], "stop the lab"),
    ):
        print(f"  {' '.join(command)}    # {effect}")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the lab, make KyroDB slow, and diagnose it: what an engineer would type, with the typing done."""

from __future__ import annotations

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
DIAGNOSE = [str(BIN / "ansible-playbook"), "playbooks/high_latency.yml", "--tags", "diagnose", "-i", "inventories/lab"]

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


def main() -> None:
    run([*LAB, "up"])
    run([*LAB, "break", "vritti", "kyrodb-slow"])
    print("\n... customers are using it ...", flush=True)
    before, deadline = answered(), time.monotonic() + PATIENCE
    while answered() < before + ENOUGH_REQUESTS and time.monotonic() < deadline:
        time.sleep(0.25)
    run(DIAGNOSE)
    print("\nWhat to type next:")
    for command, effect in (
        ([*LAB, "heal"], "KyroDB is fast again"),
        (DIAGNOSE, "diagnose once more"),
        ([*LAB, "faults"], "what else can be broken"),
        (["make", "lab-down"], "stop the lab"),
    ):
        print(f"  {' '.join(command)}    # {effect}")


if __name__ == "__main__":
    main()

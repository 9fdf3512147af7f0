# SPDX-License-Identifier: GPL-3.0-or-later
"""What a diagnosis costs, beside a ping and beside the runbook's own commands as shell tasks:  make bench

Four playbooks run in turn against one lab, whole processes timed from outside: a diagnosis with one scrape, a play
with one ansible.builtin.ping, the commands of both runbooks' latency sections, one shell task each, and the triage,
which looks at what a dozen runbooks look at. The ratios are taken within each round, so that a machine that slows down
slows all of them; quoted is their median. It is no test.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# The runbooks' words; {vritti} and {kyrodb} are the lab's addresses. What fails in them (grpcurl without reflection,
# a package that is not installed) fails here as well: the time is spent all the same.
COMMANDS = (
    "curl http://{vritti}/metrics | grep http_request_duration",
    "curl http://{vritti}/metrics | grep kyrodb_operation_duration",
    "curl http://{vritti}/health",
    "curl -s http://{vritti}/metrics | grep http_request_duration",
    "curl -s http://{vritti}/metrics | grep -E 'endpoint.*capture|search'",
    "curl -s http://{vritti}/metrics | grep kyrodb_operation_duration",
    "curl -s http://{vritti}/metrics | grep embedding_generation_duration",
    "curl -s http://{vritti}/metrics | grep http_requests_active",
    "curl -s http://{vritti}/health | jq '.components[] | select(.name==\"kyrodb\")'",
    "grpcurl -plaintext {kyrodb} kyrodb.KyroDB/Health",
    "python3 -c 'import torch; print(torch.cuda.is_available())'",
    "curl -s http://{vritti}/stats | jq '.ingestion_stats'",
    "curl -s http://{vritti}/metrics | grep rate_limit_exceeded",
)


def play(tasks: list[dict[str, object]]) -> str:
    return json.dumps([{"name": "Bench", "hosts": "vritti", "gather_facts": False, "tasks": tasks}])


def seconds(command: list[str | Path], directory: Path) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    began = time.perf_counter()
    finished = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    took = time.perf_counter() - began
    if finished.returncode:
        sys.exit(finished.stdout)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        lab = [sys.executable, "-m", "lab"]
        options = ["--data-dir", str(directory / "lab")]
        subprocess.run([*lab, "up", *options, "--base-port", "0"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        try:
            measure(directory, rounds)
        finally:
            subprocess.run([*lab, "down", *options], cwd=ROOT, check=False, stdout=subprocess.DEVNULL)


def measure(directory: Path, rounds: int) -> None:
    ports = json.loads((directory / "lab/lab.json").read_text())["ports"]
    addresses = {"vritti": f"127.0.0.1:{ports['vritti']}", "kyrodb": f"127.0.0.1:{ports['kyrodb_text']}"}
    ping, shell = directory / "ping.yml", directory / "shell.yml"
    ping.write_text(play([{"name": "Ping", "ansible.builtin.ping": {}}]))
    shell.write_text(
        play(
            [
                {
                    "name": command,
                    "ansible.builtin.shell": command.format(**addresses),
                    "changed_when": False,
                    "failed_when": False,
                }
                for command in COMMANDS
            ]
        )
    )
    playbook = [BIN / "ansible-playbook", "-i", directory / "lab/inventory.yml"]
    how = ["--tags", "diagnose", "-e", "runbook_sample_seconds=0"]
    subjects = {
        "diagnosis": [ROOT / "playbooks/high_latency.yml", *how],
        "ping": [ping],
        "shell tasks": [shell],
        "triage": [ROOT / "playbooks/triage.yml", *how],
    }
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, words in subjects.items():
            took = seconds([*playbook, *words], directory)
            # The first round warms caches up.
            if number:
                times[name].append(took)
    print(f"{rounds} rounds on {os.cpu_count()} processors, Python {sys.version.split()[0]}; seconds of wall time")
    for name, values in times.items():
        print(f"  {name:<12} min {min(values):.2f}  median {statistics.median(values):.2f}  max {max(values):.2f}")
    for name, wanted in (("ping", 1.6), ("shell tasks", 0.4)):
        ratios = [one / other for one, other in zip(times["diagnosis"], times[name])]
        print(
            f"diagnosis / {name}: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
            f"  (wanted: at most {wanted})"
        )
    ratios = [one / other for one, other in zip(times["triage"], times["diagnosis"])]
    print(f"triage / diagnosis: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()

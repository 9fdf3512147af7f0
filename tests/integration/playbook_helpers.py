# SPDX-License-Identifier: GPL-3.0-or-later
"""Run our playbooks as somebody at a shell does: a process of its own, another directory, inventories as files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.lab_helpers import RunningLab

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
KEY = "a-key-for-the-timeline-0123456789"
# Gone when the tests are over.
PAYLOADS = tempfile.TemporaryDirectory(prefix="oncall-payloads-")
QUICKLY = {
    "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).resolve().parent / "callback_plugins"),
    "ANSIBLE_CALLBACKS_ENABLED": "payloads",
    "ONCALL_PAYLOADS": PAYLOADS.name,
}
# Nothing listens there: ports below 1024 that no service of a test uses.
DEAD = "127.0.0.1:9"
# How busy this machine is otherwise is no matter of a test: these are above what a healthy lab needs beside other work,
# and below what the lab's slow KyroDB (180 ms a call) and slow embedding (250 ms a request) add.
LATENCIES = {
    "high_latency_p99_p2": 0.25,
    "high_latency_p99_p3": 0.245,
    "high_latency_kyrodb_p2": 0.16,
    "high_latency_kyrodb_p3": 0.15,
}


@dataclass(frozen=True)
class Run:
    status: int
    output: str
    directory: Path
    runbook: str

    def diagnosis(self, host: str = "") -> dict[str, Any]:
        """The host's; without a name the lab's, of which a run has one."""
        reports = [path.stem for path in (self.directory / "reports" / self.runbook).glob("*-lab.json")]
        host = host or (reports[0] if len(reports) == 1 else "vritti-lab")
        report = self.directory / "reports" / self.runbook / f"{host}.json"
        assert report.exists(), self.output
        data: dict[str, Any] = json.loads(report.read_text())
        return data

    def findings(self, host: str = "") -> dict[str, dict[str, Any]]:
        return {finding["id"]: finding for finding in self.diagnosis(host)["findings"]}


def inventory(directory: Path, hosts: Mapping[str, Mapping[str, Any]], **groups: list[str]) -> Path:
    """An inventory file; hosts are in the group vritti unless groups are given."""
    members = groups or {"vritti": list(hosts)}
    data = {
        "all": {"hosts": dict(hosts)},
        **{group: {"hosts": dict.fromkeys(names)} for group, names in members.items()},
    }
    path = directory / "inventory.json"
    path.write_text(json.dumps(data))
    return path


def ansible(directory: Path, *command: str | Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Any of Ansible's commands, with the collection's configuration, from another directory."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    finished = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=directory,
        env={
            **clean,
            **QUICKLY,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "COLUMNS": "120",
            **(environment or {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return finished.returncode, finished.stdout


def diagnose(
    directory: Path,
    where: Path,
    *arguments: str,
    sample_seconds: float = 0,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """The command of the README, against an inventory."""
    tags = () if any(word in arguments for word in ("--tags", "--skip-tags")) else ("--tags", "diagnose")
    status, output = ansible(
        directory,
        "ansible-playbook",
        REPOSITORY / "playbooks" / "high_latency.yml",
        "-i",
        where,
        *tags,
        "-e",
        json.dumps({**LATENCIES, "runbook_sample_seconds": sample_seconds}),
        *arguments,
        environment=environment,
    )
    return Run(status, output, directory, "high_latency")


def own_runbook(directory: Path, where: Path, checks: list[Any], *arguments: str, **more: Any) -> Run:
    """A playbook and a runbook of somebody's own, with these checks."""
    playbook = directory / "own.yml"
    play = {"hosts": "all", "gather_facts": False, "name": "Own runbook", "roles": [{"role": "own_runbook"}]}
    playbook.write_text(json.dumps([play]))
    variables = directory / "checks.json"
    variables.write_text(json.dumps({"test_checks": checks, "runbook_sample_seconds": 0, **more}))
    status, output = ansible(
        directory,
        "ansible-playbook",
        playbook,
        "-i",
        where,
        "-e",
        f"@{variables}",
        *arguments,
        environment={"ANSIBLE_ROLES_PATH": str(REPOSITORY / "tests" / "integration" / "roles")},
    )
    return Run(status, output, directory, "own_runbook")


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder but its logs, with what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log"
    }


class Operator:
    """Somebody at a shell in a directory of their own."""

    def __init__(self, lab: RunningLab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.state = directory / "state"

    def command(self, runbook: str, tags: str, *arguments: str) -> list[str]:
        options = {"runbook_sample_seconds": 0, "runbook_settle_seconds": 0, "runbook_state_dir": str(self.state)}
        playbook = str(REPOSITORY / "playbooks" / f"{runbook}.yml")
        where = str(self.lab.data_dir / "inventory.yml")
        return ["ansible-playbook", playbook, "-i", where, "--tags", tags, "-e", json.dumps(options), *arguments]

    def run(self, runbook: str, tags: str, *arguments: str, **environment: str) -> Run:
        environment.setdefault("ONCALL_RUNBOOKS_RECORD_KEY", KEY)
        status, output = ansible(self.directory, *self.command(runbook, tags, *arguments), environment=environment)
        return Run(status, output, self.directory, runbook)

    def plan(self, runbook: str, *arguments: str) -> str:
        """The id of the plan that a diagnosis proposes."""
        run = self.run(runbook, "diagnose", *arguments)
        plan = run.diagnosis()["plan"]
        assert plan, run.output
        return str(plan["id"])

    def apply(self, runbook: str, *arguments: str) -> Run:
        return self.run(runbook, "remediate", "-e", f"runbook_plan={self.plan(runbook, *arguments)}", *arguments)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.state / "records").glob("*.json"))]

    @property
    def timeline(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "records" / "timeline.jsonl").read_text().splitlines()]

# SPDX-License-Identifier: GPL-3.0-or-later
"""The runbook's incident commands, against a wp_chat that records incidents and cannot show them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_helpers import RunningLab, request, running_lab
from tests.integration.playbook_helpers import BIN, LOCAL, REPOSITORY, Operator, ansible, hashes, inventory
from tests.integration.test_remediation import at_a_terminal

HOST = "wp-chat-lab"
# With what the tests run with: a test installs nothing.
MAKE = ("make", "--no-print-directory", "-C", str(REPOSITORY), "-o", ".venv/.demo", f"BIN={BIN}")


class OnCall:
    """Somebody at a shell with the incident commands."""

    def __init__(self, lab: RunningLab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.file = lab.home / "logs" / "incidents.jsonl"
        settings = {"runbook_sample_seconds": 0, "runbook_settle_seconds": 0, "runbook_state_dir": f"{directory}/state"}
        (directory / "vars.json").write_text(json.dumps(settings))

    def command(self, name: str, *arguments: str) -> list[str]:
        playbook = name if "." in name else str(REPOSITORY / "playbooks" / f"wp_chat_incident_{name}.yml")
        where = str(self.lab.data_dir / "inventory.yml")
        return ["ansible-playbook", playbook, "-i", where, "-e", f"@{self.directory}/vars.json", *arguments]

    def run(self, name: str, *arguments: str, **environment: str) -> tuple[int, str]:
        return ansible(self.directory, *self.command(name, *arguments), environment=environment)

    def make(self, target: str, **variables: str) -> tuple[int, str]:
        """A target of the Makefile, from wherever it is called."""
        variables.setdefault("INVENTORY", str(self.lab.data_dir / "inventory.yml"))
        finished = subprocess.run(
            [
                *MAKE,
                target,
                *(f"{name}={value}" for name, value in variables.items()),
            ],
            env={name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MAKE"))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return finished.returncode, finished.stdout

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    @property
    def active(self) -> dict[str, dict[str, Any]]:
        """By type; a second line of an incident is its end."""
        folded = {(line["incident_id"], line["detected_at"]): line for line in self.lines}
        return {line["incident_type"]: line for line in folded.values() if not line["resolved_at"]}

    def detect(self, kind: str, severity: str = "high") -> str:
        """Recorded as the service does it, whatever it answers."""
        query = f"incident_type={kind}&severity={severity}"
        request("POST", f"{self.lab.url}/admin/incidents/detect?{query}")
        return str(self.active[kind]["incident_id"])

    @property
    def canary(self) -> dict[str, Any]:
        config: dict[str, Any] = self.lab.get("/admin/canary/status").json["config"]
        return config


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("wp-chat"), "--service", "wp_chat") as running:
        yield running


@pytest.fixture()
def on_call(lab: RunningLab, tmp_path: Path) -> Iterator[OnCall]:
    """A wp_chat without a fault that has never had an incident."""
    who = OnCall(lab, tmp_path)
    yield who
    lab.heal_all()
    who.file.unlink(missing_ok=True)
    # The canary outlives a restart.
    for path in ("clear-emergency", "enable?percentage=0.5"):
        request("POST", f"{lab.url}/admin/canary/{path}")
    lab.restart()


def test_from_detection_to_resolution(on_call: OnCall) -> None:
    status, output = on_call.make("incident-status")
    assert (status, output.splitlines()[:2]) == (
        0,
        [f"{HOST}: no active incident, 0 in the last 24 h", "  From the API."],
    )

    words = """it's "gone" {{ since 3 }} & more"""
    found = {"INCIDENT_TYPE": "cache_failure", "SEVERITY": "medium", "DESCRIPTION": words}
    status, output = on_call.make("incident-detect", **found)
    assert status == 0, output
    (line,) = on_call.lines
    assert (line["incident_type"], line["severity"], line["description"]) == ("cache_failure", "medium", words)
    name = line["incident_id"]
    assert output.startswith(f"{HOST}: recorded {name}, medium cache_failure: {words}\n")

    before = hashes(on_call.lab.home)
    status, output = on_call.make("incident-active", LIMIT=HOST)
    first = output.splitlines()
    assert first[0] == f"{HOST}: 1 active incident (1 medium), 1 in the last 24 h"
    assert first[1].startswith(f"  MEDIUM  cache_failure  {name}  since ")
    # The path is the shorter one, from here or from the root.
    assert "wp_chat_incident_procedures.yml -i " in first[2]
    assert f"{on_call.lab.data_dir.name}/inventory.yml" in first[2]
    assert first[2].endswith(f"-l {HOST} -e incident_id={name}")
    assert hashes(on_call.lab.home) == before

    status, output = on_call.run("procedures", "-e", f"incident_id={name}")
    assert status == 0, output
    assert "  1. Switch the cache off (30 s)  [disable_cache]" in output
    assert "playbooks/cache_failure.yml --tags remediate" in output
    assert "The service itself also lists" not in output

    notes = "Fixed by {{ restart }}"
    resolve = ["-e", f"incident_id={name}", "-e", f"incident_notes={notes}", "-e", "incident_assigned_to=ana"]
    status, output = on_call.run("resolve", *resolve, "--check", "--diff")
    assert "would be resolved" in output
    assert f'+    "resolution_notes": "{notes}"' in output
    assert len(on_call.lines) == 1
    status, output = on_call.run("resolve", *resolve)
    assert status == 0, output
    assert on_call.active == {}
    assert (on_call.lines[-1]["resolution_notes"], on_call.lines[-1]["assigned_to"]) == (notes, "ana")

    on_call.lab.restart()
    status, output = on_call.run("status")
    assert output.startswith(f"{HOST}: no active incident, 1 in the last 24 h"), output
    assert f"The service takes {name} for active again" in output


def test_an_action_is_carried_out_as_the_runbook_does(on_call: OnCall) -> None:
    rollout = on_call.canary["rollout_percentage"]
    assert rollout > 0
    name = on_call.detect("canary_failure")
    what = ["-e", f"incident_id={name}", "-e", "incident_action=disable_canary"]

    status, output = on_call.run("execute", *what, "--tags", "remediate")
    assert status == 2
    assert "Switch the canary off (step disable_canary of the runbook canary_failure)" in output
    assert "Nothing was changed: nobody has approved it." in output
    assert on_call.canary["rollout_percentage"] == rollout

    # The line that it prints is one to copy.
    (line,) = (line for line in output.splitlines() if line.startswith("To go on:"))
    assert f"-e incident_id={name} -e incident_action=disable_canary -e runbook_plan=" in line

    status, output = on_call.run("execute", *what, "-e", "incident_confirm=true", "--tags", "remediate")
    assert status == 0, output
    assert "Approved by runbook_max_risk=disruptive." in output
    assert on_call.canary["enabled"] is False
    (record,) = [json.loads(path.read_text()) for path in (on_call.directory / "state" / "records").glob("*.json")]
    assert (record["runbook"], [step["id"] for step in record["steps"]]) == ("canary_failure", ["disable_canary"])

    playbook = str(REPOSITORY / "playbooks" / "canary_failure.yml")
    status, output = on_call.run(playbook, "--tags", "rollback", "-e", f"runbook_rollback_id={record['id']}")
    assert status == 0, output
    assert on_call.canary["rollout_percentage"] == rollout


def test_a_yes_at_the_terminal_is_one(on_call: OnCall) -> None:
    name = on_call.detect("canary_failure")
    # By the service's own name of the action.
    what = ["-e", f"incident_id={name}", "-e", "incident_action=emergency_stop_canary"]
    operator = Operator(on_call.lab, on_call.directory)
    status, output = at_a_terminal(operator, "yes", "wp_chat_incident_execute", "remediate", *what)
    assert status == 0, output
    assert on_call.canary["emergency_stop"] is True
    assert operator.records[-1]["approved"] == "a yes at the terminal"


def test_a_check_is_made(on_call: OnCall) -> None:
    name = on_call.detect("memory_exhaustion")
    status, output = on_call.run("execute", "-e", f"incident_id={name}", "-e", "incident_action=check_memory")
    assert status == 0, output
    assert "(check host_memory of the runbook resource_exhaustion)" in output
    report = json.loads((on_call.directory / "reports" / "resource_exhaustion" / f"{HOST}.json").read_text())
    assert "host_memory" in [finding["id"] for finding in report["findings"]]
    assert not (on_call.directory / "state").exists()


def test_what_is_in_breach_is_recorded_once(on_call: OnCall) -> None:
    status, output = on_call.run("auto_detect")
    assert status == 0, output
    assert f"{HOST}: no runbook is in breach, so nothing was recorded." in output
    assert on_call.lines == []

    for fault in ("index-truncated", "canary-stopped"):
        assert on_call.lab.break_fault(fault).status == 200
    status, output = on_call.run("auto_detect", "--check")
    assert "would be recorded" in output
    assert on_call.lines == []
    status, output = on_call.run("auto_detect")
    assert status == 0, output
    report = json.loads((on_call.directory / "reports" / "triage" / f"{HOST}.json").read_text())
    found = {entry["runbook"]: entry for entry in report["runbooks"] if entry["breaches"]}
    own = {runbook for runbook, entry in found.items() if not entry["same_as"]}
    assert {"index_corruption", "canary_failure"} <= own
    assert {kind: line["severity"] for kind, line in on_call.active.items()} == {
        runbook: found[runbook]["severity"] for runbook in own
    }
    assert on_call.active["index_corruption"]["severity"] == "critical"
    assert on_call.active["index_corruption"]["description"] == found["index_corruption"]["summary"]
    same = [entry["runbook"] for entry in found.values() if entry["same_as"]]
    assert same
    assert f"{HOST}: nothing was recorded for {', '.join(same)}, whose findings are those of " in output

    before = on_call.lines
    status, output = on_call.run("auto_detect")
    assert (status, on_call.lines) == (0, before)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("detect", [], "Which incident? Pass -e incident_type= (high_error_rate, index_corruption,"),
        ("procedures", [], "Which incident? Pass -e incident_id=ID;"),
        ("resolve", ["-e", "incident_id=incident_9"], f"No incident incident_9 on {HOST}; active are "),
        ("execute", ["-e", "incident_id=incident_9"], "Which action? Pass -e incident_action=ID;"),
        ("status", ["--tags", "remediate"], "Unknown tag remediate: leave --tags out."),
        (
            "execute",
            ["-e", "incident_action=a", "-e", "incident_confirm=true"],
            "which takes --tags remediate; add that.",
        ),
    ],
)
def test_mistakes_are_one_sentence(on_call: OnCall, name: str, arguments: list[str], sentence: str) -> None:
    status, output = on_call.run(name, *arguments)
    assert status == 2
    assert sentence in output
    assert output.count("ERROR") == 1


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("high_latency", "high_latency has no action 'clear_cach': did you mean clear_cache?"),
        ("unknown", "No runbook is for an incident of the type unknown;"),
    ],
)
def test_an_action_of_no_runbook_is_a_sentence(on_call: OnCall, kind: str, sentence: str) -> None:
    name = on_call.detect(kind)
    status, output = on_call.run("execute", "-e", f"incident_id={name}", "-e", "incident_action=clear_cach")
    assert status == 2
    assert f"ERROR: {HOST}: Nothing was changed: {sentence}" in output


def test_detect_says_what_is_needed(on_call: OnCall) -> None:
    status, output = on_call.make("incident-detect", SEVERITY="high")
    assert status == 2
    assert "Needed: INCIDENT_TYPE=high_latency (or " in output
    assert on_call.lines == []


def test_the_reference_needs_nothing(tmp_path: Path) -> None:
    """No server, no host, no inventory."""
    nobody = inventory(tmp_path, {}, wp_chat=[])
    finished = subprocess.run(
        [*MAKE, "incident-emergency-ref", f"INVENTORY={nobody}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=120,
    )
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ["INCIDENT", "SEVERITY", "PRIMARY", "ACTION", "SECONDARY", "ACTION"]
    table = {line[:17].strip(): line.split()[2 if " " in line[:17].strip() else 1] for line in lines[1:9]}
    assert len(table) == 8
    assert "Rate limit attack" in table
    assert any("-e runbook_steps=restart_wp_chat" in line for line in lines)
    assert not any("{{" in line for line in lines)


def test_hosts(on_call: OnCall, tmp_path: Path) -> None:
    variables = {**on_call.lab.inventory, **LOCAL}
    (tmp_path / "other").mkdir()
    mixed = inventory(
        tmp_path / "other", {"chat-1": variables, "chat-2": variables, "web-1": LOCAL}, wp_chat=["chat-1", "chat-2"]
    )
    nobody = inventory(tmp_path, {}, wp_chat=[])

    def run(where: Path, name: str, *arguments: str) -> tuple[int, str]:
        return ansible(
            tmp_path, "ansible-playbook", f"oncall.runbooks.wp_chat_incident_{name}", "-i", where, *arguments
        )

    status, output = run(nobody, "status")
    assert status == 2
    assert "The inventory has no host; it is looked for on hosts in the group wp_chat" in output
    status, output = run(mixed, "status", "-l", "web-1")
    assert status == 2
    assert "web-1 has no wp_chat; it is looked for on hosts in the group wp_chat" in output
    name = on_call.detect("high_latency")
    status, output = run(mixed, "active")
    assert status == 0, output
    assert "Left out web-1, not in the group wp_chat." in output
    assert output.count("1 active incident (1 high)") == 2
    assert "oncall.runbooks.wp_chat_incident_procedures" in output
    # Both have it, so which one is meant has to be said.
    status, output = run(mixed, "resolve", "-e", f"incident_id={name}")
    assert status == 2
    assert f"The incident {name} is on chat-1 and chat-2; say which with -l." in output
    assert "high_latency" in on_call.active


def test_while_it_is_down_the_file_tells_and_nothing_is_recorded(on_call: OnCall) -> None:
    name = on_call.detect("high_latency")
    request("POST", f"{on_call.lab.control}/processes/{on_call.lab.process}/stop", timeout=90)
    before = on_call.file.read_bytes()
    status, output = on_call.run("status")
    assert status == 0, output
    assert f"  HIGH  high_latency  {name}" in output
    for command in (
        ("resolve", "-e", f"incident_id={name}"),
        ("detect", "-e", "incident_type=cache_failure", "-e", "incident_severity=low"),
    ):
        status, output = on_call.run(*command)
        assert status == 2
        assert "Nothing was recorded: POST " in output
    assert on_call.file.read_bytes() == before


def test_a_deployment_that_lists_its_incidents_is_believed(tmp_path: Path) -> None:
    with running_lab(tmp_path / "lab", "--service", "wp_chat", "--wp-chat", "literal") as literal:
        who = OnCall(literal, tmp_path)
        who.detect("model_failure")
        status, output = who.run("status")
        assert status == 0, output
        assert output.startswith(f"{HOST}: 1 active incident (1 high), 1 in the last 24 h")
        assert "  From the API." in output

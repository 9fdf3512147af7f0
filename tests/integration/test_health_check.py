# SPDX-License-Identifier: GPL-3.0-or-later
"""The health check as somebody at a shell makes it: one line per host, and nothing that hurts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.lab_helpers import RunningLab, eventually, request, running_lab
from tests.integration.playbook_helpers import DEAD, LOCAL, REPOSITORY, Run, ansible, inventory

P1 = "P1: 15 minutes, on-call → team lead → VP Engineering"
P2 = "P2: 1 hour, on-call → team lead"
CONTACTS = "Contacts: on-call: PagerDuty schedule; Slack: #vritti-incidents; status page: status.vritti.example.com"
HEAD = pytest.mark.parametrize("lab", ["head"], indirect=True)
V010 = pytest.mark.parametrize("lab", ["v0.1.0"], indirect=True)


@pytest.fixture(scope="module", params=["v0.1.0", "head"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", request.param, "--traffic", "30") as running:
        yield running


@pytest.fixture
def faults(lab: RunningLab) -> Iterator[RunningLab]:
    """The lab, broken by the test and healthy again after it."""
    yield lab
    lab.mend()


def check(directory: Path, where: Path, *arguments: str, **environment: str) -> Run:
    command = ["ansible-playbook", REPOSITORY / "playbooks/health_check.yml", "-i", where]
    # How busy this machine is otherwise is no matter of the test.
    options = {"runbook_sample_seconds": 0, "health_check_p99_p2": 2, "health_check_p99_p3": 1}
    status, output = ansible(directory, *command, "-e", json.dumps(options), *arguments, environment=environment)
    return Run(status, output, directory, "health_check")


def where(lab: RunningLab) -> Path:
    return lab.data_dir / "inventory.yml"


def rows(run: Run) -> list[str]:
    """What is said of hosts: everything up to the empty line."""
    return run.output.split("\n\n")[0].splitlines()


def asked(lab: RunningLab) -> int:
    """How often Vritti's health was asked for in a way that counts towards its breaker, by its access log."""
    return sum(bool(re.search(r'"GET /health(/readiness)? HTTP', line)) for line in lab.log)


@HEAD
@pytest.mark.both_ends
def test_a_healthy_host_is_one_line(lab: RunningLab, tmp_path: Path) -> None:
    before = asked(lab)
    run = check(tmp_path, where(lab))
    assert run.status == 0
    assert rows(run) == [
        "vritti-lab  HEALTHY  kyrodb healthy, customer_database healthy, embedding_service degraded, "
        "reflection_service healthy, requests -, 5xx -, P99 -"
    ]
    # What several checks look at is asked for once.
    assert asked(lab) == before + 1
    assert "→" not in run.output
    assert "Contacts" not in run.output
    diagnosis = run.diagnosis()
    assert (diagnosis["status"], diagnosis["escalation"], diagnosis["plan"]) == ("healthy", None, None)
    assert {finding["status"] for finding in diagnosis["findings"]} == {"ok", "skipped"}
    assert run.findings()["embedding_service"]["expected"] == "healthy, or degraded until the first image is embedded"


@V010
def test_at_v010_only_kyrodb_counts_and_there_are_numbers(lab: RunningLab, tmp_path: Path) -> None:
    eventually(lambda: sum('"POST /api/v1/' in line for line in lab.log) >= 150, "150 requests")
    run = check(tmp_path, where(lab))
    assert run.status == 0
    (row,) = rows(run)
    since = "since process start"
    assert re.fullmatch(
        r"vritti-lab  HEALTHY  kyrodb healthy, customer_database -, embedding_service -, reflection_service healthy, "
        rf"requests [\d.]+ /s {since}, 5xx 0 % {since}, P99 [\d.]+ .?s {since}",
        row,
    ), row
    # The service itself says otherwise of all but KyroDB.
    health = lab.get("/health")
    assert (health.status, health.json["status"]) == (200, "degraded")
    findings = run.findings()
    for name in ("customer_database", "embedding_service", "overall"):
        assert findings[name]["status"] == "skipped"
        assert re.search(
            "v0.1.0 calls it.* always.*only the component kyrodb counts there", findings[name]["evidence"]["reason"]
        )


@V010
def test_at_v010_kyrodb_counts(faults: RunningLab, tmp_path: Path) -> None:
    faults.break_fault("breaker-stuck")
    # What Vritti says of its health it says for five seconds.
    eventually(lambda: faults.kyrodb_component("/health")["status"] == "unhealthy", "Vritti notices")
    run = check(tmp_path, where(faults))
    (row,) = rows(run)
    assert row.startswith("vritti-lab  CRITICAL P1  Vritti's circuit breaker is stuck open"), run.output
    assert "(kyrodb unhealthy, customer_database -, " in row
    assert run.diagnosis()["label"] == "P1"


@HEAD
def test_a_dead_instance_is_the_cause_and_health_is_not_asked(faults: RunningLab, tmp_path: Path) -> None:
    faults.break_fault("kyrodb-text-down")
    before = asked(faults)
    run = check(tmp_path, where(faults))
    assert run.status == 0
    (row,) = rows(run)
    assert row.startswith("vritti-lab  CRITICAL P1  KyroDB's text instance does not answer at 127.0.0.1:"), run.output
    assert row.endswith(
        "(kyrodb -, customer_database -, embedding_service -, reflection_service -, requests -, 5xx -, P99 -)"
    )
    assert run.output.splitlines()[1:4] == ["", f"  {P1}", f"  {CONTACTS}"]
    findings = run.findings()
    assert "kyrodb_text_answers" in findings["kyrodb_component"]["evidence"]["reason"]
    assert [finding["suggests"] for finding in findings.values() if finding["suggests"]] == []
    escalation = run.diagnosis()["escalation"]
    assert (escalation["label"], escalation["respond_within"]) == ("P1", 900)
    assert escalation["path"] == ["on-call", "team lead", "VP Engineering"]
    # The same under another callback, as AWX has it; and a level that makes the run red.
    plain = check(
        *(tmp_path, where(faults), "-e", "runbook_fail_on=critical"),
        ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default",
        ANSIBLE_SHOW_CUSTOM_STATS="true",
    )
    assert plain.status == 2
    assert json.dumps(row)[1:-1] in plain.output
    assert P1 in plain.output
    stats = json.loads(plain.output.split("RUN: ", 1)[1])
    assert stats["oncall_runbooks"]["vritti-lab"]["status"] == "critical"
    assert stats["oncall_runbooks"]["vritti-lab"]["escalation"] == escalation
    assert asked(faults) == before


@HEAD
def test_vritti_down_and_hosts_that_cannot_be_looked_at(lab: RunningLab, tmp_path: Path) -> None:
    good = dict(lab.inventory)
    gone = {
        "ansible_connection": "ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": 9,
        "ansible_ssh_common_args": "-F none",
    }
    hosts = {
        "well": {**good, **LOCAL},
        "gone": {**good, **gone},
        "bare": {**good, **LOCAL, "ansible_python_interpreter": "/nonexistent/python3"},
        "image": {**good, **LOCAL, "kyrodb_image_address": DEAD},
    }
    request("POST", f"{lab.control}/processes/vritti/stop", timeout=90)
    down = check(tmp_path, where(lab))
    lab.restart("vritti")
    assert rows(down)[0].startswith(f"vritti-lab  CRITICAL P1  Vritti does not answer at {lab.url}. (kyrodb -, "), (
        down.output
    )

    run = check(tmp_path, inventory(tmp_path, hosts))
    assert run.status == 4, "that of an unreachable host"
    first, *lines = rows(run)
    assert first == "4 hosts: 1 degraded, 2 unknown, 1 healthy"
    for line, start in zip(
        lines,
        (
            "image  DEGRADED P2  KyroDB's image instance does not answer at 127.0.0.1:9: ",
            "bare   UNKNOWN      It could not be looked at: it has no usable Python (",
            "gone   UNKNOWN      It could not be looked at: ",
            "well   HEALTHY      kyrodb healthy, customer_database healthy, ",
        ),
        strict=True,
    ):
        assert line.startswith(start), run.output
    assert run.output.split("\n\n")[1].splitlines() == [f"  {P2}", f"  {CONTACTS}"]
    for host in ("bare", "gone"):
        assert run.diagnosis(host)["status"] == "unknown"
        assert {finding["status"] for finding in run.diagnosis(host)["findings"]} == {"unknown"}


@HEAD
@pytest.mark.parametrize(("tag", "what"), [("remediate", "remediate"), ("verify", "verify"), ("rollback", "roll back")])
def test_there_is_nothing_to_do_and_it_says_so(lab: RunningLab, tmp_path: Path, tag: str, what: str) -> None:
    before = len(lab.log)
    run = check(tmp_path, where(lab), "--tags", tag)
    assert run.status == 2
    assert f"health_check only diagnoses, so there is nothing to {what}; leave --tags {tag} out." in run.output
    assert not (tmp_path / "reports").exists()
    assert not any("/health/liveness" in line for line in lab.log[before:])

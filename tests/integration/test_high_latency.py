# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way: ansible-playbook against the lab, at both ends of Vritti's history."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_runner
import pytest

from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import BIN, DEAD, LATENCIES, REPOSITORY, ansible, diagnose, hashes, inventory

DIAGNOSIS_KEYS = (
    *("schema", "runbook", "service", "host", "started_at", "duration_ms"),
    *("status", "severity", "label", "escalation", "summary", "findings", "plan"),
)
FINDING_KEYS = (
    *("id", "title", "status", "severity", "label", "observed", "unit", "expected"),
    *("source", "evidence", "next_step", "reproduce", "suggests", "observed_at", "duration_ms"),
)


@pytest.fixture(scope="module", params=["v0.1.0", "head"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    options = ("--vritti", request.param, "--traffic", "30")
    # As in LATENCIES: what Vritti itself calls slow.
    environment = {"HEALTH_KYRODB_LATENCY_WARNING_MS": "150"}
    with running_lab(tmp_path_factory.mktemp("lab"), *options, environment=environment) as running:
        yield running


# What is the same for both lines.
HEAD = pytest.mark.parametrize("lab", ["head"], indirect=True)


@pytest.fixture
def faults(lab: RunningLab) -> Iterator[RunningLab]:
    """The lab, broken by the test and healthy again after it."""
    yield lab
    lab.mend()


def where(lab: RunningLab) -> Path:
    return lab.data_dir / "inventory.yml"


def served(lab: RunningLab) -> int:
    """How many requests Vritti has answered, by the access log that both lines write."""
    return sum('"POST /api/v1/' in line for line in lab.log)


def under_traffic(lab: RunningLab, requests: int = 40) -> None:
    before = served(lab)
    eventually(lambda: served(lab) >= before + requests, f"{requests} requests")


@pytest.mark.both_ends
def test_a_healthy_host_is_healthy(lab: RunningLab, tmp_path: Path) -> None:
    under_traffic(lab)
    run = diagnose(tmp_path, where(lab), sample_seconds=1.5)
    diagnosis = run.diagnosis()
    assert run.status == 0
    assert (diagnosis["status"], diagnosis["severity"], diagnosis["label"]) == ("healthy", None, None), run.output
    assert diagnosis["summary"].startswith("Nothing wrong")
    assert run.output.splitlines()[0].startswith("HEALTHY  vritti-lab")
    assert {finding["status"] for finding in diagnosis["findings"]} == {"ok", "skipped"}


@pytest.mark.parametrize(
    ("fault", "status", "label", "words"),
    [
        ("kyrodb-slow", "degraded", "P2", r"KyroDB is slow: the text instance takes \d+ ms and the image instance"),
        ("kyrodb-text-slow", "degraded", "P2", r"KyroDB's text instance is slow: \d+ ms"),
        ("kyrodb-text-down", "critical", "P1", "text instance does not answer"),
        ("kyrodb-image-down", "degraded", "P2", "image instance does not answer"),
        ("kyrodb-down", "critical", "P1", "Both KyroDB instances are down"),
        ("kyrodb-text-hang", "critical", "P1", "text instance does not answer"),
        ("kyrodb-unhealthy", "critical", "P1", "write-ahead log"),
        ("breaker-stuck", "critical", "P1", "breaker is stuck open .* until Vritti is restarted"),
        ("embedding-slow", "degraded", "P2", "Embedding is slow, most likely"),
    ],
)
def test_a_fault_has_its_severity_and_its_cause(
    faults: RunningLab, tmp_path: Path, fault: str, status: str, label: str, words: str
) -> None:
    faults.break_fault(fault)
    if "slow" in fault:
        # A percentile from the log, which is all that HEAD has, needs a hundred requests.
        under_traffic(faults, 100)
    run = diagnose(tmp_path, where(faults), "-e", "runbook_probe_timeout=2", sample_seconds=1.5)
    diagnosis = run.diagnosis()
    assert (diagnosis["status"], diagnosis["label"]) == (status, label), run.output
    assert re.search(words, diagnosis["summary"]), diagnosis["summary"]
    # The answer is in the first three lines.
    assert re.search(words, " ".join(run.output.splitlines()[:3]).replace("   ", " ")), run.output


def test_a_traffic_spike_is_named(faults: RunningLab, tmp_path: Path) -> None:
    faults.break_fault("traffic-spike")
    under_traffic(faults, 200)
    # On a quick machine the spike is served in time; the threshold decides what slow is, the cause is the same.
    run = diagnose(
        tmp_path,
        where(faults),
        "-e",
        "high_latency_p99_p3=0.001",
        "-e",
        "high_latency_p99_p2=0.002",
        sample_seconds=1.5,
    )
    assert "traffic spike" in run.diagnosis()["summary"], run.output
    assert "breach" in {run.findings()[name]["status"] for name in ("traffic", "active_requests")}


def test_the_breaker_survives_twenty_diagnoses(faults: RunningLab, tmp_path: Path) -> None:
    began = len(faults.log)
    faults.break_fault("kyrodb-image-down")
    # Four of the five failures; one more opens it for good.
    for _number in range(4):
        faults.get("/health/readiness")
    # Five by five: each host is this one under another name.
    hosts = [f"vritti-{number}" for number in range(5)]
    several = inventory(tmp_path, dict.fromkeys(hosts, faults.inventory))
    for _number in range(4):
        run = diagnose(tmp_path, several)
        for host in hosts:
            assert run.diagnosis(host)["label"] == "P2", run.output
            assert run.findings(host)["breaker"]["status"] == "skipped"
    assert not any("Circuit breaker OPENED" in line for line in faults.log[began:])
    assert faults.search().status == 200
    faults.get("/health/readiness")
    assert any("Circuit breaker OPENED" in line for line in faults.log[began:])


@pytest.mark.both_ends
def test_json_is_as_the_contract_says(lab: RunningLab, tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, where(lab)).diagnosis()
    assert tuple(diagnosis) == DIAGNOSIS_KEYS
    assert diagnosis["schema"] == "oncall.runbooks/diagnosis/1"
    assert diagnosis["plan"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", diagnosis["started_at"])
    for finding in diagnosis["findings"]:
        assert tuple(finding) == FINDING_KEYS
        assert finding["status"] in {"ok", "breach", "unknown", "skipped"}
        if finding["status"] == "ok":
            assert finding["source"]
            assert finding["observed"] is not None
        elif finding["status"] != "breach":
            assert finding["evidence"]["reason"]


@HEAD
def test_what_changed_since_the_last_diagnosis(faults: RunningLab, tmp_path: Path) -> None:
    settings = tmp_path / "vritti.env"
    settings.write_text("A=1\n")
    # Modification times are told in seconds.
    os.utime(settings, (1_764_000_000, 1_764_000_000))
    files = ["-e", json.dumps({"vritti_config_files": [str(settings)]})]
    diagnose(tmp_path, where(faults), *files)
    faults.restart("vritti")
    settings.write_text("A=2\n")
    run = diagnose(tmp_path, where(faults), *files)
    changed = run.findings()["deployment"]["evidence"]["changed"]
    assert changed["started_at"]["was"] < changed["started_at"]["is"]
    assert changed["files"]["was"] != changed["files"]["is"]
    assert "Changed since the last diagnosis" in run.output


@HEAD
def test_a_breach_says_since_when(lab: RunningLab, tmp_path: Path) -> None:
    broken = inventory(tmp_path, {"vritti-lab": {**lab.inventory, "kyrodb_text_address": DEAD}})
    first = diagnose(tmp_path, broken).findings()["kyrodb_text_answers"]
    second = diagnose(tmp_path, broken).findings()["kyrodb_text_answers"]
    assert first["status"] == "breach"
    assert second["evidence"]["since"] == first["observed_at"]


def test_diagnosis_changes_nothing(tmp_path: Path) -> None:
    with running_lab(tmp_path / "lab") as quiet:
        quiet.search()
        eventually(lambda: not list(quiet.data_dir.rglob("*.tmp")), "nothing being written")
        before = hashes(quiet.data_dir)
        run = diagnose(tmp_path, where(quiet), sample_seconds=1)
        assert run.diagnosis()["status"] == "healthy", run.output
        assert hashes(quiet.data_dir) == before
        assert "vritti/data/customers.db" in before


def test_tls_and_key_of_kyrodb(tmp_path: Path) -> None:
    """With a key Vritti itself cannot work, since its client sends none: KyroDB is well, Vritti is the finding."""
    with running_lab(tmp_path / "lab", "--kyrodb-tls", "--kyrodb-api-key", "kyro_lab_0123456789abcdef") as secured:
        run = diagnose(tmp_path, where(secured))
        findings = run.findings()
        assert findings["kyrodb_text_answers"]["status"] == "ok", run.output
        assert findings["kyrodb_text_latency"]["status"] == "ok"
        assert run.diagnosis()["summary"].startswith("Vritti does not answer")
        wrong = diagnose(tmp_path, where(secured), "-e", "kyrodb_api_key=kyro_wrong_secret_value").findings()
        assert wrong["kyrodb_text_answers"]["status"] == "unknown"
        assert "refuses the API key" in wrong["kyrodb_text_answers"]["evidence"]["reason"]
        no_ca = diagnose(tmp_path, where(secured), "-e", "kyrodb_tls_ca=").findings()["kyrodb_text_answers"]
        assert no_ca["status"] == "unknown"
        assert "does not verify" in no_ca["evidence"]["reason"]
        for told in (run.output, json.dumps(findings), json.dumps(wrong)):
            assert "kyro_lab_0123456789abcdef" not in told
            assert "kyro_wrong_secret_value" not in told


@HEAD
@pytest.mark.both_ends
def test_by_collection_name_from_anywhere(lab: RunningLab, tmp_path: Path) -> None:
    command = [
        "ansible-playbook",
        "oncall.runbooks.high_latency",
        "--tags",
        "diagnose",
        "-e",
        json.dumps({**LATENCIES, "runbook_sample_seconds": 0}),
    ]
    status, output = ansible(tmp_path, *command, "-i", where(lab))
    assert status == 0, output
    assert output.startswith("HEALTHY")
    assert (tmp_path / "reports/high_latency/vritti-lab.json").exists()
    assert "Again:  ansible-playbook oncall.runbooks.high_latency --tags diagnose -i" in output


@HEAD
def test_check_mode_and_a_second_run_change_nothing(lab: RunningLab, tmp_path: Path) -> None:
    for more in (["--check", "--diff"], []):
        run = diagnose(tmp_path, where(lab), "-v", *more)
        assert run.status == 0
        assert "changed=0" in run.output
        # -v brings Ansible's own output back, beside the answer.
        assert "TASK [oncall.runbooks.runbook : Look and judge]" in run.output
        assert "HEALTHY  vritti-lab" in run.output


@HEAD
@pytest.mark.both_ends
def test_the_runner_gets_text_and_statistics(lab: RunningLab, tmp_path: Path) -> None:
    """As AWX runs it: ansible-runner sets a callback of its own, and reads what set_stats hands on."""
    finished: Any = ansible_runner.run(
        private_data_dir=str(tmp_path),
        playbook=str(REPOSITORY / "playbooks/high_latency.yml"),
        inventory=str(where(lab)),
        cmdline="--tags diagnose",
        extravars={**LATENCIES, "runbook_sample_seconds": 0},
        envvars={"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "PATH": f"{BIN}:{os.environ['PATH']}"},
        quiet=True,
    )
    output = finished.stdout.read()
    assert finished.status == "successful", output
    assert "HEALTHY  vritti-lab  high_latency" in output
    stats = [event for event in finished.events if event["event"] == "playbook_on_stats"]
    handed = stats[-1]["event_data"]["artifact_data"]["oncall_runbooks"]
    assert handed["vritti-lab"]["status"] == "healthy"
    assert len(json.dumps(handed)) < 65536


@HEAD
@pytest.mark.parametrize(("levels", "status"), [("critical", 0), ("high", 2), ("low,unknown", 2), ("unknown", 0)])
def test_fail_on_reddens_the_run(lab: RunningLab, tmp_path: Path, levels: str, status: int) -> None:
    broken = inventory(tmp_path, {"vritti-lab": {**lab.inventory, "kyrodb_image_address": DEAD}})
    run = diagnose(tmp_path, broken, "-e", f"runbook_fail_on={levels}")
    assert run.status == status, run.output
    assert run.diagnosis()["label"] == "P2"


@HEAD
@pytest.mark.both_ends
def test_several_hosts_are_ranked(lab: RunningLab, tmp_path: Path) -> None:
    good = dict(lab.inventory)
    hosts = {"good": good, "bad": {**good, "kyrodb_text_address": DEAD}}
    run = diagnose(tmp_path, inventory(tmp_path, hosts))
    assert run.output.splitlines()[0] == "2 hosts: 1 critical, 1 healthy"
    assert run.output.index("CRITICAL P1  bad") < run.output.index("HEALTHY  good")

# SPDX-License-Identifier: GPL-3.0-or-later
"""The newest Vritti without an LLM key: it refuses tiers, and its log has no INFO lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import REPOSITORY, Run, ansible


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", "head") as running:
        running.set_environment(LLM_OPENROUTER_API_KEY=None, SERVICE_REQUIRE_LLM_REFLECTION="false")
        restarted = running.restart("vritti")
        assert restarted.status == 200, restarted.text
        yield running


def run(lab: RunningLab, directory: Path, runbook: str, tags: str, *arguments: str) -> Run:
    options = {
        "runbook_sample_seconds": 0,
        "runbook_settle_seconds": 0,
        "runbook_state_dir": str(directory / "state"),
        "vritti_warm_up": 0,
    }
    playbook = REPOSITORY / "playbooks" / f"{runbook}.yml"
    where = lab.data_dir / "inventory.yml"
    command = ["ansible-playbook", playbook, "-i", where, "--tags", tags, "-e", json.dumps(options), *arguments]
    status, output = ansible(directory, *command)
    return Run(status, output, directory, runbook)


def test_the_smoke_test_passes(lab: RunningLab, tmp_path: Path) -> None:
    # What the test must not send.
    refused = lab.capture(query="?tier=cheap")
    assert (refused.status, refused.json["detail"]) == (400, "Tier override requires reflection service to be enabled")
    done = run(
        lab, tmp_path, "high_error_rate", "remediate", "-e", "runbook_steps=smoke_test", "-e", "runbook_max_risk=safe"
    )
    assert done.status == 0, done.output


def test_errors_are_told_from_access_lines_alone(lab: RunningLab, tmp_path: Path) -> None:
    # As of the first process, which had a key.
    completed = lab.logged("HTTP request completed")
    healthy = run(lab, tmp_path, "high_error_rate", "diagnose").findings()
    assert (healthy["error_rate"]["status"], healthy["authentication_errors"]["status"]) == ("ok", "ok")
    before = lab.logged("/api/v1/search HTTP/1.1")
    for _number in range(20):
        assert lab.search({"X-API-Key": "em_live_wrong"}).status == 401
        assert lab.search().status == 200
    eventually(lambda: lab.logged("/api/v1/search HTTP/1.1") >= before + 40, "its log has the searches")
    told = run(lab, tmp_path, "high_error_rate", "diagnose")
    wrong = told.findings()["authentication_errors"]
    assert (wrong["status"], wrong["label"]) == ("breach", "P3"), told.output
    assert wrong["observed"] == pytest.approx(0.5, abs=0.1)
    assert told.findings()["error_rate"]["status"] == "ok"
    assert lab.logged("HTTP request completed") == completed


def test_a_wrong_dimension_is_found_although_the_breaker_hides_it(lab: RunningLab, tmp_path: Path) -> None:
    lab.break_fault("wrong-dimension")
    try:
        for _number in range(6):
            assert lab.capture().status == 500
        told = run(lab, tmp_path, "kyrodb_connection_failure", "diagnose")
        dimension = told.findings()["kyrodb_text_dimension"]
        assert (dimension["status"], dimension["observed"]) == ("breach", 768), told.output
        assert "a configuration for vectors of 768 dimensions, and Vritti's have 384" in told.diagnosis()["summary"]
        assert told.diagnosis()["plan"] is None
    finally:
        lab.heal_all()
        lab.restart("vritti")

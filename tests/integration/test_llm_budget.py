# SPDX-License-Identifier: GPL-3.0-or-later
"""llm_budget_exceeded against the lab: what Vritti counts, what it does not, and what helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import environment_file
from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import Operator, Run

RUNBOOK = "llm_budget_exceeded"
with_head = pytest.mark.parametrize("shared", ["head"], indirect=True)


@pytest.fixture(scope="module", params=["head", "v0.1.0"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", request.param) as running:
        yield running


@pytest.fixture
def lab(shared: RunningLab) -> Iterator[RunningLab]:
    """The lab, which a test may break; whole again after it, with its settings and a log of its own."""
    before = environment(shared).read_text()
    yield shared
    shared.heal_all()
    environment(shared).write_text(before)
    (shared.data_dir / "vritti" / "vritti.log").write_text("")
    shared.restart("vritti")


@pytest.fixture
def operator(lab: RunningLab, tmp_path: Path) -> Operator:
    return Operator(lab, tmp_path)


def environment(lab: RunningLab) -> Path:
    return lab.data_dir / "vritti" / "vritti.env"


def settings(lab: RunningLab) -> dict[str, str]:
    return environment_file.load(environment(lab))


def budget(lab: RunningLab) -> dict[str, Any]:
    answer: dict[str, Any] = lab.get("/admin/budget", lab.admin).json
    return answer


def reflected(lab: RunningLab, count: int = 1, query: str = "") -> None:
    """Capture episodes, and wait until their reflections were made."""
    for _number in range(count):
        before = sum(budget(lab)["count_by_tier"].values())
        assert lab.capture(query=query).status == 201
        eventually(lambda before=before: sum(budget(lab)["count_by_tier"].values()) > before, "a reflection")


def breaches(run: Run) -> set[str]:
    return {name for name, finding in run.findings().items() if finding["status"] == "breach"}


def steps(run: Run) -> list[str]:
    return [step["id"] for step in (run.diagnosis()["plan"] or {"steps": []})["steps"]]


def test_a_spent_budget_is_told_and_reflections_are_switched_off_and_on(operator: Operator, lab: RunningLab) -> None:
    v010 = lab.get("/metrics").status == 200
    healthy = operator.run(RUNBOOK, "diagnose")
    assert healthy.diagnosis()["status"] == "healthy", healthy.output
    # That it says 0 proves nothing, and the finding says so.
    assert "released versions count 0 for every reflection" in " ".join(healthy.output.split())
    lab.break_fault("llm-expensive", 30)
    reflected(lab, 2)
    run = operator.run(RUNBOOK, "diagnose")
    each = {"cost_per_reflection"} if v010 else set()
    assert breaches(run) == {"daily_cost", "premium_blocked", "cost_by_tier", "crossed", *each}, run.output
    found = run.findings()
    assert (found["daily_cost"]["observed"], found["daily_cost"]["label"]) == (60, "P3")
    assert found["cost_by_tier"]["observed"] == "cheap 60.0, cached 0.0, premium 0.0 USD"
    assert "midnight UTC, by itself" in found["daily_cost"]["next_step"]
    assert "REFLECTION_MAX_COST_PER_DAY_USD changes nothing" in found["daily_cost"]["next_step"]
    assert "Its limit is a constant" in run.diagnosis()["summary"]
    assert run.diagnosis()["label"] == "P3"
    assert steps(run) == ["disable_reflections"]
    if v010:
        return

    key = settings(lab)["LLM_OPENROUTER_API_KEY"]
    applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={run.diagnosis()['plan']['id']}")
    assert applied.status == 0, applied.output
    assert "premium_blocked fixed" in applied.output
    assert lab.capture().json["reflection_queued"] is False
    # The count is gone with the process; the log remembers.
    assert breaches(applied) == {"crossed"}, applied.output
    assert "was restarted since" in applied.diagnosis()["summary"]
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert settings(lab)["LLM_OPENROUTER_API_KEY"] == key
    assert lab.capture().json["reflection_queued"] is True
    private = operator.state / "private"
    for path in operator.directory.rglob("*"):
        if path.is_file() and private not in path.parents:
            assert key not in path.read_text(errors="replace"), path
    for one in (run, applied, undone):
        assert key not in one.output
        assert lab.inventory["vritti_admin_api_key"] not in one.output


@with_head
def test_a_warning_is_below_the_limit(operator: Operator, lab: RunningLab) -> None:
    lab.break_fault("llm-expensive", 12)
    reflected(lab)
    run = operator.run(RUNBOOK, "diagnose")
    assert run.diagnosis()["label"] == "P4", run.output
    assert breaches(run) == {"daily_cost", "cost_by_tier"}
    assert run.findings()["premium_blocked"]["status"] == "ok"


@with_head
def test_the_setting_of_the_runbook_changes_nothing_but_what_was_counted(operator: Operator, lab: RunningLab) -> None:
    lab.break_fault("llm-expensive", 60)
    reflected(lab)
    asked = ["-e", "runbook_steps=raise_cost_limit"]
    run = operator.run(RUNBOOK, "diagnose", *asked)
    preview = run.diagnosis()["plan"]["steps"][0]["preview"]
    assert "before: (not set); after: 100" in preview
    assert "No version of Vritti uses it; the limit of 50 USD a day is a constant" in preview
    applied = operator.run(RUNBOOK, "remediate", *asked, "-e", f"runbook_plan={run.diagnosis()['plan']['id']}")
    assert applied.status == 0, applied.output
    assert settings(lab)["REFLECTION_MAX_COST_PER_DAY_USD"] == "100"
    assert (budget(lab)["daily_cost_usd"], budget(lab)["limit_threshold_usd"]) == (0, 50)
    reflected(lab)
    run = operator.run(RUNBOOK, "diagnose")
    assert {"premium_blocked", "limit_setting"} <= breaches(run), run.output
    assert run.findings()["limit"]["observed"] == 50


@with_head
def test_models_that_cost_money_are_found_although_nothing_is_counted(operator: Operator, lab: RunningLab) -> None:
    paid = {"LLM_CHEAP_MODEL": "anthropic/claude-3-haiku", "LLM_CONSENSUS_MODEL_1": "openai/gpt-4o"}
    lab.set_environment(**paid)
    lab.restart("vritti")
    run = operator.run(RUNBOOK, "diagnose")
    assert breaches(run) == {"cheap_model", "consensus_model_1"}, run.output
    assert run.diagnosis()["label"] == "P4"
    assert run.findings()["daily_cost"]["observed"] == 0
    assert "(anthropic/claude-3-haiku), which Vritti does not count" in run.diagnosis()["summary"]
    (step,) = run.diagnosis()["plan"]["steps"]
    assert step["id"] == "use_free_models"
    assert "LLM_CHEAP_MODEL: before: anthropic/claude-3-haiku; after: x-ai/grok-4.1-fast:free" in step["preview"]
    applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={run.diagnosis()['plan']['id']}")
    assert applied.status == 0, applied.output
    assert applied.diagnosis()["status"] == "healthy", applied.output
    assert settings(lab)["LLM_CONSENSUS_MODEL_2"] == "tngtech/deepseek-r1t2-chimera:free"
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert {name: settings(lab).get(name) for name in (*paid, "LLM_CONSENSUS_MODEL_2")} == {
        **paid,
        "LLM_CONSENSUS_MODEL_2": None,
    }
    meant = operator.run(RUNBOOK, "diagnose", "-e", "llm_budget_exceeded_free_models_only=false")
    assert meant.diagnosis()["status"] == "healthy", meant.output


@with_head
def test_premium_that_takes_the_place_of_a_failing_cheap_model(operator: Operator, lab: RunningLab) -> None:
    least = ["-e", "llm_budget_exceeded_least_reflections=2"]
    reflected(lab)
    few = operator.run(RUNBOOK, "diagnose", *least)
    assert few.findings()["premium_share"]["status"] == "skipped", few.output
    assert "fewer than 2 reflections" in few.output
    lab.break_fault("llm-model-gone")
    reflected(lab, 2)
    run = operator.run(RUNBOOK, "diagnose", *least)
    assert breaches(run) == {"premium_share", "llm_cheap_calls"}, run.output
    assert run.findings()["premium_share"]["observed"] == pytest.approx(66.7, abs=0.1)
    assert "see reflection_failures" in run.diagnosis()["summary"]
    assert "REFLECTION_MIN_CHEAP_CONFIDENCE" in run.findings()["premium_share"]["next_step"]


@with_head
def test_without_the_admin_key_the_log_decides(operator: Operator, lab: RunningLab) -> None:
    without = {"vritti_admin_api_key": ""}
    run = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(without))
    assert run.diagnosis()["status"] == "healthy", run.output
    found = run.findings()
    assert (found["premium_blocked"]["status"], found["premium_blocked"]["observed"]) == ("ok", 0)
    assert "put its ADMIN_API_KEY into vritti_admin_api_key" in found["premium_blocked"]["evidence"]["note"]
    for name in ("daily_cost", "limit", "premium_share", "cost_by_tier"):
        assert found[name]["status"] == "skipped", name
        assert found[name]["evidence"]["reason"] == "The secret vritti_admin_api_key is empty"
    lab.break_fault("llm-expensive", 12)
    reflected(lab)
    warned = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(without))
    assert breaches(warned) == {"warned"}, warned.output
    assert warned.diagnosis()["label"] == "P4"
    lab.heal_fault("llm-expensive")
    lab.break_fault("llm-expensive", 60)
    reflected(lab)
    spent = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(without))
    assert breaches(spent) == {"warned", "crossed", "premium_blocked"}, spent.output
    assert spent.diagnosis()["label"] == "P3"
    assert steps(spent) == ["disable_reflections"]


@with_head
def test_without_the_admin_key_and_the_log_nothing_is_known(operator: Operator, lab: RunningLab) -> None:
    blind = {"vritti_admin_api_key": "", "vritti_log_path": "/no/such/file.log"}
    run = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(blind))
    assert run.diagnosis()["status"] == "unknown", run.output
    found = run.findings()["premium_blocked"]
    assert found["status"] == "unknown"
    assert found["evidence"]["reason"] == (
        "The secret vritti_admin_api_key is empty; The log /no/such/file.log does not exist"
    )
    assert "into vritti_admin_api_key, in a vault" in found["next_step"]


@with_head
def test_the_services_own_env_file_counts(operator: Operator, lab: RunningLab) -> None:
    own = lab.data_dir / "vritti" / ".env"
    own.write_text("LLM_CHEAP_MODEL=anthropic/claude-3-haiku\nLLM_CONSENSUS_MODEL_1=openai/gpt-4o\n")
    lab.set_environment(LLM_CONSENSUS_MODEL_1="kwaipilot/kat-coder-pro:free")
    lab.restart("vritti")
    try:
        reflected(lab)
        assert lab.logged("anthropic/claude-3-haiku") > 0, "Vritti reads it"
        run = operator.run(RUNBOOK, "diagnose")
        # What the process's environment has goes before it.
        assert breaches(run) == {"cheap_model"}, run.output
        assert f"{own} sets it" in run.findings()["cheap_model"]["evidence"]["note"]
        applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={run.diagnosis()['plan']['id']}")
        assert applied.status == 0, applied.output
        assert breaches(applied) == set()
    finally:
        own.unlink()

# SPDX-License-Identifier: GPL-3.0-or-later
"""reflection_failures against the lab and a stand-in of the LLM provider: each way to fail, told apart and mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import environment_file
from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.llm_provider import Provider, running_provider
from tests.integration.playbook_helpers import DEAD, Operator, Run

RUNBOOK = "reflection_failures"
NEW_KEY = "sk-or-v1-4b1f0a7d9c2e"
with_head = pytest.mark.parametrize("shared", ["head"], indirect=True)


@pytest.fixture(scope="module", params=["head", "v0.1.0"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", request.param) as running:
        yield running


@pytest.fixture
def lab(shared: RunningLab) -> Iterator[RunningLab]:
    """The lab, which a test may break; whole again after it, and with a log that tells of nothing."""
    before = environment(shared).read_text()
    yield shared
    shared.heal_all()
    environment(shared).write_text(before)
    shared.restart("vritti")


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as provider:
        provider.keys = {NEW_KEY}
        yield provider


class Engineer(Operator):
    """Has the new key in a file of variables, as it would be in a vault."""

    def __init__(self, lab: RunningLab, directory: Path, provider: Provider) -> None:
        super().__init__(lab, directory)
        self.secrets = directory.parent / f"{directory.name}.json"
        self.secrets.write_text(json.dumps({**provider.variables, "vritti_llm_api_key": NEW_KEY}))

    def command(self, runbook: str, tags: str, *arguments: str) -> list[str]:
        return super().command(runbook, tags, "-e", f"@{self.secrets}", *arguments)


@pytest.fixture
def operator(lab: RunningLab, provider: Provider, tmp_path: Path) -> Engineer:
    return Engineer(lab, tmp_path, provider)


def environment(lab: RunningLab) -> Path:
    return lab.data_dir / "vritti" / "vritti.env"


def setting(lab: RunningLab, name: str) -> str | None:
    return environment_file.load(environment(lab)).get(name)


def reflections(lab: RunningLab) -> dict[str, Any]:
    answer: dict[str, Any] = lab.get("/admin/reflection/stats", lab.admin).json
    return answer


def reflected(lab: RunningLab, query: str = "") -> None:
    """Capture an episode, and wait until its reflection was made."""
    before = reflections(lab)["total_reflections"]
    assert lab.capture(query=query).status == 201
    eventually(lambda: reflections(lab)["total_reflections"] > before, "a reflection")


def breaches(run: Run) -> set[str]:
    return {name for name, finding in run.findings().items() if finding["status"] == "breach"}


def steps(run: Run) -> list[str]:
    return [step["id"] for step in (run.diagnosis()["plan"] or {"steps": []})["steps"]]


def no_secret(operator: Engineer, run: Run, *secrets: str) -> None:
    """Neither what was printed nor what was written has one of them, but the copies that a rollback needs."""
    private = operator.state / "private"
    files = [path for path in operator.directory.rglob("*") if path.is_file() and private not in path.parents]
    assert len(files) > 2
    for text in (run.output, *(path.read_text(errors="replace") for path in files)):
        for secret in secrets:
            assert secret not in text


@with_head
def test_a_refused_key_is_rotated_and_put_back(operator: Engineer, lab: RunningLab, provider: Provider) -> None:
    old = setting(lab, "LLM_OPENROUTER_API_KEY")
    assert old is not None
    reflected(lab)
    healthy = operator.run(RUNBOOK, "diagnose")
    assert healthy.diagnosis()["status"] == "healthy", healthy.output
    # The public list of models is not asked, and the key goes nowhere but to the route that wants it.
    assert sorted(provider.requests) == [("/api/v1/key", f"Bearer {NEW_KEY}"), ("/api/v2/status.json", "")]
    assert "public and answers 200 to every key" in json.dumps(healthy.findings()["llm_key"]["evidence"])

    lab.break_fault("llm-key-refused")
    reflected(lab)
    run = operator.run(RUNBOOK, "diagnose")
    expected = {"llm_key_refused", "llm_cheap_calls", "llm_premium_calls", "llm_none_answers"}
    assert breaches(run) == {*expected, "llm_model_1", "llm_model_2"}, run.output
    assert run.diagnosis()["label"] == "P3"
    assert "and accepts the one in vritti_llm_api_key" in run.diagnosis()["summary"]
    # Neither counter nor queue knows of it, as the finding says.
    assert run.findings()["failures"]["status"] == "ok"
    assert "no dead letter queue" in run.findings()["llm_key_refused"]["next_step"]
    assert steps(run) == ["rotate_llm_key"]
    (step,) = run.diagnosis()["plan"]["steps"]
    assert (step["risk"], step["reversible"]) == ("disruptive", True)
    assert "LLM_OPENROUTER_API_KEY: before: (a secret); after: (a secret)" in step["preview"]
    assert "OPENROUTER_API_KEY is read by no version" in step["preview"]

    applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={run.diagnosis()['plan']['id']}")
    assert applied.status == 0, applied.output
    assert "llm_key_refused fixed" in applied.output
    assert setting(lab, "LLM_OPENROUTER_API_KEY") == NEW_KEY
    reflected(lab)
    assert reflections(lab)["percentage_by_tier"]["cheap"] == 100
    verified = operator.run(RUNBOOK, "verify")
    assert verified.status == 0, verified.output
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert setting(lab, "LLM_OPENROUTER_API_KEY") == old
    for one in (healthy, run, applied, verified, undone):
        no_secret(operator, one, old, NEW_KEY)


@with_head
def test_a_key_that_the_provider_refuses_is_not_given_to_vritti(
    operator: Engineer, lab: RunningLab, provider: Provider
) -> None:
    lab.break_fault("llm-key-refused")
    reflected(lab)
    provider.keys = set()
    # And its status page has moved, which says nothing of how it is.
    run = operator.run(RUNBOOK, "diagnose", "-e", f"vritti_llm_status_url={provider.url}/moved")
    assert run.findings()["llm_status"]["status"] == "skipped"
    assert "answers 404" in run.findings()["llm_status"]["evidence"]["reason"]
    assert (run.findings()["llm_key"]["observed"], run.findings()["llm_key"]["label"]) == (401, "P3"), run.output
    assert "and the one in vritti_llm_api_key too (401)" in run.diagnosis()["summary"]
    assert steps(run) == []
    # A provider that is busy has not refused it.
    provider.busy = 429
    run = operator.run(RUNBOOK, "diagnose")
    assert run.findings()["llm_key"]["status"] == "ok", run.output
    answer = run.findings()["llm_key_answer"]
    assert (answer["observed"], answer["label"]) == (429, "P4")
    assert "accepts the one" not in run.diagnosis()["summary"]
    assert steps(run) == ["rotate_llm_key"]
    no_secret(operator, run, NEW_KEY)


@with_head
def test_a_provider_that_cannot_be_asked_is_never_ok(operator: Engineer, lab: RunningLab, provider: Provider) -> None:
    reflected(lab)
    away = {
        "vritti_llm_status_url": "http://status.llm-provider.invalid/status.json",
        "vritti_llm_key_url": f"http://{DEAD}/key",
    }
    run = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(away))
    # It is no incident of Vritti's, whose log was seen.
    assert run.diagnosis()["status"] == "healthy", run.output
    assert [run.findings()[name]["status"] for name in ("llm_status", "llm_key")] == ["skipped", "skipped"]
    assert "status.llm-provider.invalid" in run.findings()["llm_status"]["evidence"]["reason"]
    # Nor without a key to ask with; what this host cannot reach can be left out.
    without = {"vritti_llm_status_url": "", "vritti_llm_api_key": ""}
    run = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(without))
    assert run.diagnosis()["status"] == "healthy", run.output
    assert run.findings()["llm_key"]["status"] == "skipped", run.output
    assert run.findings()["llm_key"]["evidence"]["reason"] == (
        "vritti_llm_api_key is empty; it is the key that would replace the present one"
    )
    assert run.findings()["llm_status"]["status"] == "skipped"
    assert "vritti_llm_status_url is empty" in run.output
    # Without the log nobody knows whether an LLM answers.
    blind = {**without, "vritti_log_path": "/no/such/file.log"}
    run = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(blind))
    assert run.diagnosis()["status"] == "unknown", run.output
    assert run.findings()["llm_none_answers"]["status"] == "unknown"


@with_head
def test_no_model_answers(operator: Engineer, lab: RunningLab, provider: Provider) -> None:
    lab.break_fault("llm-failing")
    reflected(lab)
    provider.indicator = "major"
    run = operator.run(RUNBOOK, "diagnose")
    assert run.findings()["llm_status"]["label"] == "P3", run.output
    assert run.diagnosis()["summary"].startswith(
        "No model answers (1 reflections), and the provider knows of it (major)"
    )
    # Nothing that could be done here would help.
    assert steps(run) == []


@with_head
def test_a_timeout_is_raised(operator: Engineer, lab: RunningLab) -> None:
    lab.set_environment(LLM_TIMEOUT_SECONDS="1")
    lab.restart("vritti")
    lab.break_fault("llm-slow", 1.1)
    reflected(lab)
    run = operator.run(RUNBOOK, "diagnose")
    assert run.findings()["llm_timeouts"]["observed"] == 3, run.output
    assert steps(run) == ["raise_llm_timeout"]
    preview = run.diagnosis()["plan"]["steps"][0]["preview"]
    assert "Set LLM_TIMEOUT_SECONDS" in preview
    assert "before: 1; after: 90" in preview
    applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={run.diagnosis()['plan']['id']}")
    assert applied.status == 0, applied.output
    assert "llm_timeouts fixed" in applied.output
    assert setting(lab, "LLM_TIMEOUT_SECONDS") == "90"
    reflected(lab)
    assert reflections(lab)["percentage_by_tier"]["cheap"] == 100


@with_head
def test_a_timeout_is_never_lowered(operator: Engineer, lab: RunningLab) -> None:
    lab.set_environment(LLM_TIMEOUT_SECONDS="120")
    asked = ["-e", "runbook_steps=raise_llm_timeout", "-e", "runbook_max_risk=disruptive"]
    run = operator.run(RUNBOOK, "remediate", *asked)
    assert run.status == 2, run.output
    assert "LLM_TIMEOUT_SECONDS is 120 in" in " ".join(run.output.split())
    assert "and 90 would be less" in " ".join(run.output.split())
    run = operator.run(RUNBOOK, "remediate", *asked, "-e", "vritti_llm_timeout_seconds=200")
    assert run.status == 2, run.output
    assert "vritti_llm_timeout_seconds is 200, and Vritti takes 1 to 180" in " ".join(run.output.split())
    assert setting(lab, "LLM_TIMEOUT_SECONDS") == "120"
    assert operator.records == []


@with_head
def test_a_longer_timeout_withholds_the_step(operator: Engineer, lab: RunningLab) -> None:
    lab.set_environment(LLM_TIMEOUT_SECONDS="1")
    lab.restart("vritti")
    lab.break_fault("llm-slow", 1.1)
    reflected(lab)
    run = operator.run(RUNBOOK, "diagnose", "-e", "vritti_llm_timeout_seconds=0.5")
    assert {"llm_timeouts", "llm_timeout"} <= breaches(run), run.output
    assert steps(run) == []


@with_head
def test_a_model_that_is_gone_is_changed_and_put_back(operator: Engineer, lab: RunningLab) -> None:
    lab.break_fault("llm-model-gone")
    reflected(lab)
    run = operator.run(RUNBOOK, "diagnose")
    assert breaches(run) == {"llm_cheap_calls"}, run.output
    assert "404 Not Found" in json.dumps(run.findings()["llm_cheap_calls"]["evidence"])
    assert steps(run) == ["change_cheap_model"]
    plan = run.diagnosis()["plan"]["id"]
    # As the runbook has it, for the premium tier alone: it says so, and what it costs.
    asked = operator.run(RUNBOOK, "diagnose", "-e", "runbook_steps=change_consensus_model")
    preview = asked.diagnosis()["plan"]["steps"][0]["preview"]
    assert "Set LLM_CONSENSUS_MODEL_1" in preview
    assert "after: anthropic/claude-3-haiku" in preview
    assert "costs money, which Vritti does not count" in preview
    applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={plan}")
    assert applied.status == 0, applied.output
    assert "llm_cheap_calls fixed" in applied.output
    assert setting(lab, "LLM_CHEAP_MODEL") == "kwaipilot/kat-coder-pro:free"
    reflected(lab)
    assert reflections(lab)["percentage_by_tier"]["cheap"] == 100
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert setting(lab, "LLM_CHEAP_MODEL") is None


@with_head
def test_the_premium_model_that_does_not_answer_is_changed(operator: Engineer, lab: RunningLab) -> None:
    # The first one answers; a model of the other's name the provider has not.
    lab.set_environment(LLM_CONSENSUS_MODEL_2="tngtech/no-such-model:free")
    lab.restart("vritti")
    for _number in range(2):
        reflected(lab, "?tier=premium")
    run = operator.run(RUNBOOK, "diagnose")
    assert breaches(run) == {"llm_premium_calls", "llm_model_2"}, run.output
    assert run.findings()["llm_model_1"]["observed"] == 2
    assert run.findings()["llm_model_2"]["evidence"]["text"] == "tngtech/no-such-model:free"
    assert "its second model does not answer" in run.diagnosis()["summary"]
    assert steps(run) == ["change_consensus_model_2"]
    applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={run.diagnosis()['plan']['id']}")
    assert applied.status == 0, applied.output
    assert setting(lab, "LLM_CONSENSUS_MODEL_2") == "anthropic/claude-3-haiku"
    assert setting(lab, "LLM_CONSENSUS_MODEL_1") is None
    reflected(lab, "?tier=premium")
    assert lab.logged("anthropic/claude-3-haiku succeeded") == 1


def test_reflections_that_cannot_be_stored_are_no_failure_of_the_llm(operator: Engineer, lab: RunningLab) -> None:
    head = lab.get("/metrics").status == 404
    lab.break_fault("reflections-refused")
    reflected(lab)
    dead = "Logged failed reflection to dead-letter queue"
    eventually(lambda: lab.logged(dead) > 0, "a dead letter")
    if head:
        lab.break_fault("redaction-failing")
        reflected(lab)
        eventually(lambda: lab.logged("reason: reflection_redaction_failed") > 0, "another one")
    run = operator.run(RUNBOOK, "diagnose")
    expected = {"failures", "not_stored", "not_redacted" if head else "failures_by_reason"}
    assert breaches(run) >= expected, run.output
    assert breaches(run) <= expected | {"deployment"}, run.output
    assert run.diagnosis()["label"] == "P3"
    assert "KyroDB refuses to store reflections" in run.diagnosis()["summary"]
    assert "dead_letter_queue" in run.findings()["not_stored"]["next_step"]
    if head:
        assert "cannot be replayed" in run.findings()["not_redacted"]["next_step"]
    else:
        (reason,) = run.findings()["failures_by_reason"]["evidence"]["by_reason"]
        assert reason["reason"] == "persistence_failed"
    assert steps(run) == []


@with_head
def test_without_a_key_there_are_no_reflections(operator: Engineer, lab: RunningLab) -> None:
    lab.set_environment(LLM_OPENROUTER_API_KEY="", SERVICE_REQUIRE_LLM_REFLECTION="false")
    lab.restart("vritti")
    run = operator.run(RUNBOOK, "diagnose")
    assert run.findings()["reflection_service"]["observed"] == "not set", run.output
    said = "Vritti makes no reflections: its LLM key is not set; LLM_OPENROUTER_API_KEY is (empty)."
    assert run.diagnosis()["summary"] == said
    assert steps(run) == ["rotate_llm_key"]
    # The plan says it before anything is begun.
    without = json.dumps({"vritti_llm_api_key": ""})
    run = operator.run(RUNBOOK, "diagnose", "-e", without)
    (step,) = run.diagnosis()["plan"]["steps"]
    assert step["problem"] == "Reflections need an LLM key, and vritti_llm_api_key is empty; set it in a vault."
    refused = operator.run(RUNBOOK, "remediate", "-e", "runbook_max_risk=disruptive", "-e", without)
    assert refused.status == 2, refused.output
    assert operator.records == []


@with_head
def test_a_placeholder_is_no_key(operator: Engineer, lab: RunningLab) -> None:
    lab.set_environment(LLM_OPENROUTER_API_KEY="sk-or-v1-example-4711", SERVICE_REQUIRE_LLM_REFLECTION="false")
    lab.restart("vritti")
    run = operator.run(RUNBOOK, "diagnose")
    assert run.findings()["llm_key_setting"]["observed"] == "(a placeholder)", run.output
    assert run.diagnosis()["summary"].endswith("LLM_OPENROUTER_API_KEY is (a placeholder).")
    no_secret(operator, run, "sk-or-v1-example-4711", NEW_KEY)


@with_head
def test_health_is_not_asked_while_an_instance_is_down(operator: Engineer, lab: RunningLab) -> None:
    lab.break_fault("kyrodb-image-down")
    before = lab.logged("Image instance health check failed")
    run = operator.run(RUNBOOK, "diagnose")
    assert run.findings()["reflection_service"]["status"] == "skipped", run.output
    assert lab.logged("Image instance health check failed") == before

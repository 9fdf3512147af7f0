# SPDX-License-Identifier: GPL-3.0-or-later
"""wp_chat's runbooks against its stand-in: every fault is found by its runbook and by triage, mended, taken back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import Operator, Run, hashes

OWN = ("index_corruption", "model_failure", "cache_failure", "canary_failure")
RUNBOOKS = (*OWN, "high_latency", "high_error_rate", "resource_exhaustion", "rate_limit_attack")
# How busy this machine is otherwise, and how slow that makes searches, is no matter of these tests.
QUIET = {
    "wp_chat_cpu_medium": 2,
    "wp_chat_latency_low": 5,
    "wp_chat_latency_medium": 6,
    "wp_chat_latency_high": 7,
    "wp_chat_latency_critical": 8,
    "wp_chat_warm_up": 0,
    # Every search counts, and clients send some of them within a second.
    "wp_chat_least_requests": 5,
}


def given(**more: Any) -> tuple[str, str]:
    return "-e", json.dumps({**QUIET, **more})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--service", "wp_chat", "--traffic", "20") as lab:
        eventually(lambda: lines(lab, "slo_metrics") > 60, "clients search")
        yield lab


@pytest.fixture(scope="module")
def literal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    options = ("--service", "wp_chat", "--wp-chat", "literal", "--traffic", "20")
    with running_lab(tmp_path_factory.mktemp("literal"), *options) as lab:
        yield lab


@pytest.fixture
def operator(lab: RunningLab, tmp_path: Path) -> Operator:
    return Operator(lab, tmp_path)


@pytest.fixture
def mended(lab: RunningLab) -> Iterator[RunningLab]:
    yield lab
    lab.mend()
    # What was measured of a fault would be found for five minutes.
    for name in ("slo_metrics", "ab_metrics"):
        (lab.home / "logs" / f"{name}.jsonl").write_text("")
    os.truncate(lab.state["log"], 0)


def lines(lab: RunningLab, name: str) -> int:
    path = lab.home / "logs" / f"{name}.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def canary(lab: RunningLab) -> dict[str, Any]:
    config: dict[str, Any] = lab.get("/admin/canary/status").json["config"]
    return {key: config[key] for key in ("enabled", "rollout_percentage", "emergency_stop")}


def breaches(run: Run) -> dict[str, str]:
    return {item["id"]: item["label"] for item in run.diagnosis()["findings"] if item["status"] == "breach"}


def remedied(operator: Operator, runbook: str, **more: Any) -> tuple[Run, dict[str, Any]]:
    """The plan of a diagnosis applied, and the record of it."""
    done = operator.apply(runbook, *given(runbook_settle_seconds=1, **more))
    record = operator.records[-1]
    assert (done.status, record["state"]) == (0, "verified"), done.output
    return done, record


def taken_back(operator: Operator, runbook: str) -> dict[str, Any]:
    record = operator.records[-1]
    done = operator.run(runbook, "rollback", *given(), "-e", f"runbook_rollback_id={record['id']}")
    assert done.status == 0, done.output
    after = operator.records[-1]
    assert after["state"] == "rolled back", done.output
    return after


def index(lab: RunningLab) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (lab.home / "data" / "index").glob("wp.*")}


# --- healthy


def test_nothing_is_found_where_nothing_is_wrong(operator):
    for runbook in (*RUNBOOKS, "health_check", "triage"):
        run = operator.run(runbook, "diagnose", *given())
        found = run.diagnosis()
        assert (run.status, found["status"], found["plan"]) == (0, "healthy", None), run.output
        assert [item["id"] for item in found["findings"] if item["status"] == "unknown"] == []
    # Each thing was looked at once, and is a finding of every runbook that looks at it.
    ids = [item["id"] for item in found["findings"]]
    assert {name.split(".")[0] for name in ids if "." in name} == set(RUNBOOKS)
    assert "model_failure.reranker_files" in ids
    assert "model_failure.reranker" not in ids


def test_looking_changes_nothing_and_says_what_it_cannot_know(tmp_path):
    with running_lab(tmp_path / "lab", "--service", "wp_chat", "--traffic", "0") as quiet:
        operator = Operator(quiet, tmp_path)
        before = hashes(quiet.home)
        for runbook in (*RUNBOOKS, "triage"):
            run = operator.run(runbook, "diagnose", *given())
            assert run.status == 0, run.output
            found = run.diagnosis()
            assert (found["status"], breaches(run)) == ("healthy", {}), run.output
            if runbook == "high_error_rate":
                rate = next(item for item in found["findings"] if item["id"] == "success_rate")
                # No traffic is no data, and not a success rate of anything.
                assert (rate["status"], rate["observed"]) == ("skipped", None)
        assert hashes(quiet.home) == before


# --- what is broken is found


@pytest.mark.parametrize(
    ("fault", "runbook", "label", "finding", "summary"),
    [
        ("model-gone", "model_failure", "high", "reranker", "The reranker's files are gone"),
        ("index-truncated", "index_corruption", "critical", "index", "The index is damaged (truncated)"),
        ("index-missing", "index_corruption", "critical", "index", "The index is damaged (missing)"),
        ("metadata-short", "index_corruption", "critical", "index", "The index is damaged (metadata"),
        ("cache-unwritable", "cache_failure", "medium", "cache_disk", "The cache's folder cannot be written"),
        ("cache-clear-fails", "cache_failure", "medium", "cache_strangers", "clearing it cannot remove"),
        ("canary-stopped", "canary_failure", "high", "canary", "The canary is stopped"),
        ("config-broken", "high_error_rate", "critical", "config", "config.yml is no YAML"),
        ("down", "index_corruption", "critical", "alive", "wp_chat is stopped"),
    ],
)
def test_fault_is_found_by_its_runbook_and_by_triage(mended, operator, fault, runbook, label, finding, summary):
    mended.break_fault(fault)
    run = operator.run(runbook, "diagnose", *given())
    found = run.diagnosis()
    assert run.status == 0, run.output
    assert breaches(run)[finding] == label
    assert (found["label"], summary in found["summary"]) == (label, True), found["summary"]
    # The answer is in the first three lines.
    assert summary.split("(")[0] in " ".join(run.output.splitlines()[:3])
    assert operator.run("triage", "diagnose", *given()).status == 0
    triage = json.loads((operator.directory / "reports" / "triage" / "wp-chat-lab.json").read_text())
    first = triage["runbooks"][0]
    assert (first["label"], triage["label"]) == (label, label), triage["summary"]
    if fault != "down":
        assert first["runbook"] == runbook, triage["summary"]


def test_errors_are_told_from_refusals(mended, operator):
    """An attack is no error of wp_chat, and its 5xx are none of an attacker."""
    mended.break_fault("attack")
    eventually(lambda: sum('"status_code": 429' in line for line in slo(mended)) > 150, "many are refused")
    attack = operator.run("high_error_rate", "diagnose", *given())
    assert "success_rate" not in breaches(attack), attack.output
    assert "go on with rate_limit_attack" in attack.diagnosis()["summary"]
    run = operator.run("rate_limit_attack", "diagnose", *given())
    assert breaches(run)["offenders"] == "high"
    listed = next(item for item in run.diagnosis()["findings"] if item["id"] == "offenders")["evidence"]["listed"]
    assert {row["name"] for row in listed} == {f"127.0.66.{number}" for number in range(1, 6)}
    mended.heal_all()
    mended.break_fault("errors", 60)
    began = time.time()
    eventually(lambda: sum('"status_code": 500' in line for line in slo(mended)) > 60, "many fail")
    assert time.time() - began < 60
    errors = operator.run("high_error_rate", "diagnose", *given())
    assert breaches(errors)["success_rate"] == "critical", errors.output
    assert errors.diagnosis()["summary"].startswith("Only ")


def slo(lab: RunningLab) -> list[str]:
    return (lab.home / "logs" / "slo_metrics.jsonl").read_text().splitlines()


# --- and mended, and taken back


def test_canary(mended, operator):
    before = canary(mended)
    assert before["enabled"]
    mended.break_fault("canary-stopped")
    _done, record = remedied(operator, "canary_failure")
    assert [step["id"] for step in record["steps"]] == ["clear_emergency"]
    assert canary(mended) == before
    taken_back(operator, "canary_failure")
    assert canary(mended) == {**before, "emergency_stop": True}
    # A second run finds the same, and a third nothing.
    remedied(operator, "canary_failure")
    assert canary(mended) == before
    assert (
        "Nothing left to do"
        in operator.run("canary_failure", "remediate", *given(runbook_max_risk="disruptive")).output
    )


def test_the_rollout_is_remembered_which_wp_chat_forgets(mended, operator):
    before = canary(mended)
    asked = given(runbook_steps="disable_reranking", runbook_max_risk="disruptive")
    done = operator.run("model_failure", "remediate", *asked)
    assert done.status == 0, done.output
    assert canary(mended) == {**before, "enabled": False, "rollout_percentage": 0.0}
    taken_back(operator, "model_failure")
    assert canary(mended) == before


def test_models(mended, operator):
    weights = list(mended.data_dir.glob("huggingface/hub/*cross*/snapshots/*/model.safetensors"))
    mended.break_fault("model-gone")
    assert not any(path.exists() for path in weights)
    before = canary(mended)
    _done, record = remedied(operator, "model_failure")
    assert [(step["id"], step["state"]) for step in record["steps"]] == [
        ("disable_reranking", "verified"),
        ("restore_models", "verified"),
    ]
    assert all(path.exists() for path in weights)
    answer = mended.send("POST", "/ask", {"question": "backup rotation", "rerank": True}).json
    assert answer["rerank"] and all("ce_score" in context for context in answer["contexts"])
    taken_back(operator, "model_failure")
    assert canary(mended) == before
    assert not any(path.exists() for path in weights)


def test_index_is_built_anew(mended, operator):
    before = index(mended)
    mended.break_fault("index-truncated")
    broken = index(mended)
    pid = mended.pid()
    _done, record = remedied(operator, "index_corruption")
    assert [step["id"] for step in record["steps"]] == ["rebuild_index"]
    assert index(mended)["wp.faiss"] == before["wp.faiss"]
    assert mended.pid() != pid
    # What it puts back is damaged, so it does not restart what runs.
    pid = mended.pid()
    taken_back(operator, "index_corruption")
    assert index(mended)["wp.faiss"] == broken["wp.faiss"]
    assert mended.pid() == pid
    assert mended.get("/stats/health").status == 200


@pytest.mark.parametrize("remembered", [True, False], ids=["server remembers the backup", "server was restarted"])
def test_a_flipped_byte_is_found_by_its_checksum_and_restored(mended, operator, remembered):
    asked = given(runbook_steps="backup_index", runbook_max_risk="safe")
    for _once in range(2):
        done = operator.run("index_corruption", "remediate", *asked)
        assert done.status == 0, done.output
    # What is backed up already is not backed up again.
    archives = len(list((mended.home / "backups").glob("*.tar.gz")))
    assert archives == 1
    if not remembered:
        mended.restart()
        eventually(lambda: mended.get("/stats/health").status == 200, "it answers")
        assert mended.get("/admin/backup/list").json["backups"] == []
    before = index(mended)
    mended.break_fault("index-flipped")
    assert index(mended) != before
    # No command to build it anew: the restore alone is proposed.
    run = operator.run("index_corruption", "diagnose", *given(wp_chat_rebuild_command="make rebuild-index"))
    assert breaches(run)["index_checksum"] == "critical", run.output
    triage = operator.run("triage", "diagnose", *given())
    assert triage.diagnosis()["summary"].startswith("index_corruption: ")
    flipped = index(mended)
    _done, record = remedied(operator, "index_corruption", wp_chat_rebuild_command="make rebuild-index")
    assert [step["id"] for step in record["steps"]] == ["restore_index"]
    assert index(mended) == before
    taken_back(operator, "index_corruption")
    assert index(mended) == flipped


def test_cache_that_cannot_be_written_is_switched_off(mended, operator):
    config = mended.home / "config.yml"
    before = config.read_bytes()
    mended.break_fault("cache-unwritable")
    _done, record = remedied(operator, "cache_failure")
    assert [step["id"] for step in record["steps"]] == ["disable_cache"]
    # One value and nothing else.
    changed = [(old, new) for old, new in zip(before.splitlines(), config.read_bytes().splitlines()) if old != new]
    assert len(changed) == 1
    assert b"false" in changed[0][1]
    assert before.count(b"#") == config.read_bytes().count(b"#") > 3
    taken_back(operator, "cache_failure")
    assert config.read_bytes() == before


def test_cache_folder_is_made_again(mended, operator):
    (mended.home / "cache").rename(mended.home / "cache.old")
    _done, record = remedied(operator, "cache_failure")
    assert [(step["id"], step["state"]) for step in record["steps"]] == [
        ("mend_cache_dir", "verified"),
        ("disable_cache", "skipped"),
    ]
    eventually(lambda: any((mended.home / "cache").glob("*.cache")), "searches are cached")


def test_clearing_half_a_cache_is_a_failure(mended, operator):
    mended.break_fault("cache-clear-fails")
    asked = given(runbook_steps="clear_cache", runbook_max_risk="disruptive")
    done = operator.run("cache_failure", "remediate", *asked)
    assert done.status == 2, done.output
    (stranger,) = [path for path in (mended.home / "cache").iterdir() if path.is_dir()]
    assert f"{stranger.name} is no file; move it away" in " ".join(done.output.split())
    mended.heal_all()
    done = operator.run("cache_failure", "remediate", *asked, "-e", "runbook_override=interrupted")
    assert done.status == 0, done.output


def test_limit_is_lowered_at_once_for_a_service_without_the_route(mended, operator):
    config = mended.home / "config.yml"
    before, pid = config.read_bytes(), mended.pid()
    asked = given(runbook_steps="adjust_rate_limit", runbook_max_risk="disruptive", wp_chat_rate_limit_requests=3)
    done = operator.run("rate_limit_attack", "remediate", *asked)
    assert done.status == 0, done.output
    statuses = [
        mended.send("POST", "/search", {"query": f"query {number}"}, {"X-Forwarded-For": "192.0.2.7"}).status
        for number in range(5)
    ]
    assert statuses == [200, 200, 200, 429, 429]
    assert mended.pid() == pid
    taken_back(operator, "rate_limit_attack")
    assert config.read_bytes() == before


def test_memory_is_given_back_by_a_restart(mended, operator):
    mended.break_fault("memory", 300)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def resident() -> int:
        text = Path(f"/proc/{mended.pid()}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    eventually(lambda: resident() > 300 * 2**20, "it holds the memory")
    # Between what it has by itself, about 100 MiB, and that.
    share = 250 * 2**20 / min(total, memory_limit())
    _done, record = remedied(operator, "resource_exhaustion", resource_exhaustion_share=share)
    assert [step["id"] for step in record["steps"]] == ["restart_wp_chat"]
    assert resident() < 250 * 2**20


def memory_limit() -> int:
    """Of the control group that this runs in."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(name).exists() and Path(name).read_text().strip().isdigit():
            return int(Path(name).read_text())
    return 2**63


def test_a_service_that_is_down_is_not_started_with_a_damaged_index(mended, operator):
    mended.break_fault("index-truncated")
    mended.break_fault("down")
    run = operator.run("index_corruption", "diagnose", *given())
    assert "it cannot start before the index is rebuilt or restored" in run.diagnosis()["summary"]
    assert run.diagnosis()["plan"]["steps"][0]["id"] == "rebuild_index"
    for runbook in ("high_error_rate", "high_latency", "resource_exhaustion"):
        assert operator.run(runbook, "diagnose", *given()).diagnosis()["plan"] is None
    remedied(operator, "index_corruption")
    assert mended.get("/stats/health").status == 200


# --- a service that follows the runbook's text


def test_literal(literal, tmp_path):
    operator = Operator(literal, tmp_path)
    eventually(lambda: lines(literal, "slo_metrics") > 60, "clients search")
    run = operator.run("triage", "diagnose", *given())
    assert run.diagnosis()["status"] == "healthy", run.output

    # The routes that the runbook names are used, and no file is edited.
    config = (literal.home / "config.yml").read_bytes()
    pid = literal.pid()
    for runbook, step in (("cache_failure", "disable_cache"), ("rate_limit_attack", "adjust_rate_limit")):
        done = operator.run(runbook, "remediate", *given(runbook_steps=step, runbook_max_risk="disruptive"))
        assert done.status == 0, done.output
    assert (literal.home / "config.yml").read_bytes() == config
    assert literal.pid() == pid
    assert literal.logged('"POST /admin/cache/disable') == 1
    assert literal.logged('"POST /admin/rate-limit/adjust') == 1
    for runbook in ("cache_failure", "rate_limit_attack"):
        taken_back(operator_of(operator, runbook), runbook)
    assert literal.logged('"POST /admin/cache/enable') == 1

    # Its make target builds the index, and a backup is made by hand, as it has no route for that.
    asked = given(runbook_steps="backup_index", runbook_max_risk="safe", wp_chat_rebuild_command="make rebuild-index")
    done = operator.run("index_corruption", "remediate", *asked)
    assert done.status == 0, done.output
    before = index(literal)
    literal.break_fault("index-truncated")
    _done, record = remedied(operator, "index_corruption", wp_chat_rebuild_command="make rebuild-index")
    assert [(step["id"], step["state"]) for step in record["steps"]] == [
        ("rebuild_index", "verified"),
        ("restore_index", "skipped"),
    ]
    assert index(literal)["wp.faiss"] == before["wp.faiss"]
    literal.heal_all()


def operator_of(operator: Operator, runbook: str) -> Operator:
    """The same person, of whose records only those of a runbook count."""

    class Narrow(Operator):
        @property
        def records(self) -> list[dict[str, Any]]:
            return [record for record in super().records if record["runbook"] == runbook]

    return Narrow(operator.lab, operator.directory)

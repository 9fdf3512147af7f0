# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's wp_chat behaves as the real one, traps included, and as the runbook's text where that is asked for."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pickle
import shlex
import signal
import socket
import struct
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.wp_chat.config import TEXT
from lab.wp_chat.faults import FAULTS
from tests.integration.lab_helpers import Answer, RunningLab, eventually, processes_of, request, run_lab, running_lab

INDEX = "data/index"
FILES = ("wp.faiss", "wp.meta.json", "wp.tfidf.pkl", "wp.tfidf.npz")


class Lab:
    """A lab of wp_chat and how one talks to it."""

    def __init__(self, lab: RunningLab) -> None:
        self.lab = lab
        self.home = lab.home
        self._number = 0

    def unique(self) -> str:
        """A query that nobody has asked before."""
        self._number += 1
        return f"postgres vacuum {time.monotonic_ns()} {self._number}"

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        return self.lab.send("POST", path, body, headers)

    def search(
        self, query: str | None = None, user: str = "", headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        """By a client that nobody has been before, unless headers say who."""
        path = f"/search?user_id={user}" if user else "/search"
        query = self.unique() if query is None else query
        return self.post(path, {"query": query, **more}, headers or {"X-Forwarded-For": f"client-{self.unique()}"})

    def stats(self, name: str) -> Any:
        return self.lab.get(f"/stats/{name}").json

    @property
    def canary(self) -> dict[str, Any]:
        status: dict[str, Any] = self.lab.get("/admin/canary/status").json
        return status

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.home / "logs" / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def set_config(self, before: str, after: str) -> None:
        assert before in TEXT
        self.write_config(TEXT.replace(before, after))

    def write_config(self, text: str) -> None:
        path = self.home / "config.yml"
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)

    def fails_to_start(self) -> str:
        answer = self.lab.restart()
        assert answer.status == 409, answer.text
        message: str = answer.json["message"]
        assert message.startswith("wp-chat exited with status 1: "), message
        return message


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("head"), "--service", "wp_chat") as lab:
        yield Lab(lab)


@pytest.fixture(scope="module")
def running_literal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("literal"), "--service", "wp_chat", "--wp-chat", "literal") as lab:
        yield Lab(lab)


@pytest.fixture
def head(running: Lab) -> Iterator[Lab]:
    yield running
    running.lab.heal_all()
    running.write_config(TEXT)


@pytest.fixture
def literal(running_literal: Lab) -> Lab:
    return running_literal


# Routes


def test_routes(head: Lab) -> None:
    paths = head.lab.get("/openapi.json").json["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    by_prefix = {
        prefix: sum(path.startswith(prefix) for _method, path in routes)
        for prefix in ("/stats/", "/admin/canary/", "/admin/incidents/", "/admin/backup/", "/admin/cache/")
    }
    assert list(by_prefix.values()) == [12, 6, 7, 7, 1]
    assert {("POST", path) for path in ("/search", "/ask", "/generate")} | {("GET", "/dashboard")} <= routes
    assert len(routes) == sum(by_prefix.values()) + 4
    for path in ("/health", "/admin/cache/disable", "/admin/cache/enable", "/admin/rate-limit/adjust"):
        answer = head.post(path)
        assert (answer.status, answer.json) == (404, {"detail": "Not Found"})
    wrong_method = head.lab.get("/search?q=test&rerank=true")
    assert (wrong_method.status, wrong_method.json) == (405, {"detail": "Method Not Allowed"})
    assert head.lab.get("/admin/canary/enable").status == 405
    assert head.lab.get("/stats/highlight").status == 422
    assert head.lab.get("/dashboard").text.startswith("<!doctype html>")
    assert head.stats("device")["current_config"]["model_name"] == "cross-encoder/ms-marco-MiniLM-L-6-v2"
    health = head.stats("health")
    assert (health["status"], health["version"], "+" in health["timestamp"]) == ("healthy", "1.0.0", False)


def test_keys_are_asked_for_on_chat_routes_only(head: Lab) -> None:
    head.lab.set_environment(API_KEY_REQUIRED="true", API_KEY="a-key", LOG_FORMAT="text")
    head.lab.restart()
    try:
        assert any(" - wp_chat.api.main - INFO - wp-chat API initialized" in line for line in head.lab.log)
        for path in ("/search", "/ask", "/generate"):
            missing = head.post(path, {"query": "x"})
            assert (missing.status, missing.json) == (401, {"detail": "API key required"})
            assert missing.headers["www-authenticate"] == "ApiKey"
        assert head.search(headers={"X-API-Key": "wrong"}).json == {"detail": "Invalid API key"}
        assert head.search(headers={"X-API-Key": "a-key"}).status == 200
        assert head.lab.get("/admin/canary/status").status == 200
        assert head.post("/admin/cache/clear").json["success"]
        head.lab.set_environment(API_KEY=None)
        head.lab.restart()
        refused = head.search(headers={"X-API-Key": "a-key"})
        assert (refused.status, refused.json) == (500, {"detail": "API_KEY not configured on server"})
    finally:
        head.lab.set_environment(API_KEY_REQUIRED=None, API_KEY=None, LOG_FORMAT=None)
        head.lab.restart()


# Canary


def test_canary(head: Lab) -> None:
    def call(path: str, body: Any = None) -> Answer:
        return head.post(f"/admin/canary/{path}", body)

    def state() -> tuple[bool, float, bool, str]:
        config = head.canary["config"]
        return config["enabled"], config["rollout_percentage"], config["emergency_stop"], head.canary["status"]

    enabled = call("enable?percentage=0.25&updated_by=me")
    assert enabled.json == {"message": "Canary deployment enabled at 25.0%", "status": "success"}
    assert head.canary["config"]["updated_by"] == "me"
    assert head.canary["summary"] == {"message": "No recent metrics available"}
    # A body is nothing to it: ten percent, without a word.
    call("enable", {"percentage": 0.8})
    assert state() == (True, 0.1, False, "active")
    assert call("rollout", {"percentage": 0.8}).status == 422
    too_much = call("enable?percentage=7")
    assert (too_much.status, too_much.json) == (500, {"error": "400: Percentage must be between 0.0 and 1.0"})
    assert call("enable?percentage=much").status == 422
    call("emergency-stop")
    assert state() == (True, 0.1, True, "emergency_stop")
    call("rollout?percentage=0.5")
    assert state() == (True, 0.5, True, "emergency_stop")
    # Neither clears the other, and what the rollout was is lost.
    call("disable")
    assert state() == (False, 0.0, True, "emergency_stop")
    call("clear-emergency")
    assert state() == (False, 0.0, False, "disabled")
    assert call("rollout?percentage=0").json["status"] == "success"
    assert state() == (False, 0.0, False, "disabled")

    path = head.home / "logs" / "canary_config.json"
    assert json.loads(path.read_text()) == head.canary["config"]
    # Edited by hand it counts at the next start, unless it has something that is not known.
    call("emergency-stop")
    kept = path.read_text()
    path.write_text(kept.replace('"rollout_percentage": 0.0', '"rollout_percentage": 0.75'))
    assert state() == (False, 0.0, True, "emergency_stop")
    head.lab.restart()
    assert state() == (False, 0.75, True, "emergency_stop")
    path.write_text(kept.replace('"enabled"', '"on"'))
    head.lab.restart()
    assert state() == (False, 0.0, False, "disabled")
    assert head.canary["config"]["updated_by"] == "system"
    assert head.lab.logged("Failed to load canary config: ") == 1
    call("rollout?percentage=0.5")


def test_reranking_is_the_canarys_business_for_searches_only(head: Lab) -> None:
    head.post("/admin/canary/rollout?percentage=1")
    reranked = head.search(user="alice", rerank=True).json
    assert reranked["canary"] == {"user_id": "alice", "rerank_enabled": True, "rollout_percentage": 1.0}
    assert reranked["rerank"] is True
    assert all("ce_score" in context for context in reranked["contexts"])
    assert set(reranked) == {"q", "mode", "rerank", "highlight", "contexts", "canary"}
    assert "snippet" not in reranked["contexts"][0]
    assert head.search(user="alice").json["rerank"] is False
    head.post("/admin/canary/disable")
    assert head.search(user="alice", rerank=True).json["rerank"] is False
    asked = head.post("/ask", {"question": "backup rotation", "rerank": True}).json
    assert asked["rerank"] is True
    assert all({"ce_score", "snippet"} <= set(context) for context in asked["contexts"])
    head.post("/admin/canary/rollout?percentage=0.5")
    assigned = {head.search(user=f"user-{number}").json["canary"]["rerank_enabled"] for number in range(12)}
    assert assigned == {True, False}


# Cache and rate limit


def test_cached_answers(head: Lab) -> None:
    head.post("/admin/cache/clear")
    query = head.unique()
    fresh = head.search(query).json
    cached = head.search(query, topk=1, mode="bm25", rerank=True).json
    assert set(cached) == {"query", "mode", "rerank", "highlight", "contexts", "cached"}
    # Whatever else is asked for, the first answer is given.
    assert (cached["cached"], cached["rerank"], cached["contexts"]) == (True, False, fresh["contexts"])
    assert len(cached["contexts"]) == 5
    key = "search:" + hashlib.md5(query.encode(), usedforsecurity=False).hexdigest()
    name = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
    about = json.loads((head.home / "cache" / f"{name}.meta").read_text())
    assert (about["key"], round(about["expires_at"] - about["created_at"])) == (key, 1800)
    assert set(head.stats("cache")) == {
        "total_entries",
        "active_entries",
        "expired_entries",
        "total_size_mb",
        "max_size_mb",
        "utilization_percent",
    }
    (head.home / "cache" / f"{name}.cache").write_text("{")
    assert "cached" not in head.search(query).json
    assert head.search(query).json["cached"]
    # Clearing takes the clients' counts along, which live on in memory.
    counted = head.stats("rate-limit")["total_requests_last_hour"]
    assert (head.home / "cache" / "rate_limits.json").exists()
    assert head.post("/admin/cache/clear").json == {"success": True, "message": "Cache cleared"}
    assert list((head.home / "cache").iterdir()) == []
    assert head.stats("rate-limit")["total_requests_last_hour"] == counted
    assert head.post("/admin/cache/clear").json["success"]
    assert head.stats("cache")["total_entries"] == 0
    head.search()
    assert (
        sum(len(moments) for moments in json.loads((head.home / "cache/rate_limits.json").read_text()).values())
        > counted
    )


def test_without_the_caches_folder(head: Lab) -> None:
    folder = head.home / "cache"
    folder.rename(head.home / "elsewhere")
    try:
        query = head.unique()
        assert [head.search(query).status for _number in range(2)] == [200, 200]
        assert "cached" not in head.search(query).json
        assert head.stats("cache") == {"total_entries": 0, "total_size_mb": 0, "max_size_mb": 100, "hit_rate": 0}
        assert head.post("/admin/cache/clear").json["success"]
        assert head.lab.logged("Cache set error: [Errno 2]") == 3
        assert head.lab.logged("Failed to save rate limits: [Errno 2]") == 3
    finally:
        (head.home / "elsewhere").rename(folder)


def test_the_cache_is_switched_off_by_the_file_and_a_restart(head: Lab) -> None:
    head.set_config("cache:\n    enabled: true", "cache:\n    enabled: false")
    query = head.unique()
    assert [head.search(query).json.get("cached") for _number in range(2)] == [None, True]
    head.lab.restart()
    assert [head.search(query).json.get("cached") for _number in range(2)] == [None, None]
    head.write_config(TEXT)
    head.lab.restart()


def test_the_rate_limit_is_read_with_every_request(head: Lab) -> None:
    head.set_config("max_requests: 100", "max_requests: 3")
    client = {"X-Forwarded-For": "203.0.113.7, 10.0.0.1"}
    query = head.unique()
    answers = [head.search(query, headers=client) for _number in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    refused = answers[-1]
    assert refused.json == {"detail": "Rate limit exceeded"}
    limits = {name: value for name, value in refused.headers.items() if name.startswith("x-ratelimit")}
    reset = int(limits.pop("x-ratelimit-reset"))
    assert limits == {"x-ratelimit-limit": "3", "x-ratelimit-remaining": "0", "x-ratelimit-window": "3600"}
    assert abs(reset - time.time() - 3600) < 60
    assert "retry-after" not in refused.headers
    assert "x-ratelimit-limit" not in answers[0].headers
    # A blank question costs nothing, one that cannot be read is not even counted, and /ask has no limit.
    assert head.search("  ", headers=client).json == {"detail": "query is empty"}
    assert head.search("<b></b>", headers=client).status == 400
    assert head.search("x" * 501, headers=client).status == 422
    assert head.post("/ask", {"question": "backup"}, client).status == 200
    # Whoever gives itself another name is somebody else.
    assert head.search(query, headers={"X-Forwarded-For": "203.0.113.8"}).status == 200
    assert len(json.loads((head.home / "cache/rate_limits.json").read_text())["203.0.113.7"]) == 3
    head.set_config("max_requests: 100", "max_requests: 5")
    assert head.search(query, headers=client).status == 200
    counts = [line["status_code"] for line in head.lines("slo_metrics.jsonl")[-8:]]
    assert counts == [200, 200, 200, 429, 400, 400, 200, 200]


# What is measured


def test_nothing_measured_is_healthy(head: Lab) -> None:
    head.search()
    head.lab.restart()
    slo = head.stats("slo")
    assert [(block["status"], block["metrics"]) for block in slo.values()] == [("healthy", None)] * 2
    assert head.stats("metrics") == {"message": "No metrics available"}
    # The files remember.
    assert head.stats("cache-summary")["total_requests"] > 0
    assert head.stats("performance-summary")["trends"][-1]["success_rate"] > 0
    assert head.stats("ab-summary")["rerank_off"]["success_rate"] == 1.0
    assert head.stats("dashboard")["system_health"]["status"] == "healthy"
    assert head.post("/ask", {"question": "backup"}).status == 200
    assert head.post("/search", {"topk": 3}).status == 422
    assert head.stats("slo")["ask"]["metrics"] is None
    assert head.stats("metrics") == {"message": "No metrics available"}
    # The first searches of a process wait for its tokenizer, which trips the latency by itself.
    head.search()
    assert head.stats("slo")["search"]["status"] == "healthy"


def test_errors_are_measured_and_become_a_model_failure(head: Lab) -> None:
    head.lab.restart()
    head.post("/ask", {"question": "backup"})
    assert head.lab.break_fault("errors", 50).status == 200
    answers = [head.search() for _number in range(8)]
    assert [answer.status for answer in answers] == [200, 500] * 4
    assert answers[1].json["detail"].startswith("Internal server error: matmul: dimension mismatch")
    # Handled, so there is no traceback: an access line is all.
    assert any('"POST /search HTTP/1.1" 500 Internal Server Error' in line for line in head.lab.log[-3:])
    assert not head.lab.logged("Traceback")
    assert head.post("/ask", {"question": "backup"}).status == 200
    block = head.stats("slo")["search"]
    metrics = block["metrics"]
    assert (block["status"], metrics["success_rate"], metrics["fallback_rate"]) == ("degraded", 0.5, 0.5)
    kinds = [(each["type"], each["severity"], each.get("threshold")) for each in block["violations"]]
    assert kinds == [
        ("success_rate_slo_violation", "critical", None),
        ("error_rate_threshold", "warning", pytest.approx(0.0045)),
        ("high_fallback_rate", "warning", 0.1),
    ]
    line = head.lines("slo_metrics.jsonl")[-1]
    assert (line["status_code"], line["fallback_used"], line["generation_metrics"]) == (500, True, None)
    assert line["error_message"].startswith("matmul")
    detected = head.post("/admin/incidents/auto-detect")
    assert (detected.status, detected.json) == (500, {"error": "Object of type IncidentType is not JSON serializable"})
    found = head.lines("incidents.jsonl")[-1]
    assert (found["incident_type"], found["severity"]) == ("model_failure", "high")
    assert found["description"].startswith("SLO violations detected for search: Success rate 0.500 below")
    head.post("/admin/incidents/auto-detect")
    assert len(head.lines("incidents.jsonl")) == 2
    (head.home / "logs" / "incidents.jsonl").unlink()
    head.lab.restart()
    assert head.lab.active_faults() == []
    # What is slow trips the quantiles, which of few values lie above the largest.
    head.post("/ask", {"question": "backup"})
    head.lab.break_fault("slow", 1200)
    head.search()
    head.lab.heal_fault("slow")
    assert {head.search().status for _number in range(2)} == {200}
    slowest = max(line["latency_ms"] for line in head.lines("slo_metrics.jsonl")[-3:])
    assert slowest >= 1200
    assert head.stats("metrics")["search"]["p95_latency_ms"] > slowest
    assert head.stats("slo")["search"]["violations"][0]["type"] == "latency_slo_violation"


def test_every_search_is_a_line_with_its_peer(head: Lab) -> None:
    port = head.lab.ports["wp_chat"]
    before = len(head.lines("ab_metrics.jsonl"))
    connection = http.client.HTTPConnection("127.0.0.1", port, source_address=("127.0.9.9", 0))
    body = json.dumps({"query": head.unique(), "rerank": True})
    connection.request("POST", "/search", body, {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.9"})
    assert connection.getresponse().status == 200
    connection.close()
    head.search(" ")
    fresh, of_middleware, blank = head.lines("ab_metrics.jsonl")[before:]
    assert (fresh["latency_ms"], fresh["result_count"]) == (0, 5)
    assert [line["ip_address"] for line in (fresh, of_middleware)] == ["127.0.9.9", "127.0.9.9"]
    assert (of_middleware["query"], of_middleware["rerank_enabled"], of_middleware["result_count"]) == ("", False, 0)
    assert blank["query"] == ""
    # Local time, without a zone.
    assert time.strftime("%Y-%m-%dT%H") in blank["timestamp"][:13] or time.localtime().tm_min == 0


def test_generated_answers(head: Lab) -> None:
    question = {"question": head.unique(), "stream": False}
    answer = head.post("/generate", question).json
    assert (set(answer), answer["metadata"]["fallback"]) == ({"answer", "references", "metadata"}, False)
    events = head.post("/generate", {"question": head.unique()})
    assert events.headers["content-type"].startswith("text/event-stream")
    assert [line for line in events.text.splitlines() if line.startswith("event:")][-3:] == [
        "event: metrics",
        "event: refs",
        "event: done",
    ]
    # A provider that refuses is a 200 with an explanation.
    head.lab.set_environment(OPENAI_API_KEY="sk-somebody-elses")
    head.lab.restart()
    try:
        refused = head.post("/generate", {"question": head.unique(), "stream": False})
        assert (refused.status, refused.json["metadata"]["fallback"]) == (200, True)
        assert "401" in refused.json["metadata"]["error_message"]
        assert head.stats("metrics")["generate"]["fallback_rate"] == 1.0
        assert "generate" not in head.stats("slo")
        assert head.lines("slo_metrics.jsonl")[-1]["generation_metrics"]["success"] is False
    finally:
        head.lab.set_environment(OPENAI_API_KEY="sk-lab-0123456789abcdef")
        head.lab.restart()


# Incidents and backups


def test_incidents(head: Lab) -> None:
    base = "/admin/incidents"
    path = head.home / "logs" / "incidents.jsonl"
    path.unlink(missing_ok=True)
    head.lab.restart()
    empty = head.lab.get(f"{base}/status").json
    assert (empty["active_incidents"], empty["recent_incidents_list"]) == (0, [])
    assert head.post(f"{base}/auto-detect").json == {"message": "Detected 0 incidents", "incidents": []}
    nope = head.post(f"{base}/detect?incident_type=nope&severity=high")
    assert (nope.status, nope.json["error"]) == (
        400,
        "Invalid incident type or severity: 'nope' is not a valid IncidentType",
    )
    assert head.post(f"{base}/detect", {"incident_type": "cache_failure", "severity": "low"}).status == 422
    detected = head.post(f"{base}/detect?incident_type=cache_failure&severity=medium&description=nightly", ["cache"])
    assert detected.status == 500
    assert [head.lab.get(f"{base}/{name}").status for name in ("status", "active")] == [500, 500]
    line = head.lines("incidents.jsonl")[-1]
    incident = line["incident_id"]
    assert incident == f"incident_{int(line['detected_at'])}"
    assert (line["affected_components"], line["resolved_at"], line["actions_taken"]) == (["cache"], None, [])
    assert head.lab.logged(f"INCIDENT DETECTED: {incident} - cache_failure (medium)") == 1
    procedures = head.lab.get(f"{base}/{incident}/procedures").json["procedures"]
    assert [action["action_id"] for action in procedures] == ["disable_cache", "clear_cache", "check_cache_dir"]
    assert [action["estimated_time"] for action in procedures] == [30, 60, 30]
    unconfirmed = head.post(f"{base}/{incident}/execute?action_id=clear_cache").json
    assert (unconfirmed["success"], unconfirmed["output"]) == (False, "Action requires confirmation")
    executed = head.post(f"{base}/{incident}/execute?action_id=clear_cache&confirm=true").json
    assert (executed["success"], executed["output"][:46]) == (
        False,
        "[Errno 2] No such file or directory: 'curl -X ",
    )
    assert head.post(f"{base}/{incident}/execute?action_id=none&confirm=true").json == {"error": "Action not found"}
    resolved = head.post(f"{base}/{incident}/resolve?resolution_notes=done&assigned_to=me")
    assert resolved.json == {"message": f"Incident {incident} resolved", "status": "success"}
    assert head.post(f"{base}/{incident}/resolve", {"resolution_notes": "lost"}).status == 200
    first, second, third = head.lines("incidents.jsonl")
    assert (first["resolved_at"], second["resolution_notes"], second["actions_taken"]) == (
        None,
        "done",
        ["clear_cache"],
    )
    assert third["resolution_notes"] == ""
    # Resolved, and still of the last day.
    assert [head.lab.get(f"{base}/{name}").status for name in ("status", "active")] == [500, 200]
    assert head.lab.get(f"{base}/{incident}/procedures").status == 404
    assert head.post(f"{base}/incident_1/resolve").status == 404
    # Every line is taken for an incident of its own, up to the first that is none.
    with path.open("a") as file:
        file.write("torn\n")
    head.lab.restart()
    assert head.lab.get(f"{base}/active").status == 500
    assert head.lab.get(f"{base}/{incident}/procedures").status == 200
    assert head.lab.logged("Failed to load incidents: ") == 1
    path.unlink()
    head.lab.restart()
    # Two of one second have one name.
    for _number in range(3):
        head.post(f"{base}/detect?incident_type=unknown&severity=low")
    assert len({line["incident_id"] for line in head.lines("incidents.jsonl")}) < 3
    path.unlink()
    head.lab.restart()


def test_backups_are_forgotten_by_a_restart(head: Lab) -> None:
    base = "/admin/backup"
    created = head.post(f"{base}/create?backup_type=index&description=nightly").json["backup"]
    archive = head.home / created["metadata"]["backup_path"]
    assert hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest() == created["checksum"]
    with tarfile.open(archive) as tar:
        assert sorted(tar.getnames()) == sorted(FILES)
    assert created["files"] == [
        f"{INDEX}/{name}" for name in ("wp.tfidf.pkl", "wp.meta.json", "wp.tfidf.npz", "wp.faiss")
    ]
    for kind in ("incremental", "cache"):
        failed = head.post(f"{base}/create?backup_type={kind}")
        assert (failed.status, failed.json) == (500, {"error": "No files found to backup"})
    sound = (head.home / INDEX / "wp.faiss").read_bytes()
    (head.home / INDEX / "wp.faiss").write_bytes(b"")
    restored = head.post(f"{base}/restore?backup_id={created['backup_id']}").json["restore"]
    assert (restored["status"], restored["verification_passed"], len(restored["restored_files"])) == (
        "success",
        True,
        4,
    )
    assert (head.home / INDEX / "wp.faiss").read_bytes() == sound
    assert [line["type"] for line in head.lines("backup_history.jsonl")] == ["backup", "restore"]
    assert head.lab.get(f"{base}/status").json["type_breakdown"] == {"index": 1}
    head.lab.restart()
    assert head.lab.get(f"{base}/list").json == {"backups": []}
    forgotten = head.post(f"{base}/restore?backup_id={created['backup_id']}")
    assert (forgotten.status, "Backup not found" in forgotten.json["error"]) == (500, True)
    assert head.lab.send("DELETE", f"{base}/{created['backup_id']}").status == 404
    assert archive.exists()


# Index and start


def test_the_index_is_a_real_one_and_built_the_same_every_time(head: Lab) -> None:
    directory = head.home / INDEX
    before = {name: (directory / name).read_bytes() for name in FILES}
    index = before["wp.faiss"]
    kind, dimension, total = struct.unpack_from("<4siq", index)
    trained, metric, inner = struct.unpack_from("<?i4s", index, 32)
    assert (kind, dimension, trained, metric, inner) == (b"IxM2", 384, True, 0, b"IxFI")
    assert len(index) == 90 + total * (4 * 384 + 8)
    metadata = json.loads(before["wp.meta.json"])
    assert len(metadata) == total
    assert 200 < total < 300
    assert set(metadata[0]) == {"post_id", "title", "url", "chunk_id", "chunk"}
    vocabulary = pickle.loads(before["wp.tfidf.pkl"]).vocabulary_  # noqa: S301
    with zipfile.ZipFile(directory / "wp.tfidf.npz") as archive:
        assert archive.namelist() == [f"{name}.npy" for name in ("indices", "indptr", "format", "shape", "data")]
        rows, columns = struct.unpack("<qq", archive.read("shape.npy")[-16:])
    assert (rows, columns) == (total, len(vocabulary))
    assert {len(gram) for gram in vocabulary} == {2, 3, 4}
    for name in FILES:
        (directory / name).unlink()
    command = shlex.split(head.lab.inventory["wp_chat_rebuild_command"])
    subprocess.run(command, cwd=head.home, check=True, capture_output=True, timeout=60)
    assert {name: (directory / name).read_bytes() for name in FILES} == before
    assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)


def test_modes_of_search(head: Lab) -> None:
    for mode in ("dense", "bm25", "hybrid"):
        contexts = head.search(mode=mode).json["contexts"]
        assert [context["rank"] for context in contexts] == [1, 2, 3, 4, 5]
        assert "postgres" in contexts[0]["title"]
    matrix = head.home / INDEX / "wp.tfidf.npz"
    matrix.rename(matrix.with_suffix(".away"))
    head.lab.restart()
    # Optional for the start; without it only one mode is left.
    missing = head.search()
    assert (missing.status, missing.json["detail"][:20]) == (400, "BM25 index not built")
    assert head.search(mode="dense").status == 200
    assert head.post("/ask", {"question": "x", "mode": "bm25"}).status == 400
    matrix.with_suffix(".away").rename(matrix)
    head.lab.restart()


def test_what_keeps_it_from_starting(head: Lab) -> None:
    lab = head.lab
    assert lab.break_fault("index-truncated").status == 200
    assert "read error in data/index/wp.faiss: 918 != " in head.fails_to_start()
    # Healing brings it back, since it can start now.
    assert lab.heal_fault("index-truncated").status == 200
    assert head.stats("health")["status"] == "healthy"
    lab.break_fault("index-missing")
    assert "could not open data/index/wp.faiss for reading: No such file or directory" in head.fails_to_start()
    lab.break_fault("config-broken")
    assert "yaml.parser.ParserError: while parsing a " in head.fails_to_start()
    head.write_config(TEXT)
    index = head.home / INDEX / "wp.faiss"
    index.write_bytes(bytes(4096))
    assert "not recognized" in head.fails_to_start()
    assert lab.heal_all().status == 200
    assert index.stat().st_size > 300_000
    metadata = head.home / INDEX / "wp.meta.json"
    sound = metadata.read_text()
    metadata.write_text(sound[:1000])
    assert "json.decoder.JSONDecodeError: " in head.fails_to_start()
    metadata.write_text(sound)
    embedding = Path(lab.inventory["wp_chat_models_dir"]) / "models--sentence-transformers--all-MiniLM-L6-v2"
    embedding.rename(embedding.with_suffix(".away"))
    assert "OSError: We couldn't connect to 'https://huggingface.co'" in head.fails_to_start()
    embedding.with_suffix(".away").rename(embedding)
    lab.set_environment(OPENAI_API_KEY=None)
    assert "ValueError: OPENAI_API_KEY environment variable is required" in head.fails_to_start()
    # A .env in the project's root is as good.
    (head.home / ".env").write_text("OPENAI_API_KEY=sk-lab-0123456789abcdef\n")
    assert lab.restart().status == 200
    (head.home / ".env").unlink()
    lab.set_environment(OPENAI_API_KEY="sk-lab-0123456789abcdef")


def test_log_is_a_mixture(head: Lab) -> None:
    head.search()
    lines = head.lab.log
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert set(entries[0]) == {"timestamp", "level", "module", "message"}
    assert all(entry["module"].startswith("wp_chat.") for entry in entries)
    assert any(line.startswith("Loading embedding model") for line in lines)
    assert '"POST /search HTTP/1.1" 200 OK' in lines[-1]
    assert not (head.home / "logs" / "api_errors.log").exists()
    assert not (head.home / "logs" / "slo_alerts.jsonl").exists()
    assert oct((head.home / "wp-chat.env").stat().st_mode)[-3:] == "600"


# Faults


def test_every_fault_is_shown(head: Lab) -> None:
    shown = request("GET", f"{head.lab.control}/faults").json
    assert [(fault["service"], fault["name"]) for fault in shown] == [("wp_chat", fault.name) for fault in FAULTS]
    status, _output, errors = run_lab(head.lab.data_dir, "break", "vritti", "kyrodb-slow")
    assert (status, errors) == (2, "The lab has no service 'vritti' with faults; it has wp_chat.\n")
    assert run_lab(head.lab.data_dir, "up", "--service", "vritti")[0] == 1


def test_missing_model_is_silent(head: Lab) -> None:
    lab = head.lab
    head.post("/admin/canary/rollout?percentage=1")
    lab.break_fault("model-gone")
    answer = head.search(rerank=True)
    assert (answer.status, answer.json["rerank"], answer.json["canary"]["rerank_enabled"]) == (200, False, True)
    assert head.lines("slo_metrics.jsonl")[-1]["rerank_enabled"] is True
    assert head.lines("slo_metrics.jsonl")[-1]["fallback_used"] is False
    asked = head.post("/ask", {"question": "backup", "rerank": True}).json
    assert (asked["rerank"], any("ce_score" in context for context in asked["contexts"])) == (False, False)
    for line in (
        "Failed to load cross-encoder/ms-marco-MiniLM-L-6-v2 on cpu: ",
        "Falling back to: ",
        "Reranking failed: ",
    ):
        assert lab.logged(line) == 2
    # It is loaded for every request: one that is put back needs no restart.
    before = lab.pid()
    backup, models = (Path(lab.inventory[f"wp_chat_models_{which}"]) for which in ("backup", "dir"))
    name = "models--cross-encoder--ms-marco-MiniLM-L-6-v2"
    subprocess.run(["cp", "-a", str(backup / name), str(models / name)], check=True)
    assert head.post("/ask", {"question": "backup", "rerank": True}).json["rerank"] is True
    assert lab.heal_fault("model-gone").status == 200
    assert head.search(rerank=True).json["rerank"] is True
    assert lab.pid() == before
    lab.break_fault("rerank-slow", 6000)
    late = head.post("/ask", {"question": "backup", "rerank": True}).json
    assert (late["rerank"], any("ce_score" in context for context in late["contexts"])) == (True, False)
    lab.heal_fault("rerank-slow")


def test_damage_to_the_index_shows_at_the_next_start_or_never(head: Lab) -> None:
    lab, index = head.lab, head.home / INDEX / "wp.faiss"
    sound, before = index.read_bytes(), index.stat()
    lab.break_fault("index-flipped")
    flipped = index.read_bytes()
    assert sum(left != right for left, right in zip(sound, flipped)) == 1
    assert (index.stat().st_size, index.stat().st_mtime_ns, index.stat().st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert lab.break_fault("index-truncated").json == {"message": "wp.faiss is broken already; heal that first."}
    lab.restart()
    assert head.search().status == 200
    lab.heal_fault("index-flipped")
    assert index.read_bytes() == sound
    last = json.loads((head.home / INDEX / "wp.meta.json").read_text())[-1]["title"]
    lab.break_fault("metadata-short")
    pid = lab.pid()
    assert len(head.search(topk=20, mode="dense").json["contexts"]) == 20
    lab.restart()
    found = head.search(last, topk=20, mode="dense")
    assert (found.status, len(found.json["contexts"]) < 20) == (200, True)
    restarted = lab.pid()
    lab.heal_fault("metadata-short")
    # Who had loaded what was broken is replaced.
    assert len({pid, restarted, lab.pid()}) == 3


def test_cache_that_cannot_be_written(head: Lab) -> None:
    lab = head.lab
    head.search()
    message = lab.break_fault("cache-unwritable").json["message"]
    assert "chattr +i" in message or "a file is where the folder was" in message
    query = head.unique()
    assert [head.search(query).json.get("cached") for _number in range(2)] == [None, None]
    assert any("Cache set error: [Errno " in line for line in lab.log[-6:])
    if "chattr" in message:
        assert head.post("/admin/cache/clear").json == {"success": False, "message": "Cache cleared"}
    lab.heal_fault("cache-unwritable")
    assert [head.search(query).json.get("cached") for _number in range(2)] == [None, True]
    lab.break_fault("cache-clear-fails")
    cleared = head.post("/admin/cache/clear")
    assert (cleared.status, cleared.json) == (200, {"success": False, "message": "Cache cleared"})
    lab.heal_fault("cache-clear-fails")
    assert head.post("/admin/cache/clear").json["success"]


def test_an_unwritable_cache_does_not_outlive_the_lab(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--service", "wp_chat") as lab:
        lab.break_fault("cache-unwritable")
        os.kill(lab.state["supervisor_pid"], signal.SIGKILL)
        eventually(lambda: processes_of(tmp_path) == [], "everything has ended")
        run_lab(tmp_path, "down")
        (tmp_path / "wp_chat" / "cache").rename(tmp_path / "moved")


def test_canary_that_was_stopped_gets_its_rollout_back(head: Lab) -> None:
    head.post("/admin/canary/rollout?percentage=0.3")
    head.lab.break_fault("canary-stopped")
    assert (head.canary["status"], head.canary["config"]["updated_by"]) == ("emergency_stop", "somebody")
    head.post("/admin/canary/disable")
    head.lab.heal_fault("canary-stopped")
    assert (head.canary["status"], head.canary["config"]["rollout_percentage"]) == ("active", 0.3)


def test_broken_config_fails_searches_at_once(head: Lab) -> None:
    head.lab.break_fault("config-broken")
    broken = head.search()
    assert (broken.status, broken.json["detail"][:43]) == (500, "Internal server error: while parsing a flow")
    assert head.post("/ask", {"question": "backup"}).status == 200
    before = head.lab.pid()
    head.lab.heal_fault("config-broken")
    assert (head.search().status, head.lab.pid()) == (200, before)


def test_attack_from_several_addresses(head: Lab) -> None:
    head.set_config("max_requests: 100", "max_requests: 4")
    started = len(head.lines("ab_metrics.jsonl"))
    head.lab.break_fault("attack")
    attackers = {f"127.0.66.{number}" for number in range(1, 6)}

    def refused() -> bool:
        return sum(line["status_code"] == 429 for line in head.lines("slo_metrics.jsonl")[-40:]) > 30

    eventually(refused, "most of their requests are refused")
    head.lab.heal_fault("attack")
    assert {line["ip_address"] for line in head.lines("ab_metrics.jsonl")[started:]} == attackers
    counted = json.loads((head.home / "cache" / "rate_limits.json").read_text())
    assert {len(counted[address]) for address in attackers} == {4}
    # A restart is no cure, and forgets what was measured.
    assert head.stats("slo")["search"]["status"] == "degraded"


def test_memory_down_and_hang(head: Lab) -> None:
    def resident_mib() -> float:
        pages = Path(f"/proc/{head.lab.pid()}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    lab, before = head.lab, resident_mib()
    lab.break_fault("memory", 200)
    eventually(lambda: resident_mib() - before > 190, "it holds as much")
    lab.heal_fault("memory")
    eventually(lambda: resident_mib() - before < 100, "it gives it back")
    lab.break_fault("hang")
    with socket.create_connection(("127.0.0.1", lab.ports["wp_chat"]), timeout=2) as connection:
        connection.settimeout(0.3)
        connection.sendall(b"GET /stats/health HTTP/1.1\r\nHost: lab\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    lab.heal_fault("hang")
    assert head.stats("health")["status"] == "healthy"
    lab.break_fault("down")
    with pytest.raises(ConnectionRefusedError):
        lab.get("/stats/health")
    command = shlex.split(lab.inventory["wp_chat_command"])
    assert subprocess.run(command, cwd="/", capture_output=True, timeout=60, check=False).returncode == 0
    assert lab.active_faults() == []


# Several processes, traffic, and the other kind


def test_workers_disagree_and_traffic_is_healthy(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--service", "wp_chat", "--workers", "2", "--traffic", "20") as running:
        lab = Lab(running)
        eventually(lambda: running.logged("wp-chat API initialized") == 2, "both processes have started")
        lab.post("/admin/canary/rollout?percentage=0.9")

        def rollouts() -> set[float]:
            # Several at a time: one request alone goes to whoever is woken first, always the same one.
            return set(pool.map(lambda _number: lab.canary["config"]["rollout_percentage"], range(32)))

        with ThreadPoolExecutor(max_workers=16) as pool:
            eventually(lambda: rollouts() == {0.5, 0.9}, "both processes have answered, and only one has been told")
        eventually(lambda: len(lab.lines("slo_metrics.jsonl")) > 80, "there is traffic")
        lines = lab.lines("slo_metrics.jsonl")
        assert {line["status_code"] for line in lines} == {200}
        assert sum(line["cache_hit"] for line in lines) / len(lines) > 0.5
        peers = [line["ip_address"] for line in lab.lines("ab_metrics.jsonl") if not line["query"]]
        assert len(set(peers)) > 60


def test_literal_has_what_the_runbook_says(literal: Lab) -> None:
    lab = literal.lab
    query = literal.unique().replace(" ", "%20")
    found = lab.get(f"/search?q={query}&rerank=true")
    assert (found.status, len(found.json["contexts"])) == (200, 5)
    assert literal.search().status == 200
    for name in ("disable", "enable"):
        assert literal.post(f"/admin/cache/{name}").json["success"]
        assert literal.stats("cache")["enabled"] is (name == "enable")
        query = literal.unique()
        cached = [literal.search(query).json.get("cached") for _number in range(2)]
        assert cached == [None, True if name == "enable" else None]
    assert list((literal.home / "logs" / "cache").glob("*.cache"))
    assert not (literal.home / "cache").exists()
    # As the runbook's curl sends it.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = b'{"max_requests": 2, "window_seconds": 3600}'
    assert literal.post("/admin/rate-limit/adjust", body, form).json["max_requests"] == 2
    client = {"X-Forwarded-For": "203.0.113.20"}
    assert [literal.search(headers=client).status for _number in range(3)] == [200, 200, 429]
    assert literal.post("/admin/rate-limit/adjust", {"max_requests": "none"}).status == 422
    assert literal.post("/admin/backup/create").status == 404
    lab.break_fault("errors", 100)
    literal.post("/admin/rate-limit/adjust", {"max_requests": 100, "window_seconds": 3600})
    assert literal.search().status == 500
    assert "ERROR search 500 ValueError: matmul" in (literal.home / "logs" / "api_errors.log").read_text()
    lab.heal_fault("errors")
    index = literal.home / INDEX
    assert (index / "wp.faiss.backup").read_bytes() == (index / "wp.faiss").read_bytes()
    sound = (index / "wp.faiss").read_bytes()
    (index / "wp.faiss").unlink()
    subprocess.run(["make", "rebuild-index"], cwd=literal.home, check=True, capture_output=True, timeout=60)
    assert (index / "wp.faiss").read_bytes() == sound
    assert "wp_chat.chat_api:app" in lab.status()["processes"]["wp-chat"]["argv"]


def test_literal_incidents_are_shown_and_their_actions_carried_out(literal: Lab) -> None:
    base = "/admin/incidents"
    detected = literal.post(f"{base}/detect?incident_type=canary_failure&severity=high", ["canary"])
    assert detected.status == 200
    incident = detected.json["incident"]["incident_id"]
    assert literal.lab.get(f"{base}/status").json["type_breakdown"] == {"canary_failure": 1}
    active = literal.lab.get(f"{base}/active").json["active_incidents"]
    assert [(each["incident_id"], each["incident_type"]) for each in active] == [(incident, "canary_failure")]
    executed = literal.post(f"{base}/{incident}/execute?action_id=emergency_stop_canary&confirm=true").json
    assert (executed["success"], literal.canary["status"]) == (True, "emergency_stop")
    assert literal.post(f"{base}/{incident}/resolve?resolution_notes=done").status == 200
    assert literal.lab.get(f"{base}/active").json == {"active_incidents": []}
    literal.post("/admin/canary/clear-emergency")

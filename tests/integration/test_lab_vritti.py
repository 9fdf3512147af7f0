# SPDX-License-Identifier: GPL-3.0-or-later
"""The Vritti stand-in and the lab around it: what the real service does, its traps included."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab.vritti.budget import Budget
from lab.vritti.dead_letters import DeadLetters
from lab.vritti.episodes import decode_episode
from lab.vritti.faults import FAULTS
from lab.vritti.settings import load
from tests.integration.lab_helpers import RunningLab, eventually, processes_of, request, run_lab, running_lab

OPENED = "Circuit breaker OPENED: KyroDB"
FAILING_FAST = "KyroDB circuit breaker OPEN - failing fast"
IMAGE_FAILED = "Image instance health check failed"


@pytest.fixture(scope="module", params=["v0.1.0", "head"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Both lines of Vritti, for what they have in common."""
    with running_lab(tmp_path_factory.mktemp("vritti"), "--vritti", request.param) as lab:
        yield lab


@pytest.fixture(scope="module")
def v010(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("v010")) as lab:
        yield lab


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("head"), "--vritti", "head") as lab:
        yield lab


def admin(lab: RunningLab) -> dict[str, str]:
    """Both spellings: either line ignores the other one's."""
    key = lab.inventory["vritti_admin_api_key"]
    return {"X-Admin-API-Key": key, "X-Admin-Key": key}


def count(lab: RunningLab, message: str) -> int:
    return sum(message in line for line in lab.log)


# Routes and headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/liveness", 200),
        ("GET", "/health", 200),
        ("GET", "/stats", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/", 200),
        ("POST", "/admin/dlq/retry", 404),
        ("POST", "/api/v1/customers/customer-01/rotate-key", 404),
        ("GET", "/api/v1/customers/customer-01/api-keys", 405),
        ("GET", "/admin/budget", 401),
        ("GET", "/admin/reflection/stats", 401),
    ],
)
def test_status_of_routes(lab: RunningLab, method: str, path: str, status: int) -> None:
    assert lab.send(method, path).status == status


def test_every_response_has_ids_and_echoes_those_that_were_sent(lab: RunningLab) -> None:
    answer = lab.get("/no/such/page", {"X-Request-ID": "from-me"})
    assert answer.headers["x-request-id"] == "from-me"
    assert answer.headers["x-trace-id"]


def test_keys_of_the_runbook_are_refused(lab: RunningLab) -> None:
    assert lab.search({"X-API-Key": "test-key"}).status == 401
    assert lab.search({"X-Nothing": "1"}).status == 401
    assert lab.search({"X-API-Key": "em_live_" + "0" * 64}).json == {"detail": "Invalid API key"}


def test_bodies_of_the_runbook_are_refused(lab: RunningLab) -> None:
    assert lab.send("POST", "/api/v1/search", {"goal": "test"}, lab.key()).status == 422
    assert lab.send("POST", "/api/v1/capture", {"goal": "test"}, lab.key()).status == 422
    path, form = "/api/v1/customers/customer-01", {"Content-Type": "application/x-www-form-urlencoded"}
    answer = lab.send("PATCH", path, b'{"subscription_tier": "pro"}', {**admin(lab), **form})
    assert answer.status == 422
    assert answer.json["detail"][0]["type"] == "model_attributes_type"


def test_a_body_that_claims_to_be_too_large(lab: RunningLab) -> None:
    headers = {**lab.key(), "Content-Type": "application/json", "Content-Length": str(11 * 1024 * 1024)}
    answer = lab.send("POST", "/api/v1/search", b"{}", headers)
    assert answer.status == 413
    assert answer.json["received_size_bytes"] == 11 * 1024 * 1024


def test_capture_and_search_reach_kyrodb(lab: RunningLab) -> None:
    captured = lab.capture(environment_info={"region": "eu"})
    assert captured.status == 201
    assert set(captured.json) == {
        "episode_id",
        "collection",
        "ingestion_latency_ms",
        "text_stored",
        "image_stored",
        "reflection_queued",
    }
    namespace = f"{lab.customer()['customer_id']}:failures"
    assert lab.call("Query", doc_id=captured.json["episode_id"], namespace=namespace).found
    # Found and then filtered by its preconditions: a 200 without results.
    elsewhere = lab.search(current_state={"region": "us"})
    assert (elsewhere.status, elsewhere.json["total_candidates"], elsewhere.json["results"]) == (200, 1, [])
    found = lab.search({"Authorization": f"Bearer {lab.customer()['api_key']}"}, current_state={"region": "eu"})
    assert [result["episode"]["episode_id"] for result in found.json["results"]] == [captured.json["episode_id"]]
    assert set(found.json["breakdown"]) == {
        "embedding_ms",
        "search_ms",
        "validation_ms",
        "precondition_ms",
        "ranking_ms",
    }
    assert lab.capture({**lab.key()}, error_class="data_loss").status == 422
    assert lab.capture(query="?tier=luxury").status == 400


def test_budget_and_reflections_cost_nothing(lab: RunningLab) -> None:
    budget = lab.get("/admin/budget", admin(lab)).json
    assert (budget["daily_cost_usd"], budget["limit_threshold_usd"]) == (0.0, 50.0)
    assert set(budget["cost_by_tier"]) == {"cheap", "cached", "premium"}
    statistics = lab.get("/admin/reflection/stats", admin(lab)).json
    assert statistics["daily_cost"]["budget_remaining_usd"] == 50.0


def test_customers_api(lab: RunningLab) -> None:
    path = "/api/v1/customers"
    body = {"customer_id": "new-customer", "organization_name": "New", "email": "new@new.example"}
    assert lab.send("POST", path, body, admin(lab)).status == 201
    assert lab.send("POST", path, body, admin(lab)).status == 409
    assert lab.send("POST", path, {**body, "customer_id": "new--customer"}, admin(lab)).status == 422
    assert lab.get(f"{path}/nobody", admin(lab)).status == 404
    unknown = lab.send("PATCH", f"{path}/nobody", {"status": "active"}, admin(lab))
    assert (unknown.status, unknown.text) == (500, "Internal Server Error")
    assert "x-request-id" not in unknown.headers
    assert lab.send("POST", f"{path}/nobody/reset-usage", headers=admin(lab)).status == 500
    raised = lab.send("PATCH", f"{path}/new-customer", {"subscription_tier": "pro"}, admin(lab)).json
    assert (raised["subscription_tier"], raised["monthly_credit_limit"]) == ("pro", 1000)
    assert lab.send("PATCH", f"{path}/new-customer", {"status": "lost"}, admin(lab)).status == 422


def test_revocation_and_suspension_wait_for_the_cache(lab: RunningLab) -> None:
    path, customer = "/api/v1/customers/customer-30", lab.customer(29)
    key = {"X-API-Key": customer["api_key"]}
    new = lab.send("POST", f"{path}/api-keys", {"customer_id": "ignored"}, admin(lab))
    assert new.status == 201
    assert lab.search(key).status == 200
    assert lab.send("DELETE", f"{path}/api-keys/{customer['key_id']}", headers=admin(lab)).status == 204
    assert lab.send("DELETE", f"{path}/api-keys/{customer['key_id']}", headers=admin(lab)).status == 204
    assert lab.send("DELETE", f"{path}/api-keys/none", headers=admin(lab)).status == 404
    assert lab.search(key).status == 200
    # The new key was never used, so nothing is cached for it.
    lab.send("PATCH", path, {"status": "suspended"}, admin(lab))
    fresh = {"X-API-Key": new.json["api_key"]}
    assert (lab.search(fresh).status, lab.search(key).status) == (401, 200)
    lab.send("PATCH", path, {"status": "active"}, admin(lab))
    assert lab.search(fresh).status == 200


def test_quota_is_reported_and_not_enforced(lab: RunningLab) -> None:
    path, key = "/api/v1/customers/customer-31", lab.key(30)
    lab.send("PATCH", path, {"monthly_credit_limit": 1}, admin(lab))
    assert [lab.search(key).status for _number in range(3)] == [200, 200, 200]
    usage = lab.get(f"{path}/usage", key).json
    assert (usage["credits_used"], usage["over_quota"]) == (3, True)
    assert lab.send("POST", f"{path}/reset-usage", headers=admin(lab)).status == 204
    assert lab.get(f"{path}/usage", key).json["over_quota"] is False


# What differs between the lines


def test_metrics_tell_the_lines_apart(v010: RunningLab, head: RunningLab) -> None:
    assert v010.get("/metrics").status == 200
    assert head.get("/metrics").status == 404
    assert v010.get("/health").json["version"] == head.get("/health").json["version"] == "0.1.0"


def test_v010_is_always_degraded_and_never_ready(v010: RunningLab) -> None:
    health = v010.get("/health").json
    assert health["status"] == "degraded"
    states = {component["name"]: component["status"] for component in health["components"]}
    assert states == {
        "kyrodb": "healthy",
        "customer_database": "unhealthy",
        "embedding_service": "unhealthy",
        "reflection_service": "healthy",
    }
    readiness = v010.get("/health/readiness")
    assert (readiness.status, readiness.json["ready"]) == (503, False)


def test_head_is_healthy_with_a_degraded_embedding_service(head: RunningLab) -> None:
    health = head.get("/health").json
    assert health["status"] == "healthy"
    states = {component["name"]: component["status"] for component in health["components"]}
    assert states["embedding_service"] == "degraded"
    readiness = head.get("/health/readiness")
    assert (readiness.status, readiness.json["ready"]) == (200, True)
    assert set(readiness.json) == {"status", "timestamp", "ready", "components"}
    assert "reflection_service" not in {component["name"] for component in readiness.json["components"]}


def test_admin_headers_of_the_lines(v010: RunningLab, head: RunningLab) -> None:
    path = "/api/v1/customers/customer-01"
    new, old = ({"X-Admin-API-Key": lab.inventory["vritti_admin_api_key"]} for lab in (head, v010))
    old_spelling = {"X-Admin-Key": old["X-Admin-API-Key"]}
    assert head.get(path, new).status == 200
    assert head.get(path).status == 401
    assert v010.get(path, old).status == 422
    assert v010.get(path, old_spelling).status == 200
    assert v010.get(path, {"X-Admin-Key": "wrong"}).status == 401
    assert v010.get("/admin/budget", old).status == 200
    # Usage needs the customer's own key at the head and nothing at all before.
    assert v010.get(f"{path}/usage").status == 200
    assert head.get(f"{path}/usage").status == 401
    assert head.get(f"{path}/usage", head.key()).status == 403


def test_limits_of_a_request(v010: RunningLab, head: RunningLab) -> None:
    assert v010.search(k=101).status == 422
    assert head.search(k=101).status == 200


def exceed(lab: RunningLab, position: int) -> tuple[int, str]:
    """Use up a customer's skill listings and ask once more."""
    for _number in range(50):
        assert lab.get("/api/v1/skills", lab.key(position)).status == 200
    answer = lab.get("/api/v1/skills", lab.key(position))
    return answer.status, answer.text


def test_rate_limit(v010: RunningLab, head: RunningLab) -> None:
    assert exceed(head, 20) == (429, '{"error":"Rate limit exceeded: 50 per 1 minute"}')
    assert exceed(v010, 20) == (500, "Internal Server Error")
    customer = v010.customer(20)["customer_id"]
    exceeded = [line for line in v010.get("/metrics").text.splitlines() if "rate_limit_exceeded_total{" in line]
    assert len(exceeded) == 1
    assert f'customer_id="{customer}"' in exceeded[0]
    assert exceeded[0].endswith(" 1.0")


def test_database_of_each_line(v010: RunningLab, head: RunningLab) -> None:
    for lab in (v010, head):
        assert lab.search(lab.key(10)).status == 200
    path = Path(v010.inventory["vritti_customers_db"])
    # One persistent connection: its write-ahead log stays beside the file.
    assert path.with_name("customers.db-wal").exists()
    tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        assert "episodes_index" not in {row[0] for row in connection.execute(tables)}
    connection.close()
    path = Path(head.inventory["vritti_customers_db"])
    assert not path.with_name("customers.db-wal").exists()
    episode = head.capture(head.key(10)).json["episode_id"]
    with sqlite3.connect(path) as connection:
        assert {"episodes_index", "skills_index", "doc_id_counters"} <= {row[0] for row in connection.execute(tables)}
        assert connection.execute("SELECT next_doc_id FROM doc_id_counters").fetchone() == (257,)
        found = connection.execute("SELECT customer_id FROM episodes_index WHERE episode_id = ?", (episode,))
        assert found.fetchone() == (head.customer(10)["customer_id"],)
    connection.close()
    assert v010.capture(v010.key(10)).json["episode_id"] > 2**53


# Metrics


def test_declared_and_never_emitted(v010: RunningLab) -> None:
    v010.search()
    text = v010.get("/metrics").text
    for name in (
        "kyrodb_operation_duration_seconds",
        "kyrodb_operations_total",
        "embedding_generation_duration_seconds",
        "llm_call_total",
        "reflection_cost_by_tier_usd_total",
        "tier_selection_total",
        "repeat_error_prevention_rate",
        "promoted_skills_total",
    ):
        lines = [line for line in text.splitlines() if f"episodic_memory_{name}" in line.replace("_created", "")]
        assert any(line.startswith("# TYPE") for line in lines), name
        assert all(line.startswith("#") for line in lines), name


def test_exposition_is_valid_and_counts(v010: RunningLab) -> None:
    v010.search()
    answer = v010.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["episodic_memory_http_requests_active"].samples[0].value >= 0
    durations = families["episodic_memory_http_request_duration_seconds"].samples
    bounds = {sample.labels["le"] for sample in durations if sample.name.endswith("_bucket")}
    expected = ["0.001", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "+Inf"]
    assert bounds == set(expected)
    active = {
        sample.labels["endpoint"]: sample.value for sample in families["episodic_memory_http_requests_active"].samples
    }
    assert active["/metrics"] == 1.0
    assert "process_resident_memory_bytes" in families
    assert "python_info" in families


def test_only_escaped_exceptions_are_errors_and_count_twice(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:

        def errors() -> list[str]:
            return [line for line in lab.get("/metrics").text.splitlines() if "errors_total{" in line]

        lab.break_fault("kyrodb-down")
        assert [lab.search().status for _number in range(9)] == [500] * 9
        assert errors() == []
        lab.send("PATCH", "/api/v1/customers/nobody", {"status": "active"}, admin(lab))
        assert len(errors()) == 2
        assert any('error_type="IntegrityError"' in line for line in errors())
        assert any('error_type="internal"' in line for line in errors())
        assert all('endpoint="/api/v1/customers/{customer_id}"' in line for line in errors())


# The circuit breaker


def test_breaker_opens_at_the_fifth_failure_and_only_a_restart_closes_it(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        lab.break_fault("kyrodb-image-down")
        for _number in range(4):
            readiness = lab.get("/health/readiness")
            assert (readiness.status, readiness.json["status"]) == (200, "degraded")
            # Successes in between do not reset the count.
            assert lab.search().status == 200
        assert count(lab, OPENED) == 0
        assert lab.get("/health/readiness").status == 200
        assert count(lab, OPENED) == 1
        stuck = lab.get("/health/readiness")
        assert (stuck.status, stuck.json["status"]) == (503, "unhealthy")
        component = lab.kyrodb_component()
        assert component["message"] == "Both instances unhealthy"
        search = lab.search()
        assert search.status == 500
        assert search.json["detail"].endswith("circuit breaker open). Retry after 60 seconds.")
        assert count(lab, FAILING_FAST) > 0
        lab.heal_fault("kyrodb-image-down")
        assert lab.http("image", "/health").status == 200
        assert lab.call("Health", "image").status == 1
        assert lab.get("/health/readiness").status == 503
        assert lab.get("/health").status == 200
        lab.restart("vritti")
        assert lab.get("/health/readiness").status == 200
        assert lab.search().status == 200


def test_only_uncached_health_requests_count(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        lab.break_fault("kyrodb-image-down")
        # Kept for five seconds.
        answers = [lab.get("/health") for _number in range(3)]
        assert {answer.status for answer in answers} == {200}
        assert {answer.json["timestamp"] for answer in answers} == {answers[0].json["timestamp"]}
        assert count(lab, IMAGE_FAILED) == 1
        lab.get("/health/liveness")
        assert count(lab, IMAGE_FAILED) == 1
        eventually(lambda: lab.get("/health").json["timestamp"] != answers[0].json["timestamp"], "cache expired")
        assert count(lab, IMAGE_FAILED) == 2
        message = lab.kyrodb_component()["message"]
        assert message == "Text instance healthy, image instance unhealthy"


def test_health_is_200_whatever_it_says(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        lab.break_fault("kyrodb-down")
        health = lab.get("/health")
        assert (health.status, health.json["status"]) == (200, "unhealthy")
        assert lab.get("/health/readiness").status == 503
        assert lab.get("/health/liveness").status == 200
        assert [lab.search().status, lab.capture().status] == [500, 500]


# Start-up


def test_head_does_not_start_without_an_llm_key(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head", "--no-llm") as lab:
        assert lab.status()["processes"]["vritti"]["returncode"] == 3
        assert "LLM_OPENROUTER_API_KEY" in lab.output
        assert any("Startup failed" in line for line in lab.log)


def test_vritti_does_not_start_without_kyrodb(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("kyrodb-image-down")
        restarted = lab.restart("vritti")
        assert restarted.status == 409
        assert "exited with status 3" in restarted.json["message"]
        status, _output, errors = run_lab(tmp_path, "break", "vritti", "embedding-slow")
        assert status == 1
        assert "needs vritti" in errors
        assert lab.heal_all().status == 200
        assert lab.search().status == 200
        assert lab.active_faults() == []


def test_v010_runs_without_an_llm_and_with_a_crippled_log(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--no-llm") as lab:
        components = {component["name"] for component in lab.get("/health").json["components"]}
        assert "reflection_service" not in components
        assert lab.get("/admin/budget", admin(lab)).json["cost_by_tier"] == {}
        # The missing key is a warning before the log is set up.
        assert any(line.startswith("WARNING:src.config:") for line in lab.log)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="LLM_TIMEOUT_SECONDS is 200"):
        load({"LLM_TIMEOUT_SECONDS": "200"})


def test_admin_keys_that_look_like_placeholders_are_dropped() -> None:
    dropped = load({"ADMIN_API_KEY": "9f2c-laTEst-0123456789abcdef0123456789", "LLM_OPENROUTER_API_KEY": "sk-or-1"})
    assert dropped.admin_api_key is None
    assert len(dropped.warnings) == 1
    short = load({"ADMIN_API_KEY": "short", "LLM_OPENROUTER_API_KEY": "sk-or-1"})
    assert short.admin_api_key == "short"
    assert len(short.warnings) == 1


# Log


def test_log_is_a_mixture(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        lab.capture()
        lab.search()
        lab.get("/health")
        events, plain, access = [], [], []
        for line in lab.log:
            if line.startswith("{"):
                events.append(json.loads(line))
            elif line.startswith("INFO:     127.0.0.1:"):
                access.append(line)
            else:
                plain.append(line)
        assert any('"POST /api/v1/search HTTP/1.1" 200 OK' in line for line in access)
        assert any(line.startswith("API key validated for customer: customer-") for line in plain)
        assert any(line.startswith("Episode ") for line in plain)
        completed = [event for event in events if event["event"] == "HTTP request completed"]
        search = next(event for event in completed if event["path"] == "/api/v1/search")
        assert search["customer_id"] == lab.customer()["customer_id"]
        assert search["status_code"] == 200
        assert search["latency_ms"] > 0
        assert (search["level"], search["service"], search["version"]) == ("info", "episodic-memory", "0.1.0")
        assert search["timestamp"].endswith("Z")
        started = [event for event in events if event["event"] == "HTTP request started"]
        assert {"method", "path", "query_params", "client_host", "request_id", "trace_id"} <= set(started[0])


def test_v010_logs_no_customer(v010: RunningLab) -> None:
    v010.search()
    events = [json.loads(line) for line in v010.log if line.startswith("{")]
    assert events
    assert not any("customer_id" in event for event in events)


def test_slow_requests_are_warned_about(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("embedding-slow")
        answer = lab.search()
        assert answer.json["breakdown"]["embedding_ms"] > 200
        # Written after the answer was sent.
        eventually(lambda: count(lab, "Slow request detected") > 0, "a warning")
        slow = [json.loads(line) for line in lab.log if "Slow request detected" in line]
        assert slow[0]["threshold_ms"] in (100, 500)
        assert slow[0]["path"] == "/api/v1/search"


# Faults


def test_the_fault_table_is_what_the_control_port_shows(v010: RunningLab) -> None:
    shown = request("GET", f"{v010.control}/faults").json
    assert [(fault["service"], fault["name"]) for fault in shown] == [(fault.service, fault.name) for fault in FAULTS]
    assert v010.break_fault("no-such-fault").status == 404
    status, _output, errors = run_lab(v010.data_dir, "break", "vritti", "no-such-fault")
    assert status == 2
    assert "kyrodb-slow" in errors
    assert run_lab(v010.data_dir, "break", "nothing", "kyrodb-slow")[0] == 2
    assert run_lab(v010.data_dir, "restart", "nothing")[0] == 2


def test_slow_kyrodb(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        assert run_lab(tmp_path, "break", "vritti", "kyrodb-slow")[0] == 0
        assert lab.active_faults() == ["kyrodb-slow"]
        component = lab.kyrodb_component()
        assert component["latency_ms"] >= 100
        assert component["message"].startswith("Instances healthy but Latency ")
        assert lab.search().json["breakdown"]["search_ms"] >= 150
        # Half of the cure is half of a cure.
        lab.restart("kyrodb-text")
        assert lab.active_faults() == ["kyrodb-slow"]
        lab.restart("kyrodb-image")
        assert lab.active_faults() == []
        lab.break_fault("kyrodb-text-slow")
        lab.break_fault("kyrodb-image-slow")
        assert run_lab(tmp_path, "heal", "vritti")[0] == 0
        assert lab.active_faults() == []


def test_unhealthy_kyrodb_is_healthy_for_vritti(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        lab.break_fault("kyrodb-unhealthy")
        health = lab.call("Health")
        assert health.status == 3
        assert health.components["wal"] == "unhealthy (WAL inconsistent; writes disabled)"
        assert lab.http("text", "/health").status == 503
        assert lab.http("text", "/ready").status == 503
        assert lab.kyrodb_component()["status"] == "healthy"
        lab.restart("kyrodb-text")
        lab.restart("kyrodb-image")
        assert lab.active_faults() == []
        assert lab.call("Health").status == 1


def test_hanging_kyrodb_accepts_and_never_answers(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("kyrodb-text-hang")
        with socket.create_connection(("127.0.0.1", lab.ports["kyrodb_text_http"]), timeout=2) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: lab\r\n\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)
        assert lab.refused("Health", timeout=1)[0].name in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
        lab.heal_fault("kyrodb-text-hang")
        assert lab.call("Health").status == 1
        lab.break_fault("kyrodb-text-hang")
        lab.restart("kyrodb-text")
        assert lab.active_faults() == []
        assert lab.call("Health").status == 1


def test_stuck_breaker(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        assert lab.break_fault("breaker-stuck").status == 200
        assert count(lab, OPENED) == 1
        assert lab.call("Health").status == 1
        assert lab.get("/health/readiness").status == 503
        lab.restart("vritti")
        assert lab.active_faults() == []
        assert lab.get("/health/readiness").status == 200
        lab.break_fault("breaker-stuck")
        lab.heal_fault("breaker-stuck")
        assert lab.get("/health/readiness").status == 200


def test_stopped_kyrodb(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("kyrodb-down")
        for port in ("kyrodb_text", "kyrodb_image"):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", lab.ports[port]), timeout=2)
        assert lab.status()["processes"]["kyrodb-text"]["state"] == "stopped"
        lab.restart("kyrodb-text")
        assert lab.active_faults() == ["kyrodb-down"]
        lab.heal_fault("kyrodb-down")
        assert lab.call("Health", "image").status == 1
        # What an outage may have left behind goes with the healing of everything.
        for _number in range(3):
            lab.break_fault("kyrodb-down")
            lab.get("/health/readiness")
            lab.heal_fault("kyrodb-down")
        assert lab.search().status == 500
        lab.heal_all()
        assert lab.search().status == 200


def test_log_with_warnings_only(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("log-warnings-only")
        before = len(lab.log)
        lab.break_fault("embedding-slow")
        lab.search()
        prefix = "WARNING:src.observability.middleware:{"
        eventually(lambda: any(line.startswith(prefix) for line in lab.log[before:]), "a warning")
        assert not any(line.startswith("{") for line in lab.log[before:])
        lab.heal_all()
        lab.search()
        eventually(lambda: any(line.startswith("{") for line in lab.log[before:]), "JSON lines")


def test_extra_traffic_runs_into_limits(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("rate-limited")
        eventually(lambda: count(lab, "Rate limit exceeded: customer=customer-40") > 0, "rate limit reached")
        lab.heal_fault("rate-limited")
        lab.break_fault("traffic-spike")
        eventually(lambda: lab.get("/stats").json["search_stats"]["total_searches"] > 300, "more searches")
        assert lab.status()["processes"]["traffic-spike"]["state"] == "running"
        lab.heal_fault("traffic-spike")
        assert "traffic-spike" not in lab.status()["processes"]


# Reflections


def statistics(lab: RunningLab) -> dict[str, Any]:
    answer: dict[str, Any] = lab.get("/admin/reflection/stats", admin(lab)).json
    return answer


def reflected(lab: RunningLab, query: str = "", **body: Any) -> int:
    """Capture an episode, and wait until its reflection was made: the episode's id."""
    before = statistics(lab)["total_reflections"]
    captured = lab.capture(query=query, **body)
    assert captured.status == 201, captured.text
    eventually(lambda: statistics(lab)["total_reflections"] > before, "a reflection")
    return int(captured.json["episode_id"])


def stored(lab: RunningLab, episode: int) -> Any:
    namespace = f"{lab.customer()['customer_id']}:failures"
    return lab.call("Query", doc_id=episode, namespace=namespace, include_embedding=True)


def letters(lab: RunningLab) -> list[dict[str, Any]]:
    path = Path(lab.inventory["vritti_dlq_path"])
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def series(lab: RunningLab, name: str) -> dict[str, float]:
    """The lab's metrics of this name, by their labels."""
    lines = [line for line in lab.get("/metrics").text.splitlines() if line.startswith(f"episodic_memory_{name}")]
    return {line[len(f"episodic_memory_{name}") : line.rindex(" ")]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_a_reflection_is_stored_with_its_episode(lab: RunningLab) -> None:
    head = lab.get("/metrics").status == 404
    episode = reflected(lab)
    eventually(lambda: "reflection_root_cause" in stored(lab, episode).metadata, "it is stored")
    found = stored(lab, episode)
    assert len(found.embedding) == 384
    # What was there stays.
    assert found.metadata["tool"] == "kubectl"
    assert found.metadata["reflection_confidence"] == "0.7000"
    assert found.metadata["reflection_cost_usd"] == "0.000000"
    assert isinstance(json.loads(found.metadata["reflection_preconditions"]), dict if head else list)
    assert "reflection_consensus_method" not in found.metadata
    assert found.metadata["episode_json"].startswith("gz:") == head
    document = decode_episode(found.metadata["episode_json"])
    assert document["goal"] == "deploy the payment service"
    assert document["reflection"]["root_cause"] == found.metadata["reflection_root_cause"]
    assert (episode > 2**53) == (not head)
    premium = reflected(lab, query="?tier=premium")
    eventually(lambda: "reflection_root_cause" in stored(lab, premium).metadata, "it is stored")
    metadata = stored(lab, premium).metadata
    assert (metadata["reflection_consensus_method"], metadata["reflection_perspectives_count"]) == (
        "semantic_unanimous",
        "2",
    )
    assert statistics(lab)["percentage_by_tier"]["premium"] > 0


def test_what_cannot_be_stored_is_a_dead_letter(lab: RunningLab) -> None:
    head = lab.get("/metrics").status == 404
    assert letters(lab) == []
    lab.break_fault("reflections-refused")
    try:
        episode = reflected(lab)
        eventually(lambda: len(letters(lab)) == 1, "a dead letter")
    finally:
        lab.heal_fault("reflections-refused")
    (entry,) = letters(lab)
    assert list(entry) == ["timestamp", "episode_id", "customer_id", "failure_reason", "reflection"]
    assert (entry["episode_id"], entry["customer_id"]) == (episode, lab.customer()["customer_id"])
    assert entry["failure_reason"] == "persistence_failed_after_retries"
    assert isinstance(entry["reflection"]["preconditions"], dict if head else list)
    assert entry["reflection"]["tier"] == "cheap"
    assert "consensus" not in entry["reflection"]
    # The episode is there; only what was thought of it is not.
    assert stored(lab, episode).found
    assert "reflection_root_cause" not in stored(lab, episode).metadata
    assert count(lab, f"Reflection persistence failed for episode {episode} (attempt 3/3)") == 1
    logged = f"Logged failed reflection to dead-letter queue: episode {episode}, reason: persistence_failed"
    assert count(lab, logged) == 1
    assert lab.kyrodb_component()["status"] == "healthy"
    if head:
        eventually(lambda: "Reflection failed" in lab.log, "what the metric was before")
        return
    assert series(lab, "reflection_failure_total") == {'{reason="persistence_failed"}': 1}
    assert series(lab, "reflection_dead_letter_total") == {'{failure_reason="persistence_failed_after_retries"}': 1}
    assert series(lab, "reflection_persistence_total")['{success="false"}'] == 1
    retries = series(lab, "reflection_persistence_retry_total")
    assert retries == {f'{{attempt="{number}",success="false"}}': 1 for number in (1, 2, 3)}


def test_a_dead_letter_without_a_reflection(head: RunningLab) -> None:
    head.break_fault("redaction-failing")
    try:
        reflected(head, query="?tier=premium")
        eventually(lambda: len(letters(head)) == 1, "a dead letter")
    finally:
        head.heal_fault("redaction-failing")
    assert letters(head)[0]["failure_reason"] == "reflection_redaction_failed"
    assert letters(head)[0]["reflection"] is None
    # Whoever moves the file away loses nothing: the next line makes a new one.
    path = Path(head.inventory["vritti_dlq_path"])
    path.rename(path.with_name("moved"))
    head.break_fault("redaction-failing")
    try:
        reflected(head)
        eventually(lambda: len(letters(head)) == 1, "a dead letter in a new file")
    finally:
        head.heal_fault("redaction-failing")


def test_dead_letters_are_rotated_at_head_only(tmp_path: Path) -> None:
    path = tmp_path / "queue" / "letters.log"
    settings = {"SERVICE_DEAD_LETTER_QUEUE_PATH": str(path), "SERVICE_DEAD_LETTER_QUEUE_MAX_SIZE_MB": "1"}
    queue = DeadLetters(load({"LAB_VRITTI_LINE": "head", **settings}), None)
    queue.write(1, "customer-01", None, "reflection_redaction_failed")
    assert len(path.read_text().splitlines()) == 1
    path.write_bytes(b"x" * 1024 * 1024)
    queue.write(2, "customer-01", None, "reflection_redaction_failed")
    (rotated,) = path.parent.glob("letters.2*.log")
    assert rotated.stat().st_size == 1024 * 1024
    assert json.loads(path.read_text())["episode_id"] == 2
    assert load({"LAB_VRITTI_LINE": "v0.1.0", **settings}).dead_letters_path == "./data/failed_reflections.log"


def test_the_budget_is_a_constant_and_gone_after_a_restart(lab: RunningLab) -> None:
    head = lab.get("/metrics").status == 404
    lab.set_environment(REFLECTION_MAX_COST_PER_DAY_USD="1000")
    lab.restart("vritti")
    lab.break_fault("llm-expensive", 30)
    try:
        reflected(lab)
        budget = lab.get("/admin/budget", admin(lab)).json
        assert (budget["daily_cost_usd"], budget["warning_triggered"], budget["limit_exceeded"]) == (30, True, False)
        assert (budget["limit_threshold_usd"], budget["budget_remaining_usd"]) == (50, 20)
        reflected(lab)
        budget = lab.get("/admin/budget", admin(lab)).json
        assert (budget["limit_exceeded"], budget["premium_tier_blocked"]) == (True, True)
        assert budget["cost_by_tier"] == {"cheap": 60, "cached": 0, "premium": 0}
        # The choice of a tier heeds it; who names the tier does not.
        reflected(lab, tags=["premium_reflection"])
        assert lab.get("/admin/budget", admin(lab)).json["count_by_tier"] == {"cheap": 3, "cached": 0, "premium": 0}
        reflected(lab, query="?tier=premium")
        assert lab.get("/admin/budget", admin(lab)).json["count_by_tier"]["premium"] == 1
        assert [count(lab, said) for said in ("COST WARNING", "COST LIMIT EXCEEDED")] == [1, 1]
        if not head:
            # An event, not a level: what came after the crossing is not in it.
            assert series(lab, "daily_cost_usd") == {"": 60}
            assert series(lab, "daily_cost_alert_total") == {
                '{alert_type="warning"}': 1,
                '{alert_type="limit_exceeded"}': 1,
            }
        lab.restart("vritti")
        fresh = lab.get("/admin/budget", admin(lab)).json
        assert (fresh["daily_cost_usd"], fresh["limit_exceeded"], fresh["limit_threshold_usd"]) == (0, False, 50)
    finally:
        lab.heal_fault("llm-expensive")


def test_the_budget_begins_anew_at_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    days = [date(2026, 11, 27)]
    monkeypatch.setattr("lab.vritti.budget._today", lambda: days[-1])
    budget = Budget(None)
    budget.add("premium", 55)
    assert budget.exceeded
    days.append(date(2026, 11, 28))
    assert not budget.exceeded
    # Before anything new is spent, too.
    assert budget.report(True)["premium_tier_blocked"] is False
    budget.add("cheap", 1)
    shown = budget.report(True)
    assert (shown["date"], shown["daily_cost_usd"], shown["warning_triggered"]) == ("2026-11-28", 1, False)
    # What belongs to the process goes on.
    assert shown["cost_by_tier"] == {"cheap": 1, "cached": 0, "premium": 55}


def test_llm_failures_are_no_dead_letters(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        lab.break_fault("llm-key-refused")
        reflected(lab)
        assert count(lab, "Cheap reflection call failed (attempt 3/3): Client error '401 Unauthorized'") == 1
        assert count(lab, "Authentication failed (permanent)") == 3
        assert count(lab, "Cheap model fallback also failed") == 1
        # Whatever the cheap tier fails at is tried once more by the premium one, and counts as that.
        assert statistics(lab)["percentage_by_tier"]["premium"] == 100
        lab.set_environment(LLM_OPENROUTER_API_KEY="sk-or-v1-another", LLM_TIMEOUT_SECONDS="1")
        lab.restart("vritti")
        assert lab.active_faults() == ["llm-key-refused"]
        reflected(lab)
        assert statistics(lab)["percentage_by_tier"]["cheap"] == 100

        lab.break_fault("llm-model-gone")
        before = count(lab, "kwaipilot/kat-coder-pro:free succeeded")
        reflected(lab)
        assert count(lab, "Cheap reflection call failed (attempt 3/3): Client error '404 Not Found'") == 1
        assert count(lab, "kwaipilot/kat-coder-pro:free succeeded") == before + 1
        lab.heal_fault("llm-model-gone")

        lab.break_fault("llm-slow", 1.2)
        reflected(lab, query="?tier=cheap")
        # The client says nothing when its time has run out.
        assert "Cheap reflection call failed (attempt 3/3): " in lab.log
        lab.set_environment(LLM_TIMEOUT_SECONDS="90")
        lab.restart("vritti")
        failed = count(lab, "Cheap reflection call failed")
        reflected(lab)
        assert count(lab, "Cheap reflection call failed") == failed
        assert letters(lab) == []


# The lab itself


def test_traffic_is_harmless(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--traffic", "30") as lab:
        eventually(lambda: lab.get("/stats").json["search_stats"]["total_searches"] > 150, "traffic")
        lines = lab.get("/metrics").text.splitlines()
        requests = [line for line in lines if line.startswith("episodic_memory_http_requests_total{")]
        assert requests
        assert not any('status_code="5' in line or 'status_code="4' in line for line in requests)
        assert lab.http("text", "/health").json["status"] == "healthy"


def test_two_labs_side_by_side(tmp_path: Path, v010: RunningLab) -> None:
    with running_lab(tmp_path, "--vritti", "head") as other:
        other.break_fault("kyrodb-down")
        assert v010.search().status == 200
        assert v010.active_faults() == []
        assert other.search().status == 500
        status, output, _errors = run_lab(v010.data_dir, "up")
        assert status == 0
        assert "already runs" in output
        status, _output, errors = run_lab(
            tmp_path / "third", "up", "--base-port", str(v010.state["options"]["base_port"])
        )
        assert status == 1
        assert "is taken" in errors


def test_files_with_keys_are_private(v010: RunningLab) -> None:
    for name in ("keys.json", "inventory.yml", "lab.json"):
        assert stat.S_IMODE((v010.data_dir / name).stat().st_mode) == 0o600, name


def test_nothing_survives_the_supervisor(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--traffic", "5") as lab:
        assert len(processes_of(tmp_path)) == 5
        lab.break_fault("kyrodb-text-hang")
        os.kill(lab.state["supervisor_pid"], signal.SIGKILL)
        eventually(lambda: not processes_of(tmp_path), "the children ended")
        # The file that it left behind is recognised for what it is.
        assert (tmp_path / "lab.json").exists()
        status, _output, errors = run_lab(tmp_path, "status")
        assert status == 1
        assert "No lab runs" in errors
        assert run_lab(tmp_path, "up", "--base-port", "0", "--traffic", "0")[0] == 0
    assert processes_of(tmp_path) == []
    assert not (tmp_path / "lab.json").exists()

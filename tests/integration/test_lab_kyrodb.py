# SPDX-License-Identifier: GPL-3.0-or-later
"""The KyroDB stand-ins: the gRPC service, the HTTP port, authentication, TLS and persistence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.lab_helpers import RunningLab, eventually, running_lab

NAMESPACE = "acme:failures"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("kyrodb")) as lab:
        yield lab


def vector(*ones: int, dimension: int = 384) -> list[float]:
    return [1.0 if position in ones else 0.0 for position in range(dimension)]


def insert(lab: RunningLab, doc_id: int, *ones: int, **metadata: str) -> None:
    answer = lab.call("Insert", doc_id=doc_id, embedding=vector(*ones), metadata=metadata, namespace=NAMESPACE)
    assert answer.success


def test_insert_is_an_upsert(lab: RunningLab) -> None:
    insert(lab, 11, 1, state="first")
    insert(lab, 11, 2, state="second")
    found = lab.call("Query", doc_id=11, namespace=NAMESPACE, include_embedding=True)
    assert found.found
    assert dict(found.metadata) == {"state": "second"}
    assert list(found.embedding) == vector(2)


def test_a_namespace_is_a_tag_and_ids_are_global(lab: RunningLab) -> None:
    insert(lab, 21, 3)
    assert not lab.call("Query", doc_id=21, namespace="never-created").found
    assert lab.call("Query", doc_id=21).found
    lab.call("Insert", doc_id=21, embedding=vector(3), namespace="other:failures")
    assert not lab.call("Query", doc_id=21, namespace=NAMESPACE).found


def test_search_orders_by_similarity_within_the_namespace(lab: RunningLab) -> None:
    insert(lab, 31, 100)
    insert(lab, 32, 100, 101)
    lab.call("Insert", doc_id=33, embedding=vector(100), namespace="somebody-else")
    found = lab.call("Search", query_embedding=vector(100), k=2, min_score=0.5, namespace=NAMESPACE)
    assert [result.doc_id for result in found.results] == [31, 32]
    assert found.results[0].score == pytest.approx(1.0)
    assert found.total_found == 2


def test_deletes_and_metadata_updates(lab: RunningLab) -> None:
    insert(lab, 41, 4, kept="yes", changed="no")
    lab.call("UpdateMetadata", doc_id=41, metadata={"changed": "yes"}, merge=True, namespace=NAMESPACE)
    assert dict(lab.call("Query", doc_id=41).metadata) == {"kept": "yes", "changed": "yes"}
    lab.call("UpdateMetadata", doc_id=41, metadata={"only": "this"}, namespace=NAMESPACE)
    assert dict(lab.call("Query", doc_id=41).metadata) == {"only": "this"}
    for doc_id, namespace in ((41, "other:failures"), (42, NAMESPACE)):
        answer = lab.call("UpdateMetadata", doc_id=doc_id, metadata={"no": "where"}, merge=True, namespace=namespace)
        assert (answer.success, answer.existed, answer.error) == (True, False, "")
    assert dict(lab.call("Query", doc_id=41).metadata) == {"only": "this"}
    assert lab.call("Delete", doc_id=41, namespace=NAMESPACE).existed
    assert not lab.call("Delete", doc_id=41, namespace=NAMESPACE).existed
    assert not lab.call("Query", doc_id=41).found


def test_bulk_query_reports_misses_as_not_found(lab: RunningLab) -> None:
    insert(lab, 51, 5)
    answer = lab.call("BulkQuery", doc_ids=[51, 999_999], namespace=NAMESPACE)
    assert [(result.doc_id, result.found) for result in answer.results] == [(51, True), (999_999, False)]
    assert (answer.total_found, answer.total_requested) == (1, 2)


@pytest.mark.parametrize(
    ("method", "fields", "details"),
    [
        ("Insert", {"doc_id": 0, "embedding": [1.0] * 384}, "doc_id"),
        ("Query", {"doc_id": 0}, "doc_id"),
        ("BulkQuery", {"doc_ids": [0]}, "doc_id"),
        ("Search", {"query_embedding": [1.0] * 384, "k": 0}, "k must be"),
        ("Search", {"query_embedding": [1.0] * 384, "k": 1001}, "k must be"),
        ("Search", {"query_embedding": [1.0] * 768, "k": 5}, "query dimension mismatch: expected 384 found 768"),
        ("Insert", {"doc_id": 1, "embedding": [1.0] * 512}, "query dimension mismatch: expected 384 found 512"),
        ("Health", {"component": "index"}, "unknown component"),
        ("CreateSnapshot", {"path": "/backup"}, "path must be empty"),
    ],
)
def test_invalid_arguments(lab: RunningLab, method: str, fields: dict[str, Any], details: str) -> None:
    code, message = lab.refused(method, **fields)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details in message


def test_health_and_configuration(lab: RunningLab) -> None:
    health = lab.call("Health")
    assert health.status == 1
    assert health.version == "0.1.0"
    assert set(health.components) == {"cache", "hot_tier", "cold_tier", "wal"}
    assert list(lab.call("Health", component="wal").components) == ["wal"]
    assert lab.call("GetConfig").embedding_dimension == 384
    assert lab.call("GetConfig", "image").embedding_dimension == 512


def test_metrics_count_what_was_done(lab: RunningLab) -> None:
    before = lab.call("Metrics")
    insert(lab, 61, 6)
    lab.call("Query", doc_id=61)
    after = lab.call("Metrics")
    assert after.total_inserts == before.total_inserts + 1
    assert after.total_queries == before.total_queries + 1
    assert 0 < after.p50_latency_ms <= after.p99_latency_ms


def test_a_snapshot_is_a_file_in_the_data_directory(lab: RunningLab) -> None:
    insert(lab, 71, 7)
    answer = lab.call("CreateSnapshot")
    path = Path(answer.snapshot_path)
    assert path.parent == lab.data_dir / "kyrodb_text" / "data"
    assert path.stat().st_size == answer.snapshot_size_bytes
    assert answer.documents_snapshotted >= 1


@pytest.mark.parametrize(
    "path",
    [
        "/kyrodb.KyroDB/Health",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/kyrodb.v1.KyroDBService/List",
    ],
)
def test_what_does_not_exist_is_unimplemented(lab: RunningLab, path: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{lab.ports['kyrodb_text']}") as channel:
        call: Any = channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_empty_message_is_a_health_request(lab: RunningLab) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{lab.ports['kyrodb_text']}") as channel:
        call: Any = channel.unary_unary("/kyrodb.v1.KyroDBService/Health")
        answer = call(b"", timeout=10)
    assert answer.startswith(b"\x08\x01")


def test_http_port(lab: RunningLab) -> None:
    assert lab.http("text", "/health").json["status"] == "healthy"
    assert lab.http("text", "/ready").json == {"ready": True, "status": "ready"}
    slo = lab.http("text", "/slo").json
    assert slo["slo_thresholds"]["min_samples"] == 100
    assert lab.http("text", "/usage").status == 404
    assert lab.http("text", "/nothing").status == 404
    families = {family.name for family in text_string_to_metric_families(lab.http("text", "/metrics").text)}
    assert {"kyrodb_queries", "kyrodb_query_latency_ns", "kyrodb_wal_circuit_breaker_state"} <= families


def test_two_breached_objectives_are_unhealthy_only_with_enough_samples(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        channel = grpc.insecure_channel(f"127.0.0.1:{lab.ports['kyrodb_image']}")
        with channel:
            query = lab.protocol.stub(channel, "Query")
            message = lab.protocol.messages["QueryRequest"]
            for _number in range(99):
                query(message(doc_id=12345), timeout=10)
            assert lab.http("image", "/health").json["status"] == "healthy"
            query(message(doc_id=12345), timeout=10)
            # A cache that was never hit: one breach.
            assert lab.http("image", "/slo").json["slo_breaches"]["cache_hit_rate"] is True
            assert lab.http("image", "/health").json["status"] == "degraded"
            assert lab.http("image", "/health").status == 200
        for _number in range(3):
            lab.refused("Search", "image", query_embedding=[1.0] * 384, k=1)
        answer = lab.http("image", "/health")
        assert answer.status == 503
        assert answer.json["status"] == "unhealthy"
        assert "error_rate" in answer.json["reason"]
        assert lab.http("image", "/slo").status == 200


def test_documents_survive_a_restart(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        insert(lab, 1, 1, kind="kept")
        insert(lab, 2, 2)
        lab.call("Delete", doc_id=2)
        lab.call("UpdateMetadata", doc_id=1, metadata={"more": "yes"}, merge=True)
        assert lab.restart("kyrodb-text").status == 200
        assert dict(lab.call("Query", doc_id=1).metadata) == {"kind": "kept", "more": "yes"}
        assert not lab.call("Query", doc_id=2).found
    with running_lab(tmp_path) as lab:
        assert lab.call("Query", doc_id=1).found


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        insert(lab, 1, 1)
        with (tmp_path / "kyrodb_text" / "data" / "documents.jsonl").open("a") as file:
            file.write("not what was written\n")
        message = lab.restart("kyrodb-text").json["message"]
        assert "exited with status 1" in message
        assert "recovery failed" in (tmp_path / "kyrodb_text" / "kyrodb.log").read_text()


def test_the_wrong_dimension_is_a_matter_of_configuration(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        config = tmp_path / "kyrodb_text" / "kyrodb_config.toml"
        config.write_text(config.read_text().replace("dimension = 384", "dimension = 768"))
        lab.restart("kyrodb-text")
        # Vritti's channel notices the new process by itself, and a call that came too early would count.
        eventually(lambda: lab.capture().json["detail"].endswith("expected 768 found 384"), "dimension mismatch")


def test_api_key(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--kyrodb-api-key", "kyro_lab_secret") as lab:
        assert lab.refused("Health")[0] is grpc.StatusCode.UNAUTHENTICATED
        assert lab.refused("Health", headers=(("x-api-key", "wrong"),))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert lab.call("Health", headers=(("x-api-key", "kyro_lab_secret"),)).status == 1
        assert lab.call("Health", headers=(("authorization", "Bearer kyro_lab_secret"),)).status == 1
        assert lab.http("text", "/health").status == 200
        assert lab.http("text", "/usage").status == 401
        assert lab.http("text", "/usage", {"X-API-Key": "kyro_lab_secret"}).status == 200
        assert lab.inventory["kyrodb_api_key"] == "kyro_lab_secret"
        # Vritti's client sends no key: the consequence is its exit, and the lab says so.
        assert lab.status()["processes"]["vritti"]["returncode"] == 3
        assert "never sends an API key" in lab.output


def test_tls(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--kyrodb-tls", "--vritti", "head") as lab:
        assert lab.inventory["kyrodb_tls"] is True
        ca = Path(lab.inventory["kyrodb_tls_ca"]).read_bytes()
        assert lab.call("Health", credentials=grpc.ssl_channel_credentials(ca)).status == 1
        assert lab.refused("Health", credentials=grpc.ssl_channel_credentials())[0] is grpc.StatusCode.UNAVAILABLE
        assert lab.refused("Health")[0] is grpc.StatusCode.UNAVAILABLE
        assert lab.http("text", "/health").status == 200
        assert lab.get("/health/readiness").status == 200

# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC half of an instance: kyrodb.v1.KyroDBService and nothing else, neither reflection nor grpc.health.v1."""

from __future__ import annotations

import hmac
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from lab.faults import ActiveFaults
from lab.kyrodb.protocol import SERVICE, Protocol
from lab.kyrodb.statistics import Slo, Statistics, health
from lab.kyrodb.store import DimensionMismatchError, Document, Store

VERSION = "0.1.0"
GIT_COMMIT = "23143d4"
COMPONENTS = ("cache", "hot_tier", "cold_tier", "wal")
SLOW_RPC_SECONDS = 0.18
MAX_K = 1000
MAX_DIMENSION = 4096
MAX_BULK_IDS = 10_000
# An answer and no failed call, so that the breaker does not count it.
REFUSED = "metadata rejected"
WAL_REFUSAL = "WAL inconsistent; writes disabled"
WAL_BROKEN = "unhealthy (WAL inconsistent; writes disabled)"


class Refused(Exception):
    """Ends an RPC with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass(frozen=True)
class Instance:
    """Everything that the gRPC service and the HTTP port know about one instance."""

    name: str
    store: Store
    statistics: Statistics
    faults: ActiveFaults
    api_keys: tuple[str, ...]
    protocol: Protocol
    usage: dict[str, int] = field(default_factory=dict)

    @property
    def wal_consistent(self) -> bool:
        return not self.faults.active("kyrodb-unhealthy")

    def slo(self) -> Slo:
        counters = self.store.counters
        return self.statistics.slo(counters.cache_hits, counters.cache_misses)

    def health(self) -> tuple[str, str | None]:
        return health(self.slo(), self.wal_consistent)

    def accepts(self, headers: dict[str, str]) -> bool:
        """Whether the headers carry one of the keys; without keys everybody is welcome."""
        if not self.api_keys:
            return True
        bearer = headers.get("authorization", "")
        presented = headers.get("x-api-key") or (bearer[7:] if bearer.lower().startswith("bearer ") else "")
        return any(hmac.compare_digest(presented.encode(), key.encode()) for key in self.api_keys)


class Service:
    """One method per RPC; each takes the request and returns the response or raises Refused."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._store = instance.store
        self._statistics = instance.statistics
        self._messages = instance.protocol.messages

    def insert(self, request: Any) -> Any:
        self._check_id(request.doc_id)
        response = self._messages["InsertResponse"]()
        if not self._instance.wal_consistent:
            self._statistics.count_error("wal")
            self._statistics.inserts_failed += 1
            response.error = WAL_REFUSAL
            response.total_failed = 1
            return response
        if self._refuses(request.metadata):
            response.error, response.total_failed = REFUSED, 1
            return response
        self._store.insert(request.doc_id, request.embedding, request.metadata, request.namespace)
        response.success = True
        response.inserted_at = int(time.time())
        response.tier = 1
        response.total_inserted = 1
        return response

    def delete(self, request: Any) -> Any:
        self._check_id(request.doc_id)
        existed = self._store.delete(request.doc_id, request.namespace)
        return self._messages["DeleteResponse"](success=True, existed=existed)

    def update_metadata(self, request: Any) -> Any:
        self._check_id(request.doc_id)
        if not self._instance.wal_consistent or self._refuses(request.metadata):
            error = REFUSED if self._instance.wal_consistent else WAL_REFUSAL
            return self._messages["UpdateMetadataResponse"](success=False, existed=True, error=error)
        existed = self._store.update_metadata(request.doc_id, request.metadata, request.merge, request.namespace)
        # As with Delete, to find nothing is a success.
        return self._messages["UpdateMetadataResponse"](success=True, existed=existed)

    def query(self, request: Any) -> Any:
        self._check_id(request.doc_id)
        return self._query_response(request.doc_id, request.namespace, request.include_embedding)

    def bulk_query(self, request: Any) -> Any:
        if len(request.doc_ids) > MAX_BULK_IDS:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"too many doc_ids: at most {MAX_BULK_IDS}")
        for doc_id in request.doc_ids:
            self._check_id(doc_id)
        results = [
            self._query_response(doc_id, request.namespace, request.include_embeddings) for doc_id in request.doc_ids
        ]
        return self._messages["BulkQueryResponse"](
            results=results, total_found=sum(result.found for result in results), total_requested=len(results)
        )

    def search(self, request: Any) -> Any:
        started = time.perf_counter()
        if not 1 <= request.k <= MAX_K:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"k must be between 1 and {MAX_K}")
        if not 1 <= len(request.query_embedding) <= MAX_DIMENSION:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"query_embedding must have 1 to {MAX_DIMENSION} values")
        found = self._store.search(request.query_embedding, request.k, request.min_score, request.namespace)
        path = 1 if found.from_cache else 4 if found.hot and found.cold else 2 if found.hot else 3
        response = self._messages["SearchResponse"](total_found=len(found.hits), search_path=path)
        for hit in found.hits:
            result = response.results.add(doc_id=hit.document.doc_id, score=hit.score, metadata=hit.document.metadata)
            if request.include_embeddings:
                result.embedding.extend(hit.document.embedding)
        response.search_latency_ms = (time.perf_counter() - started) * 1000
        return response

    def health(self, request: Any) -> Any:
        if request.component and request.component not in COMPONENTS:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"unknown component: {request.component}")
        states = dict.fromkeys(COMPONENTS, "healthy")
        if self._instance.slo().breaches["cache_hit_rate"]:
            states["cache"] = "degraded (hit rate below objective)"
        if not self._instance.wal_consistent:
            states["wal"] = WAL_BROKEN
        if request.component:
            states = {request.component: states[request.component]}
            status = states[request.component].split(" ")[0]
        else:
            status, _reason = self._instance.health()
        return self._messages["HealthResponse"](
            status={"healthy": 1, "degraded": 2, "unhealthy": 3}[status],
            version=VERSION,
            components=states,
            uptime_seconds=int(self._statistics.uptime),
            git_commit=GIT_COMMIT,
        )

    def metrics(self, _request: Any) -> Any:
        counters, sizes, statistics = self._store.counters, self._store.sizes(), self._statistics
        p50, p95, p99 = (value / 1e6 for value in statistics.latency_ns(0.5, 0.95, 0.99))
        hit_rate = _percentage(counters.cache_hits, counters.cache_misses)
        return self._messages["MetricsResponse"](
            cache_hits=counters.cache_hits,
            cache_misses=counters.cache_misses,
            cache_hit_rate=hit_rate,
            cache_size=sizes["cache"],
            hot_tier_hits=counters.hot_tier_hits,
            hot_tier_misses=counters.hot_tier_misses,
            hot_tier_hit_rate=_percentage(counters.hot_tier_hits, counters.hot_tier_misses),
            hot_tier_size=sizes["hot_tier"],
            hot_tier_flushes=counters.hot_tier_flushes,
            cold_tier_searches=counters.cold_tier_searches,
            cold_tier_size=sizes["cold_tier"],
            p50_latency_ms=p50,
            p95_latency_ms=p95,
            p99_latency_ms=p99,
            total_queries=statistics.queries,
            total_inserts=statistics.inserts,
            queries_per_second=statistics.per_second("query"),
            inserts_per_second=statistics.per_second("insert"),
            memory_usage_bytes=sizes["memory_bytes"],
            disk_usage_bytes=sizes["disk_bytes"],
            cpu_usage_percent=100.0 * time.process_time() / max(1.0, statistics.uptime),
            overall_hit_rate=hit_rate,
            collected_at=int(time.time()),
        )

    def create_snapshot(self, request: Any) -> Any:
        if request.path:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "path must be empty; snapshots go to the data directory")
        path, documents, size = self._store.snapshot()
        return self._messages["SnapshotResponse"](
            success=True, snapshot_path=str(path), documents_snapshotted=documents, snapshot_size_bytes=size
        )

    def get_config(self, _request: Any) -> Any:
        return self._messages["ConfigResponse"](
            data_dir=str(self._store.data_dir),
            fsync_policy="none",
            embedding_dimension=self._store.dimension,
            version=VERSION,
        )

    def _query_response(self, doc_id: int, namespace: str, include_embedding: bool) -> Any:
        document, tier = self._store.query(doc_id, namespace)
        response = self._messages["QueryResponse"](found=document is not None, doc_id=doc_id)
        if isinstance(document, Document):
            response.metadata.update(document.metadata)
            response.served_from = {"CACHE": 1, "HOT_TIER": 2, "COLD_TIER": 3}[tier]
            if include_embedding:
                response.embedding.extend(document.embedding)
        return response

    def _refuses(self, metadata: Mapping[str, str]) -> bool:
        return "reflection_root_cause" in metadata and self._instance.faults.active("reflections-refused")

    @staticmethod
    def _check_id(doc_id: int) -> None:
        if doc_id == 0:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "doc_id must be greater than 0")


def _percentage(hits: int, misses: int) -> float:
    return 100.0 * hits / (hits + misses) if hits + misses else 0.0


def _guarded(instance: Instance, method: Callable[[Any], Any], kind: str | None) -> Callable[[Any, Any], Any]:
    """Authentication, injected slowness and measurement around one RPC."""
    slow = ("kyrodb-slow", f"kyrodb-{instance.name}-slow")

    def call(request: Any) -> Any:
        if instance.faults.active(*slow):
            time.sleep(SLOW_RPC_SECONDS * random.uniform(0.95, 1.1))
        return method(request)

    def serve(request: Any, context: Any) -> Any:
        started = time.perf_counter_ns()
        if not instance.accepts(dict(context.invocation_metadata())):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or invalid API key")
        if kind is not None:
            instance.usage[kind] = instance.usage.get(kind, 0) + 1
        try:
            if kind is None:
                return call(request)
            with instance.statistics.measured(kind, started):
                return call(request)
        except Refused as refused:
            instance.statistics.count_error("validation")
            context.abort(refused.code, refused.details)
        except DimensionMismatchError as error:
            instance.statistics.count_error("validation")
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return serve


def build_server(instance: Instance, address: str, tls: tuple[Path, Path] | None) -> grpc.Server:
    """A server that listens on the address; OSError when the port is taken."""
    service = Service(instance)
    rpcs: dict[str, tuple[Callable[[Any], Any], str | None]] = {
        "Insert": (service.insert, "insert"),
        "Delete": (service.delete, None),
        "UpdateMetadata": (service.update_metadata, None),
        "Query": (service.query, "query"),
        "Search": (service.search, "query"),
        "BulkQuery": (service.bulk_query, "query"),
        "Health": (service.health, None),
        "Metrics": (service.metrics, None),
        "CreateSnapshot": (service.create_snapshot, None),
        "GetConfig": (service.get_config, None),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            _guarded(instance, method, kind),
            request_deserializer=instance.protocol.methods[name][0].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name, (method, kind) in rpcs.items()
    }
    # Without SO_REUSEPORT a second server on the port fails instead of taking half of the calls.
    server = grpc.server(ThreadPoolExecutor(max_workers=32), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            certificate, key = tls
            credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
            bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    if bound == 0:
        raise OSError(f"cannot listen on {address}")
    return server

# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP half of an instance: health, readiness, objectives, metrics and usage; always plain HTTP, GET only."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler

from lab.httpd import LoopbackServer
from lab.kyrodb.server import Instance
from lab.kyrodb.statistics import MAX_ERROR_RATE, MIN_AVAILABILITY, MIN_CACHE_HIT_RATE, MIN_SAMPLES, P99_LATENCY_NS

PROMETHEUS_TEXT = "text/plain; version=0.0.4"


def _slo_document(instance: Instance) -> dict[str, object]:
    slo = instance.slo()
    return {
        "slo_breaches": slo.breaches,
        "current_metrics": {
            "p99_latency_ns": slo.p99_latency_ns,
            "cache_hit_rate": slo.cache_hit_rate,
            "error_rate": slo.error_rate,
            "availability": slo.availability,
        },
        "slo_thresholds": {
            "p99_latency_ns": P99_LATENCY_NS,
            "min_cache_hit_rate": MIN_CACHE_HIT_RATE,
            "max_error_rate": MAX_ERROR_RATE,
            "min_availability": MIN_AVAILABILITY,
            "min_samples": MIN_SAMPLES,
        },
    }


def metrics_text(instance: Instance) -> str:
    """The instance's counters in the Prometheus text format."""
    statistics, counters, sizes = instance.statistics, instance.store.counters, instance.store.sizes()
    p50, p95, p99 = statistics.latency_ns(0.5, 0.95, 0.99)
    broken = not instance.wal_consistent
    families: list[tuple[str, str, str, list[tuple[str, float]]]] = [
        ("queries_total", "counter", "Queries served", [("", statistics.queries)]),
        ("queries_failed", "counter", "Queries that failed", [("", statistics.queries_failed)]),
        (
            "query_latency_ns",
            "gauge",
            "Query latency percentiles",
            [('{percentile="50"}', p50), ('{percentile="95"}', p95), ('{percentile="99"}', p99)],
        ),
        ("inserts_total", "counter", "Inserts served", [("", statistics.inserts)]),
        ("inserts_failed", "counter", "Inserts that failed", [("", statistics.inserts_failed)]),
        ("cache_hits_total", "counter", "Cache hits", [("", counters.cache_hits)]),
        ("cache_misses_total", "counter", "Cache misses", [("", counters.cache_misses)]),
        ("cache_size", "gauge", "Entries in the cache", [("", sizes["cache"])]),
        ("hot_tier_size", "gauge", "Documents in the hot tier", [("", sizes["hot_tier"])]),
        ("cold_tier_size", "gauge", "Documents in the cold tier", [("", sizes["cold_tier"])]),
        ("wal_writes_failed", "counter", "Failed writes to the log", [("", statistics.errors["wal"])]),
        ("wal_circuit_breaker_state", "gauge", "0 closed, 1 open, 2 half open", [("", int(broken))]),
        ("wal_disk_full_errors", "counter", "Writes that found the disk full", [("", 0)]),
        (
            "errors_total",
            "counter",
            "Errors by category",
            [(f'{{category="{name}"}}', count) for name, count in sorted(statistics.errors.items())],
        ),
        ("memory_used_bytes", "gauge", "Memory used by documents", [("", sizes["memory_bytes"])]),
        ("disk_used_bytes", "gauge", "Size of the data directory", [("", sizes["disk_bytes"])]),
        ("uptime_seconds", "gauge", "Seconds since start", [("", int(statistics.uptime))]),
        ("ready", "gauge", "Whether the instance serves", [("", int(not broken))]),
    ]
    lines = []
    for name, kind, text, samples in families:
        lines += [f"# HELP kyrodb_{name} {text}", f"# TYPE kyrodb_{name} {kind}"]
        lines += [f"kyrodb_{name}{labels} {value}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def build_http_server(instance: Instance, host: str, port: int) -> LoopbackServer:
    """An HTTP server that answers for the instance; the caller runs it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/health":
                status, reason = instance.health()
                document: dict[str, object] = {
                    "status": status,
                    "uptime_seconds": int(instance.statistics.uptime),
                }
                if reason is not None:
                    document["reason"] = reason
                self._answer_json(503 if status == "unhealthy" else 200, document)
            elif path == "/ready":
                ready = instance.wal_consistent
                self._answer_json(200 if ready else 503, {"ready": ready, "status": "ready" if ready else "not_ready"})
            elif path == "/slo":
                self._answer_json(200, _slo_document(instance))
            elif path == "/metrics":
                self._answer(200, PROMETHEUS_TEXT, metrics_text(instance).encode())
            elif path == "/usage" and instance.api_keys:
                if instance.accepts({name.lower(): value for name, value in self.headers.items()}):
                    self._answer_json(200, {"usage": instance.usage})
                else:
                    self._answer(401, "text/plain; charset=utf-8", b"unauthorized")
            else:
                self._answer(404, "text/plain; charset=utf-8", b"")

        def _refuse_method(self) -> None:
            self.close_connection = True
            self._answer(405, "text/plain; charset=utf-8", b"")

        do_POST = do_PUT = do_DELETE = do_PATCH = _refuse_method

        def _answer_json(self, status: int, document: dict[str, object]) -> None:
            self._answer(status, "application/json", json.dumps(document, separators=(",", ":")).encode())

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a line."""

    return LoopbackServer((host, port), Handler)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured, and what is promised. In memory, so a restart forgets it; the file keeps the lines."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.wp_chat import logs

_POINTS = 10_000
_FALLBACK_RATE = 0.1


@dataclass(frozen=True)
class Target:
    name: str
    target_p95_ms: int
    target_success_rate: float
    window_minutes: int = 5
    alert_threshold: float = 0.9


# Constants: the thresholds of config.yml are read by nobody, and /generate has none.
TARGETS = (Target("search", 800, 0.995), Target("ask", 1000, 0.99))


@dataclass(frozen=True)
class Point:
    timestamp: float
    endpoint: str
    latency_ms: int
    status_code: int
    # What was asked for, not what happened.
    rerank_enabled: bool
    cache_hit: bool
    fallback_used: bool
    error_message: str
    generation_metrics: dict[str, Any] | None = None

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status_code < 300


def quantile(values: Sequence[float], percent: int) -> float:
    """Python's exclusive quantiles: of few values they are above the largest."""
    if len(values) < 2:
        return float(values[0]) if values else 0.0
    cuts = statistics.quantiles(values, n=20 if percent == 95 else 100)
    return float(cuts[-1])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _share(points: Sequence[Point], name: str) -> float:
    return sum(bool(getattr(point, name)) for point in points) / len(points)


class Measurements:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=_POINTS)

    def add(self, point: Point) -> None:
        with self._lock:
            self._points.append(point)
        logs.append(logs.SLO_METRICS, asdict(point))

    def _since(self, moment: float) -> list[Point]:
        with self._lock:
            return [point for point in self._points if point.timestamp >= moment]

    def metrics(self, hours: float) -> dict[str, Any]:
        points = self._since(time.time() - hours * 3600)
        if not points:
            return {"message": "No metrics available"}
        report = {}
        for endpoint in dict.fromkeys(point.endpoint for point in points):
            own = [point for point in points if point.endpoint == endpoint]
            latencies = [point.latency_ms for point in own]
            report[endpoint] = {
                "total_requests": len(own),
                "success_rate": _share(own, "succeeded"),
                "avg_latency_ms": mean(latencies),
                "p95_latency_ms": quantile(latencies, 95),
                "p99_latency_ms": quantile(latencies, 99),
                "rerank_rate": _share(own, "rerank_enabled"),
                "cache_hit_rate": _share(own, "cache_hit"),
                "fallback_rate": _share(own, "fallback_used"),
            }
        return report

    def slo(self) -> dict[str, Any]:
        return {target.name: self._status(target) for target in TARGETS}

    def _status(self, target: Target) -> dict[str, Any]:
        end = time.time()
        start = end - target.window_minutes * 60
        points = [point for point in self._since(start) if point.endpoint == target.name]
        # Nothing to be seen is healthy.
        metrics = _window(start, end, points) if points else None
        violations = _violations(target, metrics) if metrics else []
        return {
            "target": asdict(target),
            "metrics": metrics,
            "violations": violations,
            "status": "degraded" if violations else "healthy",
        }


def _window(start: float, end: float, points: list[Point]) -> dict[str, Any]:
    latencies = [point.latency_ms for point in points]
    succeeded = sum(point.succeeded for point in points)
    return {
        "window_start": start,
        "window_end": end,
        "total_requests": len(points),
        "successful_requests": succeeded,
        "failed_requests": len(points) - succeeded,
        "p95_latency_ms": quantile(latencies, 95),
        "p99_latency_ms": quantile(latencies, 99),
        "avg_latency_ms": mean(latencies),
        "success_rate": succeeded / len(points),
        "rerank_rate": _share(points, "rerank_enabled"),
        "cache_hit_rate": _share(points, "cache_hit"),
        "fallback_rate": _share(points, "fallback_used"),
        "error_rate": (len(points) - succeeded) / len(points),
        "avg_ttft_ms": 0.0,
        "avg_token_count": 0.0,
        "citation_rate": 0.0,
    }


def _violations(target: Target, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    p95, success = metrics["p95_latency_ms"], metrics["success_rate"]
    errors, fallbacks = metrics["error_rate"], metrics["fallback_rate"]
    most_errors = (1 - target.target_success_rate) * target.alert_threshold
    found: list[dict[str, Any]] = []

    def violated(kind: str, metric: str, severity: str, message: str, **bound: float) -> None:
        what = {"type": kind, "endpoint": target.name, "metric": metric, "actual": metrics[metric]}
        found.append({**what, **bound, "severity": severity, "message": message})

    if p95 > target.target_p95_ms:
        bound = target.target_p95_ms
        message = f"p95 latency {p95}ms exceeds target {bound}ms"
        violated("latency_slo_violation", "p95_latency_ms", "warning", message, target=bound)
    if success < target.target_success_rate:
        message = f"Success rate {success:.3f} below target {target.target_success_rate}"
        violated("success_rate_slo_violation", "success_rate", "critical", message, target=target.target_success_rate)
    if errors > most_errors:
        message = f"Error rate {errors:.3f} exceeds threshold"
        violated("error_rate_threshold", "error_rate", "warning", message, threshold=most_errors)
    if fallbacks > _FALLBACK_RATE:
        message = f"Fallback rate {fallbacks:.3f} exceeds threshold"
        violated("high_fallback_rate", "fallback_rate", "warning", message, threshold=_FALLBACK_RATE)
    return found

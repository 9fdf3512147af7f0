# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance measures about itself, and the health rule that is built on it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

P99_LATENCY_NS = 50_000_000
MIN_CACHE_HIT_RATE = 0.7
MAX_ERROR_RATE = 0.001
MIN_AVAILABILITY = 0.999
MIN_SAMPLES = 100
# Percentiles of the most recent queries: few enough to sort whenever somebody asks.
WINDOW = 512


@dataclass(frozen=True)
class Slo:
    breaches: dict[str, bool]
    p99_latency_ns: int
    cache_hit_rate: float
    error_rate: float
    availability: float


class Statistics:
    """Counters and latencies of one instance."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.queries = 0
        self.queries_failed = 0
        self.inserts = 0
        self.inserts_failed = 0
        self.errors: Counter[str] = Counter()
        self._latencies: deque[int] = deque(maxlen=WINDOW)
        self._recent: deque[tuple[float, str]] = deque(maxlen=5000)
        self._lock = threading.Lock()

    @property
    def uptime(self) -> float:
        return time.monotonic() - self.started

    @contextmanager
    def measured(self, kind: str, started_ns: int) -> Iterator[None]:
        """Count one query or insert that began at the given perf_counter_ns."""
        failed = True
        try:
            yield
            failed = False
        finally:
            elapsed = time.perf_counter_ns() - started_ns
            with self._lock:
                self._recent.append((time.monotonic(), kind))
                if kind == "query":
                    self.queries += 1
                    self.queries_failed += failed
                    self._latencies.append(elapsed)
                else:
                    self.inserts += 1
                    self.inserts_failed += failed

    def count_error(self, category: str) -> None:
        with self._lock:
            self.errors[category] += 1

    def latency_ns(self, *quantiles: float) -> list[int]:
        with self._lock:
            ordered = sorted(self._latencies)
        if not ordered:
            return [0 for _number in quantiles]
        return [ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] for quantile in quantiles]

    def per_second(self, kind: str, window: float = 60.0) -> float:
        oldest = time.monotonic() - window
        with self._lock:
            count = sum(1 for moment, what in self._recent if what == kind and moment >= oldest)
        return count / max(1.0, min(window, self.uptime))

    def slo(self, cache_hits: int, cache_misses: int) -> Slo:
        lookups = cache_hits + cache_misses
        hit_rate = cache_hits / lookups if lookups else 0.0
        error_rate = self.queries_failed / self.queries if self.queries else 0.0
        availability = 1.0 - error_rate
        p99 = self.latency_ns(0.99)[0]
        enough = self.queries >= MIN_SAMPLES
        breaches = {
            "p99_latency": enough and p99 > P99_LATENCY_NS,
            "cache_hit_rate": enough and hit_rate < MIN_CACHE_HIT_RATE,
            "error_rate": enough and error_rate > MAX_ERROR_RATE,
            "availability": enough and availability < MIN_AVAILABILITY,
        }
        return Slo(breaches, p99, hit_rate, error_rate, availability)


def health(slo: Slo, wal_consistent: bool) -> tuple[str, str | None]:
    """healthy, degraded or unhealthy, and the reason for anything but healthy."""
    if not wal_consistent:
        return "unhealthy", "WAL inconsistent; writes disabled"
    breached = [name for name, is_breached in slo.breaches.items() if is_breached]
    if len(breached) > 1:
        return "unhealthy", "SLO breaches: " + ", ".join(breached)
    if breached:
        return "degraded", "SLO breach: " + breached[0]
    return "healthy", None

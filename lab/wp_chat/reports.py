# SPDX-License-Identifier: GPL-3.0-or-later
"""What /stats makes of the files of JSON lines: they survive restarts, the numbers in memory do not."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any

from lab.wp_chat import logs
from lab.wp_chat.slo import mean, quantile


def record_search(
    query: str, rerank: bool, mode: str, topk: int, latency: float, count: int, agent: str, ip: str
) -> None:
    entry = {
        "timestamp": logs.local_time(time.time()),
        "event_type": "search",
        "query": query,
        "rerank_enabled": rerank,
        "mode": mode,
        "topk": topk,
        "latency_ms": latency,
        "result_count": count,
        "user_agent": agent,
        "ip_address": ip,
    }
    logs.append(logs.AB_METRICS, entry)


def _searches(days: float | None = None) -> list[dict[str, Any]]:
    since = logs.local_time(time.time() - days * 86400) if days is not None else ""
    # ISO 8601 in one zone sorts as text.
    return [entry for entry in logs.entries(logs.AB_METRICS) if str(entry.get("timestamp", "")) >= since]


def _measured(hours: float) -> list[dict[str, Any]]:
    since = time.time() - hours * 3600
    return [entry for entry in logs.entries(logs.SLO_METRICS) if entry.get("timestamp", 0) >= since]


def ab() -> dict[str, Any]:
    entries = _searches()
    on = [entry["latency_ms"] for entry in entries if entry["rerank_enabled"]]
    off = [entry["latency_ms"] for entry in entries if not entry["rerank_enabled"]]
    return {
        "total_searches": len(entries),
        "rerank_enabled": len(on),
        "rerank_disabled": len(off),
        "avg_latency_rerank": round(mean(on), 2),
        "avg_latency_no_rerank": round(mean(off), 2),
        "avg_result_count": round(mean([entry["result_count"] for entry in entries]), 2),
        "queries": dict(Counter(entry["query"] for entry in entries if entry["query"])),
    }


def ab_summary(days: float) -> dict[str, Any]:
    entries = _searches(days)
    on = [entry for entry in entries if entry["rerank_enabled"]]
    off = [entry for entry in entries if not entry["rerank_enabled"]]

    def side(own: list[dict[str, Any]]) -> dict[str, Any]:
        latencies = [entry["latency_ms"] for entry in own]
        return {
            "total_requests": len(own),
            "avg_latency_ms": round(mean(latencies), 2),
            "p95_latency_ms": round(quantile(latencies, 95), 2),
            # The lines have no status to go by.
            "success_rate": 1.0,
            "avg_result_count": round(mean([entry["result_count"] for entry in own]), 2),
        }

    before, after = mean([entry["latency_ms"] for entry in off]), mean([entry["latency_ms"] for entry in on])
    change = round(100 * (after - before) / before, 1) if on and before else 0.0
    return {
        "period_days": days,
        "rerank_on": side(on),
        "rerank_off": side(off),
        "improvement": {"latency_change_pct": change, "success_rate_change_pct": 0.0},
        "total_requests": len(entries),
    }


def cache_summary(hours: float) -> dict[str, Any]:
    entries = _measured(hours)
    if not entries:
        return {"message": "No cache metrics available"}
    hits = sum(bool(entry["cache_hit"]) for entry in entries)
    rate = hits / len(entries)
    return {
        "period_hours": hours,
        "total_requests": len(entries),
        "cache_hits": hits,
        "cache_misses": len(entries) - hits,
        "hit_rate": rate,
        "hit_rate_pct": round(100 * rate, 2),
    }


def performance_summary(hours: float) -> dict[str, Any]:
    by_hour: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in _measured(hours):
        by_hour[int(entry["timestamp"] // 3600 * 3600)].append(entry)
    trends = []
    for hour, entries in sorted(by_hour.items()):
        latencies = [entry["latency_ms"] for entry in entries]
        trends.append(
            {
                "timestamp": hour,
                "datetime": datetime.fromtimestamp(hour).isoformat(),  # noqa: DTZ006 -- as the service writes it
                "total_requests": len(entries),
                "avg_latency_ms": mean(latencies),
                "p95_latency_ms": quantile(latencies, 95),
                "success_rate": sum(entry["status_code"] < 400 for entry in entries) / len(entries),
                "cache_hit_rate": sum(bool(entry["cache_hit"]) for entry in entries) / len(entries),
            }
        )
    return {"period_hours": hours, "trends": trends}


def dashboard(days: float, hours: float) -> dict[str, Any]:
    now = time.time()
    return {
        "timestamp": now,
        "datetime": logs.local_time(now),
        "ab_metrics": ab_summary(days),
        "cache_efficiency": cache_summary(hours),
        "performance_trends": performance_summary(hours),
        # From a file that nobody writes.
        "system_health": {
            "status": "healthy",
            "total_alerts_24h": 0,
            "critical_alerts": 0,
            "warning_alerts": 0,
            "recent_alerts": [],
        },
    }

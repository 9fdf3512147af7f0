# SPDX-License-Identifier: GPL-3.0-or-later
"""/stats and the dashboard: asked by anybody, and most of it forgotten with the process."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response

from lab.wp_chat import logs, models, reports
from lab.wp_chat.settings import VERSION
from lab.wp_chat.state import State

DASHBOARD = Path("dashboard.html")
_DEVICE = {
    "cuda_available": False,
    "mps_available": False,
    "cpu_available": True,
    "recommended_device": "cpu",
    "recommended_model": "cpu",
}
_MODELS = {
    "auto_detect": True,
    "fallback_to_cpu": True,
    "models": {
        "cpu": models.CROSS_ENCODER,
        "gpu": models.LARGE_CROSS_ENCODER,
        "fallback": models.CROSS_ENCODER,
    },
    "batch_size": 16,
    "timeout_sec": models.TIMEOUT_SECONDS,
    "device_override": None,
}

Days = Annotated[int, Query(ge=1)]
Hours = Annotated[int, Query(ge=1)]


def stats_routes(state: State) -> APIRouter:
    routes = APIRouter()

    @routes.get("/stats/health")
    def health() -> dict[str, Any]:
        # Constant: it only proves that the process answers.
        return {"status": "healthy", "timestamp": logs.local_time(time.time()), "version": VERSION}

    @routes.get("/stats/slo")
    def slo() -> dict[str, Any]:
        return state.measurements.slo()

    @routes.get("/stats/metrics")
    def metrics(hours: Hours = 24) -> dict[str, Any]:
        return state.measurements.metrics(hours)

    @routes.get("/stats/cache")
    def cache() -> dict[str, Any]:
        report = state.cache.report()
        return {**report, "enabled": state.cache.enabled} if state.settings.literal else report

    @routes.get("/stats/cache-summary")
    def cache_summary(hours: Hours = 24) -> dict[str, Any]:
        return reports.cache_summary(hours)

    @routes.get("/stats/rate-limit")
    def rate_limit() -> dict[str, Any]:
        report = state.limiter.report()
        if not state.settings.literal:
            return report
        limit = state.limiter.limit()
        return {**report, "max_requests": limit.max_requests, "window_seconds": limit.window_seconds}

    @routes.get("/stats/device")
    def device() -> dict[str, Any]:
        current = {**_MODELS, "device": "cpu", "model_name": models.CROSS_ENCODER}
        return {"device_info": _DEVICE, "model_config": _MODELS, "current_config": current}

    @routes.get("/stats/ab")
    def ab(days: Days = 7) -> dict[str, Any]:
        return reports.ab()

    @routes.get("/stats/ab-summary")
    def ab_summary(days: Days = 7) -> dict[str, Any]:
        return reports.ab_summary(days)

    @routes.get("/stats/performance-summary")
    def performance_summary(hours: Hours = 24) -> dict[str, Any]:
        return reports.performance_summary(hours)

    @routes.get("/stats/dashboard")
    def dashboard_data(days: Days = 7, hours: Hours = 24) -> dict[str, Any]:
        return reports.dashboard(days, hours)

    @routes.get("/stats/highlight")
    def highlight(query: str) -> dict[str, Any]:
        return {"query": query, "keywords": re.findall(r"\w+", query.lower())}

    @routes.get("/dashboard")
    def dashboard() -> Response:
        if not DASHBOARD.is_file():
            return JSONResponse({"error": "Dashboard file not found"}, status_code=404)
        return HTMLResponse(DASHBOARD.read_text(encoding="utf-8"))

    return routes

# SPDX-License-Identifier: GPL-3.0-or-later
"""The health endpoints' view of the service, with its blind spots."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from lab.vritti.embedding import EmbeddingService
from lab.vritti.kyrodb_client import KyroDBRouter
from lab.vritti.logs import EventLog, utc_now
from lab.vritti.settings import VERSION, Settings
from lab.vritti.storage import CustomerDatabase

_CONSECUTIVE_FAILURES = 3
_CRITICAL = ("kyrodb", "customer_database")

_log = EventLog("src.observability.health")


class HealthChecker:
    """Created by the first request that asks, which is why the uptime starts there."""

    def __init__(
        self,
        settings: Settings,
        router: KyroDBRouter,
        database: CustomerDatabase,
        embeddings: EmbeddingService,
        report_instance: Callable[[str, bool], None],
    ) -> None:
        self._settings = settings
        self._router = router
        self._database = database
        self._embeddings = embeddings
        self._report_instance = report_instance
        self._started = time.monotonic()
        self._cached: tuple[float, dict[str, Any]] | None = None
        # Not the client's breaker: this one only remembers failed checks in a row, and shows in the answer.
        self._failed_in_a_row = 0

    async def comprehensive(self) -> dict[str, Any]:
        """/health: cached for a few seconds."""
        moment = time.monotonic()
        if self._cached is not None and moment - self._cached[0] < self._settings.health_cache_ttl:
            return self._cached[1]
        components = [await self._kyrodb(), await self._customer_database(), self._embedding_service()]
        if self._settings.llm_api_key:
            components.append(self._reflection_service())
        status = self._overall(components)
        if not self._settings.is_head and any(component["status"] != "healthy" for component in components):
            # v0.1.0 knows no "unhealthy" here: two of its components always are.
            status = "degraded"
        _log.info("Comprehensive health check completed", status=status)
        answer = {
            "status": status,
            "timestamp": utc_now(),
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "version": VERSION,
            "components": components,
        }
        self._cached = (time.monotonic(), answer)
        return answer

    async def readiness(self) -> dict[str, Any]:
        """/health/readiness: never cached."""
        components = [await self._kyrodb(), await self._customer_database(), self._embedding_service()]
        status = self._overall(components)
        return {
            "status": status,
            "timestamp": utc_now(),
            "ready": status != "unhealthy",
            "components": components,
        }

    @staticmethod
    def _overall(components: list[dict[str, Any]]) -> str:
        states = {component["status"] for component in components if component["name"] in _CRITICAL}
        return next((state for state in ("unhealthy", "degraded") if state in states), "healthy")

    async def _kyrodb(self) -> dict[str, Any]:
        settings = self._settings
        started = time.perf_counter()
        text, image = await asyncio.gather(self._router.text.is_healthy(), self._router.image.is_healthy())
        latency = (time.perf_counter() - started) * 1000
        self._report_instance("text", text)
        self._report_instance("image", image)
        if not text and not image:
            status, message = "unhealthy", "Both instances unhealthy"
        elif not image:
            status, message = "degraded", "Text instance healthy, image instance unhealthy"
        elif not text:
            status, message = "degraded", "Image instance healthy, text instance unhealthy"
        elif latency >= settings.latency_error_ms:
            status = "unhealthy"
            message = _latency_message(latency, "error", settings.latency_error_ms)
        elif latency >= settings.latency_warning_ms:
            status = "degraded"
            message = _latency_message(latency, "warning", settings.latency_warning_ms)
        else:
            status, message = "healthy", "Both text and image instances healthy"
        self._failed_in_a_row = self._failed_in_a_row + 1 if status == "unhealthy" else 0
        return _component(
            "kyrodb",
            status,
            message,
            latency,
            {
                "text_healthy": text,
                "image_healthy": image,
                "latency_threshold_warning_ms": settings.latency_warning_ms,
                "latency_threshold_error_ms": settings.latency_error_ms,
                "circuit_open": self._failed_in_a_row >= _CONSECUTIVE_FAILURES,
            },
        )

    async def _customer_database(self) -> dict[str, Any]:
        started = time.perf_counter()
        if not self._settings.is_head:
            # The check of v0.1.0 forgets an await; the database itself is opened all the same.
            await asyncio.to_thread(self._database.ping)
            message = "Database check failed: 'coroutine' object does not support the context manager protocol"
            return _component("customer_database", "unhealthy", message, _since(started))
        try:
            await asyncio.to_thread(self._database.ping)
        except (sqlite3.Error, OSError) as error:
            return _component("customer_database", "unhealthy", f"Database check failed: {error}", _since(started))
        return _component("customer_database", "healthy", "Database responsive", _since(started))

    def _embedding_service(self) -> dict[str, Any]:
        started = time.perf_counter()
        text, image = self._embeddings.text_model_loaded, self._embeddings.image_model_loaded
        if not self._settings.is_head:
            # v0.1.0's check looks for attributes that the service does not have.
            text = image = False
        if text and image:
            status, message = "healthy", "All models loaded"
        elif text or image:
            status, message = "degraded", "Only one model loaded"
        else:
            status, message = "unhealthy", "No models loaded"
        metadata = {"text_model_loaded": text, "image_model_loaded": image}
        return _component("embedding_service", status, message, _since(started), metadata)

    def _reflection_service(self) -> dict[str, Any]:
        return _component("reflection_service", "healthy", "LLM API configured", 0.01, {"api_key_configured": True})


def _latency_message(latency: float, level: str, threshold: float) -> str:
    return f"Instances healthy but Latency {latency:.1f}ms exceeds {level} threshold {threshold:.1f}ms"


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _component(
    name: str, status: str, message: str, latency_ms: float, metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "message": message,
        "latency_ms": round(latency_ms, 3),
        "last_check": utc_now(),
        "metadata": metadata,
    }

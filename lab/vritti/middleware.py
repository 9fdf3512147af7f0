# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens around every request: ids, the log's events, the counters, the limit on the body."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab.faults import ActiveFaults
from lab.vritti.logs import EventLog, request_context
from lab.vritti.metrics import Metrics, endpoint_label
from lab.vritti.settings import Settings

MAX_BODY_BYTES = 10 * 1024 * 1024

_log = EventLog("src.observability.middleware")


class RequestMiddleware:
    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics | None, faults: ActiveFaults) -> None:
        self._app = app
        self._faults = faults
        self._failing_share = 0.0
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id") or str(uuid.uuid4())
        trace_id = headers.get("x-trace-id") or str(uuid.uuid4())
        method, path = scope["method"], scope["path"]
        status = 500
        started = time.perf_counter()

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                outgoing = MutableHeaders(scope=message)
                outgoing["X-Request-ID"] = request_id
                outgoing["X-Trace-ID"] = trace_id
            await send(message)

        token = request_context.set({"request_id": request_id, "trace_id": trace_id})
        endpoint = endpoint_label(path)
        client = scope.get("client")
        _log.info(
            "HTTP request started",
            method=method,
            path=path,
            query_params=scope["query_string"].decode("latin-1"),
            client_host=client[0] if client else None,
        )
        active = self._metrics.http_requests_active.labels(method, endpoint) if self._metrics else None
        if active is not None:
            active.inc()
        try:
            length = headers.get("content-length", "")
            if length.isdigit() and int(length) > MAX_BODY_BYTES:
                await _refuse_body(int(length), send_with_ids)
            else:
                if path.startswith("/api/v1/"):
                    self._fail_some()
                await self._app(scope, receive, send_with_ids)
        except Exception as error:
            self._failed(method, path, endpoint, started, error)
            raise
        else:
            self._completed(method, path, status, started)
        finally:
            if active is not None:
                active.dec()
            if self._metrics is not None:
                self._metrics.http_requests.labels(method, endpoint, str(status)).inc()
                self._metrics.http_request_duration.labels(method, endpoint, str(status)).observe(
                    time.perf_counter() - started
                )
            request_context.reset(token)

    def _fail_some(self) -> None:
        """Evenly spread, so that few requests already show the share."""
        self._failing_share += self._faults.amount("internal-errors") / 100
        if self._failing_share >= 1:
            self._failing_share -= 1
            raise RuntimeError("dictionary changed size during iteration")

    def _completed(self, method: str, path: str, status: int, started: float) -> None:
        latency = _milliseconds_since(started)
        values: dict[str, Any] = {"method": method, "path": path, "status_code": status, "latency_ms": latency}
        _log.info("HTTP request completed", **values)
        if latency >= self._settings.slow_error_ms:
            threshold = self._settings.slow_error_ms
            _log.error("Slow request detected (exceeds error threshold)", **values, threshold_ms=threshold)
        elif latency >= self._settings.slow_warning_ms:
            threshold = self._settings.slow_warning_ms
            _log.warning("Slow request detected (exceeds warning threshold)", **values, threshold_ms=threshold)

    def _failed(self, method: str, path: str, endpoint: str, started: float, error: Exception) -> None:
        _log.error(
            "HTTP request failed",
            method=method,
            path=path,
            latency_ms=_milliseconds_since(started),
            exception_type=type(error).__name__,
            error=str(error),
            exc=error,
        )
        if self._metrics is not None:
            # One exception, two increments: its class and its category. Only "internal" ever gets this far.
            self._metrics.errors.labels(type(error).__name__, endpoint).inc()
            self._metrics.errors.labels("internal", endpoint).inc()


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)


async def _refuse_body(length: int, send: Send) -> None:
    body = json.dumps(
        {
            "detail": "Request body too large",
            "max_size_bytes": MAX_BODY_BYTES,
            "received_size_bytes": length,
        }
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})

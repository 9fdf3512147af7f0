# SPDX-License-Identifier: GPL-3.0-or-later
"""The rate limit: a sliding log of each client's requests, in memory and mirrored into the cache's folder."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from fastapi import Request

from lab.wp_chat.config import Limit

_NAME = "rate_limits.json"
_HOUR = 3600
_log = logging.getLogger("wp_chat.core.rate_limit")


class LimitExceededError(Exception):
    def __init__(self, limit: Limit) -> None:
        super().__init__("Rate limit exceeded")
        # Now and the window, whenever the oldest request leaves it.
        reset = int(time.time() + limit.window_seconds)
        self.headers = {
            "X-RateLimit-Limit": str(limit.max_requests),
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": str(reset),
            "X-RateLimit-Window": str(limit.window_seconds),
        }


def client_of(request: Request) -> str:
    """Whoever the request says that it is from; only without these headers the peer."""
    forwarded = request.headers.get("X-Forwarded-For")
    if forwarded:
        return forwarded.split(",")[0].strip()
    return request.headers.get("X-Real-IP") or (request.client.host if request.client else "unknown")


class RateLimiter:
    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._lock = threading.Lock()
        # Only the literal kind has a route that sets it.
        self.adjusted: Limit | None = None
        self._requests: dict[str, list[float]] = {}
        try:
            if self._path.exists():
                self._requests = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            _log.warning("Failed to load rate limits: %s", error)

    def limit(self) -> Limit:
        return self.adjusted or Limit.read()

    def hit(self, client: str) -> None:
        """config.yml is read every time, so a change counts at once and a broken file fails the request."""
        limit = self.limit()
        if not limit.enabled:
            return
        now = time.time()
        with self._lock:
            # What has left the window is gone, also when the window is made longer afterwards.
            recent = [moment for moment in self._requests.get(client, []) if moment > now - limit.window_seconds]
            self._requests[client] = recent
            if len(recent) >= limit.max_requests:
                raise LimitExceededError(limit)
            recent.append(now)
            text = json.dumps(self._requests)
            try:
                self._path.write_text(text, encoding="utf-8")
            except OSError as error:
                _log.warning("Failed to save rate limits: %s", error)

    def report(self) -> dict[str, Any]:
        since = time.time() - _HOUR
        with self._lock:
            counts = [sum(moment > since for moment in moments) for moments in self._requests.values()]
        active = [count for count in counts if count]
        return {
            "total_clients": len(counts),
            "active_clients": len(active),
            "total_requests_last_hour": sum(active),
            "average_requests_per_client": round(sum(active) / len(active), 2) if active else 0,
        }

# SPDX-License-Identifier: GPL-3.0-or-later
"""Rate limits in memory, per customer and minute. Every tier has the limits of the smallest one."""

from __future__ import annotations

import logging
import time

PER_MINUTE = {"capture": 100, "search": 200, "reflect": 100, "skills": 50}
_WINDOW_SECONDS = 60.0

_logger = logging.getLogger("src.auth.rate_limit")


class RateLimitExceeded(Exception):
    def __init__(self, limit: int) -> None:
        super().__init__(f"Rate limit exceeded: {limit} per 1 minute")


class RateLimiter:
    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def hit(self, customer_id: str, operation: str) -> None:
        limit = PER_MINUTE[operation]
        moment = time.monotonic()
        started, count = self._windows.get((customer_id, operation), (moment, 0))
        if moment - started >= _WINDOW_SECONDS:
            started, count = moment, 0
        self._windows[customer_id, operation] = (started, count + 1)
        if count + 1 > limit:
            _logger.warning("Rate limit exceeded: customer=%s, limit=%s %d/minute", customer_id, operation, limit)
            raise RateLimitExceeded(limit)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The circuit breaker around all KyroDB calls of a process. It opens once and for all."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

FAILURE_THRESHOLD = 5
ADVERTISED_TIMEOUT_SECONDS = 60

T = TypeVar("T")

_logger = logging.getLogger("src.kyrodb.client")


class KyroDBCircuitBreakerError(Exception):
    """The breaker is open: nothing was sent."""

    def __init__(self) -> None:
        super().__init__(
            f"KyroDB temporarily unavailable (circuit breaker open). Retry after {ADVERTISED_TIMEOUT_SECONDS} seconds."
        )


class CircuitBreaker:
    """Counts failures for as long as the process lives.

    Successes do not reset the count, and there is no way back from open: that is what the service does, whatever its
    messages promise.
    """

    def __init__(self) -> None:
        self.failures = 0

    @property
    def is_open(self) -> bool:
        return self.failures >= FAILURE_THRESHOLD

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        if self.is_open:
            _logger.warning("KyroDB circuit breaker OPEN - failing fast")
            raise KyroDBCircuitBreakerError
        try:
            return await operation()
        except Exception:
            self._count_failure()
            raise

    def _count_failure(self) -> None:
        if self.is_open:
            return
        self.failures += 1
        if self.failures == FAILURE_THRESHOLD:
            _logger.error("Circuit breaker OPENED: KyroDB")

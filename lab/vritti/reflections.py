# SPDX-License-Identifier: GPL-3.0-or-later
"""Reflections about captured episodes: made by an LLM in the background, after the answer was sent.

What the service does with one that it cannot store is not imitated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from lab.faults import ActiveFaults
from lab.vritti.metrics import Metrics

TIERS = ("cheap", "cached", "premium")
_TRIES = 3
_LLM_SECONDS = 0.3
_FAILED_CALL_SECONDS = 0.1
# The real service waits up to 30 s for them when it is stopped.
_DRAIN_SECONDS = 2.0
_CONFIDENCE, _FALLBACK_CONFIDENCE = 0.8, 0.3

_logger = logging.getLogger("src.ingestion.reflection")


class ReflectionService:
    def __init__(self, faults: ActiveFaults, metrics: Metrics | None) -> None:
        self._faults = faults
        self._metrics = metrics
        self._pending: set[asyncio.Task[None]] = set()
        self.made: Counter[str] = Counter()

    def queue(self, episode_id: int, tier: str) -> None:
        task = asyncio.create_task(self._reflect(episode_id, tier))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def drain(self) -> None:
        """At the end of the process: let those finish that are being made, for a while."""
        if self._pending:
            _logger.info("Waiting for %d background reflections", len(self._pending))
            await asyncio.wait(self._pending, timeout=_DRAIN_SECONDS)

    async def _reflect(self, episode_id: int, tier: str) -> None:
        started = time.perf_counter()
        confidence = _CONFIDENCE if await self._ask_llm() else _FALLBACK_CONFIDENCE
        self.made[tier] += 1
        if self._metrics is not None:
            labels = ("single", "1")
            self._metrics.reflections_generated.labels(*labels, "true").inc()
            self._metrics.reflection_generation_duration.labels(*labels).observe(time.perf_counter() - started)
            self._metrics.reflection_consensus_confidence.labels("single").observe(confidence)
            self._metrics.reflection_cost.labels("multi-perspective").inc(0)
            self._metrics.reflection_cost_per_episode.labels("single").observe(0)
            self._metrics.reflection_persistence.labels("true").inc()
        _logger.info("Reflection generated for episode %d (confidence %.2f)", episode_id, confidence)

    async def _ask_llm(self) -> bool:
        """Whether the LLM answered. Where it does not, a heuristic stands in: no failure is counted anywhere."""
        for attempt in range(1, _TRIES + 1):
            if not self._faults.active("llm-failing"):
                await asyncio.sleep(_LLM_SECONDS)
                return True
            await asyncio.sleep(_FAILED_CALL_SECONDS)
            _logger.error("OpenRouter call failed")
            _logger.warning(
                "Cheap reflection call failed (attempt %d/%d): Error code: 503 - provider unavailable", attempt, _TRIES
            )
        return False

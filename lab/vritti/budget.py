# SPDX-License-Identifier: GPL-3.0-or-later
"""What reflections have cost today, as far as this process knows. Nothing of it outlives the process."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

from lab.vritti.metrics import Metrics

TIERS = ("cheap", "cached", "premium")
# Constants of the class; REFLECTION_MAX_COST_PER_DAY_USD is a setting that nobody reads.
WARNING_USD = 10.0
LIMIT_USD = 50.0
# What a premium reflection is said to cost, for the savings that are reported.
_PREMIUM_USD = 0.096

_logger = logging.getLogger("src.ingestion.tiered_reflection")


class Budget:
    def __init__(self, metrics: Metrics | None) -> None:
        self._metrics = metrics
        self._date = _today()
        self._daily = 0.0
        self._warned = self._limited = False
        self._cost = dict.fromkeys(TIERS, 0.0)
        self.made: Counter[str] = Counter()

    @property
    def exceeded(self) -> bool:
        return self._date == _today() and self._daily >= LIMIT_USD

    def add(self, tier: str, cost: float) -> None:
        """Book a reflection. What a threshold is crossed by is said once a day, and only then."""
        if self._date != _today():
            _logger.info("Daily cost reset: previous day spent $%.4f, starting new day %s", self._daily, _today())
            self._date, self._daily = _today(), 0.0
            self._warned = self._limited = False
        self.made[tier] += 1
        self._cost[tier] += cost
        self._daily += cost
        if self._daily >= WARNING_USD and not self._warned:
            self._warned = True
            _logger.warning(
                "COST WARNING: Daily reflection cost reached $%.2f (threshold: $%s)", self._daily, WARNING_USD
            )
            self._alert("warning")
        if self._daily >= LIMIT_USD and not self._limited:
            self._limited = True
            _logger.error(
                "COST LIMIT EXCEEDED: Daily reflection cost reached $%.2f (limit: $%s). "
                "Premium tier will be blocked until midnight UTC.",
                self._daily,
                LIMIT_USD,
            )
            self._alert("limit_exceeded")

    def _alert(self, kind: str) -> None:
        if self._metrics is not None:
            self._metrics.daily_cost_alert.labels(kind).inc()
            self._metrics.daily_cost.set(self._daily)

    def report(self, has_key: bool) -> dict[str, Any]:
        """/admin/budget."""
        return {
            **self._day(),
            "premium_tier_blocked": self._day()["limit_exceeded"],
            "cost_by_tier": dict(self._cost) if has_key else {},
            "count_by_tier": self._counts() if has_key else {},
        }

    def statistics(self, has_key: bool) -> dict[str, Any]:
        """/admin/reflection/stats: since process start, but for the day's part."""
        cost, total = sum(self._cost.values()), self.made.total()
        saved = total * _PREMIUM_USD - cost
        return {
            "total_cost_usd": cost,
            "total_reflections": total,
            "average_cost_per_reflection": cost / total if total else 0.0,
            "cost_savings_usd": saved,
            "cost_savings_percentage": 100.0 * saved / (total * _PREMIUM_USD) if total else 0.0,
            "daily_cost": self._day() if has_key else {},
            "cost_by_tier": dict(self._cost) if has_key else {},
            "count_by_tier": self._counts() if has_key else {},
            "percentage_by_tier": {tier: 100.0 * self.made[tier] / max(1, total) for tier in TIERS} if has_key else {},
        }

    def _counts(self) -> dict[str, int]:
        return {tier: self.made[tier] for tier in TIERS}

    def _day(self) -> dict[str, Any]:
        # Midnight is noticed by the next cost; what is shown in between is a new day.
        today = self._date == _today()
        daily = self._daily if today else 0.0
        return {
            "date": _today().isoformat(),
            "daily_cost_usd": daily,
            "warning_threshold_usd": WARNING_USD,
            "limit_threshold_usd": LIMIT_USD,
            "warning_triggered": today and self._warned,
            "limit_exceeded": today and self._limited,
            "budget_remaining_usd": max(0.0, LIMIT_USD - daily),
        }


def _today() -> date:
    return datetime.now(UTC).date()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of one process: what it loads when it starts, and what it forgets when it ends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lab.faults import ActiveFaults
from lab.wp_chat import logs, models
from lab.wp_chat.backups import Backups
from lab.wp_chat.cache import Cache
from lab.wp_chat.canary import Canary
from lab.wp_chat.config import Limit
from lab.wp_chat.faults import WP_CHAT
from lab.wp_chat.incidents import Incidents
from lab.wp_chat.index import Index
from lab.wp_chat.limits import RateLimiter
from lab.wp_chat.settings import Settings
from lab.wp_chat.slo import Measurements

_log = logging.getLogger("wp_chat.api.main")


class State:
    def __init__(self, settings: Settings) -> None:
        logs.configure(settings)
        self.settings = settings
        self.faults = ActiveFaults(WP_CHAT)
        Path("logs").mkdir(exist_ok=True)
        self.cache = Cache(settings.cache_dir)
        # In this order, and whatever is missing or broken ends the start.
        print(f"Loading embedding model {models.EMBEDDING}", flush=True)
        models.load(settings.models_dir, models.EMBEDDING)
        self.index = Index()
        self.reranker = models.Reranker(settings.models_dir, self.faults)
        self.limiter = RateLimiter(settings.cache_dir)
        self.canary = Canary()
        self.measurements = Measurements()
        self.incidents = Incidents(self._actions() if settings.literal else None)
        self.backups = Backups("logs/cache")
        _log.info("wp-chat API initialized")

    def _actions(self) -> dict[str, Any]:
        """What the runbook's actions do where they can be executed; the others are things of the host."""

        def disable() -> dict[str, Any]:
            self.canary.disable("incident")
            return self.canary.report()["config"]

        def stop() -> dict[str, Any]:
            self.canary.set_emergency(True, "incident")
            return self.canary.report()["config"]

        return {
            "disable_rerank": disable,
            "disable_canary": disable,
            "emergency_stop": stop,
            "emergency_stop_canary": stop,
            "check_canary_status": self.canary.report,
            "clear_cache": lambda: {"success": self.cache.clear()},
            "disable_cache": lambda: self.switch_cache(False),
            "check_rate_limits": self.limiter.report,
            "adjust_rate_limits": lambda: self.adjust_limit(10, 3600),
        }

    def switch_cache(self, enabled: bool) -> dict[str, Any]:
        self.cache.enabled = enabled
        return {"success": True, "message": f"Cache {'enabled' if enabled else 'disabled'}"}

    def adjust_limit(self, max_requests: int, window_seconds: int) -> dict[str, Any]:
        self.limiter.adjusted = Limit(True, max_requests, window_seconds)
        values = {"max_requests": max_requests, "window_seconds": window_seconds}
        return {"status": "success", "message": "Rate limit adjusted", **values}

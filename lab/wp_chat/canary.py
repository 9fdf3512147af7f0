# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets reranked answers. Every process has its own idea; the file is read when it starts."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PATH = Path("logs/canary_config.json")
_log = logging.getLogger("wp_chat.core.canary")


@dataclass
class CanaryConfig:
    enabled: bool = False
    rollout_percentage: float = 0.0
    user_seed: str = "default_seed"
    emergency_stop: bool = False
    auto_rollback_threshold: float = 0.05
    latency_threshold_ms: int = 2000
    min_requests_for_rollback: int = 100
    last_updated: float = 0.0
    updated_by: str = "system"

    def save(self, path: Path = PATH) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


class Canary:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.config = CanaryConfig()
        try:
            if PATH.exists():
                # An unknown key is as bad as broken JSON.
                self.config = CanaryConfig(**json.loads(PATH.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            _log.error("Failed to load canary config: %s", error)

    @property
    def status(self) -> str:
        if self.config.emergency_stop:
            return "emergency_stop"
        return "active" if self.config.enabled else "disabled"

    def report(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "status": self.status,
            # There is a list for them and a thread that would act on them; nothing ever fills it.
            "recent_metrics": [],
            "summary": {"message": "No recent metrics available"},
        }

    def set_rollout(self, percentage: float, updated_by: str) -> None:
        if not 0.0 <= percentage <= 1.0:
            raise ValueError("400: Percentage must be between 0.0 and 1.0")
        self._change(updated_by, enabled=percentage > 0, rollout_percentage=percentage)

    def disable(self, updated_by: str) -> None:
        self._change(updated_by, enabled=False, rollout_percentage=0.0)

    def set_emergency(self, stop: bool, updated_by: str) -> None:
        self._change(updated_by, emergency_stop=stop)

    def _change(self, updated_by: str, **values: Any) -> None:
        with self._lock:
            for name, value in values.items():
                setattr(self.config, name, value)
            self.config.last_updated = time.time()
            self.config.updated_by = updated_by
            self.config.save()

    def reranks_for(self, user_id: str) -> bool:
        if self.status != "active":
            return False
        digest = hashlib.md5(f"{user_id}:{self.config.user_seed}".encode(), usedforsecurity=False).hexdigest()
        return int(digest[:8], 16) / 0xFFFFFFFF < self.config.rollout_percentage

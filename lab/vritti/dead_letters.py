# SPDX-License-Identifier: GPL-3.0-or-later
"""The dead letter queue: a file of JSON lines with the reflections that were made and could not be stored."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.vritti.metrics import Metrics
from lab.vritti.settings import Settings

_logger = logging.getLogger("src.ingestion.capture")


class DeadLetters:
    def __init__(self, settings: Settings, metrics: Metrics | None) -> None:
        self._path = Path(settings.dead_letters_path)
        self._max_bytes = settings.dead_letters_max_bytes
        self._head = settings.is_head
        self._metrics = metrics

    def write(self, episode_id: int, customer_id: str, reflection: dict[str, Any] | None, reason: str) -> None:
        """Append a line. The path is opened anew each time, so whoever has moved the file away loses nothing."""
        entry = {
            "timestamp": datetime.now(UTC).isoformat(),
            "episode_id": episode_id,
            "customer_id": customer_id,
            "failure_reason": reason,
            "reflection": self._shown(reflection),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._head:
                self._rotate_if_due()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            _logger.error("Failed to log to dead-letter queue for episode %d: %s", episode_id, error, exc_info=True)
            return
        where = f", path: {self._path}" if self._head else ""
        _logger.warning(
            "Logged failed reflection to dead-letter queue: episode %d, reason: %s%s", episode_id, reason, where
        )
        if self._metrics is not None:
            self._metrics.reflection_dead_letter.labels(reason).inc()

    def _rotate_if_due(self) -> None:
        if not self._path.exists() or self._path.stat().st_size < self._max_bytes:
            return
        rotated = self._path.with_suffix(f".{datetime.now(UTC):%Y%m%d_%H%M%S}.log")
        self._path.rename(rotated)
        _logger.info("Rotated dead letter queue file: %s -> %s", self._path, rotated)

    @staticmethod
    def _shown(reflection: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the queue keeps of it: of a consensus its result, and not the perspectives."""
        if reflection is None:
            return None
        entry = {name: value for name, value in reflection.items() if name != "consensus"}
        if reflection["consensus"] is not None:
            consensus = reflection["consensus"]
            entry["consensus"] = {name: consensus[name] for name in ("method", "confidence", "disagreement_points")}
        return entry

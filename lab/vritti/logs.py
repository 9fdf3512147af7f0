# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's log: JSON events of some modules among plain messages of the others."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from lab.vritti.settings import VERSION, Settings

# Bound by the middleware for the time of a request; authentication adds the customer to it.
request_context: ContextVar[dict[str, str] | None] = ContextVar("request_context", default=None)

# The same in every event of a process.
_service = {"service": "episodic-memory", "version": VERSION, "environment": "development"}


def configure(settings: Settings, warned_early: bool) -> None:
    """Set up the root logger; the events' environment comes from the settings.

    A warning that is logged before the set-up installs Python's default handler on the root logger, and the set-up
    that follows leaves an existing handler alone: level WARNING, stderr, LEVEL:logger:message.
    """
    _service["environment"] = settings.environment
    if warned_early:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        for warning in settings.warnings:
            logging.getLogger("src.config").warning(warning)
    logging.basicConfig(level=settings.log_level, stream=sys.stdout, format="%(message)s")


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class EventLog:
    """Writes events as JSON lines through a standard logger."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **values: Any) -> None:
        self._log(logging.INFO, event, values)

    def warning(self, event: str, **values: Any) -> None:
        self._log(logging.WARNING, event, values)

    def error(self, event: str, **values: Any) -> None:
        self._log(logging.ERROR, event, values)

    def _log(self, level: int, event: str, values: dict[str, Any]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        exception = values.pop("exc", None)
        entry = {
            **values,
            "event": event,
            **(request_context.get() or {}),
            "level": logging.getLevelName(level).lower(),
            "logger": self._logger.name,
            "timestamp": utc_now(),
            **_service,
        }
        if exception is not None:
            entry["exception"] = "".join(traceback.format_exception(exception))
        self._logger.log(level, "%s", json.dumps(entry, default=str))

# SPDX-License-Identifier: GPL-3.0-or-later
"""What wp_chat writes: JSON lines on stdout beside bare prints and uvicorn's lines, and files of JSON lines."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.wp_chat.settings import Settings

SLO_METRICS = Path("logs/slo_metrics.jsonl")
AB_METRICS = Path("logs/ab_metrics.jsonl")
# Of the literal kind only.
API_ERRORS = Path("logs/api_errors.log")

_lock = threading.Lock()


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "timestamp": local_time(record.created, "seconds"),
            "level": record.levelname,
            "module": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(entry, ensure_ascii=False)


def local_time(moment: float, timespec: str = "microseconds") -> str:
    """As the service writes times: of this machine, and without a zone."""
    return datetime.fromtimestamp(moment).isoformat(timespec=timespec)  # noqa: DTZ006


def configure(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stdout)
    if settings.log_as_text:
        text = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
        handler.setFormatter(logging.Formatter(text, "%Y-%m-%d %H:%M:%S"))
    else:
        handler.setFormatter(_JsonFormatter())
    logger = logging.getLogger("wp_chat")
    logger.handlers = [handler]
    logger.setLevel(settings.log_level)
    logger.propagate = False


def append(path: Path, entry: dict[str, Any]) -> None:
    append_text(path, json.dumps(entry, ensure_ascii=False))


def append_text(path: Path, line: str) -> None:
    """One more line; a log that cannot be written is no reason to fail."""
    try:
        with _lock:
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    except OSError as error:
        print(f"Failed to write {path}: {error}", flush=True)


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The file's lines; what is no JSON is passed over."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry
    except OSError:
        return

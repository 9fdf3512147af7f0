# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers as files: two for each, named by a hash of the key, in a folder that the rate limits share."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from lab.wp_chat.config import CacheConfig

MAX_SIZE_MB = 100


def key_of_search(query: str) -> str:
    """The text alone: whatever else was asked for gets the first answer."""
    return "search:" + _md5(query)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Cache:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = CacheConfig.read()
        # Only the literal kind has a switch.
        self.enabled = self._config.enabled
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Any | None:
        entry, meta = self._paths(key)
        if not self.enabled or not entry.exists():
            return None
        try:
            expires = json.loads(meta.read_text(encoding="utf-8"))["expires_at"]
            if expires > time.time():
                return json.loads(entry.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        for path in (entry, meta):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                print(f"Cache delete error: {error}", flush=True)
        return None

    def set(self, key: str, value: Any) -> None:
        if not self.enabled:
            return
        entry, meta = self._paths(key)
        text, now = json.dumps(value), time.time()
        about = {"created_at": now, "expires_at": now + self._config.search_ttl, "key": key, "size": len(text)}
        try:
            entry.write_text(text, encoding="utf-8")
            meta.write_text(json.dumps(about), encoding="utf-8")
        except OSError as error:
            print(f"Cache set error: {error}", flush=True)

    def clear(self) -> bool:
        """Everything in the folder, until something cannot be removed."""
        try:
            for path in self._folder.glob("*"):
                path.unlink()
        except OSError as error:
            print(f"Cache clear error: {error}", flush=True)
            return False
        return True

    def report(self) -> dict[str, Any]:
        if not self._folder.exists():
            return {"total_entries": 0, "total_size_mb": 0, "max_size_mb": MAX_SIZE_MB, "hit_rate": 0}
        now, total, expired, size = time.time(), 0, 0, 0
        for meta in self._folder.glob("*.meta"):
            try:
                about = json.loads(meta.read_text(encoding="utf-8"))
                expired += about["expires_at"] <= now
                size += about["size"]
                total += 1
            except (OSError, ValueError, KeyError, TypeError):
                continue
        megabytes = round(size / 1024 / 1024, 2)
        return {
            "total_entries": total,
            "active_entries": total - expired,
            "expired_entries": expired,
            "total_size_mb": megabytes,
            "max_size_mb": MAX_SIZE_MB,
            "utilization_percent": round(100 * megabytes / MAX_SIZE_MB, 2),
        }

    def _paths(self, key: str) -> tuple[Path, Path]:
        name = _md5(key)
        return self._folder / f"{name}.cache", self._folder / f"{name}.meta"

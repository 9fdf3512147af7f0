# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups: archives of bare file names, and a list of them that no restart survives."""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.wp_chat import logs

DIRECTORY = Path("backups")
HISTORY = Path("logs/backup_history.jsonl")
CONFIG = Path("logs/backup_config.json")
_INDEX = ("data/index/wp.tfidf.pkl", "data/index/wp.meta.json", "data/index/wp.tfidf.npz", "data/index/wp.faiss")
_CONFIG_FILES = ("config.yml", "pricing.json")
_LOG_FILES = ("logs/slo_metrics.jsonl", "logs/ab_metrics.jsonl", "logs/incidents.jsonl", "logs/canary_config.json")
_RETENTION_DAYS = 30
_log = logging.getLogger("wp_chat.core.backup")


class BackupError(Exception):
    """What comes out as 500."""


@dataclass
class Backup:
    backup_id: str
    backup_type: str
    created_at: float
    size_bytes: int
    file_count: int
    checksum: str
    status: str
    description: str
    files: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)


class Backups:
    def __init__(self, cache_dir: str) -> None:
        self._lock = threading.Lock()
        # A mistake of its own: it looks for the cache where the cache is not.
        self._config = {
            "backup_dir": str(DIRECTORY),
            "retention_days": _RETENTION_DAYS,
            "compression": True,
            "include_paths": [*_INDEX, *_CONFIG_FILES, *_LOG_FILES],
            "cache_path": cache_dir,
        }
        self._backups: dict[str, Backup] = {}
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text(json.dumps(self._config, indent=2), encoding="utf-8")
        try:
            for line in HISTORY.read_text(encoding="utf-8").splitlines() if HISTORY.exists() else []:
                backup = Backup(**json.loads(line))
                self._backups[backup.backup_id] = backup
        except (OSError, ValueError, TypeError) as error:
            # Its own lines have a `type`, which it does not take.
            _log.error("Failed to load backup history: %s", error)

    def list(self, backup_type: str | None) -> list[dict[str, Any]]:
        found = [backup for backup in self._backups.values() if backup_type in (None, backup.backup_type)]
        return [asdict(backup) for backup in sorted(found, key=lambda each: each.created_at, reverse=True)]

    def status(self) -> dict[str, Any]:
        found = list(self._backups.values())
        verified = sum(backup.status == "verified" for backup in found)
        moments = [backup.created_at for backup in found]
        return {
            "total_backups": len(found),
            "total_size_bytes": sum(backup.size_bytes for backup in found),
            "success_rate": verified / len(found) if found else 0.0,
            "type_breakdown": dict(Counter(backup.backup_type for backup in found)),
            "oldest_backup": min(moments, default=None),
            "newest_backup": max(moments, default=None),
        }

    def create(self, backup_type: str, description: str) -> Backup:
        paths = {
            "full": (*_INDEX, *_CONFIG_FILES, *_LOG_FILES),
            "index": _INDEX,
            "config": _CONFIG_FILES,
            "incremental": (),
            "cache": (),
        }[backup_type]
        files = [path for path in paths if Path(path).is_file()]
        if not files:
            raise BackupError("No files found to backup")
        now = time.time()
        backup_id = f"backup_{int(now)}"
        archive = DIRECTORY / f"{backup_id}.tar.gz"
        DIRECTORY.mkdir(exist_ok=True)
        with tarfile.open(archive, "w:gz") as tar:
            for path in files:
                tar.add(path, arcname=Path(path).name)
        backup = Backup(
            backup_id,
            backup_type,
            now,
            archive.stat().st_size,
            len(files),
            _md5(archive),
            "verified",
            description,
            files,
            {"backup_path": str(archive), "compression": True},
        )
        with self._lock:
            self._backups[backup_id] = backup
        logs.append(HISTORY, {"type": "backup", **asdict(backup)})
        _log.info("Backup created: %s", backup_id)
        return backup

    def restore(self, backup_id: str, target_path: str | None, verify: bool) -> dict[str, Any]:
        backup = self._backups.get(backup_id)
        if backup is None:
            raise BackupError(f"Backup not found: {backup_id}")
        archive = Path(backup.metadata["backup_path"])
        if verify and _md5(archive) != backup.checksum:
            raise BackupError(f"Backup verification failed: {backup_id}")
        # Whatever is in it goes where its first file came from.
        target = Path(target_path) if target_path else Path(backup.files[0]).parent
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            names = tar.getnames()
            tar.extractall(target, filter="data")
        now = time.time()
        restore = {
            "restore_id": f"restore_{int(now)}",
            "backup_id": backup_id,
            "restored_at": now,
            "status": "success",
            "restored_files": names,
            "error_message": "",
            "verification_passed": True,
        }
        logs.append(HISTORY, {"type": "restore", **restore})
        return restore

    def delete(self, backup_id: str) -> bool:
        with self._lock:
            backup = self._backups.pop(backup_id, None)
        if backup is not None:
            Path(backup.metadata["backup_path"]).unlink(missing_ok=True)
        return backup is not None

    def cleanup(self) -> int:
        since = time.time() - _RETENTION_DAYS * 86400
        return sum(self.delete(each.backup_id) for each in list(self._backups.values()) if each.created_at < since)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

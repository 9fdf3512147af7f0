# SPDX-License-Identifier: GPL-3.0-or-later
"""What is broken in wp_chat's files, and how they become again what they were."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from lab.service import ChangeFailedError

_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_IMMUTABLE = 0x10
_INDEX = Path("data/index/wp.faiss")
_METADATA = Path("data/index/wp.meta.json")
_CONFIG = Path("config.yml")
# The headers and the first bytes of the vectors are left of a truncated index.
_LEFT = 82 + 918
_LOST_CHUNKS = 20
_STUCK = "stuck"


class Damage:
    """To the files below a home; what they were is kept in `aside`."""

    def __init__(self, home: Path, aside: Path, cache: Path, models: Path, model: str) -> None:
        self._home = home
        self._aside = aside
        self._cache = cache
        self._model = models / model
        self._how: dict[str, tuple[Callable[[], str], Callable[[], None]]] = {
            "model-gone": (self._remove_model, self._return_model),
            "index-truncated": self._of_file(_INDEX, lambda path: os.truncate(path, _LEFT)),
            "index-flipped": self._of_file(_INDEX, _flip),
            "index-missing": self._of_file(_INDEX, Path.unlink),
            "metadata-short": self._of_file(_METADATA, _shorten),
            "config-broken": self._of_file(_CONFIG, _break_config),
            "cache-unwritable": (self._close_cache, self._open_cache),
            "cache-clear-fails": (self._clog_cache, self._clear_cache),
        }

    def knows(self, name: str) -> bool:
        return name in self._how

    def do(self, name: str) -> str:
        """A sentence that says how, where there are several ways."""
        self._aside.mkdir(exist_ok=True)
        return self._how[name][0]()

    def undo(self, name: str) -> None:
        self._how[name][1]()

    def _keep(self, target: Path) -> Path:
        """Where it is kept; what is broken already would be kept broken."""
        kept = self._aside / target.name
        if kept.exists():
            raise ChangeFailedError(f"{target.name} is broken already; heal that first.")
        return kept

    def _of_file(self, path: Path, harm: Callable[[Path], object]) -> tuple[Callable[[], str], Callable[[], None]]:
        target = self._home / path

        def do() -> str:
            shutil.copy2(target, self._keep(target))
            harm(target)
            return ""

        def undo() -> None:
            os.replace(self._aside / target.name, target)

        return do, undo

    def _remove_model(self) -> str:
        os.replace(self._model, self._keep(self._model))
        return ""

    def _return_model(self) -> None:
        # Somebody may have put another one there.
        shutil.rmtree(self._model, ignore_errors=True)
        os.replace(self._aside / self._model.name, self._model)

    def _close_cache(self) -> str:
        self._cache.mkdir(parents=True, exist_ok=True)
        if set_immutable(self._cache, True):
            return "The folder has the attribute i (chattr +i)."
        shutil.rmtree(self._cache)
        self._cache.write_text("", encoding="utf-8")
        return "The attribute i cannot be set here, so a file is where the folder was."

    def _open_cache(self) -> None:
        release(self._cache)
        if not self._cache.is_dir():
            self._cache.unlink(missing_ok=True)
            self._cache.mkdir(parents=True)

    def _clog_cache(self) -> str:
        (self._cache / _STUCK).mkdir(parents=True, exist_ok=True)
        (self._cache / _STUCK / "note.txt").write_text("left by a copy that was cut short\n", encoding="utf-8")
        return ""

    def _clear_cache(self) -> None:
        shutil.rmtree(self._cache / _STUCK, ignore_errors=True)


def set_immutable(folder: Path, immutable: bool) -> bool:
    """Whether that worked: it takes a capability, and a file system that has the attribute."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        flags = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, struct.pack("l", 0)))[0]
        flags = flags | _IMMUTABLE if immutable else flags & ~_IMMUTABLE
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def release(folder: Path) -> None:
    """Nobody could remove the folder while it has the attribute."""
    if folder.is_dir():
        set_immutable(folder, False)


def _flip(path: Path) -> None:
    """One bit in the middle of the vectors; neither size nor time show it."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x01]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _shorten(path: Path) -> None:
    chunks = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(chunks[:-_LOST_CHUNKS], ensure_ascii=False), encoding="utf-8")


def _break_config(path: Path) -> None:
    """What an edit in a hurry leaves: a bracket that is not closed."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("rate_limit:", "rate_limit: [", 1), encoding="utf-8")

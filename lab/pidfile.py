# SPDX-License-Identifier: GPL-3.0-or-later
"""The PID files of the stand-ins: each writes its own, so that it can be found whoever has started it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

VARIABLE = "LAB_PID_FILE"
_PR_SET_PDEATHSIG = 1

_prctl: Any
try:
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError):
    # Not Linux: a process is ended by whoever stops it, not by the death of its parent.
    _prctl = None


def die_with_parent() -> None:
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main_pid() -> int:
    """The PID of the service that this process is, or is a worker of."""
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def claim() -> None:
    """Write the PID file, unless a service that runs has one there: whoever is second will not get the port either."""
    if multiprocessing.parent_process() is not None:
        die_with_parent()
    path = os.environ.get(VARIABLE)
    if not path or holder(Path(path)) is not None:
        return
    fresh = Path(f"{path}.{os.getpid()}")
    fresh.write_text(f"{main_pid()}\n", encoding="ascii")
    os.replace(fresh, path)


def release() -> None:
    """Remove the PID file at an orderly end; a worker's end is not the service's."""
    path = os.environ.get(VARIABLE)
    if path and multiprocessing.parent_process() is None and holder(Path(path)) == os.getpid():
        Path(path).unlink(missing_ok=True)


def holder(path: Path) -> int | None:
    """The process that the file names, if it runs and is the one that this file belongs to: PIDs are used again."""
    try:
        pid = int(path.read_text(encoding="ascii"))
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if f"{VARIABLE}={path}".encode() in environment else None


def state(pid: int) -> str:
    """The kernel's letter for what a process does, T for a stopped one; empty where it cannot be seen."""
    return _stat(pid)[0]


def family(pid: int) -> list[int]:
    """The process and its children."""
    try:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        pids = []
    return [pid, *(other for other in pids if _stat(other)[1] == pid)]


def end(path: Path, seconds: float) -> None:
    """End the process that holds the file: asked first, then made to. A suspended one cannot be asked."""
    pid = holder(path)
    if pid is not None and state(pid) != "T":
        send([pid], signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while holder(path) == pid and time.monotonic() < deadline:
            time.sleep(0.02)
    if pid is not None and holder(path) == pid:
        send([pid], signal.SIGKILL)
        while holder(path) == pid:
            time.sleep(0.02)
    path.unlink(missing_ok=True)


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _stat(pid: int) -> tuple[str, int]:
    """A process's state and its parent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0
    words = text.rpartition(")")[2].split()
    return words[0], int(words[1])

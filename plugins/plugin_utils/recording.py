# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine writes into the timeline, and who it says that it is."""

from __future__ import annotations

import getpass
import os
import socket
import typing as t
from datetime import UTC, datetime

from ansible_collections.oncall.runbooks.plugins.module_utils import timeline


def user() -> str:
    """Who runs this: the person behind sudo, where there is one."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def owner() -> dict[str, t.Any]:
    """This run, so that another can tell whether it still lives: the process of ansible-playbook and its start."""
    pid = os.getpid()
    # Tasks run in processes of their own below it.
    while (above := _parent(pid)) and _program(above) == _program(os.getpid()):
        pid = above
    return {"user": user(), "controller": socket.gethostname(), "pid": pid, "started": _started(pid), **_machine()}


def dead(held: t.Mapping[str, t.Any] | None) -> bool:
    """Whether the owner of a lock ran on this controller and is gone. Of another controller nothing is known."""
    here = {"controller": socket.gethostname(), **_machine()}
    if not held or any(held.get(key) != value for key, value in here.items()):
        return False
    return _started(int(held.get("pid") or 0)) != held.get("started")


def _machine() -> dict[str, str | None]:
    """Where a PID means this process and no other: machines share names, and containers the boot of their host."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return {"boot": file.read().strip(), "pids": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": None, "pids": None}


def _stat(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int | None:
    words = _stat(pid)
    return int(words[1]) if words and int(words[1]) > 1 else None


def _started(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; None when it is gone, or is there only to be waited for."""
    words = _stat(pid)
    return words[19] if words and words[0] not in "ZX" else None


def _program(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def entry(event: str, runbook: str, host: str | None, **values: t.Any) -> dict[str, t.Any]:
    """One line of the timeline, without its chain."""
    return {
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "who": f"{user()}@{socket.gethostname()}",
        "event": event,
        "runbook": runbook,
        "host": host,
        **{key: value for key, value in values.items() if value is not None},
    }


def append(folder: str | None, key_file: str | None, *entries: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Write them, and tell where, and the last link of the chain."""
    if not folder or not entries:
        return {}
    path = os.path.join(os.path.abspath(os.path.expanduser(folder)), "timeline.jsonl")
    key = timeline.load_key(os.path.expanduser(key_file) if key_file else None, os.environ)
    added = timeline.append(path, entries, key)
    return {"path": path, "last": added.last, "keyed": key is not None, "lines": added.texts}

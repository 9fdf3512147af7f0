# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe process: what listens on a port or belongs to a unit, its memory, CPU, files, start, devices and deployment."""

from __future__ import annotations

import glob
import os
import re
import time
import typing as t
from datetime import datetime, timezone

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

GPU_NODES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri/render*")
GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render")

SPEC: dict[str, t.Any] = {
    "port": {"type": "int"},
    "unit": {"type": "str"},
    "value": {
        "type": "str",
        "choices": ["running", "age", "memory", "cpu", "open_files", "connections", "gpu"],
        "default": "running",
    },
    "checkout": {"type": "path"},
    "files": {"type": "list", "elements": "path", "default": []},
}
RULES: dict[str, t.Any] = {"required_one_of": [("port", "unit")], "mutually_exclusive": [("port", "unit")]}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    if source["port"] is not None and not 0 < source["port"] < 65536:
        raise ValueError(f"port is {source['port']}; it goes from 1 to 65535")
    if source["value"] == "connections" and source["port"] is None:
        raise ValueError("connections are counted by port; give port")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    return f"process {_subject(source)} {source['value']}"


def _subject(source: t.Mapping[str, t.Any]) -> str:
    return f"unit {source['unit']}" if source["unit"] else f"port {source['port']}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Find the processes once, and give the value that was asked for."""
    kind = source["value"]
    if kind == "gpu" and not (nodes := [path for prefix in GPU_NODES for path in glob.glob(prefix)]):
        return {"value": False, "evidence": {"devices": nodes}, "note": "this host has no GPU"}
    if kind == "connections":
        if not procfs.sockets(source["port"], procfs.LISTEN):
            raise NoAnswer(f"Nothing listens on port {source['port']} of this host.", "no data")
        return {"value": len(procfs.sockets(source["port"], procfs.ESTABLISHED)), "evidence": {"port": source["port"]}}
    found = context.once(
        ("process", source["port"], source["unit"]),
        lambda: procfs.unit_pids(source["unit"]) if source["unit"] else procfs.listeners(source["port"]),
    )
    if not found:
        if kind == "running":
            return {
                "value": False,
                "evidence": {},
                "note": f"nothing listens on port {source['port']}"
                if source["port"]
                else f"{source['unit']} has no process",
            }
        raise NoAnswer(f"There is no process for {_subject(source)}.", "no data")
    try:
        return _measure(context, source, kind, found)
    except PermissionError as error:
        raise NoAnswer(
            f"{error.filename} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise NoAnswer(f"The process for {_subject(source)} ended while it was looked at.", "no data") from None


def _measure(context: Context, source: t.Mapping[str, t.Any], kind: str, found: list[int]) -> dict[str, t.Any]:
    main = found[0]
    began = procfs.started(main)
    evidence: dict[str, t.Any] = {
        "pid": main,
        "processes": len(found),
        "program": procfs.name(main),
        "started_at": _utc(began),
    }
    note = None
    value: t.Any
    if kind == "running":
        value = True
    elif kind == "age":
        value = time.time() - began
        evidence.update(_deployment(source))
    elif kind == "memory":
        value = sum(procfs.resident_bytes(pid) for pid in found)
    elif kind == "cpu":
        value, note = _cpu(context, found)
    elif kind == "open_files":
        value, evidence["limit"] = procfs.open_files(main)
    else:
        held = sorted({device for pid in found for device in procfs.devices(pid, GPU_DEVICES)})
        value = bool(held)
        evidence["devices"] = held
    return {"value": value, "evidence": evidence, "note": note}


def _cpu(context: Context, found: list[int]) -> tuple[float, str | None]:
    """Percent of one core."""
    first, second, between = context.pair(("cpu", tuple(found)), lambda: sum(procfs.cpu_seconds(pid) for pid in found))
    if second is not None:
        return 100 * (second - first) / between, None
    return 100 * first / max(
        0.01, time.time() - procfs.started(found[0])
    ), "average since process start, without a sample time"


def _deployment(source: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What may have changed: the checkout's commit and when the configuration was written."""
    facts: dict[str, t.Any] = {}
    if source["checkout"]:
        facts["commit"] = _commit(source["checkout"])
    times = {}
    for path in source["files"]:
        try:
            times[path] = _utc(os.stat(path).st_mtime)
        except OSError as error:
            times[path] = (error.strerror or "cannot be read").lower()
    if times:
        facts["files"] = times
    return facts


def _commit(checkout: str) -> str | None:
    """The commit that HEAD names, read from the files: git itself may refresh the index, which is a write."""
    folder = os.path.join(checkout, ".git")
    try:
        if os.path.isfile(folder):
            folder = os.path.join(checkout, procfs.read(folder).partition("gitdir:")[2].strip())
        head = procfs.read(os.path.join(folder, "HEAD")).strip()
        if not head.startswith("ref:"):
            return head[:40]
        ref = head[4:].strip()
        # A worktree keeps its HEAD to itself and shares the branches.
        shared = folder
        if os.path.isfile(os.path.join(folder, "commondir")):
            shared = os.path.join(folder, procfs.read(os.path.join(folder, "commondir")).strip())
        loose = os.path.join(shared, ref)
        if os.path.isfile(loose):
            return procfs.read(loose).strip()[:40]
        packed = re.search(
            rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", procfs.read(os.path.join(shared, "packed-refs")), re.MULTILINE
        )
        return packed[1] if packed else None
    except OSError:
        return None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

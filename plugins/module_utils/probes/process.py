# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe process: what listens on a port or belongs to a unit, its memory, CPU, files, start, devices and deployment."""

from __future__ import annotations

import glob
import os
import re
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

GPU_NODES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri/render*")
GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render")
# The letters of proc(5), the one that wants a look first before the others.
STATES = {
    "Z": "zombie",
    "X": "dead",
    "T": "stopped",
    "t": "traced",
    "D": "waiting for a device",
    "R": "running",
    "S": "sleeping",
    "I": "idle",
}
TOP = 5
# Of a younger process the average since its start is that of its start.
LEAST_AGE = 120.0

SPEC: dict[str, t.Any] = {
    "port": {"type": "int"},
    "unit": {"type": "str"},
    "value": {
        "type": "str",
        "choices": [
            "running",
            "age",
            "state",
            "memory",
            "memory_share",
            "memory_growth",
            "mapped_share",
            "cpu",
            "threads",
            "open_files",
            "open_files_share",
            "connections",
            "gpu",
        ],
        "default": "running",
    },
    "window": {"type": "float"},
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
    if source["window"] is not None and source["window"] <= 0:
        raise ValueError(f"window is {source['window']}; it is a number of seconds above 0")


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
    try:
        found = context.once(
            ("process", source["port"], source["unit"]),
            lambda: procfs.unit_pids(source["unit"]) if source["unit"] else procfs.listeners(source["port"]),
        )
    except NoAnswer as error:
        if kind != "running" or error.kind != "permission":
            raise
        # That somebody listens may be seen by everybody.
        return {"value": True, "evidence": {"port": source["port"]}, "note": str(error)}
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
        "started_at": clock.utc(began),
    }
    note = None
    samples: float | None = None
    value: t.Any
    if kind == "running":
        value = True
    elif kind == "age":
        value = time.time() - began
        evidence.update(_deployment(source))
    elif kind == "memory":
        value = procfs.memory_bytes(found)
    elif kind == "memory_share":
        value, note = _memory_share(found, evidence)
    elif kind == "memory_growth":
        value, samples = _memory_growth(context, source, found, evidence)
    elif kind == "mapped_share":
        value, note = _mapped_share(found, evidence)
    elif kind == "state":
        value = _state(found, evidence)
    elif kind == "threads":
        value = sum(int(procfs.status(pid)["Threads"]) for pid in found)
    elif kind == "cpu":
        value, note = _cpu(context, found)
    elif kind == "open_files":
        value, limit = procfs.open_files(main)
        evidence.update(limit=limit, share=round(value / limit, 4) if limit else None)
    elif kind == "open_files_share":
        value, note = _open_files_share(found, evidence)
    else:
        held = sorted({device for pid in found for device in procfs.devices(pid, GPU_DEVICES)})
        value = bool(held)
        evidence["devices"] = held
    return {"value": value, "samples": samples, "evidence": evidence, "note": note}


def _memory_share(found: list[int], evidence: dict[str, t.Any]) -> tuple[float, str | None]:
    """Of the memory limit of their control group where it is lower than the host's memory."""
    resident = procfs.memory_bytes(found)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = procfs.memory_limit(procfs.memory_groups(found[0]))
    evidence.update(rss=resident, total=total, limit=limit)
    if limit and limit < total:
        return resident / limit, "of the memory limit of its control group"
    return resident / total, None


def _memory_growth(
    context: Context, source: t.Mapping[str, t.Any], found: list[int], evidence: dict[str, t.Any]
) -> tuple[float, float]:
    """Bytes per second between two reads, and the seconds between them."""
    window = min(source["window"] or context.sample_seconds, context.sample_seconds)
    if window <= 0:
        raise NoAnswer("Growth of memory needs two reads; set runbook_sample_seconds above 0.", "no data")

    def measure() -> tuple[int, int, float]:
        began = time.monotonic()
        before = sum(procfs.resident_bytes(pid) for pid in found)
        time.sleep(window)
        after = sum(procfs.resident_bytes(pid) for pid in found)
        return before, after, time.monotonic() - began

    before, after, seconds = context.once(("growth", tuple(found), window), measure)
    evidence.update(rss=after, rss_before=before, seconds=round(seconds, 1))
    return (after - before) / seconds, seconds


def _mapped_share(found: list[int], evidence: dict[str, t.Any]) -> tuple[float, str | None]:
    """How much of the resident memory is files, such as a model that is mapped, and which are the largest."""
    rows = []
    for pid in found:
        facts = procfs.status(pid)
        # A process that has ended but for its entry has no memory.
        rows.append((_kib(facts.get("VmRSS")), _kib(facts.get("RssFile")), pid))
    resident = sum(row[0] for row in rows)
    mapped = sum(row[1] for row in rows)
    evidence.update(rss=resident, mapped=mapped)
    if not resident:
        raise NoAnswer("The process has no memory.", "no data")
    try:
        sizes: dict[str, int] = {}
        path = ""
        for line in procfs.read(f"/proc/{max(rows)[2]}/smaps").splitlines():
            header = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)", line)
            if header:
                path = header[1]
            elif line.startswith("Rss:") and path.startswith("/"):
                sizes[path] = sizes.get(path, 0) + _kib(line.partition(":")[2])
        largest = sorted(sizes.items(), key=lambda item: item[1], reverse=True)[:TOP]
        evidence["largest"] = [{"path": name, "rss": size} for name, size in largest]
    except PermissionError:
        return mapped / resident, f"which files may not be seen by {procfs.user(os.geteuid())}; run with -b"
    return mapped / resident, None


def _kib(text: str | None) -> int:
    return int(text.split()[0]) * 1024 if text else 0


def _state(found: list[int], evidence: dict[str, t.Any]) -> str:
    """That of the process that is worst off."""
    letters = {pid: procfs.state(pid) or "X" for pid in found}
    order = list(STATES)
    worst = min(found, key=lambda pid: order.index(letters[pid]) if letters[pid] in order else len(order))
    evidence.update(pid=worst, program=procfs.name(worst))
    return STATES.get(letters[worst], letters[worst])


def _open_files_share(found: list[int], evidence: dict[str, t.Any]) -> tuple[float, str | None]:
    """Of the limit, of the process that is nearest to its own."""
    rows = []
    for pid in found:
        count, limit = procfs.open_files(pid)
        rows.append((count / limit if limit else 0.0, count, limit or 0, pid))
    share, count, limit, pid = max(rows)
    evidence.update(pid=pid, open_files=count, limit=limit or None)
    return share, None if limit else "there is no limit"


def _cpu(context: Context, found: list[int]) -> tuple[float, str | None]:
    """Percent of one core, of the busiest process: one that hangs in a loop is not hidden by its idle peers."""
    first, second, between = context.pair(("cpu", tuple(found)), lambda: list(map(procfs.cpu_seconds, found)))
    if second is not None:
        return 100 * max(now - before for before, now in zip(first, second)) / between, None
    age = min(time.time() - procfs.started(pid) for pid in found)
    if age < LEAST_AGE:
        raise NoAnswer(
            f"It runs for {age:.0f} s, in which it was busy starting; set runbook_sample_seconds above 0.", "no data"
        )
    shares = [100 * used / max(0.01, time.time() - procfs.started(pid)) for pid, used in zip(found, first)]
    return max(shares), "average since process start, without a sample time"


def _deployment(source: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What may have changed: the checkout's commit and when the configuration was written."""
    facts: dict[str, t.Any] = {}
    if source["checkout"]:
        facts["commit"] = _commit(source["checkout"])
    times = {}
    for path in source["files"]:
        try:
            times[path] = clock.utc(os.stat(path).st_mtime)
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

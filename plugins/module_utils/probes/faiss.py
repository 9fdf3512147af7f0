# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe faiss: is an index sound, is it what was backed up, and what would restoring a backup do."""

from __future__ import annotations

import os
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import (
    clock,
    faiss_backups,
    faiss_index,
    faiss_restoring,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.faiss_index import TimeUp
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context, absolute

VALUES = ("state", "sound", "ntotal", "checksum", "backup_age", "restore")
_SHOWN = 5

SPEC: dict[str, t.Any] = {
    "path": {"type": "str", "required": True},
    "port": {"type": "int"},
    "name": {"type": "str", "default": "wp"},
    "dimension": {"type": "int", "default": 384},
    "tfidf": {"type": "bool", "default": True},
    "depth": {"type": "str", "default": "quick", "choices": list(faiss_index.DEPTHS)},
    "python": {"type": "str", "default": ""},
    "load_pickle": {"type": "bool", "default": False},
    "memory_limit": {"type": "int"},
    "backups": {"type": "str", "default": "backups"},
    "history": {"type": "str", "default": faiss_backups.HISTORY},
    "backup": {"type": "str", "default": faiss_restoring.LATEST},
    "value": {"type": "str", "default": "state", "choices": list(VALUES)},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    faiss_index.names(source["name"])
    if source["dimension"] < 1:
        raise ValueError(f"dimension is {source['dimension']}; it is that of the vectors, such as 384")
    if source["load_pickle"] and source["depth"] != "full":
        raise ValueError(f"load_pickle goes with the depth full, and depth is {source['depth']}")
    if source["memory_limit"] is not None and source["memory_limit"] < 1:
        raise ValueError(f"memory_limit is {source['memory_limit']}; it is a number of bytes")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    name = f"{source['path']}/{source['name']}"
    if source["value"] == "backup_age":
        return f"backups of {source['name']}.faiss in {source['backups']}"
    if source["value"] == "restore":
        return f"restore of {source['backup']} over {name}.*"
    return f"faiss {name}.*" + (f" against {source['backups']}" if source["value"] == "checksum" else "")


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """One value; what several checks want of one index is looked at once."""
    value = source["value"]
    try:
        if value == "backup_age":
            return _backup_age(context, source)
        path = absolute(context, source["path"], source["port"])
        if value == "checksum":
            return _checksum(context, source, path)
        if value == "restore":
            return _restore(context, source, path)
        return _state(_seen(context, source, path), value)
    except TimeUp:
        raise NoAnswer(
            f"{describe(source)} did not end within {context.timeout:g} s; allow more time.", "timeout"
        ) from None


def _seen(context: Context, source: t.Mapping[str, t.Any], path: str, depth: str | None = None) -> faiss_index.Seen:
    depth = depth or source["depth"]
    python = source["python"]
    if python and os.sep in python:
        python = absolute(context, python, source["port"])
    options = (source["name"], source["dimension"], depth)
    more = {
        "tfidf": source["tfidf"],
        "python": python,
        "load_pickle": source["load_pickle"] and depth == "full",
        "memory_limit": source["memory_limit"],
        "timeout": context.timeout,
    }
    key = ("faiss", path, *options, *(more.items() if depth == "full" else [source["tfidf"]]))
    return context.once(key, lambda: faiss_index.look(path, *options, **more))


def _state(seen: faiss_index.Seen, value: str) -> dict[str, t.Any]:
    evidence = {key: seen[key] for key in seen if key not in (*faiss_index.PRIVATE, "state", "name")}
    said = [*seen["errors"], *seen["limits"]]
    if value == "ntotal":
        if seen["ntotal"] is None:
            raise NoAnswer(said[0] if said else f"{seen['path']} does not say how many vectors it has.", "no data")
        return {"value": seen["ntotal"], "evidence": evidence}
    if seen["state"] in ("unknown", "unknown_type"):
        raise NoAnswer(f"{seen['path']} cannot be judged: {'; '.join(said).rstrip('.')}.", "no data")
    note = "; ".join(one.rstrip(".") for one in said)
    if value == "sound":
        # What needs the index, such as a restart, requires this.
        why = None if seen["state"] == "ok" else f"the index {seen['path']} is {seen['state']}: {note}"
        return {"value": seen["state"] == "ok", "evidence": evidence, "note": why}
    return {"value": seen["state"], "evidence": evidence, "note": note}


def _found(context: Context, source: t.Mapping[str, t.Any]) -> tuple[str, list[faiss_backups.Backup]]:
    folder, history = (absolute(context, source[key], source["port"]) for key in ("backups", "history"))
    name = source["name"]
    key = ("faiss backups", folder, history, name)
    return folder, context.once(key, lambda: faiss_backups.candidates(folder, name, history))


def _checksum(context: Context, source: t.Mapping[str, t.Any], path: str) -> dict[str, t.Any]:
    _folder, found = _found(context, source)
    if found and not os.path.isdir(path):
        raise NoAnswer(f"{path} does not exist, so there is nothing to compare.", "no data")
    seen = _seen(context, source, path, "quick") if found else faiss_index.nothing(path, source["name"])
    until = faiss_index.Clock(context.timeout)
    try:
        if not found:
            raise Absent(f"there is no backup of {path} to compare it with; take one (faiss_backup)")
        verdict = faiss_backups.compare(
            path, source["name"], source["dimension"], found, tfidf=source["tfidf"], until=until, seen=seen
        )
    except Refused as error:
        raise NoAnswer(str(error), "no data") from None
    evidence = {
        "path": path,
        "checksum": verdict.value,
        "backup": verdict.backup and verdict.backup.path,
        "taken_at": verdict.backup and clock.utc(verdict.backup.taken_at),
        "differences": [it.told() for it in verdict.differences],
        "passed_over": verdict.passed_over,
    }
    # What was built anew is not held against what was there before.
    value = None if verdict.value == "rebuilt" else verdict.value
    return {"value": value, "evidence": evidence, "note": verdict.sentence}


def _backup_age(context: Context, source: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    folder, found = _found(context, source)
    name = source["name"]
    if not found:
        raise Absent(f"{folder} has no backup of {name}.faiss; take one (faiss_backup)")
    until = faiss_index.Clock(context.timeout)
    got, passed_over = faiss_backups.latest_verified(
        found, name, source["dimension"], tfidf=source["tfidf"], until=until
    )
    if got is None:
        raise NoAnswer(
            f"{folder} has no backup of {name}.faiss that can be trusted: {' '.join(passed_over)}", "no data"
        )
    evidence = {
        "backup": got.backup.path,
        "taken_at": clock.utc(got.backup.taken_at),
        "ntotal": got.seen["ntotal"],
        "manifest": got.backup.manifest is not None,
        "passed_over": passed_over,
        "backups": [backup.id for backup in found[:_SHOWN]],
    }
    return {
        "value": max(0.0, time.time() - got.backup.taken_at),
        "evidence": evidence,
        "note": "; ".join(one.rstrip(".") for one in passed_over),
    }


def _restore(context: Context, source: t.Mapping[str, t.Any], path: str) -> dict[str, t.Any]:
    """What restoring would do, as the module faiss_restore tells it in check mode."""
    folder, history = (absolute(context, source[key], source["port"]) for key in ("backups", "history"))
    options = faiss_restoring.Options(
        path,
        source["name"],
        source["dimension"],
        source["backup"],
        folder,
        history,
        tfidf=source["tfidf"],
        timeout=context.timeout,
    )
    try:
        told = faiss_restoring.restore(options, check=True, seen=_seen(context, source, path, "quick"))
    except Refused as error:
        raise NoAnswer(str(error), "no data") from None
    # In a finding, `changed` is what is new since the last one.
    evidence = {key: value for key, value in told.items() if key != "changed"}
    return {"value": faiss_restoring.in_words(told), "evidence": evidence}

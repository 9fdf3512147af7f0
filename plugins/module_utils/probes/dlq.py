# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe dlq: how many dead letters there are, of which reason and whose, how old, and whether there come more."""

from __future__ import annotations

import os
import sqlite3
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letters, procfs, sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context, absolute

VALUES = ("entries", "torn", "age", "recent", "growth", "unknown_customers")
_SHOWN = 10
_LAST = 5

SPEC: dict[str, t.Any] = {
    "path": {"type": "str", "required": True},
    "port": {"type": "int"},
    "value": {"type": "str", "default": "entries", "choices": list(VALUES)},
    "customer": {"type": "str"},
    "reason": {"type": "str"},
    "window": {"type": "float", "default": 3600.0},
    "customers_db": {"type": "str"},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    if source["value"] != "entries" and (source["customer"] or source["reason"]):
        raise ValueError("customer and reason are for the value entries; leave them out")
    if source["value"] == "unknown_customers" and not source["customers_db"]:
        raise ValueError("value is unknown_customers, which takes customers_db")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    of = "".join(f" of {source[key]}" for key in ("customer", "reason") if source[key])
    return f"dead letters{of} in {source['path']}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """One value; the queue is counted once for all of them."""
    path, value = absolute(context, source["path"], source["port"]), source["value"]
    try:
        if value == "growth":
            return _growth(context, path)
        if value == "recent":
            return _recent(path, source["window"])
        counted = context.once(("dlq", path), lambda: dead_letters.tally(dead_letters.files_of(path)))
        evidence = {"files": dead_letters.files_of(path), **_evidence(counted)}
    except PermissionError as error:
        raise NoAnswer(
            f"{error.filename or path} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission"
        ) from None
    except OSError as error:
        raise NoAnswer(f"{error.filename or path} cannot be read ({error.strerror}).") from None
    if value == "age":
        if counted.oldest is None:
            raise Absent("the dead letter queue is empty")
        oldest = dead_letters.moment_of({"timestamp": counted.oldest})
        return {"value": max(0.0, time.time() - oldest.timestamp()) if oldest else None, "evidence": evidence}
    if value == "torn":
        return {"value": counted.torn + counted.foreign, "evidence": evidence}
    if value == "unknown_customers":
        unknown = _unknown_customers(context, absolute(context, source["customers_db"], source["port"]), counted)
        return {"value": len(unknown), "evidence": {"unknown": unknown[:_SHOWN]}}
    if source["customer"] or source["reason"]:
        return {"value": counted.count_of(source["customer"], source["reason"]), "evidence": evidence}
    evidence["last"] = dead_letters.last(path, _LAST)
    return {"value": counted.entries, "evidence": evidence, "note": _misleading(path, counted)}


def _evidence(counted: dead_letters.Tally) -> dict[str, t.Any]:
    return {
        "by_reason": dict(list(counted.by_reason.items())[:_SHOWN]),
        "by_customer": dict(list(counted.by_customer.items())[:_SHOWN]),
        "customers": len(counted.by_customer),
        "oldest": counted.oldest,
        "newest": counted.newest,
        "bytes": counted.size,
        "torn": counted.torn,
        "foreign": counted.foreign,
    }


def _misleading(path: str, counted: dead_letters.Tally) -> str | None:
    """What `wc -l` and `jq` of the runbook would have told."""
    notes = []
    rotated = len(dead_letters.rotated(path))
    if rotated:
        notes.append(f"wc -l misses {rotated} {'file' if rotated == 1 else 'files'} that Vritti has renamed")
    if counted.torn:
        notes.append("jq stops at the first torn line")
    return "; ".join(notes) or None


def _recent(path: str, window: float) -> dict[str, t.Any]:
    count, complete = dead_letters.recent(path, time.time() - window)
    return {"value": count, "evidence": {"seconds": window}, "note": None if complete else f"at least {count}"}


def _growth(context: Context, path: str) -> dict[str, t.Any]:
    before, after, seconds = context.pair(("dlq", path), lambda: dead_letters.sizes(path))
    if after is None:
        raise Absent("there was no second look (runbook_sample_seconds is 0)")
    lines = dead_letters.added_since(path, before)
    return {"value": 60 * lines / seconds, "evidence": {"lines": lines, "seconds": round(seconds, 1)}}


def _unknown_customers(context: Context, database: str, counted: dead_letters.Tally) -> list[str]:
    """Customers of dead letters that the database does not have."""

    def known(connection: sqlite3.Connection) -> set[str]:
        return {row[0] for row in connection.execute("SELECT customer_id FROM customers")}

    if not counted.by_customer:
        return []
    try:
        return sorted(set(counted.by_customer) - sqlite_files.read(database, known, context.timeout / 2))
    except (sqlite3.Error, sqlite_files.Locked) as error:
        raise NoAnswer(f"{database} does not tell its customers: {error}.", "no data") from None

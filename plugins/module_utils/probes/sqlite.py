# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe sqlite: is a database sound, what is in it, how old is its newest backup, and what plain commands would say."""

from __future__ import annotations

import os
import sqlite3
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import (
    clock,
    sqlite_backups,
    sqlite_files,
    sqlite_restoring,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context, absolute

VALUES = ("state", "broken_references", "missing_tables", "rows", "query", "allowed", "backup_age", "restore")
_OF_FILE = ("size_bytes", "modified_at", "journal_mode", "wal_bytes", "hot_journal", "page_count", "freelist_count")
_SHOWN = 5
_ROWS = 10

SPEC: dict[str, t.Any] = {
    "path": {"type": "str", "required": True},
    "port": {"type": "int"},
    "value": {"type": "str", "default": "state", "choices": list(VALUES)},
    "depth": {"type": "str", "default": "quick", "choices": list(sqlite_files.DEPTHS)},
    "expect_tables": {"type": "list", "elements": "str", "default": []},
    "table": {"type": "str"},
    "query": {"type": "str"},
    "rows_query": {"type": "str"},
    "params": {"type": "list", "elements": "raw", "default": []},
    "backup": {"type": "str", "default": sqlite_restoring.LATEST},
    "backup_dir": {"type": "str"},
    "pattern": {"type": "str", "default": sqlite_backups.PATTERN},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    needed = {"rows": "table", "query": "query", "allowed": "query", "missing_tables": "expect_tables"}
    for value, key in needed.items():
        if source["value"] == value and not source[key]:
            raise ValueError(f"value is {value}, which takes {key}")
    for key in ("rows_query", "params"):
        if source[key] and source["value"] != "query" and (key, source["value"]) != ("params", "allowed"):
            raise ValueError(f"{key} goes with the value query, and value is {source['value']}")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    if source["value"] == "backup_age":
        return f"backups of {os.path.basename(source['path'])} in {source['backup_dir'] or 'no folder'}"
    if source["value"] == "restore":
        return f"restore of {source['backup']} over {source['path']}"
    query = f" {source['query']}{_for(source['params'])}"
    what = {"rows": f" {source['table']}", "query": query, "allowed": query}.get(source["value"], "")
    return f"sqlite {source['path']}{what}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """One value; what several checks want of one file is looked at once."""
    if source["value"] == "backup_age":
        return _backup_age(context, source)
    path = absolute(context, source["path"], source["port"])
    value = source["value"]
    if value == "restore":
        return _restore(context, source, path)
    if value in ("state", "broken_references"):
        depth = source["depth"]
        seen = context.once(("sqlite", path, depth), lambda: _checked(context, path, depth))
        return _state(seen) if value == "state" else _references(seen)
    if value == "missing_tables":
        seen = context.once(("sqlite", path, "header"), lambda: _checked(context, path, "header"))
        _require_readable(seen)
        missing = sorted(set(source["expect_tables"]) - set(seen["tables"]))
        return {"value": len(missing), "evidence": {"path": path, "missing": missing, "tables": seen["tables"]}}
    text = source["query"]
    if value == "rows":
        text = f"SELECT count(*) FROM {sqlite_files.identifier(source['table'])}"  # noqa: S608 - quoted
    seen = _query(context, path, text, source["rows_query"], source["params"])
    if value == "allowed":
        # What the query gives is why not.
        return {**seen, "value": seen["value"] is None, "note": seen["value"]}
    return seen


def _for(params: t.Sequence[t.Any]) -> str:
    return f" for {', '.join(map(repr, params))}" if params else ""


def _query(
    context: Context, path: str, text: str, rows_query: str | None, params: t.Sequence[t.Any]
) -> dict[str, t.Any]:
    queries: dict[str, str | sqlite_files.Query] = {"value": sqlite_files.Query(text, params)}
    if rows_query:
        queries["rows"] = sqlite_files.Query(rows_query, params, _ROWS)
    key = ("sqlite", path, text, rows_query, repr(params))
    seen = context.once(key, lambda: sqlite_files.look(path, "header", queries=queries, timeout=context.timeout))
    _require_readable(seen)
    evidence = {"path": path, "query": text, **({"params": list(params)} if params else {})}
    rows = seen["query_results"].get("rows")
    if rows is not None:
        evidence["rows"] = rows
    if rows:
        # Beside the value in the table.
        evidence["worst"] = str(next(iter(rows[0].values())))
    return {"value": seen["query_results"]["value"], "evidence": evidence}


def _checked(context: Context, path: str, depth: str) -> sqlite_files.Seen:
    return sqlite_files.look(path, depth, timeout=context.timeout / 2, budget=context.timeout)


def _require_readable(seen: sqlite_files.Seen) -> None:
    if seen["tables"] is None:
        why = "; ".join(seen["errors"] or seen["limits"])
        raise NoAnswer(f"{seen['path']} cannot be read, its state is {seen['state']}: {why}.", "no data")


def _state(seen: sqlite_files.Seen) -> dict[str, t.Any]:
    if seen["state"] == "unknown":
        raise NoAnswer(f"{seen['path']} cannot be judged: {'; '.join(seen['limits'])}.", "timeout")
    # Rows that refer to nothing are for who wrote them; no backup mends them.
    value = "foreign_keys" if seen["damage"] == ["foreign_keys"] else seen["state"]
    literal = literally(seen)
    evidence = {
        "path": seen["path"],
        "errors": seen["errors"],
        **{key: seen[key] for key in _OF_FILE},
        "holders": [f"{one['name']} (PID {one['pid']}, {one['user']})" for one in seen["holders"]],
        "limits": seen["limits"],
        "literal": literal,
    }
    notes = [*(seen["errors"][:1] if value != "foreign_keys" else []), *literal.values()]
    return {"value": value, "evidence": evidence, "note": "; ".join(notes)}


def _references(seen: sqlite_files.Seen) -> dict[str, t.Any]:
    _require_readable(seen)
    if seen["state"] == "unknown" or seen["damage"] not in ([], ["foreign_keys"]):
        raise NoAnswer(f"{seen['path']} is {seen['state']}, so its references were not followed.", "no data")
    broken = seen["broken_references"]
    note = "; ".join([*seen["errors"][:1], '"PRAGMA integrity_check" says ok']) if broken else None
    return {"value": broken, "evidence": {"path": seen["path"], "errors": seen["errors"]}, "note": note}


def literally(seen: sqlite_files.Seen) -> dict[str, str]:
    """What the runbooks' own commands would have told, where that misleads."""
    said = {}
    state, name = seen["state"], os.path.basename(seen["path"])
    if state == "missing":
        said["integrity_check"] = f'sqlite3 {name} "PRAGMA integrity_check" would create the file and say ok'
    elif state == "empty":
        said["integrity_check"] = '"PRAGMA integrity_check" says ok'
    elif seen["hot_journal"] or (seen["wal_bytes"] and not seen["holders"]):
        said["integrity_check"] = '"PRAGMA integrity_check" would write what a killed client has left into the file'
    if state in ("corrupt", "corrupt_index") and seen["damage"] != ["foreign_keys"]:
        said["cp"] = f"cp {name} {name}.bak would replace the last good copy with this one"
    elif seen["wal_bytes"]:
        said["cp"] = _misses(seen, name)
    elif state == "ok" and seen["holders"]:
        said["cp"] = f"cp {name} may catch it between two writes"
    return said


def _misses(seen: sqlite_files.Seen, name: str) -> str:
    """What a copy of the file alone would lack."""
    try:
        there = sqlite_files.read(seen["path"], sqlite_files.counts, 1.0)
        alone = sqlite_backups.of_copy(seen["path"], sqlite_files.counts)
    except (sqlite3.DatabaseError, sqlite_files.Locked, NoAnswer):
        # The file alone may be in any state; then it is no copy either.
        return f"cp {name} would miss what is in its -wal"
    rows = {table: count - alone.get(table, 0) for table, count in there.items() if count != alone.get(table, 0)}
    if not rows:
        return f"cp {name} may miss what is in its -wal ({seen['wal_bytes']} bytes)"
    shown = ", ".join(
        f"{abs(count)} of {there[table]} rows of {table}" for table, count in sorted(rows.items())[:_SHOWN]
    )
    return f"cp {name} would miss {shown}, which are in its -wal"


def _restore(context: Context, source: t.Mapping[str, t.Any], path: str) -> dict[str, t.Any]:
    """What restoring would do and lose, as the module sqlite_restore tells it in check mode."""
    options = sqlite_restoring.Options(
        path,
        source["backup"],
        source["backup_dir"],
        source["pattern"],
        source["expect_tables"],
        timeout=context.timeout,
    )
    try:
        seen = context.once(("sqlite", path, "full"), lambda: _checked(context, path, "full"))
        told = sqlite_restoring.restore(options, check=True, seen=seen)
    except Refused as error:
        raise NoAnswer(str(error), "no data") from None
    return {"value": sqlite_restoring.in_words(told), "evidence": told}


def _backup_age(context: Context, source: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    folder = source["backup_dir"]
    if not folder:
        raise Absent("no folder of backups is known")
    path = os.path.realpath(absolute(context, source["path"], source["port"]))
    name = os.path.basename(path)
    try:
        found = sqlite_backups.candidates(folder, path, source["pattern"])
    except PermissionError:
        raise NoAnswer(f"{folder} may not be read by {sqlite_files.me()}; run with -b.", "permission") from None
    except Refused:
        raise NoAnswer(f"{folder} does not exist: there is no backup of {name}.", "no data") from None
    if not found:
        raise NoAnswer(f"{folder} has no backup of {name}.", "no data")
    passed_over = []
    for taken_at, backup, manifest in found:
        problem = sqlite_restoring.problem_of(backup, manifest)
        if problem:
            passed_over.append(problem)
            continue
        note = "" if manifest else "it has no manifest, so that it is what was saved is not established; "
        header = None if manifest else sqlite_files.header_of(backup)
        if header and header.wal:
            note += "a cp of a database in WAL mode may miss its newest rows; "
        evidence = {
            "backup": backup,
            "taken_at": clock.utc(taken_at),
            "manifest": manifest is not None,
            "passed_over": passed_over,
            "backups": [where for _at, where, _manifest in found[:_SHOWN]],
        }
        note = (note + "; ".join(passed_over)).rstrip("; ")
        return {"value": max(0.0, time.time() - taken_at), "evidence": evidence, "note": note}
    raise NoAnswer(f"{folder} has no backup of {name} that can be trusted: {' '.join(passed_over)}", "no data")

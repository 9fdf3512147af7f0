# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a backup of a SQLite database back, without losing what is there now.

In order: what is there is looked at; the backup is copied beside it, verified there and compared; then the database
that is there goes into quarantine, and the copy takes its place. Two ways lead there.

online   SQLite itself overwrites the database, in one transaction and in the same inode: clients that have it open see
         the new rows with their next statement, and a kill leaves the old database or the new one.
offline  the file is replaced by rename. It works on what SQLite cannot open, and only while nobody has it open: who
         had would go on writing to a file without a name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import time
import typing as t
from datetime import datetime, timezone

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, durable, sqlite_backups, sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.sqlite_backups import Manifest
from ansible_collections.oncall.runbooks.plugins.module_utils.sqlite_files import Locked, identifier

LATEST = "latest_verified"
METHODS = ("auto", "online", "offline")
# What is kept where only indexes are rebuilt: no quarantine, for nothing is to be put back.
_REINDEXED = "before-reindex"
_TIME = re.compile(r"(_at|_time|_on|timestamp|time|date|created|updated|modified)$", re.IGNORECASE)
_TIME_TYPES = ("DATETIME", "TIMESTAMP", "DATE")

Told = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """As the module sqlite_restore documents them."""

    path: str
    backup: str = LATEST
    backup_dir: str | None = None
    pattern: str = sqlite_backups.PATTERN
    expect_tables: t.Sequence[str] = ()
    method: str = "auto"
    raise_counters: t.Sequence[t.Mapping[str, t.Any]] = ()
    quarantine_dir: str | None = None
    timeout: float = 30.0


@dataclasses.dataclass
class Staged:
    """A backup that was copied and verified; `path` is the copy, None where the quarantine says: there was no file."""

    source: str
    path: str | None
    manifest: Manifest | None
    taken_at: float
    state: str
    notes: list[str]


def restore(options: Options, check: bool, seen: sqlite_files.Seen | None = None) -> Told:
    """Restore, or tell what would be done; see the return values of the module sqlite_restore.

    `seen` is a full look at the database, where there has just been one.
    """
    path = os.path.realpath(options.path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise Refused(f"{folder} does not exist; correct path, or create the folder.")
    seen = seen or sqlite_files.look(path, "full", timeout=options.timeout)
    told: Told = {
        "action": "none",
        "state": seen["state"],
        "errors": seen["errors"],
        "holders": seen["holders"],
        "method": None,
        "backup": None,
        "backup_taken_at": None,
        "quarantine": None,
        "lost": {},
        "undo": None,
        "notes": [],
        "counters": [],
    }
    if seen["state"] == "locked":
        raise Refused(f"{path} cannot be restored now: {seen['errors'][0]}", **told)
    if seen["state"] == "unknown":
        raise Refused(f"{path} cannot be judged: {'; '.join(seen['limits'])}.", **told)
    undoing = bool(_quarantine(options.backup, path))
    if seen["state"] == "corrupt_index" and not undoing:
        told["action"] = "reindexed"
        if check:
            return told
        try:
            _reindex(options, path, seen, told)
            return told
        except Locked as error:
            raise Refused(f"{path} cannot be reindexed: {error}; nothing was changed.", **told) from None
        except OSError as error:
            raise Refused(f"{path} cannot be reindexed: {error}.", **told) from None
        except sqlite3.DatabaseError as error:
            told["action"] = "none"
            told["notes"].append(f"its indexes cannot be rebuilt: {error}")
    parent = tempfile.gettempdir() if check else folder
    try:
        with durable.work_folder(parent, os.path.basename(path)) as work:
            staged = _stage(options, path, work, in_place=check and not options.raise_counters)
            told.update(backup=staged.source, backup_taken_at=clock.utc(staged.taken_at))
            told["notes"] += staged.notes
            return _restore(options, path, seen, staged, told, check)
    except (OSError, sqlite3.Error, Locked) as error:
        where = f" What was there before is in {told['quarantine']}." if told["quarantine"] else " Nothing was changed."
        raise Refused(f"{path} cannot be restored: {error}.{where}", **told) from None


def _restore(options: Options, path: str, seen: sqlite_files.Seen, staged: Staged, told: Told, check: bool) -> Told:
    if staged.path is not None:
        try:
            told["counters"] = _raise_counters(options, path, seen, staged.path, as_client=not check)
        except sqlite3.DatabaseError as error:
            if staged.state == "ok":
                raise
            told["notes"].append(f"the counters in it cannot be raised: {error}")
        difference = compare(path, seen, staged, options.timeout, as_client=not check)
        told["lost"] = difference.lost
        told["notes"] += difference.notes
        if difference.equal:
            return told
    elif seen["state"] == "missing":
        return told
    told["action"] = "restored"
    told["method"] = _method(options.method, path, seen, staged)
    if not check:
        _put_in_place(options, path, seen, staged, told)
    return told


def _put_in_place(
    options: Options, path: str, seen: sqlite_files.Seen, staged: Staged, told: Told, label: str = "quarantine"
) -> None:
    """Put away what is there, and the staged copy in its place."""
    told["method"] = _method(options.method, path, seen, staged)
    there = sum(os.path.getsize(path + suffix) for suffix in ("", "-wal") if os.path.exists(path + suffix))
    new = os.path.getsize(staged.path) if staged.path else 0
    sqlite_backups.require_space(os.path.dirname(path), there + new, "the quarantine and the restored database")
    quarantine = _new_folder(path, options.quarantine_dir or os.path.dirname(path), label)
    try:
        sqlite_backups.require_space(quarantine, there, "the quarantine")
        if told["method"] == "online":
            raised = _online(options, path, t.cast(str, staged.path), quarantine, seen)
            told["counters"] = raised or told["counters"]
            told["quarantine"] = quarantine
        else:
            _offline(path, staged, quarantine, seen, told)
    except BaseException:
        if told["quarantine"] is None:
            # Nothing was changed, so nothing is in need of a quarantine.
            shutil.rmtree(quarantine, ignore_errors=True)
        raise
    _seal(quarantine, path)
    # Numbers that are given out in the meantime count as well.
    counters = [dict(counter) for counter in options.raise_counters]
    told["undo"] = {"path": path, "backup": quarantine, **({"raise_counters": counters} if counters else {})}
    _verify(path, staged, told, options.timeout)


# The backup.


def _quarantine(backup: str, path: str) -> str | None:
    """The database in a quarantine, where `backup` is the folder of one, or a folder in which there are some.

    Of several it is the first that led to a restore: the later ones hold what was restored. After a kill it may not be
    known which did; then the last one has all that was there before.
    """
    name = os.path.basename(path)
    folders = [backup, *sorted(glob.glob(os.path.join(glob.escape(backup), f"{glob.escape(name)}.quarantine-*")))]
    known = []
    for folder in folders:
        kept = os.path.join(os.path.realpath(folder), name)
        manifest = sqlite_backups.read_manifest(kept)
        if manifest and manifest.get("kind") == "quarantine":
            known.append((kept, manifest))
    return next((kept for kept, manifest in known if manifest.get("restored")), known[-1][0] if known else None)


def _stage(options: Options, path: str, work: str, *, in_place: bool) -> Staged:
    """Copy the wanted backup into the work folder and verify it there; in place where it is only to be looked at."""
    if options.backup == LATEST or (day := sqlite_backups.day_of(options.backup)):
        if not options.backup_dir:
            raise Refused(f"backup is {options.backup}, which is looked for in backup_dir; give backup_dir.")
        found = sqlite_backups.candidates(options.backup_dir, path, options.pattern)
        if options.backup == LATEST:
            # One that was verified when it was taken is preferred to a younger copy of unknown origin.
            found = [it for it in found if it[2]] + [it for it in found if not it[2]]
            what = "no backup"
        else:
            found, what = sqlite_backups.of_day(found, t.cast("t.Any", day)), f"no backup of {day}"
        passed_over = []
        for taken_at, source, manifest in found:
            try:
                staged = _verified(source, taken_at, manifest, options, work, in_place)
            except (Refused, OSError) as error:
                passed_over.append(f"{source}: {error.strerror}." if isinstance(error, OSError) else str(error))
                continue
            staged.notes = [*passed_over, *staged.notes]
            return staged
        name = os.path.basename(path)
        why = f": {' '.join(passed_over)}" if passed_over else f" of {name}, as {options.pattern}."
        raise Refused(f"{options.backup_dir} has {what} that can be trusted{why} Nothing was changed.")
    source = os.path.abspath(options.backup)
    if os.path.isdir(source):
        kept = _quarantine(source, path)
        if kept is None:
            raise Refused(f"{source} is a folder and no quarantine of {path}; name a backup.")
        source = kept
    manifest = sqlite_backups.read_manifest(source)
    if not manifest or manifest.get("kind") != "quarantine":
        manifest = sqlite_backups.load_manifest(source)
    nothing = sqlite_backups.read_manifest(source) if not os.path.exists(source) else None
    if nothing and nothing.get("state") == "missing":
        return Staged(os.path.dirname(source), None, nothing, clock.seconds(nothing["taken_at"]), "missing", [])
    try:
        about = os.stat(source)
    except OSError as error:
        raise Refused(f"{options.backup} cannot be read as a backup: {error.strerror}; correct backup.") from None
    if not stat.S_ISREG(about.st_mode):
        raise Refused(f"{source} is no regular file; name a backup.")
    if os.path.exists(path) and os.path.samefile(source, path):
        raise Refused(f"backup is {options.backup}, which is the database itself; name a backup.")
    taken_at = clock.seconds(manifest["taken_at"]) if manifest else about.st_mtime
    return _verified(source, taken_at, manifest, options, work, in_place)


def _verified(
    source: str, taken_at: float, manifest: Manifest | None, options: Options, work: str, in_place: bool
) -> Staged:
    staged = os.path.join(work, "staged.db")
    sidecars = [suffix for suffix in ("-wal", "-journal") if os.path.exists(source + suffix)]
    for suffix in ("", *sqlite_files.SIDECARS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged + suffix)
    if in_place and not sidecars and not sqlite_backups.is_packed(source):
        staged = source
    pages, page_size = ((manifest or {}).get(key) or 0 for key in ("page_count", "page_size"))
    size = max(os.stat(source).st_size, pages * page_size)
    notes: list[str] = []
    quarantined = bool(manifest and manifest.get("kind") == "quarantine")
    if staged == source:
        digest = durable.sha256(source)
    else:
        sqlite_backups.require_space(work, size, "the copy of the backup")
        digest = sqlite_backups.unpack(source, staged)
    if manifest is None and os.path.exists(source + sqlite_backups.MANIFEST):
        raise Refused(f"{source} does not fit the manifest beside it; it, or the manifest, is damaged.")
    if manifest is None:
        notes.append(f"{source} has no manifest: that it is what was saved then cannot be established")
    elif quarantined and digest != (manifest.get("sha256") or digest):
        # Whoever opened it to look has changed it a little, as did a client that had it open until the last moment.
        notes.append(f"{source} was written to since it was put away")
    elif not quarantined and digest != manifest["sha256"]:
        raise Refused(
            f"{source} is not what was saved: its SHA-256 is {digest}, its manifest says {manifest['sha256']}."
        )
    for suffix in sidecars:
        # With its log beside it: together they are the database.
        shutil.copyfile(source + suffix, staged + suffix)
    if quarantined and manifest and manifest["state"] not in ("ok", "foreign_keys"):
        # What was there before is put back as it was.
        return Staged(source, staged, manifest, taken_at, manifest["state"], notes)
    if not os.path.getsize(staged):
        raise Refused(f"{source} is empty, which PRAGMA integrity_check calls ok; it is no backup.")
    try:
        if sidecars:
            _fold(staged)
        checked, rows = sqlite_backups.verify(staged)
    except sqlite3.DatabaseError as error:
        raise Refused(f"{source} is damaged: {error}.") from None
    if not checked.usable:
        raise Refused(f"{source} is damaged: {checked.errors[0]}.")
    notes += checked.errors
    if manifest and "rows" in manifest and rows != manifest["rows"]:
        raise Refused(f"{source} has {rows} rows, and its manifest says {manifest['rows']}.")
    missing = sorted(set(options.expect_tables) - set(rows or ()))
    if missing:
        raise Refused(f"{source} has no table {', '.join(missing)}: it is not a backup of what was meant.")
    return Staged(source, staged, manifest, taken_at, "ok", notes)


def _fold(path: str) -> None:
    """Let SQLite take the log, or roll back the journal, into the database."""
    with contextlib.closing(sqlite_files.connect(path, 1.0, mode="rw")) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def problem_of(source: str, manifest: Manifest | None) -> str:
    """Why a backup cannot be trusted, as far as a look at it tells; else ''."""
    if manifest:
        found = durable.sha256(source)
        wanted = manifest["sha256"]
        return "" if found == wanted else f"{source} is not what was saved: its SHA-256 is {found}, not {wanted}."
    if sqlite_backups.is_packed(source):
        return ""
    if not os.path.getsize(source):
        return f"{source} is empty, which PRAGMA integrity_check calls ok."
    checked, _counted = sqlite_backups.verify(source)
    return "" if checked.usable else f"{source} is damaged: {checked.errors[0]}."


# What would be lost.


@dataclasses.dataclass
class Difference:
    equal: bool
    lost: dict[str, Told]
    notes: list[str]


def compare(
    path: str, seen: sqlite_files.Seen, staged: Staged, timeout: float, *, as_client: bool = True
) -> Difference:
    """What the database has and the copy has not, table by table, value by value."""
    copy = t.cast(str, staged.path)
    # Rows without what they refer to are as the application has written them.
    sound = seen["state"] == "ok" or seen["damage"] == ["foreign_keys"]
    if seen["state"] == "missing":
        return Difference(False, {}, [])
    if staged.state != "ok" or seen["tables"] is None:
        same = all(_same_file(path + suffix, copy + suffix) for suffix in ("", "-wal", "-journal"))
        why = "" if same else f"{path} is {seen['state']}, so what would be lost cannot be told"
        return Difference(same, {}, [why] if why and seen["state"] != "empty" else [])

    def look(connection: sqlite3.Connection) -> Difference:
        connection.execute("ATTACH ? AS backup", (sqlite_files.uri(copy, mode="ro", immutable=1),))
        connection.execute("BEGIN")
        there = _tables(connection, "main")
        theirs = _tables(connection, "backup")
        lost, notes = {}, []
        for table in sorted({*there, *theirs}):
            try:
                found = _table(connection, table, there.get(table), theirs.get(table), sound=sound)
            except sqlite3.DatabaseError as error:
                if sqlite_files.is_no_damage(error):
                    raise
                found = {**_NOTHING, "rows": None, "changed": None}
                notes.append(f"what {table} would lose cannot be told: {error}")
            if found["rows"] != 0 or found["changed"] != 0 or found["back"] != 0:
                lost[table] = found
        same = all(_about(connection, "main", what) == _about(connection, "backup", what) for what in _ABOUT)
        return Difference(sound and not lost and same, lost, notes)

    try:
        return sqlite_files.read(path, look, timeout, as_client=as_client)
    except sqlite3.DatabaseError as error:
        return Difference(False, {}, [f"{path} cannot be read, so what would be lost cannot be told: {error}"])
    except Locked as error:
        raise Refused(f"{path} cannot be compared with the backup: {error}") from None


_NOTHING: Told = {
    "rows": 0,
    "changed": 0,
    "back": 0,
    "rows_now": None,
    "rows_backup": None,
    "newest_now": None,
    "newest_backup": None,
}


def _same_file(one: str, other: str) -> bool:
    there = os.path.exists(one)
    if there != os.path.exists(other):
        return False
    return not there or (
        os.path.getsize(one) == os.path.getsize(other) and durable.sha256(one) == durable.sha256(other)
    )


# What makes two databases different besides their rows.
_ABOUT = (
    "PRAGMA {}.user_version",
    "PRAGMA {}.application_id",
    "SELECT type, name, tbl_name, sql FROM {}.sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1, 2",
    "SELECT name, seq FROM {}.sqlite_sequence ORDER BY 1",
)


def _about(connection: sqlite3.Connection, schema: str, query: str) -> list[t.Any]:
    try:
        return connection.execute(query.format(schema)).fetchall()
    except sqlite3.OperationalError as error:
        # Only tables with AUTOINCREMENT have a sequence.
        if "no such table" not in str(error):
            raise
        return []


@dataclasses.dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    key: tuple[str, ...]
    times: tuple[str, ...]


def _tables(connection: sqlite3.Connection, schema: str) -> dict[str, _Table]:
    found = {}
    for name in sqlite_files.tables(connection, schema):
        if not sqlite_files.is_utf8(name):
            continue
        quoted = identifier(name)
        # Columns that are computed and stored are data too; only those of virtual tables are hidden (1).
        columns = [row for row in connection.execute(f"PRAGMA {schema}.table_xinfo({quoted})") if row[6] != 1]
        names = tuple(row[1] for row in columns)
        key = tuple(row[1] for row in sorted(columns, key=lambda row: row[5]) if row[5])
        alias = next((it for it in ("rowid", "_rowid_", "oid") if it not in map(str.lower, names)), None)
        # Of a key that may be null there may be many. Where there is no key, rows have a number.
        nulls = " OR ".join(f"{identifier(part)} IS NULL" for part in key)
        query = f"SELECT EXISTS (SELECT 1 FROM {schema}.{quoted} NOT INDEXED WHERE {nulls})"  # noqa: S608 - quoted
        if not key or (alias and len(key) >= 1 and connection.execute(query).fetchone()[0]):
            key = (alias,) if alias else ()
        times = tuple(row[1] for row in columns if _TIME.search(row[1]) or row[2].upper() in _TIME_TYPES)
        found[name] = _Table(names, key, times)
    return found


def _table(
    connection: sqlite3.Connection, name: str, there: _Table | None, theirs: _Table | None, *, sound: bool
) -> Told:
    """How a table differs: rows that only the database has, that differ, and that only the backup has."""
    quoted = identifier(name)

    def count(query: str) -> int:
        return int(connection.execute(f"SELECT count(*) FROM {query}").fetchone()[0])  # noqa: S608 - quoted

    found = dict(_NOTHING)
    if there:
        found["rows_now"] = count(f"main.{quoted} NOT INDEXED")
        found["newest_now"] = _newest(connection, f"main.{quoted}", there.times)
    if theirs:
        found["rows_backup"] = count(f"backup.{quoted} NOT INDEXED")
        found["newest_backup"] = _newest(connection, f"backup.{quoted}", theirs.times)
    if not there or not theirs:
        return {**found, "rows": found["rows_now"] or 0, "back": found["rows_backup"] or 0}
    if there.key != theirs.key or not there.key:
        # Without a number rows are compared as wholes.
        one, other = f"SELECT * FROM main.{quoted}", f"SELECT * FROM backup.{quoted}"  # noqa: S608 - quoted
        same = found["rows_now"] == found["rows_backup"] and there.columns == theirs.columns
        if same and not count(f"({one} EXCEPT {other})") and not count(f"({other} EXCEPT {one})"):
            return found
        return {**found, "rows": found["rows_now"], "back": found["rows_backup"]}
    same_key = " AND ".join(f"b.{_column(key)} IS a.{_column(key)}" for key in there.key)
    ours, its = f"main.{quoted} AS a", f"backup.{quoted} AS b"
    without = "{} NOT INDEXED WHERE NOT EXISTS (SELECT 1 FROM {} WHERE {})"
    found["rows"] = count(without.format(ours, its, same_key))
    if sound:
        found["back"] = count(without.format(its, ours, same_key))
    if there.columns != theirs.columns:
        return {**found, "changed": found["rows_now"] - found["rows"]}
    same_row = _all_of(
        [
            f"(a.{column} COLLATE BINARY IS b.{column} AND typeof(a.{column}) = typeof(b.{column}))"
            for column in map(identifier, there.columns)
        ]
    )
    # The cross join keeps the order: through the database without its indexes, then into the backup by key.
    found["changed"] = count(f"{ours} NOT INDEXED CROSS JOIN {its} ON {same_key} WHERE NOT {same_row}")
    return found


def _all_of(terms: list[str]) -> str:
    """The terms joined by AND; balanced, because SQLite takes an expression only to a depth of 1000."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return f"({_all_of(terms[:middle])} AND {_all_of(terms[middle:])})"


def _column(name: str) -> str:
    # A rowid in quotes would be a text where there is none.
    return name if name in ("rowid", "_rowid_", "oid") else identifier(name)


def _newest(connection: sqlite3.Connection, table: str, times: t.Sequence[str]) -> str | None:
    """The newest time in a table's columns of times, as text; numbers are seconds or milliseconds since 1970."""
    newest = ""
    for column in map(identifier, times):
        query = f"SELECT max({column}) FROM {table} NOT INDEXED WHERE typeof({column}) = ?"  # noqa: S608 - quoted
        for kind in ("text", "integer", "real"):
            value = connection.execute(query, (kind,)).fetchone()[0]
            if value is None:
                continue
            if kind != "text":
                value = value / 1000 if value > 1e11 else value
                if not 1e8 < value < 1e10:
                    continue
                value = datetime.fromtimestamp(value, timezone.utc).isoformat()
            newest = max(newest, str(value)[:40])
    return newest or None


def in_words(told: Told) -> str:
    """What a restore would do and lose, in one line."""
    if told["action"] == "none":
        return f"nothing would change: it has what {told['backup']} has"
    if told["action"] == "reindexed":
        return "only its indexes would be rebuilt, and no row would be lost"
    parts = []
    for table, found in told["lost"].items():
        numbers = [
            f"{'an unknown number of' if found[key] is None else found[key]} rows {word}"
            for key, word in (("rows", "lost"), ("changed", "put back to older values"), ("back", "come back"))
            if found[key] != 0
        ]
        newest = f" (newest {found['newest_now']})" if found["newest_now"] else ""
        parts.append(f"{table}: {', '.join(numbers)}{newest}")
    since = f"{told['backup']} of {told['backup_taken_at']}"
    return f"from {since}: {'; '.join([*parts, *told['notes']]) or 'no row would be lost'}"


# Counters.


_Rows = dict[tuple[t.Any, ...], dict[str, t.Any]]


def _raise_counters(
    options: Options, path: str, seen: sqlite_files.Seen, staged: str, ahead: int = 0, *, as_client: bool = True
) -> list[Told]:
    """Raise counters in the copy past what has been given out since: numbers from them are never given out twice."""
    raised = []
    for counter in options.raise_counters:
        table, column = counter["table"], counter["column"]
        least = counter.get("at_least") or 0
        with contextlib.closing(sqlite_files.connect(staged, mode="rw")) as copy:
            if not _columns(copy, table, column):
                continue
            before = _highest(_rows(copy, table, column), column)
            now: _Rows = {}
            why = f"it is {seen['state']}"
            try:
                if seen["tables"] is not None:
                    now = sqlite_files.read(path, _looker(table, column), options.timeout, as_client=as_client)
                    why = ""
            except (sqlite3.DatabaseError, Locked) as error:
                why = str(error)
            if why and not least:
                raise Refused(
                    f"{path} cannot tell how far {table}.{column} is ({why}), and it must not go back; give at_least."
                )
            _raise(copy, table, column, now, least, ahead)
            after = _highest(_rows(copy, table, column), column)
        raised.append({"table": table, "column": column, "backup": before, "restored": after})
    return raised


def _columns(connection: sqlite3.Connection, table: str, column: str) -> dict[str, bool]:
    """The columns of a table of counters, and whether each is of its key; empty where there is no such table."""
    info = connection.execute(f"PRAGMA table_info({identifier(table)})").fetchall()
    names = {row[1]: bool(row[5]) for row in info}
    if names and column.lower() not in map(str.lower, names):
        raise Refused(f"raise_counters names {table}.{column}, and {table} has only {', '.join(names)}.")
    return names


def _rows(connection: sqlite3.Connection, table: str, column: str) -> _Rows:
    """The rows of a table of counters by key; without a key, by their place."""
    names = _columns(connection, table, column)
    if not names:
        return {}
    found: _Rows = {}
    listed = ", ".join(map(identifier, names))
    rows = connection.execute(f"SELECT {listed} FROM {identifier(table)} NOT INDEXED")  # noqa: S608 - quoted
    for place, row in enumerate(rows.fetchall()):
        values = dict(zip(names, row))
        found[tuple(values[name] for name, key in names.items() if key) or (place,)] = values
    return found


def _looker(table: str, column: str) -> t.Callable[[sqlite3.Connection], _Rows]:
    return lambda connection: _rows(connection, table, column)


def _number(row: t.Mapping[str, t.Any], column: str) -> int:
    value = next(it for name, it in row.items() if name.lower() == column.lower())
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _highest(rows: _Rows, column: str) -> int | None:
    return max((_number(row, column) for row in rows.values()), default=None)


def _raise(copy: sqlite3.Connection, table: str, column: str, now: _Rows, least: int, ahead: int) -> None:
    """Let no counter of the copy be below what it is now, nor below `least`; and see that it is so."""
    quoted, number = identifier(table), identifier(column)
    names = _columns(copy, table, column)
    key = [name for name, of_key in names.items() if of_key]
    wanted = {at: _number(row, column) + ahead for at, row in now.items()}
    behind = f"({number} IS NULL OR CAST({number} AS INTEGER) < ?)"
    try:
        copy.execute("BEGIN")
        there = _rows(copy, table, column)
        for at, row in now.items() if key else ():
            if at not in there:
                # Begun since the backup was taken.
                common = [name for name in row if name in names]
                marks = ", ".join("?" * len(common))
                copy.execute(
                    f"INSERT INTO {quoted} ({', '.join(map(identifier, common))}) VALUES ({marks})",  # noqa: S608 - quoted
                    [row[name] for name in common],
                )
            same = " AND ".join(f"{identifier(name)} IS ?" for name in key)
            copy.execute(
                f"UPDATE {quoted} SET {number} = ? WHERE {same} AND {behind}",  # noqa: S608 - quoted
                (wanted[at], *at, wanted[at]),
            )
        floor = max(least, 0 if key else max(wanted.values(), default=0))
        copy.execute(f"UPDATE {quoted} SET {number} = ? WHERE {behind}", (floor, floor))  # noqa: S608 - quoted
        copy.execute("COMMIT")
    except (sqlite3.IntegrityError, sqlite3.OperationalError, OverflowError) as error:
        raise Refused(f"{table}.{column} cannot be raised in the backup: {error}; nothing was changed.") from None
    reached = {at: _number(row, column) for at, row in _rows(copy, table, column).items()}
    short = [at for at, value in wanted.items() if key and value > reached.get(at, -1)]
    if short or max([least if least > 1 else 0, *wanted.values()]) > max(reached.values(), default=0):
        raise Refused(f"{table}.{column} would go back in the backup, which has no row to raise; nothing was changed.")


# Acting.


def _reindex(options: Options, path: str, seen: sqlite_files.Seen, told: Told) -> None:
    """Rebuild the indexes, and nothing else; where SQLite cannot get rid of the damaged ones, by writing all anew."""
    if not any("wrong # of entries" in error for error in seen["errors"]):
        _keep_both(path, seen, told, options)
    try:
        with contextlib.closing(sqlite_files.connect(path, options.timeout, mode="rw")) as connection:
            connection.execute("REINDEX")
    except sqlite3.OperationalError as error:
        raise Refused(f"{path} cannot be reindexed: {error}; nothing was changed.", **told) from None
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error):
            raise
        with durable.work_folder(os.path.dirname(path), os.path.basename(path)) as work:
            _write_anew(options, path, seen, told, os.path.join(work, "staged.db"))
    found = sqlite_files.look(path, "full", timeout=options.timeout)
    if found["state"] in ("locked", "unknown"):
        told["notes"].append(f"it could not be verified: {'; '.join(found['errors'] or found['limits'])}")
    elif found["state"] != "ok" and found["damage"] != ["foreign_keys"]:
        raise Refused(f"{path} was reindexed and is {found['state']} still: {found['errors'][0]}.", **told)


def _keep_both(path: str, seen: sqlite_files.Seen, told: Told, options: Options) -> None:
    """An index has as many entries as its table has rows, and others: then either of them may be right."""
    folder = _new_folder(path, options.quarantine_dir or os.path.dirname(path), _REINDEXED)
    kept = os.path.join(folder, os.path.basename(path))
    try:
        sqlite_backups.require_space(folder, os.path.getsize(path), "the copy of the database")
        sqlite_backups.copy(path, kept, options.timeout, seen["journal_mode"] == "wal")
        os.chmod(kept, 0o600)
        durable.sync_file(kept)
        _note(folder, path, seen)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    told["quarantine"] = folder
    told["notes"].append(
        "an index and its table disagreed on a value, and the table's was kept; compare it with a backup, or with the "
        f"index in {kept}"
    )


def _write_anew(options: Options, path: str, seen: sqlite_files.Seen, told: Told, staged: str) -> None:
    def copy(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        with contextlib.closing(sqlite3.connect(staged, isolation_level=None)) as target:
            sqlite_files.rebuild(connection, target)

    sqlite_backups.require_space(os.path.dirname(path), 3 * os.path.getsize(path), "writing it anew")
    try:
        sqlite_files.read(path, copy, options.timeout, as_client=True)
    except Locked as error:
        raise Refused(f"{path} cannot be reindexed: {error}", **told) from None
    _put_in_place(options, path, seen, Staged(path, staged, None, time.time(), "ok", []), told, _REINDEXED)


def _method(wanted: str, path: str, seen: sqlite_files.Seen, staged: Staged) -> str:
    """online where SQLite can do it, else offline where nobody has the file open; or the refusal."""
    why = _not_online(path, seen, staged)
    if wanted == "online" and why:
        raise Refused(f"{path} cannot be restored online: {why}.")
    if wanted != "offline" and not why:
        return "online"
    if wanted == "auto" and staged.path and _may_be_forced_on_clients(path, seen, staged):
        return "online"
    _require_nobody(path, why)
    return "offline"


def _not_online(path: str, seen: sqlite_files.Seen, staged: Staged) -> str:
    """Why SQLite cannot overwrite the database itself, or ''."""
    if staged.path is None:
        return "there was no database, so there is none to be"
    if staged.state != "ok":
        return f"what was in quarantine is {staged.state}"
    if seen["state"] not in ("ok", "corrupt", "corrupt_index", "empty"):
        return f"it is {seen['state'].replace('_', ' ')}"
    header = sqlite_files.header_of(staged.path)
    if header and seen["journal_mode"] == "wal" and header.page_size != seen["page_size"]:
        return f"its pages have {seen['page_size']} bytes and those of the backup {header.page_size}"
    if seen["state"] != "empty" and seen["tables"] is None:
        return f"SQLite cannot open it ({seen['errors'][-1]})"
    return ""


def _may_be_forced_on_clients(path: str, seen: sqlite_files.Seen, staged: Staged) -> bool:
    """Whether SQLite can put a damaged database back from quarantine, page by page, while clients have it open."""
    copy = t.cast(str, staged.path)
    header = sqlite_files.header_of(copy)
    same = header and seen["tables"] is not None and header.page_size == seen["page_size"]
    if not same or not sqlite_files.holders(path).found:
        return False
    if copy == staged.source:
        # Only looked at.
        return True
    with contextlib.suppress(sqlite3.DatabaseError):
        _fold(copy)
        return sqlite_files.header_of(copy) is not None
    return False


def _require_nobody(path: str, why: str) -> None:
    held = sqlite_files.holders(path)
    because = f" ({why})" if why else ""
    if held.found:
        raise Refused(
            f"{path} is open in {held}, and its file has to be replaced{because}; stop them, or restore online where "
            "that is possible.",
            holders=held.found,
        )
    if not held.complete:
        raise Refused(
            f"{path} has to be replaced{because}, and {sqlite_files.me()} does not see every process that may have it "
            "open; run with -b."
        )


def _new_folder(path: str, parent: str, label: str) -> str:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    name = os.path.basename(path)
    for number in range(1, 100):
        folder = os.path.join(parent, f"{name}.{label}-{stamp}" + (f"-{number}" if number > 1 else ""))
        with contextlib.suppress(FileExistsError):
            os.makedirs(parent, mode=0o700, exist_ok=True)
            os.mkdir(folder, 0o700)
            durable.sync_folder(parent)
            return folder
    raise Refused(f"{folder} and 98 others exist; move them away.")


def _note(quarantine: str, path: str, seen: sqlite_files.Seen) -> None:
    """The quarantine's manifest: it can be put back like a backup."""
    kept = os.path.join(quarantine, os.path.basename(path))
    state = "foreign_keys" if seen["damage"] == ["foreign_keys"] else seen["state"]
    manifest = {
        "schema": sqlite_backups.SCHEMA,
        "kind": "quarantine",
        "database": path,
        "state": state,
        "taken_at": clock.utc(time.time()),
        "sha256": None,
    }
    sqlite_backups.write_manifest(kept, manifest)


def _seal(quarantine: str, path: str) -> None:
    """Write down that the restore for which this was put away is done, and what it holds."""
    kept = os.path.join(quarantine, os.path.basename(path))
    manifest = sqlite_backups.read_manifest(kept)
    if manifest:
        digest = durable.sha256(kept) if os.path.exists(kept) else None
        sqlite_backups.write_manifest(kept, {**manifest, "restored": True, "sha256": digest})


class _Behind(Exception):
    """A counter was raised since it was looked at."""


def _online(options: Options, path: str, staged: str, quarantine: str, seen: sqlite_files.Seen) -> list[Told]:
    """Let SQLite overwrite the database, when all that was committed is in quarantine; what counters were raised to."""
    deadline = time.monotonic() + options.timeout
    counters: list[Told] = []
    ahead = 0
    _same_journal_mode(staged, seen["journal_mode"])
    try:
        while True:
            try:
                _overwrite(options, path, staged, quarantine, seen, deadline)
                return counters
            except _Behind:
                if time.monotonic() > deadline:
                    raise Locked("its counters are raised without a pause") from None
                # Farther ahead each time, so that it comes to an end while numbers are given out.
                ahead = 2 * ahead or 256
                counters = _raise_counters(options, path, seen, staged, ahead)
                _same_journal_mode(staged, seen["journal_mode"])
    except (Locked, NoAnswer, sqlite3.DatabaseError) as error:
        # The overwriting is one transaction, and it has not been committed.
        who = f"; open in {sqlite_files.holders(path)}" if seen["holders"] else ""
        raise Refused(f"{path} cannot be restored online: {error}{who}; nothing was changed.") from None


def _overwrite(
    options: Options, path: str, staged: str, quarantine: str, seen: sqlite_files.Seen, deadline: float
) -> None:
    _pad(staged)
    remaining = max(0.1, deadline - time.monotonic())
    with contextlib.ExitStack() as stack:
        # Opened before SQLite opens it, and closed after: closing it takes all locks of this process away.
        there = stack.enter_context(open(path, "rb"))
        target = stack.enter_context(contextlib.closing(sqlite_files.connect(path, remaining, mode="rw")))
        source = stack.enter_context(contextlib.closing(sqlite_files.connect(staged, mode="ro", immutable=1)))
        size = source.execute("PRAGMA page_size").fetchone()[0]
        pages = source.execute("PRAGMA page_count").fetchone()[0]
        locked = False

        def progress(status: int, _left: int, _total: int) -> None:
            nonlocal locked
            if status & 0xFF in _BUSY:
                if time.monotonic() > deadline:
                    raise Locked("another process keeps it locked")
            elif status == 0 and not locked:
                # From its first step on nobody else can commit, and nothing of ours is committed before its last one.
                locked = True
                _put_away(there, path, quarantine, seen)
                _require_counters(options, path, quarantine, staged)

        # So few that there is a second step.
        step = max(1, min(sqlite_backups.STEP // size, pages - 1))
        source.backup(target, pages=step, progress=progress, sleep=0.05)


# SQLITE_BUSY and SQLITE_LOCKED.
_BUSY = (5, 6)


def _pad(staged: str) -> None:
    """A database of one page would be overwritten in the first step."""
    with contextlib.closing(sqlite_files.connect(staged, mode="rw")) as copy:
        if copy.execute("PRAGMA page_count").fetchone()[0] > 1:
            return
        mode = copy.execute("PRAGMA journal_mode").fetchone()[0]
        copy.execute("CREATE TABLE oncall_runbooks_pad (n)")
        copy.execute("DROP TABLE oncall_runbooks_pad")
        if copy.execute("PRAGMA page_count").fetchone()[0] < 2:
            raise Refused("the backup has no table at all, and is not restored online.")
    if mode == "wal":
        _same_journal_mode(staged, mode)


def _put_away(there: t.BinaryIO, path: str, quarantine: str, seen: sqlite_files.Seen) -> None:
    """Copy the database as it is, with its log, while nobody can write to it."""
    kept = os.path.join(quarantine, os.path.basename(path))
    with contextlib.suppress(FileNotFoundError):
        # Of a first try.
        os.unlink(kept + "-wal")
    _copy_open(there, kept)
    if os.path.exists(path + "-wal"):
        # SQLite has no lock on it, so that it may be opened and closed. What of it is ours is not committed.
        shutil.copyfile(path + "-wal", kept + "-wal")
        durable.sync_file(kept + "-wal")
    _note(quarantine, path, seen)


def _require_counters(options: Options, path: str, quarantine: str, staged: str) -> None:
    """See that no counter was raised between looking at it and now."""
    if not options.raise_counters:
        return
    kept = os.path.join(quarantine, os.path.basename(path))
    now = os.path.join(os.path.dirname(staged), "now.db")
    try:
        for suffix in ("", "-wal"):
            if os.path.exists(kept + suffix):
                shutil.copyfile(kept + suffix, now + suffix)
        _fold(now)
        for counter in options.raise_counters:
            table, column = counter["table"], counter["column"]
            wanted = sqlite_backups.of_copy(now, _looker(table, column))
            saved = sqlite_backups.of_copy(staged, _looker(table, column))
            if any(_number(row, column) > _number(saved.get(at, {column: -1}), column) for at, row in wanted.items()):
                raise _Behind
    except sqlite3.DatabaseError:
        # Damaged: at_least was given for it, or it is put back as it was.
        return
    finally:
        for suffix in ("", *sqlite_files.SIDECARS):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(now + suffix)


def _same_journal_mode(staged: str, mode: str | None) -> None:
    """Give the copy the journal mode that the database's clients know."""
    if mode is None or not os.path.getsize(staged):
        return
    with open(staged, "r+b") as file:
        file.seek(18)
        file.write(b"\2\2" if mode == "wal" else b"\1\1")
        file.flush()
        os.fsync(file.fileno())


def _offline(path: str, staged: Staged, quarantine: str, seen: sqlite_files.Seen, told: Told) -> None:
    """Replace the file. At every moment either the old database is there, whole, or the new one."""
    folder = os.path.dirname(path)
    kept = os.path.join(quarantine, os.path.basename(path))
    with _excluded(path, seen) as there:
        sidecars = [suffix for suffix in sqlite_files.SIDECARS if os.path.exists(path + suffix)]
        for suffix in sidecars:
            shutil.copy2(path + suffix, kept + suffix)
            durable.sync_file(kept + suffix)
        if there and sidecars and seen["tables"] is not None:
            # SQLite itself takes the log into the old file, so that it is whole without it.
            with contextlib.suppress(sqlite3.DatabaseError):
                _fold(path)
        before = None
        if there:
            try:
                # The same inode: what a client still writes to it is in quarantine as well.
                os.link(path, kept)
            except OSError:
                # On another filesystem, or on one without links.
                before = sqlite_files.fingerprint(path)
                _copy_open(there, kept)
        _note(quarantine, path, seen)
        durable.sync_folder(quarantine)
        _require_nobody(path, "")
        if before and sqlite_files.fingerprint(path) != before:
            raise Refused(f"{path} was written to while it was copied; stop its clients. Nothing was changed.")
        told["quarantine"] = quarantine
        for suffix in sqlite_files.SIDECARS:
            # A stale log would be replayed over the new file.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + suffix)
        durable.sync_folder(folder)
        if staged.path is None:
            os.unlink(path)
        else:
            if staged.state == "ok":
                _same_journal_mode(staged.path, seen["journal_mode"])
            for suffix in ("", "-wal", "-journal"):
                # Only what was put into quarantine with its log comes back with it.
                if os.path.exists(staged.path + suffix):
                    _same_owner(path, staged, suffix)
                    durable.sync_file(staged.path + suffix)
            os.replace(staged.path, path)
            for suffix in ("-wal", "-journal"):
                if os.path.exists(staged.path + suffix):
                    os.replace(staged.path + suffix, path + suffix)
        durable.sync_folder(folder)


def _copy_open(there: t.BinaryIO, kept: str) -> None:
    there.seek(0)
    with open(kept, "wb") as copy:
        os.fchmod(copy.fileno(), 0o600)
        shutil.copyfileobj(there, copy, sqlite_backups.STEP)
        copy.flush()
        os.fsync(copy.fileno())


@contextlib.contextmanager
def _excluded(path: str, seen: sqlite_files.Seen) -> t.Iterator[t.BinaryIO | None]:
    """Keep clients out that open the database for each operation, where it is sound enough to be locked; the open file.

    It is opened before SQLite opens it, and closed after: closing it takes all locks of this process away.
    """
    with contextlib.ExitStack() as stack:
        if not os.path.exists(path):
            yield None
            return
        there = stack.enter_context(open(path, "rb"))
        # In WAL mode the lock would be in the log that has to go; who opens it meanwhile writes to the linked file.
        if seen["tables"] is not None and seen["journal_mode"] != "wal":
            connection = stack.enter_context(contextlib.closing(sqlite_files.connect(path, 5.0, mode="rw")))
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.DatabaseError as error:
                raise Refused(f"{path} cannot be locked for its replacement: {error}; nothing was changed.") from None
        yield there


def _same_owner(path: str, staged: Staged, suffix: str = "") -> None:
    """The new file belongs to whom the old one did, or else to whom the backup's database did."""
    copy = t.cast(str, staged.path) + suffix
    if os.path.exists(path):
        about = os.stat(path)
        owner, group = about.st_uid, about.st_gid
        shutil.copystat(path, copy)
        os.utime(copy)
    else:
        parent = os.stat(os.path.dirname(path))
        owner, group, mode = (staged.manifest or {}).get("owner") or (parent.st_uid, parent.st_gid, 0o600)
        os.chmod(copy, mode)
    with contextlib.suppress(PermissionError):
        os.chown(copy, owner, group)


def _verify(path: str, staged: Staged, told: Told, timeout: float) -> None:
    """Look at what is there now, like anybody else would."""
    seen = sqlite_files.look(path, "full", timeout=timeout)
    if seen["state"] in ("locked", "unknown") and seen["state"] != staged.state:
        told["notes"].append(f"it could not be verified: {'; '.join(seen['errors'] or seen['limits'])}")
        return
    if seen["state"] != staged.state and not (staged.state == "ok" and seen["damage"] == ["foreign_keys"]):
        raise Refused(
            f"{path} was restored and is {seen['state']} now: {'; '.join(seen['errors'] or seen['limits'])}; what was "
            f"there before is in {told['quarantine']}.",
            **told,
        )
    if staged.state == "ok" and staged.path and told["method"] == "online":
        try:
            difference = compare(path, seen, staged, timeout)
        except (Refused, NoAnswer) as error:
            told["notes"].append(str(error))
            return
        if not difference.equal:
            tables = ", ".join(difference.lost) or "its schema"
            told["notes"].append(f"clients have written to it since it was restored: {tables}")

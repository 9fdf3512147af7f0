# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy a SQLite database while it is in use, prove that the copy is sound, and find such copies again.

Beside each backup lies `<backup>.manifest.json`: what it is a copy of, since when, its checksum and its rows per table.
A manifest that replaces another one keeps it under `replaces` until the next, so that whichever of the two files is
there after a crash, its manifest is too.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
import typing as t
from datetime import date, datetime, timedelta, timezone

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, durable, sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.sqlite_files import Locked

SCHEMA = "oncall.runbooks/sqlite_backup/1"
MANIFEST = ".manifest.json"
# As the runbooks name them: cp customers.db customers.db.$(date +%Y%m%d), in the host's own time.
PATTERN = "{name}.%Y%m%d"
ZSTD = b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 20
# So much is copied between two looks at the clock; it fits into SQLite's page cache.
STEP = 1 << 20
_RESTARTS = 3
_NAMED_TIME = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})(?:[T_-]?(\d{2}):?(\d{2}):?(\d{2}))?")

Manifest = dict[str, t.Any]


def require_space(folder: str, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Refused(f"{folder} has {free >> 20} MiB free and {what} takes {-(-needed >> 20)}; make room first.")


# Copying.


def copy(source: str, target: str, timeout: float, wal: bool) -> tuple[dict[str, int] | None, float]:
    """Copy a database that may be in use, its log included; its rows per table where they are of the same moment, and
    when the copy was complete.

    Raise Locked where nothing moves for so many seconds, sqlite3.DatabaseError where the source or the disk is broken.
    """

    def held(connection: sqlite3.Connection) -> tuple[dict[str, int] | None, float]:
        # A reader's snapshot: in WAL mode nobody waits for it, and writers don't start the copy anew.
        connection.execute("BEGIN")
        # Reads the first page and no schema, which may be damaged.
        connection.execute("PRAGMA schema_version").fetchone()
        copy_pages(connection, target, timeout)
        complete = time.monotonic()
        try:
            return sqlite_files.counts(connection), complete
        except sqlite3.DatabaseError:
            return None, complete

    def in_steps(connection: sqlite3.Connection) -> tuple[dict[str, int] | None, float]:
        # With a rollback journal writers wait for readers: so between two steps they get their turn, but not for ever.
        try:
            copy_pages(connection, target, timeout, restarts=_RESTARTS)
        except _Restarts:
            return held(connection)
        return None, time.monotonic()

    return sqlite_files.read(source, held if wal else in_steps, timeout, as_client=True)


class _Restarts(Exception):
    """Somebody writes so often that the copy never comes to its end."""


def copy_pages(connection: sqlite3.Connection, target: str, timeout: float, restarts: int | None = None) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    begun_anew, moved = 0, time.monotonic()
    left_before: int | None = None

    def progress(status: int, left: int, _total: int) -> None:
        nonlocal begun_anew, left_before, moved
        if status == 0:
            if left_before is not None and left >= left_before:
                begun_anew += 1
            left_before, moved = left, time.monotonic()
        if restarts is not None and begun_anew >= restarts:
            raise _Restarts
        if time.monotonic() - moved > timeout:
            raise Locked(f"the database was locked for {timeout:g} s while it was copied; wait for its writer's end.")

    size = connection.execute("PRAGMA page_size").fetchone()[0]
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copied:
        # Whatever is cut off is thrown away, and what is whole is synced before it gets its name.
        copied.execute("PRAGMA journal_mode=OFF")
        copied.execute("PRAGMA synchronous=OFF")
        connection.backup(copied, pages=max(1, STEP // size), progress=progress, sleep=0.05)


def of_copy(path: str, function: t.Callable[[sqlite3.Connection], t.Any]) -> t.Any:
    """Read a file that nobody else knows."""
    with (
        contextlib.closing(sqlite_files.connect(path, mode="ro", immutable=1)) as connection,
        sqlite_files.readable_errors(),
    ):
        return function(connection)


def verify(path: str) -> tuple[sqlite_files.Checked, dict[str, int] | None]:
    """The full check of a copy, and its rows per table where they can be counted."""

    def look(connection: sqlite3.Connection) -> tuple[sqlite_files.Checked, dict[str, int] | None]:
        checked = sqlite_files.check(connection, "full")
        try:
            return checked, sqlite_files.counts(connection)
        except sqlite3.DatabaseError:
            return checked, None

    try:
        return t.cast("tuple[sqlite_files.Checked, dict[str, int] | None]", of_copy(path, look))
    except sqlite3.DatabaseError as error:
        return sqlite_files.Checked([str(error)], ["data"]), None


# Manifests.


def load_manifest(backup: str) -> Manifest | None:
    """The manifest beside a file that is about this file: of the two that it may hold, the one whose size fits."""
    found = read_manifest(backup)
    if found is None or not os.path.isfile(backup):
        return None
    size = os.stat(backup).st_size
    fitting = [it for it in (found, _valid(found.get("replaces"))) if it and it.get("size_bytes") == size]
    if len(fitting) > 1:
        digest = durable.sha256(backup)
        fitting = [it for it in fitting if it["sha256"] == digest] or fitting
    return fitting[0] if fitting else None


def read_manifest(backup: str) -> Manifest | None:
    """The manifest as it stands, whatever the file is."""
    try:
        with open(backup + MANIFEST, encoding="utf-8") as file:
            return _valid(json.load(file))
    except (OSError, ValueError):
        return None


def _valid(found: t.Any) -> Manifest | None:
    """A manifest that has what is relied on, or None."""
    texts = ("database", "taken_at", "sha256")
    good = (
        isinstance(found, dict)
        and found.get("schema") == SCHEMA
        and isinstance(found.get("database"), str)
        and isinstance(found.get("taken_at"), str)
        and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["taken_at"])
    )
    if not good:
        return None
    try:
        clock.seconds(found["taken_at"])
    except ValueError:
        return None
    if found.get("kind") == "quarantine":
        return dict(found) if isinstance(found.get("state"), str) else None
    numbers = isinstance(found.get("size_bytes"), int) and isinstance(found.get("rows"), dict)
    return dict(found) if numbers and all(isinstance(found.get(key), str) for key in texts) else None


def write_manifest(backup: str, manifest: Manifest, work: str | None = None) -> None:
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    durable.write(backup + MANIFEST, text.encode("ascii"), 0o600, work)


# Taking one.


def destination(path: str, dest: str, pattern: str, compress: bool, now: float) -> str:
    """Where the backup goes: the file itself, or in a folder what the pattern gives."""
    if os.path.isdir(dest) or dest.endswith(os.sep):
        name = os.path.basename(path)
        if "/" in pattern or not pattern.replace("{name}", ""):
            raise Refused(f"pattern is {pattern}; it is a file's name that differs from the database's, as {PATTERN}.")
        dest = os.path.join(
            dest, time.strftime(pattern.replace("{name}", name.replace("%", "%%")), time.localtime(now))
        )
    dest = os.path.realpath(dest)
    return dest + ".zst" if compress and not dest.endswith(".zst") else dest


def _guard(path: str, dest: str, check: bool = False) -> Manifest | None:
    """Refuse what would overwrite anything but an older backup; its manifest."""
    folder = os.path.dirname(dest)
    if check and not os.path.exists(folder):
        # Somebody else would have created it by now.
        return None
    if not os.path.isdir(folder):
        raise Refused(f"{folder} does not exist; create the folder of the backups first.")
    swapped = "Were path and dest swapped?"
    if os.path.exists(path) and load_manifest(path):
        raise Refused(f"{path} is itself a backup, as its manifest says. {swapped}")
    if dest in [path + suffix for suffix in sqlite_files.SIDECARS] or dest.endswith(MANIFEST):
        raise Refused(f"{dest} is the name of another file of SQLite's or of this module's; name another one as dest.")
    if os.path.exists(path) and os.path.exists(dest) and os.path.samefile(path, dest):
        raise Refused(f"{dest} is the database itself; name another file as dest.")
    if os.path.exists(dest) and not os.path.isfile(dest):
        raise Refused(f"{dest} is no regular file; name another one as dest.")
    held = sqlite_files.holders(dest)
    sidecars = [dest + suffix for suffix in sqlite_files.SIDECARS if os.path.exists(dest + suffix)]
    manifest = load_manifest(dest)
    # Who only reads a backup, to copy it elsewhere, is not in the way.
    if sidecars or any(one["locks"] or manifest is None for one in held.found):
        who = str(held) or ", ".join(sidecars)
        raise Refused(f"{dest} is a database in use ({who}) and is not overwritten. {swapped}")
    if not os.path.exists(dest) or not os.stat(dest).st_size:
        return None
    if manifest is None:
        raise Refused(
            f"{dest} exists, and no manifest beside it says that it is a backup of this module; move it away, or name "
            f"another file as dest. {swapped}"
        )
    if manifest["database"] != path:
        raise Refused(f"{dest} is a backup of {manifest['database']}; name another file as dest, or move it away.")
    return manifest


def take(
    path: str,
    dest: str,
    *,
    pattern: str = PATTERN,
    compress: bool = False,
    expect_tables: t.Sequence[str] = (),
    timeout: float = 30.0,
    check: bool = False,
) -> dict[str, t.Any]:
    """Back a database up; see the return values of the module sqlite_backup."""
    now = time.time()
    path = os.path.realpath(path)
    dest = destination(path, dest, pattern, compress, now)
    older = _guard(path, dest, check)
    seen = sqlite_files.look(path, "header", expect_tables=expect_tables, timeout=timeout)
    _require_source(seen)
    if compress:
        _zstandard()
    result: dict[str, t.Any] = {
        "backup": dest,
        "manifest": dest + MANIFEST,
        "state": seen["state"],
        "sha256": None,
        "verified": False,
        "before": older,
        "after": None,
    }
    size = seen["size_bytes"] + seen["wal_bytes"]
    if os.path.isdir(os.path.dirname(dest)):
        require_space(os.path.dirname(dest), size, "the copy")
    if check:
        unchanged = older is not None and _written(path) < clock.seconds(older["taken_at"])
        return {**result, "changed": not unchanged}
    try:
        with durable.work_folder(os.path.dirname(dest), os.path.basename(dest)) as work:
            return _take(path, dest, work, older, seen, result, compress, timeout, now)
    except OSError as error:
        raise Refused(
            f"{dest} cannot be written: {error.strerror}; what was there stays.", state=seen["state"]
        ) from None


def _take(
    path: str,
    dest: str,
    work: str,
    older: Manifest | None,
    seen: sqlite_files.Seen,
    result: dict[str, t.Any],
    compress: bool,
    timeout: float,
    now: float,
) -> dict[str, t.Any]:
    copied = os.path.join(work, "copy.db")
    began = time.monotonic()
    try:
        rows_there, complete = copy(path, copied, timeout, seen["journal_mode"] == "wal")
        syncing = time.monotonic()
        durable.sync_file(copied)
    except Locked as error:
        raise Refused(f"{path} cannot be copied: {error}", state="locked") from None
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error) and "not a database" not in str(error):
            raise Refused(f"{path} cannot be copied: {error}; what was at {dest} stays.", state=seen["state"]) from None
        shutil.copyfile(path, copied)
        raise _no_backup(path, dest, copied, "corrupt", [str(error)], now) from None
    synced = time.monotonic()
    checked, rows = verify(copied)
    if seen["state"] == "corrupt":
        # Of a file that was cut off the copy is whole again, with zeros.
        checked = sqlite_files.Checked(seen["errors"], ["data"])
    if checked.state == "ok" and rows_there is not None and rows != rows_there:
        checked = sqlite_files.Checked([f"the copy has {rows} rows, the database {rows_there}"], ["data"])
    digest = durable.sha256(copied)
    verified_at = time.monotonic()
    if not checked.usable:
        raise _no_backup(path, dest, copied, checked.state, checked.errors, now)
    source = os.stat(path)
    about = {
        "database_sha256": digest,
        "compression": "zstd" if compress else None,
        "state": "ok",
        "rows": rows or {},
        "notes": checked.errors,
        "page_count": seen["page_count"],
        "page_size": seen["page_size"],
        "journal_mode": seen["journal_mode"],
        "owner": [source.st_uid, source.st_gid, source.st_mode & 0o7777],
    }
    stored, stored_digest = copied, digest
    if compress:
        stored = os.path.join(work, "copy.zst")
        stored_digest = _compress(copied, stored, digest)
        durable.sync_file(stored)
    manifest = {
        "schema": SCHEMA,
        "database": path,
        "taken_at": clock.utc(now),
        "sha256": stored_digest,
        "size_bytes": os.stat(stored).st_size,
        "sqlite_version": sqlite3.sqlite_version,
        **about,
    }
    result.update(
        sha256=stored_digest,
        verified=checked.state != "unknown",
        rows=rows or {},
        notes=checked.errors,
        copy_seconds=round(complete - began + synced - syncing, 3),
        verify_seconds=round(syncing - complete + verified_at - synced, 3),
        size_bytes=manifest["size_bytes"],
    )
    os.chmod(stored, 0o600)
    with _alone(os.path.dirname(dest), timeout):
        # Another run may have been here in the meantime.
        older = _guard(path, dest)
        same = older is not None and all(older.get(key) == about[key] for key in ("database_sha256", "compression"))
        if same and older and durable.sha256(dest) == older["sha256"]:
            return {**result, "changed": False, "sha256": older["sha256"], "after": older}
        kept = {key: value for key, value in older.items() if key != "replaces"} if older else None
        write_manifest(dest, {**manifest, "replaces": kept} if kept else manifest, work)
        os.replace(stored, dest)
        durable.sync_folder(os.path.dirname(dest))
    return {**result, "changed": True, "after": manifest}


@contextlib.contextmanager
def _alone(folder: str, timeout: float) -> t.Iterator[None]:
    """One at a time pairs a backup with its manifest."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused(f"{folder} is locked by another backup; wait for its end.") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _no_backup(path: str, dest: str, copied: str, state: str, errors: t.Sequence[str], now: float) -> Refused:
    """Keep the copy of a damaged database apart; the same damage is kept once."""
    digest = durable.sha256(copied)
    kept = sorted(glob.glob(f"{glob.escape(dest)}.corrupt-*"))
    corrupt = next((name for name in kept if durable.sha256(name) == digest), None)
    if corrupt is None:
        corrupt = f"{dest}.corrupt-{datetime.fromtimestamp(now, timezone.utc):%Y%m%dT%H%M%SZ}"
        os.chmod(copied, 0o600)
        os.replace(copied, corrupt)
        durable.sync_folder(os.path.dirname(corrupt))
    kind = "damaged in its indexes" if state == "corrupt_index" else "damaged"
    return Refused(
        f"{path} is {kind} ({errors[0]}), so this is no backup; the copy is {corrupt}, and what was at {dest} stays.",
        state=state,
        errors=list(errors[: sqlite_files.SHOWN_ERRORS]),
        corrupt_copy=corrupt,
    )


def _require_source(seen: sqlite_files.Seen) -> None:
    state, path = seen["state"], seen["path"]
    if state in ("ok", "corrupt", "corrupt_index"):
        if seen["tables_missing"]:
            raise Refused(
                f"{path} has no table {', '.join(seen['tables_missing'])}: it is not the database that was meant, or "
                "its tables are gone; restore it rather than back it up.",
                state=state,
            )
        return
    why = "; ".join(seen["errors"] or seen["limits"])
    raise Refused(f"{path} cannot be backed up, its state is {state}: {why}.", state=state, errors=seen["errors"])


def _written(path: str) -> float:
    """When the database was written to for the last time."""
    times = [os.stat(path).st_mtime]
    with contextlib.suppress(FileNotFoundError):
        times.append(os.stat(path + "-wal").st_mtime)
    return max(times)


# Compression.


def _zstandard() -> t.Any:
    try:
        import zstandard
    except ImportError:
        raise Refused(
            "zstandard is not installed on the target; install it (python3-zstandard), or don't compress."
        ) from None
    return zstandard


def _compress(source: str, target: str, digest: str) -> str:
    """Write the compressed copy, and read it again before it is believed; its checksum."""
    zstandard = _zstandard()
    with open(source, "rb") as plain, open(target, "wb") as packed:
        zstandard.ZstdCompressor(level=3, write_checksum=True).copy_stream(plain, packed)
    with open(target, "rb") as packed:
        found = hashlib.sha256()
        for piece in zstandard.ZstdDecompressor().read_to_iter(packed):
            found.update(piece)
    if found.hexdigest() != digest:
        raise Refused(f"{target} does not give back what was compressed; look at the memory and the disk of this host.")
    return durable.sha256(target)


def is_packed(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(ZSTD)) == ZSTD


def unpack(source: str, target: str) -> str:
    """Copy a backup, decompressed where it is compressed; the checksum of the file as it is stored."""
    digest = hashlib.sha256()

    class Reader:
        def __init__(self, file: t.BinaryIO) -> None:
            self.file = file

        def read(self, size: int = -1) -> bytes:
            piece = self.file.read(size)
            digest.update(piece)
            return piece

    with open(source, "rb") as file, open(target, "wb") as out:
        packed = is_packed(source)
        reader = Reader(file)
        try:
            if packed:
                zstandard = _zstandard()
                for piece in zstandard.ZstdDecompressor().read_to_iter(reader):
                    out.write(piece)
            while piece := reader.read(_PIECE):
                # What follows a compressed frame is no part of the database.
                if not packed:
                    out.write(piece)
        except OSError:
            raise
        except Exception as error:
            if not packed or isinstance(error, Refused):
                raise
            raise Refused(f"{source} cannot be decompressed: {error}; it is damaged.") from None
    return digest.hexdigest()


# Finding one.


def candidates(folder: str, path: str, pattern: str) -> list[tuple[float, str, Manifest | None]]:
    """The backups of a database in a folder, newest first: when they were taken, where, and their manifest."""
    if not os.path.isdir(folder):
        raise Refused(f"{folder} is no folder; correct backup_dir.")
    name = os.path.basename(path)
    wanted = _glob(pattern, name)
    found: list[tuple[float, str, Manifest | None]] = []
    for entry in os.scandir(folder):
        if not entry.is_file() or entry.name.endswith((MANIFEST, *sqlite_files.SIDECARS)) or ".corrupt-" in entry.name:
            continue
        manifest = load_manifest(entry.path)
        if manifest:
            if manifest["database"] == path and manifest.get("kind") != "quarantine":
                found.append((clock.seconds(manifest["taken_at"]), entry.path, manifest))
        elif wanted.fullmatch(entry.name) and not read_manifest(entry.path):
            found.append((_named_time(entry.name, entry.stat().st_mtime), entry.path, None))
    return sorted(found, key=lambda it: (it[0], it[1]), reverse=True)


def _glob(pattern: str, name: str) -> re.Pattern[str]:
    """What a pattern may have given, compressed or not."""
    text = re.escape(pattern.replace("{name}", "\0")).replace("\0", re.escape(name))
    return re.compile(re.sub(r"%[-_0^#]?[A-Za-z]", r"[\\w:+-]+?", text) + r"(\.zst)?")


def _named_time(name: str, modified: float) -> float:
    """The time in a file's name, in the host's own time, else when it was written."""
    found = _NAMED_TIME.search(name)
    if not found:
        return modified
    try:
        parts = [int(part) for part in found.groups() if part]
        named = datetime(*parts).astimezone()  # type: ignore[arg-type]
    except ValueError:
        return modified
    # Only the day is named: the time of writing says more, where it is of that day.
    written = datetime.fromtimestamp(modified).astimezone()
    return modified if written.date() == named.date() and not found[4] else named.timestamp()


def day_of(text: str) -> date | None:
    """The day that a date means: 20261126, 2026-11-26, today, yesterday."""
    if text in ("today", "yesterday"):
        return datetime.now().astimezone().date() - timedelta(days=text == "yesterday")
    found = re.fullmatch(r"(\d{4})-?(\d{2})-?(\d{2})", text)
    if not found:
        return None
    try:
        return date(*(int(part) for part in found.groups()))
    except ValueError:
        raise Refused(f"backup is {text}, and there is no such day.") from None


def of_day(found: t.Sequence[tuple[float, str, t.Any]], day: date) -> list[tuple[float, str, t.Any]]:
    return [it for it in found if datetime.fromtimestamp(it[0]).astimezone().date() == day]

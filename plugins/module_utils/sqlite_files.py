# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a SQLite database file without leaving a trace: no file made, nothing written, no checkpoint.

SQLite itself is not careful enough for that: asked to read only, it creates a missing -wal and -shm, and resets the
-shm of a client that was killed. So which way it may be opened is decided here, see `_way`. The file format is that of
https://www.sqlite.org/fileformat2.html, the lock bytes are those of https://www.sqlite.org/src/file/src/os.h.

A process loses all its locks on a file when it closes any descriptor of it, and SQLite's are such locks. So nothing
here opens the file by itself while a connection to it is open, and one thread at a time reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import math
import os
import re
import shutil
import sqlite3
import stat
import struct
import tempfile
import threading
import time
import typing as t
import urllib.parse

from ansible_collections.oncall.runbooks.plugins.module_utils import durable, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

T = t.TypeVar("T")

DEPTHS = ("header", "quick", "full")
SIDECARS = ("-wal", "-shm", "-journal")

MAGIC = b"SQLite format 3\0"
_JOURNAL_MAGIC = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
# What else looks random from its first byte on.
_COMPRESSED = (
    b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh", b"PK\x03\x04", b"7z\xbc\xaf", b"\x04\x22\x4d\x18",
    b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x89PNG", b"\xff\xd8\xff", b"%PDF",
)  # fmt: skip
# The byte of a -shm that every client keeps locked as long as it has it open.
_SHM_OPEN = 128
_LOCK_FIRST, _RESERVED, _LOCK_LAST = 0x40000000, 0x40000001, 0x400001FF
# Writes within one tick of the kernel's clock leave the same modification time.
_TICK = 0.05
MOST_ERRORS = 100
SHOWN_ERRORS = 20
# Whether only indexes are damaged is tried out in memory up to this size.
IN_MEMORY = 32 << 20
_NETWORK = re.compile(
    r"^(nfs\d?|cifs|smb\d?|smbfs|ceph|9p|afs|lustre|beegfs|glusterfs|fuse\.(sshfs|glusterfs|ceph.*|s3fs))$"
)
# What the messages of integrity_check say of an index alone; of a duplicate it is the table's rows that are wrong.
_OF_INDEX = re.compile(r"missing from index |^wrong # of entries in index |^rowid not at end-of-record .* of index")
_MISSING, _WRONG_NUMBER = "missing from index ", "wrong # of entries in index "
# What an application brings with it, or a newer SQLite: without it nothing can be said, and nothing is damaged.
_FOREIGN = re.compile(
    r"no such collation sequence|no such function|unknown function|no such module|no such tokenizer|"
    r"unsupported file format|malformed database schema .*(unknown table option|"
    r'near "(strict|generated|as|from|returning|materialized|filter|over|window|nulls)": syntax error)',
    re.IGNORECASE,
)
_OF_TREE = re.compile(r"^Tree (\d+) ")
_OF_PAGE = re.compile(r"^(?:On tree page|Page) (\d+)\b")
_ENDS = " ends with:"
_HARMLESS = re.compile(r"Page \d+(?: is|:) never used$|^\*\*\* in database main \*\*\*$|_check ends with:")


_one_at_a_time = threading.RLock()


class Changed(Exception):
    """The file was written to while it was read in a way that does not bear it."""


def uri(path: str, **parameters: t.Any) -> str:
    """The path as SQLite's URI: names may hold spaces, quotes, `?`, `#` and `%`."""
    quoted = urllib.parse.quote_from_bytes(os.fsencode(os.path.abspath(path)))
    return f"file://{quoted}?{urllib.parse.urlencode(parameters)}"


def connect(path: str, timeout: float = 5.0, **parameters: t.Any) -> sqlite3.Connection:
    """A connection without Python's own transactions, for any thread. The schema may not run anything."""
    connection = sqlite3.connect(
        uri(path, **parameters), uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA trusted_schema=OFF")
    # Text that is not UTF-8 is data too.
    connection.text_factory = lambda value: value.decode("utf-8", "surrogateescape")
    return connection


@contextlib.contextmanager
def readable_errors() -> t.Iterator[None]:
    """Python cannot decode SQLite's message about a damaged name; make it an error of the database again."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(bytes(error.object).decode("utf-8", "replace")) from None
    except UnicodeEncodeError:
        raise sqlite3.DatabaseError("a name in it is no UTF-8") from None


def identifier(name: str) -> str:
    """A table's or column's name in SQL, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


@dataclasses.dataclass(frozen=True)
class Header:
    """The first hundred bytes."""

    page_size: int
    wal: bool
    page_count: int
    freelist_count: int
    user_version: int
    application_id: int
    encoding: str

    @classmethod
    def parse(cls, page: bytes) -> Header | None:
        if len(page) < 100 or not page.startswith(MAGIC):
            return None
        (size,) = struct.unpack_from(">H", page, 16)
        counter, pages, _trunk, free = struct.unpack_from(">IIII", page, 24)
        (encoding, user_version) = struct.unpack_from(">Ii", page, 56)
        (application_id,) = struct.unpack_from(">i", page, 68)
        (valid_for,) = struct.unpack_from(">I", page, 92)
        return cls(
            page_size=65536 if size == 1 else size,
            wal=page[18] == 2 or page[19] == 2,
            # Versions before 3.7 left the count alone, and the counters then differ.
            page_count=pages if counter == valid_for else 0,
            freelist_count=free,
            user_version=user_version,
            application_id=application_id,
            encoding={1: "UTF-8", 2: "UTF-16le", 3: "UTF-16be"}.get(encoding, f"encoding {encoding}"),
        )


def without_header(page: bytes, size: int) -> tuple[str, str]:
    """The state of a file that does not begin as a database does, and the sentence for it."""
    if page.startswith(MAGIC):
        return "corrupt", f"it ends after {size} bytes, in the middle of its header"
    plausible = len(page) >= 100 and page[21:24] == bytes([64, 32, 32]) and page[18] in (1, 2) and page[19] in (1, 2)
    erased = not any(page[:100])
    if (plausible or erased) and len(page) > 108 and page[100] in (0x05, 0x0D):
        return "corrupt", "its first bytes are overwritten; what follows them is a SQLite database"
    if (plausible or _is_random(page)) and size % 512 == 0 and not page.startswith(_COMPRESSED):
        return "encrypted", "it has no SQLite header, and its bytes are random: encrypted (SQLCipher, SEE), or noise"
    # What it begins with is not shown: a wrong path may name a file with secrets.
    return "not_a_database", f"it does not begin with {MAGIC!r}"


def _is_random(page: bytes) -> bool:
    counts = [page.count(bytes([value])) for value in set(page)]
    entropy = -sum(count / len(page) * math.log2(count / len(page)) for count in counts)
    # Random bytes have nearly as much as there can be; in 512 of them not every value occurs.
    return entropy > 0.97 * min(8.0, math.log2(len(page))) - (0.15 if len(page) < 4096 else 0.0)


# Who has it.


@dataclasses.dataclass
class Holders:
    """Who has a database open. Who is not root does not see everybody, but everybody's locks."""

    found: list[dict[str, t.Any]]
    complete: bool

    def __str__(self) -> str:
        return ", ".join(f"{one['name']} (PID {one['pid']}, {one['user']})" for one in self.found)


def holders(path: str) -> Holders:
    """The processes that have the database or one of its sidecars open, this one excepted."""
    inodes: dict[tuple[int, int], str] = {}
    for suffix in ("", *SIDECARS):
        with contextlib.suppress(OSError):
            status = os.stat(path + suffix)
            inodes[status.st_dev, status.st_ino] = os.path.basename(path) + suffix
    open_files, complete = procfs.open_files_of(inodes, path)
    locks = _locks(inodes, open_files)
    found = []
    for pid in sorted({*open_files, *locks} - {os.getpid()}):
        try:
            owner = procfs.user(os.stat(f"/proc/{pid}").st_uid)
        except OSError:
            continue
        files = sorted(open_files.get(pid) or set(locks[pid]))
        found.append({"pid": pid, "name": procfs.name(pid), "user": owner, "files": files, "locks": locks.get(pid, {})})
    return Holders(found, complete)


def lost_writers(held: Holders) -> list[str]:
    """Sentences about who writes to a file that has no name any more."""
    return [
        f"{one['name']} (PID {one['pid']}) has a deleted file of this name open, and what it writes is lost when it "
        f"ends: save it with cp /proc/{one['pid']}/fd/N, then restart the process"
        for one in held.found
        if any(file.endswith(procfs.DELETED) for file in one["files"])
    ]


def _locks(inodes: t.Mapping[tuple[int, int], str], holding: t.Collection[int]) -> dict[int, dict[str, str]]:
    """Who has which lock on these files: {pid: {file: lock}}, with SQLite's names for those on the database.

    Some filesystems show another device there than stat does; then who has the file open tells whose locks they are.
    """
    try:
        lines = procfs.read("/proc/locks").splitlines()
    except OSError:
        return {}
    exact = {(os.major(dev), os.minor(dev), inode): name for (dev, inode), name in inodes.items()}
    by_inode = {inode: name for (_dev, inode), name in inodes.items()}
    found: dict[int, dict[str, str]] = {}
    for line in lines:
        match = re.match(r"\d+: POSIX +\w+ +(\w+) +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$", line)
        if not match:
            continue
        pid, inode = int(match[2]), int(match[5])
        file = exact.get((int(match[3], 16), int(match[4], 16), inode)) or (
            by_inode.get(inode) if pid in holding else None
        )
        if file is None:
            continue
        kind, first = match[1], int(match[6])
        lock = "shared"
        if kind == "WRITE" and _LOCK_FIRST <= first <= _LOCK_LAST:
            lock = "reserved" if first == _RESERVED else "exclusive"
        elif kind == "WRITE":
            lock = "write"
        before = found.setdefault(pid, {}).get(file)
        if before in (None, "shared") or lock == "exclusive":
            found[pid][file] = lock
    return found


# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def _blocker(file: int, first: int, last: int, kind: int) -> int | None:
    """The process whose lock would keep us from having one, asked of the kernel itself; 0 where it cannot be seen."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, first, last - first + 1, 0)
    found, _whence, _start, _length, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return None if found == fcntl.F_UNLCK else max(0, pid)


def _writer(file: int) -> int | None:
    """Who keeps readers out."""
    return _blocker(file, _LOCK_FIRST, _LOCK_FIRST, fcntl.F_RDLCK) or _blocker(
        file, _RESERVED + 1, _LOCK_LAST, fcntl.F_RDLCK
    )


def _who(pids: t.Iterable[int | None]) -> str:
    return ", ".join(f"{procfs.name(pid)} (PID {pid})" for pid in pids if pid) or "a process that cannot be seen"


# Where it lies.


def filesystem(path: str) -> str:
    """The type of the filesystem that a path is on, or ''."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in procfs.read("/proc/self/mountinfo").splitlines():
            left, _dash, right = line.partition(" - ")
            point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), left.split()[4])
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, right.split()[0]
    return kind


def is_network(kind: str) -> bool:
    return bool(_NETWORK.match(kind))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def me() -> str:
    return procfs.user(os.geteuid())


def cannot(path: str, error: OSError) -> NoAnswer:
    """What it means that the system refuses."""
    if isinstance(error, PermissionError):
        return NoAnswer(f"{path} may not be read by {me()}; run with -b.", "permission")
    return NoAnswer(f"{path} cannot be read: {error.strerror}.")


def first_page(path: str) -> tuple[bytes, os.stat_result] | None:
    """The first bytes of a file and what stat says of it; None where there is none."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise NoAnswer(f"{path} is no regular file; name the database's file.", "no data")
        with open(path, "rb") as file:
            return file.read(4096), status
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot(path, error) from None


def header_of(path: str) -> Header | None:
    found = first_page(path)
    return Header.parse(found[0]) if found else None


# Opening.


@dataclasses.dataclass(frozen=True)
class _Way:
    """How a database may be read: in place, in place as if nobody could write to it, or in a copy."""

    parameters: dict[str, t.Any]
    copied: bool = False
    # What must not change meanwhile, where SQLite takes no lock.
    fingerprint: tuple[t.Any, ...] | None = None


# With a -shm that it may not write to, SQLite reads the log of a client that was killed without touching it.
_IN_PLACE = _Way({"mode": "ro", "readonly_shm": 1})
_AS_CLIENT = _Way({"mode": "rw"})


def fingerprint(path: str) -> tuple[t.Any, ...]:
    found: list[t.Any] = []
    for suffix in ("", "-wal", "-journal"):
        try:
            status = os.stat(path + suffix)
            found += [status.st_ino, status.st_size, status.st_mtime_ns]
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


def is_hot(path: str, file: int | None = None) -> bool:
    """Whether a transaction was cut off: its journal is to be rolled back, and nobody is at it."""
    try:
        with open(path + "-journal", "rb") as journal:
            if journal.read(8) != _JOURNAL_MAGIC:
                return False
        with contextlib.ExitStack() as stack:
            if file is None:
                file = stack.enter_context(open(path, "rb")).fileno()
            return _blocker(file, _RESERVED, _LOCK_LAST, fcntl.F_WRLCK) is None
    except OSError:
        return False


def _way(path: str, file: int, deadline: float) -> _Way:
    if is_hot(path, file):
        return _Way({"mode": "rw"}, copied=True, fingerprint=fingerprint(path))
    if not _header(file).wal:
        return _IN_PLACE
    # Without a log the file alone is all there is, and opening it in any other way would create the other two. But only
    # when it has been quiet can it be seen whether somebody writes to it meanwhile.
    while not os.path.exists(path + "-wal") or not (_size(path + "-wal") or os.path.exists(path + "-shm")):
        found = fingerprint(path)
        if not 0 <= time.time() - os.stat(path).st_mtime < _TICK:
            return _Way({"mode": "ro", "immutable": 1}, fingerprint=found)
        if time.monotonic() > deadline:
            raise Changed
        time.sleep(0.001)
    if os.path.exists(path + "-shm") and not _is_abandoned(path):
        return _IN_PLACE
    return _Way({"mode": "rw"}, copied=True, fingerprint=fingerprint(path))


def _is_abandoned(path: str) -> bool:
    """Whether a client was killed while it began a log anew, of which its -shm, that nobody has open, knows nothing.

    SQLite would try again and again to read it in place. The salts stand in the headers of the log and of its index:
    https://www.sqlite.org/walformat.html
    """
    try:
        with open(path + "-wal", "rb") as log, open(path + "-shm", "rb") as index:
            salts = os.pread(log.fileno(), 8, 16), os.pread(index.fileno(), 8, 32)
            return salts[0] != salts[1] and _blocker(index.fileno(), _SHM_OPEN, _SHM_OPEN, fcntl.F_WRLCK) is None
    except FileNotFoundError:
        return False


def _header(file: int) -> Header:
    header = Header.parse(os.pread(file, 100, 0))
    if header is None:
        raise Changed
    return header


@contextlib.contextmanager
def _scratch(path: str) -> t.Iterator[str]:
    """A copy of the database with its log or journal, for this process only."""
    needed = sum(_size(path + suffix) for suffix in ("", "-wal", "-journal"))
    with durable.work_folder(tempfile.gettempdir(), "oncall-sqlite") as folder:
        free = shutil.disk_usage(folder).free
        if 2 * needed > free:
            raise NoAnswer(
                f"{path} was left by a client that was killed and can only be read in a copy; set TMPDIR to a "
                f"folder with {2 * needed >> 20} MiB free, {os.path.dirname(folder)} has {free >> 20}.",
                "no space",
            )
        copy = os.path.join(folder, "copy.db")
        try:
            for suffix in ("", "-wal", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(path + suffix, copy + suffix)
        except OSError as error:
            raise cannot(path, error) from None
        yield copy


def read(
    path: str, function: t.Callable[[sqlite3.Connection], T], timeout: float = 5.0, *, as_client: bool = False
) -> T:
    """Call the function with a connection that reads the database as it is, its log included, and leaves no trace.

    Who is no mere onlooker reads `as_client`, where the database is written to again and again: like any other client
    of SQLite. Raise Locked while somebody keeps it from being read, sqlite3.DatabaseError for damage.
    """
    with _one_at_a_time:
        return _read(path, function, timeout, as_client)


def _read(path: str, function: t.Callable[[sqlite3.Connection], T], timeout: float, as_client: bool) -> T:
    deadline = time.monotonic() + timeout
    way = None
    while True:
        try:
            return _read_once(path, function, max(0.1, deadline - time.monotonic()), way)
        except (Changed, FileNotFoundError):
            # Written to, or a sidecar came or went between looking and opening.
            way = _AS_CLIENT if as_client and os.path.exists(path) else None
            problem: Exception = Locked(f"{path} is written to without a pause; a longer timeout may find one.")
        except _Blocked as error:
            problem = Locked(f"{path} is locked by {error}; wait for its end.")
        except PermissionError as error:
            raise cannot(path, error) from None
        except sqlite3.OperationalError as error:
            said = str(error)
            if any(word in said for word in ("locked", "busy", "locking protocol")):
                # Not every lock is waited for by SQLite itself, such as that of a client that closes.
                problem = Locked(f"{path} is locked by {_who(_lockers(path))}; wait for its end.")
            elif "unable to open" in said or "readonly database" in said:
                problem = NoAnswer(
                    f"{path} or its -wal or -shm cannot be opened by {me()} ({said}); run with -b.", "permission"
                )
            else:
                raise
        if time.monotonic() > deadline:
            raise problem
        time.sleep(_TICK)


class Locked(Exception):
    """Somebody keeps the database from being read, or written; the message is one sentence."""


class _Blocked(Exception):
    """Somebody has it locked now; the message is who."""


def _lockers(path: str) -> list[int]:
    """Who has a lock that keeps others out, when no connection is open."""
    with open(path, "rb") as file:
        found = {_writer(file.fileno()), _blocker(file.fileno(), _RESERVED, _RESERVED, fcntl.F_WRLCK)}
    return sorted(pid for pid in found if pid)


def _read_once(path: str, function: t.Callable[[sqlite3.Connection], T], timeout: float, way: _Way | None = None) -> T:
    with contextlib.ExitStack() as stack:
        # Closed last of all, because closing it takes SQLite's locks away.
        file = stack.enter_context(open(path, "rb")).fileno()
        _header(file)
        if way is None:
            held = True
            # As long as somebody reads, no client removes the log or changes the journal mode.
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, _LOCK_LAST - _RESERVED, _RESERVED + 1)
            except OSError as error:
                # Some filesystems have no locks, and then SQLite says what it can do.
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise _Blocked(_who([_writer(file)])) from None
                held = False
            way = _way(path, file, time.monotonic() + timeout)
            if held and (way.fingerprint or not _header(file).wal):
                # A copy, or a file that only has to be found unchanged afterwards: nobody has to wait for us. And with
                # a rollback journal a writer would wait for this lock, and SQLite for the writer.
                fcntl.lockf(file, fcntl.LOCK_UN)
        where = stack.enter_context(_scratch(path)) if way.copied else path
        if way.copied and fingerprint(path) != way.fingerprint:
            raise Changed
        connection = stack.enter_context(contextlib.closing(connect(where, timeout, **way.parameters)))
        try:
            with readable_errors():
                result = function(connection)
        except (sqlite3.DatabaseError, NoAnswer):
            if way.fingerprint and fingerprint(path) != way.fingerprint:
                raise Changed from None
            raise
        if way.fingerprint and not way.copied and fingerprint(path) != way.fingerprint:
            raise Changed
        return result


# What is in it.


def tables(connection: sqlite3.Connection, schema: str = "main") -> list[str]:
    """The tables with rows of their own: without SQLite's, and without virtual ones, whose rows are in other tables."""
    query = (
        f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' "  # noqa: S608 - main or an attached one
        "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    )
    return [str(row[0]) for row in connection.execute(query)]


def counts(connection: sqlite3.Connection) -> dict[str, int]:
    """Rows per table, counted in the tables and not in an index, which may be damaged."""
    return {name: count(connection, name) for name in tables(connection) if is_utf8(name)}


def is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def count(connection: sqlite3.Connection, table: str) -> int:
    query = f"SELECT count(*) FROM {identifier(table)} NOT INDEXED"  # noqa: S608 - quoted
    return int(connection.execute(query).fetchone()[0])


@dataclasses.dataclass
class Checked:
    """What the checks of one depth found."""

    errors: list[str]
    # index, data, foreign_keys
    damage: list[str]
    finished: bool = True
    broken_references: int = 0

    @property
    def state(self) -> str:
        if not self.damage:
            return "ok" if self.finished else "unknown"
        return "corrupt_index" if self.damage == ["index"] else "corrupt"

    @property
    def usable(self) -> bool:
        """Whether a copy is worth keeping: sound, or as the application has written it and only it can check."""
        return self.state in ("ok", "unknown") or self.damage == ["foreign_keys"]


def check(connection: sqlite3.Connection, depth: str, budget: float | None = None) -> Checked:
    """quick_check or integrity_check, then foreign_key_check, within so many seconds."""
    if depth == "header":
        return Checked([], [])
    deadline = time.monotonic() + budget if budget else float("inf")
    pragma = "quick_check" if depth == "quick" else "integrity_check"
    if budget:
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 20000)
    errors: list[str] = []
    try:
        try:
            for message in _messages(connection, pragma):
                errors.append(message)
        except sqlite3.DatabaseError as error:
            if is_no_damage(error):
                raise
            if _FOREIGN.search(str(error)):
                return Checked([f"this SQLite {sqlite3.sqlite_version} cannot check it: {error}"], [], finished=False)
            if depth == "full" and not errors:
                # Python reads one row ahead, so that what was said before the end is lost; this goes on to the end.
                with contextlib.suppress(sqlite3.DatabaseError):
                    errors.extend(_messages(connection, "quick_check"))
            errors.append(f"{pragma}{_ENDS} {error}")
        if errors:
            return Checked(errors, [_kind_of_damage(connection, errors)])
        broken, number = _broken_references(connection)
    except sqlite3.OperationalError as error:
        if str(error) != "interrupted":
            raise
        over = f"{pragma} and foreign_key_check did not end within {budget:g} s"
        # What was found until then is damage all the same; of which kind is not known.
        return Checked([*errors, over], ["data"] if errors else [], finished=False)
    finally:
        connection.set_progress_handler(None, 0)
    return Checked(broken, ["foreign_keys"] if broken else [], broken_references=number)


def _messages(connection: sqlite3.Connection, pragma: str) -> t.Iterator[str]:
    for (message,) in connection.execute(f"PRAGMA {pragma}({MOST_ERRORS})"):
        if message != "ok":
            yield from str(message).splitlines()


def is_no_damage(error: sqlite3.DatabaseError) -> bool:
    words = ("locked", "busy", "unable to open", "interrupted", "readonly", "protocol")
    return any(word in str(error) for word in words)


def _broken_references(connection: sqlite3.Connection) -> tuple[list[str], int]:
    """Sentences about rows that refer to rows that do not exist, and how many there are."""
    found: dict[tuple[str, str], tuple[t.Any, int]] = {}
    try:
        for table, rowid, parent, _number in connection.execute("PRAGMA foreign_key_check"):
            first, number = found.get((table, parent), (rowid, 0))
            found[table, parent] = (first, number + 1)
    except sqlite3.OperationalError as error:
        if "foreign key mismatch" not in str(error):
            raise
        return [str(error)], 0
    told = [
        f"{number} rows of {table} refer to rows of {parent} that do not exist"
        + (f", rowid {first} first" if first is not None else "")
        for (table, parent), (first, number) in found.items()
    ]
    return told, sum(number for _first, number in found.values())


def _kind_of_damage(connection: sqlite3.Connection, errors: t.Sequence[str]) -> str:
    """index, where rebuilding the indexes would mend all of it; else data."""
    if any(_WRONG_NUMBER in error for error in errors) and not any(_MISSING in error for error in errors):
        # Indexes with more entries than rows may be all that is left of rows.
        return "data"
    try:
        size = (
            connection.execute("PRAGMA page_count").fetchone()[0] * connection.execute("PRAGMA page_size").fetchone()[0]
        )
        if size <= IN_MEMORY:
            with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
                # In one snapshot, which a writer cannot begin anew or keep waiting.
                connection.execute("BEGIN")
                connection.execute("PRAGMA schema_version").fetchone()
                connection.backup(copy)
                connection.execute("ROLLBACK")
                mended = _reindexed(copy)
            if mended is not None:
                return "index" if mended else "data"
        indexes = {row[0] for row in connection.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'")}
        serious = [message for message in errors if not _HARMLESS.search(message)]
        pages = _pages_of_tables(connection) if any(map(_OF_PAGE.match, serious)) else None
    except sqlite3.DatabaseError:
        return "data"

    def of_index(message: str) -> bool:
        tree, page = _OF_TREE.match(message), _OF_PAGE.match(message)
        if tree:
            return int(tree[1]) in indexes
        # Versions before 3.42 name the page, not the tree that it belongs to.
        if page:
            return pages is not None and int(page[1]) not in pages
        return bool(_OF_INDEX.search(message))

    return "index" if serious and all(map(of_index, serious)) else "data"


def _pages_of_tables(connection: sqlite3.Connection) -> set[int] | None:
    """The pages that rows are in; None where this SQLite cannot tell."""
    names = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0")
    ]
    found = {1}
    try:
        for name in names:
            found.update(row[0] for row in connection.execute("SELECT pageno FROM dbstat WHERE name = ?", (name,)))
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return found


def rebuild(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Write all rows into a new database, read from the tables alone, so that it has sound indexes.

    Raise sqlite3.DatabaseError where that does not give a sound database with as many rows.
    """
    if source.execute("SELECT count(*) FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL%'").fetchone()[0]:
        raise sqlite3.DatabaseError("it has virtual tables, which cannot be written anew")
    for pragma in ("page_size", "encoding", "user_version", "application_id"):
        value = source.execute(f"PRAGMA {pragma}").fetchone()[0]
        target.execute(f"PRAGMA {pragma} = {value!r}")
    target.execute("PRAGMA ignore_check_constraints=ON")
    target.execute("BEGIN")
    # Tables come first; what SQLite makes by itself has no text.
    schema = "SELECT type = 'table', name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type <> 'table', rowid"
    for is_table, name, sql in source.execute(schema).fetchall():
        if name != "sqlite_sequence" and not name.startswith("sqlite_stat"):
            target.execute(sql)
        if is_table:
            _copy_rows(source, target, name)
    target.execute("COMMIT")
    said = [row[0] for row in target.execute("PRAGMA integrity_check(1)")]
    if said != ["ok"] or counts(source) != counts(target):
        raise sqlite3.DatabaseError(f"written anew it is not sound either: {said[0]}")


def _copy_rows(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> None:
    quoted = identifier(table)
    if (
        table.startswith("sqlite_stat")
        or not target.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    ):
        return
    if table == "sqlite_sequence":
        target.execute("DELETE FROM sqlite_sequence")
    # Without columns that are computed.
    columns = [identifier(row[1]) for row in source.execute(f"PRAGMA table_xinfo({quoted})") if not row[6]]
    named = [row[1].lower() for row in source.execute(f"PRAGMA table_xinfo({quoted})")]
    keyed = any(row[5] for row in source.execute(f"PRAGMA table_info({quoted})"))
    alias = next((name for name in ("rowid", "_rowid_", "oid") if name not in named), None)
    if not keyed and alias and table != "sqlite_sequence":
        columns.insert(0, alias)
    rows = source.execute(f"SELECT {', '.join(columns)} FROM {quoted} NOT INDEXED")  # noqa: S608 - quoted
    marks = ", ".join("?" * len(columns))
    target.executemany(f"INSERT INTO {quoted} ({', '.join(columns)}) VALUES ({marks})", rows)  # noqa: S608 - quoted


def _reindexed(copy: sqlite3.Connection) -> bool | None:
    """Whether a copy is sound when its indexes are rebuilt; None where the damaged ones are in the way of that."""
    try:
        copy.execute("REINDEX")
        return [row[0] for row in copy.execute("PRAGMA integrity_check(1)")] == ["ok"]
    except sqlite3.IntegrityError:
        # Duplicates: rows are wrong.
        return False
    except sqlite3.DatabaseError:
        return None


_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, 33)  # 33: SQLITE_RECURSIVE


@dataclasses.dataclass(frozen=True)
class Query:
    """A SELECT with the values that are bound to its parameters; of one value, or of `most` rows."""

    text: str
    values: t.Sequence[t.Any] = ()
    most: int = 0


def answer(connection: sqlite3.Connection, query: Query) -> t.Any:
    """The one value that a query gives, or its first rows as mappings. Anything but reading is refused."""
    is_one = "one SELECT" if query.most else "one SELECT of one row with one column"
    connection.set_authorizer(lambda action, *_about: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
    try:
        cursor = connection.execute(query.text, tuple(query.values))
        rows = cursor.fetchmany(query.most or 2)
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error) or is_no_damage(error):
            raise
        raise NoAnswer(f"The query is refused: {error}; it is {is_one}.") from None
    except (sqlite3.Warning, ValueError) as error:
        raise NoAnswer(f"The query is refused: {error}; it is {is_one}.") from None
    finally:
        # Before Python 3.11 None would deny everything.
        connection.set_authorizer(lambda *_about: sqlite3.SQLITE_OK)
    if query.most:
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, map(_printable, row))) for row in rows]
    if not rows and query.values:
        raise NoAnswer(f"There is no row for {', '.join(map(repr, query.values))}.", "no data")
    if len(rows) != 1 or len(rows[0]) != 1:
        shape = f"{len(rows[0])} columns" if rows and len(rows[0]) != 1 else "no row" if not rows else "several rows"
        raise NoAnswer(f"The query gives {shape}; it is {is_one}.", "no data")
    return _printable(rows[0][0])


def _printable(value: t.Any) -> t.Any:
    return value.hex() if isinstance(value, bytes) else value


Seen = dict[str, t.Any]


def look(
    path: str,
    depth: str = "quick",
    *,
    expect_tables: t.Sequence[str] = (),
    count_tables: bool = False,
    queries: t.Mapping[str, str | Query] | None = None,
    timeout: float = 5.0,
    budget: float | None = None,
) -> Seen:
    """Everything that can be told of a database file; see the return values of the module sqlite_info.

    Raise NoAnswer where the file may not be read at all.
    """
    with _one_at_a_time:
        return _look(os.path.realpath(path), depth, expect_tables, count_tables, queries, timeout, budget)


def _nothing(real: str, depth: str) -> Seen:
    return {
        "path": real,
        "state": "missing",
        "errors": [],
        "depth": depth,
        "damage": [],
        "broken_references": 0,
        "limits": [],
        "size_bytes": None,
        "modified_at": None,
        "page_size": None,
        "page_count": None,
        "freelist_count": None,
        "journal_mode": None,
        "wal_bytes": _size(real + "-wal"),
        "hot_journal": False,
        "application_id": None,
        "user_version": None,
        "encoding": None,
        "tables": None,
        "tables_missing": [],
        "rows": None,
        "query_results": None,
        "holders": [],
        "holders_complete": True,
        "filesystem": filesystem(real),
        "disk_free_bytes": None,
    }


def not_seen(path: str, depth: str, why: str) -> Seen:
    """What is told of a file that may not be read."""
    nothing = _nothing(os.path.realpath(path), depth)
    return {**nothing, "state": "unknown", "errors": [why], "limits": [why], "holders_complete": False}


def _look(
    real: str,
    depth: str,
    expect_tables: t.Sequence[str],
    count_tables: bool,
    queries: t.Mapping[str, str | Query] | None,
    timeout: float,
    budget: float | None,
) -> Seen:
    seen = _nothing(real, depth)
    with contextlib.suppress(OSError):
        seen["disk_free_bytes"] = shutil.disk_usage(os.path.dirname(real)).free
    held = holders(real)
    seen.update(holders=held.found, holders_complete=held.complete, limits=lost_writers(held))
    found = first_page(real)
    if found is None:
        leftovers = [real + suffix for suffix in SIDECARS if os.path.exists(real + suffix)]
        seen["errors"] = [f"{real} does not exist" + (f", but {', '.join(leftovers)} does" if leftovers else "")]
        return seen
    page, status = found
    seen.update(
        size_bytes=status.st_size,
        modified_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime)),
    )
    if not held.complete:
        seen["limits"].append(f"{me()} does not see every process that has it open; run with -b")
    if not page:
        seen.update(state="empty", errors=[f"{real} is empty: 0 bytes, no table"])
        return seen
    header = Header.parse(page)
    if header is None:
        seen["state"], why = without_header(page, status.st_size)
        seen["errors"] = [f"{real}: {why}"]
        return seen
    seen.update(
        page_size=header.page_size,
        page_count=header.page_count or -(-status.st_size // max(1, header.page_size)),
        freelist_count=header.freelist_count,
        journal_mode="wal" if header.wal else "delete",
        hot_journal=is_hot(real),
        application_id=header.application_id,
        user_version=header.user_version,
        encoding=header.encoding,
    )
    if is_network(seen["filesystem"]):
        seen["limits"].append(
            f"it is on {seen['filesystem']}, a network filesystem: what other hosts have open or locked is not seen"
        )
        if header.wal:
            seen["limits"].append("its write-ahead log cannot be read safely there, so only the header was looked at")
            seen["state"] = "unknown"
            return seen

    limits = list(seen["limits"])

    def everything(connection: sqlite3.Connection) -> None:
        # Once more where the file has changed in the meantime.
        seen.update(query_results=None, rows=None, tables_missing=[], limits=list(limits))
        seen["tables"] = tables(connection)
        for key in ("page_count", "freelist_count", "application_id", "user_version"):
            seen[key] = connection.execute(f"PRAGMA {key}").fetchone()[0]
        checked = check(connection, depth, budget)
        short = _short(real, seen)
        if short:
            checked = Checked([short, *checked.errors], ["data"])
        seen.update(errors=checked.errors[:SHOWN_ERRORS], damage=checked.damage, state=checked.state)
        seen["broken_references"] = checked.broken_references
        if not checked.finished:
            seen["limits"] += checked.errors
        if count_tables:
            seen["rows"] = counts(connection)
        if queries:
            seen["query_results"] = {
                name: answer(connection, query if isinstance(query, Query) else Query(str(query)))
                for name, query in queries.items()
            }

    try:
        read(real, everything, timeout)
    except Locked as error:
        seen.update(state="locked", errors=[str(error)], damage=[], tables=None, rows=None, query_results=None)
    except sqlite3.DatabaseError as error:
        if _FOREIGN.search(str(error)):
            limit = f"this SQLite {sqlite3.sqlite_version} cannot read it: {error}"
            seen.update(state="unknown", limits=[*limits, limit], errors=[])
        elif len(page) > 108 and page[100] not in (0x05, 0x0D) and _is_random(page[100:]):
            seen.update(
                state="encrypted", errors=[f"{real}: behind its header its bytes are random: encrypted, or noise"]
            )
        else:
            seen.update(state="corrupt", damage=["data"], errors=[*seen["errors"], f"{real}: {error}"])
    if seen["tables"] is not None:
        seen["tables_missing"] = sorted(set(expect_tables) - set(seen["tables"]))
    return seen


def _short(real: str, seen: Seen) -> str:
    """SQLite reads what a file lacks at its end as zeros, and finds nothing wrong."""
    if _size(real + "-wal") or seen["hot_journal"]:
        return ""
    size, wanted = _size(real), seen["page_count"] * seen["page_size"]
    return f"{real} has {size} bytes, and its pages {wanted}: it was cut off" if size < wanted else ""

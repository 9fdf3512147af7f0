# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of a FAISS index: find them, trust them, take one, and hold what is there against them.

An archive is `backup_<seconds since 1970>.tar.gz`, as the service itself makes it: the files with their base names. It
is recorded where a manifest lies beside it (`backup_<…>.manifest.json`, with the SHA-256 of each file), or where a line
in the service's history has its MD5. What is not recorded may be anything, and is taken only by its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import typing as t
import zlib

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, durable, faiss_index
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.faiss_index import (
    INDEX,
    MATRIX,
    METADATA,
    PIECE,
    SUFFIXES,
    VECTORIZER,
    Clock,
    File,
    Folder,
    Seen,
    TimeUp,
)

SCHEMA = "oncall.runbooks/faiss_backup/1"
HISTORY = "logs/backup_history.jsonl"
_MANIFEST = ".manifest.json"
_ARCHIVE = ".tar.gz"
_NAME = re.compile(r"backup_(\d{1,12})")
# What the service calls backups that hold an index.
_TYPES = ("index", "full")
# Beside the members' data, an archive may have so many bytes in a row, and so many members.
_SLACK = 1 << 24
_MAX_MEMBERS = 10_000
_MAX_LINE = 1 << 20
_MAX_MANIFEST = 1 << 20
_BLOCK = 1024
# How many older backups are held against what is there, where the newest one is not the same.
_OLDER = 4

Manifest = dict[str, t.Any]


@dataclasses.dataclass
class Backup:
    """An archive, and what is recorded of it."""

    id: str
    path: str
    taken_at: float
    manifest: Manifest | None = None
    md5: str | None = None

    @property
    def recorded(self) -> bool:
        return bool(self.manifest or self.md5)


@dataclasses.dataclass
class Contents:
    """What a verified archive holds: SHA-256 and size by suffix, and a look at it."""

    backup: Backup
    files: dict[str, tuple[str, int]]
    seen: Seen
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def digests(self) -> dict[str, str]:
        return {suffix: found[0] for suffix, found in self.files.items()}


# Finding one.


def history(path: str | None) -> dict[str, dict[str, t.Any]]:
    """The service's own backups of an index by their id, from its history; torn and foreign lines are passed over."""
    found: dict[str, dict[str, t.Any]] = {}
    if not path:
        return found
    try:
        with open(path, "rb") as file:
            while line := file.readline(_MAX_LINE):
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and _is_backup(entry):
                        found[entry["backup_id"]] = entry
    except FileNotFoundError:
        pass
    except OSError as error:
        raise faiss_index.cannot(path, error) from None
    return found


def _is_backup(entry: dict[str, t.Any]) -> bool:
    # Of the incremental ones it is not known what is in them; one that failed has no archive.
    return (
        entry.get("type") == "backup"
        and entry.get("backup_type") in _TYPES
        and isinstance(entry.get("backup_id"), str)
        and isinstance(entry.get("checksum"), str)
        and bool(re.fullmatch(r"[0-9a-fA-F]{32}", entry["checksum"]))
    )


def candidates(folder: str, name: str, history_path: str | None) -> list[Backup]:
    """The recorded archives of a folder, newest first."""
    lines = history(history_path)
    found = []
    try:
        with os.scandir(folder) as entries:
            archives = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise faiss_index.cannot(folder, error) from None
    for file in archives:
        if file.endswith(_ARCHIVE) and _NAME.fullmatch(file[: -len(_ARCHIVE)]):
            backup = recorded(os.path.join(folder, file), name, lines)
            if backup.recorded:
                found.append(backup)
    return sorted(found, key=lambda it: (it.taken_at, it.id), reverse=True)


def recorded(path: str, name: str, lines: t.Mapping[str, dict[str, t.Any]]) -> Backup:
    """An archive with what is recorded of it."""
    file = os.path.basename(path)
    known = file[: -len(_ARCHIVE)] if file.endswith(_ARCHIVE) else file
    manifest = read_manifest(manifest_of(path), name)
    line = lines.get(known)
    named = _NAME.fullmatch(known)
    if manifest:
        taken = clock.seconds(manifest["taken_at"])
    elif line and isinstance(line.get("created_at"), (int, float)):
        taken = float(line["created_at"])
    elif named:
        taken = float(named[1])
    else:
        taken = os.stat(path).st_mtime
    return Backup(known, path, taken, manifest, line["checksum"].lower() if line else None)


def manifest_of(archive: str) -> str:
    return (archive[: -len(_ARCHIVE)] if archive.endswith(_ARCHIVE) else archive) + _MANIFEST


def read_manifest(path: str, name: str) -> Manifest | None:
    """A manifest of this index that has what is relied on, or None."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_MAX_MANIFEST))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.get("name") != name:
        return None
    files = found.get("files")
    known = faiss_index.names(name).values()
    good = (
        isinstance(found.get("sha256"), str)
        and isinstance(found.get("taken_at"), str)
        and isinstance(files, dict)
        and name + INDEX in files
        and all(
            key in known
            and isinstance(about, dict)
            and isinstance(about.get("sha256"), str)
            and isinstance(about.get("size_bytes"), int)
            for key, about in files.items()
        )
        and all(isinstance(found.get(key), (int, type(None))) for key in ("ntotal", "dimension"))
    )
    try:
        return found if good and clock.seconds(found["taken_at"]) >= 0 else None
    except ValueError:
        return None


# Reading one.


class _Strange(Exception):
    """What nobody has made who wanted to back an index up."""


class _Gunzipped:
    """The decompressed archive, of which only so much may be read: what it claims to be costs no memory."""

    def __init__(self, file: t.BinaryIO, until: Clock) -> None:
        self._file = gzip.GzipFile(fileobj=file)
        self._until = until
        self.allowance = _SLACK

    def read(self, size: int = -1) -> bytes:
        self._until.check()
        piece = self._file.read(size)
        self.allowance -= len(piece)
        if self.allowance < 0:
            raise _Strange("more than 16 MiB of it belong to no file")
        return piece


class _Member(io.RawIOBase):
    """A file in an archive, hashed as it is read."""

    def __init__(self, stream: t.IO[bytes], path: str) -> None:
        self._stream = stream
        self._path = path
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with _explained(self._path):
            piece = self._stream.read(PIECE if size < 0 else size)
        self._digest.update(piece)
        return piece

    def drained(self) -> str:
        """The checksum of all of it."""
        while self.read(PIECE):
            pass
        return self._digest.hexdigest()


def members(archive: t.BinaryIO, path: str, name: str, until: Clock) -> t.Iterator[tuple[str, int, _Member]]:
    """The files of the index in an archive, as a stream: suffix, size, content. Nothing else is taken from it.

    Raise Refused where it is damaged, or one of them is no plain file or is there twice.
    """
    wanted = {file: suffix for suffix, file in faiss_index.names(name).items()}
    archive.seek(0)
    unpacked = _Gunzipped(archive, until)
    with _explained(path):
        with tarfile.open(fileobj=t.cast("t.IO[bytes]", unpacked), mode="r|", bufsize=PIECE) as tar:
            count, there = 0, set()
            while (member := tar.next()) is not None:
                count += 1
                if count > _MAX_MEMBERS:
                    raise _Strange(f"it has more than {_MAX_MEMBERS} members")
                unpacked.allowance = max(0, member.size) + _SLACK
                suffix = wanted.get(member.name[2:] if member.name.startswith("./") else member.name)
                if suffix is None:
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse() or member.size < 0:
                    raise _Strange(f"its {member.name} is no plain file")
                if suffix in there:
                    raise _Strange(f"it has {member.name} twice")
                there.add(suffix)
                stream = tar.extractfile(member)
                yield suffix, member.size, _Member(t.cast("t.IO[bytes]", stream), path)
        # To its end, where its checksum is compared.
        unpacked.allowance = _SLACK
        while unpacked.read(PIECE):
            pass


@contextlib.contextmanager
def _explained(path: str) -> t.Iterator[None]:
    """Say of which archive it is that it cannot be read."""
    try:
        yield
    except _Strange as error:
        raise Refused(f"{path} is not to be trusted: {error}.") from None
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise Refused(f"{path} is damaged: {str(error) or 'it is cut off'}.") from None


def open_archive(backup: Backup) -> t.BinaryIO:
    try:
        handle = os.open(backup.path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Refused(f"{backup.path} is no regular file; name an archive.")
        return os.fdopen(handle, "rb")
    except FileNotFoundError:
        raise Refused(f"{backup.path} does not exist; correct the backup's name.") from None
    except OSError as error:
        raise faiss_index.cannot(backup.path, error) from None


def require_recorded(backup: Backup, archive: t.BinaryIO, until: Clock) -> None:
    """Refuse an archive that is not what is recorded of it."""
    if backup.manifest:
        found, wanted = faiss_index.digest(archive, until), backup.manifest["sha256"]
        if found != wanted:
            raise Refused(f"{backup.path} is not what was saved: its SHA-256 is {found}, its manifest says {wanted}.")
    if backup.md5:
        found = faiss_index.digest(archive, until, "md5")
        if found != backup.md5:
            raise Refused(
                f"{backup.path} is not what was saved: its MD5 is {found}, the service's history says {backup.md5}."
            )


def contents(
    backup: Backup, name: str, dimension: int | None, *, tfidf: bool = True, until: Clock, into: str | None = None
) -> Contents:
    """Verify an archive and look at what is in it, without unpacking it; or unpack the files into a folder.

    What the matrix takes is unpacked below TMPDIR, for it has to be read from its end.
    """
    with open_archive(backup) as archive, contextlib.ExitStack() as stack:
        require_recorded(backup, archive, until)
        found: dict[str, tuple[str, int]] = {}
        seen = faiss_index.nothing(backup.path, name)
        looked: dict[str, Seen] = {}
        files: dict[str, File | None] = dict.fromkeys(SUFFIXES)
        for suffix, size, member in members(archive, backup.path, name, until):
            label = f"{name}{suffix} in {backup.path}"
            if into is not None:
                target = os.path.join(into, name + suffix)
                require_space(into, size, f"{name}{suffix}")
                with open(target, "xb") as file:
                    shutil.copyfileobj(member, file, PIECE)
                    file.flush()
                    os.fsync(file.fileno())
                found[suffix] = (member.drained(), size)
                continue
            stream: t.BinaryIO = t.cast(t.BinaryIO, member)
            if suffix == MATRIX:
                require_space(tempfile.gettempdir(), size, f"{name}{suffix}")
                stream = t.cast(t.BinaryIO, stack.enter_context(tempfile.TemporaryFile()))
                shutil.copyfileobj(member, stream, PIECE)
                stream.seek(0)
            # One after the other, as they come out of the archive.
            files[suffix] = File(label, stream, size)
            looked[suffix] = faiss_index.examine_one(t.cast(File, files[suffix]), suffix, dimension, until)
            found[suffix] = (member.drained(), size)
        if into is None:
            seen = faiss_index.joined(looked, files, backup.path, name, tfidf=tfidf)
    _require_members(backup, name, found)
    notes = [] if backup.recorded else [_unrecorded(backup)]
    return Contents(backup, found, seen, notes)


def _unrecorded(backup: Backup) -> str:
    return (
        f"{backup.path} has no manifest and no line in the service's history: that it is what was saved then cannot be "
        "established"
    )


def _require_members(backup: Backup, name: str, found: t.Mapping[str, tuple[str, int]]) -> None:
    if INDEX not in found:
        raise Refused(f"{backup.path} holds no {name}{INDEX}; name a backup of the index.")
    if not backup.manifest:
        return
    wanted = {key: (about["sha256"], about["size_bytes"]) for key, about in backup.manifest["files"].items()}
    have = {name + suffix: about for suffix, about in found.items()}
    if wanted != have:
        differing = sorted(key for key in {*wanted, *have} if wanted.get(key) != have.get(key))
        raise Refused(f"{backup.path} does not hold what its manifest says: {', '.join(differing)}.")


def recorded_contents(backup: Backup, name: str, dimension: int | None, *, tfidf: bool, until: Clock) -> Contents:
    """The same, from the manifest where there is one: what it says was looked at when the backup was taken."""
    manifest = backup.manifest
    if manifest is None or manifest.get("state") != "ok":
        return contents(backup, name, dimension, tfidf=tfidf, until=until)
    with open_archive(backup) as archive:
        require_recorded(backup, archive, until)
    seen = faiss_index.nothing(backup.path, name)
    seen.update(state="ok", ntotal=manifest["ntotal"], dimension=manifest["dimension"])
    files = {
        suffix: (manifest["files"][name + suffix]["sha256"], manifest["files"][name + suffix]["size_bytes"])
        for suffix in SUFFIXES
        if name + suffix in manifest["files"]
    }
    if dimension is not None and manifest["dimension"] != dimension:
        raise Refused(f"{backup.path} has vectors of {manifest['dimension']} dimensions, not {dimension}.")
    if tfidf and not {VECTORIZER, MATRIX} <= set(files):
        raise Refused(f"{backup.path} holds no files of TF-IDF, without which the mode hybrid does not work.")
    return Contents(backup, files, seen)


def latest_verified(
    found: t.Iterable[Backup], name: str, dimension: int | None, *, tfidf: bool, until: Clock
) -> tuple[Contents | None, list[str]]:
    """The newest archive that can be trusted, and why others were passed over."""
    passed_over = []
    for backup in found:
        try:
            got = recorded_contents(backup, name, dimension, tfidf=tfidf, until=until)
        except (Refused, NoAnswer) as error:
            passed_over.append(str(error))
            continue
        if got.seen["state"] == "ok":
            return got, passed_over
        passed_over.append(_not_sound(got))
    return None, passed_over


def _not_sound(got: Contents) -> str:
    why = (got.seen["errors"] or got.seen["limits"] or ["it is not sound."])[0].partition("; ")[0].rstrip(".")
    return f"{got.backup.path} is not passed on: {why}."


def require_space(folder: str, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Refused(f"{folder} has {free >> 20} MiB free and {what} takes {-(-needed >> 20)}; make room first.")


# Comparing with one.


@dataclasses.dataclass
class Difference:
    """How a file differs from what an archive has of it."""

    name: str
    size: int | None
    size_saved: int | None
    bytes: int = 0
    blocks: int = 0
    blocks_differing: int = 0
    first: int | None = None

    def anew(self, blocks: float = 0.0) -> bool:
        """Whether it was written anew, rather than damaged: it has another size, or differs all over."""
        size = self.size or 0
        return size != self.size_saved or (4 * self.bytes > size and self.blocks_differing >= blocks * self.blocks)

    def told(self) -> dict[str, t.Any]:
        return {
            "file": self.name,
            "bytes": self.bytes,
            "first": self.first,
            "size": self.size,
            "size_saved": self.size_saved,
        }

    def __str__(self) -> str:
        if self.size is None or self.size_saved is None:
            return f"{self.name} {'is missing' if self.size is None else 'is in no backup'}"
        if self.size != self.size_saved:
            return f"{self.name} has {self.size} bytes, the backup {self.size_saved}"
        plural = "s" if self.bytes != 1 else ""
        return f"{self.name} differs in {self.bytes} byte{plural} of {self.size}, the first at {self.first}"


@dataclasses.dataclass
class Verdict:
    """What comparing tells: same, changed, rebuilt, or absent; `sentence` says why and what to do."""

    value: str
    sentence: str
    backup: Backup | None = None
    differences: list[Difference] = dataclasses.field(default_factory=list)
    passed_over: list[str] = dataclasses.field(default_factory=list)
    digests: dict[str, str] = dataclasses.field(default_factory=dict)


def compare(
    path: str,
    name: str,
    dimension: int | None,
    found: t.Sequence[Backup],
    *,
    tfidf: bool = True,
    until: Clock,
    seen: Seen | None = None,
) -> Verdict:
    """Hold the files against the newest archive that can be trusted. Raise Refused, NoAnswer or TimeUp where it cannot
    be done."""
    seen = seen or faiss_index.look(path, name, dimension, tfidf=tfidf, timeout=until.left)
    try:
        with Folder(path, name) as folder:
            digests = faiss_index.checksums(folder, until)
            verdict = _compared(folder, digests, seen, name, dimension, found, tfidf, until)
            if not folder.unchanged():
                raise NoAnswer(f"{path} was written to while it was compared; look again.", "changing")
            verdict.digests = digests
            return verdict
    except OSError as error:
        raise faiss_index.cannot(path, error) from None


def _compared(
    folder: Folder,
    digests: dict[str, str],
    seen: Seen,
    name: str,
    dimension: int | None,
    found: t.Sequence[Backup],
    tfidf: bool,
    until: Clock,
) -> Verdict:
    if not found:
        return Verdict("absent", f"there is no backup of {folder.path} to compare it with; take one with faiss_backup")
    newest, passed_over = latest_verified(found, name, dimension, tfidf=tfidf, until=until)
    if newest is None:
        raise Refused(f"There is no backup of {folder.path} that can be trusted: {' '.join(passed_over)}")
    if newest.digests == digests:
        return Verdict("same", "", newest.backup, passed_over=passed_over)
    for backup in found[found.index(newest.backup) + 1 :][:_OLDER]:
        with contextlib.suppress(Refused, NoAnswer):
            if backup.manifest and _manifested(backup.manifest, name) != digests:
                continue
            got = recorded_contents(backup, name, dimension, tfidf=tfidf, until=until)
            if got.digests == digests:
                return Verdict(
                    "same", f"it is {backup.id}, which is not the newest backup", backup, passed_over=passed_over
                )
    differences = _differences(folder, digests, newest, name, until)
    value, why = _judged(folder, seen, newest.backup, differences)
    said = "; ".join(map(str, differences.values()))
    return Verdict(
        value,
        f"{said}, compared with {newest.backup.id}: {why}",
        newest.backup,
        list(differences.values()),
        passed_over,
    )


def _manifested(manifest: Manifest, name: str) -> dict[str, str]:
    return {
        suffix: manifest["files"][name + suffix]["sha256"] for suffix in SUFFIXES if name + suffix in manifest["files"]
    }


def _differences(
    folder: Folder, digests: dict[str, str], saved: Contents, name: str, until: Clock
) -> dict[str, Difference]:
    found = {}
    for suffix in SUFFIXES:
        if digests.get(suffix) != saved.digests.get(suffix):
            file, about = folder.files[suffix], saved.files.get(suffix)
            found[suffix] = Difference(name + suffix, file.size if file else None, about[1] if about else None)
    both = [suffix for suffix, it in found.items() if it.size is not None and it.size_saved is not None]
    if both:
        with open_archive(saved.backup) as archive:
            for suffix, _size, member in members(archive, saved.backup.path, name, until):
                if suffix in both:
                    _compare_blocks(t.cast(File, folder.files[suffix]).stream, member, found[suffix], until)
    return found


def _compare_blocks(here: t.BinaryIO, saved: _Member, difference: Difference, until: Clock) -> None:
    here.seek(0)
    at = 0
    while ours := faiss_index.read_exactly(here, PIECE):
        theirs = faiss_index.read_exactly(t.cast(t.BinaryIO, saved), len(ours))
        if not theirs:
            break
        until.check()
        difference.blocks += -(-len(theirs) // _BLOCK)
        if ours != theirs:
            for start in range(0, len(theirs), _BLOCK):
                _compare_block(ours[start : start + _BLOCK], theirs[start : start + _BLOCK], at + start, difference)
        at += len(theirs)


def _compare_block(ours: bytes, theirs: bytes, at: int, difference: Difference) -> None:
    size = len(theirs)
    if ours[:size] == theirs:
        return
    different = (int.from_bytes(ours[:size], "big") ^ int.from_bytes(theirs, "big")).to_bytes(size, "big")
    difference.blocks_differing += 1
    difference.bytes += size - different.count(0)
    if difference.first is None:
        difference.first = at + size - len(different.lstrip(b"\0"))


def _judged(folder: Folder, seen: Seen, backup: Backup, differences: t.Mapping[str, Difference]) -> tuple[str, str]:
    """Whether files were damaged or built anew. What was built anew is sound, and no file of it stands alone."""
    restore = "restore the backup"
    unsound = [word for word in seen["damage"] if not word.startswith("tfidf_")]
    if unsound or seen["state"] == "unknown":
        return "changed", f"and it is {unsound[0] if unsound else 'not known to be sound'}; {restore}"
    lacking = [it for it in differences.values() if it.size is None]
    if lacking:
        return "changed", restore
    written = {suffix: file.modified for suffix, file in folder.files.items() if file}
    # To the second, as a manifest has it.
    if all(written[suffix] < backup.taken_at + 1 for suffix in differences):
        return "changed", f"and nobody has written to it since that was taken; {restore}"
    # Who builds with another model changes all vectors; who loses a part of a disk does not.
    anew = {suffix for suffix, it in differences.items() if it.anew(0.9 if suffix == INDEX else 0.0)}
    index = differences.get(INDEX)
    # Another vector takes half of its bytes at least; damage is smaller, or stands alone.
    vectors = index is not None and (index.size != index.size_saved or index.bytes >= 2 * (seen["dimension"] or 0))
    together = (vectors and METADATA in differences) or (
        anew == set(differences)
        and (
            INDEX in anew
            # Without the index: TF-IDF alone, or a builder that has written all four, of which some came out as before.
            or anew == {VECTORIZER, MATRIX}
            or all(at >= backup.taken_at + 1 for at in written.values())
        )
    )
    if together:
        return "rebuilt", "it was built anew since, so that backup says nothing of it; take a new one"
    return "changed", f"what was not built anew does not change by itself; {restore}, or build it anew"


# Taking one.


def take(
    path: str,
    backup_dir: str,
    *,
    name: str = "wp",
    dimension: int | None = 384,
    history: str | None = None,
    archive: str | None = None,
    tfidf: bool = True,
    accept_changes: bool = False,
    timeout: float = 600.0,
    check: bool = False,
) -> dict[str, t.Any]:
    """Back an index up, or record the archive that its service has made; see the module faiss_backup."""
    path, backup_dir = os.path.realpath(path), os.path.abspath(backup_dir)
    until = Clock(timeout)
    try:
        if archive:
            return _record(path, backup_dir, name, dimension, history, archive, tfidf, until, check)
        return _take(path, backup_dir, name, dimension, history, tfidf, accept_changes, until, check)
    except TimeUp:
        raise Refused(f"{path} cannot be backed up within {timeout:g} s; allow more time.") from None


def _take(
    path: str,
    backup_dir: str,
    name: str,
    dimension: int | None,
    history_path: str | None,
    tfidf: bool,
    accept_changes: bool,
    until: Clock,
    check: bool,
) -> dict[str, t.Any]:
    seen = faiss_index.look(path, name, dimension, tfidf=tfidf, timeout=until.left)
    if seen["state"] != "ok":
        why = (seen["errors"] or seen["limits"])[0].rstrip(".")
        raise Refused(f"{path} is not backed up, its state is {seen['state']}: {why}.", **_of(seen))
    if not os.path.isdir(backup_dir) and not check:
        raise Refused(f"{backup_dir} does not exist; create the folder of the backups first.", **_of(seen))
    found = candidates(backup_dir, name, history_path)
    try:
        verdict = compare(path, name, dimension, found, tfidf=tfidf, until=until, seen=seen)
    except Refused as error:
        # None of them can be trusted: all the more is a new one wanted.
        verdict = Verdict("absent", str(error))
    if verdict.value == "changed" and not accept_changes:
        raise Refused(
            f"{path} is not backed up, for it may be damaged: {verdict.sentence}; where the change was meant, say "
            "accept_changes.",
            **_of(seen),
        )
    result: dict[str, t.Any] = {
        "changed": False,
        "backup": None,
        "backup_id": None,
        "manifest": None,
        "sha256": None,
        "taken_at": None,
        "files": {},
        "verified": False,
        "notes": [verdict.sentence] if verdict.value in ("rebuilt", "absent") and verdict.sentence else [],
        "before": verdict.backup and _shown(verdict.backup),
        "after": verdict.backup and _shown(verdict.backup),
        **_of(seen),
    }
    if verdict.value == "same" and verdict.backup and not verdict.sentence:
        older = recorded_contents(verdict.backup, name, dimension, tfidf=tfidf, until=until)
        return {**result, **_described(older, name), "verified": True}
    if check:
        return {**result, "changed": True, "after": "(a backup of now)"}
    with alone(backup_dir, until):
        try:
            with durable.work_folder(backup_dir, name) as work:
                made = _make(path, backup_dir, work, name, dimension, tfidf, until)
        except OSError as error:
            raise Refused(f"{backup_dir} cannot be written: {error.strerror or error}.", **_of(seen)) from None
    return {**result, **_described(made, name), "changed": True, "verified": True, "after": _shown(made.backup)}


def _of(seen: Seen) -> dict[str, t.Any]:
    return {"state": seen["state"], "errors": seen["errors"], "ntotal": seen["ntotal"], "dimension": seen["dimension"]}


def _shown(backup: Backup) -> dict[str, t.Any]:
    files = (backup.manifest or {}).get("files", {})
    return {
        "backup": backup.path,
        "taken_at": clock.utc(backup.taken_at),
        "files": {key: about["sha256"] for key, about in files.items()},
    }


def _described(got: Contents, name: str) -> dict[str, t.Any]:
    backup = got.backup
    manifest = manifest_of(backup.path)
    return {
        "backup": backup.path,
        "backup_id": backup.id,
        "manifest": manifest if backup.manifest else None,
        "sha256": (backup.manifest or {}).get("sha256"),
        "taken_at": clock.utc(backup.taken_at),
        "files": {name + suffix: {"sha256": it[0], "size_bytes": it[1]} for suffix, it in got.files.items()},
    }


def _make(
    path: str, backup_dir: str, work: str, name: str, dimension: int | None, tfidf: bool, until: Clock
) -> Contents:
    packed = os.path.join(work, "archive")
    now = time.time()
    with Folder(path, name) as folder:
        size = sum(file.size for file in folder.files.values() if file)
        require_space(backup_dir, size, "the archive")
        # Vectors do not become smaller by being compressed well.
        with open(packed, "xb") as out, tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
            for file in folder.files.values():
                if file:
                    file.stream.seek(0)
                    about = tar.gettarinfo(arcname=os.path.basename(file.name), fileobj=file.stream)
                    # Two names of one file are no link in an archive of which each file is taken alone.
                    about.type, about.size, about.linkname = tarfile.REGTYPE, file.size, ""
                    try:
                        tar.addfile(about, file.stream)
                    except OSError as error:
                        if not folder.unchanged():
                            raise _written(path) from None
                        raise error from None
                    until.check()
        if not folder.unchanged():
            raise _written(path)
        durable.sync_file(packed)
        digests = faiss_index.checksums(folder, until)
    got = contents(Backup("", packed, now), name, dimension, tfidf=tfidf, until=until)
    if got.digests != digests or got.seen["state"] != "ok":
        why = (got.seen["errors"] or ["what was read back is not what is there."])[0]
        raise Refused(f"{packed} is no backup of {path}: {why} Nothing was kept.")
    about_folder = os.stat(backup_dir)
    mode = stat.S_IMODE(about_folder.st_mode) & 0o666
    backup = _free(backup_dir, now)
    backup.manifest = manifest_for(path, name, got, packed, now)
    text = json.dumps(backup.manifest, indent=1, sort_keys=True) + "\n"
    manifest = manifest_of(backup.path)
    # An archive is one of ours once its manifest is there, so that comes first: alone it means nothing.
    durable.write(manifest, text.encode("ascii"), mode, work)
    os.chmod(packed, mode)
    for file_path in (packed, manifest):
        _give_to(file_path, about_folder)
    try:
        os.link(packed, backup.path)
    except FileExistsError:
        raise Refused(f"{backup.path} was made by somebody else meanwhile; run it again.") from None
    except OSError:
        # A filesystem without links.
        os.replace(packed, backup.path)
    durable.sync_folder(backup_dir)
    return dataclasses.replace(got, backup=backup)


def _written(path: str) -> Refused:
    return Refused(f"{path} was written to while it was copied; wait for its builder's end.")


def _free(folder: str, now: float) -> Backup:
    """A name of the service's kind that nobody has."""
    second = int(now)
    while os.path.lexists(os.path.join(folder, f"backup_{second}{_ARCHIVE}")):
        second += 1
    known = f"backup_{second}"
    return Backup(known, os.path.join(folder, known + _ARCHIVE), now)


def _give_to(path: str, about: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(path, about.st_uid, about.st_gid)


def manifest_for(path: str, name: str, got: Contents, archive: str, now: float) -> Manifest:
    with open(archive, "rb") as file:
        sha256 = faiss_index.digest(file, Clock(None))
        md5 = faiss_index.digest(file, Clock(None), "md5")
    return {
        "schema": SCHEMA,
        "index": path,
        "name": name,
        "taken_at": clock.utc(now),
        "sha256": sha256,
        "md5": md5,
        "size_bytes": os.stat(archive).st_size,
        "state": "ok",
        "ntotal": got.seen["ntotal"],
        "dimension": got.seen["dimension"],
        "files": {name + suffix: {"sha256": it[0], "size_bytes": it[1]} for suffix, it in got.files.items()},
    }


def _record(
    path: str,
    backup_dir: str,
    name: str,
    dimension: int | None,
    history_path: str | None,
    archive: str,
    tfidf: bool,
    until: Clock,
    check: bool,
) -> dict[str, t.Any]:
    """Write the manifest of an archive that the service has made."""
    lines = history(history_path)
    backup = recorded(named(archive, backup_dir), name, lines)
    if not os.path.basename(backup.path).endswith(_ARCHIVE) or not _NAME.fullmatch(backup.id):
        raise Refused(f"{backup.path} is not named as the service names its archives, backup_<seconds>{_ARCHIVE}.")
    kept = backup.manifest
    if not kept and not backup.md5:
        raise Refused(
            f"{backup.path} cannot be recorded: {history_path or 'no history'} has no line with its MD5; name the "
            "service's history, or take a backup without an archive."
        )
    with alone(backup_dir, until) if not check else contextlib.nullcontext():
        got = contents(backup, name, dimension, tfidf=tfidf, until=until)
        if got.seen["state"] != "ok":
            raise Refused(_not_sound(got), **_of(got.seen))
        result = {
            "notes": [],
            "before": _shown(backup) if kept else None,
            **_of(got.seen),
            "verified": True,
        }
        if kept:
            return {**result, **_described(got, name), "changed": False, "after": _shown(backup)}
        backup.manifest = manifest_for(path, name, got, backup.path, backup.taken_at)
        if not check:
            text = json.dumps(backup.manifest, indent=1, sort_keys=True) + "\n"
            about = os.stat(backup.path)
            target = manifest_of(backup.path)
            try:
                durable.write(target, text.encode("ascii"), stat.S_IMODE(about.st_mode) & 0o666)
                _give_to(target, about)
            except OSError as error:
                raise Refused(f"{target} cannot be written: {error.strerror or error}.") from None
        return {**result, **_described(got, name), "changed": True, "after": _shown(backup)}


def named(wanted: str, backup_dir: str | None) -> str:
    """The archive that an id or a path means."""
    if _NAME.fullmatch(wanted) or ("/" not in wanted and wanted.endswith(_ARCHIVE)):
        if not backup_dir:
            raise Refused(f"backup is {wanted}, which is looked for in backup_dir; give backup_dir.")
        return os.path.join(backup_dir, wanted if wanted.endswith(_ARCHIVE) else wanted + _ARCHIVE)
    return os.path.abspath(wanted)


@contextlib.contextmanager
def alone(folder: str, until: Clock) -> t.Iterator[None]:
    """One run at a time works in a folder; the kernel gives the lock back when a run is killed."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Refused(f"{folder} cannot be used: {error.strerror}; correct the path, or use become.") from None
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                try:
                    until.check()
                except TimeUp:
                    raise Refused(f"{folder} is locked by another run; wait for its end.") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)

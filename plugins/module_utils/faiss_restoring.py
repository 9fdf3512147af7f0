# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the files of a FAISS index back, all of them together, without losing what is there now.

The backup is unpacked into a folder beside the index and looked at there. Then one of two ways leads on:

folder   the kernel exchanges the two folders in one step. A kill leaves the old files or the new ones.
files    one file after the other, where the folder itself cannot be exchanged, as that of a mounted volume. Somebody
         who reads meanwhile finds some of both; a kill leaves a job that the next run finishes.

What was there goes into quarantine. What a run does next is written down before, in `job.json` of its work folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import shutil
import stat
import time
import typing as t
from datetime import datetime, timezone

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, durable, faiss_backups, faiss_index
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.faiss_backups import Backup, Contents
from ansible_collections.oncall.runbooks.plugins.module_utils.faiss_index import (
    PIECE,
    SUFFIXES,
    Clock,
    Folder,
    Seen,
    TimeUp,
)

LATEST = "latest_verified"
STATES = ("restored", "undone")
SCHEMA = "oncall.runbooks/faiss_quarantine/1"
_MANIFEST = "quarantine.json"
_JOB = "job.json"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What renameat2 says where it cannot exchange folders, for whatever reason, and has not.
_NO_EXCHANGE = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EXDEV,
    errno.EBUSY,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
)

Told = dict[str, t.Any]
Job = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """As the module faiss_restore documents them."""

    path: str
    name: str = "wp"
    dimension: int | None = 384
    backup: str = LATEST
    backup_dir: str | None = None
    history: str | None = None
    quarantine: str | None = None
    tfidf: bool = True
    state: str = "restored"
    timeout: float = 600.0


@dataclasses.dataclass
class Chosen:
    """What is to be put in place: the files of a folder, or those of an archive; their SHA-256 by suffix."""

    source: str
    taken_at: float
    digests: dict[str, str]
    seen: Seen
    notes: list[str]
    archive: Contents | None = None


def restore(options: Options, check: bool, seen: Seen | None = None) -> Told:
    """Restore or undo, or tell what would be done; see the return values of the module faiss_restore.

    `seen` is a look at the index, where there has just been one.
    """
    index = _Index(options)
    try:
        if check:
            told = index.run(check=True, seen=seen)
            for begun in index.jobs():
                told["changed"] = True
                told["notes"].append(f"what a killed run has begun is finished first; see {begun}")
            return told
        with faiss_backups.alone(index.parent, index.until):
            finished = index.finish()
            told = index.run(check=False)
            for job, kept in finished:
                index.tell(job, kept, told)
            return told
    except TimeUp:
        raise Refused(f"{index.path} cannot be restored within {options.timeout:g} s; allow more time.") from None
    except OSError as error:
        raise Refused(
            f"{error.filename or index.path} cannot be used: {error.strerror or error}.{index.whereabouts()}"
        ) from None


class _Index:
    """The folder of an index, and where a run works on it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.names = faiss_index.names(options.name)
        self.path = os.path.realpath(options.path)
        self.parent, self.base = os.path.split(self.path)
        self.until = Clock(options.timeout)
        if not self.base or not os.path.isdir(self.parent):
            raise Refused(f"{self.parent} does not exist; correct path, or create the folder.")
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise Refused(f"{self.path} is no folder; name the folder of the index.")
        self.quarantine = os.path.realpath(options.quarantine or os.path.join(self.parent, f"{self.base}.quarantine"))
        if self.quarantine == self.path or self.quarantine.startswith(self.path + os.sep):
            raise Refused(f"quarantine is {self.quarantine}, in the folder that is replaced; name another one.")
        # Where the folder is exchanged, and where its files are replaced.
        self.beside = os.path.join(self.parent, f".{self.base}.restoring")
        self.inside = os.path.join(self.path, faiss_index.UNFINISHED.format(name=options.name))

    def whereabouts(self) -> str:
        left = self.jobs()
        return f" What a run has begun is in {left[0]}, and the next one goes on." if left else " Nothing was changed."

    def jobs(self) -> list[str]:
        """What runs have begun and not ended."""
        jobs = [os.path.join(work, _JOB) for work in (self.beside, self.inside)]
        return [job for job in jobs if os.path.exists(job)]

    # A run.

    def run(self, *, check: bool, seen: Seen | None = None) -> Told:
        options = self.options
        seen = seen or faiss_index.look(
            self.path, options.name, options.dimension, tfidf=options.tfidf, timeout=self.until.left
        )
        told: Told = {
            "changed": False,
            "action": "none",
            "index": self.path,
            "state": seen["state"],
            "errors": seen["errors"],
            "ntotal": seen["ntotal"],
            "backup": None,
            "backup_taken_at": None,
            "restored_ntotal": None,
            "quarantine": None,
            "atomic": None,
            "lost": None,
            "undo": None,
            "files_before": {},
            "files_after": {},
            "notes": [],
        }
        undone = self._to_undo() if options.state == "undone" else None
        if options.state == "undone" and undone is None:
            told["notes"].append(f"there is nothing in {self.quarantine} to be put back")
            return told
        chosen = self._kept(undone) if undone else self._choose()
        told.update(
            backup=chosen.source, backup_taken_at=clock.utc(chosen.taken_at), restored_ntotal=chosen.seen["ntotal"]
        )
        told["notes"] += chosen.notes
        present = self._present()
        told["files_before"], told["files_after"] = self._shown(present), self._shown(chosen.digests)
        if present == chosen.digests:
            if undone and not check:
                # A killed run may not have come to it.
                self._mark(undone)
            return told
        told.update(action=options.state, changed=True, lost=_lost(seen, chosen))
        if check:
            told["atomic"] = self._may_exchange()
            return told
        staged_by = self._exchange if self._may_exchange() else self._replace
        try:
            staged_by(chosen, seen, told)
        except _NotExchanged:
            # Nothing has happened yet.
            self._replace(chosen, seen, told)
        if undone:
            self._mark(undone)
        told["undo"] = self._undo(told["quarantine"])
        self._verify(chosen, told)
        return told

    def _shown(self, digests: t.Mapping[str, str]) -> dict[str, str]:
        return {self.names[suffix]: digests[suffix] for suffix in SUFFIXES if suffix in digests}

    def _present(self) -> dict[str, str]:
        try:
            with Folder(self.path, self.options.name) as folder:
                return faiss_index.checksums(folder, self.until)
        except FileNotFoundError:
            return {}

    # The backup.

    def _choose(self) -> Chosen:
        options = self.options
        if options.backup == LATEST:
            if not options.backup_dir:
                raise Refused(f"backup is {LATEST}, which is looked for in backup_dir; give backup_dir.")
            found = faiss_backups.candidates(options.backup_dir, options.name, options.history)
            got, passed_over = faiss_backups.latest_verified(
                found, options.name, options.dimension, tfidf=options.tfidf, until=self.until
            )
            if got is None:
                why = f": {' '.join(passed_over)}" if passed_over else "."
                raise Refused(f"{options.backup_dir} has no backup of {options.name} that can be trusted{why}")
            return _of_archive(got, passed_over)
        source = faiss_backups.named(options.backup, options.backup_dir)
        if os.path.isdir(source):
            return self._of_folder(source)
        lines = faiss_backups.history(options.history)
        try:
            backup = faiss_backups.recorded(source, options.name, lines)
        except FileNotFoundError:
            raise Refused(f"{source} does not exist; correct backup.") from None
        got = faiss_backups.recorded_contents(
            backup, options.name, options.dimension, tfidf=options.tfidf, until=self.until
        )
        if got.seen["state"] != "ok":
            why = (got.seen["errors"] or got.seen["limits"])[0].rstrip(".")
            raise Refused(f"{source} is not restored, what it holds is {got.seen['state']}: {why}.")
        return _of_archive(got, [])

    def _of_folder(self, source: str) -> Chosen:
        """A folder with the files, as somebody has unpacked or copied them."""
        options = self.options
        if os.path.realpath(source) == self.path:
            raise Refused(f"backup is {source}, which is the index itself; name a backup.")
        seen = faiss_index.look(source, options.name, options.dimension, tfidf=options.tfidf, timeout=self.until.left)
        if seen["state"] != "ok":
            why = (seen["errors"] or seen["limits"])[0].rstrip(".")
            raise Refused(f"{source} is not restored, what it holds is {seen['state']}: {why}.")
        with Folder(source, options.name) as folder:
            digests = faiss_index.checksums(folder, self.until)
            taken = max(file.modified for file in folder.files.values() if file)
        note = f"{source} is a folder: that it is what was saved then cannot be established"
        return Chosen(source, taken, digests, seen, [note])

    # The quarantine.

    def _to_undo(self) -> str | None:
        """The folder in quarantine that is put back: the one that is named, or the last that led to a restore."""
        if _kept_manifest(self.quarantine):
            return self.quarantine
        kept = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.quarantine):
                manifest = entry.is_dir(follow_symlinks=False) and _kept_manifest(entry.path)
                if manifest and (manifest["index"], manifest["name"]) == (self.path, self.options.name):
                    kept.append((manifest["kept_at"], entry.path, manifest))
        led = [it for it in sorted(kept, key=lambda it: it[:2]) if it[2]["kind"] == "restored"]
        # What is undone stays so: a second run does nothing.
        return None if not led or led[-1][2].get("undone") else led[-1][1]

    def _kept(self, folder: str) -> Chosen:
        """What was there before, whatever its state was."""
        options, manifest = self.options, t.cast("dict[str, t.Any]", _kept_manifest(folder))
        if manifest["name"] != options.name:
            raise Refused(f"{folder} is the quarantine of {manifest['name']}, not of {options.name}; correct it.")
        seen = faiss_index.look(folder, options.name, options.dimension, tfidf=options.tfidf, timeout=self.until.left)
        with Folder(folder, options.name) as opened:
            digests = faiss_index.checksums(opened, self.until)
        notes = []
        if self._shown(digests) != manifest["files"]:
            notes.append(f"{folder} was written to since it was put away")
        return Chosen(folder, clock.seconds(manifest["kept_at"]), digests, seen, notes)

    def _mark(self, folder: str) -> None:
        manifest = _kept_manifest(folder)
        if manifest:
            _write(os.path.join(folder, _MANIFEST), {**manifest, "undone": True})

    def _put_away(self, old: str, job: Job) -> str:
        """Move what was there into quarantine, from a folder of ours; where it is then."""
        manifest = {
            "schema": SCHEMA,
            "index": self.path,
            "name": self.options.name,
            "kind": job["kind"],
            "kept_at": job["at"],
            "state": job["was"],
            "replaced_by": job["backup"],
            "files": job["before"],
        }
        target = job["quarantine"]
        os.makedirs(self.quarantine, mode=0o700, exist_ok=True)
        if not os.path.isdir(target):
            _write(os.path.join(old, _MANIFEST), manifest)
            try:
                os.rename(old, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                part = target + ".part"
                shutil.rmtree(part, ignore_errors=True)
                faiss_backups.require_space(self.quarantine, _size(old), "the quarantine")
                shutil.copytree(old, part, symlinks=True)
                for file in os.scandir(part):
                    if file.is_file(follow_symlinks=False):
                        durable.sync_file(file.path)
                durable.sync_folder(part)
                os.rename(part, target)
            durable.sync_folder(self.quarantine)
        return target

    def _new_quarantine(self) -> str:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        for number in range(1, 1000):
            folder = os.path.join(self.quarantine, f"{self.base}.{stamp}" + (f"-{number}" if number > 1 else ""))
            if not os.path.lexists(folder):
                return folder
        raise Refused(f"{self.quarantine} has a thousand folders of this second; name another quarantine.")

    # Both ways.

    def _stage(self, work: str, chosen: Chosen) -> str:
        """Unpack or copy the files into a new folder, and look at them there."""
        shutil.rmtree(work, ignore_errors=True)
        os.mkdir(work, 0o700)
        staged = os.path.join(work, "new")
        os.mkdir(staged, 0o700)
        options = self.options
        if chosen.archive:
            digests = faiss_backups.contents(
                chosen.archive.backup, options.name, options.dimension, until=self.until, into=staged
            ).digests
        else:
            with Folder(chosen.source, options.name) as folder:
                for suffix, file in folder.files.items():
                    if file:
                        faiss_backups.require_space(staged, file.size, file.name)
                        with open(os.path.join(staged, self.names[suffix]), "xb") as copy:
                            file.stream.seek(0)
                            shutil.copyfileobj(file.stream, copy, PIECE)
                            copy.flush()
                            os.fsync(copy.fileno())
            with Folder(staged, options.name) as folder:
                digests = faiss_index.checksums(folder, self.until)
        if digests != chosen.digests:
            raise Refused(f"{chosen.source} has changed while it was copied; nothing was changed.")
        if options.state == "restored":
            seen = faiss_index.look(
                staged, options.name, options.dimension, tfidf=options.tfidf, timeout=self.until.left
            )
            if seen["state"] != "ok":
                why = (seen["errors"] or seen["limits"])[0].rstrip(".")
                raise Refused(f"{chosen.source} is not restored, it is {seen['state']}: {why}; nothing was changed.")
        return staged

    def _same_owners(self, staged: str, told: Told) -> None:
        """The new files, and their folder, belong to whom the old ones did."""
        there = os.path.isdir(self.path)
        model = os.stat(self.path if there else self.parent)
        for suffix, name in self.names.items():
            new = os.path.join(staged, name)
            if not os.path.exists(new):
                continue
            old = next(
                (
                    path
                    for path in (os.path.join(self.path, self.names[it]) for it in (suffix, *SUFFIXES))
                    if os.path.isfile(path)
                ),
                None,
            )
            if old:
                shutil.copystat(old, new)
                os.utime(new)
                _give_to(new, os.stat(old), told)
            else:
                os.chmod(new, stat.S_IMODE(model.st_mode) & 0o666)
                _give_to(new, model, told)
            durable.sync_file(new)
        if there:
            shutil.copystat(self.path, staged)
        else:
            os.chmod(staged, stat.S_IMODE(model.st_mode))
        _give_to(staged, model, told)
        durable.sync_folder(staged)

    def _job(self, work: str, method: str, chosen: Chosen, seen: Seen, **more: t.Any) -> Job:
        job = {
            "schema": SCHEMA,
            "method": method,
            "kind": self.options.state,
            "at": clock.utc(time.time()),
            "was": seen["state"],
            "backup": chosen.source,
            "before": self._shown(self._present()),
            "quarantine": self._new_quarantine(),
            "names": list(self.names.values()),
            **more,
        }
        _write(os.path.join(work, _JOB), job)
        durable.sync_folder(os.path.dirname(work))
        return job

    def finish(self) -> list[tuple[Job, str]]:
        """Finish what a killed run has begun, while no other one can run; what it was, and its quarantine."""
        finished = []
        for work in (self.beside, self.inside):
            if not os.path.isdir(work):
                continue
            if os.lstat(work).st_uid not in (os.geteuid(), 0):
                raise Refused(f"{work} is of somebody else, whose run was cut short; run it again as that user.")
            job = self._read_job(work)
            if job is None or not self._begun(work, job):
                # Everything is as it was.
                shutil.rmtree(work, ignore_errors=True)
                continue
            kept = self._finish_exchange(work, job) if job["method"] == "folder" else self._finish_files(work, job)
            finished.append((job, kept))
        return finished

    def tell(self, job: Job, kept: str, told: Told) -> None:
        """Add what was finished to what was done."""
        note = (
            f"a run that was cut short was finished: {job['backup']} is in place, and what was there before in {kept}"
        )
        told["notes"].insert(0, note)
        if not told["changed"] and job["kind"] == self.options.state:
            # What that run has begun is what was asked for.
            told.update(
                action=job["kind"],
                state=job["was"],
                backup=job["backup"],
                atomic=job["method"] == "folder",
                quarantine=kept,
                files_before=job["before"],
                undo=self._undo(kept),
            )
        told["changed"] = True

    def _undo(self, kept: str) -> dict[str, str]:
        return {"path": self.options.path, "name": self.options.name, "state": "undone", "quarantine": kept}

    def _read_job(self, work: str) -> Job | None:
        path = os.path.join(work, _JOB)
        try:
            with open(path, encoding="utf-8") as file:
                job: Job = json.load(file)
            if job["schema"] != SCHEMA or job["method"] not in ("folder", "files"):
                raise ValueError("it is none of this version's")
            return job
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"{path} is damaged ({error}); see what is in its folder before it is removed.") from None

    def _begun(self, work: str, job: Job) -> bool:
        """Whether anything was changed; until then a new run begins afresh."""
        if job["method"] == "files":
            return True
        try:
            about = os.stat(self.path)
        except FileNotFoundError:
            return False
        return [about.st_dev, about.st_ino] == job["inode"]

    def _end(self, work: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(work, _JOB))
        shutil.rmtree(work, ignore_errors=True)
        durable.sync_folder(os.path.dirname(work))

    def _verify(self, chosen: Chosen, told: Told) -> None:
        """Look at what is there now, like anybody else would."""
        present = self._present()
        if present != chosen.digests:
            raise Refused(
                f"{self.path} was written to since it was restored; what was there before is in {told['quarantine']}.",
                **told,
            )
        told["notes"].append("the service reads its index when it starts; restart it")

    # By exchanging the folder.

    def _may_exchange(self) -> bool:
        return os.access(self.parent, os.W_OK) and not _is_mount(self.path)

    def _exchange(self, chosen: Chosen, seen: Seen, told: Told) -> None:
        work = self.beside
        staged = self._stage(work, chosen)
        there = os.path.isdir(self.path)
        if there:
            _carry(self.path, staged, self.names.values())
        self._same_owners(staged, told)
        about = os.stat(staged)
        job = self._job(work, "folder", chosen, seen, inode=[about.st_dev, about.st_ino], there=there)
        try:
            if there:
                _rename_exchange(staged, self.path)
            else:
                os.rename(staged, self.path)
        except OSError as error:
            self._end(work)
            if there and error.errno in _NO_EXCHANGE:
                raise _NotExchanged from None
            raise
        durable.sync_folder(self.parent)
        told.update(atomic=True, quarantine=self._finish_exchange(work, job))

    def _finish_exchange(self, work: str, job: Job) -> str:
        old = os.path.join(work, "new")
        if not os.path.isdir(job["quarantine"]):
            if not job["there"]:
                # There was no folder, which is what undoing it leaves in it.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(old, 0o700)
            else:
                # What somebody has written since it was carried over.
                _carry(old, self.path, job["names"])
                durable.sync_folder(self.path)
        kept = self._put_away(old, job)
        self._end(work)
        return kept

    # By replacing its files.

    def _replace(self, chosen: Chosen, seen: Seen, told: Told) -> None:
        work = self.inside
        os.makedirs(self.path, exist_ok=True)
        staged = self._stage(work, chosen)
        self._same_owners(staged, told)
        old = os.path.join(work, "old")
        os.mkdir(old, 0o700)
        for name in self.names.values():
            path = os.path.join(self.path, name)
            if os.path.exists(path):
                _link(path, os.path.join(old, name))
        durable.sync_folder(old)
        job = self._job(work, "files", chosen, seen, after=sorted(self._shown(chosen.digests)))
        told.update(atomic=False, quarantine=self._finish_files(work, job))
        told["notes"].append(
            f"{self.path} could not be exchanged as a whole, so its files were replaced one after the other; who read "
            "them meanwhile may have some of both"
        )

    def _finish_files(self, work: str, job: Job) -> str:
        """Forward: what is new is whole and was looked at."""
        staged, old = os.path.join(work, "new"), os.path.join(work, "old")
        for name in job["names"]:
            path, new = os.path.join(self.path, name), os.path.join(staged, name)
            if os.path.exists(new):
                os.replace(new, path)
            elif name not in job["after"]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        durable.sync_folder(self.path)
        kept = self._put_away(old, job)
        self._end(work)
        return kept


class _NotExchanged(Exception):
    """The kernel does not exchange these two folders."""


def _of_archive(got: Contents, passed_over: t.Sequence[str]) -> Chosen:
    backup: Backup = got.backup
    return Chosen(backup.path, backup.taken_at, got.digests, got.seen, [*passed_over, *got.notes], got)


def _kept_manifest(folder: str) -> dict[str, t.Any] | None:
    try:
        with open(os.path.join(folder, _MANIFEST), encoding="utf-8") as file:
            found = json.load(file)
        good = found["schema"] == SCHEMA and isinstance(found["files"], dict)
        texts = all(isinstance(found[key], str) for key in ("index", "name", "kind", "kept_at"))
        return found if good and texts and clock.seconds(found["kept_at"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: str, content: t.Mapping[str, t.Any]) -> None:
    durable.write(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode("ascii"), 0o600)


def _size(folder: str) -> int:
    return sum(os.lstat(os.path.join(where, file)).st_size for where, _dirs, files in os.walk(folder) for file in files)


def _lost(seen: Seen, chosen: Chosen) -> dict[str, t.Any]:
    """What is there and not in the backup, as far as both can be read."""
    now, then = seen["posts"], chosen.seen["posts"]
    return {
        "vectors_now": seen["ntotal"],
        "vectors_backup": chosen.seen["ntotal"],
        "posts": len(now - then) if now is not None and then is not None else None,
        "modified_at": seen["modified_at"],
    }


def in_words(told: Told) -> str:
    """What a restore would do and lose, in one line."""
    if told["action"] == "none":
        if told["backup"] is None:
            return "; ".join(told["notes"]) or "nothing would change"
        return f"nothing would change: it has what {told['backup']} has"
    lost = told["lost"]
    has = f"{told['restored_ntotal']} vectors" if told["restored_ntotal"] is not None else "as it was"
    now = "no index" if told["state"] == "missing" else f"{_count(told['ntotal'])}, {told['state'].replace('_', ' ')}"
    parts = [f"there now: {now}" + (f", written {lost['modified_at']}" if lost["modified_at"] else "")]
    if lost["posts"]:
        parts.append(f"{lost['posts']} posts are not in it")
    if not told["atomic"]:
        parts.append("file by file, for the folder cannot be exchanged")
    return f"from {told['backup']} of {told['backup_taken_at']} ({has}): {'; '.join([*parts, *told['notes']])}"


def _count(number: int | None) -> str:
    return "an unknown number of vectors" if number is None else f"{number} vectors"


# Folders.


def _rename_exchange(one: str, other: str) -> None:
    """Let two folders take each other's name, in one step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), one, None, other) from None
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one, None, other)


def _is_mount(path: str) -> bool:
    """Whether something is mounted there; a bind mount of the same filesystem is seen in no other way."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            places = [line.split()[4] for line in file]
    except (OSError, IndexError):
        return os.path.ismount(path)
    return os.fsencode(path) in [place.decode("unicode_escape").encode("latin-1") for place in places]


def _carry(source: str, target: str, but: t.Iterable[str]) -> None:
    """Give a folder what another one has besides these names, as links where there can be some."""
    left_out = {*but, _MANIFEST}
    for entry in os.scandir(source):
        if entry.name in left_out or entry.name.endswith(".restoring"):
            continue
        new = os.path.join(target, entry.name)
        if entry.is_symlink():
            if not os.path.lexists(new):
                os.symlink(os.readlink(entry.path), new)
        elif entry.is_dir():
            if not os.path.isdir(new):
                os.mkdir(new, 0o700)
                shutil.copystat(entry.path, new)
                about = entry.stat()
                with contextlib.suppress(PermissionError):
                    os.chown(new, about.st_uid, about.st_gid)
            _carry(entry.path, new, ())
        elif entry.is_file() and not _there(entry, new):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            _link(entry.path, new)


def _there(entry: os.DirEntry[str], new: str) -> bool:
    """Whether the file is there already, or a younger one that somebody has written since."""
    try:
        there = os.lstat(new)
    except FileNotFoundError:
        return False
    about = entry.stat()
    return (about.st_dev, about.st_ino) == (there.st_dev, there.st_ino) or about.st_mtime_ns <= there.st_mtime_ns


def _link(path: str, new: str) -> None:
    """Another name of a file, or a copy where the filesystem has no links."""
    try:
        os.link(path, new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        shutil.copy2(path, new)
        about = os.stat(path)
        with contextlib.suppress(PermissionError):
            os.chown(new, about.st_uid, about.st_gid)
        durable.sync_file(new)


def _give_to(path: str, about: os.stat_result, told: Told) -> None:
    try:
        os.chown(path, about.st_uid, about.st_gid)
    except PermissionError:
        name = os.path.basename(path)
        told["notes"].append(f"{name} belongs to {faiss_index.me()} now, who may not give it away; use become")

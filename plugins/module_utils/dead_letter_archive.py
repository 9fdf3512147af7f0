# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take dead letters out of the queue and into an archive while Vritti goes on writing, and put an archive back.

First the queue's file is renamed, into a folder of ours beside it, so that Vritti begins another one. When the kernel
says that nobody can write to the renamed file any more, it is final, and only then it is read. What stays in the queue
(of other customers, of other reasons) is put back: as the queue's file where there is none by then, else appended.

A run may be killed anywhere: what it does next is written down before (`job.json`), and the next run goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import stat
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, dead_letters, durable, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

SCHEMA = "oncall.runbooks/dead-letters/1"
MANIFEST = ".manifest.json"
RESTORED = ".restored"
# A quarter quicker than zstd's own 3, and a twentieth larger.
LEVEL = 2
# Where others append too, whole lines go in, and not too many at once.
_APPENDED = 1 << 16
_PIECE = 1 << 20
# What takes longer to count than to start a process.
_LARGE = 1 << 26
_POLL_SECONDS = 0.02

Job = dict[str, t.Any]


@dataclass(frozen=True)
class Options:
    """What to archive, and where to; see the module's options."""

    path: str
    dest: str
    customer: str | None = None
    reason: str | None = None
    # Pairs of customer and episode, of which entries with a reflection are meant; None is no condition.
    episodes: t.Sequence[tuple[str, int]] | None = None
    compress: bool = True
    rotated: bool = True
    timeout: float = 10.0
    # Has a writer that keeps the file open open it anew; returns what went wrong, as a sentence.
    reopen: t.Callable[[], str | None] | None = field(default=None, compare=False)

    @property
    def filters(self) -> dict[str, t.Any]:
        episodes = None if self.episodes is None else [list(pair) for pair in sorted(set(self.episodes))]
        chosen = {"customer": self.customer, "reason": self.reason, "episodes": episodes}
        return {key: value for key, value in chosen.items() if value is not None}


def _wanted(filters: t.Mapping[str, t.Any]) -> t.Callable[[dict[str, t.Any]], bool]:
    customer, reason, episodes = filters.get("customer"), filters.get("reason"), filters.get("episodes")
    pairs = None if episodes is None else {(str(name), int(number)) for name, number in episodes}

    def wanted(entry: dict[str, t.Any]) -> bool:
        if customer not in (None, entry["customer_id"]) or reason not in (None, entry["failure_reason"]):
            return False
        if pairs is None:
            return True
        # True and 1.0 are equal to 1, and no ids.
        number = entry.get("episode_id")
        is_id = isinstance(number, int) and not isinstance(number, bool)
        return is_id and (entry["customer_id"], number) in pairs and entry.get("reflection") is not None

    return wanted


def archive(options: Options, check: bool = False) -> dict[str, t.Any]:
    """Archive what is in the queue, after finishing what a killed run has begun; what was done, for the module."""
    queue = _Queue(options)
    if check:
        return queue.foresee()
    with queue.alone(), queue.explained():
        finished = queue.finish()
        told = queue.archive()
    if not told["changed"] and finished and finished["changed"]:
        # Nothing has come since: what the killed run has begun is what was asked for.
        return finished
    if finished:
        told["notes"] = [*finished["notes"], *told["notes"]]
    return told


def restore(options: Options, archived: str, check: bool = False) -> dict[str, t.Any]:
    """Put an archive back into the queue."""
    queue = _Queue(options)
    if check:
        return queue.restore(archived, check, None)
    with queue.alone(), queue.explained():
        return queue.restore(archived, check, queue.finish())


class _Queue:
    """The queue's file, and the folder beside it in which a run works."""

    def __init__(self, options: Options) -> None:
        self.options = options
        folder, self.name = os.path.split(os.path.abspath(options.path))
        self.folder = os.path.realpath(folder)
        self.path = os.path.join(self.folder, self.name)
        self.work = os.path.join(self.folder, f".{self.name}.archiving")
        self.rest = os.path.join(self.work, "rest")
        self.job_file = os.path.join(self.work, "job.json")
        if not os.path.isdir(self.folder):
            raise Refused(f"{self.folder} is no folder; correct the path of the queue.")
        # Who runs this may be root, and the folder is the service's: a link of its may lead to anybody's file.
        if os.path.islink(self.path) or (os.path.exists(self.path) and not os.path.isfile(self.path)):
            raise Refused(f"{self.path} is no regular file; name the queue's own.")
        if os.path.lexists(self.work):
            about = os.lstat(self.work)
            owner = procfs.user(about.st_uid)
            if not stat.S_ISDIR(about.st_mode):
                raise Refused(f"{self.work} is no folder but {owner}'s; see what it is before anything is removed.")
            if about.st_uid not in (os.geteuid(), 0):
                raise Refused(f"{self.work} is {owner}'s, whose run was cut short; run it again as {owner}.")

    # One run at a time.

    @contextlib.contextmanager
    def alone(self) -> t.Iterator[None]:
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            end = time.monotonic() + self.options.timeout
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise Refused(
                            f"Another run works on {self.path} for longer than {self.options.timeout:g} s; wait for it."
                        ) from None
                    time.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def explained(self) -> t.Iterator[None]:
        """Say of a failure where entries are meanwhile."""
        try:
            yield
        except OSError as error:
            where = (
                f" What was taken is in {self.work}, and the next run goes on." if os.path.exists(self.job_file) else ""
            )
            raise Refused(f"{error.filename or self.path} cannot be used: {error.strerror or error}.{where}") from error

    # The job.

    def _job(self) -> Job | None:
        try:
            with open(self.job_file, encoding="utf-8") as file:
                job: Job = json.load(file)
                if job["schema"] != SCHEMA or job["stage"] not in _STAGES:
                    raise ValueError("it is none of this version's")
                return job
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                f"{self.job_file} is damaged ({error}); see what is in its folder before it is removed."
            ) from None

    def _write(self, job: Job) -> None:
        durable.write(self.job_file, json.dumps(job).encode(), 0o600)

    def _begin(self, **job: t.Any) -> Job:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.work, 0o700)
            durable.sync_folder(self.folder)
        part = f".{os.path.basename(job['archive'])}.{secrets.token_hex(8)}.part"
        made = {"schema": SCHEMA, "begun_at": clock.utc(time.time()), "part": part, "manifest": None, **job}
        self._write(made)
        return made

    def _end(self) -> None:
        """All is where it belongs: first the file that would have somebody go on, at last what he would find."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.job_file)
        shutil.rmtree(self.work, ignore_errors=True)
        durable.sync_folder(self.folder)

    def finish(self) -> dict[str, t.Any] | None:
        """What a killed run has begun; None where there is nothing of the kind."""
        job = self._job()
        if job is None:
            if os.path.isdir(self.work):
                # Made, and nothing was begun; or ended, and not removed.
                self._end()
            return None
        if job["stage"] == "restoring":
            # The archive is whole, and the queue was not touched.
            self._end()
            return None
        if job["stage"] == "returning":
            return self._return(job)
        if job["stage"] == "publishing" and (told := self._publish(job)):
            return told
        for taken, _path in self._taken(job):
            # It was given back, and this name of it was not removed any more.
            if self._is_in_queue(taken):
                os.unlink(taken)
        if job["filters"] == self.options.filters:
            # What has come since belongs to it.
            return self._take_and_archive(job)
        return self._archive_taken(job)

    # Archiving.

    def foresee(self) -> dict[str, t.Any]:
        counted, wanted = dead_letters.Tally(), _wanted(self.options.filters)
        for path in self._chosen():
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                for item in dead_letters.items(file):
                    if not self.options.filters or (item.entry is not None and wanted(item.entry)):
                        counted.add(item)
                        counted.size += len(item.line)
        told = self._told(counted, changed=bool(counted.size))
        if counted.size:
            told["archive"] = self._checked_path()
            told["manifest"] = told["archive"] + MANIFEST
        if os.path.exists(self.job_file):
            told["changed"] = True
            told["notes"].append(f"What a killed run has begun is finished first; see {self.job_file}.")
        return told

    def archive(self) -> dict[str, t.Any]:
        if not self._chosen():
            return self._told(dead_letters.Tally(), changed=False)
        dest = self._checked_path()
        job = self._begin(
            stage="taking", filters=self.options.filters, archive=dest, compress=self.options.compress, taken=[]
        )
        return self._take_and_archive(job)

    def _checked_path(self) -> str:
        dest = self._archive_path()
        if self.options.compress:
            dead_letters.zstandard()
        elif dest.endswith(".zst"):
            raise Refused(f"{dest} would not be what its name says; leave compress out, or .zst.")
        # In a folder, what somebody else makes meanwhile is given way to.
        if os.path.lexists(dest) and not self._is_folder:
            raise Refused(f"{dest} exists; give another name, or the folder.")
        folder = os.path.dirname(dest)
        if not os.path.isdir(folder):
            raise Refused(f"{folder} is no folder; make it first.")
        if not os.access(folder, os.W_OK):
            raise Refused(f"{folder} may not be written by {procfs.user(os.geteuid())}; use become.")
        return dest

    def _chosen(self) -> list[str]:
        """The files that hold something of what is wanted."""
        files = dead_letters.files_of(self.path, self.options.rotated)
        if self.options.filters:
            return [path for path in files if self._holds_wanted(path)]
        return [path for path in files if os.path.isfile(path) and os.path.getsize(path)]

    def _holds_wanted(self, path: str) -> bool:
        wanted = _wanted(self.options.filters)
        try:
            with open(path, "rb") as file:
                return any(item.entry is not None and wanted(item.entry) for item in dead_letters.items(file))
        except FileNotFoundError:
            return False

    @property
    def _is_folder(self) -> bool:
        return self.options.dest.endswith("/") or os.path.isdir(self.options.dest)

    def _archive_path(self) -> str:
        """A file by its name; in a folder, one that is named by the moment."""
        dest = self.options.dest
        if not self._is_folder:
            return self._suffixed(os.path.abspath(dest))
        stem, suffix = os.path.splitext(self.name)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for number in range(1, 1000):
            name = f"{stem}.{stamp}{f'-{number}' if number > 1 else ''}{suffix}"
            path = self._suffixed(os.path.join(os.path.abspath(dest), name))
            if not os.path.lexists(path) and not os.path.lexists(path + RESTORED):
                return path
        raise Refused(f"{dest} has a thousand archives of this second; give another folder.")

    def _suffixed(self, path: str) -> str:
        return path + ".zst" if self.options.compress and not path.endswith(".zst") else path

    def _take_and_archive(self, job: Job) -> dict[str, t.Any]:
        with self._given_back(job):
            for path in self._chosen():
                name = f"taken-{len(job['taken']):04}"
                job["taken"].append([name, path])
                self._write(job)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, os.path.join(self.work, name))
            durable.sync_folder(self.folder)
            durable.sync_folder(self.work)
        return self._archive_taken(job)

    @contextlib.contextmanager
    def _given_back(self, job: Job) -> t.Iterator[None]:
        """Nobody reads the archive yet: whatever goes wrong, it is as if nothing had happened."""
        try:
            yield
        except BaseException as error:
            self._give_back(job)
            if isinstance(error, OSError):
                raise Refused(
                    f"{job['archive']} cannot be written: {error.strerror or error}. The queue is as it was."
                ) from error
            raise

    def _archive_taken(self, job: Job) -> dict[str, t.Any]:
        if not self._taken(job):
            self._end()
            return self._told(dead_letters.Tally(), changed=False)
        with self._given_back(job):
            self._await_final(job)
            self._build(job)
            if job["manifest"] is not None:
                job["stage"] = "publishing"
                self._write(job)
        if job["manifest"] is None:
            self._give_back(job)
            return self._told(dead_letters.Tally(), changed=False)
        told = self._publish(job)
        if told is None:
            raise Refused(f"{self._part(job)} was removed by somebody; the next run goes on.")
        return told

    def _part(self, job: Job) -> str:
        return os.path.join(os.path.dirname(job["archive"]), job["part"])

    def _taken(self, job: Job) -> list[tuple[str, str]]:
        """What was taken and where it was; what was not renamed any more is not there."""
        paths = ((os.path.join(self.work, name), path) for name, path in job["taken"])
        return [(taken, path) for taken, path in paths if os.path.exists(taken)]

    def _is_in_queue(self, path: str) -> bool:
        """Whether a file has one of the queue's names too; others may have linked to it."""
        for name in dead_letters.files_of(self.path):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samefile(name, path):
                    return True
        return False

    def _await_final(self, job: Job) -> None:
        """Return when nobody can write to what was taken; its only name is ours."""
        writing = self._written(job, self.options.timeout)
        if writing and self.options.reopen:
            problem = self.options.reopen()
            if problem:
                raise Refused(f"{problem} The queue is as it was.")
            writing = self._written(job, self.options.timeout)
        if writing:
            raise Refused(
                f"{self.path} is kept open by {writing}, so what it writes would be missing; give reopen, a command "
                "that has it open its file anew, or restart it. The queue is as it was."
            )

    def _written(self, job: Job, patience: float) -> str:
        """Who still has one of the files open for writing, in words; nobody is ''."""
        end = time.monotonic() + patience
        for taken, _path in self._taken(job):
            while (writers := _writers(taken)) is not None:
                if time.monotonic() > end:
                    return writers
                time.sleep(_POLL_SECONDS)
        return ""

    def _build(self, job: Job) -> None:
        """The archive, complete and synced under a name that nobody reads, and what stays in the queue."""
        part = self._part(job)
        filters = job["filters"]
        counted, content = dead_letters.Tally(), 0
        wanted, sources = _wanted(filters), []
        taken = self._taken(job)
        about = os.stat(taken[-1][0])
        job["owner"] = [about.st_mode & 0o777, about.st_uid, about.st_gid]
        with (
            contextlib.nullcontext() if filters else _counted_beside([path for path, _original in taken]) as beside,
            open(part, "wb", opener=_private) as file,
            open(self.rest, "wb", opener=_private) as rest,
        ):
            hashed = _Hashed(file)
            with _compressed(hashed, job["compress"]) as packed:
                for path, original in taken:
                    with open(path, "rb") as source:
                        if filters:
                            first, last, size = _divide(source, wanted, packed, rest, counted)
                        else:
                            first, last, size = _pack(source, packed)
                        content += size
                        if last:
                            whole = os.fstat(source.fileno()).st_size
                            sources.append({"path": original, "bytes": whole, "range": [first, last]})
            for written in (file, rest):
                written.flush()
                os.fsync(written.fileno())
            counts = beside() if beside is not None else _counts(counted)
        _give_to(self.rest, job["owner"])
        job["manifest"] = {
            "schema": SCHEMA,
            "archive": os.path.basename(job["archive"]),
            "archived_at": clock.utc(time.time()),
            "queue": self.path,
            "filters": filters,
            "sources": sources,
            "compression": "zstd" if job["compress"] else None,
            "content_bytes": content,
            "size_bytes": os.path.getsize(part),
            "sha256": hashed.digest.hexdigest(),
            **counts,
        }
        if not content:
            job["manifest"] = None

    def _publish(self, job: Job) -> dict[str, t.Any] | None:
        """Give the archive its name; None where it is gone before it had one."""
        manifest, part = job["manifest"], self._part(job)
        while not self._is_published(job):
            if not os.path.exists(part):
                return None
            try:
                _move(part, job["archive"])
            except FileExistsError:
                # Somebody else's, made meanwhile.
                job["archive"] = self._another(job["archive"])
                manifest["archive"] = os.path.basename(job["archive"])
                self._write(job)
        final = job["archive"]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        # Under a name that the next run knows, so that nothing of a killed one stays.
        with open(part, "wb", opener=_private) as file:
            file.write((json.dumps(manifest, indent=1) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, final + MANIFEST)
        durable.sync_folder(os.path.dirname(final))
        job["stage"] = "returning"
        self._write(job)
        return self._return(job)

    def _is_published(self, job: Job) -> bool:
        try:
            return durable.sha256(job["archive"]) == job["manifest"]["sha256"]
        except FileNotFoundError:
            return False

    @staticmethod
    def _another(path: str) -> str:
        stem, dot, suffixes = os.path.basename(path).partition(".")
        for number in range(2, 1000):
            other = os.path.join(os.path.dirname(path), f"{stem}-{number}{dot}{suffixes}")
            if not os.path.lexists(other) and not os.path.lexists(other + RESTORED):
                return other
        raise Refused(f"{path} and a thousand names like it are taken; give another folder.")

    # What goes back into the queue.

    def _give_back(self, job: Job) -> None:
        """Files as they were taken; beside what has come since where there is something."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part(job))
        for taken, path in self._taken(job):
            stamp = time.time()
            wanted = path
            while True:
                try:
                    _move(taken, wanted)
                    break
                except FileExistsError:
                    # As Vritti itself calls what it has set aside.
                    stem, suffix = os.path.splitext(self.path)
                    wanted = f"{stem}.{time.strftime('%Y%m%d_%H%M%S', time.gmtime(stamp))}{suffix}"
                    stamp -= 1
            durable.sync_folder(self.folder)
        self._end()

    def _return(self, job: Job) -> dict[str, t.Any]:
        """Put back what stays in the queue, then forget the job."""
        notes = []
        if os.path.exists(self.rest) and os.path.getsize(self.rest):
            notes = self._put_back(job)
        if job.get("restored"):
            return self._set_aside(job, notes)
        self._make_anew(job)
        self._end()
        return {
            "changed": True,
            "archive": job["archive"],
            "manifest": job["archive"] + MANIFEST,
            "sha256": job["manifest"]["sha256"],
            "notes": notes,
            **{key: job["manifest"][key] for key in _COUNTS},
        }

    def _make_anew(self, job: Job) -> None:
        """An empty queue, as the runbook's touch makes it, for its owner; Vritti would make it with the next entry."""
        empty = os.path.join(self.work, "empty")
        with open(empty, "wb", opener=_private):
            pass
        _give_to(empty, job["owner"])
        with contextlib.suppress(FileExistsError):
            _move(empty, self.path)

    def _put_back(self, job: Job) -> list[str]:
        # A run was killed after it was in its place, where that takes two steps.
        if self._is_in_queue(self.rest):
            os.unlink(self.rest)
            return []
        notes: list[str] = []
        if "appending" not in job:
            try:
                _move(self.rest, self.path)
                durable.sync_folder(self.folder)
                return []
            except FileExistsError:
                pass
        try:
            self._append(job, notes)
        except OSError as error:
            raise Refused(
                f"{self.path} cannot be appended to: {error.strerror or error}. What belongs there is in {self.rest}; "
                "make room, and the next run goes on."
            ) from error
        os.unlink(self.rest)
        return notes

    def _append(self, job: Job, notes: list[str]) -> None:
        done = self._appended(job, notes) if "appending" in job else 0
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
                break
            except FileNotFoundError:
                # Vritti has renamed it meanwhile.
                self._make_anew(job)
        try:
            status = os.fstat(handle)
            if "appending" not in job or [status.st_dev, status.st_ino] != job["appending"][:2]:
                job["appending"] = [status.st_dev, status.st_ino, status.st_size, done]
                self._write(job)
            torn = status.st_size and os.pread(handle, 1, status.st_size - 1) != b"\n"
            with open(self.rest, "rb") as rest:
                for _number in range(done):
                    _skip_line(rest)
                pending = b"\n" if torn else b""
                while line := rest.readline(dead_letters.MAX_LINE):
                    if len(pending) + len(line) > _APPENDED and pending:
                        _write_all(handle, pending)
                        pending = b""
                    pending += line
                _write_all(handle, pending)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _appended(self, job: Job, notes: list[str]) -> int:
        """How many of the rest's lines a killed run has appended: those that come, in order, behind what was there."""
        device, inode, size, done = job["appending"]
        for path in dead_letters.files_of(self.path):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file, open(self.rest, "rb") as rest:
                status = os.fstat(file.fileno())
                if [status.st_dev, status.st_ino] != [device, inode]:
                    continue
                for _number in range(done):
                    _skip_line(rest)
                file.seek(size)
                awaited = rest.readline(dead_letters.MAX_LINE)
                while line := file.readline(dead_letters.MAX_LINE):
                    # A line that was cut off in front of it does not matter.
                    if awaited and line.endswith(awaited):
                        done += 1
                        awaited = rest.readline(dead_letters.MAX_LINE)
                return int(done)
        notes.append(
            f"The file that a killed run has appended to is not there any more, so some of what was put back into "
            f"{self.path} may be in it too."
        )
        return int(done)

    # Undoing.

    def restore(self, archived: str, check: bool, finished: dict[str, t.Any] | None) -> dict[str, t.Any]:
        archived = os.path.realpath(archived)
        if not os.path.exists(archived):
            if os.path.exists(archived + RESTORED):
                told = finished if finished and finished["archive"] == archived else None
                return told or {**self._told(dead_letters.Tally(), changed=False), "archive": archived}
            raise Refused(f"There is no archive {archived}; correct its path.")
        if any(os.path.samefile(archived, name) for name in dead_letters.files_of(self.path)):
            raise Refused(f"{archived} is the queue itself; give an archive of it.")
        manifest = _manifest(archived)
        if manifest and durable.sha256(archived) != manifest["sha256"]:
            raise Refused(f"{archived} is not what its manifest says (SHA-256); nothing was changed.")
        counted = dead_letters.Tally()
        if check:
            with dead_letters.open_queue(archived) as packed:
                for block, kind in dead_letters.blocks(packed):
                    counted.feed(block, kind)
            _require_letters(archived, counted)
            return {**self._told(counted, changed=True), "archive": archived}
        job = self._begin(stage="restoring", archive=archived, restored=True, taken=[], filters={})
        try:
            with dead_letters.open_queue(archived) as packed, open(self.rest, "wb", opener=_private) as rest:
                block = b"\n"
                for block, kind in dead_letters.blocks(packed):
                    rest.write(block)
                    counted.feed(block, kind)
                if not block.endswith(b"\n"):
                    rest.write(b"\n")
                rest.flush()
                os.fsync(rest.fileno())
            _require_letters(archived, counted)
        except Refused:
            self._end()
            raise
        except (OSError, NoAnswer) as error:
            self._end()
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
            raise Refused(f"{archived} cannot be put back: {why}. The queue is as it was.") from error
        about = os.stat(self.path if os.path.exists(self.path) else self.folder)
        job["owner"] = [about.st_mode & 0o666, about.st_uid, about.st_gid]
        _give_to(self.rest, job["owner"])
        job.update(stage="returning", counts=_counts(counted))
        self._write(job)
        return self._return(job)

    def _set_aside(self, job: Job, notes: list[str]) -> dict[str, t.Any]:
        """What is in the queue again is no archive any more; nothing is deleted."""
        for path in (job["archive"], job["archive"] + MANIFEST):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, path.replace(job["archive"], job["archive"] + RESTORED, 1))
        durable.sync_folder(os.path.dirname(job["archive"]))
        self._end()
        told = {"changed": True, "archive": job["archive"], "manifest": None, "sha256": None, "notes": notes}
        return {**told, **job["counts"]}

    def _told(self, counted: dead_letters.Tally, changed: bool) -> dict[str, t.Any]:
        told: dict[str, t.Any] = {"changed": changed, "archive": None, "manifest": None, "sha256": None, "notes": []}
        return {**told, **_counts(counted)}


_STAGES = ("taking", "publishing", "returning", "restoring")
_COUNTS = ("entries", "torn", "foreign", "by_reason", "by_customer", "oldest", "newest")


def _counts(counted: dead_letters.Tally) -> dict[str, t.Any]:
    return {key: getattr(counted, key) for key in _COUNTS}


def _pack(source: t.BinaryIO, packed: t.Any) -> tuple[int, int, int]:
    """Copy all of a file into the archive; from where to where that is, and how much."""
    size, piece = 0, b"\n"
    while following := source.read(_PIECE):
        piece = following
        packed.write(piece)
        size += len(piece)
    if piece.endswith(b"\n"):
        return 0, size, size
    packed.write(b"\n")
    return 0, size, size + 1


def _divide(
    source: t.BinaryIO,
    wanted: t.Callable[[dict[str, t.Any]], bool],
    packed: t.Any,
    rest: t.BinaryIO,
    counted: dead_letters.Tally,
) -> tuple[int, int, int]:
    """Copy what is wanted into the archive, and anything else to the rest; from where to where it was, and how much."""
    first = last = size = 0
    for item in dead_letters.items(source):
        if item.entry is not None and wanted(item.entry):
            packed.write(item.line)
            counted.add(item)
            size += len(item.line)
            first = first if last else item.offset
            last = item.offset + len(item.raw)
        else:
            rest.write(item.line)
    return first, last, size


@contextlib.contextmanager
def _counted_beside(paths: t.Sequence[str]) -> t.Iterator[t.Callable[[], dict[str, t.Any]]]:
    """Count what is in files that nobody writes to; of large ones in a process beside this one, which packs them."""
    if sum(map(os.path.getsize, paths)) < _LARGE:
        yield lambda: _counts(dead_letters.tally(paths))
        return
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with os.fdopen(writing, "wb") as pipe:
                # Packing takes as long as counting without braces.
                pipe.write(json.dumps(_counts(dead_letters.tally(paths, thorough=False))).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:

        def counted() -> dict[str, t.Any]:
            told = answer.read()
            # A child that was killed has told nothing.
            return t.cast("dict[str, t.Any]", json.loads(told)) if told else _counts(dead_letters.tally(paths))

        try:
            yield counted
        finally:
            answer.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _manifest(archived: str) -> dict[str, t.Any] | None:
    try:
        with open(archived + MANIFEST, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Refused(f"{archived + MANIFEST} is damaged ({error}); nothing was changed.") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise Refused(f"{archived + MANIFEST} does not tell of dead letters; nothing was changed.")
    return found


def _give_to(path: str, owner: t.Sequence[int]) -> None:
    mode, user, group = owner
    if os.geteuid() == 0:
        os.chown(path, user, group)
    os.chmod(path, mode)


def _require_letters(archived: str, counted: dead_letters.Tally) -> None:
    if not counted.entries and _manifest(archived) is None:
        raise Refused(f"{archived} holds no dead letters and has no manifest; correct its path.")


_RENAME_NOREPLACE = 1


def _move(source: str, target: str) -> None:
    """Rename, and raise FileExistsError where the target is there; nobody's file is ever replaced."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        rename = None
    if rename is not None:
        folder = -100  # AT_FDCWD
        if rename(folder, os.fsencode(source), folder, os.fsencode(target), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        # Not every filesystem can.
        if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), source, None, target)
    try:
        os.link(source, target)
        os.unlink(source)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target)


def _skip_line(file: t.BinaryIO) -> None:
    while (piece := file.readline(dead_letters.MAX_LINE)) and not piece.endswith(b"\n"):
        pass


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]


def _writers(path: str) -> str | None:
    """Who has a file open for writing, in words; None is nobody.

    The kernel gives a lease for reading only where nobody has, in whichever container; for it the file has to be one's
    own, on a local filesystem. Else /proc has to do, of which one has to see all.
    """
    status = os.stat(path)
    leased = _leased(path)
    if leased:
        return None
    found, complete = procfs.writers_of(status.st_dev, status.st_ino)
    if found:
        return ", ".join(f"{procfs.name(pid)} (PID {pid})" for pid in found)
    if leased is False:
        return "a process that cannot be seen from here"
    if complete:
        return None
    return f"nobody that {procfs.user(os.geteuid())} may see, which is not everybody (use become)"


def _leased(path: str) -> bool | None:
    """Whether the kernel would lease the file for reading; None where it does not lease it to us in any case."""
    # It tells who holds a lease by a signal that ends the process.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    finally:
        os.close(handle)
        signal.signal(signal.SIGIO, before)


class _Hashed:
    """A file whose checksum is known when it is written."""

    def __init__(self, file: t.BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


@contextlib.contextmanager
def _compressed(file: _Hashed, compress: bool) -> t.Iterator[t.Any]:
    if not compress:
        yield file
        return
    packer = dead_letters.zstandard().ZstdCompressor(level=LEVEL, write_checksum=True)
    with packer.stream_writer(file, closefd=False) as writer:
        yield writer

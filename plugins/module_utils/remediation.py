# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host remembers of its remediations: the lock, one record for each, and private evidence and backups.

Everything is written and fsynced before what it speaks of is done, so that a run that was killed anywhere leaves a
record which says how far it may have come. Records hold no secrets and are readable by all; what may hold some lies in
`private`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, durable
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused

SCHEMA = "oncall.runbooks/remediation/1"
KEPT_RECORDS = 50
# A remediation needs a few hundred kilobytes; a file system that has less left is full.
LEAST_FREE = 4 * 1024 * 1024
STRIKES = 3
STRIKE_SECONDS = 24 * 3600.0
# What a person who knows may want ignored.
OVERRIDE = ["lock", "strikes", "interrupted"]
# States of a record in which something may still have to be done.
OPEN = ("running", "rolling back")
# A step in one of these may have changed something.
TOUCHED = ("running", "done", "verified", "failed", "undoing")

Record = dict[str, t.Any]


def _seconds(stamp: str) -> float:
    try:
        return clock.seconds(stamp)
    except (TypeError, ValueError):
        return 0.0


class StateDir:
    """`runbook_state_dir` on a host."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock_file = os.path.join(path, "lock.json")
        self.records = os.path.join(path, "records")

    def private(self, record_id: str) -> str:
        """The folder that only its owner may read, for evidence and for copies of what was changed."""
        return os.path.join(self.path, "private", record_id)

    def record_path(self, record_id: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", record_id):
            raise Refused(f"{record_id!r} is no id of a remediation.")
        return os.path.join(self.records, f"{record_id}.json")

    # Reading. Nothing is created, and what cannot be read is none.

    def existing(self) -> str:
        """The folder, or the nearest above it that is there."""
        folder = self.path
        while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
            folder = os.path.dirname(folder)
        return folder

    def read(self, record_id: str) -> Record | None:
        return _record(self.record_path(record_id))

    def all(self) -> list[Record]:
        """The records, newest first. PermissionError goes up: what may not be seen is not known."""
        try:
            names = os.listdir(self.records)
        except FileNotFoundError:
            return []
        found = [
            _record(os.path.join(self.records, name)) for name in names if name.endswith(".json") and name[0] != "."
        ]
        return sorted((record for record in found if record), key=lambda item: str(item.get("id")), reverse=True)

    def lock(self) -> dict[str, t.Any] | None:
        """The lock while it is valid."""
        lock = _load(self.lock_file)
        return lock if lock and _seconds(lock.get("expires_at", "")) > time.time() else None

    # Writing.

    def prepare(self) -> None:
        """Make the folders, and refuse before that where there is no room for what must not be lost."""
        try:
            free = os.statvfs(self.existing())
        except OSError as error:
            raise Refused(f"{_cannot(self.path, error)}; nothing was changed.") from None
        room = free.f_bavail * free.f_frsize
        if room < LEAST_FREE:
            raise Refused(
                f"The file system of {self.path} has {room // 1024} KiB left, and {LEAST_FREE // 1024} KiB are needed "
                "for the record and the copies of what is changed; make room, or set runbook_state_dir. Nothing was "
                "changed."
            )
        try:
            for folder, mode in (
                (self.path, 0o755),
                (self.records, 0o755),
                (os.path.join(self.path, "private"), 0o700),
            ):
                if not os.path.isdir(folder):
                    os.makedirs(folder, exist_ok=True)
                    os.chmod(folder, mode)
                    durable.sync_folder(os.path.dirname(folder))
        except OSError as error:
            raise Refused(f"{_cannot(self.path, error)}; nothing was changed.") from None

    @contextlib.contextmanager
    def exclusively(self) -> t.Iterator[None]:
        """No other process reads and writes the lock at the same time; the kernel lets go when this one ends."""
        handle = os.open(os.path.join(self.path, ".flock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def take(self, owner: t.Mapping[str, t.Any], record_id: str, seconds: float, override: bool) -> None:
        """Take the lock, or Refused with whose it is."""
        with self.exclusively():
            held = self.lock()
            # A run that was killed on this very controller cannot go on by itself; its lock is nobody's.
            free = held is None or held.get("owner") in (owner.get("dead") or [])
            if held and not free and not override:
                who = held.get("owner", {})
                raise Refused(
                    f"{who.get('user')}@{who.get('controller')} holds the lock of {self.path} since "
                    f"{held.get('since')} for {held.get('record')}, until {held.get('expires_at')} at the latest: "
                    "wait, or pass -e runbook_override=lock if that run is surely dead. Nothing was changed."
                )
            now = time.time()
            self._write(
                self.lock_file,
                {
                    "owner": _person(owner),
                    "record": record_id,
                    "since": clock.utc(now),
                    "expires_at": clock.utc(now + seconds),
                    "seconds": seconds,
                },
            )

    def renew(self, record_id: str, owner: t.Mapping[str, t.Any], now_for: str | None = None) -> None:
        """Every step begins with the whole time that the longest may take."""
        with self.exclusively():
            lock = _load(self.lock_file)
            if not lock or lock.get("record") != record_id or lock.get("owner") != _person(owner):
                who = (lock or {}).get("owner", {})
                raise Refused(
                    f"The lock of {self.path} is not this run's any more"
                    + (f": {who.get('user')}@{who.get('controller')} has taken it over" if lock else "")
                    + ". It stops here."
                )
            until = clock.utc(time.time() + float(lock.get("seconds") or 0))
            self._write(self.lock_file, {**lock, "record": now_for or record_id, "expires_at": until})

    def release(self, record_id: str, owner: t.Mapping[str, t.Any] | None = None) -> None:
        """Let go of the lock, unless it is somebody else's by now. Without an owner, whoever has left it."""
        with self.exclusively():
            lock = _load(self.lock_file)
            if lock and lock.get("record") == record_id and (owner is None or lock.get("owner") == _person(owner)):
                os.unlink(self.lock_file)
                durable.sync_folder(self.path)

    def write(self, record: Record) -> None:
        self._write(self.record_path(record["id"]), record)

    def keep(self, record_id: str, name: str, content: str) -> str:
        """Evidence, for its owner only."""
        folder = self.private(record_id)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, name)
        durable.write(path, content.encode(), 0o600)
        return path

    def add_line(self, line: str) -> None:
        """The controller's timeline, as far as it concerns this host."""
        path = os.path.join(self.path, "timeline.jsonl")
        with open(path, "ab+") as file:
            # A run that was killed while it wrote has left half a line; this one begins a line of its own.
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            start = "" if file.read(1) in (b"", b"\n") else "\n"
            file.write(f"{start}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def prune(self) -> None:
        """Old records go, with what is private of them; those that something may still have to be done for stay."""
        for record in [item for item in self.all() if item["state"] not in OPEN][KEPT_RECORDS:]:
            path = self.record_path(record["id"])
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.private(record["id"]))
            os.unlink(path)

    def _write(self, path: str, data: t.Any) -> None:
        durable.write(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(), 0o644)


def strikes(records: t.Iterable[Record], step: str, now: float) -> int:
    """How often a step has been verified in vain within the window, since it last helped."""
    count = 0
    for record in records:
        for item in record.get("steps", []):
            if item.get("id") != step or now - _seconds(item.get("ended_at") or "") > STRIKE_SECONDS:
                continue
            if item.get("helped") is True:
                return count
            if item.get("helped") is False:
                count += 1
    return count


def undoable(record: t.Mapping[str, t.Any]) -> list[t.Any]:
    """The steps that may have changed something and can be rolled back."""
    return [step for step in record["steps"] if step.get("state") in TOUCHED and step.get("reversible")]


def _refuse_to_bury(record: t.Mapping[str, t.Any]) -> None:
    """A run that was cut short must not be forgotten for the next plan while there is something of it to undo."""
    steps = undoable(record)
    if not steps:
        return
    titles = ", ".join(str(step.get("title")) for step in steps)
    go_on = (
        f"go on with -e runbook_plan={record['plan']}, or undo it with"
        if record["state"] == "running"
        else "go on with"
    )
    raise Refused(
        f"Remediation {record['id']} of {record['runbook']} was cut short ({titles}): {go_on} {record['runbook']}.yml "
        f"--tags rollback -e runbook_rollback_id={record['id']}; -e runbook_override=interrupted leaves it as it is. "
        "Nothing was changed."
    )


def begin(
    state: StateDir,
    record: Record,
    owner: t.Mapping[str, t.Any],
    seconds: float,
    override: t.Sequence[str],
) -> tuple[Record, bool]:
    """Lock the host and write the record, or go on with the unfinished one of the same plan; and whether it went on."""
    state.prepare()
    # Read under the lock, so that nobody else writes between that and what is written here.
    _take(state, owner, record["id"], seconds, override)
    try:
        now = time.time()
        earlier = state.all()
        unfinished = next(
            (item for item in earlier if item["state"] in OPEN and item["runbook"] == record["runbook"]), None
        )
        # The time in a plan's id is that of the look; the rest says what is done.
        goes_on = bool(unfinished and _same_plan(unfinished["plan"], record["plan"]))
        if goes_on and unfinished:
            state.renew(record["id"], owner, now_for=unfinished["id"])
            known = {item["id"] for item in unfinished["steps"]}
            unfinished["steps"] += [item for item in record["steps"] if item["id"] not in known]
            record = {**unfinished, "by": record["by"], "state": "running", "went_on_at": clock.utc(now)}
        for item in earlier:
            if item["state"] in OPEN and item["id"] != record["id"] and "interrupted" not in override:
                _refuse_to_bury(item)
        if "strikes" not in override:
            for step in record["steps"]:
                struck = strikes(earlier, step["id"], now)
                if step["state"] == "planned" and struck >= STRIKES:
                    raise Refused(
                        f"{step['id']} was applied {struck} times within a day and did not help: find the cause, or "
                        "pass -e runbook_override=strikes. Nothing was changed."
                    )
        state.prune()
        state.write(record)
    except (OSError, Refused) as error:
        raise _let_go(state, record["id"], owner, error) from None
    # Only now, for they name the new one. What stays open is told of by the next diagnosis.
    with contextlib.suppress(OSError):
        for item in earlier:
            if item["state"] in OPEN and item["id"] != record["id"]:
                state.write({**item, "state": "interrupted", "superseded_by": record["id"]})
    return record, goes_on


def _person(owner: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {key: value for key, value in owner.items() if key != "dead"}


def _same_plan(one: t.Any, other: t.Any) -> bool:
    return str(one).rpartition("-")[2] == str(other).rpartition("-")[2]


@contextlib.contextmanager
def at_work(path: str | None) -> t.Iterator[None]:
    """Hold a file's lock while something is done that outlives the controller; Refused while somebody else does."""
    if not path:
        yield
        return
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Refused(f"{_cannot(path, error)}; nothing was changed.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"A step of an earlier run is still at work on this host (it holds {path}): wait until it has ended. "
                "Nothing was changed."
            ) from None
        yield
    finally:
        os.close(handle)


def begin_rollback(
    state: StateDir, record_id: str, owner: t.Mapping[str, t.Any], seconds: float, override: t.Sequence[str]
) -> Record:
    """Lock the host and open a record for undoing."""
    state.prepare()
    _take(state, owner, record_id, seconds, override)
    try:
        record = state.read(record_id)
        if record is None:
            raise Refused(f"There is no record {record_id} in {state.records}; nothing was changed.")
        record.update(state="rolling back", by=_person(owner))
        state.write(record)
    except (OSError, Refused) as error:
        raise _let_go(state, record_id, owner, error) from None
    return record


def _take(
    state: StateDir, owner: t.Mapping[str, t.Any], record_id: str, seconds: float, override: t.Sequence[str]
) -> None:
    try:
        # A dead controller is no proof: what it has begun here may still run.
        with at_work(os.path.join(state.path, ".operation")):
            state.take(owner, record_id, seconds, "lock" in override)
    except OSError as error:
        raise Refused(f"{_cannot(state.path, error)}; nothing was changed.") from None


def _let_go(state: StateDir, record_id: str, owner: t.Mapping[str, t.Any], error: Exception) -> Refused:
    """The lock goes with what was refused under it."""
    with contextlib.suppress(OSError, Refused):
        state.release(record_id, owner)
    if isinstance(error, OSError):
        return Refused(f"{_cannot(state.path, error)}; nothing was changed.")
    return Refused(str(error))


def summary(record: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What a diagnosis tells of a record."""
    return {
        "id": record.get("id"),
        "plan": record.get("plan"),
        "runbook": record.get("runbook"),
        "by": record.get("by"),
        "started_at": record.get("started_at"),
        "state": record.get("state"),
        "steps": [
            {
                key: step.get(key)
                for key in (
                    "id", "title", "operation", "params", "role", "because", "reversible", "irreversible", "undo",
                    "state",
                    "state_of", "before", "message", "started_at", "ended_at",
                )
            }
            for step in record.get("steps", [])
        ],
        "findings": record.get("findings", []),
        "evidence": record.get("evidence"),
    }  # fmt: skip


def _cannot(path: str, error: OSError) -> str:
    return f"{error.filename or path} cannot be written ({error.strerror}); set runbook_state_dir or give root with -b"


def _load(path: str) -> Record | None:
    """The file's content; Refused when it is no record, for what it would have said is not known."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        if not isinstance(data, dict):
            raise ValueError("it is no mapping")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(path, error) from None
    return data


def _record(path: str) -> Record | None:
    record = _load(path)
    missing = [key for key in ("id", "plan", "runbook", "state", "steps") if record is not None and key not in record]
    if missing:
        raise _damaged(path, f"it has no {missing[0]}")
    return record


def _damaged(path: str, why: object) -> Refused:
    return Refused(f"{path} is damaged ({why}); look at it, and move it away when its remediation is settled.")

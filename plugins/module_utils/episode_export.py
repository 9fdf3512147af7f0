# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Export a customer's episodes from KyroDB to JSON lines.

KyroDB lists nothing. Later versions of Vritti keep an index of the ids in their database, which one search is compared
with; without one, searches find what they find. While it runs, the lines are in `<dest>.part`, and
`<dest>.part.manifest.json` says whose they are; a run that was killed is gone on with for an hour. At the end the
manifest gets its name first and the lines after it, so that a file is never without the manifest that tells whose it
is; until then its `replaces` is the checksum of what is there.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import sqlite3
import stat
import time
import typing as t
from array import array
from dataclasses import dataclass, field

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, durable, episodes, kyrodb, sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

SCHEMA = "oncall.runbooks/kyrodb_export/1"
MANIFEST = ".manifest.json"
PART = ".part"
# So many are held in memory at once.
CHUNK = 200
# So many ids are named one by one, and so many in a sentence.
NAMED = 100
_SAID = 20
# Older lines may have changed since.
_OLDEST_PART = 3600
_INDEX = "episodes_index"
# What a manifest says of the run, and not of what was exported.
_OF_ONE_RUN = ("started_at", "finished_at", "replaces")

Manifest = dict[str, t.Any]


@dataclass
class Export:
    """What is exported, where to, and what came of it."""

    endpoint: kyrodb.Endpoint
    customer_id: str
    dest: str
    customers_db: str | None = None
    collection: str = episodes.COLLECTION
    include_embeddings: bool = False
    dimension: int = 384
    timeout: float = 30.0
    # What came of it.
    source: str = "index"
    expected: int | None = None
    exported: int = 0
    resumed: int = 0
    undecoded: int = 0
    missing: list[int] = field(default_factory=list)
    missing_count: int = 0
    other_customer: int = 0
    outside_index: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.namespace = episodes.namespace(self.customer_id, self.collection)
        if os.path.isdir(self.dest) or self.dest.endswith(os.sep):
            self.dest = os.path.join(self.dest, f"{self.customer_id}.{self.collection}.jsonl")
        self.dest = os.path.abspath(self.dest)
        if self.dest.endswith((MANIFEST, PART)):
            raise ValueError(f"dest {self.dest} ends as a file of this module's own does; name another one")
        self.part = self.dest + PART
        self.started_at = clock.utc(time.time())
        self._why = "customers_db, which may have an index, is not given"
        # What a search has found and the index does not know, and the first of them that are this customer's.
        self._outside = array("q")
        self._named_outside: list[int] = []

    @property
    def manifest(self) -> str:
        return self.dest + MANIFEST

    def remainder(self) -> str:
        """What is left of a run that failed, as a sentence after the one that says why."""
        if not os.path.exists(self.part):
            return ""
        return f" What was exported until then is in {self.part}; a run within an hour of its start goes on from there."

    @property
    def complete(self) -> bool:
        wrong = self.missing_count or self.other_customer or self.outside_index or self.undecoded
        return self.source == "index" and not wrong

    @property
    def _identity(self) -> Manifest:
        return {
            "schema": SCHEMA,
            "customer_id": self.customer_id,
            "address": self.endpoint.address,
            "collection": self.collection,
        }

    # What is there.

    def guard(self, check: bool = False) -> Manifest | None:
        """Refuse what would overwrite anything but an older export of the same; its manifest."""
        folder = os.path.dirname(self.dest)
        if not os.path.isdir(folder):
            # In check mode somebody else would have made it by now.
            if check:
                return None
            raise Refused(f"{folder} does not exist; create the folder of the exports first.")
        found = _manifest(self.dest)
        if not os.path.lexists(self.dest):
            return None
        if not os.path.isfile(self.dest) or os.path.islink(self.dest):
            raise Refused(f"{self.dest} is no regular file; name another one as dest.")
        if found is None or durable.sha256(self.dest) not in (found.get("sha256"), found.get("replaces")):
            raise Refused(
                f"{self.dest} exists, and no manifest beside it says that it is an export of this module as it was "
                f"written; move it away, or name another file as dest."
            )
        self._require_same(found, self.dest)
        return found

    def _require_same(self, found: Manifest, path: str) -> None:
        theirs = {key: found.get(key) for key in self._identity}
        if theirs != self._identity:
            raise Refused(
                f"{path} is an export of {theirs['customer_id']}:{theirs['collection']} from {theirs['address']}; move "
                f"it away, or name another file as dest."
            )

    # Which episodes.

    def _ids(self, documents: kyrodb.Documents) -> array[int]:
        """The ids to export, in ascending order."""
        # Before the index is read, so that what is captured in between is in it.
        searched = self._searched(documents) if self._has_index else array("q")
        indexed = self._indexed(searched)
        if indexed is not None:
            self.expected = len(indexed)
            # KyroDB takes no others, and answers for none where one of them is asked for.
            first = bisect.bisect_right(indexed, 0)
            for invalid in indexed[:first]:
                self._miss(invalid)
            return array("q", sorted([*indexed[first:], *self._outside])) if self._outside else indexed[first:]
        self.source = "search"
        self.notes.clear()
        ids, most = documents.search_ids(documents.dimension() or self.dimension)
        fewer = f" {most} is what fits into an answer here." if most < kyrodb.MOST_HITS else ""
        self.notes.append(
            f"It may be incomplete: {self._why}, so the ids are what searches find, {most} at most each and "
            f"approximately.{fewer} KyroDB looks among everybody's documents first, so a customer with few in a busy "
            f"instance may be crowded out."
        )
        return _valid(ids)

    @property
    def _has_index(self) -> bool:
        return bool(self.customers_db) and self.collection == episodes.COLLECTION

    def _searched(self, documents: kyrodb.Documents) -> array[int]:
        """What one search finds, to compare the index with."""
        try:
            ids, _most = documents.search_ids(documents.dimension() or self.dimension, searches=1)
        except NoAnswer as error:
            self.notes.append(f"What the index lacks was not searched for: {error}")
            return array("q")
        return _valid(ids)

    def _indexed(self, searched: array[int]) -> array[int] | None:
        """The ids in Vritti's index, or None where there is no index."""
        if not self.customers_db:
            return None
        path = os.path.abspath(self.customers_db)

        def read(connection: sqlite3.Connection) -> array[int] | None:
            names = sqlite_files.tables(connection)
            if "customers" not in names:
                raise NoAnswer(f"{path} has no table customers; name Vritti's database as customers_db.")
            known = connection.execute("SELECT 1 FROM customers WHERE customer_id = ?", (self.customer_id,)).fetchone()
            if not known:
                raise NoAnswer(
                    f"{path} has no customer {self.customer_id}; correct customer_id, or leave customers_db out to "
                    f"search for what KyroDB has of one that is gone."
                )
            if _INDEX not in names or not self._has_index:
                return None
            of = (self.customer_id, self.collection)
            rows = connection.execute(
                "SELECT episode_id FROM episodes_index WHERE customer_id = ? AND collection = ? AND deleted = 0 "
                "ORDER BY episode_id",
                of,
            )
            indexed = array("q", (row[0] for row in rows))
            # What is deleted is in the index too, and is not to come back.
            known = "SELECT 1 FROM episodes_index WHERE customer_id = ? AND collection = ? AND episode_id = ?"
            unknown = (one for one in searched if not connection.execute(known, (*of, one)).fetchone())
            self._outside = array("q", unknown)
            return indexed

        if sqlite_files.header_of(path) is None:
            raise NoAnswer(f"{path} is no SQLite database, or does not exist; name Vritti's database as customers_db.")
        try:
            found = sqlite_files.read(path, read, self.timeout)
        except (sqlite_files.Locked, sqlite3.Error) as error:
            raise NoAnswer(f"The index in {path} cannot be read: {str(error).rstrip('.')}.") from None
        if found is None and self.collection != episodes.COLLECTION:
            self._why = f"the index in {path} has none of {self.collection}"
        elif found is None:
            self._why = f"{path} has no table {_INDEX}"
        return found

    # Their lines.

    def _lines(self, documents: kyrodb.Documents, ids: array[int]) -> t.Iterator[list[bytes]]:
        """The lines of these episodes, a chunk at a time."""
        for place in range(0, len(ids), CHUNK):
            piece = ids[place : place + CHUNK].tolist()
            found = documents.get_many(piece, self.include_embeddings)
            lines = []
            for doc_id in piece:
                document = found.pop(doc_id, None)
                outside = _has(self._outside, doc_id)
                if document is not None and document.metadata.get("customer_id") == self.customer_id:
                    if outside:
                        self._count_outside(doc_id)
                    lines.append(self._line(document))
                elif outside:
                    # Nobody has promised it.
                    continue
                elif document is None:
                    self._miss(doc_id)
                else:
                    self.other_customer += 1
            self.exported += len(lines)
            yield lines

    def _miss(self, doc_id: int) -> None:
        self.missing_count += 1
        if len(self.missing) < NAMED:
            self.missing.append(doc_id)

    def _count_outside(self, doc_id: int) -> None:
        self.outside_index += 1
        if len(self._named_outside) < _SAID:
            self._named_outside.append(doc_id)

    def _line(self, document: kyrodb.Document) -> bytes:
        metadata = dict(document.metadata)
        text = metadata.pop(episodes.EPISODE, None)
        line: dict[str, t.Any] = {"episode_id": document.doc_id, "episode": None, "metadata": metadata}
        try:
            line["episode"] = episodes.decode(text or "")
        except episodes.Undecodable:
            # Nothing is lost of what cannot be read.
            line[episodes.EPISODE] = text
            self.undecoded += 1
        if self.include_embeddings:
            line["embedding"] = [_told(value) for value in document.embedding]
        return json.dumps(line, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"

    # Doing it.

    def foresee(self) -> dict[str, t.Any]:
        """What a run would do now: everything is read, nothing is written."""
        before = self.guard(check=True)
        digest, size = hashlib.sha256(), 0
        with kyrodb.Documents(self.endpoint, self.namespace, self.timeout) as documents:
            for lines in self._lines(documents, self._ids(documents)):
                for line in lines:
                    digest.update(line)
                    size += len(line)
        return self._result(before, self._manifest(digest.hexdigest(), size))

    def run(self) -> dict[str, t.Any]:
        """Export, and return the result; raise Refused, NoAnswer or OSError."""
        before = self.guard()
        with kyrodb.Documents(self.endpoint, self.namespace, self.timeout) as documents:
            ids = self._ids(documents)
            with self._open() as file:
                done = self._kept(file, ids)
                left = array("q", (one for one in ids if not _has(done, one)))
                for lines in self._lines(documents, left):
                    file.write(b"".join(lines))
                    # What is in the file is not lost with this process.
                    file.flush()
                os.fsync(file.fileno())
                return self._finish(before, self._manifest(durable.sha256(self.part), file.tell()))

    def _finish(self, before: Manifest | None, manifest: Manifest) -> dict[str, t.Any]:
        result = self._result(before, manifest)
        if result["changed"]:
            text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
            durable.write(self.manifest, text.encode("ascii"), 0o600)
            os.replace(self.part, self.dest)
        else:
            os.unlink(self.part)
        # Without the lines that it told of, it is of no use to anybody.
        os.unlink(self.part + MANIFEST)
        durable.sync_folder(os.path.dirname(self.dest))
        return result

    @contextlib.contextmanager
    def _open(self) -> t.Iterator[t.BinaryIO]:
        """The file in progress, which nobody else writes to, and which is this export's."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(self.part, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Refused(f"{self.part} is a symbolic link; remove it.") from None
            raise
        with os.fdopen(handle, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Refused(f"{self.part} is being written by another run; wait for its end.") from None
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused(f"{self.part} is no regular file; remove it.")
            if not os.path.exists(self.part) or os.stat(self.part).st_ino != os.fstat(file.fileno()).st_ino:
                raise Refused(f"Another run has just finished {self.dest}; run it again.")
            os.fchmod(file.fileno(), 0o600)
            mine = {**self._identity, "include_embeddings": self.include_embeddings}
            found = _manifest(self.part)
            if os.fstat(file.fileno()).st_size:
                if found is None:
                    raise Refused(
                        f"{self.part} exists, and nothing beside it says that it is an export that was cut short; move "
                        f"it away."
                    )
                self._require_same(found, self.part)
                if {key: found.get(key) for key in mine} != mine or not _recent(found.get("started_at")):
                    # Lines of another shape, or of what may have changed since.
                    file.truncate(0)
                else:
                    self.started_at = str(found["started_at"])
            text = json.dumps({**mine, "started_at": self.started_at}, sort_keys=True) + "\n"
            durable.write(self.part + MANIFEST, text.encode("ascii"), 0o600)
            yield file

    def _kept(self, file: t.BinaryIO, ids: array[int]) -> array[int]:
        """The ids of the whole lines that are there, sorted; what comes after the last of them is cut off."""
        found = array("q")
        end = undecoded = 0
        file.seek(0)
        for line in file:
            try:
                told = json.loads(line) if line.endswith(b"\n") else {}
                found.append(told["episode_id"])
            except (ValueError, KeyError, TypeError, OverflowError):
                break
            undecoded += told.get("episode") is None
            end += len(line)
        found = array("q", sorted(found))
        twice = any(found[place] == found[place - 1] for place in range(1, len(found)))
        if twice or not all(_has(ids, one) for one in found):
            # No run writes an id twice. Or an episode was deleted since, which is not to come back by this file.
            found, end, undecoded = array("q"), 0, 0
        for one in self._outside:
            if _has(found, one):
                self._count_outside(one)
        file.seek(end)
        file.truncate()
        self.resumed = self.exported = len(found)
        self.undecoded = undecoded
        return found

    def _manifest(self, sha256: str, size: int) -> Manifest:
        return {
            **self._identity,
            "include_embeddings": self.include_embeddings,
            "source": self.source,
            "episodes": self.exported,
            "expected": self.expected,
            "complete": self.complete,
            "missing": self.missing,
            "missing_count": self.missing_count,
            "other_customer": self.other_customer,
            "outside_index": self.outside_index,
            "undecoded": self.undecoded,
            "notes": self._all_notes(),
            "sha256": sha256,
            "size_bytes": size,
            "started_at": self.started_at,
            "finished_at": clock.utc(time.time()),
        }

    def _all_notes(self) -> list[str]:
        notes = list(self.notes)
        if self.missing_count:
            notes.append(f"KyroDB has not {self.missing_count} of the episodes that are {self._promised}.")
        if self.other_customer:
            notes.append(
                f"{self.other_customer} of the documents are another customer's and were left out; their ids may have "
                f"been given out twice."
            )
        if self.outside_index:
            named = ", ".join(map(str, sorted(self._named_outside)))
            more = " and others" if self.outside_index > len(self._named_outside) else ""
            notes.append(
                f"KyroDB has {self.outside_index} episodes of this customer that the index has not, and there may be "
                f"more; they were exported too: {named}{more}."
            )
        if self.undecoded:
            notes.append(
                f"{self.undecoded} episodes cannot be decoded; their lines have {episodes.EPISODE} as KyroDB has it."
            )
        return notes

    @property
    def _promised(self) -> str:
        return "in the index" if self.source == "index" else "found by the search"

    def _result(self, before: Manifest | None, manifest: Manifest) -> dict[str, t.Any]:
        same = False
        if before is not None:
            manifest["replaces"] = durable.sha256(self.dest)
            told = {key: value for key, value in manifest.items() if key not in _OF_ONE_RUN}
            # A run that was killed between the manifest and the file has yet to give the file its name.
            same = manifest["replaces"] == manifest["sha256"] and told == {key: before.get(key) for key in told}
        return {"changed": not same, "before": before, "after": manifest}


def _valid(ids: t.Iterable[int]) -> array[int]:
    """Those that can be ids of documents of Vritti's, in ascending order."""
    return array("q", sorted({one for one in ids if 0 < one < 1 << 63}))


def _recent(started_at: t.Any) -> bool:
    """Whether a run that began then is one to go on with."""
    try:
        return 0 <= time.time() - clock.seconds(started_at) <= _OLDEST_PART
    except (TypeError, ValueError):
        return False


def _has(found: array[int], one: int) -> bool:
    place = bisect.bisect_left(found, one)
    return place < len(found) and found[place] == one


def _manifest(path: str) -> Manifest | None:
    """The manifest beside a file, where it is one of this module's."""
    try:
        with open(path + MANIFEST, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _told(value: float) -> float | None:
    """Nine digits tell any 32-bit number from its neighbours; JSON has no infinity."""
    return float(f"{value:.9g}") if math.isfinite(value) else None

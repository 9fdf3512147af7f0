# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whether the four files of a FAISS index are sound and belong together, without the faiss package.

`<name>.faiss` is an IndexIDMap2 over an IndexFlatIP: two headers, the vectors, the ids. Item i of the list in
`<name>.meta.json` is about the vector with id i, and so is row i of the matrix in `<name>.tfidf.npz`, whose columns are
the vocabulary of `<name>.tfidf.pkl`. Everything is read as a stream; nothing is unpickled.
"""

from __future__ import annotations

import array
import codecs
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import stat
import struct
import sys
import time
import typing as t
import zipfile
import zlib

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

DEPTHS = ("quick", "full")
SUFFIXES = (INDEX, METADATA, VECTORIZER, MATRIX) = (".faiss", ".meta.json", ".tfidf.pkl", ".tfidf.npz")
# Written by whoever restores an index file by file, while not all of them are in place.
UNFINISHED = ".{name}.restoring"
# What an item of the metadata has to have for a hit to be shown.
FIELDS = ("post_id", "chunk_id", "url")
PIECE = 1 << 20
# Bytes of one item of the metadata; of the members of a .npz that are read into memory; how many members it may have.
_MAX_ITEM = 1 << 24
_MAX_DIRECTORY = 1 << 24
_MAX_MEMBERS = 64
# How many posts are remembered, to tell which of them a backup has not.
_MAX_POSTS = 200_000
# How many vectors are looked at one by one; a length that is off by more is no rounding.
_SAMPLED = 32
TOLERANCE = 1e-3
_TRIES = 3
WAY_OUT = "restore it from a backup, or build it anew"

# The header that all indexes of float vectors have: type, dimension, how many, two reserved, trained, metric.
_HEADER = struct.Struct("<4siqqq?i")
_INNER = struct.calcsize("<4siqqq?i")
_BEFORE_VECTORS = 2 * _INNER + 8
_METRICS = {0: "inner product", 1: "L2"}
_TYPE = (b"IxM2", b"IxFI")
# The other types that faiss reads: they may be sound, which this module does not judge.
_KNOWN = frozenset(
    b"IxMp IxFI IxF2 IxFl IxHE IxPT IxPq IxPQ IxPo IxSQ IxRQ IxRq IxLS IxPR IxPL IxRF Ix2L ILfH IxRP IxPP "
    b"IvFl IvFL IvSQ IvPQ IvQR IvPf IvLS IvRQ IwFl IwSQ IwSq IwPQ IwQR IwPf IwLS IwRQ IwPL IwPR Iwrq IwIQ IwSh Imiq "
    b"IHNf IHNp IHNs IHN2 IHNc IHc2 IHfP INSf INSp INSs INNf ImLS ImRQ ImPL ImPR ImPQ "
    b"IBxF IBwF IBFf IBHf IBMp IBM2 IBMh null".split()
)
_FLOAT_HEADER = b"I"
_BINARY = b"IB"

Seen = dict[str, t.Any]


class TimeUp(Exception):
    """It would take longer than there is time."""


class Clock:
    """Until when one may look; asked between two pieces."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        if self._end is not None and time.monotonic() > self._end:
            raise TimeUp


@dataclasses.dataclass
class File:
    """One of the four files, or what an archive has of it; `name` is what sentences call it."""

    name: str
    stream: t.BinaryIO
    size: int
    modified: float = 0.0


Files = t.Mapping[str, t.Optional[File]]


def me() -> str:
    return procfs.user(os.geteuid())


def names(name: str) -> dict[str, str]:
    """The files' names by their suffix."""
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"name is {name!r}; it is what the names of the index's files begin with, such as wp")
    return {suffix: name + suffix for suffix in SUFFIXES}


# The files.


class Folder:
    """The four files, opened in one folder: they belong together even where another folder takes its place."""

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.names = names(name)
        self.files: dict[str, File | None] = {}
        self._stack = contextlib.ExitStack()
        self._kept: dict[str, tuple[int, ...] | None] = {}

    def __enter__(self) -> Folder:
        try:
            self._folder = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
            self._stack.callback(os.close, self._folder)
            for suffix, name in self.names.items():
                self.files[suffix] = self._open(suffix, name)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def _open(self, suffix: str, name: str) -> File | None:
        path = os.path.join(self.path, name)
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=self._folder)
        except FileNotFoundError:
            self._kept[suffix] = None
            return None
        stream = self._stack.enter_context(os.fdopen(handle, "rb"))
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise NoAnswer(f"{path} is no regular file; see what it is, and who has put it there.", "content")
        self._kept[suffix] = _identity(about)
        return File(path, stream, about.st_size, about.st_mtime)

    def unchanged(self) -> bool:
        """Whether the same files are there as when they were opened, and nobody has written to them."""
        try:
            here, there = os.fstat(self._folder), os.stat(self.path)
            if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                return False
        except OSError:
            return False
        for suffix, name in self.names.items():
            try:
                now: tuple[int, ...] | None = _identity(os.stat(name, dir_fd=self._folder))
            except FileNotFoundError:
                now = None
            if now != self._kept[suffix]:
                return False
        return True


def _identity(about: os.stat_result) -> tuple[int, ...]:
    # Not the time of the last change of its state: a link to it is no change of what is in it.
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)


def cannot(path: str, error: OSError) -> NoAnswer:
    if error.errno in (errno.EACCES, errno.EPERM):
        return NoAnswer(f"{error.filename or path} may not be read by {me()}; run with -b.", "permission")
    return NoAnswer(f"{error.filename or path} cannot be read: {error.strerror or error}.", "error")


def checksums(folder: Folder, until: Clock) -> dict[str, str]:
    """The SHA-256 of the files that are there, by suffix."""
    return {suffix: digest(file.stream, until) for suffix, file in folder.files.items() if file}


def digest(stream: t.BinaryIO, until: Clock, algorithm: str = "sha256") -> str:
    """The checksum of a file from its beginning; MD5 only where a service has nothing better to compare with."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    stream.seek(0)
    while piece := stream.read(PIECE):
        found.update(piece)
        until.check()
    return found.hexdigest()


# Looking.


def look(
    path: str,
    name: str = "wp",
    dimension: int | None = 384,
    depth: str = "quick",
    *,
    tfidf: bool = True,
    python: str = "",
    load_pickle: bool = False,
    memory_limit: int | None = None,
    timeout: float | None = None,
) -> Seen:
    """What is in the folder; see the return values of the module faiss_info.

    Raise NoAnswer where it may not be read, or is no folder.
    """
    path = os.path.abspath(path)
    until = Clock(timeout)
    names(name)
    for _try in range(_TRIES):
        try:
            with Folder(path, name) as folder:
                seen = examine(folder.files, path, name, dimension, tfidf=tfidf, until=until)
                if depth == "full" and seen["state"] == "ok":
                    from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_full

                    faiss_full.look(seen, folder.files, python, load_pickle, memory_limit, until)
                if folder.unchanged():
                    break
        except FileNotFoundError:
            seen = nothing(path, name, depth)
            problem(seen, "missing", f"{path} does not exist; correct the path, or {WAY_OUT}.")
            break
        except NotADirectoryError:
            raise NoAnswer(f"{path} is no folder; name the folder of the index.", "content") from None
        except OSError as error:
            raise cannot(path, error) from None
        time.sleep(0.1)
    else:
        seen = nothing(path, name, depth)
        seen["limits"].append(f"{path} was written to while it was looked at, {_TRIES} times; look again")
    seen["depth"] = depth
    if os.path.isdir(os.path.join(path, UNFINISHED.format(name=name))):
        seen["limits"].append(f"a restore of {path} was cut short or is under way; run faiss_restore again")
    return _concluded(seen)


def nothing(path: str, name: str, depth: str = "quick") -> Seen:
    """What is told of an index of which nothing is known."""
    return {
        "path": path,
        "name": name,
        "state": "unknown",
        "problems": [],
        "damage": [],
        "errors": [],
        "limits": [],
        "depth": depth,
        "type": None,
        "dimension": None,
        "ntotal": None,
        "metric": None,
        "size_bytes": None,
        "expected_bytes": None,
        "metadata_items": None,
        "tfidf_rows": None,
        "tfidf_columns": None,
        "hybrid": None,
        "modified_at": None,
        "faiss_version": None,
        "posts": None,
    }


# Of a look, what is for other functions and not for a result.
PRIVATE = ("problems", "posts")


def problem(seen: Seen, word: str, sentence: str) -> None:
    seen["problems"].append((word, sentence))


def _concluded(seen: Seen) -> Seen:
    """With the worst first, which is the state."""
    seen["problems"].sort(key=lambda it: STATES.index(it[0]))
    seen["damage"] = list(dict.fromkeys(word for word, _sentence in seen["problems"]))
    seen["errors"] = [sentence for _word, sentence in seen["problems"]]
    if seen["damage"]:
        seen["state"] = seen["damage"][0]
    return seen


def examine(
    files: Files, path: str, name: str, dimension: int | None, *, tfidf: bool = True, until: Clock | None = None
) -> Seen:
    """Look at four open files. Only the .npz is read otherwise than from its beginning to its end."""
    until = until or Clock(None)
    parts = {suffix: examine_one(file, suffix, dimension, until) for suffix, file in files.items() if file}
    return joined(parts, files, path, name, tfidf=tfidf)


def examine_one(file: File, suffix: str, dimension: int | None, until: Clock) -> Seen:
    """Look at one file, read from where its stream is."""
    functions = {INDEX: _index, METADATA: _metadata, MATRIX: _matrix, VECTORIZER: _vectorizer}
    seen: Seen = {"problems": [], "limits": []}
    try:
        functions[suffix](file, seen, until, dimension)
    except TimeUp:
        seen["limits"].append(f"{file.name} was not read to its end within {until.seconds:g} s; allow more time")
    except OSError as error:
        # Whatever it is, the service cannot read it either.
        problem(seen, "unreadable", f"{file.name} cannot be read: {error.strerror or error}; {WAY_OUT}.")
    return seen


def joined(parts: t.Mapping[str, Seen], files: Files, path: str, name: str, *, tfidf: bool = True) -> Seen:
    """What looks at single files say together."""
    seen = nothing(path, name)
    for part in parts.values():
        for key, value in part.items():
            seen[key] = [*seen[key], *value] if isinstance(value, list) else value
    whole = not seen["limits"]
    stem = os.path.join(path, name)
    _absent(files, stem, seen, tfidf)
    there = [file.modified for file in files.values() if file]
    seen["modified_at"] = clock.utc(max(there)) if there else None
    seen["hybrid"] = bool(files[MATRIX] and files[VECTORIZER])
    _agreement(stem, seen)
    seen["state"] = "ok" if whole else "unknown"
    return _concluded(seen)


# The worst, or what explains the others, first.
STATES = (
    "missing",
    "empty",
    "unreadable",
    "unrecognized",
    "damaged",
    "truncated",
    "oversized",
    "unknown_type",
    "untrained",
    "wrong_metric",
    "wrong_dimension",
    "ids",
    "vectors",
    "search",
    "metadata_missing",
    "metadata_broken",
    "metadata_mismatch",
    "tfidf_missing",
    "tfidf_broken",
    "tfidf_mismatch",
)


def _absent(files: Files, stem: str, seen: Seen, tfidf: bool) -> None:
    if files[INDEX] is None:
        problem(seen, "missing", f"{stem}{INDEX} does not exist; {WAY_OUT}.")
    if files[METADATA] is None:
        problem(
            seen, "metadata_missing", f"{stem}{METADATA} does not exist, without which no hit has a text; {WAY_OUT}."
        )
    lacking = [suffix for suffix in (VECTORIZER, MATRIX) if files[suffix] is None]
    if len(lacking) == 1:
        problem(seen, "tfidf_broken", f"{stem}{lacking[0]} does not exist, and the other of the two does; {WAY_OUT}.")
    elif lacking:
        sentence = f"{stem}{VECTORIZER} and {MATRIX} do not exist, so the modes hybrid and bm25 do not work"
        if tfidf:
            problem(seen, "tfidf_missing", f"{sentence}; {WAY_OUT}, or say that they do not belong to it.")
        else:
            seen["limits"].append(sentence)


def _agreement(stem: str, seen: Seen) -> None:
    total, items, rows = seen["ntotal"], seen["metadata_items"], seen["tfidf_rows"]
    if None not in (total, items) and total != items:
        problem(
            seen,
            "metadata_mismatch",
            f"{stem}{METADATA} has {items} items and {stem}{INDEX} {total} vectors, so hits get wrong texts or none; "
            f"{WAY_OUT}, all four files together.",
        )
    if None not in (total, rows) and total != rows:
        problem(
            seen,
            "tfidf_mismatch",
            f"{stem}{MATRIX} has {rows} rows and {stem}{INDEX} {total} vectors; {WAY_OUT}, all four files together.",
        )


# <name>.faiss


def _index(file: File, seen: Seen, until: Clock, dimension: int | None) -> None:
    stream, name = file.stream, file.name
    seen["size_bytes"] = file.size
    if not file.size:
        problem(seen, "empty", f"{name} is empty; {WAY_OUT}.")
        return
    head = read_exactly(stream, _BEFORE_VECTORS)
    kind = head[:4]
    if len(kind) == 4 and kind not in _KNOWN and kind != _TYPE[0]:
        zeros = " (zeros)" if not kind.strip(b"\0") else ""
        problem(seen, "unrecognized", f"{name} begins with {kind!r}{zeros}, which is no type of FAISS; {WAY_OUT}.")
        return
    seen["type"] = kind.decode("ascii", "replace")
    if len(head) < _HEADER.size:
        problem(seen, "truncated", f"{name} has {file.size} bytes, less than its header has; {WAY_OUT}.")
        return
    if kind.startswith(_BINARY) or not kind.startswith(_FLOAT_HEADER):
        problem(seen, "unknown_type", _unknown(name, kind.decode()))
        return
    _kind, size, total, _one, _two, _trained, metric = _HEADER.unpack_from(head)
    if size <= 0 or total < 0:
        problem(seen, "damaged", f"{name} says that it has {total} vectors of {size} dimensions; {WAY_OUT}.")
        return
    seen.update(dimension=size, ntotal=total, metric=_METRICS.get(metric, str(metric)))
    inner = head[_INNER : _INNER + 4]
    if kind == _TYPE[0]:
        seen["type"] = f"IxM2/{inner.decode('ascii', 'replace')}"
    if head[_HEADER.size - 5] != 1:
        problem(seen, "untrained", f"{name} says that it is not trained, and cannot be searched; {WAY_OUT}.")
    if metric:
        said = _METRICS.get(metric, "another one")
        problem(seen, "wrong_metric", f"{name} has the metric {metric} ({said}), not the inner product; {WAY_OUT}.")
    if dimension is not None and size != dimension:
        problem(
            seen,
            "wrong_dimension",
            f"{name} has vectors of {size} dimensions, and those of the service's model have {dimension}; {WAY_OUT}, "
            "with the same model.",
        )
    if kind == _TYPE[0] and len(inner) == 4 and inner not in _KNOWN:
        problem(seen, "unrecognized", f"{name} holds {inner!r}, which is no type of FAISS; {WAY_OUT}.")
    elif kind == _TYPE[0] and len(head) < _BEFORE_VECTORS:
        problem(seen, "truncated", f"{name} has {file.size} bytes, less than its headers have; {WAY_OUT}.")
    elif (kind, inner) != _TYPE:
        problem(seen, "unknown_type", _unknown(name, seen["type"]))
    else:
        _vectors(file, head, seen, until)


def _unknown(name: str, kind: str) -> str:
    return (
        f"{name} is of the type {kind}, of which only faiss itself can tell whether it is sound; look at its service."
    )


def _vectors(file: File, head: bytes, seen: Seen, until: Clock) -> None:
    name, size, total = file.name, seen["dimension"], seen["ntotal"]
    _kind, size_inside, total_inside, _one, _two, _trained, metric_inside = _HEADER.unpack_from(head, _INNER)
    if (size, total) != (size_inside, total_inside):
        problem(
            seen,
            "damaged",
            f"{name} says in one place that it has {total} vectors of {size} dimensions, and in another one "
            f"{total_inside} of {size_inside}; {WAY_OUT}.",
        )
        # Which of the two is right is not known.
        seen["ntotal"] = None
        return
    if head[_INNER + _HEADER.size - 5] != 1 and head[_HEADER.size - 5] == 1:
        problem(seen, "untrained", f"{name} says that it is not trained, and cannot be searched; {WAY_OUT}.")
    if metric_inside and seen["metric"] == _METRICS[0]:
        problem(seen, "wrong_metric", f"{name} has the metric {metric_inside} inside, not 0; {WAY_OUT}.")
    if not total:
        problem(seen, "empty", f"{name} holds no vector; {WAY_OUT}.")
    expected = seen["expected_bytes"] = _BEFORE_VECTORS + 8 + total * (4 * size + 8)
    if file.size != expected:
        word, said = ("truncated", "it is cut off") if file.size < expected else ("oversized", "something follows it")
        problem(
            seen,
            word,
            f"{name} has {file.size} bytes, and {total} vectors of {size} dimensions take {expected}: {said}; "
            f"{WAY_OUT}.",
        )
        return
    floats = struct.unpack_from("<q", head, _BEFORE_VECTORS - 8)[0]
    _sampled(file, seen, until)
    numbers = struct.unpack("<q", read_exactly(file.stream, 8))[0]
    for found, wanted, what in ((floats, total * size, "numbers in its vectors"), (numbers, total, "ids")):
        if found != wanted:
            problem(seen, "damaged", f"{name} says that it has {found} {what}, and there are {wanted}; {WAY_OUT}.")
            return
    _ids(file, seen, until)


def _sampled(file: File, seen: Seen, until: Clock) -> None:
    """Read past the vectors, and see of some whether they have the length 1, as those of the service have."""
    size, total = seen["dimension"], seen["ntotal"]
    numbers, at = struct.Struct(f"<{size}f"), 0
    for row in range(0, total, max(1, total // _SAMPLED)):
        skip(file.stream, (row - at) * numbers.size, until)
        at = row + 1
        norm = math.sqrt(sum(number * number for number in numbers.unpack(read_exactly(file.stream, numbers.size))))
        if not abs(norm - 1) <= TOLERANCE:
            problem(seen, "vectors", f"vector {row} in {file.name} has the length {norm:g}, not 1; {WAY_OUT}.")
            break
    skip(file.stream, (total - at) * numbers.size, until)


def _ids(file: File, seen: Seen, until: Clock) -> None:
    """The ids are 0, 1, 2 …: the service takes them for places in the metadata."""
    many = PIECE // 8
    for start in range(0, seen["ntotal"], many):
        wanted = array.array("q", range(start, min(start + many, seen["ntotal"])))
        if sys.byteorder != "little":
            wanted.byteswap()
        found = read_exactly(file.stream, 8 * len(wanted))
        until.check()
        if found == wanted.tobytes():
            continue
        at = next(at for at in range(len(wanted)) if found[8 * at : 8 * at + 8] != wanted[at : at + 1].tobytes())
        says = struct.unpack_from("<q", found, 8 * at)[0]
        problem(
            seen,
            "ids",
            f"{file.name} has the id {says} where {start + at} belongs, so hits get texts of others; {WAY_OUT}.",
        )
        return


def read_exactly(stream: t.BinaryIO, size: int) -> bytes:
    """So many bytes, or what is left; a stream may give fewer at a time."""
    pieces = []
    while size and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def skip(stream: t.BinaryIO, size: int, until: Clock) -> None:
    if stream.seekable():
        stream.seek(size, os.SEEK_CUR)
        return
    while size and (piece := stream.read(min(size, PIECE))):
        size -= len(piece)
        until.check()


# <name>.meta.json


class _Text:
    """JSON as a stream, of which a piece and one value at a time are in memory."""

    def __init__(self, stream: t.BinaryIO, until: Clock) -> None:
        self.stream = stream
        self.until = until
        self.text = ""
        self.at = 0
        self._ended = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()

    def _more(self) -> bool:
        if self._ended:
            return False
        self.until.check()
        piece = self.stream.read(PIECE)
        self._ended = not piece
        self.text = self.text[self.at :] + self._utf8.decode(piece, final=self._ended)
        self.at = 0
        return True

    def next(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            found = _NO_SPACE.search(self.text, self.at)
            if found:
                self.at = found.start()
                return found[0]
            self.at = len(self.text)
            if not self._more():
                return ""

    def value(self) -> t.Any:
        while True:
            try:
                value, self.at = self._json.raw_decode(self.text, self.at)
                return value
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except ValueError:
                if len(self.text) - self.at > _MAX_ITEM:
                    raise ValueError(f"it has more than {_MAX_ITEM >> 20} MiB, or is no JSON") from None
                if not self._more():
                    raise


_NO_SPACE = re.compile(r"[^ \t\r\n]")


def _items(stream: t.BinaryIO, until: Clock) -> t.Iterator[dict[str, t.Any]]:
    """The items of a JSON list of objects; ValueError, in words, where it is none."""
    text = _Text(stream, until)
    if text.next() != "[":
        raise ValueError("it is no JSON list" if text.next() else "it is empty")
    text.at += 1
    number = 0
    if text.next() == "]":
        text.at += 1
    else:
        while True:
            if text.next() != "{":
                what = "is no object" if text.next() else "is missing: it is cut off"
                raise ValueError(f"item {number} {what}")
            try:
                yield text.value()
            except UnicodeDecodeError:
                raise
            except ValueError as error:
                # Not its text: it may be anybody's.
                said = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"item {number} cannot be read: {said}") from None
            number += 1
            after = text.next()
            text.at += 1
            if after == "]":
                break
            if after != ",":
                raise ValueError(f"after item {number - 1} there is no comma" if after else "it is cut off")
    if text.next():
        raise ValueError("something follows the list")


def _metadata(file: File, seen: Seen, until: Clock, _dimension: int | None) -> None:
    count = 0
    posts: set[str] = set()
    try:
        for item in _items(file.stream, until):
            lacking = [field for field in FIELDS if field not in item]
            if lacking:
                raise ValueError(f"item {count} has no {', '.join(lacking)}")
            count += 1
            if len(posts) <= _MAX_POSTS:
                posts.add(str(item["post_id"]))
    except UnicodeDecodeError:
        problem(seen, "metadata_broken", f"{file.name} is no UTF-8 after item {count}; {WAY_OUT}.")
        return
    except ValueError as error:
        problem(seen, "metadata_broken", f"{file.name} is broken: {error}; {WAY_OUT}.")
        return
    seen["metadata_items"] = count
    seen["posts"] = posts if len(posts) <= _MAX_POSTS else None


# <name>.tfidf.npz and <name>.tfidf.pkl


class _Bounded:
    """A file of which no single read is large, so that a directory that lies about its size costs no memory."""

    def __init__(self, stream: t.BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MAX_DIRECTORY:
            here = self._stream.tell()
            end = self._stream.seek(0, os.SEEK_END)
            self._stream.seek(here)
            if min(size if size >= 0 else end, end - here) > _MAX_DIRECTORY:
                raise ValueError(f"its directory has more than {_MAX_DIRECTORY >> 20} MiB")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


_NPY = re.compile(
    rb"\{'descr': '([^']{1,16})', 'fortran_order': (?:True|False), 'shape': \(([0-9, ]{0,64})\),? *\} *\n?"
)


def _array(packed: t.IO[bytes]) -> tuple[str, tuple[int, ...]]:
    """Type and shape of an array, whose values are what is read next; ValueError where it is none."""
    start = packed.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise ValueError("no array of NumPy")
    width = 2 if start[6] == 1 else 4
    size = int.from_bytes(packed.read(width), "little")
    found = _NPY.fullmatch(packed.read(size)) if size <= PIECE else None
    if not found:
        raise ValueError("no array of NumPy that can be read")
    return found[1].decode("ascii", "replace"), tuple(int(word) for word in found[2].split(b",") if word.strip())


def _shape(archive: zipfile.ZipFile) -> tuple[int, int]:
    with archive.open("shape.npy") as packed:
        kind, shape = _array(packed)
        if kind not in ("<i8", "<i4") or shape != (2,):
            raise ValueError("shape.npy has no two numbers")
        width = int(kind[2])
        values = packed.read(2 * width)
    if len(values) != 2 * width:
        raise ValueError("shape.npy is cut off")
    rows, columns = struct.unpack("<2q" if width == 8 else "<2i", values)
    if rows < 0 or columns < 0:
        raise ValueError(f"shape.npy says {rows} times {columns}")
    return rows, columns


def _matrix(file: File, seen: Seen, until: Clock, _dimension: int | None) -> None:
    if not file.size:
        problem(seen, "tfidf_broken", f"{file.name} is empty; {WAY_OUT}.")
        return
    try:
        with zipfile.ZipFile(t.cast("t.IO[bytes]", _Bounded(file.stream))) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                raise ValueError(f"it has {len(members)} members")
            lacking = {"shape.npy", "format.npy", "data.npy"} - {member.filename for member in members}
            if lacking:
                raise ValueError(f"it has no {', '.join(sorted(lacking))}")
            rows, columns = _shape(archive)
            sizes = {}
            for member in members:
                with archive.open(member) as packed:
                    with contextlib.suppress(ValueError):
                        sizes[member.filename] = _array(packed)[1]
                    # To its end, where its checksum is compared.
                    while packed.read(PIECE):
                        until.check()
            if "indptr.npy" in sizes and sizes["indptr.npy"] != (rows + 1,):
                raise ValueError(f"it has {rows} rows, and indptr.npy is not of {rows + 1}")
            if "indices.npy" in sizes and sizes["indices.npy"] != sizes.get("data.npy"):
                raise ValueError("it has not as many values as columns for them")
    except TimeUp:
        raise
    except KeyError:
        problem(seen, "tfidf_broken", f"{file.name} is broken: it has no such member; {WAY_OUT}.")
    except OSError as error:
        # What zipfile does not find where it looks for it.
        if error.errno != errno.EINVAL:
            raise
        problem(seen, "tfidf_broken", f"{file.name} is broken: it is no archive of arrays; {WAY_OUT}.")
    except (*_BROKEN, ValueError) as error:
        problem(seen, "tfidf_broken", f"{file.name} is broken: {str(error).rstrip('.') or 'it is cut off'}; {WAY_OUT}.")
    else:
        seen.update(tfidf_rows=rows, tfidf_columns=columns)


# What zipfile and its compression say of a damaged file; a method that this Python does not have is no damage.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error)
# How compressed pickles of joblib begin; these are not looked into.
_COMPRESSED = (b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00", b"\x04\x22\x4d\x18", b"ZF")


def _vectorizer(file: File, seen: Seen, until: Clock, _dimension: int | None) -> None:
    """The two ends of the pickle, which is never loaded here: loading one runs what is in it."""
    if not file.size:
        problem(seen, "tfidf_broken", f"{file.name} is empty; {WAY_OUT}.")
        return
    start = read_exactly(file.stream, 6)
    if start.startswith(_COMPRESSED):
        return
    # Protocol 2 or later, and the instruction to stop.
    if len(start) < 2 or start[0] != 0x80 or not 2 <= start[1] <= 5:
        problem(seen, "tfidf_broken", f"{file.name} begins with {start[:4]!r} and is no pickle; {WAY_OUT}.")
        return
    skip(file.stream, max(0, file.size - len(start) - 1), until)
    if file.size > len(start) and file.stream.read(1) != b".":
        problem(seen, "tfidf_broken", f"{file.name} is a pickle without its end: it is cut off; {WAY_OUT}.")

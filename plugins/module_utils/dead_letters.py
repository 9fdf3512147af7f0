# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's dead letter queue, one JSON object per line: read it as a stream, count what is in it, see how it grows.

Source: Vritti appends to `failed_reflections.log` and opens it anew for every entry; later versions rename it to
`failed_reflections.<YYYYmmdd_HHMMSS>.log` when it has 100 MB. Lines may be torn (a crash, a full disk) or none of its
own, and two may have come onto one line.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import stat
import time
import typing as t
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

# An entry has about a kilobyte; what is longer than this without a newline is none, and is not held in memory.
MAX_LINE = 8 << 20
_PIECE = 1 << 19
_TAIL = 1 << 20
_LONGEST = 100
_TOLD = ("timestamp", "episode_id", "customer_id", "failure_reason")
_ROTATED = r"\.\d{8}_\d{6}"
# Where one of Vritti's own lines begins, and all of one: customer and reason are taken as one, which is quicker. Any
# other line is taken whole.
_BEGIN = b'{"timestamp"'
_DAY = rb"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_USUAL = re.compile(
    rb'\{"timestamp": "(\d{4}-' + _DAY + rb'T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?)(?:\+00:00|Z)?", '
    rb'"episode_id": (?:0|[1-9]\d{0,18}), "customer_id": "([^"\\\n]*", "failure_reason": "[^"\\\n]*)", "reflection": '
    rb"(?:null\}|\{[^\n]*\}\})\n|([^\n]+\n?|\n)"
)
_CONTROLS = bytes(code for code in range(32) if code != 10)
_BETWEEN = '", "failure_reason": "'
_decoder = json.JSONDecoder()


@dataclass(frozen=True)
class Item:
    """A line, or a part of one that can be told apart from the rest.

    kind: entry; foreign (JSON, and no dead letter); torn (no JSON); long (the beginning of one that is too long to be
    held at once, and torn too) and more (the rest of it); blank.
    """

    offset: int
    raw: bytes
    kind: str
    entry: dict[str, t.Any] | None = None

    @property
    def line(self) -> bytes:
        """What to write so that it stays apart from what follows."""
        return self.raw if self.raw.endswith(b"\n") or self.kind in ("long", "more", "blank") else self.raw + b"\n"


def rotated(path: str) -> list[str]:
    """The files that Vritti has renamed, oldest first."""
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    pattern = re.compile(re.escape(stem) + _ROTATED + re.escape(suffix))
    with contextlib.suppress(FileNotFoundError):
        return [os.path.join(folder, found) for found in sorted(os.listdir(folder or ".")) if pattern.fullmatch(found)]
    return []


def files_of(path: str, with_rotated: bool = True) -> list[str]:
    """The files of the queue that exist, oldest first. None is an empty queue: Vritti makes it with the first entry."""
    found = rotated(path) if with_rotated else []
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        # Raises where it may not be seen.
        os.stat(folder)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return found
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return [*found, path]


def open_queue(path: str) -> t.BinaryIO:
    """A queue's file, or an archive of one (.zst), to be read from its beginning."""
    if not path.endswith(".zst"):
        return open(path, "rb")
    packer = zstandard()
    return t.cast("t.BinaryIO", io.BufferedReader(_Unpacked(open(path, "rb"), packer), _PIECE))


class _Unpacked(io.RawIOBase):
    """What is in a Zstandard file, of one frame or several. That it ends too early is an error, unlike for zstandard's
    own reader.
    """

    # Dead letters unpack to ten times their size, and what is none to 32 MiB at most.
    _STEP = 1 << 10

    def __init__(self, file: t.BinaryIO, package: t.Any) -> None:
        self._file = file
        self._package = package
        self._frame: t.Any = None
        self._packed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: t.Any) -> int:
        while not self._plain:
            self._packed = self._packed or self._file.read(self._STEP)
            if not self._packed:
                if self._frame is not None:
                    raise OSError(errno.EIO, "it ends too early", self._file.name)
                return 0
            if self._frame is None:
                self._frame = self._package.ZstdDecompressor().decompressobj()
            try:
                self._plain = memoryview(self._frame.decompress(self._packed))
            except self._package.ZstdError as error:
                raise OSError(errno.EIO, str(error), self._file.name) from error
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count


def zstandard() -> t.Any:
    try:
        import zstandard as found
    except ImportError:
        raise NoAnswer(
            "zstandard is not installed on the target; install it (python3-zstandard), or don't compress.", "missing"
        ) from None
    return found


def blocks(file: t.BinaryIO) -> t.Iterator[tuple[bytes, str]]:
    """Every byte of the file, in order: `lines`, all whole but the last of the file, and of a line that is too long its
    beginning, `long`, and `more` of it.
    """
    while block := file.read(_PIECE):
        if not block.endswith(b"\n"):
            block += file.readline(MAX_LINE)
        if block.endswith(b"\n") or len(block) < MAX_LINE:
            yield block, "lines"
            continue
        begin = block.rfind(b"\n") + 1
        if begin:
            yield block[:begin], "lines"
        yield block[begin:], "long"
        while more := file.readline(MAX_LINE):
            yield more, "more"
            if more.endswith(b"\n"):
                break


def items(file: t.BinaryIO) -> t.Iterator[Item]:
    """Every byte of the file, in order, in parts that can be told apart."""
    offset = 0
    for block, kind in blocks(file):
        if kind != "lines":
            yield Item(offset, block, kind)
            offset += len(block)
            continue
        for line in io.BytesIO(block):
            yield from _parts(offset, line)
            offset += len(line)


def _parts(offset: int, line: bytes) -> t.Iterator[Item]:
    """One line, which is one entry unless something went wrong when it was written."""
    text = line.decode("utf-8", "surrogateescape")
    if not text.strip("\0 \t\r\n"):
        yield Item(offset, line, "blank")
        return
    begin = 0
    while begin < len(text):
        end, kind, entry = _next_part(text, begin)
        raw = text[begin:end].encode("utf-8", "surrogateescape")
        yield Item(offset, raw, kind, entry)
        offset += len(raw)
        begin = end


def _next_part(text: str, begin: int) -> tuple[int, str, dict[str, t.Any] | None]:
    """Where the part that begins here ends, and what it is."""
    start = _found(_SPACES, text, begin)
    try:
        found, end = _decoder.raw_decode(text, start)
        # A lone surrogate is a byte that is no UTF-8, and what has one can be stored nowhere.
        text[start:end].encode()
    except (ValueError, RecursionError):
        # Of a torn line, what comes after it on the same one may be whole.
        following = text.find(_BEGIN.decode(), start + 1)
        return (following if following > 0 else len(text)), "torn", None
    rest = _found(_BLANKS, text, end)
    if not isinstance(found, (dict, list)) and rest < len(text):
        # "2026 is a number" is a line of text.
        return len(text), "torn", None
    if rest == len(text):
        end = len(text)
    if is_entry(found):
        return end, "entry", found
    return end, "foreign", None


_SPACES, _BLANKS = re.compile(r"[ \t]*"), re.compile(r"[ \t\r\n\0]*")


def _found(pattern: re.Pattern[str], text: str, begin: int) -> int:
    match = pattern.match(text, begin)
    return match.end() if match else begin


def is_entry(found: t.Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("customer_id"), str)
        and isinstance(found.get("failure_reason"), str)
    )


def moment_of(entry: t.Mapping[str, t.Any]) -> datetime | None:
    """When an entry was written; None where it does not say. A time without a zone is UTC."""
    stamp = entry.get("timestamp")
    if not isinstance(stamp, str):
        return None
    try:
        # Python 3.9 knows neither Z nor a fraction that has not three or six digits.
        shortened = re.sub(r"(\.\d{1,6})\d*", lambda found: found[1].ljust(7, "0"), re.sub(r"Z$", "+00:00", stamp))
        moment = datetime.fromisoformat(shortened)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


@dataclass
class Tally:
    """What is in a queue; `feed` takes what `blocks` gives.

    Lines that begin and end as Vritti's do are not parsed, which is several times as quick. What was cut off within
    them has no such end; only behind two braces that close at once might it, so with `thorough` braces are counted too.
    """

    thorough: bool = True
    entries: int = 0
    torn: int = 0
    foreign: int = 0
    size: int = 0
    _parsed: Counter[tuple[str, str]] = field(default_factory=Counter)
    # As they stand in the lines that are not parsed.
    _usual_keys: Counter[bytes] = field(default_factory=Counter)
    # As text whose order is that of time, and without a zone: all are UTC.
    _oldest: str = "9999"
    _newest: str = ""

    def feed(self, block: bytes, kind: str) -> None:
        self.size += len(block)
        if kind != "lines":
            self.torn += kind == "long"
        elif not self._usual(block):
            self._parse(block)

    def add(self, item: Item) -> None:
        """Count what `items` told apart."""
        if item.kind in ("torn", "long"):
            self.torn += 1
        elif item.kind == "foreign":
            self.foreign += 1
        elif item.entry is not None:
            self.entries += 1
            self._parsed[item.entry["customer_id"], item.entry["failure_reason"]] += 1
            moment = moment_of(item.entry)
            if moment is not None:
                self._saw(moment.replace(tzinfo=None).isoformat())

    @property
    def by_reason(self) -> dict[str, int]:
        return self._by(1)

    @property
    def by_customer(self) -> dict[str, int]:
        return self._by(0)

    def count_of(self, customer: str | None, reason: str | None) -> int:
        """Entries of a customer, with a reason, or both."""
        return sum(
            count
            for key, count in self._counts().items()
            if customer in (None, "", key[0]) and reason in (None, "", key[1])
        )

    @property
    def oldest(self) -> str | None:
        return f"{self._oldest}Z" if self._newest else None

    @property
    def newest(self) -> str | None:
        return f"{self._newest}Z" if self._newest else None

    def _counts(self) -> Counter[tuple[str, str]]:
        """Entries by customer and reason."""
        counted = Counter(self._parsed)
        for key, count in self._usual_keys.items():
            customer, _between, reason = key.decode().partition(_BETWEEN)
            counted[customer, reason] += count
        return counted

    def _by(self, place: int) -> dict[str, int]:
        """Counts by one of the two, most frequent first."""
        found: Counter[str] = Counter()
        for key, count in self._counts().items():
            found[_shown(key[place])] += count
        return dict(sorted(found.items(), key=lambda one: (-one[1], one[0])))

    def _saw(self, stamp: str) -> None:
        self._oldest, self._newest = min(self._oldest, stamp), max(self._newest, stamp)

    def _usual(self, block: bytes) -> bool:
        """Count whole lines, of which most are usual; False where all have to be parsed."""
        found = _USUAL.findall(block)
        others = b"".join([line for _stamp, _key, line in found if line])
        if others:
            found = [one for one in found if one[0]]
        if (
            # Two on one line, of which the first is cut off or not, are one match.
            len(found) != block.count(_BEGIN) - others.count(_BEGIN)
            or b"\0" in block
            or not (block.isascii() or _is_utf8(block))
            or (self.thorough and (_depth(block) != _depth(others) or _has_controls(block)))
        ):
            return False
        if found:
            stamps, keys, _lines = zip(*found)
            self._usual_keys.update(keys)
            self.entries += len(found)
            self._saw(min(stamps).decode())
            self._saw(max(stamps).decode())
        if others:
            self._parse(others)
        return True

    def _parse(self, block: bytes) -> None:
        for item in items(io.BytesIO(block)):
            self.add(item)


def _has_controls(block: bytes) -> bool:
    """Whether there are control characters but newlines, which JSON does not allow."""
    return len(block.translate(None, _CONTROLS)) != len(block)


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _depth(block: bytes) -> int:
    return block.count(b"{") - block.count(b"}")


def _shown(name: str) -> str:
    """A name from the queue, where anything may stand, as it may be told: not too long, and no secret."""
    return mask_text(name.encode("utf-8", "replace").decode()[:_LONGEST])


def tally(paths: t.Iterable[str], thorough: bool = True) -> Tally:
    """Count what is in some files of a queue; one that is gone by now is left out."""
    counted = Tally(thorough)
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open_queue(path) as file:
            for block, kind in blocks(file):
                counted.feed(block, kind)
    return counted


# How it grows.

Sizes = t.Mapping[tuple[int, int], int]


def sizes(path: str) -> Sizes:
    """The size of each of the queue's files, by what names a file whatever it is called."""
    found = {}
    for file in files_of(path):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(file)
            found[status.st_dev, status.st_ino] = status.st_size
    return found


def added_since(path: str, before: Sizes) -> int:
    """How many lines have come since; a file that Vritti has renamed meanwhile is found again."""
    lines = 0
    for name in files_of(path):
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            status = os.fstat(file.fileno())
            known = before.get((status.st_dev, status.st_ino), 0)
            # A file that has become shorter is another one, whatever its number.
            file.seek(known if known <= status.st_size else 0)
            while piece := file.read(_PIECE):
                lines += piece.count(b"\n")
    return lines


def grown_in(path: str, seconds: float) -> int:
    """Look twice."""
    before = sizes(path)
    time.sleep(seconds)
    return added_since(path, before)


def recent(path: str, since: float) -> tuple[int, bool]:
    """How many entries are younger, and whether that is all: only the last megabyte of a file is read."""
    count = 0
    for name in reversed(files_of(path)):
        entries, complete = _tail(name)
        moments = [moment_of(entry) for entry in entries]
        young = [moment for moment in moments if moment is not None and moment.timestamp() >= since]
        count += len(young)
        if len(young) < len(moments):
            return count, True
        if not complete:
            return count, False
    return count, True


def last(path: str, count: int) -> list[dict[str, t.Any]]:
    """The newest entries, without what the LLM has written, which may hold anything."""
    entries = _tail(path)[0][-count:]
    told = [{key: value for key, value in entry.items() if key in _TOLD} for entry in entries]
    return [{key: _shown(str(value)) if key != "episode_id" else value for key, value in one.items()} for one in told]


def _tail(path: str) -> tuple[list[dict[str, t.Any]], bool]:
    """The entries in the last megabyte of a file, and whether that is all of it."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            begin = max(0, file.tell() - _TAIL)
            file.seek(begin)
            if begin:
                file.readline()
            return [item.entry for item in items(file) if item.entry is not None], not begin
    except FileNotFoundError:
        return [], True

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a file of JSON lines from its end, back to a time. What is no such line is counted and breaks nothing."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import re
import stat
import sys
import time
import typing as t
from dataclasses import dataclass, field
from datetime import datetime, timezone

# Lines are written when a request ends, so they are nearly in the order of their times: no further apart than this.
DISORDER = 60.0
MAX_BYTES = 64 * 1024 * 1024
WINDOW = "window"
START = "start of the file"
_BLOCK = 64 * 1024
# A longer one is nobody's measurement, and might be a number that takes seconds to read.
_MAX_LINE = 256 * 1024
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(?::(\d\d(?:[.,]\d+)?))?\s*(?:([Zz])|([+-])(\d\d):?(\d\d)?)?", re.ASCII
)

Fields = dict[str, t.Any]


@dataclass
class Lines:
    """The end of a file: what was read of it, in the file's order, and what bounds it at the front."""

    now: float
    found: list[tuple[float, Fields]] = field(default_factory=list)
    # How many lines were none, with the time of the line after them; infinity after the last one.
    torn: list[tuple[float, int]] = field(default_factory=list)
    # Lines of the future, which say nothing but that a clock or a time zone is wrong.
    ahead: int = 0
    oldest: float | None = None
    newest: float | None = None
    bound: str = START

    def torn_since(self, start: float) -> int:
        return sum(count for moment, count in self.torn if moment >= start)


def read(path: str, key: str, start: float, now: float, deadline: float, max_bytes: int = MAX_BYTES) -> Lines:
    """The lines since `start` by the time that they have under `key`, at most so many bytes, not after the deadline.

    Reading ends with a block of which every line is more than `DISORDER` older than `start`: a single line with an old
    time, such as an incident's that is written once more when it is over, hides nothing that comes before it.
    """
    lines = Lines(now)
    latest = now
    with open_file(path) as file:
        for rows, last in _blocks(file, lines, deadline, max_bytes):
            newest = None
            for place, raw in enumerate(reversed(rows)):
                fields = parse(raw)
                moment = None if fields is None else moment_of(value_of(fields, key), latest)
                if fields is None or moment is None:
                    # A last line without an end is still being written.
                    if raw.strip() and not (last and place == 0):
                        _count_torn(lines, math.inf if lines.newest is None else latest)
                    continue
                if moment > now + DISORDER:
                    lines.ahead += 1
                    continue
                latest = moment
                newest = moment if newest is None else max(newest, moment)
                lines.newest = moment if lines.newest is None else max(lines.newest, moment)
                lines.oldest = moment if lines.oldest is None else min(lines.oldest, moment)
                if moment >= start:
                    lines.found.append((moment, fields))
            if newest is not None and newest < start - DISORDER:
                lines.bound = WINDOW
                break
    if lines.bound == START and lines.oldest is not None and lines.oldest < start:
        lines.bound = WINDOW
    lines.found.reverse()
    return lines


def _blocks(file: t.BinaryIO, lines: Lines, deadline: float, max_bytes: int) -> t.Iterator[tuple[list[bytes], bool]]:
    """The file's lines, a block at a time from its end; of the last block, the last line is what has no end."""
    at = end = file.seek(0, os.SEEK_END)
    # The end of a line of which the beginning is not read yet, its last piece first.
    pending: list[bytes] = []
    ended = False
    while at > 0:
        if end - at >= max_bytes:
            lines.bound = f"last {max_bytes // 1024 // 1024} MiB, which are all that is read"
            return
        if at < end and time.monotonic() > deadline:
            lines.bound = f"last {(end - at) // 1024} KiB, when the time was up"
            return
        size = min(_BLOCK, at)
        at -= size
        file.seek(at)
        block = file.read(size)
        cut = block.find(b"\n") + 1 if at else 0
        if at and not cut:
            pending.append(block)
            continue
        rows = b"".join([block[cut:], *reversed(pending)]).split(b"\n")
        pending = [block[:cut]]
        yield rows, not ended
        ended = True


def open_file(path: str) -> t.BinaryIO:
    """The file, if it is one: to open a pipe would wait for who writes to it."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            wrong = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(wrong, os.strerror(wrong) if stat.S_ISDIR(mode) else "it is no regular file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _count_torn(lines: Lines, moment: float) -> None:
    if lines.torn and lines.torn[-1][0] == moment:
        moment, count = lines.torn.pop()
        lines.torn.append((moment, count + 1))
    else:
        lines.torn.append((moment, 1))


def parse(raw: bytes) -> Fields | None:
    """The object that a line is, or None. Bytes that are no UTF-8 are replaced, and do not cost the line."""
    if len(raw) > _MAX_LINE or not raw.lstrip().startswith(b"{"):
        return None
    try:
        fields = json.loads(raw.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    # Thousands of lines have the same few keys.
    return {sys.intern(key): value for key, value in fields.items()}


def value_of(fields: Fields, key: str) -> t.Any:
    """A field's value; a dotted key goes down into objects. None where there is none, or null."""
    if key in fields or "." not in key:
        return fields.get(key)
    at: t.Any = fields
    for part in key.split("."):
        if not isinstance(at, dict):
            return None
        at = at.get(part)
    return at


def text_of(value: t.Any) -> str:
    """A value as regular expressions see it: as JSON has it, but null is empty and texts are without quotes."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        # Most are numbers, and this is the quicker way.
        return (
            str(value)
            if isinstance(value, int) and not isinstance(value, bool)
            else json.dumps(value, ensure_ascii=False)
        )
    except (ValueError, RecursionError):
        return "(too deep or too large to be shown)"


def number_of(value: t.Any) -> float | None:
    """A value as a finite number, also from a text; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def moment_of(value: t.Any, latest: float) -> float | None:
    """A time as seconds since 1970: a number of seconds or milliseconds, or ISO 8601, local where it has no zone.

    `latest` is the time of the line after it: a local time that there was twice, when summer time ended, is the later
    of the two that is not after that.
    """
    number = number_of(value)
    if number is not None:
        return number / 1000 if number > 1e11 else number
    found = _ISO.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        return None
    times = _minute(found[1], found[2])
    if times is None:
        return None
    universal, first, second = times
    if found[4]:
        minute = universal
    elif found[5]:
        offset = int(found[6]) * 3600 + int(found[7] or 0) * 60
        minute = universal + (-offset if found[5] == "+" else offset)
    else:
        minute = second if second <= latest + DISORDER else first
    return minute + float((found[3] or "0").replace(",", "."))


@functools.lru_cache(maxsize=1024)
def _minute(date: str, clock: str) -> tuple[float, float, float] | None:
    """A minute's beginning as UTC, and as local time, before and after clocks were put back."""
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}:00")
        return (
            moment.replace(tzinfo=timezone.utc).timestamp(),
            moment.timestamp(),
            moment.replace(fold=1).timestamp(),
        )
    except (ValueError, OverflowError, OSError):
        return None

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read logs from the end, and mixed lines: JSON, JSON behind a logger's prefix, uvicorn access lines, plain text."""

from __future__ import annotations

import json
import os
import re
import time
import typing as t
from dataclasses import dataclass
from datetime import datetime, timezone

WINDOW = "window"
UNTIMED = "lines after the last one with a time"
_BLOCK = 256 * 1024
_ACCESS = re.compile(
    r"(?P<level>[A-Z]+):\s+(?P<client_host>\S+):\d+ - "
    r"\"(?P<method>[A-Z]+) (?P<path>[^ ?\"]+)[^\"]*\" (?P<status_code>\d{3})\b"
)
_PREFIXED = re.compile(r"(?:[A-Z]+:[\w.]+:)?\s*(\{.*\})\s*$")
# The service's own key first; the others are what common loggers write.
_TIME = re.compile(
    r"\"(?:timestamp|time|ts|@timestamp)\":\s*\"?(?P<json>[^\",}]+)"
    r"|^\[?(?P<plain>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*)",
    re.MULTILINE,
)


@dataclass
class Window:
    """The end of a log: its text, the oldest time in it, and what bounds it at the front."""

    text: str
    oldest: float | None
    bound: str
    # When the file was last written to, where it is one.
    written: float | None = None

    def newest(self, start: float) -> str:
        """The lines since then; those after the last one with a time may be as new, where the file does not tell."""
        lines = since(self.text, start)
        if lines or (self.written is not None and self.written < start):
            return lines
        return self.text[_last_time(self.text)[1] :]


def read_window(path: str, start: float, max_bytes: int, deadline: float) -> Window:
    """The whole lines since `start`, found by reading blocks from the end. A last line still being written is left out.

    Lines without a time belong to the one before them that has one. Where only such lines are left of what was written
    since `start`, all of them are taken, and the window says so: some may be older, and none is missed.
    """
    pieces: list[bytes] = []
    bound = "start of the log"
    with open(path, "rb") as file:
        at = end = file.seek(0, os.SEEK_END)
        written = os.fstat(file.fileno()).st_mtime
        while at > 0:
            if end - at >= max_bytes:
                bound = f"last {max_bytes // 1024 // 1024} MiB, which are all that is read"
                break
            if time.monotonic() > deadline:
                bound = f"last {(end - at) // 1024} KiB, when the time was up"
                break
            size = min(_BLOCK, at)
            at -= size
            file.seek(at)
            block = file.read(size)
            pieces.append(block)
            # Only whole lines tell their time: a torn one may have lost its zone.
            first = time_of(block[block.find(b"\n") + 1 : block.rfind(b"\n") + 1].decode("utf-8", "replace"))
            if first is not None and first < start:
                bound = WINDOW
                break
    data = b"".join(reversed(pieces))
    data = data[(data.find(b"\n") + 1 if at > 0 else 0) : data.rfind(b"\n") + 1]
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    if bound == WINDOW or start_is_in(text, start):
        bound = WINDOW
        whole, text = text, since(text, start)
        if not text and written >= start:
            # Vritti that warns of its settings logs no INFO lines: hours of access lines and no time.
            last = _last_time(whole)
            text = whole[last[1] :]
            if text:
                return Window(text, last[0], UNTIMED, written)
    return Window(text, time_of(text), bound, written)


def start_is_in(text: str, start: float) -> bool:
    """Whether the text goes back to before `start`."""
    first = time_of(text)
    return first is not None and first < start


def since(text: str, start: float) -> str:
    """The text from the first line on that is not older than `start`."""
    for found in _TIME.finditer(text):
        moment = seconds(found["json"] or found["plain"])
        if moment is not None and moment >= start:
            return text[text.rfind("\n", 0, found.start()) + 1 :]
    return ""


def _last_time(text: str) -> tuple[float | None, int]:
    """The last time in the text, and where the line after it begins."""
    moment, end = None, 0
    for found in _TIME.finditer(text):
        moment, end = seconds(found["json"] or found["plain"]), found.end()
    return moment, text.find("\n", end) + 1


def matching(text: str, pattern: re.Pattern[str]) -> t.Iterator[str]:
    """The lines that the pattern matches; a plain word is found at memory speed, line by line only what needs it."""
    word = pattern.pattern
    if not word or pattern.flags & re.IGNORECASE or re.escape(word).replace("\\ ", " ").replace("\\-", "-") != word:
        lines = text.split("\n")
        yield from (line for line in (lines if lines[-1] else lines[:-1]) if pattern.search(line))
        return
    at = text.find(word)
    while at != -1:
        end = text.find("\n", at)
        end = len(text) if end == -1 else end
        yield text[text.rfind("\n", 0, at) + 1 : end]
        at = text.find(word, end + 1)


def seconds(text: str) -> float | None:
    """A log's time as seconds since 1970: ISO 8601, or a number of seconds or milliseconds."""
    text = text.strip().replace(" ", "T", 1).replace(",", ".")
    try:
        number = float(text)
        return number / 1000 if number > 1e11 else number
    except ValueError:
        pass
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?\s*(Z|[+-]\d\d:?\d\d)?", text)
    if not found:
        return None
    try:
        moment = datetime.fromisoformat(found[1]).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
    zone = found[3] or "Z"
    if zone != "Z":
        offset = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
        moment += -offset if zone[0] == "+" else offset
    return moment + float(found[2] or 0)


def time_of(text: str) -> float | None:
    """The first time that a text carries, or None; plain lines and access lines carry none."""
    found = _TIME.search(text)
    return seconds(found["json"] or found["plain"]) if found else None


def fields_of(line: str) -> dict[str, t.Any]:
    """The named values of a line: its JSON, or what an access line says; {} for plain text."""
    if "{" in line:
        found = _PREFIXED.match(line)
        if found:
            try:
                fields = json.loads(found[1])
                if isinstance(fields, dict):
                    return fields
            except ValueError:
                pass
    access = _ACCESS.match(line)
    if access:
        fields = dict(access.groupdict())
        fields["status_code"] = int(fields["status_code"])
        return fields
    return {}


def quantile(values: t.Sequence[float], wanted: float) -> float:
    """The quantile with linear interpolation between the two nearest values."""
    ordered = sorted(values)
    place = wanted * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

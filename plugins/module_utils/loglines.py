# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read logs from the end and make sense of mixed lines: JSON, JSON behind a logger's prefix, uvicorn access lines, plain text."""

from __future__ import annotations

import json
import os
import re
import typing as t
from datetime import datetime, timezone

_BLOCK = 256 * 1024
_ACCESS = re.compile(
    r"(?P<level>[A-Z]+):\s+(?P<client_host>\S+):\d+ - \"(?P<method>[A-Z]+) (?P<path>[^ ?\"]+)[^\"]*\" (?P<status_code>\d{3})\b"
)
_PREFIXED = re.compile(r"(?:[A-Z]+:[\w.]+:)?\s*(\{.*\})\s*$")
# The service's own key first; the others are what common loggers write.
_TIME = re.compile(r"\"(?:timestamp|time|ts|@timestamp)\":\s*\"?(?P<json>[^\",}]+)|^\[?(?P<plain>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*)")


def lines_from_end(path: str, max_bytes: int) -> t.Iterator[bytes]:
    """The file's lines, newest first. A last line without a newline is still being written and is left out."""
    with open(path, "rb") as file:
        at = file.seek(0, os.SEEK_END)
        stop = max(0, at - max_bytes)
        tail = b""
        first = True
        while at > stop:
            size = min(_BLOCK, at - stop)
            at -= size
            file.seek(at)
            pieces = (file.read(size) + tail).split(b"\n")
            tail = pieces[0]
            complete = pieces[1:]
            if first and complete:
                complete.pop()
                first = False
            yield from reversed(complete)
        if at == 0 and tail and not first:
            yield tail


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


def time_of(line: str) -> float | None:
    """The time that a line carries, or None; plain lines and access lines carry none."""
    found = _TIME.search(line)
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

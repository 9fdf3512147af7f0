# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe jsonl: counts, rates, shares, quantiles, rankings over a window of a file of JSON lines, read from its end."""

from __future__ import annotations

import heapq
import os
import re
import time
import typing as t
from collections import Counter

from ansible_collections.oncall.runbooks.plugins.module_utils import jsonlines, judge, procfs, tallies
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.jsonlines import (
    Fields,
    Lines,
    number_of,
    text_of,
    value_of,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context, absolute
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

# Of a value that is counted, in the evidence.
_NAME = 100
VALUES = ("count", "rate", "share", "quantile", "distinct", "ranking", "repeated")

# Lines since a step that may stand for as many as there would be in the whole window.
FEWEST = 5

SPEC: dict[str, t.Any] = {
    "path": {"type": "str", "required": True},
    "port": {"type": "int"},
    "value": {"type": "str", "choices": list(VALUES), "default": "count"},
    "window": {"type": "float", "default": 300.0},
    "time": {"type": "str", "default": "timestamp"},
    # Which lines are looked at, and which of those are counted, by their fields.
    "where": {"type": "dict", "default": {}},
    "match": {"type": "dict", "default": {}},
    "field": {"type": "str"},
    "quantile": {"type": "float"},
    "by": {"type": "str"},
    # Whether only lines count since what listens on the port was started, and how many seconds after that not yet.
    "since_start": {"type": "bool", "default": False},
    "warm_up": {"type": "float", "default": 0.0},
    **tallies.RANKING,
}
RULES: dict[str, t.Any] = {
    "required_if": [
        ("value", "quantile", ("field", "quantile")),
        ("value", "distinct", ("field",)),
        ("value", "repeated", ("field",)),
        ("value", "ranking", ("by",)),
        ("since_start", True, ("port",)),
    ],
}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    for key, text in source["match"].items():
        tallies.pattern(text_of(text), f"match.{key}")
    tallies.validate(source)
    if source["value"] == "repeated" and source["least"] < 2:
        raise ValueError(f"least is {source['least']}; what is repeated has at least 2 lines")
    if source["active"] is not None and source["active"] <= 0:
        raise ValueError(f"active is {source['active']:g}; it is a number of seconds above 0")
    if source["warm_up"] < 0:
        raise ValueError(f"warm_up is {source['warm_up']:g}; it is a number of seconds from 0")
    if source["warm_up"] and not source["since_start"]:
        raise ValueError("warm_up counts from the start of what listens on the port, so it takes since_start: true")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    patterns = {**source["where"], **source["match"]}
    lines = ", ".join(f"{key} ~ {text_of(text)}" for key, text in patterns.items())
    what = {
        "quantile": f"{source['field']} quantile {source['quantile'] or 0:g}",
        "ranking": f"lines by {source['by']}",
        "distinct": f"distinct {source['field']}",
        "repeated": f"repeated {source['field']}",
    }.get(source["value"], source["value"])
    return f"jsonl {source['path']} {what}{f' of {lines}' if lines else ''}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Take the lines that several checks may share, and calculate from those that match."""
    path = absolute(context, source["path"], source["port"])
    seconds = source["window"] + (source["before"] or 0)

    def read() -> Lines:
        now = time.time()
        return jsonlines.read(path, source["time"], now - seconds, now, time.monotonic() + context.timeout)

    try:
        lines = context.once(("jsonl", path, source["time"], seconds), read)
    except PermissionError:
        raise NoAnswer(f"{path} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission") from None
    except FileNotFoundError:
        said = f"{path} does not exist, so no request was ever logged in it"
        return {"value": None, "samples": 0, "evidence": {"file": path}, "note": said}
    except OSError as error:
        raise NoAnswer(f"{path} cannot be read: {error.strerror}.", "error") from None
    return _Reading(context, source, path, lines).result()


class _Reading:
    """Counts the lines that match."""

    def __init__(self, context: Context, source: t.Mapping[str, t.Any], path: str, lines: Lines) -> None:
        self.source = source
        self.path = path
        self.lines = lines
        self.where, self.match, self.succeeded = (
            {key: re.compile(text_of(text)) for key, text in source[option].items()}
            for option in ("where", "match", "succeeded")
        )
        self.seconds = source["window"]
        self.covers = f"{self.seconds:g} s"
        self.least = source["least"]
        # How many times as long the window is as what is left of it after a step.
        self.whole = 1.0
        self.notes: list[str] = []
        # Why there may be no line, where that is not the traffic's doing.
        self.silent = ""
        if lines.bound.startswith("last"):
            self.notes.append(f"only the {lines.bound} were read")
            # What was not read did not happen less often.
            self._shorten(lines.now - (lines.oldest or lines.now), f"the {lines.bound}")
        if source["fresh"] and 0 < context.fresh_seconds < self.seconds:
            self.least = tallies.least_after(self.least, context.fresh_seconds, self.seconds)
            self.whole = self.seconds / context.fresh_seconds
            self._shorten(context.fresh_seconds, "since the last step")
        if source["since_start"]:
            self._since_start(context)
        self.start = lines.now - self.seconds

    def _shorten(self, seconds: float, why: str) -> bool:
        if seconds >= self.seconds:
            return False
        self.seconds = max(0.0, seconds)
        self.covers = f"{self.seconds:.0f} s: {why}"
        return True

    def _since_start(self, context: Context) -> None:
        """Leave out what an earlier process wrote, and what this one wrote while it was warming up."""
        port, warm_up = self.source["port"], self.source["warm_up"]
        try:
            found = context.once(("process", port, None), lambda: procfs.listeners(port))
            age = procfs.age(found[0]) if found else None
            why = f"nothing listens on port {port}"
        except NoAnswer as error:
            age, why = None, str(error).rstrip(".")
        if age is None:
            self.notes.append(f"{why}, so when it was started is not known, and all lines count")
            return
        # The lines may have been read by another check, a moment ago.
        left = age - (time.time() - self.lines.now)
        if warm_up and left < self.seconds:
            # It warms up with the first that it has to do, whenever that comes.
            first = min(
                (moment for moment, _fields in self.lines.found if moment > self.lines.now - left), default=None
            )
            left = (left if first is None else self.lines.now - first) - warm_up
        if self._shorten(left, "since it was started"):
            warmed = f"its warm-up of {warm_up:g} s" if warm_up else "that"
            self.silent = f"it was started {age:.0f} s ago, and no line is younger than {warmed}"

    def result(self) -> dict[str, t.Any]:
        lines, kind = self.lines, self.source["value"]
        within = [one for one in lines.found if one[0] >= self.start]
        evidence: dict[str, t.Any] = {"file": self.path}
        # Where an attack was all the traffic that there was, its end is no lack of data.
        if not within and (kind != "ranking" or not lines.found or self.silent):
            evidence["torn"] = lines.torn_since(self.start)
            return {"value": None, "samples": 0, "evidence": evidence, "note": self._nothing()}
        looked = [one for one in within if _has(one[1], self.where)]
        matched = [one for one in looked if _has(one[1], self.match)] if self.match else looked
        evidence.update(lines=len(looked), matched=len(matched), window=self.covers, torn=lines.torn_since(self.start))
        if lines.ahead:
            evidence["ahead"] = lines.ahead
            self.notes.append(f"{lines.ahead} lines have a time to come and are left out")
        if self.source["by"]:
            counted = Counter(self._group(fields) for _moment, fields in matched)
            evidence[f"by_{self.source['by']}"] = tallies.top(self.source["by"], counted)
        samples = len(looked)
        if samples >= FEWEST:
            # Whether a step helped is not left open because nobody waits for five minutes.
            samples = round(samples * self.whole)
        value: float | None = len(matched)
        if kind == "quantile":
            value, samples = self._quantile(matched, evidence)
        elif kind == "share":
            value = len(matched) / len(looked) if looked else None
        elif kind == "distinct":
            value = len(self._values(matched, self.source["field"]))
        elif kind == "rate":
            value = len(matched) / max(1.0, self.seconds)
        elif kind == "repeated":
            value = self._repeated(matched, evidence)
        elif kind == "ranking":
            value = self._ranking(matched, evidence)
        newest = heapq.nlargest(tallies.NEWEST, matched, key=lambda one: one[0])
        if newest:
            evidence["newest"] = [_shown(text_of(fields)) for _moment, fields in newest]
        _clean(evidence)
        return {"value": value, "samples": samples, "evidence": evidence, "note": "; ".join(self.notes) or None}

    def _nothing(self) -> str:
        newest = self.lines.newest
        if self.silent:
            said = self.silent
        elif newest is None:
            said = f"{self.path} has no line with a time in {self.source['time']}"
        else:
            ago = judge.show(max(0.0, self.lines.now - newest), "s")
            said = f"{self.path} has no line within {self.covers}; its newest is {ago} old"
        if self.lines.ahead:
            self.notes.append(f"{self.lines.ahead} lines have a time to come, so a clock or a time zone is wrong")
        return "; ".join([said, *self.notes])

    def _group(self, fields: Fields) -> str:
        value = value_of(fields, self.source["by"])
        return "?" if value is None else text_of(value)

    def _values(self, lines: t.Iterable[tuple[float, Fields]], key: str) -> Counter[str]:
        values = (value_of(fields, key) for _moment, fields in lines)
        return Counter(text_of(value) for value in values if value is not None)

    def _quantile(
        self, matched: t.Sequence[tuple[float, Fields]], evidence: dict[str, t.Any]
    ) -> tuple[float | None, int]:
        numbers: dict[str, list[float]] = {}
        unreadable = 0
        for _moment, fields in matched:
            value = value_of(fields, self.source["field"])
            number = number_of(value)
            if number is not None:
                numbers.setdefault(self._group(fields) if self.source["by"] else "", []).append(number)
            elif value is not None:
                unreadable += 1
        if unreadable:
            evidence["unreadable"] = unreadable
        value, samples, note = tallies.worst_quantile(
            numbers, self.source["quantile"], self.source["by"], evidence, None
        )
        if note:
            self.notes.insert(0, note)
        return value, samples

    def _repeated(self, matched: t.Sequence[tuple[float, Fields]], evidence: dict[str, t.Any]) -> int:
        field = self.source["field"]
        least = max(2, self.least)
        groups = Counter({name: count for name, count in self._values(matched, field).items() if count >= least})
        evidence[f"by_{field}"] = tallies.top(field, groups)
        return len(groups)

    def _ranking(self, matched: t.Sequence[tuple[float, Fields]], evidence: dict[str, t.Any]) -> int | None:
        by, before = self.source["by"], self.source["before"]
        lines = self.lines
        active = None
        if self.source["active"]:
            since = max(self.start, lines.now - self.source["active"])
            active = self._values((one for one in matched if one[0] >= since), by)
        good = None
        if self.succeeded:
            window = (one for one in lines.found if one[0] >= self.start)
            good = self._values((one for one in window if _has(one[1], self.succeeded)), by)
        usual = None
        if before:
            end = lines.now - self.source["window"]
            seconds = before
            if lines.bound != jsonlines.WINDOW:
                # What it does not go back to may have been like anything.
                seconds = min(before, max(0.0, end - (lines.oldest or end)))
            if seconds < self.source["window"]:
                self.notes.append(f"{self.path} does not go back far enough to tell what is usual")
                return None
            earlier = (one for one in lines.found if one[0] < end)
            wanted = (one for one in earlier if _has(one[1], self.where) and _has(one[1], self.match))
            usual = tallies.Usual(self._values(wanted, by), seconds, self.source["times"])
            evidence["compared_with"] = f"the {judge.show(seconds, 's')} before"
        groups = self._values(matched, by)
        evidence[f"by_{by}"] = tallies.top(by, groups)
        listed = tallies.ranked(groups, self.seconds, self.least, active, good, usual)
        note = tallies.list_in(evidence, listed, None)
        if note:
            self.notes.append(note)
        return len(listed)


def _has(fields: Fields, patterns: t.Mapping[str, re.Pattern[str]]) -> bool:
    return all(pattern.search(text_of(value_of(fields, key))) for key, pattern in patterns.items())


def _shown(text: str, most: int = tallies.LINE) -> str:
    """A text as it may leave the target; half of a character, as JSON can name one, could not be written down.

    It is cut before it is cleaned, which takes seconds for a line of many thousand letters, and once more after that.
    The quotes at its end are those of a secret that was cut.
    """
    text = text.encode("utf-8", "replace").decode()
    return mask_text(text[: 2 * most] + '\\""\'' if len(text) > 2 * most else text)[:most]


def _clean(evidence: dict[str, t.Any]) -> None:
    """The names in it are whatever somebody has sent."""
    for key, rows in evidence.items():
        if key == "listed" or key.startswith("by_"):
            evidence[key] = [
                {name: _shown(value, _NAME) if isinstance(value, str) else value for name, value in row.items()}
                for row in rows
            ]
    if "worst" in evidence:
        evidence["worst"] = _shown(evidence["worst"], _NAME)

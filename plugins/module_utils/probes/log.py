# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe log: counts, rates, shares and quantiles over a window of a file or a unit's journal, read from the end."""

from __future__ import annotations

import os
import re
import shutil
import time
import typing as t
from collections import Counter

from ansible_collections.oncall.runbooks.plugins.module_utils import judge, loglines, procfs, tallies
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

MAX_BYTES = 64 * 1024 * 1024
JOURNAL = "journal:"
STDOUT = "stdout:"

SPEC: dict[str, t.Any] = {
    "path": {"type": "str", "required": True},
    "value": {
        "type": "str",
        "choices": ["count", "rate", "share", "quantile", "distinct", "ranking"],
        "default": "count",
    },
    "window": {"type": "float", "default": 300.0},
    "since": {"type": "str"},
    "match": {"type": "str", "default": ""},
    "of": {"type": "str"},
    "expects": {"type": "str"},
    "where": {"type": "dict", "default": {}},
    "field": {"type": "str"},
    "quantile": {"type": "float"},
    "by": {"type": "str"},
    # Of a ranking: the field by which the lines of one request are put together, as some say who and others from where.
    "join": {"type": "str"},
    **tallies.RANKING,
}
RULES: dict[str, t.Any] = {
    "required_if": [
        ("value", "share", ("of",)),
        ("value", "quantile", ("field", "quantile")),
        ("value", "distinct", ("field",)),
        ("value", "ranking", ("by",)),
    ],
}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    for key in ("since", "match", "of", "expects"):
        tallies.pattern(source[key], key)
    tallies.validate(source)
    if source["path"].startswith(STDOUT) and not source["path"][len(STDOUT) :].isdigit():
        raise ValueError(f"the path {source['path']!r} is not stdout:<port>, such as stdout:8000")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    what = source["field"] if source["value"] == "quantile" else (source["match"] or "lines")
    more = f" quantile {source['quantile']:g}" if source["value"] == "quantile" else ""
    if source["value"] == "ranking":
        more = f" by {source['by']}"
    return f"log {source['path']} {what}{more}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Take the window that several checks may share, and calculate from the lines that match."""
    path, window, now = recent(context, source["path"], source["window"] + (source["before"] or 0))
    if source["value"] == "ranking":
        return _Ranking(source, window, now, context.fresh_seconds).result(path)
    reading = _Reading(source, window, now)
    reading.take()
    return reading.result(path)


def recent(context: Context, path: str, seconds: float) -> tuple[str, loglines.Window, float]:
    """The file or unit that a path stands for, its lines of these seconds, and when that was."""
    path = _resolve(context, path)
    now = time.time()

    def read() -> loglines.Window:
        if path.startswith(JOURNAL):
            return _journal(context, path[len(JOURNAL) :], seconds, now)
        return loglines.read_window(path, now - seconds, MAX_BYTES, time.monotonic() + context.timeout)

    try:
        window = context.once(("log", path, seconds), read)
    except PermissionError:
        raise NoAnswer(
            f"The log {path} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission"
        ) from None
    except FileNotFoundError:
        raise NoAnswer(f"The log {path} does not exist.", "no data") from None
    except OSError as error:
        raise NoAnswer(f"The log {path} cannot be read: {error.strerror}.", "error") from None
    return path, window, now


def _resolve(context: Context, path: str) -> str:
    """The file or journal:<unit> that a path stands for."""
    if not path.startswith(STDOUT):
        return path
    port = int(path[len(STDOUT) :])
    try:
        found = context.once(("process", port, None), lambda: procfs.listeners(port))
        if not found:
            raise NoAnswer(f"Nothing listens on port {port}, so its output is not known.", "no data")
        path = context.once(("output", found[0]), lambda: procfs.output_of(found[0]))
    except NoAnswer as error:
        if error.kind != "permission":
            raise
        # This is a guess at where the log may be, not a log that somebody named.
        raise NoAnswer(f"{error} Or name the log.", "no data") from None
    if not path:
        raise NoAnswer(
            f"The output of what listens on port {port} goes neither to a file nor to the journal; name the log.",
            "no data",
        )
    return path


def _journal(context: Context, unit: str, seconds: float, now: float) -> loglines.Window:
    """The unit's messages of the window; the journal itself keeps the time."""
    tool = shutil.which("journalctl")
    if tool is None:
        raise NoAnswer("The journal cannot be read: journalctl is not installed.", "missing")
    # Of coreutils, for the module's run_command has no deadline.
    command = [shutil.which("timeout") or "/usr/bin/timeout", str(context.timeout), tool, f"--unit={unit}"]
    command += [f"--since=@{int(now - seconds)}", "--output=cat", "--lines=200000", "--no-pager"]
    status, output, errors = context.run(command)
    if status == 124:
        raise NoAnswer(f"journalctl --unit={unit} does not end within {context.timeout:g} s.", "timeout")
    if not status and not output:
        # With --output=cat, journalctl keeps to itself that it may not see them.
        status, output, errors = context.run([*command[:3], f"--unit={unit}", "--lines=0", "--no-pager"])
    if status or "insufficient permissions" in errors or "not seeing messages" in errors:
        said = errors.strip().splitlines()
        why = said[0].removeprefix("Hint: ").rstrip(".") if said else f"status {status}"
        raise NoAnswer(f"The journal of {unit} cannot be read ({why}); run with -b.", "permission")
    # What journalctl says itself: -- No entries --, -- Boot … --
    lines = [line for line in output.splitlines(keepends=True) if not line.startswith("-- ")]
    return loglines.Window("".join(lines), now - seconds, loglines.WINDOW)


class _Reading:
    """Counts the lines that match."""

    def __init__(self, source: t.Mapping[str, t.Any], window: loglines.Window, now: float) -> None:
        self.source = source
        self.window = window
        self.now = now
        self.text = window.text
        self.bound = window.bound
        self.oldest = window.oldest
        self.where = {key: re.compile(str(pattern)) for key, pattern in source["where"].items()}
        self.pattern = re.compile(source["match"] or "")
        self.named = bool(source["by"] in self.pattern.groupindex)
        self.matched = self.whole = self.unreadable = 0
        self.numbers: dict[str, list[float]] = {}
        self.groups: Counter[str] = Counter()
        self.distinct: set[str] = set()
        self.newest: list[str] = []

    def take(self) -> None:
        if self.source["since"]:
            rest = _after(self.source["since"], self.text)
            if rest is not None:
                self.text, began = rest
                self.oldest = began or self.window.oldest
                self.bound = "since"
        for line in loglines.matching(self.text, self.pattern):
            self._count(line)
        if self.source["of"]:
            pattern = re.compile(self.source["of"])
            self.whole = sum(
                1
                for line in loglines.matching(self.text, pattern)
                if not self.where or self._wanted(loglines.fields_of(line))
            )

    def _wanted(self, fields: t.Mapping[str, t.Any]) -> bool:
        return _has(fields, self.where)

    def _count(self, line: str) -> None:
        needs_fields = self.where or self.source["field"] or self.source["by"]
        fields = loglines.fields_of(line) if needs_fields else {}
        if not self._wanted(fields):
            return
        if self.named:
            # What the message itself names, where it is no field.
            found = self.pattern.search(line)
            fields = {**fields, **{key: value for key, value in (found.groupdict() if found else {}).items() if value}}
        if self.source["field"]:
            value = fields.get(self.source["field"])
            if value is None:
                return
            if self.source["value"] == "distinct":
                self.distinct.add(str(value))
            else:
                try:
                    self.numbers.setdefault(
                        str(fields.get(self.source["by"], "?")) if self.source["by"] else "", []
                    ).append(float(value))
                except (TypeError, ValueError):
                    self.unreadable += 1
                    return
        self.matched += 1
        if self.source["by"]:
            self.groups[str(fields.get(self.source["by"], "?"))] += 1
        if self.source["match"]:
            self.newest = [*self.newest[-tallies.NEWEST + 1 :], line]

    def result(self, where: str) -> dict[str, t.Any]:
        covered, note = self._covered()
        if not self.text and self.bound != "since":
            said = f"{where} has no line within {covered}" if self.bound == loglines.WINDOW else f"{where} is empty"
            return {"value": None, "samples": 0, "evidence": {"log": where}, "note": said}
        expected = self.source["expects"]
        if expected and not next(loglines.matching(self.text, re.compile(expected)), None):
            said = f"{where} has no line {expected!r} within {covered}, so it does not tell"
            return {"value": None, "samples": 0, "evidence": {"log": where}, "note": said}
        lines = self.text.count("\n")
        evidence: dict[str, t.Any] = {"log": where, "lines": lines, "matched": self.matched, "window": covered}
        if self.newest:
            evidence["newest"] = [mask_text(line.rstrip())[: tallies.LINE] for line in reversed(self.newest)]
        if self.groups:
            evidence[f"by_{self.source['by']}"] = tallies.top(self.source["by"], self.groups)
        if self.unreadable:
            evidence["unreadable"] = self.unreadable
        kind = self.source["value"]
        value: float | None
        samples: float | None = None
        if kind == "quantile":
            value, samples, note = self._quantile(evidence, note)
        elif kind == "share":
            # Nothing of anything is nothing, however little there was; `expects` says what tells that it would show.
            value = (self.matched / self.whole if self.whole else None) if self.matched else 0.0
            samples = self.whole if self.matched else None
            evidence["whole"] = self.whole
        elif kind == "distinct":
            value = len(self.distinct)
        elif kind == "rate":
            value, note = self._rate(note)
        else:
            value = self.matched
        return {"value": value, "samples": samples, "evidence": evidence, "note": note}

    def _rate(self, note: str | None) -> tuple[float | None, str | None]:
        if self.bound == loglines.WINDOW:
            return self.matched / self.source["window"], note
        if self.oldest is None:
            # None in any time is none.
            return (None, "no line carries a time, so a rate is not known") if self.matched else (0.0, note)
        return self.matched / max(1.0, self.now - self.oldest), note

    def _quantile(self, evidence: dict[str, t.Any], note: str | None) -> tuple[float | None, int, str | None]:
        wanted = self.source["quantile"]
        if self.source["of"]:
            return self._upper_part(wanted, judge.least_for(wanted), evidence, note)
        return tallies.worst_quantile(self.numbers, wanted, self.source["by"], evidence, note)

    def _upper_part(
        self, wanted: float, least: int, evidence: dict[str, t.Any], note: str | None
    ) -> tuple[float | None, int, str | None]:
        """The quantile of as many as `of` counts, where the log has only the largest of them."""
        numbers = sorted(number for group in self.numbers.values() for number in group)
        whole = max(self.whole, len(numbers))
        evidence["whole"] = whole
        if whole < least:
            return None, whole, f"{whole} lines, and a quantile of {wanted:g} needs {least}"
        judged = judge.robust(wanted, whole)
        place = judged * (whole - 1) - (whole - len(numbers))
        if place < 0:
            return None, whole, f"the quantile {wanted:g} is among those that are not logged"
        few = f"quantile {judged:.3g}, as {whole} requests are few for {wanted:g}" if judged < wanted else None
        inner = place / (len(numbers) - 1) if len(numbers) > 1 else 0.0
        return loglines.quantile(numbers, inner), whole, "; ".join(filter(None, (few, note))) or None

    def _covered(self) -> tuple[str, str | None]:
        if self.bound == loglines.WINDOW:
            return f"{self.source['window']:g} s", None
        if self.bound == "since":
            untimed = "no line carries a time" if self.oldest is None else None
            return f"since the line matching {self.source['since']!r}", untimed
        if self.bound == loglines.UNTIMED and self.oldest is not None:
            ago = f"{max(0.0, self.now - self.oldest):.0f} s"
            return f"{ago}: the {self.bound}", f"its lines carry no time; they are of the last {ago} at most"
        if self.oldest is None:
            return "not established", f"no line carries a time; the {self.bound} was taken whole"
        return f"{max(0.0, self.now - self.oldest):.0f} s: the {self.bound}", None


class _Ranking:
    """Who stands out: the values of a field with many lines, against what was usual before."""

    def __init__(self, source: t.Mapping[str, t.Any], window: loglines.Window, now: float, fresh: float) -> None:
        self.source = source
        self.window = window
        self.pattern = re.compile(source["match"] or "")
        self.where = {key: re.compile(str(pattern)) for key, pattern in source["where"].items()}
        self.succeeded = {key: re.compile(str(pattern)) for key, pattern in source["succeeded"].items()}
        self.seconds = source["window"]
        self.now = now
        text, self.earlier, self.earlier_seconds = window.text, "", 0.0
        if source["before"]:
            text = loglines.since(window.text, now - self.seconds)
            self.earlier = window.text[: len(window.text) - len(text)]
            oldest = loglines.time_of(self.earlier)
            if window.bound == loglines.WINDOW:
                # It goes back further, so what is not in it did not happen.
                self.earlier_seconds = source["before"]
            elif oldest is not None:
                self.earlier_seconds = max(0.0, now - self.seconds - oldest)
        self.least = source["least"]
        if source["fresh"] and 0 < fresh < self.seconds:
            text = window.newest(now - fresh)
            self.least = tallies.least_after(self.least, fresh, self.seconds)
            self.seconds = fresh
        rest = _after(source["since"], text) if source["since"] else None
        if rest is not None:
            # What was before is over; it is not what is usual either.
            text, began = rest
            if began is not None:
                self.seconds = max(1.0, min(self.seconds, now - began))
        self.text = text

    def _count(self, text: str) -> tuple[Counter[str], Counter[str]]:
        """The lines by the field's value, and those that count as success."""
        joined: dict[str, dict[str, t.Any]] = {}
        join, by = self.source["join"], self.source["by"]
        if join:
            for line in text.split("\n"):
                fields = loglines.fields_of(line)
                if fields.get(join):
                    joined.setdefault(str(fields[join]), {}).update(
                        (key, value) for key, value in fields.items() if value is not None
                    )
        groups: Counter[str] = Counter()
        good: Counter[str] = Counter()
        for line in loglines.matching(text, self.pattern):
            fields = loglines.fields_of(line)
            if join and fields.get(join):
                fields = joined[str(fields[join])]
            found = self.pattern.search(line)
            fields = {**fields, **{key: value for key, value in (found.groupdict() if found else {}).items() if value}}
            name = fields.get(by)
            if name is None:
                continue
            if _has(fields, self.where):
                groups[str(name)] += 1
            if self.succeeded and _has(fields, self.succeeded):
                good[str(name)] += 1
        return groups, good

    def result(self, where: str) -> dict[str, t.Any]:
        evidence: dict[str, t.Any] = {"log": where, "window": f"{self.seconds:g} s"}
        if not self.window.text:
            return {"value": None, "samples": 0, "evidence": evidence, "note": f"{where} has no line to judge by"}
        expected = self.source["expects"]
        if expected and not next(loglines.matching(self.window.text, re.compile(expected)), None):
            said = f"{where} has no line {expected!r}, so it does not tell"
            return {"value": None, "samples": 0, "evidence": evidence, "note": said}
        note = None
        if self.window.bound not in (loglines.WINDOW, "start of the log"):
            note = f"only the {self.window.bound} were read" if self.window.bound.startswith("last") else None
            if self.window.bound == loglines.UNTIMED:
                note = "its lines carry no time, so more than the window may have been counted"
        groups, good = self._count(self.text)
        active = None
        if self.source["active"]:
            active = self._count(self.window.newest(self.now - self.source["active"]))[0]
        usual = None
        if self.source["before"]:
            if self.earlier_seconds < self.source["window"]:
                said = f"{where} does not go back far enough to tell what is usual"
                return {"value": None, "samples": None, "evidence": evidence, "note": said}
            usual = tallies.Usual(self._count(self.earlier)[0], self.earlier_seconds, self.source["times"])
            evidence["compared_with"] = f"the {judge.show(self.earlier_seconds, 's')} before"
        listed = tallies.ranked(groups, self.seconds, self.least, active, good if self.succeeded else None, usual)
        evidence["matched"] = sum(groups.values())
        evidence[f"by_{self.source['by']}"] = tallies.top(self.source["by"], groups)
        note = tallies.list_in(evidence, listed, note)
        return {"value": len(listed), "samples": None, "evidence": evidence, "note": note}


def _after(pattern: str, text: str) -> tuple[str, float | None] | None:
    """The lines after the one in which the pattern's last match ends, and since when that is; None without a match."""
    ends = [found.end() for found in re.finditer(pattern, text, re.MULTILINE)]
    if not ends:
        return None
    # A match may end with the line's own end.
    end = ends[-1] - (text[ends[-1] - 1 : ends[-1]] == "\n")
    after = text.find("\n", end) + 1
    line = text[text.rfind("\n", 0, end) + 1 : after]
    rest = text[after:] if after else ""
    return rest, loglines.time_of(line) or loglines.time_of(rest)


def _has(fields: t.Mapping[str, t.Any], patterns: t.Mapping[str, re.Pattern[str]]) -> bool:
    return all(pattern.search(str(fields.get(key, ""))) for key, pattern in patterns.items())

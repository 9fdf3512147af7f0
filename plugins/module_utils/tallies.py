# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the probes log and jsonl have in common: who stands out among lines, and quantiles by group."""

from __future__ import annotations

import re
import typing as t
from collections import Counter

from ansible_collections.oncall.runbooks.plugins.module_utils import judge, loglines

NEWEST = 3
TOP = 5
# What a ranking lists: no plan is read that is longer.
LISTED = 1000
LINE = 300

RANKING: dict[str, t.Any] = {
    # Of a ranking: how many lines in the window a value of `by` takes to be listed,
    "least": {"type": "int", "default": 1},
    # the seconds before the window to compare with, and how many times as many as then are too many,
    "before": {"type": "float"},
    "times": {"type": "float", "default": 3.0},
    # Who has no line in so many seconds has stopped.
    "active": {"type": "float"},
    # and what lines are counted beside, by their fields.
    "succeeded": {"type": "dict", "default": {}},
    # Whether, after a step, only what was logged since counts.
    "fresh": {"type": "bool", "default": False},
}


def pattern(text: str | None, key: str) -> re.Pattern[str]:
    """The regular expression of an option, or ValueError with a sentence."""
    try:
        return re.compile(text or "")
    except re.error as error:
        raise ValueError(f"{key} is {text!r}, which is no regular expression ({error})") from None


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence about the options that both probes have."""
    for option in ("where", "succeeded"):
        for key, text in source[option].items():
            pattern(str(text), f"{option}.{key}")
    if source["before"] is not None and source["before"] <= 0:
        raise ValueError(f"before is {source['before']:g}; it is a number of seconds above 0")
    if source["least"] < 1:
        raise ValueError(f"least is {source['least']}; it is a number of lines from 1")
    if source["quantile"] is not None and not 0 < source["quantile"] < 1:
        raise ValueError(f"quantile is {source['quantile']}; it lies between 0 and 1")
    if source["window"] <= 0:
        raise ValueError(f"window is {source['window']}; it is a number of seconds above 0")


def top(by: str, groups: Counter[str]) -> list[dict[str, t.Any]]:
    """The most frequent values of a field, for the evidence."""
    return [{by: name, "count": count} for name, count in groups.most_common(TOP)]


def worst_quantile(
    numbers: t.Mapping[str, t.Sequence[float]],
    wanted: float,
    by: str | None,
    evidence: dict[str, t.Any],
    note: str | None,
) -> tuple[float | None, int, str | None]:
    """The quantile, or the worst group's; fewer lines than it needs would give their maximum: nothing then."""
    least = judge.least_for(wanted)
    rows = sorted(
        (
            (loglines.quantile(values, judge.robust(wanted, len(values))), len(values), name)
            for name, values in numbers.items()
            if len(values) >= least
        ),
        reverse=True,
    )
    if not rows:
        most = max((len(values) for values in numbers.values()), default=0)
        return None, most, f"{most} lines, and a quantile of {wanted:g} needs {least}"
    if by:
        evidence.pop(f"by_{by}", None)
        evidence["worst"] = rows[0][2]
        evidence[f"by_{by}"] = [{by: name, "value": value, "samples": count} for value, count, name in rows[:TOP]]
    judged = judge.robust(wanted, rows[0][1])
    if judged < wanted:
        note = f"quantile {judged:.3g}, as {rows[0][1]} requests are few for {wanted:g}"
    return rows[0][0], rows[0][1], note


def least_after(least: int, fresh: float, seconds: float) -> int:
    """As many lines in less time; one alone is not an attack yet."""
    return max(min(2, least), round(least * fresh / seconds))


class Usual(t.NamedTuple):
    """What was counted before the window, and how many times as many are too many."""

    groups: Counter[str]
    seconds: float
    times: float


def ranked(
    groups: Counter[str],
    seconds: float,
    least: int,
    active: t.Container[str] | None,
    good: Counter[str] | None,
    usual: Usual | None,
) -> list[dict[str, t.Any]]:
    """Who has at least so many lines, has not stopped, and has more than usual; most lines first."""
    listed = []
    for name, count in groups.most_common():
        if count < least:
            break
        if active is not None and name not in active:
            continue
        row: dict[str, t.Any] = {"name": name, "count": count}
        if good is not None:
            row["succeeded"] = good[name]
        if usual is not None:
            average = usual.groups[name] * seconds / usual.seconds
            if usual.groups[name] and count < usual.times * average:
                continue
            row.update(before=round(average, 2), new=not usual.groups[name])
        listed.append(row)
    return listed


def list_in(evidence: dict[str, t.Any], rows: t.Sequence[dict[str, t.Any]], note: str | None) -> str | None:
    """Put who is listed into the evidence; the note then says what was left out."""
    evidence["listed"] = list(rows[:LISTED])
    if len(rows) > LISTED:
        note = "; ".join(filter(None, (note, f"only the first {LISTED} of {len(rows)} are listed")))
    return note

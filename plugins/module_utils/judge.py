# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge what a probe saw against a check's thresholds. Pure functions, the same on the controller and on the target."""

from __future__ import annotations

import math
import re
import typing as t

# The window of a value that may be old news.
SINCE_START = "since process start"
OPERATORS = ("above", "below", "equals", "matches")
Json = t.Any


class Unjudgeable(ValueError):
    """The value cannot be held against the threshold; the message says why."""


def number(value: Json) -> float | None:
    """The value as a number, where it is one; true and false are not numbers."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return float(str(value).strip())
    except ValueError:
        return None


def _equal(value: Json, wanted: Json) -> bool:
    left, right = number(value), number(wanted)
    if left is not None and right is not None:
        return left == right
    return str(value).lower() == str(wanted).lower()


def crossed(value: Json, thresholds: t.Sequence[t.Mapping[str, Json]]) -> t.Mapping[str, Json] | None:
    """The first threshold that the value crosses, or None."""
    for threshold in thresholds:
        for operator in OPERATORS:
            wanted = threshold.get(operator)
            if wanted is None:
                continue
            if operator in ("above", "below"):
                seen = number(value)
                if seen is None or math.isnan(seen):
                    raise Unjudgeable(f"the value {value!r} is no number and cannot be {operator} {wanted:g}")
                hit = seen > wanted if operator == "above" else seen < wanted
            elif operator == "equals":
                hit = _equal(value, wanted)
            else:
                hit = re.search(str(wanted), str(value)) is not None
            if hit:
                return threshold
    return None


def enough(look: t.Mapping[str, Json], min_samples: int) -> bool:
    """Whether a look gave a value that rests on enough samples."""
    if look["outcome"] != "value" or look.get("value") is None:
        return False
    samples = look.get("samples")
    return samples is None or samples >= min_samples


def least_for(quantile: float) -> int:
    """How many observations a quantile needs to be more than their maximum: 100 for the 99th percentile."""
    return math.ceil(round(1 / (1 - quantile), 6))


def robust(quantile: float, count: float) -> float:
    """The quantile to judge by: the one asked for, or the highest with five observations above it.

    One or two slow first requests (a key that is hashed, a model that loads) must not pass for a percentile.
    """
    return min(quantile, 1 - 5 / count) if count > 5 else quantile


def is_ok(check: t.Mapping[str, Json], looks: t.Sequence[t.Mapping[str, Json]]) -> bool:
    """Whether a check that others need is ok, decided where the probes run."""
    for look in looks:
        if enough(look, check.get("min_samples") or 0):
            try:
                return crossed(look["value"], check.get("thresholds") or []) is None
            except Unjudgeable:
                return False
    return False


def useless_threshold(thresholds: t.Sequence[t.Mapping[str, Json]]) -> str | None:
    """A sentence about the first threshold that can never match, or None.

    The first match wins, so a later threshold is dead when an earlier one of the same kind takes everything it would.
    """
    seen: list[tuple[str, Json]] = []
    # Every number above `lowest` and below `highest` is taken by the thresholds before.
    lowest, highest = math.inf, -math.inf
    for place, threshold in enumerate(thresholds, 1):
        used = [operator for operator in OPERATORS if threshold.get(operator) is not None]
        if len(used) != 1:
            has = ", ".join(used) or "none"
            return f"threshold {place} needs exactly one of above, below, equals and matches, and has {has}"
        operator = used[0]
        wanted = threshold[operator]
        if operator == "matches":
            try:
                re.compile(str(wanted))
            except re.error as error:
                return f"threshold {place}: {wanted!r} is no regular expression ({error})"
        if operator in ("above", "below") and (
            math.isnan(wanted) or wanted == (math.inf if operator == "above" else -math.inf)
        ):
            return f"threshold {place} ({operator}: {wanted}) can never match, for no number is {operator} it"
        bound = number(wanted) if operator == "equals" else wanted if operator != "matches" else None
        dead = any(
            (operator == earlier == "equals" and _equal(wanted, before))
            or (operator == earlier == "matches" and wanted == before)
            for earlier, before in seen
        )
        if bound is not None:
            everything = lowest < highest
            dead = (
                dead
                or everything
                or (operator == "above" and bound >= lowest)
                or (operator == "below" and bound <= highest)
                or (operator == "equals" and (bound > lowest or bound < highest))
            )
        if dead:
            return (
                f"threshold {place} ({operator}: {wanted}) can never match, because those before it take every such "
                f"value; put the stricter one first"
            )
        if operator == "above":
            lowest = min(lowest, wanted)
        elif operator == "below":
            highest = max(highest, wanted)
        seen.append((operator, wanted))
    return None


def expected(thresholds: t.Sequence[t.Mapping[str, Json]], unit: str | None) -> str:
    """What the thresholds allow, in words."""
    floors = [threshold["below"] for threshold in thresholds if threshold.get("below") is not None]
    ceilings = [threshold["above"] for threshold in thresholds if threshold.get("above") is not None]
    parts = []
    if ceilings:
        parts.append(f"at most {show(min(ceilings), unit)}")
    if floors:
        parts.append(f"at least {show(max(floors), unit)}")
    parts.extend(
        f"not {show(threshold['equals'], unit)}" for threshold in thresholds if threshold.get("equals") is not None
    )
    parts.extend(
        f"not matching {threshold['matches']}" for threshold in thresholds if threshold.get("matches") is not None
    )
    return " and ".join(parts)


def show(value: Json, unit: str | None = None) -> str:
    """A value with its unit, as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if unit == "s":
        return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))) if value < 120 else _duration(value)
    if unit == "B":
        return _scaled(value, ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")))
    if unit == "%":
        return f"{_round(value)} %"
    if unit == "ratio":
        return f"{_round(value * 100)} %"
    return f"{_round(value)} {unit}" if unit else _round(value)


def _scaled(value: float, scales: t.Sequence[tuple[float, str]]) -> str:
    for size, name in scales:
        # Nothing is none of the unit that everybody knows, not of the smallest.
        if abs(value) >= size or (value == 0 and size == 1):
            return f"{_round(value / size)} {name}"
    return f"{_round(value / scales[-1][0])} {scales[-1][1]}"


def _duration(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{_round(seconds / size)} {name}"
    return f"{_round(seconds)} s"


def _round(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{float(f'{value:.3g}'):.6f}".rstrip("0").rstrip(".")

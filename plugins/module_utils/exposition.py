# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the Prometheus text format for the few metrics that are asked for, and calculate with them.

Lines are filtered by metric name before they are parsed: a page of thousands of series costs next to nothing that way.
Format: Prometheus text exposition 0.0.4; selectors and quantiles follow PromQL.
"""

from __future__ import annotations

import math
import re
import typing as t
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]
Series = dict[Labels, float]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\\n]|\\.)*)"\s*(,|$)')
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*$")
_SAMPLE_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,|$)')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


class Malformed(ValueError):
    """The page is not what the format allows; the message says where."""


@dataclass
class Selector:
    """A metric name and its label matchers, as in PromQL."""

    name: str
    matchers: list[tuple[str, str, t.Any]] = field(default_factory=list)

    def matches(self, labels: t.Mapping[str, str]) -> bool:
        for label, operator, wanted in self.matchers:
            have = labels.get(label, "")
            if operator == "=" and have != wanted:
                return False
            if operator == "!=" and have == wanted:
                return False
            if operator == "=~" and not wanted.fullmatch(have):
                return False
            if operator == "!~" and wanted.fullmatch(have):
                return False
        return True


def _unescape(text: str) -> str:
    return re.sub(r'\\[\\"n]', lambda found: _ESCAPES[found.group()], text) if "\\" in text else text


def parse_selector(text: str) -> Selector:
    """Parse `name{label="x",other!~"y.*"}`, or raise ValueError with a sentence."""
    text = text.strip()
    name = _NAME.match(text)
    if not name:
        raise ValueError(f"{text!r} is no metric selector; it starts with a metric name")
    rest = text[name.end() :].strip()
    selector = Selector(name.group())
    if not rest:
        return selector
    if not (rest.startswith("{") and rest.endswith("}")):
        raise ValueError(f'{text!r} is no metric selector; write name{{label="value"}}')
    body = rest[1:-1].strip()
    while body:
        found = _LABEL.match(body)
        if not found:
            raise ValueError(f'{text!r} is no metric selector; {body!r} is not label="value" with =, !=, =~ or !~')
        label, operator, value, _comma = found.groups()
        value = _unescape(value)
        if operator in ("=~", "!~"):
            try:
                selector.matchers.append((label, operator, re.compile(value)))
            except re.error as error:
                raise ValueError(f"{text!r}: {value!r} is no regular expression ({error})") from None
        else:
            selector.matchers.append((label, operator, value))
        body = body[found.end() :]
    return selector


def _number(text: str) -> float:
    lowered = text.lower()
    if lowered in ("+inf", "inf"):
        return math.inf
    if lowered == "-inf":
        return -math.inf
    if "_" in text:
        raise ValueError(text)
    return float(text)


@dataclass
class Page:
    """What a scrape said of the metrics that were asked for."""

    series: dict[str, Series]
    declared: set[str]

    def select(self, selector: Selector, suffix: str = "") -> Series:
        found = self.series.get(selector.name + suffix, {})
        return {labels: value for labels, value in found.items() if selector.matches(dict(labels))}


def parse(page: bytes, names: t.Iterable[str]) -> Page:
    """Parse the series with exactly these names; Malformed names the first of their lines that is not in the format."""
    result = Page({}, set())
    text = "\n" + page.decode("utf-8", errors="replace")
    head = text.lstrip()[:200]
    if head.startswith(("<", "{", "[")):
        raise Malformed(f"the page starts with {head[:20]!r}, which is not the Prometheus text format")
    if "\n " in text or "\n\t" in text:
        text = re.sub(r"\n[ \t]+", "\n", text)
    for name in set(names):
        if re.search(rf"\n#[ \t]+(?:HELP|TYPE)[ \t]+{re.escape(name)}(?=\s)", text):
            result.declared.add(name)
        # str.find runs at memory speed; only the lines that are wanted are looked at.
        at = text.find("\n" + name)
        while at != -1:
            end = text.find("\n", at + 1)
            line = text[at + 1 : end if end != -1 else len(text)]
            following = line[len(name) : len(name) + 1]
            if not (following.isalnum() or following in ("_", ":")):
                found = _SAMPLE.match(line)
                try:
                    if not found:
                        raise ValueError(line)
                    value = _number(found["value"])
                    labels = _sample_labels(found["labels"] or "")
                except ValueError:
                    number = text.count("\n", 0, at + 1)
                    raise Malformed(f"line {number} is not in the Prometheus text format: {line[:80]!r}") from None
                result.series.setdefault(name, {})[labels] = value
            at = text.find("\n" + name, end) if end != -1 else -1
    return result


def _sample_labels(body: str) -> Labels:
    labels = []
    while body.strip():
        found = _SAMPLE_LABEL.match(body)
        if not found:
            raise ValueError(body)
        labels.append((found[1], _unescape(found[2])))
        body = body[found.end() :]
    return tuple(sorted(labels))


def increase(before: Series, after: Series) -> Series:
    """What counters gained between two scrapes; one that went down was reset and counts from zero, as in PromQL."""
    return {
        labels: value - before.get(labels, 0.0) if value >= before.get(labels, 0.0) else value
        for labels, value in after.items()
    }


def group(series: Series, by: str | None) -> dict[str, Series]:
    """Split series by one label's value; without a label, one group named ''."""
    groups: dict[str, Series] = {}
    for labels, value in series.items():
        groups.setdefault(dict(labels).get(by, "") if by else "", {})[labels] = value
    return groups


def aggregate(series: Series, how: str) -> float | None:
    """Sum, max, min, avg or count of the values; None without any."""
    values = [value for value in series.values() if not math.isnan(value)]
    if how == "count":
        return float(len(values))
    if not values:
        return None
    if how == "avg":
        return math.fsum(values) / len(values)
    return max(values) if how == "max" else min(values) if how == "min" else math.fsum(values)


@dataclass
class Quantile:
    """A quantile from buckets, how many observations it rests on, and whether it lies past the last bound."""

    value: float | None
    count: float
    beyond: bool = False


def histogram_quantile(buckets: Series, quantile: float) -> Quantile:
    """The quantile as PromQL calculates it, over the sum of all given bucket series."""
    by_bound: dict[float, float] = {}
    for labels, value in buckets.items():
        edge = dict(labels).get("le")
        if edge is None:
            continue
        try:
            key = _number(edge)
        except ValueError:
            raise Malformed(f"a bucket has the bound le={edge!r}, which is no number") from None
        by_bound[key] = by_bound.get(key, 0.0) + value
    bounds = sorted(by_bound)
    if not bounds or not math.isinf(bounds[-1]) or bounds[-1] < 0:
        return Quantile(None, 0.0)
    counts = []
    highest = 0.0
    for bound in bounds:
        # Scrapes are not atomic: a bucket may lag behind a smaller one.
        highest = max(highest, by_bound[bound])
        counts.append(highest)
    total = counts[-1]
    if not total > 0 or len(bounds) < 2:
        return Quantile(None, max(total, 0.0))
    rank = quantile * total
    index = next(number for number, count in enumerate(counts) if count >= rank)
    if index == len(bounds) - 1:
        return Quantile(bounds[-2], total, beyond=True)
    if index == 0 and bounds[0] <= 0:
        return Quantile(bounds[0], total)
    lower = bounds[index - 1] if index else 0.0
    below = counts[index - 1] if index else 0.0
    inside = counts[index] - below
    share = (rank - below) / inside if inside else 1.0
    return Quantile(lower + (bounds[index] - lower) * share, total)

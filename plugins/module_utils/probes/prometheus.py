# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe prometheus: values, rates, ratios and quantiles from a /metrics page, or from a Prometheus server."""

from __future__ import annotations

import json
import math
import time
import typing as t
from urllib.parse import urlencode

from ansible_collections.oncall.runbooks.plugins.module_utils import exposition, judge
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import check_url, without_credentials
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import http

START = "process_start_time_seconds"
TOP = 5
# How far back a server is asked at least, so that what lasts for a quarter of an hour shows.
HISTORY = 1200.0

SPEC: dict[str, t.Any] = {
    "url": {"type": "str"},
    "metric": {"type": "str"},
    "aggregate": {"type": "str", "choices": ["sum", "max", "min", "avg", "count"], "default": "sum"},
    "change": {"type": "str", "choices": ["delta", "rate"]},
    "divide_by": {"type": "str"},
    "histogram": {"type": "str"},
    "quantile": {"type": "float"},
    "by": {"type": "str"},
    "unset": {"type": "float"},
    "since_start": {"type": "bool", "default": True},
    "server": {"type": "str"},
    "promql": {"type": "str"},
    **http.REQUEST,
}
RULES: dict[str, t.Any] = {
    "required_one_of": [("url", "server")],
    "mutually_exclusive": [
        ("url", "server"),
        ("metric", "histogram", "promql"),
        ("histogram", "change"),
        ("histogram", "divide_by"),
    ],
    "required_together": [("histogram", "quantile"), ("server", "promql")],
    "required_by": {"change": "metric", "divide_by": "metric"},
}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    check_url(source["url"] or source["server"])
    if source["url"] and not (source["metric"] or source["histogram"]):
        raise ValueError("a scrape needs metric or histogram")
    for key in ("metric", "histogram", "divide_by"):
        if source[key]:
            exposition.parse_selector(source[key])
    if source["quantile"] is not None and not 0 < source["quantile"] < 1:
        raise ValueError(f"quantile is {source['quantile']}; it lies between 0 and 1")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    if source["server"]:
        return f"prometheus {without_credentials(source['server'])} {source['promql']}"
    name = (source["histogram"] or source["metric"]).split("{")[0]
    quantile = f" quantile {source['quantile']:g}" if source["histogram"] else ""
    return f"prometheus {without_credentials(source['url'])} {name}{quantile}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Scrape, or ask the server, and calculate."""
    try:
        if source["server"]:
            return _ask_server(context, source, check)
        return _Scrape(context, source, check).look()
    except exposition.Malformed as error:
        raise NoAnswer(f"GET {without_credentials(source['url'] or source['server'])}: {error}.", "content") from None


def _scrape(context: Context, source: t.Mapping[str, t.Any]) -> bytes:
    answer = http.fetch(context, source, source["url"])
    shown = f"GET {without_credentials(source['url'])}"
    if answer.status == 404:
        raise Absent(f"{shown} answers 404: this deployment exports no metrics.")
    if answer.status != 200:
        raise NoAnswer(f"{shown} answers {answer.status} instead of a page of metrics.", "status")
    if answer.content_type in ("text/html", "application/json"):
        raise NoAnswer(f"{shown} answers with {answer.content_type} instead of the Prometheus text format.", "content")
    return answer.body


def _differ(before: exposition.Page, after: exposition.Page, name: str) -> bool:
    """Whether a series that never changes in one process has changed."""
    earlier, later = before.series.get(name, {}), after.series.get(name, {})
    return any(later.get(labels, value) != value for labels, value in earlier.items())


class _Scrape:
    """One calculation over one or two scrapes of a page that checks share."""

    def __init__(self, context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> None:
        self.source = source
        self.min_samples = check.get("min_samples") or 0
        self.selector = exposition.parse_selector(source["histogram"] or source["metric"])
        self.divisor = exposition.parse_selector(source["divide_by"]) if source["divide_by"] else None
        self.suffix = "_bucket" if source["histogram"] else ""
        family = self.selector.name.removesuffix("_total")
        names = {self.selector.name, self.selector.name + self.suffix, family, f"{family}_created", START}
        if self.divisor:
            names.add(self.divisor.name)
        key = ("scrape", http.identity(source))
        if source["histogram"] or source["change"] or self.divisor:
            first, second, self.between = context.pair(key, lambda: _scrape(context, source))
        else:
            # A gauge is what it is now; the first of the pair, if there is one, is as good.
            first = context.once(("now", key), lambda: _scrape(context, source))
            second, self.between = None, 0.0
        self.before = exposition.parse(first, names)
        self.after = exposition.parse(second, names) if second is not None else self.before
        self.lifetime = False
        self.why = "without a sample time"
        if any(_differ(self.before, self.after, name) for name in (START, f"{family}_created")):
            # Every worker counts for itself, so their difference means nothing.
            self.between = 0.0
            self.why = "as the two scrapes came from different processes (several workers, or a restart)"
        self.declared = bool({self.selector.name, family} & self.after.declared)

    def look(self) -> dict[str, t.Any]:
        if not self.after.select(self.selector, self.suffix):
            name = self.selector.name
            if self.source["unset"] is not None and (self.declared or name + self.suffix in self.after.series):
                if self.divisor:
                    # None of them, of as many as there were.
                    return self._over_a_window(self._ratio)
                return {"value": self.source["unset"], "evidence": {}, "note": f"{name} has no series yet"}
            if not self.declared and name + self.suffix not in self.after.series:
                raise Absent(f"{without_credentials(self.source['url'])} does not export {name}.")
            raise NoAnswer(f"{name} is declared and has no matching series: nothing was observed yet.", "no data")
        if self.source["histogram"]:
            return self._over_a_window(self._quantile)
        if self.divisor:
            return self._over_a_window(self._ratio)
        if self.source["change"]:
            return self._change()
        return self._value(self.after.select(self.selector))

    def _over_a_window(
        self, calculate: t.Callable[[t.Callable[..., exposition.Series]], dict[str, t.Any]]
    ) -> dict[str, t.Any]:
        """Between the two scrapes where enough happened in between, else since the process started."""
        why = self.why
        if self.between:
            result = calculate(self._increase)
            if result["value"] is not None and result["samples"] >= max(self.min_samples, 1):
                result["evidence"]["window"] = f"{self.between:.1f} s"
                return result
            why = f"only {result['samples']:.0f} within {self.between:.1f} s"
        if not self.source["since_start"]:
            return {"value": None, "samples": 0, "note": why}
        self.lifetime = True
        result = calculate(self.after.select)
        least = judge.least_for(self.source["quantile"]) if self.source["quantile"] else 1
        if result["samples"] < least:
            # The slow first requests after a start would pass for the percentile.
            return {
                "value": None,
                "samples": result["samples"],
                "note": f"{result['samples']:.0f} since process start, and {least} are needed",
            }
        result["evidence"]["window"] = judge.SINCE_START
        result["note"] = f"{judge.SINCE_START}, {why}"
        judged = judge.robust(self.source["quantile"] or 0.0, result["samples"])
        if self.source["quantile"] and judged < self.source["quantile"]:
            result["note"] += (
                f"; quantile {judged:.3g}, as {result['samples']:.0f} are few for {self.source['quantile']:g}"
            )
        return result

    def _increase(self, selector: exposition.Selector, suffix: str = "") -> exposition.Series:
        return exposition.increase(self.before.select(selector, suffix), self.after.select(selector, suffix))

    def _quantile(self, series: t.Callable[..., exposition.Series]) -> dict[str, t.Any]:
        rows = []
        for label, buckets in exposition.group(series(self.selector, "_bucket"), self.source["by"]).items():
            found = exposition.histogram_quantile(buckets, self.source["quantile"])
            if self.lifetime:
                found = exposition.histogram_quantile(buckets, judge.robust(self.source["quantile"], found.count))
            if found.value is not None:
                rows.append((found, label, buckets))
        judged = [row for row in rows if row[0].count >= self.min_samples] or rows
        if not judged:
            return {"value": None, "samples": 0, "evidence": {}}
        judged.sort(key=lambda row: (row[0].value, row[0].count), reverse=True)
        worst, name, buckets = judged[0]
        evidence: dict[str, t.Any] = {"samples": int(worst.count)}
        for quantile in (0.5, 0.95):
            other = exposition.histogram_quantile(buckets, quantile).value
            evidence[f"p{quantile * 100:.0f}"] = None if other is None else round(other, 6)
        if worst.beyond:
            evidence["beyond_buckets"] = f"more than the largest bucket's bound of {worst.value:g}"
        if self.source["by"]:
            evidence["worst"] = name
            evidence[f"by_{self.source['by']}"] = [
                {self.source["by"]: label, "value": round(t.cast(float, found.value), 6), "samples": int(found.count)}
                for found, label, _b in judged[:TOP]
            ]
        return {"value": worst.value, "samples": worst.count, "evidence": evidence}

    def _ratio(self, series: t.Callable[..., exposition.Series]) -> dict[str, t.Any]:
        part = exposition.aggregate(series(self.selector), "sum") or 0.0
        whole = exposition.aggregate(series(t.cast(exposition.Selector, self.divisor)), "sum") or 0.0
        evidence: dict[str, t.Any] = {"part": part, "whole": whole, "samples": int(whole)}
        if self.source["by"]:
            groups = exposition.group(series(self.selector), self.source["by"])
            counts = [(exposition.aggregate(one, "sum") or 0.0, name) for name, one in groups.items()]
            evidence[f"by_{self.source['by']}"] = [
                {self.source["by"]: name, "count": int(count)}
                for count, name in sorted(counts, reverse=True)[:TOP]
                if count
            ]
        return {"value": part / whole if whole > 0 else None, "samples": whole, "evidence": evidence}

    def _change(self) -> dict[str, t.Any]:
        if self.between:
            gained = self._increase(self.selector)
            seconds, window, note = self.between, f"{self.between:.1f} s", None
        else:
            gained = self.after.select(self.selector)
            started = exposition.aggregate(self.after.series.get(START, {}), "max")
            if started is None and self.source["change"] == "rate":
                raise NoAnswer(
                    f"a rate of {self.selector.name} needs two scrapes or {START}; set runbook_sample_seconds above 0.",
                    "no data",
                )
            seconds = max(1e-3, time.time() - (started or 0.0))
            window = judge.SINCE_START
            note = f"{judge.SINCE_START}, {self.why}"
        scale = 1.0 / seconds if self.source["change"] == "rate" else 1.0
        result = self._value({labels: value * scale for labels, value in gained.items()})
        result["evidence"]["window"] = window
        result["note"] = note
        return result

    def _value(self, series: exposition.Series) -> dict[str, t.Any]:
        evidence: dict[str, t.Any] = {}
        if self.source["by"]:
            groups = {
                name: exposition.aggregate(part, self.source["aggregate"])
                for name, part in exposition.group(series, self.source["by"]).items()
            }
            ranked = sorted(((value, name) for name, value in groups.items() if value), reverse=True)
            evidence[f"by_{self.source['by']}"] = [
                {self.source["by"]: name, "value": round(value, 6)} for value, name in ranked[:TOP]
            ]
        return {"value": exposition.aggregate(series, self.source["aggregate"]), "evidence": evidence, "note": None}


def _api(context: Context, source: t.Mapping[str, t.Any], path: str, parameters: dict[str, t.Any]) -> t.Any:
    url = f"{source['server'].rstrip('/')}/api/v1/{path}?{urlencode(parameters)}"
    answer = http.fetch(context, source, url)
    shown = f"Prometheus at {without_credentials(source['server'])}"
    try:
        body = json.loads(answer.body)
        if body["status"] != "success":
            raise NoAnswer(f"{shown} refuses {source['promql']!r}: {body.get('error', 'no reason given')}.", "status")
        return body["data"]
    except (ValueError, KeyError, TypeError):
        raise NoAnswer(
            f"{shown} answers {answer.status} with {answer.content_type or 'no content type'}, which is not its API.",
            "content",
        ) from None


def _ask_server(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    data = _api(context, source, "query", {"query": source["promql"]})
    shown = f"Prometheus at {without_credentials(source['server'])}"
    try:
        kind, result = data["resultType"], data["result"]
        values = [float(result[1])] if kind == "scalar" else [float(item["value"][1]) for item in result]
    except (KeyError, TypeError, IndexError, ValueError):
        raise NoAnswer(f"{shown} answers {source['promql']!r} with something other than numbers.", "content") from None
    series: exposition.Series = {
        (("series", str(place)),): value for place, value in enumerate(values) if not math.isnan(value)
    }
    value = exposition.aggregate(series, source["aggregate"] if len(series) > 1 else "sum")
    if value is None:
        raise NoAnswer(f"{shown} has no data for {source['promql']!r}.", "no data")
    evidence: dict[str, t.Any] = {"series": len(series)}
    asked = [threshold.get("for_seconds") or 0 for threshold in check.get("thresholds") or []]
    back = max(HISTORY, 2 * max(asked, default=0))
    now = time.time()
    period = {"query": source["promql"], "start": now - back, "end": now, "step": max(15, back / 20)}
    try:
        history = _api(context, source, "query_range", period)
        evidence["history"] = [[int(float(at)), float(number)] for at, number in history["result"][0]["values"]][-40:]
    except (NoAnswer, KeyError, TypeError, IndexError, ValueError):
        # How it is now is the answer; how long it has been so may stay open.
        evidence["history"] = []
    return {"value": value, "evidence": evidence}

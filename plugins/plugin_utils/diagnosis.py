# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn what the probes saw into findings and a diagnosis. Pure functions: data in, data out, no clock, no files."""

from __future__ import annotations

import json
import string
import typing as t
from datetime import UTC, datetime

import yaml

from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import LEVELS
from ansible_collections.oncall.runbooks.plugins.module_utils.loglines import seconds
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES

SCHEMA = "oncall.runbooks/diagnosis/1"
# How the action says that the variable of a secret holds nothing.
NOT_GIVEN = " is empty."
# Two diagnoses further apart than this say nothing of what was in between.
CONTINUOUS_SECONDS = 3600.0

Finding = dict[str, t.Any]
Search = t.Callable[[str, t.Any], t.Any]


class _NoValue(Exception):
    """No source gave a value; status says what that means."""

    def __init__(self, status: str, reason: str, passed: list[dict[str, str]]) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.passed = passed


def finding(check_id: str, title: str, observed_at: str, **values: t.Any) -> Finding:
    """A finding with every key, in the order of the contract."""
    empty: Finding = {
        "id": check_id,
        "title": title,
        "status": "unknown",
        "severity": None,
        "label": None,
        "observed": None,
        "unit": None,
        "expected": None,
        "source": None,
        "evidence": {},
        "next_step": "",
        "reproduce": "",
        "suggests": [],
        "observed_at": observed_at,
        "duration_ms": 0.0,
    }
    empty.update(values)
    return empty


def _choose(
    check: t.Mapping[str, t.Any], looks: list[dict[str, t.Any]], search: Search
) -> tuple[t.Any, dict[str, t.Any], dict[str, t.Any], list[dict[str, str]]]:
    """The value of the first source that answers, its look, the source, and the sources before it."""
    passed: list[dict[str, str]] = []
    absent = True
    forbidden = foreign = False
    for source, seen in zip(check["sources"], looks):
        name = PROBES[source["probe"]].describe(source) if source.get("when", True) else source["probe"]
        is_document = seen["outcome"] in ("json", "yaml")
        look = settled(source, seen, search)
        outcome, value, reason = look["outcome"], look.get("value"), look.get("note") or ""
        if is_document and outcome == "value":
            reason = f"{source['jmespath']} gives nothing in its answer"
        if outcome == "value":
            least = check["min_samples"]
            if value is not None and (look.get("samples") is None or look["samples"] >= least):
                return value, {**look, "source": name}, source, passed
            if value is not None:
                reason = f"{look['samples']:.0f} samples, and {least} are needed"
            elif look.get("samples") is not None:
                reason = f"nothing was observed{f' ({reason})' if reason else ''}"
            if value is None and source.get("missing"):
                reason = source["missing"]
        absent = absent and outcome == "absent"
        forbidden = forbidden or look.get("kind") == "permission"
        # Silence for these reasons is about the question, not about the service.
        about_it = look.get("kind") in ("tls", "name", "secret", "authentication", "place")
        foreign = foreign or (about_it and not (check["on_no_data"] == "skipped" and _dispensable(look)))
        passed.append({"source": name, "reason": reason})
    reasons = list(dict.fromkeys(item["reason"].rstrip(".") for item in passed if item["reason"])) or [
        "no source answered"
    ]
    # What a user may not see is not known; only a check that explains another may leave it at that.
    if forbidden and not (check["explains"] and check["on_no_data"] == "skipped"):
        foreign = True
    status = "skipped" if absent and passed else "unknown" if foreign else "no data"
    raise _NoValue(status, "; ".join(reasons), passed)


def settled(source: t.Mapping[str, t.Any], look: t.Mapping[str, t.Any], search: Search) -> dict[str, t.Any]:
    """The look with a value, where it came as a document that JMESPath takes it from, here on the controller."""
    outcome, value = look["outcome"], look.get("value")
    if outcome not in ("json", "yaml"):
        return dict(look)
    try:
        if outcome == "yaml":
            value = yaml.safe_load(str(value))
        value = search(source["jmespath"], value)
        if value is not None and source["scale"] != 1 and judge.number(value) is not None:
            value = t.cast(float, judge.number(value)) * source["scale"]
        return {**look, "outcome": "value", "value": value}
    except yaml.YAMLError as error:
        why = f"it is no YAML ({' '.join(str(error).split())[:200]})"
    except ValueError as error:
        why = f"{source['jmespath']!r} is no JMESPath expression ({error})"
    return {**look, "outcome": "no_answer", "value": None, "note": why}


def _dispensable(look: t.Mapping[str, t.Any]) -> bool:
    """What a check that is not needed may do without: a key nobody gave, a name that does not resolve, a place unknown.

    A key that cannot be decrypted is a mistake, and stays one.
    """
    return look["kind"] in ("name", "place") or (look["kind"] == "secret" and str(look.get("note")).endswith(NOT_GIVEN))


def judge_check(
    check: t.Mapping[str, t.Any],
    result: t.Mapping[str, t.Any],
    severities: t.Mapping[str, str],
    search: Search,
    observed_at: str,
) -> Finding:
    """The finding of one check."""
    looks = result["looks"]
    base = finding(
        check["id"],
        check["title"],
        observed_at,
        unit=check["unit"],
        expected=check["expected"] or judge.expected(check["thresholds"], check["unit"]),
        next_step=check["next_step"],
        reproduce=check["reproduce"],
        duration_ms=round(sum(look.get("duration_ms") or 0.0 for look in looks), 1),
    )
    if result["unmet"]:
        base.update(
            status="skipped", evidence={"reason": f"not looked at, because {' and '.join(result['unmet'])} is not ok"}
        )
        return base
    try:
        value, look, source, passed = _choose(check, looks, search)
        threshold = judge.crossed(value, check["thresholds"])
    except (_NoValue, judge.Unjudgeable) as error:
        status = getattr(error, "status", "no data")
        evidence = {"reason": str(error), "passed_over": getattr(error, "passed", [])}
        base.update(status=check["on_no_data"] if status == "no data" else status, evidence=evidence)
        if base["status"] == "breach":
            label = check["thresholds"][0]["label"]
            base.update(label=label, severity=severities[label], suggests=check["suggests"])
        return base
    evidence = dict(look.get("evidence") or {})
    notes = [note for note in (source.get("note"), look.get("note")) if note]
    if notes:
        evidence["note"] = "; ".join(notes)
    if source.get("lifetime"):
        evidence["window"] = judge.SINCE_START
    if passed:
        evidence["passed_over"] = passed
    base.update(
        status="ok",
        observed=round(value, 6) if isinstance(value, float) else value,
        source=look["source"],
        evidence=evidence,
    )
    if threshold is not None:
        label = threshold["label"]
        base.update(status="breach", label=label, severity=severities[label], suggests=check["suggests"])
        if threshold.get("for_seconds") or evidence.get("history"):
            evidence["crossed"] = {key: item for key, item in threshold.items() if item is not None}
    return base


def judge_all(
    checks: t.Sequence[t.Mapping[str, t.Any]],
    bad: t.Sequence[tuple[str, str, str]],
    results: t.Mapping[str, t.Mapping[str, t.Any]],
    severities: t.Mapping[str, str],
    search: Search,
    observed_at: str,
    previous: t.Mapping[str, t.Any] | None,
) -> list[Finding]:
    """The findings of all checks, those that are wrong among them, in the runbook's order."""
    findings = [judge_check(check, results[check["id"]], severities, search, observed_at) for check in checks]
    by_id = {item["id"]: item for item in findings}
    crossed = {item["id"] for item in findings if item["status"] == "breach"}
    for check in checks:
        item = by_id[check["id"]]
        without = [name for name in check["unless"] if name in crossed]
        if item["status"] == "breach" and without:
            titles = " and ".join(by_id[name]["title"] for name in without)
            _withdraw(item, f"past its threshold, which does not matter here: {titles}")
    # What explains something that is itself no breach by then explains nothing.
    is_settled = False
    while not is_settled:
        is_settled = True
        for check in checks:
            item, explained = by_id[check["id"]], check["explains"]
            if (
                item["status"] == "breach"
                and explained
                and not any(by_id.get(other, {}).get("status") == "breach" for other in explained)
            ):
                _withdraw(
                    item,
                    f"past its threshold, but {' and '.join(explained)}, which it would explain, is not in breach",
                )
                is_settled = False
    before = {
        item["id"]: item for item in (previous or {}).get("findings", []) if isinstance(item, dict) and "id" in item
    }
    for check in checks:
        item = by_id[check["id"]]
        _compare(item, before.get(check["id"]), check["track"])
        _lasting(item, before.get(check["id"]))
    findings.extend(
        finding(name, title, observed_at, evidence={"reason": why}, next_step="Correct the check in the runbook.")
        for name, title, why in bad
    )
    return findings


def _withdraw(item: Finding, why: str) -> None:
    """What is past its threshold, and is no breach for a reason."""
    item["evidence"]["note"] = why
    item.update(status="ok", label=None, severity=None, suggests=[])


def _compare(item: Finding, before: Finding | None, track: t.Sequence[str]) -> None:
    """Say which tracked evidence differs from the diagnosis before."""
    if not before:
        return
    then, now = before.get("evidence") or {}, item["evidence"]
    changed = {
        key: {"was": then[key], "is": now[key]} for key in track if key in then and key in now and then[key] != now[key]
    }
    if changed:
        now["changed"] = {"since": before.get("observed_at"), **changed}


def _lasting(item: Finding, before: Finding | None) -> None:
    """Say since when a breach lasts, from a Prometheus server's history or from earlier diagnoses."""
    evidence = item["evidence"]
    crossed = evidence.pop("crossed", None)
    history = evidence.pop("history", None)
    if item["status"] != "breach":
        return
    now = seconds(item["observed_at"]) or 0.0
    since, by = None, None
    if history and crossed:
        since, by = _unbroken(history, crossed), "the Prometheus server"
    # One that has become worse is that bad since now.
    elif before and before.get("status") == "breach" and _rank({**item, **before}) <= _rank(item):
        then = seconds(str(before.get("observed_at"))) or 0.0
        if 0 <= now - then <= CONTINUOUS_SECONDS:
            since, by = (before.get("evidence") or {}).get("since") or before.get("observed_at"), "earlier diagnoses"
    if since:
        evidence["since"], evidence["since_by"] = since, by
    if crossed and crossed.get("for_seconds"):
        needed = judge.show(crossed["for_seconds"], "s")
        lasted = now - (seconds(since) or now) if since else 0.0
        less = "" if lasted >= crossed["for_seconds"] else f", less than the {needed} that the runbook asks for"
        evidence["duration"] = (
            f"at least {judge.show(lasted, 's')} by {by}{less}"
            if since
            else f"not established; the runbook asks for {needed}: diagnose again, or set runbook_prometheus_url"
        )
        if item["suggests"] and lasted < crossed["for_seconds"]:
            # Nothing is changed for what may be over in a moment.
            item["suggests"] = []
            evidence["duration"] += "; its steps are proposed once it has lasted that long"


def _unbroken(history: t.Sequence[t.Sequence[float]], threshold: t.Mapping[str, t.Any]) -> str | None:
    """The start of the unbroken run of crossings that ends with the newest value."""
    first = None
    for at, value in reversed(history):
        if judge.crossed(value, [threshold]) is None:
            break
        first = at
    return None if first is None else datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rank(item: Finding) -> int:
    return LEVELS.index(item["severity"]) if item["severity"] in LEVELS else len(LEVELS)


def overall(findings: t.Sequence[Finding]) -> tuple[str, str | None, str | None]:
    """The host's status, severity and label."""
    breaches = sorted((item for item in findings if item["status"] == "breach"), key=_rank)
    if breaches:
        worst = breaches[0]
        return "critical" if worst["severity"] == "critical" else "degraded", worst["severity"], worst["label"]
    # A host of which nothing was established is not a healthy one.
    if any(item["status"] == "unknown" for item in findings) or not any(item["status"] == "ok" for item in findings):
        return "unknown", None, None
    return "healthy", None, None


def reached(findings: t.Sequence[Finding], levels: t.Sequence[str]) -> bool:
    """Whether a finding is at one of these levels, or worse than one."""
    least = max((LEVELS.index(level) for level in levels if level in LEVELS), default=-1)
    if any(item["status"] == "breach" and _rank(item) <= least for item in findings):
        return True
    return "unknown" in levels and any(item["status"] == "unknown" for item in findings)


def escalation(
    findings: t.Sequence[Finding], table: t.Mapping[str, t.Mapping[str, t.Any]], contacts: t.Mapping[str, str]
) -> dict[str, t.Any] | None:
    """What the worst breach asks of people, and what the labels of the others do."""
    breaches = sorted((item for item in findings if item["status"] == "breach"), key=_rank)
    labels = [name for name in dict.fromkeys(item["label"] for item in breaches) if name in table]
    told = [
        {"label": name, "respond_within": table[name]["respond_within"], "path": table[name]["path"]} for name in labels
    ]
    return {**told[0], "others": told[1:], "contacts": dict(contacts)} if told else None


def page(findings: t.Sequence[Finding], table: t.Mapping[str, t.Mapping[str, t.Any]]) -> None:
    """Say so in the evidence of a breach that nobody may leave for longer than its label's response time."""
    for item in findings:
        entry = table.get(item["label"]) if item["status"] == "breach" else None
        limit = entry["respond_within"] if entry and entry.get("page") else None
        since = seconds(str(item["evidence"].get("since"))) if limit is not None else None
        lasted = (seconds(item["observed_at"]) or 0.0) - since if since else None
        if limit is not None and lasted is not None and lasted >= limit:
            item["evidence"]["page"] = (
                f"Page the on-call engineer: {item['title']} is {item['label']} for {judge.show(lasted, 's')} by "
                f"{item['evidence'].get('since_by')}, more than {judge.show(limit, 's')}."
            )


def summarise(findings: t.Sequence[Finding], causes: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """One sentence: the cause when the findings name it, else the worst of them; marks the cause's finding."""
    # A second check with an id that is taken is a mistake, and comes last.
    by_id = {item["id"]: item for item in reversed(findings)}
    unknown = [item for item in findings if item["status"] == "unknown"]
    rest = f" {len(unknown)} of {len(findings)} checks gave no answer." if unknown else ""
    for cause in causes:
        if (
            all(by_id[name]["status"] == "breach" for name in cause["breach"])
            and all(by_id[name]["status"] == "ok" for name in cause["ok"])
            and not any(by_id[name]["evidence"].get("window") == judge.SINCE_START for name in cause["fresh"])
        ):
            by_id[cause["breach"][0]]["evidence"]["cause"] = True
            values = {item["id"]: judge.show(item["observed"], item["unit"]) for item in findings}
            return string.Template(cause["summary"]).safe_substitute(values) + rest
    breaches = sorted((item for item in findings if item["status"] == "breach"), key=_rank)
    if breaches:
        worst = breaches[0]
        more = f", and {len(breaches) - 1} more" if len(breaches) > 1 else ""
        return f"{worst['title']} is {_observed(worst)}, expected {worst['expected']}{more}.{rest}"
    if unknown:
        first = unknown[0]
        more = f" {len(unknown) - 1} more checks gave no answer." if len(unknown) > 1 else ""
        reason = str(first["evidence"].get("reason", "no reason given")).rstrip(".")
        return f"{first['title']} is not known: {reason}.{more}"
    good = [item for item in findings if item["status"] == "ok"]
    if not good:
        return "Nothing could be established: every check was skipped."
    measured = next((item for item in good if item["unit"]), good[0])
    return f"Nothing wrong: {len(good)} checks are ok; {measured['title']} is {_observed(measured)}."


def line(template: str, findings: t.Sequence[Finding]) -> str:
    """What a host shows on its one line: `$id` is what that check observed. What is not known is never left out."""
    values = {}
    for item in reversed(findings):
        seen = judge.show(item["observed"], item["unit"]) if item["observed"] is not None else "no answer"
        if item["evidence"].get("window") == judge.SINCE_START:
            seen += f" {judge.SINCE_START}"
        values[item["id"]] = {"skipped": "-", "unknown": "unknown"}.get(item["status"], seen)
    return string.Template(template).safe_substitute(values)


def _observed(item: Finding) -> str:
    if item["observed"] is None:
        return f"without an answer ({str(item['evidence'].get('reason', '')).rstrip('.')})"
    return judge.show(item["observed"], item["unit"])


def capped(diagnosis: dict[str, t.Any], limit: int = 32768) -> dict[str, t.Any]:
    """The diagnosis small enough to travel as a statistic: evidence goes first, then what is ok, then the words."""
    findings = diagnosis["findings"]
    brief = ("id", "title", "status", "severity", "label", "observed", "unit", "expected")
    wrong = sorted((item for item in findings if item["status"] in ("breach", "unknown")), key=_rank)
    attempts: list[list[Finding]] = [
        findings,
        [item if item["status"] == "breach" else {**item, "evidence": {}} for item in findings],
        [{**item, "evidence": {}} for item in wrong],
        [{key: item[key] for key in brief} for item in wrong],
    ]
    for kept in attempts:
        small = diagnosis if kept is findings else {**diagnosis, "findings": kept, "capped": True}
        if len(json.dumps(small)) <= limit:
            return small
    while small["findings"] and len(json.dumps(small)) > limit:
        small["findings"] = small["findings"][: len(small["findings"]) // 2]
    return small

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which runbook is this? The light checks of many as one diagnosis, and the runbooks ranked by what it found."""

from __future__ import annotations

import json
import typing as t
from collections import Counter

from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import LEVELS
from ansible_collections.oncall.runbooks.plugins.plugin_utils import diagnosis as diagnosing

Check = dict[str, t.Any]
Looks = t.Mapping[str, t.Mapping[str, t.Any]]


class Part(t.NamedTuple):
    """What one runbook looks at."""

    runbook: str
    checks: list[Check]
    # Its wrong checks: id, title, why.
    bad: list[tuple[str, str, str]]
    causes: list[dict[str, t.Any]]


def light(part: Part) -> Part:
    """The part without what is heavy, nor what only makes sense beside it; ids begin with the runbook's name.

    Steps are the runbook's own: to propose them is for whoever runs it.
    """
    kept = [check for check in part.checks if not check["heavy"]]
    while True:
        names = {check["id"] for check in kept}
        rest = [
            check
            for check in kept
            if names.issuperset(check["needs"]) and (not check["explains"] or names & set(check["explains"]))
        ]
        if len(rest) == len(kept):
            break
        kept = rest
    return Part(
        part.runbook,
        [
            {
                **check,
                "id": f"{part.runbook}.{check['id']}",
                "needs": [f"{part.runbook}.{name}" for name in check["needs"]],
                "explains": [f"{part.runbook}.{name}" for name in check["explains"] if name in names],
                "unless": [f"{part.runbook}.{name}" for name in check["unless"] if name in names],
                "suggests": [],
                "withholds": [],
            }
            for check in kept
        ],
        [(f"{part.runbook}.{name}", title, why) for name, title, why in part.bad],
        [cause for cause in part.causes if names.issuperset(cause["breach"] + cause["ok"] + cause["fresh"])],
    )


def alike(checks: t.Sequence[Check]) -> dict[str, str]:
    """By each check's id the first check that looks at the same in the same way: only that one is carried out."""
    by_id = {check["id"]: check for check in checks}
    first: dict[str, str] = {}
    found: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in found:
            check = by_id[name]
            needs = sorted(of(other) for other in check["needs"] if other in by_id)
            key = json.dumps([check["sources"], check["thresholds"], check["min_samples"], needs, check["on_no_data"]])
            found[name] = first.setdefault(key, name)
        return found[name]

    return {name: of(name) for name in by_id}


def wanted(checks: t.Sequence[Check], same: t.Mapping[str, str]) -> list[Check]:
    """What is to be looked at once."""
    return [
        {**check, "needs": list(dict.fromkeys(same.get(name, name) for name in check["needs"]))}
        for check in checks
        if same[check["id"]] == check["id"]
    ]


def spread(checks: t.Sequence[Check], same: t.Mapping[str, str], looks: Looks) -> dict[str, dict[str, t.Any]]:
    """What was seen, for every check that looks at it; what was not met goes by the check's own names."""
    return {
        check["id"]: {
            **looks[same[check["id"]]],
            "unmet": [
                name for name in check["needs"] if same.get(name, name) in looks[same[check["id"]]].get("unmet", [])
            ],
        }
        for check in checks
    }


def rank(
    parts: t.Sequence[Part], findings: t.Sequence[diagnosing.Finding], same: t.Mapping[str, str]
) -> list[dict[str, t.Any]]:
    """The runbooks, the one to go on with first: the worst, and of those that are as bad the one that the breaches
    speak for. What many runbooks look at speaks for none of them.
    """
    shared = Counter(same.values())
    ranked: list[tuple[tuple[int, float, int], dict[str, t.Any]]] = []
    for place, part in enumerate(parts):
        prefix = f"{part.runbook}."
        own = [{**item, "id": item["id"][len(prefix) :]} for item in findings if str(item["id"]).startswith(prefix)]
        status, severity, label = diagnosing.overall(own)
        breaches = [prefix + item["id"] for item in own if item["status"] == "breach"]
        weight = sum(1 / shared[same[name]] for name in breaches)
        level = LEVELS.index(severity) if severity in LEVELS else len(LEVELS) + (status == "healthy")
        entry: dict[str, t.Any] = {
            "runbook": part.runbook,
            "status": status,
            "severity": severity,
            "label": label,
            "summary": diagnosing.summarise(own, part.causes),
            "breaches": breaches,
        }
        ranked.append(((level, -weight, place), entry))
    ranked.sort(key=lambda pair: pair[0])
    seen: list[tuple[str, set[str]]] = []
    for _key, entry in ranked:
        found = {same[name] for name in entry["breaches"]}
        # Whoever goes on with that one looks at all of it.
        entry["same_as"] = next((runbook for runbook, others in seen if found and found <= others), None)
        seen.append((entry["runbook"], found))
    return [entry for _key, entry in ranked]


def summarise(ranked: t.Sequence[t.Mapping[str, t.Any]], findings: t.Sequence[diagnosing.Finding]) -> str:
    """One sentence: the runbook to go on with, and what it says."""
    first = ranked[0]
    if first["breaches"]:
        return f"{first['runbook']}: {first['summary']}"
    said = diagnosing.summarise(findings, [])
    return f"No runbook's incident: {said}" if said.startswith("Nothing wrong") else said

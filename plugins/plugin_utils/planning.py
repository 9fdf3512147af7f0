# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From findings to steps, from steps to a plan with an id, and whether what was approved is what would be done.

Pure functions: data in, data out, no clock, no files.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import typing as t
from datetime import UTC, datetime

from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import LEVELS
from ansible_collections.oncall.runbooks.plugins.plugin_utils import everywhere

RISKS = ["safe", "disruptive", "destructive"]
# The variable that an approved plan hands its lists on with; a key of its file.
FROZEN = "runbook_frozen"
ID = re.compile(r"[0-9]{8}T[0-9]{4}Z-[0-9a-f]{12}")

Step = dict[str, t.Any]
Plan = dict[str, t.Any]
Finding = t.Mapping[str, t.Any]


def candidates(
    steps: t.Sequence[t.Mapping[str, t.Any]], findings: t.Sequence[Finding], asked: t.Sequence[str]
) -> list[tuple[t.Mapping[str, t.Any], list[str]]]:
    """The steps to propose, in the runbook's order, with the findings that ask for each; only `asked`, where given."""
    because: dict[str, list[str]] = {}
    for item in findings:
        if item["status"] == "breach":
            for name in item["suggests"]:
                because.setdefault(name, []).append(item["id"])
    for step in steps:
        # One step in place of several, where all of them would be proposed.
        parts = step["replaces"]
        if parts and all(name in because for name in parts):
            union = [item["id"] for item in findings if any(item["id"] in because[name] for name in parts)]
            because[step["id"]] = union
            for name in parts:
                del because[name]
    return [
        (step, because.get(step["id"], []))
        for step in steps
        if (step["id"] in asked if asked else step["id"] in because)
    ]


def unknown_steps(steps: t.Sequence[t.Mapping[str, t.Any]], asked: t.Sequence[str], runbook: str) -> str | None:
    """A sentence about a step that the runbook does not have, or None."""
    known = [step["id"] for step in steps]
    for name in asked:
        if name not in known:
            return f"{runbook} has no step {name!r} for runbook_steps; it has {', '.join(known) or 'none'}."
    return None


def step(
    host: str,
    role: str,
    data: t.Mapping[str, t.Any],
    operation: t.Mapping[str, t.Any],
    because: list[str],
    looks: t.Mapping[str, t.Mapping[str, t.Any]],
    targets: t.Mapping[str, t.Any],
) -> Step:
    """A step of a plan: the operation's preview filled in with what was seen. `targets` is what it would be done to."""
    seen, problems = {}, []
    for name, look in looks.items():
        seen[name], problem = told(look)
        own = name in operation["requires"] and name in operation["sources"]
        if problem and (own or name in operation["looks"]):
            problems.append(problem)
        if name in operation["requires"] and look.get("outcome") == "value" and look.get("value") is False:
            problems.append(f"{str(look.get('note') or f'{name} says no').rstrip('.')}.")
    by_hand = [
        line
        for name in operation["looks"]
        if operation["looks_by_hand"]
        for line in (looks.get(name, {}).get("evidence") or {}).get("by_hand") or []
    ]

    def fill(text: str) -> str:
        return string.Template(text).safe_substitute(seen).strip()

    commands = [fill(line) for line in operation["by_hand"]] + by_hand
    identity = operation["identity"] if operation["identity"] is not None else sorted(data["params"])
    irreversible = operation["irreversible"]
    lines = [fill(operation["preview"])]
    if irreversible:
        lines.append(f"It cannot be undone: {fill(irreversible)}")
    if commands:
        lines.append(f"The same by hand: {'; '.join(commands)}")
    return {
        "id": data["id"],
        "title": data["title"],
        "host": host,
        "risk": max(data.get("risk") or operation["risk"], operation["risk"], key=RISKS.index),
        "reversible": not irreversible,
        "because": because,
        "preview": "\n".join(lines),
        "by_hand": commands,
        "irreversible": fill(irreversible) or None,
        "undo": fill(operation["undo"]) or None,
        "role": role,
        "operation": data["operation"],
        "params": data["params"],
        "identity": {"params": {name: data["params"].get(name) for name in identity}, "targets": dict(targets)},
        "state_of": operation["state"],
        "problem": problems[0] if problems else None,
        "always": data["always"],
        "everywhere": data["everywhere"],
        "lists": data["lists"],
        "listed": [],
        "protected": [rule for look in looks.values() for rule in (look.get("evidence") or {}).get("protected") or []]
        if data["everywhere"]
        else [],
    }


def told(look: t.Mapping[str, t.Any]) -> tuple[str, str | None]:
    """What a look saw as text, and the sentence about what keeps the operation from working."""
    evidence = look.get("evidence") or {}
    note = str(look.get("note") or "").strip()
    if look.get("outcome") != "value":
        # What only root may see is no hindrance: the operation runs as root.
        return f"not seen ({note.rstrip('.')})", None if look.get("kind") == "permission" else note
    return str(evidence.get("text") or judge.show(look.get("value"))), evidence.get("problem")


def fingerprint(runbook: str, steps: t.Sequence[Step]) -> str:
    """Twelve hexadecimal digits over what would be done, and nothing that flickers."""
    hosts: dict[str, list[t.Any]] = {}
    for item in steps:
        hosts.setdefault(item["host"], []).append([item["role"], item["operation"], item["identity"]])
    content = json.dumps({"runbook": runbook, "hosts": hosts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def make(
    runbook: str, steps: t.Sequence[Step], now: float, asked: t.Sequence[str] = (), file: str | None = None
) -> Plan | None:
    """The plan of a run; None when there is nothing to do. Steps that were asked for have to be asked for again, and
    what a step lists is repeated from the plan's `file`.
    """
    if not steps:
        return None
    at = datetime.fromtimestamp(now, UTC)
    plan_id = f"{at.strftime('%Y%m%dT%H%MZ')}-{fingerprint(runbook, steps)}"
    lists = everywhere.frozen_lists(steps)
    return {
        "id": plan_id,
        "runbook": runbook,
        "created_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "hosts": list(dict.fromkeys(item["host"] for item in steps)),
        "apply_with": {
            "runbook_plan": plan_id,
            **({"runbook_steps": ",".join(asked)} if asked else {}),
            **({FROZEN: lists} if lists else {}),
        },
        "steps": list(steps),
        **({FROZEN: lists, "file": file} if lists else {}),
    }


def apply_options(plan: t.Mapping[str, t.Any]) -> list[str]:
    """What the command line says to apply it."""
    values = [f"{name}={value}" for name, value in plan["apply_with"].items() if name != FROZEN]
    file = [f"@{plan['file']}"] if plan.get("file") else []
    return [word for value in [*values, *file] for word in ("-e", value)]


def of_host(plan: Plan | None, host: str) -> Plan | None:
    """The part of the plan that concerns a host, under the same id."""
    if plan is None or host not in plan["hosts"]:
        return None
    return {**plan, "steps": [item for item in plan["steps"] if item["host"] == host]}


def risk(steps: t.Sequence[Step]) -> str:
    """The highest risk of them."""
    return RISKS[max((RISKS.index(item["risk"]) for item in steps), default=0)]


def age(plan_id: str, now: float) -> float | None:
    """The seconds since a plan was made, by its id; None for what is no plan's id."""
    try:
        made = datetime.strptime(plan_id[:14], "%Y%m%dT%H%MZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return now - made.timestamp() if ID.fullmatch(plan_id) else None


def differences(approved: Plan | None, current: Plan | None) -> str:
    """How the plan that would be applied now differs from the one that was approved, as far as that one is known."""
    if approved is None:
        return ""
    before = {_key(item): item for item in approved["steps"]}
    after = {_key(item): item for item in (current or {"steps": []})["steps"]}
    parts = []
    gone = [item for name, item in before.items() if name not in after]
    new = [item for name, item in after.items() if name not in before]
    if gone:
        parts.append("no longer proposed: " + ", ".join(_named(item) for item in gone))
    if new:
        parts.append("new: " + ", ".join(_named(item) for item in new))
    if not parts:
        parts.append("the same steps in another order")
    return "; ".join(parts)


def _key(item: Step) -> str:
    return json.dumps([item["host"], item["role"], item["operation"], item["identity"]], sort_keys=True)


def _named(item: Step) -> str:
    return f"{item['title']} on {item['host']}"


def approve(
    plan: Plan | None,
    whole: Plan | None,
    given: str | None,
    max_risk: str | None,
    ttl: float,
    now: float,
    stored: Plan | None,
    remainder: bool,
) -> tuple[str, str]:
    """Whether a plan may be applied: approved, ask, nothing or refused; and why. `whole` is it before narrowing."""
    old = None if given is None else age(given, now)
    if given is not None and old is None:
        return "refused", (
            f"runbook_plan={given!r} is no plan's id; copy it from a diagnosis, such as 20261124T0300Z-0123456789ab."
        )
    if plan is None:
        return "nothing", "Nothing left to do: no check proposes a step."
    problems = [f"{_named(item)} cannot be applied: {item['problem']}" for item in plan["steps"] if item["problem"]]
    if problems:
        return "refused", f"Nothing was changed. {problems[0]}"
    print_it = f"The plan now is {plan['id']}"
    if old is not None and given is not None:
        if remainder:
            return "approved", f"the remainder of the interrupted run of plan {given}"
        if whole and given[15:] == whole["id"][15:]:
            # What was approved may be done in part.
            known = [(item["host"], item["id"]) for item in whole["steps"]]
            extra = [item for item in plan["steps"] if (item["host"], item["id"]) not in known]
            if extra:
                return "refused", (
                    f"Nothing was changed: the plan {given} does not have the step {extra[0]['id']} on "
                    f"{extra[0]['host']}. {print_it}."
                )
        elif given[15:] != plan["id"][15:]:
            if stored and stored["runbook"] != plan["runbook"]:
                why = f"it is a plan of {stored['runbook']}"
            elif (
                stored and set(stored["hosts"]) != set(plan["hosts"]) and not set(stored["hosts"]) & set(plan["hosts"])
            ):
                why = f"it is a plan for {', '.join(stored['hosts'])}"
            elif stored:
                why = f"the state moved on ({differences(stored, plan)})"
            else:
                why = "it is of another host or runbook, or the state moved on"
            return "refused", f"Nothing was changed: the plan {given} is not what would be done now: {why}. {print_it}."
        if old > ttl:
            return "refused", (
                f"Nothing was changed: the plan {given} is {judge.show(old, 's')} old, and runbook_plan_ttl is "
                f"{judge.show(ttl, 's')}. {print_it}."
            )
        if old < -90:
            return "refused", f"Nothing was changed: the plan {given} is from the future; compare the clocks."
        return "approved", f"plan {given}"
    highest = risk(plan["steps"])
    if max_risk is None:
        return "ask", print_it
    if max_risk not in RISKS[:2]:
        return (
            "refused",
            f"Nothing was changed: runbook_max_risk is {max_risk!r}; it is safe or disruptive, and never destructive.",
        )
    if RISKS.index(highest) > RISKS.index(max_risk):
        worst = next(item for item in plan["steps"] if item["risk"] == highest)
        return "refused", (
            f"Nothing was changed: {_named(worst)} is {highest}, and runbook_max_risk is {max_risk}. {print_it}; "
            "pass its id as runbook_plan when it is what you want."
        )
    return "approved", f"runbook_max_risk={max_risk}"


# After a step.


def brief(findings: t.Sequence[Finding]) -> list[dict[str, t.Any]]:
    """The findings as a record keeps them."""
    keys = ("id", "title", "status", "severity", "label", "observed", "unit", "expected")
    return [{key: item[key] for key in keys} for item in findings if item["status"] != "skipped"]


def _rank(item: Finding) -> int:
    return LEVELS.index(item["severity"]) if item["severity"] in LEVELS else len(LEVELS)


def outcome(before: Finding | None, after: Finding | None) -> str:
    """What became of a finding: fixed, improved, unchanged or worse. What is not known now is not fixed."""
    if after is None or after["status"] in ("unknown", "skipped"):
        return "unchanged"
    if after["status"] == "ok":
        return "fixed"
    if before is None or before["status"] != "breach":
        return "worse"
    if _rank(after) != _rank(before):
        return "improved" if _rank(after) > _rank(before) else "worse"
    was, now = judge.number(before["observed"]), judge.number(after["observed"])
    if was is None or now is None or not isinstance(after["observed"], (int, float)):
        return "unchanged"
    if str(after.get("expected")).startswith("at least"):
        was, now = now, was
    # Measurements flicker: by a third is a change.
    if abs(now) < 0.67 * abs(was):
        return "improved"
    return "worse" if abs(now) > 1.5 * abs(was) else "unchanged"


def verification(before: t.Sequence[Finding], after: t.Sequence[Finding], names: t.Sequence[str]) -> dict[str, str]:
    """The outcome of each of these findings, and of what has become critical since."""
    then = {item["id"]: item for item in before}
    now = {item["id"]: item for item in after}
    outcomes = {name: outcome(then.get(name), now.get(name)) for name in names}
    for name, item in now.items():
        if (
            name not in outcomes
            and item["status"] == "breach"
            and item["severity"] == "critical"
            and (then.get(name, {}).get("status"), then.get(name, {}).get("severity")) != ("breach", "critical")
        ):
            outcomes[name] = "worse"
    return outcomes


def helped(outcomes: t.Mapping[str, str]) -> bool:
    """Whether a verification passes."""
    return all(value in ("fixed", "improved") for value in outcomes.values())

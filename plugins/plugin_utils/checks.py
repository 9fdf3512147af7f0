# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check may say, and what is wrong with one that says something else. Nothing here connects to anything."""

from __future__ import annotations

import difflib
import json
import re
import string
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import without_credentials
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.plugins.plugin_utils.planning import RISKS

Check = dict[str, t.Any]

SOURCE_SPEC: dict[str, t.Any] = {
    "probe": {"type": "str", "required": True},
    "when": {"type": "bool", "default": True},
    "scale": {"type": "float", "default": 1.0},
    "note": {"type": "str"},
    "lifetime": {"type": "bool", "default": False},
    "missing": {"type": "str"},
}
THRESHOLD_SPEC: dict[str, t.Any] = {
    "above": {"type": "float"},
    "below": {"type": "float"},
    "equals": {"type": "raw"},
    "matches": {"type": "str"},
    "label": {"type": "str", "required": True},
    "for_seconds": {"type": "float"},
}
CHECK_SPEC: dict[str, t.Any] = {
    "id": {"type": "str", "required": True},
    "title": {"type": "str", "required": True},
    "sources": {"type": "list", "elements": "dict", "required": True},
    "thresholds": {"type": "list", "elements": "dict", "required": True},
    "min_samples": {"type": "int", "default": 0},
    "unit": {"type": "str"},
    "expected": {"type": "str"},
    "on_no_data": {"type": "str", "choices": ["unknown", "breach", "skipped"], "default": "unknown"},
    "needs": {"type": "list", "elements": "str", "default": []},
    "explains": {"type": "list", "elements": "str", "default": []},
    "unless": {"type": "list", "elements": "str", "default": []},
    "track": {"type": "list", "elements": "str", "default": []},
    "heavy": {"type": "bool", "default": False},
    "suggests": {"type": "list", "elements": "str", "default": []},
    "withholds": {"type": "list", "elements": "str", "default": []},
    "next_step": {"type": "str", "default": ""},
    "reproduce": {"type": "str", "default": ""},
}
CAUSE_SPEC: dict[str, t.Any] = {
    "id": {"type": "str"},
    "breach": {"type": "list", "elements": "str", "required": True},
    "ok": {"type": "list", "elements": "str", "default": []},
    "fresh": {"type": "list", "elements": "str", "default": []},
    "summary": {"type": "str", "required": True},
}
STEP_SPEC: dict[str, t.Any] = {
    "id": {"type": "str", "required": True},
    "title": {"type": "str", "required": True},
    "operation": {"type": "str", "required": True},
    "params": {"type": "dict", "default": {}},
    "replaces": {"type": "list", "elements": "str", "default": []},
    # Carried out also where an earlier step has fixed its findings: what is not a ladder.
    "always": {"type": "bool", "default": False},
    # Carried out on all hosts of the run at once, with what any of them has found: a parameter of the operation, and
    # the checks whose findings list its values.
    "everywhere": {"type": "bool", "default": False},
    "lists": {"type": "dict", "default": {}},
    # Higher than the operation's own, where these parameters make it so.
    "risk": {"type": "str", "choices": RISKS},
}
ESCALATION_SPEC: dict[str, t.Any] = {
    "respond_within": {"type": "int", "required": True},
    "path": {"type": "list", "elements": "str", "required": True},
    "page": {"type": "bool", "default": False},
}
OPERATION_SPEC: dict[str, t.Any] = {
    "risk": {"type": "str", "choices": RISKS, "required": True},
    "preview": {"type": "str", "required": True},
    "irreversible": {"type": "str", "default": ""},
    # What undoing it does, where that is more than putting back what `state` names.
    "undo": {"type": "str", "default": ""},
    "by_hand": {"type": "list", "elements": "str", "default": []},
    # Whether what has been looked at says how it is done by hand.
    "looks_by_hand": {"type": "bool", "default": True},
    "looks": {"type": "list", "elements": "str", "default": []},
    # Looks of the service that must not say no, and sources of its own without which it cannot be done.
    "requires": {"type": "list", "elements": "str", "default": []},
    "sources": {"type": "dict", "default": {}},
    "state": {"type": "list", "elements": "str", "default": []},
    "identity": {"type": "list", "elements": "str"},
}


# What stands in a check whose templates could not be evaluated, with the reason.
BROKEN = "__broken"


class Wrong(ValueError):
    """A check, a source or a cause says something that it cannot; the message is one sentence."""


def plain(data: t.Any) -> t.Any:
    """The data without Ansible's tags on every value, which make copying it, as validation does, many times slower."""
    return json.loads(json.dumps(data, default=str))


def options(arguments: t.Any, spec: dict[str, t.Any]) -> dict[str, t.Any]:
    """A task's arguments with types and defaults, or Wrong."""
    result = ArgumentSpecValidator(spec).validate(plain(arguments))
    if result.error_messages:
        raise Wrong(result.error_messages[0])
    return t.cast("dict[str, t.Any]", result.validated_parameters)


def _validated(data: t.Any, spec: dict[str, t.Any], what: str, **rules: t.Any) -> dict[str, t.Any]:
    if not isinstance(data, t.Mapping):
        raise Wrong(f"{what} is {type(data).__name__}, not a mapping of keys to values")
    strange = [str(key) for key in data if key not in spec]
    if strange:
        near = difflib.get_close_matches(strange[0], spec, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(spec))}"
        raise Wrong(f"{what} has the unknown key {strange[0]!r}; {hint}")
    result = ArgumentSpecValidator(spec, **rules).validate(
        {key: value for key, value in data.items() if value is not None}
    )
    if result.error_messages:
        raise Wrong(f"{what}: {result.error_messages[0]}")
    return t.cast("dict[str, t.Any]", result.validated_parameters)


def _source(data: t.Any, place: int, others: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    what = f"source {place}"
    if isinstance(data, t.Mapping) and "like" in data:
        sources = others.get(str(data["like"]), {}).get("sources")
        first = sources[0] if isinstance(sources, list) and sources else None
        if not isinstance(first, t.Mapping) or "like" in first:
            raise Wrong(f"{what} is like {data['like']!r}, which is no check with a source of its own")
        data = {**first, **{key: value for key, value in data.items() if key != "like"}}
    if not isinstance(data, t.Mapping) or "probe" not in data:
        raise Wrong(f"{what} names no probe; there are {', '.join(sorted(PROBES))}")
    probe = PROBES.get(str(data["probe"]))
    if probe is None:
        raise Wrong(f"{what} names the unknown probe {data['probe']!r}; there are {', '.join(sorted(PROBES))}")
    what = f"{what} ({data['probe']})"
    if str(data.get("when", True)).lower() in ("false", "no", "off", "n", "f", "0"):
        # What is not there need not be complete: its address may be an empty variable.
        return {"probe": data["probe"], "when": False, "scale": 1.0, "note": data.get("note")}
    source = _validated(data, {**SOURCE_SPEC, **probe.SPEC}, what, **probe.RULES)
    try:
        probe.validate(source)
    except ValueError as error:
        raise Wrong(f"{what}: {error}") from None
    return source


def validate_check(data: t.Any, severities: t.Mapping[str, str], others: t.Mapping[str, t.Any] | None = None) -> Check:
    """The check with types and defaults, or Wrong."""
    if isinstance(data, t.Mapping) and BROKEN in data:
        raise Wrong(str(data[BROKEN]))
    check = _validated(data, CHECK_SPEC, "the check")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", check["id"]):
        raise Wrong(f"the id {check['id']!r} is not snake_case")
    if not check["sources"]:
        raise Wrong("it has no source, so it can never answer")
    check["sources"] = [_source(source, place, others or {}) for place, source in enumerate(check["sources"], 1)]
    # The same look by hand is made of the first source that is used: $url, $address, $path.
    used: dict[str, t.Any] = next((source for source in check["sources"] if source["when"]), {})
    check["reproduce"] = string.Template(check["reproduce"]).safe_substitute(
        {key: without_credentials(str(value)) for key, value in used.items() if value is not None}
    )
    check["thresholds"] = [
        _validated(item, THRESHOLD_SPEC, f"threshold {place}") for place, item in enumerate(check["thresholds"], 1)
    ]
    if not check["thresholds"]:
        raise Wrong("it has no threshold, so it could never fail")
    useless = judge.useless_threshold(check["thresholds"])
    if useless:
        raise Wrong(useless)
    for threshold in check["thresholds"]:
        if threshold["label"] not in severities:
            raise Wrong(f"the label {threshold['label']!r} is none of this service's: {', '.join(severities)}")
    return check


def validate_checks(data: t.Any, severities: t.Mapping[str, str]) -> tuple[list[Check], list[tuple[str, str, str]]]:
    """The usable checks, and for each of the others its id, its title and what is wrong with it."""
    others = {str(item.get("id")): item for item in data if isinstance(item, t.Mapping)}
    good: list[Check] = []
    bad: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for place, item in enumerate(data, 1):
        name = str(item.get("id") or f"check_{place}") if isinstance(item, t.Mapping) else f"check_{place}"
        title = str(item.get("title") or name) if isinstance(item, t.Mapping) else name
        try:
            if name in seen:
                raise Wrong("another check has the same id")
            seen.add(name)
            good.append(validate_check(item, severities, others))
        except Wrong as error:
            bad.append((name, title, f"The check {name} is wrong: {error}."))
    return _related(good, bad)


def _related(good: list[Check], bad: list[tuple[str, str, str]]) -> tuple[list[Check], list[tuple[str, str, str]]]:
    """Take out checks that name others which are none, whose needs go round in a circle or cannot be judged in time."""
    known = {check["id"]: check for check in good}
    broken = {name for name, _title, _why in bad}
    kept = []
    for check in good:
        why = None
        for key in ("needs", "explains", "unless"):
            for other in check[key]:
                if other not in known and other not in broken:
                    why = f"{key} names {other!r}, which is no check of this runbook"
        for other in check["needs"]:
            if any("jmespath" in source and source["jmespath"] for source in known.get(other, {}).get("sources", [])):
                why = f"needs names {other!r}, which is judged by JMESPath on the controller, after all probes have run"
        if why is None and _circular(check["id"], known):
            why = "its needs lead back to itself"
        if why:
            bad.append((check["id"], check["title"], f"The check {check['id']} is wrong: {why}."))
        else:
            kept.append(check)
    return kept, bad


def _circular(start: str, known: t.Mapping[str, Check]) -> bool:
    todo, seen = list(known[start]["needs"]), set()
    while todo:
        name = todo.pop()
        if name == start:
            return True
        if name in seen or name not in known:
            continue
        seen.add(name)
        todo.extend(known[name]["needs"])
    return False


def used(items: t.Sequence[t.Any], shared: t.Sequence[t.Any], what: str) -> list[t.Any]:
    """The items, those with `use` filled in from the service's own of that id; what stands beside it goes before."""
    known = {str(item.get("id")): item for item in shared if isinstance(item, t.Mapping)}
    found: list[t.Any] = []
    for item in items:
        if not isinstance(item, t.Mapping) or "use" not in item:
            found.append(item)
            continue
        name = str(item["use"])
        if name in known:
            taken = {**known[name], **{key: value for key, value in item.items() if key != "use"}}
            if isinstance(taken.get("sources"), (list, tuple)):
                taken["sources"] = [_spelled_out(source, known) for source in taken["sources"]]
            found.append(taken)
        else:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            found.append({"id": name, BROKEN: f"use names {name!r}, which is no {what} of the service; {hint}"})
    return found


def _spelled_out(source: t.Any, known: t.Mapping[str, t.Any]) -> t.Any:
    """A source that is like that of another of the service's checks, which the runbook need not have."""
    passed: set[str] = set()
    while isinstance(source, t.Mapping) and source.get("like") in known and source["like"] not in passed:
        sources = known[source["like"]].get("sources")
        if not isinstance(sources, (list, tuple)) or not sources or not isinstance(sources[0], t.Mapping):
            break
        passed.add(str(source["like"]))
        source = {**sources[0], **{key: value for key, value in source.items() if key != "like"}}
    return source


def source_of(data: t.Any) -> dict[str, t.Any]:
    """A look of an operation, as a source of a check."""
    return _source(data, 1, {})


def validate_steps(data: t.Sequence[t.Any], operations: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """The steps with types and defaults, or Wrong."""
    steps: list[dict[str, t.Any]] = []
    for place, item in enumerate(data, 1):
        if isinstance(item, t.Mapping) and BROKEN in item:
            raise Wrong(f"step {place}: {item[BROKEN]}")
        step = _validated(item, STEP_SPEC, f"step {place}")
        if step["operation"] not in operations:
            raise Wrong(f"step {step['id']} names {step['operation']!r}, which is no operation of the service")
        if bool(step["lists"]) != step["everywhere"]:
            raise Wrong(f"step {step['id']} has one of everywhere and lists, and each needs the other")
        if any(step["id"] == other["id"] for other in steps):
            raise Wrong(f"two steps have the id {step['id']!r}")
        steps.append(step)
    known = [step["id"] for step in steps]
    for step in steps:
        for name in step["replaces"]:
            if name not in known:
                raise Wrong(f"step {step['id']} replaces {name!r}, which is no step of this runbook")
    return steps


def validate_operation(name: str, data: t.Any) -> dict[str, t.Any]:
    """The operation with types and defaults, or Wrong."""
    if isinstance(data, t.Mapping) and BROKEN in data:
        raise Wrong(f"the operation {name}: {data[BROKEN]}")
    return _validated(data, OPERATION_SPEC, f"the operation {name}")


def validate_escalation(data: t.Any, severities: t.Mapping[str, str]) -> dict[str, dict[str, t.Any]]:
    """What each label asks of people, with types and defaults, or Wrong."""
    if not isinstance(data, t.Mapping):
        raise Wrong(f"it is {type(data).__name__}, not a mapping of labels")
    table = {}
    for label, item in data.items():
        if label not in severities:
            raise Wrong(f"the label {label!r} is none of this service's: {', '.join(severities)}")
        entry = _validated(item, ESCALATION_SPEC, str(label))
        if entry["respond_within"] <= 0:
            raise Wrong(f"{label} is to be responded to within {entry['respond_within']} s; it is a number above 0")
        if not entry["path"]:
            raise Wrong(f"{label} has an empty path, so nobody would be told")
        table[str(label)] = entry
    return table


def validate_contacts(data: t.Any) -> dict[str, str]:
    """Where people are found, without what is empty, or Wrong."""
    if not isinstance(data, t.Mapping):
        raise Wrong(f"it is {type(data).__name__}, not a mapping of names to texts")
    return {str(name): str(text) for name, text in data.items() if text}


def validate_causes(data: t.Any, names: t.Container[str]) -> list[dict[str, t.Any]]:
    """The causes with types and defaults, or Wrong."""
    causes = []
    for place, item in enumerate(data or [], 1):
        cause = _validated(item, CAUSE_SPEC, f"cause {place}")
        for other in cause["breach"] + cause["ok"] + cause["fresh"]:
            if other not in names:
                raise Wrong(f"cause {place} names {other!r}, which is no check of this runbook")
        if not cause["breach"]:
            raise Wrong(f"cause {place} names no check under breach, so it would always fit")
        causes.append(cause)
    return causes

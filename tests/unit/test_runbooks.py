# SPDX-License-Identifier: GPL-3.0-or-later
"""The real runbooks: what checks, causes and steps say of one another is true. Templates need no values for that."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.plugins.plugin_utils.checks import (
    BROKEN,
    CAUSE_SPEC,
    CHECK_SPEC,
    OPERATION_SPEC,
    SOURCE_SPEC,
    STEP_SPEC,
    THRESHOLD_SPEC,
    used,
    validate_contacts,
    validate_escalation,
)

ROLES = Path(__file__).resolve().parents[2] / "roles"
RUNBOOKS = [path for path in sorted(ROLES.glob("*/vars/*.yml")) if f"{path.parts[-3]}_causes:" in path.read_text()]
# Services' own data is in main.yml.
FILES = [path for path in RUNBOOKS if path.stem != "main"]
# They have no steps, and say so to who wants to remediate.
ONLY_DIAGNOSE = ("health_check",)


@functools.cache
def _parsed(path: Path):
    return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe


def parsed(path: Path):
    """A file's data; each is read by nearly every test."""
    return copy.deepcopy(_parsed(path))


def service_data(service: str):
    """What runbooks share of a service: vars/main.yml, or the files of vars/main."""
    found = ROLES / service / "vars"
    files = sorted(found.glob("main/*.yml")) or [found / "main.yml"]
    return {name: value for file in files for name, value in parsed(file).items()}


def load(path: Path):
    """The checks, causes and steps, with what they take from the service, and what a source is like in its place."""
    data = parsed(path)
    service = service_data(path.stem)
    engine = parsed(ROLES / "runbook/vars/main.yml")
    runbook = path.parts[-3]
    parts = [
        copy.deepcopy(
            used(data[f"{runbook}_{kind}"], service[f"{path.stem}_{kind}"] + engine.get(f"__runbook_{kind}", []), kind)
        )
        for kind in ("checks", "causes", "steps")
    ]
    checks, causes, steps = parts
    for item in checks + causes + steps:
        assert BROKEN not in item, item
    first = {check["id"]: check["sources"][0] for check in checks}
    for check in checks:
        check["sources"] = [
            {**first[source["like"]], **{key: value for key, value in source.items() if key != "like"}}
            if "like" in source
            else source
            for source in check["sources"]
        ]
    return checks, causes, steps


def operations(path: Path):
    engine = parsed(ROLES / "runbook/vars/main.yml")["__runbook_operations"]
    return {
        **engine,
        **service_data(path.stem)[f"{path.stem}_operations"],
    }


def test_there_are_runbooks():
    assert len(FILES) >= 5


@pytest.mark.parametrize("service", sorted({path.stem for path in FILES}))
def test_every_label_of_a_service_says_who_responds(service):
    data = service_data(service)
    defaults = parsed(ROLES / service / "defaults/main.yml")
    severities = defaults[f"{service}_severities"]
    table = validate_escalation(data[f"{service}_escalation"], severities)
    assert list(table) == list(severities)
    # What is worse is responded to sooner, and whom to page is the worst only.
    times = [entry["respond_within"] for entry in table.values()]
    assert times == sorted(set(times))
    assert [severities[label] for label, entry in table.items() if entry["page"]] == ["critical"]
    contacts = validate_contacts(defaults[f"{service}_contacts"])
    assert contacts
    # Schedules, channels and pages; no person of whom nobody knows whether they are still there.
    assert not any("@" in text for text in contacts.values())


def test_a_service_has_nothing_that_no_runbook_takes():
    for service in {path.stem for path in FILES}:
        data = service_data(service)
        for kind in ("checks", "causes", "steps"):
            shared = {item["id"] for item in data[f"{service}_{kind}"]}
            taken = {
                item["id"]
                for path in FILES
                if path.stem == service
                for item in load(path)[("checks", "causes", "steps").index(kind)]
                if "id" in item
            }
            assert sorted(shared - taken) == [], kind


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
class TestRunbook:
    def test_ids_are_unique(self, path):
        checks, _causes, _steps = load(path)
        names = [check["id"] for check in checks]
        assert len(names) == len(set(names)) > 5

    @pytest.mark.parametrize("key", ["needs", "explains", "unless"])
    def test_checks_name_checks(self, path, key):
        checks, _causes, _steps = load(path)
        names = {check["id"] for check in checks}
        for check in checks:
            assert set(check.get(key, [])) <= names - {check["id"]}, check["id"]

    def test_causes_name_checks(self, path):
        checks, causes, _steps = load(path)
        names = {check["id"] for check in checks}
        for cause in causes:
            assert cause["breach"], cause
            for key in ("breach", "ok", "fresh"):
                assert set(cause.get(key, [])) <= names, cause
            assert set(re.findall(r"\$\{?(\w+)", cause["summary"])) <= names, cause

    def test_its_line_names_checks(self, path):
        checks, _causes, _steps = load(path)
        line = parsed(path).get(f"{path.parts[-3]}_line")
        named = re.findall(r"\$\{?(\w+)", line or "")
        assert set(named) <= {check["id"] for check in checks}
        assert line is None or named

    def test_no_cause_is_hidden_by_one_before_it(self, path):
        """A cause that asks for no more than an earlier one is never reached."""
        _checks, causes, _steps = load(path)

        def asks(cause):
            return {(key, name) for key in ("breach", "ok", "fresh") for name in cause.get(key, [])}

        for place, cause in enumerate(causes):
            for earlier in causes[:place]:
                assert not asks(earlier) <= asks(cause), (earlier["summary"], cause["summary"])

    def test_needs_are_judged_where_the_probes_run(self, path):
        checks, _causes, _steps = load(path)
        by_jmespath = {check["id"] for check in checks if any("jmespath" in source for source in check["sources"])}
        assert not by_jmespath & {name for check in checks for name in check.get("needs", [])}

    def test_keys_are_known(self, path):
        checks, causes, _steps = load(path)
        for check in checks:
            assert set(check) <= set(CHECK_SPEC), check["id"]
            for source in check["sources"]:
                assert set(source) <= {*SOURCE_SPEC, *PROBES[source["probe"]].SPEC}, check["id"]
            for threshold in check["thresholds"]:
                assert set(threshold) <= set(THRESHOLD_SPEC), check["id"]
        for cause in causes:
            assert set(cause) <= set(CAUSE_SPEC)

    def test_every_check_says_what_to_do(self, path):
        checks, _causes, _steps = load(path)
        assert [check["id"] for check in checks if not check.get("next_step")] == []

    def test_what_counts_towards_the_breaker_is_asked_only_when_both_instances_answer(self, path):
        checks, _causes, _steps = load(path)
        for check in checks:
            for source in check["sources"]:
                if re.search(r"vritti_url }}/health(/readiness)?$", str(source.get("url", ""))):
                    assert {"kyrodb_text_answers", "kyrodb_image_answers"} <= set(check.get("needs", [])), check["id"]

    def test_variables_are_documented(self, path):
        """Every variable of the runbook that the checks use is a default of the role, and in its argument specs."""
        role = path.parents[1]
        file = role / "defaults/main.yml"
        defaults = set(parsed(file)) if file.exists() else set()
        spec = (role / "meta/argument_specs.yml").read_text()
        runbook = role.name
        # Any of its services may want it.
        text = "".join(other.read_text() for other in FILES if other.parent == path.parent)
        mentioned = set(re.findall(rf"\b({runbook}_\w+)", text))
        mentioned -= {f"{runbook}_{kind}" for kind in ("checks", "causes", "steps", "line", "reference")}
        assert mentioned <= defaults
        assert sorted(defaults - mentioned) == [], "nothing reads these"
        assert [name for name in sorted(defaults) if name not in spec] == []

    def test_steps_are_operations_that_can_be_carried_out(self, path):
        _checks, _causes, steps = load(path)
        known = operations(path)
        own = service_data(path.stem)[f"{path.stem}_operations"]
        assert steps or path.parts[-3] in ONLY_DIAGNOSE
        for step in steps:
            assert set(step) <= set(STEP_SPEC), step["id"]
            operation = known[step["operation"]]
            assert set(operation) <= set(OPERATION_SPEC), step["operation"]
            # What is no service's own is the engine's.
            role = ROLES / (path.stem if step["operation"] in own else "runbook")
            specs = parsed(role / "meta/argument_specs.yml")["argument_specs"]
            entries = [step["operation"]]
            # Whatever does not say why it cannot be undone has to have a way.
            if not operation.get("irreversible"):
                entries.append(f"rollback_{step['operation']}")
            for entry in entries:
                assert (role / f"tasks/{entry}.yml").exists(), entry
                options = specs[entry]["options"]["runbook_operation"]["options" if step.get("params") else "default"]
                assert set(step.get("params", {})) == set(options), entry

    def test_checks_suggest_steps(self, path):
        checks, _causes, steps = load(path)
        service = {step["id"] for step in service_data(path.stem)[f"{path.stem}_steps"]}
        names = {step["id"] for step in steps}
        own = {check["id"] for check in parsed(path)[f"{path.parts[-3]}_checks"] if "id" in check}
        if path.parts[-3] in ONLY_DIAGNOSE:
            # What it proposes would be nothing that it can do.
            assert not steps
            assert [check["id"] for check in checks if check.get("suggests")] == []
            return
        assert any(set(check.get("suggests", [])) & names for check in checks)
        for check in checks:
            assert set(check.get("suggests", [])) <= (names if check["id"] in own else names | service), check["id"]
        for step in steps:
            assert set(step.get("replaces", [])) <= names, step["id"]

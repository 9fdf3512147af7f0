# SPDX-License-Identifier: GPL-3.0-or-later
"""The real checks of high_latency: what they say of one another is true. Templates need not be resolved for that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.plugins.plugin_utils.checks import (
    CAUSE_SPEC,
    CHECK_SPEC,
    SOURCE_SPEC,
    THRESHOLD_SPEC,
)

ROLES = Path(__file__).resolve().parents[2] / "roles"
FILES = sorted(path for path in ROLES.glob("*/vars/*.yml") if f"{path.parts[-3]}_checks" in path.read_text())


def load(path: Path):
    """The checks and causes, with what a source is like put in its place."""
    data = yaml.safe_load(path.read_text())
    runbook = path.parts[-3]
    checks = data[f"{runbook}_checks"]
    first = {check["id"]: check["sources"][0] for check in checks}
    for check in checks:
        check["sources"] = [
            {**first[source["like"]], **{key: value for key, value in source.items() if key != "like"}}
            if "like" in source
            else source
            for source in check["sources"]
        ]
    return checks, data[f"{runbook}_causes"]


def test_there_are_checks():
    assert ROLES / "high_latency/vars/vritti.yml" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
class TestRunbook:
    def test_ids_are_unique(self, path):
        checks, _causes = load(path)
        names = [check["id"] for check in checks]
        assert len(names) == len(set(names)) > 10

    @pytest.mark.parametrize("key", ["needs", "explains"])
    def test_checks_name_checks(self, path, key):
        checks, _causes = load(path)
        names = {check["id"] for check in checks}
        assert any(check.get(key) for check in checks)
        for check in checks:
            assert set(check.get(key, [])) <= names - {check["id"]}, check["id"]

    def test_causes_name_checks(self, path):
        checks, causes = load(path)
        names = {check["id"] for check in checks}
        for cause in causes:
            assert cause["breach"], cause
            for key in ("breach", "ok", "fresh"):
                assert set(cause.get(key, [])) <= names, cause
            assert set(re.findall(r"\$\{?(\w+)", cause["summary"])) <= names, cause

    def test_no_cause_is_hidden_by_one_before_it(self, path):
        """A cause that asks for no more than an earlier one is never reached."""
        _checks, causes = load(path)

        def asks(cause):
            return {(key, name) for key in ("breach", "ok", "fresh") for name in cause.get(key, [])}

        for place, cause in enumerate(causes):
            for earlier in causes[:place]:
                assert not asks(earlier) <= asks(cause), (earlier["summary"], cause["summary"])

    def test_needs_are_judged_where_the_probes_run(self, path):
        checks, _causes = load(path)
        by_jmespath = {check["id"] for check in checks if any("jmespath" in source for source in check["sources"])}
        assert not by_jmespath & {name for check in checks for name in check.get("needs", [])}

    def test_keys_are_known(self, path):
        checks, causes = load(path)
        for check in checks:
            assert set(check) <= set(CHECK_SPEC), check["id"]
            for source in check["sources"]:
                assert set(source) <= {*SOURCE_SPEC, *PROBES[source["probe"]].SPEC}, check["id"]
            for threshold in check["thresholds"]:
                assert set(threshold) <= set(THRESHOLD_SPEC), check["id"]
        for cause in causes:
            assert set(cause) <= set(CAUSE_SPEC)

    def test_every_check_says_what_to_do(self, path):
        checks, _causes = load(path)
        assert [check["id"] for check in checks if not check.get("next_step")] == []

    def test_what_counts_towards_the_breaker_is_asked_only_when_both_instances_answer(self, path):
        checks, _causes = load(path)
        for check in checks:
            for source in check["sources"]:
                if re.search(r"/health(/readiness)?$", str(source.get("url", ""))):
                    assert {"kyrodb_text_answers", "kyrodb_image_answers"} <= set(check.get("needs", [])), check["id"]

    def test_variables_are_documented(self, path):
        """Every variable of the runbook that the checks use is a default of the role, and in its argument specs."""
        role = path.parents[1]
        defaults = set(yaml.safe_load((role / "defaults/main.yml").read_text()))
        spec = (role / "meta/argument_specs.yml").read_text()
        runbook = role.name
        used = set(re.findall(rf"\b({runbook}_\w+)", path.read_text())) - {f"{runbook}_checks", f"{runbook}_causes"}
        assert used
        assert used <= defaults
        assert [name for name in sorted(defaults) if name not in spec] == []

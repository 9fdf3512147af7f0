# SPDX-License-Identifier: GPL-3.0-or-later
"""Triage: many runbooks' checks as one diagnosis, each look once, and which of them is the incident."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.oncall.runbooks.plugins.plugin_utils import checks as checking
from ansible_collections.oncall.runbooks.plugins.plugin_utils import command, diagnosis, triage
from ansible_collections.oncall.runbooks.plugins.plugin_utils.render import render

ROLES = Path(__file__).resolve().parents[2] / "roles"
LABELS = {"P1": "critical", "P2": "high", "P3": "medium"}


def check(name, url="http://a/", label="P1", **more):
    return {
        "id": name,
        "title": name.capitalize(),
        "sources": [{"probe": "http", "url": url}],
        "thresholds": [{"above": 299, "label": label}],
        "next_step": "Look.",
        **more,
    }


def part(runbook, *checks, causes=()):
    good, bad = checking.validate_checks(list(checks), LABELS)
    names = {item["id"] for item in good}
    return triage.light(triage.Part(runbook, good, bad, checking.validate_causes(causes, names)))


def ids(one):
    return [item["id"] for item in one.checks]


def judged(parts, **statuses):
    """The findings of all parts, where the URLs answer with these statuses (200 otherwise), and what was asked."""
    checks = [item for one in parts for item in one.checks]
    same = triage.alike(checks)
    asked = triage.wanted(checks, same)
    answers = {f"http://{name}/": status for name, status in statuses.items()}
    looks = {
        item["id"]: {
            "looks": [{"outcome": "value", "value": answers.get(item["sources"][0]["url"], 200)}],
            "unmet": [],
        }
        for item in asked
    }
    for item in asked:
        bad = [name for name in item["needs"] if looks[name]["looks"] and looks[name]["looks"][0]["value"] > 299]
        if bad:
            looks[item["id"]] = {"looks": [], "unmet": bad}
    spread = triage.spread(checks, same, looks)
    found = diagnosis.judge_all(checks, [], spread, LABELS, lambda *_: None, "2026-11-27T03:00:00Z", None)
    return found, same, asked


class TestLight:
    def test_ids_and_what_they_name_begin_with_the_runbook(self):
        one = part(
            "slow",
            check("a", suggests=["restart"]),
            check("b", "http://b/", needs=["a"], explains=["a"], unless=["a"], withholds=["restart"]),
        )
        assert ids(one) == ["slow.a", "slow.b"]
        for key in ("needs", "explains", "unless"):
            assert one.checks[1][key] == ["slow.a"]
        # Steps are for whoever runs the runbook.
        assert [item["suggests"] + item["withholds"] for item in one.checks] == [[], []]

    def test_what_is_heavy_and_what_rests_on_it_is_left_out(self):
        one = part(
            "slow",
            check("a", heavy=True),
            check("b", "http://b/"),
            check("needing", "http://c/", needs=["a"]),
            check("explaining", "http://d/", explains=["a"]),
            check("second", "http://e/", needs=["needing"]),
            check("both", "http://f/", explains=["a", "b"]),
            causes=[{"breach": ["a"], "summary": "a"}, {"breach": ["b"], "summary": "b"}],
        )
        assert ids(one) == ["slow.b", "slow.both"]
        # It would explain what nobody looks at here: that counts no longer, and does not count for nothing.
        assert one.checks[1]["explains"] == ["slow.b"]
        assert [cause["summary"] for cause in one.causes] == ["b"]

    def test_wrong_checks_stay_mistakes(self):
        one = part("slow", check("a"), check("b", thresholds=[]))
        assert [name for name, _title, _why in one.bad] == ["slow.b"]


class TestAlike:
    def test_the_same_look_is_made_once(self):
        parts = [
            part("one", check("alive"), check("x", "http://x/", needs=["alive"])),
            part("two", check("answers"), check("x", "http://x/", needs=["answers"]), check("y", "http://x/")),
        ]
        found, same, asked = judged(parts)
        # `y` needs nothing, so it may be made when `x` is not.
        assert [item["id"] for item in asked] == ["one.alive", "one.x", "two.y"]
        assert same["two.answers"] == "one.alive"
        assert same["two.x"] == "one.x"
        assert [item["id"] for item in found] == ["one.alive", "one.x", "two.answers", "two.x", "two.y"]
        assert {item["status"] for item in found} == {"ok"}

    def test_other_thresholds_are_another_check(self):
        parts = [part("one", check("a")), part("two", check("a", label="P3"))]
        _found, same, _asked = judged(parts)
        assert same["two.a"] == "two.a"

    def test_what_is_not_met_is_said_by_the_checks_own_names(self):
        parts = [
            part("one", check("alive"), check("x", "http://x/", needs=["alive"])),
            part("two", check("answers"), check("x", "http://x/", needs=["answers"])),
        ]
        found, _same, _asked = judged(parts, a=500)
        reasons = {item["id"]: item["evidence"].get("reason") for item in found}
        assert "one.alive is not ok" in reasons["one.x"]
        assert "two.answers is not ok" in reasons["two.x"]


class TestRank:
    def test_what_many_look_at_speaks_for_none_of_them(self):
        shared = check("alive")
        parts = [
            part("slow", shared, check("p99", "http://p/", label="P2")),
            part("errors", shared, check("rate", "http://r/", label="P2")),
            part("down", shared, check("process", "http://q/")),
        ]
        found, same, _asked = judged(parts, a=500, q=500)
        ranked = triage.rank(parts, found, same)
        assert [entry["runbook"] for entry in ranked] == ["down", "slow", "errors"]
        assert ranked[0]["breaches"] == ["down.alive", "down.process"]
        # Whoever runs the first looks at all that the others have found.
        assert [entry["same_as"] for entry in ranked] == [None, "down", "down"]

    def test_the_worst_goes_first(self):
        parts = [
            part("mild", check("a", "http://x/", label="P3"), check("b", "http://y/", label="P3")),
            part("bad", check("a", "http://z/", label="P1")),
        ]
        found, same, _asked = judged(parts, x=500, y=500, z=500)
        ranked = triage.rank(parts, found, same)
        assert [(entry["runbook"], entry["label"], entry["severity"]) for entry in ranked] == [
            ("bad", "P1", "critical"),
            ("mild", "P3", "medium"),
        ]

    def test_causes_are_the_runbooks_own(self):
        parts = [
            part("slow", check("a"), causes=[{"breach": ["a"], "summary": "It answers $a."}]),
            part("other", check("b", "http://b/")),
        ]
        found, same, _asked = judged(parts, a=503)
        ranked = triage.rank(parts, found, same)
        assert ranked[0]["summary"] == "It answers 503."
        assert triage.summarise(ranked, found) == "slow: It answers 503."
        assert next(item for item in found if item["id"] == "slow.a")["evidence"]["cause"] is True

    def test_nothing_found(self):
        parts = [part("slow", check("a")), part("other", check("b", "http://b/"))]
        found, same, _asked = judged(parts)
        ranked = triage.rank(parts, found, same)
        assert [entry["status"] for entry in ranked] == ["healthy", "healthy"]
        assert triage.summarise(ranked, found).startswith("No runbook's incident: Nothing wrong: 2 checks are ok")


def shown(parts, **statuses):
    found, same, _asked = judged(parts, **statuses)
    status, severity, label = diagnosis.overall(found)
    ranked = triage.rank(parts, found, same)
    one = {
        "host": "web-1",
        "runbook": "triage",
        "status": status,
        "severity": severity,
        "label": label,
        "summary": triage.summarise(ranked, found),
        "findings": found,
        "plan": None,
        "runbooks": ranked,
    }
    return one, render(one, 100, onward="ansible-playbook playbooks/down.yml -l web-1")


def test_the_third_line_says_what_to_run_next():
    shared = check("alive")
    one, lines = shown([part("slow", shared), part("down", shared, check("process", "http://q/"))], a=500, q=500)
    assert lines[:3] == [
        "CRITICAL P1  web-1  triage",
        "  down: Alive is 500, expected at most 299, and 1 more.",
        "  Next: ansible-playbook playbooks/down.yml -l web-1",
    ]
    text = "\n".join(lines)
    assert "(also seen by slow)" in text
    # One row for what is one incident.
    assert sum(line.strip().startswith("P1 ") for line in lines) == 1
    # Without a command line, as in AWX, the runbook is named.
    assert "  Next: run down" in render(one)


def test_a_healthy_host_is_two_lines_and_a_list():
    _one, lines = shown([part("slow", check("a")), part("down", check("b", "http://b/"))])
    assert [line for line in lines if line] == [
        "HEALTHY  web-1  triage",
        "  No runbook's incident: Nothing wrong: 2 checks are ok; A is 200.",
        "  Nothing found by: slow, down",
    ]


@pytest.mark.parametrize(
    ("playbook", "next_one"),
    [
        ("playbooks/triage.yml", "playbooks/high_latency.yml"),
        ("/srv/triage/playbooks/triage.yml", "/srv/triage/playbooks/high_latency.yml"),
        ("oncall.runbooks.triage", "oncall.runbooks.high_latency"),
        ("mine/my_triage.yml", "mine/my_triage.yml"),
    ],
)
def test_the_command_runs_the_playbook_beside_it(monkeypatch, playbook, next_one):
    arguments = {"args": [playbook], "subset": "all", "inventory": ["hosts.yml"]}
    monkeypatch.setattr(command.context, "CLIARGS", arguments)
    found = {"host": "web-1", "runbook": "triage", "runbooks": [{"runbook": "high_latency", "breaches": ["a"]}]}
    said = command.onward(found)
    assert said is not None
    assert said.split()[1] == next_one
    assert said.endswith("-i hosts.yml -l web-1")
    assert command.onward({**found, "runbooks": [{"runbook": "high_latency", "breaches": []}]}) is None
    assert command.onward({"host": "web-1"}) is None


@pytest.mark.parametrize("path", sorted((ROLES / "triage/vars").glob("*.yml")), ids=lambda path: path.stem)
def test_it_takes_every_runbook_of_the_service(path):
    named = yaml.safe_load(path.read_text())["triage_runbooks"]
    there = {other.parts[-3] for other in ROLES.glob(f"*/vars/{path.name}")} - {"triage", "health_check"}
    assert sorted(named) == sorted(there)


def test_it_knows_every_service():
    there = {path.stem for path in ROLES.glob("*/vars/*.yml") if f"{path.parts[-3]}_causes:" in path.read_text()}
    assert {path.stem for path in (ROLES / "triage/vars").glob("*.yml")} == there - {"main"}

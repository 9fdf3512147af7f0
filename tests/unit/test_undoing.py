# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be undone, from what the hosts' records say."""

from __future__ import annotations

import pytest

from ansible_collections.oncall.runbooks.plugins.plugin_utils import undoing

OLD, NEW = "20261124T030000Z-0123456789ab", "20261124T040000Z-0123456789ab"


def step(name="set_timeout", state="verified", **more):
    return {
        "id": name,
        "title": f"Do {name}",
        "operation": "set",
        "params": {"name": "TIMEOUT"},
        "role": "vritti",
        "state_of": ["setting"],
        "before": {"setting": "30"},
        "state": state,
        "reversible": True,
        "irreversible": None,
        **more,
    }


def restart(name="restart", state="verified"):
    return step(name, state, reversible=False, irreversible="what was in memory is gone.", before={})


def record(name=NEW, *steps, state="verified"):
    return {"id": name, "steps": list(steps), "state": state}


def make(records, wanted=None, states=None):
    return undoing.make("high_latency", records, wanted, {host: {"states": states or {}} for host in records})


def test_the_last_remediation_is_undone_in_reverse_order():
    plan, note = make({"v1": [record(NEW, step("a"), step("b"), step("c", "done")), record(OLD, step("z"))]})
    assert (plan["id"], plan["runbook"], plan["hosts"], plan["undo"]) == (NEW, "high_latency", ["v1"], True)
    assert [item["id"] for item in plan["steps"]] == ["c", "b", "a"]
    assert note == ""
    assert plan["steps"][0]["operation"] == "set"
    assert {item["risk"] for item in plan["steps"]} == {"disruptive"}


@pytest.mark.parametrize(("state", "undone"), [("interrupted", OLD), ("running", OLD), ("verified", NEW)])
def test_one_that_was_cut_short_is_not_hidden_by_a_restart_after_it(state, undone):
    plan, note = make({"v1": [record(NEW, restart()), record(OLD, step("a", "running"), state=state)]})
    if undone == NEW:
        # What came to its end long ago is undone when somebody names it.
        assert plan is None
        return
    assert (plan["id"], [item["id"] for item in plan["steps"]]) == (OLD, ["a"])
    assert note == f"Of what came after it ({NEW}) nothing can be undone."


def test_a_named_remediation_is_undone():
    plan, _note = make({"v1": [record(NEW, step("a")), record(OLD, step("z"))]}, OLD)
    assert (plan["id"], [item["id"] for item in plan["steps"]]) == (OLD, ["z"])


def test_hosts_without_the_record_have_no_part_in_it():
    plan, _note = make({"v1": [record(OLD, step("a"))], "v2": [record(NEW, step("b"))], "v3": [record(NEW, step("b"))]})
    assert (plan["id"], plan["hosts"]) == (NEW, ["v2", "v3"])
    assert [(item["host"], item["id"]) for item in plan["steps"]] == [("v2", "b"), ("v3", "b")]


@pytest.mark.parametrize("state", ["running", "done", "verified", "failed", "undoing"])
def test_whatever_may_have_changed_something_is_undone(state):
    plan, _note = make({"v1": [record(NEW, step(state=state))]})
    assert len(plan["steps"]) == 1


@pytest.mark.parametrize("state", ["planned", "skipped"])
def test_what_was_not_begun_is_not_undone(state):
    assert make({"v1": [record(NEW, step(state=state))]}) == (None, "Nothing to undo: nothing was begun.")


def test_what_has_been_undone_is_left_alone():
    assert make({"v1": [record(NEW, step(state="undone"))]}) == (None, "Nothing to undo: it has been undone already.")
    plan, _note = make({"v1": [record(NEW, step("a", "undone"), step("b"))]})
    assert [item["id"] for item in plan["steps"]] == ["b"]


def test_what_cannot_be_undone_is_named():
    plan, note = make({"v1": [record(NEW, restart(), step("a"))]})
    assert [item["id"] for item in plan["steps"]] == ["a"]
    assert note == "Do restart on v1 cannot be undone: what was in memory is gone."
    plan, note = make({"v1": [record(NEW, restart("r1"), restart("r2"))]})
    assert plan is None
    assert note == (
        "Nothing to undo: Do r2 on v1 cannot be undone: what was in memory is gone. "
        "Do r1 on v1 cannot be undone: what was in memory is gone."
    )
    # One that was never begun did no harm.
    assert make({"v1": [record(NEW, restart(state="planned"))]})[1] == "Nothing to undo: nothing was begun."


@pytest.mark.parametrize("state", ["running", "rolling back"])
def test_interrupted_remediation_that_changed_nothing_is_closed(state):
    plan, note = make({"v1": [record(NEW, step(state="planned"), state=state)], "v2": []})
    assert (plan["id"], plan["hosts"], plan["steps"]) == (NEW, ["v1"], [])
    assert note == "Nothing is undone; the record of the interrupted remediation is closed."
    plan, note = make({"v1": [record(NEW, restart(), state=state)]})
    assert plan["steps"] == []
    assert note.startswith("Do restart on v1 cannot be undone: what was in memory is gone. Nothing is undone;")
    plan, note = make({"v1": [record(NEW, step("a"), state=state)], "v2": [record(NEW, state=state)]})
    assert ([item["id"] for item in plan["steps"]], plan["hosts"], note) == (["a"], ["v1", "v2"], "")


def test_preview_says_what_is_put_back():
    plan, _note = make({"v1": [record(NEW, step())]}, states={"set_timeout.setting": "60"})
    assert plan["steps"][0]["preview"] == (
        "Put back setting: now: 60; then: 30, as the record kept it, and restart what reads it."
    )
    plan, _note = make({"v1": [record(NEW, step(before={"setting": None, "unit": "a"}))]})
    assert "setting: now: not known; then: not known; unit: now: not known; then: a" in plan["steps"][0]["preview"]


def test_preview_is_the_operations_own_words_and_what_differs():
    own = {"undo": "Give it the tier again.", "before": {"tier": "free", "limit": 3}}
    plan, _note = make({"v1": [record(NEW, step(**own))]}, states={"set_timeout.tier": "pro", "set_timeout.limit": 3})
    assert plan["steps"][0]["preview"] == "Give it the tier again. tier: now: pro; then: free."
    plan, _note = make({"v1": [record(NEW, step(**{**own, "before": {}}))]})
    assert plan["steps"][0]["preview"] == "Give it the tier again."


@pytest.mark.parametrize("before", [None, {}])
def test_preview_of_a_step_of_which_nothing_was_kept(before):
    plan, _note = make({"v1": [record(NEW, step(state="running", before=before))]})
    assert plan["steps"][0]["preview"].startswith("Put back what it changed, as the record kept it")
    assert plan["steps"][0]["before"] == before


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ({"v1": [], "v2": []}, "Nothing to undo: high_latency has changed nothing on v1, v2."),
        ({}, "Nothing to undo: high_latency has changed nothing on any host."),
    ],
)
def test_where_there_is_no_record(records, says):
    assert make(records) == (None, says)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ({"v1": []}, "there is none"),
        (
            {"v1": [record(f"2026112{day}T030000Z-0123456789ab") for day in range(5)]},
            "the latest are " + ", ".join(f"2026112{day}T030000Z-0123456789ab" for day in (4, 3, 2)),
        ),
    ],
)
def test_record_that_nobody_has(records, says):
    with pytest.raises(undoing.Nothing) as caught:
        make(records, "20260101T000000Z-0123456789ab")
    assert str(caught.value) == (
        f"Nothing was changed: no host has a record 20260101T000000Z-0123456789ab of high_latency; {says}."
    )

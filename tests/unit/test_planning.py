# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: what their id depends on, who may apply them, and what is called a success."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.plugin_utils import planning
from ansible_collections.oncall.runbooks.plugins.plugin_utils.checks import validate_operation, validate_steps

# 2026-11-24 03:00 UTC.
NOW = float(calendar.timegm((2026, 11, 24, 3, 0, 0)))
TTL = 1800.0

OPERATIONS = {
    "restart": {
        "risk": "disruptive",
        "preview": "Restart $process.",
        "irreversible": "it cannot be unrestarted.",
        "by_hand": ["systemctl restart $unit"],
        "looks": ["process"],
    },
    "set": {"risk": "safe", "preview": "Set $name from $setting to 1.", "identity": ["name"], "state": ["setting"]},
    "wipe": {"risk": "destructive", "preview": "Wipe it."},
}


def operation(name, **more):
    return validate_operation(name, {**OPERATIONS[name], **more})


def made(
    host="vritti-1",
    name="restart_vritti",
    operation_name="restart",
    params=None,
    looks=None,
    because=(),
    targets=None,
    **more,
):
    """A step of a plan, as the diagnosis of a host makes it."""
    item = {"id": name, "title": f"Do {name}", "operation": operation_name, "params": params or {}}
    data = validate_steps([item], OPERATIONS)[0]
    return planning.step(
        host, "vritti", data, operation(operation_name, **more), list(because), looks or {}, targets or {}
    )


def value(text):
    return {"outcome": "value", "value": text, "evidence": {}}


def finding(name="p99", status="breach", severity="high", observed=0.2, expected="at most 0.05 s", suggests=()):
    if status != "breach":
        severity = None
    return {
        "id": name,
        "title": name,
        "status": status,
        "severity": severity,
        "label": "P2",
        "observed": observed,
        "unit": "s",
        "expected": expected,
        "suggests": list(suggests),
    }


# From findings to steps.


STEPS = validate_steps(
    [
        {"id": "first", "title": "First", "operation": "restart"},
        {"id": "second", "title": "Second", "operation": "restart"},
        {"id": "both", "title": "Both", "operation": "restart", "replaces": ["first", "second"]},
        {"id": "test", "title": "Test", "operation": "restart"},
    ],
    OPERATIONS,
)


def proposed(findings, asked=()):
    return [(step["id"], because) for step, because in planning.candidates(STEPS, findings, asked)]


def test_steps_stand_in_the_runbooks_order_with_their_reasons():
    findings = [
        finding("a", suggests=["test"]),
        finding("b", suggests=["first", "test"]),
        finding("c", status="ok", suggests=["second"]),
        finding("d", status="unknown", suggests=["second"]),
    ]
    assert proposed(findings) == [("first", ["b"]), ("test", ["a", "b"])]
    assert proposed(findings, ["second", "test"]) == [("second", []), ("test", ["a", "b"])]
    assert proposed([]) == []
    assert proposed([], ["test"]) == [("test", [])]


def test_one_step_in_place_of_all_those_that_it_replaces():
    findings = [finding("a", suggests=["second"]), finding("b", suggests=["first"]), finding("c", suggests=["second"])]
    assert proposed(findings) == [("both", ["a", "b", "c"])]
    assert proposed(findings[:1]) == [("second", ["a"])]


def test_step_that_the_runbook_does_not_have():
    assert planning.unknown_steps(STEPS, ["first", "test"], "r") is None
    said = planning.unknown_steps(STEPS, ["test", "frist"], "high_latency")
    assert said == "high_latency has no step 'frist' for runbook_steps; it has first, second, both, test."
    assert planning.unknown_steps([], ["x"], "r") == "r has no step 'x' for runbook_steps; it has none."


# What a step says.


def test_preview_is_filled_in_with_what_was_seen():
    looks = {
        "process": {"outcome": "value", "value": 1, "evidence": {"text": "PID 1", "by_hand": ["kill 1"]}},
        "unit": value("v"),
    }
    step = made(looks=looks)
    assert step["preview"] == (
        "Restart PID 1.\nIt cannot be undone: it cannot be unrestarted.\nThe same by hand: systemctl restart v; kill 1"
    )
    assert (step["reversible"], step["problem"]) == (False, None)
    assert step["by_hand"] == ["systemctl restart v", "kill 1"]
    assert made(looks=looks, looks_by_hand=False)["by_hand"] == ["systemctl restart v"]
    assert made(operation_name="set")["reversible"] is True
    # What is not known stays as it is, so that it shows.
    assert "$process" in made()["preview"]


@pytest.mark.parametrize(
    ("look", "text", "problem"),
    [
        ({"outcome": "no_answer", "note": "No unit."}, "not seen (No unit)", "No unit."),
        ({"outcome": "no_answer", "note": "Not allowed.", "kind": "permission"}, "not seen (Not allowed)", None),
        ({"outcome": "value", "value": "missing", "evidence": {"problem": "It is gone."}}, "missing", "It is gone."),
        ({"outcome": "value", "evidence": {"problem": "Gone.", "text": "no unit x"}}, "no unit x", "Gone."),
        ({"outcome": "value", "value": 0.25, "evidence": {}}, "0.25", None),
    ],
)
def test_what_keeps_an_operation_from_working(look, text, problem):
    step = made(looks={"process": look})
    assert f"Restart {text}." in step["preview"]
    assert step["problem"] == problem
    # What is only shown keeps nothing from working.
    assert made(looks={"unit": look, "process": value("x")})["problem"] is None


# The id.


def plan(steps, runbook="high_latency", at=NOW, asked=()):
    return planning.make(runbook, steps, at, asked)


def digest(*steps, runbook="high_latency"):
    return plan(list(steps), runbook)["id"][15:]


def test_id_is_that_of_the_contract():
    made_plan = plan([made(), made("vritti-2")], asked=["restart_vritti"])
    assert planning.ID.fullmatch(made_plan["id"])
    assert made_plan["id"].startswith("20261124T0300Z-")
    assert made_plan["created_at"] == "2026-11-24T03:00:00Z"
    assert made_plan["hosts"] == ["vritti-1", "vritti-2"]
    assert made_plan["apply_with"] == {"runbook_plan": made_plan["id"], "runbook_steps": "restart_vritti"}
    assert planning.apply_options(made_plan) == [
        "-e",
        f"runbook_plan={made_plan['id']}",
        "-e",
        "runbook_steps=restart_vritti",
    ]
    assert set(made_plan["steps"][0]) >= {"id", "title", "host", "risk", "reversible", "because", "preview"}
    assert plan([]) is None


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.permutations(["vritti-1", "vritti-2", "vritti-3"]),
    st.floats(allow_nan=False),
    st.lists(st.sampled_from("abc")),
    st.floats(0, 4e9),
    ANY,
)
def test_id_does_not_flicker(hosts, measured, because, at, ignored):
    """Neither with the hosts' order, measurements, reasons and the time, nor with what is not the step's identity."""
    looks = {"process": value(measured), "setting": value(ignored)}
    steps = [
        step
        for host in hosts
        for step in (
            made(host, looks=looks, because=because, params={"b": 1, "a": 2}),
            made(host, "enable", "set", params={"value": ignored, "name": "x"}, because=because),
        )
    ]
    assert planning.fingerprint("high_latency", steps) == planning.fingerprint(
        "high_latency",
        [
            step
            for host in ("vritti-1", "vritti-2", "vritti-3")
            for step in (made(host, params={"a": 2, "b": 1}), made(host, "enable", "set", params={"name": "x"}))
        ],
    )
    assert plan(steps, at=at)["id"][15:] == digest(*steps)


def test_order_of_the_findings_does_not_matter():
    findings = [finding("a", suggests=["first"]), finding("b", suggests=["test", "first"])]
    ids = {
        digest(*[made(name=step["id"], because=because) for step, because in planning.candidates(STEPS, order, [])])
        for order in (findings, findings[::-1])
    }
    assert len(ids) == 1


def test_id_changes_with_what_would_be_done():
    base = made(params={"name": "a"})
    other_role = {**base, "role": "kyrodb"}
    ids = [
        digest(base),
        digest(base, runbook="resource_exhaustion"),
        digest(made("vritti-2", params={"name": "a"})),
        digest(base, made("vritti-2", params={"name": "a"})),
        digest(made(params={"name": "b"})),
        digest(made(params={"name": None})),
        digest(made(params={})),
        digest(made(params={"name": "a", "more": 1})),
        digest(made(operation_name="wipe", params={"name": "a"})),
        digest(made(operation_name="set", params={"name": "a"})),
        digest(other_role),
        digest(base, made(operation_name="set", params={"name": "x"})),
        digest(made(operation_name="set", params={"name": "x"}), base),
        digest(base, base),
    ]
    assert len(set(ids)) == len(ids)
    # An operation without an identity is known by all its parameters; this one is by the name.
    assert digest(made(operation_name="set", params={"name": "x", "value": 1})) == digest(
        made(operation_name="set", params={"name": "x", "value": 2})
    )


def test_part_of_a_host():
    whole = plan([made(), made("vritti-2")])
    part = planning.of_host(whole, "vritti-2")
    assert (part["id"], [step["host"] for step in part["steps"]]) == (whole["id"], ["vritti-2"])
    assert planning.of_host(whole, "vritti-3") is None
    assert planning.of_host(None, "vritti-1") is None


# Approval.


def approve(now_plan, given=None, max_risk=None, whole=None, stored=None, remainder=False, now=NOW):
    return planning.approve(now_plan, whole or now_plan, given, max_risk, TTL, now, stored, remainder)


PLAN = plan([made()])


def test_approved_by_its_id():
    assert approve(PLAN, PLAN["id"]) == ("approved", f"plan {PLAN['id']}")
    assert approve(PLAN, PLAN["id"], now=NOW + TTL)[0] == "approved"
    # The plan is made afresh, later; and destructive ones are for who has read them.
    later = plan([made()], at=NOW + 600)
    assert later["id"] != PLAN["id"]
    assert approve(later, PLAN["id"], now=NOW + 600)[0] == "approved"
    destructive = plan([made(operation_name="wipe")])
    assert approve(destructive, destructive["id"], max_risk="safe")[0] == "approved"


@pytest.mark.parametrize(
    "given",
    [
        "", "x", "yes", "latest", "20261124T0300Z", "0123456789ab", "20261124T0300Z-0123456789a",
        "20261124T0300Z-0123456789AB", "20261124T0300Z-0123456789ab\n", " 20261124T0300Z-0123456789ab",
        "20261124T030000Z-0123456789ab", "20261324T0300Z-" + PLAN["id"][15:], "99999999T9999Z-" + PLAN["id"][15:],
        "00000000T0000Z-" + PLAN["id"][15:],
    ],
)  # fmt: skip
@pytest.mark.parametrize("current", [PLAN, None])
def test_what_is_no_id_is_refused(given, current):
    decision, why = approve(current, given)
    assert decision == "refused"
    assert why.startswith(f"runbook_plan={given!r} is no plan's id; copy it from a diagnosis")


def test_stale_plan_is_refused():
    later = plan([made()], at=NOW + TTL + 60)
    decision, why = approve(later, PLAN["id"], now=NOW + TTL + 60)
    assert decision == "refused"
    assert why.startswith(f"Nothing was changed: the plan {PLAN['id']} is ")
    assert "old, and runbook_plan_ttl is" in why
    assert why.endswith(f"The plan now is {later['id']}.")


def test_plan_from_the_future_is_refused():
    ahead = plan([made()], at=NOW + 3600)
    decision, why = approve(PLAN, ahead["id"])
    assert (decision, why) == (
        "refused",
        f"Nothing was changed: the plan {ahead['id']} is from the future; compare the clocks.",
    )
    # Clocks differ by a minute, and an id says no seconds.
    assert approve(PLAN, plan([made()], at=NOW + 60)["id"])[0] == "approved"


def refused(current, given, stored=None):
    decision, why = approve(current, given["id"], stored=stored)
    assert decision == "refused"
    assert why.startswith(f"Nothing was changed: the plan {given['id']} is not what would be done now: ")
    assert why.endswith(f". The plan now is {current['id']}.")
    return why


def test_plan_of_another_host_is_refused():
    other = plan([made("vritti-2")])
    assert "it is a plan for vritti-2." in refused(PLAN, other, other)


def test_plan_of_another_runbook_is_refused():
    other = plan([made()], runbook="resource_exhaustion")
    assert "it is a plan of resource_exhaustion." in refused(PLAN, other, other)


def test_plan_of_which_nothing_is_known_any_more_is_refused():
    other = plan([made("vritti-2")])
    assert "it is of another host or runbook, or the state moved on." in refused(PLAN, other)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ([made()], [made(), made(name="more", operation_name="wipe")], "(new: Do more on vritti-1)"),
        ([made(), made("vritti-2")], [made()], "(no longer proposed: Do restart_vritti on vritti-2)"),
        (
            [made()],
            [made(params={"to": 2})],
            "(no longer proposed: Do restart_vritti on vritti-1; new: Do restart_vritti on vritti-1)",
        ),
        (
            [made(), made(name="b", operation_name="set")],
            [made(name="b", operation_name="set"), made()],
            "(the same steps in another order)",
        ),
    ],
)
def test_state_that_moved_on_is_refused_and_the_difference_said(before, after, says):
    given = plan(before)
    assert f"the state moved on {says}" in refused(plan(after), given, given)


def test_plan_that_has_become_empty_is_a_success():
    for known in (PLAN["id"], None):
        assert planning.approve(None, None, known, None, TTL, NOW, PLAN, False) == (
            "nothing",
            "Nothing left to do: no check proposes a step.",
        )


def test_without_approval_somebody_is_asked():
    assert approve(PLAN) == ("ask", f"The plan now is {PLAN['id']}")


@pytest.mark.parametrize(
    ("operation_name", "max_risk", "decision"),
    [
        ("set", "safe", "approved"),
        ("set", "disruptive", "approved"),
        ("restart", "safe", "refused"),
        ("restart", "disruptive", "approved"),
        ("wipe", "safe", "refused"),
        ("wipe", "disruptive", "refused"),
        *[
            (name, risk, "refused")
            for name in ("set", "restart", "wipe")
            for risk in ("destructive", "Safe", "any", "")
        ],
    ],
)
def test_max_risk(operation_name, max_risk, decision):
    current = plan([made(operation_name="set"), made(name="x", operation_name=operation_name)])
    said, why = approve(current, max_risk=max_risk)
    assert said == decision
    if decision == "approved":
        assert why == f"runbook_max_risk={max_risk}"
    elif max_risk not in ("safe", "disruptive"):
        assert why.startswith(
            f"Nothing was changed: runbook_max_risk is {max_risk!r}; it is safe or disruptive, and never"
        )
    else:
        risk = OPERATIONS[operation_name]["risk"]
        assert why.startswith(f"Nothing was changed: Do x on vritti-1 is {risk}, and runbook_max_risk is {max_risk}. ")
        assert why.endswith(f"The plan now is {current['id']}; pass its id as runbook_plan when it is what you want.")


def test_wrong_id_is_not_made_up_for_by_max_risk():
    assert approve(PLAN, plan([made("vritti-2")])["id"], max_risk="disruptive")[0] == "refused"


def test_step_that_cannot_work_is_refused_however_it_was_approved():
    broken = plan([made(looks={"process": {"outcome": "no_answer", "note": "vritti.service does not exist."}})])
    for arguments in (
        {},
        {"given": broken["id"]},
        {"max_risk": "disruptive"},
        {"given": broken["id"], "remainder": True},
    ):
        assert approve(broken, **arguments) == (
            "refused",
            "Nothing was changed. Do restart_vritti on vritti-1 cannot be applied: vritti.service does not exist.",
        )


def test_remainder_of_an_interrupted_run_is_approved_by_that_runs_plan():
    whole = plan([made(), made(name="second", operation_name="set")])
    rest = plan([made(name="second", operation_name="set")], at=NOW + 86400)
    assert approve(rest, whole["id"], remainder=True, now=NOW + 86400) == (
        "approved",
        f"the remainder of the interrupted run of plan {whole['id']}",
    )
    assert approve(rest, whole["id"], stored=whole)[0] == "refused"


def test_approved_plan_may_be_done_in_part():
    steps = [made(), made(name="second", operation_name="set")]
    whole, part = plan(steps), plan(steps[1:], asked=["second"])
    assert approve(part, whole["id"], whole=whole)[0] == "approved"
    assert approve(part, part["id"], whole=whole)[0] == "approved"
    assert approve(part, whole["id"], whole=whole, now=NOW + TTL + 60)[0] == "refused"
    more = plan([*steps, made(name="third", operation_name="wipe")])
    decision, why = approve(more, whole["id"], whole=whole)
    assert (decision, why) == (
        "refused",
        f"Nothing was changed: the plan {whole['id']} does not have the step third on vritti-1. "
        f"The plan now is {more['id']}.",
    )


@given(
    st.one_of(st.none(), st.text(max_size=40), st.from_regex(planning.ID, fullmatch=True), st.just(PLAN["id"])),
    st.one_of(st.none(), st.sampled_from(planning.RISKS), st.text(max_size=5)),
    st.sampled_from([PLAN, plan([made(operation_name="wipe")]), None]),
    st.floats(0, 4e9),
)
def test_nothing_unseen_is_ever_approved(given_id, max_risk, current, now):
    decision, why = planning.approve(current, current, given_id, max_risk, TTL, now, None, False)
    assert why
    if decision == "approved":
        by_id = (
            given_id is not None and given_id[15:] == current["id"][15:] and -91 < planning.age(given_id, now) <= TTL
        )
        by_risk = given_id is None and max_risk in ("safe", "disruptive") and current is PLAN
        assert by_id or by_risk


# What became of it.


@pytest.mark.parametrize(
    ("before", "after", "became"),
    [
        (finding(), finding(status="ok"), "fixed"),
        (finding(), finding(status="unknown"), "unchanged"),
        (finding(), finding(status="skipped"), "unchanged"),
        (finding(), None, "unchanged"),
        (None, None, "unchanged"),
        (finding(), finding(), "unchanged"),
        (finding(), finding(observed=0.25), "unchanged"),
        (finding(), finding(observed=0.15), "unchanged"),
        (finding(), finding(observed=0.1), "improved"),
        (finding(), finding(observed=0.5), "worse"),
        (finding(), finding(severity="medium", observed=0.5), "improved"),
        (finding(), finding(severity="critical", observed=0.1), "worse"),
        (finding(severity=None), finding(), "worse"),
        (finding(status="ok"), finding(), "worse"),
        (finding(status="unknown"), finding(), "worse"),
        (None, finding(), "worse"),
        (finding(observed=0.2, expected="at least 0.9"), finding(observed=0.8, expected="at least 0.9"), "improved"),
        (finding(observed=0.8, expected="at least 0.9"), finding(observed=0.2, expected="at least 0.9"), "worse"),
        (finding(observed="open"), finding(observed="half-open"), "unchanged"),
        (finding(observed=None), finding(observed=5), "unchanged"),
        (finding(observed="5"), finding(observed="1"), "unchanged"),
    ],
)
def test_outcome(before, after, became):
    assert planning.outcome(before, after) == became


@given(st.sampled_from(["breach", "ok", "unknown", "skipped"]), st.sampled_from(["unknown", "skipped"]))
def test_what_is_not_known_is_never_fixed(before, after):
    assert planning.outcome(finding(status=before), finding(status=after)) == "unchanged"
    assert not planning.helped(planning.verification([finding(status=before)], [finding(status=after)], ["p99"]))
    assert not planning.helped(planning.verification([finding(status=before)], [], ["p99"]))


@pytest.mark.parametrize(
    ("before", "after", "outcomes"),
    [
        ([], [finding("x", severity="critical")], {"p99": "fixed", "x": "worse"}),
        ([finding("x", status="ok")], [finding("x", severity="critical")], {"p99": "fixed", "x": "worse"}),
        ([finding("x", severity="medium")], [finding("x", severity="critical")], {"p99": "fixed", "x": "worse"}),
        ([finding("x", status="ok")], [finding("x", severity="high")], {"p99": "fixed"}),
        ([finding("x", severity="critical")], [finding("x", severity="critical")], {"p99": "fixed"}),
        ([finding("x", severity="critical")], [finding("x", status="ok")], {"p99": "fixed"}),
    ],
)
def test_what_has_become_critical_since_is_worse(before, after, outcomes):
    found = planning.verification([finding(), *before], [finding(status="ok"), *after], ["p99"])
    assert found == outcomes
    assert planning.helped(found) == ("worse" not in outcomes.values())


def test_without_a_finding_that_asked_for_it_only_new_harm_counts():
    assert planning.helped(planning.verification([finding()], [finding()], []))
    assert not planning.helped(planning.verification([], [finding(severity="critical")], []))


def test_findings_as_a_record_keeps_them():
    kept = planning.brief([{**finding(), "evidence": {"newest": ["s3same"]}}, finding("gone", status="skipped")])
    assert [item["id"] for item in kept] == ["p99"]
    assert "s3same" not in str(kept)


def test_another_target_is_another_plan():
    """The id covers what would be changed: a unit or a file that was not shown is not approved."""
    shown = made(targets={"vritti": {"unit": "vritti.service"}})
    other = made(targets={"vritti": {"unit": "vritti-canary.service"}})
    assert planning.fingerprint("r", [shown]) == planning.fingerprint("r", [made(targets=shown["identity"]["targets"])])
    assert planning.fingerprint("r", [shown]) != planning.fingerprint("r", [other])


@pytest.mark.parametrize(
    ("look", "problem"),
    [
        ({"outcome": "value", "value": True}, None),
        (
            {"outcome": "value", "value": False, "note": "KyroDB at localhost:50052 does not answer."},
            "KyroDB at localhost:50052 does not answer.",
        ),
        ({"outcome": "no_answer", "note": "grpcio is not installed."}, None),
    ],
)
def test_what_an_operation_requires_must_not_say_no(look, problem):
    step = made(looks={"health": look}, requires=["health"])
    assert step["problem"] == problem

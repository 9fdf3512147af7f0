# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps for all hosts at once: what findings list is merged, judged against every host, and frozen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import addresses
from ansible_collections.oncall.runbooks.plugins.plugin_utils import everywhere, planning
from ansible_collections.oncall.runbooks.plugins.plugin_utils.checks import validate_operation, validate_steps

OPERATION = validate_operation(
    "block",
    {
        "risk": "disruptive",
        "preview": "Block $count: $addresses. $notes",
        "by_hand": ["nft add $addresses"],
        "identity": ["addresses", "ttl"],
    },
)


def step(host, rows=(), protected=(), because=(), **params):
    """The step as the diagnosis of a host makes it."""
    item = {
        "id": "block",
        "title": "Block",
        "operation": "block",
        "everywhere": True,
        "lists": {"addresses": ["offenders"]},
        "params": {"addresses": [], "ttl": 60, **params},
    }
    data = validate_steps([item], {"block": {}})[0]
    look = {"outcome": "value", "value": 0, "evidence": {"protected": list(protected)}}
    made = planning.step(host, "runbook", data, OPERATION, list(because), {"firewall": look}, {})
    made["listed"] = list(rows)
    return made


def row(name, count, **more):
    return {"name": name, "count": count, **more}


def merged(found, frozen=None, **everybody):
    """`found` is of the hosts that propose it; `everybody` what each host would do."""
    every = {host: [step(host)] for host in found} | {host: [one] for host, one in everybody.items()}
    return everywhere.merge({host: [one] for host, one in found.items()}, every, frozen or {})


def finding(name, status="breach", listed=()):
    return {"id": name, "status": status, "evidence": {"listed": list(listed)}}


def test_what_findings_list_is_ranked():
    findings = [
        finding("offenders", listed=[row("192.0.2.1", 5), row("192.0.2.2", 30, succeeded=1)]),
        finding("flood", listed=[row("192.0.2.1", 40)]),
        finding("other", listed=[row("192.0.2.9", 99)]),
        finding("fine", "ok", listed=[row("192.0.2.8", 99)]),
    ]
    assert everywhere.listed(["offenders", "flood", "fine"], findings) == [
        row("192.0.2.1", 45),
        row("192.0.2.2", 30, succeeded=1),
    ]


def test_who_attacks_one_host_is_blocked_on_all():
    steps = merged(
        {
            "a": step(
                "a", [row("192.0.2.1", 5, succeeded=0), row("2001:DB8::1", 4, succeeded=0)], because=["offenders"]
            ),
            "b": step("b", [row("2001:db8:0::1", 7, succeeded=2)], because=["offenders"]),
        },
        c=step("c"),
    )
    assert [one["host"] for one in steps] == ["a", "b", "c"]
    for one in steps:
        # Written in two ways, it is one address.
        assert one["params"]["addresses"] == ["2001:db8::1", "192.0.2.1"]
        assert one["preview"].startswith(
            "Block 2 addresses: 2001:db8::1 (11, 2 answered well), 192.0.2.1 (5, 0 answered well)."
        )
        assert one["by_hand"] == ["nft add 2001:db8::1 (11, 2 answered well), 192.0.2.1 (5, 0 answered well)"]
        assert one["problem"] is None
    # A host that has found nothing is not judged by it.
    assert [one["because"] for one in steps] == [["offenders"], ["offenders"], []]


def test_what_one_host_must_not_lose_is_blocked_on_none():
    gateway = {"network": "192.0.2.1/32", "rule": "gateway", "what": "a gateway"}
    steps = merged(
        {"a": step("a", [row("192.0.2.1", 5), row("192.0.2.2", 4), row("10.0.0.7", 3), row("testclient", 9)])},
        b=step("b", protected=[gateway]),
    )
    assert [one["params"]["addresses"] for one in steps] == [["192.0.2.2"]] * 2
    told = steps[0]["preview"]
    assert "testclient (no address)" in told
    assert "192.0.2.1 (it is a gateway, on b)" in told
    assert "10.0.0.7 (it is in 10.0.0.0/8, a private range, on a)" in told


def test_nothing_left_to_block_is_said():
    steps = merged({"a": step("a", [row("127.0.0.1", 5)])})
    assert steps[0]["problem"].startswith(
        "there is no address left to block. Left out: 127.0.0.1 (it is in 127.0.0.0/8"
    )


def test_nothing_left_to_block_keeps_nothing_else_from_being_done():
    item = {"id": "restart", "title": "Restart", "operation": "block"}
    other = planning.step("a", "vritti", validate_steps([item], {"block": {}})[0], OPERATION, [], {}, {})
    steps = everywhere.merge({"a": [step("a", [row("127.0.0.1", 5)]), other]}, {"a": [step("a")]}, {})
    assert [one["problem"] for one in steps] == [None, None]
    assert steps[0]["preview"].startswith(
        "Block no address: of what was found none may be blocked. Left out: 127.0.0.1"
    )


def test_ranges_of_the_operator():
    found = [row("10.0.0.7", 3), row("192.0.2.2", 4)]
    steps = merged(
        {"a": step("a", found, allow_private=True, never_block=["192.0.2.0/24"])},
        a=step("a", allow_private=True, never_block=["192.0.2.0/24"]),
    )
    assert steps[0]["params"]["addresses"] == ["10.0.0.7"]
    assert "192.0.2.2 (it is in 192.0.2.0/24, in runbook_never_block, on a)" in steps[0]["preview"]
    wrong = merged({"a": step("a", found)}, a=step("a", never_block=["lb.example.com"]))
    assert "runbook_never_block has 'lb.example.com'" in wrong[0]["problem"]


def test_who_has_many_behind_it_is_flagged():
    steps = merged({"a": step("a", [row("192.0.2.1", 5, succeeded=500), row("192.0.2.2", 5, succeeded=4)])})
    assert "Much of what comes from 192.0.2.1 is answered well" in steps[0]["preview"]


def test_a_list_of_the_operator_is_taken_or_refused_whole():
    found = [row("192.0.2.9", 50)]
    steps = merged({"a": step("a", found, addresses=["198.51.100.7", " 198.51.100.0/28"])})
    assert steps[0]["params"]["addresses"] == ["198.51.100.7", "198.51.100.0/28"]
    assert steps[0]["preview"].startswith("Block 2 addresses: 198.51.100.7, 198.51.100.0/28.")
    refused = merged({"a": step("a", addresses=["198.51.100.7", "10.1.1.1"])})[0]
    assert refused["problem"] == (
        "10.1.1.1 must not be blocked: it is in 10.0.0.0/8, a private range; leave it out, or set "
        "runbook_block_private (on a)."
    )
    garbage = merged({"a": step("a", addresses=["1.2.3.4; rm -rf /"])})[0]
    assert garbage["problem"].startswith("runbook_block_addresses has '1.2.3.4; rm -rf /'")


def test_a_plan_keeps_its_list():
    before = merged({"a": step("a", [row("192.0.2.1", 5, succeeded=0)])}, b=step("b"))
    plan = planning.make("x", before, 0.0, file="reports/x/plan.json")
    assert planning.apply_options(plan) == ["-e", f"runbook_plan={plan['id']}", "-e", "@reports/x/plan.json"]
    later = {"a": step("a", [row("192.0.2.1", 9, succeeded=0), row("192.0.2.3", 9, succeeded=0)])}
    assert planning.make("x", merged(later, b=step("b")), 0.0)["id"] != plan["id"]
    frozen = merged(later, plan["runbook_frozen"], b=step("b"))
    assert [one["params"] for one in frozen] == [one["params"] for one in before]
    assert planning.make("x", frozen, 0.0)["id"] == plan["id"]
    # Of what is over nothing is left to do.
    assert everywhere.merge({"a": []}, {"a": [step("a")]}, plan["runbook_frozen"]) == []


def test_what_somebody_wrote_into_the_file_is_another_plan():
    before = merged({"a": step("a", [row("192.0.2.1", 5)])})
    plan = planning.make("x", before, 0.0, file="f")
    changed = {"block": {"listed": [row("192.0.2.77", 5)], "left_out": []}}
    assert planning.make("x", merged({"a": step("a", [row("192.0.2.1", 5)])}, changed), 0.0)["id"] != plan["id"]


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(st.lists(ADDRESSES, max_size=8), ADDRESSES)
def test_nobody_who_is_protected_is_in_a_plan(found, operator):
    rule = {"network": operator, "rule": "connection", "what": "who runs this"}
    steps = merged({"a": step("a", [row(name, 1) for name in [*found, operator]])}, b=step("b", protected=[rule]))
    own = addresses.block(operator)
    for one in steps:
        assert not any(addresses.block(name).overlaps(own) for name in one["params"]["addresses"])

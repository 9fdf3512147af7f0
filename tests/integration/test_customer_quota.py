# SPDX-License-Identifier: GPL-3.0-or-later
"""customer_quota_exceeded and the module vritti_customer against the lab: real keys, real credits, both lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_helpers import RunningLab, is_head, query, running_lab
from tests.integration.playbook_helpers import Operator, Run, ansible, hashes

RUNBOOK = "customer_quota_exceeded"
# Of the last customers of the lab, which the background traffic does not use, each test takes its own.
FIRST = -6


@pytest.fixture(scope="module", params=["head", "v0.1.0"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", request.param) as running:
        yield running


@pytest.fixture
def operator(lab: RunningLab, tmp_path: Path) -> Operator:
    return Operator(lab, tmp_path)


# What is the same for both lines, or shows in one of them only.
with_head = pytest.mark.parametrize("lab", ["head"], indirect=True)
with_metrics = pytest.mark.parametrize("lab", ["v0.1.0"], indirect=True)


def customer(lab: RunningLab, name: str) -> tuple[str, str, int, int]:
    """Its tier, its status, its limit and what it has used, as the database has them."""
    (row,) = query(
        lab,
        "SELECT subscription_tier, status, monthly_credit_limit, credits_used_current_month FROM customers "
        "WHERE customer_id = ?",
        name,
    )
    return tuple(row)


def exceed(lab: RunningLab, position: int, calls: int = 4, limit: int = 3) -> str:
    """A customer that has used more than its limit, by calls of its own, which Vritti serves all the same."""
    name = lab.customer(position)["customer_id"]
    assert lab.send("PATCH", f"/api/v1/customers/{name}", {"monthly_credit_limit": limit}, lab.admin).status == 200
    query(lab, "UPDATE customers SET credits_used_current_month = 0 WHERE customer_id = ?", name)
    for _number in range(calls):
        assert lab.search(lab.key(position)).status == 200
    assert customer(lab, name)[2:] == (limit, calls)
    return name


def settle(lab: RunningLab) -> None:
    """Nobody is over their quota."""
    query(lab, "UPDATE customers SET credits_used_current_month = 0, status = 'active'")


def named(name: str, *more: str) -> list[str]:
    return ["-e", json.dumps({"vritti_customer": name}), *more]


def no_secret(lab: RunningLab, operator: Operator, *runs: Run) -> None:
    secrets = [lab.inventory["vritti_admin_api_key"], *(lab.customer(place)["api_key"] for place in range(FIRST, 0))]
    files = [path for folder in (operator.directory, operator.state) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for text in [*(path.read_text(errors="replace") for path in files), *(run.output for run in runs)]:
        assert not [secret for secret in secrets if secret in text]


def test_nobody_is_over_it(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    before = {name: it for name, it in hashes(lab.data_dir).items() if not name.endswith("-shm")}
    run = operator.run(RUNBOOK, "diagnose")
    assert (run.status, run.diagnosis()["status"]) == (0, "healthy"), run.output
    findings = run.findings()
    assert (findings["customers_over_quota"]["observed"], findings["customers_over_quota"]["status"]) == (0, "ok")
    assert "No version of Vritti enforces a quota" in findings["customers_over_quota"]["evidence"]["note"]
    assert findings["customer_exists"]["evidence"]["reason"].startswith("vritti_customer is empty; name a customer")
    assert findings["customer_quota"]["status"] == "skipped"
    assert not is_head(lab) or "exports no metrics" in findings["quota_metric"]["evidence"]["reason"]
    assert {name: it for name, it in hashes(lab.data_dir).items() if not name.endswith("-shm")} == before


@with_metrics
def test_somebody_is_over_it_and_nobody_is_named(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    name = exceed(lab, -1)
    assert lab.search(lab.key()).status == 200, "a quota is not enforced"
    (last,) = query(lab, "SELECT last_api_call_at FROM customers WHERE customer_id = ?", name)[0]
    run = operator.run(RUNBOOK, "diagnose")
    assert (run.diagnosis()["label"], run.diagnosis()["plan"]) == ("P4", None), run.output
    assert "whoever is answered 403 or 429 has another trouble" in run.diagnosis()["summary"]
    found = run.findings()["customers_over_quota"]
    assert (found["observed"], found["evidence"]["worst"]) == (1, name)
    (row,) = found["evidence"]["rows"]
    assert (row["customer_id"], row["used"], row["quota"], row["status"]) == (name, 5, 3, "active")
    assert (row["last_call"], row["last_reset"]) == (last, "not established")
    assert "-e vritti_customer=<id>" in found["next_step"]
    metric = run.findings()["quota_metric"]
    # The customer that Vritti remembers is the one before its first call.
    assert (metric["status"], metric["observed"], metric["evidence"]["by_customer_id"]) == ("ok", 0, [])
    assert "up to 300 s behind the database" in metric["evidence"]["note"]
    asked = operator.run(
        RUNBOOK, "remediate", "-e", "runbook_steps=suspend_customer", "-e", "runbook_max_risk=disruptive"
    )
    assert asked.status == 2, asked.output
    assert "cannot be applied: vritti_customer is empty" in " ".join(asked.output.split())
    unknown = operator.run(RUNBOOK, "diagnose", *named("nobody'; --"))
    assert unknown.findings()["customer_exists"]["observed"] == 0, unknown.output
    assert unknown.findings()["customers_over_quota"]["observed"] == 1


@with_head
def test_upgraded_and_put_back(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    name = exceed(lab, -1)
    tier, _status, limit, used = customer(lab, name)
    diagnosed = operator.run(RUNBOOK, "diagnose", *named(name))
    found = diagnosed.findings()["customer_quota"]
    assert found["observed"] == f"over: {used} of {limit} credits"
    assert found["evidence"]["rows"][0]["tier"] == tier
    plan = diagnosed.diagnosis()["plan"]
    assert [step["id"] for step in plan["steps"]] == ["upgrade_customer", "reset_customer_usage"], diagnosed.output
    upgrade, reset = plan["steps"]
    assert f"before: {tier}; after: pro" in upgrade["preview"]
    assert f"before: {limit} credits; after: 100000" in upgrade["preview"]
    assert f"before: {used} of {limit}; after: 0" in reset["preview"]
    assert [(step["risk"], step["reversible"]) for step in plan["steps"]] == [("disruptive", True)] * 2

    checked = operator.run(RUNBOOK, "remediate", *named(name), "--check", "--diff")
    assert checked.status == 0, checked.output
    assert customer(lab, name) == (tier, "active", limit, used)
    run = operator.run(RUNBOOK, "remediate", *named(name, "-e", f"runbook_plan={plan['id']}"))
    assert run.status == 0, run.output
    assert run.diagnosis()["status"] == "healthy", run.output
    assert customer(lab, name) == ("pro", "active", 100000, used)
    record = operator.records[-1]
    # The second step of the ladder was not needed.
    assert [step["state"] for step in record["steps"]] == ["verified", "skipped"]
    assert record["steps"][0]["before"] == {"subscription_tier": tier, "monthly_credit_limit": limit}
    again = operator.run(RUNBOOK, "remediate", *named(name, "-e", f"runbook_plan={plan['id']}"))
    assert "Nothing left to do" in again.output

    # The record knows whom it was about.
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={record['id']}")
    assert undone.status == 0, undone.output
    assert customer(lab, name) == (tier, "active", limit, used)
    assert operator.records[-1]["steps"][0]["restored"] == record["steps"][0]["before"]
    no_secret(lab, operator, diagnosed, run, undone)


@with_head
def test_limit_is_never_lowered(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    name = exceed(lab, -1)
    state = customer(lab, name)
    low = named(name, "-e", "vritti_customer_limit=2", "-e", "runbook_max_risk=disruptive")
    run = operator.run(RUNBOOK, "remediate", "-e", "runbook_steps=upgrade_customer", *low)
    assert run.status == 2, run.output
    assert f"{name} may use 3 credits, and 2 would be less; set vritti_customer_limit" in " ".join(run.output.split())
    assert customer(lab, name) == state


@with_head
def test_tier_is_lowered_only_where_somebody_says_so(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    name = exceed(lab, -2)
    assert customer(lab, name)[0] == "enterprise"
    wanted = named(name, "-e", "runbook_steps=upgrade_customer")
    diagnosed = operator.run(RUNBOOK, "diagnose", *wanted)
    # The plan tells it, and nothing was begun.
    (step,) = diagnosed.diagnosis()["plan"]["steps"]
    assert step["problem"].startswith(f"{name} has the tier enterprise, and pro would be lower;"), diagnosed.output
    run = operator.run(RUNBOOK, "remediate", *wanted, "-e", "runbook_max_risk=disruptive")
    assert run.status == 2, run.output
    assert "or vritti_customer_lower to true" in " ".join(run.output.split())
    assert operator.records == []
    meant = operator.run(
        RUNBOOK, "remediate", *wanted, "-e", "vritti_customer_lower=true", "-e", "runbook_max_risk=disruptive"
    )
    assert meant.status == 0, meant.output
    assert customer(lab, name)[0] == "pro"
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert customer(lab, name)[:3] == ("enterprise", "active", 3)


@with_head
def test_plan_says_that_there_is_no_admin_key(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    name = exceed(lab, -1)
    diagnosed = operator.run(RUNBOOK, "diagnose", *named(name, "-e", json.dumps({"vritti_admin_api_key": ""})))
    told = {step["id"]: step["problem"] for step in diagnosed.diagnosis()["plan"]["steps"]}
    assert list(told) == ["upgrade_customer", "reset_customer_usage"], diagnosed.output
    assert all(problem.startswith("vritti_admin_api_key is empty; put the ADMIN_API_KEY") for problem in told.values())


@with_metrics
def test_reset_and_added_again_once(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    name = exceed(lab, -3)
    wanted = named(name, "-e", "runbook_steps=reset_customer_usage")
    run = operator.apply(RUNBOOK, *wanted)
    assert run.status == 0, run.output
    assert "customer_quota fixed" in run.output
    assert customer(lab, name)[3] == 0
    record = operator.records[-1]["id"]
    assert lab.search(lab.key(-3)).status == 200
    diagnosed = operator.run(RUNBOOK, "diagnose", *named(name))
    assert diagnosed.findings()["customer_quota"]["observed"] == "within: 1 of 3 credits"
    (reset,) = diagnosed.findings()["customer_quota"]["evidence"]["rows"]
    assert reset["last_reset"] > reset["created_at"]

    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={record}")
    assert undone.status == 0, undone.output
    # What was used since stays.
    assert customer(lab, name)[3] == 5
    # As if the run that undid it had been killed before it could write that down.
    path = operator.state / "records" / f"{record}.json"
    data = json.loads(path.read_text())
    data["state"], data["steps"][0]["state"] = "rolling back", "undoing"
    path.write_text(json.dumps(data))
    again = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={record}")
    assert again.status == 0, again.output
    assert customer(lab, name)[3] == 5
    marks = query(lab, "SELECT details FROM audit_log WHERE customer_id = ? AND details LIKE '%undoes_reset%'", name)
    assert len(marks) == 1
    assert "'credits_added': 4" in marks[0][0]
    assert lab.search(lab.key(-3)).status == 200
    assert customer(lab, name)[3] == 6
    no_secret(lab, operator, run, undone, again)


@with_head
def test_suspended_only_where_it_is_asked_for(operator: Operator, lab: RunningLab) -> None:
    settle(lab)
    name = exceed(lab, -4)
    key = lab.send("POST", f"/api/v1/customers/{name}/api-keys", {"customer_id": name, "name": "new"}, lab.admin)
    fresh = {"X-API-Key": key.json["api_key"]}
    wanted = named(name, "-e", "runbook_steps=suspend_customer")
    diagnosed = operator.run(RUNBOOK, "diagnose", *wanted)
    (step,) = diagnosed.diagnosis()["plan"]["steps"]
    assert (step["id"], step["because"]) == ("suspend_customer", [])
    assert "before: active; after: suspended" in step["preview"]
    plan = diagnosed.diagnosis()["plan"]["id"]
    run = operator.run(RUNBOOK, "remediate", *wanted, "-e", f"runbook_plan={plan}")
    assert run.status == 0, run.output
    assert run.diagnosis()["status"] == "healthy", run.output
    assert run.findings()["customer_quota"]["observed"] == "suspended: 4 of 3 credits"
    # A key that Vritti remembers, and one that it does not.
    assert lab.search(lab.key(-4)).status == 200
    assert lab.search(fresh).status == 401
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert customer(lab, name)[1] == "active"
    assert lab.search(fresh).status == 200
    assert key.json["api_key"] not in diagnosed.output + run.output + undone.output


@with_head
def test_killed_before_the_reset(operator: Operator, lab: RunningLab) -> None:
    """What was begun and not carried out adds nothing."""
    settle(lab)
    name = exceed(lab, -5)
    # The step fails where Vritti refuses the key, and its record stays with a step that may have changed something.
    wrong = named(name, "-e", "runbook_steps=reset_customer_usage", "-e", "vritti_admin_api_key=no-such-key-0123456789")
    run = operator.apply(RUNBOOK, *wrong)
    assert run.status == 2, run.output
    assert "answers 401 and not 200: Invalid admin API key; check admin_api_key." in " ".join(run.output.split())
    assert "no-such-key" not in run.output
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert customer(lab, name)[3] == 4


# The module, as Ansible runs it.


@pytest.fixture
def module(lab: RunningLab, tmp_path: Path) -> Any:
    def run(*words: str, **options: Any) -> dict[str, Any]:
        given = {"url": lab.url, "admin_api_key": lab.inventory["vritti_admin_api_key"], **options}
        status, output = ansible(
            tmp_path,
            "ansible",
            "localhost",
            "-i",
            "localhost,",
            "-c",
            "local",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            "-vvv",
            "-m",
            "oncall.runbooks.vritti_customer",
            "-a",
            json.dumps(given),
            *words,
            environment={"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        )
        assert "=> {" in output, output
        assert lab.inventory["vritti_admin_api_key"] not in output
        result: dict[str, Any] = json.JSONDecoder().raw_decode("{" + output.split("=> {", 1)[1])[0]
        return {**result, "rc": status, "output": output}

    return run


def test_module(module: Any, lab: RunningLab, tmp_path: Path) -> None:
    settle(lab)
    name = lab.customer(FIRST)["customer_id"]
    tier, _status, limit, _used = customer(lab, name)
    wanted = {"customer": name, "subscription_tier": "starter", "status": "suspended"}
    credentials = lab.url.replace("://", "://someone:s3cret-of-the-url@")
    checked = module("--check", "--diff", **wanted, url=credentials)
    assert (checked["rc"], checked["changed"]) == (0, True), checked["output"]
    assert "s3cret-of-the-url" not in checked["output"]
    assert customer(lab, name)[:3] == (tier, "active", limit)
    # Nor where the arguments are refused.
    refused = module(customer=name, subscription_tier="golden", url=credentials)
    assert refused["msg"].startswith("value of subscription_tier must be one of"), refused["output"]
    # What was typed on the command line, which Ansible's own error repeats, is none of the module's.
    answer = json.dumps({name: value for name, value in refused.items() if name != "output"})
    assert ("127.0.0.1" in answer, "s3cret-of-the-url" in answer) == (True, False), answer
    result = module(**wanted)
    assert (result["rc"], result["changed"]) == (0, True), result["output"]
    assert customer(lab, name)[:3] == ("starter", "suspended", 10000)
    assert result["after"] == checked["after"]
    assert result["before"]["subscription_tier"] == tier
    assert "within the last 300 s" in result["notes"][0]
    again = module(**wanted)
    assert (again["changed"], again["before"]) == (False, result["after"])
    audited = "SELECT count(*) FROM audit_log WHERE customer_id = ? AND action = 'UPDATE'"
    assert query(lab, audited, name) == [(1,)]
    back = module(customer=name, subscription_tier=tier, monthly_credit_limit=limit, status="active")
    assert back["after"]["monthly_credit_limit"] == limit
    lab.search(lab.key(FIRST))
    receipt = {"customer": name, "receipt": str(tmp_path / "kept" / "receipt.json")}
    receipt["customers_db"] = lab.inventory["vritti_customers_db"]
    reset = module(**receipt, reset_usage=True)
    used = reset["before"]["credits_used_current_month"]
    assert (used > 0, reset["after"]["credits_used_current_month"]) == (True, 0), reset["output"]
    assert customer(lab, name)[3] == 0
    for changed in (True, False):
        restored = module(**receipt, restore_usage=True)
        assert (restored["changed"], restored["after"]["credits_used_current_month"]) == (changed, used)
        assert customer(lab, name)[3] == used
    unknown = module(customer="nobody-at-all", status="suspended")
    assert (unknown["rc"], unknown["changed"]) == (2, False)
    assert "has no customer 'nobody-at-all'" in unknown["msg"]
    wrong = module(customer=name, status="suspended", admin_api_key="no-such-key-0123456789")
    assert wrong["msg"].endswith("answers 401 and not 200: Invalid admin API key; check admin_api_key.")


@with_head
def test_server_without_an_admin_key(module: Any, lab: RunningLab) -> None:
    """It is discarded for a word in it, which the later versions say as if there was none."""
    name = lab.customer(FIRST)["customer_id"]
    kept = lab.inventory["vritti_admin_api_key"]
    lab.set_environment(ADMIN_API_KEY="the-latest-key-of-all-0123456789abcdef")
    lab.restart("vritti")
    try:
        result = module(customer=name, status="suspended")
        assert "Admin API key not configured on server; set its ADMIN_API_KEY" in result["msg"]
        assert customer(lab, name)[1] == "active"
    finally:
        lab.set_environment(ADMIN_API_KEY=kept)
        lab.restart("vritti")

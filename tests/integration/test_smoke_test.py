# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules vritti_smoke_test and kyrodb_snapshot, as Ansible runs them, against the lab."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_helpers import RunningLab, running_lab
from tests.integration.playbook_helpers import ansible

BREAKER_OPENED = "Circuit breaker OPENED: KyroDB"


@pytest.fixture(scope="module", params=["v0.1.0", "head"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("smoke"), "--vritti", request.param) as lab:
        yield lab


@pytest.fixture()
def run(tmp_path: Path) -> Any:
    def run(module: str, *words: str, **options: Any) -> dict[str, Any]:
        """The module's result, with the exit status of Ansible under `rc`."""
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
            f"oncall.runbooks.{module}",
            "-a",
            json.dumps(options),
            *words,
            environment={"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        )
        assert "=> {" in output, output
        result: dict[str, Any] = json.JSONDecoder().raw_decode("{" + output.split("=> {", 1)[1])[0]
        return {**result, "rc": status, "output": output}

    return run


def options(lab: RunningLab, **more: Any) -> dict[str, Any]:
    return {
        "url": lab.url,
        "kyrodb_text": {"address": lab.inventory["kyrodb_text_address"]},
        "kyrodb_image": {"address": lab.inventory["kyrodb_image_address"]},
        "reflection_seconds": 1,
        **more,
    }


def documents(lab: RunningLab) -> list[int]:
    """How many documents each instance has, by its own count."""
    counts = []
    for instance in ("text", "image"):
        answer = lab.call("CreateSnapshot", instance)
        counts.append(answer.documents_snapshotted)
    return counts


def rows(lab: RunningLab, statement: str, *values: str) -> list[tuple[Any, ...]]:
    """Read what Vritti has in its database."""
    connection = sqlite3.connect(lab.inventory["vritti_customers_db"])
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def test_customer_of_its_own(lab: RunningLab, run: Any) -> None:
    admin = lab.inventory["vritti_admin_api_key"]
    before = documents(lab)
    result = run("vritti_smoke_test", **options(lab, admin_api_key=admin))
    assert result["rc"] == 0, result["output"]
    assert (result["changed"], result["left"]) == (True, [])
    assert (result["captured"]["status"], result["searched"]["status"]) == (201, 200)
    assert result["searched"]["found"] is True
    assert len(result["cleaned"]) == 3
    assert documents(lab) == before
    customer = result["customer"]
    assert customer.startswith("oncall-smoke-")
    assert rows(lab, "SELECT status FROM customers WHERE customer_id = ?", customer) == [("deleted",)]
    assert rows(lab, "SELECT is_active FROM api_keys WHERE customer_id = ?", customer) == [(0,)]
    has_index = "episodes_index" in " ".join(result["notes"])
    index = "SELECT name FROM sqlite_master WHERE name = 'episodes_index'"
    assert has_index == bool(rows(lab, index))
    assert admin not in result["output"]
    assert "em_live_" not in result["output"]


def test_customer_that_exists(lab: RunningLab, run: Any) -> None:
    customer = lab.customer()
    before = documents(lab)
    keys = rows(lab, "SELECT key_id, is_active FROM api_keys")
    given = {"customer": customer["customer_id"], "api_key": customer["api_key"]}
    result = run("vritti_smoke_test", **options(lab, **given))
    assert result["rc"] == 0, result["output"]
    assert (result["left"], len(result["cleaned"])) == ([], 1)
    assert documents(lab) == before
    assert rows(lab, "SELECT key_id, is_active FROM api_keys") == keys
    assert rows(lab, "SELECT status FROM customers WHERE customer_id = ?", customer["customer_id"]) == [("active",)]
    assert customer["api_key"] not in result["output"]


def test_key_for_a_customer_that_exists(lab: RunningLab, run: Any) -> None:
    customer = lab.customer()["customer_id"]
    admin = lab.inventory["vritti_admin_api_key"]
    result = run("vritti_smoke_test", **options(lab, customer=customer, admin_api_key=admin))
    assert result["rc"] == 0, result["output"]
    assert len(result["cleaned"]) == 2
    named = "SELECT is_active FROM api_keys WHERE customer_id = ? AND name LIKE 'oncall-smoke-%'"
    assert rows(lab, named, customer) == [(0,)]
    assert rows(lab, "SELECT status FROM customers WHERE customer_id = ?", customer) == [("active",)]


def test_keys_that_are_wrong(lab: RunningLab, run: Any) -> None:
    before = documents(lab)
    customers = rows(lab, "SELECT customer_id, status FROM customers")
    wrong = "em_live_" + "0" * 64
    customer = lab.customer()["customer_id"]
    result = run("vritti_smoke_test", **options(lab, customer=customer, api_key=wrong))
    assert (result["rc"], result["changed"]) == (2, False)
    assert "answers 401" in result["msg"]
    assert result["msg"].endswith("; check customer and api_key.")
    assert wrong not in result["output"]
    result = run("vritti_smoke_test", **options(lab, admin_api_key="not-the-right-one"))
    assert (result["rc"], result["changed"]) == (2, False)
    assert result["msg"].endswith("answers 401 and not 201: Invalid admin API key; check admin_api_key.")
    assert "not-the-right-one" not in result["output"]
    assert documents(lab) == before
    assert rows(lab, "SELECT customer_id, status FROM customers") == customers


def test_key_of_another_customer_leaves_nothing_untold(lab: RunningLab, run: Any) -> None:
    """v0.1.0 has no way to tell before; the episode is in the other one's namespace then, and that is said."""
    one, other = lab.customer(-1), lab.customer(-2)
    before = documents(lab)
    result = run("vritti_smoke_test", **options(lab, customer=one["customer_id"], api_key=other["api_key"]))
    assert result["rc"] == 2, result["output"]
    if documents(lab) == before:
        assert "answers 403" in result["msg"]
        assert result["changed"] is False
        return
    assert len(result["left"]) == 1
    assert f"if {one['customer_id']} is not the customer of the API key" in result["msg"]
    namespace = f"{other['customer_id']}:failures"
    assert lab.call("Delete", doc_id=result["captured"]["episode_id"], namespace=namespace).existed


def test_check_mode_sends_nothing(lab: RunningLab, run: Any) -> None:
    admin = lab.inventory["vritti_admin_api_key"]
    before = documents(lab)
    customers = rows(lab, "SELECT count(*) FROM customers")
    result = run("vritti_smoke_test", "--check", **options(lab, admin_api_key=admin))
    assert (result["rc"], result["changed"]) == (0, True)
    assert result["msg"].startswith("Would make a customer and an API key, capture one episode")
    assert (documents(lab), rows(lab, "SELECT count(*) FROM customers")) == (before, customers)


def test_instance_that_is_down(tmp_path: Path, run: Any) -> None:
    """More runs than the breaker bears, and its counter stands where it stood."""
    with running_lab(tmp_path) as lab:
        admin = lab.inventory["vritti_admin_api_key"]
        lines = len(lab.log)
        for instance in ("text", "image"):
            assert lab.break_fault(f"kyrodb-{instance}-down").status == 200
            for check in (("--check",), (), ()):
                result = run("vritti_smoke_test", *check, **options(lab, admin_api_key=admin))
                assert (result["rc"], result["changed"]) == (2, False)
                wanted = f"Nothing was sent to Vritti, as KyroDB's {instance} instance cannot be asked: KyroDB at "
                assert result["msg"].startswith(wanted)
            # Vritti stays the process that it is.
            assert lab.heal_fault(f"kyrodb-{instance}-down").status == 200
        assert not [line for line in lab.log[lines:] if "/api/v1/" in line or "health check failed" in line]
        lab.break_fault("kyrodb-image-down")
        for _number in range(4):
            lab.get("/health/readiness")
        assert not [line for line in lab.log if BREAKER_OPENED in line]
        lab.get("/health/readiness")
        assert [line for line in lab.log if BREAKER_OPENED in line]


def test_breaker_that_is_open(lab: RunningLab, run: Any) -> None:
    admin = lab.inventory["vritti_admin_api_key"]
    assert lab.break_fault("breaker-stuck").status == 200
    try:
        result = run("vritti_smoke_test", **options(lab, admin_api_key=admin))
    finally:
        lab.heal_fault("breaker-stuck")
    assert (result["rc"], result["changed"]) == (2, True)
    assert "answers 500 and not 201" in result["msg"]
    assert "restart Vritti, whose circuit breaker does not close again by itself" in result["msg"]
    assert (result["captured"]["status"], result["searched"]) == (500, None)
    assert len(result["cleaned"]) == 2
    statuses = "SELECT status FROM customers WHERE customer_id = ?"
    assert rows(lab, statuses, result["customer"]) == [("deleted",)]


def test_snapshot(lab: RunningLab, run: Any) -> None:
    folder = lab.data_dir / "kyrodb_text" / "data"
    address = lab.inventory["kyrodb_text_address"]
    before = sorted(folder.glob("*.snap"))
    result = run("kyrodb_snapshot", "--check", address=address)
    assert (result["rc"], result["changed"], sorted(folder.glob("*.snap"))) == (0, True, before)
    result = run("kyrodb_snapshot", address=address)
    assert (result["rc"], result["changed"]) == (0, True), result["output"]
    new = [path for path in folder.glob("*.snap") if path not in before]
    assert [str(path) for path in new] == [result["path"]]
    assert new[0].stat().st_size == result["size_bytes"]
    assert result["documents"] == documents(lab)[0]
    assert result["seconds"] >= 0
    # Nothing listens there.
    result = run("kyrodb_snapshot", address="127.0.0.1:9")
    assert result["rc"] == 2
    assert result["msg"] == "KyroDB at 127.0.0.1:9 takes no connection: Connection refused."

# SPDX-License-Identifier: GPL-3.0-or-later
"""data_recovery against the lab: Vritti's customer database is backed up, damaged, restored and put back, in use."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import Operator


@pytest.fixture(scope="module", params=["head", "v0.1.0"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", request.param) as running:
        running.capture()
        yield running


@pytest.fixture
def operator(lab: RunningLab, tmp_path: Path) -> Operator:
    return Operator(lab, tmp_path)


def database(lab: RunningLab) -> Path:
    return Path(lab.inventory["vritti_customers_db"])


def query(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return connection.execute(statement).fetchall()


# What is the same for both lines, or exists in one of them only.
with_head = pytest.mark.parametrize("lab", ["head"], indirect=True)


def is_head(lab: RunningLab) -> bool:
    return bool(query(database(lab), "SELECT 1 FROM sqlite_master WHERE name = 'doc_id_counters'"))


def captured(lab: RunningLab) -> int:
    answer = lab.capture()
    assert answer.status == 201, answer.text
    return int(answer.json["episode_id"])


def damage(path: Path, table: str) -> None:
    """Overwrite the first page of a table with noise."""
    query(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = query(path, f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'")[0]  # noqa: S608
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))


def customers(path: Path) -> int:
    return int(query(path, "SELECT count(*) FROM customers")[0][0])


def test_backed_up_damaged_restored_and_put_back(operator: Operator, lab: RunningLab) -> None:
    path, backups = database(lab), Path(lab.inventory["vritti_backup_dir"])
    shutil.rmtree(backups, ignore_errors=True)
    run = operator.run("data_recovery", "diagnose")
    assert run.diagnosis()["label"] == "P3", run.output
    assert run.findings()["customers_db_backup"]["suggests"] == ["backup_database"]
    run = operator.run("data_recovery", "remediate", "-e", "runbook_max_risk=safe")
    assert run.status == 0, run.output
    assert "customers_db_backup fixed" in run.output
    assert run.diagnosis()["status"] == "healthy", run.output
    assert sorted(name.suffix for name in backups.iterdir())[-1] == ".json"

    given = [captured(lab) for _number in range(3)]
    count = customers(path)
    damage(path, "audit_log")
    diagnosed = operator.run("data_recovery", "diagnose")
    assert diagnosed.diagnosis()["label"] == "P1", diagnosed.output
    found = diagnosed.findings()["customers_db"]
    assert (found["observed"], found["suggests"]) == ("corrupt", ["restore_database"])
    assert "would replace the last good copy with this one" in found["evidence"]["literal"]["cp"]
    (step,) = diagnosed.diagnosis()["plan"]["steps"]
    assert (step["id"], step["risk"], step["reversible"]) == ("restore_database", "destructive", True)
    assert f"quarantine and restore it: from {backups}/customers.db." in step["preview"]

    before = path.stat()
    plan = diagnosed.diagnosis()["plan"]["id"]
    refused = operator.run("data_recovery", "remediate", "-e", "runbook_max_risk=disruptive")
    assert refused.status != 0
    run = operator.run("data_recovery", "remediate", "-e", f"runbook_plan={plan}")
    assert run.status == 0, run.output
    assert "customers_db fixed" in run.output
    assert run.diagnosis()["status"] == "healthy", run.output
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert customers(path) == count
    after = path.stat()
    # Vritti has it open all the time: the same file, and what it writes next is there.
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)
    assert lab.get("/health/liveness").status == 200
    new = [captured(lab) for _number in range(3)]
    # No number of an episode is given out twice, for KyroDB would overwrite what has it.
    assert not set(new) & set(given)
    (quarantine,) = (operator.state / "private").glob("*/restore_database/customers.db.quarantine-*")
    assert json.loads((quarantine / "customers.db.manifest.json").read_text())["state"] == "corrupt"

    record = operator.records[-1]["id"]
    undone = operator.run("data_recovery", "rollback", "-e", f"runbook_rollback_id={record}")
    assert undone.status == 0, undone.output
    assert "put back what this step put there before it restored" in " ".join(undone.output.split())
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        query(path, "SELECT * FROM audit_log")
    # And forward again.
    again = operator.apply("data_recovery")
    assert again.status == 0, again.output
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


@with_head
def test_counter_that_was_set_back_by_hand(operator: Operator, lab: RunningLab) -> None:
    """The runbook's own cp of an older database; the next restore sees in KyroDB what was given out."""
    path = database(lab)
    highest = captured(lab)
    # Neither the database nor its backup knows how far it was.
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("UPDATE doc_id_counters SET next_doc_id = 1")
    backed = operator.run(
        "data_recovery", "remediate", "-e", "runbook_steps=backup_database", "-e", "runbook_max_risk=safe"
    )
    assert backed.status == 0, backed.output
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("UPDATE customers SET organization_name = 'changed by hand'")
    wanted = ["-e", "runbook_steps=restore_database"]
    run = operator.apply("data_recovery", *wanted)
    assert run.status == 0, run.output
    assert query(path, "SELECT next_doc_id FROM doc_id_counters")[0][0] > highest


@with_head
def test_database_that_vritti_made_anew(operator: Operator, lab: RunningLab) -> None:
    """A missing database is created by the first request: sound, empty, and every key is refused."""
    path = database(lab)
    backed = operator.run(
        "data_recovery", "remediate", "-e", "runbook_steps=backup_database", "-e", "runbook_max_risk=safe"
    )
    assert backed.status == 0, backed.output
    count = customers(path)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    missing = operator.run("data_recovery", "diagnose")
    assert missing.findings()["customers_db"]["observed"] == "missing", missing.output
    assert (
        "would create the file and say ok"
        in missing.findings()["customers_db"]["evidence"]["literal"]["integrity_check"]
    )
    assert not path.exists()
    lab.restart("vritti")
    eventually(lambda: lab.capture().status == 401 and path.exists(), "Vritti makes a database")
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    diagnosed = operator.run("data_recovery", "diagnose")
    assert diagnosed.findings()["customers_db"]["observed"] == "ok", diagnosed.output
    assert "no customer" in diagnosed.diagnosis()["summary"]
    run = operator.apply("data_recovery")
    assert run.status == 0, run.output
    assert "customers_db_customers fixed" in run.output
    assert customers(path) == count
    lab.restart("vritti")
    eventually(lambda: lab.capture().status == 201, "keys are valid again")


def test_diagnosis_leaves_no_trace(operator: Operator, lab: RunningLab) -> None:
    path = database(lab)
    before = {name.name: (name.read_bytes(), name.stat().st_mtime_ns) for name in path.parent.glob("customers.db*")}
    run = operator.run("data_recovery", "diagnose", "-e", "runbook_steps=restore_database,backup_current")
    assert run.status == 0, run.output
    after = {name.name: (name.read_bytes(), name.stat().st_mtime_ns) for name in path.parent.glob("customers.db*")}
    # -shm holds the marks of readers.
    assert {name: it for name, it in after.items() if not name.endswith("-shm")} == {
        name: it for name, it in before.items() if not name.endswith("-shm")
    }
    # v0.1.0 keeps one connection, and what is in its log is not in a plain copy.
    literal = run.findings()["customers_db"]["evidence"]["literal"]
    assert ("-wal" in literal.get("cp", "")) is not is_head(lab)


@with_head
def test_copy_beside_it_is_the_runbooks_first_step(operator: Operator, lab: RunningLab) -> None:
    wanted = ["-e", "runbook_steps=backup_current", "-e", "runbook_max_risk=safe"]
    run = operator.run("data_recovery", "remediate", *wanted)
    assert run.status == 0, run.output
    copy = Path(f"{database(lab)}.bak")
    assert customers(copy) == customers(database(lab))
    checked = operator.run("data_recovery", "remediate", *wanted, "--check", "--diff")
    assert checked.status == 0, checked.output

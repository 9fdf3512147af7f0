# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for SQLite as somebody uses them in a play of their own: through Ansible, in check mode, with --diff."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.playbook_helpers import ansible

pytestmark = pytest.mark.both_ends


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "what's ?.db"
    run(path, "CREATE TABLE customers (id TEXT PRIMARY KEY)", "INSERT INTO customers VALUES ('a'), ('b')")
    return path


def run(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def task(directory: Path, module: str, options: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
    """The result of one task."""
    status, output = ansible(
        directory,
        *("ansible", "localhost", "-m", f"oncall.runbooks.{module}", "-a", json.dumps(dict(options)), *arguments),
        environment={"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"},
    )
    said = output[output.index("=> {") + 3 :]
    result: dict[str, Any] = json.JSONDecoder().raw_decode(said)[0]
    return {**result, "failed": status != 0, "output": output}


def test_from_a_look_to_undoing_a_restore(database: Path, tmp_path: Path) -> None:
    seen = task(tmp_path, "sqlite_info", {"path": str(database), "queries": {"n": "SELECT count(*) FROM customers"}})
    # Ansible adds the state of a file to results that have a path; it must not take the place of ours.
    assert (seen["state"], seen["database"], seen["query_results"]) == ("ok", str(database), {"n": 2})
    folder = tmp_path / "backups"
    folder.mkdir()
    options = {"path": str(database), "dest": str(folder)}
    assert task(tmp_path, "sqlite_backup", options, "--check")["changed"]
    assert list(folder.iterdir()) == []
    made = task(tmp_path, "sqlite_backup", options, "--diff")
    assert (made["changed"], made["verified"], made["rows"]) == (True, True, {"customers": 2})
    assert made["sha256"] in made["output"]
    assert not task(tmp_path, "sqlite_backup", options)["changed"]
    run(database, "DELETE FROM customers WHERE id = 'a'", "INSERT INTO customers VALUES ('c'), ('d')")
    restoring = {"path": str(database), "backup_dir": str(folder), "expect_tables": ["customers"]}
    foreseen = task(tmp_path, "sqlite_restore", restoring, "--check", "--diff")
    told = task(tmp_path, "sqlite_restore", restoring)
    for key in ("action", "lost", "backup", "summary", "changed"):
        assert told[key] == foreseen[key]
    assert (told["action"], told["lost"]["customers"]["rows"], told["lost"]["customers"]["back"]) == ("restored", 2, 1)
    assert "customers: 2 rows lost, 1 rows come back" in told["summary"]
    again = task(tmp_path, "sqlite_restore", restoring)
    assert (again["action"], again["changed"], again["undo"]) == ("none", False, None)
    undone = task(tmp_path, "sqlite_restore", told["undo"])
    assert (undone["action"], undone["lost"]["customers"]["rows"]) == ("restored", 1)


def test_failures_are_sentences(database: Path, tmp_path: Path) -> None:
    missing = task(tmp_path, "sqlite_info", {"path": str(tmp_path / "none.db"), "depth": "full"})
    assert (missing["state"], (tmp_path / "none.db").exists()) == ("missing", False)
    refused = task(tmp_path, "sqlite_backup", {"path": str(database), "dest": str(database)})
    assert refused["failed"]
    assert refused["msg"] == f"{database} is the database itself; name another file as dest."
    refused = task(tmp_path, "sqlite_restore", {"path": str(database)})
    assert refused["msg"] == "backup is latest_verified, which is looked for in backup_dir; give backup_dir."
    for module, options in (("sqlite_info", {}), ("sqlite_backup", {"dest": "/tmp/"}), ("sqlite_restore", {})):
        broken = task(tmp_path, module, {"path": "/etc/passwd/x", **options})
        assert broken["failed"] or broken["state"] == "missing"
        assert "Traceback" not in broken["output"]

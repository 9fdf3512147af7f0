# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_backups
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import sqlite
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look, source
from ansible_collections.oncall.runbooks.tests.unit.module_utils.sqlite_helpers import (
    Client,
    damage_data,
    damage_index,
    flip_in_value,
    make,
    run,
)


@pytest.fixture()
def path(tmp_path):
    return make(tmp_path / "customers.db")


def seen(path, **more):
    return look("sqlite", path=str(path), **more)


class TestState:
    def test_sound(self, path):
        found = seen(path)
        assert (found["value"], found["note"]) == ("ok", "")
        assert (found["evidence"]["journal_mode"], found["evidence"]["literal"]) == ("wal", {})

    @pytest.mark.parametrize(
        "spoil, value, command, says",
        [
            (os.unlink, "missing", "integrity_check", "would create the file and say ok"),
            (lambda it: os.truncate(it, 0), "empty", "integrity_check", '"PRAGMA integrity_check" says ok'),
            (damage_data, "corrupt", "cp", "would replace the last good copy with this one"),
            (damage_index, "corrupt_index", "cp", "would replace the last good copy with this one"),
        ],
        ids=["missing", "empty", "corrupt", "index"],
    )
    def test_what_the_runbooks_commands_would_have_told(self, path, spoil, value, command, says):
        spoil(path)
        found = seen(path, depth="full")
        assert found["value"] == value
        assert says in found["evidence"]["literal"][command]
        assert says in found["note"]

    def test_what_cp_would_miss(self, path):
        with Client(path, "PRAGMA wal_autocheckpoint=0", "INSERT INTO customers (id) VALUES ('new')") as client:
            found = seen(path)
            assert found["evidence"]["literal"]["cp"] == (
                "cp customers.db would miss 1 of 201 rows of customers, which are in its -wal"
            )
            assert found["evidence"]["holders"][0].endswith(
                f"(PID {client.pid}, {helpers.run_command(['id', '-un'])[1].strip()})"
            )

    def test_broken_references_are_another_value(self, path):
        run(path, "DELETE FROM customers WHERE id = 'c-000003'")
        assert seen(path)["value"] == "foreign_keys"
        found = seen(path, value="broken_references")
        assert (found["value"], '"PRAGMA integrity_check" says ok' in found["note"]) == (1, True)
        damage_data(path)
        with pytest.raises(NoAnswer, match="is corrupt, so its references were not followed"):
            seen(path, value="broken_references")

    def test_deadline(self, tmp_path):
        path = make(tmp_path / "large.db", rows=20000)
        with pytest.raises(NoAnswer, match="did not end within") as caught:
            look("sqlite", helpers.context(timeout=1e-9), path=str(path), depth="full")
        assert caught.value.kind == "timeout"

    def test_file_is_looked_at_once(self, path):
        at = helpers.context()
        first = look("sqlite", at, path=str(path))
        os.unlink(path)
        assert look("sqlite", at, path=str(path))["value"] == first["value"] == "ok"


class TestValues:
    def test_rows_query_and_tables(self, path):
        assert seen(path, value="rows", table="customers")["value"] == 200
        assert seen(path, value="query", query="SELECT max(id) FROM customers")["value"] == "c-000199"
        found = seen(path, value="missing_tables", expect_tables=["customers", "sessions"])
        assert (found["value"], found["evidence"]["missing"]) == (1, ["sessions"])

    def test_parameters_are_bound_and_rows_are_evidence(self, path):
        text = "SELECT count(*) FROM customers WHERE id >= ?1"
        rows = "SELECT id, email, x'00ff' AS raw FROM customers WHERE id >= ?1 ORDER BY id DESC"
        found = seen(path, value="query", query=text, rows_query=rows, params=["c-000150"])
        assert (found["value"], found["evidence"]["worst"]) == (50, "c-000199")
        assert len(found["evidence"]["rows"]) == 10
        assert found["evidence"]["rows"][0] == {"id": "c-000199", "email": "199@example.com", "raw": "00ff"}
        assert found["evidence"]["params"] == ["c-000150"]
        json.dumps(found)
        # What would be a statement if it were text.
        strange = seen(path, value="query", query=text, rows_query=rows, params=["z' OR 1=1; DROP TABLE customers; --"])
        assert (strange["value"], strange["evidence"]["rows"], "worst" in strange["evidence"]) == (0, [], False)
        with pytest.raises(NoAnswer, match=r"^There is no row for 'c-none'\.$") as caught:
            seen(path, value="query", query="SELECT email FROM customers WHERE id = ?", params=["c-none"])
        assert caught.value.kind == "no data"
        for wrong in ({"params": []}, {"params": ["c-000001"], "rows_query": "DELETE FROM customers WHERE id = ?"}):
            with pytest.raises(NoAnswer, match="The query is refused"):
                seen(path, value="query", query="SELECT email FROM customers WHERE id = ?", **wrong)

    def test_same_query_is_asked_once(self, path):
        at = helpers.context()
        asked = {"path": str(path), "value": "query", "query": "SELECT count(*) FROM customers WHERE id > ?"}
        assert look("sqlite", at, **asked, params=["c-000100"])["value"] == 99
        os.unlink(path)
        assert look("sqlite", at, **asked, params=["c-000100"])["value"] == 99
        with pytest.raises(NoAnswer, match="its state is missing"):
            look("sqlite", at, **asked, params=["c-000101"])

    def test_nothing_to_read(self, tmp_path):
        for more in ({"value": "rows", "table": "t"}, {"value": "missing_tables", "expect_tables": ["t"]}):
            with pytest.raises(NoAnswer, match="its state is missing"):
                seen(tmp_path / "none.db", **more)

    def test_relative_path(self, path, monkeypatch):
        with pytest.raises(NoAnswer, match="nobody says to what"):
            seen("customers.db")
        monkeypatch.chdir(path.parent)
        with helpers.Web() as server:
            port = int(server.url.rpartition(":")[2])
            assert seen("customers.db", port=port)["value"] == "ok"
        with pytest.raises(NoAnswer, match=f"nothing listens on port {port}"):
            seen("customers.db", port=port)

    @pytest.mark.parametrize("value, key", [("rows", "table"), ("query", "query"), ("missing_tables", "expect_tables")])
    def test_validation(self, value, key):
        with pytest.raises(ValueError, match=f"value is {value}, which takes {key}"):
            sqlite.validate(source("sqlite", path="/a.db", value=value))

    @pytest.mark.parametrize("key, given", [("rows_query", "SELECT 1"), ("params", ["a"])])
    def test_what_goes_with_a_query_alone(self, key, given):
        with pytest.raises(ValueError, match=f"{key} goes with the value query, and value is state"):
            sqlite.validate(source("sqlite", path="/a.db", **{key: given}))

    def test_description(self):
        asked = source("sqlite", path="/a.db", value="query", query="SELECT ?", params=["x"])
        assert sqlite.describe(asked) == "sqlite /a.db SELECT ? for 'x'"
        assert sqlite.describe(source("sqlite", path="/a.db")) == "sqlite /a.db"
        assert (
            sqlite.describe(source("sqlite", path="/a.db", value="backup_age", backup_dir="/b"))
            == "backups of a.db in /b"
        )
        assert "latest_verified over /a.db" in sqlite.describe(source("sqlite", path="/a.db", value="restore"))


class TestAllowed:
    def test_what_the_query_says_is_why_not(self, path):
        ask = {
            "value": "allowed",
            "query": "SELECT CASE WHEN ?2 > 3 THEN ?1 || ' is too many.' END",
            "params": ["it", 4],
        }
        found = seen(path, **ask)
        assert (found["value"], found["note"]) == (False, "it is too many.")
        found = seen(path, **{**ask, "params": ["it", 3]})
        assert (found["value"], found["note"]) == (True, None)

    def test_it_takes_a_query(self):
        with pytest.raises(ValueError, match="value is allowed, which takes query"):
            sqlite.validate(source("sqlite", path="/a.db", value="allowed"))


class TestBackups:
    def age(self, path, folder, **more):
        return seen(path, value="backup_age", backup_dir=str(folder), **more)

    def test_newest_that_can_be_trusted(self, path, tmp_path):
        folder = tmp_path / "backups"
        with pytest.raises(NoAnswer, match=r"does not exist: there is no backup of customers\.db") as caught:
            self.age(path, folder)
        assert caught.value.kind == "no data"
        folder.mkdir()
        with pytest.raises(NoAnswer, match=r"has no backup of customers.db\."):
            self.age(path, folder)
        made = sqlite_backups.take(str(path), str(folder))["backup"]
        found = self.age(path, folder)
        assert 0 <= found["value"] < 60
        assert (found["evidence"]["backup"], found["evidence"]["manifest"]) == (made, True)
        flip_in_value(made)
        with pytest.raises(NoAnswer, match=r"can be trusted: .* is not what was saved"):
            self.age(path, folder)
        by_hand = folder / "customers.db.20200101"
        shutil.copy(path, by_hand)
        os.utime(by_hand, (1577880000, 1577880000))
        found = self.age(path, folder)
        assert found["value"] == pytest.approx(time.time() - 1577880000, abs=100)
        assert "it has no manifest" in found["note"]
        assert "may miss its newest rows" in found["note"]

    def test_no_folder_is_known(self, path):
        with pytest.raises(Absent):
            seen(path, value="backup_age")

    def test_what_a_restore_would_do(self, path, tmp_path):
        folder = tmp_path / "backups"
        folder.mkdir()
        options = {"value": "restore", "backup_dir": str(folder)}
        with pytest.raises(NoAnswer, match="has no backup that can be trusted"):
            seen(path, **options)
        made = sqlite_backups.take(str(path), str(folder))["backup"]
        assert seen(path, **options)["value"] == f"nothing would change: it has what {made} has"
        run(
            path,
            "INSERT INTO customers VALUES ('new', NULL, '2026-11-27T08:00:00Z')",
            "DELETE FROM api_keys WHERE id < 3",
        )
        found = seen(path, **options)
        assert found["value"].endswith(
            "Z: api_keys: 3 rows come back; customers: 1 rows lost (newest 2026-11-27T08:00:00Z)"
        )
        json.dumps(found)

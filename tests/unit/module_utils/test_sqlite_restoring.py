# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_backups, sqlite_files, sqlite_restoring
from ansible_collections.oncall.runbooks.plugins.module_utils.sqlite_backups import MANIFEST, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.sqlite_restoring import Options
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import COLLECTIONS
from ansible_collections.oncall.runbooks.tests.unit.module_utils.sqlite_helpers import (
    Client,
    damage_data,
    damage_index,
    filesystem,
    flip_in_value,
    make,
    overwrite,
    query,
    root_page,
    run,
    state_of,
    writer,
)

COUNTER = ({"table": "doc_id_counters", "column": "next_doc_id", "at_least": 0},)


@pytest.fixture()
def path(tmp_path):
    return make(tmp_path / "a.db")


@pytest.fixture()
def saved(path, tmp_path):
    """A folder with one backup of the database."""
    folder = tmp_path / "backups"
    folder.mkdir()
    sqlite_backups.take(str(path), str(folder))
    return folder


def restore(path, saved=None, check=False, **more):
    where = {"backup_dir": str(saved)} if saved else {}
    return sqlite_restoring.restore(Options(str(path), **where, **more), check)


def undo(told, check=False):
    return sqlite_restoring.restore(Options(**told["undo"]), check)


def customers(path):
    return query(path, "SELECT count(*) FROM customers")[0][0]


def beside(path):
    return sorted(name for name in os.listdir(path.parent) if name.startswith((path.name, ".")) and name != path.name)


class TestAction:
    def test_nothing_to_do(self, path, saved, tmp_path):
        before = state_of(tmp_path)
        told = restore(path, saved)
        assert (told["action"], told["lost"], told["quarantine"], told["undo"]) == ("none", {}, None, None)
        assert state_of(tmp_path) == before

    def test_restored_and_undone(self, path, saved):
        run(
            path,
            "DELETE FROM customers WHERE id = 'c-000001'",
            "UPDATE customers SET email = 'new@example.com' WHERE id = 'c-000002'",
            "INSERT INTO customers VALUES ('new', 'n@example.com', '2026-11-27T08:00:00+00:00')",
        )
        inode = path.stat().st_ino
        foreseen = restore(path, saved, check=True)
        told = restore(path, saved)
        assert (
            told["lost"]
            == foreseen["lost"]
            == {
                "customers": {
                    "rows": 1,
                    "changed": 1,
                    "back": 1,
                    "rows_now": 200,
                    "rows_backup": 200,
                    "newest_now": "2026-11-27T08:00:00+00:00",
                    "newest_backup": "2026-11-20T00:00:00+00:00",
                }
            }
        )
        assert (told["action"], told["method"], told["state"]) == ("restored", "online", "corrupt")
        assert (query(path, "SELECT count(*) FROM customers WHERE id = 'new'"), path.stat().st_ino) == ([(0,)], inode)
        assert restore(path, saved)["action"] == "none"
        kept = os.path.join(told["quarantine"], path.name)
        assert query(kept, "SELECT count(*) FROM customers WHERE id = 'new'") == [(1,)]
        undone = undo(told)
        assert undone["action"] == "restored"
        assert query(path, "SELECT count(*) FROM customers WHERE id = 'new'") == [(1,)]
        assert undo(told)["action"] == "none"

    def test_a_flipped_byte_in_a_value_is_a_difference(self, path, saved):
        run(path, "DROP INDEX customers_email")
        sqlite_backups.take(str(path), str(saved))
        flip_in_value(path)
        assert sqlite_files.look(str(path), "full")["state"] == "ok"
        told = restore(path, saved)
        assert (told["action"], told["lost"]["customers"]["changed"]) == ("restored", 1)
        assert restore(path, saved)["action"] == "none"

    def test_a_flipped_byte_in_an_indexed_value_is_kept_and_told(self, path, saved):
        """Nothing tells whether the table's or the index's value is the right one; so both are kept."""
        flip_in_value(path)
        told = restore(path, saved)
        assert told["action"] == "reindexed"
        assert "the table's was kept" in told["notes"][0]
        kept = os.path.join(told["quarantine"], path.name)
        assert sqlite_files.look(kept, "full")["state"] == "corrupt_index"
        assert query(path, "PRAGMA integrity_check") == [("ok",)]

    @pytest.mark.parametrize(
        "statement",
        [
            "PRAGMA user_version=3",
            "CREATE TABLE more (n)",
            "DROP INDEX customers_email",
            "UPDATE api_keys SET hash = CAST(hash AS TEXT) WHERE id = 1",
            "UPDATE doc_id_counters SET next_doc_id = '257x'",
        ],
    )
    def test_every_difference_counts(self, path, saved, statement):
        run(path, statement)
        assert restore(path, saved)["action"] == "restored"
        assert restore(path, saved)["action"] == "none"

    def test_index_damage_throws_nothing_away(self, path, saved):
        run(path, "INSERT INTO customers VALUES ('new', 'n@example.com', '2026')")
        damage_index(path)
        told = restore(path, saved, check=True)
        assert (told["action"], sqlite_files.look(str(path), "full")["state"]) == ("reindexed", "corrupt_index")
        told = restore(path, saved)
        assert (told["action"], told["lost"], told["undo"]) == ("reindexed", {}, None)
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        assert query(path, "SELECT count(*) FROM customers WHERE id IN ('new', 'without-index')") == [(2,)]

    @pytest.mark.parametrize("index", ["customers_email", "sqlite_autoindex_customers_1"])
    def test_index_that_sqlite_cannot_rebuild(self, path, saved, index):
        run(path, "INSERT INTO customers VALUES ('new', 'n@example.com', '2026')", "CREATE TABLE plain (v)")
        run(path, "INSERT INTO plain (rowid, v) VALUES (7, 'a'), (9, 'b')")
        overwrite(path, (root_page(path, index) - 1) * 4096, os.urandom(4096))
        with pytest.raises(sqlite3.DatabaseError):
            run(path, "REINDEX")
        with Client(path, "SELECT 1 FROM plain") as client:
            told = restore(path, saved)
            assert client("SELECT count(*) FROM customers WHERE id = 'new'") == "[(1,)]"
        assert (told["action"], told["lost"]) == ("reindexed", {})
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        assert query(path, "SELECT rowid, v FROM plain") == [(7, "a"), (9, "b")]
        assert os.path.exists(os.path.join(told["quarantine"], path.name))

    @pytest.mark.parametrize(
        "damage, method",
        [
            (damage_data, "online"),
            (lambda path: os.truncate(path, 8192), "offline"),
            (lambda path: path.write_bytes(b""), "online"),
            (lambda path: path.write_bytes(b"text" * 999), "offline"),
            (lambda path: overwrite(path, 0, bytes(100)), "offline"),
            (os.unlink, "offline"),
        ],
        ids=["overwritten page", "truncated", "empty", "text", "no header", "missing"],
    )
    def test_damage(self, path, saved, damage, method):
        path.chmod(0o640)
        wanted = query(path, "SELECT * FROM customers ORDER BY id")
        damage(path)
        before = path.read_bytes() if path.exists() else None
        told = restore(path, saved)
        assert (told["action"], told["method"]) == ("restored", method)
        assert query(path, "SELECT * FROM customers ORDER BY id") == wanted
        # Where there is no file any more, it is as it was when it was saved.
        assert path.stat().st_mode & 0o777 == (0o640 if before is not None else 0o644)
        assert restore(path, saved)["action"] == "none"
        undone = undo(told)
        assert undone["action"] == "restored"
        after = path.read_bytes() if path.exists() else None
        if method == "offline":
            assert after == before
        assert sqlite_files.look(str(path), "full")["state"] == told["state"]
        assert undo(told)["action"] == "none"

    def test_stale_log_does_not_undo_it(self, path, saved):
        with Client(path, "PRAGMA wal_autocheckpoint=0", "DELETE FROM customers") as client:
            client.kill()
        log = (path.parent / "a.db-wal").read_bytes()
        # What a plain copy gives: the log that is left is replayed over it.
        shutil.copytree(path.parent, path.parent / "plain", ignore=shutil.ignore_patterns("plain"))
        (backup,) = [name for name in saved.iterdir() if not name.name.endswith(MANIFEST)]
        shutil.copy(backup, path.parent / "plain/a.db")
        assert customers(path.parent / "plain/a.db") == 0
        for method in ("offline", "online"):
            told = restore(path, saved, method=method)
            assert (told["method"], customers(path)) == (method, 200)
            kept = os.path.join(told["quarantine"], "a.db")
            if method == "offline":
                assert Path(f"{kept}-wal").read_bytes() == log
            assert customers(kept) == 0
            assert undo(told)["action"] == "restored"
            assert customers(path) == 0


class TestClients:
    @pytest.mark.parametrize("mode", ["wal", "delete"])
    def test_live_client_sees_it_and_keeps_writing(self, tmp_path, mode):
        path = make(tmp_path / "a.db", mode=mode)
        sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
        with Client(path, "DELETE FROM customers") as client:
            told = restore(path, backup=str(tmp_path / "a.bak"))
            assert (told["method"], [one["pid"] for one in told["holders"]]) == ("online", [client.pid])
            assert client("SELECT count(*) FROM customers") == "[(200,)]"
            assert client("INSERT INTO customers (id) VALUES ('after')") == "[]"
        assert customers(path) == 201
        assert query(path, "PRAGMA journal_mode") == [(mode,)]
        assert customers(os.path.join(told["quarantine"], "a.db")) == 0

    @pytest.mark.parametrize("mode", ["wal", "delete"])
    def test_offline_is_refused_with_names(self, tmp_path, mode):
        path = make(tmp_path / "a.db", mode=mode)
        sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
        with Client(path, "DELETE FROM customers") as client:
            before = {name: what[0] for name, what in state_of(path.parent).items() if not name.endswith("-shm")}
            with pytest.raises(Refused, match=rf"is open in python\S* \(PID {client.pid}, "):
                restore(path, backup=str(tmp_path / "a.bak"), method="offline")
            after = {name: what[0] for name, what in state_of(path.parent).items() if not name.endswith("-shm")}
            assert before == after

    def test_replaced_by_hand_under_a_client(self, tmp_path):
        """The trap: a client goes on in a file that has no name any more."""
        path = make(tmp_path / "a.db", mode="delete")
        shutil.copy(path, tmp_path / "new.db")
        with Client(path, "SELECT 1 FROM customers") as client:
            os.replace(tmp_path / "new.db", path)
            shutil.copy(path, tmp_path / "bak")
            run(path, "DELETE FROM customers")
            with pytest.raises(Refused, match=rf"\(PID {client.pid}, "):
                restore(path, backup=str(tmp_path / "bak"), method="offline")

    def test_not_openable_and_held(self, path, saved):
        with Client(path, "SELECT 1 FROM customers") as client:
            overwrite(path, 0, b"x" * 100)
            with pytest.raises(Refused, match=rf"\(PID {client.pid}, .* stop them"):
                restore(path, saved)
            with pytest.raises(Refused, match="cannot be restored online"):
                restore(path, saved, method="online")

    @pytest.mark.parametrize("lasting", [True, False])
    @pytest.mark.parametrize("mode", ["wal", "delete"])
    def test_every_commit_is_there_or_in_quarantine(self, tmp_path, mode, lasting):
        path = make(tmp_path / "a.db", mode=mode, extra=["CREATE TABLE written (n INTEGER PRIMARY KEY)"])
        sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
        with writer(path, lasting, pause=0.002) as committed:
            time.sleep(0.3)
            told = restore(path, backup=str(tmp_path / "a.bak"))
            time.sleep(0.1)
        there = {row[0] for row in query(path, "SELECT n FROM written")}
        kept = {row[0] for row in query(os.path.join(told["quarantine"], "a.db"), "SELECT n FROM written")}
        assert set(committed) <= there | kept
        assert kept
        assert there
        assert not there & kept

    def test_shell_of_sqlite_as_a_writer(self, path, saved):
        if not shutil.which("sqlite3"):
            pytest.skip("sqlite3 is not installed")
        script = "CREATE TABLE shell (n);\n" + "INSERT INTO shell VALUES (1);\n" * 3000
        with subprocess.Popen(
            ["sqlite3", "-cmd", ".timeout 10000", str(path)], stdin=subprocess.PIPE, text=True
        ) as shell:
            shell.stdin.write(script[: len(script) // 2])
            shell.stdin.flush()
            until = time.monotonic() + 10
            while not query(path, "SELECT 1 FROM sqlite_master WHERE name = 'shell'") and time.monotonic() < until:
                time.sleep(0.01)
            told = restore(path, saved)
            shell.stdin.close()
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        assert sqlite_files.look(os.path.join(told["quarantine"], path.name), "full")["state"] == "ok"
        assert query(os.path.join(told["quarantine"], path.name), "SELECT name FROM sqlite_master WHERE name = 'shell'")
        assert query(path, "SELECT name FROM sqlite_master WHERE name = 'shell'") == []

    def test_long_reader(self, path, saved):
        with Client(path, "BEGIN", "SELECT count(*) FROM customers") as reader:
            run(path, "DELETE FROM customers")
            assert restore(path, saved)["action"] == "restored"
            assert reader("SELECT count(*) FROM customers") == "[(200,)]"
        assert customers(path) == 200

    def test_locked(self, tmp_path):
        path = make(tmp_path / "a.db", mode="delete")
        sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
        for statement in ("BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"):
            with Client(path, "DELETE FROM customers", statement) as client, pytest.raises(Refused) as caught:
                restore(path, backup=str(tmp_path / "a.bak"), timeout=0.3)
            assert f"PID {client.pid}" in str(caught.value)
        assert not [name for name in beside(path) if "quarantine" in name]

    def test_other_page_size(self, tmp_path):
        path = make(tmp_path / "a.db", page_size=1024)
        other = make(tmp_path / "other.db", page_size=4096, rows=3)
        with Client(path, "SELECT 1 FROM customers"), pytest.raises(Refused, match="pages have 1024 bytes"):
            restore(path, backup=str(other))
        assert restore(path, backup=str(other))["method"] == "offline"
        assert customers(path) == 3


class TestBackups:
    def test_latest_that_can_be_trusted(self, path, tmp_path):
        folder = tmp_path / "backups"
        folder.mkdir()
        for number in (1, 2, 3):
            run(path, f"PRAGMA user_version={number}")
            sqlite_backups.take(str(path), str(folder / f"a.db.2026010{number}"))
            manifest = folder / f"a.db.2026010{number}{MANIFEST}"
            manifest.write_text(manifest.read_text().replace('"taken_at": "2026', f'"taken_at": "202{number}'))
        flip_in_value(folder / "a.db.20260103")
        # A younger copy of unknown origin comes after what was verified.
        shutil.copy(path, folder / "a.db.20260109")
        told = restore(path, folder)
        assert told["backup"] == str(folder / "a.db.20260102")
        assert "a.db.20260103 is not what was saved: its SHA-256 is" in told["notes"][0]
        assert query(path, "PRAGMA user_version") == [(2,)]

    def test_day(self, path, saved):
        yesterday = datetime.now().astimezone() - timedelta(days=1)
        made = saved / f"a.db.{yesterday:%Y%m%d}"
        other = make(saved / "other", rows=5)
        other.rename(made)
        os.utime(made, (yesterday.timestamp(), yesterday.timestamp()))
        for text in ("yesterday", f"{yesterday:%Y%m%d}", f"{yesterday:%Y-%m-%d}"):
            told = restore(path, saved, backup=text)
            assert told["backup"] == str(made)
            assert "has no manifest" in told["notes"][0]
        assert customers(path) == 5
        with pytest.raises(Refused, match="has no backup of 2001-01-01 that can be trusted"):
            restore(path, saved, backup="20010101")

    @pytest.mark.parametrize(
        "spoil, says",
        [
            (flip_in_value, "is not what was saved: its SHA-256"),
            (lambda it: os.truncate(it, 0), "is empty"),
            (lambda it: it.write_bytes(b"text" * 999), "file is not a database"),
            (damage_data, "is damaged"),
        ],
        ids=["flipped byte", "empty", "text", "overwritten page"],
    )
    def test_bad_backup_changes_nothing(self, path, saved, spoil, says):
        (backup,) = [name for name in saved.iterdir() if not name.name.endswith(MANIFEST)]
        run(path, "DELETE FROM customers")
        if "SHA" not in says:
            os.unlink(f"{backup}{MANIFEST}")
        spoil(backup)
        before = state_of(path.parent)
        for wanted in ({"backup": str(backup)}, {"saved": saved}):
            with pytest.raises(Refused, match=says):
                restore(path, **wanted)
        assert state_of(path.parent) == before

    def test_of_another_database(self, path, tmp_path):
        other = tmp_path / "other.db"
        run(other, "CREATE TABLE orders (n)")
        with pytest.raises(Refused, match="has no table customers: it is not a backup of what was meant"):
            restore(path, backup=str(other), expect_tables=["customers"])

    def test_plain_copy_with_its_log(self, path, tmp_path):
        with Client(path, "PRAGMA wal_autocheckpoint=0", "INSERT INTO customers (id) VALUES ('in the log')") as client:
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", tmp_path / f"copy{suffix}")
            client("DELETE FROM customers")
            restore(path, backup=str(tmp_path / "copy"))
        assert customers(path) == 201
        assert (tmp_path / "copy-wal").stat().st_size

    @pytest.mark.parametrize("damaged", [True, False])
    def test_compressed(self, path, tmp_path, damaged):
        told = sqlite_backups.take(str(path), str(tmp_path / "a.bak"), compress=True)
        run(path, "DELETE FROM customers")
        if damaged:
            os.unlink(told["manifest"])
            os.truncate(told["backup"], 500)
            with pytest.raises(Refused, match=r"cannot be decompressed|is damaged|is empty"):
                restore(path, backup=told["backup"])
        else:
            assert restore(path, backup=told["backup"])["action"] == "restored"
            assert customers(path) == 200

    @pytest.mark.parametrize(
        "options, says",
        [
            ({}, "give backup_dir"),
            ({"backup": "/none/a.db"}, "cannot be read as a backup: No such file"),
            ({"backup_dir": "/none"}, "/none is no folder; correct backup_dir"),
            ({"backup_dir": "/proc"}, "has no backup that can be trusted of a.db"),
            ({"backup": "/proc"}, "is a folder and no quarantine"),
            ({"backup": "20260231", "backup_dir": "/"}, "there is no such day"),
        ],
    )
    def test_no_backup(self, path, options, says):
        with pytest.raises(Refused, match=says):
            sqlite_restoring.restore(Options(str(path), **options), False)

    def test_itself(self, path):
        with pytest.raises(Refused, match="is the database itself"):
            restore(path, backup=str(path))


class TestCounters:
    def test_never_back(self, path, saved):
        run(path, "DELETE FROM customers WHERE rowid = 7")
        run(path, "UPDATE doc_id_counters SET next_doc_id = 4097", "INSERT INTO doc_id_counters VALUES ('other', 513)")
        told = restore(path, saved, raise_counters=COUNTER)
        assert told["counters"] == [
            {"table": "doc_id_counters", "column": "next_doc_id", "backup": 257, "restored": 4097}
        ]
        assert query(path, "SELECT * FROM doc_id_counters ORDER BY 1") == [("kyrodb_text", 4097), ("other", 513)]
        assert restore(path, saved, raise_counters=COUNTER)["action"] == "none"
        run(path, "UPDATE doc_id_counters SET next_doc_id = next_doc_id + 1000")
        undone = undo(told)
        assert undone["counters"][0]["restored"] == 5097

    def test_at_least(self, path, saved):
        path.write_bytes(b"text" * 999)
        told = restore(path, saved, raise_counters=[{**COUNTER[0], "at_least": 9000}])
        assert query(path, "SELECT next_doc_id FROM doc_id_counters") == [(9000,)]
        assert told["counters"][0]["restored"] == 9000

    def test_backup_from_before_the_first_number(self, tmp_path):
        """A row is more than its key and its number, and there may be none in the backup."""
        extra = [
            "DROP TABLE doc_id_counters",
            "CREATE TABLE doc_id_counters (scope TEXT PRIMARY KEY, next_doc_id INT NOT NULL, updated_at TEXT NOT NULL)",
        ]
        path = make(tmp_path / "a.db", extra=extra)
        sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
        run(path, "INSERT INTO doc_id_counters VALUES ('kyrodb_text', 513, 'now')", "DELETE FROM customers")
        told = restore(path, backup=str(tmp_path / "a.bak"), raise_counters=COUNTER)
        assert told["counters"][0] == {**told["counters"][0], "backup": None, "restored": 513}
        assert query(path, "SELECT * FROM doc_id_counters") == [("kyrodb_text", 513, "now")]
        os.unlink(path)
        for least, says in ((0, "cannot tell how far"), (700, "has no row to raise")):
            with pytest.raises(Refused, match=says):
                restore(path, backup=str(tmp_path / "a.bak"), raise_counters=[{**COUNTER[0], "at_least": least}])
        assert not path.exists()

    def test_check_mode_tells_them(self, path, saved):
        run(path, "UPDATE doc_id_counters SET next_doc_id = 4097")
        before = state_of(path.parent)
        told = restore(path, saved, check=True, raise_counters=COUNTER)
        assert (told["counters"][0]["restored"], state_of(path.parent)) == (4097, before)

    def test_database_without_one(self, tmp_path):
        path = make(tmp_path / "a.db", extra=["DROP TABLE doc_id_counters"])
        sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
        assert restore(path, backup=str(tmp_path / "a.bak"), raise_counters=COUNTER)["counters"] == []

    def test_no_such_column(self, path, saved):
        with pytest.raises(Refused, match="doc_id_counters has only scope, next_doc_id"):
            restore(path, saved, raise_counters=[{"table": "doc_id_counters", "column": "next", "at_least": 0}])


class TestQuarantine:
    def test_folder_of_ones_own(self, path, saved, tmp_path):
        run(path, "DELETE FROM customers WHERE id > 'c-000099'")
        kept = tmp_path / "kept" / "here"
        told = restore(path, saved, quarantine_dir=str(kept))
        assert os.path.dirname(told["quarantine"]) == str(kept)
        run(path, "DELETE FROM customers")
        restore(path, saved, quarantine_dir=str(kept))
        # The first that led to a restore is what was there before.
        assert restore(path, backup=str(kept))["action"] == "restored"
        assert customers(path) == 100

    @pytest.mark.parametrize("mode", ["wal", "delete"])
    @pytest.mark.parametrize("method", ["online", "offline"])
    def test_on_another_filesystem(self, tmp_path, mode, method):
        with filesystem(tmp_path / "other", "8m") as where:
            path = make(tmp_path / "a.db", mode=mode)
            sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
            run(path, "DELETE FROM customers")
            told = restore(path, backup=str(tmp_path / "a.bak"), method=method, quarantine_dir=str(where))
            assert (told["method"], customers(path)) == (method, 200)
            assert undo(told)["action"] == "restored"
            assert customers(path) == 0

    def test_link_is_followed(self, path, saved, tmp_path):
        run(path, "DELETE FROM customers")
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "elsewhere" / "link.db"
        link.symlink_to(path)
        restore(link, backup=str(next(it for it in saved.iterdir() if not it.name.endswith(MANIFEST))))
        assert link.is_symlink()
        assert customers(path) == 200

    def test_who_only_asks_is_never_a_client(self, path, saved, monkeypatch):
        """A client's connection creates the log and takes it into the file when it is closed."""
        run(path, "DELETE FROM customers")
        asked = []
        read = sqlite_files.read

        def watched(*arguments, as_client=False):
            asked.append(as_client)
            return read(*arguments, as_client=as_client)

        monkeypatch.setattr(sqlite_files, "read", watched)
        restore(path, saved, check=True, raise_counters=COUNTER)
        assert (len(asked) >= 3, set(asked)) == (True, {False})

    def test_check_mode_leaves_a_killed_clients_log(self, path, saved):
        with Client(path, "PRAGMA wal_autocheckpoint=0", "DELETE FROM customers") as client:
            client.kill()
        before = state_of(path.parent)
        told = restore(path, saved, check=True)
        assert (told["action"], told["lost"]["customers"]["back"], state_of(path.parent)) == ("restored", 200, before)


def test_full_disk(tmp_path):
    with filesystem(tmp_path / "small", "400k") as where:
        path = make(where / "a.db", mode="delete")
        backup = tmp_path / "a.bak"
        sqlite_backups.take(str(path), str(backup))
        run(path, "DELETE FROM customers")
        before = {name: what[0] for name, what in state_of(where).items()}
        (where / "filler").write_bytes(bytes(280 << 10))
        with pytest.raises(Refused, match="make room first"):
            restore(path, backup=str(backup))
        os.unlink(where / "filler")
        assert {name: what[0] for name, what in state_of(where).items()} == before
        assert restore(path, backup=str(backup))["action"] == "restored"


RESTORE = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_restoring
print("begun", flush=True)
sqlite_restoring.restore(sqlite_restoring.Options(**json.loads(sys.argv[2])), False)
print("done", flush=True)
"""


@settings(max_examples=16, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seconds=st.floats(0, 0.08),
    method=st.sampled_from(["online", "offline"]),
    mode=st.sampled_from(["wal", "delete"]),
    log=st.booleans(),
)
def test_kill_never_leaves_less_than_before(tmp_path_factory, seconds, method, mode, log):
    import json

    folder = tmp_path_factory.mktemp("kill")
    path = make(folder / "a.db", rows=1000, mode=mode)
    sqlite_backups.take(str(path), str(folder / "bak"))
    with Client(path, "PRAGMA wal_autocheckpoint=0", "INSERT INTO customers (id) VALUES ('new')") as client:
        if log:
            client.kill()
    options = {"path": str(path), "backup": str(folder / "bak"), "method": method}
    process = subprocess.Popen(
        [sys.executable, "-c", RESTORE, str(COLLECTIONS), json.dumps(options)], stdout=subprocess.PIPE, text=True
    )
    with process:
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        done = "done" in process.stdout.read()
    seen = sqlite_files.look(str(path), "full", count_tables=True)
    assert seen["state"] == "ok"
    # Whole in any case: with what was new, or as the backup has it, and then the new is in quarantine.
    found = seen["rows"]["customers"]
    assert found in ((1000,) if done else (1000, 1001))
    if found == 1000:
        kept = [name for name in folder.iterdir() if ".quarantine-" in name.name]
        assert any(customers(name / "a.db") == 1001 for name in kept if (name / "a.db").exists())
    again = restore(path, backup=str(folder / "bak"), method=method)
    assert (again["action"], customers(path)) == ("none" if found == 1000 else "restored", 1000)
    assert not [name for name in os.listdir(folder) if name.endswith(".work")]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(
        st.sampled_from(
            [
                "DELETE FROM customers WHERE rowid % 7 = 0",
                "UPDATE customers SET email = upper(email)",
                "UPDATE customers SET email = NULL WHERE rowid = 3",
                "INSERT INTO n VALUES (1.0), ('1'), (x'31'), (NULL)",
                "INSERT INTO w VALUES ('é', 1), ('É', 2)",
                "DELETE FROM w",
                "UPDATE w SET b = CAST(b AS REAL)",
                "ALTER TABLE n ADD COLUMN more TEXT",
                "DROP TABLE w",
                "VACUUM",
                "CREATE TABLE its (rowid TEXT, _rowid_ TEXT)",
            ]
        ),
        max_size=6,
    ),
    mode=st.sampled_from(["wal", "delete"]),
)
def test_restoring_gives_what_was_saved(tmp_path_factory, changes, mode):
    folder = tmp_path_factory.mktemp("any")
    extra = [
        "CREATE TABLE n (v)",
        "INSERT INTO n VALUES (1), (2)",
        "CREATE TABLE w (a TEXT COLLATE NOCASE, b, PRIMARY KEY (a, b)) WITHOUT ROWID",
        "INSERT INTO w VALUES ('a', 1), ('b', 2)",
    ]
    path = make(folder / "a.db", rows=30, mode=mode, extra=extra)
    sqlite_backups.take(str(path), str(folder / "bak"))

    def dump():
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return list(connection.iterdump())

    wanted = dump()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for change in changes:
            with contextlib.suppress(sqlite3.DatabaseError):
                connection.execute(change)
    changed = dump()
    told = restore(path, backup=str(folder / "bak"))
    assert dump() == wanted
    if changed != wanted:
        assert told["action"] == "restored"
        undo(told)
        assert dump() == changed
    restore(path, backup=str(folder / "bak"))
    assert restore(path, backup=str(folder / "bak"))["action"] == "none"


def test_counter_that_is_raised_meanwhile(tmp_path):
    """Numbers are given out until the very moment of the restore; none may be given out again."""
    path = make(tmp_path / "a.db", extra=["CREATE TABLE written (n INTEGER PRIMARY KEY)"])
    sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
    code = (
        "import sqlite3, sys, time\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n"
        "while True:\n"
        "    row = connection.execute('UPDATE doc_id_counters SET next_doc_id = next_doc_id + 1 '\n"
        "                             'RETURNING next_doc_id')\n"
        "    print(row.fetchall()[0][0], flush=True)\n"
        "    time.sleep(0.003)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        told = [
            restore(path, backup=str(tmp_path / "a.bak"), raise_counters=COUNTER, quarantine_dir=str(tmp_path / "kept"))
            for _number in range(3)
        ]
        time.sleep(0.1)
        process.terminate()
        given = [int(line) for line in process.stdout.read().splitlines()]
    assert len(given) == len(set(given))
    assert given == sorted(given)
    assert {one["action"] for one in told} <= {"restored", "none"}


def test_writer_that_commits_late(tmp_path):
    """What is committed while the restore waits for the lock is in quarantine."""
    path = make(tmp_path / "a.db")
    sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
    statements = ["BEGIN IMMEDIATE", "INSERT INTO customers (id) VALUES ('late')"]
    with Client(path, *statements) as client, ThreadPoolExecutor() as pool:
        running = pool.submit(restore, path, backup=str(tmp_path / "a.bak"))
        time.sleep(0.5)
        assert client("COMMIT") == "[]"
        told = running.result()
    if told["action"] == "restored":
        kept = os.path.join(told["quarantine"], "a.db")
        assert query(kept, "SELECT count(*) FROM customers WHERE id = 'late'") == [(1,)]
    else:
        assert customers(path) == 201


def test_large_one_in_rollback_mode(tmp_path):
    path = make(tmp_path / "a.db", mode="delete", extra=["CREATE TABLE large AS SELECT randomblob(6000000)"])
    sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
    run(path, "DELETE FROM customers")
    for timeout in (0.0, 30.0):
        told = restore(path, backup=str(tmp_path / "a.bak"), timeout=timeout)
    assert told["action"] == "none"
    assert customers(path) == 200


@pytest.mark.parametrize("columns", [1, 600])
def test_wide_tables_and_tables_without_a_key(tmp_path, columns):
    names = ", ".join(f"c{number}" for number in range(columns))
    extra = [
        f"CREATE TABLE wide ({names})",
        f"INSERT INTO wide (c0) VALUES ({columns})",  # noqa: S608
        "CREATE TABLE loose (a TEXT PRIMARY KEY, b)",
        "INSERT INTO loose VALUES (NULL, 1), (NULL, 2)",
        "CREATE TABLE its (rowid, _rowid_, oid)",
        "INSERT INTO its VALUES (1, 2, 3)",
    ]
    path = make(tmp_path / "a.db", extra=extra)
    sqlite_backups.take(str(path), str(tmp_path / "a.bak"))
    assert restore(path, backup=str(tmp_path / "a.bak"))["action"] == "none"
    for change in ("UPDATE wide SET c0 = 2", "DELETE FROM loose WHERE b = 2", "UPDATE its SET rowid = 9"):
        run(path, change)
        assert restore(path, backup=str(tmp_path / "a.bak"))["action"] == "restored"
        assert restore(path, backup=str(tmp_path / "a.bak"))["action"] == "none"

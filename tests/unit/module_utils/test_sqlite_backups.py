# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_backups, sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.sqlite_backups import MANIFEST, Refused, take
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import COLLECTIONS
from ansible_collections.oncall.runbooks.tests.unit.module_utils.sqlite_helpers import (
    Client,
    damage_data,
    damage_index,
    filesystem,
    flip_in_value,
    make,
    query,
    run,
    state_of,
    writer,
)


@pytest.fixture()
def folder(tmp_path):
    made = tmp_path / "backups"
    made.mkdir()
    return made


def rows(path):
    return sqlite_files.read(str(path), sqlite_files.counts)


def names(folder):
    return sorted(os.listdir(folder))


def backup(path, dest, **more):
    return take(str(path), str(dest), **more)


class TestNames:
    def test_day(self, tmp_path, folder):
        path = make(tmp_path / "customers.db")
        told = backup(path, folder)
        name = f"customers.db.{datetime.now().astimezone():%Y%m%d}"
        assert told["backup"] == str(folder / name)
        assert names(folder) == [name, name + MANIFEST]

    @pytest.mark.parametrize(
        "pattern, name",
        [("{name}.bak", "a.db.bak"), ("%Y.{name}", f"{datetime.now().astimezone():%Y}.a.db"), ("x%%{name}", "x%a.db")],
    )
    def test_pattern(self, tmp_path, folder, pattern, name):
        assert backup(make(tmp_path / "a.db"), folder, pattern=pattern)["backup"] == str(folder / name)

    def test_percent_in_the_name(self, tmp_path, folder):
        path = make(tmp_path / "100%Y.db")
        assert backup(path, folder, pattern="{name}.bak")["backup"] == str(folder / "100%Y.db.bak")

    @pytest.mark.parametrize("pattern", ["{name}", "a/{name}.bak"])
    def test_wrong_pattern(self, tmp_path, folder, pattern):
        with pytest.raises(Refused, match="pattern is"):
            backup(make(tmp_path / "a.db"), folder, pattern=pattern)

    def test_no_folder(self, tmp_path):
        with pytest.raises(Refused, match="does not exist; create the folder"):
            backup(make(tmp_path / "a.db"), tmp_path / "none" / "a.bak")

    @pytest.mark.parametrize("name", ["two words.db", "it's.db", 'a "b".db', "what?.db", "#1.db"])
    def test_strange_names(self, tmp_path, folder, name):
        told = backup(make(tmp_path / name), folder / f"{name}.bak")
        assert told["verified"]
        assert rows(folder / f"{name}.bak")["customers"] == 200


class TestCopy:
    @pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist"])
    def test_manifest_and_checksum(self, tmp_path, folder, mode):
        path = make(tmp_path / "a.db", mode=mode)
        told = backup(path, folder / "a.bak")
        manifest = json.loads((folder / f"a.bak{MANIFEST}").read_text())
        digest = subprocess.run(
            ["sha256sum", folder / "a.bak"], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        assert told["sha256"] == manifest["sha256"] == digest
        assert (told["changed"], told["verified"], told["notes"]) == (True, True, [])
        assert manifest["database"] == str(path)
        assert manifest["rows"] == told["rows"] == {"customers": 200, "api_keys": 200, "doc_id_counters": 1}
        assert (folder / "a.bak").stat().st_mode & 0o777 == 0o600
        assert names(folder) == ["a.bak", f"a.bak{MANIFEST}"]
        assert query(folder / "a.bak", "PRAGMA integrity_check") == [("ok",)]

    def test_log_is_included(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        with Client(path, "INSERT INTO customers (id) VALUES ('in the log')"):
            shutil.copy(path, tmp_path / "cp.db")
            told = backup(path, folder / "a.bak")
        assert told["rows"]["customers"] == 201
        assert rows(tmp_path / "cp.db")["customers"] == 200

    def test_killed_client(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        with Client(path, "INSERT INTO customers (id) VALUES ('in the log')") as client:
            client.kill()
        before = state_of(tmp_path)
        assert backup(path, folder / "a.bak")["rows"]["customers"] == 201
        assert {name: what for name, what in state_of(tmp_path).items() if "backups" not in name} == {
            name: what for name, what in before.items() if "backups" not in name
        }

    def test_second_run_changes_nothing(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        first = backup(path, folder / "a.bak")
        before = state_of(folder)
        second = backup(path, folder / "a.bak")
        assert (second["changed"], second["sha256"], state_of(folder)) == (False, first["sha256"], before)
        os.utime(path, (1, 1))
        assert not backup(path, folder / "a.bak", check=True)["changed"]
        run(path, "DELETE FROM doc_id_counters")
        assert backup(path, folder / "a.bak", check=True)["changed"]
        third = backup(path, folder / "a.bak")
        assert (third["changed"], third["rows"]["doc_id_counters"]) == (True, 0)

    def test_damaged_backup_is_taken_again(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        backup(path, folder / "a.bak")
        flip_in_value(folder / "a.bak")
        assert backup(path, folder / "a.bak")["changed"]
        assert not backup(path, folder / "a.bak")["changed"]

    def test_check_mode_writes_nothing(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        before = state_of(tmp_path)
        told = backup(path, folder / "a.bak", check=True)
        assert (told["changed"], told["verified"], state_of(tmp_path)) == (True, False, before)

    def test_compressed(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        told = backup(path, folder / "a.bak", compress=True)
        assert told["backup"] == str(folder / "a.bak.zst")
        assert told["size_bytes"] < path.stat().st_size
        digest = sqlite_backups.unpack(told["backup"], str(tmp_path / "plain.db"))
        assert digest == told["sha256"]
        assert rows(tmp_path / "plain.db") == told["rows"]
        assert not backup(path, folder / "a.bak", compress=True)["changed"]

    def test_compression_without_the_package(self, tmp_path, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "zstandard", None)
        with pytest.raises(Refused, match="zstandard is not installed"):
            backup(make(tmp_path / "a.db"), folder / "a.bak", compress=True)

    @pytest.mark.parametrize("lasting", [True, False])
    @pytest.mark.parametrize("mode", ["wal", "delete"])
    def test_while_it_is_written_to(self, tmp_path, folder, mode, lasting):
        extra = ["CREATE TABLE written (n INTEGER PRIMARY KEY)", "CREATE TABLE large AS SELECT zeroblob(8000000)"]
        path = make(tmp_path / "a.db", mode=mode, extra=extra)
        with writer(path, lasting, pause=0.002):
            told = [backup(path, folder / f"{number}.bak")["rows"]["written"] for number in range(4)]
        assert told == sorted(told)
        for number in range(4):
            copied = [row[0] for row in query(folder / f"{number}.bak", "SELECT n FROM written ORDER BY n")]
            # A moment of the writer's: no row before the last is missing.
            assert copied == list(range(1, told[number] + 1))

    def test_busy_source_is_waited_for(self, tmp_path, folder):
        path = make(tmp_path / "a.db", mode="delete")
        with Client(path, "BEGIN EXCLUSIVE") as client:
            began = time.monotonic()
            with pytest.raises(Refused, match=f"locked by .*PID {client.pid}"):
                backup(path, folder / "a.bak", timeout=0.3)
            assert time.monotonic() - began > 0.3
        assert backup(path, folder / "a.bak", timeout=0.3)["changed"]

    def test_broken_references_are_told_and_kept(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        run(path, "DELETE FROM customers WHERE id = 'c-000003'")
        told = backup(path, folder / "a.bak")
        assert told["verified"]
        assert "refer to rows of customers that do not exist" in told["notes"][0]


class TestRefusals:
    @pytest.mark.parametrize(
        "content, state",
        [(None, "missing"), (b"", "empty"), (b"text" * 999, "not_a_database"), (os.urandom(8192), "encrypted")],
    )
    def test_no_source(self, tmp_path, folder, content, state):
        path = tmp_path / "a.db"
        if content is not None:
            path.write_bytes(content)
        before = state_of(tmp_path)
        with pytest.raises(Refused, match=f"its state is {state}") as caught:
            backup(path, folder / "a.bak")
        assert caught.value.details["state"] == state
        assert state_of(tmp_path) == before

    @pytest.mark.parametrize("damage, state", [(damage_data, "corrupt"), (damage_index, "corrupt_index")])
    def test_corrupt_source_never_replaces_a_good_backup(self, tmp_path, folder, damage, state):
        path = make(tmp_path / "a.db")
        good = backup(path, folder / "a.bak")["sha256"]
        damage(path)
        with pytest.raises(Refused, match="so this is no backup") as caught:
            backup(path, folder / "a.bak")
        details = caught.value.details
        assert details["state"] == state
        assert os.path.basename(details["corrupt_copy"]).startswith("a.bak.corrupt-")
        assert names(folder) == ["a.bak", os.path.basename(details["corrupt_copy"]), f"a.bak{MANIFEST}"]
        assert sqlite_backups.load_manifest(str(folder / "a.bak"))["sha256"] == good
        assert query(folder / "a.bak", "PRAGMA integrity_check") == [("ok",)]
        # It is no candidate for a restore either.
        assert [it[1] for it in sqlite_backups.candidates(str(folder), str(path), "a.bak*")] == [str(folder / "a.bak")]

    def test_other_database(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        with pytest.raises(Refused, match="has no table sessions: it is not the database that was meant"):
            backup(path, folder / "a.bak", expect_tables=["customers", "sessions"])

    def test_swapped(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        backup(path, folder / "a.bak")
        run(path, "DELETE FROM doc_id_counters")
        before = state_of(tmp_path)
        with pytest.raises(Refused, match=r"is itself a backup.* Were path and dest swapped"):
            backup(folder / "a.bak", path)
        # A copy that was made by hand has no manifest; the database is no backup, whatever it is copied from.
        shutil.copy(folder / "a.bak", folder / "by-hand")
        with pytest.raises(Refused, match=r"no manifest beside it .* Were path and dest swapped"):
            backup(folder / "by-hand", path)
        with (
            Client(path, "SELECT 1 FROM customers") as client,
            pytest.raises(Refused, match=f"in use .*PID {client.pid}"),
        ):
            backup(folder / "by-hand", path)
        os.unlink(folder / "by-hand")
        content = {name: what[0] for name, what in before.items()}
        assert {name: what[0] for name, what in state_of(tmp_path).items()} == content

    def test_log_that_is_left_beside_a_missing_dest(self, tmp_path, folder):
        """It would be replayed over the new backup."""
        path = make(tmp_path / "a.db")
        (folder / "a.bak-wal").write_bytes(b"left")
        with pytest.raises(Refused, match=r"in use \(.*a.bak-wal\)"):
            backup(path, folder / "a.bak")

    def test_name_of_a_sidecar(self, tmp_path):
        path = make(tmp_path / "a.db")
        with pytest.raises(Refused, match="is the name of another file of SQLite's"):
            backup(path, f"{path}-wal")

    def test_backup_of_another_database(self, tmp_path, folder):
        backup(make(tmp_path / "a.db"), folder / "bak")
        with pytest.raises(Refused, match=r"is a backup of .*a\.db; name another file"):
            backup(make(tmp_path / "b.db"), folder / "bak")

    def test_cut_off_source(self, tmp_path, folder):
        path = make(tmp_path / "a.db")
        run(path, "CREATE TABLE large (content)", "INSERT INTO large VALUES (hex(zeroblob(10000)))")
        good = backup(path, folder / "a.bak")["sha256"]
        os.truncate(path, path.stat().st_size - 3000)
        for _number in range(2):
            with pytest.raises(Refused, match="it was cut off"):
                backup(path, folder / "a.bak")
        assert sqlite_backups.load_manifest(str(folder / "a.bak"))["sha256"] == good
        # The same damage is kept once.
        assert len([name for name in names(folder) if ".corrupt-" in name]) == 1

    @pytest.mark.parametrize(
        "content", ["{", "[]", "{}", '{"schema": "oncall.runbooks/sqlite_backup/1", "size_bytes": "x"}']
    )
    def test_manifest_that_is_none(self, tmp_path, folder, content):
        path = make(tmp_path / "a.db")
        backup(path, folder / "a.bak")
        (folder / f"a.bak{MANIFEST}").write_text(content)
        with pytest.raises(Refused, match="no manifest beside it says that it is a backup"):
            backup(path, folder / "a.bak")

    def test_itself(self, tmp_path):
        path = make(tmp_path / "a.db")
        (tmp_path / "link.db").symlink_to(path)
        for dest in (path, tmp_path / "link.db"):
            with pytest.raises(Refused, match="is the database itself"):
                backup(path, dest)


class TestFullDisk:
    @pytest.fixture()
    def small(self, tmp_path):
        with filesystem(tmp_path / "small", "600k") as where:
            yield where

    def test_there_is_no_room_from_the_start(self, tmp_path, small):
        path = make(tmp_path / "a.db", rows=20000)
        with pytest.raises(Refused, match="make room first"):
            backup(path, small / "a.bak")
        assert names(small) == []

    def test_it_fills_up_meanwhile(self, tmp_path, small, monkeypatch):
        path = make(tmp_path / "a.db")
        good = backup(path, small / "a.bak")["sha256"]
        run(path, "CREATE TABLE large AS SELECT randomblob(700000)")
        monkeypatch.setattr(sqlite_backups, "require_space", lambda *_about: None)
        with pytest.raises(Refused, match=r"disk is full|No space left"):
            backup(path, small / "a.bak")
        assert names(small) == ["a.bak", f"a.bak{MANIFEST}"]
        assert sqlite_backups.load_manifest(str(small / "a.bak"))["sha256"] == good


KILLED = """
import sys
sys.path[:0] = [sys.argv[1]]
from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_backups
print("begun", flush=True)
print(sqlite_backups.take(sys.argv[2], sys.argv[3])["sha256"], flush=True)
"""


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seconds=st.floats(0, 0.06))
def test_kill_leaves_the_old_backup_or_the_new_one(tmp_path_factory, seconds):
    folder = tmp_path_factory.mktemp("kill")
    path = make(folder / "a.db", rows=2000)
    dest = folder / "a.bak"
    old = backup(path, dest)["sha256"]
    run(path, "DELETE FROM doc_id_counters")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(COLLECTIONS), str(path), str(dest)], stdout=subprocess.PIPE, text=True
    )
    with process:
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        new = process.stdout.read().strip()
    manifest = sqlite_backups.load_manifest(str(dest))
    found = subprocess.run(["sha256sum", dest], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest["sha256"] == found
    assert found in (old, new) or not new
    again = backup(path, dest)
    assert again["rows"]["doc_id_counters"] == 0
    assert names(folder) == ["a.bak", f"a.bak{MANIFEST}", "a.db"]


def test_lock_page_and_memory(tmp_path):
    """Past 1 GiB a page of every database is left out, for the locks; and memory does not grow with the size."""
    path = tmp_path / "large.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size=65536")
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE large (n INTEGER PRIMARY KEY, content BLOB)")
        connection.execute("BEGIN")
        for number in range(69):
            connection.execute("INSERT INTO large VALUES (?, zeroblob(16000000))", (number,))
        connection.execute("COMMIT")
    assert path.stat().st_size > (1 << 30) + 65536
    # Of this program alone; getrusage begins with what its parent had.
    code = KILLED + "print(re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1], flush=True)\n"
    code = "import re\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, str(COLLECTIONS), str(path), str(tmp_path / "large.bak")],
        capture_output=True,
        text=True,
        check=True,
    )
    _begun, _digest, kilobytes = done.stdout.split()
    assert int(kilobytes) < 100 << 10
    assert sqlite_backups.load_manifest(str(tmp_path / "large.bak"))["rows"] == {"large": 69}


def test_runs_at_the_same_time(tmp_path):
    """Whichever is the last, its manifest is its own."""
    path = make(tmp_path / "a.db", extra=["CREATE TABLE written (n INTEGER PRIMARY KEY)"])
    dest = str(tmp_path / "a.bak")
    code = KILLED + "for _number in range(8): sqlite_backups.take(sys.argv[2], sys.argv[3])\n"
    with writer(path, pause=0.002):
        running = [
            subprocess.Popen([sys.executable, "-c", code, str(COLLECTIONS), str(path), dest], stdout=subprocess.DEVNULL)
            for _number in range(3)
        ]
        assert [process.wait() for process in running] == [0, 0, 0]
    found = subprocess.run(["sha256sum", dest], capture_output=True, text=True, check=True).stdout.split()[0]
    assert sqlite_backups.load_manifest(dest)["sha256"] == found
    assert [name for name in names(tmp_path) if not name.startswith("a.db")] == ["a.bak", f"a.bak{MANIFEST}"]


def test_another_run_is_waited_for(tmp_path):
    path = make(tmp_path / "a.db")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="is locked by another backup"):
            backup(path, tmp_path / "a.bak", timeout=0.2)
    finally:
        os.close(folder)
    assert names(tmp_path) == ["a.db"]


def test_readers_of_a_backup_are_not_in_the_way(tmp_path):
    path = make(tmp_path / "a.db")
    dest = tmp_path / "a.bak"
    backup(path, dest)
    run(path, "DELETE FROM doc_id_counters")
    with subprocess.Popen(["tail", "-f", dest], stdout=subprocess.PIPE) as reader:
        reader.stdout.read(16)
        assert backup(path, dest)["changed"]
        reader.terminate()


class TestFinding:
    def test_days(self, tmp_path, folder):
        path = make(tmp_path / "customers.db")
        today = datetime.now().astimezone()
        for back in (0, 1, 9):
            day = today - timedelta(days=back)
            made = folder / f"customers.db.{day:%Y%m%d}"
            shutil.copy(path, made)
            os.utime(made, (day.timestamp(), day.timestamp()))
        backup(path, folder / "customers.db.bak")
        (folder / "orders.db.20261126").touch()
        (folder / "customers.db.20261126.corrupt-20261126T000000Z").touch()
        found = sqlite_backups.candidates(str(folder), str(path), sqlite_backups.PATTERN)
        assert [os.path.basename(it[1]) for it in found][-2:] == [
            f"customers.db.{today - timedelta(days=back):%Y%m%d}" for back in (1, 9)
        ]
        assert len(found) == 4
        for text, back in (("today", 0), ("yesterday", 1), (f"{today - timedelta(days=9):%Y-%m-%d}", 9)):
            assert sqlite_backups.day_of(text) == (today - timedelta(days=back)).date()
        assert [os.path.basename(it[1]) for it in sqlite_backups.of_day(found, sqlite_backups.day_of("yesterday"))] == [
            f"customers.db.{today - timedelta(days=1):%Y%m%d}"
        ]

    @pytest.mark.parametrize("text", ["latest_verified", "/var/backups/a.db", "2026112", ""])
    def test_no_day(self, text):
        assert sqlite_backups.day_of(text) is None

    def test_no_such_day(self):
        with pytest.raises(Refused, match="there is no such day"):
            sqlite_backups.day_of("20260231")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mode=st.sampled_from(["wal", "delete", "truncate", "persist"]),
    page_size=st.sampled_from([512, 1024, 4096, 65536]),
    rows_made=st.integers(0, 300),
    schema=st.lists(
        st.sampled_from(
            [
                "CREATE TABLE w (a TEXT, b, PRIMARY KEY (a, b)) WITHOUT ROWID",
                "CREATE TABLE g (a INT, b INT GENERATED ALWAYS AS (a * 2) STORED)",
                "CREATE TABLE s (n INTEGER PRIMARY KEY AUTOINCREMENT)",
                "CREATE VIEW v AS SELECT count(*) FROM customers",
                'CREATE TABLE "strange ""name""" ("select" TEXT)',
                "CREATE TRIGGER t AFTER DELETE ON customers BEGIN SELECT raise(ABORT, 'no'); END",
                "PRAGMA auto_vacuum=FULL",
            ]
        ),
        unique=True,
    ),
    in_log=st.integers(0, 30),
)
def test_whatever_it_is(tmp_path_factory, mode, page_size, rows_made, schema, in_log):
    folder = tmp_path_factory.mktemp("any")
    path = make(folder / "a.db", rows=rows_made, mode=mode, page_size=page_size, extra=schema)
    statements = [f"INSERT INTO customers (id) VALUES ('new-{number}')" for number in range(in_log)]  # noqa: S608
    with Client(path, *statements):
        told = backup(path, folder / "a.bak")
        wanted = query(path, "SELECT * FROM customers ORDER BY id")
        expected = query(path, "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2")
    assert told["rows"]["customers"] == rows_made + in_log
    assert query(folder / "a.bak", "SELECT * FROM customers ORDER BY id") == wanted
    assert query(folder / "a.bak", "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2") == expected
    assert not backup(path, folder / "a.bak")["changed"]

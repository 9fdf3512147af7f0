# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.tests.unit.module_utils.sqlite_helpers import (
    Client,
    damage_data,
    damage_index,
    flip_in_value,
    make,
    overwrite,
    query,
    root_page,
    run,
    state_of,
    writer,
)

NAMES = ["customers.db", "two words.db", "it's.db", 'a "b".db', "what?.db", "50%25.db", "#1.db", "Kö\udcff.db"]


def look(path, depth="full", **more):
    """One look, which must leave no trace."""
    folder = os.path.dirname(str(path))
    before = state_of(folder)
    seen = sqlite_files.look(str(path), depth, **{"timeout": 1.0, **more})
    assert state_of(folder) == before
    return seen


def killed(path, *statements):
    """What a client leaves that was killed."""
    with Client(path, "PRAGMA wal_autocheckpoint=0", *statements) as client:
        client.kill()


def as_nobody(path):
    """What a look gives that a user without privileges takes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            text = repr(sqlite_files.look(str(path))["limits"])
        except NoAnswer as error:
            text = f"NoAnswer {error.kind} {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        return file.read()


class TestStates:
    def test_missing_file_is_not_created(self, tmp_path):
        path = tmp_path / "customers.db"
        for depth in sqlite_files.DEPTHS:
            assert look(path, depth)["state"] == "missing"
        # The runbooks' own command.
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        assert path.exists()

    def test_empty_file_is_not_ok(self, tmp_path):
        path = tmp_path / "customers.db"
        path.touch()
        seen = look(path)
        assert (seen["state"], seen["errors"]) == ("empty", [f"{path} is empty: 0 bytes, no table"])
        assert query(path, "PRAGMA integrity_check") == [("ok",)]

    @pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist", "memory"])
    @pytest.mark.parametrize("page_size", [512, 65536])
    def test_sound(self, tmp_path, mode, page_size):
        path = make(tmp_path / "a.db", mode=mode, page_size=page_size, extra=["PRAGMA user_version=7"])
        seen = look(path, count_tables=True, expect_tables=["customers", "sessions"])
        assert (seen["state"], seen["errors"], seen["limits"], seen["damage"]) == ("ok", [], [], [])
        assert seen["journal_mode"] == ("wal" if mode == "wal" else "delete")
        assert (seen["page_size"], seen["user_version"]) == (page_size, 7)
        assert seen["size_bytes"] == seen["page_size"] * seen["page_count"]
        assert seen["rows"] == {"customers": 200, "api_keys": 200, "doc_id_counters": 1}
        assert seen["tables_missing"] == ["sessions"]

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("mode", ["wal", "delete"])
    def test_name(self, tmp_path, name, mode):
        path = make(tmp_path / name, rows=1, mode=mode)
        assert look(path, count_tables=True)["rows"]["customers"] == 1

    def test_link_is_followed(self, tmp_path):
        make(tmp_path / "a.db")
        (tmp_path / "b.db").symlink_to("a.db")
        with Client(tmp_path / "a.db", "INSERT INTO customers (id) VALUES ('in the log')"):
            seen = look(tmp_path / "b.db", count_tables=True)
        assert (seen["path"], seen["rows"]["customers"]) == (str(tmp_path / "a.db"), 201)

    @pytest.mark.parametrize(
        "content, state",
        [
            (b"id,email\n1,a@example.com\n" * 400, "not_a_database"),
            (b"\0" * 8192, "not_a_database"),
            (b"\x1f\x8b" + os.urandom(8190), "not_a_database"),
            (b"x", "not_a_database"),
            (os.urandom(8192), "encrypted"),
            (os.urandom(1024), "encrypted"),
        ],
        ids=["text", "zeros", "gzip", "one byte", "random", "one random page"],
    )
    def test_no_database(self, tmp_path, content, state):
        path = tmp_path / "a.db"
        path.write_bytes(content)
        seen = look(path)
        assert seen["state"] == state
        assert seen["errors"]

    def test_content_of_a_wrong_file_is_not_shown(self, tmp_path):
        path = tmp_path / "vritti.env"
        path.write_text("KEY=hush-hush-hush\n")
        assert "hush" not in repr(look(path))

    def test_lost_header_is_damage(self, tmp_path):
        path = make(tmp_path / "a.db")
        overwrite(path, 0, b"\0" * 16)
        assert look(path)["state"] == "corrupt"

    def test_folder(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        with pytest.raises(NoAnswer, match="is no regular file"):
            look(folder)

    def test_foreign_keys(self, tmp_path):
        path = make(tmp_path / "a.db")
        run(path, "DELETE FROM customers WHERE id = 'c-000003'")
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        for depth in ("quick", "full"):
            seen = look(path, depth)
            assert (seen["state"], seen["damage"], seen["broken_references"]) == ("corrupt", ["foreign_keys"], 1)
            assert seen["errors"] == [
                "1 rows of api_keys refer to rows of customers that do not exist, rowid 3 first",
            ]
        assert look(path, "header")["state"] == "ok"

    def test_index_damage_is_told_apart(self, tmp_path):
        path = make(tmp_path / "a.db")
        damage_index(path)
        seen = look(path)
        assert (seen["state"], seen["damage"]) == ("corrupt_index", ["index"])
        assert any("missing from index customers_email" in error for error in seen["errors"])
        # quick_check does not compare indexes with their tables.
        assert look(path, "quick")["state"] == "ok"

    def test_overwritten_page_of_an_index(self, tmp_path):
        path = make(tmp_path / "a.db")
        overwrite(path, (root_page(path, "customers_email") - 1) * 4096, os.urandom(4096))
        assert look(path)["state"] == "corrupt_index"
        damage_data(path)
        assert look(path)["state"] == "corrupt"

    def test_duplicates_are_no_index_damage(self, tmp_path):
        path = make(tmp_path / "a.db", extra=["CREATE TABLE u (v TEXT)", "INSERT INTO u VALUES ('a'), ('b')"])
        run(path, "CREATE UNIQUE INDEX u_v ON u (v)")
        content = path.read_bytes()
        at = content.rindex(b"b", 0, root_page(path, "u") * 4096)
        overwrite(path, at, b"a")
        assert look(path)["state"] == "corrupt"

    @pytest.mark.parametrize("bytes_left", [100, 4096, 8192, 30000])
    def test_truncated(self, tmp_path, bytes_left):
        path = make(tmp_path / "a.db")
        os.truncate(path, bytes_left)
        seen = look(path)
        assert seen["state"] == "corrupt"
        assert seen["errors"]

    def test_cut_off_where_sqlite_reads_zeros(self, tmp_path):
        """The end of a large value is missing: SQLite takes it for zeros, and every check of its own is ok."""
        path = tmp_path / "a.db"
        run(path, "CREATE TABLE large (content)", "INSERT INTO large VALUES (hex(zeroblob(10000)))")
        os.truncate(path, path.stat().st_size - 3000)
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        seen = look(path)
        assert (seen["state"], "it was cut off" in seen["errors"][0]) == ("corrupt", True)

    @pytest.mark.parametrize(
        "schema",
        [
            "CREATE TABLE c (v TEXT COLLATE own PRIMARY KEY)",
            "CREATE INDEX i ON customers (own(email))",
        ],
    )
    def test_what_only_the_application_knows(self, tmp_path, schema):
        path = make(tmp_path / "a.db")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.create_collation("own", lambda one, other: (one > other) - (one < other))
            connection.create_function("own", 1, lambda value: value, deterministic=True)
            connection.execute(schema)
        seen = look(path)
        assert (seen["state"], seen["damage"]) == ("unknown", [])
        assert "cannot check it" in seen["limits"][0]

    @pytest.mark.parametrize("word", [b"TABLE", b"customers"])
    def test_damaged_schema(self, tmp_path, word):
        path = make(tmp_path / "a.db")
        content = path.read_bytes()
        overwrite(path, content.index(b"CREATE " + word if word == b"TABLE" else word) + 8, b"\xff\xfe")
        seen = look(path)
        assert seen["state"] == "corrupt", seen

    def test_flipped_byte_in_a_value_is_for_checksums(self, tmp_path):
        path = make(tmp_path / "a.db", extra=["DROP INDEX customers_email"])
        flip_in_value(path)
        assert look(path)["state"] == "ok"


class TestNoTrace:
    def test_database_of_a_killed_client(self, tmp_path):
        path = make(tmp_path / "a.db")
        killed(path, "INSERT INTO customers (id) VALUES ('in the log')")
        assert sorted(name.name for name in tmp_path.iterdir()) == ["a.db", "a.db-shm", "a.db-wal"]
        seen = look(path, count_tables=True)
        assert (seen["state"], seen["rows"]["customers"], seen["holders"]) == ("ok", 201, [])
        assert seen["wal_bytes"] > 4096
        os.unlink(f"{path}-shm")
        assert look(path, count_tables=True)["rows"]["customers"] == 201
        # What a copy of the file alone has.
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy/a.db").write_bytes(path.read_bytes())
        assert query(tmp_path / "copy/a.db", "SELECT count(*) FROM customers") == [(200,)]

    def test_hot_journal(self, tmp_path):
        path = make(tmp_path / "a.db", mode="delete", rows=2000)
        with Client(path, "PRAGMA cache_size=1", "BEGIN", "UPDATE customers SET email = 'spilled'") as client:
            client.kill()
        assert (tmp_path / "a.db-journal").stat().st_size
        seen = look(path, count_tables=True, queries={"new": "SELECT count(*) FROM customers WHERE email = 'spilled'"})
        assert (seen["state"], seen["hot_journal"]) == ("ok", True)
        assert seen["query_results"] == {"new": 0}

    @pytest.mark.parametrize("mode", ["wal", "delete", "persist"])
    def test_live_client(self, tmp_path, mode):
        path = make(tmp_path / "a.db", mode=mode)
        with Client(path, "BEGIN IMMEDIATE", "INSERT INTO customers (id) VALUES ('not committed')") as client:
            seen = look(path, count_tables=True)
            assert (seen["state"], seen["rows"]["customers"]) == ("ok", 200)
            (holder,) = seen["holders"]
            assert holder["pid"] == client.pid
            assert holder["name"].startswith("python")
            assert "a.db" in holder["files"]
            assert client("COMMIT") == "[]"
            assert look(path, count_tables=True)["rows"]["customers"] == 201

    def test_shm_without_a_log(self, tmp_path):
        path = make(tmp_path / "a.db")
        killed(path, "INSERT INTO customers (id) VALUES ('lost with the log')")
        os.unlink(f"{path}-wal")
        assert look(path, count_tables=True)["rows"]["customers"] == 200
        assert not os.path.exists(f"{path}-wal")

    def test_client_that_was_killed_when_it_had_begun_a_log(self, tmp_path):
        """Its header was written, with other salts than its index has."""
        path = make(tmp_path / "a.db")
        killed(path, "INSERT INTO customers (id) VALUES ('lost with the log')")
        log = tmp_path / "a.db-wal"
        header = bytearray(log.read_bytes()[:32])
        header[16] ^= 1
        log.write_bytes(header)
        before = {name: (tmp_path / name).read_bytes() for name in ("a.db", "a.db-wal", "a.db-shm")}
        seen = look(path, "full", count_tables=True)
        assert (seen["state"], seen["errors"], seen["rows"]["customers"]) == ("ok", [], 200)
        assert before == {name: (tmp_path / name).read_bytes() for name in before}

    @pytest.mark.parametrize("mode", ["wal", "delete"])
    def test_lock(self, tmp_path, mode):
        path = make(tmp_path / "a.db", mode=mode)
        statements = ["PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE", "INSERT INTO customers (id) VALUES ('x')"]
        with Client(path, *statements, "COMMIT") as client:
            seen = look(path, timeout=0.2)
            assert seen["state"] == "locked"
            assert f"PID {client.pid}" in seen["errors"][0]
        assert look(path)["state"] == "ok"

    @pytest.mark.parametrize("lasting", [True, False])
    @pytest.mark.parametrize("mode", ["wal", "delete"])
    def test_writer_never_looks_like_damage(self, tmp_path, mode, lasting):
        path = make(tmp_path / "a.db", mode=mode, extra=["CREATE TABLE written (n INTEGER PRIMARY KEY)"])
        seen = []
        with writer(path, lasting, pause=0 if mode == "wal" else 0.02) as committed:
            for _number in range(30 if mode == "wal" else 3):
                seen.append(sqlite_files.look(str(path), "full", count_tables=True, timeout=10))
        assert {one["state"] for one in seen} == {"ok"}
        rows = [one["rows"]["written"] for one in seen]
        assert rows == sorted(rows)
        # The last one may not have been said.
        written = query(path, "SELECT count(*) FROM written")[0][0]
        assert written in (len(committed), len(committed) + 1)
        assert 0 < rows[-1] <= written

    def test_replaced_under_a_client(self, tmp_path):
        path = make(tmp_path / "a.db")
        make(tmp_path / "b.db")
        with Client(path, "SELECT 1 FROM customers") as client:
            os.replace(tmp_path / "b.db", path)
            seen = look(path, "header")
        (holder,) = seen["holders"]
        assert (holder["pid"], "a.db (deleted)" in holder["files"]) == (client.pid, True)
        assert "what it writes is lost when it ends" in seen["limits"][0]


class TestLimits:
    def test_permission(self, tmp_path):
        path = make(tmp_path / "a.db")
        if os.geteuid():
            path.chmod(0)
            with pytest.raises(NoAnswer, match="may not be read by"):
                sqlite_files.look(str(path))
            return
        path.chmod(0o600)
        for folder in (tmp_path, *list(tmp_path.parents)[:2]):
            folder.chmod(0o755)
        refused = f"NoAnswer permission {path} may not be read by nobody; run with -b."
        assert as_nobody(path) == refused
        path.chmod(0o644)
        assert "nobody does not see every process that has it open" in as_nobody(path)

    def test_what_is_told_of_a_file_that_may_not_be_read(self, tmp_path):
        path = make(tmp_path / "a.db")
        told = sqlite_files.not_seen(str(path), "quick", "No.")
        assert (told["state"], told["errors"], told["holders_complete"]) == ("unknown", ["No."], False)
        assert set(told) == set(look(path))

    def test_network_filesystem(self, tmp_path, monkeypatch):
        path = make(tmp_path / "a.db")
        other = make(tmp_path / "b.db", mode="delete")
        monkeypatch.setattr(sqlite_files, "filesystem", lambda path: "nfs4")
        seen = look(path)
        assert seen["state"] == "unknown"
        assert "only the header was looked at" in seen["limits"][1]
        seen = look(other)
        assert (seen["state"], len(seen["limits"])) == ("ok", 1)

    @pytest.mark.parametrize(
        "kind, network", [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("overlay", False)]
    )
    def test_which_filesystems_are_on_the_network(self, kind, network):
        assert sqlite_files.is_network(kind) is network
        assert sqlite_files.filesystem("/proc/self") == "proc"

    def test_budget(self, tmp_path):
        path = make(tmp_path / "a.db", rows=20000)
        seen = look(path, budget=1e-9)
        assert (seen["state"], seen["errors"]) == (
            "unknown",
            ["integrity_check and foreign_key_check did not end within 1e-09 s"],
        )
        assert look(path, budget=60)["state"] == "ok"


class TestQueries:
    @pytest.mark.parametrize(
        "text, value",
        [
            ("SELECT count(*) FROM customers", 200),
            ("SELECT NULL", None),
            ("SELECT x'00ff'", "00ff"),
            ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n", 15),
        ],
    )
    def test_value(self, tmp_path, text, value):
        assert look(make(tmp_path / "a.db"), "header", queries={"it": text})["query_results"] == {"it": value}

    @pytest.mark.parametrize(
        "text",
        [
            "DELETE FROM customers",
            "ATTACH '/tmp/other.db' AS other",
            "PRAGMA journal_mode=DELETE",
            "SELECT 1; SELECT 2",
            "SELECT 1, 2",
            "SELECT id FROM customers",
            "SELECT id FROM customers WHERE 0",
            "SELECT no_such_function()",
            "VACUUM INTO '/tmp/other.db'",
            "",
        ],
    )
    def test_anything_else_is_refused(self, tmp_path, text):
        path = make(tmp_path / "a.db")
        with pytest.raises(NoAnswer, match="one SELECT of one row with one column"):
            look(path, "header", queries={"it": text})


def truth(path):
    """What SQLite itself says of a copy, opened like any client does."""
    try:
        with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as connection:
            said = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            return "ok" if said == ["ok"] else "damaged"
    except sqlite3.DatabaseError:
        return "damaged"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mode=st.sampled_from(["wal", "delete"]),
    page_size=st.sampled_from([512, 1024, 4096]),
    rows=st.integers(0, 60),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=6),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_damage_of_any_kind(tmp_path_factory, mode, page_size, rows, flips, cut):
    folder = tmp_path_factory.mktemp("any")
    path = make(folder / "a.db", rows=rows, mode=mode, page_size=page_size)
    content = bytearray(path.read_bytes())
    for where, mask in flips:
        content[min(int(where * len(content)), len(content) - 1)] ^= mask
    if cut is not None:
        content = content[: int(cut * len(content))]
    path.write_bytes(content)
    seen = look(path)
    copy = folder / "copy.db"
    copy.write_bytes(content)
    if seen["state"] == "ok":
        assert truth(copy) == "ok"
    elif seen["state"] in ("corrupt", "corrupt_index") and seen["damage"] != ["foreign_keys"]:
        assert truth(copy) == "damaged"
    assert bool(seen["errors"]) is (seen["state"] != "ok")


def test_one_thread_reads_at_a_time(tmp_path):
    """Closing a descriptor drops a process's locks: a look that ends must not take those of another one away."""
    path = str(make(tmp_path / "a.db", mode="delete"))
    inside, order = threading.Event(), []

    def slowly(_connection):
        inside.set()
        time.sleep(0.2)
        order.append("first")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(sqlite_files.read, path, slowly)
        assert inside.wait(10)
        sqlite_files.read(path, lambda _connection: order.append("second"))
        first.result()
    assert order == ["first", "second"]

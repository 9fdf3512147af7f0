# SPDX-License-Identifier: GPL-3.0-or-later
"""A customer's changes against a real HTTP server with a real database behind it, which does what a test wants."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import vritti_customers
from ansible_collections.oncall.runbooks.plugins.module_utils.remediation import Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import PATIENCE
from ansible_collections.oncall.runbooks.tests.unit.module_utils.sqlite_helpers import Client, damage_data, query, run

ADMIN = "the-secret-of-the-admins"
PATH = "/api/v1/customers/acme"
LOOK, CHANGE, RESET = ("GET", PATH), ("PATCH", PATH), ("POST", f"{PATH}/reset-usage")
SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE customers (
    customer_id TEXT PRIMARY KEY, subscription_tier TEXT, status TEXT, monthly_credit_limit INTEGER,
    credits_used_current_month INTEGER, created_at TEXT, updated_at TEXT
);
CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT, customer_id TEXT, action TEXT, resource_type TEXT,
    resource_id TEXT, details TEXT
);
INSERT INTO customers VALUES ('acme', 'free', 'active', 1000, 12, '2026-11-01T08:00:00+00:00', NULL);
INSERT INTO customers VALUES ('other', 'pro', 'active', 100000, 7, '2026-11-01T08:00:00+00:00', NULL);
INSERT INTO audit_log (customer_id, action) VALUES ('acme', 'RESET_USAGE'), ('other', 'RESET_USAGE');
"""


class Vritti:
    """`answers` maps a method and a path to (status, object) in place of what Vritti would say, or to None: silence."""

    def __init__(self, path):
        self.path = path
        self.requests = []
        self.answers = {}
        vritti = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                vritti.requests.append((self.command, self.path, dict(self.headers), body))
                found = vritti.answers.get((self.command, self.path), vritti.served)
                if callable(found):
                    found = found(self.command, self.path, body)
                if found is None:
                    self.close_connection = True
                    return
                status, content = found
                data = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = answer

            def log_message(self, *_arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE)

    def served(self, method, path, body):
        """What Vritti does: a limit that a tier does not change, and an audit of every change."""
        name = path.split("/")[4]
        with contextlib.closing(sqlite3.connect(str(self.path), timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            for column, value in (body or {}).items():
                connection.execute(f"UPDATE customers SET {column} = ? WHERE customer_id = ?", (value, name))  # noqa: S608
            if method == "POST":
                connection.execute("UPDATE customers SET credits_used_current_month = 0 WHERE customer_id = ?", (name,))
            if method != "GET":
                action = "RESET_USAGE" if method == "POST" else "UPDATE"
                connection.execute("INSERT INTO audit_log (customer_id, action) VALUES (?, ?)", (name, action))
            connection.commit()
            row = connection.execute("SELECT * FROM customers WHERE customer_id = ?", (name,)).fetchone()
        if row is None:
            return 404, {"detail": f"Customer not found: {name}"}
        return (204, None) if method == "POST" else (200, {**dict(row), "email": "ops@acme.example"})

    @property
    def asked(self):
        return [(method, path) for method, path, _headers, _body in self.requests]


class World:
    def __init__(self, folder):
        self.db = folder / "customers.db"
        with contextlib.closing(sqlite3.connect(str(self.db), isolation_level=None)) as connection:
            connection.executescript(SCHEMA)
        self.receipt = folder / "receipts" / "acme.json"
        self.vritti = Vritti(self.db)

    def options(self, **more):
        given = {"url": self.vritti.url, "admin_api_key": ADMIN, "customer": "acme", "timeout": 10.0, **more}
        return vritti_customers.Options(**given)

    def ensure(self, check=False, **more):
        options = self.options(**more)
        options.validate()
        ensure = vritti_customers.Ensure(options)
        self.vritti.requests.clear()
        ensure.run(check)
        assert ADMIN not in json.dumps([ensure.before, ensure.after, ensure.notes])
        return ensure

    def refused(self, **more):
        """The sentence, and whether something may have been changed."""
        options = self.options(**more)
        options.validate()
        ensure = vritti_customers.Ensure(options)
        self.vritti.requests.clear()
        with pytest.raises(Refused) as caught:
            ensure.run(False)
        said = str(caught.value)
        assert ADMIN not in said
        assert said.endswith("." if "is this Vritti" not in said else "?")
        return said, ensure.changed

    def reset(self, **more):
        return self.ensure(reset_usage=True, receipt=str(self.receipt), customers_db=str(self.db), **more)

    @property
    def restoring(self):
        return {"restore_usage": True, "receipt": str(self.receipt), "customers_db": str(self.db)}

    def restore(self, **more):
        return self.ensure(**self.restoring, **more)

    def use(self, credits):
        added = f"credits_used_current_month = credits_used_current_month + {credits:d}"
        run(self.db, f"UPDATE customers SET {added}")  # noqa: S608

    @property
    def used(self):
        return query(self.db, "SELECT credits_used_current_month FROM customers WHERE customer_id = 'acme'")[0][0]

    @property
    def marks(self):
        return query(self.db, "SELECT details FROM audit_log WHERE details IS NOT NULL")


@pytest.fixture()
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.vritti.close()


class TestFields:
    def test_nothing_wanted_is_a_look(self, world):
        seen = world.ensure()
        assert (world.vritti.asked, seen.changed) == ([LOOK], False)
        assert seen.before == seen.after
        assert seen.before["email"] == "ops@acme.example"

    def test_tier_takes_its_limit_with_it(self, world):
        done = world.ensure(subscription_tier="pro")
        assert world.vritti.asked == [LOOK, CHANGE]
        _method, _path, headers, body = world.vritti.requests[1]
        assert body == {"subscription_tier": "pro", "monthly_credit_limit": 100000}
        assert headers["Content-Type"] == "application/json"
        for _method, _path, headers, _body in world.vritti.requests:
            assert (headers["X-Admin-API-Key"], headers["X-Admin-Key"]) == (ADMIN, ADMIN)
        assert done.changed
        assert (done.before["monthly_credit_limit"], done.after["monthly_credit_limit"]) == (1000, 100000)
        assert "does not change the limit with the tier" in done.notes[0]
        again = world.ensure(subscription_tier="pro")
        assert (world.vritti.asked, again.changed, again.notes) == ([LOOK], False, [])

    def test_nothing_is_changed_where_the_database_is_another_one(self, world, tmp_path):
        """What a rollback puts back was read there."""
        done = world.ensure(status="suspended", customers_db=str(world.db))
        assert done.after["status"] == "suspended"
        other = tmp_path / "other.db"
        shutil.copy(world.db, other)
        with contextlib.closing(sqlite3.connect(str(other), isolation_level=None)) as connection:
            connection.execute("UPDATE customers SET status = 'active'")
        said, changed = world.refused(status="deleted", customers_db=str(other))
        assert "it is not the database which it uses" in said
        assert not changed

    def test_only_what_differs_is_sent(self, world):
        world.ensure(subscription_tier="free", monthly_credit_limit=5000, status="active")
        assert world.vritti.requests[1][3] == {"monthly_credit_limit": 5000}
        world.ensure(subscription_tier="free", monthly_credit_limit=0)
        assert world.vritti.requests[1][3] == {"monthly_credit_limit": 0}

    def test_suspension_tells_of_the_keys_that_work_on(self, world):
        done = world.ensure(status="suspended")
        assert "checked within the last 300 s" in done.notes[0]
        assert world.ensure(status="active").notes == []

    def test_check_mode(self, world):
        wanted = {"subscription_tier": "starter", "status": "suspended", "reset_usage": True}
        foreseen = world.ensure(check=True, **wanted)
        assert (world.vritti.asked, foreseen.changed) == ([LOOK], True)
        assert world.ensure(**wanted).after == foreseen.after
        assert not world.ensure(check=True, **wanted).changed

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"url": "localhost:8000"}, "has no scheme"),
            ({"customer": "../admin"}, "customer is '../admin'; an id has"),
            ({"customer": ""}, "an id has 3 to 50"),
            ({"admin_api_key": ""}, "admin_api_key is empty"),
            ({"timeout": 0.0}, "timeout is 0; it is a number of seconds above 0"),
            ({"monthly_credit_limit": -1}, "monthly_credit_limit is -1"),
            ({"receipt": "/r", "customers_db": "/d"}, "neither reset_usage nor restore_usage is"),
        ],
    )
    def test_validation(self, world, options, says):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            world.options(**options).validate()
        assert says in str(caught.value)


class TestAnswers:
    def test_customer_that_does_not_exist(self, world):
        said, changed = world.refused(customer="nobody", status="suspended")
        assert said.startswith(f"Vritti at {world.vritti.url} has no customer 'nobody'")
        assert (world.vritti.asked, changed) == ([("GET", "/api/v1/customers/nobody")], False)

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            ((404, {"detail": "Not Found"}), "answers 404 and not 200: Not Found."),
            ((200, {"hello": "world"}), "is this Vritti?"),
            ((200, {"customer_id": "acme", "subscription_tier": "free", "status": "active"}), "is missing"),
            (
                (401, {"detail": f"Invalid admin API key {ADMIN}"}),
                "Invalid admin API key ********; check admin_api_key.",
            ),
            (
                (401, {"detail": "Admin API key not configured on server"}),
                "; set its ADMIN_API_KEY and restart it: one",
            ),
            (
                (422, {"detail": [{"type": "missing", "loc": ["header", "x-admin-key"]}]}),
                "what stands between here and Vritti takes it away.",
            ),
            (None, "Nothing was changed: GET "),
        ],
    )
    def test_look_that_fails_changes_nothing(self, world, answer, says):
        world.vritti.answers[LOOK] = answer
        said, changed = world.refused(status="suspended")
        assert says in said
        assert (world.vritti.asked, changed) == ([LOOK], False)

    @pytest.mark.parametrize(
        ("answer", "says", "maybe"),
        [
            (None, "Whether it was done is not known; run it again, which looks first.", True),
            ((500, None), "answers 500 and not 200. Whether it was done is not known", True),
            ((422, {"detail": "no such tier"}), "answers 422 and not 200: no such tier. It was not done.", False),
        ],
    )
    def test_change_that_fails_is_sent_once(self, world, answer, says, maybe):
        world.vritti.answers[CHANGE] = answer
        said, changed = world.refused(status="suspended")
        assert says in said
        assert (world.vritti.asked, changed) == ([LOOK, CHANGE], maybe)

    def test_change_that_is_not_kept(self, world):
        world.vritti.answers[CHANGE] = lambda _method, path, _body: world.vritti.served("GET", path, None)
        said, changed = world.refused(subscription_tier="pro")
        assert "is 'free' still, not 'pro'" in said
        assert changed

    def test_url_without_what_is_secret_in_it(self, world):
        port = helpers.free_port()
        said, _changed = world.refused(url=f"http://someone:{ADMIN}@127.0.0.1:{port}/")
        assert said.startswith(f"Nothing was changed: GET http://127.0.0.1:{port}{PATH}: no connection")


class TestReset:
    def test_once_and_not_where_there_is_nothing(self, world):
        done = world.ensure(reset_usage=True)
        assert world.vritti.asked == [LOOK, RESET, LOOK]
        assert (done.before[vritti_customers.USED], done.after[vritti_customers.USED], world.used) == (12, 0, 0)
        assert "cannot be undone by this module" in done.notes[0]
        assert not world.ensure(reset_usage=True).changed
        assert world.vritti.asked == [LOOK]

    def test_receipt(self, world):
        world.reset()
        assert {key: it for key, it in json.loads(world.receipt.read_text()).items() if key != "at"} == {
            "customer": "acme",
            "credits": 12,
            "last_reset": 1,
        }
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (world.receipt, world.receipt.parent)]
        assert modes == [0o600, 0o700]

    def test_same_receipt_is_for_one_reset(self, world):
        world.reset()
        world.use(3)
        again = world.reset()
        assert (world.vritti.asked, again.changed, world.used) == ([LOOK], False, 3)
        assert "reset with this receipt before (12 credits)" in again.notes[0]

    def test_receipt_of_a_reset_that_did_not_take_place_is_written_anew(self, world):
        world.vritti.answers[RESET] = (503, None)
        said, changed = world.refused(reset_usage=True, receipt=str(world.receipt), customers_db=str(world.db))
        assert "Whether it was done is not known" in said
        assert changed
        world.vritti.answers.clear()
        world.use(1)
        world.reset()
        assert json.loads(world.receipt.read_text())["credits"] == 13
        world.restore()
        assert world.used == 13

    def test_without_a_receipt_there_is_no_reset(self, world):
        # Nobody can make a folder there.
        said, changed = world.refused(reset_usage=True, receipt="/proc/none/acme.json", customers_db=str(world.db))
        assert "The receipt /proc/none/acme.json cannot be written" in said
        assert (changed, world.used) == (False, 12)

    def test_another_database(self, world, tmp_path):
        (tmp_path / "other").mkdir()
        other = World(tmp_path / "other")
        try:
            run(other.db, "UPDATE customers SET credits_used_current_month = 11")
            wanted = {"reset_usage": True, "receipt": str(world.receipt), "customers_db": str(other.db)}
            said, changed = world.refused(**wanted)
            assert f"{other.db} has 11 credits used by acme, and Vritti at {world.vritti.url} says 12" in said
            assert (changed, world.used, world.receipt.exists()) == (False, 12, False)
        finally:
            other.vritti.close()


class TestRestore:
    def test_once_and_what_was_used_since_stays(self, world):
        world.reset()
        world.use(3)
        foreseen = world.restore(check=True)
        assert (foreseen.changed, foreseen.after[vritti_customers.USED], world.used) == (True, 15, 3)
        done = world.restore()
        assert (done.changed, done.before[vritti_customers.USED], done.after[vritti_customers.USED]) == (True, 3, 15)
        assert world.marks == [("{'undoes_reset': 3, 'credits_added': 12}",)]
        for _number in range(2):
            again = world.restore()
            assert (again.changed, world.used, len(world.marks)) == (False, 15, 1)
            assert again.notes == ["The 12 credits were added to the usage of acme before."]
        # The others have what they had.
        assert query(world.db, "SELECT credits_used_current_month FROM customers WHERE customer_id = 'other'") == [
            (10,)
        ]

    def test_cut_short_between_adding_and_noting_it(self, world):
        world.reset()
        run(world.db, "CREATE TRIGGER stop BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'cut short'); END")
        said, changed = world.refused(**world.restoring)
        assert "cut short" in said
        assert (changed, world.used, world.marks) == (False, 0, [])
        run(world.db, "DROP TRIGGER stop")
        world.restore()
        assert (world.used, len(world.marks)) == (12, 1)

    def test_killed_at_any_moment(self, world):
        world.reset()
        code = (
            "import sys, json\n"
            "from ansible_collections.oncall.runbooks.plugins.module_utils import vritti_customers as it\n"
            "options = it.Options(**json.loads(sys.argv[1]))\n"
            "print('ready', flush=True)\n"
            "it.Ensure(options).run(False)\n"
        )
        given = json.dumps({"url": world.vritti.url, "admin_api_key": ADMIN, "customer": "acme", **world.restoring})
        for number in range(8):
            with subprocess.Popen(
                [sys.executable, "-c", code, given],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(helpers.COLLECTIONS)},
            ) as process:
                process.stdout.readline()
                time.sleep(number * 0.004)
                process.send_signal(signal.SIGKILL)
            assert world.used in (0, 12)
        world.restore()
        assert (world.used, len(world.marks)) == (12, 1)

    def test_two_at_a_time(self, world):
        world.reset()
        made = [vritti_customers.Ensure(world.options(**world.restoring)) for _number in range(4)]
        threads = [threading.Thread(target=ensure.run, args=(False,)) for ensure in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (world.used, len(world.marks)) == (12, 1)
        assert [ensure.changed for ensure in made].count(True) == 1

    def test_reset_that_was_not_carried_out(self, world):
        world.vritti.answers[RESET] = (401, {"detail": "no"})
        world.refused(reset_usage=True, receipt=str(world.receipt), customers_db=str(world.db))
        world.use(1)
        done = world.restore()
        assert (done.changed, world.used) == (False, 13)
        assert done.notes == ["The reset of the usage of acme was not carried out, so there is nothing to add."]

    def test_reset_of_which_nothing_tells(self, world):
        world.reset()
        run(world.db, "DELETE FROM audit_log")
        said, changed = world.refused(**world.restoring)
        assert "cannot be established: 0 credits are used, 12 were" in said
        assert (changed, world.used) == (False, 0)

    def test_reset_again_since(self, world):
        world.reset()
        world.use(5)
        world.ensure(reset_usage=True)
        done = world.restore()
        assert (done.changed, world.used) == (False, 0)
        assert "reset again later" in done.notes[0]

    def test_customer_that_is_gone_from_the_database(self, world):
        world.reset()
        seen = world.ensure().before
        world.vritti.answers[LOOK] = (200, seen)
        run(world.db, "DELETE FROM customers WHERE customer_id = 'acme'")
        said, changed = world.refused(**world.restoring)
        assert said == "The database has no customer 'acme' any more. Nothing was changed."
        assert not changed

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "There is no receipt"),
            ("{}", "is no receipt of a reset"),
            ("nothing", "is no receipt of a reset"),
            ("[1]", "is no receipt of a reset"),
            ('{"customer": "other", "credits": 7, "last_reset": 0}', "is of 'other', not of 'acme'"),
        ],
    )
    def test_receipt_that_is_none(self, world, content, says):
        world.receipt.parent.mkdir()
        if content is not None:
            world.receipt.write_text(content)
        said, changed = world.refused(**world.restoring)
        assert says in said
        assert (changed, world.used) == (False, 12)

    def test_database_that_is_not_sound(self, world):
        world.reset()
        run(world.db, "PRAGMA wal_checkpoint(TRUNCATE)", *["INSERT INTO audit_log (details) VALUES (NULL)"] * 200)
        run(world.db, "PRAGMA wal_checkpoint(TRUNCATE)")
        damage_data(world.db, "audit_log")
        before = world.db.read_bytes()
        said, changed = world.refused(**world.restoring)
        assert f"{world.db} is corrupt" in said
        assert "nothing is written to it like that" in said
        assert (changed, world.db.read_bytes() == before) == (False, True)

    def test_database_that_is_missing_or_locked(self, world, tmp_path):
        world.reset()
        missing = {**world.restoring, "customers_db": str(tmp_path / "none.db")}
        assert "none.db is missing" in world.refused(**missing)[0]
        assert not (tmp_path / "none.db").exists()
        with Client(world.db, "BEGIN IMMEDIATE"):
            said, changed = world.refused(**world.restoring, timeout=0.5)
        assert "database is locked" in said
        assert (changed, world.used) == (False, 0)

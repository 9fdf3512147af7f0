# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotating a key against a real HTTP server with a real database behind it, killed and refused wherever it can be."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import secrets
import shutil
import sqlite3
import stat
import threading

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import durable, http_client, vritti_api_keys
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import PATIENCE
from ansible_collections.oncall.runbooks.tests.unit.module_utils.sqlite_helpers import query, run

ADMIN = "the-secret-of-the-admins"
CUSTOMER = "/api/v1/customers/acme"
ROTATE, CREATE = ("POST", f"{CUSTOMER}/rotate-key"), ("POST", f"{CUSTOMER}/api-keys")
SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE customers (customer_id TEXT PRIMARY KEY, subscription_tier TEXT, status TEXT,
    monthly_credit_limit INTEGER, credits_used_current_month INTEGER, created_at TEXT);
CREATE TABLE api_keys (key_id TEXT PRIMARY KEY, customer_id TEXT, key_hash TEXT, name TEXT, created_at TEXT,
    last_used_at TEXT, is_active INTEGER DEFAULT 1);
INSERT INTO customers VALUES ('acme', 'free', 'suspended', 1000, 12, '2026-11-01T08:00:00+00:00');
INSERT INTO customers VALUES ('other', 'pro', 'active', 100000, 7, '2026-11-01T08:00:00+00:00');
INSERT INTO api_keys VALUES ('old-1', 'acme', 'x', 'ci', '1', NULL, 1), ('old-2', 'acme', 'y', NULL, '2', '3', 1),
    ('gone', 'acme', 'z', 'ci', '0', NULL, 0), ('theirs', 'other', 'w', 'ci', '1', NULL, 1);
"""


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


class Vritti:
    """`answers` maps a method and a path to (status, object) in place of what Vritti would say, or to None: silence."""

    def __init__(self, path):
        self.path = path
        self.asked = []
        self.headers = []
        self.answers = {}
        self.keys = []
        vritti = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                vritti.asked.append((self.command, self.path))
                vritti.headers.append(dict(self.headers))
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
                # Who asked may have been killed.
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_arguments):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE)

    def served(self, method, path, body):
        """What Vritti does: no route to rotate, and a key is revoked whosever it is."""
        _empty, _api, _v1, _customers, name, *rest = path.split("/")
        with contextlib.closing(sqlite3.connect(str(self.path), timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            if method == "GET":
                row = connection.execute("SELECT * FROM customers WHERE customer_id = ?", (name,)).fetchone()
                return (200, dict(row)) if row else (404, {"detail": f"Customer not found: {name}"})
            if method == "POST" and rest == ["api-keys"]:
                return 201, self.make(connection, name, body)
            if method == "DELETE" and rest[:1] == ["api-keys"]:
                done = connection.execute("UPDATE api_keys SET is_active = 0 WHERE key_id = ?", (rest[1],)).rowcount
                connection.commit()
                return (204, None) if done else (404, {"detail": "API key not found"})
        return 404, {"detail": "Not Found"}

    def make(self, connection, name, body):
        key_id = secrets.token_hex(16)
        key = f"em_live_{key_id}_{secrets.token_hex(32)}"
        self.keys.append(key)
        connection.execute(
            "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, NULL, 1)", (key_id, name, digest(key), body["name"], "9")
        )
        connection.commit()
        return {"api_key": key, "key_id": key_id, "key_prefix": key_id[:8], "customer_id": name, "warning": "once"}


class World:
    def __init__(self, folder):
        self.db = folder / "customers.db"
        self.handover = folder / "keys"
        self.receipt = folder / "receipts" / "acme.json"
        with contextlib.closing(sqlite3.connect(str(self.db), isolation_level=None)) as connection:
            connection.executescript(SCHEMA)
        self.vritti = Vritti(self.db)

    def options(self, **more):
        given = {
            "url": self.vritti.url,
            "admin_api_key": ADMIN,
            "customer": "acme",
            "handover": str(self.handover),
            "receipt": str(self.receipt),
            "customers_db": str(self.db),
            "timeout": 10.0,
        }
        return vritti_api_keys.Options(**{**given, **more})

    def rotation(self, **more):
        options = self.options(**more)
        options.validate()
        return vritti_api_keys.Rotation(options)

    def rotate(self, check=False, **more):
        rotation = self.rotation(**more)
        self.vritti.asked.clear()
        rotation.run(check)
        self.no_secret(rotation)
        return rotation

    def refused(self, **more):
        """The sentence, and the rotation."""
        rotation = self.rotation(**more)
        self.vritti.asked.clear()
        with pytest.raises(Refused) as caught:
            rotation.run(False)
        said = str(caught.value)
        self.no_secret(rotation, said)
        assert said.endswith(".")
        assert "\n" not in said
        return said, rotation

    def no_secret(self, rotation, *more):
        told = [rotation.key_id, rotation.handover_file, rotation.revoked, rotation.kept, rotation.notes]
        texts = [json.dumps([told, rotation.active_before, rotation.active_after]), *more]
        if self.receipt.exists():
            texts.append(self.receipt.read_text())
        for text in texts:
            assert not [secret for secret in (ADMIN, *self.vritti.keys) if secret in text]

    @property
    def active(self):
        return {
            row[0] for row in query(self.db, "SELECT key_id FROM api_keys WHERE is_active AND customer_id = 'acme'")
        }

    @property
    def handed_over(self):
        """The keys in files, by their ids; each has to be one that Vritti knows."""
        found = {}
        for path in self.handover.glob("*"):
            content = json.loads(path.read_text())
            known = dict(query(self.db, "SELECT key_id, key_hash FROM api_keys"))
            assert digest(content["api_key"]) == known[content["key_id"]]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            found[content["key_id"]] = path
        return found


@pytest.fixture()
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.vritti.close()


def deleted(*ids):
    return [("DELETE", f"{CUSTOMER}/api-keys/{key_id}") for key_id in ids]


class TestRotated:
    def test_new_one_is_handed_over_before_the_old_ones_are_revoked(self, world):
        done = world.rotate(expires_in_days=90)
        assert world.vritti.asked == [("GET", CUSTOMER), ROTATE, CREATE, *deleted("old-1", "old-2")]
        for headers in world.vritti.headers:
            assert (headers["X-Admin-API-Key"], headers["X-Admin-Key"]) == (ADMIN, ADMIN)
        assert (done.changed, done.revoked, done.kept) == (True, ["old-1", "old-2"], [])
        assert (done.active_before, done.active_after) == (["old-1", "old-2"], [done.key_id])
        assert "within the last 300 s" in done.notes[0]
        assert world.active == {done.key_id} == set(world.handed_over)
        path = world.handed_over[done.key_id]
        assert str(path) == done.handover_file
        assert json.loads(path.read_text())["expires_in_days"] == 90
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in (world.handover, world.receipt.parent)] == [0o700] * 2
        assert query(world.db, "SELECT is_active FROM api_keys WHERE key_id = 'theirs'") == [(1,)]

    def test_a_second_time(self, world):
        done = world.rotate()
        path = world.handed_over[done.key_id]
        content = path.read_bytes()
        again = world.rotate()
        assert world.vritti.asked == [("GET", CUSTOMER)]
        assert (again.changed, again.key_id, again.handover_file) == (False, done.key_id, str(path))
        assert path.read_bytes() == content
        # Once the customer has it, the file is deleted.
        shutil.rmtree(world.handover)
        assert not world.rotate().changed
        assert not world.handover.exists()
        # What is active again, by a restored database, is revoked again.
        run(world.db, "UPDATE api_keys SET is_active = 1 WHERE key_id = 'old-1'")
        assert world.rotate(check=True).revoked == ["old-1"]
        assert world.rotate().revoked == ["old-1"]
        assert world.active == {done.key_id}
        run(world.db, "UPDATE api_keys SET is_active = 0")
        assert world.rotate().notes == [f"The new key {done.key_id} is not active any more."]

    def test_another_receipt_is_another_rotation(self, world):
        first = world.rotate()
        second = world.rotate(receipt=f"{world.receipt}.2")
        assert second.revoked == [first.key_id]
        assert world.active == {second.key_id}
        assert set(world.handed_over) == {first.key_id, second.key_id}

    def test_only_the_keys_that_are_named(self, world):
        done = world.rotate(revoke=("old-2",))
        assert (done.revoked, done.kept) == (["old-2"], ["old-1"])
        assert world.active == {"old-1", done.key_id}

    @pytest.mark.parametrize("key_id", ["theirs", "nobodys"])
    def test_a_key_of_somebody_else_is_not_revoked(self, world, key_id):
        said, rotation = world.refused(revoke=("old-1", key_id))
        assert f"acme has no key with the id {key_id}" in said
        assert not rotation.changed
        assert world.active == {"old-1", "old-2"}
        assert query(world.db, "SELECT is_active FROM api_keys WHERE key_id = 'theirs'") == [(1,)]

    def test_customer_without_a_key(self, world):
        run(world.db, "UPDATE api_keys SET is_active = 0")
        done = world.rotate()
        assert (done.revoked, done.notes) == ([], [])
        assert world.active == {done.key_id} == set(world.handed_over)

    def test_check_mode(self, world):
        before = query(world.db, "SELECT * FROM api_keys")
        foreseen = world.rotate(check=True)
        assert world.vritti.asked == [("GET", CUSTOMER)]
        assert (foreseen.changed, foreseen.key_id, foreseen.handover_file) == (True, None, None)
        assert foreseen.revoked == ["old-1", "old-2"]
        assert foreseen.active_after == ["(a new key)"]
        assert query(world.db, "SELECT * FROM api_keys") == before
        assert not world.handover.exists()
        assert not world.receipt.exists()
        world.rotate()
        assert not world.rotate(check=True).changed

    def test_where_the_runbooks_route_exists(self, world):
        """It makes a key and revokes the others itself."""

        def rotate(_method, _path, body):
            with contextlib.closing(sqlite3.connect(str(world.db), timeout=10)) as connection:
                connection.execute("UPDATE api_keys SET is_active = 0 WHERE customer_id = 'acme'")
                return 200, world.vritti.make(connection, "acme", body)

        world.vritti.answers[ROTATE] = rotate
        done = world.rotate()
        assert world.vritti.asked == [("GET", CUSTOMER), ROTATE]
        assert world.active == {done.key_id} == set(world.handed_over)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"url": "localhost:8000"}, "has no scheme"),
            ({"customer": "../admin"}, "customer is '../admin'; an id has"),
            ({"admin_api_key": ""}, "admin_api_key is empty"),
            ({"timeout": 0.0}, "timeout is 0; it is a number of seconds above 0"),
            ({"revoke": ()}, "revoke is a list of keys' ids, or all alone"),
            ({"revoke": ("all", "old-1")}, "or all alone"),
            ({"revoke": ("a/../b",)}, "revoke has an entry that is no key's id"),
            ({"name": ""}, "name has 0 characters"),
            ({"name": "n" * 92}, "name has 92 characters; it has 1 to 91"),
            ({"expires_in_days": 366}, "expires_in_days is 366; it goes from 1 to 365"),
            ({"handover": "keys"}, "handover is 'keys'; give a path that begins with /"),
            ({"receipt": "r.json"}, "receipt is 'r.json'"),
        ],
    )
    def test_validation(self, world, options, says):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            world.options(**options).validate()
        assert says in str(caught.value)

    def test_a_key_in_place_of_its_id_is_not_repeated(self, world):
        key = f"em_live_{'a' * 32}_{'b' * 64}"
        with pytest.raises(ValueError, match="no key's id") as caught:
            world.options(revoke=(key,)).validate()
        assert key not in str(caught.value)


class TestRefused:
    def nothing_was_done(self, world, rotation):
        assert world.active == {"old-1", "old-2"}
        assert not rotation.api.changed
        assert not world.vritti.keys

    def test_another_database(self, world, tmp_path):
        other = tmp_path / "other.db"
        shutil.copy(world.db, other)
        run(other, "UPDATE customers SET monthly_credit_limit = 3")
        said, rotation = world.refused(customers_db=str(other))
        assert "it is not the database which it uses. Nothing was changed." in said
        self.nothing_was_done(world, rotation)

    def test_another_database_that_looks_the_same(self, world, tmp_path):
        """Only the new key tells; it is withdrawn, and whatever has the old ids is left alone."""
        other = tmp_path / "other.db"
        shutil.copy(world.db, other)
        said, _rotation = world.refused(customers_db=str(other))
        assert "it is not the database which Vritti at" in said
        assert said.endswith("It was revoked, and no old key was.")
        assert world.active == {"old-1", "old-2"}
        assert world.handed_over == {}

    @pytest.mark.parametrize(
        ("answers", "says"),
        [
            ({CREATE: (401, {"detail": f"Invalid {ADMIN}"})}, "Invalid ********; check admin_api_key. No key was made"),
            ({ROTATE: (403, {"detail": "no"})}, "No key was made, and none revoked."),
            ({("GET", CUSTOMER): (404, {"detail": "Customer not found: acme"})}, "has no customer 'acme'"),
            ({("GET", CUSTOMER): None}, "Nothing was changed: GET "),
        ],
    )
    def test_vritti_does_not_want(self, world, answers, says):
        world.vritti.answers.update(answers)
        said, rotation = world.refused()
        assert says in said
        self.nothing_was_done(world, rotation)
        assert world.handed_over == {}

    @pytest.mark.parametrize("route", [ROTATE, CREATE])
    @pytest.mark.parametrize("answer", [None, (500, None)])
    def test_whether_a_key_was_made_is_not_known(self, world, route, answer):
        def lost(_method, _path, body):
            with contextlib.closing(sqlite3.connect(str(world.db), timeout=10)) as connection:
                world.vritti.make(connection, "acme", body)
            return answer

        world.vritti.answers[route] = lost
        said, rotation = world.refused()
        assert "Whether a key was made is not known, and no old one was revoked; run it again with the same" in said
        assert rotation.changed
        assert len(world.active) == 3
        world.vritti.answers.clear()
        done = world.rotate()
        assert len(done.revoked) == 3
        assert "was made by a run that was cut short" in " ".join(done.notes)
        assert world.active == {done.key_id} == set(world.handed_over)

    @pytest.mark.parametrize("more", [{}, {"api_key": "em_live_x"}, {"key_id": "new", "api_key": ""}])
    def test_an_answer_without_a_key(self, world, more):
        world.vritti.answers[ROTATE] = (200, more)
        said, _rotation = world.refused()
        assert "answers without a key, or without its id" in said
        assert world.active == {"old-1", "old-2"}
        assert world.handed_over == {}

    def test_an_answer_that_repeats_the_key_in_an_error(self, world):
        key = f"em_live_{'a' * 32}_{'b' * 64}"
        world.vritti.keys.append(key)
        world.vritti.answers[CREATE] = (202, {"api_key": key, "key_id": "x"})
        world.refused()

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (None, "whether that key was revoked is not known; run it again with the same receipt, which looks first."),
            ((503, None), "whether that key was revoked is not known"),
            ((404, {"detail": "API key not found"}), "that key was not revoked."),
            ((204, None), "the key is active still"),
        ],
    )
    def test_a_revocation_that_fails_is_made_up_for(self, world, answer, says):
        (second,) = deleted("old-2")
        world.vritti.answers[second] = answer
        said, rotation = world.refused()
        assert says in said
        assert rotation.handover_file in said
        assert rotation.revoked == ["old-1"]
        assert world.active == {"old-2", rotation.key_id}
        world.vritti.answers.clear()
        done = world.rotate()
        assert (done.revoked, done.key_id) == (["old-2"], rotation.key_id)
        assert world.vritti.asked == [("GET", CUSTOMER), second]

    def test_nothing_is_sent_twice(self, world):
        world.vritti.answers[CREATE] = None
        world.refused()
        assert world.vritti.asked == [("GET", CUSTOMER), ROTATE, CREATE]

    def test_a_folder_that_others_look_into(self, world):
        world.handover.mkdir(mode=0o755)
        for check in (True, False):
            with pytest.raises(Refused, match=r"has the mode 0755; a key is only put where nobody but .* can look"):
                world.rotation().run(check)
        assert world.vritti.keys == []

    def test_a_link_in_place_of_the_folder(self, world, tmp_path):
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        world.handover.symlink_to(tmp_path / "elsewhere")
        said, rotation = world.refused(handover=f"{world.handover}/")
        assert "is no folder" in said
        self.nothing_was_done(world, rotation)

    def test_a_folder_that_cannot_be_made(self, world, tmp_path):
        (tmp_path / "file").write_text("")
        said, rotation = world.refused(handover=str(tmp_path / "file" / "keys"))
        assert "cannot be used (Not a directory). Nothing was changed." in said
        self.nothing_was_done(world, rotation)

    def test_two_at_once(self, world):
        with world.rotation()._alone():
            said, rotation = world.refused()
        assert "Another run works in" in said
        self.nothing_was_done(world, rotation)

    def test_one_after_the_other(self, world, monkeypatch):
        """The second has looked before the first has begun, and does nothing twice."""
        first, second = world.rotation(), world.rotation()
        real = second._check_folder
        monkeypatch.setattr(second, "_check_folder", lambda: (first.key_id or first.run(False), real()))
        second.run(False)
        assert (second.key_id, second.revoked) == (first.key_id, [])
        assert world.active == {first.key_id} == set(world.handed_over)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("[]", "is no receipt of a rotation"),
            ('{"customer": "acme"}', "is no receipt of a rotation"),
            (
                '{"customer": "other", "asked": ["all"], "name": "n", "handover": "/h", "revoke": [], "key_id": null}',
                "is of another rotation (customer 'other', revoke all)",
            ),
        ],
    )
    def test_a_receipt_that_is_none_of_ours(self, world, content, says):
        world.receipt.parent.mkdir()
        world.receipt.write_text(content)
        said, rotation = world.refused()
        assert says in said
        self.nothing_was_done(world, rotation)

    def test_a_receipt_that_asks_for_other_keys(self, world):
        world.rotate()
        said, _rotation = world.refused(revoke=("old-1",))
        assert "is of another rotation (customer 'acme', revoke all)" in said

    def test_no_space_for_the_key(self, world, monkeypatch):
        real = os.fsync

        def full(handle):
            name = os.readlink(f"/proc/self/fd/{handle}")
            if name.startswith(str(world.handover)):
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        said, _rotation = world.refused()
        assert "(No space left on device). It was revoked, and no old key was." in said
        assert world.active == {"old-1", "old-2"}
        assert world.handed_over == {}
        monkeypatch.undo()
        done = world.rotate()
        assert world.active == {done.key_id} == set(world.handed_over)

    def test_a_database_that_cannot_be_read_any_more(self, world, monkeypatch):
        """The new key is safe by then, and the sentence does not say that nothing was changed."""
        real, calls = vritti_api_keys.vritti_customers.reading, []

        def failing(options, function):
            calls.append(1)
            if len(calls) > 3:
                raise Refused("Nothing was changed: /db is locked by PID 7; wait for its end.")
            return real(options, function)

        monkeypatch.setattr(vritti_api_keys.vritti_customers, "reading", failing)
        said, _rotation = world.refused()
        (path,) = world.handed_over.values()
        assert said.startswith(f"The new key is in {path}, and which old ones are left is not known; run it again")
        assert said.endswith("/db is locked by PID 7; wait for its end.")
        monkeypatch.undo()
        done = world.rotate()
        assert world.active == {done.key_id} == set(world.handed_over)
        assert world.vritti.asked == [("GET", CUSTOMER), *deleted("old-1", "old-2")]


# Killed.

_CALLS = ((os, "unlink"), (os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "open"), (durable, "sync_folder"))


def killed_at(number, work):
    """Whether a process that does the work was killed right before its so manieth change, request or answer."""
    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left = number

    def count():
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

    def counted(real, after):
        def call(*words, **options):
            count()
            result = real(*words, **options)
            if after:
                count()
            return result

        return call

    for module, name in _CALLS:
        setattr(module, name, counted(getattr(module, name), False))
    http_client.send = counted(http_client.send, True)
    try:
        work()
    except BaseException:  # noqa: BLE001 - a child of the test must not go on as the test
        os._exit(1)
    os._exit(0)


def test_killed_anywhere_and_run_again(tmp_path):
    """Once, and for some moments twice: the run that finishes the first one is killed as well."""
    made = 0
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder)
        try:
            killed = killed_at(number, lambda world=world: world.rotation().run(False))
            for again in range(2 if number % 5 == 0 else 1):
                if again:
                    killed_at(number, lambda world=world: world.rotation().run(False))
                if not {"old-1", "old-2"} <= world.active:
                    # Nobody is left without a key at any moment.
                    assert set(world.handed_over) & world.active, number
            made += len(world.vritti.keys)
            done = world.rotate()
            assert world.active == {done.key_id} == set(world.handed_over), number
            assert query(world.db, "SELECT is_active FROM api_keys WHERE key_id = 'theirs'") == [(1,)]
            if not killed:
                assert number > 20
                assert made > 10
                assert not done.changed
                return
        finally:
            world.vritti.close()
    raise AssertionError("it never comes to its end")


def test_no_answer_is_no_key(world):
    """Whatever is raised on the way is a sentence."""
    world.vritti.close()
    with pytest.raises((Refused, NoAnswer), match=r"no connection to 127\.0\.0\.1"):
        world.rotation().run(False)

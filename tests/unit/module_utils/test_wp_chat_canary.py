# SPDX-License-Identifier: GPL-3.0-or-later
"""The canary against a real HTTP server that behaves as wp_chat does: parameters in the query alone, one configuration
for each worker, a rollout that is forgotten, and a 400 that comes out as 500.
"""

from __future__ import annotations

import http.server
import itertools
import json
import random
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import wp_chat_canary
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import PATIENCE


def config(enabled=False, rollout=0.0, stop=False):
    return {
        "enabled": enabled,
        "rollout_percentage": rollout,
        "user_seed": "default_seed",
        "emergency_stop": stop,
        "auto_rollback_threshold": 0.05,
        "latency_threshold_ms": 2000,
        "min_requests_for_rollback": 100,
        "last_updated": 0.0,
        "updated_by": "system",
    }


class WpChat:
    """`turns` says which worker a request reaches; `answers` maps a path to what stands in place of its answer."""

    def __init__(self, *workers):
        self.workers = list(workers)
        # The kernel prefers one; which request reaches it is the same in every run.
        lot, weights = random.Random(7), [3] + [1] * (len(workers) - 1)  # noqa: S311 - no secret
        self.turns = iter(lambda: lot.choices(range(len(workers)), weights)[0], None)
        self.posts = []
        self.reads = 0
        self.answers = {}
        wp_chat = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = urlsplit(self.path)
                query = {name: found[0] for name, found in parse_qs(parts.query).items()}
                found = wp_chat.answers.get(parts.path)
                if found is None:
                    found = wp_chat.served(self.command, parts.path, query)
                if found == "silence":
                    self.close_connection = True
                    return
                status, content = found
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE)

    def served(self, method, path, query):
        worker = self.workers[next(self.turns)]
        route = path.rpartition("/")[2]
        if not path.startswith("/admin/canary/"):
            return 404, {"detail": "Not Found"}
        if route == "status":
            if method != "GET":
                return 405, {"detail": "Method Not Allowed"}
            self.reads += 1
            status = "active" if worker["enabled"] else "disabled"
            return 200, {
                "config": worker,
                "status": "emergency_stop" if worker["emergency_stop"] else status,
                "recent_metrics": [],
                "summary": {"message": "No recent metrics available"},
            }
        if method != "POST":
            return 405, {"detail": "Method Not Allowed"}
        self.posts.append((route, query))
        if route in ("enable", "rollout"):
            if route == "rollout" and "percentage" not in query:
                return 422, {"detail": [{"type": "missing", "loc": ["query", "percentage"], "msg": "Field required"}]}
            percentage = float(query.get("percentage", 0.1))
            if not 0 <= percentage <= 1:
                return 500, {"error": "400: Percentage must be between 0.0 and 1.0"}
            worker.update(enabled=percentage > 0, rollout_percentage=percentage)
        elif route == "disable":
            worker.update(enabled=False, rollout_percentage=0.0)
        elif route in ("emergency-stop", "clear-emergency"):
            worker["emergency_stop"] = route == "emergency-stop"
        else:
            return 404, {"detail": "Not Found"}
        worker.update(last_updated=time.time(), updated_by=query.get("updated_by", "api"))
        return 200, {"message": "as it says", "status": "success"}

    @property
    def routes(self):
        return [route for route, _query in self.posts]


def ensure(wp_chat, check=False, **more):
    """A run that succeeds."""
    wp_chat.posts.clear()
    options = wp_chat_canary.Options(**{"url": wp_chat.url, "updated_by": "ada", "reads": 6, **more})
    options.validate()
    made = wp_chat_canary.Ensure(options)
    made.run(check)
    return made


def refused(wp_chat, **more):
    with pytest.raises(Refused) as caught:
        ensure(wp_chat, **more)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said
    return said


def told(enabled=False, rollout=0.0, stop=False):
    return {"enabled": enabled, "rollout": rollout, "emergency_stop": stop}


@pytest.mark.parametrize(
    ("was", "wanted", "calls", "now"),
    [
        (config(True, 0.5), {"enabled": False}, [("disable", {})], told()),
        (config(True, 0.5), {"rollout": 0.0}, [("disable", {})], told()),
        (config(), {"rollout": 0.25}, [("enable", {"percentage": "0.25"})], told(True, 0.25)),
        (config(), {"enabled": True, "rollout": 1.0}, [("enable", {"percentage": "1.0"})], told(True, 1.0)),
        (config(True, 0.5), {"rollout": 0.25}, [("rollout", {"percentage": "0.25"})], told(True, 0.25)),
        (config(True, 0.5), {"emergency_stop": True}, [("emergency-stop", {})], told(True, 0.5, True)),
        (config(True, 0.5, True), {"emergency_stop": False}, [("clear-emergency", {})], told(True, 0.5)),
        # Nobody is reranked for who was not before, not even for a moment.
        (
            config(True, 0.5),
            {"emergency_stop": True, "rollout": 1.0},
            [("emergency-stop", {}), ("rollout", {"percentage": "1.0"})],
            told(True, 1.0, True),
        ),
        (
            config(False, 0.0, True),
            {"emergency_stop": False, "rollout": 0.5},
            [("enable", {"percentage": "0.5"}), ("clear-emergency", {})],
            told(True, 0.5),
        ),
        # A stop is none of what the others change.
        (config(True, 0.5, True), {"enabled": False}, [("disable", {})], told(stop=True)),
    ],
)
def test_what_differs_is_sent_in_the_query(was, wanted, calls, now):
    with WpChat(dict(was)) as wp_chat:
        made = ensure(wp_chat, **wanted)
        assert wp_chat.posts == [(route, {**query, "updated_by": "ada"}) for route, query in calls]
        assert (made.changed, made.posts) == (True, len(calls))
        assert made.before == told(was["enabled"], was["rollout_percentage"], was["emergency_stop"])
        assert made.after == now == made.states[0]
        # And once more there is nothing to do.
        again = ensure(wp_chat, **wanted)
        assert wp_chat.posts == []
        assert (again.changed, again.posts, again.before, again.after) == (False, 0, now, now)
        assert wp_chat.workers[0]["updated_by"] == "ada"


@pytest.mark.parametrize(
    ("was", "wanted"),
    [
        (config(False, 0.1), {"enabled": False}),
        (config(True, 0.1 + 0.2), {"rollout": 0.3}),
        (config(True, 1), {"enabled": True, "rollout": 1.0, "emergency_stop": False}),
        (config(True, 0.5), {"enabled": True}),
        (config(True, 0.5), {}),
    ],
)
def test_nothing_is_sent_where_it_is_so_already(was, wanted):
    with WpChat(dict(was)) as wp_chat:
        made = ensure(wp_chat, **wanted)
        assert not made.changed
        assert wp_chat.posts == []
        assert wp_chat.reads == 6
        assert wp_chat.workers == [was]


def test_check_mode_sends_nothing_and_foresees_all():
    with WpChat(config(True, 0.5, True)) as wp_chat:
        made = ensure(wp_chat, check=True, rollout=0.25, emergency_stop=False)
        assert wp_chat.posts == []
        assert (made.changed, made.posts) == (True, 0)
        assert (made.before, made.after) == (told(True, 0.5, True), told(True, 0.25))


class TestMemory:
    def test_the_rollout_comes_back(self, tmp_path):
        memory = tmp_path / "new folder" / "canary.json"
        with WpChat(config(True, 0.35)) as wp_chat:
            assert ensure(wp_chat, enabled=False, memory=str(memory)).remembered == 0.35
            assert json.loads(memory.read_text())["rollout"] == 0.35
            assert ensure(wp_chat, enabled=False, memory=str(memory)).changed is False
            made = ensure(wp_chat, enabled=True, memory=str(memory))
            assert wp_chat.posts == [("enable", {"percentage": "0.35", "updated_by": "ada"})]
            assert (made.after, made.remembered) == (told(True, 0.35), 0.35)

    def test_check_mode_writes_nothing(self, tmp_path):
        with WpChat(config(True, 0.35)) as wp_chat:
            ensure(wp_chat, check=True, enabled=False, memory=str(tmp_path / "canary.json"))
            assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_remembered_is_not_lost(self, tmp_path):
        (tmp_path / "file").write_text("")
        with WpChat(config(True, 0.35)) as wp_chat:
            said = refused(wp_chat, enabled=False, memory=str(tmp_path / "file" / "canary.json"))
            assert said.startswith("The rollout of 0.35 cannot be written to ")
            assert wp_chat.posts == []

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (None, "does not exist"),
            ("", "cannot be read (JSONDecodeError)"),
            ("[]", "cannot be read (TypeError)"),
            ("{}", "cannot be read (KeyError)"),
            ('{"rollout": true}', "has 'True' for it"),
            ('{"rollout": 0}', "has '0' for it"),
            ('{"rollout": 10}', "has '10' for it"),
        ],
    )
    def test_an_unknown_rollout_is_refused(self, tmp_path, content, why):
        memory = tmp_path / "canary.json"
        if content is not None:
            memory.write_text(content)
        with WpChat(config()) as wp_chat:
            said = refused(wp_chat, enabled=True, memory=str(memory))
            assert f"{why}; give rollout. Nothing was changed." in said
            assert "memory is not given; give rollout" in refused(wp_chat, enabled=True)
            assert wp_chat.posts == []


class TestWorkers:
    def test_it_is_sent_until_all_agree(self):
        with WpChat(config(True, 0.5), config(True, 0.5), config(True, 0.5)) as wp_chat:
            made = ensure(wp_chat, enabled=False, reads=25)
            assert [worker["enabled"] for worker in wp_chat.workers] == [False] * 3
            assert made.posts == len(wp_chat.posts) >= 3
            assert made.after == told()

    def test_one_that_differs_is_found_where_the_first_is_as_it_should_be(self):
        with WpChat(config(), config(True, 0.5)) as wp_chat:
            made = ensure(wp_chat, enabled=False, reads=25)
            assert made.changed
            assert made.before == told(True, 0.5)
            assert not wp_chat.workers[1]["enabled"]

    def test_one_that_is_never_reached_is_a_failure(self):
        with WpChat(config(True, 0.5), config(True, 0.5)) as wp_chat:
            real, looks = wp_chat.served, itertools.cycle([0, 0, 1])

            def served(method, path, query):
                wp_chat.turns = looks if method == "GET" else itertools.repeat(0)
                return real(method, path, query)

            wp_chat.served = served
            said = refused(wp_chat, enabled=False, attempts=4)
            assert "was told 4 times, and one of its workers is not as it should be still; 2 different answers" in said
            assert "so at least 2 workers run, each with a configuration of its own: restart wp_chat" in said
            assert len(wp_chat.posts) == 4
            assert [worker["enabled"] for worker in wp_chat.workers] == [False, True]


class TestErrors:
    def test_a_400_that_comes_as_500_is_shown(self):
        with WpChat(config()) as wp_chat:
            wp_chat.answers["/admin/canary/enable"] = 500, {"error": "400: Percentage must be between 0.0 and 1.0"}
            said = refused(wp_chat, rollout=0.5)
            assert "enable answers 500: 400: Percentage must be between 0.0 and 1.0. Whether it was done" in said

    def test_another_route_is_no_canary(self):
        with WpChat(config()) as wp_chat:
            wp_chat.answers["/admin/canary/status"] = 404, {"detail": "Not Found"}
            assert "status answers 404: this version of wp_chat has no canary" in refused(wp_chat, enabled=False)

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            ((200, {}), "enabled is missing or of another type"),
            ((200, {"config": {**config(), "rollout_percentage": True}}), "rollout_percentage is missing"),
            ((200, {"config": {**config(), "emergency_stop": 0}}), "emergency_stop is missing or of another type"),
            ((200, b"<html>"), "answers 200: <html>"),
            ((502, b""), "answers 502: nothing"),
            ((500, {"error": "api_key=hunter2222 is wrong"}), "answers 500: api_key=******** is wrong"),
            ("silence", "what answers does not speak HTTP"),
        ],
    )
    def test_what_is_no_canary_is_refused(self, answer, says):
        with WpChat(config(True, 0.5)) as wp_chat:
            wp_chat.answers["/admin/canary/status"] = answer
            said = refused(wp_chat, enabled=False)
            assert says in said
            assert wp_chat.posts == []

    def test_an_answer_that_does_not_come_leaves_it_open(self):
        with WpChat(config(True, 0.5)) as wp_chat:
            wp_chat.answers["/admin/canary/disable"] = "silence"
            options = wp_chat_canary.Options(url=wp_chat.url, updated_by="ada", enabled=False)
            made = wp_chat_canary.Ensure(options)
            with pytest.raises(Refused, match="Whether it was done is not known; look at GET /admin/canary/status"):
                made.run(False)
            assert made.changed

    def test_nobody_there(self):
        url = f"http://user:secret@127.0.0.1:{helpers.free_port()}"
        made = wp_chat_canary.Ensure(wp_chat_canary.Options(url=url, updated_by="ada", enabled=False))
        with pytest.raises(Refused) as caught:
            made.run(False)
        assert "no connection" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "Nothing was changed." in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"rollout": 10.0}, "rollout is 10; it is a share from 0 to 1"),
            ({"rollout": float("nan")}, "rollout is nan"),
            ({"rollout": 0.5, "enabled": False}, "enabled is false and rollout is 0.5"),
            ({"rollout": 0.0, "enabled": True}, "enabled is true and rollout is 0"),
            ({"reads": 0}, "reads is 0"),
            ({"attempts": 0}, "attempts is 0"),
            ({"timeout": 0.0}, "timeout is 0"),
            ({"url": "localhost"}, "has no scheme"),
        ],
    )
    def test_options(self, options, says):
        with pytest.raises(ValueError, match=says):
            wp_chat_canary.Options(**{"url": "http://localhost:8080", "updated_by": "ada", **options}).validate()

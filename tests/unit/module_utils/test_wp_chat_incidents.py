# SPDX-License-Identifier: GPL-3.0-or-later
"""Incidents against a real HTTP server with a real file behind it, which answers as wp_chat does: 500, and recorded."""

from __future__ import annotations

import http.server
import json
import threading
import time
import urllib.parse

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import wp_chat_incidents as incidents
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import PATIENCE, run_command

SERIAL = {"error": "Object of type IncidentType is not JSON serializable"}
NOT_FOUND = {"error": "Incident not found"}
EMPTY = {
    "active_incidents": 0,
    "recent_incidents_24h": 0,
    "severity_breakdown": {},
    "type_breakdown": {},
    "active_incidents_list": [],
    "recent_incidents_list": [],
}


class WpChat:
    """The incidents of one process: a memory that is read from the file once, and a file that is only appended to."""

    def __init__(self, home):
        self.home = home
        self.file = home / "logs" / "incidents.jsonl"
        self.memory = []
        self.requests = []
        # (method, path) to what is answered in place of what it would say; None is silence.
        self.answers = {}
        self.records = True
        wp_chat = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or "null")
                parts = urllib.parse.urlsplit(self.path)
                wp_chat.requests.append((self.command, parts.path))
                query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
                told = wp_chat.answer(self.command, parts.path.replace("/admin/incidents", "", 1), query, body)
                told = wp_chat.answers.get((self.command, parts.path.rpartition("/")[2]), told)
                if told is None:
                    self.close_connection = True
                    return
                status, found = told
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE)

    def restart(self):
        self.memory = []
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            try:
                self.memory.append(json.loads(line))
            except ValueError:
                break

    def write(self, item):
        if self.records:
            with self.file.open("a") as file:
                file.write(json.dumps(item) + "\n")

    def answer(self, method, path, query, body):
        open_ = [item for item in self.memory if not item["resolved_at"]]
        recent = [item for item in self.memory if item["detected_at"] > time.time() - 86400]
        if (method, path) == ("GET", "/status"):
            return (500, SERIAL) if open_ or recent else (200, EMPTY)
        if (method, path) == ("GET", "/active"):
            return (500, SERIAL) if open_ else (200, {"active_incidents": []})
        if (method, path) == ("POST", "/detect"):
            if isinstance(body, dict) or {"incident_type", "severity"} - set(query):
                return 422, {"detail": [{"type": "missing", "msg": "Field required"}]}
            if query["incident_type"] not in incidents.TYPES:
                return 400, {"error": "Invalid incident type or severity: 'nope' is not a valid IncidentType"}
            item = made(
                f"incident_{int(time.time())}",
                query["incident_type"],
                severity=query["severity"],
                description=query.get("description", ""),
                affected_components=body or [],
            )
            self.memory.append(item)
            self.write(item)
            return 500, SERIAL
        name, _slash, what = path[1:].partition("/")
        found = next((item for item in self.memory if item["incident_id"] == name), None)
        if what == "procedures":
            item = next((item for item in open_ if item["incident_id"] == name), None)
            action = {"action_id": "clear_cache", "name": "Clear Cache", "command": "curl -X POST …"}
            action.update(parameters=None, requires_confirmation=True, estimated_time=60, description="…")
            return (200, {"incident_id": name, "procedures": [action]}) if item else (404, NOT_FOUND)
        if what == "resolve":
            if found is None:
                return 404, NOT_FOUND
            found.update(resolved_at=time.time(), resolution_notes=query.get("resolution_notes", ""))
            found["assigned_to"] = query.get("assigned_to", "")
            self.write(found)
            return 200, {"message": f"Incident {name} resolved", "status": "success"}
        return 404, {"detail": "Not Found"}


def made(name, kind="cache_failure", at=None, **more):
    return {
        "incident_id": name,
        "incident_type": kind,
        "severity": "medium",
        "detected_at": time.time() if at is None else at,
        "resolved_at": None,
        "description": "nightly",
        "affected_components": ["cache"],
        "actions_taken": [],
        "resolution_notes": "",
        "assigned_to": "",
        **more,
    }


@pytest.fixture()
def wp_chat(tmp_path):
    (tmp_path / "logs").mkdir()
    server = WpChat(tmp_path)
    yield server
    server.stop()


def options(wp_chat, **changes):
    params = {"url": f"http://127.0.0.1:{wp_chat.port}", "port": None, "home": str(wp_chat.home), "timeout": 5.0}
    return incidents.options_of({**params, "path": "logs/incidents.jsonl", **changes})


def info(wp_chat, name="", **changes):
    return incidents.info(options(wp_chat, **changes), run_command, name)


def change(wp_chat, check_mode=False, **changes):
    return incidents.Change(options(wp_chat, **changes), run_command, check_mode)


def detect(wp_chat, kind="cache_failure", severity="medium", description="", components=(), **changes):
    made_ = change(wp_chat, **changes)
    made_.detect(kind, severity, description, list(components))
    return made_


def resolve(wp_chat, name, notes="", assigned_to="", **changes):
    made_ = change(wp_chat, **changes)
    made_.resolve(name, notes, assigned_to)
    return made_


def lines(wp_chat):
    return [json.loads(line) for line in wp_chat.file.read_text().splitlines()]


class TestFile:
    def fold(self, tmp_path, *rows):
        path = tmp_path / "incidents.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
        return incidents.read(str(path))

    def test_the_last_line_of_an_incident_counts(self, tmp_path):
        log = self.fold(
            tmp_path,
            made("incident_1", at=1.5),
            made("incident_2", at=2.5),
            made("incident_1", at=1.5, resolved_at=9.0, resolution_notes="mended"),
        )
        assert [(item["incident_id"], incidents.is_active(item)) for item in log.incidents] == [
            ("incident_1", False),
            ("incident_2", True),
        ]
        assert log.torn == 0

    def test_two_of_the_same_second_share_an_id_and_stay_two(self, tmp_path):
        log = self.fold(tmp_path, made("incident_1", at=1.1), made("incident_1", at=1.7))
        assert len(log.named("incident_1")) == 2

    def test_torn_lines_are_counted_and_cost_no_other(self, tmp_path):
        whole = json.dumps(made("incident_3", at=3))
        torn = json.dumps(made("incident_2", at=2))[:40]
        log = self.fold(
            tmp_path, made("incident_1", at=1), torn + whole, "null", '{"other": 1}', "", made("incident_4")
        )
        assert [item["incident_id"] for item in log.incidents] == ["incident_1", "incident_3", "incident_4"]
        assert log.torn == 3

    def test_what_nobody_knows_is_kept(self, tmp_path):
        log = self.fold(tmp_path, made("incident_1", kind="quantum_failure", severity="apocalyptic"))
        shown = incidents.shown(log.incidents[0])
        assert (shown["incident_type"], shown["severity"]) == ("quantum_failure", "apocalyptic")

    def test_times_are_numbers_or_iso(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        try:
            log = self.fold(
                tmp_path,
                made("incident_1", at="2026-11-22T12:36:14.5"),
                made("incident_2", at="2026-11-22T03:36:14Z"),
                made("incident_3", at=1795318574),
                made("incident_4", at="yesterday"),
            )
            assert [incidents.shown(item)["detected_at"] for item in log.incidents] == [
                "2026-11-22T03:36:14Z",
                "2026-11-22T03:36:14Z",
                "2026-11-22T03:36:14Z",
                "yesterday",
            ]
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_without_a_file_there_was_none(self, tmp_path):
        (tmp_path / "logs").mkdir()
        log = incidents.read(str(tmp_path / "logs" / "incidents.jsonl"))
        assert (log.exists, log.incidents, log.torn) == (False, [], 0)

    def test_without_the_service_s_folder_nothing_is_known(self, tmp_path):
        with pytest.raises(NoAnswer, match=r"nowhere/logs/incidents.jsonl does not exist, nor does .*nowhere; say in"):
            incidents.read(str(tmp_path / "nowhere" / "logs" / "incidents.jsonl"))

    def test_a_file_that_may_not_be_read_is_a_sentence(self, tmp_path, monkeypatch):
        def refuse(path, *_arguments, **_more):
            raise PermissionError(13, "Permission denied", path)

        path = tmp_path / "incidents.jsonl"
        path.write_text("")
        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(NoAnswer, match=r"incidents.jsonl may not be read by \w+; run with -b"):
            incidents.read(str(path))

    def test_no_secret_is_shown(self):
        shown = incidents.shown(made("incident_1", description="OPENAI_API_KEY=sk-abcdefgh1234 refused"))
        assert "sk-abcdefgh1234" not in json.dumps(shown)


class TestInfo:
    def test_the_api_counts_where_it_lists(self, wp_chat):
        found = info(wp_chat)
        assert (found["source"], found["active"], found["recent"], found["torn"]) == ("api", [], [], 0)
        assert found["believed_active"] == []
        assert found["notes"] == []

    def test_the_file_counts_while_the_api_fails(self, wp_chat):
        detect(wp_chat, "high_latency", "high")
        detect(wp_chat, "index_corruption", "critical", "wp.faiss is short", ["index"])
        found = info(wp_chat)
        assert found["source"] == str(wp_chat.file)
        assert "answers 500 (Object of type IncidentType is not JSON serializable)" in found["api"]
        assert [item["severity"] for item in found["active"]] == ["critical", "high"]
        assert found["active"][0]["affected_components"] == ["index"]
        assert found["by_severity"] == {"critical": 1, "high": 1}
        assert found["by_type"] == {"high_latency": 1, "index_corruption": 1}
        # Both in one second have one id, and are two all the same.
        assert set(found["believed_active"]) == {item["incident_id"] for item in found["active"]}
        assert found["notes"] == []

    def test_what_is_resolved_is_recent_for_a_day(self, wp_chat):
        for item in (made("incident_1", at=time.time() - 90000), made("incident_2", at=time.time() - 80000)):
            wp_chat.write({**item, "resolved_at": time.time() - 70000})
        wp_chat.restart()
        found = info(wp_chat)
        assert (found["source"], found["active"]) == (str(wp_chat.file), [])
        assert [item["incident_id"] for item in found["recent"]] == ["incident_2"]

    def test_a_literal_deployment_that_lists_them_is_believed(self, wp_chat):
        item = made("incident_1", "model_failure", severity="high")
        wp_chat.answers["GET", "status"] = (200, {**EMPTY, "active_incidents": 1, "recent_incidents_list": [item]})
        wp_chat.answers["GET", "active"] = (200, {"active_incidents": [item]})
        found = info(wp_chat, "incident_1")
        assert (found["source"], found["by_type"]) == ("api", {"model_failure": 1})
        assert found["incident"]["active"] is True
        assert found["catalogue"] is None

    @pytest.mark.parametrize("told", [(404, {"detail": "Not Found"}), (200, ["what?"]), (200, {"active_incidents": 3})])
    def test_another_answer_is_none(self, wp_chat, told):
        wp_chat.write(made("incident_1"))
        wp_chat.answers = dict.fromkeys([("GET", "status"), ("GET", "active"), ("GET", "procedures")], told)
        found = info(wp_chat)
        assert found["source"] == str(wp_chat.file)
        assert len(found["active"]) == 1

    def test_while_it_is_down_the_file_tells(self, wp_chat):
        wp_chat.write(made("incident_1"))
        wp_chat.stop()
        found = info(wp_chat)
        assert [item["incident_id"] for item in found["active"]] == ["incident_1"]
        assert "no connection" in found["api"]
        assert found["believed_active"] is None

    def test_after_a_restart_the_resolved_are_active_in_its_memory(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        resolve(wp_chat, name, "mended")
        wp_chat.restart()
        found = info(wp_chat)
        assert (found["active"], found["believed_active"]) == ([], [name])
        assert f"takes {name} for active again" in found["notes"][0]

    def test_what_the_service_has_forgotten_is_active(self, wp_chat):
        wp_chat.file.write_text('{"incident_id": "incident_0", "descr\n')
        wp_chat.write(made("incident_1"))
        wp_chat.restart()
        found = info(wp_chat)
        assert (found["source"], found["torn"]) == (str(wp_chat.file), 1)
        assert [item["incident_id"] for item in found["active"]] == ["incident_1"]
        assert "does not know incident_1" in found["notes"][0]
        assert "has 1 line that cannot be read" in found["notes"][1]

    def test_a_failing_api_without_a_file_is_not_nothing(self, wp_chat):
        detect(wp_chat)
        wp_chat.file.unlink()
        with pytest.raises(
            Refused, match=r"answers 500 .*logs/incidents.jsonl does not exist: is wp_chat run in another"
        ):
            info(wp_chat)

    def test_neither_api_nor_file_is_a_sentence(self, wp_chat):
        wp_chat.stop()
        with pytest.raises(Refused, match=r"no connection to 127.0.0.1 .* does not exist, nor does /nonexistent"):
            info(wp_chat, home="/nonexistent/wp-chat")

    def test_a_relative_path_begins_where_the_service_was_started(self, wp_chat, monkeypatch):
        # The server is this process.
        monkeypatch.chdir(wp_chat.home)
        wp_chat.write(made("incident_1"))
        wp_chat.restart()
        assert info(wp_chat, home="")["source"] == str(wp_chat.file)

    def test_without_a_process_a_relative_path_is_a_sentence(self, wp_chat):
        wp_chat.stop()
        with pytest.raises(Refused, match="nothing listens on port"):
            info(wp_chat, home="")

    def test_one_of_them(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        found = info(wp_chat, name)
        assert found["incident"]["incident_id"] == name
        assert [item["action_id"] for item in found["catalogue"]] == ["clear_cache"]
        assert info(wp_chat, "incident_9")["incident"] is None

    def test_looking_changes_nothing(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        before = wp_chat.file.read_bytes()
        wp_chat.requests.clear()
        info(wp_chat, name)
        assert wp_chat.file.read_bytes() == before
        assert {method for method, _path in wp_chat.requests} == {"GET"}

    def test_no_more_than_the_newest_are_asked_about(self, wp_chat):
        for place in range(60):
            wp_chat.write(made(f"incident_{place}", at=time.time() - 1000 + place, resolved_at=1.0))
        wp_chat.write(made("incident_x", at=1.0))
        wp_chat.restart()
        assert info(wp_chat)["believed_active"] == ["incident_x"]
        assert sum(path.endswith("procedures") for _method, path in wp_chat.requests) == incidents.ASKED_AT_MOST


class TestDetect:
    def test_it_is_recorded_although_the_answer_is_500(self, wp_chat):
        text = "p95 > 800 ms & {{ braces }} ü % +"
        done = detect(wp_chat, "high_latency", "high", text, ["search", "generate"])
        assert done.changed
        (line,) = lines(wp_chat)
        assert (line["incident_type"], line["severity"], line["description"]) == ("high_latency", "high", text)
        assert line["affected_components"] == ["search", "generate"]
        assert done.after["incident_id"] == line["incident_id"]

    def test_an_active_one_of_the_type_is_enough(self, wp_chat):
        first = detect(wp_chat).after
        wp_chat.requests.clear()
        again = detect(wp_chat, severity="critical")
        assert not again.changed
        assert again.after == first
        assert wp_chat.requests == []
        assert detect(wp_chat, "high_latency").changed
        assert len(lines(wp_chat)) == 2

    def test_after_it_was_resolved_another_one_is_recorded(self, wp_chat):
        resolve(wp_chat, detect(wp_chat).after["incident_id"])
        assert detect(wp_chat).changed

    def test_check_mode_records_nothing(self, wp_chat):
        done = detect(wp_chat, check_mode=True)
        assert done.changed
        assert incidents.shown(done.after)["incident_id"] is None
        assert not wp_chat.file.exists()
        wp_chat.stop()
        with pytest.raises(Refused, match=r"^Nothing was recorded: .*no connection"):
            detect(wp_chat, check_mode=True)

    def test_while_it_is_down_nothing_is_written_behind_its_back(self, wp_chat):
        wp_chat.stop()
        with pytest.raises(Refused, match=r"Nothing was recorded: .*no connection.* not written to behind its back\."):
            detect(wp_chat)
        assert not wp_chat.file.exists()

    def test_what_it_refuses_is_a_sentence(self, wp_chat):
        with pytest.raises(Refused, match=r"^Nothing was recorded: .*answers 400 \(Invalid incident type.*\)\.$"):
            detect(wp_chat, "nope")
        wp_chat.answers["POST", "detect"] = (404, {"detail": "Not Found"})
        with pytest.raises(Refused, match=r"^Nothing was recorded: .*answers 404 \(Not Found\)\.$"):
            detect(wp_chat)

    @pytest.mark.parametrize("status", [200, 500])
    def test_without_a_new_line_nothing_is_proven(self, wp_chat, status):
        wp_chat.records = False
        wp_chat.write(made("incident_1"))
        wp_chat.answers["POST", "detect"] = (status, {})
        with pytest.raises(Refused, match=rf"answers {status}.*, and .* does not exist, so it is not proven"):
            detect(wp_chat)

    def test_an_answer_that_breaks_off_is_looked_into(self, wp_chat):
        wp_chat.answers["POST", "detect"] = None
        assert detect(wp_chat).changed
        wp_chat.records = False
        with pytest.raises(Refused, match="has no new line, so nothing was recorded until now"):
            detect(wp_chat, "high_latency")

    def test_where_the_file_cannot_be_read_200_is_the_proof(self, wp_chat):
        wp_chat.answers["POST", "detect"] = (200, {"incident_id": "incident_7"})
        done = detect(wp_chat, home="/nonexistent/wp-chat")
        assert (done.changed, done.after["incident_id"]) == (True, "incident_7")
        assert "the file was not read" in done.notes[0]

    def test_where_nothing_tells_of_duplicates_nothing_is_recorded(self, wp_chat):
        detect(wp_chat)
        with pytest.raises(
            Refused, match=r"^Nothing was recorded: whether an incident of the type high_latency is active"
        ):
            detect(wp_chat, "high_latency", home="/nonexistent/wp-chat")
        assert len(lines(wp_chat)) == 1


class TestResolve:
    def test_with_notes(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        done = resolve(wp_chat, name, "Fixed by {{ restart }} & more", "on-call")
        assert done.changed
        assert done.before["resolved_at"] is None
        last = lines(wp_chat)[-1]
        assert (last["resolution_notes"], last["assigned_to"]) == ("Fixed by {{ restart }} & more", "on-call")
        assert info(wp_chat)["active"] == []

    def test_twice_is_once(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        resolve(wp_chat, name, "mended")
        before = wp_chat.file.read_bytes()
        for notes in ("mended", ""):
            again = resolve(wp_chat, name, notes)
            assert not again.changed
            assert "was resolved before" in again.notes[0]
        assert wp_chat.file.read_bytes() == before
        assert resolve(wp_chat, name, "more is known").changed

    def test_after_a_restart_it_is_resolved_all_the_same(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        resolve(wp_chat, name, "mended", "on-call")
        wp_chat.restart()
        done = resolve(wp_chat, name)
        assert not done.changed
        assert done.notes[0].endswith("and the service takes it for active again, as it does after a restart.")
        assert len(lines(wp_chat)) == 2

    def test_other_words_replace_those_that_are_given(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        resolve(wp_chat, name, "mended", "on-call")
        assert resolve(wp_chat, name, "mended for good").changed
        last = lines(wp_chat)[-1]
        assert (last["resolution_notes"], last["assigned_to"]) == ("mended for good", "on-call")

    def test_of_what_was_never_there(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        with pytest.raises(
            Refused, match=rf"neither the service nor .* has an incident incident_9; active are {name}\.$"
        ):
            resolve(wp_chat, "incident_9")

    def test_of_what_the_service_has_forgotten(self, wp_chat):
        wp_chat.file.write_text("{torn\n")
        wp_chat.write(made("incident_1"))
        wp_chat.restart()
        for check_mode in (True, False):
            with pytest.raises(Refused, match=r"has incident_1 as active, and the service does not know it any more"):
                resolve(wp_chat, "incident_1", check_mode=check_mode)

    def test_of_what_it_has_resolved_and_forgotten(self, wp_chat):
        wp_chat.write(made("incident_1", resolved_at=1795318574.5, resolution_notes="mended"))
        assert not resolve(wp_chat, "incident_1").changed
        with pytest.raises(Refused, match=r"incident_1 was resolved at 2026-11-22T03:36:14Z, and the service does not"):
            resolve(wp_chat, "incident_1", "other words")

    def test_in_its_memory_alone(self, wp_chat):
        wp_chat.memory.append(made("incident_1"))
        assert resolve(wp_chat, "incident_1").changed

    def test_check_mode_resolves_nothing(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        done = resolve(wp_chat, name, "mended", check_mode=True)
        assert done.changed
        assert done.after["resolution_notes"] == "mended"
        assert len(lines(wp_chat)) == 1

    def test_while_it_is_down(self, wp_chat):
        wp_chat.write(made("incident_1"))
        wp_chat.write(made("incident_2", resolved_at=1.0))
        wp_chat.stop()
        for check_mode in (True, False):
            with pytest.raises(Refused, match=r"^Nothing was recorded: .*no connection"):
                resolve(wp_chat, "incident_1", check_mode=check_mode)
        assert not resolve(wp_chat, "incident_2").changed

    def test_where_there_is_no_such_route(self, wp_chat):
        wp_chat.write(made("incident_1"))
        not_found = (404, {"detail": "Not Found"})
        wp_chat.answers = {("POST", "resolve"): not_found, ("GET", "procedures"): not_found}
        with pytest.raises(Refused, match=r"has no route to resolve an incident \(404\)"):
            resolve(wp_chat, "incident_1")

    def test_without_a_new_line_nothing_is_proven(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        wp_chat.records = False
        with pytest.raises(Refused, match=r"answers 200, and .* has no new line, so it is not proven"):
            resolve(wp_chat, name)

    def test_where_the_file_cannot_be_read(self, wp_chat):
        name = detect(wp_chat).after["incident_id"]
        assert resolve(wp_chat, name, home="/nonexistent/wp-chat").changed
        with pytest.raises(
            Refused, match="does not know incident_9, or has resolved it, and which of them cannot be seen"
        ):
            resolve(wp_chat, "incident_9", home="/nonexistent/wp-chat")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"url": "localhost:8080"}, "has no scheme"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"path": ""}, "path is empty"),
        ({"port": 99999}, "port is 99999"),
    ],
)
def test_options_are_checked(wp_chat, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        options(wp_chat, **changes)


def test_the_port_is_the_url_s():
    params = {"home": "", "path": "logs/incidents.jsonl", "timeout": 5.0, "port": None}
    assert incidents.options_of({**params, "url": "https://chat.example.com"}).port == 443
    assert incidents.options_of({**params, "url": "http://localhost:8080/"}).port == 8080


@pytest.mark.parametrize("name", ["", "incident_1/../x", "incident 1", "a?b"])
def test_an_id_is_one(name):
    with pytest.raises(ValueError, match="an id looks like incident_1795318574"):
        incidents.check_id(name)

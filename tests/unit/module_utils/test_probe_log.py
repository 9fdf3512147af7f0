# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import loglines, tallies
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import log
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import context, look, source


def event(text, age=1.0, **fields):
    """A line as structlog writes it, so many seconds old."""
    whole, part = divmod(time.time() - age, 1)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f"{part:.6f}"[1:] + "Z"
    return json.dumps({"event": text, "timestamp": moment, **fields})


def request(path="/api/v1/search", latency_ms=10, age=1.0, **fields):
    return event("HTTP request completed", age, path=path, latency_ms=latency_ms, **fields)


@pytest.fixture()
def write(tmp_path):
    path = tmp_path / "vritti.log"

    def write(*lines, end="\n"):
        path.write_text("".join(f"{line}{end}" for line in lines))
        return str(path)

    return write


ACCESS = 'INFO:     127.0.0.1:5 - "GET {} HTTP/1.1" {} OK'


def test_what_a_message_names(write):
    """Which is no field: a named group of match."""
    path = write("a/one:free succeeded", "INFO: b/two succeeded", "a/one:free succeeded", "2/2 models succeeded")
    seen = look("log", path=path, match=r'(?:^|[\s"])(?P<model>[\w.-]+/[\w.:-]+) succeeded\b', by="model")
    assert seen["value"] == 3
    assert seen["evidence"]["by_model"] == [{"model": "a/one:free", "count": 2}, {"model": "b/two", "count": 1}]


def test_mixed_lines(write):
    path = write(
        request(age=900),
        request(latency_ms=20, age=50),
        f"WARNING:src.main:{request(latency_ms=30, age=40)}",
        ACCESS.format("/health", 200),
        "plain text about a HTTP request completed by hand",
        '{"event": "HTTP request completed", "latency_ms": ',
        request(latency_ms=40, age=30),
    )
    with open(path, "ab") as file:
        file.write(b"\xff\xfe\n" + request(latency_ms=999).encode())  # a torn last line
    counted = look("log", path=path, match="HTTP request completed")
    assert counted["value"] == 5
    assert counted["evidence"]["lines"] == 7
    assert counted["evidence"]["window"] == "300 s"
    assert look("log", path=path, match="HTTP request completed", field="latency_ms")["value"] == 3
    assert look("log", path=path, match="", where={"status_code": "^2..$"})["value"] == 1
    assert look("log", path=path)["value"] == 7


def test_lines_with_carriage_returns(write):
    path = write(request(latency_ms=20), ACCESS.format("/x", 503), "plain end", end="\r\n")
    assert look("log", path=path, match="completed", field="latency_ms")["value"] == 1
    assert look("log", path=path, where={"status_code": "503"})["value"] == 1
    assert look("log", path=path, match="end$")["value"] == 1
    assert not any("\r" in line for line in look("log", path=path, match="end")["evidence"]["newest"])


def test_window(write):
    path = write(*(event("tick", age) for age in range(600, 0, -10)))
    for window, wanted in ((100, 10), (300, 30), (3600, 60)):
        seen = look("log", path=path, match="tick", window=float(window))
        assert seen["value"] == pytest.approx(wanted, abs=1)
    # The window is longer than the log, and the finding says so.
    assert re.fullmatch(r"60[0-9] s: the start of the log", seen["evidence"]["window"])
    # A log that has gone silent does not tell that nothing happened.
    assert look("log", path=path, match="tick", window=5.0)["value"] is None


def test_rate_is_over_the_window(write):
    path = write(event("old", 400), *(event("tick", age) for age in range(60, 0, -1)))
    assert look("log", path=path, match="tick", value="rate", window=100.0)["value"] == pytest.approx(0.6)


def test_rate_of_a_log_that_is_younger_than_the_window(write):
    path = write(*(event("tick", age) for age in range(60, 0, -1)))
    assert look("log", path=path, match="tick", value="rate")["value"] == pytest.approx(1.0, rel=0.1)


def test_rate_since_a_line_is_over_the_time_since_then(write):
    path = write(
        *(event("tick", age) for age in range(400, 100, -5)),
        event("Started server process", 100),
        *(event("tick", age) for age in range(99, 0, -1)),
    )
    seen = look("log", path=path, match="tick", value="rate", since="Started server process")
    assert seen["evidence"]["matched"] == 99
    assert seen["value"] == pytest.approx(1.0, rel=0.1)


def test_access_lines_without_a_time_are_not_lost(write):
    """As of a Vritti that warned of its settings before its log was set up: INFO lines of its own are missing."""
    path = write(
        f"WARNING:src.main:{event('CORS allows every origin', 600)}",
        "INFO:     Started server process [7]",
        *[ACCESS.format("/api/v1/search", 200)] * 30,
        *[ACCESS.format("/api/v1/search", 500)] * 10,
        "KyroDB circuit breaker OPEN - failing fast",
    )
    searches = {"path": path, "of": '/search HTTP/1.1" ...', "window": 60.0, "value": "share"}
    seen = look("log", match='/search HTTP/1.1" 5..', **searches)
    assert (seen["value"], seen["samples"]) == (0.25, 40)
    assert seen["evidence"]["window"] == "600 s: the lines after the last one with a time"
    assert seen["note"] == "its lines carry no time; they are of the last 600 s at most"
    refused = look("log", path=path, match="breaker OPEN", since="Started server process", window=60.0)
    assert refused["value"] == 1
    rate = look("log", path=path, match='" 500', value="rate", window=60.0)
    assert rate["value"] == pytest.approx(10 / 600, rel=0.01)
    os.utime(path, (1, time.time() - 100))
    assert look("log", path=path, match="breaker OPEN", window=60.0)["value"] is None


def test_quantile_of_the_slow_ones_among_all(write):
    """Only the slow requests are logged with their latency; access lines tell how many there were."""
    slow = [
        event("Slow request detected", path="/api/v1/search", latency_ms=ms) for ms in (120, 150, 200, 400, 800, 900)
    ]
    asked = {"match": "Slow request", "of": '" 200', "value": "quantile", "field": "latency_ms", "quantile": 0.99}
    path = write(event("first"), *[ACCESS.format("/api/v1/search", 200)] * 120, *slow)
    seen = look("log", path=path, **asked)
    # Of 120 the highest quantile with five above it is judged, and the 115th of them is the smallest but one.
    assert (seen["samples"], seen["evidence"]["whole"]) == (120, 120)
    assert 120 <= seen["value"] <= 150
    assert seen["note"] == "quantile 0.958, as 120 requests are few for 0.99"
    many = write(event("first"), *[ACCESS.format("/api/v1/search", 200)] * 2000, *slow)
    seen = look("log", path=many, **asked)
    assert (seen["value"], seen["samples"]) == (None, 2000)
    assert seen["note"] == "the quantile 0.99 is among those that are not logged"
    few = write(event("first"), *[ACCESS.format("/api/v1/search", 200)] * 50, *slow)
    assert look("log", path=few, **asked)["value"] is None
    all_of_them = write(event("first"), *[ACCESS.format("/x", 200)] * 6, *slow * 20)
    plain = look("log", path=all_of_them, **{**asked, "of": None})
    assert look("log", path=all_of_them, **asked)["value"] == pytest.approx(plain["value"])


def test_no_rate_without_any_time(write):
    path = write("INFO:     Started server process [7]", *["Cheap reflection call failed"] * 200)
    failing = {"path": path, "match": "reflection call failed", "since": "Started server", "value": "rate"}
    seen = look("log", **failing)
    assert (seen["value"], seen["note"]) == (None, "no line carries a time, so a rate is not known")
    assert look("log", **{**failing, "match": "never"})["value"] == 0


def test_since_is_the_last_such_line(write):
    path = write(
        event("breaker OPEN", 90),
        "INFO:     Started server process [1]",
        event("breaker OPEN", 60),
        "INFO:     Started server process [2]",
        event("breaker OPEN", 30),
        event("else", 20),
    )
    seen = look("log", path=path, match="breaker OPEN", since="Started server process")
    assert seen["value"] == 1
    assert seen["evidence"]["window"] == "since the line matching 'Started server process'"
    assert look("log", path=path, match="breaker OPEN", since="never written")["value"] == 3
    assert look("log", path=path, match="breaker OPEN", since="^INFO: +Started")["value"] == 1


@pytest.mark.parametrize(("slow", "all_of_them", "wanted"), [(3, 12, 0.25), (0, 12, 0), (0, 0, 0), (2, 0, None)])
def test_share(write, slow, all_of_them, wanted):
    path = write(event("first"), *[event("Slow")] * slow, *[event("Done")] * all_of_them)
    seen = look("log", path=path, value="share", match="Slow", of="Done")
    assert seen["value"] == wanted
    assert seen["evidence"]["whole"] == all_of_them
    assert seen["evidence"]["matched"] == slow
    if slow:
        assert seen["samples"] == all_of_them


def test_share_counts_the_same_part_of_both(write):
    path = write(
        *[event("Slow", path="/a")] * 1,
        *[event("Done", path="/a")] * 4,
        *[event("Done", path="/b")] * 40,
    )
    assert look("log", path=path, value="share", match="Slow", of="Done", where={"path": "^/a"})["value"] == 0.25


def test_quantile(write):
    path = write(*(request(latency_ms=number) for number in range(101)))
    seen = look("log", path=path, match="completed", value="quantile", field="latency_ms", quantile=0.99)
    # The highest quantile with five observations above it.
    assert (seen["value"], seen["samples"]) == (pytest.approx(95, abs=0.1), 101)
    assert "few for 0.99" in seen["note"]


def test_one_slow_first_request_is_no_percentile(write):
    path = write(request(latency_ms=300), request(latency_ms=280), *(request(latency_ms=20) for _number in range(148)))
    seen = look("log", path=path, match="completed", value="quantile", field="latency_ms", quantile=0.99)
    assert seen["value"] == 20


def test_log_that_cannot_tell(write):
    path = write('INFO:     127.0.0.1:1 - "POST /api/v1/search HTTP/1.1" 200 OK')
    seen = look("log", path=path, match="completed", expects="completed", value="rate")
    assert seen["value"] is None
    assert "does not tell" in seen["note"]


def test_quantile_of_fewer_lines_than_it_needs_is_none(write):
    path = write(*(request(latency_ms=number) for number in range(99)))
    seen = look("log", path=path, match="completed", value="quantile", field="latency_ms", quantile=0.99)
    assert (seen["value"], seen["samples"]) == (None, 99)
    assert seen["note"] == "99 lines, and a quantile of 0.99 needs 100"


def test_quantile_by_is_the_worst_that_has_enough(write):
    path = write(
        *(request("/a", 10) for _number in range(20)),
        *(request("/b", 500) for _number in range(20)),
        *(request("/c", 9000) for _number in range(3)),
    )
    seen = look("log", path=path, match="completed", value="quantile", field="latency_ms", quantile=0.9, by="path")
    assert (seen["value"], seen["samples"], seen["evidence"]["worst"]) == (500, 20, "/b")
    assert [row["path"] for row in seen["evidence"]["by_path"]] == ["/b", "/a"]


def test_where_looks_into_fields(write):
    path = write(
        *(request("/api/v1/customers/7", 900) for _number in range(20)),
        *(request("/api/v1/search", 5) for _number in range(20)),
    )
    values = {"match": "completed", "value": "quantile", "field": "latency_ms", "quantile": 0.5}
    assert look("log", path=path, where={"path": "^/api/v1/(?!customers)"}, **values)["value"] == 5


def test_values_that_are_no_numbers_are_counted_apart(write):
    path = write(*(request(latency_ms=value) for value in (1, "2", "slow", None, [3])))
    seen = look("log", path=path, match="completed", value="quantile", field="latency_ms", quantile=0.5)
    assert seen["value"] == 1.5
    assert seen["evidence"]["unreadable"] == 2


def test_count_by(write):
    path = write(*(request(f"/{number % 7}") for number in range(20)))
    rows = look("log", path=path, match="completed", by="path")["evidence"]["by_path"]
    assert rows[0] == {"path": "/0", "count": 3}
    assert len(rows) == tallies.TOP


def test_distinct(write):
    path = write(*(event("x", customer=f"c{number % 3}") for number in range(9)))
    assert look("log", path=path, value="distinct", field="customer")["value"] == 3


def test_newest_are_the_last_newest_first_and_short(write):
    path = write(*(event(f"tick {number}") for number in range(10)), event("tick last " + "x" * 1000))
    newest = look("log", path=path, match="tick")["evidence"]["newest"]
    assert [re.findall(r"tick (\w+)", line)[0] for line in newest] == ["last", "9", "8"]
    assert max(map(len, newest)) <= tallies.LINE


KEY = "em_live_0123456789abcdef"


@pytest.mark.parametrize(
    "line",
    [
        f"refused {KEY}",
        event("refused", api_key="s3same0pen"),
        "refused Authorization: Bearer s3same0pen",
        "refused redis://user:s3same0pen@host/0",
        # At the end of what is shown: cut first and masked then, half a key would be left.
        "refused " + "x" * (tallies.LINE - 20) + f" {KEY}",
    ],
)
def test_newest_show_no_keys(write, line):
    (shown,) = look("log", path=write(line), match="refused")["evidence"]["newest"]
    assert "s3same" not in shown
    assert "em_live" not in shown


def test_missing_and_empty(tmp_path, write):
    with pytest.raises(NoAnswer, match="does not exist") as caught:
        look("log", path=str(tmp_path / "none"))
    assert caught.value.kind == "no data"
    seen = look("log", path=write())
    assert seen["value"] is None
    assert "is empty" in seen["note"]


def test_folder(tmp_path):
    with pytest.raises(NoAnswer, match="cannot be read: Is a directory"):
        look("log", path=str(tmp_path))


def test_log_without_times_is_taken_whole_and_says_so(write):
    seen = look("log", path=write("error one", "error two"), match="error")
    assert seen["value"] == 2
    assert seen["evidence"]["window"] == "not established"
    assert "no line carries a time" in seen["note"]


def test_log_that_went_silent_before_the_window_has_nothing_in_it(write):
    seen = look("log", path=write(event("error", 4000), event("error", 3000)), match="error")
    assert seen["value"] is None
    assert "has no line within 300 s" in seen["note"]


def test_permission(tmp_path):
    path = tmp_path / "secret.log"
    path.write_text("x\n")
    path.chmod(0)
    said = helpers.python(
        """
        import sys
        from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
        from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
        exec(helpers.BECOME_NOBODY)
        try:
            print(helpers.look("log", path=sys.argv[1]))
        except NoAnswer as error:
            print(error.kind, error)
        """,
        path,
    )
    assert said.startswith(f"permission The log {path} may not be read by ")
    assert said.endswith("run with -b.")


WRITER = """
import sys, time
with open(sys.argv[1], "ab", buffering=0) as file:
    print("ready", flush=True)
    number = 0
    while True:
        line = b'{"event": "tick", "number": %d, "pad": "%s"}\\n' % (number, b"x" * (number % 3000))
        file.write(line[:10])
        file.write(line[10:])
        number += 1
"""


def test_log_that_is_appended_to_while_it_is_read(tmp_path):
    path = tmp_path / "log"
    path.write_text(f"{event('first')}\n")
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        try:
            writer.stdout.readline()
            for _number in range(20):
                before = path.stat().st_size
                window = loglines.read_window(str(path), 0, 1 << 22, float("inf"))
                lines = window.text.splitlines()
                numbers = [json.loads(line)["number"] for line in lines[1:]]
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
                assert len(window.text) >= min(before, 1 << 22) - 8000
        finally:
            writer.kill()


def test_log_that_is_cut_while_it_is_read(tmp_path):
    """Rotation by copytruncate takes the text from under us: whatever is answered then, nothing breaks."""
    path = tmp_path / "log"
    over = threading.Event()

    def rotate():
        while not over.is_set():
            path.write_text(f"{event('tick')}\n" * 5000)
            os.truncate(path, 0)

    path.write_text("")
    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        for _number in range(50):
            value = look("log", path=str(path), match="tick")["value"]
            assert value is None or 0 <= value <= 5000
    finally:
        over.set()
        thread.join()


SERVER = """
import datetime, json, socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
now = datetime.datetime.now(datetime.timezone.utc).isoformat()
print(json.dumps({"event": "served", "timestamp": now}), flush=True)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


def test_output_of_what_listens_on_a_port(tmp_path):
    port = helpers.free_port()
    path = tmp_path / "out.log"
    with (
        path.open("wb") as out,
        subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=out, stderr=subprocess.PIPE) as server,
    ):
        try:
            server.stderr.readline()
            seen = look("log", path=f"stdout:{port}", match="served")
            assert (seen["value"], seen["evidence"]["log"]) == (1, str(path))
        finally:
            server.kill()


def test_output_that_nobody_keeps_is_not_known():
    port = helpers.free_port()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER.replace("file=sys.stderr, ", ""), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            server.stdout.readline()
            with pytest.raises(NoAnswer, match=f"listens on port {port} goes neither to a file nor to the journal"):
                look("log", path=f"stdout:{port}")
        finally:
            server.kill()


def test_output_of_nothing():
    port = helpers.free_port()
    with pytest.raises(NoAnswer, match=f"Nothing listens on port {port}, so its output is not known"):
        look("log", path=f"stdout:{port}")


def test_journal_is_asked_for_one_unit(monkeypatch, tmp_path):
    """A journalctl of our own, as most test environments have no systemd: what it is asked, what becomes of it."""
    tool = tmp_path / "journalctl"
    tool.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\nprintf 'one error\\ntwo error\\nfine\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    seen = look("log", path="journal:vritti.service", match="error", value="rate", window=100.0)
    assert seen["value"] == pytest.approx(0.02)
    asked = (tmp_path / "asked").read_text()
    assert "--unit=vritti.service" in asked
    since = float(re.findall(r"--since=@(\d+)", asked)[0])
    assert time.time() - 160 < since < time.time() - 99


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        ("echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1", "permission", "-b"),
        # As it is for a user outside of the group systemd-journal: --output=cat silences the hint.
        (
            "case \"$*\" in *--output=cat*) ;; *) echo 'Hint: You are currently not seeing messages.' >&2;; esac",
            "permission",
            r"cannot be read \(You are currently not seeing messages\); run with -b",
        ),
        ("sleep 30", "timeout", "does not end within 0.3 s"),
        (None, "missing", "journalctl is not installed"),
    ],
)
def test_journal_that_gives_nothing(monkeypatch, tmp_path, script, kind, says):
    if script:
        (tmp_path / "journalctl").write_text(f"#!/bin/sh\n{script.replace('sleep', 'exec /bin/sleep')}\n")
        (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoAnswer, match=says) as caught:
        look("log", context(timeout=0.3), path="journal:vritti")
    assert caught.value.kind == kind


def test_window_is_read_once_for_all_checks(write, monkeypatch):
    path = write(event("a"), event("b"))
    shared = context()
    assert look("log", shared, path=path, match='"a"')["value"] == 1
    os.unlink(path)
    assert look("log", shared, path=path, match='"b"')["value"] == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"match": "("}, r"match is '\(', which is no regular expression"),
        ({"since": "["}, "since is"),
        ({"of": "*"}, "of is"),
        ({"where": {"path": "("}}, "where.path is"),
        ({"quantile": 1.0}, "it lies between 0 and 1"),
        ({"window": 0.0}, "window is 0.0; it is a number of seconds above 0"),
        ({"path": "stdout:http"}, "is not stdout:<port>"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        log.validate(source("log", **{"path": "/x", **values}))


def test_description():
    assert log.describe(source("log", path="/x", match="err")) == "log /x err"
    assert log.describe(source("log", path="/x")) == "log /x lines"
    quantile = {"value": "quantile", "field": "ms", "quantile": 0.99}
    assert log.describe(source("log", path="/x", **quantile)) == "log /x ms quantile 0.99"


# Who stands out.


def access(client, status=429, path="/api/v1/search"):
    return f'INFO:     {client}:5 - "GET {path} HTTP/1.1" {status} OK'


def ranking(path, ago=0.0, **values):
    values = {
        "value": "ranking",
        "by": "client_host",
        "match": "INFO:.* - ",
        "where": {"status_code": "^4"},
        "succeeded": {"status_code": "^2"},
        **values,
    }
    at = context()
    at.fresh_seconds = ago
    return look("log", at=at, path=path, **values)


def test_who_is_refused_most(write):
    path = write(
        event("start", age=90),
        *[access("192.0.2.1")] * 3,
        *[access("2001:db8::1")] * 5,
        access("192.0.2.1", 200),
        access("192.0.2.9"),
        access("192.0.2.8", 200),
    )
    seen = ranking(path, least=3)
    assert seen["value"] == 2
    assert seen["evidence"]["listed"] == [
        {"name": "2001:db8::1", "count": 5, "succeeded": 0},
        {"name": "192.0.2.1", "count": 3, "succeeded": 1},
    ]
    assert seen["evidence"]["matched"] == 9
    assert ranking(path, least=6)["value"] == 0
    assert ranking(path, least=1, where={"status_code": "^5"})["value"] == 0


def test_a_log_that_could_not_tell_does_not(write):
    seen = ranking(write(event("start", age=9)), expects="INFO:")
    assert seen["value"] is None
    assert "has no line 'INFO:'" in seen["note"]
    assert ranking(write(event("old", age=4000)))["value"] is None


def test_who_asks_more_than_before(write):
    path = write(
        event("x", age=3000),
        *[access("192.0.2.1", 200)] * 20,  # 20 in 2700 s are 2.2 in 300 s
        *[access("192.0.2.2", 200)] * 90,  # 10 in 300 s
        event("x", age=200),
        *[access("192.0.2.1", 200)] * 12,
        *[access("192.0.2.2", 200)] * 12,
        *[access("192.0.2.3", 200)] * 12,
        *[access("192.0.2.4", 200)] * 2,
    )
    seen = ranking(path, where={}, least=3, before=3600.0, times=3.0)
    rows = {row["name"]: row for row in seen["evidence"]["listed"]}
    assert sorted(rows) == ["192.0.2.1", "192.0.2.3"]
    assert (rows["192.0.2.1"]["new"], rows["192.0.2.3"]["new"]) == (False, True)
    assert rows["192.0.2.1"]["before"] == pytest.approx(20 * 300 / 2700, abs=0.1)
    assert rows["192.0.2.3"]["before"] == 0
    assert seen["evidence"]["compared_with"].endswith(" before")


def test_without_a_past_nothing_is_unusual(write):
    path = write(event("x", age=200), *[access("192.0.2.1", 200)] * 50)
    seen = ranking(path, where={}, before=3600.0)
    assert seen["value"] is None
    assert "does not go back far enough" in seen["note"]
    # One that goes back further says that nobody asked.
    path = write(event("x", age=9000), event("x", age=200), *[access("192.0.2.1", 200)] * 50)
    assert ranking(path, where={}, before=3600.0)["evidence"]["listed"][0]["new"]


def test_lines_of_one_request(write):
    """Where one says from where it comes, and another one whose it is."""

    def lines(number, client, customer):
        return [
            event("HTTP request started", age=30, request_id=number, client_host=client),
            event("HTTP request completed", age=30, request_id=number, customer_id=customer, status_code=200),
        ]

    path = write(*lines("a", "192.0.2.1", "acme"), *lines("b", "192.0.2.1", "acme"), *lines("c", "192.0.2.2", "other"))
    seen = ranking(
        path, match="HTTP request completed", where={"customer_id": "^acme$"}, join="request_id", succeeded={}
    )
    assert seen["evidence"]["listed"] == [{"name": "192.0.2.1", "count": 2}]
    by_customer = ranking(path, match="HTTP request completed", where={}, join="request_id", by="customer_id")
    assert [row["name"] for row in by_customer["evidence"]["listed"]] == ["acme", "other"]


def test_after_a_step_only_what_came_since_counts(write):
    path = write(
        event("x", age=200),
        *[access("192.0.2.1")] * 60,
        event("x", age=5),
        *[access("192.0.2.2")] * 60,
        *[access("192.0.2.3")] * 1,
        *[access("192.0.2.4")] * 2,
    )
    assert ranking(path, least=60, fresh=True)["value"] == 2
    # 60 in 300 s are 2 in 10 s.
    seen = ranking(path, ago=10.0, least=60, fresh=True)
    assert [row["name"] for row in seen["evidence"]["listed"]] == ["192.0.2.2", "192.0.2.4"]
    # The attack is over, and the log goes on.
    over = write(event("x", age=200), *[access("192.0.2.1")] * 60, event("x", age=5))
    assert ranking(over, ago=10.0, least=60, fresh=True)["value"] == 0
    # A check that does not ask for it goes on looking at the whole window.
    assert ranking(over, ago=10.0, least=60)["value"] == 1


def test_ranking_of_what_came_after(write):
    """Of what is over nothing counts, neither for the number nor for what is usual."""

    def lines(age, client, *more):
        return [event("x", age=age), *[access(client)] * 9, *more]

    cut = 'INFO: "DELETE /keys/1" 204'
    start = "INFO: Started server process"
    since = r'"DELETE [^"]*" 204(?:[\s\S]*Started server process)?'

    def names(*parts):
        seen = ranking(write(*(line for part in parts for line in part)), since=since, least=2)
        return [row["name"] for row in seen["evidence"]["listed"]]

    assert names(lines(200, "192.0.2.1"), lines(90, "192.0.2.2")) == ["192.0.2.1", "192.0.2.2"]
    # A start alone ends nothing.
    assert names(lines(200, "192.0.2.1", start), lines(90, "192.0.2.2")) == ["192.0.2.1", "192.0.2.2"]
    assert names(lines(200, "192.0.2.1", cut), lines(90, "192.0.2.2")) == ["192.0.2.2"]
    assert names(lines(200, "192.0.2.1", cut), lines(90, "192.0.2.2", start), lines(9, "192.0.2.3")) == ["192.0.2.3"]


def test_who_has_stopped_is_not_listed(write):
    lines = [event("x", age=200), *[access("192.0.2.1")] * 9, event("x", age=30), *[access("192.0.2.2")] * 9]
    path = write(*lines)
    assert [row["name"] for row in ranking(path, active=60.0)["evidence"]["listed"]] == ["192.0.2.2"]
    # Access lines carry no time: while the log is written to, those after the last time may be of this moment.
    seen = ranking(path, active=5.0)
    assert [row["name"] for row in seen["evidence"]["listed"]] == ["192.0.2.2"]
    os.utime(path, (time.time() - 20, time.time() - 20))
    assert ranking(path, active=5.0)["value"] == 0
    # What is written down as time is believed before the file's.
    assert ranking(path, active=60.0)["value"] == 1


def test_ranking_is_validated():
    for values, said in (
        ({"least": 0}, "least is 0"),
        ({"before": 0.0}, "before is 0"),
        ({"succeeded": {"a": "("}}, "succeeded.a is '\\('"),
    ):
        with pytest.raises(ValueError, match=said):
            log.validate(source("log", path="/x", value="ranking", by="a", **values))

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import jsonlines, judge, loglines
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import jsonl
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import context, look, source


def line(age=1.0, **fields):
    """A measurement as wp_chat writes it, so many seconds old."""
    measured = {"endpoint": "search", "latency_ms": 100, "status_code": 200, "cache_hit": False, "error_message": ""}
    return json.dumps({"timestamp": time.time() - age, **measured, "generation_metrics": None, **fields})


@pytest.fixture()
def write(tmp_path):
    path = tmp_path / "slo_metrics.jsonl"

    def write(*lines):
        path.write_text("".join(f"{text}\n" for text in lines))
        return str(path)

    return write


def after_step(seconds):
    return Context(5.0, 0.0, {}, helpers.run_command, seconds)


# --- what is counted


def test_count_and_its_evidence(write):
    rows = [line(age, status_code=500 if age % 4 == 0 else 200, n=age) for age in range(400, 0, -1)]
    path = write(*rows[:-3], "torn {", *rows[-3:], "{")
    seen = look("jsonl", path=path, where={"endpoint": "^search$"}, match={"status_code": "^5"}, by="status_code")
    evidence = seen["evidence"]
    assert seen["value"] == pytest.approx(75, abs=1)
    assert seen["samples"] == evidence["lines"] == pytest.approx(300, abs=1)
    assert evidence["matched"] == seen["value"]
    assert (evidence["file"], evidence["window"], evidence["torn"]) == (path, "300 s", 2)
    assert evidence["by_status_code"] == [{"status_code": "500", "count": seen["value"]}]
    assert [json.loads(text)["n"] for text in evidence["newest"]] == [4, 8, 12]
    assert seen["note"] is None


def test_patterns_see_json(write):
    path = write(
        line(cache_hit=True, status_code=200), line(cache_hit=False, status_code=429), line(), line(extra={"a": [1]})
    )
    assert look("jsonl", path=path, match={"cache_hit": "^true$"})["value"] == 1
    # YAML's own true and numbers are as good.
    assert look("jsonl", path=path, match={"cache_hit": True})["value"] == 1
    assert look("jsonl", path=path, match={"status_code": 429})["value"] == 1
    assert look("jsonl", path=path, match={"generation_metrics": "^$"})["value"] == 4
    assert look("jsonl", path=path, match={"nowhere": "^$"})["value"] == 4
    assert look("jsonl", path=path, match={"nowhere": "."})["value"] == 0
    assert look("jsonl", path=path, match={"extra.a": r"^\[1\]$"})["value"] == 1
    seen = look("jsonl", path=path, by="cache_hit")
    assert seen["evidence"]["by_cache_hit"] == [{"cache_hit": "false", "count": 3}, {"cache_hit": "true", "count": 1}]


def test_share(write):
    path = write(*(line(status_code=status) for status in (200, 200, 429, 500)), line(endpoint="generate"))
    seen = look("jsonl", path=path, value="share", where={"endpoint": "search"}, match={"status_code": "^2"})
    assert (seen["value"], seen["samples"]) == (0.5, 4)
    good = {"status_code": "^429"}
    assert look("jsonl", path=path, value="share", where={"endpoint": "generate"}, match=good)["value"] == 0.0
    # No traffic is no data.
    seen = look("jsonl", path=path, value="share", where={"endpoint": "ask"}, match=good)
    assert (seen["value"], seen["samples"]) == (None, 0)


def test_rate_is_over_the_window(write):
    path = write(*(line(age) for age in (50, 40, 30, 20)))
    assert look("jsonl", path=path, value="rate")["value"] == pytest.approx(4 / 300)
    assert look("jsonl", path=path, value="rate", window=45.0)["value"] == pytest.approx(3 / 45)


def test_rate_of_what_was_read(write, monkeypatch):
    monkeypatch.setattr(jsonlines.read, "__defaults__", (64 * 1024,))
    path = write(*(line(age / 10, pad="x" * 800) for age in range(2990, 0, -1)))
    seen = look("jsonl", path=path, value="rate")
    assert seen["value"] == pytest.approx(10, rel=0.1)
    assert seen["note"] == "only the last 0 MiB, which are all that is read were read"


def test_quantile(write):
    path = write(*(line(latency_ms=number) for number in range(1, 201)), line(latency_ms=None), line(latency_ms="soon"))
    seen = look("jsonl", path=path, value="quantile", field="latency_ms", quantile=0.95)
    assert seen["value"] == pytest.approx(190.05)
    assert (seen["samples"], seen["evidence"]["unreadable"]) == (200, 1)
    few = look("jsonl", path=path, value="quantile", field="latency_ms", quantile=0.99)
    assert few["value"] == pytest.approx(loglines.quantile(range(1, 201), 0.975))
    assert few["note"] == "quantile 0.975, as 200 requests are few for 0.99"


def test_quantile_of_fewer_lines_than_it_needs_is_none(write):
    path = write(*(line(latency_ms=number) for number in range(19)))
    seen = look("jsonl", path=path, value="quantile", field="latency_ms", quantile=0.95)
    assert (seen["value"], seen["samples"]) == (None, 19)
    assert seen["note"] == "19 lines, and a quantile of 0.95 needs 20"


@pytest.mark.parametrize("strange", ["NaN", "Infinity", "-Infinity", "true", '"NaN"', "1e999", "9" * 400, "[1]"])
def test_numbers_that_are_none(write, strange):
    path = write(*(line(latency_ms=5) for _number in range(20)), line(latency_ms=7).replace(": 7,", f": {strange},"))
    seen = look("jsonl", path=path, value="quantile", field="latency_ms", quantile=0.95)
    assert (seen["value"], seen["samples"], seen["evidence"]["unreadable"]) == (5, 20, 1)


def test_quantile_by_is_the_worst_that_has_enough(write):
    rows = [line(endpoint=name, latency_ms=ms) for name, ms in [("search", 10), ("generate", 90)] * 20]
    path = write(*rows, *(line(endpoint="ask", latency_ms=5000) for _number in range(5)))
    seen = look("jsonl", path=path, value="quantile", field="latency_ms", quantile=0.95, by="endpoint")
    assert (seen["value"], seen["samples"], seen["evidence"]["worst"]) == (90, 20, "generate")
    assert seen["evidence"]["by_endpoint"] == [
        {"endpoint": "generate", "value": 90, "samples": 20},
        {"endpoint": "search", "value": 10, "samples": 20},
    ]


def test_field_that_lies_deeper(write):
    path = write(*(line(generation_metrics={"ttft_ms": 40, "model": "m"}) for _number in range(20)), line())
    seen = look("jsonl", path=path, value="quantile", field="generation_metrics.ttft_ms", quantile=0.5)
    assert (seen["value"], seen["samples"]) == (40, 20)
    seen = look("jsonl", path=path, by="generation_metrics.model", where={"generation_metrics.model": "m"})
    assert seen["evidence"]["by_generation_metrics.model"] == [{"generation_metrics.model": "m", "count": 20}]


def test_distinct_and_repeated(write):
    path = write(*(line(query=query) for query in ["a", "a", "a", "b", "b", "c", "", None]))
    assert look("jsonl", path=path, value="distinct", field="query")["value"] == 4
    seen = look("jsonl", path=path, value="repeated", field="query", least=2, match={"query": "."})
    assert (seen["value"], seen["samples"]) == (2, 8)
    assert seen["evidence"]["by_query"] == [{"query": "a", "count": 3}, {"query": "b", "count": 2}]
    assert look("jsonl", path=path, value="repeated", field="query", least=3)["value"] == 1
    assert look("jsonl", path=path, value="repeated", field="query", least=4)["value"] == 0


def test_what_is_sent_by_users_is_cleaned(write):
    long = "x" * 2000
    path = write(line(error_message="api_key=s3same"), line(error_message="\ud800 half"), line(error_message=long))
    seen = look("jsonl", path=path, value="ranking", by="error_message")
    text = json.dumps(seen, ensure_ascii=False).encode()
    assert b"s3same" not in text
    assert long.encode() not in text
    assert {row["name"][:16] for row in seen["evidence"]["listed"]} == {"api_key=********", "? half", "x" * 16}
    seen = look("jsonl", path=path, value="quantile", field="latency_ms", quantile=0.01, by="error_message")
    assert b"s3same" not in json.dumps(seen, ensure_ascii=False).encode()


# --- no data


def test_no_file(tmp_path):
    seen = look("jsonl", path=str(tmp_path / "none.jsonl"))
    assert (seen["value"], seen["samples"]) == (None, 0)
    assert seen["note"] == f"{tmp_path}/none.jsonl does not exist, so no request was ever logged in it"


@pytest.mark.parametrize("value", ["count", "rate", "share", "distinct", "quantile", "repeated", "ranking"])
@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "has no line with a time in timestamp"),
        (["{}", "x"], "has no line with a time in timestamp"),
        ([line(7200)], "has no line within 300 s; its newest is 2"),
        ([line(-7200)], "; 1 lines have a time to come, so a clock or a time zone is wrong"),
    ],
)
def test_no_traffic_is_no_data(write, value, lines, says):
    more = {"field": "latency_ms", "by": "endpoint", "quantile": 0.5, "least": 2}
    seen = look("jsonl", path=write(*lines), value=value, **more)
    assert (seen["value"], seen["samples"]) == (None, 0)
    assert says in seen["note"]


def test_lines_of_other_kinds_are_traffic(write):
    seen = look("jsonl", path=write(line(endpoint="generate")), where={"endpoint": "search"})
    assert (seen["value"], seen["samples"]) == (0, 0)


def test_permission(tmp_path):
    path = tmp_path / "secret.jsonl"
    path.write_text(line())
    path.chmod(0)
    said = helpers.python(
        """
        import sys
        from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
        from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
        exec(helpers.BECOME_NOBODY)
        try:
            print(helpers.look("jsonl", path=sys.argv[1]))
        except NoAnswer as error:
            print(error.kind, error)
        """,
        path,
    )
    assert said.startswith(f"permission {path} may not be read by ")
    assert said.endswith("run with -b.")


def test_what_is_no_file(tmp_path):
    with pytest.raises(NoAnswer, match="cannot be read: Is a directory"):
        look("jsonl", path=str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoAnswer, match="cannot be read: it is no regular file"):
        look("jsonl", path=str(tmp_path / "pipe"))


def test_window_is_read_once_for_all_checks(write, monkeypatch):
    path = write(line(), line(endpoint="generate"))
    reads = []
    whole = jsonlines.read
    monkeypatch.setattr(jsonlines, "read", lambda *arguments: reads.append(1) or whole(*arguments))
    shared = context()
    assert look("jsonl", shared, path=path)["value"] == 2
    assert look("jsonl", shared, path=path, where={"endpoint": "search"})["value"] == 1
    assert len(reads) == 1
    look("jsonl", shared, path=path, window=60.0)
    assert len(reads) == 2


# --- since the service was started


SERVER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture()
def server(tmp_path):
    """A process that listens, started in the folder of the file."""
    port = helpers.free_port()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield port
        process.stdin.close()


def test_since_start(server, write):
    write(*(line(age) for age in (200, 100, 50)))
    named = {"path": "slo_metrics.jsonl", "port": server}
    assert look("jsonl", **named)["value"] == 3
    seen = look("jsonl", **named, since_start=True)
    assert (seen["value"], seen["samples"]) == (None, 0)
    assert seen["note"].startswith("it was started ")
    assert seen["note"].endswith(" s ago, and no line is younger than that")
    # A second of its own time is over, at least.
    time.sleep(1.1)
    write(*(line(age) for age in (200, 100, 50)), *(line(0.05, status_code=500) for _number in range(4)))
    seen = look("jsonl", **named, since_start=True, value="share", match={"status_code": "^5"})
    assert (seen["value"], seen["samples"]) == (1.0, 4)
    assert seen["evidence"]["window"].endswith(" s: since it was started")
    assert look("jsonl", **named, since_start=True, value="rate")["value"] > 4 / 300
    warming = look("jsonl", **named, since_start=True, warm_up=60.0, value="ranking", by="endpoint")
    assert (warming["value"], warming["samples"]) == (None, 0)
    assert warming["note"].endswith(" s ago, and no line is younger than its warm-up of 60 s")


def test_warm_up_begins_with_the_first_line(server, write):
    """A service that nobody has asked anything yet has not warmed up, however long ago it was started."""
    time.sleep(2.1)
    first = line(0.6, latency_ms=6000)
    write(line(100), first, *(line(0.05, latency_ms=10) for _number in range(4)))
    named = {"path": "slo_metrics.jsonl", "port": server, "since_start": True}
    assert look("jsonl", **named)["samples"] == 5
    seen = look("jsonl", **named, warm_up=0.4)
    assert (seen["samples"], seen["evidence"]["window"]) == (4, "0 s: since it was started")
    assert look("jsonl", **named, warm_up=1.5)["samples"] == 0


def test_since_a_start_that_is_not_known(write):
    port = helpers.free_port()
    seen = look("jsonl", path=write(line()), port=port, since_start=True)
    assert seen["value"] == 1
    assert seen["note"] == f"nothing listens on port {port}, so when it was started is not known, and all lines count"


def test_since_a_start_that_may_not_be_seen(write, monkeypatch):
    def refuse(_port):
        raise NoAnswer("Port 8080 is listened on by a process of wp, which nobody may not look into; run with -b.")

    monkeypatch.setattr(jsonl.procfs, "listeners", refuse)
    seen = look("jsonl", path=write(line()), port=8080, since_start=True)
    assert seen["value"] == 1
    assert seen["note"].endswith("; run with -b, so when it was started is not known, and all lines count")


def test_relative_path_without_a_service():
    with pytest.raises(NoAnswer, match="is relative to where the service was started, and nothing listens on port"):
        look("jsonl", path="logs/slo_metrics.jsonl", port=helpers.free_port())


# --- after a step


def test_fresh(write):
    path = write(*(line(age, status_code=500) for age in (200, 100)), *(line(age) for age in (20, 10)))
    bad = {"path": path, "value": "share", "match": {"status_code": "^5"}}
    assert look("jsonl", after_step(60), **bad, fresh=True)["value"] == 0.0
    assert look("jsonl", after_step(60), **bad)["value"] == 0.5
    assert look("jsonl", after_step(0), **bad, fresh=True)["value"] == 0.5
    assert look("jsonl", after_step(5), **bad, fresh=True)["value"] is None


def test_a_few_lines_since_a_step_stand_for_what_the_window_would_have(write):
    asked = {"value": "share", "match": {"status_code": "^5"}, "window": 300, "fresh": True}
    assert look("jsonl", after_step(10), path=write(*map(line, (1, 2, 3, 4))), **asked)["samples"] == 4
    enough = write(*map(line, (1, 2, 3, 4, 5)))
    assert look("jsonl", after_step(10), path=enough, **asked)["samples"] == 150
    # Without a step the lines are what they are.
    assert look("jsonl", after_step(0), path=enough, **asked)["samples"] == 5


# --- who stands out


def test_ranking(write):
    rows = [line(100 - n / 10, ip="192.0.2.1", status_code=429 if n > 9 else 200) for n in range(40)]
    rows += [line(20 + n / 10, ip="192.0.2.2", status_code=429) for n in range(25, 0, -1)]
    path = write(*rows, line(10, ip="192.0.2.3", status_code=429), line(9, ip=None, status_code=429))
    refused = {"path": path, "value": "ranking", "by": "ip", "match": {"status_code": "^429$"}}
    seen = look("jsonl", **refused, least=20, succeeded={"status_code": "^2"})
    assert seen["value"] == 2
    assert seen["evidence"]["listed"] == [
        {"name": "192.0.2.1", "count": 30, "succeeded": 10},
        {"name": "192.0.2.2", "count": 25, "succeeded": 0},
    ]
    assert look("jsonl", **refused, least=20, active=60.0)["evidence"]["listed"] == [{"name": "192.0.2.2", "count": 25}]
    assert look("jsonl", **refused)["value"] == 3


def test_ranking_against_before(write):
    old = [line(3000 - n, ip="192.0.2.1") for n in range(0, 2700, 10)]
    new = [line(300 - n, ip="192.0.2.1") for n in range(0, 280, 10)]
    burst = [line(20 - n / 10, ip="192.0.2.2") for n in range(60)]
    path = write(line(9000), *old, *new, *burst)
    asked = {"path": path, "value": "ranking", "by": "ip", "least": 10, "window": 290.0}
    seen = look("jsonl", **asked, before=2000.0)
    assert seen["evidence"]["listed"] == [{"name": "192.0.2.2", "count": 60, "before": 0.0, "new": True}]
    assert seen["evidence"]["compared_with"] == "the 33.3 min before"
    assert look("jsonl", **asked)["value"] == 2
    short = look("jsonl", **{**asked, "path": write(*new, *burst)}, before=2000.0)
    assert short["value"] is None
    assert "does not go back far enough to tell what is usual" in short["note"]


def test_ranking_after_a_step(write):
    path = write(*(line(100 - n / 10, ip="192.0.2.1") for n in range(500)), line(1, ip="192.0.2.9"))
    asked = {"path": path, "value": "ranking", "by": "ip", "least": 100, "fresh": True}
    assert look("jsonl", after_step(0), **asked)["value"] == 1
    assert look("jsonl", after_step(20), **asked)["value"] == 0
    # That nobody asks any more after an attack is blocked is an answer.
    alone = write(*(line(100 - n / 10, ip="192.0.2.1") for n in range(500)))
    assert look("jsonl", after_step(20), **{**asked, "path": alone})["value"] == 0
    # As many in less time.
    still = write(*(line(20 - n / 10, ip="192.0.2.1") for n in range(100)))
    assert look("jsonl", after_step(30), **{**asked, "path": still})["value"] == 1


# --- against an oracle


@given(
    st.lists(
        st.tuples(
            st.floats(0, 400), st.sampled_from(["search", "generate"]), st.integers(0, 900), st.sampled_from([200, 500])
        ),
        max_size=80,
    ),
    st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_all_values_agree_with_a_plain_reading(tmp_path_factory, rows, seed):
    now = time.time()
    # In the order of their times, but for a minute.
    chance = random.Random(seed)  # noqa: S311 - no secret comes of it
    rows = sorted(rows, key=lambda row: -row[0] + chance.uniform(0, 60))
    texts = []
    for age, endpoint, latency, status in rows:
        measured = {"timestamp": now - age, "endpoint": endpoint, "latency_ms": latency, "status_code": status}
        text = json.dumps(measured)
        if chance.random() < 0.2:
            texts.append(text[: chance.randrange(len(text))])
        texts.append(text)
    path = tmp_path_factory.getbasetemp() / "plain.jsonl"
    path.write_text("".join(f"{text}\n" for text in texts))
    shared = context()

    def ask(**values):
        return look("jsonl", shared, path=str(path), window=200.0, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlines, "_BLOCK", 512)
        counted = ask(match={"status_code": "^5"})
    start = next(iter(shared._done.values()))[1].now - 200
    within = [row for row in rows if now - row[0] >= start]
    search = [row for row in within if row[1] == "search"]
    bad = [row for row in within if row[3] == 500]
    if not within:
        assert counted["value"] is None
        return
    assert (counted["value"], counted["samples"]) == (len(bad), len(within))
    share = ask(value="share", where={"endpoint": "search"}, match={"status_code": "^5"})
    assert share["value"] == (sum(row[3] == 500 for row in search) / len(search) if search else None)
    assert ask(value="distinct", field="latency_ms")["value"] == len({row[2] for row in within})
    repeats = Counter(row[2] for row in within)
    repeated = ask(value="repeated", field="latency_ms", least=2)
    assert repeated["value"] == sum(count > 1 for count in repeats.values())
    assert ask(value="rate")["value"] == len(within) / 200
    ranked = ask(value="ranking", by="endpoint", least=3)
    names = Counter(row[1] for row in within)
    assert {row["name"]: row["count"] for row in ranked["evidence"]["listed"]} == {
        name: count for name, count in names.items() if count >= 3
    }
    numbers = [row[2] for row in within]
    half = ask(value="quantile", field="latency_ms", quantile=0.5)
    wanted = loglines.quantile(numbers, judge.robust(0.5, len(numbers))) if len(numbers) >= 2 else None
    assert half["value"] == (None if wanted is None else pytest.approx(wanted))


# --- what it may say


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"where": {"a": "("}}, r"where.a is '\(', which is no regular expression"),
        ({"match": {"a": "["}}, r"match.a is '\[', which is no regular expression"),
        ({"window": 0.0}, "window is 0.0; it is a number of seconds above 0"),
        ({"quantile": 1.0}, "quantile is 1.0; it lies between 0 and 1"),
        ({"before": 0.0}, "before is 0; it is a number of seconds above 0"),
        ({"least": 0}, "least is 0; it is a number of lines from 1"),
        ({"value": "repeated", "field": "a"}, "least is 1; what is repeated has at least 2 lines"),
        ({"active": 0.0}, "active is 0; it is a number of seconds above 0"),
        ({"warm_up": -1.0, "since_start": True}, "warm_up is -1; it is a number of seconds from 0"),
        ({"warm_up": 1.0}, "warm_up counts from the start .* takes since_start: true"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        jsonl.validate(source("jsonl", path="/x", **values))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, "jsonl logs/m.jsonl count"),
        ({"value": "share", "match": {"status_code": "^5"}}, "jsonl logs/m.jsonl share of status_code ~ ^5"),
        (
            {"value": "quantile", "field": "latency_ms", "quantile": 0.95, "where": {"endpoint": "search"}},
            "jsonl logs/m.jsonl latency_ms quantile 0.95 of endpoint ~ search",
        ),
        ({"value": "ranking", "by": "ip_address"}, "jsonl logs/m.jsonl lines by ip_address"),
        ({"value": "repeated", "field": "query"}, "jsonl logs/m.jsonl repeated query"),
    ],
)
def test_description(values, wanted):
    assert jsonl.describe(source("jsonl", path="logs/m.jsonl", **values)) == wanted

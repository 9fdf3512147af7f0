# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import threading
import time
import types

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import run_probes
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.plugins.module_utils.run_probes import run
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import PATIENCE, Raw, context, mute, source


def check(name, *sources, needs=(), thresholds=({"above": 299.0, "label": "P1"},), min_samples=0):
    return {
        "id": name,
        "sources": list(sources),
        "needs": list(needs),
        "thresholds": list(thresholds),
        "min_samples": min_samples,
    }


def outcomes(results):
    return {name: [look["outcome"] for look in result["looks"]] for name, result in results.items()}


@pytest.fixture()
def page(web):
    """A source for a page of the server; the page is made with its status."""

    def page(path, status=200, **values):
        web.pages[path] = (status, "application/json", "{}")
        return source("http", url=web.url + path, **values)

    return page


def test_every_check_has_its_looks(page):
    results = run([check("a", page("/a")), check("b", page("/b", 500))], context())
    assert set(results) == {"a", "b"}
    (look,) = results["a"]["looks"]
    assert (look["outcome"], look["value"]) == ("value", 200)
    assert look["duration_ms"] > 0
    assert results["b"]["looks"][0]["value"] == 500
    assert results["a"]["unmet"] == results["b"]["unmet"] == []
    assert json.dumps(results), "it travels as JSON"
    assert run([], context()) == {}


def test_checks_run_at_the_same_time():
    meeting = threading.Barrier(8)

    def serve(connection, _over):
        connection.recv(65536)
        meeting.wait(PATIENCE)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with Raw(serve) as server:
        checks = [check(f"c{number}", source("http", url=f"{server.url}/{number}")) for number in range(8)]
        results = run(checks, context(timeout=PATIENCE))
    assert {result["looks"][0].get("value") for result in results.values()} == {200}


def test_need_that_is_met(page, web):
    results = run([check("b", page("/b"), needs=["a"]), check("a", page("/a"))], context())
    assert outcomes(results) == {"a": ["value"], "b": ["value"]}
    assert web.requests == ["/a", "/b"]


@pytest.mark.parametrize("status", [500, 404])
def test_need_that_is_not_met_keeps_from_looking(page, web, status):
    results = run([check("b", page("/b"), needs=["a"]), check("a", page("/a", status))], context())
    assert results["b"] == {"looks": [], "unmet": ["a"]}
    assert web.requests == ["/a"]


def test_needs_in_a_chain(page, web):
    checks = [
        check("d", page("/d"), needs=["c"]),
        check("c", page("/c"), needs=["b", "ok"]),
        check("b", page("/b"), needs=["a"]),
        check("a", page("/a", 500)),
        check("ok", page("/ok")),
    ]
    results = run(checks, context())
    assert {name: result["unmet"] for name, result in results.items()} == {
        "a": [],
        "ok": [],
        "b": ["a"],
        "c": ["b"],
        "d": ["c"],
    }
    assert sorted(web.requests) == ["/a", "/ok"]


def test_need_that_is_no_check_is_not_met(page, web):
    assert run([check("b", page("/b"), needs=["none"])], context())["b"]["unmet"] == ["none"]
    assert web.requests == []


def test_sources_are_tried_in_their_order(page, web):
    sources = [page("/absent", 404), page("/bad", 500, value="json", jmespath="a"), page("/good"), page("/last")]
    results = run([check("a", *sources)], context())
    assert outcomes(results) == {"a": ["absent", "no_answer", "value"]}
    assert web.requests == ["/absent", "/bad", "/good"]


def test_json_does_not_end_the_search(page, web):
    """Whether the expression finds anything is seen on the controller."""
    results = run([check("a", page("/one", value="json", jmespath="x"), page("/two"))], context())
    assert outcomes(results) == {"a": ["json", "value"]}
    assert len(web.requests) == 2


def test_too_few_samples_do_not_end_the_search(web, page):
    web.pages["/metrics"] = b"part_total 1\nwhole_total 5\n"
    thin = source("prometheus", url=f"{web.url}/metrics", metric="part_total", divide_by="whole_total")
    results = run([check("a", thin, page("/two"), min_samples=6)], context())
    assert [look["value"] for look in results["a"]["looks"]] == [0.2, 200]
    results = run([check("a", thin, page("/two"), min_samples=5)], context())
    assert len(results["a"]["looks"]) == 1


def test_source_that_is_not_wanted_is_absent(page, web):
    results = run([check("a", page("/off", when=False), page("/on"))], context())
    assert outcomes(results) == {"a": ["absent", "value"]}
    assert results["a"]["looks"][0]["note"] == "not configured here"
    results = run([check("a", page("/off", when=False, note="nobody is named"))], context())
    assert results["a"]["looks"][0]["note"] == "nobody is named"
    assert web.requests == ["/on"]


def test_scale(page):
    results = run([check("a", page("/a", scale=0.5)), check("b", page("/a", scale=1.0))], context())
    assert results["a"]["looks"][0]["value"] == 100
    assert results["b"]["looks"][0]["value"] == 200


def test_needs_are_judged_after_scaling(page):
    results = run([check("a", page("/a", scale=10.0)), check("b", page("/b"), needs=["a"])], context())
    assert results["b"]["unmet"] == ["a"]


def test_problem_of_a_source_is_said_and_nothing_is_asked(page, web):
    results = run([check("a", page("/a", problem="The secret x is empty."))], context())
    (look,) = results["a"]["looks"]
    assert (look["outcome"], look["note"]) == ("no_answer", "The secret x is empty.")
    assert web.requests == []


def test_equal_looks_are_made_once(page, web):
    shared = page("/same")
    run([check(f"c{number}", dict(shared)) for number in range(10)], context())
    assert web.requests == ["/same"]


def test_equal_looks_that_fail_are_made_once():
    def hang_up(connection, _over):
        connection.recv(65536)

    with Raw(hang_up) as server:
        results = run([check(f"c{number}", source("http", url=server.url)) for number in range(5)], context())
        assert server.count == 1
    assert {look["outcome"] for result in results.values() for look in result["looks"]} == {"no_answer"}


def test_probe_that_raises_takes_nothing_else_down(page, monkeypatch):
    def broken(_context, _source, _check):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run_probes, "PROBES", {**PROBES, "broken": types.SimpleNamespace(look=broken)})
    results = run([check("a", {"probe": "broken"}, page("/then")), check("b", page("/b"))], context())
    assert outcomes(results) == {"a": ["no_answer", "value"], "b": ["value"]}
    assert results["a"]["looks"][0]["note"] == "The probe broken broke: RuntimeError: a bug."


@pytest.mark.parametrize(
    ("error", "outcome"), [(Absent("not here."), "absent"), (NoAnswer("no.", "permission"), "no_answer")]
)
def test_what_a_probe_says_reaches_the_look(monkeypatch, error, outcome):
    def raises(_context, _source, _check):
        raise error

    monkeypatch.setattr(run_probes, "PROBES", {**PROBES, "raises": types.SimpleNamespace(look=raises)})
    (look,) = run([check("a", {"probe": "raises"})], context())["a"]["looks"]
    assert (look["outcome"], look["note"], look["value"]) == (outcome, str(error), None)
    assert look.get("kind") == ("permission" if outcome == "no_answer" else None)


@pytest.fixture()
def endless(monkeypatch):
    """A probe that does not end before the test does."""
    over = threading.Event()
    monkeypatch.setattr(
        run_probes, "PROBES", {**PROBES, "endless": types.SimpleNamespace(look=lambda *_arguments: over.wait(60))}
    )
    yield {"probe": "endless"}
    over.set()


def test_probe_that_never_ends_has_a_deadline(endless, page):
    began = time.monotonic()
    results = run([check("a", page("/one", 404), endless), check("b", page("/b"))], context(timeout=0.2))
    assert time.monotonic() - began < PATIENCE
    assert outcomes(results) == {"a": ["absent", "no_answer"], "b": ["value"]}
    assert results["a"]["looks"][-1]["note"] == "The probe did not end within its deadline of 0.2 s."


def test_what_needs_a_probe_that_never_ends_is_not_looked_at(endless, page, web):
    """Nor does it count as silent, which is an incident for some checks."""
    results = run([check("a", endless), check("b", page("/b"), needs=["a"])], context(timeout=0.2))
    assert outcomes(results)["a"] == ["no_answer"]
    assert results["b"] == {"looks": [], "unmet": ["a"]}
    assert web.requests == []


def test_log_that_is_a_pipe_does_not_hold_up_the_others(tmp_path, page):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    try:
        results = run([check("a", source("log", path=str(path))), check("b", page("/b"))], context(timeout=0.2))
        assert outcomes(results) == {"a": ["no_answer"], "b": ["value"]}
    finally:
        # Whoever still waits for a writer gets one.
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_slow_sources_one_after_the_other_are_within_the_deadline():
    with Raw(mute) as server:
        sources = [source("http", url=f"{server.url}/{number}") for number in range(3)]
        results = run([check("a", *sources)], context(timeout=0.3))
    assert outcomes(results) == {"a": ["no_answer"] * 3}
    assert all("0.3 s" in look["note"] for look in results["a"]["looks"])


# --- what the probes of one diagnosis share


def test_once_gives_everybody_the_first_answer():
    shared = context()
    asked = []

    def slow():
        asked.append(1)
        time.sleep(0.05)
        return len(asked)

    answers = []
    threads = [threading.Thread(target=lambda: answers.append(shared.once("k", slow))) for _number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [1] * 20
    assert shared.once("other", slow) == 2


def test_once_gives_everybody_the_first_failure():
    shared = context()
    asked = []

    def fail():
        asked.append(1)
        raise NoAnswer("no")

    for _number in range(3):
        with pytest.raises(NoAnswer, match="no"):
            shared.once("k", fail)
    assert len(asked) == 1


def test_pair_is_two_looks_the_sample_time_apart():
    times = []
    first, second, between = context(sample_seconds=0.2).pair("k", lambda: times.append(time.monotonic()) or len(times))
    assert (first, second) == (1, 2)
    assert times[1] - times[0] >= 0.19
    assert between == pytest.approx(times[1] - times[0], abs=0.1)


def test_pair_without_a_sample_time_is_one_look():
    assert context().pair("k", lambda: 7) == (7, None, 0.0)


def test_secret_that_is_not_set():
    assert context(a="b").secret("a") == "b"
    with pytest.raises(NoAnswer, match="The secret c is not set") as caught:
        context(a="b").secret("c")
    assert caught.value.kind == "secret"


def test_key_with_a_line_break_is_in_no_look():
    key = "kyro_live_0123456789abcdef"
    with helpers.kyrodb_server() as address:
        wants = source("kyrodb", address=address, value="answers", secret_api_key="the_key")
        results = run([check("a", wants)], context(the_key=f"{key}\n"))
    assert key not in json.dumps(results)


def test_a_chain_of_slow_needs_is_not_cut_short(web):
    """Each look is within its own deadline, and so is the run of all of them."""

    def serve(_path):
        time.sleep(0.3)
        return b"ok"

    web.pages["/slow"] = serve
    chain = [
        check(f"c{number}", source("http", url=f"{web.url}/slow?{number}"), needs=[f"c{number - 1}"] if number else [])
        for number in range(14)
    ]
    assert set(map(tuple, outcomes(run(chain, context(timeout=0.4))).values())) == {("value",)}


def test_a_source_with_more_time_has_it(web):
    def slow(_path):
        time.sleep(1.5)
        return b"ok"

    web.pages["/slow"] = slow
    patient = source("http", url=f"{web.url}/slow", timeout=PATIENCE)
    assert outcomes(run([check("a", patient)], context(timeout=0.1))) == {"a": ["value"]}


def test_deadline_of_a_source_is_its_own(endless):
    results = run([check("a", {**endless, "timeout": 0.3})], context(timeout=PATIENCE))
    assert results["a"]["looks"][-1]["note"] == "The probe did not end within its deadline of 0.3 s."


def test_a_secret_that_cannot_be_had_is_told_apart(page, web):
    """Its silence says nothing of the service, so it must not count as an incident; and nothing is asked without it."""
    asked = {**page("/a"), "problem": "The secret key is empty."}
    (look,) = run([check("a", asked)], context())["a"]["looks"]
    assert (look["outcome"], look["kind"], look["note"]) == ("no_answer", "secret", "The secret key is empty.")
    assert web.requests == []

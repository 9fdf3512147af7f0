# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import http
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import Web, context, look, source


@pytest.mark.parametrize("status", [200, 204, 401, 500, 503])
def test_status(web, status):
    web.pages["/"] = (status, "text/plain", b"")
    seen = look("http", url=web.url)
    assert seen["value"] == status
    assert seen["evidence"]["total_ms"] > 0


def test_what_is_not_there_is_absent(web):
    with pytest.raises(Absent, match=r"answers 404: this deployment does not have it"):
        look("http", url=f"{web.url}/x")
    web.pages["/"] = (410, "text/plain", b"")
    with pytest.raises(Absent, match="410"):
        look("http", url=web.url, absent=[410])
    assert look("http", url=f"{web.url}/x", absent=[])["value"] == 404


def test_header(web):
    web.pages["/"] = (200, "text/x-thing", b"")
    assert look("http", url=web.url, value="header", header="Content-TYPE")["value"] == "text/x-thing"
    assert look("http", url=web.url, value="header", header="X-Missing")["value"] is None


def test_json_travels_whole_and_unjudged(web):
    body = {"components": [{"name": "kyrodb", "latency_ms": 3.5}]}
    web.pages["/"] = (200, "application/json", json.dumps(body))
    seen = look("http", url=web.url, value="json", jmespath="components")
    assert (seen["outcome"], seen["value"], seen["evidence"]) == ("json", body, {"status": 200})


def test_body_is_posted_once(web):
    web.pages["/ask"] = (200, "application/json", '{"contexts": []}')
    seen = look(
        "http",
        context(the_key="s3same"),
        url=f"{web.url}/ask",
        value="json",
        jmespath="contexts",
        body={"question": "ü", "rerank": True},
        secret_headers={"X-API-Key": "the_key"},
    )
    assert (seen["outcome"], seen["value"]) == ("json", {"contexts": []})
    assert [json.loads(body) for body in web.bodies] == [{"question": "ü", "rerank": True}]
    assert web.headers[0]["Content-Type"] == "application/json"
    assert web.headers[0]["X-API-Key"] == "s3same"


def test_an_empty_body_is_one(web):
    web.pages["/ask"] = b"ok"
    assert look("http", url=f"{web.url}/ask", body={})["value"] == 200
    assert web.bodies == [b"{}"]


@pytest.mark.parametrize(("status", "says"), [(302, "answers 302"), (422, "answers 422"), (500, "answers 500")])
def test_a_post_is_not_asked_twice(web, status, says):
    web.pages["/ask"] = (status, "application/json", "{}")
    with pytest.raises(NoAnswer, match=rf"^POST {web.url}/ask {says}\.$"):
        look("http", url=f"{web.url}/ask", value="json", jmespath="a", body={})
    assert (web.requests, web.bodies) == (["/ask"], [b"{}"])


def test_requests_with_other_bodies_are_others(web):
    web.pages["/ask"] = b"ok"
    shared = context()
    for body in ({"a": 1}, {"a": 2}, {"a": 1}, {}, None, {}):
        look("http", shared, url=f"{web.url}/ask", body=body)
    look("http", shared, url=f"{web.url}/ask", timeout=3.0)
    assert web.bodies == [b'{"a": 1}', b'{"a": 2}', b"{}"]
    assert len(web.requests) == 5


def test_timeout_of_its_own(web):
    def slow(_path):
        time.sleep(0.5)
        return b"ok"

    web.pages["/"] = slow
    assert look("http", context(timeout=0.1), url=web.url, timeout=helpers.PATIENCE)["value"] == 200
    with pytest.raises(NoAnswer, match=r"does not answer within 0\.1 s"):
        look("http", context(timeout=helpers.PATIENCE), url=web.url, timeout=0.1)
    seen = look("http", context(timeout=0.1), url=web.url, timeout=helpers.PATIENCE, value="total", samples=2)
    assert "of 2 own timings" in seen["note"]


def test_several_answers_are_a_list(web):
    web.pages["/status"] = [(200, "application/json", json.dumps({"enabled": even})) for even in (True, False, True)]
    seen = look("http", url=f"{web.url}/status", value="json", jmespath="[].enabled", samples=3)
    assert (seen["outcome"], seen["value"]) == ("json", [{"enabled": True}, {"enabled": False}, {"enabled": True}])
    assert seen["evidence"] == {"status": 200, "answers": 3}
    assert len(web.requests) == 3


def test_several_answers_of_which_one_is_none(web):
    good = (200, "application/json", "{}")
    for bad, says in [
        ((500, "application/json", "{}"), "answers 500"),
        ((200, "text/html", "<p>"), "answers 200 with text/html instead of JSON"),
    ]:
        web.pages["/status"] = [good, bad, good]
        with pytest.raises(NoAnswer, match=says):
            look("http", url=f"{web.url}/status", value="json", jmespath="a", samples=3)
    web.pages["/status"] = (200, "application/json", json.dumps("x" * 300_000))
    with pytest.raises(NoAnswer, match="2 answers are larger than 512 KiB"):
        look("http", url=f"{web.url}/status", value="json", jmespath="a", samples=2)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ((200, "text/html", "<html>login</html>"), "answers 200 with text/html instead of JSON"),
        ((200, "", "oops"), "answers 200 with no content type instead of JSON"),
        ((200, "application/json", '{"half": '), "instead of JSON"),
        ((200, "application/json", b'"\xff\xfe"'), "instead of JSON"),
        ((401, "application/json", "{}"), r"answers 401 \(wrong or missing credentials\)"),
        ((503, "application/json", "{}"), "answers 503"),
        ((302, "application/json", "{}"), "answers 302"),
    ],
)
def test_json_that_is_none(web, page, says):
    web.pages["/"] = page
    with pytest.raises(NoAnswer, match=says):
        look("http", url=web.url, value="json", jmespath="a")


def test_json_larger_than_a_health_page(web):
    web.pages["/"] = (200, "application/json", json.dumps(["x" * 600_000]))
    with pytest.raises(NoAnswer):
        look("http", url=web.url, value="json", jmespath="a")


@pytest.mark.parametrize("value", ["connect", "first_byte", "total"])
def test_timing(web, value):
    web.pages["/"] = b"ok"
    seen = look("http", url=web.url, value=value, samples=7, quantile=0.9)
    assert len(web.requests) == 7
    timing = seen["evidence"]["timing_ms"]
    assert set(timing) == {"connect", "first_byte", "total"}
    for part in timing.values():
        assert 0 <= part["min"] <= part["median"] <= part["max"]
    for least in ("min", "median", "max"):
        assert timing["connect"][least] <= timing["first_byte"][least] <= timing["total"][least]
    assert timing[value]["median"] <= seen["value"] * 1000 + 0.01
    assert "7" in seen["note"]
    assert "quantile 0.9" in seen["note"]


def test_samples_of_a_slow_service_are_as_many_as_the_time_for_one_look_allows(web):
    def slow(_path):
        time.sleep(0.3)
        return b"ok"

    web.pages["/"] = slow
    seen = look("http", context(timeout=1.0), url=web.url, value="total", samples=20)
    assert seen["value"] >= 0.3
    assert 1 <= len(web.requests) <= 4
    assert str(len(web.requests)) in seen["note"]


def test_headers_and_secrets_are_sent(web):
    web.pages["/"] = b"ok"
    look("http", context(the_key="s3same"), url=web.url, headers={"X-N": 5}, secret_headers={"X-Key": "the_key"})
    assert web.headers[0]["X-N"] == "5"
    assert web.headers[0]["X-Key"] == "s3same"


def test_a_scheme_goes_before_the_secret(web):
    web.pages["/"] = b"ok"
    look("http", context(the_key="s3same"), url=web.url, secret_headers={"Authorization": "Bearer the_key"})
    assert web.headers[0]["Authorization"] == "Bearer s3same"
    with pytest.raises(NoAnswer, match="The secret other_key is not set"):
        look("http", url=web.url, secret_headers={"Authorization": "Bearer other_key"})


def test_secret_that_is_not_set_is_named(web):
    with pytest.raises(NoAnswer, match="The secret the_key is not set"):
        look("http", url=web.url, secret_headers={"X-Key": "the_key"})
    assert web.requests == []


def test_equal_requests_are_made_once(web):
    web.pages["/"] = (200, "application/json", "{}")
    shared = context()
    look("http", shared, url=web.url)
    look("http", shared, url=web.url, value="json", jmespath="a")
    assert len(web.requests) == 1
    look("http", shared, url=web.url, headers={"A": "b"})
    look("http", shared, url=f"{web.url}/?x=1")
    look("http", context(), url=web.url)
    assert len(web.requests) == 4


@pytest.mark.parametrize("first", [{"validate_certs": True}, {}])
def test_certificate_is_verified_for_the_check_that_asks_for_it(tls, first):
    with Web(tls) as server:
        server.pages["/"] = b"ok"
        shared = context()
        assert look("http", shared, url=server.url, validate_certs=False)["value"] == 200
        with pytest.raises(NoAnswer, match="certificate"):
            look("http", shared, url=server.url, **first)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"url": "localhost"}, "no scheme"),
        ({"url": "http://h", "samples": 0}, "samples is 0; it goes from 1 to 1000"),
        ({"url": "http://h", "samples": 1001}, "samples is 1001"),
        ({"url": "http://h", "quantile": 1.0}, "quantile is 1.0; it lies between 0 and 1"),
        ({"url": "http://h", "quantile": 0.0}, "quantile is 0.0"),
        ({"url": "http://h", "timeout": 0.0}, "timeout is 0; it is a number of seconds above 0, at most 600"),
        ({"url": "http://h", "timeout": 601.0}, "timeout is 601"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        http.validate(source("http", **values))


def test_description_names_what_is_looked_at_and_no_credentials():
    assert http.describe(source("http", url="http://u:pw@h/x")) == "http http://h/x status"
    assert http.describe(source("http", url="http://h/x", value="json", jmespath="a.b")) == "http http://h/x a.b"
    assert http.describe(source("http", url="http://h/x", value="header", header="Age")) == "http http://h/x Age"
    assert http.describe(source("http", url="http://u:pw@h/ask", body={})) == "http POST http://h/ask status"

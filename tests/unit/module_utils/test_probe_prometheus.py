# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import prometheus
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import Web, context, look, source

BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0)


def histogram(name="took", **counts):
    """A histogram's lines; counts maps a path to how many observations lie in each bucket, the last past all bounds."""
    lines = [f"# TYPE {name} histogram"]
    for path, gains in counts.items():
        total = 0
        for bound, gain in zip([*BOUNDS, "+Inf"], gains):
            total += gain
            lines.append(f'{name}_bucket{{path="/{path}",le="{bound}"}} {total}')
        lines.append(f'{name}_count{{path="/{path}"}} {total}')
    return "\n".join(lines) + "\n"


QUICK = (100, 0, 0, 0, 0, 0)


def at(web, *pages):
    """The page, or the pages in turn."""
    web.pages["/metrics"] = list(pages)
    return f"{web.url}/metrics"


def sampled(seconds=0.1):
    return context(sample_seconds=seconds)


def test_value_and_aggregates(web):
    url = at(web, 'm{a="x"} 1\nm{a="y"} 5\nn 3\n')
    for how, wanted in (("sum", 6), ("max", 5), ("min", 1), ("avg", 3), ("count", 2)):
        assert look("prometheus", url=url, metric="m", aggregate=how)["value"] == wanted
    assert look("prometheus", url=url, metric='m{a!="x"}')["value"] == 5


def test_by_ranks_the_groups(web):
    url = at(web, "".join(f'm{{a="{number}",b="{b}"}} {number}\n' for number in range(8) for b in "xy"))
    seen = look("prometheus", url=url, metric="m", by="a")
    assert seen["value"] == 56
    rows = seen["evidence"]["by_a"]
    assert rows[0] == {"a": "7", "value": 14}
    assert [row["a"] for row in rows] == ["7", "6", "5", "4", "3"]


def test_delta_between_two_scrapes(web):
    url = at(web, 'm_total{a="x"} 100\nm_total{a="y"} 50\n', 'm_total{a="x"} 130\nm_total{a="y"} 20\n')
    seen = look("prometheus", sampled(), url=url, metric="m_total", change="delta", by="a")
    # y was reset and counts from zero.
    assert seen["value"] == 50
    assert seen["evidence"]["by_a"] == [{"a": "x", "value": 30}, {"a": "y", "value": 20}]
    assert seen["evidence"]["window"] == "0.1 s"
    assert seen["note"] is None


def test_rate_is_per_second_of_the_time_that_passed(web):
    times = []

    def page(_path):
        times.append(time.monotonic())
        return f"m_total {100 if len(times) == 1 else 150}\n".encode()

    web.pages["/metrics"] = page
    seen = look("prometheus", sampled(0.5), url=f"{web.url}/metrics", metric="m_total", change="rate")
    assert seen["value"] == pytest.approx(50 / (times[1] - times[0]), rel=0.2)


def test_without_a_sample_time_there_is_one_scrape_since_the_start(web):
    url = at(web, f"m_total 3600\nprocess_start_time_seconds {time.time() - 1800}\n")
    rate = look("prometheus", url=url, metric="m_total", change="rate")
    assert rate["value"] == pytest.approx(2.0, rel=0.01)
    assert rate["evidence"]["window"] == judge.SINCE_START
    assert judge.SINCE_START in rate["note"]
    assert look("prometheus", url=url, metric="m_total", change="delta")["value"] == 3600
    assert len(web.requests) == 2


def test_rate_without_a_start_is_not_guessed(web):
    url = at(web, "m_total 3600\n")
    with pytest.raises(NoAnswer, match="needs two scrapes or process_start_time_seconds"):
        look("prometheus", url=url, metric="m_total", change="rate")


def test_scrapes_of_two_workers_are_not_subtracted(web):
    """Every uvicorn worker counts for itself and has a start of its own."""
    slow = (100, 0, 0, 0, 60, 0)
    one, other = (f"process_start_time_seconds {start}\n" for start in (1000.5, 1000.7))
    url = at(web, one + histogram(search=QUICK), other + histogram(search=slow))
    seen = look("prometheus", sampled(), min_samples=20, url=url, histogram="took", quantile=0.99)
    assert seen["evidence"]["window"] == judge.SINCE_START
    assert seen["samples"] == 160
    assert "different processes" in seen["note"]


def test_quantile_of_what_happened_between_two_scrapes(web):
    slow = (100, 0, 0, 60, 0, 0)
    url = at(web, histogram(search=QUICK), histogram(search=slow))
    seen = look("prometheus", sampled(), min_samples=20, url=url, histogram="took", quantile=0.5)
    assert seen["value"] == pytest.approx(0.3)
    assert seen["samples"] == 60
    assert seen["evidence"]["window"] == "0.1 s"
    assert seen["evidence"]["samples"] == 60
    assert seen["evidence"]["p50"] == pytest.approx(0.3)


@pytest.mark.parametrize("between", [(0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 19, 0)])
def test_too_little_in_between_counts_since_the_start(web, between):
    after = tuple(map(sum, zip(QUICK, between)))
    url = at(web, histogram(search=QUICK), histogram(search=after))
    seen = look("prometheus", sampled(), min_samples=20, url=url, histogram="took", quantile=0.5)
    assert seen["samples"] == sum(after)
    assert seen["value"] < 0.01
    assert seen["evidence"]["window"] == judge.SINCE_START
    assert f"only {sum(between)} within 0.1 s" in seen["note"]


def test_old_news_is_not_wanted_by_every_source(web):
    url = at(web, histogram(search=QUICK))
    values = {"url": url, "histogram": "took", "quantile": 0.5, "since_start": False}
    assert look("prometheus", min_samples=20, **values)["value"] is None
    assert look("prometheus", sampled(), min_samples=20, **values)["value"] is None
    at(web, histogram(search=QUICK), histogram(search=(100, 0, 0, 60, 0, 0)))
    assert look("prometheus", sampled(), min_samples=20, **values)["value"] == pytest.approx(0.3)


def test_fewer_than_a_percentile_needs_give_no_value(web):
    url = at(web, histogram(search=(0, 0, 0, 0, 99, 0)))
    seen = look("prometheus", min_samples=20, url=url, histogram="took", quantile=0.99)
    assert (seen["value"], seen["samples"]) == (None, 99)
    assert "99 since process start, and 100 are needed" in seen["note"]
    url = at(web, histogram(search=(0, 0, 0, 0, 100, 0)))
    assert look("prometheus", min_samples=20, url=url, histogram="took", quantile=0.99)["value"] > 0.5


def test_quantile_by_is_the_worst_that_has_enough(web):
    url = at(web, histogram(a=QUICK, b=(0, 0, 0, 100, 0, 0), c=(0, 0, 0, 0, 0, 3)))
    seen = look("prometheus", min_samples=20, url=url, histogram="took", quantile=0.5, by="path")
    assert (seen["value"], seen["samples"], seen["evidence"]["worst"]) == (pytest.approx(0.3), 100, "/b")
    assert [row["path"] for row in seen["evidence"]["by_path"]] == ["/b", "/a"]


def test_quantile_of_some_series_only(web):
    url = at(web, histogram(a=QUICK, b=(0, 0, 0, 100, 0, 0)))
    values = {"url": url, "quantile": 0.5}
    assert look("prometheus", histogram='took{path="/a"}', **values)["value"] < 0.01
    assert look("prometheus", histogram='took{path!~"/a|/c"}', **values)["value"] > 0.1


def test_quantile_past_the_last_bound_says_so(web):
    url = at(web, histogram(a=(0, 0, 0, 0, 0, 100)))
    seen = look("prometheus", url=url, histogram="took", quantile=0.5)
    assert seen["value"] == 1.0
    assert "more than the largest bucket's bound of 1" in seen["evidence"]["beyond_buckets"]


def test_ratio(web):
    first = 'e_total{code="500"} 5\nr_total 1000\n'
    second = 'e_total{code="500"} 15\nr_total 1040\n'
    url = at(web, first, second)
    values = {"url": url, "metric": "e_total", "divide_by": "r_total"}
    seen = look("prometheus", sampled(), min_samples=20, **values)
    assert (seen["value"], seen["samples"]) == (0.25, 40)
    at(web, second)
    seen = look("prometheus", min_samples=20, **values)
    assert seen["value"] == pytest.approx(15 / 1040)
    assert seen["evidence"]["window"] == judge.SINCE_START


def test_ratio_of_nothing_is_no_value(web):
    url = at(web, "e_total 0\nr_total 0\n")
    assert look("prometheus", url=url, metric="e_total", divide_by="r_total")["value"] is None


def test_unset_is_for_what_is_declared_and_has_no_series(web):
    url = at(web, '# TYPE m_total counter\nother_total{a="x"} 4\n')
    values = {"url": url, "unset": 0.0}
    assert look("prometheus", metric="m_total", **values)["value"] == 0
    assert look("prometheus", metric='other_total{a="y"}', **values)["value"] == 0
    with pytest.raises(Absent, match=r"/metrics does not export nowhere_total"):
        look("prometheus", metric="nowhere_total", **values)


def test_declared_under_the_name_without_total(web):
    """prometheus_client declares a counter m_total as m."""
    url = at(web, "# HELP m Something.\n# TYPE m counter\n")
    assert look("prometheus", url=url, metric="m_total", unset=0.0)["value"] == 0


@pytest.mark.parametrize("values", [{"metric": "m"}, {"histogram": "m", "quantile": 0.5}])
def test_declared_and_never_emitted(web, values):
    url = at(web, "# HELP m Something.\n# TYPE m untyped\n")
    with pytest.raises(NoAnswer, match="m is declared and has no matching series: nothing was observed yet") as caught:
        look("prometheus", url=url, **values)
    assert caught.value.kind == "no data"


@pytest.mark.parametrize("values", [{"metric": "m"}, {"histogram": "m", "quantile": 0.5}])
def test_neither_declared_nor_emitted(web, values):
    with pytest.raises(Absent, match="does not export m"):
        look("prometheus", url=at(web, "mm 1\n"), **values)


def test_404_is_a_deployment_without_metrics(web):
    with pytest.raises(Absent, match="answers 404: this deployment exports no metrics"):
        look("prometheus", url=f"{web.url}/metrics", metric="m")


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ((200, "text/html", "<html>"), "answers with text/html instead of the Prometheus text format"),
        ((200, "application/json", "{}"), "answers with application/json instead of"),
        ((200, "text/plain", "<!DOCTYPE html>"), "not the Prometheus text format"),
        ((500, "text/plain", "m 1\n"), "answers 500 instead of a page of metrics"),
        ((302, "text/plain", "m 1\n"), "answers 302 instead of"),
        ((200, "text/plain", "ok 1\nm{ 1\n"), "line 2 is not in the Prometheus text format"),
    ],
)
def test_page_that_is_none(web, page, says):
    with pytest.raises(NoAnswer, match=says) as caught:
        look("prometheus", url=at(web, page).replace("http://", "http://user:s3same@"), metric="m")
    assert "s3same" not in str(caught.value)


def test_gauge_that_is_nan_is_no_value(web):
    assert look("prometheus", url=at(web, "m NaN\n"), metric="m")["value"] is None


def test_checks_share_the_scrapes(web):
    url = at(web, histogram(a=QUICK) + "m_total 1\ng 1\n")
    shared = sampled()
    look("prometheus", shared, url=url, histogram="took", quantile=0.5)
    look("prometheus", shared, url=url, metric="m_total", change="rate")
    assert len(web.requests) == 2
    look("prometheus", shared, url=url, metric="g")
    look("prometheus", shared, url=url, metric="g", by="a")
    assert len(web.requests) == 2


def test_certificate_is_verified_for_the_check_that_asks_for_it(tls):
    with Web(tls) as server:
        server.pages["/metrics"] = b"m 1\n"
        shared = context()
        values = {"url": f"{server.url}/metrics", "metric": "m"}
        assert look("prometheus", shared, validate_certs=False, **values)["value"] == 1
        with pytest.raises(NoAnswer, match="certificate"):
            look("prometheus", shared, **values)


# --- a Prometheus server


def vector(*values):
    rows = [{"metric": {"n": str(place)}, "value": [1.0, str(value)]} for place, value in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": rows}}


def answer(web, data, path="/api/v1/query", status=200):
    web.pages[path] = (status, "application/json", json.dumps(data))


PROMQL = 'sum(rate(m_total{a="b"}[5m])) > 0'


def test_server_is_asked_with_the_expression_as_it_is(web):
    answer(web, vector(1.5))
    seen = look("prometheus", server=f"{web.url}/", promql=PROMQL)
    # How it was before this server does not tell.
    assert (seen["value"], seen["evidence"]) == (1.5, {"series": 1, "history": []})
    request = web.requests[0]
    assert request.startswith("/api/v1/query?")
    assert parse_qs(urlsplit(request).query) == {"query": [PROMQL]}


def test_server_scalar_vector_and_nan(web):
    answer(web, {"status": "success", "data": {"resultType": "scalar", "result": [1.0, "2.5"]}})
    assert look("prometheus", server=web.url, promql="x")["value"] == 2.5
    answer(web, vector(1, 4, "NaN"))
    assert look("prometheus", server=web.url, promql="x", aggregate="max")["value"] == 4
    assert look("prometheus", server=web.url, promql="x")["value"] == 5
    answer(web, vector("NaN"))
    with pytest.raises(NoAnswer, match="has no data for 'x'"):
        look("prometheus", server=web.url, promql="x")


def test_server_without_data(web):
    answer(web, vector())
    with pytest.raises(NoAnswer, match="has no data for 'x'") as caught:
        look("prometheus", server=web.url, promql="x")
    assert caught.value.kind == "no data"


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (
            (400, "application/json", '{"status": "error", "error": "parse error at char 1"}'),
            "refuses 'x': parse error at char 1",
        ),
        ((200, "text/html", "<html>"), "answers 200 with text/html, which is not its API"),
        ((200, "application/json", "[]"), "which is not its API"),
        ((200, "application/json", '{"status": "success"}'), "which is not its API"),
        (
            (200, "application/json", '{"status": "success", "data": {"resultType": "string", "result": [1, "a"]}}'),
            "something other than numbers",
        ),
        (
            (200, "application/json", '{"status": "success", "data": {"resultType": "vector", "result": [{}]}}'),
            "something other than numbers",
        ),
        ((401, "text/plain", "no"), "answers 401"),
    ],
)
def test_server_that_does_not_answer_as_one(web, page, says):
    web.pages["/api/v1/query"] = page
    with pytest.raises(NoAnswer, match=says) as caught:
        look("prometheus", server=web.url.replace("http://", "http://user:s3same@"), promql="x")
    assert "s3same" not in str(caught.value)


def test_history_goes_back_for_as_long_as_a_threshold_lasts_and_twenty_minutes_at_least(web):
    answer(web, vector(3))
    points = [[1000.0 + 15 * number, str(number)] for number in range(60)]
    answer(
        web,
        {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": points}]}},
        "/api/v1/query_range",
    )
    thresholds = [{"above": 9.0, "for_seconds": None}, {"above": 2.0, "for_seconds": 3600.0}]
    seen = look("prometheus", thresholds=thresholds, server=web.url, promql="x")
    assert seen["evidence"]["history"][-1] == [1885, 59.0]
    asked = parse_qs(urlsplit(web.requests[1]).query)
    assert asked["query"] == ["x"]
    assert float(asked["end"][0]) - float(asked["start"][0]) == pytest.approx(7200)
    assert float(asked["step"][0]) == 360
    look("prometheus", thresholds=[{"above": 9.0}], server=web.url, promql="x")
    asked = parse_qs(urlsplit(web.requests[3]).query)
    assert float(asked["end"][0]) - float(asked["start"][0]) == pytest.approx(1200)


def test_history_that_is_empty_costs_nothing(web):
    answer(web, vector(3))
    answer(web, {"status": "success", "data": {"resultType": "matrix", "result": []}}, "/api/v1/query_range")
    seen = look("prometheus", thresholds=[{"above": 2.0, "for_seconds": 300.0}], server=web.url, promql="x")
    assert (seen["value"], seen["evidence"]["history"]) == (3, [])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"url": "localhost/metrics", "metric": "m"}, "no scheme"),
        ({"url": "http://h/metrics"}, "a scrape needs metric or histogram"),
        ({"url": "http://h/metrics", "metric": "m{a=b}"}, "no metric selector"),
        ({"url": "http://h/metrics", "metric": "m", "divide_by": "1x"}, "no metric selector"),
        ({"url": "http://h/metrics", "histogram": "m", "quantile": 99.0}, "it lies between 0 and 1"),
        ({"server": "prometheus:9090", "promql": "x"}, "no scheme"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        prometheus.validate(source("prometheus", **values))


def test_description():
    url = "http://u:pw@h/metrics"
    assert prometheus.describe(source("prometheus", url=url, metric='m{a="b"}')) == "prometheus http://h/metrics m"
    assert (
        prometheus.describe(source("prometheus", url=url, histogram="m", quantile=0.99))
        == "prometheus http://h/metrics m quantile 0.99"
    )
    assert prometheus.describe(source("prometheus", server="http://u:pw@p", promql="up")) == "prometheus http://p up"

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import exposition
from ansible_collections.oncall.runbooks.plugins.module_utils.exposition import (
    Malformed,
    Page,
    aggregate,
    group,
    histogram_quantile,
    increase,
    parse,
    parse_selector,
)


def values(page, *names):
    """{name: {labels as dict items: value}}"""
    return parse(page.encode(), names).series


def labels(**pairs):
    return tuple(sorted(pairs.items()))


def selected(page, selector):
    """The `n` labels of what a selector takes, sorted."""
    found = parse_selector(selector)
    return sorted(dict(one)["n"] for one in parse(page.encode(), [found.name]).select(found))


PAGE = """\
# HELP m Something.
# TYPE m gauge
m{n="1",path="/api/v1/search",code="200"} 1
m{n="2",path="/api/v1/customers/7",code="200"} 2
m{n="3",path="/health",code="503"} 3
m{n="4",code="500"} 4
"""


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("m", "1234"),
        ("m{}", "1234"),
        ('m{code="200"}', "12"),
        ('m{code!="200"}', "34"),
        ('m{path=~"/api/v1/.*"}', "12"),
        ('m{path!~"/api/v1/.*"}', "34"),
        ('m{path=~"/api/v1/.*",path!~"/api/v1/customers.*"}', "1"),
        # Anchored at both ends, as in PromQL.
        ('m{path=~"search"}', ""),
        ('m{path=~"/api"}', ""),
        ('m{path!~"health"}', "1234"),
        ('m{code=~"2..|5.."}', "1234"),
        ('m{code=~"20|200"}', "12"),
        # A label that is not there is an empty one.
        ('m{path=""}', "4"),
        ('m{path!=""}', "123"),
        ('m{path=~".*"}', "1234"),
        ('m{path=~".+"}', "123"),
        (' m { code = "503" , n != "1" , } ', "3"),
    ],
)
def test_selector_takes_what_promql_would(selector, wanted):
    assert "".join(selected(PAGE, selector)) == wanted


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("", "starts with a metric name"),
        ('{a="b"}', "starts with a metric name"),
        ("1up", "starts with a metric name"),
        ("m[5m]", 'write name{label="value"}'),
        ("m{a=b}", "'a=b' is not label=\"value\""),
        ('m{a="b"', "no metric selector"),
        ('m{a=="b"}', "no metric selector"),
        ('m{a="b" c="d"}', "no metric selector"),
        ('m{a=~"("}', "'(' is no regular expression"),
        ("rate(m)", "no metric selector"),
    ],
)
def test_selector_that_is_none_is_a_sentence(selector, says):
    with pytest.raises(ValueError, match=r"no metric selector|no regular expression") as caught:
        parse_selector(selector)
    assert says in str(caught.value)


def test_values_in_quotes_may_hold_anything():
    page = r'm{a="}{,=\"\\\n",b="x y",c="} 5"} 7' + "\n"
    assert values(page, "m") == {"m": {labels(a='}{,="\\\n', b="x y", c="} 5"): 7.0}}
    selector = parse_selector(r'm{a="}{,=\"\\\n"}')
    assert parse(page.encode(), ["m"]).select(selector)


def test_backslash_before_another_character_stays():
    assert values('m{a="C:\\dir"} 1\n', "m") == {"m": {labels(a="C:\\dir"): 1.0}}


def test_names_that_begin_alike_are_told_apart():
    page = "m 1\nm_total 2\nm_total_more 3\nm:rule 4\nxm 5\nm2 6\n"
    assert values(page, "m") == {"m": {(): 1.0}}
    assert values(page, "m_total") == {"m_total": {(): 2.0}}
    assert values(page, "m_total_more", "m:rule") == {"m_total_more": {(): 3.0}, "m:rule": {(): 4.0}}


@pytest.mark.parametrize(
    "line",
    [
        "m 1",
        "m 1 1700000000000",
        "m{} 1",
        'm{a="b",} 1',
        'm { a = "b" , c = "d" } 1',
        "\tm 1",
        "  m 1  ",
        "m\t1",
        "m 1\r",
        "m 1e0",
        "m +1",
        "m 1 -5",
    ],
)
def test_spellings_of_a_sample(line):
    found = values(f"# c\n{line}\nend 2\n", "m")["m"]
    assert list(found.values()) == [1.0]
    assert values(line, "m")["m"] == found, "also on the last line, without its end"


@pytest.mark.parametrize(
    ("text", "value"), [("+Inf", math.inf), ("Inf", math.inf), ("-Inf", -math.inf), ("inf", math.inf), ("1e3", 1000.0)]
)
def test_special_values(text, value):
    assert values(f"m {text}\n", "m")["m"][()] == value


def test_nan_is_a_value_that_no_aggregate_counts():
    series = values('m{a="1"} NaN\nm{a="2"} 3\n', "m")["m"]
    assert math.isnan(series[labels(a="1")])
    assert aggregate(series, "sum") == aggregate(series, "max") == aggregate(series, "avg") == 3.0
    assert aggregate({(): math.nan}, "sum") is None


@pytest.mark.parametrize(
    "line",
    [
        "m",
        "m abc",
        "m 1 2 3",
        "m{a=b} 1",
        'm{a="b} 1',
        'm{a="b" c="d"} 1',
        'm{a="b"} ',
        "m.x 1",
        "m 1_000",
        "m 0x10",
        'm{a="b" 1',
        "m{{}} 1",
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_malformed_line_is_named_by_its_number(line, before):
    page = "# comment\n" * before + line + "\nm 2\n"
    with pytest.raises(Malformed) as caught:
        parse(page.encode(), ["m"])
    assert f"line {before + 1} is not" in str(caught.value)
    assert line.strip()[:40] in str(caught.value)


def test_malformed_line_of_another_metric_is_no_matter():
    assert values("other{ broken\nm 1\n", "m") == {"m": {(): 1.0}}


@pytest.mark.parametrize("page", ["<!DOCTYPE html><html>", "\n\n  <html>m 1</html>", '{"status": "ok"}', "[1]"])
def test_html_and_json_are_said(page):
    with pytest.raises(Malformed, match="not the Prometheus text format"):
        parse(page.encode(), ["m"])


def test_declared_without_a_series():
    page = parse(b"# HELP m_total Something.\n#  TYPE\tm gauge\n# about x\n", ["m", "m_total", "x"])
    assert page.series == {}
    assert page.declared == {"m", "m_total"}


def test_invalid_utf8_takes_nothing_down():
    found = parse(b'm{a="\xff"} 1\nm{a="b"} 2\n', ["m"]).series["m"]
    assert found[labels(a="b")] == 2.0
    assert len(found) == 2


@pytest.mark.parametrize("page", [b"", b"\n", b"# only a comment\n"])
def test_empty_page_has_nothing(page):
    assert parse(page, ["m"]) == Page({}, set())


def test_big_page_gives_exactly_what_is_in_it():
    lines = [f'other_{number}{{a="{number}"}} {number}' for number in range(60_000)]
    lines[777] = 'm{a="first"} 1'
    lines[55_555] = 'm{a="second"} 2'
    lines.append('m{a="last"} 3')
    found = values("\n".join(lines), "m")["m"]
    assert found == {labels(a="first"): 1.0, labels(a="second"): 2.0, labels(a="last"): 3.0}
    lines[55_556] = "m broken"
    with pytest.raises(Malformed, match="line 55557 "):
        values("\n".join(lines), "m")


@pytest.mark.parametrize(
    ("before", "after", "gained"), [(5, 8, 3), (5, 5, 0), (5, 2, 2), (None, 4, 4), (0.25, 1.0, 0.75)]
)
def test_increase_counts_a_reset_from_zero(before, after, gained):
    first = {} if before is None else {labels(a="x"): float(before)}
    assert increase(first, {labels(a="x"): float(after)}) == {labels(a="x"): gained}


def test_increase_has_only_what_the_second_scrape_has():
    assert increase({labels(a="gone"): 5.0}, {}) == {}


def test_group_and_aggregate():
    series = {labels(a="x", b="1"): 1.0, labels(a="x", b="2"): 4.0, labels(b="3"): 7.0}
    assert {name: aggregate(part, "sum") for name, part in group(series, "a").items()} == {"x": 5.0, "": 7.0}
    assert group(series, None) == {"": series}
    results = {how: aggregate(series, how) for how in ("sum", "max", "min", "avg", "count")}
    assert results == {"sum": 12.0, "max": 7.0, "min": 1.0, "avg": 4.0, "count": 3.0}
    assert aggregate({}, "max") is None
    assert aggregate({}, "count") == 0.0


def buckets(*pairs, **more):
    return {labels(le=str(bound), **more): float(count) for bound, count in pairs}


@pytest.mark.parametrize(
    ("pairs", "quantile", "wanted"),
    [
        # Half of 100 lies in (0.1, 0.5]: 0.1 + 0.4 * (50 - 20) / (80 - 20)
        ([(0.1, 20), (0.5, 80), ("+Inf", 100)], 0.5, 0.3),
        # The first bucket starts at zero.
        ([(0.1, 20), (0.5, 80), ("+Inf", 100)], 0.1, 0.05),
        # Exactly at a bound.
        ([(0.1, 20), (0.5, 80), ("+Inf", 100)], 0.2, 0.1),
        ([(0.1, 20), (0.5, 80), ("+Inf", 100)], 0.8, 0.5),
        # Empty buckets in between are passed over.
        ([(1, 10), (2, 10), (3, 10), (4, 20), ("+Inf", 20)], 0.75, 3.5),
        # A first bound that is not positive is its own value.
        ([(-1, 5), (1, 10), ("+Inf", 10)], 0.25, -1.0),
    ],
)
def test_quantile_by_hand(pairs, quantile, wanted):
    found = histogram_quantile(buckets(*pairs), quantile)
    assert found.value == pytest.approx(wanted)
    assert not found.beyond
    assert found.count == pairs[-1][1]


def test_quantile_in_the_last_bucket_is_its_lower_bound_and_says_so():
    found = histogram_quantile(buckets((0.1, 20), (0.5, 80), ("+Inf", 100)), 0.99)
    assert (found.value, found.count, found.beyond) == (0.5, 100.0, True)


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("+Inf", 5)],
        [(0.1, 0), ("+Inf", 0)],
        [(0.1, 5), (0.5, 6)],  # no +Inf: not the whole histogram
        [("-Inf", 1)],
    ],
)
def test_quantile_of_nothing_is_none(pairs):
    assert histogram_quantile(buckets(*pairs), 0.5).value is None


def test_quantile_sums_the_series_of_a_histogram():
    both = {**buckets((1, 0), (2, 10), ("+Inf", 10), a="x"), **buckets((1, 30), (2, 30), ("+Inf", 30), a="y")}
    assert histogram_quantile(both, 0.5).value == pytest.approx(20 / 30)
    assert histogram_quantile(both, 0.5).count == 40


def test_bucket_that_lags_behind_a_smaller_one_counts_as_much():
    found = histogram_quantile(buckets((1, 10), (2, 8), (3, 20), ("+Inf", 20)), 0.75)
    assert found.value == pytest.approx(2.5)


def test_bound_that_is_no_number_is_malformed():
    with pytest.raises(Malformed, match="le='lots'"):
        histogram_quantile(buckets(("lots", 1), ("+Inf", 1)), 0.5)


def reference(bounds, counts, quantile):
    """The quantile as the documentation of histogram_quantile() describes it, one bucket after the other."""
    rank = quantile * counts[-1]
    low, below = 0.0, 0.0
    for bound, count in zip(bounds, counts):
        if count >= rank:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    raise AssertionError("the last bucket holds everything")


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=12, unique=True).map(sorted),
    st.data(),
    st.floats(0.01, 0.99),
)
def test_quantile_equals_the_reference(bounds, data, quantile):
    gains = data.draw(st.lists(st.integers(0, 50), min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    counts = [sum(gains[: place + 1]) for place in range(len(gains))]
    found = histogram_quantile(buckets(*zip([*bounds, "+Inf"], counts)), quantile)
    if not counts[-1]:
        assert found.value is None
        return
    assert found.value == pytest.approx(reference([*map(float, bounds), math.inf], counts, quantile))
    assert found.beyond == (quantile * counts[-1] > counts[-2])


@given(st.lists(st.floats(0, 9.9), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_quantile_is_within_one_bucket_of_the_truth(observed, quantile):
    bounds = [float(number) for number in range(1, 11)]
    counted = [(bound, sum(1 for value in observed if value <= bound)) for bound in bounds]
    found = histogram_quantile(buckets(*counted, ("+Inf", len(observed))), quantile)
    truth = sorted(observed)[max(0, math.ceil(quantile * len(observed)) - 1)]
    assert abs(found.value - truth) <= 1.0


def test_escapes_both_ways():
    assert exposition.parse_selector(r'm{a="x\"y"}').matches({"a": 'x"y'})
    assert not exposition.parse_selector(r'm{a="x\"y"}').matches({"a": "xy"})

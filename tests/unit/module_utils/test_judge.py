# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import judge


@pytest.mark.parametrize(
    ("value", "threshold", "hit"),
    [
        (2, {"above": 1.0}, True),
        (1, {"above": 1.0}, False),
        ("2.5", {"above": 1.0}, True),
        (0, {"above": 0.0}, False),
        (0.5, {"below": 1.0}, True),
        (1, {"below": 1.0}, False),
        (-1, {"below": 0.0}, True),
        (200, {"equals": 200}, True),
        (200, {"equals": "200"}, True),
        (200.0, {"equals": 200}, True),
        ("stuck open", {"equals": "Stuck Open"}, True),
        ("stuck", {"equals": "stuck open"}, False),
        (False, {"equals": False}, True),
        (False, {"equals": "false"}, True),
        (True, {"equals": False}, False),
        (False, {"equals": 0}, False),
        (0, {"equals": False}, False),
        ("degraded", {"matches": "^(?!healthy$)"}, True),
        ("healthy", {"matches": "^(?!healthy$)"}, False),
        ("an error here", {"matches": "err"}, True),
        (503, {"matches": "^5"}, True),
        # Keys that were not given are None after validation.
        (5, {"above": None, "below": None, "equals": 5, "matches": None}, True),
    ],
)
def test_operators(value, threshold, hit):
    assert judge.crossed(value, [threshold]) == (threshold if hit else None)


def test_first_match_wins():
    ladder = [{"above": 100.0, "label": "P2"}, {"above": 50.0, "label": "P3"}, {"below": 1.0, "label": "P4"}]
    labels = [(judge.crossed(value, ladder) or {}).get("label") for value in (101, 100, 51, 50, 1, 0)]
    assert labels == ["P2", "P3", "P3", None, None, "P4"]
    assert judge.crossed(1, []) is None


@pytest.mark.parametrize("value", ["abc", True, False, [1], {"a": 1}, None])
@pytest.mark.parametrize("operator", ["above", "below"])
def test_what_is_no_number_cannot_be_compared(value, operator):
    with pytest.raises(judge.Unjudgeable, match=rf"is no number and cannot be {operator} 0\.25"):
        judge.crossed(value, [{operator: 0.25}])


@pytest.mark.parametrize("value", [math.nan, "nan"])
def test_nan_is_not_ok(value):
    with pytest.raises(judge.Unjudgeable):
        judge.crossed(value, [{"above": 1.0}])


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1, 1.0),
        ("1", 1.0),
        (" 2.5 ", 2.5),
        ("1e3", 1000.0),
        (True, None),
        (False, None),
        (None, None),
        ("x", None),
        ("", None),
        ([1], None),
    ],
)
def test_number(value, wanted):
    assert judge.number(value) == wanted


@pytest.mark.parametrize(
    ("look", "least", "wanted"),
    [
        ({"outcome": "value", "value": 1}, 20, True),
        ({"outcome": "value", "value": 0, "samples": None}, 20, True),
        ({"outcome": "value", "value": False}, 0, True),
        ({"outcome": "value", "value": 1, "samples": 20}, 20, True),
        ({"outcome": "value", "value": 1, "samples": 19}, 20, False),
        ({"outcome": "value", "value": None, "samples": 50}, 20, False),
        ({"outcome": "json", "value": {}}, 0, False),
        ({"outcome": "absent"}, 0, False),
        ({"outcome": "no_answer"}, 0, False),
    ],
)
def test_enough(look, least, wanted):
    assert judge.enough(look, least) is wanted


@pytest.mark.parametrize(("quantile", "least"), [(0.5, 2), (0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000)])
def test_least_for(quantile, least):
    assert judge.least_for(quantile) == least


def test_is_ok_is_of_the_first_look_that_gave_enough():
    check = {"thresholds": [{"above": 10.0}], "min_samples": 5}
    thin, bad, good = (
        {"outcome": "value", "value": value, "samples": samples} for value, samples in ((99, 4), (99, 5), (1, 5))
    )
    silent = {"outcome": "no_answer"}
    assert judge.is_ok(check, [silent, thin, good])
    assert judge.is_ok(check, [good, bad])
    assert not judge.is_ok(check, [bad, good])
    assert not judge.is_ok(check, [silent])
    assert not judge.is_ok(check, [])
    assert not judge.is_ok(check, [{"outcome": "value", "value": "text"}])


@pytest.mark.parametrize(
    ("thresholds", "says"),
    [
        ([{"label": "P1"}], "threshold 1 needs exactly one of above, below, equals and matches, and has none"),
        ([{"above": 1.0, "below": 2.0}], "and has above, below"),
        ([{"matches": "("}], "threshold 1: '(' is no regular expression"),
        ([{"above": 1.0}, {"above": 1.0}], "threshold 2 (above: 1.0) can never match"),
        ([{"above": 1.0}, {"above": 2.0}], "put the stricter one first"),
        ([{"below": 2.0}, {"below": 1.0}], "threshold 2 (below: 1.0) can never match"),
        ([{"above": 1.0}, {"matches": "x"}, {"above": 3.0}], "threshold 3"),
        ([{"equals": "down"}, {"equals": "DOWN"}], "threshold 2 (equals: DOWN) can never match"),
        ([{"matches": "x"}, {"matches": "x"}], "threshold 2 (matches: x)"),
        ([{"above": 1.0}, {"equals": 5}], "threshold 2 (equals: 5) can never match"),
        ([{"below": 1.0}, {"equals": 0}], "threshold 2 (equals: 0) can never match"),
        ([{"above": -1.0}, {"equals": 0}], "threshold 2 (equals: 0) can never match"),
        ([{"above": 10.0}, {"below": 20.0}, {"above": 5.0}], "threshold 3"),
        ([{"above": math.inf}], "threshold 1"),
        ([{"below": -math.inf}], "threshold 1"),
        ([{"above": math.nan}], "threshold 1"),
    ],
)
def test_threshold_that_can_never_match_is_said(thresholds, says):
    assert says in (judge.useless_threshold(thresholds) or "nothing")


@pytest.mark.parametrize(
    "thresholds",
    [
        [{"above": 2.0}, {"above": 1.0}],
        [{"below": 1.0}, {"below": 2.0}],
        [{"above": 299.0}, {"below": 200.0}],
        [{"below": 0.0}, {"above": 0.0}],
        [{"equals": 1}, {"above": 0.0}],
        [{"above": 1.0}, {"equals": 1}],
        [{"above": 1.0}, {"equals": "down"}],
        [{"equals": True}, {"equals": False}],
        [{"matches": "^unhealthy"}, {"matches": "^(?!healthy)"}],
    ],
)
def test_threshold_that_can_match_is_not_refused(thresholds):
    assert judge.useless_threshold(thresholds) is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["above", "below"]), st.integers(-5, 5)).map(lambda pair: {pair[0]: float(pair[1])}),
        min_size=1,
        max_size=4,
    )
)
def test_every_threshold_that_is_not_refused_has_a_value_that_reaches_it(thresholds):
    reached = {id(judge.crossed(half / 2, thresholds)) for half in range(-14, 15)}
    dead = [place for place, threshold in enumerate(thresholds, 1) if id(threshold) not in reached]
    said = judge.useless_threshold(thresholds)
    assert (said is None) == (not dead)
    if dead:
        assert f"threshold {dead[0]} " in said


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [
        (None, "s", "-"),
        (True, None, "yes"),
        (False, "s", "no"),
        ("stuck open", "s", "stuck open"),
        (0.0421, "s", "42.1 ms"),
        (0.0009, "s", "900 µs"),
        (1.5, "s", "1.5 s"),
        (0, "s", "0 s"),
        (119, "s", "119 s"),
        (120, "s", "2 min"),
        (5400, "s", "1.5 h"),
        (86399, "s", "24 h"),
        (86400, "s", "1 d"),
        (86400 * 3, "s", "3 d"),
        (512, "B", "512 B"),
        (1536, "B", "1.5 KiB"),
        (3 * 2**30, "B", "3 GiB"),
        (99.5, "%", "99.5 %"),
        (0.015, "ratio", "1.5 %"),
        (1, "ratio", "100 %"),
        (12, "/s", "12 /s"),
        (12, None, "12"),
        (1234567, None, "1234567"),
        (0.123456, None, "0.123"),
        (12.3456, None, "12.3"),
        (99.96, None, "100"),
        (1e21, None, "1000000000000000000000"),
        (-0.25, None, "-0.25"),
        (math.inf, None, "inf"),
        (math.nan, None, "nan"),
    ],
)
def test_show(value, unit, wanted):
    assert judge.show(value, unit) == wanted


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([None, "s", "B", "%", "ratio", "/s"]))
def test_show_is_never_scientific_and_never_empty(value, unit):
    shown = judge.show(value, unit).split()[0]
    assert shown
    assert "e" not in shown
    assert float(shown) is not None


@given(st.floats(1e-5, 1e6))
def test_show_is_right_to_one_percent(value):
    assert float(judge.show(value)) == pytest.approx(value, rel=0.06 if value < 1e-3 else 0.01)


@pytest.mark.parametrize(
    ("thresholds", "unit", "wanted"),
    [
        ([{"above": 0.1}, {"above": 0.05}], "s", "at most 50 ms"),
        ([{"below": 200.0}, {"below": 100.0}], None, "at least 200"),
        ([{"above": 299.0}, {"below": 200.0}], None, "at most 299 and at least 200"),
        ([{"equals": "down"}], None, "not down"),
        ([{"matches": "^5"}], None, "not matching ^5"),
        ([{"above": 0.0}], None, "at most 0"),
        ([{"above": 0.0}], "s", "at most 0 s"),
        ([{"below": 0.0}], "s", "at least 0 s"),
        ([], None, ""),
    ],
)
def test_expected(thresholds, unit, wanted):
    assert judge.expected(thresholds, unit) == wanted

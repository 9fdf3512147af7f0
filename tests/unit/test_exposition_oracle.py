# SPDX-License-Identifier: GPL-3.0-or-later
"""What prometheus_client writes, read by its parser and by ours."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ansible_collections.oncall.runbooks.plugins.module_utils.exposition import (
    histogram_quantile,
    parse,
    parse_selector,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\"\n{},= '), max_size=12)
NUMBER = st.floats(allow_nan=True, allow_infinity=True)
GAIN = st.floats(0, 1e9)


def oracle(page: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample of the page, as prometheus_client reads it."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(
        value == theirs[labels] or (math.isnan(value) and math.isnan(theirs[labels])) for labels, value in ours.items()
    )


def assert_agree(page: bytes) -> None:
    theirs = oracle(page)
    ours = parse(page, theirs).series
    assert ours.keys() == theirs.keys()
    for name, series in theirs.items():
        assert same(ours[name], series), name


@given(st.dictionaries(st.tuples(TEXT, TEXT), st.tuples(NUMBER, GAIN), max_size=8), TEXT)
def test_gauges_and_counters(samples, documentation):
    registry = CollectorRegistry()
    gauge = Gauge("temperature", documentation, ["place", "unit"], registry=registry)
    counter = Counter("temperature_reads", documentation, ["place", "unit"], registry=registry)
    for labels, (value, gain) in samples.items():
        gauge.labels(*labels).set(value)
        counter.labels(*labels).inc(gain)
    assert_agree(generate_latest(registry))


@given(st.lists(st.tuples(TEXT, st.floats(0, 30)), max_size=40))
def test_histograms(observed):
    registry = CollectorRegistry()
    histogram = Histogram("took", "How long.", ["path"], registry=registry, buckets=(0.01, 0.1, 1, 10))
    for path, value in observed:
        histogram.labels(path).observe(value)
    page = generate_latest(registry)
    assert_agree(page)
    found = parse(page, ["took_bucket", "took"])
    quantile = histogram_quantile(found.select(parse_selector("took"), "_bucket"), 0.5)
    assert "took" in found.declared
    assert quantile.count == len(observed)
    assert (quantile.value is None) == (not observed)


@given(st.dictionaries(TEXT, st.floats(0, 10), max_size=6), TEXT)
def test_selecting_one_label_value(samples, wanted):
    registry = CollectorRegistry()
    gauge = Gauge("m", "M.", ["a"], registry=registry)
    for label, value in samples.items():
        gauge.labels(label).set(value)
    quoted = wanted.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    page = parse(generate_latest(registry), ["m"])
    have = {dict(labels)["a"]: value for labels, value in page.select(parse_selector(f'm{{a="{quoted}"}}')).items()}
    other = {dict(labels)["a"]: value for labels, value in page.select(parse_selector(f'm{{a!="{quoted}"}}')).items()}
    assert have == {label: value for label, value in samples.items() if label == wanted}
    assert have | other == samples


@pytest.mark.parametrize("count", [500])
def test_a_page_of_many_metrics(count):
    registry = CollectorRegistry()
    for number in range(count):
        Gauge(f"m_{number}", "M.", ["a"], registry=registry).labels(f"v{number}").set(number)
    assert_agree(generate_latest(registry))

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import itertools
import os
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import loglines

FAR = float("inf")
START = 1795402800.0  # 2026-11-23T03:00:00Z


def at(seconds):
    """A time as structlog writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START + seconds))


def event(seconds, text="e"):
    return f'{{"event": "{text}", "timestamp": "{at(seconds)}"}}'


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("2026-11-23T03:00:00Z", 0),
        ("2026-11-23T03:00:00.25Z", 0.25),
        ("2026-11-23T03:00:00.123456789Z", 0.123456789),
        ("2026-11-23 03:00:00,500", 0.5),
        ("2026-11-23T03:00:00", 0),
        ("2026-11-23T05:00:00+02:00", 0),
        ("2026-11-23T05:30:00+0230", 0),
        ("2026-11-22T22:00:00-05:00", 0),
        (str(START), 0),
        (f"{START * 1000:.0f}", 0),
        (f" {START:.0f} ", 0),
    ],
)
def test_seconds(text, offset):
    assert loglines.seconds(text) == pytest.approx(START + offset, abs=1e-5)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-45T99:99:99Z", "03:00:00", "2026-11-23"])
def test_text_that_is_no_time(text):
    assert loglines.seconds(text) is None


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (event(0), True),
        (f"WARNING:src.main:{event(0)}", True),
        (f'{{"ts":{START}}}', True),
        (f'{{"@timestamp":"{at(0)}"}}', True),
        ("2026-11-23 03:00:00,000 ERROR something", True),
        ("[2026-11-23T03:00:00Z] something", True),
        ('INFO:     127.0.0.1:5 - "GET / HTTP/1.1" 200 OK', False),
        ("Traceback (most recent call last):", False),
        ("it happened at 2026-11-23T03:00:00Z", False),
    ],
)
def test_time_of_a_line(line, known):
    assert loglines.time_of(f"plain\n{line}\n") == (START if known else None)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('{"event": "x", "n": 1}', {"event": "x", "n": 1}),
        ('WARNING:src.main:{"event": "x"}', {"event": "x"}),
        ('ERROR:src.a_b.c: {"event": "x"}  \r', {"event": "x"}),
        ('{"event": "x"', {}),
        ('{"nested": {"a": [1, {"b": "}"}]}}', {"nested": {"a": [1, {"b": "}"}]}}),
        ("[1, 2]", {}),
        ("plain {not json}", {}),
        ("", {}),
        (
            'INFO:     10.0.0.7:53412 - "GET /api/v1/search?q=secret HTTP/1.1" 200 OK',
            {
                "level": "INFO",
                "client_host": "10.0.0.7",
                "method": "GET",
                "path": "/api/v1/search",
                "status_code": 200,
            },
        ),
        (
            'INFO:     ::1:5 - "POST / HTTP/1.1" 503 Service Unavailable',
            {"level": "INFO", "client_host": "::1", "method": "POST", "path": "/", "status_code": 503},
        ),
        ('INFO:     127.0.0.1:5 - "GET / HTTP/1.1" 2000 OK', {}),
    ],
)
def test_fields(line, fields):
    assert loglines.fields_of(line) == fields


# Parts of patterns; those that look across a line's ends are where reading the whole text at once could go wrong.
PLAIN = ["a", "b", "c", " ", "x?", "a*", "b+", ".", "[^a]", "(?:a|b)"]
ACROSS = ["^", "$", r"\A", r"\Z", r"\s", r"\S", r"\W", r"\b", r"\B"]
AROUND = ["(?!a)", r"(?!\s)", "(?=b)", "(?<!b)", r"(?<=\s)"]
PARTS = st.sampled_from([*PLAIN, *ACROSS, *AROUND])


def line_by_line(text, pattern):
    lines = text.split("\n")
    return [line for line in (lines[:-1] if lines[-1] == "" else lines) if pattern.search(line)]


@settings(max_examples=1500)
@given(
    st.text("abc \n", max_size=24),
    st.lists(PARTS, max_size=4).map("".join),
    st.sampled_from([0, re.IGNORECASE, re.DOTALL, re.MULTILINE]),
)
def test_matching_equals_line_by_line(text, pattern, flags):
    compiled = re.compile(pattern, flags)
    assert list(loglines.matching(text, compiled)) == line_by_line(text, compiled)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("^ERROR", 2), ("done$", 3), (r"done(?!\s)", 3), ("^$", 1), ("", 6), ("ERROR.*done", 1), (r"[^x]*done", 3)],
)
def test_anchors_are_those_of_a_line(pattern, count):
    text = "INFO done\nERROR a\n\nERROR done\nplain\nall done\n"
    assert len(list(loglines.matching(text, re.compile(pattern)))) == count


def test_matching_is_not_slow_on_a_big_text():
    text = "".join(f"{number} INFO request completed\n" for number in range(200_000)) + "one needle\n"
    began = time.monotonic()
    assert list(loglines.matching(text, re.compile("needle"))) == ["one needle"]
    assert sum(1 for _line in loglines.matching(text, re.compile("completed"))) == 200_000
    assert time.monotonic() - began < 10


LINES = st.lists(
    st.one_of(
        st.integers(0, 100),  # a line with a time, later than the one before by this
        st.text("xyz {}\u00e9", max_size=30),  # one without
    ),
    max_size=60,
)


def build(entries):
    """Lines in the order of their times, and for each the time that it belongs to."""
    now, lines, times = 0, [], []
    for entry in entries:
        if isinstance(entry, int):
            now += entry
            lines.append(event(now))
            times.append(now)
        else:
            lines.append(entry.replace("\n", " "))
            times.append(times[-1] if times else None)
    return lines, times


@settings(max_examples=400)
@given(
    LINES,
    st.integers(-10, 3000),
    st.sampled_from([7, 16, 64, 200, 1 << 18]),
    st.sampled_from(["", "torn"]),
    st.booleans(),
)
def test_window_equals_a_naive_filter(tmp_path, entries, start, block, tail, written):
    lines, times = build(entries)
    path = tmp_path / "log"
    path.write_bytes(("".join(f"{line}\n" for line in lines) + tail).encode())
    os.utime(path, (START, START + start + 1 if written else START + start - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loglines, "_BLOCK", block)
        window = loglines.read_window(str(path), START + start, 1 << 30, FAR)
    # What has no time belongs to the line before; what comes before all times belongs to the window if all of them do.
    known = [number for number in times if number is not None]
    early = not known or known[0] >= start
    wanted = [line for line, number in zip(lines, times) if (early if number is None else number >= start)]
    kept = [number for number in known if number >= start]
    untimed = list(itertools.takewhile(lambda line: not line.startswith('{"event'), reversed(lines)))
    if written and known and not kept and untimed:
        # All that may have been written since then.
        assert window.text == "".join(f"{line}\n" for line in reversed(untimed))
        assert (window.bound, window.oldest) == (loglines.UNTIMED, START + known[-1])
        return
    assert window.text == "".join(f"{line}\n" for line in wanted)
    assert (window.bound == loglines.WINDOW) == (bool(known) and known[0] < start)
    assert window.oldest == (START + kept[0] if kept else None)


def test_log_of_several_blocks_is_read_from_the_end(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"{event(number, 'x' * 1000)}\n" for number in range(2000)))
    assert path.stat().st_size > 6 * loglines._BLOCK
    window = loglines.read_window(str(path), START + 1500, 1 << 30, FAR)
    assert window.text.count("\n") == 500
    assert (window.oldest, window.bound) == (START + 1500, loglines.WINDOW)


def test_line_longer_than_a_block(tmp_path):
    path = tmp_path / "log"
    long = event(10, "x" * (2 * loglines._BLOCK))
    path.write_text(f"{event(0)}\n{long}\n{event(20)}\n")
    assert loglines.read_window(str(path), START + 5, 1 << 30, FAR).text == f"{long}\n{event(20)}\n"
    assert loglines.read_window(str(path), START + 15, 1 << 30, FAR).text == f"{event(20)}\n"


def test_no_more_than_allowed_is_read_and_said(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"{event(number, 'x' * 1000)}\n" for number in range(5000)))
    window = loglines.read_window(str(path), START, 1024 * 1024, FAR)
    assert "last 1 MiB" in window.bound
    assert 900 < window.text.count("\n") < 1100
    assert window.text.startswith('{"event"')
    assert window.text.endswith(f'"timestamp": "{at(4999)}"}}\n')
    assert window.oldest == START + 5000 - window.text.count("\n")


def test_time_that_is_up_is_said(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"{event(number)}\n" for number in range(10)))
    window = loglines.read_window(str(path), START, 1 << 30, time.monotonic() - 1)
    assert "when the time was up" in window.bound
    assert window.text == ""


@pytest.mark.parametrize("content", ["", "torn", "torn " * 100_000])
def test_log_without_a_whole_line(tmp_path, content):
    path = tmp_path / "log"
    path.write_text(content)
    window = loglines.read_window(str(path), START, 1 << 30, FAR)
    assert (window.text, window.oldest, window.bound) == ("", None, "start of the log")


def test_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe broken\n" + event(0).encode() + b"\nt\xc3")
    window = loglines.read_window(str(path), START - 1, 1 << 30, FAR)
    assert window.text.splitlines() == ["\ufffd\ufffd broken", event(0)]


@pytest.mark.parametrize(
    ("values", "wanted", "result"),
    [([5], 0.99, 5), ([1, 3], 0.5, 2), ([4, 1, 3, 2], 0.5, 2.5), (range(101), 0.99, 99), ([1, 2], 0.25, 1.25)],
)
def test_quantile_by_hand(values, wanted, result):
    assert loglines.quantile(list(values), wanted) == pytest.approx(result)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_quantile_lies_between_the_two_nearest(values, wanted):
    found = loglines.quantile(values, wanted)
    assert min(values) <= found <= max(values)
    assert found <= loglines.quantile(values, min(0.999, wanted + 0.1)) + 1e-6
    below = sum(1 for value in values if value < found - 1e-6)
    assert below <= wanted * (len(values) - 1) + 1


def test_lines_out_of_order_stay_in_the_window(tmp_path):
    """Threads write nearly in order: what follows the first line of the window is kept, whatever its time."""
    path = tmp_path / "log"
    order = [0, 50, 101, 99, 102]
    path.write_text("".join(f"{event(number)}\n" for number in order))
    window = loglines.read_window(str(path), START + 100, 1 << 30, FAR)
    assert window.text == "".join(f"{event(number)}\n" for number in itertools.islice(order, 2, None))

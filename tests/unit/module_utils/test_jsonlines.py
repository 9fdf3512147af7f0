# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import math
import os
import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import jsonlines
from ansible_collections.oncall.runbooks.plugins.module_utils.jsonlines import moment_of, number_of, text_of, value_of

NOW = 1_795_318_572.5


def read(path, start=NOW - 300, now=NOW, key="timestamp", **values):
    return jsonlines.read(str(path), key, start, now, time.monotonic() + 60, **values)


def numbers(lines):
    return [fields["n"] for _moment, fields in lines.found]


def line(number, age, pad=0, **fields):
    return json.dumps({"timestamp": NOW - age, "n": number, "pad": "x" * pad, **fields})


def write(path, *lines, end="\n"):
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in lines) + end.encode())
    return path


# --- lines against an oracle that parses everything


def oracle(data, start, now):
    """What a reader of the whole file would find: the lines since `start`, and how many are torn among them."""
    rows = data.decode("utf-8", "replace").split("\n")
    found, torn, after = [], 0, None
    for place, text in reversed(list(enumerate(rows))):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            moment = fields["timestamp"] + 0.0 if isinstance(fields["timestamp"], (int, float)) else None
            moment = None if fields["timestamp"] is True else moment
        except (ValueError, KeyError, TypeError):
            moment = None
        if moment is None:
            if place != len(rows) - 1:
                torn += after is None or after >= start
        elif moment <= now + 60:
            after = moment
            if moment >= start:
                found.append(fields["n"])
    return found[::-1], torn


NONE = (
    rb'{ } [1] null "x" {} {"timestamp":null} {"timestamp":true} {"timestamp":"soon"} {"n":1,"timestamp": 17953 Trace'
)
TORN = st.sampled_from([*NONE.split(), b"\xff\xfe", b"\0\0\0"])


@st.composite
def files(draw):
    """Lines whose times are within a minute of their order, some of them torn, foreign, or cut in two."""
    at, rows = NOW - draw(st.integers(0, 900)), []
    for number in range(draw(st.integers(0, 60))):
        at = min(at + draw(st.floats(0, 60)), NOW)
        text = line(number, NOW - (at - draw(st.floats(0, 59))), draw(st.sampled_from([0, 10, 900]))).encode()
        kind = draw(st.integers(0, 9))
        if kind == 0:
            cut = draw(st.integers(1, len(text) - 1))
            rows += [text[:cut], text[cut:]]
        elif kind == 1:
            rows += [draw(TORN), text]
        elif kind == 2:
            rows.append(b"")
            rows.append(text)
        else:
            rows.append(text)
    return b"\n".join(rows) + draw(st.sampled_from([b"\n", b"", b"\n\n"]))


@given(files(), st.sampled_from([64, 257, 1024, 65536]), st.sampled_from([30.0, 300.0, 7200.0]))
@settings(max_examples=300, deadline=None)
def test_nothing_is_missed_and_nothing_doubled(tmp_path_factory, data, block, window):
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlines, "_BLOCK", block)
        seen = read(path, NOW - window)
    found, torn = oracle(data, NOW - window, NOW)
    assert numbers(seen) == found
    assert seen.torn_since(NOW - window) == torn
    assert seen.bound in (jsonlines.WINDOW, jsonlines.START)


@given(st.lists(st.binary(max_size=40)), st.sampled_from([16, 65536]))
@settings(deadline=None)
def test_whatever_is_in_a_file(tmp_path_factory, pieces, block):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(pieces))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlines, "_BLOCK", block)
        seen = read(path)
    whole = [piece for piece in path.read_bytes().split(b"\n")[:-1] if piece.strip()]
    assert seen.found == []
    assert seen.torn_since(0) == len(whole)


# --- what is read, and what not


def test_only_the_end_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "m", *(line(n, 100_000 - n) for n in range(100_000)))
    parsed = []
    whole = jsonlines.parse
    monkeypatch.setattr(jsonlines, "parse", lambda raw: parsed.append(1) or whole(raw))
    seen = read(path)
    assert numbers(seen) == list(range(99_700, 100_000))
    assert seen.bound == jsonlines.WINDOW
    assert len(parsed) < 3000


def test_one_old_time_hides_nothing(tmp_path):
    """As an incident's second line, when it is resolved, which has the time of its detection."""
    assert numbers(read(write(tmp_path / "m", line(1, 50), line(2, 90_000), line(3, 10)))) == [1, 3]
    # Nor do some in a row, as long as they are no block.
    rows = [line(1, 50), *(line(0, 90_000) for _number in range(300)), line(3, 10)]
    assert numbers(read(write(tmp_path / "m", *rows))) == [1, 3]


def test_disorder_of_a_minute_over_many_blocks(tmp_path):
    """A line that is as late as allowed stands before blocks of lines that are older than the window."""
    rows = [line(1, 1000, 900), line(2, 299), *(line(3, 301 + 58 * n / 500, 900) for n in range(500)), line(4, 1)]
    assert numbers(read(write(tmp_path / "m", *rows))) == [2, 4]


def test_limits_are_said(tmp_path):
    path = write(tmp_path / "m", *(line(n, 1, 1000) for n in range(3000)))
    seen = read(path, max_bytes=1024 * 1024)
    assert seen.bound == "last 1 MiB, which are all that is read"
    assert 900 < len(seen.found) < 1100
    assert numbers(seen)[-1] == 2999
    late = jsonlines.read(str(path), "timestamp", NOW - 300, NOW, time.monotonic() - 1)
    assert late.bound == "last 64 KiB, when the time was up"
    assert late.found
    assert read(path).bound == jsonlines.START


def test_empty_and_missing(tmp_path):
    (tmp_path / "m").write_text("")
    seen = read(tmp_path / "m")
    assert (seen.found, seen.torn, seen.newest, seen.bound) == ([], [], None, jsonlines.START)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no regular file"):
        read(tmp_path / "pipe")


def test_last_line_without_an_end(tmp_path):
    whole = read(write(tmp_path / "m", line(1, 5), line(2, 4), end=""))
    assert (numbers(whole), whole.torn) == ([1, 2], [])
    half = read(write(tmp_path / "m", line(1, 5), line(2, 4)[:30], end=""))
    assert (numbers(half), half.torn) == ([1], [])


def test_lines_of_the_future_are_counted_apart(tmp_path):
    seen = read(write(tmp_path / "m", line(1, -3600), line(2, -59), line(3, 0)))
    assert (numbers(seen), seen.ahead, seen.newest) == ([2, 3], 1, NOW + 59)


@pytest.mark.parametrize(
    "strange",
    [
        b'{"timestamp": %d, "n": NaN}' % NOW,
        b'{"timestamp": %d, "n": -Infinity, "big": 1e999}' % NOW,
        b'{"timestamp": %d, "n": 0, "deep": %s%s}' % (NOW, b"[" * 50, b"]" * 50),
        b'{"timestamp": %d, "n": "\xff\xfe"}' % NOW,
        b'{"timestamp": %d, "n": "\\ud800"}' % NOW,
        b'{"timestamp": %d, "n": 0, "big": %s}' % (NOW, b"9" * 4000),
    ],
)
def test_strange_lines_that_are_lines(tmp_path, strange):
    seen = read(write(tmp_path / "m", line(1, 5), strange, line(2, 4)))
    assert (len(seen.found), seen.torn) == (3, [])


@pytest.mark.parametrize(
    "strange",
    [
        b'{"timestamp": %d, "deep": %s' % (NOW, b"[" * 100_000),
        b'{"timestamp": %d, "deep": %s%s}' % (NOW, b'{"a":' * 50_000, b"}" * 50_000),
        b'{"timestamp": %d, "pad": "%s"}' % (NOW, b"x" * 300_000),
        b'{"timestamp": NaN}',
        b'{"timestamp": Infinity}',
        b'{"timestamp": %s}' % (b"9" * 400),
        b'{"timestamp": %s}' % (b"9" * 250_000),
        b'{"timestamp": []}',
        b'{"timestamp": {}}',
        b'{"timestamp": ""}',
        b'{"timestamp": "2026-13-40T00:00:00"}',
        b'{"timestamp": "0001-01-01T00:00:00+23:59"}{}',
        b"INFO: " + line(0, 1).encode(),
    ],
)
def test_strange_lines_that_are_torn(tmp_path, strange):
    seen = read(write(tmp_path / "m", line(1, 5), strange, line(2, 4)))
    assert (numbers(seen), seen.torn) == ([1, 2], [(NOW - 4, 1)])


def test_lines_with_carriage_returns(tmp_path):
    assert numbers(read(write(tmp_path / "m", line(1, 5) + "\r", line(2, 4) + "\r"))) == [1, 2]


def test_a_line_longer_than_a_block(tmp_path):
    assert numbers(read(write(tmp_path / "m", line(1, 5), line(2, 4, 200_000), line(3, 3)))) == [1, 2, 3]


# --- times


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (1795318572, 1795318572.0),
        (1795318572.25, 1795318572.25),
        ("1795318572.25", 1795318572.25),
        (" 1795318572 ", 1795318572.0),
        (1795318572250, 1795318572.25),
        ("2026-11-22T03:36:12Z", 1795318572.0),
        ("2026-11-22T03:36:12.25+00:00", 1795318572.25),
        ("2026-11-22 04:36:12,250 +0100", 1795318572.25),
        ("2026-11-21T22:06:12-05:30", 1795318572.0),
        ("2026-11-22T12:36:12.250000+09", 1795318572.25),
        ("2026-11-22T03:36Z", 1795318560.0),
        (True, None),
        (None, None),
        (10**400, None),
        ("2026-11-22", None),
        ("2026-11-22T03:36:12 Europe/Berlin", None),
        ("٢٠٢٦-11-22T03:36:12Z", None),
        ("yesterday", None),
    ],
)
def test_moments(text, wanted):
    assert moment_of(text, NOW) == wanted


@pytest.fixture()
def zone(monkeypatch):
    def zone(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()
        jsonlines._minute.cache_clear()

    yield zone
    monkeypatch.undo()
    time.tzset()
    jsonlines._minute.cache_clear()


@pytest.mark.parametrize("name", ["UTC", "Asia/Tokyo", "America/New_York", "Australia/Lord_Howe"])
def test_times_without_a_zone_are_local(zone, name):
    zone(name)
    for step in range(0, 400 * 86400, 40_007):
        moment = 1795318572.25 - step
        text = datetime.fromtimestamp(moment).isoformat()  # noqa: DTZ006 - without a zone is what it is about
        assert moment_of(text, moment) == moment, text


def test_the_hour_that_is_there_twice(zone, tmp_path):
    """On 25 October 2026 at 3:00 the clocks of Berlin go back to 2:00."""
    zone("Europe/Berlin")
    back = datetime(2026, 10, 25, 1, tzinfo=timezone.utc)
    stamps = [back + timedelta(minutes=minute) for minute in range(-60, 31, 5)]
    rows = [
        json.dumps({"timestamp": stamp.astimezone().replace(tzinfo=None).isoformat(), "n": stamp.timestamp()})
        for stamp in stamps
    ]
    assert rows[0].replace('"n"', "")[:40] == rows[12].replace('"n"', "")[:40]
    now = stamps[-1].timestamp()
    seen = read(write(tmp_path / "m", *rows), now - 36_000, now)
    assert [moment for moment, _fields in seen.found] == [stamp.timestamp() for stamp in stamps] == numbers(seen)


# --- values


def test_value_of():
    fields = {"a": {"b": {"c": 1}, "n": None}, "a.b": 2, "s": "x"}
    assert value_of(fields, "a.b") == 2
    assert value_of(fields, "a.b.c") == 1
    for key in ("a.n", "a.n.x", "s.x", "z", "z.z", "a.b.c.d"):
        assert value_of(fields, key) is None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, "true"), (False, "false"), (None, ""), (200, "200"), (1.5, "1.5"), ("ü", "ü"), (["ü", 1], '["ü", 1]')],
)
def test_text_of(value, wanted):
    assert text_of(value) == wanted


def test_text_of_what_is_too_deep():
    deep = []
    for _number in range(100_000):
        deep = [deep]
    assert text_of(deep) == "(too deep or too large to be shown)"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(1, 1.0), ("2.5", 2.5), (True, None), (None, None), ([], None), (math.nan, None), ("inf", None), (10**400, None)],
)
def test_number_of(value, wanted):
    assert number_of(value) == wanted

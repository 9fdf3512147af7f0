# SPDX-License-Identifier: GPL-3.0-or-later
"""The dead letter queue as a stream: what is an entry, what is torn, how it is counted, and how it grows."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letters
from ansible_collections.oncall.runbooks.tests.unit.module_utils.dead_letter_helpers import (
    NULL,
    REASON,
    entry,
    line,
    write,
)

REDACTED = "reflection_redaction_failed"


def counted(content: bytes, thorough: bool = True) -> dead_letters.Tally:
    tally = dead_letters.Tally(thorough)
    for block, kind in dead_letters.blocks(io.BytesIO(content)):
        tally.feed(block, kind)
    return tally


def parsed(content: bytes) -> dead_letters.Tally:
    """The same without the quick way."""
    tally = dead_letters.Tally()
    for item in dead_letters.items(io.BytesIO(content)):
        tally.add(item)
    return tally


def told(tally: dead_letters.Tally) -> tuple[Any, ...]:
    return tally.entries, tally.torn, tally.foreign, tally.by_reason, tally.by_customer, tally.oldest, tally.newest


def test_counts(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(1), entry(2, customer="other"), {**entry(3), **NULL}])
    tally = dead_letters.tally([str(path)])
    assert (tally.entries, tally.torn, tally.foreign, tally.size) == (3, 0, 0, path.stat().st_size)
    assert tally.by_reason == {REASON: 2, REDACTED: 1}
    assert tally.by_customer == {"acme": 2, "other": 1}
    assert (tally.oldest, tally.newest) == ("2026-11-27T03:00:01Z", "2026-11-27T03:00:03Z")


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_reasons_are_those_that_jq_counts(tmp_path: Path) -> None:
    path = write(tmp_path, [{**entry(number), **(NULL if number % 3 else {})} for number in range(1000)])
    jq = subprocess.run(["jq", "-r", ".failure_reason", path], check=True, capture_output=True, text=True).stdout
    reasons = dead_letters.tally([str(path)]).by_reason
    assert reasons == {reason: jq.splitlines().count(reason) for reason in set(jq.splitlines())}


def test_no_file_is_an_empty_queue(tmp_path: Path) -> None:
    path = str(tmp_path / "failed_reflections.log")
    assert dead_letters.files_of(path) == []
    assert told(dead_letters.tally(dead_letters.files_of(path))) == (0, 0, 0, {}, {}, None, None)


def test_files_that_vritti_has_renamed(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(3)])
    older = write(tmp_path, [entry(1)], "failed_reflections.20261126_030000.log")
    newer = write(tmp_path, [entry(2)], "failed_reflections.20261127_030000.log")
    # Archives of other people are none of the queue.
    write(tmp_path, [entry(9)], "failed_reflections.20261127.log")
    write(tmp_path, [entry(9)], "failed_reflections.20261127T030000Z.log")
    assert dead_letters.files_of(str(path)) == [str(older), str(newer), str(path)]
    assert dead_letters.files_of(str(path), with_rotated=False) == [str(path)]
    path.unlink()
    assert dead_letters.files_of(str(path)) == [str(older), str(newer)]


@pytest.mark.parametrize("end", range(1, len(line(entry(1))) - 1))
def test_a_line_that_was_cut_off_anywhere_is_torn(end: int) -> None:
    whole = line(entry(2))
    cut = line(entry(1))[:end]
    for content in (cut, whole + cut, whole + cut + b"\n" + whole, whole + cut + whole, cut + b"\0\0\0" + whole):
        expected = (content.count(whole), 1, 0)
        assert (counted(content).entries, counted(content).torn, counted(content).foreign) == expected
        assert told(parsed(content)) == told(counted(content))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"INFO: started\n", (0, 1, 0)),
        (b'{"event": "started"}\n', (0, 0, 1)),
        (b"[1, 2]\n17\nnull\n", (0, 0, 3)),
        (b"2026 was a year\n", (0, 1, 0)),
        (b"\n  \n\r\n", (0, 0, 0)),
        (b"\0" * 5000, (0, 0, 0)),
        (b"\xff\xfe{}\n", (0, 1, 0)),
        (b"[" * 100_000 + b"\n", (0, 1, 0)),
        (b'{"customer_id": "acme", "failure_reason": 7}\n', (0, 0, 1)),
        (b'{"failure_reason":"x","customer_id":"acme"}\r\n', (1, 0, 0)),
        (line(entry(1))[:-1], (1, 0, 0)),
        (line(entry(1))[:-1] + line(entry(2)), (2, 0, 0)),
        (line({**entry(1), "customer_id": 'a"b\\c'}), (1, 0, 0)),
        (line({**entry(1), "reflection": {"root_cause": '} {"timestamp": "'}}), (1, 0, 0)),
        (line({**entry(1), "reflection": {"timestamp": "x", "a": {"timestamp": 1}}}), (1, 0, 0)),
        (line(entry(1)).replace(b"service", b"serv\xffce"), (0, 1, 0)),
        (line(entry(1)).replace(b"service", b"serv\x01ce"), (0, 1, 0)),
        (line(entry(1)).replace(b'"episode_id": 1', b'"episode_id": 01'), (0, 1, 0)),
        (json.dumps(entry(1)).replace("service", "sérvice").encode() + b"\n", (1, 0, 0)),
    ],
)
def test_what_a_line_may_be(content: bytes, expected: tuple[int, int, int]) -> None:
    for around in (b"", line(entry(7))):
        tally = counted(around + content + (b"" if not around or content.endswith(b"\n") else b"\n") + around)
        extra = 2 if around else 0
        assert (tally.entries, tally.torn, tally.foreign) == (expected[0] + extra, *expected[1:])


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "timestamp": st.datetimes().map(lambda moment: moment.isoformat() + "+00:00") | st.text(max_size=5),
        "episode_id": st.integers(0, 2**63),
        "customer_id": st.sampled_from(["acme", "other"]) | st.text(max_size=5),
        "failure_reason": st.sampled_from([REASON, REDACTED]) | st.text(max_size=5),
        "reflection": st.none() | st.dictionaries(st.text(), json_values, max_size=4),
    }
)
pieces = entries.map(line) | entries.map(lambda one: json.dumps(one, ensure_ascii=False).encode() + b"\n")


@given(st.lists(st.tuples(pieces, st.integers(0, 400)) | st.binary(max_size=30).map(lambda junk: (junk, None))))
def test_the_quick_way_counts_what_parsing_counts(parts: list[tuple[bytes, int | None]]) -> None:
    """Whole lines, lines that were cut off, and junk between them."""
    content = b"".join(part if cut is None or cut > len(part) or cut % 3 else part[:cut] for part, cut in parts)
    assert told(counted(content)) == told(parsed(content))


@given(st.lists(pieces | st.binary(max_size=60)))
def test_nothing_is_left_out(parts: list[bytes]) -> None:
    content = b"".join(parts)
    items = list(dead_letters.items(io.BytesIO(content)))
    assert b"".join(item.raw for item in items) == content
    assert [item.offset for item in items] == [sum(len(one.raw) for one in items[:n]) for n in range(len(items))]


def test_a_line_of_gigabytes_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MAX_LINE", 10_000)
    monkeypatch.setattr(dead_letters, "_PIECE", 4096)
    content = line(entry(1)) + b"x" * 100_000 + b"\n" + line(entry(2))
    assert told(counted(content))[:3] == (2, 1, 0)
    items = list(dead_letters.items(io.BytesIO(content)))
    assert b"".join(item.raw for item in items) == content
    assert max(len(item.raw) for item in items) <= 10_000 + 4096
    assert [item.kind for item in items if item.kind != "more"] == ["entry", "long", "entry"]


def test_ids_beyond_doubles_and_times_of_all_kinds() -> None:
    stamps = ["2026-11-27T03:00:00Z", "2026-11-27T04:59:59.5+02:00", "2026-11-27T03:00:00.1234567+00:00", "yesterday"]
    content = b"".join(line({**entry(380_000_000_000_000_001), "timestamp": stamp}) for stamp in stamps)
    found = [item.entry for item in dead_letters.items(io.BytesIO(content))]
    assert {one["episode_id"] for one in found if one} == {380_000_000_000_000_001}
    tally = counted(content)
    assert (tally.entries, tally.oldest) == (4, "2026-11-27T02:59:59.500000Z")
    assert tally.newest == "2026-11-27T03:00:00.123456Z"


def test_what_is_told_of_the_queue_can_be_told(tmp_path: Path) -> None:
    """Anything may stand in it: half of a character, a key, a name without an end, a day that does not exist."""
    key = "sk-or-v1-0123456789abcdef0123456789abcdef"
    path = write(
        tmp_path,
        [
            {**entry(1), "customer_id": "\ud800", "failure_reason": "x" * 500},
            {**entry(2), "failure_reason": f"refused: {key}", "timestamp": "2026-99-99T99:99:99+00:00"},
        ],
    )
    told = dead_letters.tally([str(path)])
    shown = json.dumps([told.by_customer, told.by_reason, dead_letters.last(str(path), 5)]).encode().decode()
    assert list(told.by_customer) == ["?", "acme"]
    assert max(map(len, told.by_reason)) <= 100
    assert key not in shown
    assert (told.oldest, told.newest) == ("2026-11-27T03:00:01Z", "2026-11-27T03:00:01Z")


def test_what_is_no_queue(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dead_letters.files_of(str(tmp_path / "nowhere" / "failed.log"))
    with pytest.raises(OSError, match="it is no regular file"):
        dead_letters.files_of(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="it is no regular file"):
        dead_letters.files_of(str(tmp_path / "fifo"))


def test_an_archive_is_read_like_the_queue(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    content = b"".join(line(entry(number)) for number in range(3000))
    path = tmp_path / "old.log.zst"
    # Two frames, as from two runs of zstd.
    path.write_bytes(b"".join(zstandard.compress(half) for half in (content[:1000], content[1000:])))
    assert dead_letters.tally([str(path)]).entries == 3000
    whole = path.read_bytes()
    for content, reason in ((whole[:-1], "it ends too early"), (b"no archive", "zstd decompressor error")):
        path.write_bytes(content)
        with pytest.raises(OSError, match=reason):
            dead_letters.tally([str(path)])


def test_growth_follows_a_file_that_was_renamed(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(1)])
    before = dead_letters.sizes(str(path))
    assert dead_letters.added_since(str(path), before) == 0
    with path.open("ab") as file:
        file.write(line(entry(2)))
    path.rename(tmp_path / "failed_reflections.20261127_030000.log")
    write(tmp_path, [entry(3), entry(4)])
    assert dead_letters.added_since(str(path), before) == 3


def test_recent_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()

    def at(seconds: float) -> dict[str, Any]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now - seconds))
        return {**entry(1), "timestamp": stamp}

    path = write(tmp_path, [at(5000), at(100), at(50)])
    write(tmp_path, [at(9000), at(8000)], "failed_reflections.20261126_030000.log")
    assert dead_letters.recent(str(path), now - 3600) == (2, True)
    assert dead_letters.recent(str(path), now - 8500) == (4, True)
    assert dead_letters.recent(str(path), now - 99999) == (5, True)
    monkeypatch.setattr(dead_letters, "_TAIL", os.path.getsize(path) - 10)
    assert dead_letters.recent(str(path), now - 8500) == (2, False)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain of the timeline: what a person or a crash may do to the file, and whether it is found."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import timeline
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers

KEY = b"a-key-of-the-record-0123456789"


def entry(number):
    return {"event": f"event {number}", "host": "vritti-1", "outcome": 'a "mac":"quoted" line, ä'}


@pytest.fixture()
def path(tmp_path):
    return str(tmp_path / "records" / "timeline.jsonl")


def written(path, count=3, key=KEY):
    """A timeline of so many lines, and the last link."""
    for number in range(count):
        last = timeline.append(path, [entry(number)], key).last
    return last


def read(path):
    with open(path, "rb") as file:
        return file.read()


def put(path, content):
    with open(path, "wb") as file:
        file.write(content)


def first(path, *arguments, **options):
    """The first problem; the timeline is known to have one."""
    found = timeline.verify(path, *arguments, **options)
    assert not found.ok
    return found.problems[0]


# The chain.


@pytest.mark.parametrize("key", [KEY, None])
def test_lines_are_numbered_and_chained(path, key):
    last = written(path, 3, key)
    lines = [json.loads(line) for line in read(path).splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert [line["prev"] for line in lines] == [timeline.NONE, lines[0]["mac"], lines[1]["mac"]]
    assert lines[2]["mac"] == last
    assert [line["outcome"] for line in lines] == ['a "mac":"quoted" line, ä'] * 3
    found = timeline.verify(path, key, last)
    assert (found.ok, found.lines, found.keyed, found.last) == (True, 3, key is not None, last)
    assert found.warnings == []


def test_what_was_appended_is_what_stands_in_the_file(path):
    added = timeline.append(path, [entry(1), entry(2)], KEY)
    assert "".join(f"{line}\n" for line in added.texts).encode() == read(path)


def test_long_lines(path):
    for size in (10, 200_000, 70_000, 10):
        last = timeline.append(path, [{"event": "x" * size}], KEY).last
    assert timeline.verify(path, KEY, last).ok


def test_hosts_copy_has_some_of_the_lines(path, tmp_path):
    written(path, 5)
    lines = read(path).splitlines(keepends=True)
    copy = str(tmp_path / "copy.jsonl")
    put(copy, lines[1] + lines[3])
    found = timeline.verify(copy, KEY, partial=True)
    assert (found.ok, found.lines, found.warnings) == (True, 2, [])
    assert "does not follow" in first(copy, KEY)
    put(copy, lines[1] + lines[3].replace(b"event 3", b"event 4"))
    assert first(copy, KEY, partial=True) == "line 2 has been changed, or was written with another key"
    put(copy, lines[1] + lines[3][:-20])
    assert first(copy, KEY, partial=True) == "line 2 is cut: it does not end with a newline"
    put(copy, lines[1][:50] + b"\n" + lines[3])
    assert first(copy, KEY, partial=True) == "line 1 is no line of a timeline"


# What somebody may do to it.


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A timeline with a torn line in it, and its last link; the tests change copies."""
    path = str(tmp_path_factory.mktemp("sound") / "timeline.jsonl")
    written(path, 2)
    with open(path, "ab") as file:
        file.write(b'{"event":"to')
    last = written(path, 2)
    found = timeline.verify(path, KEY, last)
    assert (found.ok, found.lines) == (True, 4)
    assert found.warnings == ["line 3 was torn when a run was killed while it wrote"]
    return path, last


def copied(sound, tmp_path):
    path = str(tmp_path / "timeline.jsonl")
    for suffix in ("", ".head"):
        shutil.copy(sound[0] + suffix, path + suffix)
    return path


@given(st.data())
def test_every_changed_byte_is_found(sound, tmp_path, data):
    path = copied(sound, tmp_path)
    content = bytearray(read(path))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    put(path, bytes(content))
    assert not timeline.verify(path, KEY, sound[1]).ok


@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
def test_every_flipped_bit_of_the_last_two_lines_is_found(sound, tmp_path, bit):
    path = copied(sound, tmp_path)
    content = read(path)
    for place in range(len(content) - 600, len(content)):
        put(path, content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        assert not timeline.verify(path, KEY, sound[1]).ok, content[place : place + 10]


@given(st.data())
def test_every_cut_and_every_insertion_is_found(sound, tmp_path, data):
    path = copied(sound, tmp_path)
    content = read(path)
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, len(content)))
    put(path, content[:begin] + data.draw(st.sampled_from([b"", b"\n", b"{}", content[:20]])) + content[end:])
    now = read(path)
    found = timeline.verify(path, KEY, sound[1])
    if now.startswith(content) and not now[len(content) :].endswith(b"\n"):
        # Nothing is gone. What was added may be of a run that is killed right then, and is told of.
        assert found.ok
        assert len(found.warnings) == 1 + (now != content)
    else:
        assert not found.ok


def test_every_cut_of_the_end_is_found_by_the_last_link_alone(sound, tmp_path):
    path = copied(sound, tmp_path)
    content = read(path)
    # Somebody who cuts the file puts an older head beside it.
    older = str(tmp_path / "older" / "timeline.jsonl")
    written(older, 1)
    shutil.copy(f"{older}.head", f"{path}.head")
    for end in range(len(content)):
        put(path, content[:end])
        assert not timeline.verify(path, KEY, sound[1]).ok, end


def test_every_cut_of_the_end_is_found_by_the_head_alone(sound, tmp_path):
    path = copied(sound, tmp_path)
    content = read(path)
    for end in range(len(content)):
        put(path, content[:end])
        assert not timeline.verify(path, KEY).ok, end


def test_a_tail_that_was_cut_at_the_end_of_a_line(path):
    last = written(path, 5)
    put(path, b"".join(read(path).splitlines(keepends=True)[:3]))
    assert first(path, KEY) == "its tail was cut: it ends with line 3, and had 5"
    os.unlink(f"{path}.head")
    assert first(path, KEY) == "timeline.jsonl.head is missing, so a cut tail would not show"
    assert any(
        f"the link {last[:12]}, which a run has printed, is not in it" in p
        for p in timeline.verify(path, KEY, last).problems
    )


def test_a_cut_tail_is_not_written_over(path):
    written(path, 3)
    content = read(path)
    for kept in (b"".join(content.splitlines(keepends=True)[:2]), content[:-30], b""):
        put(path, kept)
        with pytest.raises(timeline.Broken, match="its end was cut off or changed") as caught:
            timeline.append(path, [entry(9)], KEY)
        assert read(path) == kept
        assert str(caught.value).count(".") >= 1


def test_without_its_head_nothing_is_appended(path):
    """Else a cut tail would be whole again with the next line."""
    for number in range(2):
        timeline.append(path, [{"n": number}], KEY)
    os.unlink(f"{path}.head")
    before = read(path)
    with pytest.raises(timeline.Broken, match="head is missing, so a tail that was cut off would not show"):
        timeline.append(path, [{"n": 9}], KEY)
    assert read(path) == before
    # A run that was killed right after the very first line has written no head yet.
    put(path, before.splitlines(keepends=True)[0])
    timeline.append(path, [{"n": 9}], KEY)
    assert timeline.verify(path, KEY).ok


def test_damaged_head_is_not_written_over(path):
    written(path)
    put(f"{path}.head", b'{"seq":3')
    with pytest.raises(timeline.Broken, match="head is damaged"):
        timeline.append(path, [entry(9)], KEY)
    assert first(path, KEY) == "timeline.jsonl.head is damaged"


def test_changed_head_is_found(path):
    written(path)
    put(f"{path}.head", read(f"{path}.head").replace(b'"seq":3', b'"seq":2'))
    assert first(path, KEY) == "timeline.jsonl.head has been changed, or was written with another key"


def test_swapped_and_repeated_lines_are_found(path):
    written(path, 4)
    one, two, three, four = read(path).splitlines(keepends=True)
    for lines in ([one, three, two, four], [one, two, two, three, four], [two, three, four], [one, two, four]):
        put(path, b"".join(lines))
        assert "does not follow the line before it" in first(path, KEY)


def test_line_with_a_chain_of_its_own(path, tmp_path):
    written(path, 2)
    other = str(tmp_path / "other.jsonl")
    written(other, 2)
    timeline.append(other, [{"event": "forged"}], KEY)
    put(path, read(path) + read(other).splitlines(keepends=True)[2])
    # Same numbers, same key, and its own first two lines are the same: nothing tells it apart but the head.
    found = timeline.verify(path, KEY)
    assert found.warnings == ["timeline.jsonl.head names line 2 of 3: a run was killed while it wrote"]
    other_key = str(tmp_path / "another.jsonl")
    written(other_key, 2, b"another")
    put(path, read(path) + read(other_key).splitlines(keepends=True)[1])
    assert "line 4 has been changed, or was written with another key" in timeline.verify(path, KEY).problems


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b"null\n", b'{"seq":1e999,"prev":"x","mac":"' + b"0" * 64 + b'"}\n', b"[" * 100_000 + b"\n"],
)
def test_strange_lines_are_sentences(path, line):
    written(path)
    put(path, line + read(path))
    assert "line 1 is no line of a timeline" in timeline.verify(path, KEY).problems


def test_link_of_other_letters_is_a_sentence(path):
    written(path)
    content = read(path)
    put(path, content[:-66] + "é".encode() * 32 + b'"}\n')
    assert not timeline.verify(path, KEY).ok
    with pytest.raises(timeline.Broken):
        timeline.append(path, [entry(9)], KEY)


def test_problems_of_a_long_timeline_are_few(path):
    timeline.append(path, [entry(number) for number in range(50)], KEY)
    found = timeline.verify(path, b"another")
    assert len(found.problems) == 21
    assert found.problems[-1].startswith("and ")


# Keys.


def test_wrong_key(path):
    last = written(path)
    assert first(path, b"another", last) == "line 1 has been changed, or was written with another key"
    with pytest.raises(timeline.Broken, match="was written with another key, or changed"):
        timeline.append(path, [entry(9)], b"another")


@pytest.mark.parametrize(
    ("at_writing", "at_reading", "says"),
    [
        (KEY, None, "line 1 cannot be verified: the key it was written with is needed"),
        (None, KEY, "line 1 cannot be verified: it was written without a key"),
    ],
)
def test_key_on_one_side_only(path, at_writing, at_reading, says):
    written(path, 2, at_writing)
    assert first(path, at_reading) == says
    with pytest.raises(timeline.Broken, match="give the key that it was written with"):
        timeline.append(path, [entry(9)], at_reading)


def test_without_a_key_it_does_not_say_that_it_could_not_be_changed(path):
    last = written(path, 2, None)
    found = timeline.verify(path, None, last)
    assert (found.ok, found.keyed) == (True, False)


def test_key_of_a_file(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(b"\n  s3same \n")
    file.chmod(0o600)
    assert timeline.load_key(str(file), {timeline.ENVIRONMENT: "other"}) == b"s3same"
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(ValueError, match="may be read by others; chmod 600 it") as caught:
            timeline.load_key(str(file), {})
        assert "s3same" not in str(caught.value)
    file.write_bytes(b"\n")
    file.chmod(0o600)
    with pytest.raises(ValueError, match="is empty"):
        timeline.load_key(str(file), {})
    with pytest.raises(ValueError, match="cannot be read: No such file or directory"):
        timeline.load_key(str(tmp_path / "none"), {})


def test_key_of_the_environment():
    assert timeline.load_key(None, {timeline.ENVIRONMENT: "s3same"}) == b"s3same"
    assert timeline.load_key("", {timeline.ENVIRONMENT: ""}) is None
    assert timeline.load_key(None, {}) is None


# Crashes, and company.


def test_every_torn_last_line_is_gone_on_from(path, tmp_path):
    """A run that was killed after any byte of its write, before it wrote the head."""
    written(path, 2)
    before = read(path)
    head = read(f"{path}.head")
    timeline.append(path, [entry("torn")], KEY)
    whole = read(path)
    for end in range(len(before) + 1, len(whole) + 1):
        put(path, whole[:end])
        put(f"{path}.head", head)
        found = timeline.verify(path, KEY)
        assert found.ok, (end, found.problems)
        assert len(found.warnings) == 1
        last = timeline.append(path, [entry("next")], KEY).last
        found = timeline.verify(path, KEY, last)
        assert found.ok, (end, found.problems, read(path)[end - 20 :])
        assert found.lines == (4 if end >= len(whole) - 1 else 3)


def test_a_second_run_killed_right_after_the_newline_of_a_torn_line(path):
    written(path, 2)
    put(path, read(path) + b'{"event":"to\n')
    last = written(path, 1)
    found = timeline.verify(path, KEY, last)
    assert (found.ok, found.lines) == (True, 3)
    assert read(path).count(b"\n") == 4


def test_first_line_torn(path):
    os.makedirs(os.path.dirname(path))
    put(path, b'{"event":"to')
    last = written(path, 1)
    assert timeline.verify(path, KEY, last).ok


def test_torn_line_that_was_changed_or_taken_out_is_found(path):
    written(path, 1)
    put(path, read(path) + b'{"event":"to')
    last = written(path, 1)
    one, torn, two = read(path).splitlines(keepends=True)
    put(path, one + torn.replace(b"to", b"ta") + two)
    assert first(path, KEY, last) == "line 2 is no line of a timeline"
    put(path, one + two)
    assert first(path, KEY, last) == "the torn line before line 2 is missing"
    put(path, one + torn + torn + two)
    assert first(path, KEY, last) == "line 3 is no line of a timeline"


def test_damaged_last_line_is_not_passed_off_as_torn(path):
    written(path)
    put(path, read(path)[:-3] + b"\n")
    with pytest.raises(timeline.Broken, match="cut off or changed"):
        timeline.append(path, [entry(9)], KEY)


def test_empty_and_missing(path):
    with pytest.raises(FileNotFoundError):
        timeline.verify(path, KEY)
    os.makedirs(os.path.dirname(path))
    put(path, b"")
    assert "timeline.jsonl.head is missing" in first(path, KEY)
    assert timeline.verify(path, KEY, partial=True).problems == ["it is empty"]


WRITER = """
import sys
from ansible_collections.oncall.runbooks.plugins.module_utils import timeline
path, name, count, key = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(count)):
    timeline.append(path, [{"event": f"{name} {number} " + "x" * 300}, {"event": name}], key.encode())
"""


def writers(path, count, lines):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, f"writer-{number}", str(lines), KEY.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(helpers.COLLECTIONS)},
        )
        for number in range(count)
    ]
    for process in started:
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        process.stdin.write(b"\n")
        process.stdin.flush()
    return started


def test_concurrent_runs_keep_the_chain(path):
    started = writers(path, 4, 25)
    while any(process.poll() is None for process in started):
        if os.path.exists(f"{path}.head"):
            # Whoever verifies meanwhile sees no half of a line, and no cut tail.
            found = timeline.verify(path, KEY)
            assert found.ok, found.problems
            assert found.warnings == []
    for process in started:
        process.communicate()
        assert process.returncode == 0
    found = timeline.verify(path, KEY)
    assert (found.ok, found.lines, found.warnings) == (True, 200, [])
    events = [json.loads(line)["event"] for line in read(path).splitlines()]
    for number in range(4):
        own = [event for event in events if event.startswith(f"writer-{number} ")]
        assert [event.split()[1] for event in own] == [str(count) for count in range(25)]


def test_killed_runs_leave_a_chain_that_goes_on(path):
    for _time in range(5):
        (process,) = writers(path, 1, 100_000)
        size = os.path.getsize(path) if os.path.exists(path) else 0
        while not os.path.exists(path) or os.path.getsize(path) < size + 2000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert timeline.verify(path, KEY).ok or not os.path.exists(f"{path}.head")
    last = written(path, 1)
    found = timeline.verify(path, KEY, last)
    assert found.ok, found.problems


def test_full_disk_leaves_the_timeline_as_it_was(path):
    last = written(path)
    before = read(path)
    said = helpers.python(
        """
        import errno, os, resource, signal, sys
        from ansible_collections.oncall.runbooks.plugins.module_utils import timeline
        path, key = sys.argv[1], sys.argv[2].encode()
        # A write comes as far as the limit, and fails beyond it, as on a disk that fills up.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 100, resource.RLIM_INFINITY))
        try:
            timeline.append(path, [{"event": "x" * 1000}], key)
        except OSError as error:
            print(errno.errorcode[error.errno])
        """,
        path,
        KEY.decode(),
    )
    assert said == errno.errorcode[errno.EFBIG]
    assert read(path) == before
    assert timeline.verify(path, KEY, last).ok
    assert timeline.verify(path, KEY, written(path, 1)).ok


def test_device_without_room(tmp_path):
    path = str(tmp_path / "timeline.jsonl")
    os.symlink("/dev/full", path)
    with pytest.raises(OSError, match="No space left") as caught:
        timeline.append(path, [entry(1)], KEY)
    assert caught.value.errno == errno.ENOSPC
    assert not os.path.exists(f"{path}.head")

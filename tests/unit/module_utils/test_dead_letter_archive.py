# SPDX-License-Identifier: GPL-3.0-or-later
"""Archiving dead letters: nothing is lost and nothing doubled, whoever writes, and wherever a run is killed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_archive, dead_letters, durable
from ansible_collections.oncall.runbooks.plugins.module_utils.dead_letter_archive import Options
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils.dead_letter_helpers import (
    NAME,
    NULL,
    entry,
    line,
    write,
)
from ansible_collections.oncall.runbooks.tests.unit.module_utils.sqlite_helpers import filesystem

pytest.importorskip("zstandard")

# As Vritti does: the path is opened anew for every entry.
WRITER = """
import json, sys
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(first, first + count):
    with open(path, "a") as file:
        file.write(json.dumps({"timestamp": "2026-11-27T03:00:00+00:00", "episode_id": number,
            "customer_id": f"c{number % 3}", "failure_reason": "persistence_failed_after_retries",
            "reflection": {"root_cause": "x" * 200}}) + chr(10))
"""


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    return folder


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / NAME


def fill(queue: Path, *numbers: int, customer: str = "acme") -> None:
    with queue.open("ab") as file:
        for number in numbers:
            file.write(line(entry(number, customer)))


def ids(path: Path | str) -> list[int]:
    with dead_letters.open_queue(str(path)) as file:
        return [item.entry["episode_id"] for item in dead_letters.items(file) if item.entry]


def everywhere(queue: Path, dest: Path) -> Counter[int]:
    """How often each episode is in the queue or in an archive."""
    files = [*dead_letters.files_of(str(queue)), *map(str, dest.glob("*.zst"))]
    return Counter(number for file in files for number in ids(file))


def manifest(told: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(told["manifest"]).read_text())
    return content


def test_the_whole_queue(queue: Path, dest: Path) -> None:
    fill(queue, 1, 2)
    fill(queue, 3, customer="other")
    with queue.open("ab") as file:
        file.write(b"INFO: what is this\n" + line({"event": "started"}) + line(entry(4))[:40])
    queue.chmod(0o640)
    size, content = queue.stat().st_size, queue.read_bytes()
    told = dead_letter_archive.archive(Options(str(queue), str(dest)))
    assert told["changed"]
    assert (told["entries"], told["torn"], told["foreign"]) == (3, 2, 1)
    assert told["by_customer"] == {"acme": 2, "other": 1}
    archived = Path(told["archive"])
    assert archived.parent == dest
    assert archived.name.startswith("failed_reflections.20")
    assert archived.name.endswith("Z.log.zst")
    assert archived.stat().st_mode & 0o777 == 0o600
    assert told["sha256"] == durable.sha256(str(archived))
    with dead_letters.open_queue(str(archived)) as file:
        assert file.read() == content + b"\n"
    about = manifest(told)
    assert about["sources"] == [{"path": str(queue), "bytes": size, "range": [0, size]}]
    assert about["sha256"] == told["sha256"]
    assert about["content_bytes"] == size + 1
    assert {key: about[key] for key in ("entries", "torn", "oldest", "newest")} == {
        key: told[key] for key in ("entries", "torn", "oldest", "newest")
    }
    # As the runbook's touch: an empty file with the owner's mode.
    assert queue.read_bytes() == b""
    assert queue.stat().st_mode & 0o777 == 0o640
    assert os.listdir(queue.parent) == [NAME]
    again = dead_letter_archive.archive(Options(str(queue), str(dest)))
    assert (again["changed"], again["archive"], again["entries"]) == (False, None, 0)
    assert len(list(dest.iterdir())) == 2


def test_what_is_chosen(queue: Path, dest: Path) -> None:
    fill(queue, 1, 2)
    fill(queue, 3, customer="other")
    with queue.open("ab") as file:
        file.write(line({**entry(4), **NULL}) + b"junk\n" + line(entry(5))[:-1])
    before = queue.read_bytes()
    for chosen, expected in (
        ({"customer": "other"}, [3]),
        ({"reason": "reflection_redaction_failed"}, [4]),
        ({"episodes": [("acme", 5), ("acme", 99)]}, [5]),
        ({"customer": "acme", "episodes": [("acme", 2), ("other", 3)]}, [2]),
    ):
        told = dead_letter_archive.archive(Options(str(queue), str(dest), **chosen))
        assert ids(told["archive"]) == expected
        assert told["entries"] == 1
        place = manifest(told)["sources"][0]["range"]
        assert place[1] - place[0] > 100
        assert manifest(told)["filters"] == json.loads(json.dumps(chosen))
    assert ids(queue) == [1]
    assert b"junk\n" in queue.read_bytes()
    assert sum(everywhere(queue, dest).values()) == 5
    assert not dead_letter_archive.archive(Options(str(queue), str(dest), customer="other"))["changed"]
    for archived in sorted(dest.glob("*.zst")):
        assert dead_letter_archive.restore(Options(str(queue), ""), str(archived))["changed"]
    assert sorted(queue.read_bytes().splitlines()) == sorted(before.splitlines())


def test_files_that_vritti_has_renamed_go_too(queue: Path, dest: Path) -> None:
    write(queue.parent, [entry(1)], "failed_reflections.20261126_030000.log")
    fill(queue, 2)
    told = dead_letter_archive.archive(Options(str(queue), str(dest)))
    assert ids(told["archive"]) == [1, 2]
    assert len(manifest(told)["sources"]) == 2
    assert os.listdir(queue.parent) == [NAME]


def test_undo_puts_it_back(queue: Path, dest: Path) -> None:
    fill(queue, 1, 2)
    queue.chmod(0o644)
    before = queue.read_bytes()
    told = dead_letter_archive.archive(Options(str(queue), str(dest)))
    fill(queue, 3)
    options = Options(str(queue), "")
    assert dead_letter_archive.restore(options, told["archive"], check=True)["entries"] == 2
    assert ids(queue) == [3]
    back = dead_letter_archive.restore(options, told["archive"])
    assert (back["changed"], back["entries"]) == (True, 2)
    assert queue.read_bytes() == line(entry(3)) + before
    assert not list(dest.glob("*.zst"))
    assert len(list(dest.glob("*.restored*"))) == 2
    assert not dead_letter_archive.restore(options, told["archive"])["changed"]
    assert queue.read_bytes() == line(entry(3)) + before


def test_an_archive_that_is_damaged_is_not_put_back(queue: Path, dest: Path) -> None:
    fill(queue, *range(100))
    told = dead_letter_archive.archive(Options(str(queue), str(dest)))
    archived = Path(told["archive"])
    archived.write_bytes(archived.read_bytes()[:-9])
    for match in ("is not what its manifest says", "cannot be put back: it ends too early"):
        with pytest.raises(Refused, match=match):
            dead_letter_archive.restore(Options(str(queue), ""), told["archive"])
        assert queue.read_bytes() == b""
        assert os.listdir(queue.parent) == [NAME]
        Path(told["manifest"]).unlink(missing_ok=True)
    with pytest.raises(Refused, match="There is no archive"):
        dead_letter_archive.restore(Options(str(queue), ""), str(dest / "none.zst"))


def test_check_mode(queue: Path, dest: Path) -> None:
    fill(queue, 1, 2)
    before = queue.read_bytes()
    told = dead_letter_archive.archive(Options(str(queue), str(dest)), check=True)
    assert (told["changed"], told["entries"]) == (True, 2)
    assert told["archive"].startswith(str(dest))
    assert queue.read_bytes() == before
    assert os.listdir(queue.parent) == [NAME]
    assert not os.listdir(dest)
    queue.unlink()
    assert not dead_letter_archive.archive(Options(str(queue), str(dest)), check=True)["changed"]


def test_a_name_of_its_own_and_without_compression(queue: Path, dest: Path) -> None:
    fill(queue, 1)
    before = queue.read_bytes()
    named = dest / "old.log"
    options = Options(str(queue), str(named), compress=False)
    assert dead_letter_archive.archive(options)["archive"] == str(named)
    assert named.read_bytes() == before
    fill(queue, 2)
    with pytest.raises(Refused, match=f"{named} exists"):
        dead_letter_archive.archive(options)
    assert ids(queue) == [2]


def test_episodes_are_of_a_customer_and_have_a_reflection(queue: Path, dest: Path) -> None:
    with queue.open("wb") as file:
        for change in (
            {},
            {"customer_id": "ghost"},
            NULL,
            {"episode_id": True},
            {"episode_id": [1]},
            {"episode_id": 1.0},
        ):
            file.write(line({**entry(1), **change}))
    before = queue.read_bytes().splitlines()
    assert not dead_letter_archive.archive(Options(str(queue), str(dest), episodes=[]))["changed"]
    told = dead_letter_archive.archive(Options(str(queue), str(dest), episodes=[("acme", 1)]))
    assert told["entries"] == 1
    assert queue.read_bytes().splitlines() == before[1:]


def test_queues_with_one_name_share_a_folder(tmp_path: Path, dest: Path) -> None:
    """Archived in the same second, by runs that know nothing of each other."""
    queues = []
    for name in "abcd":
        (tmp_path / name).mkdir()
        queues.append(tmp_path / name / NAME)
        fill(queues[-1], *range(3000), customer=name)
    program = (
        "import sys\n"
        "from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_archive as archive\n"
        "print(archive.archive(archive.Options(sys.argv[1], sys.argv[2]))['archive'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, path, dest], stdout=subprocess.PIPE, text=True, env=environment
        )
        for path in queues
    ]
    archives = [run.communicate()[0].strip() for run in runs]
    assert len(set(archives)) == 4
    for name, archived in zip("abcd", archives):
        with dead_letters.open_queue(archived) as file:
            assert {item.entry["customer_id"] for item in dead_letters.items(file) if item.entry} == {name}
        about = json.loads(Path(archived + ".manifest.json").read_text())
        assert (about["sha256"], about["entries"]) == (durable.sha256(archived), 3000)


def test_a_link_that_somebody_else_has_made_is_no_name_of_the_queue(tmp_path: Path, queue: Path, dest: Path) -> None:
    fill(queue, 1, 2)
    os.link(queue, tmp_path / "backup-of-somebody")
    options = Options(str(queue), str(dest))
    for number in range(4, 12):
        killed_at(number, lambda: dead_letter_archive.archive(options))
        dead_letter_archive.archive(options)
        (archived,) = dest.glob("*.zst")
        assert ids(archived) == [1, 2]
        dead_letter_archive.restore(options, str(archived))
        for path in dest.iterdir():
            path.unlink()


def test_where_files_have_one_name_only(queue: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT, or of a file that is another user's; and where the kernel cannot rename without replacing."""

    def refused(*_words: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(dead_letter_archive.ctypes, "CDLL", lambda *_words, **_options: None)
    fill(queue, 1)
    fill(queue, 2, customer="other")
    with queue.open("ab"), pytest.raises(Refused, match="is kept open by"):
        dead_letter_archive.archive(Options(str(queue), str(dest), timeout=0.1))
    assert ids(queue) == [1, 2]
    told = dead_letter_archive.archive(Options(str(queue), str(dest), customer="other"))
    assert (ids(told["archive"]), ids(queue)) == ([2], [1])
    dead_letter_archive.restore(Options(str(queue), ""), told["archive"])
    assert ids(queue) == [1, 2]


def test_what_is_no_queue_and_no_archive(tmp_path: Path, queue: Path, dest: Path) -> None:
    fill(queue, 1)
    options = Options(str(queue), str(dest))
    with pytest.raises(Refused, match="is the queue itself"):
        dead_letter_archive.restore(options, str(queue))
    strange = tmp_path / "passwd"
    strange.write_text("root:x:0:0\n")
    with pytest.raises(Refused, match="holds no dead letters and has no manifest"):
        dead_letter_archive.restore(options, str(strange))
    assert strange.exists()
    link = tmp_path / "data" / "link.log"
    link.symlink_to(strange)
    with pytest.raises(Refused, match="is no regular file"):
        dead_letter_archive.archive(Options(str(link), str(dest)))
    with pytest.raises(Refused, match=r"would not be what its name says"):
        dead_letter_archive.archive(Options(str(queue), str(dest / "a.zst"), compress=False))
    work = queue.parent / f".{NAME}.archiving"
    work.symlink_to(dest)
    with pytest.raises(Refused, match="is no folder but"):
        dead_letter_archive.archive(options)
    work.unlink()
    work.mkdir()
    (work / "job.json").write_text("{}")
    with pytest.raises(Refused, match=r"job\.json is damaged"):
        dead_letter_archive.archive(options)
    assert ids(queue) == [1]


def test_whatever_goes_wrong_the_queue_is_as_it_was(queue: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(queue, 1)

    def wrong(*_words: object) -> None:
        raise SystemExit(1)

    for name in ("_await_final", "_build"):
        with monkeypatch.context() as patched:
            patched.setattr(dead_letter_archive._Queue, name, wrong)
            with pytest.raises(SystemExit):
                dead_letter_archive.archive(Options(str(queue), str(dest)))
        assert ids(queue) == [1]
        assert os.listdir(queue.parent) == [NAME]


def test_refusals(queue: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="is no folder; correct the path of the queue"):
        dead_letter_archive.archive(Options("/nowhere/failed.log", str(dest)))
    fill(queue, 1)
    with pytest.raises(Refused, match="is no folder; make it first"):
        dead_letter_archive.archive(Options(str(queue), "/nowhere/old.log"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(NoAnswer, match="zstandard is not installed"):
        dead_letter_archive.archive(Options(str(queue), str(dest)))
    assert ids(queue) == [1]
    assert os.listdir(queue.parent) == [NAME]


# Writers.


def test_writers_at_full_speed(queue: Path, dest: Path) -> None:
    """Three of them, and runs that take all, one customer, and put back what the last one took."""
    count = 4000
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, queue, str(number * count), str(count)]) for number in range(3)
    ]
    runs = 0
    while any(writer.poll() is None for writer in writers) or runs < 4:
        told = dead_letter_archive.archive(Options(str(queue), str(dest), customer=("c1", None)[runs % 2]))
        if runs % 4 == 3 and told["archive"]:
            dead_letter_archive.restore(Options(str(queue), ""), told["archive"])
        runs += 1
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert everywhere(queue, dest) == Counter(range(3 * count))
    assert os.listdir(queue.parent) == [NAME]
    assert dead_letters.tally(dead_letters.files_of(str(queue))).torn == 0


def test_a_writer_that_keeps_the_file_open(queue: Path, dest: Path) -> None:
    fill(queue, 1)
    inode = queue.stat().st_ino
    keeps = (
        "import os, signal, sys, time\n"
        "file = open(sys.argv[1], 'ab', buffering=0)\n"
        "def again(*_):\n"
        "    global file\n"
        "    file.close()\n"
        "    file = open(sys.argv[1], 'ab', buffering=0)\n"
        "signal.signal(signal.SIGHUP, again)\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin.buffer:\n"
        "    file.write(line); print('written', flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", keeps, queue], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin
    assert writer.stdout
    try:
        assert writer.stdout.readline() == b"ready\n"
        options = Options(str(queue), str(dest), timeout=0.2)
        with pytest.raises(Refused, match=rf"is kept open by \S+ \(PID {writer.pid}\)"):
            dead_letter_archive.archive(options)
        # It goes on in the same file, which is where it was.
        writer.stdin.write(line(entry(2)))
        writer.stdin.flush()
        assert writer.stdout.readline() == b"written\n"
        assert ids(queue) == [1, 2]
        assert queue.stat().st_ino == inode
        assert os.listdir(queue.parent) == [NAME]
        assert not os.listdir(dest)
        failing = Options(str(queue), str(dest), timeout=0.2, reopen=lambda: "kill ended with status 1: no.")
        with pytest.raises(Refused, match=r"kill ended with status 1: no\. The queue is as it was"):
            dead_letter_archive.archive(failing)
        assert ids(queue) == [1, 2]
        told = dead_letter_archive.archive(
            Options(str(queue), str(dest), timeout=5, reopen=lambda: os.kill(writer.pid, 1))
        )
        assert ids(told["archive"]) == [1, 2]
        writer.stdin.write(line(entry(3)))
        writer.stdin.flush()
        assert writer.stdout.readline() == b"written\n"
        assert ids(queue) == [3]
    finally:
        writer.kill()
        writer.communicate()


def test_somebody_who_reads_it_is_no_writer(queue: Path, dest: Path) -> None:
    fill(queue, 1)
    with queue.open("rb"):
        assert dead_letter_archive.archive(Options(str(queue), str(dest), timeout=0.2))["entries"] == 1


def test_without_leases_proc_tells(queue: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, or of a file that is another user's."""
    monkeypatch.setattr(dead_letter_archive, "_leased", lambda _path: None)
    fill(queue, 1)
    with (
        queue.open("ab"),
        pytest.raises(Refused, match=rf"PID {os.getpid()}"),
    ):
        dead_letter_archive.archive(Options(str(queue), str(dest), timeout=0.2))
    monkeypatch.setattr(dead_letter_archive.procfs, "writers_of", lambda *_file: ([], False))
    with pytest.raises(Refused, match="which is not everybody"):
        dead_letter_archive.archive(Options(str(queue), str(dest), timeout=0.2))
    assert ids(queue) == [1]
    monkeypatch.undo()
    monkeypatch.setattr(dead_letter_archive, "_leased", lambda _path: None)
    assert dead_letter_archive.archive(Options(str(queue), str(dest)))["entries"] == 1


def test_one_run_at_a_time(queue: Path, dest: Path) -> None:
    fill(queue, 1)
    options = Options(str(queue), str(dest), timeout=0.1)
    with (
        dead_letter_archive._Queue(options).alone(),
        pytest.raises(Refused, match="Another run works on"),
    ):
        dead_letter_archive.archive(options)
    assert ids(queue) == [1]


# Killed.

_CALLS = ((os, "rename"), (os, "link"), (os, "unlink"), (os, "write"), (os, "fsync"), (os, "replace"), (os, "mkdir"))
_CALLS = (*_CALLS, (dead_letter_archive, "_move"))


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Whether a process that does the work was killed right before its so manieth change to a filesystem."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
    left = number
    for module, name in _CALLS:
        real = getattr(module, name)

        def counted(*words: Any, _real: Any = real, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
            return _real(*words, **options)

        setattr(module, name, counted)
    try:
        work()
    except BaseException:  # noqa: BLE001 - a child of the test must not go on as the test
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("chosen", [{}, {"customer": "c1"}])
@pytest.mark.parametrize("meanwhile", [True, False])
def test_killed_anywhere_and_run_again(tmp_path: Path, chosen: dict[str, str], meanwhile: bool) -> None:
    for number in range(200):
        folder = tmp_path / str(number)
        (folder / "archives").mkdir(parents=True)
        queue, dest = folder / NAME, folder / "archives"
        options = Options(str(queue), str(dest), **chosen)
        fill(queue, 1, 2)
        fill(queue, 3, 4, customer="c1")
        killed = killed_at(number, lambda options=options: dead_letter_archive.archive(options))
        if meanwhile:
            fill(queue, 5, 6)
            fill(queue, 7, customer="c1")
        expected = Counter(range(1, 8 if meanwhile else 5))
        dead_letter_archive.archive(options)
        assert everywhere(queue, dest) == expected, number
        assert list(dest.glob("*.zst"))
        assert sorted(os.listdir(folder)) == ["archives", NAME]
        assert not list(dest.glob(".*"))
        if chosen:
            assert sorted(ids(queue)) == ([1, 2, 5, 6] if meanwhile else [1, 2])
        if not killed:
            assert number > 8
            return
    raise AssertionError("it never comes to its end")


@pytest.mark.parametrize("meanwhile", [True, False])
def test_undoing_that_was_killed_anywhere(tmp_path: Path, meanwhile: bool) -> None:
    for number in range(200):
        folder = tmp_path / str(number)
        (folder / "archives").mkdir(parents=True)
        queue, dest = folder / NAME, folder / "archives"
        options = Options(str(queue), str(dest))
        fill(queue, *range(1, 600))
        archived = dead_letter_archive.archive(options)["archive"]
        if meanwhile:
            fill(queue, 600, 601)
        killed = killed_at(
            number, lambda archived=archived, options=options: dead_letter_archive.restore(options, archived)
        )
        if meanwhile:
            fill(queue, 602, 603)
        dead_letter_archive.restore(options, archived)
        assert Counter(ids(queue)) == Counter(range(1, 604 if meanwhile else 600)), number
        assert sorted(os.listdir(folder)) == ["archives", NAME]
        assert not list(dest.glob("*.zst"))
        if not killed:
            assert number > 8
            return
    raise AssertionError("it never comes to its end")


def test_killed_while_many_write(queue: Path, dest: Path) -> None:
    count = 5000
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, queue, str(number * count), str(count)]) for number in range(2)
    ]
    options = Options(str(queue), str(dest), customer="c1")
    number = 0
    while any(writer.poll() is None for writer in writers):
        killed_at(number % 31, lambda: dead_letter_archive.archive(options))
        number += 7
    assert number > 20
    dead_letter_archive.archive(options)
    assert everywhere(queue, dest) == Counter(range(2 * count))
    assert sorted(set(ids(queue)) & set(range(1, 3 * count, 3))) == []


def test_full_disk(tmp_path: Path, queue: Path) -> None:
    """Of the archive: nothing happens. Of the queue, when entries are put back: they stay, and the next run goes on."""
    noise = os.urandom(700_000).hex()
    for number in range(350):
        fill(queue, number)
        with queue.open("ab") as file:
            file.write(
                line({**entry(number), "customer_id": "c1", "noise": noise[number * 4000 : number * 4000 + 4000]})
            )
    before = queue.read_bytes()
    with filesystem(tmp_path / "full", "500k") as full:
        with pytest.raises(Refused, match=r"cannot be written: No space left on device\. The queue is as it was"):
            dead_letter_archive.archive(Options(str(queue), str(full)))
        assert queue.read_bytes() == before
        assert os.listdir(queue.parent) == [NAME]
        assert not os.listdir(full)
        # What stays does not fit a second time beside what was taken.
        here = full / NAME
        fill(here, *range(400))
        options = Options(str(here), str(tmp_path), customer="c1")
        assert not dead_letter_archive.archive(options)["changed"]
        fill(here, 400, customer="c1")
        with pytest.raises(Refused, match="No space left on device"):
            dead_letter_archive.archive(options)
        assert Counter(ids(here)) == Counter(range(401))
        assert os.listdir(full) == [NAME]


def test_what_cannot_be_put_back_is_kept_for_the_next_run(tmp_path: Path) -> None:
    with filesystem(tmp_path / "full", "1m") as full:
        queue = full / NAME
        fill(queue, *range(300))
        dest = tmp_path / "archives"
        dest.mkdir()
        archived = dead_letter_archive.archive(Options(str(queue), str(dest)))["archive"]
        fill(queue, 300)
        hog = full / "hog"
        hog.write_bytes(b"x" * 700_000)
        options = Options(str(queue), str(dest))
        with pytest.raises(Refused, match=r"cannot be appended to: No space left on device\. What belongs there is in"):
            dead_letter_archive.restore(options, archived)
        hog.unlink()
        fill(queue, 301)
        dead_letter_archive.restore(options, archived)
        assert Counter(ids(queue)) == Counter(range(302))
        assert sorted(os.listdir(full)) == [NAME]


def test_memory_does_not_grow_with_the_queue(queue: Path, dest: Path) -> None:
    noise = os.urandom(1 << 20).hex().encode()
    with queue.open("wb") as file:
        for number in range(60):
            for begin in range(0, len(noise), 2000):
                file.write(line({**entry(number), "noise": noise[begin : begin + 2000].decode()}))
    program = (
        "import re, sys\n"
        "from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_archive as archive\n"
        "archive.archive(archive.Options(sys.argv[1], sys.argv[2]))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [sys.executable, "-c", program, queue, dest], check=True, capture_output=True, text=True, env=environment
    )
    assert queue.stat().st_size == 0
    assert int(told.stdout) < 64 * 1024

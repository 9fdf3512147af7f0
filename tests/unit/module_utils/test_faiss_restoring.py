# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_backups, faiss_index, faiss_restoring
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.faiss_helpers import (
    BEFORE_VECTORS,
    COUNT,
    DIMENSION,
    NAMES,
    Service,
    contents,
    flip,
    make,
    saved,
)


@pytest.fixture()
def service(tmp_path):
    return Service(tmp_path).aged()


def options(service, **more):
    return faiss_restoring.Options(dimension=DIMENSION, **{**service.options, **more})


def restore(service, check=False, **more):
    return faiss_restoring.restore(options(service, **more), check)


def left_over(service):
    """What a run has left beside or in the index."""
    return [
        path.name for folder in (service.index, service.index.parent) for path in folder.iterdir()
        if "restoring" in path.name
    ]  # fmt: skip


def cannot_exchange(monkeypatch):
    """As on a filesystem that cannot exchange two folders."""

    def refuse(one, other):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), one, None, other)

    monkeypatch.setattr(faiss_restoring, "_rename_exchange", refuse)


@pytest.fixture(params=["folder", "files"])
def method(request, monkeypatch):
    if request.param == "files":
        cannot_exchange(monkeypatch)
    return request.param


class TestRestoring:
    def test_all_four_files_and_what_was_there_is_kept(self, service, method):
        archive, good = service.saved(), contents(service.index)
        (service.index / "embeddings.cache.jsonl").write_text("{}\n")
        (service.index / "sub").mkdir()
        (service.index / "sub" / "file").write_text("x")
        os.symlink("sub/file", service.index / "link")
        os.truncate(service.index / "wp.faiss", 918)
        bad = contents(service.index)
        foreseen = restore(service, check=True)
        assert contents(service.index) == bad
        told = restore(service)
        assert (told["changed"], told["action"], told["state"]) == (True, "restored", "truncated")
        assert (told["backup"], told["restored_ntotal"], told["atomic"]) == (str(archive), COUNT, method == "folder")
        assert contents(service.index) == good
        assert contents(Path(told["quarantine"])) == bad
        assert (service.index / "embeddings.cache.jsonl").read_text() == "{}\n"
        assert (service.index / "sub" / "file").read_text() == "x"
        assert os.readlink(service.index / "link") == "sub/file"
        assert left_over(service) == []
        for key in ("action", "state", "backup", "lost", "files_before", "files_after"):
            assert foreseen[key] == told[key]
        assert any("restart it" in note for note in told["notes"])
        assert any("some of both" in note for note in told["notes"]) == (method == "files")

    def test_a_second_run_does_nothing(self, service, method):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        restore(service)
        before = os.stat(service.index / "wp.faiss")
        told = restore(service)
        assert (told["changed"], told["action"], told["quarantine"], told["undo"]) == (False, "none", None, None)
        assert os.stat(service.index / "wp.faiss").st_ino == before.st_ino

    def test_undone(self, service, method):
        service.saved()
        good = contents(service.index)
        (service.index / "wp.meta.json").unlink()
        flip(service.index / "wp.faiss", BEFORE_VECTORS + 3, 6)
        bad = contents(service.index)
        told = restore(service)
        foreseen = restore(service, check=True, **told["undo"])
        assert (foreseen["action"], foreseen["changed"], contents(service.index)) == ("undone", True, good)
        undone = restore(service, **told["undo"])
        assert (undone["action"], contents(service.index)) == ("undone", bad)
        assert contents(Path(undone["quarantine"])) == good
        again = restore(service, **told["undo"])
        assert (again["action"], again["changed"]) == ("none", False)
        # Neither is what undoing has put away put back by a second one.
        again = restore(service, state="undone")
        assert (again["action"], again["changed"], contents(service.index)) == ("none", False, bad)
        assert restore(service)["action"] == "restored"
        assert restore(service, state="undone")["action"] == "undone"
        assert contents(service.index) == bad

    def test_nothing_to_undo(self, service, tmp_path):
        told = restore(service, state="undone", quarantine=str(tmp_path / "none"))
        assert (told["changed"], told["notes"]) == (
            False,
            [f"there is nothing in {tmp_path}/none to be put back"],
        )

    def test_no_folder_at_all(self, service):
        service.saved()
        good = contents(service.index)
        shutil.rmtree(service.index)
        told = restore(service)
        assert (told["state"], told["atomic"], contents(service.index)) == ("missing", True, good)
        restore(service, **told["undo"])
        assert contents(service.index) == {}

    def test_owner_group_and_mode_stay(self, service, method):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        service.index.chmod(0o2750)
        (service.index / "wp.faiss").chmod(0o640)
        (service.index / "wp.meta.json").chmod(0o604)
        (service.index / "wp.tfidf.npz").unlink()
        ids = (os.geteuid(), os.getegid())
        if not os.geteuid():
            ids = (1234, 2345)
            for path in (service.index, *service.index.iterdir()):
                os.chown(path, *ids)
            service.index.chmod(0o2750)
        restore(service)
        about = service.index.stat()
        assert (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (0o2750, *ids)
        for name, mode in (("wp.faiss", 0o640), ("wp.meta.json", 0o604), ("wp.tfidf.npz", 0o640)):
            about = (service.index / name).stat()
            assert (name, stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (name, mode, *ids)

    def test_a_link_to_the_folder_stays_one(self, service, tmp_path):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        link = tmp_path / "link"
        link.symlink_to(service.index)
        told = restore(service, path=str(link))
        assert (told["index"], link.is_symlink(), told["atomic"]) == (str(service.index), True, True)
        assert faiss_index.look(str(link), "wp", DIMENSION)["state"] == "ok"

    def test_quarantine_elsewhere(self, service, tmp_path):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        told = restore(service, quarantine=str(tmp_path / "a" / "b"))
        assert told["quarantine"].startswith(f"{tmp_path}/a/b/index.")
        assert stat.S_IMODE(os.stat(tmp_path / "a" / "b").st_mode) == 0o700

    def test_quarantine_on_another_filesystem(self, service, method):
        shared = Path("/dev/shm")
        if not os.access(shared, os.W_OK) or shared.stat().st_dev == service.index.stat().st_dev:
            pytest.skip("/dev/shm is no filesystem of its own that may be written to")
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        bad = contents(service.index)
        elsewhere = shared / f"faiss-{os.getpid()}-{method}"
        try:
            told = restore(service, quarantine=str(elsewhere))
            assert contents(Path(told["quarantine"])) == bad
            assert left_over(service) == []
            restore(service, **told["undo"])
            assert contents(service.index) == bad
        finally:
            shutil.rmtree(elsewhere)

    def test_in_the_folder_itself_there_is_no_quarantine(self, service):
        with pytest.raises(Refused, match="in the folder that is replaced; name another one"):
            restore(service, quarantine=str(service.index / "old"))

    def test_what_is_written_meanwhile_is_not_lost(self, service, monkeypatch):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        exchange = faiss_restoring._rename_exchange

        def late(one, other):
            (service.index / "embeddings.cache.jsonl").write_text("late")
            exchange(one, other)

        monkeypatch.setattr(faiss_restoring, "_rename_exchange", late)
        restore(service)
        assert (service.index / "embeddings.cache.jsonl").read_text() == "late"


class TestChoosing:
    def test_the_newest_that_can_be_trusted(self, service):
        older = service.saved(ago=600)
        flip(service.saved(ago=60), 600)
        os.truncate(service.index / "wp.faiss", 918)
        service.saved(ago=30)
        told = restore(service)
        assert told["backup"] == str(older)
        assert any("has 918 bytes" in note for note in told["notes"])
        assert any("its MD5 is" in note for note in told["notes"])

    def test_by_its_id_its_path_or_a_folder(self, service, tmp_path):
        older = service.saved(ago=600)
        first = contents(service.index)
        make(service.index, seed=2, word="new")
        service.saved(ago=60)
        second = contents(service.index)
        folder = make(tmp_path / "unpacked", seed=3)
        for backup, wanted in (
            (older.name[: -len(".tar.gz")], first),
            ("latest_verified", second),
            (older.name, first),
            (str(folder), contents(folder)),
            (str(older), first),
        ):
            assert restore(service, backup=backup)["action"] == "restored"
            assert contents(service.index) == wanted

    def test_an_archive_that_nobody_has_recorded(self, service):
        archive = service.saved()
        service.history.unlink()
        os.truncate(service.index / "wp.faiss", 918)
        with pytest.raises(Refused, match=r"has no backup of wp that can be trusted"):
            restore(service)
        told = restore(service, backup=str(archive))
        assert any("has no manifest and no line in the service's history" in note for note in told["notes"])

    def test_of_a_full_backup_only_the_index(self, service):
        service.saved(kind="full", more=[("config.yml", b"api: {}"), ("incidents.jsonl", b"{}")])
        good = contents(service.index)
        os.truncate(service.index / "wp.faiss", 918)
        restore(service)
        assert contents(service.index) == good
        assert sorted(os.listdir(service.index)) == sorted(NAMES)

    @pytest.mark.parametrize(
        "more, says",
        [
            ({"backup_dir": None}, "backup is latest_verified, which is looked for in backup_dir; give backup_dir"),
            ({"backup": "backup_7", "backup_dir": None}, "backup is backup_7, which is looked for in backup_dir"),
            ({"backup": "backup_7"}, "backup_7.tar.gz does not exist"),
            ({"backup": "/etc/passwd"}, "is damaged"),
            ({"path": "/none/at/all"}, "/none/at does not exist; correct path"),
            ({"path": "/etc/passwd"}, "is no folder; name the folder of the index"),
            ({"dimension": 8}, "of 16 dimensions, and those of the service's model have 8"),
        ],
    )
    def test_refusals_are_sentences(self, service, more, says):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        bad = contents(service.index)
        with pytest.raises(Refused) as caught:
            faiss_restoring.restore(
                faiss_restoring.Options(**{"dimension": DIMENSION, **service.options, **more}), False
            )
        assert says in str(caught.value)
        assert (contents(service.index), left_over(service)) == (bad, [])

    def test_a_backup_without_tfidf(self, service):
        for name in ("wp.tfidf.pkl", "wp.tfidf.npz"):
            (service.index / name).unlink()
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        with pytest.raises(Refused, match="the modes hybrid and bm25 do not work"):
            restore(service)
        assert restore(service, tfidf=False)["action"] == "restored"

    def test_a_backup_that_is_damaged_after_it_was_chosen(self, service, monkeypatch):
        archive = service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        bad = contents(service.index)
        verified = faiss_backups.latest_verified

        def then_damaged(*arguments, **more):
            got = verified(*arguments, **more)
            flip(archive, 900)
            return got

        monkeypatch.setattr(faiss_backups, "latest_verified", then_damaged)
        with pytest.raises(Refused, match="is not what was saved"):
            restore(service)
        assert contents(service.index) == bad
        monkeypatch.undo()
        flip(archive, 900)
        assert restore(service)["action"] == "restored"

    def test_in_words(self, service):
        archive = service.saved()
        assert faiss_restoring.in_words(restore(service, check=True)) == (
            f"nothing would change: it has what {archive} has"
        )
        os.truncate(service.index / "wp.faiss", 918)
        said = faiss_restoring.in_words(restore(service, check=True))
        assert said.startswith(f"from {archive} of ")
        assert f"({COUNT} vectors): there now: {COUNT} vectors, truncated, written " in said
        make(service.index, count=COUNT + 4, seed=2)
        assert "2 posts are not in it" in faiss_restoring.in_words(restore(service, check=True))


# Restores one backup after the other, and dies by SIGKILL at the nth thing that it does to files.
DYING = r"""
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_restoring
options, exchange, at = json.loads(sys.argv[2]), sys.argv[3] == "folder", int(sys.argv[4])
if not exchange:
    faiss_restoring._may_exchange = None
    faiss_restoring._Index._may_exchange = lambda self: False
did = 0
def hook(event, arguments):
    global did
    if event.startswith(("os.", "shutil.", "open", "ctypes.dlsym")):
        did += 1
        if did == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
faiss_restoring.restore(faiss_restoring.Options(**options), False)
print(did)
"""


def dying(service, how, at, **more):
    made = {"dimension": DIMENSION, **service.options, **more}
    return subprocess.run(
        [sys.executable, "-c", DYING, str(helpers.COLLECTIONS), json.dumps(made), how, str(at)],
        capture_output=True,
        text=True,
        check=False,
    )


class TestKilled:
    @pytest.mark.parametrize("how", ["folder", "files"])
    @pytest.mark.parametrize("state", ["restored", "undone"])
    def test_anywhere(self, tmp_path_factory, how, state):
        def prepared():
            service = Service(tmp_path_factory.mktemp("service")).aged()
            archive, good = service.saved(), contents(service.index)
            make(service.index, count=COUNT + 1, seed=2)
            (service.index / "embeddings.cache.jsonl").write_text("{}\n")
            before, after = contents(service.index), good
            if state == "undone":
                restore(service)
                before, after = after, before
            return service, archive, before, after

        whole = dying(prepared()[0], how, 0, state=state)
        assert whole.returncode == 0, whole.stderr
        steps = int(whole.stdout)
        assert steps > 30
        moments = sorted({*range(1, steps + 1, max(1, steps // 6)), *range(max(1, steps - 20), steps + 1, 4)})
        seen = set()
        for at in moments:
            service, archive, before, after = prepared()
            assert dying(service, how, at, state=state).returncode == -signal.SIGKILL
            now = contents(service.index)
            if how == "folder":
                # The old files or the new ones, all of them.
                assert now in (before, after)
            else:
                assert all(now[name] in (before[name], after[name]) for name in NAMES)
            seen.add("before" if now == before else "after" if now == after else "both")
            told = restore(service, state=state)
            assert contents(service.index) == after
            # However far it had come, the next run says what was done, and how to undo it; a third does nothing.
            if now == before or told["changed"]:
                assert (told["action"], told["changed"]) == (state, True)
                assert contents(Path(told["quarantine"])) == before
            assert left_over(service) == []
            assert not restore(service, state=state)["changed"]
            assert (service.index / "embeddings.cache.jsonl").read_text() == "{}\n"
            assert archive.exists()
            kept = [contents(path) for path in (service.index.parent / "index.quarantine").iterdir() if path.is_dir()]
            assert all(one in (before, after) for one in kept)
            assert before in kept
        assert {"before", "after"} <= seen

    def test_the_preview_of_what_is_half_done_says_so(self, service):
        service.saved()
        make(service.index, count=COUNT + 1, seed=2)
        steps = int(dying(service, "files", 0, backup="latest_verified").stdout)
        restore(service, state="undone")
        for at in range(steps - 1, 0, -4):
            assert dying(service, "files", at).returncode == -signal.SIGKILL
            if (service.index / ".wp.restoring" / "job.json").exists():
                break
            restore(service)
            restore(service, state="undone")
        seen = faiss_index.look(str(service.index), "wp", DIMENSION)
        assert any("was cut short or is under way; run faiss_restore again" in limit for limit in seen["limits"])
        foreseen = restore(service, check=True)
        assert foreseen["changed"]
        assert (
            f"what a killed run has begun is finished first; see {service.index}/.wp.restoring/job.json"
            in (foreseen["notes"])
        )
        restore(service)
        assert faiss_index.look(str(service.index), "wp", DIMENSION)["limits"] == []

    def test_a_job_that_is_damaged_is_not_guessed_at(self, service):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)
        work = service.index.parent / ".index.restoring"
        work.mkdir()
        (work / "job.json").write_text("{")
        with pytest.raises(Refused, match=r"job.json is damaged .*; see what is in its folder before it is removed"):
            restore(service)


READER = r"""
import sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_index
print("ready", flush=True)
while True:
    with faiss_index.Folder(sys.argv[2], "wp") as folder:
        found = faiss_index.checksums(folder, faiss_index.Clock(None))
    print(*found.values(), flush=True)
"""


def test_readers_see_files_that_belong_together(service, tmp_path):
    one = service.saved(ago=60)
    make(service.index, count=COUNT + 1, seed=2)
    other = saved(service.index, service.backups, time.time() - 30)
    sets = []
    for backup in (one, other):
        told = restore(service, backup=str(backup), check=True)
        sets.append(list(told["files_after"].values()))
    with open(tmp_path / "seen", "w+") as log:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(helpers.COLLECTIONS), str(service.index)], stdout=log
        )
        try:
            while not (tmp_path / "seen").stat().st_size:
                time.sleep(0.01)
            for turn in range(30):
                assert restore(service, backup=str((one, other)[turn % 2]))["atomic"]
            assert reader.poll() is None
        finally:
            reader.kill()
            reader.wait()
        log.seek(0)
        # The last line may be torn.
        lines = [line.split() for line in log.read().splitlines()[1:-1]]
    assert {tuple(line) for line in lines} == {tuple(found) for found in sets}


def test_two_runs_at_once(service):
    service.saved()
    os.truncate(service.index / "wp.faiss", 918)
    handle = os.open(service.index.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="is locked by another run; wait for its end"):
            restore(service, timeout=0.2)
    finally:
        os.close(handle)
    assert restore(service)["action"] == "restored"


def test_a_folder_that_is_a_mount(service):
    """Where the index is a volume of its own, as in a container."""
    service.saved()
    good = contents(service.index)
    os.truncate(service.index / "wp.faiss", 918)
    bad = contents(service.index)
    made = {"dimension": DIMENSION, **service.options}
    script = f'mount --bind {service.index} {service.index} && exec {sys.executable} -c "$0" "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, _RESTORE, str(helpers.COLLECTIONS), json.dumps(made)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["action"], told["atomic"]) == ("restored", False)
    assert (contents(service.index), contents(Path(told["quarantine"])), left_over(service)) == (good, bad, [])


_RESTORE = r"""
import json, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_restoring
print(json.dumps(faiss_restoring.restore(faiss_restoring.Options(**json.loads(sys.argv[2])), False)))
"""

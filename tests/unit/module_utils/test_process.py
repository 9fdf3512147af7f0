# SPDX-License-Identifier: GPL-3.0-or-later
"""procfs and the probe process, on processes that the tests start."""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import process
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import context, look, source

LISTENER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
"""


@contextlib.contextmanager
def child(code, lines=1):
    """A process that prints its port and then does what the code says; gives (pid, port) after so many lines."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER + code], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as started:
        try:
            port = int(started.stdout.readline())
            for _number in range(lines - 1):
                started.stdout.readline()
            yield started.pid, port
        finally:
            started.kill()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_own_listening_socket(family, host):
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert procfs.listeners(port) == [os.getpid()]
        assert [uid for _inode, uid in procfs.sockets(port, procfs.LISTEN)] == [os.geteuid()]
    assert procfs.listeners(port) == []


def test_connections_are_those_of_the_servers_side():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert look("process", port=port, value="connections")["value"] == 0
        with contextlib.ExitStack() as stack:
            for _number in range(3):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                stack.enter_context(listener.accept()[0])
            assert look("process", port=port, value="connections")["value"] == 3


def test_running_names_the_process():
    before = time.time()
    with child("sys.stdin.read()") as (pid, port):
        seen = look("process", port=port)
        assert seen["value"] is True
        assert seen["evidence"]["pid"] == pid
        assert seen["evidence"]["processes"] == 1
        assert seen["evidence"]["program"].startswith("python")
        began = calendar.timegm(time.strptime(seen["evidence"]["started_at"], "%Y-%m-%dT%H:%M:%SZ"))
        assert before - 5 < began < time.time() + 5
        assert -5 < look("process", port=port, value="age")["value"] < time.time() - before + 5


def test_workers_that_share_a_port_are_one_service_oldest_first():
    with child("pid = os.fork(); print(pid, flush=True)\nsys.stdin.read()") as (pid, port):
        found = procfs.listeners(port)
        while len(found) < 2:
            found = procfs.listeners(port)
        assert found[0] == pid
        memory = look("process", port=port, value="memory")
        assert memory["evidence"]["processes"] == 2
        # What they share is there once, and what they share with others in part.
        assert 0 < memory["value"] < sum(procfs.resident_bytes(one) for one in found)
        os.kill(found[1], 9)


def test_nothing_on_a_port():
    port = helpers.free_port()
    seen = look("process", port=port)
    assert (seen["value"], seen["note"]) == (False, f"nothing listens on port {port}")
    with pytest.raises(NoAnswer, match="Nothing listens on port"):
        look("process", port=port, value="connections")
    for value in ("age", "memory", "cpu", "open_files"):
        with pytest.raises(NoAnswer, match=f"There is no process for port {port}") as caught:
            look("process", port=port, value=value)
        assert caught.value.kind == "no data"


def test_unit_that_does_not_exist():
    assert procfs.unit_pids("no-such-unit-here") == []
    seen = look("process", unit="no-such-unit-here")
    assert (seen["value"], seen["note"]) == (False, "no-such-unit-here has no process")
    with pytest.raises(NoAnswer, match="no process for unit no-such-unit-here"):
        look("process", unit="no-such-unit-here", value="memory")


def test_memory_grows_with_what_is_held():
    with child("sys.stdin.readline(); held = b'x' * 50_000_000; print('held', flush=True); sys.stdin.read()") as (
        pid,
        port,
    ):
        before = look("process", port=port, value="memory")["value"]
        assert 1e6 < before < 50e6
        with open(f"/proc/{pid}/fd/0", "wb") as stdin:
            stdin.write(b"\n")
            stdin.flush()
            for _attempt in range(200):
                after = look("process", port=port, value="memory")["value"]
                if after >= before + 45e6:
                    break
                time.sleep(0.05)
        assert after >= before + 45e6


def test_cpu_of_a_busy_and_of_an_idle_process(monkeypatch):
    monkeypatch.setattr(process, "LEAST_AGE", 0.0)
    with child("print(1, flush=True)\nwhile True: pass") as (_pid, port):
        busy = look("process", context(sample_seconds=0.5), port=port, value="cpu")
        assert busy["note"] is None
        assert 10 < busy["value"] < 150
        since = look("process", port=port, value="cpu")
        assert since["note"] == "average since process start, without a sample time"
        assert since["value"] > 5
    with child("sys.stdin.read()") as (_pid, port):
        assert look("process", context(sample_seconds=0.3), port=port, value="cpu")["value"] < 10


def test_average_of_a_process_that_has_only_started():
    with child("sys.stdin.read()") as (_pid, port):
        with pytest.raises(
            NoAnswer, match="in which it was busy starting; set runbook_sample_seconds above 0"
        ) as caught:
            look("process", port=port, value="cpu")
        assert caught.value.kind == "no data"


def test_cpu_of_a_process_that_was_busy_once(monkeypatch):
    """What it used before the sample is no part of the sample, and all of the average since its start."""
    monkeypatch.setattr(process, "LEAST_AGE", 0.0)
    with child("import time\nwhile time.process_time() < 1: pass\nprint(1, flush=True); sys.stdin.read()", lines=2) as (
        pid,
        port,
    ):
        assert look("process", context(sample_seconds=0.3), port=port, value="cpu")["value"] < 10
        since = look("process", port=port, value="cpu")["value"]
        assert since == pytest.approx(100 / (time.time() - procfs.started(pid)), rel=0.4)


def test_open_files_and_their_limit():
    with child(
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "held = [open('/dev/null') for _n in range(50)]; print(1, flush=True); sys.stdin.read()"
    ) as (pid, port):
        while procfs.open_files(pid)[0] < 50:
            time.sleep(0.01)
        seen = look("process", port=port, value="open_files")
    assert 50 <= seen["value"] < 70
    assert seen["evidence"]["limit"] == 200


def test_share_of_the_limit_of_open_files():
    code = (
        "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "child = os.fork()\n"
        "held = [open('/dev/null') for _n in range(50 if child else 100)]\n"
        "print(1, flush=True); sys.stdin.read(); child and os.kill(child, 9)"
    )
    with child(code, lines=3) as (pid, port):
        seen = look("process", port=port, value="open_files")
        assert seen["evidence"]["share"] == pytest.approx(seen["value"] / 200, abs=0.001)
        worst = look("process", port=port, value="open_files_share")
        assert worst["evidence"]["pid"] in procfs.children(pid)
        for other in procfs.children(pid):
            os.kill(other, 9)
    assert 0.5 <= worst["value"] < 0.6
    assert worst["value"] == worst["evidence"]["open_files"] / worst["evidence"]["limit"]


HOLDING = "held = b'x' * 100_000_000; print('held', flush=True); sys.stdin.read()"


def test_share_of_the_hosts_memory_or_of_a_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(procfs, "CGROUP", str(tmp_path))
    with child(HOLDING, lines=2) as (pid, port):
        seen = look("process", port=port, value="memory_share")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert seen["value"] == pytest.approx(procfs.resident_bytes(pid) / total, rel=0.05)
        assert (seen["evidence"]["limit"], seen["note"]) == (None, None)
        (tmp_path / "memory.max").write_text("200000000\n")
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory/memory.limit_in_bytes").write_text("200000000\n")
        seen = look("process", port=port, value="memory_share")
    assert 0.5 < seen["value"] < 0.8
    assert seen["evidence"]["limit"] == 200_000_000
    assert seen["note"] == "of the memory limit of its control group"


GROWING = """
held = []
while True:
    held.append(b"x" * 1_000_000)
    time.sleep(0.01)
"""


def test_growth_of_memory():
    with child("import time" + GROWING) as (_pid, port):
        seen = look("process", context(sample_seconds=0.5), port=port, value="memory_growth")
    assert seen["value"] > 1_000_000
    evidence = seen["evidence"]
    assert seen["samples"] >= 0.5
    assert seen["value"] == pytest.approx((evidence["rss"] - evidence["rss_before"]) / seen["samples"])
    with child("sys.stdin.read()") as (_pid, port):
        assert look("process", context(sample_seconds=0.3), port=port, value="memory_growth")["value"] < 1_000_000


def test_growth_of_memory_within_a_window():
    """A window is never longer than the sample time, for which the whole diagnosis waits."""
    with child("sys.stdin.read()") as (_pid, port):
        for window, least in ((0.2, 0.2), (3600.0, 0.4)):
            at = context(sample_seconds=0.4)
            assert look("process", at, port=port, value="memory_growth", window=window)["samples"] >= least
        with pytest.raises(NoAnswer, match="needs two reads; set runbook_sample_seconds above 0") as caught:
            look("process", port=port, value="memory_growth")
    assert caught.value.kind == "no data"


MAPPING = """
import mmap
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(held[place] for place in range(0, len(held), 4096))
print("mapped", flush=True)
sys.stdin.read()
"""


def test_share_of_files_in_the_memory(tmp_path):
    model = tmp_path / "the model.bin"
    model.write_bytes(b"x" * 100_000_000)
    code = MAPPING.replace("sys.argv[1]", repr(str(model)))
    with child(code, lines=2) as (_pid, port):
        seen = look("process", port=port, value="mapped_share")
    assert seen["value"] > 0.8
    assert seen["evidence"]["mapped"] <= seen["evidence"]["rss"]
    assert seen["evidence"]["largest"][0]["path"] == str(model)
    assert seen["evidence"]["largest"][0]["rss"] == pytest.approx(100_000_000, rel=0.01)
    with child(HOLDING, lines=2) as (_pid, port):
        assert look("process", port=port, value="mapped_share")["value"] < 0.3


def test_a_process_that_is_stopped():
    with child("sys.stdin.read()") as (pid, port):
        os.kill(pid, signal.SIGSTOP)
        for _attempt in range(200):
            seen = look("process", port=port, value="state")
            if seen["value"] == "stopped":
                break
            time.sleep(0.02)
        assert seen["value"] == "stopped"
        assert seen["evidence"]["pid"] == pid
        # It still listens, which is all that one sees from outside.
        assert look("process", port=port)["value"] is True
        os.kill(pid, signal.SIGCONT)
        for _attempt in range(200):
            if look("process", port=port, value="state")["value"] == "sleeping":
                break
            time.sleep(0.02)
        assert look("process", port=port, value="state")["value"] == "sleeping"


def test_the_state_is_that_of_the_worker_that_is_worst_off():
    with child("worker = os.fork(); print(worker, flush=True); sys.stdin.read()", lines=2) as (pid, port):
        worker = next(iter(procfs.children(pid)))
        os.kill(worker, signal.SIGSTOP)
        for _attempt in range(200):
            seen = look("process", port=port, value="state")
            if seen["value"] == "stopped":
                break
            time.sleep(0.02)
        os.kill(worker, signal.SIGKILL)
    assert (seen["value"], seen["evidence"]["pid"]) == ("stopped", worker)


def test_a_zombie():
    # It listens no more, so only a control group still has it: here, the group's part is played by its number.
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        for _attempt in range(500):
            if procfs.state(ended.pid) == "Z":
                break
            time.sleep(0.02)
        evidence = {}
        assert process._state([os.getpid(), ended.pid], evidence) == "zombie"
        assert evidence["pid"] == ended.pid


def test_threads():
    code = (
        "import threading\n"
        "for _n in range(5): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(1, flush=True); sys.stdin.read()"
    )
    with child(code, lines=2) as (_pid, port):
        assert look("process", port=port, value="threads")["value"] == 6


def test_gpu_is_a_device_that_is_open():
    with child("held = open('/dev/null'); print(1, flush=True); sys.stdin.read()") as (pid, port):
        while procfs.devices(pid, ("/dev/null",)) != ["/dev/null"]:
            time.sleep(0.01)
        assert procfs.devices(pid, ("/dev/nvidia", "/dev/kfd")) == []
        seen = look("process", port=port, value="gpu")
    assert seen["value"] is False
    assert seen["evidence"]["devices"] == []


def test_name_with_spaces_and_parentheses():
    """The name stands between parentheses in /proc/<pid>/stat and moves what follows, where one splits at spaces."""
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) R 1 (b c', 0, 0, 0)\nprint(1, flush=True)\nsys.stdin.read()"
    with child(code) as (pid, port):
        while procfs.name(pid) != "a) R 1 (b c":
            time.sleep(0.01)
        assert look("process", port=port)["evidence"]["program"] == "a) R 1 (b c"
        assert abs(procfs.started(pid) - time.time()) < 30


def test_process_that_is_gone():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert procfs.started(ended.pid) == float("inf")
    assert procfs.name(ended.pid) == "?"
    assert procfs.unit_of(ended.pid) == ""


def test_arguments_are_not_shown():
    with child("sys.stdin.read() # s3same") as (_pid, port):
        for value in ("running", "age", "open_files", "gpu"):
            assert "s3same" not in str(look("process", port=port, value=value))


LOCKED = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print(1, flush=True)\nsys.stdin.read()"


def look_as_nobody(value):
    """What is seen of a process that has made itself undumpable, which hides its files from everybody but root."""
    with child(LOCKED) as (_pid, port):
        return port, helpers.python(
            """
            import sys
            from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
            from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
            exec(helpers.BECOME_NOBODY)
            try:
                print(helpers.look("process", port=int(sys.argv[1]), value=sys.argv[2]))
            except NoAnswer as error:
                print(error.kind, error)
            """,
            port,
            value,
        )


def test_anybody_sees_that_somebody_listens():
    port, said = look_as_nobody("running")
    assert said.startswith(f"{{'value': True, 'evidence': {{'port': {port}}}")
    assert "run with -b" in said


@pytest.mark.parametrize("value", ["age", "memory", "open_files"])
def test_process_of_somebody_else(value):
    port, said = look_as_nobody(value)
    assert said.startswith(f"permission Port {port} is listened on by a process of ")
    assert said.endswith("run with -b.")


# --- what may have changed


def git(folder, *words):
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
    )
    return done.stdout.strip()


@pytest.fixture()
def checkout(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


def deployment(**values):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return look("process", port=listener.getsockname()[1], value="age", **values)["evidence"]


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def loose(folder):
    return folder


def packed(folder):
    git(folder, "pack-refs", "--all")
    assert not (folder / ".git/refs/heads/main").exists()
    return folder


def packed_and_then_moved(folder):
    git(folder, "pack-refs", "--all")
    git(folder, "commit", "-q", "--allow-empty", "-m", "two")
    return folder


def detached(folder):
    git(folder, "checkout", "-q", "--detach")
    return folder


def slashed_branch(folder):
    git(folder, "checkout", "-q", "-b", "feature/a-b")
    return folder


def worktree(folder):
    git(folder, "worktree", "add", "-q", "-b", "other", "../tree")
    git(folder.parent / "tree", "commit", "-q", "--allow-empty", "-m", "in the worktree")
    return folder.parent / "tree"


def worktree_packed(folder):
    tree = worktree(folder)
    git(folder, "pack-refs", "--all")
    return tree


def worktree_detached(folder):
    git(folder, "worktree", "add", "-q", "--detach", "../tree")
    return folder.parent / "tree"


def submodule(folder):
    git(folder.parent, "init", "-q", "-b", "main", "outer")
    git(folder.parent / "outer", "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(folder), "inner")
    assert (folder.parent / "outer/inner/.git").is_file()
    return folder.parent / "outer/inner"


@pytest.mark.parametrize(
    "prepare",
    [
        loose,
        packed,
        packed_and_then_moved,
        detached,
        slashed_branch,
        worktree,
        worktree_packed,
        worktree_detached,
        submodule,
    ],
)
def test_commit_of_a_checkout(checkout, prepare):
    folder = prepare(checkout)
    wanted = git(folder, "rev-parse", "HEAD")
    before = snapshot(folder.parent)
    assert re.fullmatch("[0-9a-f]{40}", wanted)
    assert deployment(checkout=str(folder))["commit"] == wanted
    assert snapshot(folder.parent) == before


def test_what_is_no_checkout_has_no_commit(tmp_path):
    assert deployment(checkout=str(tmp_path))["commit"] is None
    git(tmp_path, "init", "-q")
    assert deployment(checkout=str(tmp_path))["commit"] is None
    assert "commit" not in deployment()


def test_when_the_configuration_was_written(tmp_path):
    path = tmp_path / ".env"
    path.write_text("A=b")
    os.utime(path, (0, 1_700_000_000))
    missing = str(tmp_path / "none")
    facts = deployment(files=[str(path), missing])
    assert facts["files"] == {str(path): "2023-11-14T22:13:20Z", missing: "no such file or directory"}


def test_output_of_a_process(tmp_path):
    path = tmp_path / "out"
    with path.open("wb") as out, subprocess.Popen(["sleep", "60"], stdout=out, stderr=subprocess.DEVNULL) as to_file:
        assert procfs.output_of(to_file.pid) == str(path)
        to_file.kill()
    with path.open("wb") as out, subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=out) as errors:
        assert procfs.output_of(errors.pid) == str(path)
        errors.kill()
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as nowhere:
        assert procfs.output_of(nowhere.pid) == ""
        nowhere.kill()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"port": 0}, "port is 0; it goes from 1 to 65535"),
        ({"port": 65536}, "port is 65536"),
        ({"unit": "x", "value": "connections"}, "connections are counted by port; give port"),
        ({"port": 1, "value": "memory_growth", "window": 0}, "window is 0; it is a number of seconds above 0"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        process.validate(source("process", **values))


def test_description():
    assert process.describe(source("process", port=8000)) == "process port 8000 running"
    assert process.describe(source("process", unit="vritti", value="cpu")) == "process unit vritti cpu"

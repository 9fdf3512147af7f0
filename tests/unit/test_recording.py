# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a run says that it is, whether the owner of a lock still lives, and what is written into the timeline."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import timeline
from ansible_collections.oncall.runbooks.plugins.plugin_utils import recording

OWNER = """
import json, os, sys
sys.path[:0] = sys.argv[1:]
from ansible_collections.oncall.runbooks.plugins.plugin_utils import recording
# Tasks run in processes below that of the run: what they say of the owner is the same.
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, json.dumps(recording.owner()).encode())
    os._exit(0)
os.wait()
below = json.loads(os.read(reading, 10000))
assert below == recording.owner(), (below, recording.owner())
print(json.dumps(below), flush=True)
sys.stdin.read()
"""


@pytest.fixture()
def run():
    """A process like a run, and what it says of itself."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process, json.loads(process.stdout.readline())
        process.kill()


def test_owner_is_the_run_and_not_the_task_below_it(run):
    process, owner = run
    assert owner["pid"] == process.pid
    assert owner["controller"] == socket.gethostname()
    assert not recording.dead(owner)


def test_owner_that_is_gone_is_dead(run):
    process, owner = run
    process.send_signal(signal.SIGKILL)
    # Until somebody waits for it, it is there by its number alone.
    while Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z":
        assert process.returncode is None
    assert recording.dead(owner)
    process.wait()
    assert recording.dead(owner)


def test_number_that_is_another_process_by_now_is_dead(run):
    _process, owner = run
    assert recording.dead({**owner, "started": str(int(owner["started"]) - 1)})
    assert recording.dead({**owner, "pid": os.getpid()})


def test_of_another_controller_nothing_is_known(run):
    process, owner = run
    process.kill()
    process.wait()
    assert not recording.dead({**owner, "controller": "somewhere-else"})


@pytest.mark.parametrize("other", [{"boot": "another"}, {"pids": "pid:[1]"}])
def test_machines_and_containers_that_share_a_name_are_not_one(run, other):
    process, owner = run
    process.kill()
    process.wait()
    assert recording.dead(owner)
    assert not recording.dead({**owner, **other})


@pytest.mark.parametrize("held", [None, {}, {"controller": socket.gethostname()}])
def test_lock_that_does_not_say_whose_it_is_is_not_dead(held):
    assert not recording.dead(held)


def test_user_behind_sudo(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "ann")
    assert recording.user() == "ann"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setenv("LOGNAME", "bob")
    assert recording.user() == getpass.getuser() == "bob"


def test_entry_says_who_when_and_what():
    entry = recording.entry("step begun", "high_latency", "v1", plan="p", step="s", outcome=None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry["at"])
    assert entry["who"] == f"{recording.user()}@{socket.gethostname()}"
    assert {key: entry[key] for key in list(entry)[2:]} == {
        "event": "step begun", "runbook": "high_latency", "host": "v1", "plan": "p", "step": "s",
    }  # fmt: skip


def test_append_with_a_key_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(timeline.ENVIRONMENT, "s3same")
    told = recording.append("records", None, recording.entry("a", "r", None), recording.entry("b", "r", "v1"))
    path = str(tmp_path / "records" / "timeline.jsonl")
    assert (told["path"], told["keyed"]) == (path, True)
    assert [json.loads(line)["event"] for line in told["lines"]] == ["a", "b"]
    assert timeline.verify(path, b"s3same", told["last"]).ok
    assert "s3same" not in json.dumps(told)


def test_append_with_a_key_of_a_file_and_without_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(timeline.ENVIRONMENT, raising=False)
    (tmp_path / "key").write_text("s3same\n")
    (tmp_path / "key").chmod(0o600)
    told = recording.append("~/keyed", "~/key", recording.entry("a", "r", None))
    assert timeline.verify(told["path"], b"s3same", told["last"]).ok
    told = recording.append("~/plain", None, recording.entry("a", "r", None))
    assert (told["keyed"], timeline.verify(told["path"], None, told["last"]).ok) == (False, True)
    with pytest.raises(ValueError, match="cannot be read"):
        recording.append("~/keyed", "~/none", recording.entry("a", "r", None))


def test_nothing_to_write_or_nowhere(tmp_path):
    assert recording.append(None, None, recording.entry("a", "r", None)) == {}
    assert recording.append(str(tmp_path), None) == {}
    assert os.listdir(tmp_path) == []

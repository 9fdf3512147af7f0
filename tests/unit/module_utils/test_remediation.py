# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's lock and records: several who want them, runs that are killed anywhere, disks that are full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import remediation
from ansible_collections.oncall.runbooks.plugins.module_utils.clock import utc
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.remediation import (
    KEPT_RECORDS,
    STRIKES,
    StateDir,
    begin,
    begin_rollback,
    strikes,
)
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers

ID = "20261124T030000Z-0123456789ab"
PLAN = "20261124T0300Z-0123456789ab"


def owner(name="ann", **more):
    return {"user": name, "controller": "shell-1", "pid": 4711, "started": "99", **more}


def step(name="restart_vritti", **more):
    return {"id": name, "title": f"Do {name}", "state": "planned", **more}


def record(name=ID, **more):
    return {
        "id": name,
        "plan": PLAN,
        "runbook": "high_latency",
        "by": {"user": "ann"},
        "started_at": utc(time.time()),
        "state": "running",
        "steps": [step()],
        "findings": [],
        **more,
    }


def numbered(number):
    return f"20261124T0300{number:02}Z-0123456789ab"


@pytest.fixture()
def state(tmp_path):
    made = StateDir(str(tmp_path / "state"))
    made.prepare()
    return made


def lock(state):
    with open(state.lock_file, encoding="utf-8") as file:
        return json.load(file)


def damage(path, content):
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


# The lock.


def test_take_renew_and_release(state):
    assert state.lock() is None
    state.take(owner(dead=[]), ID, 900, False)
    held = state.lock()
    assert held["owner"] == owner()
    assert held["record"] == ID
    damage(state.lock_file, json.dumps({**held, "expires_at": utc(time.time() + 5)}))
    with pytest.raises(Refused, match=r"is not this run's any more: ann@shell-1 has taken it over\. It stops here\."):
        state.renew("another", owner())
    assert state.lock()["expires_at"] != held["expires_at"]
    state.renew(ID, owner())
    assert state.lock()["expires_at"] >= held["expires_at"]
    state.release("another")
    assert state.lock()
    state.release(ID, owner("bob"))
    assert state.lock()
    state.release(ID)
    state.release(ID)
    assert not os.path.exists(state.lock_file)


def test_held_by_somebody_else(state):
    state.take(owner(), ID, 900, False)
    held = lock(state)
    for other in (owner("bob"), owner(pid=4712), owner(started="100"), owner(controller="shell-2")):
        with pytest.raises(Refused) as caught:
            state.take(other, "other", 900, False)
        said = str(caught.value)
        assert said.startswith(f"ann@shell-1 holds the lock of {state.path} since {held['since']} for {ID}, until")
        assert "-e runbook_override=lock" in said
        assert said.endswith("Nothing was changed.")
        assert lock(state) == held


def test_override_dead_owner_and_expiry(state):
    state.take(owner(), ID, 900, False)
    state.take(owner("bob"), "second", 900, True)
    assert lock(state)["owner"]["user"] == "bob"
    state.take(owner("cid", dead=[owner("bob")]), "third", 900, False)
    assert lock(state)["owner"] == owner("cid")
    with pytest.raises(Refused):
        state.take(owner("dan", dead=[owner("bob")]), "fourth", 900, False)
    damage(state.lock_file, json.dumps({**lock(state), "expires_at": utc(time.time() - 1)}))
    assert state.lock() is None
    state.take(owner("dan"), "fourth", 900, False)
    # The owner who came too late must not let go of what is another's by now.
    state.release("third")
    with pytest.raises(Refused, match="dan@shell-1 has taken it over"):
        state.renew("third", owner("cid"))
    assert lock(state)["record"] == "fourth"


FIGHTER = """
import json, sys
from ansible_collections.oncall.runbooks.plugins.module_utils import remediation
path, name = sys.argv[1:]
state = remediation.StateDir(path)
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    try:
        # A run of its own in each round: who is dead does not come back.
        state.take({"user": name, "pid": number, "dead": json.loads(line)}, name, 900, False)
        print("won", flush=True)
    except remediation.Refused:
        print("lost", flush=True)
"""


def test_of_many_who_want_the_lock_one_gets_it(state):
    fighters = [
        subprocess.Popen(
            [sys.executable, "-c", FIGHTER, state.path, f"run-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(helpers.COLLECTIONS)},
        )
        for number in range(6)
    ]
    try:
        for fighter in fighters:
            assert fighter.stdout.readline() == "ready\n"
        dead = []
        for _round in range(40):
            # After the first round all know the owner before to be dead: only one may inherit.
            for fighter in fighters:
                fighter.stdin.write(json.dumps(dead) + "\n")
                fighter.stdin.flush()
            said = [fighter.stdout.readline() for fighter in fighters]
            assert sorted(said) == ["lost\n"] * 5 + ["won\n"]
            assert lock(state)["record"] == f"run-{said.index('won' + chr(10))}"
            dead = [lock(state)["owner"]]
    finally:
        for fighter in fighters:
            fighter.communicate()


def test_remediations_of_many_runs_exclude_each_other(state):
    """Each does all of it, again and again: what is in its hands when it has the lock is nobody else's."""
    code = """
    import sys, time
    from ansible_collections.oncall.runbooks.plugins.module_utils import remediation
    path, name = sys.argv[1:]
    state = remediation.StateDir(path)
    wins = 0
    end = time.monotonic() + 60
    while wins < 15 and time.monotonic() < end:
        number = f"{name}-{wins:03}"
        step = {"id": "s", "state": "planned"}
        record = {"id": number, "plan": number, "runbook": "r", "by": {}, "state": "running", "steps": [step]}
        try:
            record, went_on = remediation.begin(state, record, {"user": name}, 900, [])
        except remediation.Refused:
            continue
        # Nobody else is at it, and nobody else's end has been written over.
        others = [item["state"] for item in state.all() if item["id"] != number]
        assert set(others) <= {"verified"}, others
        state.write({**record, "state": "verified"})
        state.release(number)
        wins += 1
    assert wins == 15, wins
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), state.path, name],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(helpers.COLLECTIONS)},
        )
        for name in "abc"
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert {item["state"] for item in state.all()} == {"verified"}
    assert len(state.all()) == 45


# The record.


def test_begin_writes_the_record_and_holds_the_lock(state):
    made, went_on = begin(state, record(), owner(), 900, [])
    assert (made, went_on) == (record(started_at=made["started_at"]), False)
    assert state.read(ID) == made
    assert state.all() == [made]
    assert lock(state)["record"] == ID
    assert os.stat(state.record_path(ID)).st_mode & 0o777 == 0o644
    assert os.stat(os.path.join(state.path, "private")).st_mode & 0o777 == 0o700


def test_the_same_plan_goes_on_under_its_record(state):
    first, _went_on = begin(state, record(), owner(), 900, [])
    first["steps"][0].update(state="done", before={"setting": "a"})
    state.write(first)
    again = record(numbered(9), by={"user": "bob"}, steps=[step(), step("second")])
    made, went_on = begin(state, again, owner("bob", dead=[owner()]), 900, [])
    assert went_on
    assert (made["id"], made["by"]) == (ID, {"user": "bob"})
    assert [(item["id"], item["state"]) for item in made["steps"]] == [
        ("restart_vritti", "done"),
        ("second", "planned"),
    ]
    assert made["steps"][0]["before"] == {"setting": "a"}
    assert [item["id"] for item in state.all()] == [ID]
    # What comes after speaks of the record by its id.
    assert lock(state)["record"] == ID
    state.release(ID)
    assert state.lock() is None


@pytest.mark.parametrize("change", [{"plan": "20261124T0300Z-ba9876543210"}, {"runbook": "resource_exhaustion"}])
def test_another_plan_supersedes_what_was_left(state, change):
    begin(state, record(), owner(), 900, [])
    made, went_on = begin(state, record(numbered(9), **change), owner("bob"), 900, ["lock"])
    assert (made["id"], went_on) == (numbered(9), False)
    old = state.read(ID)
    assert (old["state"], old["superseded_by"]) == ("interrupted", numbered(9))
    assert state.read(numbered(9))["state"] == "running"


@pytest.mark.parametrize(
    ("state_of", "way_out"),
    [
        ("running", f"go on with -e runbook_plan={PLAN}, or undo it with high_latency.yml"),
        ("rolling back", "go on with high_latency.yml"),
    ],
)
def test_what_was_cut_short_and_can_be_undone_is_not_buried(state, state_of, way_out):
    half = record(state=state_of, steps=[step("set_timeout", state="running", reversible=True)])
    state.prepare()
    state.write(half)
    new = record(numbered(9), plan="another")
    with pytest.raises(Refused) as caught:
        begin(state, new, owner(), 900, ["lock"])
    assert str(caught.value) == (
        f"Remediation {ID} of high_latency was cut short (Do set_timeout): {way_out} --tags rollback -e "
        f"runbook_rollback_id={ID}; -e runbook_override=interrupted leaves it as it is. Nothing was changed."
    )
    assert (state.all(), state.lock()) == ([half], None)
    begin(state, new, owner(), 900, ["interrupted"])
    assert state.read(ID)["state"] == "interrupted"


def test_refused_begin_leaves_no_trace(state):
    begin(state, record(), owner(), 900, [])
    before = state.all(), lock(state)
    with pytest.raises(Refused, match="holds the lock"):
        begin(state, record(numbered(9), plan="other"), owner("bob"), 900, [])
    assert (state.all(), lock(state)) == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value"),
        ('{"id": "x"', "Expecting"),
        ("\0" * 100, "Expecting value"),
        ("[]", "it is no mapping"),
        ("null", "it is no mapping"),
        ('{"id": "x", "plan": "p", "runbook": "r", "steps": []}', "it has no state"),
    ],
)
def test_damaged_record_is_a_sentence(state, content, why):
    path = state.record_path(numbered(1))
    damage(path, content)
    for action in (
        state.all,
        lambda: state.read(numbered(1)),
        lambda: begin(state, record(), owner(), 900, []),
        lambda: begin_rollback(state, numbered(1), owner(), 900, []),
    ):
        with pytest.raises(Refused) as caught:
            action()
        assert str(caught.value).startswith(f"{path} is damaged ({why}")
        assert str(caught.value).endswith("look at it, and move it away when its remediation is settled.")
        assert state.lock() is None


def test_damaged_lock_is_a_sentence(state):
    for content in ("", "[]"):
        damage(state.lock_file, content)
        with pytest.raises(Refused, match=r"lock\.json is damaged"):
            begin(state, record(), owner(), 900, [])
        assert state.all() == []


@pytest.mark.parametrize("name", ["", "..", ".", "../lock", "a/b", "a b", "x\n"])
def test_what_is_no_id_reaches_no_file(state, name):
    with pytest.raises(Refused, match="is no id of a remediation"):
        state.read(name)


def test_rollback_opens_a_record(state):
    begin(state, record(), owner(), 900, [])
    state.write(record(state="verified"))
    state.release(ID)
    made = begin_rollback(state, ID, owner("bob", dead=[]), 900, [])
    assert (made["state"], made["by"]) == ("rolling back", owner("bob"))
    assert state.read(ID) == made
    assert lock(state)["record"] == ID
    with pytest.raises(Refused, match="holds the lock"):
        begin_rollback(state, ID, owner("cid"), 900, [])
    # A refusal does not let go of a lock on the same record that is another's.
    assert lock(state)["owner"]["user"] == "bob"


def test_rollback_without_a_record(state):
    with pytest.raises(Refused, match=f"There is no record {ID} in {state.records}; nothing was changed."):
        begin_rollback(state, ID, owner(), 900, [])
    assert state.lock() is None


def test_nothing_is_read_where_nothing_is(tmp_path):
    state = StateDir(str(tmp_path / "none"))
    assert (state.all(), state.read(ID), state.lock()) == ([], None, None)
    assert not os.path.exists(state.path)


# Strikes.


def tried(state, number, **values):
    name = numbered(number)
    values = {"state": "verified", "helped": False, "ended_at": utc(time.time()), **values}
    state.write(record(name, plan=name, state="did not help", steps=[step(**values)]))


def test_three_strikes_within_a_day(state):
    for number in range(STRIKES - 1):
        tried(state, number)
    begin(state, record(numbered(20), state="running"), owner(), 900, [])
    state.write(record(numbered(20), state="verified"))
    state.release(numbered(20))
    tried(state, 5)
    with pytest.raises(Refused) as caught:
        begin(state, record(numbered(30), plan="new"), owner(), 900, ["lock"])
    assert str(caught.value) == (
        "restart_vritti was applied 3 times within a day and did not help: find the cause, or pass "
        "-e runbook_override=strikes. Nothing was changed."
    )
    assert state.lock() is None
    assert state.read(numbered(30)) is None
    # Another step is none of its business.
    begin(state, record(numbered(31), plan="other", steps=[step("other")]), owner(), 900, [])
    begin(state, record(numbered(32), plan="new"), owner("bob"), 900, ["lock", "strikes"])


def test_strikes_are_counted_since_it_last_helped_and_within_the_window(state):
    now = time.time()
    for number, values in enumerate(
        [
            {"helped": False},
            {"helped": True},
            {"helped": False, "ended_at": utc(now - 25 * 3600)},
            {"helped": False, "ended_at": utc(now - 23 * 3600)},
            {"helped": None},
            {"helped": False},
        ]
    ):
        tried(state, number, **values)
    assert strikes(state.all(), "restart_vritti", now) == 2
    assert strikes(state.all(), "other", now) == 0
    tried(state, 8, ended_at="not a time")
    assert strikes(state.all(), "restart_vritti", now) == 2
    tried(state, 9, helped=True)
    assert strikes(state.all(), "restart_vritti", now) == 0


# Old records.


def test_old_records_go_and_open_ones_stay(state):
    for number in range(KEPT_RECORDS + 5):
        name = f"20261124T03{number:04}Z-0123456789ab"
        state.write(record(name, state=("running", "rolling back")[number] if number < 2 else "verified"))
        state.keep(name, "processes.txt", "evidence")
        os.makedirs(os.path.join(state.private(name), "step", "copies"))
        os.symlink("/etc", os.path.join(state.private(name), "step", "link"))
    state.prune()
    names = [item["id"] for item in state.all()]
    assert len(names) == KEPT_RECORDS + 2
    assert [item["state"] for item in state.all()[-2:]] == ["rolling back", "running"]
    assert sorted(os.listdir(os.path.join(state.path, "private"))) == sorted(names)
    assert os.path.exists("/etc/passwd")
    state.prune()
    assert [item["id"] for item in state.all()] == names


def test_evidence_is_its_owners_only(state):
    path = state.keep(ID, "log-1.txt", "ä\n")
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700


def test_line_after_a_torn_one_is_whole(state):
    state.add_line('{"a":1}')
    with open(os.path.join(state.path, "timeline.jsonl"), "a", encoding="utf-8") as file:
        file.write('{"to')
    state.add_line('{"b":"ä"}')
    with open(os.path.join(state.path, "timeline.jsonl"), encoding="utf-8") as file:
        assert file.read() == '{"a":1}\n{"to\n{"b":"ä"}\n'


# Killed anywhere.

# Each call that reaches the file system, by number: the process dies before it.
KILLED = """
import json, os, sys
from ansible_collections.oncall.runbooks.plugins.module_utils import remediation
path, number, what, data = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
calls = 0
def counted(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    setattr(os, name, call)
for name in ("replace", "fsync", "unlink", "chmod", "open", "fdopen", "close", "makedirs", "statvfs", "rmdir"):
    counted(name)
state = remediation.StateDir(path)
if what == "begin":
    remediation.begin(state, data, {"user": "ann"}, 900, ["lock"])
elif what == "rollback":
    remediation.begin_rollback(state, data["id"], {"user": "ann"}, 900, ["lock"])
else:
    state.write({**data, "state": "verified"})
    state.release(data["id"])
print(calls)
"""


def killed(state, number, what, data):
    """Whether it came to its end before the call with this number."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, state.path, str(number), what, json.dumps(data)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(helpers.COLLECTIONS)},
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == 0


def everything(what, tmp_path, prepare, data):
    """Kill it at the first call, at the second and so on, each time on a state of its own; what is there after each."""
    for number in range(1, 200):
        state = StateDir(str(tmp_path / f"state-{number}"))
        prepare(state)
        done = killed(state, number, what, data)
        yield state, done
        if done:
            assert number > 5
            return
    raise AssertionError("it does not come to an end")


def test_begin_killed_anywhere_leaves_no_record_or_all_of_it(tmp_path):
    new = record(numbered(9), plan="another", steps=[step(), step("second")])

    def prepare(state):
        state.prepare()
        state.write(record())

    seen = set()
    for state, done in everything("begin", tmp_path, prepare, new):
        records = {item["id"]: item for item in state.all()}
        assert set(records) <= {ID, numbered(9)}
        old, now = records[ID], records.get(numbered(9))
        assert now in (None, new)
        # The one before says that it was superseded only by one that is there.
        assert old["state"] == "running" or (old["state"], old["superseded_by"]) == ("interrupted", now["id"])
        held = state.lock()
        assert held is None or held["record"] == numbered(9)
        assert not now or held
        seen.add((held is not None, now is not None, old["state"]))
        if done:
            assert (now, old["state"]) == (new, "interrupted")
        # The next run of the same plan goes on from there, whatever was left.
        again, went_on = begin(state, {**new, "id": numbered(10)}, owner("bob"), 900, ["lock"])
        assert (went_on, again["steps"]) == (now is not None, new["steps"])
        assert [item["state"] for item in state.all() if item["id"] != again["id"]] == ["interrupted"]
        assert lock(state)["record"] == again["id"]
    assert seen == {
        (False, False, "running"),
        (True, False, "running"),
        (True, True, "running"),
        (True, True, "interrupted"),
    }


def test_first_begin_on_a_host_killed_anywhere(tmp_path):
    for state, done in everything("begin", tmp_path, lambda state: None, record()):
        assert [item["id"] for item in state.all()] in ([], [ID])
        assert not done or state.all()
        made, _went_on = begin(state, record(numbered(9)), owner("bob"), 900, ["lock"])
        assert state.all() == [made]


def test_rollback_killed_anywhere(tmp_path):
    def prepare(state):
        state.prepare()
        state.write(record(state="verified"))

    seen = set()
    for state, _done in everything("rollback", tmp_path, prepare, record()):
        (kept,) = state.all()
        assert kept["steps"] == record()["steps"]
        seen.add(kept["state"])
    assert seen == {"verified", "rolling back"}


def test_end_killed_anywhere(tmp_path):
    """The record is closed before the lock goes: an open record without a lock is of a run that was killed."""

    def prepare(state):
        begin(state, record(), owner("ann"), 900, [])

    for state, done in everything("end", tmp_path, prepare, record()):
        (kept,) = state.all()
        assert kept["state"] in ("running", "verified")
        assert state.lock() or kept["state"] == "verified"
        assert not done or not state.lock()


# Disks that are full, and folders that are not ours.


def test_file_system_without_room(state, monkeypatch):
    real = os.statvfs(state.path)

    def full(_path):
        return os.statvfs_result([*real[:4], 1024 * 1024 // real.f_frsize, *real[5:]])

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(Refused) as caught:
        begin(state, record(), owner(), 900, [])
    assert str(caught.value) == (
        f"The file system of {state.path} has 1024 KiB left, and 4096 KiB are needed for the record and the copies of "
        "what is changed; make room, or set runbook_state_dir. Nothing was changed."
    )
    assert (state.all(), state.lock()) == ([], None)
    # Nor is a folder made first.
    new = StateDir(os.path.join(state.path, "new"))
    with pytest.raises(Refused, match="has 1024 KiB left"):
        new.prepare()
    assert not os.path.exists(new.path)


@pytest.mark.parametrize("what", ["begin", "rollback"])
@pytest.mark.parametrize("room", [10, 1500])
def test_full_disk_leaves_neither_a_lock_nor_half_a_record(state, what, room):
    """10 bytes are too few for the lock, 1500 for the record: a write stops at the limit, as where a disk fills up."""
    old = record(numbered(1), state="running", runbook="other", findings=["x" * 3000])
    state.write(old)
    said = helpers.python(
        """
        import json, resource, signal, sys
        from ansible_collections.oncall.runbooks.plugins.module_utils import remediation
        path, room, what, data = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        state = remediation.StateDir(path)
        try:
            if what == "begin":
                remediation.begin(state, data, {"user": "ann"}, 900, [])
            else:
                remediation.begin_rollback(state, data["superseded"], {"user": "ann"}, 900, [])
        except remediation.Refused as error:
            print(error)
        """,
        state.path,
        room,
        what,
        json.dumps(record(findings=["x" * 3000], superseded=numbered(1))),
    )
    assert said.endswith(
        "cannot be written (File too large); set runbook_state_dir or give root with -b; nothing was changed."
    )
    assert state.all() == [old]
    assert state.lock() is None
    assert [name for name in os.listdir(state.records) if name.startswith(".")] == []


def test_device_without_room(state):
    os.symlink("/dev/full", os.path.join(state.path, "timeline.jsonl"))
    with pytest.raises(OSError, match="No space left"):
        state.add_line("x")


@pytest.mark.parametrize("existing", [True, False])
def test_folder_of_somebody_else(tmp_path, existing):
    state = StateDir(str(tmp_path / "state"))
    if existing:
        state.prepare()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder) not in ("/", "/tmp"):
            folder.chmod(0o555 if folder == tmp_path else 0o755)
    if existing:
        Path(state.path).chmod(0o555)
    said = helpers.python(
        """
        import json, sys
        from ansible_collections.oncall.runbooks.plugins.module_utils import remediation
        """
        + "\n".join("        " + line for line in helpers.BECOME_NOBODY.splitlines())
        + """
        try:
            remediation.begin(remediation.StateDir(sys.argv[1]), json.loads(sys.argv[2]), {"user": "ann"}, 900, [])
        except remediation.Refused as error:
            print(error)
        """,
        state.path,
        json.dumps(record()),
    )
    tmp_path.chmod(0o755)
    assert said.startswith(state.path)
    assert said.endswith(
        "cannot be written (Permission denied); set runbook_state_dir or give root with -b; nothing was changed."
    )
    assert state.all() == []


def test_path_through_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"cannot be written \(Not a directory\)"):
        begin(StateDir(str(tmp_path / "file" / "state")), record(), owner(), 900, [])


def test_what_a_diagnosis_tells_of_a_record():
    told = remediation.summary({**record(), "steps": [{**step(), "secret": "no"}], "approved": "x"})
    assert set(told) == {
        "id", "plan", "runbook", "by", "started_at", "state", "steps", "findings", "evidence",
    }  # fmt: skip
    assert "secret" not in told["steps"][0]
    assert told["steps"][0]["title"] == "Do restart_vritti"
    assert told["steps"][0]["before"] is None

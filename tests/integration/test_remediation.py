# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan, approve, apply, verify, roll back: what an engineer types, against the lab, without privileges."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import timeline
from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import BIN, KEY, REPOSITORY, Operator, ansible, hashes, inventory

HOST = "vritti-lab"
CONNECTIONS = Path(__file__).resolve().parent / "connection_plugins"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def lab(shared: RunningLab) -> Iterator[RunningLab]:
    """The lab, which a test may break; whole again after it."""
    yield shared
    shared.mend()


@pytest.fixture
def operator(lab: RunningLab, tmp_path: Path) -> Operator:
    return Operator(lab, tmp_path)


def pids(lab: RunningLab) -> list[int]:
    return [process["pid"] for process in lab.status()["processes"].values()]


def settings(lab: RunningLab) -> str:
    return (lab.data_dir / "vritti" / "vritti.env").read_text()


# The whole way.


@pytest.mark.both_ends
def test_a_stuck_breaker_is_diagnosed_mended_and_verified(operator: Operator, lab: RunningLab) -> None:
    lab.break_fault("breaker-stuck")
    diagnosed = operator.run("kyrodb_connection_failure", "diagnose")
    plan = diagnosed.diagnosis()["plan"]
    assert [step["id"] for step in plan["steps"]] == ["restart_vritti"]
    assert set(plan["steps"][0]) >= {"id", "title", "host", "risk", "reversible", "because", "preview"}
    assert plan["steps"][0]["because"] == ["breaker", "breaker_log"]
    assert "clears what Vritti keeps in memory: the day's budget, the rate limits" in plan["steps"][0]["preview"]
    assert "The same by hand:" in plan["steps"][0]["preview"]
    line = diagnosed.output.splitlines()[3]
    assert line.startswith("  Remediate: ansible-playbook ")
    assert f"--tags remediate -i ../{lab.data_dir.name}/inventory.yml -e runbook_plan={plan['id']}" in line
    # Values that were typed are not repeated, and named.
    assert line.endswith("# and your -e for runbook_sample_seconds, runbook_settle_seconds, runbook_state_dir")

    applied = operator.run("kyrodb_connection_failure", "remediate", "-e", f"runbook_plan={plan['id']}")
    assert applied.status == 0, applied.output
    assert "breaker fixed" in applied.output
    assert applied.diagnosis()["status"] == "healthy", applied.output
    assert lab.capture().status == 201

    record = operator.records[-1]
    assert (record["state"], record["plan"]) == ("verified", plan["id"])
    assert [step["state"] for step in record["steps"]] == ["verified"]
    evidence = Path(record["evidence"])
    assert {path.name for path in evidence.iterdir()} >= {"diagnosis.json", "log-1.txt", "processes.txt"}
    assert "ircuit breaker" in (evidence / "log-1.txt").read_text()
    assert (evidence.stat().st_mode & 0o777) == 0o700
    events = [entry["event"] for entry in operator.timeline]
    assert events[:2] == ["diagnosed", "diagnosed"]
    assert [e for e in events if e != "diagnosed"] == [
        "remediation begun",
        "step begun",
        "step done",
        "step verified",
        "ended",
    ]
    assert all(entry["mac"] for entry in operator.timeline)

    verified = operator.run("kyrodb_connection_failure", "verify")
    assert verified.status == 0, verified.output
    assert "breaker fixed" in verified.output

    again = operator.run("kyrodb_connection_failure", "remediate", "-e", f"runbook_plan={plan['id']}")
    assert again.status == 0, again.output
    assert "Nothing left to do" in again.output
    assert len(operator.records) == 1

    undone = operator.run("kyrodb_connection_failure", "rollback")
    assert undone.status == 0, undone.output
    assert "Nothing to undo" in undone.output
    assert "cannot be undone" in undone.output


@pytest.mark.both_ends
def test_a_setting_is_changed_and_put_back(operator: Operator, lab: RunningLab) -> None:
    before = settings(lab)
    asked = ["-e", "runbook_steps=reduce_search_default_k"]
    diagnosed = operator.run("high_latency", "diagnose", *asked)
    plan = diagnosed.diagnosis()["plan"]
    preview = plan["steps"][0]["preview"]
    assert "before: (not set); after: 5" in preview
    assert "No version of Vritti uses SEARCH_DEFAULT_K" in preview
    assert plan["steps"][0]["reversible"]
    shown = operator.run("high_latency", "remediate", *asked, "--check", "--diff")
    assert shown.status == 0, shown.output
    assert "+SEARCH_DEFAULT_K=5" in shown.output
    assert settings(lab) == before
    applied = operator.run("high_latency", "remediate", *asked, "-e", f"runbook_plan={plan['id']}")
    assert applied.status == 0, applied.output
    assert settings(lab) == before + "SEARCH_DEFAULT_K=5\n"
    record = operator.records[-1]["id"]
    (verified,) = [line for line in operator.timeline if line["event"] == "step verified"]
    assert (verified["plan"], verified["record"]) == (plan["id"], record)
    assert (verified["before"], verified["after"]) == ({"SEARCH_DEFAULT_K": "(not set)"}, {"SEARCH_DEFAULT_K": "5"})

    unasked = operator.run("high_latency", "rollback")
    assert unasked.status != 0
    assert "nobody has approved it" in unasked.output
    assert f"runbook_rollback_id={record}" in unasked.output
    assert settings(lab) != before
    undone = operator.run("high_latency", "rollback", "-e", f"runbook_rollback_id={record}")
    assert undone.status == 0, undone.output
    assert settings(lab) == before
    assert operator.records[-1]["state"] == "rolled back"
    again = operator.run("high_latency", "rollback")
    assert again.status == 0, again.output
    assert "undone already" in again.output


def test_a_plan_of_another_runbook_or_state_is_refused_with_the_difference(operator: Operator, lab: RunningLab) -> None:
    lab.break_fault("breaker-stuck")
    other = operator.plan("kyrodb_connection_failure")
    run = operator.run("high_latency", "remediate", "-e", f"runbook_plan={other}")
    assert "it is a plan of kyrodb_connection_failure" in " ".join(run.output.split()), run.output
    plan = operator.plan("high_latency")
    lab.break_fault("kyrodb-text-down")
    moved = operator.run("high_latency", "remediate", "-e", f"runbook_plan={plan}")
    assert moved.status != 0
    told = " ".join(moved.output.split())
    assert "the state moved on (no longer proposed: Restart Vritti on vritti-lab; new: Restart KyroDB's text" in told, (
        told
    )
    assert not operator.state.exists()


def test_a_held_lock_names_who_and_since_when(operator: Operator, lab: RunningLab) -> None:
    lab.break_fault("breaker-stuck")
    plan = operator.plan("high_latency")
    operator.state.mkdir()
    lock = {
        "owner": {"user": "somebody", "controller": "elsewhere", "pid": 1, "started": "1"},
        "record": "20261124T000000Z-0123456789ab",
        "since": "2026-11-24T00:00:00Z",
        "expires_at": "2099-01-01T00:00:00Z",
    }
    (operator.state / "lock.json").write_text(json.dumps(lock))
    run = operator.run("high_latency", "remediate", "-e", f"runbook_plan={plan}")
    assert run.status != 0
    assert "somebody@elsewhere holds the lock" in run.output
    assert "since 2026-11-24T00:00:00Z" in run.output
    assert lab.capture().status == 500
    forced = operator.run("high_latency", "remediate", "-e", f"runbook_plan={plan}", "-e", "runbook_override=lock")
    assert forced.status == 0, forced.output


def test_a_step_that_never_helps_strikes_out(operator: Operator, lab: RunningLab) -> None:
    asked = ["-e", "runbook_steps=restart_vritti", "-e", "runbook_max_risk=disruptive"]
    lab.break_fault("kyrodb-slow")
    run = operator.run("high_latency", "remediate", *asked, "-e", "vritti_warm_up=0")
    assert run.status == 0, run.output
    # As if it had been tried three times, and none had helped.
    (record,) = operator.records
    record["steps"][0]["helped"] = False
    for place in range(3):
        copy = {**record, "id": f"{record['id']}{place}"}
        (operator.state / "records" / f"{copy['id']}.json").write_text(json.dumps(copy))
    (operator.state / "records" / f"{record['id']}.json").unlink()
    struck = operator.run("high_latency", "remediate", *asked)
    assert struck.status != 0
    assert "was applied 3 times within a day and did not help" in struck.output
    allowed = operator.run("high_latency", "remediate", *asked, "-e", "runbook_override=strikes")
    assert allowed.status == 0, allowed.output


def test_a_restart_that_never_becomes_healthy_tells_what_it_left(operator: Operator, lab: RunningLab) -> None:
    asked = ["-e", "runbook_steps=restart_vritti", "-e", "runbook_max_risk=disruptive"]
    broken = {
        "vritti_command": f"{BIN}/python -c 'import sys; sys.exit(\"no configuration\")'",
        "vritti_start_seconds": 5,
    }
    run = operator.run("high_latency", "remediate", *asked, "-e", json.dumps(broken))
    assert run.status != 0
    told = " ".join(run.output.split())
    assert "Restart Vritti failed" in told
    assert "was stopped" in told
    record = operator.records[-1]
    assert (record["state"], record["steps"][0]["state"]) == ("failed", "failed")
    mended = operator.run("service_unresponsive", "remediate", "-e", "runbook_max_risk=disruptive")
    assert mended.status == 0, mended.output
    assert lab.capture().status == 201


# A run that dies.


def test_a_killed_run_never_lies_and_can_be_undone(operator: Operator, lab: RunningLab) -> None:
    """SIGKILL at moments all over a run: what is said afterwards is true, and rollback lands on what was before."""
    before = settings(lab)
    asked = ["-e", "runbook_steps=reduce_search_default_k", "-e", "runbook_max_risk=disruptive"]
    command = operator.command("high_latency", "remediate", *asked)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment.update(ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"), ONCALL_RUNBOOKS_RECORD_KEY=KEY)
    # How long a whole run takes here, so that the moments fall all over it.
    began = time.monotonic()
    whole = operator.run("high_latency", "remediate", *asked)
    length = time.monotonic() - began
    assert whole.status == 0, whole.output
    operator.run("high_latency", "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert settings(lab) == before
    seen = set()
    count = int(os.environ.get("ONCALL_KILLS", "3"))
    for moment in range(1, count + 1):
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=operator.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moment / count * length)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        told = operator.run("high_latency", "diagnose")
        finding = told.findings()["unfinished_remediation"]
        changed = settings(lab) != before
        opened = [record for record in operator.records if record["state"] == "running"]
        seen.add((changed, bool(opened)))
        # A change without an open record would be a lie, unless the run had ended.
        assert finding["status"] == ("breach" if opened else "ok"), told.output
        if opened:
            assert opened[0]["id"] in json.dumps(finding["evidence"])
        if changed:
            assert opened or operator.records[-1]["state"] == "verified"
        known = operator.records
        wanted = ["-e", f"runbook_rollback_id={known[-1]['id']}"] if known else []
        undone = operator.run("high_latency", "rollback", *wanted)
        assert undone.status == 0, undone.output
        assert settings(lab) == before, undone.output
        assert undone.findings()["unfinished_remediation"]["status"] == "ok", undone.output
        assert lab.get("/health/liveness").status == 200
    assert len(seen) > 1, "every moment was alike, so they tell little"


def test_a_run_that_is_cut_after_any_call_can_go_on_or_be_undone(operator: Operator, lab: RunningLab) -> None:
    """The controller dies, or the host is gone, when a module has done its work and nobody has heard of it yet."""
    before = settings(lab)
    asked = ["-e", "runbook_steps=reduce_search_default_k"]
    plan = operator.plan("high_latency", *asked)
    apply = [*asked, "-e", f"runbook_plan={plan}"]
    seen = set()
    # The first call is the look of the diagnosis.
    for number in itertools.count(2):
        # What is left on the host is the same; what is left on the controller is not.
        how = "killed" if number % 2 else "lost"
        counter = operator.directory / "calls"
        counter.write_bytes(b"")
        cut = {"ANSIBLE_CONNECTION_PLUGINS": str(CONNECTIONS), "ONCALL_CUT": f"{how}:{number}:{counter}"}
        run = operator.run("high_latency", "remediate", *apply, "-e", "ansible_connection=cut", **cut)
        if counter.stat().st_size < number:
            assert run.status == 0, run.output
            operator.run("high_latency", "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
            break
        assert run.status == (-signal.SIGKILL if how == "killed" else 4), run.output
        record, changed = operator.records[-1], settings(lab) != before
        (step,) = record["steps"]
        seen.add((record["state"], step["state"], changed))
        told = operator.run("high_latency", "diagnose").findings()["unfinished_remediation"]
        assert told["status"] == ("breach" if record["state"] == "running" else "ok")
        if told["status"] == "breach":
            assert record["id"] in json.dumps(told["evidence"])
        if changed:
            assert (step["state"], step["before"]) != ("planned", None)
        if number // 2 % 2 and record["state"] == "running":
            again = operator.run("high_latency", "remediate", *apply)
            assert again.status == 0, again.output
            assert "goes on with remediation" in again.output
            assert settings(lab) == before + "SEARCH_DEFAULT_K=5\n"
            assert (operator.records[-1]["id"], operator.records[-1]["state"]) == (record["id"], "verified")
        undone = operator.run("high_latency", "rollback", "-e", f"runbook_rollback_id={record['id']}")
        assert undone.status == 0, undone.output
        assert settings(lab) == before
        assert undone.findings()["unfinished_remediation"]["status"] == "ok"
        assert lab.get("/health/liveness").status == 200
    assert seen >= {
        ("running", "planned", False),
        ("running", "running", False),
        ("running", "running", True),
        ("running", "done", True),
        ("running", "verified", True),
    }
    verified = timeline.verify(str(operator.directory / "records" / "timeline.jsonl"), KEY.encode())
    assert verified.ok, verified.problems


def test_an_interrupted_run_goes_on_with_the_same_plan(operator: Operator, lab: RunningLab) -> None:
    lab.break_fault("breaker-stuck")
    plan = operator.plan("high_latency")
    done = operator.run("high_latency", "remediate", "-e", f"runbook_plan={plan}")
    assert done.status == 0, done.output
    record = operator.records[-1]
    path = operator.state / "records" / f"{record['id']}.json"
    step = {**record["steps"][0], "state": "running"}
    path.write_text(json.dumps({**record, "state": "running", "steps": [step]}))
    lab.break_fault("breaker-stuck")
    told = operator.run("high_latency", "diagnose")
    assert told.findings()["unfinished_remediation"]["status"] == "breach"
    assert "whether it was carried out is not known" in json.dumps(
        told.findings()["unfinished_remediation"]["evidence"]
    )
    again = operator.run("high_latency", "remediate", "-e", f"runbook_plan={plan}")
    assert again.status == 0, again.output
    assert "goes on with remediation" in again.output
    assert [item["id"] for item in operator.records] == [record["id"]]
    assert operator.records[0]["state"] == "verified"


@pytest.mark.both_ends
def test_secrets_are_nowhere(operator: Operator, lab: RunningLab, tmp_path: Path) -> None:
    secret = "sk-or-v1-correct-horse-battery-staple"
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"vritti_llm_api_key": secret}))
    before = settings(lab)
    asked = ["-e", "runbook_steps=enable_reflections", "-e", "runbook_max_risk=disruptive", "-e", f"@{secrets}"]
    applied = operator.run("high_latency", "remediate", *asked, "-vvv", "--diff")
    assert applied.status == 0, applied.output
    assert secret in settings(lab)
    assert secret not in applied.output
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != secrets and "private" not in path.parts:
            assert secret not in path.read_text(errors="replace"), path
    wanted = f"runbook_rollback_id={operator.records[-1]['id']}"
    undone = operator.run("high_latency", "rollback", "-e", wanted, "-vvv", "--diff")
    assert undone.status == 0, undone.output
    assert settings(lab) == before
    assert re.search(r"LLM_OPENROUTER_API_KEY", undone.output)


# Somebody who types an answer to the question: the command has a terminal of its own, which is copied to and from ours.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def at_a_terminal(operator: Operator, answer: str, runbook: str, tags: str, *arguments: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    command = operator.command(runbook, tags, *arguments)
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, str(BIN / command[0]), *command[1:]],
        cwd=operator.directory,
        env={**environment, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ONCALL_RUNBOOKS_RECORD_KEY": KEY},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = b""
    answered = False
    end = time.monotonic() + 300
    with process.stdin, process.stdout:
        while time.monotonic() < end:
            if not select.select([process.stdout], [], [], 2)[0]:
                # Ansible throws away what is typed before it listens; who sees nothing types it again.
                answered = False
            else:
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    break
                seen += piece
            if not answered and b"Type yes to go on" in seen:
                answered = True
                os.write(process.stdin.fileno(), f"{answer}\r".encode())
        else:
            process.kill()
    assert b"Type yes to go on" in seen, seen.decode(errors="replace")
    return process.wait(), seen.decode(errors="replace")


@pytest.mark.both_ends
def test_a_person_is_asked_and_an_empty_answer_is_no(operator: Operator, lab: RunningLab) -> None:
    lab.break_fault("breaker-stuck")
    status, output = at_a_terminal(operator, "", "high_latency", "remediate")
    assert status != 0, output
    assert "nobody has approved it" in output
    assert not operator.state.exists()
    status, output = at_a_terminal(operator, "yes", "high_latency", "remediate")
    assert status == 0, output
    assert "breaker fixed" in output
    assert operator.records[-1]["approved"] == "a yes at the terminal"


def test_what_cannot_be_taken_back_wants_an_id(operator: Operator, lab: RunningLab) -> None:
    """What is captured with another model is not found with this one again, whatever the setting is put back to."""
    before = settings(lab)
    asked = ["-e", "runbook_steps=use_smaller_model"]
    diagnosed = operator.run("resource_exhaustion", "diagnose", *asked)
    (step,) = diagnosed.diagnosis()["plan"]["steps"]
    assert (step["risk"], step["reversible"]) == ("destructive", True)
    assert "Vectors made by one model cannot be compared with those of another" in step["preview"]
    for risk in ("disruptive", "destructive"):
        run = operator.run("resource_exhaustion", "remediate", *asked, "-e", f"runbook_max_risk={risk}")
        assert run.status != 0, run.output
        assert "Nothing was changed" in run.output
    assert settings(lab) == before
    assert not operator.state.exists()


def test_a_ladder_goes_on_until_it_helps_and_is_red_when_nothing_does(operator: Operator, lab: RunningLab) -> None:
    before = settings(lab)
    # A process needs its memory, whatever is done about it.
    wanted = ["-e", "vritti_memory_share_p2=0.0001"]
    run = operator.apply("resource_exhaustion", *wanted)
    assert run.status != 0
    assert "vritti_memory unchanged" in run.output
    assert "It did not help" in run.output
    record = operator.records[-1]
    assert record["state"] == "did not help"
    assert [(step["id"], step["helped"]) for step in record["steps"]] == [
        ("restart_vritti", False),
        ("fewer_workers", False),
    ]
    assert settings(lab) == before + "WEB_CONCURRENCY=1\n"
    verified = operator.run("resource_exhaustion", "verify", *wanted)
    assert verified.status != 0
    better = operator.run("resource_exhaustion", "verify")
    assert better.status == 0, better.output
    assert "vritti_memory fixed" in better.output
    undone = operator.run("resource_exhaustion", "rollback", "-e", f"runbook_rollback_id={record['id']}", *wanted)
    assert undone.status == 0, undone.output
    assert settings(lab) == before
    assert "Restart Vritti on vritti-lab cannot be undone" in undone.output


def test_a_step_that_would_do_harm_by_now_is_left_out(operator: Operator, lab: RunningLab) -> None:
    """KyroDB goes while the first step settles: a second restart of Vritti would make an outage of half of one."""
    before = settings(lab)
    wanted = ["-e", "vritti_memory_share_p2=0.0001", "-e", "runbook_max_risk=disruptive"]
    slowly = json.dumps({"runbook_settle_seconds": 5})

    def state_of_the_first() -> str:
        return str(operator.records[-1]["steps"][0]["state"]) if operator.records else ""

    with ThreadPoolExecutor() as pool:
        running = pool.submit(operator.run, "resource_exhaustion", "remediate", *wanted, "-e", slowly)
        eventually(lambda: state_of_the_first() == "done", "the first step is done")
        os.kill(lab.pid("kyrodb-text"), signal.SIGKILL)
        run = running.result()
    assert run.status != 0, run.output
    first, second = operator.records[-1]["steps"]
    assert (first["state"], second["id"], second["state"]) == ("verified", "fewer_workers", "skipped"), run.output
    assert "Run 1 worker: left out, as things are by now it is not proposed any more" in run.output
    assert settings(lab) == before
    assert lab.get("/health/liveness").status == 200


def test_kyrodb_is_restarted_before_vritti(operator: Operator, lab: RunningLab) -> None:
    """Vritti does not start while an instance is down, and both instances are one step."""
    for process in ("kyrodb-text", "kyrodb-image"):
        os.kill(lab.pid(process), signal.SIGKILL)
    eventually(lambda: lab.capture().status == 500, "captures fail")
    diagnosed = operator.run("kyrodb_connection_failure", "diagnose")
    steps = diagnosed.diagnosis()["plan"]["steps"]
    assert steps[0]["id"] == "restart_kyrodb", diagnosed.output
    run = operator.run("kyrodb_connection_failure", "remediate", "-e", "runbook_max_risk=disruptive")
    assert run.status == 0, run.output
    assert run.diagnosis()["status"] == "healthy", run.output
    assert [step["state"] for step in operator.records[-1]["steps"]][1:] == ["skipped"] * (len(steps) - 1)
    assert lab.capture().status == 201
    smoke = operator.run(
        "kyrodb_connection_failure",
        "remediate",
        "-e",
        "runbook_steps=snapshot_kyrodb,smoke_test",
        "-e",
        "runbook_max_risk=safe",
    )
    assert smoke.status == 0, smoke.output


def two_hosts(lab: RunningLab, directory: Path, **second: Any) -> Path:
    """An inventory with the lab's host twice, each with a state directory of its own."""
    own = {name: value for name, value in lab.inventory.items() if name != "runbook_state_dir"}
    hosts = {name: {**own, "runbook_state_dir": str(directory / name)} for name in ("vritti-a", "vritti-b")}
    hosts["vritti-b"].update(second)
    return inventory(directory, hosts)


@pytest.mark.both_ends
def test_one_host_after_the_other_and_the_first_failure_stops_the_rest(lab: RunningLab, tmp_path: Path) -> None:
    lab.break_fault("breaker-stuck")
    where = two_hosts(lab, tmp_path)
    common = [
        "ansible-playbook", REPOSITORY / "playbooks" / "high_latency.yml", "-i", where,
        "-e", "runbook_sample_seconds=0", "-e", "runbook_settle_seconds=0",
    ]  # fmt: skip
    status, output = ansible(tmp_path, *common, "--tags", "diagnose")
    assert status == 0, output
    plan = json.loads((tmp_path / "reports/high_latency/plan.json").read_text())
    assert plan["hosts"] == ["vritti-a", "vritti-b"]
    reports = [json.loads((tmp_path / f"reports/high_latency/{host}.json").read_text()) for host in plan["hosts"]]
    assert [report["plan"]["id"] for report in reports] == [plan["id"]] * 2
    assert [[step["host"] for step in report["plan"]["steps"]] for report in reports] == [["vritti-a"], ["vritti-b"]]
    assert output.count("Remediate: ") == 2
    narrowed, output = ansible(
        tmp_path, *common, "--tags", "remediate", "-l", "vritti-a", "-e", f"runbook_plan={plan['id']}"
    )
    assert narrowed != 0, output
    assert "no longer proposed: Restart Vritti on vritti-b" in " ".join(output.split())
    (tmp_path / "vritti-a").write_text("in the way of the state directory")
    status, output = ansible(tmp_path, *common, "--tags", "remediate", "-e", f"runbook_plan={plan['id']}")
    assert status != 0, output
    assert "nothing was changed" in output.lower()
    assert not (tmp_path / "vritti-b").exists()
    (tmp_path / "vritti-a").unlink()
    status, output = ansible(tmp_path, *common, "--tags", "remediate", "-e", f"runbook_plan={plan['id']}")
    assert status == 0, output
    # They are one host under two names, so the second is looked at again and found to be mended.
    assert output.index("vritti-a: began") < output.index("vritti-a: 2") < output.index("vritti-b: nothing left to do.")
    assert not (tmp_path / "vritti-b").exists()


def test_a_host_that_is_lost_stops_the_rest(lab: RunningLab, tmp_path: Path) -> None:
    lab.break_fault("breaker-stuck")
    calls = tmp_path / "calls"
    calls.write_bytes(b"")
    where = two_hosts(lab, tmp_path)
    hosts = json.loads(where.read_text())
    hosts["all"]["hosts"]["vritti-a"]["ansible_connection"] = "cut"
    where.write_text(json.dumps(hosts))
    # Its look, its lock, and the step's beginning; the restart is carried out, and its answer lost.
    cut = {"ANSIBLE_CONNECTION_PLUGINS": str(CONNECTIONS), "ONCALL_CUT": f"lost:4:{calls}"}
    options = {"runbook_sample_seconds": 0, "runbook_settle_seconds": 0, "runbook_max_risk": "disruptive"}
    playbook = REPOSITORY / "playbooks" / "high_latency.yml"
    command = ["ansible-playbook", playbook, "-i", where, "-e", json.dumps(options), "--tags", "remediate"]
    status, output = ansible(tmp_path, *command, environment=cut)
    assert status != 0, output
    told = " ".join(output.split())
    assert "Nothing was changed on vritti-b: vritti-a could not be finished before it." in told
    assert "vritti-a was lost in the middle of this run, and how it is now is not known" in told
    assert not (tmp_path / "vritti-b").exists()
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "vritti-a" / "records").glob("*.json")]
    assert (record["state"], record["steps"][0]["state"]) == ("running", "running")


def test_nobody_is_overruled_by_ignored_errors(operator: Operator, lab: RunningLab, tmp_path: Path) -> None:
    lab.break_fault("breaker-stuck")
    running = pids(lab)
    playbook = tmp_path / "site.yml"
    role = {"role": "oncall.runbooks.high_latency", "ignore_errors": True}
    playbook.write_text(json.dumps([{"name": "Site", "hosts": "vritti", "gather_facts": False, "roles": [role]}]))
    options = {"runbook_sample_seconds": 0, "runbook_settle_seconds": 0, "runbook_state_dir": str(operator.state)}
    command = ["ansible-playbook", playbook, "-i", lab.data_dir / "inventory.yml", "-e", json.dumps(options)]
    _status, output = ansible(tmp_path, *command, "--tags", "remediate")
    # It came as far as the question, which nobody was there to answer.
    assert "Not waiting for response to prompt" in output
    assert not operator.state.exists()
    assert pids(lab) == running


def test_what_is_half_done_is_not_called_settled(operator: Operator, lab: RunningLab) -> None:
    """Cut between the change of a file and the restart that reads it; then nothing proposes it any more."""
    before = settings(lab)
    operator.apply("high_latency", "-e", "runbook_steps=reduce_search_default_k")
    (record,) = operator.records
    path = operator.state / "records" / f"{record['id']}.json"
    path.write_text(json.dumps({**record, "state": "running", "steps": [{**record["steps"][0], "state": "running"}]}))
    for approval in ([], ["-e", "runbook_max_risk=disruptive"], ["-e", f"runbook_plan={record['plan']}"]):
        run = operator.run("high_latency", "remediate", *approval)
        assert run.status != 0, run.output
        told = " ".join(run.output.split())
        assert f"{record['id']} was cut short (Lower SEARCH_DEFAULT_K to 5): go on with -e" in told
        assert operator.records[0]["state"] == "running"
    # Another plan must not bury it either.
    lab.break_fault("breaker-stuck")
    run = operator.run("high_latency", "remediate", "-e", "runbook_max_risk=disruptive")
    assert run.status != 0
    assert f"Remediation {record['id']} of high_latency was cut short" in " ".join(run.output.split())
    assert lab.capture().status == 500
    undone = operator.run("high_latency", "rollback", "-e", f"runbook_rollback_id={record['id']}")
    assert undone.status == 0, undone.output
    assert settings(lab) == before


@pytest.mark.both_ends
def test_under_a_callers_own_tag_the_role_only_diagnoses(operator: Operator, lab: RunningLab, tmp_path: Path) -> None:
    lab.break_fault("breaker-stuck")
    running = pids(lab)
    playbook = tmp_path / "site.yml"
    play = {
        "name": "Site", "hosts": "vritti", "gather_facts": False,
        "roles": [{"role": "oncall.runbooks.high_latency", "tags": ["nightly"]}],
    }  # fmt: skip
    playbook.write_text(json.dumps([play]))
    options = json.dumps(
        {"runbook_sample_seconds": 0, "runbook_settle_seconds": 0, "runbook_state_dir": str(operator.state)}
    )
    where = lab.data_dir / "inventory.yml"
    command = ["ansible-playbook", playbook, "-i", where, "-e", options, "-e", "runbook_max_risk=disruptive"]
    for tags in ("nightly", "never", "all"):
        status, output = ansible(tmp_path, *command, "--tags", tags)
        assert status == 0, output
        assert not operator.state.exists(), output
        assert pids(lab) == running
    assert (
        "remediate was left out: it runs only under --tags remediate"
        in ansible(tmp_path, *command, "--tags", "nightly")[1]
    )
    for tags in ("remediate,rollback", "diagnose,remediate"):
        status, output = ansible(tmp_path, *command, "--tags", tags)
        assert status != 0, output
        assert "asks for several things" in output
        assert not operator.state.exists(), output
    status, output = ansible(tmp_path, *command, "--tags", "remediate")
    assert status == 0, output
    assert "breaker fixed" in output


@pytest.mark.both_ends
def test_awx_gets_the_plan_and_the_findings(operator: Operator, lab: RunningLab, tmp_path: Path) -> None:
    """Under another callback a task prints the plan, and set_stats carries it."""
    lab.break_fault("breaker-stuck")
    environment = {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_SHOW_CUSTOM_STATS": "1"}
    run = operator.run("high_latency", "diagnose", **environment)
    assert "Remediate: ansible-playbook" in run.output
    stats = run.output.partition("CUSTOM STATS")[2]
    assert "restart_vritti" in stats
    assert '"findings"' in stats
    applied = operator.run("high_latency", "remediate", "-e", "runbook_max_risk=disruptive", **environment)
    assert applied.status == 0, applied.output
    assert '"status": "healthy"' in applied.output.partition("CUSTOM STATS")[2]


# What may not happen.


@pytest.fixture(scope="module")
def broken(shared: RunningLab) -> Iterator[RunningLab]:
    """The lab with something to remediate. Nothing changes it, so nobody has to mend it in between."""
    shared.break_fault("breaker-stuck")
    yield shared
    shared.mend()


@pytest.fixture(scope="module")
def plan(broken: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a diagnosis proposes for it."""
    return Operator(broken, tmp_path_factory.mktemp("plan")).plan("high_latency")


@pytest.mark.parametrize(
    ("tags", "arguments", "sentence"),
    [
        ("remediate", [], "nobody has approved it"),
        ("remediate", ["-e", "runbook_plan=20260101T0000Z-0123456789ab"], "is not what would be done now"),
        ("remediate", ["-e", "runbook_plan=latest"], "is no plan's id"),
        ("remediate", ["-e", "runbook_max_risk=safe"], "is disruptive, and runbook_max_risk is safe"),
        ("remediate", ["-e", "runbook_max_risk=destructive"], "never destructive"),
        ("remediate", ["-e", "runbook_steps=reboot"], "has no step 'reboot'"),
        ("remediate", ["--check", "--diff"], "Check mode: nothing is changed"),
        ("remediate", ["-e", "runbook_override=look", "-e", "runbook_plan=PLAN"], "runbook_override names 'look'"),
        ("remediate", ["-e", "runbook_settle_seconds=-1"], "runbook_settle_seconds is -1"),
        ("remediate", ["-e", "runbook_state_dir=~/state"], "its path begins with /"),
        ("remediate", ["-e", "runbook_plan=PLAN", "--start-at-task", "Apply"], "leave out --start-at-task"),
        ("remediate", ["-e", "runbook_plan=OLD_PLAN"], "and runbook_plan_ttl is 30 min"),
        (
            "remediate",
            ["-e", "runbook_plan=PLAN", "-e", "runbook_steps=scale_workers"],
            "does not have the step scale_workers",
        ),
        ("remediate,rollback", [], "asks for several things"),
        ("never", [], "Unknown tag never"),
        ("all", [], "Remediate:"),
        ("remediate", ["--skip-tags", "always"], "--skip-tags always"),
        ("rollback", ["-e", "runbook_rollback_id=20260101T000000Z-0123456789ab"], "no host has a record"),
        ("rollback", [], "Nothing to undo"),
        ("verify", [], "has not remediated"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value)[:20],
)
def test_nothing_changes_without_approval(
    broken: RunningLab, plan: str, tmp_path: Path, tags: str, arguments: list[str], sentence: str
) -> None:
    operator = Operator(broken, tmp_path)
    running, before = pids(broken), hashes(broken.data_dir)
    arguments = [word.replace("OLD_PLAN", f"20260101T0000Z-{plan[15:]}").replace("PLAN", plan) for word in arguments]
    run = operator.run("high_latency", tags, *arguments)
    assert sentence in " ".join(run.output.split()), run.output
    assert hashes(broken.data_dir) == before
    assert not operator.state.exists()
    assert pids(broken) == running

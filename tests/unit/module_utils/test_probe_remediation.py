# SPDX-License-Identifier: GPL-3.0-or-later
"""What a diagnosis sees of earlier remediations."""

from __future__ import annotations

import json
import os
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils.clock import utc
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.remediation import StateDir
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look


def numbered(number):
    return f"202611{number:02}T030000Z-0123456789ab"


def record(number, state, runbook="high_latency", step=None):
    return {
        "id": numbered(number),
        "plan": f"plan {number}",
        "runbook": runbook,
        "by": {"user": "ann", "controller": "shell-1"},
        "started_at": "2026-11-24T03:00:00Z",
        "state": state,
        "steps": [{"id": "restart", "title": "Restart Vritti", "state": "planned", **(step or {})}],
        "findings": [{"id": "p99"}],
        "evidence": "/somewhere",
    }


@pytest.fixture()
def state(tmp_path):
    made = StateDir(str(tmp_path / "state"))
    made.prepare()
    return made


def unfinished(state, **more):
    return look("remediation", path=state.path, runbook="high_latency", **more)


def records(state, **more):
    return look("remediation", path=state.path, runbook="high_latency", value="records", **more)


def test_host_on_which_nothing_was_ever_done(tmp_path):
    state = StateDir(str(tmp_path / "none" / "state"))
    assert unfinished(state) == {"value": "none", "evidence": {}}
    seen = records(state)
    assert seen["value"] == []
    assert seen["evidence"] == {"uid": os.geteuid(), "writable": True, "lock": None}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("closed", ["verified", "did not help", "failed", "rolled back", "interrupted", "refused"])
def test_what_is_settled_is_no_finding(state, closed):
    state.write(record(1, closed))
    assert unfinished(state)["value"] == "none"


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({}, "not begun"),
        (
            {"state": "running", "started_at": "2026-11-24T03:00:05Z"},
            "begun 2026-11-24T03:00:05Z, and whether it was carried out is not known",
        ),
        ({"state": "done"}, "carried out, and not verified"),
        ({"state": "verified"}, "carried out and verified"),
        (
            {"state": "undoing", "started_at": "2026-11-24T03:00:05Z"},
            "its undoing begun 2026-11-24T03:00:05Z, and whether that was carried out is not known",
        ),
        ({"state": "undone"}, "undone"),
    ],
)
def test_run_that_was_killed_is_told_as_far_as_it_is_known(state, step, told):
    state.write(record(1, "running", step=step))
    seen = unfinished(state)
    assert seen["value"] == "unfinished"
    assert seen["note"] == f"high_latency, {numbered(1)}: Restart Vritti: {told}"
    assert seen["evidence"] == {
        "record": numbered(1),
        "runbook": "high_latency",
        "by": {"user": "ann", "controller": "shell-1"},
        "started_at": "2026-11-24T03:00:00Z",
        "state": "running",
        "steps": [f"Restart Vritti: {told}"],
        "lock_expires_at": None,
    }


def test_what_another_runbook_left_is_told_too(state):
    state.write(record(1, "rolling back", runbook="resource_exhaustion"))
    assert unfinished(state)["evidence"]["runbook"] == "resource_exhaustion"
    assert records(state)["value"] == []


def test_who_looks_in_the_middle_of_a_remediation_knows_of_it(state):
    state.write(record(1, "running"))
    assert unfinished(state, own=numbered(1))["value"] == "none"
    state.write(record(2, "running"))
    assert unfinished(state, own=numbered(2))["evidence"]["record"] == numbered(1)
    assert unfinished(state, own="")["evidence"]["record"] == numbered(2)


def test_run_that_may_still_be_there(state):
    state.write(record(1, "running"))
    state.take({"user": "ann", "controller": "shell-1"}, numbered(1), 900, False)
    seen = unfinished(state)
    until = state.lock()["expires_at"]
    assert seen["evidence"]["lock_expires_at"] == until
    assert seen["note"].endswith(f"; it may still be running, its lock ends {until}")
    # A lock for another record says nothing of this one, and one that has ended is none.
    state.take({"user": "bob"}, numbered(2), 900, True)
    assert unfinished(state)["evidence"]["lock_expires_at"] is None
    state.write(record(1, "verified"))
    assert unfinished(state)["evidence"]["locked"]["record"] == numbered(2)
    with open(state.lock_file, "w", encoding="utf-8") as file:
        json.dump({"record": numbered(1), "expires_at": utc(time.time() - 1)}, file)
    assert unfinished(state) == {"value": "none", "evidence": {}}


def test_latest_records_and_every_open_one(state):
    state.write(record(1, "running"))
    for number in range(2, 9):
        state.write(record(number, "verified"))
    state.write(record(9, "verified", runbook="resource_exhaustion"))
    seen = records(state)["value"]
    assert sorted(item["id"] for item in seen) == [numbered(number) for number in (1, 4, 5, 6, 7, 8)]
    assert len({item["id"] for item in seen}) == 6
    assert next(item for item in seen if item["id"] == numbered(8))["findings"] == [{"id": "p99"}]


def test_damaged_record_is_no_answer(state):
    state.write(record(1, "running"))
    with open(state.record_path(numbered(2)), "w", encoding="utf-8") as file:
        file.write('{"id"')
    for ask in (unfinished, records):
        with pytest.raises(NoAnswer, match="is damaged"):
            ask(state)


def test_looking_changes_nothing(state):
    state.write(record(1, "running"))
    before = {(folder, *sorted(files)) for folder, _folders, files in os.walk(state.path)}
    unfinished(state)
    records(state)
    assert {(folder, *sorted(files)) for folder, _folders, files in os.walk(state.path)} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that is not its own")
def test_what_may_not_be_read_is_not_known(state, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder) not in ("/", "/tmp"):
            folder.chmod(0o755)
    os.chmod(state.records, 0o700)
    said = helpers.python(
        f"""
        import sys
        from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
        from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
        {helpers.BECOME_NOBODY.strip().replace(chr(10), chr(10) + "        ")}
        try:
            helpers.look("remediation", path=sys.argv[1], runbook="r")
        except NoAnswer as error:
            print(error.kind, error)
        """,
        state.path,
    )
    assert said == f"permission {state.path} may not be read by nobody; run with -b."

# SPDX-License-Identifier: GPL-3.0-or-later
"""The module remediation: a step of which nobody could say later how it was before does not begin."""

from __future__ import annotations

import os

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.remediation import StateDir, begin
from ansible_collections.oncall.runbooks.plugins.modules import remediation

ID = "20261124T030000Z-0123456789ab"
OWNER = {"user": "ann", "controller": "shell-1", "pid": 4711, "started": "99"}


@pytest.fixture
def state(tmp_path):
    state = StateDir(str(tmp_path / "state"))
    step = {"id": "upgrade", "title": "Give acme a tier", "state": "planned", "reversible": True}
    record = {
        "id": ID, "plan": "p", "runbook": "quota", "by": {}, "started_at": "", "state": "running", "steps": [step],
        "findings": [],
    }  # fmt: skip
    begin(state, record, OWNER, 900, [])
    return state


def carried_out(state, new_state, into=None, settled=None, **looks):
    options = {
        "phase": "step", "id": ID, "step": "upgrade", "values": {"state": new_state}, "looks": looks, "into": into,
        "settled": settled or {}, "owner": OWNER, "lines": [],
    }  # fmt: skip
    return remediation._carry_out(options, state, Context(5, 0, {}, lambda command: (1, "", "")))


def setting(path, name="TIER"):
    """As the record of an older version has it: without the options that came later."""
    return {"probe": "setting", "path": str(path), "name": name}


def test_what_was_there_before_is_kept(state, tmp_path):
    file = tmp_path / "a.env"
    file.write_text("TIER=free\n")
    carried_out(state, "running", "before", tier=setting(file), missing=setting(tmp_path / "no.env"))
    (step,) = state.read(ID)["steps"]
    assert (step["state"], step["before"]) == ("running", {"tier": "free", "missing": "(not set)"})


def test_a_document_is_handed_to_the_controller_before_anything_is_written(state, tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"tier": "free"}')
    source = {"probe": "file", "paths": [str(file)], "value": "json", "jmespath": "tier"}
    answer = carried_out(state, "running", "before", tier=source)
    assert answer["documents"]["tier"]["look"]["value"] == {"tier": "free"}
    (step,) = state.read(ID)["steps"]
    assert (step["state"], step.get("before")) == ("planned", None)
    settled = {"outcome": "value", "value": "free", "note": None}
    assert "documents" not in carried_out(state, "running", "before", settled={"tier": settled}, tier=source)
    (step,) = state.read(ID)["steps"]
    assert (step["state"], step["before"]) == ("running", {"tier": "free"})
    # What is compared after a rollback is looked at as the record has it.
    wanted = carried_out(state, "undone", "restored")["documents"]["tier"]
    assert wanted["source"]["jmespath"] == "tier"
    with pytest.raises(Refused, match="tier is not what it was: it is 'pro', and was 'free'"):
        carried_out(state, "undone", "restored", settled={"tier": {**settled, "value": "pro"}})
    carried_out(state, "undone", "restored", settled={"tier": settled})
    assert state.read(ID)["steps"][0]["state"] == "undone"
    assert state.read(ID)["steps"][0]["restored"] == {"tier": "free"}


def test_a_step_does_not_begin_where_that_is_not_known(state, tmp_path):
    os.mkdir(tmp_path / "a.env")
    with pytest.raises(Refused, match="Give acme a tier was not begun: what tier is before it is not known, so it cou"):
        carried_out(state, "running", "before", tier=setting(tmp_path / "a.env"))
    (step,) = state.read(ID)["steps"]
    assert (step["state"], step.get("before")) == ("planned", None)
    # What did not begin has not failed in a way that would have to be undone.
    carried_out(state, "failed")
    assert state.read(ID)["steps"][0]["state"] == "skipped"


def test_what_does_not_exist_here_is_no_hindrance(state):
    carried_out(state, "running", "before", tier=setting(""))
    assert state.read(ID)["steps"][0]["before"] == {"tier": "no environment file is known"}


def test_an_interrupted_step_goes_on_with_what_was_kept(state, tmp_path):
    file = tmp_path / "a.env"
    file.write_text("TIER=free\n")
    carried_out(state, "running", "before", tier=setting(file))
    file.unlink()
    os.mkdir(file)
    carried_out(state, "running", "before", tier=setting(file))
    assert state.read(ID)["steps"][0]["before"] == {"tier": "free"}

#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: remediation
short_description: Keep a host's record of a remediation, and its lock
version_added: "0.2.0"
description:
  - The engine calls it around every step, so that the host knows what is being done to it before it is done, whatever
    becomes of the controller. It is no module for tasks of your own.
  - V(begin) checks that there is room for the record, refuses a host that somebody else has locked or on which a step
    has failed three times within a day, saves evidence and writes the record. V(rollback) opens a record to undo what
    it tells. V(step) says what became of a step. V(end) closes the record and lets go of the lock.
  - Everything is fsynced. Records hold no secrets; evidence and copies lie in a folder that only its owner may read.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    description: Changes nothing then, and says that it would.
  diff_mode:
    support: none
    description: The record is the difference.
options:
  phase:
    description: What happens.
    type: str
    choices: [begin, rollback, step, end]
    required: true
  state_dir:
    description: The folder on the host, C(runbook_state_dir).
    type: path
    required: true
  record:
    description: The record to write, for V(begin).
    type: dict
  id:
    description: The record's id.
    type: str
    required: true
  owner:
    description: Who holds the lock, with the owners that are known to be dead under C(dead).
    type: dict
  seconds:
    description: The seconds that the lock is valid for, anew with every step.
    type: float
    default: 900
  override:
    description: What a person who knows wants ignored.
    type: list
    elements: str
    choices: [lock, strikes, interrupted]
    default: []
  step:
    description: The step's id.
    type: str
  values:
    description: What to write into the step, or for V(end) into the record.
    type: dict
    default: {}
  looks:
    description: Sources of probes by name, to look at and keep in the step under O(into).
    type: dict
    default: {}
  settled:
    description:
      - What documents among O(looks) say, which only the controller can evaluate, by name. Without it such a call
        changes nothing and returns RV(documents).
    type: dict
    default: {}
    version_added: "0.6.0"
  into:
    description: The key of the step for what was seen. What is there already stays.
    type: str
  evidence:
    description: What to save before the first change, with C(logs), C(ports) and C(diagnosis).
    type: dict
  lines:
    description: Lines of the controller's timeline that concern this host.
    type: list
    elements: str
    default: []
  timeout:
    description: The seconds that one look may take.
    type: float
    default: 5
"""

EXAMPLES = r"""
- name: Tell the host that a step begins
  oncall.runbooks.remediation:
    phase: step
    state_dir: /var/lib/oncall-runbooks
    id: 20261124T030000Z-0123456789ab
    step: restart_vritti
    values: {state: running}
"""

RETURN = r"""
record:
  description: The record as it is now.
  type: dict
  returned: success
went_on:
  description: Whether it goes on with an interrupted remediation of the same plan.
  type: bool
  returned: for C(phase=begin)
private:
  description: The folder on the host for copies of what is changed.
  type: str
  returned: success
documents:
  description:
    - What is to be evaluated on the controller and given back as O(settled), by name, each with its C(source) and its
      C(look).
  returned: when a look gives a document and O(settled) has not got it
  type: dict
  version_added: "0.6.0"
seen:
  description: What O(looks) saw, by name.
  type: dict
  returned: success
"""

import contextlib
import functools
import json
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, evidence, remediation
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.plugins.module_utils.run_probes import one_look


def _save(state: remediation.StateDir, record: remediation.Record, wanted: dict[str, t.Any], context: Context) -> None:
    """Evidence of how it was, once for a record."""
    folder = state.private(record["id"])
    if os.path.exists(os.path.join(folder, "diagnosis.json")):
        return
    for place, path in enumerate(wanted.get("logs") or [], 1):
        state.keep(record["id"], f"log-{place}.txt", evidence.log_tail(context, path))
    ports = [int(port) for port in wanted.get("ports") or []]
    state.keep(record["id"], "processes.txt", evidence.processes(ports))
    state.keep(record["id"], "diagnosis.json", json.dumps(wanted.get("diagnosis"), indent=1) + "\n")
    record["evidence"] = folder
    state.write(record)


def _step(record: remediation.Record, name: str) -> dict[str, t.Any]:
    for step in record["steps"]:
        if step["id"] == name:
            return t.cast("dict[str, t.Any]", step)
    raise Refused(f"The record {record['id']} has no step {name!r}.")


def _carry_out(options: dict[str, t.Any], state: remediation.StateDir, context: Context) -> dict[str, t.Any]:
    phase, seen, went_on = options["phase"], {}, False
    now = clock.utc(time.time())
    if phase == "begin":
        record, went_on = remediation.begin(
            state, options["record"], options["owner"], options["seconds"], options["override"]
        )
        try:
            _save(state, record, options["evidence"] or {}, context)
        except OSError as error:
            with contextlib.suppress(OSError):
                state.write({**record, "state": "refused", "ended_at": now})
            with contextlib.suppress(OSError):
                state.release(record["id"], options["owner"])
            raise Refused(
                f"Evidence cannot be saved below {state.path} ({error.strerror}); nothing was changed."
            ) from None
    elif phase == "rollback":
        record = remediation.begin_rollback(
            state, options["id"], options["owner"], options["seconds"], options["override"]
        )
    else:
        read = state.read(options["id"])
        if read is None:
            raise Refused(f"The record {options['id']} is not in {state.records} any more.")
        record = read
        if phase == "step":
            step = _step(record, options["step"])
            # What is compared is looked at as it was before: the variables that say where may be others by now.
            looks = (step.get("looks") if options["into"] == "restored" else None) or options["looks"]
            settled = options["settled"]
            found = {
                name: settled.get(name) or one_look(context, _whole(source), {"id": name})
                for name, source in looks.items()
            }
            documents = {
                name: {"source": looks[name], "look": look}
                for name, look in found.items()
                if look["outcome"] in ("json", "yaml")
            }
            if documents:
                return {
                    "record": record,
                    "went_on": False,
                    "private": state.private(record["id"]),
                    "documents": documents,
                }
            was = step.get("before") or {}
            if options["into"] == "before" and not was:
                _require_seen(step, found)
            seen = {name: _told(look) for name, look in found.items()}
            differ = [name for name in was if seen.get(name) != was[name]] if options["into"] == "restored" else []
            if differ:
                raise Refused(
                    f"{step.get('title')} was undone, and {differ[0]} is not what it was: it is "
                    f"{seen.get(differ[0])!r}, and was {was[differ[0]]!r}."
                )
            # An interrupted step that is begun again was before as it was at first.
            if options["into"] and (options["into"] != "before" or not step.get("before")):
                step[options["into"]] = seen
                if options["into"] == "before":
                    step["looks"] = looks
            values = dict(options["values"])
            if values.get("state") == "failed" and step.get("state") == "planned":
                # It was refused before it began, so there is nothing of it to undo.
                values["state"] = "skipped"
            step.update(values)
            step["ended_at" if values.get("state") not in ("running", "undoing") else "started_at"] = now
            state.renew(record["id"], options["owner"] or {})
        else:
            if options["owner"]:
                # Whoever has taken the lock over goes on with this record.
                state.renew(record["id"], options["owner"])
            record.update(options["values"], ended_at=now)
        state.write(record)
        if phase == "end":
            state.release(record["id"], options["owner"])
    for line in options["lines"]:
        state.add_line(line)
    return {"record": record, "went_on": went_on, "private": state.private(record["id"]), "seen": seen}


def _whole(source: dict[str, t.Any]) -> dict[str, t.Any]:
    """The source with what an older version, which wrote it into a record, did not know."""
    spec = PROBES[source["probe"]].SPEC
    return {**{name: option.get("default") for name, option in spec.items()}, **source}


def _require_seen(step: dict[str, t.Any], found: dict[str, dict[str, t.Any]]) -> None:
    """Refuse a step of which nobody could say later what was there before it."""
    for name, look in found.items():
        # What does not exist here is not there afterwards either.
        if look["outcome"] == "no_answer" or (look["outcome"] == "value" and look["value"] is None):
            raise Refused(
                f"{step.get('title')} was not begun: what {name} is before it is not known, so it could not be put "
                f"back: {str(look['note'] or 'it has no value').rstrip('.')}."
            )


def _told(look: dict[str, t.Any]) -> t.Any:
    """What a look saw, as it is compared with another time."""
    return look["value"] if look["outcome"] == "value" else look["note"]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "phase": {"type": "str", "choices": ["begin", "rollback", "step", "end"], "required": True},
            "state_dir": {"type": "path", "required": True},
            "record": {"type": "dict"},
            "id": {"type": "str", "required": True},
            "owner": {"type": "dict"},
            "seconds": {"type": "float", "default": 900.0},
            "override": {"type": "list", "elements": "str", "choices": remediation.OVERRIDE, "default": []},
            "step": {"type": "str"},
            "values": {"type": "dict", "default": {}},
            "looks": {"type": "dict", "default": {}},
            "settled": {"type": "dict", "default": {}},
            "into": {"type": "str"},
            "evidence": {"type": "dict"},
            "lines": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 5.0},
        },
        required_if=[
            ("phase", "begin", ("record", "owner")),
            ("phase", "rollback", ("owner",)),
            ("phase", "step", ("step",)),
        ],
        supports_check_mode=True,
        # Its arguments are long, and the host keeps what is worth keeping of them.
        no_log=True,
    )
    options = module.params
    if module.check_mode:
        module.exit_json(changed=True)
    run_command = functools.partial(
        module.run_command, handle_exceptions=False, errors="surrogate_then_replace", environ_update={"LC_ALL": "C"}
    )
    context = Context(options["timeout"], 0, {}, run_command)
    # What a dead run has left is closed only when nothing of it is at work any more.
    closing = options["phase"] == "end" and not options["owner"]
    guard = os.path.join(options["state_dir"], ".operation") if closing else None
    try:
        with remediation.at_work(guard):
            result = _carry_out(options, remediation.StateDir(options["state_dir"]), context)
    except Refused as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or options['state_dir']} cannot be written ({error.strerror}), so the record is not "
            "complete."
        )
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The run's plan, and whether it may be applied or undone. Once for all hosts; it connects to nothing."""

from __future__ import annotations

import contextlib
import time
import typing as t
from datetime import UTC, datetime

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.oncall.runbooks.plugins.module_utils.remediation import OPEN, undoable
from ansible_collections.oncall.runbooks.plugins.plugin_utils import (
    command,
    everywhere,
    planning,
    recording,
    reports,
    undoing,
)
from ansible_collections.oncall.runbooks.plugins.plugin_utils.preflight import refuse_mode
from ansible_collections.oncall.runbooks.plugins.plugin_utils.render import plan_lines

REGISTER = "__runbook_diagnosis"


class ActionModule(ActionBase):
    """Reads what the diagnoses of all hosts have registered."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _validation, args = self.validate_argument_spec(
            {
                "runbook": {"type": "str", "required": True},
                "mode": {"type": "str", "choices": ["propose", "decide"], "default": "propose"},
                "report_dir": {"type": "str"},
                "record_dir": {"type": "str"},
                "record_key_file": {"type": "str"},
                "plan": {"type": "str"},
                "steps": {"type": "list", "elements": "str", "default": []},
                "frozen": {"type": "dict", "default": {}},
                "max_risk": {"type": "str"},
                "ttl": {"type": "float", "default": 1800.0},
                "rollback_id": {"type": "str"},
                "settle": {"type": "float", "default": 0.0},
            }
        )
        result.update(changed=False, decision="none", plan=None)
        args["steps"] = [name.strip() for name in args["steps"] if name.strip()]
        mode = "propose"
        if args["mode"] == "decide":
            tags = variables["ansible_run_tags"]
            mode = next((name for name in ("remediate", "rollback") if name in tags), "remediate")
            refused, remark = refuse_mode(mode, tags, variables["ansible_skip_tags"])
            if refused:
                raise AnsibleActionFail(refused)
            if remark:
                result["warnings"] = [remark]
                return result
            if args["settle"] < 0:
                raise AnsibleActionFail(
                    f"Nothing was changed: runbook_settle_seconds is {args['settle']:g}; it is a number from 0."
                )
            if args["plan"] and len(variables["ansible_play_batch"]) < len(variables["ansible_play_hosts"]):
                raise AnsibleActionFail(
                    "Nothing was changed: this play has serial, and a plan is approved once for all of its hosts; take "
                    "what our playbooks import, _runbook.yml, for a model, or -l for one host at a time."
                )
        hosts = list(variables["ansible_play_hosts_all"])
        hostvars = variables["hostvars"]
        seen = {host: hostvars[host].get(REGISTER) for host in hosts}
        found = {host: data for host, data in seen.items() if isinstance(data, t.Mapping) and "diagnosis" in data}
        if mode == "rollback":
            self._rollback(result, args, found)
        else:
            self._remediation(result, args, found, mode, variables["ansible_run_tags"])
        return result

    def _remediation(
        self,
        result: dict[str, t.Any],
        args: dict[str, t.Any],
        found: dict[str, t.Any],
        mode: str,
        tags: t.Sequence[str],
    ) -> None:
        now = time.time()
        steps, every = (
            everywhere.merge(
                {host: data[kind] for host, data in found.items()},
                {host: data["everywhere"] for host, data in found.items()},
                args["frozen"],
            )
            for kind in ("steps", "proposed")
        )
        file = reports.plan_path(args["report_dir"], args["runbook"])
        plan = planning.make(args["runbook"], steps, now, args["steps"], file)
        whole = planning.make(args["runbook"], every, now)
        given = args["plan"] or None
        stored = reports.plan_with(args["report_dir"], given) if given else None
        result["plan"] = plan
        self._report(args, plan, found, "remediate" not in tags)
        if mode == "propose":
            return
        lost = [host for host, data in found.items() if data.get("unreachable") or data.get("failed")]
        lost_of_plan = [host for host in lost if given and (stored is None or host in stored["hosts"])]
        if lost_of_plan:
            raise AnsibleActionFail(
                f"Nothing was changed: {', '.join(lost_of_plan)} could not be looked at, so the plan {given} cannot be "
                "applied as it was approved; narrow with -l and diagnose again."
            )
        open_plans = {
            str(record["plan"]) for data in found.values() for record in data["records"] if record["state"] == "running"
        }
        decision, why = planning.approve(
            plan,
            whole,
            given,
            args["max_risk"] or None,
            args["ttl"],
            now,
            stored,
            _remainder(given, open_plans, found, stored, steps),
        )
        if decision == "nothing" and stored and stored["runbook"] != args["runbook"]:
            decision, why = "refused", f"Nothing was changed: {given} is a plan of {stored['runbook']}."
        if decision == "nothing":
            half = [f"{host}: {sentence}" for host, data in found.items() for sentence in _half_done(data)]
            if half:
                decision, why = "refused", f"Nothing was changed, and nothing is left to propose, but {'; '.join(half)}"
        if self._task.check_mode and decision != "nothing":
            decision, why = "approved", "check mode: nothing is changed"
        # An interrupted run goes on under the id that was approved, also where less is left to do.
        plan_id = given if decision == "approved" and given else plan and plan["id"]
        at = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        run_id = f"{at}-{planning.fingerprint(args['runbook'], steps)}"
        self._decide(
            result,
            args,
            mode,
            decision,
            why,
            plan,
            command.again("remediate", planning.apply_options(plan) if plan else []),
        )
        result.update(decision=decision, why=why, plan_id=plan_id, run_id=run_id, **_in_turn(steps))
        # Closing a record is a change as well, and nobody has asked for one without these.
        if decision == "nothing" and not self._task.check_mode and (given or args["max_risk"]):
            result["close"] = {host: name for host, data in found.items() for name in _left_behind(data)}

    def _rollback(self, result: dict[str, t.Any], args: dict[str, t.Any], found: dict[str, t.Any]) -> None:
        unseen = [data["unseen"] for data in found.values() if data.get("unseen")]
        if unseen:
            raise AnsibleActionFail(f"Nothing was changed: what there is to undo is not known: {unseen[0]}")
        lost = [host for host, data in found.items() if data.get("unreachable") or data.get("failed")]
        if lost:
            raise AnsibleActionFail(
                f"Nothing was changed: {', '.join(lost)} could not be looked at; narrow with -l to leave it out."
            )
        records = {host: data["records"] for host, data in found.items()}
        try:
            plan, note = undoing.make(args["runbook"], records, args["rollback_id"] or None, found)
        except undoing.Nothing as error:
            raise AnsibleActionFail(str(error)) from None
        result["plan"] = plan
        result["note"] = note
        given = args["rollback_id"] or None
        if plan is None:
            decision, why = "nothing", note
        elif self._task.check_mode:
            decision, why = "approved", "check mode: nothing is changed"
        elif given:
            decision, why = "approved", f"runbook_rollback_id={given}"
        else:
            decision, why = "ask", f"The record to undo is {plan['id']}"
        again = command.again("rollback", ["-e", f"runbook_rollback_id={plan['id']}"]) if plan else None
        self._decide(result, args, "rollback", decision, why, plan, again)
        result.update(decision=decision, why=why, run_id=plan and plan["id"], one_by_one=plan["hosts"] if plan else [])

    def _decide(
        self,
        result: dict[str, t.Any],
        args: dict[str, t.Any],
        mode: str,
        decision: str,
        why: str,
        plan: planning.Plan | None,
        again: str | None,
    ) -> None:
        """Say what was decided, and fail where it is no."""
        lines = plan_lines(plan) if plan else []
        note = result.get("note")
        if note and decision != "nothing":
            lines.append(note)
        if decision == "refused":
            # What is not changed may be unrecorded; the refusal itself must be heard.
            with contextlib.suppress(OSError, ValueError):
                recording.append(
                    args["record_dir"],
                    args["record_key_file"],
                    recording.entry("refused", args["runbook"], None, mode=mode, plan=args["plan"], outcome=why),
                )
            raise AnsibleActionFail(
                "\n".join(filter(None, [why, *lines, f"To apply it: {again}" if again and plan else ""]))
            )
        if decision == "nothing":
            self._display.display(why)
            return
        if decision == "ask":
            result["prompt"] = "\n".join([*lines, "Type yes to go on; anything else changes nothing"])
            result["refusal"] = "\n".join(
                [
                    f"Nothing was changed: nobody has approved it. {why}.",
                    *([f"To go on:  {again}"] if again else []),
                    *(["Or pass -e runbook_max_risk=safe|disruptive."] if mode == "remediate" else []),
                ]
            )
            return
        for line in [*lines, f"Approved by {why}." if not self._task.check_mode else f"{why[0].upper()}{why[1:]}."]:
            self._display.display(line)

    def _report(
        self, args: dict[str, t.Any], plan: planning.Plan | None, found: dict[str, t.Any], proposed: bool
    ) -> None:
        """The plan in every host's report, under one id."""
        try:
            for host, data in found.items():
                if plan or data["diagnosis"].get("plan"):
                    diagnosis = {**data["diagnosis"], "plan": planning.of_host(plan, host)}
                    reports.write(reports.host_path(args["report_dir"], args["runbook"], host), diagnosis)
            # What is only proposed may be approved later; what is about to be applied is in the records.
            if plan and proposed:
                reports.write_plan(reports.plan_path(args["report_dir"], args["runbook"]), plan)
        except OSError as error:
            raise AnsibleActionFail(f"The report {error.filename} cannot be written: {error.strerror}.") from None


def _in_turn(steps: t.Sequence[planning.Step]) -> dict[str, list[str]]:
    """The hosts on which something is done at once with all others, and those that are changed one after the other."""
    return {
        "at_once": list(dict.fromkeys(step["host"] for step in steps if step["everywhere"])),
        "one_by_one": list(dict.fromkeys(step["host"] for step in steps if not step["everywhere"])),
    }


def _cut_short(data: t.Mapping[str, t.Any]) -> list[t.Mapping[str, t.Any]]:
    """The remediation that was cut short on a host and that nobody carries on."""
    lock = data["lock"] or {}
    return [
        record
        for record in data["records"]
        if record["state"] in OPEN and (lock.get("record") != record["id"] or recording.dead(lock.get("owner")))
    ][:1]


def _half(record: t.Mapping[str, t.Any]) -> bool:
    """Whether something of it may be half done that going on or undoing would bring to an end."""
    return record["state"] != "running" or any(step["state"] != "verified" for step in undoable(record))


def _left_behind(data: t.Mapping[str, t.Any]) -> list[str]:
    return [record["id"] for record in _cut_short(data) if not _half(record)]


def _half_done(data: t.Mapping[str, t.Any]) -> list[str]:
    said = []
    for record in filter(_half, _cut_short(data)):
        steps = [step for step in undoable(record) if step["state"] != "verified"]
        what = ", ".join(step["title"] for step in steps) or record["state"]
        names = ",".join(step["id"] for step in steps)
        go_on = f"go on with -e runbook_plan={record['plan']} -e runbook_steps={names}, or "
        undo = f"undo it with --tags rollback -e runbook_rollback_id={record['id']}."
        said.append(f"{record['id']} was cut short ({what}): {go_on if record['state'] == 'running' else ''}{undo}")
    return said


def _remainder(
    given: str | None,
    open_plans: set[str],
    found: dict[str, t.Any],
    stored: planning.Plan | None,
    steps: t.Sequence[planning.Step],
) -> bool:
    """Whether what would be done now is in the interrupted run of that plan, step by step."""
    if not given or given not in open_plans:
        return False
    for host, data in found.items():
        of_host = [record["steps"] for record in data["records"] if record["plan"] == given]
        # The run may have died before this host's turn, which its plan tells as long as it is kept.
        of_host.append([step for step in (stored or {"steps": []})["steps"] if step["host"] == host])
        known = [(step["id"], step["operation"], step["params"]) for steps in of_host for step in steps]
        own = [step for step in steps if step["host"] == host]
        if any((step["id"], step["operation"], step["params"]) not in known for step in own):
            return False
    return True

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of remediation: the timeline's line first, then the host's record; and what verifying says."""

from __future__ import annotations

import time
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.oncall.runbooks.plugins.module_utils.remediation import OVERRIDE, SCHEMA, undoable
from ansible_collections.oncall.runbooks.plugins.plugin_utils import command, planning, recording
from ansible_collections.oncall.runbooks.plugins.plugin_utils.diagnosis import settled
from ansible_collections.oncall.runbooks.plugins.plugin_utils.documents import search

# What the timeline calls the states of steps.
EVENTS = {
    "running": "step begun",
    "done": "step done",
    "verified": "step verified",
    "failed": "step failed",
    "undoing": "undoing begun",
    "undone": "undoing carried out",
    "skipped": "step skipped",
}
ARGUMENT_SPEC: dict[str, t.Any] = {
    "phase": {"type": "str", "choices": ["begin", "rollback", "step", "end", "verify"], "required": True},
    "runbook": {"type": "str", "required": True},
    "service": {"type": "str"},
    "state_dir": {"type": "str", "required": True},
    "record_dir": {"type": "str"},
    "record_key_file": {"type": "str"},
    "id": {"type": "str"},
    "plan": {"type": "str"},
    "approved": {"type": "str"},
    "seconds": {"type": "float", "default": 900.0},
    "settle": {"type": "float", "default": 0.0},
    "was": {"type": "dict", "default": {}},
    "is_now": {"type": "dict", "default": {}},
    "override": {"type": "list", "elements": "str", "default": []},
    "steps": {"type": "list", "elements": "dict", "default": []},
    "step": {"type": "str"},
    "state": {"type": "str"},
    "message": {"type": "str"},
    "into": {"type": "str"},
    "looks": {"type": "dict", "default": {}},
    "lock": {"type": "dict"},
    "evidence": {"type": "dict"},
    "before": {"type": "list", "elements": "dict", "default": []},
    "now": {"type": "dict"},
    "because": {"type": "list", "elements": "str", "default": []},
    "records": {"type": "list", "elements": "dict", "default": []},
    "unseen": {"type": "str"},
}


class ActionModule(ActionBase):
    """One module call for each thing that happens; in check mode none."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _validation, args = self.validate_argument_spec(ARGUMENT_SPEC)
        host = str(variables.get("inventory_hostname", ""))
        args["override"] = [name for name in args["override"] if name]
        if args["phase"] == "verify":
            return {**result, **self._verify(args, host)}
        strange = [name for name in args["override"] if name not in OVERRIDE]
        if strange:
            known = f"{', '.join(OVERRIDE[:-1])} or {OVERRIDE[-1]}"
            raise AnsibleActionFail(f"runbook_override names {strange[0]!r}; it is {known}. Nothing was changed.")
        # Also where a play has check_mode of its own, which ansible_check_mode does not tell.
        result.update(changed=True, id=args["id"], checked=self._task.check_mode)
        outcomes: dict[str, str] | None = None
        if args["now"]:
            outcomes = planning.verification(args["before"], args["now"]["findings"], args["because"])
            result.update(
                outcomes=outcomes,
                helped=planning.helped(outcomes),
                fixed=[item["id"] for item in args["now"]["findings"] if item["status"] == "ok"],
            )
            if args["phase"] == "end":
                args["state"] = "verified" if result["helped"] else "did not help"
        if args["phase"] == "begin":
            result.update(
                run=args["id"],
                before=planning.brief(args["before"]),
                because=sorted({name for step in args["steps"] for name in step["because"]}),
            )
        if self._task.check_mode:
            result["private"] = f"{args['state_dir']}/private/{args['id']}"
            return result
        event = EVENTS.get(str(args["state"])) if args["phase"] == "step" else None
        line = recording.entry(
            event or {"begin": "remediation begun", "rollback": "rollback begun", "end": "ended"}[args["phase"]],
            args["runbook"],
            host,
            record=args["id"],
            plan=args["plan"] or None,
            approved=args["approved"],
            step=args["step"] or None,
            steps=[item["id"] for item in args["steps"]] or None,
            before=args["was"] or None,
            after=args["is_now"] or None,
            state=args["state"] if args["phase"] == "end" else None,
            outcomes=outcomes or None,
            message=args["message"],
        )
        lines, result["record"] = self._append(args, line)
        wire = _wire(args, host, outcomes, lines)
        answer = self._call(wire, variables)
        if answer.get("documents"):
            # JMESPath and PyYAML are on the controller.
            wire["settled"] = {
                name: settled(one["source"], one["look"], search) for name, one in answer["documents"].items()
            }
            answer = self._call(wire, variables)
        if answer.get("failed") or answer.get("unreachable"):
            why = self._why(answer, args, host)
            event = "refused" if args["phase"] in ("begin", "rollback") else "not recorded"
            if answer.get("unreachable"):
                # Whether it came as far as the host nobody knows.
                event = "lost the host"
            self._append(args, recording.entry(event, args["runbook"], host, record=args["id"], outcome=why))
            result.update({key: answer[key] for key in ("unreachable",) if key in answer}, msg=why, changed=False)
            result["failed"] = not answer.get("unreachable")
            return result
        record = answer["record"]
        result.update(
            id=record["id"], private=answer["private"], evidence=record.get("evidence"), seen=answer.get("seen") or {}
        )
        if args["phase"] == "end":
            result["verdict"] = (
                _verdict(args, host, outcomes, record)
                if outcomes is not None
                else f"{args['message']}, and nothing further was done{_undo(record)}"
            )
        if args["phase"] == "begin":
            # Of an interrupted run that goes on, how it was at first.
            result["before"] = record["findings"]
        said = _said(args, record, answer["went_on"], outcomes)
        if said:
            self._display.display(f"{host}: {said}")
        if args["settle"] and args["phase"] == "step":
            time.sleep(args["settle"])
        return result

    def _call(self, wire: dict[str, t.Any], variables: dict[str, t.Any]) -> dict[str, t.Any]:
        try:
            answer: dict[str, t.Any] = self._execute_module(
                module_name="oncall.runbooks.remediation",
                module_args=wire,
                task_vars=variables,
            )
        except AnsibleConnectionFailure as error:
            return {"unreachable": True, "msg": " ".join(str(error).split())}
        except AnsibleError as error:
            if "become" in str(error).lower() or "sudo" in str(error).lower():
                return {"failed": True, "msg": "", "module_stderr": str(error)}
            raise
        return answer

    def _why(self, answer: t.Mapping[str, t.Any], args: t.Mapping[str, t.Any], host: str) -> str:
        """Why the module did not do it, in a sentence; that root is wanted is the usual one."""
        told = f"{answer.get('module_stderr') or ''}\n{answer.get('module_stdout') or ''}\n{answer.get('msg') or ''}"
        become = self._connection.become
        method = str(getattr(become, "name", "") or "sudo").rpartition(".")[2]
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        refusal = next((line for line in lines if method in line.lower() or "become" in line.lower()), None)
        if become and refusal:
            changed = "Nothing was changed: " if args["phase"] in ("begin", "rollback") else ""
            return (
                f"{changed}{host} needs root for this, and {method} does not give it ({refusal.rstrip('.')}): "
                "allow it without a password, or pass -K."
            )
        return str(answer.get("msg") or (lines[-1] if lines else "the module gave no result"))

    def _verify(self, args: dict[str, t.Any], host: str) -> dict[str, t.Any]:
        if args["unseen"]:
            raise AnsibleActionFail(f"What was done before is not known: {args['unseen']}")
        record = next(iter(args["records"]), None)
        if record is None:
            raise AnsibleActionFail(
                f"{args['runbook']} has not remediated {host}, so there is nothing to compare with; use "
                "--tags diagnose."
            )
        because = sorted({name for step in record["steps"] for name in step.get("because") or []})
        outcomes = planning.verification(record["findings"], args["now"]["findings"], because)
        args["id"] = record["id"]
        line = recording.entry(
            "verified" if planning.helped(outcomes) else "verified in vain",
            args["runbook"],
            host,
            record=record["id"],
            outcomes=outcomes,
        )
        _lines, told = self._append(args, line)
        verdict = _verdict(args, host, outcomes, record)
        self._display.display(verdict)
        result = {"changed": False, "outcomes": outcomes, "record": told, "helped": planning.helped(outcomes)}
        return result if result["helped"] else {**result, "failed": True, "msg": verdict}

    def _append(self, args: dict[str, t.Any], line: dict[str, t.Any]) -> tuple[list[str], dict[str, t.Any]]:
        try:
            told = recording.append(args["record_dir"], args["record_key_file"], line)
        except (OSError, ValueError) as error:
            raise AnsibleActionFail(f"The record cannot be written: {str(error).rstrip('.')}.") from None
        return list(told.pop("lines", [])), told


def _wire(args: dict[str, t.Any], host: str, outcomes: dict[str, str] | None, lines: list[str]) -> dict[str, t.Any]:
    wire: dict[str, t.Any] = {
        "phase": args["phase"],
        "state_dir": args["state_dir"],
        "id": args["id"],
        "seconds": args["seconds"],
        "override": args["override"],
        "lines": lines,
    }
    if args["phase"] in ("begin", "rollback"):
        held = (args["lock"] or {}).get("owner")
        wire["owner"] = {**recording.owner(), "dead": [held] if recording.dead(held) else []}
    elif args["state"] != "closed":
        # What a dead run has left is closed by somebody else.
        wire["owner"] = recording.owner()
    if args["phase"] == "begin":
        wire.update(evidence=args["evidence"], record=_record(args, host))
    elif args["phase"] == "step":
        values: dict[str, t.Any] = {"state": args["state"]}
        if args["message"]:
            values["message"] = args["message"]
        if outcomes is not None:
            values.update(outcomes=outcomes, helped=planning.helped(outcomes))
        wire.update(step=args["step"], values=values, looks=args["looks"], into=args["into"])
    elif args["phase"] == "end":
        wire["values"] = {"state": args["state"], "message": args["message"], "outcomes": outcomes}
    return wire


def _record(args: dict[str, t.Any], host: str) -> dict[str, t.Any]:
    keys = (
        "id",
        "title",
        "role",
        "operation",
        "params",
        "risk",
        "reversible",
        "irreversible",
        "undo",
        "because",
        "state_of",
        "preview",
    )
    owner = recording.owner()
    return {
        "schema": SCHEMA,
        "id": args["id"],
        "plan": args["plan"],
        "runbook": args["runbook"],
        "service": args["service"],
        "host": host,
        "by": {key: owner[key] for key in ("user", "controller")},
        "approved": args["approved"],
        "started_at": recording.entry("", "", None)["at"][:19] + "Z",
        "state": "running",
        "steps": [{**{key: step.get(key) for key in keys}, "state": "planned"} for step in args["steps"]],
        "findings": planning.brief(args["before"]),
    }


def _step(record: t.Mapping[str, t.Any], name: str) -> dict[str, t.Any]:
    return next((step for step in record["steps"] if step["id"] == name), {})


def _said(
    args: t.Mapping[str, t.Any], record: t.Mapping[str, t.Any], went_on: bool, outcomes: t.Mapping[str, str] | None
) -> str:
    """What somebody who waits reads."""
    title = _step(record, str(args["step"])).get("title")
    if args["phase"] == "begin":
        how = "goes on with" if went_on else "began"
        return f"{how} remediation {record['id']}; evidence is in {record.get('evidence')}"
    if args["phase"] == "rollback":
        return f"undoing {record['id']}"
    if args["phase"] == "end":
        return f"{record['id']}: {record['state']}"
    if args["state"] == "done":
        wait = f"; waiting {args['settle']:g} s, then looking again" if args["settle"] else ""
        return f"{title}: done{wait}"
    if args["state"] == "verified":
        return f"{title}: {told(outcomes or {})}"
    words = {"running": "...", "undoing": "undoing ...", "undone": "undone", "skipped": f"left out, {args['message']}"}
    return f"{title}: {words[args['state']]}" if args["state"] in words else ""


def told(outcomes: t.Mapping[str, str]) -> str:
    """The outcomes in a line."""
    return ", ".join(f"{name} {value}" for name, value in outcomes.items()) or "no finding asked for it"


def _undo(record: t.Mapping[str, t.Any]) -> str:
    """How to take back what can be taken back."""
    if not undoable(record):
        return "."
    again = command.again("rollback", ["-e", f"runbook_rollback_id={record['id']}"])
    return f". To undo what was: {again}" if again else "."


def _verdict(
    args: t.Mapping[str, t.Any], host: str, outcomes: t.Mapping[str, str], record: t.Mapping[str, t.Any]
) -> str:
    text = f"Remediation {record['id']} of {host}: {told(outcomes)}."
    if planning.helped(outcomes):
        return text
    return f"{text} It did not help; the diagnosis says how it is now{_undo(record)}"

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of diagnose: validate, resolve secrets, one module call, judge, write the report."""

from __future__ import annotations

import gc
import os
import re
import time
import typing as t
from datetime import UTC, datetime

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError, AnsibleUndefinedVariable
from ansible.plugins.action import ActionBase

from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import ARGUMENT_SPEC, LEVELS
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask
from ansible_collections.oncall.runbooks.plugins.module_utils.probes.http import secret_of
from ansible_collections.oncall.runbooks.plugins.plugin_utils import checks as checking
from ansible_collections.oncall.runbooks.plugins.plugin_utils import diagnosis as diagnosing
from ansible_collections.oncall.runbooks.plugins.plugin_utils import everywhere, planning, recording, reports, triage
from ansible_collections.oncall.runbooks.plugins.plugin_utils.controller import own_addresses
from ansible_collections.oncall.runbooks.plugins.plugin_utils.documents import search

CALLBACK = "oncall.runbooks.oncall"
# Masking anything shorter would take single letters out of the findings.
SHORTEST_SECRET = 4
# In the ids of what is looked at for previews, so that no check can have the same.
LOOK = "look:"
RECORDS = "__records"
# The role whose operations are no service's own.
ENGINE = "oncall.runbooks.runbook"
# What a plan says of an operation.
TEXTS = ("preview", "irreversible", "undo", "by_hand")
# Of a look, what says which thing is meant.
TARGET = ("unit", "port", "pid_file", "command", "directory", "environment_file", "address", "path", "name")


class Book(t.NamedTuple):
    """A runbook's data for a service."""

    checks: list[t.Any]
    causes: list[t.Any]
    steps: list[t.Any]
    # Where the output has one line per host: what it shows.
    line: str
    # Runbooks whose checks it takes together.
    runbooks: list[str]


class ActionModule(ActionBase):
    """Looks with one call of the module of the same name; judges here."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        # This process is a copy of all of Ansible for this one task; searching that for garbage, again and again while
        # the module is packed, took a tenth of a diagnosis.
        gc.freeze()
        self._known: dict[str, t.Any] = {}
        args = self._of_service(_arguments(self._task.args), variables)
        args["steps"] = [name.strip() for name in args["steps"] if name.strip()]
        if args["state_dir"] and not os.path.isabs(args["state_dir"]):
            raise AnsibleActionFail(
                f"runbook_state_dir is {args['state_dir']!r}; it is a folder on the host, and its path begins with /."
            )
        book = self._read(args, variables)
        host = str(variables.get("inventory_hostname", ""))
        mistakes: list[str] = []
        parts = self._parts(book, args, mistakes)
        checks = [check for part in parts for check in part.checks]
        bad = [item for part in parts for item in part.bad]
        if not checks and not bad:
            raise AnsibleActionFail(
                f"{args['runbook']} has no checks for {args['service']}: there is nothing to diagnose."
            )
        escalation, contacts = _people(args, mistakes)
        steps, operations, looks_of = self._steps(book, args, checks, mistakes, variables)
        strange = planning.unknown_steps(steps, args["steps"], args["runbook"])
        if strange:
            raise AnsibleActionFail(strange)

        same = triage.alike(checks)
        wanted = [*triage.wanted(checks, same), *_as_checks(looks_of)]
        secrets = self._secrets(wanted)
        began, started_at = time.monotonic(), _now()
        seen = self._look(wanted, args, secrets, variables)
        problem = seen.get("problem")
        if problem:
            looks = {
                check["id"]: {"looks": [{"outcome": "no_answer", "note": problem}], "unmet": []} for check in checks
            }
            # What cannot be looked at is not known, also where silence would be the incident.
            checks = [{**check, "on_no_data": "unknown", "next_step": ""} for check in checks]
        else:
            looks = {**seen["looks"], **triage.spread(checks, same, seen["looks"])}

        changing = bool({"remediate", "rollback"} & set(variables.get("ansible_run_tags") or ()))
        path = _report_path(args["report_dir"], args["runbook"], host)
        findings = diagnosing.judge_all(checks, bad, looks, args["severities"], search, started_at, _previous(path))
        _withhold(checks, findings)
        diagnosing.page(findings, escalation)
        status, severity, label = diagnosing.overall(findings)
        told = (
            {
                name: diagnosing.settled(source, looks[LOOK + name]["looks"][0], search)
                for name, source in looks_of.items()
            }
            if not problem
            else {}
        )
        # To a host that could not be looked at nothing is done.
        narrowed: tuple[list[str], ...] = ([], args["steps"])

        def described(step: t.Mapping[str, t.Any], because: list[str]) -> planning.Step:
            operation = operations[step["id"]]
            return planning.step(
                host,
                operation["role"],
                step,
                self._spelled_out(operation, step, variables),
                because,
                _own(told, step["id"]),
                _targets(operation, step["id"], looks_of),
            )

        found, proposed = [
            [described(step, because) for step, because in planning.candidates(steps, findings, only) if not problem]
            for only in narrowed
        ]
        # What all hosts do at once, each of them would do, whether or not it has found anything itself.
        fleet = [described(step, []) for step in steps if step["everywhere"] and not problem]
        if fleet:
            # Who runs this may be among who asks for what is refused, as a check that nobody has given a key does.
            own = own_addresses(str(self._play_context.remote_addr or ""))
            for item in [*fleet, *found, *proposed]:
                item["protected"] += [{"network": one, "rule": "controller", "what": "the controller's"} for one in own]
        for item in [*found, *proposed]:
            for names in item["lists"].values():
                item["listed"] += everywhere.listed(names, findings)
        # The only host: its steps are the run's plan. Of several the engine makes one (action plan).
        alone = len(variables.get("ansible_play_hosts_all") or [host]) == 1
        plan_path = reports.plan_path(args["report_dir"], args["runbook"])
        plan = (
            planning.make(
                args["runbook"],
                everywhere.merge({host: proposed}, {host: fleet}, args["frozen"]),
                time.time(),
                args["steps"],
                plan_path,
            )
            if alone and not problem
            else None
        )
        diagnosis: dict[str, t.Any] = {
            "schema": diagnosing.SCHEMA,
            "runbook": args["runbook"],
            "service": args["service"],
            "host": host,
            "started_at": started_at,
            "duration_ms": round((time.monotonic() - began) * 1000, 1),
            "status": status,
            "severity": severity,
            "label": label,
            "escalation": diagnosing.escalation(findings, escalation, contacts),
            "summary": f"It could not be looked at: {problem}" if problem else "",
            "findings": findings,
            "plan": plan,
        }
        if book.runbooks:
            diagnosis["runbooks"] = [] if problem else triage.rank(parts, findings, same)
        if not problem:
            diagnosis["summary"] = (
                triage.summarise(diagnosis["runbooks"], findings)
                if book.runbooks
                else diagnosing.summarise(findings, parts[0].causes)
            )
        if book.line:
            diagnosis["line"] = "" if problem else diagnosing.line(book.line, findings)
        hidden = [value for value in secrets.values() if len(value) >= SHORTEST_SECRET]
        diagnosis = mask(diagnosis, hidden)
        try:
            if path:
                reports.write(path, diagnosis)
            # The one that is to be applied now is wanted to tell the difference.
            if plan and not changing:
                reports.write_plan(plan_path, diagnosis["plan"])
        except OSError as error:
            mistakes.append(f"The report {error.filename or path} cannot be written: {error.strerror}.")
        try:
            record = recording.append(
                args["record_dir"],
                args["record_key_file"],
                recording.entry(
                    "diagnosed",
                    args["runbook"],
                    host,
                    status=status,
                    label=label,
                    summary=diagnosis["summary"],
                    plan=plan and plan["id"],
                ),
            )
        except (OSError, ValueError) as error:
            record = {}
            mistakes.append(f"The record cannot be written: {str(error).rstrip('.')}.")
        remembered = told.get(RECORDS, {})
        shown = C.DEFAULT_STDOUT_CALLBACK == CALLBACK
        is_reached = diagnosing.reached(findings, args["fail_on"])
        result.update(
            changed=False,
            diagnosis=diagnosis,
            report=path,
            reached=is_reached,
            shown=shown,
            steps=mask(proposed, hidden),
            proposed=mask(found, hidden),
            everywhere=mask(fleet, hidden),
            records=remembered.get("value") or [],
            unseen=None if remembered.get("outcome") == "value" else remembered.get("note"),
            lock=(remembered.get("evidence") or {}).get("lock"),
            needs_root=_needs_root(remembered.get("evidence") or {}, told),
            looks={
                step["id"]: {name: looks_of[f"{step['id']}.{name}"] for name in operations[step["id"]]["state"]}
                for step in steps
                if f"{step['id']}.{(operations[step['id']]['state'] or [''])[0]}" in looks_of
            },
            states={name: look["value"] for name, look in told.items() if "." in name and look["outcome"] == "value"},
            record=record,
            # Whether a task is wanted after this one: to make the plan of several hosts, to show, or to fail.
            more=is_reached or not shown or bool(proposed and not alone),
        )
        if seen.get("unreachable"):
            result.update(unreachable=True, msg=f"{host} is unreachable: {problem}")
        elif problem:
            result.update(failed=True, msg=diagnosis["summary"])
        elif mistakes:
            result.update(failed=True, msg=" ".join(mistakes))
        return result

    def _of_service(self, args: dict[str, t.Any], variables: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """The arguments, with what the service's role says of it where the task does not."""
        for name in ("severities", "escalation", "contacts"):
            own = variables.get(f"{args['service']}_{name}")
            if name not in self._task.args and own is not None:
                args[name] = checking.plain(self._templar.template(own))
        if args["file"] and os.path.isdir(args["file"]):
            args["file"] = os.path.join(args["file"], f"{args['service']}.yml")
        for label, severity in args["severities"].items():
            if severity not in LEVELS:
                known = ", ".join(LEVELS)
                raise AnsibleActionFail(f"The severity of {label} is {severity!r}; it is one of {known}.")
        return args

    def _read(self, args: dict[str, t.Any], variables: t.Mapping[str, t.Any]) -> Book:
        """The runbook's data, templated one by one: a broken one becomes its own mistake."""
        if not args["file"]:
            return Book(args["checks"], args["causes"], [], "", [])
        name, service = args["runbook"], args["service"]
        data = self._loaded(args["file"])
        if isinstance(data, dict) and isinstance(data.get(f"{name}_runbooks"), list):
            return Book(args["checks"], args["causes"], [], "", [str(one) for one in data[f"{name}_runbooks"]])
        if not isinstance(data, dict) or not isinstance(data.get(f"{name}_checks"), (list, str)):
            raise AnsibleActionFail(f"The file {args['file']} has no list {name}_checks.")
        parts = {}
        for kind in ("checks", "causes", "steps"):
            own = self._list(data.get(f"{name}_{kind}") or [])
            # What is no service's own is the engine's: steps alone.
            shared = [*(variables.get(f"{service}_{kind}") or []), *(variables.get(f"__runbook_{kind}") or [])]
            parts[kind] = checking.used(own, shared, kind[:-1])
        return Book(
            [*args["checks"], *map(self._template, parts["checks"])],
            [*args["causes"], *map(self._template, parts["causes"])],
            list(map(self._template, parts["steps"])),
            str(self._template(data.get(f"{name}_line") or "")),
            [],
        )

    def _loaded(self, path: str) -> t.Any:
        try:
            return self._loader.load_from_file(path, trusted_as_template=True)
        except AnsibleError as error:
            raise AnsibleActionFail(f"The checks in {path} cannot be read: {_sentence(str(error))}") from None

    def _parts(self, book: Book, args: dict[str, t.Any], mistakes: list[str]) -> list[triage.Part]:
        """The runbook's checks and causes; of one that takes others together, those of each of them."""
        if not book.runbooks:
            return [_part(args["runbook"], book, args["severities"], mistakes)]
        roles = os.path.dirname(os.path.dirname(os.path.dirname(args["file"])))
        defaults: dict[str, t.Any] = {}
        for name in book.runbooks:
            path = os.path.join(roles, name, "defaults", "main.yml")
            defaults.update(self._loaded(path) or {} if os.path.exists(path) else {})
        # What an inventory says goes before the defaults of roles that are not in this play.
        variables = {**defaults, **self._templar.available_variables}
        self._templar: t.Any = self._templar.copy_with_new_env(available_variables=variables)
        parts = []
        for name in book.runbooks:
            own = {**args, "runbook": name, "file": os.path.join(roles, name, "vars", f"{args['service']}.yml")}
            found = self._read({**own, "checks": [], "causes": []}, variables)
            parts.append(triage.light(_part(name, found, args["severities"], mistakes)))
        return parts

    def _steps(
        self,
        book: Book,
        args: dict[str, t.Any],
        checks: list[dict[str, t.Any]],
        mistakes: list[str],
        variables: t.Mapping[str, t.Any],
    ) -> tuple[list[dict[str, t.Any]], dict[str, t.Any], dict[str, dict[str, t.Any]]]:
        """The runbook's steps, the operation of each, and what is to be looked at for their previews."""
        service, runbook = args["service"], args["runbook"]
        shared = variables.get("__runbook_operations") or {}
        raw = {**shared, **(variables.get(f"{service}_operations") or {})}
        operations: dict[str, t.Any] = {}
        looks: dict[str, dict[str, t.Any]] = {}
        try:
            steps = checking.validate_steps(book.steps, raw)
            looks_shared = variables.get(f"{service}_looks") or {}
            # What nothing suggests need not be looked at, until somebody asks for it or may want to undo it.
            suggested = {name for check in checks for name in check["suggests"]} | set(args["steps"])
            everything = bool({"remediate", "rollback"} & set(variables.get("ansible_run_tags") or ()))
            for step in steps:
                step["params"] = checking.plain(step["params"])
                data = raw[step["operation"]]
                texts = {key: data[key] for key in TEXTS if key in data}
                rest = {key: value for key, value in data.items() if key not in TEXTS}
                # Few operations look elsewhere for other parameters; the others share what has been evaluated.
                own = self._with(step, variables) if "runbook_operation" in str(rest) else None
                operation = self._template(rest, own)
                operation = checking.validate_operation(step["operation"], {**operation, **texts})
                operation["role"] = ENGINE if data is shared.get(step["operation"]) else service
                operations[step["id"]] = operation
                if (
                    not everything
                    and step["id"] not in suggested
                    and not suggested.issuperset(step["replaces"] or [""])
                ):
                    continue
                for name, source in operation["sources"].items():
                    looks[f"{step['id']}.{name}"] = checking.source_of(source)
                for name in operation["looks"] + operation["requires"]:
                    if name not in looks and name not in operation["sources"]:
                        if name not in looks_shared:
                            raise checking.Wrong(f"the operation {step['operation']} names the unknown look {name!r}")
                        looks[name] = checking.source_of(self._template(looks_shared[name]))
        except checking.Wrong as error:
            mistakes.append(f"The steps of {runbook} are wrong: {error}.")
            steps, operations, looks = [], {}, {}
        known = {step["id"] for step in steps} | {
            str(item.get("id")) for item in variables.get(f"{service}_steps") or [] if isinstance(item, dict)
        }
        for check in checks:
            strange = [name for name in check["suggests"] if name not in known] if steps else []
            if strange:
                mistakes.append(f"The check {check['id']} is wrong: it suggests {strange[0]!r}, which is no step.")
            # What the service's check suggests, this runbook need not have.
            check["suggests"] = [
                name for name in check["suggests"] if not steps or any(name == step["id"] for step in steps)
            ]
        if args["state_dir"]:
            looks[RECORDS] = checking.source_of(
                {
                    "probe": "remediation",
                    "path": args["state_dir"],
                    "runbook": runbook,
                    "value": "records",
                    "wanted": args["rollback_id"],
                }
            )
            label = next((label for label, severity in args["severities"].items() if severity == "high"), None)
            if label:
                checks.append(checking.validate_check(_unfinished(args, label), args["severities"]))
        return steps, operations, looks

    def _with(self, step: t.Mapping[str, t.Any], variables: t.Mapping[str, t.Any]) -> t.Any:
        """A templar that knows the step's parameters."""
        return self._templar.copy_with_new_env(available_variables={**variables, "runbook_operation": step["params"]})

    def _spelled_out(
        self, operation: dict[str, t.Any], step: t.Mapping[str, t.Any], variables: t.Mapping[str, t.Any]
    ) -> dict[str, t.Any]:
        """The operation with its texts, which are templated only for what is proposed: they are most of the work."""
        texts = {key: operation[key] for key in TEXTS}
        try:
            return {**operation, **checking.plain(self._with(step, variables).template(texts))}
        except AnsibleError as error:
            raise AnsibleActionFail(f"The step {step['id']} cannot be described: {_sentence(str(error))}") from None

    def _list(self, data: t.Any) -> list[t.Any]:
        """A list, also where one template stands for the whole of it."""
        return list(self._templar.template(data) if isinstance(data, str) else data)

    def _template(self, item: t.Any, templar: t.Any = None) -> t.Any:
        """The item with its templates evaluated; one that cannot be becomes its own mistake."""
        # What several checks say alike, such as an address, is evaluated once.
        known = {} if templar else self._known
        try:
            return checking.plain(_evaluated(item, templar or self._templar, known))
        except AnsibleError as error:
            why = _sentence(str(error.message if isinstance(error, AnsibleUndefinedVariable) else error))[:-1]
            return (
                {"id": item.get("id"), "title": item.get("title"), checking.BROKEN: why}
                if isinstance(item, dict)
                else item
            )

    def _secrets(self, checks: t.Sequence[dict[str, t.Any]]) -> dict[str, str]:
        """Resolve each secret on its own: one that cannot be decrypted costs its sources, not the diagnosis."""
        values: dict[str, str] = {}
        problems: dict[str, str] = {}
        for source in (source for check in checks for source in check["sources"]):
            api_key = source.get("secret_api_key")
            headers = [secret_of(named)[1] for named in (source.get("secret_headers") or {}).values()]
            for name in [*headers, *([str(api_key)] if api_key else [])]:
                if name not in values and name not in problems:
                    try:
                        values[name] = self._secret(name)
                    except ValueError as error:
                        problems[name] = str(error)
                # An empty API key means that the instance wants none; an empty header would be sent.
                problem = problems.get(name) or (
                    f"The secret {name}{diagnosing.NOT_GIVEN}" if not values[name] and name != api_key else None
                )
                if problem:
                    source["problem"] = problem
        return values

    def _secret(self, name: str) -> str:
        try:
            # An undefined or undecryptable variable shows when its value is used, not when it is looked up.
            value = str(self._templar.resolve_variable_expression(name) or "")
        except AnsibleUndefinedVariable:
            raise ValueError(f"The secret {name} is not defined.") from None
        except AnsibleError as error:
            if "vault" in f"{error!r} {error}".lower():
                raise ValueError(f"The secret {name} cannot be decrypted; give the right vault password.") from None
            raise ValueError(f"The secret {name} cannot be resolved.") from None
        return value

    def _look(
        self,
        checks: list[dict[str, t.Any]],
        args: dict[str, t.Any],
        secrets: dict[str, str],
        task_vars: dict[str, t.Any],
    ) -> dict[str, t.Any]:
        """Call the module once; whatever keeps it from running becomes a sentence."""
        wire = {
            "runbook": args["runbook"],
            "service": args["service"],
            "checks": checks,
            "sample_seconds": args["sample_seconds"],
            "timeout": args["timeout"],
            "fresh_seconds": args["fresh_seconds"],
            "secrets": secrets,
        }
        try:
            seen: dict[str, t.Any] = self._execute_module(
                module_name="oncall.runbooks.diagnose", module_args=wire, task_vars=task_vars
            )
        except AnsibleConnectionFailure as error:
            return {"problem": _sentence(str(error)), "unreachable": True}
        except AnsibleError as error:
            return {"problem": _sentence(str(error))}
        if seen.get("unreachable"):
            return {"problem": _sentence(str(seen.get("msg"))), "unreachable": True}
        if seen.get("failed") or not isinstance(seen.get("looks"), dict):
            return {"problem": _why(seen)}
        return seen


def _arguments(arguments: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    try:
        args = checking.options(arguments, ARGUMENT_SPEC)
    except checking.Wrong as error:
        raise AnsibleActionFail(f"diagnose: {error}.") from None
    for name in ("sample_seconds", "timeout"):
        if args[name] < 0 or (name == "timeout" and args[name] == 0):
            raise AnsibleActionFail(f"{name} is {args[name]:g}; it is a number of seconds and not negative.")
    return args


def _evaluated(item: t.Any, templar: t.Any, known: dict[str, t.Any]) -> t.Any:
    if isinstance(item, str):
        if "{{" not in item and "{%" not in item:
            return item
        if item not in known:
            known[item] = templar.template(item)
        return known[item]
    if isinstance(item, t.Mapping):
        return {key: _evaluated(value, templar, known) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [_evaluated(value, templar, known) for value in item]
    return item


def _part(runbook: str, book: Book, severities: t.Mapping[str, str], mistakes: list[str]) -> triage.Part:
    """A runbook's usable checks, and the causes that rest on none of the others."""
    checks, bad = checking.validate_checks(book.checks, severities)
    mistakes += [why for _name, _title, why in bad]
    names = {check["id"] for check in checks}
    causes: list[dict[str, t.Any]] = []
    try:
        causes = checking.validate_causes(book.causes, names | {name for name, _title, _why in bad})
    except checking.Wrong as error:
        mistakes.append(f"The causes of {runbook} are wrong: {error}.")
    # A cause that rests on a wrong check cannot be established.
    causes = [cause for cause in causes if names.issuperset(cause["breach"] + cause["ok"] + cause["fresh"])]
    return triage.Part(runbook, checks, bad, causes)


def _people(args: t.Mapping[str, t.Any], mistakes: list[str]) -> tuple[dict[str, dict[str, t.Any]], dict[str, str]]:
    """What labels ask of people, and where they are found: a mistake in it costs nobody the diagnosis."""
    table: dict[str, dict[str, t.Any]] = {}
    contacts: dict[str, str] = {}
    try:
        table = checking.validate_escalation(args["escalation"], args["severities"])
    except checking.Wrong as error:
        mistakes.append(f"The escalation of {args['service']} is wrong: {error}.")
    try:
        contacts = checking.validate_contacts(args["contacts"])
    except checking.Wrong as error:
        mistakes.append(f"The contacts of {args['service']} are wrong: {error}.")
    return table, contacts


def _report_path(folder: str | None, runbook: str, host: str) -> str | None:
    if not folder:
        return None
    name = re.sub(r"[^\w.@+-]", "_", host)
    return os.path.join(os.path.abspath(os.path.expanduser(folder)), runbook, f"{name}.json")


def _why(seen: dict[str, t.Any]) -> str:
    """Why the module gave no result, from the most telling line that there is."""
    told = f"{seen.get('module_stderr') or ''}\n{seen.get('module_stdout') or ''}"
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    if "No space left on device" in told or "No usable temporary directory" in told:
        return "the target has no space for Ansible's payload (No space left on device)."
    message = str(seen.get("msg") or "the module gave no result").strip()
    if "interpreter" in message.lower() or seen.get("rc") == 127:
        seen_as = _sentence(message.splitlines()[0])[:-1]
        return f"it has no usable Python ({seen_as}); install python3, or set ansible_python_interpreter."
    telling = lines[-1] if lines and "deserialization" in message else message
    return _sentence(telling)


def _sentence(text: str) -> str:
    return " ".join(text.split())[:400].rstrip(".") + "."


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _previous(path: str | None) -> dict[str, t.Any] | None:
    """The diagnosis before this one; a report that cannot be read is none."""
    data = reports.read(path) if path else None
    return data if data and data.get("schema") == diagnosing.SCHEMA else None


def _as_checks(looks: t.Mapping[str, dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """What previews want seen, in the form that the module looks at."""
    return [
        {"id": LOOK + name, "sources": [source], "needs": [], "min_samples": 0, "thresholds": []}
        for name, source in looks.items()
    ]


def _own(told: t.Mapping[str, t.Any], step_id: str) -> dict[str, t.Any]:
    """The looks that a step's preview may name: the service's, and its own without their prefix."""
    prefix = f"{step_id}."
    return {
        name[len(prefix) :] if name.startswith(prefix) else name: look
        for name, look in told.items()
        if name.startswith(prefix) or "." not in name
    }


def _targets(
    operation: t.Mapping[str, t.Any], step_id: str, looks_of: t.Mapping[str, t.Mapping[str, t.Any]]
) -> dict[str, t.Any]:
    """Which unit, process or file a step is about, as far as the inventory says it: another one is another plan."""
    names = [*operation["looks"], *(f"{step_id}.{name}" for name in operation["sources"])]
    return {
        name: {key: value for key in TARGET if (value := looks_of[name].get(key)) not in (None, "")}
        for name in names
        if name in looks_of
    }


def _withhold(checks: t.Sequence[dict[str, t.Any]], findings: t.Sequence[dict[str, t.Any]]) -> None:
    """Take back steps that would do harm, or cure nothing, while a finding stands."""
    breached = {item["id"] for item in findings if item["status"] == "breach"}
    withheld = {name for check in checks if check["id"] in breached for name in check["withholds"]}
    for item in findings:
        item["suggests"] = [name for name in item["suggests"] if name not in withheld]


def _needs_root(user: t.Mapping[str, t.Any], told: t.Mapping[str, t.Any]) -> bool:
    """Whether who looked has to become root to change something."""
    if user.get("uid") == 0:
        return False
    managers = [(look.get("evidence") or {}).get("manager") for look in told.values()]
    return not user.get("writable") or "systemd" in managers


def _unfinished(args: t.Mapping[str, t.Any], label: str) -> dict[str, t.Any]:
    """The engine's own check: a remediation that was cut short is a finding like any other."""
    source = {"probe": "remediation", "path": args["state_dir"], "runbook": args["runbook"], "own": args["own_record"]}
    return {
        "id": "unfinished_remediation",
        "title": "Interrupted remediation",
        "sources": [source],
        "thresholds": [{"equals": "unfinished", "label": label}],
        "expected": "none",
        "next_step": (
            "It was cut short, or somebody is at it: ask who began it, then go on with what is proposed now, or undo "
            "it with --tags rollback."
        ),
        "reproduce": f"cat {args['state_dir']}/records/*.json",
    }

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of diagnose: validate, resolve secrets, one module call, judge, write the report."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import typing as t
from datetime import UTC, datetime

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError, AnsibleUndefinedVariable
from ansible.plugins.action import ActionBase

from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import ARGUMENT_SPEC, LEVELS
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask
from ansible_collections.oncall.runbooks.plugins.plugin_utils import checks as checking
from ansible_collections.oncall.runbooks.plugins.plugin_utils import diagnosis as diagnosing

CALLBACK = "oncall.runbooks.oncall"
# Masking anything shorter would take single letters out of the findings.
SHORTEST_SECRET = 4


class ActionModule(ActionBase):
    """Looks with one call of the module of the same name; judges here."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = _arguments(self._task.args)
        templates, causes_given = self._read(args)
        checks, bad = checking.validate_checks(templates, args["severities"])
        mistakes = [why for _name, _title, why in bad]
        if not checks and not bad:
            raise AnsibleActionFail(
                f"{args['runbook']} has no checks for {args['service']}: there is nothing to diagnose."
            )
        names = {check["id"] for check in checks}
        try:
            causes = checking.validate_causes(causes_given, names | {name for name, _title, _why in bad})
        except checking.Wrong as error:
            causes = []
            mistakes.append(f"The causes of {args['runbook']} are wrong: {error}.")
        # A cause that rests on a wrong check cannot be established.
        causes = [cause for cause in causes if names.issuperset(cause["breach"] + cause["ok"] + cause["fresh"])]

        secrets = self._secrets(checks)
        began, started_at = time.monotonic(), _now()
        seen = self._look(checks, args, secrets, variables)
        problem = seen.get("problem")
        if problem:
            looks = {
                check["id"]: {"looks": [{"outcome": "no_answer", "note": problem}], "unmet": []} for check in checks
            }
            # What cannot be looked at is not known, also where silence would be the incident.
            checks = [{**check, "on_no_data": "unknown", "next_step": ""} for check in checks]
        else:
            looks = seen["looks"]

        host = str(variables.get("inventory_hostname", ""))
        path = _report_path(args["report_dir"], args["runbook"], host)
        findings = diagnosing.judge_all(checks, bad, looks, args["severities"], _search, started_at, _previous(path))
        status, severity, label = diagnosing.overall(findings)
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
            "summary": f"It could not be looked at: {problem}" if problem else diagnosing.summarise(findings, causes),
            "findings": findings,
            "plan": None,
        }
        diagnosis = mask(diagnosis, [value for value in secrets.values() if len(value) >= SHORTEST_SECRET])
        if path:
            try:
                _write(path, diagnosis)
            except OSError as error:
                mistakes.append(f"The report {path} cannot be written: {error.strerror}.")
        result.update(
            changed=False,
            diagnosis=diagnosis,
            report=path,
            reached=diagnosing.reached(findings, args["fail_on"]),
            shown=C.DEFAULT_STDOUT_CALLBACK == CALLBACK,
        )
        if seen.get("unreachable"):
            result.update(unreachable=True, msg=f"{host} is unreachable: {problem}")
        elif problem:
            result.update(failed=True, msg=diagnosis["summary"])
        elif mistakes:
            result.update(failed=True, msg=" ".join(mistakes))
        return result

    def _read(self, args: dict[str, t.Any]) -> tuple[list[t.Any], list[t.Any]]:
        """The checks and causes, those of the file templated one by one: a broken one becomes its own mistake."""
        if not args["file"]:
            return args["checks"], args["causes"]
        name = args["runbook"]
        try:
            data = self._loader.load_from_file(args["file"], trusted_as_template=True)
        except AnsibleError as error:
            raise AnsibleActionFail(f"The checks in {args['file']} cannot be read: {_sentence(str(error))}") from None
        if not isinstance(data, dict) or not isinstance(data.get(f"{name}_checks"), (list, str)):
            raise AnsibleActionFail(f"The file {args['file']} has no list {name}_checks.")
        return (
            [*args["checks"], *map(self._template, self._list(data[f"{name}_checks"]))],
            [*args["causes"], *map(self._template, self._list(data.get(f"{name}_causes") or []))],
        )

    def _list(self, data: t.Any) -> list[t.Any]:
        """A list, also where one template stands for the whole of it."""
        return list(self._templar.template(data) if isinstance(data, str) else data)

    def _template(self, item: t.Any) -> t.Any:
        try:
            return checking.plain(self._templar.template(item))
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
            for name in map(str, [*(source.get("secret_headers") or {}).values(), *([api_key] if api_key else [])]):
                if name not in values and name not in problems:
                    try:
                        values[name] = self._secret(name)
                    except ValueError as error:
                        problems[name] = str(error)
                # An empty API key means that the instance wants none; an empty header would be sent.
                problem = problems.get(name) or (
                    f"The secret {name} is empty." if not values[name] and name != api_key else None
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
    for label, severity in args["severities"].items():
        if severity not in LEVELS:
            known = ", ".join(LEVELS)
            raise AnsibleActionFail(f"The severity of {label} is {severity!r}; it is one of {known}.")
    for name in ("sample_seconds", "timeout"):
        if args[name] < 0 or (name == "timeout" and args[name] == 0):
            raise AnsibleActionFail(f"{name} is {args[name]:g}; it is a number of seconds and not negative.")
    return args


def _report_path(folder: str | None, runbook: str, host: str) -> str | None:
    if not folder:
        return None
    name = re.sub(r"[^\w.@+-]", "_", host)
    return os.path.join(os.path.abspath(os.path.expanduser(folder)), runbook, f"{name}.json")


def _search(expression: str, data: t.Any) -> t.Any:
    try:
        import jmespath
    except ImportError:
        raise AnsibleActionFail(
            "The Python package jmespath is not installed beside ansible-core; install it to judge JSON."
        ) from None
    try:
        return jmespath.search(expression, data)
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(str(error).splitlines()[0]) from None


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
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("schema") == diagnosing.SCHEMA else None


def _write(path: str, diagnosis: dict[str, t.Any]) -> None:
    """Atomically: a reader sees the report before or this one, never half."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(diagnosis, file, indent=1, ensure_ascii=False)
            file.write("\n")
        # Reports are for the team, as any file that the umask lets others read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

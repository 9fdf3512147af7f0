# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: oncall
type: stdout
short_description: One table per host instead of a log of tasks
version_added: "0.1.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Prints the diagnosis of every host at the end of the run, the worst first, who is to respond to it, and what to type
    next. The severity is in colour on a terminal.
  - A runbook may want one line per host in place of the tables.
  - In between it prints what M(ansible.builtin.debug) says and what fails, in one line each. With C(-v) Ansible's
    own output comes back too.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - Set it as C(stdout_callback).
"""

import sys
import typing as t

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.color import stringc

from ansible_collections.oncall.runbooks.plugins.plugin_utils.command import again, not_repeated, onward
from ansible_collections.oncall.runbooks.plugins.plugin_utils.diagnosis import SCHEMA
from ansible_collections.oncall.runbooks.plugins.plugin_utils.planning import apply_options, of_host
from ansible_collections.oncall.runbooks.plugins.plugin_utils.render import WIDTH, overview, render

COLOURS = {
    "critical": "bright red",
    "high": "red",
    "medium": "yellow",
    "low": "cyan",
    "unknown": "bright purple",
    "healthy": "green",
    "ok": "green",
}
ORDER = ("critical", "degraded", "unknown", "healthy")


class CallbackModule(Default):
    """Ansible's default output when verbose; the answer alone otherwise."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "oncall.runbooks.oncall"

    def __init__(self) -> None:
        super().__init__()
        self._diagnoses: dict[str, tuple[dict[str, t.Any], str | None]] = {}
        self._record: dict[str, t.Any] = {}
        self._said: set[str] = set()

    @property
    def _quiet(self) -> bool:
        return self._display.verbosity == 0

    def _line(self, text: str, color: str | None = None) -> None:
        # A message for every host of a run, such as a refused tag, is said once.
        if text not in self._said:
            self._said.add(text)
            self._display.display(text, color=color)

    def _keep(self, result: t.Any) -> bool:
        diagnosis = result.result.get("diagnosis")
        self._record = result.result.get("record") or self._record
        plan = result.result.get("plan")
        if isinstance(plan, dict) and "apply_with" in plan:
            # Of several hosts the plan is made after their diagnoses.
            for host, (found, report) in self._diagnoses.items():
                self._diagnoses[host] = ({**found, "plan": of_host(plan, host)}, report)
        if isinstance(diagnosis, dict) and diagnosis.get("schema") == SCHEMA:
            self._diagnoses[str(diagnosis["host"])] = (diagnosis, result.result.get("report"))
            return True
        return False

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        if not self._quiet:
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        if not self._quiet:
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task: t.Any) -> None:
        if not self._quiet:
            super().v2_playbook_on_handler_task_start(task)

    def v2_playbook_on_cleanup_task_start(self, task: t.Any) -> None:
        if not self._quiet:
            super().v2_playbook_on_cleanup_task_start(task)

    def v2_runner_on_start(self, host: t.Any, task: t.Any) -> None:
        if not self._quiet:
            super().v2_runner_on_start(host, task)

    def v2_playbook_on_include(self, included_file: t.Any) -> None:
        if not self._quiet:
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        if not self._quiet:
            super().v2_runner_on_skipped(result)

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._keep(result)
        if not self._quiet:
            super().v2_runner_on_ok(result)
            return
        self._handle_warnings(result.result)
        if result.task.resolved_action == "ansible.builtin.debug" and "msg" in result.result:
            said = result.result["msg"]
            for text in said if isinstance(said, list) else [said]:
                self._line(str(text))

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        kept = self._keep(result)
        if not self._quiet:
            super().v2_runner_on_failed(result, ignore_errors)
        elif not ignore_errors:
            message = str(result.result.get("msg") or "it failed without a message")
            found = result.result.get("diagnosis") or {}
            if kept and "line" in found and message == found["summary"]:
                # The host's one line says so.
                return
            # A failure that is about the run, not about one host, needs no host's name.
            where = "" if result.task.run_once else f"{result.host.get_name()}: "
            self._line(f"{'' if kept else 'ERROR: '}{where}{message}", color=C.COLOR_ERROR)

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        kept = self._keep(result)
        if not self._quiet:
            super().v2_runner_on_unreachable(result)
        elif not kept:
            self._line(f"UNREACHABLE: {result.host.get_name()}: {result.result.get('msg')}", color=C.COLOR_UNREACHABLE)
        host = result.host.get_name()
        if not kept and host in self._diagnoses:
            # What is known of it is from before it was lost.
            found, report = self._diagnoses[host]
            lost = f"{host} was lost in the middle of this run, and how it is now is not known; this is from before."
            status = {"status": "unknown", "severity": None, "label": None, "escalation": None}
            if "line" in found:
                status["line"] = ""
            self._diagnoses[host] = ({**found, **status, "summary": lost, "plan": None}, report)

    def v2_runner_item_on_ok(self, result: t.Any) -> None:
        if not self._quiet:
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: t.Any) -> None:
        if not self._quiet:
            super().v2_runner_item_on_skipped(result)

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        if not self._quiet or not self._diagnoses:
            super().v2_playbook_on_stats(stats)
        if not self._diagnoses:
            return
        width = self._display.columns if sys.stdout.isatty() else WIDTH
        ranked = sorted(
            self._diagnoses.values(),
            key=lambda pair: (ORDER.index(pair[0]["status"]), pair[0]["label"] or "", pair[0]["host"]),
        )
        if len(ranked) > 1:
            counts = [
                (status, sum(1 for diagnosis, _report in ranked if diagnosis["status"] == status)) for status in ORDER
            ]
            self._display.display(
                f"{len(ranked)} hosts: " + ", ".join(f"{count} {status}" for status, count in counts if count)
            )
        brief = [diagnosis for diagnosis, _report in ranked if "line" in diagnosis]
        if brief:
            self._display.display("\n".join(overview(brief, width, _paint)))
        for diagnosis, _report in ranked:
            if "line" in diagnosis:
                continue
            plan = diagnosis["plan"]
            remediate = again("remediate", apply_options(plan)) if plan else None
            if remediate and not_repeated():
                remediate += f"  # and your -e for {', '.join(not_repeated())}"
            lines = render(diagnosis, width, _paint, remediate, onward(diagnosis))
            self._display.display("\n".join(["", *lines] if len(ranked) > 1 else lines))
        reports = [report for _diagnosis, report in ranked if report]
        self._display.display("")
        if reports:
            self._display.display(
                f"  Report: {reports[0]}{f' and {len(reports) - 1} beside it' if len(reports) > 1 else ''}"
            )
        if self._record.get("path"):
            proof = (
                f"last MAC {self._record['last']}" if self._record["keyed"] else "not tamper-evident, no key is given"
            )
            self._display.display(f"  Record: {self._record['path']} ({proof})")
        command = again("diagnose")
        if command:
            self._display.display(f"  Again:  {command}")


def _paint(text: str, kind: str) -> str:
    return stringc(text, COLOURS[kind]) if kind in COLOURS else text

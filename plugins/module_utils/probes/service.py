# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe service: whether a service runs, as what, and how it would be restarted by hand."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import services
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

SPEC: dict[str, t.Any] = {
    **services.SUBJECT,
    "value": {"type": "str", "choices": ["state", "restarts", "age", "environment_file"], "default": "state"},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    if not (source["unit"] or source["port"] or source["pid_file"]):
        raise ValueError(f"{source['name']} cannot be found without a unit, a port or a PID file")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    return f"service {source['name']} {source['value']}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Find it once, and give the value that was asked for."""
    key = ("service", *(str(source[name]) for name in sorted(services.SUBJECT)))
    found = context.once(key, lambda: services.find(source, context.run))
    evidence: dict[str, t.Any] = {
        "text": found.text,
        "state": found.state,
        "manager": found.manager,
        "pid": found.pid,
        "by_hand": found.by_hand,
        "problem": found.problem,
    }
    note = found.problem
    if found.unit:
        evidence["unit"] = found.unit
    files = services.environment_files(found)
    if files:
        evidence["environment_files"] = files
    for name in ("SubState", "Result", "ExecMainStatus", "NRestarts"):
        if found.properties.get(name):
            evidence[name] = found.properties[name]
    value: t.Any = found.state
    if source["value"] == "restarts":
        if "NRestarts" not in found.properties:
            raise Absent(f"Only systemd counts restarts, and {source['name']} is not a unit here.")
        value = int(found.properties["NRestarts"])
    elif source["value"] == "environment_file":
        # Its commands by hand are those of the service itself.
        evidence["by_hand"] = []
        path = source["environment_file"]
        value = evidence["text"] = path or "none"
        if found.manager == "systemd" and found.state != "missing" and path not in files:
            read = f"it reads {', '.join(files)}" if files else "it reads none"
            note = evidence["problem"] = (
                f"The unit {found.unit} does not read {path} as EnvironmentFile ({read}); set the variable for it."
            )
    elif source["value"] == "age":
        value = time.time() - found.started if found.started else None
    return {"value": value, "evidence": evidence, "note": note}

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about which incident, from the runbooks' own data: no second list that could say something else."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import typing as t

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader

from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import LEVELS
from ansible_collections.oncall.runbooks.plugins.plugin_utils import command
from ansible_collections.oncall.runbooks.plugins.plugin_utils.checks import BROKEN, used

ROLES = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "roles")
# The playbooks beside which those of the runbooks are.
OURS = "wp_chat_incident_"
CALLBACK = "oncall.runbooks.oncall"
_KINDS = ("checks", "steps")
_REQUIRED = ("incident", "type", "severity", "actions")


class Wrong(Exception):
    """The data cannot be a reference; the message is one sentence."""


class Action(t.TypedDict):
    """Something to do about an incident. `action` is the service's own id of it."""

    do: str
    kind: str
    action: str
    title: str
    seconds: int
    command: str


class Incident(t.TypedDict):
    """A runbook, seen as what it is for: `quick` is what to do first and then, `more` are its other steps."""

    runbook: str
    incident: str
    type: str
    severity: str
    quick: list[Action]
    actions: list[Action]
    more: list[Action]


def table(service: str, roles: str = ROLES, host: str = "") -> list[Incident]:
    """Every runbook of a service that has a reference, the worst first; raises Wrong."""
    shared = _shared(roles, service)
    defaults = _defaults(roles, service)
    found = []
    for runbook in sorted(os.listdir(roles)):
        path = os.path.join(roles, runbook, "vars", f"{service}.yml")
        if os.path.isfile(path):
            data = _load(path)
            if f"{runbook}_reference" in data:
                values = {**defaults, **_defaults(roles, runbook)}
                found.append(_incident(runbook, data, shared, values, host))
    if not found:
        raise Wrong(f"No runbook below {roles} has a reference for {service}: there is no roles/*/vars/{service}.yml.")
    return sorted(found, key=lambda item: (LEVELS.index(item["severity"]), item["incident"]))


def of_type(incidents: t.Sequence[Incident], kind: str) -> Incident:
    """The incident that the service calls by this type, or Wrong."""
    for item in incidents:
        if kind in (item["type"], item["runbook"]):
            return item
    known = ", ".join(item["type"] for item in incidents)
    raise Wrong(f"No runbook is for an incident of the type {kind}; there are runbooks for {known}.")


def action_of(incident: Incident, name: str) -> Action:
    """The action by our id or the service's own, or Wrong."""
    for item in (*incident["actions"], *incident["more"]):
        if name and name in (item["do"], item["action"]):
            return item
    known = [item["do"] for item in (*incident["actions"], *incident["more"])]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}."
    raise Wrong(f"{incident['runbook']} has no action {name!r}: {hint}")


def _load(path: str) -> dict[str, t.Any]:
    try:
        data = DataLoader().load_from_file(path)
    except AnsibleError as error:
        raise Wrong(f"{path} cannot be read: {' '.join(str(error).split()).rstrip('.')}.") from None
    return data if isinstance(data, dict) else {}


def _shared(roles: str, service: str) -> dict[str, list[t.Any]]:
    """The checks and steps that runbooks take by `use`: the service's, in one file or several, and the engine's."""
    shared: dict[str, list[t.Any]] = {kind: [] for kind in _KINDS}
    for role, prefix in ((service, service), ("runbook", "__runbook")):
        folder = os.path.join(roles, role, "vars", "main")
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        paths = [f"{folder}.yml", *(os.path.join(folder, name) for name in names if name.endswith(".yml"))]
        for path in filter(os.path.isfile, paths):
            data = _load(path)
            for kind in _KINDS:
                shared[kind] += data.get(f"{prefix}_{kind}") or []
    return shared


def _defaults(roles: str, role: str) -> dict[str, t.Any]:
    path = os.path.join(roles, role, "defaults", "main.yml")
    return _load(path) if os.path.isfile(path) else {}


def _filled(text: str, values: t.Mapping[str, t.Any]) -> str:
    """A title with the roles' defaults in it: without a host there are no other values."""

    def value(found: re.Match[str]) -> str:
        known = str(values.get(found[1], "{{"))
        return "…" if "{{" in known else known

    return re.sub(r"\{\{ *(\w+)[^}]*\}\}", value, text)


def _incident(
    runbook: str,
    data: t.Mapping[str, t.Any],
    shared: t.Mapping[str, list[t.Any]],
    values: t.Mapping[str, t.Any],
    host: str,
) -> Incident:
    said = data[f"{runbook}_reference"]
    missing = [name for name in _REQUIRED if not isinstance(said, dict) or not said.get(name)]
    if missing:
        raise Wrong(f"{runbook}_reference has no {missing[0]}.")
    if said["severity"] not in LEVELS:
        raise Wrong(f"{runbook}_reference has the severity {said['severity']!r}; it is one of {', '.join(LEVELS)}.")
    titles: dict[str, dict[str, str]] = {}
    for kind in _KINDS:
        titles[kind[:-1]] = {}
        for item in used(data.get(f"{runbook}_{kind}") or [], shared[kind], kind[:-1]):
            if BROKEN in item:
                raise Wrong(f"{runbook}_{kind}: {item[BROKEN]}.")
            titles[kind[:-1]][str(item["id"])] = _filled(str(item["title"]), values)

    def action(do: str, own: str, seconds: int) -> Action:
        kind = next((kind for kind in ("step", "check") if do in titles[kind]), None)
        if kind is None:
            raise Wrong(f"{runbook}_reference names {do!r}, which is no step or check of {runbook}.")
        return {
            "do": do,
            "kind": kind,
            "action": own,
            "title": titles[kind][do],
            "seconds": seconds,
            "command": _command(runbook, do if kind == "step" else "", host),
        }

    actions = [action(str(one["do"]), str(one.get("action") or ""), int(one["seconds"])) for one in said["actions"]]
    named = {item["do"]: item for item in actions}
    # 004's quick reference leaves out some of the checks that its procedures begin with.
    quick = [str(one) for one in said.get("quick") or list(named)[:2]]
    if strange := [one for one in quick if one not in named]:
        raise Wrong(f"{runbook}_reference has {strange[0]!r} in quick, which is none of its actions.")
    return {
        "runbook": runbook,
        "incident": str(said["incident"]),
        "type": str(said["type"]),
        "severity": str(said["severity"]),
        "quick": [named[one] for one in quick],
        "actions": actions,
        "more": [action(name, "", 0) for name in titles["step"] if name not in named],
    }


def _command(runbook: str, step: str, host: str) -> str:
    """What to type to carry out a step, or to make a check."""
    return beside(runbook, "remediate" if step else "diagnose", ["-e", f"runbook_steps={step}"] if step else [], host)


def beside(playbook: str, tags: str, extra: t.Sequence[str], host: str = "") -> str:
    """The command of another playbook, given as this run's own is, where that is one of the incident playbooks."""
    playbooks: t.Sequence[t.Any] = context.CLIARGS.get("args") or []
    own = re.search(rf"{OURS}\w+(?=(\.ya?ml)?$)", str(playbooks[0])) if len(playbooks) == 1 else None
    again = command.again(tags, extra, (own[0], playbook), host) if own else None
    words = ["ansible-playbook", f"playbooks/{playbook}.yml", *(["--tags", tags] if tags else []), *extra]
    return again or shlex.join(words)


# As text.


def lines(incidents: t.Sequence[Incident]) -> list[str]:
    """The quick reference: what to do first and then, how long it takes, and the commands for all of it."""

    def shown(item: Incident, place: int) -> str:
        if place >= len(item["quick"]):
            return "-"
        return named(item["quick"][place])

    rows = [["INCIDENT", "SEVERITY", "PRIMARY ACTION", "SECONDARY ACTION"]]
    rows += [[item["incident"], item["severity"], shown(item, 0), shown(item, 1)] for item in incidents]
    widths = [max(map(len, column)) for column in zip(*rows)]
    found = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for item in incidents:
        found += ["", f"{item['incident']}, {item['severity']} ({item['type']})", *action_lines(item["actions"])]
    return found


def action_lines(actions: t.Sequence[Action]) -> list[str]:
    """Each action with how long it takes, the ids that it is known by, and the command for it below."""
    found = []
    for place, action in enumerate(actions, 1):
        ids = action["do"] if action["action"] in ("", action["do"]) else f"{action['do']}, {action['action']}"
        found += [f"  {place}. {named(action)}  [{ids}]", f"     {action['command']}"]
    return found


def named(action: Action) -> str:
    """What is done, and how long it takes."""
    return f"{'Check: ' if action['kind'] == 'check' else ''}{action['title']} ({took(action['seconds'])})"


def took(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds >= 300 and seconds % 60 == 0 else f"{seconds} s"


def printable(text: t.Sequence[str]) -> str | list[str]:
    """What ansible.builtin.debug is to say: one text for our own callback, lines for one that would show it as JSON."""
    return "\n".join(text) if C.DEFAULT_STDOUT_CALLBACK == CALLBACK else list(text)

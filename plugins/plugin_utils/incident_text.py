# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""wp_chat's incidents as text: how bad, since when, what to do, in the first three lines."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import clock
from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import LEVELS
from ansible_collections.oncall.runbooks.plugins.plugin_utils import reference

Info = t.Mapping[str, t.Any]
SERVICE = "wp_chat"
_PREFIX = "wp_chat_incident_"
# A description may be a list of violations.
_LONGEST = 200


def status(host: str, info: Info, now: float | None = None) -> list[str]:
    """What is active and what was within a day, and where that is from."""
    lines = active(host, info, now)
    for item in info["recent"]:
        if not item["active"]:
            notes = f": {item['resolution_notes']}" if item["resolution_notes"] else ""
            lines.append(f"  resolved  {_named(item)}  {item['detected_at']} to {item['resolved_at']}{_cut(notes)}")
    lines.append(f"  From {'the API' if info['source'] == 'api' else info['source']}. {_api(info)}".rstrip())
    return lines + [f"  {note}" for note in info["notes"]]


def active(host: str, info: Info, now: float | None = None) -> list[str]:
    """How many are active, what to do about the worst, and all of them."""
    found, recent = info["active"], len(info["recent"])
    if not found:
        torn = f"; {info['torn']} torn lines" if info["torn"] else ""
        return [f"{host}: no active incident, {recent} in the last 24 h{torn}"]
    counts = [(name, sum(item["severity"] == name for item in found)) for name in _severities(found)]
    lines = [
        f"{host}: {_many(len(found), 'active incident')} ({', '.join(f'{n} {name}' for name, n in counts)}), "
        f"{recent} in the last 24 h"
    ]
    for place, item in enumerate(found):
        since = f"since {item['detected_at']}{_for(item, now)}"
        said = f"  {_cut(item['description'])}" if item["description"] else ""
        lines.append(f"  {item['severity'].upper()}  {_named(item)}  {since}{said}")
        if place == 0:
            lines.append(f"  Next: {_again('procedures', host, ['-e', 'incident_id=' + item['incident_id']])}")
    return lines


def procedures(host: str, info: Info, now: float | None = None) -> list[str]:
    """What to do about one incident: the runbook's steps and checks, each with its command."""
    item = info["incident"]
    if item is None:
        return [f"{host}: the service knows the incident, and {info['source']} does not have it."]
    state = (
        f"active since {item['detected_at']}{_for(item, now)}"
        if item["active"]
        else f"resolved at {item['resolved_at']}"
    )
    said = f": {_cut(item['description'])}" if item["description"] else ""
    lines = [f"{host}: {item['incident_id']} is {state}, {item['severity']} {item['incident_type']}{said}"]
    try:
        incident = reference.of_type(reference.table(SERVICE, host=host), item["incident_type"])
    except reference.Wrong as error:
        return [*lines, f"  {error}", f"  Which runbook it is: {_beside('triage', host)}"]
    lines += reference.action_lines(incident["actions"])
    known = {action["action"] for action in incident["actions"]}
    strange = [own["action_id"] for own in info["catalogue"] or [] if own["action_id"] not in known]
    if strange:
        lines.append(f"  The service itself also lists {', '.join(strange)}, which this runbook does not have.")
    if item["active"]:
        one = ["-e", "incident_id=" + item["incident_id"]]
        lines += [
            f"  All of it at once: {_beside(incident['runbook'], host)}",
            f"  One of it:         {_again('execute', host, [*one, '-e', 'incident_action=ID'], 'remediate')}",
            f"  When it is over:   {_again('resolve', host, [*one, '-e', 'incident_notes=NOTES'])}",
        ]
    return lines


def recorded(host: str, result: Info, check_mode: bool) -> list[str]:
    """What was recorded or resolved, or why that was not needed."""
    item = result["incident"]
    done = "would be recorded" if check_mode else "recorded"
    if not item["active"]:
        done = "would be resolved" if check_mode else "resolved"
    said = f": {_cut(item['description'])}" if item["description"] else ""
    name = f"{item['incident_id'] or 'an incident'}, {item['severity']} {item['incident_type']}"
    if not result["changed"]:
        return [f"{host}: {' '.join(result['notes'])}"]
    lines = [f"{host}: {done} {name}{said}"]
    return lines + [f"  {note}" for note in result["notes"]]


def _named(item: Info) -> str:
    return f"{item['incident_type']}  {item['incident_id']}"


def _severities(found: t.Sequence[Info]) -> list[str]:
    """Those that there are, the worst first."""
    names = {item["severity"] for item in found}
    return [name for name in LEVELS if name in names] + sorted(names.difference(LEVELS))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _api(info: Info) -> str:
    return "" if info["source"] == "api" else str(info["api"])


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _for(item: Info, now: float | None) -> str:
    """How long an incident has lasted."""
    try:
        minutes = int(((time.time() if now is None else now) - clock.seconds(item["detected_at"] or "")) / 60)
    except ValueError:
        return ""
    if minutes < 120:
        return f" ({max(0, minutes)} min)"
    return f" ({minutes // 60} h)" if minutes < 2880 else f" ({minutes // 1440} days)"


def _again(phase: str, host: str, extra: t.Sequence[str], tags: str = "") -> str:
    """The command of another of the incident playbooks."""
    return reference.beside(_PREFIX + phase, tags, extra, host)


def _beside(runbook: str, host: str) -> str:
    return reference.beside(runbook, "diagnose", [], host)

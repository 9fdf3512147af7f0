# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the records on the hosts to what can be undone. Pure functions."""

from __future__ import annotations

import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.module_utils.remediation import OPEN, TOUCHED, undoable


class Nothing(ValueError):
    """There is no such record; the message is one sentence."""


def make(
    runbook: str,
    records: t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]],
    wanted: str | None,
    found: t.Mapping[str, t.Mapping[str, t.Any]],
) -> tuple[dict[str, t.Any] | None, str]:
    """The plan of undoing a run, and a sentence about what cannot be undone."""
    every = {str(record["id"]) for host in records.values() for record in host}
    if wanted and wanted not in every:
        has = f"the latest are {', '.join(sorted(every, reverse=True)[:3])}" if every else "there is none"
        raise Nothing(f"Nothing was changed: no host has a record {wanted} of {runbook}; {has}.")
    if not every:
        return None, f"Nothing to undo: {runbook} has changed nothing on {', '.join(records) or 'any host'}."
    run = wanted or max(every)
    if not wanted and not any(undoable(record) for host in records.values() for record in host if record["id"] == run):
        # Nothing of the last one can be undone; an earlier one that was cut short would be forgotten.
        cut = {
            str(record["id"])
            for host in records.values()
            for record in host
            if record["state"] in (*OPEN, "interrupted") and (undoable(record) or record["state"] in OPEN)
        }
        run = max(cut, default=run)
    steps, never, left_open = [], [], []
    done = False
    for host, own in records.items():
        record = next((item for item in own if item["id"] == run), None)
        if record and record["state"] in OPEN:
            left_open.append(host)
        for step in reversed(record["steps"] if record else []):
            done = done or step["state"] == "undone"
            if step["state"] not in TOUCHED:
                continue
            if not step["reversible"]:
                never.append(f"{step['title']} on {host} cannot be undone: {str(step['irreversible']).rstrip('.')}")
                continue
            now = found[host].get("states", {})
            pairs = {
                name: (_shown(now.get(f"{step['id']}.{name}")), _shown(value))
                for name, value in (step["before"] or {}).items()
            }
            changes = [f"{name}: now: {is_now}; then: {then}" for name, (is_now, then) in pairs.items()]
            put_back = (
                f"Put back {'; '.join(changes) or 'what it changed'}, as the record kept it, and restart what reads it."
            )
            undo = step.get("undo")
            # The operation's own words, and what would be another then.
            differ = [line for line, (is_now, then) in zip(changes, pairs.values()) if is_now != then]
            if undo and differ:
                undo = f"{undo} {'; '.join(differ)}."
            steps.append(
                {
                    **{key: step[key] for key in ("id", "title", "operation", "params", "role", "state_of")},
                    "host": host,
                    "risk": "disruptive",
                    "reversible": True,
                    "because": [],
                    "before": step["before"],
                    "preview": undo or put_back,
                }
            )
    newer = sorted(name for name in every if name > run)
    if newer and not wanted:
        never.append(f"Of what came after it ({', '.join(newer)}) nothing can be undone")
    note = f"{'. '.join(never)}." if never else ""
    if not steps and left_open:
        note = f"{note} Nothing is undone; the record of the interrupted remediation is closed.".strip()
    elif not steps:
        return None, f"Nothing to undo: {note or ('it has been undone already.' if done else 'nothing was begun.')}"
    hosts = list(dict.fromkeys([*(step["host"] for step in steps), *left_open]))
    return {"id": run, "runbook": runbook, "hosts": hosts, "steps": steps, "undo": True}, note


def _shown(value: t.Any) -> str:
    return "not known" if value is None else judge.show(value)

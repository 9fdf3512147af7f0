# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe remediation: what earlier remediations left on this host; see module_utils/remediation.py."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs, remediation
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

LATEST = 5

SPEC: dict[str, t.Any] = {
    "path": {"type": "str", "required": True},
    "runbook": {"type": "str", "required": True},
    "value": {"type": "str", "choices": ["unfinished", "records"], "default": "unfinished"},
    "own": {"type": "str"},
    "wanted": {"type": "str"},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Nothing that the types cannot say."""


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    return f"remediation {source['path']}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Whether a remediation stopped half way, or what the latest of this runbook were."""
    state = remediation.StateDir(source["path"])
    try:
        records = context.once(("remediation", source["path"]), state.all)
        lock = state.lock()
    except PermissionError:
        raise NoAnswer(
            f"{source['path']} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission"
        ) from None
    except Refused as error:
        raise NoAnswer(str(error)) from None
    own = [remediation.summary(record) for record in records if record.get("runbook") == source["runbook"]]
    if source["value"] == "records":
        # Whether a change needs root is decided by who is looking.
        evidence = {"uid": os.geteuid(), "writable": os.access(state.existing(), os.W_OK), "lock": lock}
        cut = [
            record
            for record in own
            if record["state"] in (*remediation.OPEN, "interrupted") or record["id"] == source["wanted"]
        ]
        return {"value": list({item["id"]: item for item in cut + own[:LATEST]}.values()), "evidence": evidence}
    left = [remediation.summary(record) for record in records if record.get("state") in remediation.OPEN]
    # Who looks in the middle of a remediation knows of it.
    left = [record for record in left if record["id"] != source["own"]]
    if not left:
        return {"value": "none", "evidence": {"locked": lock} if lock else {}}
    record = left[0]
    held = lock if lock and lock.get("record") == record["id"] else None
    return {
        "value": "unfinished",
        "evidence": {
            "record": record["id"],
            "runbook": record["runbook"],
            "by": record["by"],
            "started_at": record["started_at"],
            "state": record["state"],
            "steps": [f"{step['title']}: {_told(step)}" for step in record["steps"]],
            "lock_expires_at": held["expires_at"] if held else None,
        },
        "note": f"{record['runbook']}, {record['id']}: "
        + "; ".join(f"{step['title']}: {_told(step)}" for step in record["steps"])
        + (f"; it may still be running, its lock ends {held['expires_at']}" if held else ""),
    }


def _told(step: t.Mapping[str, t.Any]) -> str:
    """The state of a step, no more certain than the record is."""
    return {
        "planned": "not begun",
        "running": f"begun {step.get('started_at')}, and whether it was carried out is not known",
        "done": "carried out, and not verified",
        "verified": "carried out and verified",
        "undoing": f"its undoing begun {step.get('started_at')}, and whether that was carried out is not known",
    }.get(str(step.get("state")), str(step.get("state")))

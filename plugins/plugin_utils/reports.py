# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reports on the controller: a diagnosis for each host, and the run's last plan beside them."""

from __future__ import annotations

import glob
import json
import os
import re
import tempfile
import typing as t

from ansible_collections.oncall.runbooks.plugins.plugin_utils.command import PLAN_FILE


def folder_of(folder: str, runbook: str) -> str:
    return os.path.join(os.path.abspath(os.path.expanduser(folder)), runbook)


def host_path(folder: str | None, runbook: str, host: str) -> str | None:
    if not folder:
        return None
    # plan.json is the run's.
    name = "plan_" if host == "plan" else re.sub(r"[^\w.@+-]", "_", host)
    return os.path.join(folder_of(folder, runbook), f"{name}.json")


def plan_path(folder: str | None, runbook: str) -> str | None:
    return os.path.join(folder_of(folder, runbook), PLAN_FILE) if folder else None


def plan_with(folder: str | None, plan_id: str) -> dict[str, t.Any] | None:
    """The plan with this id, of whichever runbook, while its report is there."""
    if not folder:
        return None
    for path in glob.glob(os.path.join(glob.escape(folder_of(folder, "")), "*", PLAN_FILE)):
        plan = read(path)
        if plan and plan.get("id") == plan_id:
            return {**plan, "hosts": list(dict.fromkeys(step["host"] for step in plan["steps"]))}
    return None


def write_plan(path: str | None, plan: t.Mapping[str, t.Any]) -> None:
    """The plan. One with lists is read by `-e @`, which warns of a variable named hosts; its steps say which."""
    write(path, {name: value for name, value in plan.items() if name != "hosts" or "runbook_frozen" not in plan})


def read(path: str) -> dict[str, t.Any] | None:
    """What a report says; one that cannot be read is none."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write(path: str | None, data: t.Mapping[str, t.Any]) -> None:
    """Atomically: a reader sees the report before or this one, never half."""
    if not path:
        return
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, ensure_ascii=False)
            file.write("\n")
        # Reports are for the team, as any file that the umask lets others read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of diagnose, for the module and the action of that name."""

from __future__ import annotations

import typing as t

# From the worst to the least.
LEVELS = ["critical", "high", "medium", "low"]
LABELS = {
    "P1": "critical",
    "P2": "high",
    "P3": "medium",
    "P4": "low",
    "critical": "critical",
    "high": "high",
    "medium": "medium",
    "low": "low",
}
ARGUMENT_SPEC: dict[str, t.Any] = {
    "runbook": {"type": "str", "required": True},
    "service": {"type": "str", "required": True},
    "checks": {"type": "list", "elements": "dict", "default": []},
    "file": {"type": "path"},
    "causes": {"type": "list", "elements": "dict", "default": []},
    "severities": {"type": "dict", "default": LABELS},
    "sample_seconds": {"type": "float", "default": 5.0},
    "timeout": {"type": "float", "default": 5.0},
    "fresh_seconds": {"type": "float", "default": 0.0},
    "report_dir": {"type": "str"},
    "fail_on": {"type": "list", "elements": "str", "choices": [*LEVELS, "unknown"], "default": []},
    "steps": {"type": "list", "elements": "str", "default": []},
    "frozen": {"type": "dict", "default": {}},
    "state_dir": {"type": "str"},
    "own_record": {"type": "str"},
    "rollback_id": {"type": "str"},
    "escalation": {"type": "dict", "default": {}},
    "contacts": {"type": "dict", "default": {}},
    "record_dir": {"type": "str"},
    "record_key_file": {"type": "str"},
    "secrets": {"type": "dict", "no_log": True, "default": {}},
}

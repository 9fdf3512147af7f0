#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Make a run's plan from the diagnoses of all hosts, and decide whether it may be carried out
version_added: "0.2.0"
description:
  - The engine calls it once for all hosts, after they have been diagnosed. It runs on the controller and connects to
    nothing.
  - It decides nothing unless the run has exactly the one tag V(remediate) or V(rollback) of ours and skips none.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
  - oncall.runbooks.attributes.info
options:
  runbook:
    description: The runbook's name.
    type: str
    required: true
  mode:
    description:
      - Whether only to make the plan, or to decide as well, for the one of V(remediate) and V(rollback) among the
        run's tags.
    type: str
    choices: [propose, decide]
    default: propose
  steps:
    description: The steps that were asked for, in place of those that findings suggest.
    type: list
    elements: str
    default: []
  frozen:
    description: What an approved plan lists, as its report has it under C(runbook_frozen). Otherwise what the findings
      of all hosts list.
    type: dict
    default: {}
  report_dir:
    description: The folder of the reports. The plan is written to C(<runbook>/plan.json) below it, and an approved
      one is looked up there to say how it differs.
    type: str
  record_dir:
    description: The folder of the timeline, in which a refusal is written down.
    type: str
  record_key_file:
    description: The file with the key that chains the timeline's lines.
    type: path
  plan:
    description: The id of the plan that somebody has approved.
    type: str
  ttl:
    description: The seconds for which an approved plan may be applied.
    type: float
    default: 1800
  max_risk:
    description: Apply a plan without an id when none of its steps is riskier than V(safe) or V(disruptive).
    type: str
  rollback_id:
    description: The record to undo, in place of the runbook's last one.
    type: str
  settle:
    description: The seconds between a change and the look whether it helped, to refuse what is none.
    type: float
    default: 0
"""

EXAMPLES = r"""
- name: Make the plan
  oncall.runbooks.plan:
    runbook: high_latency
    report_dir: reports
  run_once: true
  register: result
"""

RETURN = r"""
plan:
  description: The plan with C(id), C(hosts), C(steps) and C(apply_with), or null when there is nothing to do.
  type: dict
  returned: always
decision:
  description:
    - V(approved), V(ask) a person, V(nothing) to do, or V(none) where nothing was to be decided. A refusal fails.
  type: str
  returned: always
why:
  description: What it was approved by, or why there is nothing to do.
  type: str
  returned: when something was to be decided
run_id:
  description: The id of the records of this run.
  type: str
  returned: when something was to be decided
at_once:
  description: The hosts on which steps are carried out that are for all hosts at once.
  type: list
  elements: str
  returned: when remediation was to be decided
one_by_one:
  description: The hosts that are changed one after the other.
  type: list
  elements: str
  returned: when something was to be decided
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "runbook": {"type": "str", "required": True},
            "mode": {"type": "str", "choices": ["propose", "decide"], "default": "propose"},
            "steps": {"type": "list", "elements": "str", "default": []},
            "frozen": {"type": "dict", "default": {}},
            "report_dir": {"type": "str"},
            "record_dir": {"type": "str"},
            "record_key_file": {"type": "path", "no_log": False},
            "plan": {"type": "str"},
            "ttl": {"type": "float", "default": 1800},
            "max_risk": {"type": "str"},
            "rollback_id": {"type": "str"},
            "settle": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    module.fail_json(msg="plan runs on the controller, as an action; call it by its full name oncall.runbooks.plan.")


if __name__ == "__main__":
    main()

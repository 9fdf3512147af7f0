#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wp_chat_incident
short_description: Record an incident in wp_chat, or resolve it
version_added: "0.6.0"
description:
  - Asks wp_chat's API, which records an incident and answers 500 all the same. What proves that it was recorded is the
    new line in the file of incidents; an answer of 200 does where that file cannot be read.
  - The file is only read. While the service is down nothing is recorded, and the module fails.
  - An incident is not recorded while one of its type is active.
  - A restart of wp_chat makes resolved incidents active again in its memory alone. They are resolved all the same, and
    nothing is recorded a second time.
  - wp_chat answers 404 alike for an incident that it never had and for one that it has forgotten. The file tells them
    apart.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.wp_chat_incidents
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: It looks, and sends nothing that records anything.
  diff_mode:
    support: full
    details: It shows the incident before and after.
options:
  state:
    description: Whether there has to be an active incident of O(type), or O(incident_id) has to be resolved.
    type: str
    choices: [detected, resolved]
    required: true
  type:
    description: The type of the incident. Needed with O(state=detected).
    type: str
    choices:
      - high_latency
      - high_error_rate
      - model_failure
      - index_corruption
      - memory_exhaustion
      - cache_failure
      - rate_limit_attack
      - canary_failure
      - unknown
  severity:
    description: How bad it is. Needed with O(state=detected).
    type: str
    choices: [critical, high, medium, low]
  description:
    description: What happened. It becomes part of an address, so keep it short.
    type: str
    default: ""
  components:
    description: What is affected, such as V(search).
    type: list
    elements: str
    default: []
  incident_id:
    description: The id of the incident. Needed with O(state=resolved).
    type: str
  notes:
    description: What resolved it. Empty keeps what was noted before.
    type: str
    default: ""
  assigned_to:
    description: Who has resolved it. Empty keeps what was noted before.
    type: str
    default: ""
seealso:
  - module: oncall.runbooks.wp_chat_incident_info
"""

EXAMPLES = r"""
- name: Record an incident
  oncall.runbooks.wp_chat_incident:
    state: detected
    type: cache_failure
    severity: medium
    description: The cache's folder is gone.
    components: [search]

- name: Resolve it
  oncall.runbooks.wp_chat_incident:
    state: resolved
    incident_id: incident_1795318574
    notes: Fixed by restart
    assigned_to: on-call
"""

RETURN = r"""
incident:
  description: The incident as it is now, or would be in check mode, where its id is not known yet.
  type: dict
  returned: success
  contains:
    incident_id:
      description: Its id. Two of the same second share one.
      type: str
      sample: incident_1795318574
    incident_type:
      description: Its type, as wp_chat has it.
      type: str
      sample: cache_failure
    severity:
      description: Its severity, as wp_chat has it.
      type: str
      sample: medium
    active:
      description: Whether nobody has resolved it.
      type: bool
      sample: true
    detected_at:
      description: When it was recorded (UTC), or null.
      type: str
      sample: "2026-11-22T03:36:14Z"
    resolved_at:
      description: When it was resolved (UTC), or null.
      type: str
      sample: null
    description:
      description: What was recorded of it.
      type: str
      sample: The cache's folder is gone.
    affected_components:
      description: The components that were named.
      type: list
      elements: str
      sample: [search]
    actions_taken:
      description: What wp_chat was asked to do about it, which it does not do.
      type: list
      elements: str
      sample: []
    resolution_notes:
      description: What was noted when it was resolved.
      type: str
      sample: ""
    assigned_to:
      description: Whom it was assigned to.
      type: str
      sample: ""
notes:
  description: What else there is to know, a sentence each.
  type: list
  elements: str
  returned: success
  sample: ["An incident of this type is active: incident_1795318574; nothing was recorded."]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import wp_chat_incidents
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **wp_chat_incidents.ARGUMENT_SPEC,
            "state": {"type": "str", "choices": ["detected", "resolved"], "required": True},
            "type": {"type": "str", "choices": list(wp_chat_incidents.TYPES)},
            "severity": {"type": "str", "choices": list(wp_chat_incidents.SEVERITIES)},
            "description": {"type": "str", "default": ""},
            "components": {"type": "list", "elements": "str", "default": []},
            "incident_id": {"type": "str"},
            "notes": {"type": "str", "default": ""},
            "assigned_to": {"type": "str", "default": ""},
        },
        required_if=[("state", "detected", ("type", "severity")), ("state", "resolved", ("incident_id",))],
        supports_check_mode=True,
    )
    params = module.params
    try:
        options = wp_chat_incidents.options_of(params)
        if params["state"] == "resolved":
            wp_chat_incidents.check_id(params["incident_id"])
        change = wp_chat_incidents.Change(options, module.run_command, module.check_mode)
        if params["state"] == "detected":
            change.detect(params["type"], params["severity"], params["description"], params["components"])
        else:
            change.resolve(params["incident_id"], params["notes"], params["assigned_to"])
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    except Refused as error:
        module.fail_json(msg=str(error))
    before, after = (wp_chat_incidents.shown(item) if item else {} for item in (change.before, change.after))
    result = {"incident": after, "notes": change.notes}
    if module._diff:
        result["diff"] = {"before": before, "after": after}
    module.exit_json(changed=change.changed, **result)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wp_chat_incident_info
short_description: List the incidents of wp_chat
version_added: "0.6.0"
description:
  - Asks wp_chat's API, which answers 500 for as long as it has an incident to show. Then it reads the file in which
    wp_chat records them, which has a line for everything that happened to an incident, and the last one counts.
  - It reads the file too where the API answers. An incident that is active by the file, and that the service has
    forgotten, is active; RV(source) is then the file.
  - Lines that are torn are counted, and cost no other incident. Types and severities that nobody knows are kept.
  - Without a file no incident was ever recorded.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.wp_chat_incidents
  - oncall.runbooks.attributes.info
  - oncall.runbooks.attributes
options:
  incident_id:
    description: The id of one incident, to be told of it alone beside the lists.
    type: str
notes:
  - It fails where neither the API nor the file tells, with a sentence that says why not.
seealso:
  - module: oncall.runbooks.wp_chat_incident
"""

EXAMPLES = r"""
- name: See what is active
  oncall.runbooks.wp_chat_incident_info:
    url: http://localhost:8080
    home: /srv/wp-chat
  register: incidents

- name: Show it
  ansible.builtin.debug:
    var: incidents.active

- name: See one
  oncall.runbooks.wp_chat_incident_info:
    incident_id: incident_1795318574
  register: one
"""

RETURN = r"""
source:
  description: V(api), or the file that the lists are from.
  type: str
  returned: success
  sample: /srv/wp-chat/logs/incidents.jsonl
api:
  description: Whether the API lists its incidents, or why not, in a sentence.
  type: str
  returned: success
  sample: GET http://localhost:8080/admin/incidents/status answers 500.
active:
  description: The incidents that nobody has resolved, the worst first, of those the newest.
  type: list
  elements: dict
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
      description: When it was recorded (UTC); what stands there where that is no time.
      type: str
      sample: "2026-11-22T03:36:14Z"
    resolved_at:
      description: When it was resolved (UTC), or null.
      type: str
      sample: null
    description:
      description: What was recorded of it.
      type: str
      sample: nightly
    affected_components:
      description: The components that were named.
      type: list
      elements: str
      sample: [cache]
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
recent:
  description: The incidents of the last 24 hours, active or resolved, the newest first, with the keys of RV(active).
  type: list
  elements: dict
  returned: success
by_severity:
  description: How many of those that are active or recent have a severity.
  type: dict
  returned: success
  sample: {medium: 1}
by_type:
  description: How many of those that are active or recent are of a type.
  type: dict
  returned: success
  sample: {cache_failure: 1}
torn:
  description: The number of lines of the file that cannot be read whole.
  type: int
  returned: success
  sample: 0
believed_active:
  description:
    - The ids that the service itself takes for active. Where it does not list them, it is asked about those of the file
      one by one, the 20 that are active or newest.
    - Null where it does not say.
  type: list
  elements: str
  returned: success
  sample: [incident_1795318574]
notes:
  description: What else there is to know, a sentence each, such as where the service and its file disagree.
  type: list
  elements: str
  returned: success
  sample: []
incident:
  description: The incident with O(incident_id), with the keys of RV(active); null where there is none.
  type: dict
  returned: with O(incident_id)
catalogue:
  description: What the service itself lists to be done for it; null where it does not say, as of what is resolved.
  type: list
  elements: dict
  returned: with O(incident_id)
  contains:
    action_id:
      description: The id of the action.
      type: str
      sample: clear_cache
    name:
      description: What it is called.
      type: str
      sample: Clear Cache
    command:
      description: The command that wp_chat shows and cannot run.
      type: str
      sample: curl -X POST http://localhost:8080/admin/cache/clear
    requires_confirmation:
      description: Whether it is to be confirmed.
      type: bool
      sample: true
    estimated_time:
      description: How many seconds it takes.
      type: int
      sample: 60
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import wp_chat_incidents
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={**wp_chat_incidents.ARGUMENT_SPEC, "incident_id": {"type": "str"}},
        supports_check_mode=True,
    )
    name = module.params["incident_id"] or ""
    try:
        options = wp_chat_incidents.options_of(module.params)
        if name:
            wp_chat_incidents.check_id(name)
        found = wp_chat_incidents.info(options, module.run_command, name)
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    except Refused as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()

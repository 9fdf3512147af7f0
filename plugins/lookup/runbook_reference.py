# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: runbook_reference
short_description: What the runbooks of a service do about which incident
version_added: "0.6.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Reads the reference that each runbook of a service has beside its checks and steps, so it says what they do and
    needs no host and no server.
options:
  _terms:
    description: Services, such as V(wp_chat).
    required: true
  type:
    description: Only the incident that the service calls by this type, or the runbook of this name.
    type: str
    default: ""
  action:
    description: With O(type), only this of its actions, by our id or by the service's own.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Say what there is to do about high latency
  ansible.builtin.debug:
    var: query('oncall.runbooks.runbook_reference', 'wp_chat', type='high_latency')

- name: Print all of it
  ansible.builtin.debug:
    msg: "{{ query('oncall.runbooks.runbook_reference', 'wp_chat') | oncall.runbooks.runbook_reference_text }}"
"""

RETURN = r"""
_value:
  description:
    - The incidents, the worst first.
    - With O(action) the action, with the keys of those in C(actions) and C(runbook), C(incident) and C(type) beside
      them. C(problem) is empty, or a sentence where there is no such action, and then alone.
  type: list
  elements: dict
  contains:
    runbook:
      description: The runbook's name.
      type: str
      sample: high_latency
    incident:
      description: What the incident is called.
      type: str
      sample: High latency
    type:
      description: The type that the service gives it.
      type: str
      sample: high_latency
    severity:
      description: How bad it usually is.
      type: str
      sample: high
    quick:
      description: What to do first, and then, with the keys of C(actions).
      type: list
      elements: dict
    actions:
      description: What to do about it, in order.
      type: list
      elements: dict
      contains:
        do:
          description: The id of a step or a check of the runbook.
          type: str
          sample: disable_reranking
        kind:
          description: V(step) or V(check).
          type: str
          sample: step
        action:
          description: The service's own id for it, or empty.
          type: str
          sample: disable_rerank
        title:
          description: What it does.
          type: str
          sample: Disable reranking
        seconds:
          description: How long it takes.
          type: int
          sample: 30
        command:
          description: The command that does it.
          type: str
          sample: ansible-playbook playbooks/high_latency.yml --tags remediate -e runbook_steps=disable_reranking
    more:
      description: The runbook's other steps, with the keys of C(actions).
      type: list
      elements: dict
"""

import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.oncall.runbooks.plugins.plugin_utils import reference


class LookupModule(LookupBase):
    """The data of the roles beside this plugin."""

    def run(self, terms: list[str], variables: dict[str, t.Any] | None = None, **kwargs: t.Any) -> list[t.Any]:
        self.set_options(var_options=variables, direct=kwargs)
        kind, action = self.get_option("type"), self.get_option("action")
        host = str((variables or {}).get("inventory_hostname", "")) if action else ""
        found: list[t.Any] = []
        try:
            for service in terms:
                incidents = reference.table(service, host=host)
                if not kind:
                    found += incidents
                    continue
                incident = reference.of_type(incidents, kind)
                named = {key: incident[key] for key in ("runbook", "incident", "type")}
                found.append({**reference.action_of(incident, action), **named, "problem": ""} if action else incident)
        except reference.Wrong as error:
            if action:
                return [{"problem": str(error)}]
            raise AnsibleLookupError(str(error)) from None
        return found

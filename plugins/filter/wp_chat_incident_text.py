# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: wp_chat_incident_text
short_description: Incidents of wp_chat as plain text
version_added: "0.6.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Turns what M(oncall.runbooks.wp_chat_incident_info) and M(oncall.runbooks.wp_chat_incident) return into text.
positional: _input, what, host
options:
  _input:
    description: The result of the module.
    type: dict
    required: true
  what:
    description:
      - V(status), V(active) or V(procedures), the last with O(_input) of one incident, for
        M(oncall.runbooks.wp_chat_incident_info).
      - V(recorded) or V(foreseen), in check mode, for M(oncall.runbooks.wp_chat_incident).
    type: str
    choices: [status, active, procedures, recorded, foreseen]
    required: true
  host:
    description: The host that it is of.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Look
  oncall.runbooks.wp_chat_incident_info:
  register: incidents

- name: Show what is active
  ansible.builtin.debug:
    msg: "{{ incidents | oncall.runbooks.wp_chat_incident_text('active', inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The text for the collection's callback, a list of its lines for another one.
  type: raw
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.oncall.runbooks.plugins.plugin_utils import incident_text
from ansible_collections.oncall.runbooks.plugins.plugin_utils.reference import printable

WAYS: dict[str, t.Callable[[str, t.Any], list[str]]] = {
    "status": incident_text.status,
    "active": incident_text.active,
    "procedures": incident_text.procedures,
    "recorded": lambda host, result: incident_text.recorded(host, result, False),
    "foreseen": lambda host, result: incident_text.recorded(host, result, True),
}


def wp_chat_incident_text(result: t.Any, what: str, host: str) -> str | list[str]:
    if what not in WAYS:
        raise AnsibleFilterError(f"wp_chat_incident_text cannot show {what!r}; it shows {', '.join(WAYS)}.")
    return printable(WAYS[what](host, result))


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"wp_chat_incident_text": wp_chat_incident_text}

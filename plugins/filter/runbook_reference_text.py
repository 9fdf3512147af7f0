# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: runbook_reference_text
short_description: The reference of runbooks as plain text
version_added: "0.6.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Turns what the lookup P(oncall.runbooks.runbook_reference#lookup) returns into a table and the commands for all of
    it.
positional: _input
options:
  _input:
    description: The incidents.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Print the quick reference
  ansible.builtin.debug:
    msg: "{{ query('oncall.runbooks.runbook_reference', 'wp_chat') | oncall.runbooks.runbook_reference_text }}"
"""

RETURN = r"""
_value:
  description: The text for the collection's callback, a list of its lines for another one.
  type: raw
"""

import typing as t

from ansible_collections.oncall.runbooks.plugins.plugin_utils import reference
from ansible_collections.oncall.runbooks.plugins.plugin_utils.reference import printable


def runbook_reference_text(incidents: t.Any) -> str | list[str]:
    return printable(reference.lines(incidents))


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"runbook_reference_text": runbook_reference_text}

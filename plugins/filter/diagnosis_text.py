# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: diagnosis_text
short_description: A diagnosis as lines of plain text
version_added: "0.1.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Turns the diagnosis that M(oncall.runbooks.diagnose) returns into the lines that the collection's callback
    prints, without colour.
positional: _input
options:
  _input:
    description: The diagnosis.
    type: dict
    required: true
  width:
    description: The width in characters to wrap at.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Show what is wrong
  ansible.builtin.debug:
    msg: "{{ result.diagnosis | oncall.runbooks.diagnosis_text }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.oncall.runbooks.plugins.plugin_utils.command import again, onward
from ansible_collections.oncall.runbooks.plugins.plugin_utils.diagnosis import SCHEMA
from ansible_collections.oncall.runbooks.plugins.plugin_utils.planning import apply_options
from ansible_collections.oncall.runbooks.plugins.plugin_utils.render import WIDTH, render


def diagnosis_text(diagnosis: t.Any, width: int = WIDTH) -> list[str]:
    if not isinstance(diagnosis, t.Mapping) or diagnosis.get("schema") != SCHEMA:
        raise AnsibleFilterError(
            f"diagnosis_text takes a diagnosis with the schema {SCHEMA}, as oncall.runbooks.diagnose returns it."
        )
    plan = diagnosis.get("plan")
    remediate = again("remediate", apply_options(plan)) if plan else None
    return render(diagnosis, width, remediate=remediate, onward=onward(diagnosis))


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"diagnosis_text": diagnosis_text}

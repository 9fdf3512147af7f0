# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: yaml_unset
short_description: Remove keys from a YAML text and leave everything else as it is
version_added: "0.6.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Removes the keys with their values, and a mapping in which nothing else was with them. Keys that are not there are
    none to remove. What is on the same lines goes too, comments included.
  - Like P(oncall.runbooks.yaml_set#filter), it fails where anything else would change.
positional: _input, path, file
options:
  _input:
    description: The text.
    type: str
    required: true
  path:
    description: The keys on the way to the one to remove with a dot in between, or a list of such paths.
    type: raw
    required: true
  file:
    description: What the text is called in an error.
    type: str
    default: the YAML text
"""

EXAMPLES = r"""
- name: Remove the limit
  ansible.builtin.debug:
    msg: "{{ 'limits: {requests: 10, seconds: 60}' | oncall.runbooks.yaml_unset('limits.requests') }}"
"""

RETURN = r"""
_value:
  description: The text without the keys.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.oncall.runbooks.plugins.plugin_utils import yaml_edit


def yaml_unset(text: str, path: t.Any, file: str = "the YAML text") -> str:
    try:
        return yaml_edit.unset(text, [path] if isinstance(path, str) else path)
    except yaml_edit.Refused as error:
        raise AnsibleFilterError(f"{file} is not changed: {error}.") from None


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"yaml_unset": yaml_unset}

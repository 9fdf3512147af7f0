# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: yaml_put_back
short_description: Take back what was set in a YAML text, also where it has been changed since
version_added: "0.6.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Gives the values that an earlier text has the values that they have there, and removes those that it has not.
    Where nothing else was changed since, the result is the earlier text byte by byte.
  - Like P(oncall.runbooks.yaml_set#filter), it fails where anything else would change.
positional: _input, original, values, file
options:
  _input:
    description: The text as it is now.
    type: str
    required: true
  original:
    description: The text as it was before the values were set.
    type: str
    required: true
  values:
    description: What was set, a mapping of paths as in P(oncall.runbooks.yaml_set#filter).
    type: dict
    required: true
  file:
    description: What the text is called in an error.
    type: str
    default: the YAML text
"""

EXAMPLES = r"""
- name: Take a limit back
  ansible.builtin.debug:
    msg: "{{ 'limit: 10' | oncall.runbooks.yaml_put_back('limit: 100  # a day', {'limit': 10}) }}"
"""

RETURN = r"""
_value:
  description: The text with what was there before.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.oncall.runbooks.plugins.plugin_utils import yaml_edit


def yaml_put_back(text: str, original: str, values: t.Mapping[str, t.Any], file: str = "the YAML text") -> str:
    try:
        return yaml_edit.put_back(text, original, values)
    except yaml_edit.Refused as error:
        raise AnsibleFilterError(f"{file} is not changed: {error}.") from None


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"yaml_put_back": yaml_put_back}

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: yaml_set
short_description: Set single values in a YAML text and leave everything else as it is
version_added: "0.6.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Replaces the characters of a value, and nothing else. Comments, quotes, order and line ends stay. A key that is
    missing is inserted at the end of its mapping, with that mapping's indentation.
  - The result is parsed again. Where it would differ in anything else than that value, as where an anchor is shared,
    it fails.
  - It fails too where the text is no valid YAML, has several documents or tags of an application, has the key twice,
    or has a mapping or a list in the place of the value.
positional: _input, path, value, file
options:
  _input:
    description: The text.
    type: str
    required: true
  path:
    description: The keys of the value with a dot in between, or a mapping of such paths to values.
    type: raw
    required: true
  value:
    description: The value, a text, a number, a truth value or null. Left out where O(path) is a mapping.
    type: raw
  file:
    description: What the text is called in an error.
    type: str
    default: the YAML text
"""

EXAMPLES = r"""
- name: Read the configuration
  ansible.builtin.slurp:
    src: /srv/wp-chat/config.yml
  register: config

- name: Allow fewer requests
  ansible.builtin.copy:
    content: "{{ config.content | b64decode | oncall.runbooks.yaml_set('api.rate_limit.max_requests', 10) }}"
    dest: /srv/wp-chat/config.yml
    mode: preserve
"""

RETURN = r"""
_value:
  description: The text with the values.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.oncall.runbooks.plugins.plugin_utils import yaml_edit


def yaml_set(text: str, path: t.Any, value: t.Any = None, file: str = "the YAML text") -> str:
    try:
        return yaml_edit.set_values(text, path if isinstance(path, t.Mapping) else {path: value})
    except yaml_edit.Refused as error:
        raise AnsibleFilterError(f"{file} is not changed: {error}.") from None


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"yaml_set": yaml_set}

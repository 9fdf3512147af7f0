# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: as_given
short_description: The text of a variable as it was given, and not what it would be as a template
version_added: "0.6.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - For words that a person types, such as a description. Braces in them stay braces.
  - C(-e "name=some words") gives Ansible the first of them only. Here they are all of the text, unless another variable
    whose name begins alike, up to its first underscore, is in the same C(-e).
options:
  _terms:
    description: The name of a variable.
    required: true
"""

EXAMPLES = r"""
- name: Say what was typed
  ansible.builtin.debug:
    msg: "{{ lookup('oncall.runbooks.as_given', 'incident_notes') }}"
"""

RETURN = r"""
_value:
  description: The text; empty where the variable is not defined.
  type: list
  elements: str
"""

import typing as t

from ansible import context
from ansible.errors import AnsibleError, AnsibleLookupError
from ansible.parsing.splitter import parse_kv
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    """Reads variables without evaluating them, and the command line."""

    def run(self, terms: list[str], variables: dict[str, t.Any] | None = None, **kwargs: t.Any) -> list[str]:
        return [self._text(str(name), variables or {}) for name in terms]

    def _text(self, name: str, variables: t.Mapping[str, t.Any]) -> str:
        value = variables.get(name)
        if value is None:
            return ""
        if isinstance(value, (dict, list)):
            raise AnsibleLookupError(f"{name} is no text.")
        # The last one counts, as for Ansible.
        for given in reversed(list(map(str, context.CLIARGS.get("extra_vars") or ()))):
            own = given.startswith(f"{name}=")
            if own or f"{name}=" in given:
                return self._whole(name, given) if own else self._split(name, given, value)
        # A copy without what Ansible knows of the text, such as that it may be evaluated.
        return "".join(str(value))

    def _whole(self, name: str, given: str) -> str:
        """All of what follows the name, without quotes around it."""
        text = given[len(name) + 1 :]
        others = [other for other in self._parsed(given) if other != name]
        if any(other.partition("_")[0] == name.partition("_")[0] for other in others):
            return self._split(name, given, self._parsed(given)[name])
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            text = text[1:-1]
        return "".join(text)

    def _split(self, name: str, given: str, value: t.Any) -> str:
        """One of several variables; words that belong to none of them would be lost."""
        lost = self._parsed(given).get("_raw_params") if given[:1] not in "@{[" else None
        if lost:
            raise AnsibleLookupError(f"{str(lost)!r} belongs to no variable; give {name} in a -e of its own.")
        return "".join(str(value))

    @staticmethod
    def _parsed(given: str) -> dict[str, t.Any]:
        try:
            return dict(parse_kv(given))
        except AnsibleError:
            return {}

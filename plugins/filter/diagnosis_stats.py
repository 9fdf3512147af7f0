# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: diagnosis_stats
short_description: The diagnoses of a run, keyed by host and capped in size
version_added: "0.1.0"
author:
  - oncall.runbooks maintainers (@oncall)
description:
  - Collects the registered results of M(oncall.runbooks.diagnose) of all hosts into one mapping that is small enough
    for
    M(ansible.builtin.set_stats) and so for the artifacts of AWX. Evidence is left out first, then the findings that
    are ok.
positional: _input
options:
  _input:
    description: C(hostvars).
    type: dict
    required: true
  register:
    description: The name that the results were registered under.
    type: str
    required: true
  plan:
    description: The run's plan, as the action C(plan) returns it. Each host gets its part; without it, what its own
      diagnosis proposes.
    type: dict
  hosts:
    description: The hosts to collect from. Those without a result are left out.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Hand the diagnoses on
  ansible.builtin.set_stats:
    data:
      oncall_runbooks: "{{ hostvars | oncall.runbooks.diagnosis_stats('result', ansible_play_hosts_all) }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: The diagnosis of each host.
  type: dict
"""

import typing as t

from ansible_collections.oncall.runbooks.plugins.plugin_utils.diagnosis import capped
from ansible_collections.oncall.runbooks.plugins.plugin_utils.planning import of_host


def diagnosis_stats(hostvars: t.Any, register: str, hosts: t.Sequence[str], plan: t.Any = None) -> dict[str, t.Any]:
    collected = {}
    for host in hosts:
        result = hostvars[host].get(register)
        if isinstance(result, t.Mapping) and isinstance(result.get("diagnosis"), t.Mapping):
            collected[host] = capped(
                {**result["diagnosis"], "plan": of_host(plan, host) if plan else result["diagnosis"].get("plan")}
            )
    return collected


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"diagnosis_stats": diagnosis_stats}

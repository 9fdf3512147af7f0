#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ip_block_info
short_description: List the addresses that ip_block has blocked
version_added: "0.5.0"
description:
  - Lists what is blocked now, until when, since when, by whom and why, as the kernel has it.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - root on the target, with the right to change the network
extends_documentation_fragment:
  - oncall.runbooks.attributes.info
  - oncall.runbooks.attributes
options:
  backend:
    description: V(auto) lists what any of them has.
    type: str
    choices: [auto, nftables, ipset, iptables]
    default: auto
seealso:
  - module: oncall.runbooks.ip_block
"""

EXAMPLES = r"""
- name: See who is blocked
  oncall.runbooks.ip_block_info:
  become: true
  register: blocked

- name: Show them
  ansible.builtin.debug:
    var: blocked.entries
"""

RETURN = r"""
entries:
  description: What is blocked, in order of addresses.
  type: list
  elements: dict
  returned: success
  contains:
    address:
      description: The address or network.
      type: str
      sample: 198.51.100.23
    expires_at:
      description: When the kernel ends it (UTC), or null.
      type: str
      sample: "2026-11-28T03:00:00Z"
    reason:
      description: Why, or null.
      type: str
      sample: credential stuffing
    since:
      description: When it was blocked or renewed (UTC); null where it was not by M(oncall.runbooks.ip_block).
      type: str
      sample: "2026-11-27T03:00:00Z"
    by:
      description: Who, or null.
      type: str
      sample: alice@control-1
    incident:
      description: The incident, or null.
      type: str
      sample: INC-2041
    backend:
      description: What blocks it.
      type: str
      sample: nftables
backend:
  description: What blocks; several are separated by commas, and null is none.
  type: str
  returned: success
  sample: nftables
problem:
  description: Why what is listed is not in force, as after somebody has flushed the rules of iptables; or null. The
    next run of M(oncall.runbooks.ip_block) that blocks some of it puts it right.
  type: str
  returned: success
  sample: null
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import blocklist
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_all import backends_of
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "choices": ["auto", "nftables", "ipset", "iptables"], "default": "auto"},
        },
        supports_check_mode=True,
    )

    run = blocklist.runner(module.run_command)
    try:
        _backend, holding = blocklist.choose(backends_of(run), module.params["backend"])
        found = blocklist.told(holding)
        problems = [f"{backend.name}: {problem}" for backend in holding for problem in [backend.broken()] if problem]
    except (Refused, NoAnswer, blocklist.Failed) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        entries=found,
        backend=",".join(backend.name for backend in holding) or None,
        problem="; ".join(problems) or None,
    )


if __name__ == "__main__":
    main()

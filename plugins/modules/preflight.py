#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Refuse a run that would do nothing
version_added: "0.1.0"
description:
  - Fails with one sentence when a tag on the command line is unknown, when the runbook covers none of the hosts,
    when C(--limit) selects one
    that it does not cover, or when it is not clear which service a host runs.
  - It runs on the controller and connects to nothing. Our playbooks call it under the tag V(always).
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
  - oncall.runbooks.attributes.info
options:
  runbook:
    description: The runbook's name.
    type: str
    required: true
  path:
    description: The runbook's role. The names of the files in its folder C(vars) are the services that it covers.
    type: path
    required: true
  tags:
    description: The tags that the runbook knows.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse what would run in vain
  oncall.runbooks.preflight:
    runbook: high_latency
    path: roles/high_latency
    tags: [diagnose]
  run_once: true
  register: preflight
  tags: [always]
"""

RETURN = r"""
services:
  description: The services that the runbook has checks for.
  type: list
  elements: str
  returned: success
  sample: [vritti]
uncovered:
  description: The hosts of the play that the runbook leaves out.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "runbook": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "tags": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    module.fail_json(
        msg="preflight runs on the controller, as an action; call it by its full name oncall.runbooks.preflight."
    )


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: timeline_info
short_description: Check the record of what runbooks have done
version_added: "0.2.0"
description:
  - Reads the timeline that every run appends to, and follows the chain of its lines. A line that was changed, added or
    taken out is named with its number; an end that was cut off shows by C(timeline.jsonl.head) beside it, and, where
    somebody has put an older one there, by O(last).
  - It reports and does not judge. A timeline that is missing, cut or changed is a result; the module fails only for a
    key that cannot be read.
  - Without a key the chain finds accidents and nothing else, for anybody can calculate it anew. RV(tamper_evident)
    says so.
  - It reads the file of the host that it runs on. The playbook C(oncall.runbooks.check_timeline) checks the one on the
    controller.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
  - oncall.runbooks.attributes.info
options:
  path:
    description: The file C(timeline.jsonl), best as an absolute path.
    type: path
    required: true
  key_file:
    description:
      - The file with the key that the timeline was written with, which only its owner may read.
      - Without it, the key is taken from the environment variable E(ONCALL_RUNBOOKS_RECORD_KEY) of the module.
    type: path
  last:
    description: The last MAC that a run has printed. Lines that were added since are no problem.
    type: str
  partial:
    description:
      - Whether it is a host's copy, in which lines are missing by design.
      - Each line is checked by itself then, and a line that was taken out does not show.
    type: bool
    default: false
seealso:
  - module: oncall.runbooks.diagnose
"""

EXAMPLES = r"""
- name: Check the controller's record
  oncall.runbooks.timeline_info:
    path: /srv/oncall/records/timeline.jsonl
    key_file: ~/.oncall-runbooks.key
    last: b31551d8254d91c96e6cc9d52bb6bdd709de8291a79f73cdba2cc20e7fc755a0
  delegate_to: localhost
  register: record

- name: Stop where it was changed
  ansible.builtin.assert:
    that: record.valid
    fail_msg: "{{ record.problem }}"

- name: Check a host's copy
  oncall.runbooks.timeline_info:
    path: /var/lib/oncall-runbooks/timeline.jsonl
    partial: true
"""

RETURN = r"""
valid:
  description: Whether nothing speaks against it. Look at RV(tamper_evident) for how much that says.
  type: bool
  returned: success
  sample: true
tamper_evident:
  description: Whether there was a key, so that nobody without it can have changed a line unnoticed.
  type: bool
  returned: success
  sample: true
lines:
  description: The number of lines that were read, torn ones not counted.
  type: int
  returned: success
  sample: 118
first_at:
  description: The time of the first line, in UTC and ISO 8601; null where there is none.
  type: str
  returned: success
  sample: "2026-11-24T02:58:01.104311Z"
last_at:
  description: The time of the last line, in UTC and ISO 8601; null where there is none.
  type: str
  returned: success
  sample: "2026-11-24T03:12:45.530127Z"
mac:
  description: The link of the last line, which a run prints as the last MAC; null where there is none.
  type: str
  returned: success
  sample: b31551d8254d91c96e6cc9d52bb6bdd709de8291a79f73cdba2cc20e7fc755a0
problem:
  description: What is wrong, in one sentence with the first line's number.
  type: str
  returned: when RV(valid) is false
  sample: "The record records/timeline.jsonl is not whole: line 17 has been changed, or was written with another key."
problems:
  description: All that is wrong, at most 20 of them and how many more there are.
  type: list
  elements: str
  returned: success
  sample: []
remarks:
  description: What a crash has left, which is no sign of a change.
  type: list
  elements: str
  returned: success
  sample: [line 3 was torn when a run was killed while it wrote]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import timeline


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "key_file": {"type": "path", "no_log": False},
            "last": {"type": "str"},
            "partial": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        key = timeline.load_key(options["key_file"], os.environ)
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        **timeline.report(options["path"], key, (options["last"] or "").strip(), options["partial"]),
    )


if __name__ == "__main__":
    main()

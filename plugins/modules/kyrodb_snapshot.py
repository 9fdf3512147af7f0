#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kyrodb_snapshot
short_description: Let a KyroDB instance write a snapshot
version_added: "0.2.0"
description:
  - Calls C(CreateSnapshot) of C(kyrodb.v1.KyroDBService) over gRPC. The instance writes C(snapshot_<n>.snap) into its
    own data directory; KyroDB takes no other path.
  - It is not idempotent. Every run writes one more file, and nothing removes the older ones.
  - A snapshot is no backup, as it lies beside the data. Copy it, or use C(kyrodb_backup).
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - grpcio and protobuf on the target
extends_documentation_fragment:
  - oncall.runbooks.kyrodb
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: Asks the instance for its health, and fails where it does not answer.
  diff_mode:
    support: none
options:
  api_key:
    description: The API key, where KyroDB's authentication is on. It is sent as the metadata C(x-api-key).
    type: str
  timeout:
    description: The seconds that the snapshot may take.
    type: float
    default: 60.0
seealso:
  - module: oncall.runbooks.kyrodb_health
"""

EXAMPLES = r"""
- name: Snapshot the text instance
  oncall.runbooks.kyrodb_snapshot:
    address: localhost:50051
  register: snapshot

- name: Copy it to where it is safe
  ansible.builtin.copy:
    src: "{{ snapshot.path }}"
    dest: /var/backups/kyrodb/
    remote_src: true
    mode: preserve
"""

RETURN = r"""
path:
  description: The file, as the instance names it. A path that is not absolute starts in the instance's working
    directory.
  type: str
  returned: success and not in check mode
  sample: /var/lib/kyrodb/data/snapshot_42.snap
size_bytes:
  description: The size of the file in bytes.
  type: int
  returned: success and not in check mode
  sample: 1048576
documents:
  description: The number of documents in it.
  type: int
  returned: success and not in check mode
  sample: 1234
seconds:
  description: The seconds that it took.
  type: float
  returned: success and not in check mode
  sample: 0.8
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **kyrodb.CONNECTION_SPEC,
            "api_key": {"type": "str", "no_log": True},
            "timeout": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        endpoint = kyrodb.endpoint_of(options, options["api_key"])
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    if options["timeout"] <= 0:
        module.fail_json(msg=f"timeout is {options['timeout']}; it is a number of seconds above 0.")
    try:
        if module.check_mode:
            kyrodb.require_grpc()
            kyrodb.ask(endpoint, min(options["timeout"], 5.0), samples=0, metrics=False)
            module.exit_json(changed=True)
        began = time.monotonic()
        written = kyrodb.create_snapshot(endpoint, options["timeout"])
    except NoAnswer as error:
        more = " It may still write the snapshot; look into its data directory before you ask again."
        module.fail_json(msg=f"{error}{more if error.kind == 'timeout' and not module.check_mode else ''}")
    module.exit_json(changed=True, seconds=round(time.monotonic() - began, 3), **written)


if __name__ == "__main__":
    main()

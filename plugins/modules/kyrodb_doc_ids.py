#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kyrodb_doc_ids
short_description: Find the highest document id that a KyroDB instance holds
version_added: "0.3.0"
description:
  - Asks C(BulkQuery) of C(kyrodb.v1.KyroDBService) for ids from O(at_least) on, 256 at a time, until 40 such blocks
    in a row are free. KyroDB has no call that lists its documents.
  - Vritti numbers episodes from a counter in its own database, and KyroDB's inserts overwrite. So a counter that
    goes back, as it does when an older database is restored, has new episodes overwrite old ones.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - grpcio and protobuf on the target
extends_documentation_fragment:
  - oncall.runbooks.kyrodb
  - oncall.runbooks.attributes.info
  - oncall.runbooks.attributes
options:
  at_least:
    description: The id to begin with. Ids below it are not looked at.
    type: int
    default: 1
  api_key:
    description: The API key, where KyroDB's authentication is on. It is sent as the metadata C(x-api-key).
    type: str
  timeout:
    description: The seconds that all of it may take.
    type: float
    default: 60.0
seealso:
  - module: oncall.runbooks.sqlite_restore
"""

EXAMPLES = r"""
- name: See whether the counter has gone back
  oncall.runbooks.kyrodb_doc_ids:
    address: localhost:50051
    at_least: 1024
  register: ids
  failed_when: ids.highest is not none
"""

RETURN = r"""
highest:
  description: The highest id in use, or null where none from O(at_least) on is.
  type: int
  returned: success
  sample: 1291
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **kyrodb.CONNECTION_SPEC,
            "at_least": {"type": "int", "default": 1},
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
    try:
        highest = kyrodb.highest_doc_id(endpoint, options["at_least"], options["timeout"])
    except NoAnswer as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, highest=highest)


if __name__ == "__main__":
    main()

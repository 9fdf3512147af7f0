#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: service_path_info
short_description: Find a path as a service means it, and tell whether the service can write there
version_added: "0.6.0"
description:
  - A service's relative path starts where it was started, C(~) is the home of its user, and variables are those of its
    environment. This module finds what they mean, by the process that listens on O(port).
  - It looks as the probe C(file) does, and creates nothing to find out whether a folder can be written to.
  - A path that does not exist is an answer. It fails where the path cannot be told, as a relative one is where the
    service does not run, or may not be seen.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes.info
  - oncall.runbooks.attributes
options:
  paths:
    description:
      - Paths of which the first that exists is meant, else the first.
      - V(${NAME:-default}) is the variable C(NAME) of the service's environment, or the default where it is not set or
        empty. The default may have another one.
    type: list
    elements: str
    required: true
  port:
    description: The TCP port that the service listens on, on this host. Needed for all but absolute paths.
    type: int
notes:
  - It needs root, or to be the user of the service, to see where it was started and its environment.
seealso:
  - module: oncall.runbooks.service_restart
"""

EXAMPLES = r"""
- name: Find the folder in which wp_chat caches
  oncall.runbooks.service_path_info:
    paths: [cache, logs/cache]
    port: 8080
  register: cache

- name: Say where it keeps its models
  oncall.runbooks.service_path_info:
    paths: ["${HF_HUB_CACHE:-${HF_HOME:-~/.cache/huggingface}/hub}"]
    port: 8080
"""

RETURN = r"""
file:
  description: The absolute path.
  type: str
  returned: success
  sample: /srv/wp-chat/cache
exists:
  description: Whether there is anything. A link to nothing does not exist.
  type: bool
  returned: success
writable:
  description:
    - Whether the service can write to the folder, V(writable), or why not, V(missing), V(not a directory),
      V(not writable), V(read-only filesystem), V(immutable), V(no space) or V(no inodes).
  type: str
  returned: success
  sample: writable
user:
  description: As whom the service runs; where it does not run, the folder's owner. Null where there is no folder.
  type: str
  returned: success
  sample: wp-chat
note:
  description: The same in a sentence, or null.
  type: str
  returned: success
"""

import functools

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import file as probe


def main() -> None:
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "str", "required": True}, "port": {"type": "int"}},
        supports_check_mode=True,
    )
    source = {
        **{name: option.get("default") for name, option in probe.SPEC.items()},
        **module.params,
        "value": "writable",
    }
    context = Context(10.0, 0.0, {}, functools.partial(module.run_command, handle_exceptions=False))
    try:
        probe.validate(source)
        look = probe.look(context, source, {})
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    except NoAnswer as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        file=look["evidence"]["file"],
        exists=look["value"] != "missing",
        writable=look["value"],
        user=look["evidence"].get("user"),
        note=look.get("note"),
    )


if __name__ == "__main__":
    main()

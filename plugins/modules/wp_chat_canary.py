#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wp_chat_canary
short_description: Switch wp_chat's reranking on and off, for a share of the users, or stop it
version_added: "0.6.0"
description:
  - Looks at the canary first and sends only what differs, for every call of wp_chat's API rewrites when and by whom it
    was changed. Without anything to change it is a look.
  - Every worker of wp_chat has a configuration of its own. So the module looks O(reads) times, and sends what is wanted
    again while an answer differs, O(attempts) times at most. Where that is not enough it fails, and says how many
    workers it has seen; a restart of wp_chat helps, for its workers read what was written last when they start.
  - The canary is for C(/search) and C(/generate). C(/ask) reranks whenever it is asked to.
  - wp_chat forgets the rollout when the canary is switched off. With O(memory) it is written down before.
  - Neither switching the canary off or on nor changing its rollout ends an emergency stop.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: Looks, and sends nothing that changes anything.
  diff_mode:
    support: full
options:
  url:
    description: Where wp_chat is, such as V(http://localhost:8080). Its C(/admin) routes ask for no key.
    type: str
    required: true
  enabled:
    description:
      - Whether the canary is on, so that requests that ask for it are reranked for the share of users in O(rollout).
      - Switched on without O(rollout), it gets the rollout that O(memory) has. Where that is not known, it fails.
    type: bool
  rollout:
    description: The share of users, from 0 to 1. 0 switches the canary off, any other one on.
    type: float
  emergency_stop:
    description: Whether reranking is stopped for everybody, whatever the rest says. It outlives a restart.
    type: bool
  memory:
    description: A file on the target, in which the rollout is kept while the canary is off. Its folder is made.
    type: path
  updated_by:
    description: Who wp_chat notes as having changed it. Without it, the user that the module runs for.
    type: str
  reads:
    description: How often in a row wp_chat has to answer that it is as it should be.
    type: int
    default: 25
  attempts:
    description: How often what is wanted is sent at most.
    type: int
    default: 25
  timeout:
    description: The seconds that one request may take.
    type: float
    default: 10.0
  validate_certs:
    description: Whether the certificate of an C(https) URL has to be valid.
    type: bool
    default: true
  ca_path:
    description: The certificate authority of that certificate, as a PEM file on the target.
    type: path
seealso:
  - module: oncall.runbooks.service_restart
"""

EXAMPLES = r"""
- name: Switch reranking off, and remember for how many it was on
  oncall.runbooks.wp_chat_canary:
    url: http://localhost:8080
    enabled: false
    memory: /var/lib/wp-chat-canary.json

- name: Switch it on again for as many
  oncall.runbooks.wp_chat_canary:
    url: http://localhost:8080
    enabled: true
    memory: /var/lib/wp-chat-canary.json

- name: Rerank for a quarter of the users, where no emergency stop says otherwise
  oncall.runbooks.wp_chat_canary:
    url: http://localhost:8080
    rollout: 0.25

- name: Stop it for everybody
  oncall.runbooks.wp_chat_canary:
    url: http://localhost:8080
    emergency_stop: true
    updated_by: on call
"""

RETURN = r"""
before:
  description: The canary as it was, of the first worker that answered otherwise than wanted, or of the first.
  type: dict
  returned: where wp_chat has told it
  contains: &canary
    enabled:
      description: Whether the canary is on.
      type: bool
      sample: true
    rollout:
      description: For which share of the users.
      type: float
      sample: 0.25
    emergency_stop:
      description: Whether it is stopped for everybody.
      type: bool
      sample: false
after:
  description: The canary as it is now, or would be in check mode.
  type: dict
  returned: where wp_chat has told it
  contains: *canary
posts:
  description: How many requests that change something were sent.
  type: int
  returned: always
  sample: 1
states:
  description: What different answers there were since the last of them; each is at least one worker.
  type: list
  elements: dict
  returned: always
  contains: *canary
remembered:
  description: The rollout that was written down before it was lost, or was read there. Null where neither was needed.
  type: float
  returned: always
  sample: 0.25
"""

import os
import re
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import http_client, procfs, wp_chat_canary
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused


class _Module(AnsibleModule):
    """Hides a user and a password in `url` before anything is told, so also where an argument is refused."""

    def _load_params(self) -> None:
        super()._load_params()
        found = re.search(r"(?<=//)[^/?#]*@", str(self.params.get("url")))
        if found:
            self.no_log_values.add(found[0])


def _told(ensure: wp_chat_canary.Ensure) -> dict[str, t.Any]:
    told: dict[str, t.Any] = {
        "changed": ensure.changed,
        "posts": ensure.posts,
        "states": ensure.states,
        "remembered": ensure.remembered,
    }
    if ensure.before is None:
        return told
    after = ensure.after or ensure.before
    return {**told, "before": ensure.before, "after": after, "diff": {"before": ensure.before, "after": after}}


def main() -> None:
    module = _Module(
        argument_spec={
            "url": {"type": "str", "required": True},
            "enabled": {"type": "bool"},
            "rollout": {"type": "float"},
            "emergency_stop": {"type": "bool"},
            "memory": {"type": "path"},
            "updated_by": {"type": "str"},
            "reads": {"type": "int", "default": 25},
            "attempts": {"type": "int", "default": 25},
            "timeout": {"type": "float", "default": 10.0},
            "validate_certs": {"type": "bool", "default": True},
            "ca_path": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = dict(module.params)
    given["updated_by"] = given["updated_by"] or os.environ.get("SUDO_USER") or procfs.user(os.geteuid())
    options = wp_chat_canary.Options(**given)
    # What is returned tells the arguments too.
    module.params["url"] = http_client.without_credentials(options.url)
    ensure = wp_chat_canary.Ensure(options)
    try:
        options.validate()
        ensure.run(module.check_mode)
    except ValueError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    except Refused as error:
        module.fail_json(msg=str(error), **_told(ensure))
    module.exit_json(**_told(ensure))


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: environment_setting
short_description: Change single settings in an environment file, and put them back
version_added: "0.2.0"
description:
  - Changes settings in a file that systemd (C(EnvironmentFile=)), C(uvicorn --env-file) or pydantic reads the
    environment of a service from. Values are quoted so that systemd and dotenv read the same.
  - Everything else in the file stays byte by byte, comments and line ends included. The last assignment of a name is
    replaced where it stands, and a new one comes at the end.
  - The file is replaced in one step and keeps its owner, group and mode; a new one gets V(0600). Of a symbolic link the
    file behind it is replaced.
  - A service reads the file when it starts. This module restarts nothing.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: It shows the changed settings only, without secrets.
options:
  path:
    description: The file. Its folder has to exist.
    type: path
    required: true
  settings:
    description:
      - The values by name. V(null) removes every assignment of a name, and an empty text sets it to nothing.
      - A value whose name says that it is a secret, such as C(ADMIN_API_KEY), is neither returned nor logged; for other
        secrets there is O(secrets).
    type: dict
    default: {}
  secrets:
    description:
      - The same for values that are secrets whatever their name is.
      - Ansible masks these values in everything that the module returns, so a short one makes the result hard to read.
    type: dict
    default: {}
  state:
    description:
      - V(present) sets the settings, V(restored) gives those that O(backup) tells of the values that they had before.
      - V(restored) leaves what others have changed in the file meanwhile, and refuses where it is one of these
        settings. A file in which nobody has changed anything becomes what it was byte by byte, and goes when there was
        none.
    type: str
    choices: [present, restored]
    default: present
  backup:
    description:
      - A folder for a copy of the file as it was before the first change, with C(manifest.json), which tells the
        previous values. It is made for its owner only, and holds the secrets of the file.
      - A second run with the same folder keeps what the first has noted, and adds the settings that are new.
      - Needed for O(state=restored).
    type: path
"""

EXAMPLES = r"""
- name: Search fewer candidates
  oncall.runbooks.environment_setting:
    path: /etc/vritti/vritti.env
    settings: {SEARCH_DEFAULT_K: 5}
    backup: /var/lib/vritti-before

- name: Give Vritti another key, and let it require one
  oncall.runbooks.environment_setting:
    path: /etc/vritti/vritti.env
    settings: {SERVICE_REQUIRE_LLM_REFLECTION: true}
    secrets: {LLM_OPENROUTER_API_KEY: "{{ vritti_llm_api_key }}"}

- name: Put back what was there before
  oncall.runbooks.environment_setting:
    path: /etc/vritti/vritti.env
    state: restored
    backup: /var/lib/vritti-before
"""

RETURN = r"""
path:
  description: The file, behind all links.
  type: str
  returned: success
before:
  description:
    - The settings by name as they were, those that did not change included, as they may be shown to everybody.
    - V((not set\)) and V((empty\)) are what they say, and V((a secret\)) stands for every secret.
  type: dict
  returned: success
  sample: {SEARCH_DEFAULT_K: "10", LLM_OPENROUTER_API_KEY: (a secret)}
after:
  description: The same as they are now, or would be in check mode.
  type: dict
  returned: success
  sample: {SEARCH_DEFAULT_K: "5", LLM_OPENROUTER_API_KEY: (empty)}
backup:
  description: The folder with the copy, or V(null) where there is none because nothing was changed.
  type: str
  returned: success
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import environment_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused


def _changes(options: t.Mapping[str, t.Any]) -> dict[str, str | None]:
    """What is wanted of every setting, as text."""
    settings, secrets = options["settings"], options["secrets"]
    both = sorted(set(settings) & set(secrets))
    if both:
        raise Refused(f"{', '.join(both)} stands in settings and in secrets; leave it in one of them.")
    if options["state"] == "restored":
        if settings or secrets:
            raise Refused("state=restored takes its settings from the backup; leave out settings and secrets.")
        return {}
    if not settings and not secrets:
        raise Refused("settings and secrets are both empty; name what is to be set.")
    try:
        return {name: environment_files.as_text(name, value) for name, value in {**settings, **secrets}.items()}
    except ValueError as error:
        raise Refused(f"Nothing was changed: {error}.") from None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "settings": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "backup": {"type": "path"},
        },
        required_if=[("state", "restored", ("backup",))],
        supports_check_mode=True,
        # The system's log would get the settings as they are.
        no_log=True,
    )
    options = dict(module.params)
    # What is returned tells the arguments too.
    module.params["settings"] = {
        name: environment_files.shown(name, str(value)) if value else value
        for name, value in options["settings"].items()
    }
    try:
        changes = _changes(options)
        if options["state"] == "present":
            result = environment_files.present(
                options["path"], changes, options["secrets"], options["backup"], module.check_mode
            )
        else:
            result = environment_files.restored(options["path"], options["backup"], module.check_mode)
    except Refused as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

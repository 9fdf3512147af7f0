#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vritti_api_key
short_description: Give a customer of Vritti a new API key, and revoke the old ones
version_added: "0.5.0"
description:
  - Makes a new key, writes it into a file that only its owner can read, and then revokes the old ones.
  - The key is in that file and nowhere else. It is not returned, and stands in no log, no diff and no argument list.
    Copying the file with M(ansible.builtin.fetch), or showing it, would put the key where it must not be.
  - The file is on the target and is not encrypted. A vault needs a password there, or the key in a result.
  - Vritti tells a key once, when it is made. A run that is cut short between that answer and the file loses the key; a
    second run with the same O(receipt) sees a key of its name that is in no file, revokes it, and makes another. The
    old keys are revoked only once the new one is in the file, and the file on the disk.
  - Asks for C(POST .../rotate-key) first, as the runbooks have it. No version of Vritti has that route, and where it is
    answered 404 a key is made and the old ones are deleted one by one.
  - Vritti revokes a key by its id alone, whosever it is. So the ids are taken from its database, and only keys of the
    customer are revoked. Where the new key is not in that database, it is another one, and nothing is revoked.
  - A revoked key cannot be made valid again.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: Looks, and makes neither a key nor a file.
  diff_mode:
    support: full
    details: It shows the ids of the active keys.
options:
  state:
    description: V(rotated) makes a key and revokes old ones.
    type: str
    choices: [rotated]
    default: rotated
  url:
    description: Where Vritti is, such as V(http://localhost:8000).
    type: str
    required: true
  admin_api_key:
    description:
      - Vritti's admin key. It is sent as C(X-Admin-API-Key) and as C(X-Admin-Key), as versions differ.
      - Vritti discards a key that contains C(admin), C(test), C(dummy), C(example) or C(your-api-key-here), and then
        answers 401 that none is configured.
    type: str
    required: true
  customer:
    description: The customer's id. It may be suspended.
    type: str
    required: true
  revoke:
    description:
      - The ids of the keys to revoke, or V(all) of the customer's that are active when it begins.
      - The ids are in the database's table C(api_keys). At later versions of Vritti an id is the first half of its key,
        between C(em_live_) and the second underscore, and no secret.
    type: list
    elements: str
    default: [all]
  name:
    description: The new key's name in Vritti, 91 characters at most. Eight digits that tell rotations apart follow it.
    type: str
    default: rotated
  expires_in_days:
    description: The days, 1 to 365, after which the new key ends. Without it, it does not end.
    type: int
  handover:
    description:
      - A folder on the target for the file with the new key. It is made with the mode 0700. One that is there has to be
        the user's own, and closed to everybody else.
      - The file is named after the customer and has the mode 0600. It is JSON, with the key as C(api_key). Delete it
        once the customer has the key.
    type: path
    required: true
  receipt:
    description:
      - A file on the target in which the rotation is remembered, without the key. Its folder is made.
      - With the same receipt nothing is done a second time, and what was cut short is finished. Another rotation needs
        another one.
    type: path
    required: true
  customers_db:
    description: Vritti's database on the target.
    type: path
    required: true
  timeout:
    description: The seconds that one request may take, and that the database may be locked by others.
    type: float
    default: 30.0
notes:
  - It needs root, or to be the user of Vritti, to read O(customers_db).
  - A key that a worker of Vritti has checked within the last 300 s works until that time is over, or until Vritti is
    restarted, which M(oncall.runbooks.service_restart) does.
seealso:
  - module: oncall.runbooks.vritti_customer
  - module: oncall.runbooks.service_restart
"""

EXAMPLES = r"""
- name: Replace all keys of a customer
  oncall.runbooks.vritti_api_key:
    url: http://localhost:8000
    admin_api_key: "{{ vritti_admin_api_key }}"
    customer: acme
    handover: /root/new-keys
    receipt: /var/lib/vritti-receipts/acme-2026-11-27.json
    customers_db: /srv/vritti/data/customers.db

- name: Replace one key, by another that ends after 90 days
  oncall.runbooks.vritti_api_key:
    url: http://localhost:8000
    admin_api_key: "{{ vritti_admin_api_key }}"
    customer: acme
    revoke: [0f3c6f0d8f6c4f3b9d1a2b3c4d5e6f70]
    expires_in_days: 90
    handover: /root/new-keys
    receipt: /var/lib/vritti-receipts/acme-ci.json
    customers_db: /srv/vritti/data/customers.db
"""

RETURN = r"""
key_id:
  description: The new key's id; null where none was made yet.
  type: str
  returned: always
  sample: 5d1b0c6e7f8a49b0a1b2c3d4e5f60718
handover_file:
  description: The file with the new key, on the target; null where there is none yet.
  type: str
  returned: always
  sample: /root/new-keys/acme-3f9c1a2b.json
revoked:
  description: The ids of the keys that this run has revoked, or would have in check mode.
  type: list
  elements: str
  returned: always
  sample: [0f3c6f0d8f6c4f3b9d1a2b3c4d5e6f70]
kept:
  description: The ids of the customer's other keys that are active still.
  type: list
  elements: str
  returned: always
  sample: []
notes:
  description: What else there is to know, a sentence each.
  type: list
  elements: str
  returned: always
  sample:
    - A key that a worker of Vritti has checked within the last 300 s works until that time is over, or until Vritti is
      restarted.
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import http_client, vritti_api_keys
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused


def _told(rotation: vritti_api_keys.Rotation) -> dict[str, t.Any]:
    customer = rotation.options.customer
    return {
        "changed": rotation.changed,
        "key_id": rotation.key_id,
        "handover_file": rotation.handover_file,
        "revoked": rotation.revoked,
        "kept": rotation.kept,
        "notes": rotation.notes,
        "diff": {
            "before_header": f"active keys of {customer} (before)",
            "after_header": f"active keys of {customer} (after)",
            "before": {"active": rotation.active_before},
            "after": {"active": rotation.active_after},
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["rotated"], "default": "rotated"},
            "url": {"type": "str", "required": True},
            "admin_api_key": {"type": "str", "required": True, "no_log": True},
            "customer": {"type": "str", "required": True},
            "revoke": {"type": "list", "elements": "str", "default": [vritti_api_keys.ALL]},
            "name": {"type": "str", "default": "rotated"},
            "expires_in_days": {"type": "int"},
            "handover": {"type": "path", "required": True},
            "receipt": {"type": "path", "required": True},
            "customers_db": {"type": "path", "required": True},
            "timeout": {"type": "float", "default": 30.0},
        },
        supports_check_mode=True,
    )
    given = {name: value for name, value in module.params.items() if name != "state"}
    options = vritti_api_keys.Options(**{**given, "revoke": tuple(given["revoke"])})
    # What is returned tells the arguments too.
    module.params["url"] = http_client.without_credentials(options.url)
    rotation = vritti_api_keys.Rotation(options)
    try:
        options.validate()
        rotation.run(module.check_mode)
    except ValueError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    except Refused as error:
        module.fail_json(msg=str(error), **_told(rotation))
    module.exit_json(**_told(rotation))


if __name__ == "__main__":
    main()

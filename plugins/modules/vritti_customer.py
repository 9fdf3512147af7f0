#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vritti_customer
short_description: Change a customer of Vritti, reset what it has used, and take that back
version_added: "0.4.0"
description:
  - Looks at the customer first and changes only what differs. Without anything to change it is a look.
  - Nothing is sent twice. Where Vritti does not answer, whether it was done is not known, and the module says so; a
    second run looks first.
  - Vritti does not enforce limits. A customer over its limit is served, and nobody is answered 403 for it.
  - Vritti's API resets what was used in a month and cannot set it. With O(receipt) it is written down before a reset,
    and O(restore_usage) adds it again in Vritti's database, in one transaction which also writes a line into
    C(audit_log) that names the reset. However often it is run, or cut short, a reset is undone once.
  - Credits that are used in the moment between the look and the reset are in neither number.
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
    details: It shows the tier, the limit, the status and the credits used, those that differ.
options:
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
    description: The customer's id.
    type: str
    required: true
  subscription_tier:
    description:
      - The tier that it is to have.
      - Changing the tier does not change the limit in Vritti. So without O(monthly_credit_limit) the limit becomes the
        one that a new customer of that tier gets, 1000, 10000, 100000 or 999999999, also where it was another one.
    type: str
    choices: [free, starter, pro, enterprise]
  monthly_credit_limit:
    description: The credits that it may use in a month.
    type: int
  status:
    description:
      - The status that it is to have.
      - An API key that was used within the last 300 s works until that time is over or Vritti is restarted, for every
        worker of Vritti remembers the keys that it has checked. Then it is answered 401.
    type: str
    choices: [active, suspended, deleted]
  reset_usage:
    description: Set the credits used to 0. Where it is 0, nothing is sent.
    type: bool
    default: false
  restore_usage:
    description:
      - Add the credits to what is used that the reset with this O(receipt) took away.
      - Nothing is added where that reset was not carried out, where it was undone before, or where the usage was reset
        again since.
      - Refused where the database is not sound, the customer is gone, or Vritti itself says that more is used than the
        database, which then is not the one that it uses.
    type: bool
    default: false
  receipt:
    description:
      - A file on the target. With O(reset_usage), what was used is written to it before the reset; its folder is made.
      - A second reset with the same receipt is none, where the first was carried out.
      - Needed for O(restore_usage).
    type: path
  customers_db:
    description: Vritti's database on the target. Needed with O(receipt). Where it is given and has the customer
      otherwise than Vritti says, nothing is changed.
    type: path
  timeout:
    description: The seconds that one request may take, and that the database may be locked by others.
    type: float
    default: 30.0
notes:
  - It needs root, or to be the user of Vritti, where it reads or writes O(customers_db).
seealso:
  - module: oncall.runbooks.sqlite_info
  - module: oncall.runbooks.vritti_smoke_test
"""

EXAMPLES = r"""
- name: Give a customer the next tier, with its limit
  oncall.runbooks.vritti_customer:
    url: http://localhost:8000
    admin_api_key: "{{ vritti_admin_api_key }}"
    customer: acme
    subscription_tier: pro

- name: Suspend a customer
  oncall.runbooks.vritti_customer:
    url: http://localhost:8000
    admin_api_key: "{{ vritti_admin_api_key }}"
    customer: acme
    status: suspended

- name: Reset what a customer has used, so that it can be undone
  oncall.runbooks.vritti_customer:
    url: http://localhost:8000
    admin_api_key: "{{ vritti_admin_api_key }}"
    customer: acme
    reset_usage: true
    receipt: /var/lib/vritti-receipts/acme.json
    customers_db: /srv/vritti/data/customers.db

- name: Undo that
  oncall.runbooks.vritti_customer:
    url: http://localhost:8000
    admin_api_key: "{{ vritti_admin_api_key }}"
    customer: acme
    restore_usage: true
    receipt: /var/lib/vritti-receipts/acme.json
    customers_db: /srv/vritti/data/customers.db
"""

RETURN = r"""
before:
  description: The customer as it was, as Vritti tells it.
  type: dict
  returned: where Vritti has told it
  sample:
    customer_id: acme
    organization_name: Acme
    email: ops@acme.example
    subscription_tier: free
    status: active
    monthly_credit_limit: 1000
    credits_used_current_month: 1012
    created_at: "2026-11-01T08:00:00+00:00"
after:
  description: The customer as it is now, or would be in check mode.
  type: dict
  returned: where Vritti has told it
  sample:
    customer_id: acme
    organization_name: Acme
    email: ops@acme.example
    subscription_tier: pro
    status: active
    monthly_credit_limit: 100000
    credits_used_current_month: 1012
    created_at: "2026-11-01T08:00:00+00:00"
notes:
  description: What else there is to know, a sentence each.
  type: list
  elements: str
  returned: where Vritti has told of the customer
  sample: ["The usage of acme was reset again later, after which these credits would not count."]
"""

import re
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import http_client, vritti_customers
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused

SHOWN = ("subscription_tier", "monthly_credit_limit", "status", vritti_customers.USED)


class _Module(AnsibleModule):
    """Hides a user and a password in `url` before anything is told, so also where an argument is refused."""

    def _load_params(self) -> None:
        super()._load_params()
        found = re.search(r"(?<=//)[^/?#]*@", str(self.params.get("url")))
        if found:
            self.no_log_values.add(found[0])


def _told(ensure: vritti_customers.Ensure) -> dict[str, t.Any]:
    before, after = ensure.before, ensure.after
    if before is None or after is None:
        return {"changed": ensure.changed}
    differ = [name for name in SHOWN if before[name] != after[name]]
    return {
        "changed": ensure.changed,
        "before": before,
        "after": after,
        "notes": ensure.notes,
        "diff": {
            "before_header": f"{ensure.options.customer} (before)",
            "after_header": f"{ensure.options.customer} (after)",
            "before": {name: before[name] for name in differ},
            "after": {name: after[name] for name in differ},
        },
    }


def main() -> None:
    module = _Module(
        argument_spec={
            "url": {"type": "str", "required": True},
            "admin_api_key": {"type": "str", "required": True, "no_log": True},
            "customer": {"type": "str", "required": True},
            "subscription_tier": {"type": "str", "choices": list(vritti_customers.LIMITS)},
            "monthly_credit_limit": {"type": "int"},
            "status": {"type": "str", "choices": list(vritti_customers.STATUSES)},
            "reset_usage": {"type": "bool", "default": False},
            "restore_usage": {"type": "bool", "default": False},
            "receipt": {"type": "path"},
            "customers_db": {"type": "path"},
            "timeout": {"type": "float", "default": 30.0},
        },
        required_if=[("restore_usage", True, ("receipt",))],
        required_by={"receipt": ("customers_db",)},
        mutually_exclusive=[("reset_usage", "restore_usage")],
        supports_check_mode=True,
    )
    options = vritti_customers.Options(**module.params)
    # What is returned tells the arguments too.
    module.params["url"] = http_client.without_credentials(options.url)
    ensure = vritti_customers.Ensure(options)
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

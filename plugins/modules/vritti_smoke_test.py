#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vritti_smoke_test
short_description: Capture an episode with Vritti, search for it, and clean up
version_added: "0.2.0"
description:
  - Proves that Vritti works from end to end, for after a recovery. Capturing has to answer 201 and searching 200.
    Whether the search finds the episode is told and not judged, as Vritti filters results.
  - Nothing is sent to Vritti while one of the KyroDB instances does not answer its own C(Health), or cannot write.
    Every failed call counts towards the five after which Vritti's circuit breaker opens for good. For the same reason
    no request is repeated.
  - Afterwards the episode is deleted from KyroDB, a key that was made is revoked, and a customer that was made gets the
    status V(deleted). What could not be cleaned up is told in RV(left), and the module fails.
  - Vritti has no routes to remove a customer, a revoked key, or a row of its index of episodes. RV(notes) tells what
    stays.
  - It is not idempotent. Every run captures an episode of its own.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - grpcio and protobuf on the target
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: Asks the instances for their health and Vritti whether it lives, refuses what it would refuse, and sends no
      more.
  diff_mode:
    support: none
options:
  url:
    description: Where Vritti is, such as V(http://localhost:8000).
    type: str
    required: true
  kyrodb_text:
    description: Where Vritti's text instance of KyroDB is.
    type: dict
    required: true
    suboptions: &instance
      address:
        description: Host and gRPC port.
        type: str
        required: true
      tls:
        description: Whether the instance speaks TLS.
        type: bool
        default: false
      ca_path:
        description: The certificate authority that signed the instance's certificate, as a PEM file on the target.
          Without it, the system's.
        type: path
      cert_path:
        description: The client's certificate, as a PEM file on the target, where the instance asks for one.
        type: path
      key_path:
        description: The key of the client's certificate, as a PEM file on the target.
        type: path
      server_name:
        description: The name to verify in the certificate, where it is not the host in the address.
        type: str
      service:
        description: The gRPC service, where a deployment has another one.
        type: str
        default: kyrodb.v1.KyroDBService
      http_url:
        description: The HTTP observability port. It is not asked.
        type: str
  kyrodb_image:
    description: Where Vritti's image instance of KyroDB is.
    type: dict
    required: true
    suboptions: *instance
  kyrodb_api_key:
    description: The API key of both instances, where KyroDB's authentication is on.
    type: str
  customer:
    description:
      - The id of the customer to capture for, who pays for a capture and a search.
      - Without it the customer V(oncall-smoke-<8 hex digits>) is made, with O(admin_api_key).
    type: str
    default: ""
  api_key:
    description:
      - An API key of O(customer).
      - Without it a key is made with O(admin_api_key), valid for a day, and revoked at the end.
    type: str
  admin_api_key:
    description: Vritti's admin key. It is sent as C(X-Admin-API-Key) and as C(X-Admin-Key), as versions differ.
    type: str
  timeout:
    description: The seconds that one request may take.
    type: float
    default: 30.0
  reflection_seconds:
    description:
      - The seconds to wait for the reflection that Vritti may make in the background, before the episode is deleted. A
        reflection without its episode would go to the dead letter queue.
      - Only versions after v0.1.0 make one, where they have a language model.
    type: float
    default: 20.0
seealso:
  - module: oncall.runbooks.kyrodb_health
"""

EXAMPLES = r"""
- name: Capture and search with a customer made for it
  oncall.runbooks.vritti_smoke_test:
    url: http://localhost:8000
    kyrodb_text: {address: "localhost:50051"}
    kyrodb_image: {address: "localhost:50052"}
    admin_api_key: "{{ vritti_admin_api_key }}"

- name: Capture and search with a customer that exists
  oncall.runbooks.vritti_smoke_test:
    url: http://localhost:8000
    kyrodb_text: {address: "localhost:50051"}
    kyrodb_image: {address: "localhost:50052"}
    customer: on-call-team
    api_key: "{{ on_call_team_api_key }}"
"""

RETURN = r"""
msg:
  description: What was seen, in a sentence or two.
  type: str
  returned: always
  sample: Vritti captured episode 257 in 0.041 s and answered a search in 0.018 s, which found it.
customer:
  description: The customer that the episode was captured for.
  type: str
  returned: unless it was refused
  sample: oncall-smoke-1b9d0e7a
captured:
  description: The capture, or V(null) where it did not come that far.
  type: dict
  returned: unless it was refused
  contains:
    status:
      description: The HTTP status, or V(null) where there was no answer.
      type: int
      sample: 201
    episode_id:
      description: The episode. Ids of v0.1.0 are larger than 2^53, so programs that calculate with floats round them.
      type: int
      sample: 257
    seconds:
      description: The seconds that it took.
      type: float
      sample: 0.041
searched:
  description: The search, or V(null) where it did not come that far.
  type: dict
  returned: unless it was refused
  contains:
    status:
      description: The HTTP status, or V(null) where there was no answer.
      type: int
      sample: 200
    found:
      description: Whether the episode was among the results, or V(null) where there were none to look at.
      type: bool
      sample: true
    seconds:
      description: The seconds that it took.
      type: float
      sample: 0.018
cleaned:
  description: What was cleaned up.
  type: list
  elements: str
  returned: unless it was refused
  sample: ["deleted episode 257 from KyroDB's text instance, namespace oncall-smoke-1b9d0e7a:failures"]
left:
  description: What should have been cleaned up and was not, a sentence each. The module fails where there is any.
  type: list
  elements: str
  returned: unless it was refused
  sample: []
notes:
  description: What stays because Vritti cannot remove it, a sentence each.
  type: list
  elements: str
  returned: unless it was refused
  sample: ["The row of oncall-smoke-1b9d0e7a stays in Vritti's customers: no route removes one."]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb, smoke_test
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused


def _settings(options: t.Mapping[str, t.Any]) -> smoke_test.Settings:
    settings = smoke_test.Settings(
        url=options["url"],
        text=kyrodb.endpoint_of(options["kyrodb_text"], options["kyrodb_api_key"]),
        image=kyrodb.endpoint_of(options["kyrodb_image"], options["kyrodb_api_key"]),
        customer=options["customer"],
        api_key=options["api_key"] or "",
        admin_api_key=options["admin_api_key"] or "",
        timeout=options["timeout"],
        reflection_seconds=options["reflection_seconds"],
    )
    settings.validate()
    return settings


def main() -> None:
    connection = {"type": "dict", "required": True, "options": kyrodb.CONNECTION_SPEC}
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "kyrodb_text": connection,
            "kyrodb_image": connection,
            "kyrodb_api_key": {"type": "str", "no_log": True},
            "customer": {"type": "str", "default": ""},
            "api_key": {"type": "str", "no_log": True},
            "admin_api_key": {"type": "str", "no_log": True},
            "timeout": {"type": "float", "default": 30.0},
            "reflection_seconds": {"type": "float", "default": 20.0},
        },
        supports_check_mode=True,
    )
    try:
        test = smoke_test.SmokeTest(_settings(module.params))
        test.check()
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    except Refused as error:
        module.fail_json(msg=str(error))
    if module.check_mode:
        module.exit_json(changed=True, msg=test.plan(), customer=test.settings.customer)
    result = test.run()
    problem = result.pop("problem")
    if problem or result["left"]:
        module.fail_json(msg=" ".join([*([problem] if problem else []), *result["left"]]), **result)
    module.exit_json(msg=test.summary(), **result)


if __name__ == "__main__":
    main()

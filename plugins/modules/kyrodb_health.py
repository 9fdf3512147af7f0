#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kyrodb_health
short_description: Ask a KyroDB instance whether it is healthy
version_added: "0.1.0"
description:
  - Calls C(Health) and C(Metrics) of C(kyrodb.v1.KyroDBService) over gRPC and returns what the instance says of itself.
  - It reports and does not judge. A dead port, a TLS error, a refused key and a timeout are results, told apart in
    RV(error.kind);
    the module fails only on bad arguments.
  - KyroDB serves neither gRPC reflection nor C(grpc.health.v1), so tools that rely on them cannot ask it. The
    messages are built from
    their field numbers; no generated stub is needed.
  - Where C(grpcio) is missing on the target, the instance's HTTP observability port is asked instead. RV(transport)
    and RV(note) say so.
  - KyroDB calls itself degraded or unhealthy when its own service levels are missed. A cold cache with one other
    breach is enough for
    C(unhealthy), which is no proof of failure.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - grpcio and protobuf on the target, for gRPC
extends_documentation_fragment:
  - oncall.runbooks.kyrodb
  - oncall.runbooks.attributes
  - oncall.runbooks.attributes.info
options:
  api_key:
    description: The API key, where KyroDB's authentication is on. It is sent as the metadata C(x-api-key).
    type: str
  component:
    description: Ask for one component only. Empty asks for all.
    type: str
    choices: ["", cache, hot_tier, cold_tier, wal]
    default: ""
  samples:
    description: The number of V(Health) calls that the latency is the median of, between 1 and 100.
    type: int
    default: 5
  timeout:
    description: The seconds that everything together may take.
    type: float
    default: 5.0
seealso:
  - module: oncall.runbooks.diagnose
"""

EXAMPLES = r"""
- name: Ask the text instance
  oncall.runbooks.kyrodb_health:
    address: localhost:50051
  register: text_instance

- name: Stop when it does not say that it is healthy
  ansible.builtin.assert:
    that: text_instance.is_healthy
    fail_msg: "{{ text_instance.error.message if text_instance.error else text_instance.components }}"

- name: Ask an instance behind TLS that wants a key
  oncall.runbooks.kyrodb_health:
    address: kyrodb.example.com:50051
    tls: true
    ca_path: /etc/kyrodb/ca.pem
    api_key: "{{ kyrodb_api_key }}"
"""

RETURN = r"""
is_healthy:
  description: Whether the instance answered and called itself healthy.
  type: bool
  returned: always
status:
  description: What the instance calls itself (V(healthy), V(degraded), V(unhealthy) or V(unknown)), or V(no answer).
  type: str
  returned: always
  sample: healthy
components:
  description: The state of each component, in KyroDB's words.
  type: dict
  returned: always
  sample: {cache: healthy, cold_tier: healthy, hot_tier: healthy, wal: healthy}
latency_ms:
  description: The median round trip of the V(Health) calls in milliseconds, without connecting.
  type: float
  returned: when it answered
  sample: 0.9
version:
  description: KyroDB's version.
  type: str
  returned: when it answered over gRPC
  sample: 0.1.0
git_commit:
  description: The commit that KyroDB was built from.
  type: str
  returned: when it answered over gRPC
  sample: 23143d4
uptime_seconds:
  description: The seconds since the instance started.
  type: int
  returned: when it answered
  sample: 86400
metrics:
  description: What C(Metrics) tells, such as C(p99_latency_ms), C(total_queries) and C(memory_usage_bytes).
  type: dict
  returned: when it answered
transport:
  description: V(grpc), or V(http) where the observability port stood in.
  type: str
  returned: when it answered
  sample: grpc
note:
  description: What limits this answer, in one sentence.
  type: str
  returned: when there is such a limit
error:
  description: Why there is no answer.
  type: dict
  returned: when it did not answer
  contains:
    kind:
      description: V(connection), V(timeout), V(tls), V(authentication), V(protocol), V(name) or V(error).
      type: str
      sample: tls
    message:
      description: The sentence for a person.
      type: str
      sample: KyroDB at localhost:50051 takes no connection (Connection refused).
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import check_url


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **kyrodb.CONNECTION_SPEC,
            "api_key": {"type": "str", "no_log": True},
            "component": {"type": "str", "choices": ["", "cache", "hot_tier", "cold_tier", "wal"], "default": ""},
            "samples": {"type": "int", "default": 5},
            "timeout": {"type": "float", "default": 5.0},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        kyrodb.parse_address(options["address"])
        if options["http_url"]:
            check_url(options["http_url"])
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    if not 1 <= options["samples"] <= 100:
        module.fail_json(msg=f"samples is {options['samples']}; it goes from 1 to 100.")
    if options["timeout"] <= 0:
        module.fail_json(msg=f"timeout is {options['timeout']}; it is a number of seconds above 0.")
    endpoint = kyrodb.Endpoint(api_key=options["api_key"], **{name: options[name] for name in kyrodb.CONNECTION_SPEC})
    try:
        seen = kyrodb.ask(endpoint, options["timeout"], options["samples"], component=options["component"])
    except NoAnswer as error:
        module.exit_json(
            changed=False,
            is_healthy=False,
            status="no answer",
            components={},
            error={"kind": error.kind, "message": str(error)},
        )
    module.exit_json(changed=False, is_healthy=seen["status"] == "healthy", **seen)


if __name__ == "__main__":
    main()

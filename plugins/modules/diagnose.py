#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnose
short_description: Run a runbook's checks on a host and say what is wrong
version_added: "0.1.0"
description:
  - Looks at a service with read-only probes, all at once and in one remote call, and judges what they saw against
    the checks' thresholds.
  - The probes are V(http), V(prometheus), V(kyrodb), V(log), V(process), V(host), V(git), V(service), V(setting) and
    V(remediation). See the collection's guide to writing a runbook for the keys of each.
  - Every check is validated before anything connects. One that is wrong becomes a finding of its own with the
    reason, the others are still
    answered, and the task fails at the end.
  - A host that cannot be reached, or that has no Python or no space for a payload, gets a diagnosis too, with the
    status V(unknown).
  - It changes nothing on the host. The service's access log and request counters see its requests.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - jmespath on the controller, for checks that look into JSON
  - grpcio and protobuf on the target, for V(kyrodb) over gRPC
extends_documentation_fragment:
  - oncall.runbooks.attributes
  - oncall.runbooks.attributes.info
options:
  runbook:
    description: The runbook's name. It names the report's folder.
    type: str
    required: true
  service:
    description: The service's name, as it stands in the diagnosis.
    type: str
    required: true
  checks:
    description: The checks, each a mapping with C(id), C(title), C(sources), C(thresholds) and more.
    type: list
    elements: dict
    default: []
  file:
    description:
      - A YAML file on the controller, or a folder with C(<service>.yml), with C(<runbook>_checks), and if there are any
        C(<runbook>_causes), to add to O(checks) and O(causes), and C(<runbook>_steps).
      - Its templates are evaluated check by check, so that an undefined variable costs one check and not the diagnosis.
    type: path
  causes:
    description:
      - The sentences for the summary. The first cause whose C(breach) checks are all in breach and whose C(ok)
        checks are all ok is used.
      - C($id) in its C(summary) stands for what that check observed.
    type: list
    elements: dict
    default: []
  severities:
    description:
      - What each of the service's labels means, as V(critical), V(high), V(medium) or V(low).
      - Without it the variable C(<service>_severities), where there is one; likewise O(escalation) and O(contacts).
    type: dict
    default:
      P1: critical
      P2: high
      P3: medium
      P4: low
      critical: critical
      high: high
      medium: medium
      low: low
  sample_seconds:
    description: The seconds between the two scrapes that rates and quantiles come from. V(0) takes one scrape and
      counts since process start.
    type: float
    default: 5.0
  timeout:
    description: The seconds that one look at one source may take.
    type: float
    default: 5.0
  fresh_seconds:
    description: How long ago a step ended whose effect is looked for. Sources with C(fresh) count only what was logged
      since. V(0) where there was none.
    type: float
    default: 0.0
  report_dir:
    description: A folder on the controller. The diagnosis is written to C(<runbook>/<host>.json) below it, and the
      one before is compared with.
    type: str
  fail_on:
    description: The levels from which on RV(reached) is true. V(unknown) stands for any check without an answer.
    type: list
    elements: str
    choices: [critical, high, medium, low, unknown]
    default: []
  steps:
    description: Only these of the runbook's steps, or steps that no finding suggests. An unknown one is an error.
    type: list
    elements: str
    default: []
  frozen:
    description: What an approved plan lists, as its report has it under C(runbook_frozen).
    type: dict
    default: {}
  state_dir:
    description: The folder on the host where remediations keep their records. With it, one that was cut short is a
      finding.
    type: str
  rollback_id:
    description: The record that is to be undone, which may be an old one.
    type: str
  own_record:
    description: The record of the remediation that this look is part of.
    type: str
  escalation:
    description:
      - What each label asks of people, with C(respond_within) in seconds and C(path), who is told one after the other.
      - With C(page) a breach that lasts longer than that asks for the on-call engineer to be paged.
    type: dict
    default: {}
  contacts:
    description: Where the people on those paths are found, such as a schedule or a channel. What is empty is left out.
    type: dict
    default: {}
  record_dir:
    description: A folder on the controller. A line about the diagnosis is appended to C(timeline.jsonl) in it.
    type: str
  record_key_file:
    description: A file with the key that chains the timeline's lines, in place of C(ONCALL_RUNBOOKS_RECORD_KEY) in the
      environment.
    type: str
  secrets:
    description: The values of the secrets that checks name. The action fills it from the variables of those names;
      leave it alone.
    type: dict
    default: {}
seealso:
  - module: oncall.runbooks.kyrodb_health
"""

EXAMPLES = r"""
- name: Ask whether Vritti is alive, and how long it takes
  oncall.runbooks.diagnose:
    runbook: my_first
    service: vritti
    checks:
      - id: alive
        title: Liveness
        sources:
          - {probe: http, url: "http://localhost:8000/health/liveness"}
        thresholds:
          - {above: 299, label: P1}
        on_no_data: breach
      - id: request_p99
        title: P99 request latency
        needs: [alive]
        unit: s
        min_samples: 20
        sources:
          - probe: prometheus
            url: http://localhost:8000/metrics
            histogram: episodic_memory_http_request_duration_seconds
            quantile: 0.99
          - {probe: http, url: "http://localhost:8000/health/liveness", value: total, samples: 20}
        thresholds:
          - {above: 0.1, label: P2}
          - {above: 0.05, label: P3}
  register: result

- name: Show what is wrong
  ansible.builtin.debug:
    msg: "{{ result.diagnosis | oncall.runbooks.diagnosis_text }}"
"""

RETURN = r"""
diagnosis:
  description: What is wrong with this host.
  type: dict
  returned: always
  contains:
    schema:
      description: The schema of this mapping.
      type: str
      sample: oncall.runbooks/diagnosis/1
    runbook:
      description: The runbook's name.
      type: str
    service:
      description: The service's name.
      type: str
    host:
      description: The inventory's name of the host.
      type: str
    started_at:
      description: When the diagnosis began, in UTC.
      type: str
      sample: "2026-11-23T03:00:00Z"
    duration_ms:
      description: How long it took.
      type: float
    status:
      description: V(critical), V(degraded), V(unknown) or V(healthy).
      type: str
    severity:
      description: The worst breach's severity, or null.
      type: str
    label:
      description: The worst breach's label in the service's own words, or null.
      type: str
      sample: P2
    escalation:
      description:
        - What the worst breach asks of people, with C(label), C(respond_within) in seconds and C(path), in C(others)
          the same for the other labels of the findings, and the C(contacts).
        - Null without a breach that O(escalation) knows.
      type: dict
      sample:
        label: P1
        respond_within: 900
        path: [on-call, team lead, VP Engineering]
        others: []
        contacts: {Slack: "#vritti-incidents"}
    summary:
      description: One sentence that names the cause.
      type: str
    line:
      description: What the output shows of the host on its one line, where the runbook says how (C(<runbook>_line)).
      type: str
      returned: where the runbook says so
    findings:
      description:
        - One for each check, with C(id), C(title), C(status) (V(ok), V(breach), V(unknown) or V(skipped)),
          C(severity), C(label), C(observed),
          C(unit), C(expected), C(source), C(evidence), C(next_step), C(reproduce), C(suggests), C(observed_at) and
          C(duration_ms).
      type: list
      elements: dict
    plan:
      description:
        - What would be done, with C(id), C(hosts) and C(steps), each with C(id), C(title), C(host), C(risk),
          C(reversible), C(because) and C(preview). Null when nothing is proposed, and of several hosts until the run's
          plan is made.
      type: dict
steps:
  description: The host's part of a plan, as RV(diagnosis.plan) has it.
  type: list
  elements: dict
  returned: always
records:
  description: The latest remediations of this runbook that the host remembers, the newest first.
  type: list
  elements: dict
  returned: always
shown:
  description: Whether the collection's own callback prints the diagnosis, so that no task needs to.
  type: bool
  returned: always
reached:
  description: Whether the host reached a level of O(fail_on), or something worse.
  type: bool
  returned: always
report:
  description: The file that the diagnosis was written to, or null.
  type: str
  returned: always
  sample: reports/high_latency/vritti-1.json
"""

import functools

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import ARGUMENT_SPEC
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.run_probes import run


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    options = module.params
    run_command = functools.partial(
        module.run_command,
        handle_exceptions=False,
        errors="surrogate_then_replace",
        environ_update={"LC_ALL": "C"},
    )
    context = Context(
        options["timeout"], options["sample_seconds"], options["secrets"], run_command, options["fresh_seconds"]
    )
    module.exit_json(changed=False, looks=run(options["checks"], context))


if __name__ == "__main__":
    main()

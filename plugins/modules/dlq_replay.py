#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dlq_replay
short_description: Store the reflections of Vritti's dead letter queue in KyroDB
version_added: "0.4.0"
description:
  - Vritti writes a reflection that it has generated and could not store into its dead letter queue, and never comes
    back to it. This stores them with their episodes in KyroDB's text instance. It takes the place of
    C(scripts/process_dead_letter_queue.py), C(scripts/retry_reflections.py) and C(POST /admin/dlq/retry), which
    Vritti's runbooks name and nobody has.
  - An entry is replayed when its episode is in KyroDB, belongs to the entry's customer and has no reflection. It gets
    the metadata C(reflection_*) as Vritti writes them, and the reflection in its C(episode_json), packed or plain as
    that was. The vector and all other metadata stay. What KyroDB holds then is read back and compared.
  - Where the server has no C(UpdateMetadata), the whole document is inserted again with its vector; what somebody
    else changes in the metadata between two calls is lost then.
  - The queue is only read. What was stored is seen in KyroDB, so a second run skips it, and a run that was cut off is
    gone on with by the next. Afterwards, M(oncall.runbooks.dlq_archive) takes RV(stored) out of the queue.
  - When KyroDB stops answering, the run ends, and RV(not_tried) says how many entries were left.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - grpcio and protobuf on the target
  - zstandard on the target, for an archive (C(.zst)) only
extends_documentation_fragment:
  - oncall.runbooks.kyrodb
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: Looks up every entry in KyroDB and stores nothing. RV(replayed) is what would be stored.
  diff_mode:
    support: none
options:
  path:
    description: The queue's file, or an archive of one (C(.zst)). A file that does not exist is an empty queue, because
      Vritti makes it with the first entry.
    type: path
    required: true
  rotated:
    description: Whether to replay the files beside it that Vritti has renamed to C(<name>.<YYYYmmdd_HHMMSS>.log) too,
      oldest first.
    type: bool
    default: true
  customer:
    description: Only this customer's entries. Without it, everybody's.
    type: str
  limit:
    description: The most entries that this run stores. What is skipped does not count, so that repeated runs get on.
      Without it, there is no limit.
    type: int
  api_key:
    description: The API key, where KyroDB's authentication is on. It is sent as the metadata C(x-api-key).
    type: str
  timeout:
    description: The seconds that each call may take.
    type: float
    default: 30.0
  tolerate:
    description: Whether entries that cannot be replayed leave the task successful. RV(failed) is 0 then, and
      RV(counts) has their number. That KyroDB stops answering makes the task fail in any case.
    type: bool
    default: false
notes:
  - The task fails when an entry could not be replayed, after all others were tried. Every count is in the result.
  - Ansible uses the names C(failed) and C(skipped) of a result for itself, so take the numbers from RV(counts), which
    has them with every version. Up to ansible-core 2.20, C(failed) is 0, or true where the task fails, and C(skipped)
    is the number; a run that skipped something is therefore shown as skipped and notifies no handler, though it may
    have stored others, and C(is changed) tells. From 2.21 on Ansible allows no numbers there; C(failed) is a boolean
    then, and there is no C(skipped).
  - An image of the episode has metadata of its own in KyroDB's image instance, which is not changed.
seealso:
  - module: oncall.runbooks.dlq_info
  - module: oncall.runbooks.dlq_archive
"""

EXAMPLES = r"""
- name: Store what could not be stored
  oncall.runbooks.dlq_replay:
    path: /srv/vritti/data/failed_reflections.log
    address: localhost:50051
  register: replay

- name: Say what became of it
  ansible.builtin.debug:
    msg: "{{ replay.counts }}"

- name: Take what is stored out of the queue
  oncall.runbooks.dlq_archive:
    path: /srv/vritti/data/failed_reflections.log
    dest: /var/backups/vritti
    episodes: "{{ replay.stored }}"
  when: replay.stored | length > 0

- name: Store those of one customer, at most a hundred
  oncall.runbooks.dlq_replay:
    path: /srv/vritti/data/failed_reflections.log
    address: localhost:50051
    customer: acme-corp
    limit: 100
"""

RETURN = r"""
replayed:
  description: How many reflections were stored, or in check mode, would be.
  type: int
  returned: always
  sample: 12
skipped:
  description: How many entries needed nothing, because their episode has a reflection or they have none. See the
    notes.
  type: int
  returned: up to ansible-core 2.20
  sample: 3
failed:
  description: How many entries could not be replayed. See the notes.
  type: int
  returned: always
  sample: 0
counts:
  description: The three numbers above, and RV(not_tried).
  type: dict
  returned: always
  sample: {replayed: 12, skipped: 3, failed: 0, not_tried: 0}
by_result:
  description: How many entries by what became of them, which is V(replayed); V(already_stored) or V(no_reflection),
    which count as skipped; or V(not_found), V(other_customer) or V(error), which count as failed.
  type: dict
  returned: always
  sample: {replayed: 12, already_stored: 2, no_reflection: 1, not_found: 0, other_customer: 0, error: 0}
results:
  description: What became of each entry, in the order of the queue; of replayed, skipped and failed ones the first
    100 each.
  type: list
  elements: dict
  returned: always
  contains:
    episode_id:
      description: The entry's episode, as the entry has it.
      type: raw
    customer_id:
      description: The entry's customer. Half a character, which an escape can make, is a question mark here and in
        the reason.
      type: str
    result:
      description: As in RV(by_result).
      type: str
    reason:
      description: Why, where that is not clear from the result.
      type: str
  sample: [{episode_id: 1291, customer_id: acme-corp, result: replayed, reason: ""}]
stored:
  description: The episodes of the queue that have their reflection in KyroDB now, by this run or before, the first
    10,000 in the order of the queue, each once. Their entries that have a reflection may be archived; it is what
    O(oncall.runbooks.dlq_archive#module:episodes) takes.
  type: list
  elements: dict
  returned: always
  contains:
    customer_id:
      description: The customer, because ids alone may be in entries of others too.
      type: str
    episode_id:
      description: The episode.
      type: int
  sample: [{customer_id: acme-corp, episode_id: 1291}, {customer_id: acme-corp, episode_id: 1292}]
torn:
  description: Lines that are no JSON, such as those that a crash has cut off. They are not replayed.
  type: int
  returned: always
  sample: 0
foreign:
  description: Lines that are JSON and no dead letters.
  type: int
  returned: always
  sample: 0
not_tried:
  description: Entries that were not tried, because of O(limit) or because KyroDB stopped answering.
  type: int
  returned: always
  sample: 0
files:
  description: The files that were read, oldest first.
  type: list
  elements: str
  returned: always
  sample: [/srv/vritti/data/failed_reflections.log]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_replay, dead_letters, episodes, kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **kyrodb.CONNECTION_SPEC,
            "path": {"type": "path", "required": True},
            "rotated": {"type": "bool", "default": True},
            "customer": {"type": "str"},
            "limit": {"type": "int"},
            "api_key": {"type": "str", "no_log": True},
            "timeout": {"type": "float", "default": 30.0},
            "tolerate": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        endpoint = kyrodb.endpoint_of(options, options["api_key"])
        if options["timeout"] <= 0:
            raise ValueError(f"timeout is {options['timeout']}; it is a number of seconds above 0")
        if options["limit"] is not None and options["limit"] < 1:
            raise ValueError(f"limit is {options['limit']}; it is a number from 1, or left out")
        if options["customer"] is not None:
            episodes.namespace(options["customer"])
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    replay = dead_letter_replay.Replay(
        endpoint, options["customer"], options["limit"], options["timeout"], module.check_mode
    )
    files: list[str] = []
    said = ""
    try:
        files = dead_letters.files_of(options["path"], options["rotated"])
        replay.run(files)
    except NoAnswer as error:
        said = str(error)
    except OSError as error:
        said = f"{error.filename or options['path']} cannot be read: {error.strerror or error}."
    result = told(replay, files, said or replay.sentence())
    if options["tolerate"] and not said and not replay.ended:
        result["failed"] = 0
    if not _numbers_are_kept(module.ansible_version):
        result["failed"] = bool(result["failed"])
        del result["skipped"]
    module.exit_json(**result)


def told(replay: dead_letter_replay.Replay, files: list[str], said: str) -> dict[str, t.Any]:
    """The result; what is said makes the task fail, also where no entry did."""
    result: dict[str, t.Any] = {
        "changed": bool(replay.replayed),
        "replayed": replay.replayed,
        "skipped": replay.skipped,
        "failed": replay.failed or bool(said),
        "counts": {
            "replayed": replay.replayed,
            "skipped": replay.skipped,
            "failed": replay.failed,
            "not_tried": replay.not_tried,
        },
        "by_result": {name: replay.by_result[name] for name in dead_letter_replay.RESULTS},
        "results": replay.results,
        "stored": replay.stored,
        "torn": replay.torn,
        "foreign": replay.foreign,
        "not_tried": replay.not_tried,
        "files": [dead_letter_replay.shown(path) for path in files],
    }
    return {**result, "msg": dead_letter_replay.shown(said)} if said else result


def _numbers_are_kept(core: str | None) -> bool:
    """Whether this ansible-core leaves numbers under the names failed and skipped; 2.21 makes them booleans."""
    try:
        major, minor = (core or "2.19").split(".")[:2]
        return (int(major), int(minor)) < (2, 21)
    except ValueError:
        return False


if __name__ == "__main__":
    main()

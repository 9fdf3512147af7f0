#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dlq_archive
short_description: Archive Vritti's dead letters while it goes on writing them, or put an archive back
version_added: "0.4.0"
description:
  - Renames the queue's file, waits until the kernel says that nobody can write to it any more, and only then reads it
    into a compressed archive with a manifest. Nothing that is written meanwhile is lost or doubled.
  - Vritti opens the file anew for every entry, so it goes on in a new one at once. Where a writer keeps the file open
    the module refuses, unless O(reopen) has that writer open it anew.
  - With O(customer), O(reason) or O(episodes) only those entries go into the archive. The others are put back in the
    place of the file, or appended to the one that Vritti has made meanwhile.
  - A run that was killed is finished by the next one, whatever it was about to do. One run works on a queue at a time.
  - The archive is complete and synced to disk before it gets its name, and it takes no other file's name.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - zstandard on the target, unless O(compress=false)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  path:
    description: The queue's file, C(data/failed_reflections.log) below the folder that Vritti runs in. It may not be a
      symbolic link, for in the service's folder that may lead to anybody's file.
    type: path
    required: true
  state:
    description:
      - V(archived) takes entries out of the queue, V(restored) puts those of O(archive) back into it.
      - An archive that was put back is renamed to C(<archive>.restored), and none of its entries counts twice.
    type: str
    choices: [archived, restored]
    default: archived
  dest:
    description:
      - For V(archived), an existing folder, in which the archive is named C(failed_reflections.<time>.log) by the time
        in UTC, or a file that does not exist.
      - The files of the runbook's C(mv) are named by the day alone, so that a second one takes the place of the first.
    type: path
  archive:
    description: For V(restored), the archive.
    type: path
  customer:
    description: Archive entries of this customer only.
    type: str
  reason:
    description: Archive entries with this reason only, such as V(reflection_redaction_failed), which nothing can
      replay.
    type: str
  episodes:
    description: Archive entries about these episodes only, such as RV(oncall.runbooks.dlq_replay#module:stored), and of
      them those with a reflection. With an empty list nothing is archived.
    type: list
    elements: dict
    suboptions:
      customer_id:
        description: The episode's customer.
        type: str
        required: true
      episode_id:
        description: The episode's id.
        type: int
        required: true
  rotated:
    description: Whether to archive the files that Vritti has renamed to C(<name>.<YYYYmmdd_HHMMSS>.log) too.
    type: bool
    default: true
  compress:
    description: Whether to compress with Zstandard; C(.zst) is added to the name.
    type: bool
    default: true
  reopen:
    description: A command that has a writer which keeps the file open open it anew, such as a restart of its unit. It
      is run without a shell, and only where somebody keeps the file open for O(timeout).
    type: list
    elements: str
  timeout:
    description: The seconds for which to wait for those who write to the file, and for another run.
    type: float
    default: 10.0
seealso:
  - module: oncall.runbooks.dlq_info
  - module: oncall.runbooks.dlq_replay
  - name: fcntl(2), leases
    description: How the kernel tells that nobody has a file open for writing.
    link: https://man7.org/linux/man-pages/man2/fcntl.2.html
"""

EXAMPLES = r"""
- name: Archive the whole queue
  oncall.runbooks.dlq_archive:
    path: /srv/vritti/data/failed_reflections.log
    dest: /var/backups/vritti
  register: archived

- name: Archive what nothing can replay
  oncall.runbooks.dlq_archive:
    path: /srv/vritti/data/failed_reflections.log
    dest: /var/backups/vritti
    reason: reflection_redaction_failed

- name: Put an archive back
  oncall.runbooks.dlq_archive:
    path: /srv/vritti/data/failed_reflections.log
    state: restored
    archive: "{{ archived.archive }}"
  when: archived.archive is not none
"""

RETURN = r"""
archive:
  description: The archive; null where there was nothing to archive.
  type: str
  returned: success
  sample: /var/backups/vritti/failed_reflections.20261127T030000Z.log.zst
manifest:
  description: The file that describes it, with counts, the checksum, and for each file of the queue from which byte to
    which its entries were.
  type: str
  returned: success
  sample: /var/backups/vritti/failed_reflections.20261127T030000Z.log.zst.manifest.json
sha256:
  description: The checksum of the archive's file; null in check mode, and where there is none.
  type: str
  returned: success
  sample: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c
entries:
  description: How many entries were archived, or put back.
  type: int
  returned: success
  sample: 1204
torn:
  description: How many lines, or parts of one, went with them that are no JSON.
  type: int
  returned: success
  sample: 0
foreign:
  description: How many lines went with them that are JSON and no dead letter.
  type: int
  returned: success
  sample: 0
by_reason:
  description: Those entries by their reason.
  type: dict
  returned: success
  sample: {persistence_failed_after_retries: 1204}
by_customer:
  description: Those entries by customer.
  type: dict
  returned: success
  sample: {acme: 1204}
oldest:
  description: When the oldest of them was written (UTC).
  type: str
  returned: success
  sample: "2026-11-26T03:10:11.120000Z"
newest:
  description: When the newest of them was written (UTC).
  type: str
  returned: success
  sample: "2026-11-27T02:59:58.001000Z"
notes:
  description: What else there is to know, such as what a killed run had begun.
  type: list
  elements: str
  returned: success
  sample: []
"""

import functools

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_archive
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["archived", "restored"], "default": "archived"},
            "dest": {"type": "path"},
            "archive": {"type": "path"},
            "customer": {"type": "str"},
            "reason": {"type": "str"},
            "episodes": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "customer_id": {"type": "str", "required": True},
                    "episode_id": {"type": "int", "required": True},
                },
            },
            "rotated": {"type": "bool", "default": True},
            "compress": {"type": "bool", "default": True},
            "reopen": {"type": "list", "elements": "str"},
            "timeout": {"type": "float", "default": 10.0},
        },
        required_if=[("state", "archived", ("dest",)), ("state", "restored", ("archive",))],
        supports_check_mode=True,
    )
    chosen = {**module.params, "dest": module.params["dest"] or ""}
    state, archive, reopen = chosen.pop("state"), chosen.pop("archive"), chosen.pop("reopen")
    for name in ("customer", "reason"):
        if chosen[name] == "":
            module.fail_json(msg=f"{name} is empty; leave it out to archive everything.")
    if state == "restored" and any(chosen[name] is not None for name in ("customer", "reason", "episodes")):
        module.fail_json(msg="An archive is put back whole: leave out customer, reason and episodes.")
    if chosen["episodes"] is not None:
        chosen["episodes"] = [(one["customer_id"], one["episode_id"]) for one in chosen["episodes"]]
    options = dead_letter_archive.Options(
        **chosen, reopen=functools.partial(_reopen, module, reopen) if reopen else None
    )
    try:
        if state == "archived":
            told = dead_letter_archive.archive(options, check=module.check_mode)
        else:
            told = dead_letter_archive.restore(options, archive, check=module.check_mode)
    except (Refused, NoAnswer) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or options.path} cannot be used: {error.strerror or error}.")
    module.exit_json(**told)


def _reopen(module: AnsibleModule, command: list[str]) -> str | None:
    try:
        status, output, errors = module.run_command(command, handle_exceptions=False)
    except (OSError, ValueError) as error:
        return f"{command[0]} cannot be run: {error}."
    said = " ".join((errors or output).split())[:200].rstrip(".")
    return f"{command[0]} ended with status {status}{': ' + said if said else ''}." if status else None


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dlq_info
short_description: Count what is in Vritti's dead letter queue
version_added: "0.4.0"
description:
  - Reads the file of reflections that Vritti could not store, one JSON object per line, as a stream, and counts
    entries by reason and by customer. It may have gigabytes.
  - Vritti makes the file with the first entry, so a queue without a file is empty.
  - Reflections that the LLM did not give are not in it; Vritti puts a heuristic in their place, or writes a log line.
  - Unlike C(wc -l) and C(jq) it counts the files that Vritti has renamed at 100 MB as well, is not stopped by a torn
    line, and finds the entry that was appended to one.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - zstandard on the target, for an archive (C(.zst)) only
extends_documentation_fragment:
  - oncall.runbooks.attributes.info
  - oncall.runbooks.attributes
options:
  path:
    description: The queue's file, which is C(data/failed_reflections.log) below the folder that Vritti runs in (later
      versions C(SERVICE_DEAD_LETTER_QUEUE_PATH)), or an archive of it.
    type: path
    required: true
  rotated:
    description: Whether to count the files beside it that Vritti has renamed to C(<name>.<YYYYmmdd_HHMMSS>.log) too.
    type: bool
    default: true
  sample_seconds:
    description: How long to wait for a second look, in seconds, to see how the queue grows; with V(0) there is none.
    type: float
    default: 0.0
seealso:
  - module: oncall.runbooks.dlq_archive
  - module: oncall.runbooks.dlq_replay
"""

EXAMPLES = r"""
- name: See what is in the queue, and whether it grows
  oncall.runbooks.dlq_info:
    path: /srv/vritti/data/failed_reflections.log
    sample_seconds: 5
  register: queue

- name: Show the reasons
  ansible.builtin.debug:
    var: queue.by_reason
"""

RETURN = r"""
entries:
  description: The number of dead letters.
  type: int
  returned: success
  sample: 1204
torn:
  description: The number of lines, or parts of one, that are no JSON.
  type: int
  returned: success
  sample: 1
foreign:
  description: The number of lines that are JSON and no dead letter.
  type: int
  returned: success
  sample: 0
by_reason:
  description: Entries by their reason, most frequent first.
  type: dict
  returned: success
  sample: {persistence_failed_after_retries: 1203, reflection_redaction_failed: 1}
by_customer:
  description: Entries by customer, most frequent first.
  type: dict
  returned: success
  sample: {acme: 1204}
oldest:
  description: When the oldest entry was written (UTC); null where there is none.
  type: str
  returned: success
  sample: "2026-11-26T03:10:11.120000Z"
newest:
  description: When the newest entry was written (UTC); null where there is none.
  type: str
  returned: success
  sample: "2026-11-27T02:59:58.001000Z"
bytes:
  description: The size of the files together.
  type: int
  returned: success
  sample: 901200
files:
  description: The files that were counted, oldest first.
  type: list
  elements: str
  returned: success
  sample: ["/srv/vritti/data/failed_reflections.log"]
grown:
  description: The number of lines that came within O(sample_seconds); null without a second look.
  type: int
  returned: success
  sample: 3
"""

import math

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letters
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "rotated": {"type": "bool", "default": True},
            "sample_seconds": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    path, seconds = module.params["path"], module.params["sample_seconds"]
    if not 0 <= seconds < math.inf:
        module.fail_json(msg=f"sample_seconds is {seconds:g}; it is a number of seconds from 0.")
    try:
        files = dead_letters.files_of(path, module.params["rotated"])
        counted = dead_letters.tally(files)
        grown = dead_letters.grown_in(path, seconds) if seconds else None
    except NoAnswer as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path} cannot be read: {error.strerror or error}.")
    module.exit_json(
        changed=False,
        entries=counted.entries,
        torn=counted.torn,
        foreign=counted.foreign,
        by_reason=counted.by_reason,
        by_customer=counted.by_customer,
        oldest=counted.oldest,
        newest=counted.newest,
        bytes=counted.size,
        files=files,
        grown=grown,
    )


if __name__ == "__main__":
    main()

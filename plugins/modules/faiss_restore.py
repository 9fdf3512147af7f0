#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: faiss_restore
short_description: Put the files of a FAISS index back, all of them together
version_added: "0.6.0"
description:
  - Verifies the backup (MD5 of the service's history, SHA-256 of the manifest), unpacks the index's four files and
    nothing else beside the index, looks at them there, and then exchanges the two folders in one step. What was there
    goes into quarantine. A kill at any moment leaves the old files or the new ones. Nothing is deleted.
  - Other files of the folder stay in it. The new files belong to whom the old ones did, with the same mode.
  - Where the folder cannot be exchanged, since a volume is mounted there or its filesystem cannot do it, the files are
    replaced one after the other, RV(atomic) is false, and what a killed run has begun the next one finishes.
  - Where the index has what the backup has, nothing is done.
  - The service reads its index when it starts. Restart it afterwards.
  - C(cp) of C(wp.faiss) alone leaves metadata that belongs to another index. The service's own restore of a full backup
    puts its configuration and its logs beside the index.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: The backup is read where it is; what its matrix takes is unpacked below C(TMPDIR).
  diff_mode:
    support: full
options:
  path:
    description: The folder of the index. A symbolic link is followed.
    type: path
    required: true
  name:
    description: What the names of the four files begin with.
    type: str
    default: wp
  dimension:
    description: The dimension of the vectors; a backup of another one is not restored.
    type: int
    default: 384
  tfidf:
    description: Whether the two files of TF-IDF belong to the index; a backup without them is not restored then.
    type: bool
    default: true
  state:
    description:
      - V(restored) puts O(backup) in place.
      - V(undone) puts back what was there before the last restore that O(quarantine) knows of, whatever its state was.
    type: str
    choices: [restored, undone]
    default: restored
  backup:
    description:
      - The id of a backup (C(backup_1795318612)), an archive, or a folder with the files.
      - V(latest_verified) is the newest archive in O(backup_dir) that is recorded, in a manifest of
        M(oncall.runbooks.faiss_backup) or in O(history), is what is recorded, and holds a sound index.
    type: str
    default: latest_verified
  backup_dir:
    description: The folder of the backups.
    type: path
  history:
    description: The service's history of its backups, C(logs/backup_history.jsonl), which has their MD5.
    type: path
  quarantine:
    description:
      - The folder in which a folder for what was there is made; by default C(<path>.quarantine). It is created where it
        does not exist. On another filesystem the files are copied there.
      - With O(state=undone) it may be that folder itself, as RV(quarantine) names it.
    type: path
  timeout:
    description: The seconds that it may take, waiting for another run included. Once the new files begin to be put in
      place it is not looked at any more.
    type: float
    default: 600.0
seealso:
  - module: oncall.runbooks.faiss_info
  - module: oncall.runbooks.faiss_backup
"""

EXAMPLES = r"""
- name: See what restoring would do
  oncall.runbooks.faiss_restore:
    path: /srv/wp_chat/data/index
    backup_dir: /srv/wp_chat/backups
    history: /srv/wp_chat/logs/backup_history.jsonl
  check_mode: true

- name: Restore the newest backup that can be trusted
  oncall.runbooks.faiss_restore:
    path: /srv/wp_chat/data/index
    backup_dir: /srv/wp_chat/backups
    history: /srv/wp_chat/logs/backup_history.jsonl
  register: restored

- name: Undo it
  oncall.runbooks.faiss_restore:
    path: "{{ restored.undo.path }}"
    name: "{{ restored.undo.name }}"
    state: "{{ restored.undo.state }}"
    quarantine: "{{ restored.undo.quarantine }}"
  when: restored.undo is not none
"""

RETURN = r"""
action:
  description: V(none) where nothing had to be done, else V(restored) or V(undone).
  type: str
  returned: success
  sample: restored
index:
  description: The folder, symbolic links resolved.
  type: str
  returned: success
  sample: /srv/wp_chat/data/index
state:
  description: What the index was before; see M(oncall.runbooks.faiss_info).
  type: str
  returned: success
  sample: truncated
errors:
  description: What was wrong with it.
  type: list
  elements: str
  returned: success
  sample: []
ntotal:
  description: The vectors that it had; null where that is not known.
  type: int
  returned: success
  sample: 348
backup:
  description: The archive or folder that was chosen.
  type: str
  returned: success
  sample: /srv/wp_chat/backups/backup_1795318612.tar.gz
backup_taken_at:
  description: When it was taken.
  type: str
  returned: success
  sample: "2026-11-27T03:00:00Z"
restored_ntotal:
  description: The vectors that it has.
  type: int
  returned: success
  sample: 348
summary:
  description: What is done and lost, in words.
  type: str
  returned: success
  sample: "from /srv/wp_chat/backups/backup_1795318612.tar.gz of 2026-11-27T03:00:00Z (348 vectors): there now: 348
    vectors, truncated"
quarantine:
  description: The folder in which the files are that were there; null where nothing was restored.
  type: str
  returned: success
  sample: /srv/wp_chat/data/index.quarantine/index.20261127T083000Z
atomic:
  description: Whether the folder was, or would be, exchanged in one step; null where nothing was restored.
  type: bool
  returned: success
  sample: true
lost:
  description: What was there, and what the backup has; null where nothing was restored.
  type: dict
  returned: success
  contains:
    vectors_now:
      description: Vectors in the index.
      type: int
      sample: 348
    vectors_backup:
      description: Vectors in the backup.
      type: int
      sample: 340
    posts:
      description: Posts that are in the index and not in the backup; null where that is not told without unpacking it.
      type: int
      sample: 2
    modified_at:
      description: When the index was written.
      type: str
      sample: "2026-11-27T03:00:00Z"
undo:
  description: The options with which this module undoes it; null where nothing was restored.
  type: dict
  returned: success
  sample: {path: /srv/wp_chat/data/index, name: wp, state: undone,
    quarantine: /srv/wp_chat/data/index.quarantine/index.20261127T083000Z}
files_before:
  description: The SHA-256 of each file that was there.
  type: dict
  returned: success
  sample: {wp.faiss: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c}
files_after:
  description: The SHA-256 of each file of the backup.
  type: dict
  returned: success
  sample: {wp.faiss: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c}
notes:
  description: Backups that were passed over and why, what could not be told, what a killed run had begun, and that the
    service has to be restarted.
  type: list
  elements: str
  returned: success
  sample: []
"""

import json

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_restoring
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "name": {"type": "str", "default": "wp"},
            "dimension": {"type": "int", "default": 384},
            "tfidf": {"type": "bool", "default": True},
            "state": {"type": "str", "choices": list(faiss_restoring.STATES), "default": "restored"},
            "backup": {"type": "str", "default": faiss_restoring.LATEST},
            "backup_dir": {"type": "path"},
            "history": {"type": "path"},
            "quarantine": {"type": "path"},
            "timeout": {"type": "float", "default": 600.0},
        },
        supports_check_mode=True,
    )
    try:
        told = faiss_restoring.restore(faiss_restoring.Options(**module.params), module.check_mode)
    except Refused as error:
        module.fail_json(msg=str(error), **error.details)
    except NoAnswer as error:
        module.fail_json(msg=str(error))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{module.params['path']} cannot be restored: {error}.")
    if module._diff:
        told["diff"] = {
            "before": _shown(told["files_before"]),
            "after": _shown(told["files_after"]),
            "before_header": told["index"],
            "after_header": told["backup"] or told["index"],
        }
    module.exit_json(summary=faiss_restoring.in_words(told), **told)


def _shown(files: dict[str, str]) -> str:
    return json.dumps(files, indent=1, sort_keys=True) + "\n" if files else ""


if __name__ == "__main__":
    main()

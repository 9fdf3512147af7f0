#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: faiss_backup
short_description: Back a FAISS index up, and record its checksums
version_added: "0.6.0"
description:
  - Makes an archive of the index's four files as wp_chat itself does, C(backup_<seconds>.tar.gz) with their base names,
    reads it back before it gets its name, and writes C(backup_<seconds>.manifest.json) beside it with the SHA-256 of
    the archive and of each file.
  - An index that is not sound is not backed up; nor is one that differs from its newest backup as if it were damaged,
    for then the damage would be what later looks are compared with.
  - Where the newest backup that can be trusted has the same files, nothing is done. The files are synced to disk, and
    belong to whom the folder belongs.
  - With O(archive) an archive that the service has just made is verified and gets its manifest, and none is made. The
    service forgets its backups when it restarts.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  path:
    description: The folder of the index.
    type: path
    required: true
  name:
    description: What the names of the four files begin with.
    type: str
    default: wp
  dimension:
    description: The dimension of the vectors.
    type: int
    default: 384
  tfidf:
    description: Whether the two files of TF-IDF belong to the index; without one of them it is not backed up then.
    type: bool
    default: true
  backup_dir:
    description: The folder of the backups, which exists.
    type: path
    required: true
  history:
    description: The service's history of its backups, C(logs/backup_history.jsonl), which has their MD5.
    type: path
  archive:
    description: An archive that the service has made, by its path or its id (C(backup_1795318612)), of the type index
      or full. Its MD5 has to be in O(history).
    type: str
  accept_changes:
    description: Whether to back up what differs from the newest backup in a way that looks like damage. Look at
      RV(ignore:differences) of M(oncall.runbooks.faiss_info) first.
    type: bool
    default: false
  timeout:
    description: The seconds that it may take, waiting for another run included.
    type: float
    default: 600.0
seealso:
  - module: oncall.runbooks.faiss_info
  - module: oncall.runbooks.faiss_restore
"""

EXAMPLES = r"""
- name: Back wp_chat's index up
  oncall.runbooks.faiss_backup:
    path: /srv/wp_chat/data/index
    backup_dir: /srv/wp_chat/backups
    history: /srv/wp_chat/logs/backup_history.jsonl

- name: Record the archive that wp_chat has made
  oncall.runbooks.faiss_backup:
    path: /srv/wp_chat/data/index
    backup_dir: /srv/wp_chat/backups
    history: /srv/wp_chat/logs/backup_history.jsonl
    archive: backup_1795318612
"""

RETURN = r"""
backup:
  description: The archive; null in check mode where one would be made.
  type: str
  returned: success
  sample: /srv/wp_chat/backups/backup_1795318612.tar.gz
backup_id:
  description: Its id, as the service calls it.
  type: str
  returned: success
  sample: backup_1795318612
manifest:
  description: The file that describes it; null where the service's history does.
  type: str
  returned: success
  sample: /srv/wp_chat/backups/backup_1795318612.manifest.json
sha256:
  description: The checksum of the archive, as in the manifest.
  type: str
  returned: success
  sample: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c
taken_at:
  description: When it was taken.
  type: str
  returned: success
  sample: "2026-11-27T03:00:00Z"
files:
  description: The SHA-256 and the size of each file in it.
  type: dict
  returned: success
  sample: {wp.faiss: {sha256: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c, size_bytes: 537402}}
verified:
  description: Whether the archive was read and what is in it is sound; false in check mode where one would be made.
  type: bool
  returned: success
  sample: true
notes:
  description: How the index differs from the backup before.
  type: list
  elements: str
  returned: success
  sample: []
state:
  description: What the index is, or what is in O(archive); see M(oncall.runbooks.faiss_info).
  type: str
  returned: always
  sample: ok
errors:
  description: What is wrong with it.
  type: list
  elements: str
  returned: always
  sample: []
ntotal:
  description: The number of vectors.
  type: int
  returned: success
  sample: 348
dimension:
  description: Their dimension.
  type: int
  returned: success
  sample: 384
"""

import json

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_backups
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "name": {"type": "str", "default": "wp"},
            "dimension": {"type": "int", "default": 384},
            "tfidf": {"type": "bool", "default": True},
            "backup_dir": {"type": "path", "required": True},
            "history": {"type": "path"},
            "archive": {"type": "str"},
            "accept_changes": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 600.0},
        },
        supports_check_mode=True,
    )
    try:
        told = faiss_backups.take(check=module.check_mode, **module.params)
    except Refused as error:
        module.fail_json(msg=str(error), **error.details)
    except NoAnswer as error:
        module.fail_json(msg=str(error))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{module.params['path']} cannot be backed up: {error}.")
    before, after = told.pop("before"), told.pop("after")
    if module._diff:
        told["diff"] = {
            "before": _shown(before),
            "after": _shown(after),
            "before_header": module.params["backup_dir"],
            "after_header": module.params["backup_dir"],
        }
    module.exit_json(**told)


def _shown(found: object) -> str:
    if not found:
        return ""
    return f"{found if isinstance(found, str) else json.dumps(found, indent=1)}\n"


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sqlite_backup
short_description: Back a SQLite database up while it is in use
version_added: "0.3.0"
description:
  - Copies the database through SQLite's backup API, what is in its write-ahead log included, and proves that the
    copy is sound before it gets its name. C(cp) misses what is in the log, and may catch the file between two writes.
  - The copy is checked with C(PRAGMA integrity_check), its rows are counted, and its SHA-256 is kept in a manifest
    beside it, C(<backup>.manifest.json), which M(oncall.runbooks.sqlite_restore) holds against it.
  - A damaged database gives no backup. Its copy is kept as C(<dest>.corrupt-<time>), the task fails, and the backup
    that was there stays. Rows that refer to rows that do not exist are no damage; RV(notes) names them.
  - A second run while the database has not changed changes nothing. The file and its folder are synced to disk. The
    file is readable for its owner only.
  - In WAL mode nobody waits for it. With a rollback journal the copy is made in steps of 1 MiB between which writers
    get their turn; after three fresh starts because of them it is made in one.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - zstandard on the target, with O(compress) only
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: partial
    details: Copies nothing. A backup that is younger than the last write to the database counts as unchanged.
  diff_mode:
    support: full
options:
  path:
    description: The database's file. A symbolic link is followed.
    type: path
    required: true
  dest:
    description:
      - The file of the backup, or an existing folder (or a path that ends with C(/)), in which it is named by
        O(pattern).
      - A file that is there is replaced only where its manifest says that it is a backup of this module, so that
        swapping O(path) and O(dest) does no harm.
    type: path
    required: true
  pattern:
    description:
      - The name in the folder. C({name}) is the name of the database's file; the rest is as of C(date), in the
        host's own time.
      - The runbooks' names are V({name}.%Y%m%d) and V({name}.bak).
    type: str
    default: "{name}.%Y%m%d"
  compress:
    description: Whether to compress with Zstandard; C(.zst) is added to the name.
    type: bool
    default: false
  expect_tables:
    description: Tables that have to exist; without one of them it is not the database that was meant, and there is
      no backup.
    type: list
    elements: str
    default: []
  timeout:
    description: The seconds for which to wait for a lock, or for the copy to make progress.
    type: float
    default: 30.0
seealso:
  - module: oncall.runbooks.sqlite_info
  - module: oncall.runbooks.sqlite_restore
  - name: SQLite, backup API
    description: How the copy is made.
    link: https://www.sqlite.org/backup.html
"""

EXAMPLES = r"""
- name: Back Vritti's customers up, as customers.db.20261127
  oncall.runbooks.sqlite_backup:
    path: /srv/vritti/data/customers.db
    dest: /var/backups/vritti/
    expect_tables: [customers, api_keys]

- name: Keep a copy beside it
  oncall.runbooks.sqlite_backup:
    path: /srv/vritti/data/customers.db
    dest: /srv/vritti/data/customers.db.bak
"""

RETURN = r"""
backup:
  description: The file of the backup.
  type: str
  returned: success
  sample: /var/backups/vritti/customers.db.20261127
manifest:
  description: The file that describes it.
  type: str
  returned: success
  sample: /var/backups/vritti/customers.db.20261127.manifest.json
sha256:
  description: The checksum of the file.
  type: str
  returned: success and not in check mode
  sample: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c
verified:
  description: Whether the copy passed every check; false in check mode, and where only the application can check it,
    as RV(notes) says.
  type: bool
  returned: success
  sample: true
rows:
  description: The rows per table of the copy.
  type: dict
  returned: success and not in check mode
  sample: {customers: 12}
notes:
  description: References to rows that do not exist, and what could not be checked.
  type: list
  elements: str
  returned: success and not in check mode
  sample: []
size_bytes:
  description: The size of the file.
  type: int
  returned: success and not in check mode
  sample: 1048576
copy_seconds:
  description: The seconds that the copy took, until it was on the disk.
  type: float
  returned: success and not in check mode
  sample: 1.2
verify_seconds:
  description: The seconds that verifying it took.
  type: float
  returned: success and not in check mode
  sample: 2.3
state:
  description: What the database is; see M(oncall.runbooks.sqlite_info).
  type: str
  returned: always
  sample: ok
errors:
  description: What is wrong with the database.
  type: list
  elements: str
  returned: failure
  sample: ["row 7 missing from index idx_customers_email"]
corrupt_copy:
  description: Where the copy of a damaged database is.
  type: str
  returned: failure, when the copy is damaged
  sample: /var/backups/vritti/customers.db.20261127.corrupt-20261127T030000Z
"""

import json
import sqlite3

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_backups, sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "pattern": {"type": "str", "default": sqlite_backups.PATTERN},
            "compress": {"type": "bool", "default": False},
            "expect_tables": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 30.0},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        told = sqlite_backups.take(check=module.check_mode, **options)
    except Refused as error:
        module.fail_json(msg=str(error), **error.details)
    except NoAnswer as error:
        module.fail_json(msg=str(error))
    except (OSError, ValueError, sqlite3.Error, sqlite_files.Locked) as error:
        module.fail_json(msg=f"{module.params['path']} cannot be backed up: {error}.")
    before, after = told.pop("before"), told.pop("after")
    if module._diff:
        told["diff"] = {
            "before": _shown(before),
            "after": _shown(after) if after else "(a backup of now)\n" if told["changed"] else _shown(before),
            "before_header": told["backup"],
            "after_header": told["backup"],
        }
    module.exit_json(**told)


def _shown(manifest: dict[str, object] | None) -> str:
    wanted = ("taken_at", "sha256", "size_bytes", "rows")
    return json.dumps({key: manifest.get(key) for key in wanted}, indent=1) + "\n" if manifest else ""


if __name__ == "__main__":
    main()

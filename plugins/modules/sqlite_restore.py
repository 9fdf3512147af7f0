#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sqlite_restore
short_description: Put a backup of a SQLite database back without losing what is there
version_added: "0.3.0"
description:
  - Copies the backup beside the database, verifies the copy (checksum, C(PRAGMA integrity_check), rows, tables),
    tells what would be lost, puts what is there into quarantine, and only then restores. A kill at any moment leaves
    the old database or the new one. Nothing is deleted.
  - Where only indexes are damaged, they are rebuilt with C(REINDEX), and that is all; no row is thrown away.
  - Where the database has what the backup has, nothing is done.
  - C(cp) over a database in use leaves its write-ahead log, which is then replayed over the backup; and a database
    that is renamed while a process has it open loses what that process writes.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - zstandard on the target, for compressed backups only
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: The backup is verified where it is; with O(raise_counters), or compressed, in a copy below C(TMPDIR).
  diff_mode:
    support: full
options:
  path:
    description: The database's file. A symbolic link is followed.
    type: path
    required: true
  backup:
    description:
      - A file, also one that was made by C(cp) or compressed with Zstandard; the folder of a quarantine, which is
        put back as it was; or what to look for in O(backup_dir).
      - V(latest_verified) is the newest backup that passes all checks. One with a manifest of
        M(oncall.runbooks.sqlite_backup) goes before those without.
      - A day, such as V(20261126), V(2026-11-26), V(today) or V(yesterday) in the host's own time, is the newest of
        that day.
    type: str
    default: latest_verified
  backup_dir:
    description:
      - The folder of the backups. One whose manifest names a database at another path is passed over; name its file
        as O(backup) where it is wanted.
    type: path
  pattern:
    description: How backups without a manifest are named; see M(oncall.runbooks.sqlite_backup).
    type: str
    default: "{name}.%Y%m%d"
  expect_tables:
    description: Tables that a backup has to have, to be one of this database.
    type: list
    elements: str
    default: []
  method:
    description:
      - V(online) lets SQLite overwrite the database in one transaction and in the same inode. Clients may have it
        open, and see the restored rows with their next statement.
      - V(offline) replaces the file. It is refused while a process has it open, and the refusal names the processes.
        Stop clients that open the database for each operation; one that comes at that very moment cannot be kept out.
      - V(auto) is V(online) where SQLite can open the database, else V(offline).
    type: str
    choices: [auto, online, offline]
    default: auto
  raise_counters:
    description:
      - Counters that must never go back, because what they have numbered is elsewhere. They are at least what they
        are in the database now, row by row, and at least O(raise_counters[].at_least). A table that the backup does
        not have is passed over.
    type: list
    elements: dict
    default: []
    suboptions:
      table:
        description: The table.
        type: str
        required: true
      column:
        description: The column with the number.
        type: str
        required: true
      at_least:
        description: What is known of it from elsewhere. Where the database is too damaged to tell, and this is 0, the
          restore is refused.
        type: int
        default: 0
  quarantine_dir:
    description:
      - The folder in which the folder of the quarantine is made; by default that of the database. It is created
        where it does not exist. On another filesystem the database is copied there.
      - As O(backup) it stands for the first quarantine in it that led to a restore.
    type: path
  timeout:
    description: The seconds for which to wait for a lock.
    type: float
    default: 30.0
seealso:
  - module: oncall.runbooks.sqlite_info
  - module: oncall.runbooks.sqlite_backup
"""

EXAMPLES = r"""
- name: See what restoring yesterday's backup would lose
  oncall.runbooks.sqlite_restore:
    path: /srv/vritti/data/customers.db
    backup_dir: /var/backups/vritti
    backup: yesterday
  check_mode: true
  register: restored

- name: Restore the newest backup that can be trusted
  oncall.runbooks.sqlite_restore:
    path: /srv/vritti/data/customers.db
    backup_dir: /var/backups/vritti
    expect_tables: [customers, api_keys]
    raise_counters:
      - table: doc_id_counters
        column: next_doc_id
  register: restored

- name: Undo it
  oncall.runbooks.sqlite_restore:
    path: "{{ restored.undo.path }}"
    backup: "{{ restored.undo.backup }}"
    raise_counters: "{{ restored.undo.raise_counters | default([]) }}"
  when: restored.undo is not none
"""

RETURN = r"""
action:
  description:
    - V(none) where the database has what the backup has; V(reindexed) where only its indexes were damaged;
      V(restored).
  type: str
  returned: success
  sample: restored
state:
  description: What the database was before; see M(oncall.runbooks.sqlite_info).
  type: str
  returned: success
  sample: corrupt
errors:
  description: What was wrong with it.
  type: list
  elements: str
  returned: success
  sample: []
method:
  description: V(online) or V(offline), null where nothing was restored.
  type: str
  returned: success
  sample: online
backup:
  description: The backup that was chosen.
  type: str
  returned: success
  sample: /var/backups/vritti/customers.db.20261127
backup_taken_at:
  description: When it was taken; what was written since is what would be lost.
  type: str
  returned: success
  sample: "2026-11-27T03:00:00Z"
lost:
  description:
    - What is in the database and not in the backup, per table that differs. Empty where nothing would be lost, or
      where the database cannot be read, which RV(notes) says.
    - C(rows) that are only in the database, by primary key; C(changed) rows that go back to other values; rows that
      come C(back); all C(rows_now) and C(rows_backup); and the newest times in columns of times, C(newest_now) and
      C(newest_backup). A null is what could not be told.
  type: dict
  returned: success
  sample:
    customers:
      rows: 1
      changed: 2
      back: 0
      rows_now: 12
      rows_backup: 11
      newest_now: "2026-11-27T08:00:00+00:00"
      newest_backup: "2026-11-27T02:59:00+00:00"
summary:
  description: The same in words.
  type: str
  returned: success
  sample: "from /var/backups/vritti/customers.db.20261127 of 2026-11-27T03:00:00Z: customers: 1 rows lost"
quarantine:
  description: The folder in which the database is as it was, with its C(-wal) and C(-shm) files where the file was
    replaced. With RV(action=reindexed) it is a copy from before, where one was needed. Else null.
  type: str
  returned: success
  sample: /srv/vritti/data/customers.db.quarantine-20261127T083000Z
undo:
  description: The options with which this module undoes it; null where nothing was restored.
  type: dict
  returned: success
  sample: {path: /srv/vritti/data/customers.db, backup: /srv/vritti/data/customers.db.quarantine-20261127T083000Z}
counters:
  description: The counters of O(raise_counters), as they are in the backup and after it was restored.
  type: list
  elements: dict
  returned: success
  sample: [{table: doc_id_counters, column: next_doc_id, backup: 256, restored: 1024}]
holders:
  description: The processes that had the database open; see M(oncall.runbooks.sqlite_info).
  type: list
  elements: dict
  returned: success
notes:
  description: Backups that were passed over and why, and what could not be told.
  type: list
  elements: str
  returned: success
  sample: []
"""

import json
import sqlite3

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_backups, sqlite_files, sqlite_restoring
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "backup": {"type": "str", "default": sqlite_restoring.LATEST},
            "backup_dir": {"type": "path"},
            "pattern": {"type": "str", "default": sqlite_backups.PATTERN},
            "expect_tables": {"type": "list", "elements": "str", "default": []},
            "method": {"type": "str", "choices": list(sqlite_restoring.METHODS), "default": "auto"},
            "raise_counters": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "table": {"type": "str", "required": True},
                    "column": {"type": "str", "required": True},
                    "at_least": {"type": "int", "default": 0},
                },
            },
            "quarantine_dir": {"type": "path"},
            "timeout": {"type": "float", "default": 30.0},
        },
        supports_check_mode=True,
    )
    try:
        told = sqlite_restoring.restore(sqlite_restoring.Options(**module.params), module.check_mode)
    except Refused as error:
        module.fail_json(msg=str(error), **error.details)
    except NoAnswer as error:
        module.fail_json(msg=str(error))
    except (OSError, ValueError, sqlite3.Error, sqlite_files.Locked) as error:
        module.fail_json(msg=f"{module.params['path']} cannot be restored: {error}.")
    if module._diff:
        told["diff"] = {
            "before": _shown(told, "rows_now", "newest_now"),
            "after": _shown(told, "rows_backup", "newest_backup"),
            "before_header": module.params["path"],
            "after_header": told["backup"] or module.params["path"],
        }
    module.exit_json(changed=told["action"] != "none", summary=sqlite_restoring.in_words(told), **told)


def _shown(told: dict[str, object], *keys: str) -> str:
    lost = told["lost"]
    if not isinstance(lost, dict) or told["action"] == "none":
        return ""
    shown = {table: {key.partition("_")[0]: found[key] for key in keys} for table, found in lost.items()}
    return json.dumps(shown, indent=1) + "\n" if shown else ""


if __name__ == "__main__":
    main()

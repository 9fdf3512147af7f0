#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sqlite_info
short_description: Look at a SQLite database without leaving a trace
version_added: "0.3.0"
description:
  - Tells whether a file is a sound SQLite database, what is in it and who has it open.
  - It creates no file, writes nothing, takes no lock that a writer in WAL mode would notice, and does no checkpoint.
    C(sqlite3 -readonly) creates a missing C(-wal) file and changes the C(-shm) file that a killed client has left;
    C(sqlite3) creates a database that does not exist, and calls it C(ok).
  - A database with a rollback journal (not WAL) cannot be committed to while it is read, so a check keeps writers
    waiting; see O(budget).
  - What a killed client has left, a hot journal or a log without its C(-shm) file, is read in a copy below C(TMPDIR).
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes.info
  - oncall.runbooks.attributes
options:
  path:
    description: The database's file. A symbolic link is followed.
    type: path
    required: true
  depth:
    description:
      - V(header) opens the database and reads its schema.
      - V(quick) also does C(PRAGMA quick_check) and C(PRAGMA foreign_key_check). It does not compare indexes with
        their tables.
      - V(full) does C(PRAGMA integrity_check), which does, and C(PRAGMA foreign_key_check).
      - No depth notices a changed byte inside of a value; the checksum of a backup does, see
        M(oncall.runbooks.sqlite_backup).
    type: str
    choices: [header, quick, full]
    default: quick
  expect_tables:
    description: Tables that have to exist; those that do not are in RV(tables_missing).
    type: list
    elements: str
    default: []
  count_rows:
    description: Whether to count the rows of all tables.
    type: bool
    default: false
  queries:
    description:
      - Queries by a name of your own. Each is one C(SELECT) of one row with one column; anything that is no reading
        is refused.
    type: dict
    default: {}
  timeout:
    description: The seconds for which to wait for a lock.
    type: float
    default: 5.0
  budget:
    description:
      - The seconds that the checks of O(depth) may take; then RV(state) is V(unknown). Without it there is no limit.
    type: float
seealso:
  - module: oncall.runbooks.sqlite_backup
  - module: oncall.runbooks.sqlite_restore
  - name: SQLite, integrity_check
    description: What the checks find.
    link: https://www.sqlite.org/pragma.html#pragma_integrity_check
"""

EXAMPLES = r"""
- name: Check Vritti's customer database
  oncall.runbooks.sqlite_info:
    path: /srv/vritti/data/customers.db
    expect_tables: [customers, api_keys, audit_log]
    queries:
      suspended: SELECT count(*) FROM customers WHERE status = 'suspended'
  register: database
  failed_when: database.state != 'ok' or database.tables_missing

- name: Check it thoroughly
  oncall.runbooks.sqlite_info:
    path: /srv/vritti/data/customers.db
    depth: full
"""

RETURN = r"""
database:
  description: The file, symbolic links resolved.
  type: str
  returned: success
  sample: /srv/vritti/data/customers.db
state:
  description:
    - V(missing), V(empty) (0 bytes, which C(integrity_check) calls ok), V(not_a_database), V(encrypted) (no header,
      and random bytes), V(locked) (by a process that RV(errors) names).
    - V(corrupt_index) where rebuilding the indexes mends all there is; V(corrupt) for any other damage, broken
      references among rows included.
    - V(unknown) where the file may not be read, where the checks did not end within O(budget), or cannot be made, as
      RV(limits) says.
    - V(ok) as far as O(depth) goes.
  type: str
  returned: success
  sample: ok
errors:
  description: Why the state is not V(ok), in sentences and SQLite's messages; 20 at most.
  type: list
  elements: str
  returned: success
  sample: ["row 7 missing from index idx_customers_email"]
damage:
  description: What is damaged, V(index), V(data) or V(foreign_keys).
  type: list
  elements: str
  returned: success
  sample: []
broken_references:
  description: Rows that refer to rows that do not exist; 0 where O(depth=header), and where there is other damage.
  type: int
  returned: success
  sample: 0
limits:
  description: What could not be seen or done, and what would help.
  type: list
  elements: str
  returned: success
  sample: ["vritti does not see every process that has it open; run with -b"]
depth:
  description: The depth that was asked for.
  type: str
  returned: success
  sample: quick
journal_mode:
  description: V(wal) or V(delete), which stands for all modes with a rollback journal; null where there is no
    database.
  type: str
  returned: success
  sample: wal
holders:
  description: The processes that have the database, its C(-wal), C(-shm) or C(-journal) file, or a deleted file of
    this name open.
  type: list
  elements: dict
  returned: success
  contains:
    pid:
      description: The process.
      type: int
      sample: 4711
    name:
      description: The program's name.
      type: str
      sample: uvicorn
    user:
      description: Who runs it.
      type: str
      sample: vritti
    files:
      description: Which of the files.
      type: list
      elements: str
      sample: [customers.db, customers.db-wal]
    locks:
      description: The locks by file, V(shared), V(reserved), V(exclusive) or V(write).
      type: dict
      sample: {customers.db: shared}
holders_complete:
  description: Whether every process could be seen. Who is not root sees the locks of others, and not their open
    files.
  type: bool
  returned: success
  sample: true
size_bytes:
  description: The size of the file; null where there is none.
  type: int
  returned: success
  sample: 1048576
modified_at:
  description: When the file was written to for the last time. In WAL mode that is the last checkpoint.
  type: str
  returned: success
  sample: "2026-11-27T03:00:00Z"
wal_bytes:
  description: The size of the C(-wal) file; 0 where there is none.
  type: int
  returned: success
  sample: 4120032
hot_journal:
  description: Whether a transaction was cut off, which the next client that opens the database rolls back.
  type: bool
  returned: success
  sample: false
page_size:
  description: Bytes per page.
  type: int
  returned: success
  sample: 4096
page_count:
  description: Pages, the log included.
  type: int
  returned: success
  sample: 256
freelist_count:
  description: Pages that are not in use.
  type: int
  returned: success
  sample: 0
application_id:
  description: C(PRAGMA application_id).
  type: int
  returned: success
  sample: 0
user_version:
  description: C(PRAGMA user_version).
  type: int
  returned: success
  sample: 0
encoding:
  description: The encoding of texts.
  type: str
  returned: success
  sample: UTF-8
tables:
  description: The tables, without SQLite's own and without virtual ones; null where the schema could not be read.
  type: list
  elements: str
  returned: success
  sample: [api_keys, audit_log, customers]
tables_missing:
  description: Which of O(expect_tables) do not exist.
  type: list
  elements: str
  returned: success
  sample: []
rows:
  description: Rows per table; null without O(count_rows).
  type: dict
  returned: success
  sample: {customers: 12}
query_results:
  description: What O(queries) gave; a blob in hexadecimal.
  type: dict
  returned: success
  sample: {suspended: 0}
filesystem:
  description: The type of the filesystem.
  type: str
  returned: success
  sample: ext4
disk_free_bytes:
  description: The space that is left on it.
  type: int
  returned: success
  sample: 81889955840
"""

import sqlite3

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "depth": {"type": "str", "choices": list(sqlite_files.DEPTHS), "default": "quick"},
            "expect_tables": {"type": "list", "elements": "str", "default": []},
            "count_rows": {"type": "bool", "default": False},
            "queries": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 5.0},
            "budget": {"type": "float"},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        seen = sqlite_files.look(
            options["path"],
            options["depth"],
            expect_tables=options["expect_tables"],
            count_tables=options["count_rows"],
            queries=options["queries"],
            timeout=options["timeout"],
            budget=options["budget"],
        )
    except NoAnswer as error:
        if error.kind != "permission":
            module.fail_json(msg=str(error))
        seen = sqlite_files.not_seen(options["path"], options["depth"], str(error))
    except (OSError, ValueError, sqlite3.Error, sqlite_files.Locked) as error:
        module.fail_json(msg=f"{options['path']} cannot be looked at: {error}.")
    # A result with a path gets the state of a file from Ansible, which would take the place of this one.
    seen["database"] = seen.pop("path")
    module.exit_json(changed=False, **seen)


if __name__ == "__main__":
    main()

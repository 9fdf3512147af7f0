#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: faiss_info
short_description: Look at a FAISS index and the files that belong to it
version_added: "0.6.0"
description:
  - Tells whether C(<name>.faiss), C(<name>.meta.json), C(<name>.tfidf.pkl) and C(<name>.tfidf.npz) are sound and belong
    together, as wp_chat has them. It reads and writes nothing else, and needs no package on the target.
  - The service compares nothing of this. With metadata that is shorter than the index it starts, and gives hits the
    texts of others.
  - A changed byte in a vector loads as well as any other one. Only the checksum of a backup finds it; see RV(checksum)
    and M(oncall.runbooks.faiss_backup).
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - faiss-cpu and numpy for the interpreter O(python), with O(depth=full) only
extends_documentation_fragment:
  - oncall.runbooks.attributes.info
  - oncall.runbooks.attributes
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
    description: The dimension of the vectors, which is that of the service's model.
    type: int
    default: 384
  tfidf:
    description:
      - Whether the two files of TF-IDF belong to the index. Where they do not, that both are absent is only noted in
        RV(limits); one alone is damage in any case.
    type: bool
    default: true
  depth:
    description:
      - V(quick) reads headers, ids, metadata and TF-IDF with the standard library, and a few of the vectors.
      - V(full) also has faiss read the index, in a process of its own with a limit on memory and time, compares the
        length of every vector with 1, and searches for a few of them.
    type: str
    choices: [quick, full]
    default: quick
  python:
    description: The interpreter that has faiss, such as the service's own; by default the one that runs this module.
      As root it is run as the owner of the index.
    type: path
  load_pickle:
    description:
      - With O(depth=full), whether to load C(<name>.tfidf.pkl) in that process, to compare its vocabulary with the
        matrix. Loading a pickle runs whatever is in it, as the service does when it starts.
    type: bool
    default: false
  memory_limit:
    description: How many bytes of address space that process may take. By default 2 GiB, or three times the file where
      that is more.
    type: int
  backup_dir:
    description: The folder of the backups, to compare the files with the newest one that can be trusted.
    type: path
  history:
    description: The service's history of its backups, C(logs/backup_history.jsonl), which has their MD5.
    type: path
  timeout:
    description: The seconds that it may take; then RV(state) is V(unknown).
    type: float
    default: 120.0
seealso:
  - module: oncall.runbooks.faiss_backup
  - module: oncall.runbooks.faiss_restore
"""

EXAMPLES = r"""
- name: Check wp_chat's index
  oncall.runbooks.faiss_info:
    path: /srv/wp_chat/data/index
    backup_dir: /srv/wp_chat/backups
    history: /srv/wp_chat/logs/backup_history.jsonl
  register: index
  failed_when: index.state != 'ok' or index.checksum == 'changed'

- name: Let faiss itself read it, with the service's interpreter
  oncall.runbooks.faiss_info:
    path: /srv/wp_chat/data/index
    depth: full
    python: /srv/wp_chat/.venv/bin/python
"""

RETURN = r"""
index:
  description: The folder.
  type: str
  returned: success
  sample: /srv/wp_chat/data/index
state:
  description:
    - V(missing) (no folder, or no C(<name>.faiss)), V(empty) (no bytes, or no vectors), V(unreadable) (by the disk, or
      by faiss), V(unrecognized) (no index), V(damaged) (its header contradicts itself), V(truncated), V(oversized),
      V(unknown_type) (an index of another type, of which only faiss could tell), V(untrained), V(wrong_metric),
      V(wrong_dimension).
    - V(ids) (they are not 0, 1, 2 …, so hits get texts of others), V(vectors) (some have not the length 1), V(search)
      (its own vectors are not found).
    - V(metadata_missing), V(metadata_broken), V(metadata_mismatch) (not as many items as vectors).
    - V(tfidf_missing) (both files, so the modes hybrid and bm25 do not work), V(tfidf_broken) (one of them is damaged
      or alone), V(tfidf_mismatch) (not as many rows as vectors, or not as many columns as words).
    - V(unknown) where it cannot be told, as RV(limits) says; V(ok) as far as O(depth) goes.
    - Of several the first in this order.
  type: str
  returned: success
  sample: ok
damage:
  description: All that is wrong, in these words.
  type: list
  elements: str
  returned: success
  sample: []
errors:
  description: The same in sentences, with the file, the value and the way out.
  type: list
  elements: str
  returned: success
  sample: []
limits:
  description: What could not be seen, and what would help.
  type: list
  elements: str
  returned: success
  sample: []
depth:
  description: The depth that was asked for.
  type: str
  returned: success
  sample: quick
type:
  description: The index's type in FAISS's letters, the outer one and the one in it; null where it could not be read.
  type: str
  returned: success
  sample: IxM2/IxFI
ntotal:
  description: The number of vectors.
  type: int
  returned: success
  sample: 348
dimension:
  description: The dimension of the vectors.
  type: int
  returned: success
  sample: 384
metric:
  description: What a search compares by; V(inner product) is what the service needs.
  type: str
  returned: success
  sample: inner product
size_bytes:
  description: The size of C(<name>.faiss).
  type: int
  returned: success
  sample: 537402
expected_bytes:
  description: The size that so many vectors take.
  type: int
  returned: success
  sample: 537402
metadata_items:
  description: The items in C(<name>.meta.json).
  type: int
  returned: success
  sample: 348
tfidf_rows:
  description: The rows of C(<name>.tfidf.npz).
  type: int
  returned: success
  sample: 348
tfidf_columns:
  description: Its columns.
  type: int
  returned: success
  sample: 20411
hybrid:
  description: Whether both files of TF-IDF are there.
  type: bool
  returned: success
  sample: true
modified_at:
  description: When the last of the four files was written to.
  type: str
  returned: success
  sample: "2026-11-27T03:00:00Z"
faiss_version:
  description: The version of faiss that has read it; null without O(depth=full).
  type: str
  returned: success
  sample: 1.12.0
sha256:
  description: The SHA-256 of each file that is there; empty without O(backup_dir).
  type: dict
  returned: success
  sample: {wp.faiss: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c}
checksum:
  description:
    - V(same) as in a backup that can be trusted. V(changed) where files differ though nothing was built anew, such as
      by a flipped byte. V(rebuilt) where the index was built anew since, so the backup says nothing of it. V(absent)
      where there is no backup. V(unknown) where none can be trusted, as RV(limits) says. Null without O(backup_dir).
  type: str
  returned: success
  sample: same
compared_with:
  description: The archive that it was compared with.
  type: str
  returned: success
  sample: /srv/wp_chat/backups/backup_1795318612.tar.gz
differences:
  description: The files that differ from it.
  type: list
  elements: dict
  returned: success
  contains:
    file:
      description: The file's name.
      type: str
      sample: wp.faiss
    bytes:
      description: How many bytes differ, as far as both have any.
      type: int
      sample: 1
    first:
      description: The place of the first one, from 0; null where none does.
      type: int
      sample: 4711
    size:
      description: The size of the file; null where it is missing.
      type: int
      sample: 537402
    size_saved:
      description: Its size in the backup; null where it is in none.
      type: int
      sample: 537402
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_backups, faiss_index
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "name": {"type": "str", "default": "wp"},
            "dimension": {"type": "int", "default": 384},
            "tfidf": {"type": "bool", "default": True},
            "depth": {"type": "str", "choices": list(faiss_index.DEPTHS), "default": "quick"},
            "python": {"type": "path"},
            "load_pickle": {"type": "bool", "default": False},
            "memory_limit": {"type": "int"},
            "backup_dir": {"type": "path"},
            "history": {"type": "path"},
            "timeout": {"type": "float", "default": 120.0},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        seen = faiss_index.look(
            options["path"],
            options["name"],
            options["dimension"],
            options["depth"],
            tfidf=options["tfidf"],
            python=options["python"] or "",
            load_pickle=options["load_pickle"],
            memory_limit=options["memory_limit"],
            timeout=options["timeout"],
        )
    except NoAnswer as error:
        if error.kind != "permission":
            module.fail_json(msg=str(error))
        seen = faiss_index.nothing(options["path"], options["name"], options["depth"])
        seen["limits"].append(str(error))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{options['path']} cannot be looked at: {error}.")
    compared: dict[str, object] = {"sha256": {}, "checksum": None, "compared_with": None, "differences": []}
    if options["backup_dir"]:
        compared.update(_compared(options, seen))
    # A result with a path gets the state of a file from Ansible, which would take the place of this one.
    seen["index"] = seen.pop("path")
    for key in (*faiss_index.PRIVATE, "name"):
        del seen[key]
    module.exit_json(changed=False, **seen, **compared)


def _compared(options: dict[str, object], seen: faiss_index.Seen) -> dict[str, object]:
    """How the files differ from the newest backup that can be trusted."""
    path, name = str(options["path"]), str(options["name"])
    until = faiss_index.Clock(float(str(options["timeout"])))
    try:
        history = options["history"]
        found = faiss_backups.candidates(str(options["backup_dir"]), name, str(history) if history else None)
        verdict = faiss_backups.compare(
            path, name, int(str(options["dimension"])), found, tfidf=bool(options["tfidf"]), until=until, seen=seen
        )
    except (Refused, NoAnswer) as error:
        seen["limits"].append(str(error))
        return {"checksum": "unknown"}
    except faiss_index.TimeUp:
        seen["limits"].append(f"comparing with a backup did not end within {until.seconds:g} s; allow more time")
        return {"checksum": "unknown"}
    if verdict.sentence:
        seen["limits" if verdict.value in ("absent", "rebuilt") else "errors"].append(verdict.sentence)
    names = faiss_index.names(name)
    return {
        "sha256": {names[suffix]: digest for suffix, digest in verdict.digests.items()},
        "checksum": verdict.value,
        "compared_with": verdict.backup.path if verdict.backup else None,
        "differences": [it.told() for it in verdict.differences],
    }


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kyrodb_export
short_description: Export a customer's episodes from KyroDB to JSON lines
version_added: "0.4.0"
description:
  - Writes one line of JSON per episode into O(dest), and a manifest beside it that says how many there are, how many
    there should be, and their SHA-256. It takes the place of C(scripts/export_episodes.py) and C(kyrodb.KyroDB/List),
    which Vritti's runbooks name and nobody has.
  - KyroDB has no call that lists its documents. Later versions of Vritti keep an index of the ids in their database
    (O(customers_db)), and the episodes are fetched with C(BulkQuery), or one by one with C(Query) where an older
    server has no C(BulkQuery). What the index promises and KyroDB has not is named in RV(missing), and RV(complete)
    is false. It is false as well where one C(Search) finds episodes of the customer that the index has not; they are
    exported too (RV(outside_index)). What the index has as deleted is not exported.
  - Where there is no index, as at v0.1.0 of Vritti, and for every O(collection) but V(failures), C(Search) finds the
    ids. It is approximate and gives 1000 at most, so RV(complete) is false and RV(notes) says why. It looks among the
    nearest documents of all customers and leaves others' out afterwards. Therefore it is made from several sides and
    from what was found, 32 times at most. A customer with few episodes in a busy instance may be crowded out even so.
  - Documents of another customer are never exported, whatever their namespace says.
  - A line has C(episode_id), an integer that may be above 2^53, which tools that calculate with doubles round;
    C(episode), decoded; C(metadata), everything else that KyroDB has about it, such as C(retrieval_count), C(tags)
    and C(reflection_*); and C(embedding) where O(include_embeddings) asks for it. An episode that cannot be decoded
    is kept as C(episode_json), C(episode) is null, and RV(complete) is false.
  - While it runs, the lines are in C(<dest>.part). A run that was killed is gone on with by the next one with the
    same O(customer_id), O(address) and O(collection) within an hour of its start, which keeps the whole lines that are
    there. Later, it begins anew, because they may have changed since. A file gets its name when it is complete and
    synced to disk. It is readable for its owner only.
  - A second run while nothing has changed in KyroDB changes nothing. KyroDB is only read. A few hundred episodes are
    held in memory at once.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - grpcio and protobuf on the target
extends_documentation_fragment:
  - oncall.runbooks.kyrodb
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    details: Reads everything that it would export, counts it, and writes nothing.
  diff_mode:
    support: full
    details: Shows what the manifest says of the export. What is in the episodes is not shown.
options:
  customer_id:
    description: Whose episodes.
    type: str
    required: true
  dest:
    description:
      - The file, or an existing folder (or a path that ends with C(/)), in which it is named
        C(<customer_id>.<collection>.jsonl).
      - A file that is there is replaced only where its manifest says that it is an export of the same customer,
        collection and address, and it is as it was written.
    type: path
    required: true
  customers_db:
    description:
      - Vritti's database on the target, which is read without leaving a trace. The customer has to be in it.
      - Without it, where it has no table C(episodes_index), and for another O(collection) than V(failures), the
        episodes are searched for.
    type: path
  collection:
    description: The collection, which is the namespace C(<customer_id>:<collection>). V(failures_images) is in the
      image instance, so that needs its O(address).
    type: str
    choices: [failures, failures_images, skills, cluster_templates]
    default: failures
  include_embeddings:
    description: Whether each line has the vector too, of a few kilobytes.
    type: bool
    default: false
  dimension:
    description: The dimension of the instance's vectors, for a search, where an older server does not tell it
      (C(GetConfig)).
    type: int
    default: 384
  api_key:
    description: The API key, where KyroDB's authentication is on. It is sent as the metadata C(x-api-key).
    type: str
  timeout:
    description: The seconds that each call may take, and for which to wait for a lock of the database.
    type: float
    default: 30.0
notes:
  - The lines hold whatever the customer's agents captured. Treat them as the customer's data.
  - It fails when KyroDB does not answer, when the index cannot be read, and when O(dest) may not be overwritten. It
    does not fail because RV(complete) is false.
seealso:
  - module: oncall.runbooks.kyrodb_doc_ids
"""

EXAMPLES = r"""
- name: Export a customer's episodes
  oncall.runbooks.kyrodb_export:
    address: localhost:50051
    customer_id: acme-corp
    customers_db: /srv/vritti/data/customers.db
    dest: /var/backups/vritti/
  register: exported

- name: Stop when some are missing
  ansible.builtin.assert:
    that: exported.complete
    fail_msg: "{{ exported.notes | join(' ') }}"

- name: Export from a v0.1.0, which has no index, with the vectors
  oncall.runbooks.kyrodb_export:
    address: localhost:50051
    customer_id: acme-corp
    dest: /var/backups/vritti/acme-corp.jsonl
    include_embeddings: true
"""

RETURN = r"""
episodes:
  description: The number of episodes in the file, or in check mode, that would be.
  type: int
  returned: success
  sample: 412
expected:
  description: The number that the index promised; null without an index.
  type: int
  returned: success
  sample: 412
complete:
  description: Whether everything is there that the index promised, decoded, and one search found nothing else.
    Without an index false, because nobody knows. Where the search is not answered, RV(notes) says it.
  type: bool
  returned: success
  sample: true
manifest:
  description: The file that describes the export.
  type: str
  returned: success
  sample: /var/backups/vritti/acme-corp.failures.jsonl.manifest.json
export:
  description: The file with the lines.
  type: str
  returned: success
  sample: /var/backups/vritti/acme-corp.failures.jsonl
source:
  description: Where the ids are from, V(index) or V(search).
  type: str
  returned: success
  sample: index
missing:
  description: The first 100 ids that the index has, and KyroDB has not.
  type: list
  elements: int
  returned: success
  sample: [1291]
missing_count:
  description: How many such ids there are.
  type: int
  returned: success
  sample: 1
other_customer:
  description: How many documents were left out because they are another customer's.
  type: int
  returned: success
  sample: 0
outside_index:
  description: How many episodes of the customer are in the file that the index has not. RV(notes) names the first 20.
  type: int
  returned: success
  sample: 0
undecoded:
  description: How many episodes could not be decoded and are in the file as KyroDB has them.
  type: int
  returned: success
  sample: 0
resumed:
  description: How many lines were taken over from a run that was cut short.
  type: int
  returned: success
  sample: 0
notes:
  description: What limits the export, in sentences.
  type: list
  elements: str
  returned: success
  sample: []
sha256:
  description: The checksum of the file.
  type: str
  returned: success
  sample: 28c294de80785b63d1f9b70a6ef12afabd4fb01781a42c9aeb80e33e4d10cb9c
size_bytes:
  description: The size of the file.
  type: int
  returned: success
  sample: 843776
"""

import json

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import episode_export, episodes, kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **kyrodb.CONNECTION_SPEC,
            "customer_id": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "customers_db": {"type": "path"},
            "collection": {"type": "str", "default": episodes.COLLECTION, "choices": list(episodes.COLLECTIONS)},
            "include_embeddings": {"type": "bool", "default": False},
            "dimension": {"type": "int", "default": 384},
            "api_key": {"type": "str", "no_log": True},
            "timeout": {"type": "float", "default": 30.0},
        },
        supports_check_mode=True,
    )
    options = module.params
    own = ("customer_id", "dest", "customers_db", "collection", "include_embeddings", "dimension", "timeout")
    try:
        endpoint = kyrodb.endpoint_of(options, options["api_key"])
        if options["timeout"] <= 0:
            raise ValueError(f"timeout is {options['timeout']}; it is a number of seconds above 0")
        if not 1 <= options["dimension"] <= kyrodb.MOST_DIMENSIONS:
            raise ValueError(f"dimension is {options['dimension']}; it goes from 1 to {kyrodb.MOST_DIMENSIONS}")
        export = episode_export.Export(endpoint, **{name: options[name] for name in own})
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    try:
        told = export.foresee() if module.check_mode else export.run()
    except Refused as error:
        module.fail_json(msg=str(error))
    except NoAnswer as error:
        module.fail_json(msg=f"{error}{export.remainder()}")
    except OSError as error:
        module.fail_json(msg=f"{export.dest} cannot be written: {error}.{export.remainder()}")
    before, after = told["before"], told["after"]
    keys = ("episodes", "expected", "complete", "source", "missing", "missing_count", "other_customer", "outside_index")
    result = {key: after[key] for key in (*keys, "undecoded", "notes", "sha256", "size_bytes")}
    result.update(changed=told["changed"], resumed=export.resumed, export=export.dest, manifest=export.manifest)
    if module._diff:
        shown = [key for key in after if key not in ("started_at", "finished_at", "replaces")]
        result["diff"] = {
            "before": _shown(before, shown),
            "after": _shown(after, shown),
            "before_header": export.dest,
            "after_header": export.dest,
        }
    module.exit_json(**result)


def _shown(manifest: dict[str, object] | None, keys: list[str]) -> str:
    return json.dumps({key: manifest.get(key) for key in keys}, indent=1) + "\n" if manifest else ""


if __name__ == "__main__":
    main()

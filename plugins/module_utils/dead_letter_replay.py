# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Store the reflections of Vritti's dead letter queue with their episodes in KyroDB, as Vritti would have.

The queue is only read. What is stored already is seen in KyroDB itself, so that a run may be cut off anywhere and the
next one goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import typing as t
from collections import Counter
from dataclasses import dataclass, field

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letters, episodes, kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

REPLAYED = ("replayed",)
SKIPPED = ("already_stored", "no_reflection")
FAILED = ("not_found", "other_customer", "error")
RESULTS = (*REPLAYED, *SKIPPED, *FAILED)
# So many of each of the three are listed one by one.
LISTED = 100
# And so many episodes that have their reflection.
MOST_STORED = 10_000
# What tells that an episode has its reflection.
_STORED = "reflection_root_cause"
_MOST_ID = (1 << 64) - 1


def shown(text: str) -> str:
    """The text with a question mark for every half of a character, which Ansible cannot read in a result."""
    return text.encode("utf-8", "replace").decode()


class _Problem(Exception):
    """An entry cannot be replayed; the message says why."""


@dataclass
class Replay:
    """A run over the queue, and what came of it."""

    endpoint: kyrodb.Endpoint
    customer: str | None = None
    limit: int | None = None
    timeout: float = 30.0
    check: bool = False
    # What came of it.
    by_result: Counter[str] = field(default_factory=Counter)
    results: list[dict[str, t.Any]] = field(default_factory=list)
    torn: int = 0
    foreign: int = 0
    not_tried: int = 0
    # Why it ended before the end of the queue.
    ended: str = ""

    def __post_init__(self) -> None:
        self._documents: kyrodb.Documents | None = None
        self._merges = True
        # In check mode, what would be stored by now.
        self._foreseen: set[tuple[str, int]] = set()
        self._listed: Counter[str] = Counter()
        # Customers and episodes that have their reflection in KyroDB by now, in the order of the queue.
        self._stored: dict[tuple[str, int], None] = {}

    @property
    def stored(self) -> list[dict[str, t.Any]]:
        return [{"customer_id": customer, "episode_id": doc_id} for customer, doc_id in self._stored]

    @property
    def replayed(self) -> int:
        return self._sum(REPLAYED)

    @property
    def skipped(self) -> int:
        return self._sum(SKIPPED)

    @property
    def failed(self) -> int:
        return self._sum(FAILED)

    def sentence(self) -> str:
        """What went wrong, or ''."""
        if not self.failed:
            return ""
        first = next(one for one in self.results if one["result"] in FAILED)
        if self.ended:
            return (
                f"{self.ended} {self.replayed} were stored before, and {self.not_tried} entries were not tried; run it "
                f"again, and it goes on."
            )
        which = f"episode {first['episode_id']} of {first['customer_id']}: {first['reason']}"
        return f"{self.failed} entries could not be replayed and stay in the queue; {which}."

    def _sum(self, results: t.Iterable[str]) -> int:
        return sum(self.by_result[one] for one in results)

    def run(self, files: t.Iterable[str]) -> None:
        """Replay these files, oldest first. Raise OSError or NoAnswer where one cannot be read."""
        try:
            for path in files:
                with contextlib.closing(dead_letters.open_queue(path)) as file:
                    for item in dead_letters.items(file):
                        self._take(item)
        finally:
            if self._documents:
                self._documents.__exit__()

    def _take(self, item: dead_letters.Item) -> None:
        self.torn += item.kind in ("torn", "long")
        self.foreign += item.kind == "foreign"
        entry = item.entry
        if entry is None or self.customer not in (None, entry["customer_id"]):
            return
        if self.ended or (self.limit is not None and self.replayed >= self.limit):
            self.not_tried += 1
            return
        try:
            result, reason = self._replay(entry)
        except _Problem as problem:
            result, reason = "error", str(problem)
        except NoAnswer as error:
            result, reason = "error", str(error)
            # An answer is about this entry; none, about all of them.
            if error.kind != "error":
                self.ended = str(error)
        self._note(entry, result, reason)

    def _note(self, entry: dict[str, t.Any], result: str, reason: str) -> None:
        self.by_result[result] += 1
        if result in ("replayed", "already_stored") and len(self._stored) < MOST_STORED:
            of = entry["customer_id"], entry["episode_id"]
            # In check mode, only those that are there already.
            if of not in self._foreseen:
                self._stored[of] = None
        kind = "failed" if result in FAILED else "skipped" if result in SKIPPED else "replayed"
        self._listed[kind] += 1
        if self._listed[kind] <= LISTED:
            named = entry.get("episode_id")
            told = {"episode_id": named if isinstance(named, int) else shown(str(named)[:40])}
            whose = {"customer_id": shown(entry["customer_id"])}
            self.results.append({**told, **whose, "result": result, "reason": shown(reason)})

    def _replay(self, entry: dict[str, t.Any]) -> tuple[str, str]:
        """What became of an entry, and why."""
        reflection = entry.get("reflection")
        if reflection is None:
            return "no_reflection", entry["failure_reason"][:100]
        customer, doc_id = entry["customer_id"], entry.get("episode_id")
        if not isinstance(doc_id, int) or isinstance(doc_id, bool) or not 0 < doc_id <= _MOST_ID:
            raise _Problem(f"its episode_id is {str(doc_id)[:40]}, which is no document's")
        keys = metadata_of(reflection)
        documents = self._of(customer)
        before = documents.get(doc_id, embedding=True)
        if before is None:
            return "not_found", f"KyroDB has no such document in {documents.namespace}"
        owner = before.metadata.get("customer_id")
        if owner != customer:
            return "other_customer", f"the document is {owner or 'nobody'}'s"
        if _STORED in before.metadata or (customer, doc_id) in self._foreseen:
            return "already_stored", ""
        reason = ""
        text = before.metadata.get(episodes.EPISODE)
        try:
            episode = episodes.decode(text or "")
            keys[episodes.EPISODE] = episodes.encode(
                {**episode, "reflection": _of_episode(reflection)}, like=text or ""
            )
        except episodes.Undecodable as error:
            reason = f"its {episodes.EPISODE} was left as it is, which cannot be decoded ({error})"
        if self.check:
            self._foreseen.add((customer, doc_id))
            return "replayed", reason
        if not self._store(documents, before, keys):
            return "not_found", "it was deleted meanwhile"
        after = documents.get(doc_id)
        lost = sorted(set(before.metadata) - set(after.metadata)) if after else []
        wrong = sorted(key for key, value in keys.items() if not after or after.metadata.get(key) != value)
        if lost or wrong:
            raise _Problem(f"it was stored, and what KyroDB holds differs in {', '.join((lost + wrong)[:20])}")
        return "replayed", reason

    def _of(self, customer: str) -> kyrodb.Documents:
        """The documents of a customer, over the channel that is open."""
        try:
            namespace = episodes.namespace(customer)
        except ValueError as error:
            raise _Problem(str(error)) from None
        if self._documents is None:
            # gRPC and KyroDB are needed from the first entry on that can be replayed.
            self._documents = kyrodb.Documents(self.endpoint, namespace, self.timeout)
        self._documents.namespace = namespace
        return self._documents

    def _store(self, documents: kyrodb.Documents, before: kyrodb.Document, keys: dict[str, str]) -> bool:
        """Write the keys; whether the document is still there."""
        if self._merges:
            try:
                return documents.merge_metadata(before.doc_id, keys)
            except kyrodb.Unimplemented:
                self._merges = False
        # Older servers have no other way than to insert the whole document again.
        if not before.embedding:
            raise _Problem("KyroDB can only insert it anew, and does not give its vector")
        documents.insert(kyrodb.Document(before.doc_id, {**before.metadata, **keys}, before.embedding))
        return True


# What Vritti makes of a reflection: names in the queue, in KyroDB, and how numbers are formatted.
_TEXTS = (
    ("root_cause", "root_cause"),
    ("resolution_strategy", "resolution"),
    ("llm_model", "model"),
    ("generated_at", "generated_at"),
)
_NUMBERS = (
    ("confidence_score", "confidence", ".4f"),
    ("generalization_score", "generalization", ".4f"),
    ("cost_usd", "cost_usd", ".6f"),
    ("generation_latency_ms", "latency_ms", ".2f"),
)
_JSON = (
    # An object in later versions, a list of strings before.
    ("preconditions", "preconditions"),
    ("environment_factors", "env_factors"),
    ("affected_components", "components"),
)


def metadata_of(reflection: t.Any) -> dict[str, str]:
    """The keys reflection_* under which Vritti stores a reflection; _Problem where it is none."""
    if not isinstance(reflection, dict):
        raise _Problem("its reflection is no object")
    if not isinstance(reflection.get("root_cause"), str) or not reflection["root_cause"].strip():
        raise _Problem("its reflection has no root_cause")
    keys = _formatted(reflection, _TEXTS, _NUMBERS, _JSON)
    consensus = reflection.get("consensus")
    if isinstance(consensus, dict):
        # The queue shortens the names, and leaves the perspectives out.
        named = {key.replace("consensus_", ""): value for key, value in consensus.items()}
        keys.update(
            _formatted(
                named,
                (("method", "consensus_method"),),
                (("confidence", "consensus_confidence", ".4f"),),
                (("disagreement_points", "disagreements"), ("perspectives", "perspectives_json")),
            )
        )
        if isinstance(named.get("perspectives"), list):
            keys["reflection_perspectives_count"] = str(len(named["perspectives"]))
    return keys


def _formatted(
    values: t.Mapping[str, t.Any],
    texts: t.Iterable[tuple[str, str]],
    numbers: t.Iterable[tuple[str, str, str]],
    others: t.Iterable[tuple[str, str]],
) -> dict[str, str]:
    """What is there of these, by its name in KyroDB."""
    keys = {}
    for name, key in texts:
        if values.get(name) is not None:
            keys[f"reflection_{key}"] = _text(name, values[name])
    for name, key, shape in numbers:
        value = values.get(name)
        if value is None:
            continue
        try:
            if isinstance(value, bool) or not math.isfinite(value):
                raise TypeError
            keys[f"reflection_{key}"] = format(float(value), shape)
        except (TypeError, OverflowError):
            raise _Problem(f"its reflection's {name} is no number") from None
    for name, key in others:
        if values.get(name) is not None:
            keys[f"reflection_{key}"] = json.dumps(values[name])
    return keys


def _text(name: str, value: t.Any) -> str:
    if not isinstance(value, str):
        raise _Problem(f"its reflection's {name} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        # Half of a character, as an escape; KyroDB takes none.
        raise _Problem(f"its reflection's {name} has a character that cannot be stored") from None
    return value


def _of_episode(reflection: dict[str, t.Any]) -> dict[str, t.Any]:
    """The reflection as it stands in the episode. Vritti cannot read an episode with a consensus that is shortened."""
    consensus = reflection.get("consensus")
    whole = isinstance(consensus, dict) and "perspectives" in consensus
    return reflection if whole or "consensus" not in reflection else {**reflection, "consensus": None}

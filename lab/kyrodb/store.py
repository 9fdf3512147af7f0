# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of one KyroDB instance: vectors with metadata, kept in an append-only file."""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import math
import operator
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Background traffic captures for as long as a lab runs: the oldest documents make room.
MAX_DOCUMENTS = 5000
# A search in pure Python: the newest documents of a namespace stand for what an index would have found.
MAX_SCANNED = 300
CACHE_CAPACITY = 1000
HOT_TIER_CAPACITY = 256
# The file is rewritten when this many of its lines no longer describe a document.
MAX_DEAD_LINES = 2000


class CorruptStoreError(Exception):
    """The data directory holds something that this store did not write."""


class DimensionMismatchError(Exception):
    """A vector of the wrong length."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"query dimension mismatch: expected {expected} found {found}")


@dataclass
class Document:
    doc_id: int
    embedding: array[float]
    metadata: dict[str, str]
    namespace: str
    norm: float


@dataclass(frozen=True)
class Hit:
    document: Document
    score: float


@dataclass(frozen=True)
class Found:
    hits: list[Hit]
    from_cache: bool
    hot: bool
    cold: bool


@dataclass
class Counters:
    cache_hits: int = 0
    cache_misses: int = 0
    hot_tier_hits: int = 0
    hot_tier_misses: int = 0
    hot_tier_flushes: int = 0
    cold_tier_searches: int = 0


def _norm(vector: array[float]) -> float:
    return math.sqrt(sum(map(operator.mul, vector, vector))) or 1.0


def _hit(document: Document, vector: array[float], norm: float) -> Hit:
    return Hit(document, sum(map(operator.mul, vector, document.embedding)) / (norm * document.norm))


class Store:
    """Upserts, deletes and cosine search; every change is in the file before it is acknowledged."""

    def __init__(self, data_dir: Path, dimension: int) -> None:
        self.data_dir = data_dir
        self.dimension = dimension
        self.counters = Counters()
        self._lock = threading.RLock()
        self._documents: dict[int, Document] = {}
        self._namespaces: dict[str, dict[int, Document]] = {}
        self._hot: set[int] = set()
        self._query_cache: OrderedDict[int, None] = OrderedDict()
        self._search_cache: OrderedDict[tuple[str, int, float, bytes], list[Hit]] = OrderedDict()
        self._generation = 0
        self._dead_lines = 0
        data_dir.mkdir(parents=True, exist_ok=True)
        self._path = data_dir / "documents.jsonl"
        self._recover()
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def insert(self, doc_id: int, embedding: Iterable[float], metadata: Mapping[str, str], namespace: str) -> None:
        vector = array("f", embedding)
        if len(vector) != self.dimension:
            raise DimensionMismatchError(self.dimension, len(vector))
        with self._lock:
            document = Document(doc_id, vector, dict(metadata), namespace, _norm(vector))
            self._append(self._put_line(document))
            self._put(document)
            self._hot.add(doc_id)
            if len(self._hot) > HOT_TIER_CAPACITY:
                self._hot.clear()
                self.counters.hot_tier_flushes += 1
            if len(self._documents) > MAX_DOCUMENTS:
                self._remove(next(iter(self._documents)))
            self._compact_if_due()

    def delete(self, doc_id: int, namespace: str) -> bool:
        with self._lock:
            if self._visible(doc_id, namespace) is None:
                return False
            self._remove(doc_id)
            self._compact_if_due()
            return True

    def update_metadata(self, doc_id: int, metadata: Mapping[str, str], merge: bool, namespace: str) -> bool:
        with self._lock:
            document = self._visible(doc_id, namespace)
            if document is None:
                return False
            document.metadata = {**document.metadata, **metadata} if merge else dict(metadata)
            self._append({"op": "meta", "id": doc_id, "metadata": document.metadata})
            self._dead_lines += 1
            self._compact_if_due()
            return True

    def query(self, doc_id: int, namespace: str) -> tuple[Document | None, str]:
        """The document, and the tier that it came from."""
        with self._lock:
            document = self._visible(doc_id, namespace)
            if document is None:
                self.counters.cache_misses += 1
                return None, "UNKNOWN"
            if doc_id in self._query_cache:
                self.counters.cache_hits += 1
                self._query_cache.move_to_end(doc_id)
                return document, "CACHE"
            self.counters.cache_misses += 1
            self._query_cache[doc_id] = None
            if len(self._query_cache) > CACHE_CAPACITY:
                self._query_cache.popitem(last=False)
            if doc_id in self._hot:
                self.counters.hot_tier_hits += 1
                return document, "HOT_TIER"
            self.counters.hot_tier_misses += 1
            self.counters.cold_tier_searches += 1
            return document, "COLD_TIER"

    def search(self, embedding: Iterable[float], k: int, min_score: float, namespace: str) -> Found:
        vector = array("f", embedding)
        if len(vector) != self.dimension:
            raise DimensionMismatchError(self.dimension, len(vector))
        key = (namespace, k, min_score, vector.tobytes())
        with self._lock:
            cached = self._search_cache.get(key)
            if cached is not None:
                self.counters.cache_hits += 1
                self._search_cache.move_to_end(key)
                return Found(cached, from_cache=True, hot=False, cold=False)
            self.counters.cache_misses += 1
            pool = self._documents if not namespace else self._namespaces.get(namespace, {})
            newest = list(itertools.islice(reversed(pool.values()), MAX_SCANNED))
            hot = any(document.doc_id in self._hot for document in newest)
            cold = any(document.doc_id not in self._hot for document in newest)
            generation = self._generation
            self.counters.hot_tier_hits += hot
            self.counters.hot_tier_misses += not hot
            self.counters.cold_tier_searches += cold
        norm = _norm(vector)
        scored = (_hit(document, vector, norm) for document in newest)
        hits = heapq.nlargest(k, (hit for hit in scored if hit.score >= min_score), key=lambda hit: hit.score)
        with self._lock:
            # Unless something changed while we computed without the lock.
            if generation == self._generation:
                self._search_cache[key] = hits
            if len(self._search_cache) > CACHE_CAPACITY:
                self._search_cache.popitem(last=False)
        return Found(hits, from_cache=False, hot=hot, cold=cold)

    def snapshot(self) -> tuple[Path, int, int]:
        """Write all documents into a new snapshot file: its path, their number, its size."""
        with self._lock:
            taken = (int(path.stem.split("_")[1]) for path in self.data_dir.glob("snapshot_*.snap"))
            number = 1 + max(taken, default=0)
            path = self.data_dir / f"snapshot_{number}.snap"
            self._write_all(path)
            return path, len(self._documents), path.stat().st_size

    def sizes(self) -> dict[str, int]:
        with self._lock:
            per_document = 4 * self.dimension + 600
            return {
                "cache": len(self._query_cache) + len(self._search_cache),
                "hot_tier": len(self._hot),
                "cold_tier": len(self._documents) - len(self._hot),
                "memory_bytes": len(self._documents) * per_document,
                "disk_bytes": sum(path.stat().st_size for path in self.data_dir.glob("*") if path.is_file()),
            }

    def close(self) -> None:
        with self._lock:
            os.fsync(self._file)
            os.close(self._file)

    def _visible(self, doc_id: int, namespace: str) -> Document | None:
        # A namespace is a tag on the document, no container: ids are global, an empty name filters nothing.
        document = self._documents.get(doc_id)
        return document if document is not None and namespace in ("", document.namespace) else None

    def _put(self, document: Document) -> None:
        previous = self._documents.get(document.doc_id)
        if previous is not None:
            if (previous.namespace, previous.embedding) == (document.namespace, document.embedding):
                # Only its metadata are new: what was found before would be found again.
                previous.metadata = document.metadata
                self._dead_lines += 1
                return
            del self._documents[document.doc_id]
            self._dead_lines += 1
            self._namespaces[previous.namespace].pop(document.doc_id, None)
            self._forget_cached(previous.namespace)
        self._documents[document.doc_id] = document
        self._namespaces.setdefault(document.namespace, {})[document.doc_id] = document
        self._generation += 1
        self._add_to_cached(document)

    def _remove(self, doc_id: int) -> None:
        document = self._documents.pop(doc_id)
        self._namespaces[document.namespace].pop(doc_id, None)
        self._hot.discard(doc_id)
        self._query_cache.pop(doc_id, None)
        self._forget_cached(document.namespace)
        self._generation += 1
        self._append({"op": "delete", "id": doc_id})
        self._dead_lines += 2

    def _add_to_cached(self, document: Document) -> None:
        """A new document joins the cached results that it belongs to, so that inserts do not cool the cache."""
        for key, hits in self._search_cache.items():
            namespace, k, min_score, embedding = key
            if namespace not in ("", document.namespace):
                continue
            vector = array("f", embedding)
            hit = _hit(document, vector, _norm(vector))
            if hit.score >= min_score:
                self._search_cache[key] = heapq.nlargest(k, [*hits, hit], key=lambda hit: hit.score)

    def _forget_cached(self, namespace: str) -> None:
        for key in [key for key in self._search_cache if key[0] in ("", namespace)]:
            del self._search_cache[key]

    @staticmethod
    def _put_line(document: Document) -> dict[str, object]:
        return {
            "op": "put",
            "id": document.doc_id,
            "embedding": base64.b64encode(document.embedding.tobytes()).decode(),
            "metadata": document.metadata,
            "namespace": document.namespace,
        }

    def _append(self, entry: dict[str, object]) -> None:
        # One write call per line: a process that is killed leaves whole lines behind.
        os.write(self._file, (json.dumps(entry, separators=(",", ":")) + "\n").encode())

    def _write_all(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for document in self._documents.values():
                file.write(json.dumps(self._put_line(document), separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _compact_if_due(self) -> None:
        if self._dead_lines < MAX_DEAD_LINES:
            return
        fresh = self._path.with_suffix(".new")
        self._write_all(fresh)
        os.close(self._file)
        os.replace(fresh, self._path)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._dead_lines = 0

    def _recover(self) -> None:
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    self._replay(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    # Strict recovery, as the real server does it: a damaged file is for a person to look at.
                    raise CorruptStoreError(f"{self._path}, line {number}: {error}") from error

    def _replay(self, entry: dict[str, object]) -> None:
        doc_id = int(str(entry["id"]))
        if entry["op"] == "put":
            vector = array("f", base64.b64decode(str(entry["embedding"])))
            metadata = entry["metadata"]
            if not isinstance(metadata, dict):
                raise TypeError("metadata is no mapping")
            self._put(Document(doc_id, vector, metadata, str(entry["namespace"]), _norm(vector)))
        elif entry["op"] == "meta":
            metadata = entry["metadata"]
            if not isinstance(metadata, dict):
                raise TypeError("metadata is no mapping")
            self._dead_lines += 1
            self._documents[doc_id].metadata = metadata
        elif entry["op"] == "delete":
            document = self._documents.pop(doc_id)
            self._namespaces[document.namespace].pop(doc_id, None)
            self._dead_lines += 2
        else:
            raise ValueError(f"unknown operation {entry['op']!r}")

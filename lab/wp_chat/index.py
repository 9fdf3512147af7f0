# SPDX-License-Identifier: GPL-3.0-or-later
"""The index as the service has it: loaded once at the start, and not checked."""

from __future__ import annotations

import json
import pickle
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from lab.wp_chat.embedding import embed
from lab.wp_chat.tfidf import Matrix, Vectorizer

DIRECTORY = Path("data/index")
_NEIGHBOURS = 200
# The tokenizer is loaded by the first search: whoever comes meanwhile waits as well.
_LOAD_SECONDS = 1.0
_SNIPPET = 160


class NotBuiltError(Exception):
    """The files of the text search are missing: 400."""


class Index:
    def __init__(self) -> None:
        self._index = faiss.read_index(str(DIRECTORY / "wp.faiss"))
        with (DIRECTORY / "wp.meta.json").open(encoding="utf-8") as file:
            self._metadata: list[dict[str, Any]] = json.load(file)
        self._loading = threading.Lock()
        self._loaded = False
        self._text: tuple[Vectorizer, Matrix] | None = None
        vectorizer, matrix = DIRECTORY / "wp.tfidf.pkl", DIRECTORY / "wp.tfidf.npz"
        if vectorizer.exists() and matrix.exists():
            with vectorizer.open("rb") as file:
                # The service's own file, as it would load it.
                self._text = pickle.load(file), Matrix.load(matrix)  # noqa: S301

    def search(self, query: str, mode: str, topk: int) -> list[dict[str, Any]]:
        """The best chunks; one whose metadata is missing is left out without a word."""
        scores: dict[int, float] = {}
        if mode in ("dense", "hybrid"):
            scores = self._dense(query, topk if mode == "dense" else _NEIGHBOURS)
        if mode in ("bm25", "hybrid"):
            found = self._bm25(query)
            scores = _mixed(scores, found) if mode == "hybrid" else dict(enumerate(found.tolist()))
        best = sorted(scores, key=lambda number: (-scores[number], number))[:topk]
        contexts: list[dict[str, Any]] = []
        for number in best:
            if number < len(self._metadata):
                chunk = self._metadata[number]
                about = {name: chunk[name] for name in ("post_id", "chunk_id", "title", "url")}
                rank = len(contexts) + 1
                contexts.append(
                    {"rank": rank, "hybrid_score": round(scores[number], 6), **about, "chunk": chunk["chunk"]}
                )
        return contexts

    def _dense(self, query: str, count: int) -> dict[int, float]:
        with self._loading:
            if not self._loaded:
                time.sleep(_LOAD_SECONDS)
                self._loaded = True
        scores, numbers = self._index.search(embed([query]), count)
        # Padded with -1 where there are fewer.
        return {int(number): float(score) for score, number in zip(scores[0], numbers[0]) if number >= 0}

    def _bm25(self, query: str) -> NDArray[np.float64]:
        if self._text is None:
            raise NotBuiltError("BM25 index not built. Please build it first.")
        vectorizer, matrix = self._text
        return matrix.times(vectorizer.transform(query))


def _mixed(dense: dict[int, float], text: NDArray[np.float64]) -> dict[int, float]:
    """Half and half, each scaled to what it has."""
    low, high = min(dense.values(), default=0.0), max(dense.values(), default=1.0)
    best = float(text.max(initial=0.0)) or 1.0
    return {
        number: (score - low) / ((high - low) or 1.0) / 2
        + (float(text[number]) / best / 2 if number < len(text) else 0)
        for number, score in dense.items()
    }


def snippet(chunk: str, query: str) -> str:
    words = _words(query)
    at = min((place for word in words if (place := chunk.lower().find(word)) >= 0), default=0)
    start = max(0, at - _SNIPPET // 4)
    return highlight(chunk[start : start + _SNIPPET], query)


def highlight(text: str, query: str) -> str:
    words = _words(query)
    if not words:
        return text
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.sub(rf"\b({pattern})\b", r"<em>\1</em>", text, flags=re.IGNORECASE)


def _words(query: str) -> Sequence[str]:
    return [word for word in re.findall(r"\w+", query.lower()) if len(word) > 1]

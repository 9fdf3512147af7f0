# SPDX-License-Identifier: GPL-3.0-or-later
"""TF-IDF over character n-grams: the vectorizer that is pickled, and the matrix as scipy.sparse stores it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_SHORTEST, _LONGEST = 2, 4
_SPACES = re.compile(r"\s+")


def _grams(text: str) -> Counter[str]:
    text = _SPACES.sub(" ", text.lower())
    counts: Counter[str] = Counter()
    for size in range(_SHORTEST, _LONGEST + 1):
        counts.update(text[start : start + size] for start in range(len(text) - size + 1))
    return counts


@dataclass
class Matrix:
    """Compressed sparse rows."""

    data: NDArray[np.float64]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]
    shape: tuple[int, int]

    def times(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(vector) != self.shape[1]:
            wrong = f"size {self.shape[1]} is different from {len(vector)}"
            raise ValueError(f"matmul: dimension mismatch with signature (n,k=?),(k=?,m)->(n,m) ({wrong})")
        sums = np.concatenate(([0.0], np.cumsum(self.data * vector[self.indices])))
        products: NDArray[np.float64] = sums[self.indptr[1:]] - sums[self.indptr[:-1]]
        return products

    def save(self, file: IO[bytes]) -> None:
        # The members, and their names, that scipy.sparse.save_npz writes.
        np.savez_compressed(
            file,
            indices=self.indices,
            indptr=self.indptr,
            format=np.array(b"csr"),
            shape=np.array(self.shape),
            data=self.data,
        )

    @classmethod
    def load(cls, path: Path) -> Matrix:
        with np.load(path) as found:
            rows, columns = (int(number) for number in found["shape"])
            return cls(found["data"], found["indices"], found["indptr"], (rows, columns))


class Vectorizer:
    """Named as scikit-learn's attributes are."""

    def __init__(self) -> None:
        self.vocabulary_: dict[str, int] = {}
        self.idf_: list[float] = []

    def fit_transform(self, texts: Sequence[str]) -> Matrix:
        documents = [_grams(text) for text in texts]
        found: Counter[str] = Counter()
        for grams in documents:
            found.update(grams.keys())
        self.vocabulary_ = {gram: column for column, gram in enumerate(sorted(found))}
        self.idf_ = [math.log((1 + len(texts)) / (1 + found[gram])) + 1 for gram in sorted(found)]
        rows = [self._row(grams) for grams in documents]
        sizes = [0, *(len(columns) for columns, _values in rows)]
        return Matrix(
            np.concatenate([values for _columns, values in rows]),
            np.concatenate([columns for columns, _values in rows]),
            np.cumsum(sizes).astype(np.int32),
            (len(texts), len(self.vocabulary_)),
        )

    def transform(self, text: str) -> NDArray[np.float64]:
        """One dense row."""
        columns, values = self._row(_grams(text))
        row: NDArray[np.float64] = np.zeros(len(self.vocabulary_))
        row[columns] = values
        return row

    def _row(self, grams: Counter[str]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        known = sorted((self.vocabulary_[gram], count) for gram, count in grams.items() if gram in self.vocabulary_)
        columns: NDArray[Any] = np.array([column for column, _count in known], dtype=np.int32)
        values = np.array([(1 + math.log(count)) * self.idf_[column] for column, count in known], dtype=np.float64)
        length = float(np.linalg.norm(values))
        return columns, values / length if length else values

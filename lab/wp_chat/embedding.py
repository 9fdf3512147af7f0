# SPDX-License-Identifier: GPL-3.0-or-later
"""Vectors of texts: words and their neighbours hashed into places, so that what shares words is near."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSION = 384
_PLACES = 6
_WORD = re.compile(r"\w+")

Vectors = NDArray[np.float32]


@lru_cache(maxsize=50_000)
def _places(feature: str) -> tuple[tuple[int, float], ...]:
    digest = hashlib.blake2b(feature.encode(), digest_size=3 * _PLACES).digest()
    pieces = [digest[start : start + 3] for start in range(0, len(digest), 3)]
    return tuple((int.from_bytes(piece[:2], "little") % DIMENSION, 1.0 - 2.0 * (piece[2] & 1)) for piece in pieces)


def embed(texts: Sequence[str]) -> Vectors:
    """One unit vector for each text, always the same."""
    vectors: NDArray[Any] = np.zeros((len(texts), DIMENSION), dtype=np.float64)
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower()) or [""]
        for feature in (*words, *(f"{first} {second}" for first, second in pairwise(words))):
            for place, sign in _places(feature):
                vectors[row, place] += sign
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1.0
    return (vectors / lengths).astype(np.float32)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Deterministic embeddings: hashed words in place of a language model, at a language model's leisure."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re

from lab.faults import ActiveFaults

IMAGE_DIMENSION = 512
# Text models that can be had: the length of their vectors, and their work compared with the default's.
MODELS = {
    "all-MiniLM-L6-v2": (384, 1.0),
    "all-MiniLM-L12-v2": (384, 2.0),
    "paraphrase-MiniLM-L3-v2": (384, 0.5),
    "all-mpnet-base-v2": (768, 4.0),
}
_SECONDS = 0.004
_SLOW_SECONDS = 0.25
_WORD = re.compile(r"[a-z0-9_]+")


class EmbeddingService:
    def __init__(self, faults: ActiveFaults, text_model: str) -> None:
        self._faults = faults
        self._text_model = text_model.removeprefix("sentence-transformers/")
        self._text_dimension, self._text_work = MODELS.get(self._text_model, (0, 1.0))
        # The image model is loaded by the first image. v0.1.0's health check looks in the wrong place and sees neither.
        self.text_model_loaded = False
        self.image_model_loaded = False

    def load(self, expected_dimension: int) -> None:
        """Load the text model, whose vectors must have the length that is configured."""
        if not self._text_dimension:
            raise RuntimeError(f"text model {self._text_model} cannot be loaded: no such model")
        if self._text_dimension != expected_dimension:
            raise RuntimeError(
                f"text model {self._text_model} has dimension {self._text_dimension}, "
                f"EMBEDDING_TEXT_DIMENSION is {expected_dimension}"
            )
        self.text_model_loaded = True

    async def text(self, text: str) -> list[float]:
        await self._think(self._text_work)
        # Each model has a space of its own: vectors of two models have nothing in common.
        words = _WORD.findall(text.lower()) or [text]
        return _hashed([f"{self._text_model} {word}" for word in words], self._text_dimension)

    async def image(self, image: bytes) -> list[float]:
        await self._think(1.0)
        self.image_model_loaded = True
        starts = range(0, min(len(image), 8192), 64)
        blocks = [hashlib.sha256(image[start : start + 64]).hexdigest() for start in starts]
        return _hashed(blocks or ["empty"], IMAGE_DIMENSION)

    async def _think(self, work: float) -> None:
        await asyncio.sleep(work * (_SLOW_SECONDS if self._faults.active("embedding-slow") else _SECONDS))


def _hashed(features: list[str], dimension: int) -> list[float]:
    vector = [0.0] * dimension
    for feature in features:
        digest = hashlib.sha256(feature.encode()).digest()
        for start in range(0, 16, 4):
            position = int.from_bytes(digest[start : start + 4], "big")
            vector[position % dimension] += 1.0 if digest[16 + start] & 1 else -1.0
    norm = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / norm for value in vector]

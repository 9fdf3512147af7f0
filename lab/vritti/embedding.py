# SPDX-License-Identifier: GPL-3.0-or-later
"""Deterministic embeddings: hashed words in place of a language model, at a language model's leisure."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re

from lab.faults import ActiveFaults

TEXT_DIMENSION = 384
IMAGE_DIMENSION = 512
_SECONDS = 0.004
_SLOW_SECONDS = 0.25
_WORD = re.compile(r"[a-z0-9_]+")


class EmbeddingService:
    def __init__(self, faults: ActiveFaults, loads_text_model: bool) -> None:
        self._faults = faults
        # The image model is loaded by the first image. v0.1.0's health check looks in the wrong place and sees neither.
        self.text_model_loaded = loads_text_model
        self.image_model_loaded = False

    async def text(self, text: str) -> list[float]:
        await self._think()
        return _hashed(_WORD.findall(text.lower()) or [text], TEXT_DIMENSION)

    async def image(self, image: bytes) -> list[float]:
        await self._think()
        self.image_model_loaded = True
        starts = range(0, min(len(image), 8192), 64)
        blocks = [hashlib.sha256(image[start : start + 64]).hexdigest() for start in starts]
        return _hashed(blocks or ["empty"], IMAGE_DIMENSION)

    async def _think(self) -> None:
        await asyncio.sleep(_SLOW_SECONDS if self._faults.active("embedding-slow") else _SECONDS)


def _hashed(features: list[str], dimension: int) -> list[float]:
    vector = [0.0] * dimension
    for feature in features:
        digest = hashlib.sha256(feature.encode()).digest()
        for start in range(0, 16, 4):
            position = int.from_bytes(digest[start : start + 4], "big")
            vector[position % dimension] += 1.0 if digest[16 + start] & 1 else -1.0
    norm = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / norm for value in vector]

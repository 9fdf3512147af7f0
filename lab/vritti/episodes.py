# SPDX-License-Identifier: GPL-3.0-or-later
"""Capture and search, on top of KyroDB."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import time
import zlib
from pathlib import Path
from typing import Any

from lab.vritti.embedding import EmbeddingService
from lab.vritti.kyrodb_client import KyroDBRouter
from lab.vritti.schemas import Episode, SearchHead, SearchV010
from lab.vritti.settings import Settings
from lab.vritti.storage import CustomerDatabase, now

COLLECTION = "failures"
# SEARCH_MAX_K caps what is fetched before filtering at twice its value.
MAX_FETCHED = 200
_WEIGHTS = {"similarity": 0.5, "precondition": 0.3, "recency": 0.1, "usage": 0.1}

_logger = logging.getLogger("src.ingestion.capture")


class EpisodeStatistics:
    """What /stats reports, since process start."""

    def __init__(self) -> None:
        self.ingested = 0
        self.failures = 0
        self.searches = 0
        self.search_latency_ms = 0.0

    def report(self) -> dict[str, Any]:
        attempts = self.ingested + self.failures
        return {
            "ingestion_stats": {
                "total_ingested": self.ingested,
                "total_failures": self.failures,
                "success_rate": self.ingested / attempts if attempts else 0.0,
            },
            "search_stats": {
                "total_searches": self.searches,
                "avg_latency_ms": round(self.search_latency_ms / self.searches, 2) if self.searches else 0.0,
                "llm_validation_calls": 0,
                "llm_rejections": 0,
                "llm_rejection_rate": 0.0,
                "avg_llm_latency_ms": 0.0,
            },
        }


class EpisodeService:
    def __init__(
        self, settings: Settings, router: KyroDBRouter, database: CustomerDatabase, embeddings: EmbeddingService
    ) -> None:
        self._settings = settings
        self._router = router
        self._database = database
        self._embeddings = embeddings
        self.statistics = EpisodeStatistics()

    async def capture(self, episode: Episode, customer_id: str, wants_reflection: bool) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            episode_id, has_image = await self._ingest(episode, customer_id)
        except Exception as error:
            self.statistics.failures += 1
            _logger.error("Ingestion failed for episode: %s", error)
            raise
        self.statistics.ingested += 1
        latency = _milliseconds_since(started)
        _logger.info("Episode %d ingested for customer %s in %.1fms", episode_id, customer_id, latency)
        return {
            "episode_id": episode_id,
            "collection": COLLECTION,
            "ingestion_latency_ms": latency,
            "text_stored": True,
            "image_stored": has_image,
            "reflection_queued": wants_reflection and bool(self._settings.llm_api_key),
        }

    async def _ingest(self, episode: Episode, customer_id: str) -> tuple[int, bool]:
        vector = await self._embeddings.text(f"{episode.goal} {episode.error_trace}")
        image = await asyncio.to_thread(self._screenshot, episode)
        episode_id = await asyncio.to_thread(self._database.next_doc_id)
        namespace = f"{customer_id}:{COLLECTION}"
        await self._router.text.insert(episode_id, vector, self._metadata(episode_id, episode, customer_id), namespace)
        if image is not None:
            metadata = {"customer_id": customer_id, "episode_type": episode.episode_type}
            image_vector = await self._embeddings.image(image)
            await self._router.image.insert(episode_id, image_vector, metadata, f"{namespace}_images")
        await asyncio.to_thread(self._database.index_episode, episode_id, customer_id, COLLECTION, image is not None)
        return episode_id, image is not None

    async def search(self, query: SearchV010 | SearchHead, customer_id: str) -> dict[str, Any]:
        started = time.perf_counter()
        breakdown = dict.fromkeys(("embedding_ms", "search_ms", "validation_ms", "precondition_ms", "ranking_ms"), 0.0)
        vector = await self._embeddings.text(query.goal)
        image_vector = await self._embeddings.image(_decoded(query.image_base64)) if query.image_base64 else None
        breakdown["embedding_ms"] = _milliseconds_since(started)
        mark = time.perf_counter()
        namespace = f"{customer_id}:{COLLECTION}"
        fetched = min(2 * query.k, MAX_FETCHED)
        hits = await self._router.text.search(vector, fetched, query.min_similarity, namespace)
        image_scores: dict[int, float] = {}
        if image_vector is not None:
            image_hits = await self._router.image.search(image_vector, fetched, -1.0, f"{namespace}_images")
            image_scores = {hit.doc_id: hit.score for hit in image_hits}
        breakdown["search_ms"] = _milliseconds_since(mark)
        mark = time.perf_counter()
        candidates = [candidate for hit in hits if (candidate := _candidate(hit, query, image_scores)) is not None]
        breakdown["precondition_ms"] = _milliseconds_since(mark)
        mark = time.perf_counter()
        weights = {**_WEIGHTS, **(query.ranking_weights or {})}
        for candidate in candidates:
            scores = candidate["scores"]
            scores["combined"] = sum(weights.get(name, 0.0) * value for name, value in scores.items())
        candidates.sort(key=lambda candidate: candidate["scores"]["combined"], reverse=True)
        results = candidates[: query.k]
        for rank, result in enumerate(results, 1):
            result["rank"] = rank
        breakdown["ranking_ms"] = _milliseconds_since(mark)
        latency = _milliseconds_since(started)
        self.statistics.searches += 1
        self.statistics.search_latency_ms += latency
        return {
            "results": results,
            "total_candidates": len(hits),
            "total_filtered": len(hits) - len(candidates),
            "total_returned": len(results),
            "search_latency_ms": latency,
            "breakdown": breakdown,
            "collection": COLLECTION,
            "query_embedding_dimension": len(vector),
            "searched_at": now(),
        }

    def _screenshot(self, episode: Episode) -> bytes | None:
        if self._settings.is_head:
            return _decoded(episode.screenshot_base64) if episode.screenshot_base64 else None
        path = Path(episode.screenshot_path) if episode.screenshot_path else None
        return path.read_bytes() if path is not None and path.is_file() else None

    def _metadata(self, episode_id: int, episode: Episode, customer_id: str) -> dict[str, str]:
        document = {
            **episode.model_dump(exclude={"screenshot_base64", "screenshot_path"}),
            "episode_id": episode_id,
            "customer_id": customer_id,
            "created_at": now(),
        }
        environment = json.dumps(episode.environment_info, sort_keys=True)
        return {
            "episode_json": encode_episode(document, compressed=self._settings.is_head),
            "customer_id": customer_id,
            "episode_type": episode.episode_type,
            "error_class": episode.error_class,
            "tool": episode.tool_chain[0],
            "severity": str(episode.severity),
            "timestamp": str(int(time.time())),
            "retrieval_count": "0",
            "archived": "False",
            "tags": json.dumps(episode.tags),
            **{f"tag:{tag}": "1" for tag in episode.tags},
            "environment_hash": hashlib.sha256(environment.encode()).hexdigest()[:16],
            "error_signature": hashlib.sha256(episode.error_trace.encode()).hexdigest()[:16],
        }


def _decoded(image_base64: str) -> bytes:
    try:
        return base64.b64decode(image_base64, validate=True)
    except binascii.Error as error:
        raise ValueError(f"invalid image: {error}") from error


def encode_episode(document: dict[str, Any], compressed: bool) -> str:
    """A document as the metadata value episode_json."""
    text = json.dumps(document)
    return "gz:" + base64.b64encode(zlib.compress(text.encode())).decode() if compressed else text


def decode_episode(text: str) -> dict[str, Any]:
    """The document behind a metadata value episode_json: compressed, or plain in older rows."""
    if text.startswith("gz:"):
        text = zlib.decompress(base64.b64decode(text[3:])).decode()
    document = json.loads(text)
    return document if isinstance(document, dict) else {}


def _candidate(hit: Any, query: SearchV010 | SearchHead, image_scores: dict[int, float]) -> dict[str, Any] | None:
    """A result for the hit, or None where one of the query's filters rejects it."""
    metadata = hit.metadata
    if metadata["archived"] == "True" and not query.include_archived:
        return None
    if query.tool_filter is not None and metadata["tool"] != query.tool_filter:
        return None
    if query.tags and not all(f"tag:{tag}" in metadata for tag in query.tags):
        return None
    episode = decode_episode(metadata["episode_json"])
    if query.min_timestamp is not None and episode["created_at"] < query.min_timestamp:
        return None
    if query.max_timestamp is not None and episode["created_at"] > query.max_timestamp:
        return None
    required = episode["environment_info"]
    matched = [name for name, value in required.items() if query.current_state.get(name) == value]
    precondition = len(matched) / len(required) if required else 1.0
    if precondition < query.precondition_threshold:
        return None
    similarity = hit.score
    if hit.doc_id in image_scores:
        similarity = (1 - query.image_weight) * similarity + query.image_weight * image_scores[hit.doc_id]
    age = max(0.0, time.time() - float(metadata["timestamp"]))
    return {
        "episode": episode,
        "scores": {
            "similarity": similarity,
            "precondition": precondition,
            "recency": 1 / (1 + age / 86400),
            "usage": 0.0,
        },
        "rank": 0,
        "matched_preconditions": matched,
        "similarity_explanation": f"Similarity {similarity:.2f}",
    }


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)

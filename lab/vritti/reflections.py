# SPDX-License-Identifier: GPL-3.0-or-later
"""Reflections about captured episodes: made by an LLM in the background, after the answer was sent, and then stored."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from lab.faults import ActiveFaults
from lab.vritti.budget import LIMIT_USD, Budget
from lab.vritti.dead_letters import DeadLetters
from lab.vritti.episodes import COLLECTION, decode_episode, encode_episode
from lab.vritti.kyrodb_client import KyroDBRouter
from lab.vritti.llm import Provider, ProviderError
from lab.vritti.metrics import Metrics
from lab.vritti.schemas import Episode
from lab.vritti.settings import Settings

_STORE_TRIES = 3
_STORE_PAUSE_SECONDS = 1.0
# Shorter than the real service's 1 s and 2 s, which no test is about.
_CALL_PAUSE_SECONDS = 0.05
# The real service waits up to 30 s for them when it is stopped.
_DRAIN_SECONDS = 2.0
_CHEAP_CONFIDENCE, _CONSENSUS_CONFIDENCE, _FALLBACK_CONFIDENCE = 0.7, 0.9, 0.4
# Below this a cheap reflection is made anew by the premium tier; REFLECTION_MIN_CHEAP_CONFIDENCE is read by nobody.
_LEAST_CONFIDENCE = 0.6

_capture_logger = logging.getLogger("src.ingestion.capture")
_tier_logger = logging.getLogger("src.ingestion.tiered_reflection")
_premium_logger = logging.getLogger("src.ingestion.multi_perspective_reflection")


class ReflectionService:
    def __init__(self, settings: Settings, faults: ActiveFaults, metrics: Metrics | None) -> None:
        self._settings = settings
        self._faults = faults
        self._metrics = metrics
        self._provider = Provider(settings, faults)
        self._dead_letters = DeadLetters(settings, metrics)
        self._pending: set[asyncio.Task[None]] = set()
        self.budget = Budget(metrics)
        # There once the service has connected, and nothing is captured before.
        self.router: KyroDBRouter

    def queue(self, episode_id: int, customer_id: str, episode: Episode, tier: str | None) -> None:
        """Reflect in the background; without a tier it is chosen."""
        task = asyncio.create_task(self._reflect(episode_id, customer_id, episode, tier))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def drain(self) -> None:
        """At the end of the process: let those finish that are being made, for a while."""
        if self._pending:
            _capture_logger.info("Waiting for %d background reflections", len(self._pending))
            await asyncio.wait(self._pending, timeout=_DRAIN_SECONDS)

    async def _reflect(self, episode_id: int, customer_id: str, episode: Episode, tier: str | None) -> None:
        started = time.perf_counter()
        reflection = await self._generate(episode, tier or self._select_tier(episode))
        if self._settings.is_head and self._faults.active("redaction-failing"):
            try:
                raise ValueError("2 validation errors for Reflection")
            except ValueError as error:
                _capture_logger.warning(
                    "Reflection PII redaction failed for episode %d: %s", episode_id, error, exc_info=True
                )
            self._dead_letters.write(episode_id, customer_id, None, "reflection_redaction_failed")
            self._count_failure("redaction_failed")
            return
        if await self._store_with_retries(episode_id, customer_id, reflection):
            self._count_success(reflection, time.perf_counter() - started)
            _capture_logger.info(
                "Reflection generated and persisted for episode %d:\n  Tier: %s\n  Model: %s\n  Confidence: %.2f",
                episode_id,
                reflection["tier"],
                reflection["llm_model"],
                reflection["confidence_score"],
            )
            return
        _capture_logger.error(
            "Reflection generation succeeded but persistence failed after all retries for episode %d", episode_id
        )
        self._dead_letters.write(episode_id, customer_id, reflection, "persistence_failed_after_retries")
        self._count_failure("persistence_failed")

    # Which tier, and what it makes.

    def _select_tier(self, episode: Episode) -> str:
        if self.budget.exceeded:
            _tier_logger.warning("Daily budget exceeded (limit $%s), forcing CHEAP tier for episode", LIMIT_USD)
            return "cheap"
        if "premium_reflection" in (tag.lower() for tag in episode.tags):
            _tier_logger.info("Selected PREMIUM tier (explicit tag)")
            return "premium"
        _tier_logger.info("Selected CHEAP tier (default)")
        return "cheap"

    async def _generate(self, episode: Episode, tier: str) -> dict[str, Any]:
        """A reflection, by the LLM or in its place.

        Only the choice of a tier heeds the budget: who asks for premium, or whose cheap reflection is poor, gets it.
        """
        _tier_logger.info("Generating reflection with %s tier", tier)
        if tier == "cached":
            _tier_logger.warning("CACHED tier selected but no template available, falling back to CHEAP")
            tier = "cheap"
        reflection = await (self._premium(episode) if tier == "premium" else self._cheap(episode))
        if reflection["confidence_score"] < _LEAST_CONFIDENCE and tier == "cheap":
            _tier_logger.warning(
                "Cheap reflection failed quality check (confidence=%.2f), upgrading to premium",
                reflection["confidence_score"],
            )
            tier, reflection = "premium", await self._premium(episode)
        reflection["tier"] = tier
        self.budget.add(tier, reflection["cost_usd"])
        return reflection

    async def _cheap(self, episode: Episode) -> dict[str, Any]:
        started, model, tries = time.perf_counter(), self._settings.cheap_model, self._settings.llm_tries
        for attempt in range(1, tries + 1):
            try:
                cost = await self._provider.call(model)
            except ProviderError as error:
                _tier_logger.error("Cheap reflection call failed (attempt %d/%d): %s", attempt, tries, error)
                await asyncio.sleep(_CALL_PAUSE_SECONDS)
                continue
            reflection = self._reflection(episode, model, _CHEAP_CONFIDENCE, cost, started)
            _tier_logger.info(
                "Cheap reflection generated: confidence=%.2f, cost=$%.4f, latency=%.0fms",
                _CHEAP_CONFIDENCE,
                cost,
                reflection["generation_latency_ms"],
            )
            return reflection
        _tier_logger.warning("All OpenRouter attempts failed, using fallback")
        _tier_logger.warning("Creating fallback reflection for cheap tier")
        return self._reflection(episode, "fallback_heuristic", _FALLBACK_CONFIDENCE, 0.0, started)

    async def _premium(self, episode: Episode) -> dict[str, Any]:
        started, models = time.perf_counter(), self._settings.consensus_models
        _premium_logger.info("Calling %d LLM models in parallel for consensus...", len(models))
        costs = await asyncio.gather(*(self._ask(model) for model in models))
        answered = [(model, cost) for model, cost in zip(models, costs, strict=True) if cost is not None]
        for model, _cost in answered:
            _premium_logger.info("%s succeeded", model)
        if not answered:
            _premium_logger.error("All consensus models failed")
            model = self._settings.cheap_model
            cost = await self._ask(model)
            if cost is None:
                _premium_logger.error("Cheap model fallback also failed")
                return self._reflection(episode, "fallback_heuristic", _FALLBACK_CONFIDENCE, 0.0, started)
            answered = [(model, cost)]
            _premium_logger.warning("Using cheap model fallback for single-model consensus result")
        method = "semantic_unanimous" if len(answered) > 1 else "single_model"
        confidence = _CONSENSUS_CONFIDENCE if len(answered) > 1 else _CHEAP_CONFIDENCE
        cost = sum(cost for _model, cost in answered)
        reflection = self._reflection(episode, "openrouter-consensus", confidence, cost, started)
        reflection["consensus"] = {
            "method": method,
            "confidence": confidence,
            "disagreement_points": [],
            "perspectives": [
                {"model": model, "root_cause": reflection["root_cause"], "confidence": confidence, "reasoning": ""}
                for model, _cost in answered
            ],
        }
        _premium_logger.info(
            "Consensus reflection generated: %d/%d models succeeded, consensus=%s, confidence=%.2f",
            len(answered),
            len(models),
            method,
            confidence,
        )
        return reflection

    async def _ask(self, model: str) -> float | None:
        """One model's answer for a consensus: what it cost, None without one. Which model it was is not logged."""
        for attempt in range(1, self._settings.llm_tries + 1):
            try:
                cost = await self._provider.call(model)
            except ProviderError as error:
                if error.permanent:
                    refused = error.status in (401, 403)
                    _premium_logger.error("%s (permanent)", "Authentication failed" if refused else "Bad request")
                    return None
                if attempt < self._settings.llm_tries:
                    _premium_logger.warning("Transient error, retrying")
                    await asyncio.sleep(_CALL_PAUSE_SECONDS)
                continue
            _premium_logger.info("OpenRouter call succeeded")
            return cost
        _premium_logger.error("OpenRouter call failed")
        return None

    def _reflection(
        self, episode: Episode, model: str, confidence: float, cost: float, started: float
    ) -> dict[str, Any]:
        tool = episode.tool_chain[0]
        conditions: Any = {"tool": tool, "error_class": episode.error_class}
        if not self._settings.is_head:
            conditions = [f"{name} is {value}" for name, value in conditions.items()]
        return {
            "root_cause": f"{episode.error_class} in {tool}: {episode.error_trace[:100]}",
            "preconditions": conditions,
            "resolution_strategy": episode.resolution or f"Check what {tool} needs, then repeat: {episode.goal[:100]}",
            "environment_factors": sorted(episode.environment_info)[:10],
            "affected_components": episode.tool_chain[:5],
            "generalization_score": 0.5,
            "confidence_score": confidence,
            "llm_model": model,
            "generated_at": datetime.now(UTC).isoformat(),
            "cost_usd": cost,
            "generation_latency_ms": round((time.perf_counter() - started) * 1000, 2),
            "tier": "cheap",
            "consensus": None,
        }

    # Where it is kept.

    async def _store_with_retries(self, episode_id: int, customer_id: str, reflection: dict[str, Any]) -> bool:
        last: Exception | None = None
        for attempt in range(1, _STORE_TRIES + 1):
            try:
                await self._store(episode_id, customer_id, reflection)
            except Exception as error:  # noqa: BLE001 -- as the real service: whatever it was, it is tried again
                last = error
                _capture_logger.warning(
                    "Reflection persistence failed for episode %d (attempt %d/%d): %s",
                    episode_id,
                    attempt,
                    _STORE_TRIES,
                    error,
                )
                self._count_retry(attempt, success=False)
                if attempt < _STORE_TRIES:
                    await asyncio.sleep(_STORE_PAUSE_SECONDS * 2 ** (attempt - 1))
                continue
            if attempt > 1:
                _capture_logger.info("Reflection persistence succeeded on retry %d for episode %d", attempt, episode_id)
                self._count_retry(attempt, success=True)
            return True
        _capture_logger.error(
            "Reflection persistence exhausted all %d retries for episode %d: %s", _STORE_TRIES, episode_id, last
        )
        return False

    async def _store(self, episode_id: int, customer_id: str, reflection: dict[str, Any]) -> None:
        text, namespace = self.router.text, f"{customer_id}:{COLLECTION}"
        head = self._settings.is_head
        # The stubs of v0.1.0 have no UpdateMetadata: it inserts the episode once more, with the vector that it has.
        found = await text.query(episode_id, namespace, include_embedding=not head)
        if not found.found or found.metadata["customer_id"] != customer_id:
            raise ValueError(f"Episode {episode_id} not found")
        document = decode_episode(found.metadata["episode_json"])
        changes = {
            **_metadata(reflection),
            "episode_json": encode_episode({**document, "reflection": reflection}, compressed=head),
        }
        if head:
            await text.update_metadata(episode_id, changes, namespace)
        else:
            await text.insert(episode_id, found.embedding, {**found.metadata, **changes}, namespace)

    # What is counted: metrics at v0.1.0, lines in the log since.

    def _count_retry(self, attempt: int, success: bool) -> None:
        if self._metrics is not None:
            self._metrics.reflection_persistence_retry.labels(str(attempt), str(success).lower()).inc()

    def _count_success(self, reflection: dict[str, Any], seconds: float) -> None:
        if self._metrics is None:
            return
        consensus = reflection["consensus"]
        method = consensus["method"] if consensus else "fallback_heuristic"
        models = str(len(consensus["perspectives"])) if consensus else "0"
        self._metrics.reflections_generated.labels(method, models, "true").inc()
        self._metrics.reflection_generation_duration.labels(method, models).observe(seconds)
        self._metrics.reflection_consensus_confidence.labels(method).observe(reflection["confidence_score"])
        self._metrics.reflection_cost.labels("multi-perspective").inc(reflection["cost_usd"])
        self._metrics.reflection_cost_per_episode.labels(method).observe(reflection["cost_usd"])
        self._metrics.reflection_persistence.labels("true").inc()

    def _count_failure(self, reason: str) -> None:
        if self._metrics is None:
            # The reason is handed over in a way that the log does not show.
            _capture_logger.warning("Reflection failed")
            return
        self._metrics.reflection_failure.labels(reason).inc()
        if reason == "persistence_failed":
            self._metrics.reflection_persistence.labels("false").inc()


def _metadata(reflection: dict[str, Any]) -> dict[str, str]:
    """The reflection as KyroDB's metadata have it."""
    values = {
        "root_cause": reflection["root_cause"],
        "resolution": reflection["resolution_strategy"],
        "confidence": f"{reflection['confidence_score']:.4f}",
        "generalization": f"{reflection['generalization_score']:.4f}",
        "preconditions": json.dumps(reflection["preconditions"]),
        "env_factors": json.dumps(reflection["environment_factors"]),
        "components": json.dumps(reflection["affected_components"]),
        "model": reflection["llm_model"],
        "generated_at": reflection["generated_at"],
        "cost_usd": f"{reflection['cost_usd']:.6f}",
        "latency_ms": f"{reflection['generation_latency_ms']:.2f}",
    }
    consensus = reflection["consensus"]
    if consensus is not None:
        values |= {
            "consensus_method": consensus["method"],
            "consensus_confidence": f"{consensus['confidence']:.4f}",
            "disagreements": json.dumps(consensus["disagreement_points"]),
            "perspectives_count": str(len(consensus["perspectives"])),
            "perspectives_json": json.dumps(consensus["perspectives"]),
        }
    return {f"reflection_{name}": value for name, value in values.items()}

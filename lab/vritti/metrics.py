# SPDX-License-Identifier: GPL-3.0-or-later
"""The Prometheus metrics of v0.1.0: all that it declares, of which it sets about half."""

from __future__ import annotations

import re

from prometheus_client import Counter, Gauge, Histogram

_PREFIX = "episodic_memory_"
_TENTHS = tuple(step / 10 for step in range(1, 11))
_FAST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


def _counter(name: str, *labels: str) -> Counter:
    return Counter(_PREFIX + name, name.replace("_", " ").capitalize(), labels)


def _gauge(name: str, *labels: str) -> Gauge:
    return Gauge(_PREFIX + name, name.replace("_", " ").capitalize(), labels)


def _histogram(name: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(_PREFIX + name, name.replace("_", " ").capitalize(), labels, buckets=buckets)


class Metrics:
    """One per process, like the registry that it fills. Attributes without a user in this package are the declared
    and never emitted ones: they must exist, since their HELP and TYPE lines do."""

    def __init__(self) -> None:
        self.http_request_duration = _histogram(
            "http_request_duration_seconds",
            (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            "method",
            "endpoint",
            "status_code",
        )
        self.http_requests = _counter("http_requests_total", "method", "endpoint", "status_code")
        self.http_requests_active = _gauge("http_requests_active", "method", "endpoint")
        self.api_key_cache_hits = _counter("api_key_cache_hits_total")
        self.api_key_cache_misses = _counter("api_key_cache_misses_total")
        self.api_key_validation_duration = _histogram(
            "api_key_validation_duration_seconds", (0.0001, 0.001, 0.01, 0.1, 0.2, 0.3, 0.5, 1.0), "cache_hit"
        )
        self.kyrodb_operation_duration = _histogram(
            "kyrodb_operation_duration_seconds",
            (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
            "operation",
            "instance",
            "success",
        )
        self.kyrodb_operations = _counter("kyrodb_operations_total", "operation", "instance", "success")
        self.kyrodb_connection_healthy = _gauge("kyrodb_connection_healthy", "instance")
        self.episodes_ingested = _counter("episodes_ingested_total", "customer_tier", "has_image", "has_reflection")
        self.searches = _counter("searches_total", "customer_tier")
        self.search_results_returned = _histogram("search_results_returned", (0, 1, 5, 10, 20, 50, 100))
        self.credits_used = _counter("credits_used_total", "customer_id", "customer_tier", "operation")
        self.customer_quota_usage_ratio = _gauge("customer_quota_usage_ratio", "customer_id", "customer_tier")
        self.errors = _counter("errors_total", "error_type", "endpoint")
        self.rate_limit_exceeded = _counter("rate_limit_exceeded_total", "customer_id", "customer_tier")
        self.embedding_generation_duration = _histogram("embedding_generation_duration_seconds", _FAST, "model_type")
        self.reflection_generation_duration = _histogram(
            "reflection_generation_duration_seconds",
            (1, 2, 3, 5, 7, 10, 15, 30),
            "consensus_method",
            "num_models",
        )
        self.reflections_generated = _counter(
            "reflections_generated_total", "consensus_method", "num_models", "success"
        )
        self.reflection_cost = _counter("reflection_cost_usd_total", "model_name")
        self.reflection_cost_per_episode = _histogram(
            "reflection_cost_per_episode_usd", (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0), "consensus_method"
        )
        self.reflection_consensus_confidence = _histogram(
            "reflection_consensus_confidence", _TENTHS, "consensus_method"
        )
        self.llm_calls = _counter("llm_call_total", "model_name", "success")
        self.llm_call_duration = _histogram("llm_call_duration_seconds", (0.5, 1, 2, 3, 5, 10, 15, 30), "model_name")
        self.reflection_persistence = _counter("reflection_persistence_total", "success")
        self.reflection_persistence_retry = _counter("reflection_persistence_retry_total", "attempt", "success")
        self.reflection_dead_letter = _counter("reflection_dead_letter_total", "failure_reason")
        self.reflection_failure = _counter("reflection_failure_total", "reason")
        self.reflection_generations_active = _gauge("reflection_generations_active")
        self.skill_promotions = _counter("skill_promotions_total", "customer_tier", "error_class")
        self.skill_promotion_duration = _histogram("skill_promotion_duration_seconds", (0.1, 0.5, 1, 2, 5, 10))
        self.skill_applications = _counter("skill_applications_total", "skill_id", "success")
        self.fix_validations = _counter("fix_validations_total", "customer_tier", "outcome")
        self.skill_searches = _counter("skill_searches_total", "customer_tier")
        self.skill_success_rate = _gauge("skill_success_rate", "skill_id", "skill_name")
        self.promoted_skills = _gauge("promoted_skills_total", "customer_tier")
        self.reflection_cost_by_tier = _counter("reflection_cost_by_tier_usd_total", "tier", "customer_id")
        self.reflections_by_tier = _counter("reflections_by_tier_total", "tier", "customer_tier")
        self.reflection_tier_quality = _histogram("reflection_tier_quality_score", _TENTHS, "tier")
        self.tier_selection = _counter("tier_selection_total", "tier", "selection_method")
        self.tier_quality_fallback = _counter("tier_quality_fallback_total", "reason")
        self.reflection_cost_savings = _gauge("reflection_cost_savings_usd")
        self.premium_tier_usage = _gauge("premium_tier_usage_percentage")
        self.daily_cost_alert = _counter("daily_cost_alert_total", "alert_type")
        self.daily_cost = _gauge("daily_cost_usd")
        self.gating_decisions = _counter("gating_decision_total", "recommendation", "customer_tier")
        self.gating_latency = _histogram("gating_latency_seconds", _FAST, "recommendation")
        self.gating_confidence = _histogram("gating_confidence", _TENTHS, "recommendation")
        self.gating_matched_failures = _histogram("gating_matched_failures", (0, 1, 2, 3, 5, 10, 20))
        self.gating_matched_skills = _histogram("gating_matched_skills", (0, 1, 2, 3, 5, 10))
        self.repeat_errors_prevented = _counter(
            "repeat_error_prevented_total", "customer_id", "customer_tier", "error_class", "recommendation"
        )
        self.repeat_error_prevention_rate = _gauge("repeat_error_prevention_rate", "customer_tier")


_CUSTOMER_PATH = re.compile(r"^/api/v1/customers/[^/]+")


def endpoint_label(path: str) -> str:
    """Customer ids collapse; key ids and unknown paths do not, and so the label set grows with them."""
    return _CUSTOMER_PATH.sub("/api/v1/customers/{customer_id}", path)

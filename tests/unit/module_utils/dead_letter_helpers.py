# SPDX-License-Identifier: GPL-3.0-or-later
"""Dead letters as Vritti writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "failed_reflections.log"
REASON = "persistence_failed_after_retries"
# What later versions write where the reflection may not be kept.
NULL: dict[str, Any] = {"failure_reason": "reflection_redaction_failed", "reflection": None}


def entry(number: int, customer: str = "acme", reason: str = REASON) -> dict[str, Any]:
    return {
        "timestamp": f"2026-11-27T03:{number // 60 % 60:02}:{number % 60:02}+00:00",
        "episode_id": number,
        "customer_id": customer,
        "failure_reason": reason,
        "reflection": {
            "root_cause": f"The service account of episode {number} lacks a role",
            "preconditions": {"tool": "kubectl", "environment": {"cluster": "a"}},
            "resolution_strategy": "Bind the role, then deploy again",
            "environment_factors": ["kubernetes"],
            "affected_components": ["payment"],
            "generalization_score": 0.7,
            "confidence_score": 0.8,
            "llm_model": "x-ai/grok-4.1-fast:free",
            "generated_at": "2026-11-27T03:00:00+00:00",
            "cost_usd": 0.0,
            "generation_latency_ms": 812.5,
            "tier": "cheap",
            "consensus": {"method": "single", "confidence": 0.8, "disagreement_points": []},
        },
    }


def line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def write(folder: Path, entries: list[dict[str, Any]], name: str = NAME) -> Path:
    path = folder / name
    path.write_bytes(b"".join(map(line, entries)))
    return path

# SPDX-License-Identifier: GPL-3.0-or-later
"""config.yml: some of it is read at the start, the rate limit with every request, most of it never."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PATH = Path("config.yml")
TEXT = """\
# wp-chat: the project's configuration
# Paths are relative to the project's root.

wordpress:
  base_url: https://blog.example.test
  per_page: 100          # posts of one request

index:
  dimension: 384         # of the embedding model
  chunk_size: 900        # characters
  chunk_overlap: 150

models:
  embedding: sentence-transformers/all-MiniLM-L6-v2
  cross_encoder: cross-encoder/ms-marco-MiniLM-L-6-v2

api:
  # Answers are kept for a while; see /stats/cache
  cache:
    enabled: true
    search_ttl: 1800     # seconds
    embedding_ttl: 86400
    max_size_mb: 100
  # Per client and window
  rate_limit:
    enabled: true
    max_requests: 100    # requests
    window_seconds: 3600 # one hour
    burst_limit: 20
  slo:
    search: {p95_ms: 800, success_rate: 0.995}
    ask: {p95_ms: 1000, success_rate: 0.99}
    generate: {ttft_ms: 1200, p95_ms: 6000, success_rate: 0.98}
  canary:
    enabled: false
    rollout_percentage: 0.0
"""


def read() -> dict[str, Any]:
    """The file as it is now; yaml's error where it is broken."""
    with PATH.open(encoding="utf-8") as file:
        content = yaml.safe_load(file)
    return content if isinstance(content, dict) else {}


def section(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = (content.get("api") or {}).get(name)
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Limit:
    enabled: bool
    max_requests: int
    window_seconds: int

    @classmethod
    def read(cls) -> Limit:
        found = section(read(), "rate_limit")
        return cls(
            enabled=bool(found.get("enabled", True)),
            max_requests=int(found.get("max_requests", 100)),
            window_seconds=int(found.get("window_seconds", 3600)),
        )


@dataclass(frozen=True)
class CacheConfig:
    enabled: bool
    search_ttl: float

    @classmethod
    def read(cls) -> CacheConfig:
        found = section(read(), "cache")
        return cls(bool(found.get("enabled", True)), float(found.get("search_ttl", 1800)))

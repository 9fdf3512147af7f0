# SPDX-License-Identifier: GPL-3.0-or-later
"""The blog of the lab: made-up posts, always the same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

POSTS = 110
_FIRST_ID = 1000
_TOPICS = {
    "postgres": ("vacuum", "replication", "index bloat", "connection pooling", "point in time recovery"),
    "backup": ("rotation", "verification", "off-site copies", "encryption", "retention"),
    "nginx": ("reverse proxy", "rate limiting", "caching", "log rotation", "TLS termination"),
    "python": ("packaging", "typing", "profiling", "asyncio", "virtual environments"),
    "kubernetes": ("probes", "rolling updates", "resource limits", "ingress", "config maps"),
    "monitoring": ("alert fatigue", "percentiles", "dashboards", "service levels", "tracing"),
}
_SENTENCES = (
    "The first thing to look at is {detail} of {topic}, because everything else depends on it.",
    "We measured {detail} for a week before we changed anything in {topic}.",
    "A common mistake with {topic} is to take the default of {detail} for a recommendation.",
    "When {detail} goes wrong, {topic} often shows no error at all, only slower answers.",
    "Keep a written procedure for {detail}, and try it on a quiet day.",
    "Our {topic} hosts run the same version everywhere, which makes {detail} predictable.",
    "Two settings matter for {detail}; the others of {topic} can stay as they are.",
    "If {detail} takes longer than usual, compare it with last month before blaming {topic}.",
    "The logs of {topic} name {detail} only at a higher level than the default one.",
    "After the change, {detail} was three times as fast and {topic} used less memory.",
)
_KINDS = ("overview", "in practice", "mistakes", "checklist", "measured", "explained")


def posts() -> list[dict[str, Any]]:
    chance = random.Random(20251105)
    pairs = [(topic, detail) for topic, details in _TOPICS.items() for detail in details]
    found = []
    for number in range(POSTS):
        topic, detail = pairs[number % len(pairs)]
        kind = _KINDS[number // len(pairs) % len(_KINDS)]
        sentences = chance.choices(_SENTENCES, k=chance.randint(10, 24))
        text = " ".join(sentence.format(topic=topic, detail=detail) for sentence in sentences)
        post_id = _FIRST_ID + number
        found.append(
            {
                "post_id": post_id,
                "title": f"{topic} {detail}: {kind}",
                "url": f"https://blog.example.test/{post_id}/",
                "text": text,
            }
        )
    return found


def write(path: Path) -> None:
    """As the pipeline leaves them for the builder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(post, ensure_ascii=False) for post in posts())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

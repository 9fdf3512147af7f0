# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be broken in a lab of wp_chat."""

from __future__ import annotations

from lab.faults import ALTER, CLIENT, FLAG, KILL, PAUSE, Fault

SERVICE = "wp_chat"
WP_CHAT = "wp-chat"

_IT = (WP_CHAT,)

FAULTS: tuple[Fault, ...] = (
    # First, because they are healed in this order: the others may need an answer for that.
    Fault(SERVICE, "down", KILL, _IT, "wp_chat was killed (SIGKILL); nothing starts it again", cured_by_restart=True),
    Fault(
        SERVICE,
        "hang",
        PAUSE,
        _IT,
        "wp_chat is suspended: its port accepts and never answers; SIGTERM alone does not end it",
        cured_by_restart=True,
    ),
    Fault(SERVICE, "model-gone", ALTER, (), "the reranker's files are gone: 200 and not reranked, a line in the log"),
    Fault(
        SERVICE,
        "index-truncated",
        ALTER,
        (),
        "wp.faiss was cut short; nobody notices before a restart, which fails",
    ),
    Fault(
        SERVICE,
        "index-flipped",
        ALTER,
        (),
        "one byte of a vector in wp.faiss was flipped, size and time kept: it loads, only a checksum tells",
    ),
    Fault(SERVICE, "index-missing", ALTER, (), "wp.faiss is gone; nobody notices before a restart, which fails"),
    Fault(
        SERVICE,
        "metadata-short",
        ALTER,
        (),
        "wp.meta.json has lost its last 20 chunks: after a restart, results are silently left out",
    ),
    Fault(SERVICE, "cache-unwritable", ALTER, (), "nothing can be written into the cache's folder, not by root either"),
    Fault(
        SERVICE,
        "cache-clear-fails",
        ALTER,
        (),
        "a folder in the cache's folder: clear answers 200 with success false, half done",
    ),
    Fault(SERVICE, "canary-stopped", ALTER, _IT, "somebody has called emergency-stop: nothing is reranked"),
    Fault(SERVICE, "config-broken", ALTER, (), "config.yml is no YAML: every /search answers 500, a restart fails"),
    Fault(
        SERVICE,
        "errors",
        FLAG,
        _IT,
        "this percentage of /search answers 500 (default 30)",
        cured_by_restart=True,
        amount=30.0,
        most=100.0,
    ),
    Fault(
        SERVICE,
        "slow",
        FLAG,
        _IT,
        "/search, /ask and /generate take this many ms longer (default 1500)",
        cured_by_restart=True,
        amount=1500.0,
        most=60_000.0,
    ),
    Fault(
        SERVICE,
        "rerank-slow",
        FLAG,
        _IT,
        "reranking takes this many ms (default 1500): no restart helps, to rerank nothing does",
        amount=1500.0,
        most=60_000.0,
    ),
    Fault(SERVICE, "attack", CLIENT, (), "five addresses search far beyond the rate limit: 127.0.66.1 to 127.0.66.5"),
    Fault(
        SERVICE,
        "memory",
        FLAG,
        _IT,
        "every process of wp_chat holds this many MiB more (default 256)",
        cured_by_restart=True,
        amount=256.0,
        most=8192.0,
    ),
    Fault(
        SERVICE,
        "cpu",
        FLAG,
        _IT,
        "a thread of every process uses this percentage of one core, for ten minutes at most (default 95)",
        cured_by_restart=True,
        amount=95.0,
        most=100.0,
    ),
)

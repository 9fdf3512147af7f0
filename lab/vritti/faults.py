# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be broken in a lab of Vritti."""

from __future__ import annotations

from lab.faults import ALTER, CLIENT, CONFIG, FLAG, KILL, PAUSE, RESTART_WITH_FLAG, STOP, Fault

KYRODB_TEXT = "kyrodb-text"
KYRODB_IMAGE = "kyrodb-image"
VRITTI = "vritti"

_BOTH = (KYRODB_TEXT, KYRODB_IMAGE)

FAULTS: tuple[Fault, ...] = (
    Fault(VRITTI, "kyrodb-slow", FLAG, _BOTH, "both KyroDB instances take about 180 ms longer for every call", True),
    Fault(VRITTI, "kyrodb-text-slow", FLAG, (KYRODB_TEXT,), "the text instance takes about 180 ms longer", True),
    Fault(VRITTI, "kyrodb-image-slow", FLAG, (KYRODB_IMAGE,), "the image instance takes about 180 ms longer", True),
    Fault(VRITTI, "kyrodb-text-down", STOP, (KYRODB_TEXT,), "the text instance is stopped", True, True),
    Fault(VRITTI, "kyrodb-image-down", STOP, (KYRODB_IMAGE,), "the image instance is stopped", True, True),
    Fault(VRITTI, "kyrodb-down", STOP, _BOTH, "both KyroDB instances are stopped", True, True),
    Fault(
        VRITTI,
        "kyrodb-text-hang",
        PAUSE,
        (KYRODB_TEXT,),
        "the text instance is suspended: its ports accept and never answer",
        True,
        True,
    ),
    Fault(
        VRITTI,
        "kyrodb-unhealthy",
        FLAG,
        _BOTH,
        "KyroDB's Health answers UNHEALTHY (log inconsistent, writes disabled); Vritti still calls it healthy",
        True,
    ),
    Fault(
        VRITTI,
        "breaker-stuck",
        ALTER,
        (VRITTI,),
        "a KyroDB outage that is over has left Vritti's circuit breaker open; only a restart of vritti helps",
        True,
    ),
    Fault(VRITTI, "embedding-slow", FLAG, (VRITTI,), "computing an embedding takes about 250 ms", True),
    Fault(VRITTI, "traffic-spike", CLIENT, (), "many concurrent clients; a few customers exceed their rate limit"),
    Fault(VRITTI, "rate-limited", CLIENT, (), "one customer searches far beyond its rate limit"),
    Fault(
        VRITTI,
        "log-warnings-only",
        RESTART_WITH_FLAG,
        (VRITTI,),
        "Vritti was started with a configuration warning: no INFO lines, JSON behind a WARNING:logger: prefix",
    ),
    Fault(VRITTI, "vritti-down", KILL, (VRITTI,), "Vritti was killed (SIGKILL); nothing starts it again", True),
    Fault(
        VRITTI,
        "vritti-hang",
        PAUSE,
        (VRITTI,),
        "Vritti is suspended: its port accepts and never answers; SIGTERM alone does not end it",
        True,
    ),
    Fault(
        VRITTI,
        "internal-errors",
        FLAG,
        (VRITTI,),
        "this percentage of the requests below /api/v1 end in an exception: 500 in plain text (default 30)",
        True,
        amount=30.0,
        most=100.0,
    ),
    Fault(
        VRITTI,
        "memory-leak",
        FLAG,
        (VRITTI,),
        "every process of Vritti takes 20 MiB a second more, up to this many MiB (default 64)",
        True,
        amount=64.0,
        most=2048.0,
    ),
    Fault(
        VRITTI,
        "cpu-busy",
        FLAG,
        (VRITTI,),
        "a thread of every process of Vritti uses this percentage of one core, for ten minutes at most (default 95)",
        True,
        amount=95.0,
        most=100.0,
    ),
    Fault(VRITTI, "auth-errors", CLIENT, (), "a client with keys that are none: 401"),
    Fault(VRITTI, "validation-errors", CLIENT, (), "a client whose request bodies are wrong: 422"),
    Fault(VRITTI, "llm-failing", FLAG, (VRITTI,), "the LLM provider answers 503: logged, heuristic reflections"),
    Fault(
        VRITTI,
        "llm-key-refused",
        FLAG,
        (VRITTI,),
        "the LLM provider has revoked the lab's own key, sk-or-lab-...: it answers 401; another key works",
    ),
    Fault(
        VRITTI,
        "llm-model-gone",
        FLAG,
        (VRITTI,),
        "the LLM provider has Vritti's default cheap model no longer: 404; premium reflections take its place",
    ),
    Fault(
        VRITTI,
        "llm-slow",
        FLAG,
        (VRITTI,),
        "an LLM takes this many seconds to answer (default 75), and LLM_TIMEOUT_SECONDS is 60",
        amount=75.0,
        most=300.0,
    ),
    Fault(
        VRITTI,
        "llm-expensive",
        FLAG,
        (VRITTI,),
        "every LLM call costs this many USD (default 5), where the real service books 0.0",
        amount=5.0,
        most=1000.0,
    ),
    Fault(
        VRITTI,
        "reflections-refused",
        FLAG,
        (KYRODB_TEXT,),
        "KyroDB refuses to store reflections, and nothing else: they end in the dead letter queue",
    ),
    Fault(
        VRITTI,
        "redaction-failing",
        FLAG,
        (VRITTI,),
        "cleaning a reflection of personal data fails (head only): a dead letter without a reflection",
    ),
    Fault(
        VRITTI,
        "wrong-dimension",
        CONFIG,
        (KYRODB_TEXT,),
        "the text instance was started with the shipped configuration: dimension 768 and another, empty data directory",
        remembered=True,
    ),
)

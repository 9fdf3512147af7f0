# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults that the lab can inject, as data, and how its processes learn which of them are active."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.pidfile import main_pid

KYRODB_TEXT = "kyrodb-text"
KYRODB_IMAGE = "kyrodb-image"
VRITTI = "vritti"
CLIENTS = "clients"
PROCESSES = (KYRODB_TEXT, KYRODB_IMAGE, VRITTI, CLIENTS)

# How a fault is brought about:
FLAG = "flag"  # the processes concerned read it from the fault file
STOP = "stop"  # the processes concerned are stopped
KILL = "kill"  # the processes concerned are killed, and have no say in it
CONFIG = "config"  # the processes concerned are restarted with another configuration file
PAUSE = "pause"  # the processes concerned are suspended with SIGSTOP
CLIENT = "client"  # an extra client runs while it is active
RESTART_WITH_FLAG = "restart-with-flag"  # a flag that is read at the start of the process only
STUCK_BREAKER = "stuck-breaker"  # an outage that leaves something behind


@dataclass(frozen=True)
class Fault:
    service: str
    name: str
    how: str
    processes: tuple[str, ...]
    what: str
    cured_by_restart: bool = False
    # Vritti's breaker may have opened meanwhile: healing the cause does not close it.
    opens_breaker: bool = False
    # How much of it, where that can be said: what it is by itself, and the most that one may ask for.
    amount: float | None = None
    most: float = 0.0


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
        STUCK_BREAKER,
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
        opens_breaker=True,
    ),
)

SERVICES = tuple(dict.fromkeys(fault.service for fault in FAULTS))


class UnknownFaultError(Exception):
    """A service or fault that the lab does not have, or not in that amount."""


def find(service: str, name: str) -> Fault:
    check_service(service)
    for fault in FAULTS:
        if (fault.service, fault.name) == (service, name):
            return fault
    names = ", ".join(fault.name for fault in FAULTS if fault.service == service)
    raise UnknownFaultError(f"{service} has no fault {name!r}; it has {names}.")


def check_amount(fault: Fault, amount: float | None) -> float | None:
    """The amount of the fault that was asked for, or its own."""
    if amount is None:
        return fault.amount
    if fault.amount is None:
        raise UnknownFaultError(f"{fault.name} is there or not: it takes no amount.")
    if not 0 < amount <= fault.most:
        raise UnknownFaultError(f"The amount of {fault.name} is a number above 0 and at most {fault.most:g}.")
    return amount


def check_service(service: str) -> None:
    if service not in SERVICES:
        raise UnknownFaultError(f"The lab has no service {service!r} with faults; it has {', '.join(SERVICES)}.")


@dataclass(frozen=True)
class Active:
    """A fault that was injected: by process the PID that it affects, None where it also affects the next one."""

    processes: dict[str, int | None]
    amount: float | None = None


class ActiveFaults:
    """A process's view of the fault file."""

    def __init__(self, process: str, path: str | None = None) -> None:
        self._process = process
        self._path = path if path is not None else os.environ.get("LAB_FAULTS_FILE", "")
        self._pid = main_pid()
        self._signature: tuple[int, int] | None = None
        self._found: dict[str, float] = {}

    def active(self, *names: str) -> bool:
        """Whether one of the faults affects this process now."""
        return not self._now().keys().isdisjoint(names)

    def amount(self, name: str) -> float:
        """How much of a fault there is; 0 where it does not affect this process."""
        return self._now().get(name, 0.0)

    def _now(self) -> dict[str, float]:
        try:
            status = os.stat(self._path)
        except OSError:
            return {}
        signature = (status.st_ino, status.st_mtime_ns)
        if signature != self._signature:
            self._found = {
                name: fault.amount or 0.0
                for name, fault in read_active(Path(self._path)).items()
                # A fault that a restart cures names the process that it is in, so its successor is free of it.
                if fault.processes.get(self._process, 0) in (None, self._pid)
            }
            self._signature = signature
        return self._found


def read_active(path: Path) -> dict[str, Active]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: Active(**fault) for name, fault in content.items()}


def write_active(path: Path, active: Mapping[str, Active]) -> None:
    # Replaced, never rewritten in place: a reader sees the old content or the new one.
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({name: asdict(fault) for name, fault in active.items()}) + "\n", encoding="utf-8")
    os.replace(fresh, path)

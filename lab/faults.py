# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults that the lab can inject, as data, and how its processes learn which of them are active."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

KYRODB_TEXT = "kyrodb-text"
KYRODB_IMAGE = "kyrodb-image"
VRITTI = "vritti"
CLIENTS = "clients"
PROCESSES = (KYRODB_TEXT, KYRODB_IMAGE, VRITTI, CLIENTS)

# How a fault is brought about:
FLAG = "flag"  # the processes concerned read it from the fault file
STOP = "stop"  # the processes concerned are stopped
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
)

SERVICES = tuple(dict.fromkeys(fault.service for fault in FAULTS))


class UnknownFaultError(Exception):
    """A service or fault that the lab does not have."""


def find(service: str, name: str) -> Fault:
    check_service(service)
    for fault in FAULTS:
        if (fault.service, fault.name) == (service, name):
            return fault
    names = ", ".join(fault.name for fault in FAULTS if fault.service == service)
    raise UnknownFaultError(f"{service} has no fault {name!r}; it has {names}.")


def check_service(service: str) -> None:
    if service not in SERVICES:
        raise UnknownFaultError(f"The lab has no service {service!r} with faults; it has {', '.join(SERVICES)}.")


class ActiveFaults:
    """A process's view of the fault file: {fault: [processes that it still affects]}."""

    def __init__(self, process: str, path: str | None = None) -> None:
        self._process = process
        self._path = path if path is not None else os.environ.get("LAB_FAULTS_FILE", "")
        self._signature: tuple[int, int] | None = None
        self._names: frozenset[str] = frozenset()

    def active(self, *names: str) -> bool:
        """Whether one of the faults affects this process now."""
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        signature = (status.st_ino, status.st_mtime_ns)
        if signature != self._signature:
            active = read_active(Path(self._path))
            self._names = frozenset(name for name, affected in active.items() if self._process in affected)
            self._signature = signature
        return not self._names.isdisjoint(names)


def read_active(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_active(path: Path, active: dict[str, list[str]]) -> None:
    # Replaced, never rewritten in place: a reader sees the old content or the new one.
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(active) + "\n", encoding="utf-8")
    os.replace(fresh, path)

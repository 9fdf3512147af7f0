# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults that the lab can inject, as data, and how its processes learn which of them are active."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.pidfile import main_pid

# The process that every lab has beside its service's.
CLIENTS = "clients"

# How a fault is brought about:
FLAG = "flag"  # the processes concerned read it from the fault file
STOP = "stop"  # the processes concerned are stopped
KILL = "kill"  # the processes concerned are killed, and have no say in it
ALTER = "alter"  # the service's description changes something, and puts it back
CONFIG = "config"  # likewise, and the processes concerned are restarted
PAUSE = "pause"  # the processes concerned are suspended with SIGSTOP
CLIENT = "client"  # an extra client runs while it is active
RESTART_WITH_FLAG = "restart-with-flag"  # a flag that is read at the start of the process only


@dataclass(frozen=True)
class Fault:
    service: str
    name: str
    how: str
    processes: tuple[str, ...]
    what: str
    cured_by_restart: bool = False
    # The service may remember it afterwards (its `memory`): healing the cause does not change that.
    remembered: bool = False
    # How much of it, where that can be said: what it is by itself, and the most that one may ask for.
    amount: float | None = None
    most: float = 0.0


class UnknownFaultError(Exception):
    """A service or fault that the lab does not have, or not in that amount."""


def find(faults: Sequence[Fault], service: str, name: str) -> Fault:
    check_service(faults, service)
    for fault in faults:
        if (fault.service, fault.name) == (service, name):
            return fault
    names = ", ".join(fault.name for fault in faults if fault.service == service)
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


def check_service(faults: Sequence[Fault], service: str) -> None:
    services = tuple(dict.fromkeys(fault.service for fault in faults))
    if service not in services:
        raise UnknownFaultError(f"The lab has no service {service!r} with faults; it has {', '.join(services)}.")


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

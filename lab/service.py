# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab has to know of a service in order to run it."""

from __future__ import annotations

import argparse
import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from lab.faults import CLIENTS, Fault
from lab.layout import Layout, Options, Ports

if TYPE_CHECKING:
    from lab.processes import Child
    from lab.supervisor import Supervisor

# Each is a package below lab/ with a module `service` that has SERVICE.
NAMES = ("vritti", "wp_chat")


class ChangeFailedError(Exception):
    """A change that could not be made, or that did not have the effect that it should have."""


@dataclass(frozen=True)
class Program:
    """A process of a service, whoever runs it."""

    name: str
    argv: list[str]
    directory: Path
    log: Path
    # What it has in its environment beside the settings of the real service, which are in a file.
    environment: Mapping[str, str]
    settings: Path | None = None
    # What answers as soon as it is ready; no other process notices.
    health: str = ""


@dataclass(frozen=True)
class Memory:
    """What a fault that is `remembered` may leave in a process, until that is restarted."""

    process: str
    # How long the process takes to notice that the cause is gone.
    seconds: float
    sentence: str
    cured: str


@dataclass(frozen=True)
class Installation:
    """Where it is when systemd runs it; the ports are those that the runbooks name."""

    data: Path
    environment_file: Path
    ports: Ports


class Service(ABC):
    """One service with its options, ports and files."""

    name: ClassVar[str]
    title: ClassVar[str]
    # In the order in which they are started; the last is the service itself.
    processes: ClassVar[tuple[str, ...]]
    faults: ClassVar[Sequence[Fault]]
    installation: ClassVar[Installation]
    # By fault the kind of client that it adds.
    clients: ClassVar[Mapping[str, str]] = MappingProxyType({})
    memory: ClassVar[Memory | None] = None
    layout_type: ClassVar[type[Layout]] = Layout
    ports_type: ClassVar[type[Ports]]
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, root: Path, options: Options, ports: Ports | None = None) -> None:
        self.layout = self.layout_type(root)
        self.options = options
        self.ports = ports if ports is not None else self.ports_type.above(options.base_port)

    @classmethod
    def all_processes(cls) -> tuple[str, ...]:
        return (*cls.processes, CLIENTS)

    @staticmethod  # noqa: B027 -- not every service has versions
    def add_version_argument(parser: argparse.ArgumentParser) -> None:
        """Which version of it; also of an installation."""

    @staticmethod  # noqa: B027 -- nor options
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Its options beside the version, named as the fields of `options_type` are."""

    @abstractmethod
    def programs(self) -> list[Program]: ...

    @abstractmethod
    def settings(self) -> Collection[str]:
        """What its environment file may hold: none of it comes from the surroundings."""

    @abstractmethod
    def prepare(self) -> None:
        """Everything that the processes find when they start."""

    def seed(self) -> None:  # noqa: B027 -- nor needs this
        """What they need once they answer; they start meanwhile."""

    @abstractmethod
    def client(self, kind: str, *rest: str) -> list[str]:
        """The command line of clients; `regular` with the requests per second is what a lab has."""

    @abstractmethod
    def inventory(self) -> tuple[str, str, Mapping[str, object]]:
        """Group, host and its variables."""

    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def addresses(self) -> list[tuple[str, str]]:
        """Where a person finds what, as rows of two columns."""

    def why_exited(self, child: Child) -> str:
        """What its log says of a process that ended while it started: ends a sentence, or is more of them."""
        return f"; see {child.log}."

    def is_as_asked(self, running: Collection[str]) -> bool:
        """Whether processes that do not run are what was asked for."""
        return False

    def alter(self, lab: Supervisor, fault: Fault, amount: float | None) -> str:
        """Bring about a fault that this description knows how to; a sentence says how, where there are several ways."""
        raise NotImplementedError(fault.name)

    def restore(self, lab: Supervisor, fault: Fault) -> None:
        """Put back what `alter` has changed."""
        raise NotImplementedError(fault.name)

    @staticmethod  # noqa: B027 -- nor leaves anything
    def tidy(root: Path) -> None:
        """Let go of what would outlive a lab that was killed."""


def find(name: str) -> type[Service]:
    found: type[Service] = importlib.import_module(f"lab.{name}.service").SERVICE
    return found

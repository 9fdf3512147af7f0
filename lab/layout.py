# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab's options, ports and files, and what it tells others about them."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

PACKAGE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
DEFAULT_BASE_PORT = 18000
# Free bases are this far apart: further than a service's ports are.
_SPAN = 2000


@dataclass(frozen=True)
class Options:
    """What every lab can be asked for; a service adds its own."""

    base_port: int = DEFAULT_BASE_PORT
    traffic: float = 10.0

    def public(self) -> dict[str, Any]:
        """As everybody may read them."""
        return asdict(self)


@dataclass(frozen=True)
class Ports:
    """A service adds its own; no two services have the same offset, so that their labs share a base."""

    control: int
    # How far each is above the base, and what it is called.
    OFFSETS: ClassVar[Mapping[str, int]]
    TITLES: ClassVar[Mapping[str, str]]

    @classmethod
    def above(cls, base: int) -> Self:
        return cls(**{name: base + offset for name, offset in cls.OFFSETS.items()})

    @classmethod
    def highest_base(cls) -> int:
        return 65535 - max(cls.OFFSETS.values())

    def first_taken(self) -> tuple[str, int] | None:
        """The name and number of a port that something listens on."""
        for name, port in asdict(self).items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError:
                    return name, port
        return None


def claim(base: int, kind: type[Ports]) -> socket.socket | None:
    """The control port of a lab at this base, listening: who has it, has all. None when one of them is taken."""
    ports = kind.above(base)
    if ports.first_taken() is not None:
        return None
    control = socket.socket()
    control.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        control.bind((HOST, ports.control))
        control.listen()
    except OSError:
        control.close()
        return None
    return control


def claim_free_ports(kind: type[Ports]) -> tuple[int, socket.socket]:
    """Any base, below the range that the kernel hands out to outgoing connections.

    Labs that start at the same moment get different ones, and no port of one is a port of another.
    """
    for _attempt in range(200):
        base = 10_000 + _SPAN * secrets.randbelow(11) + 100 * secrets.randbelow(10)
        control = claim(base, kind)
        if control is not None:
            return base, control
    raise RuntimeError("no free range of ports found")


class Layout:
    """The files below a lab's data directory; a service adds its own."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.lock = self.root / "lab.lock"
        self.state = self.root / "lab.json"
        self.inventory = self.root / "inventory.yml"
        self.faults = self.root / "faults.json"
        self.run = self.root / "run"
        self.supervisor_log = self.root / "supervisor.log"
        self.clients_log = self.root / "clients.log"
        # The settings of the service itself; each service says where.
        self.environment = self.root / "service.env"
        # Which service systemd runs on this directory; there was never a supervisor.
        self.installed = self.root / "installed"

    def pid_file(self, process: str) -> Path:
        return self.run / f"{process}.pid"

    def read_state(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def is_installed(self) -> bool:
        return self.installed.exists() and not self.lock.exists()

    def is_locked(self) -> bool:
        """Whether a supervisor lives: it holds the lock for as long as it does, however it ends."""
        try:
            with self.lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def write_private(path: Path, text: str) -> None:
    """Replace a file's content; nobody but the owner may read it."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(fresh, path)


def write_inventory(layout: Layout, group: str, host: str, variables: Mapping[str, object]) -> None:
    """One host of one group, on this machine; JSON scalars are YAML scalars, quoted and escaped."""
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        **variables,
        "runbook_state_dir": str(layout.root / "runbooks"),
    }
    lines = ["---", f"{group}:", "  hosts:", f"    {host}:"]
    lines += [f"      {name}: {json.dumps(value)}" for name, value in variables.items()]
    write_private(layout.inventory, "\n".join(lines) + "\n")


def start_command(layout: Layout, process: str) -> str:
    """What starts a process again, from any directory."""
    return shlex.join([sys.executable, str(PACKAGE), "start", process, "--data-dir", str(layout.root)])

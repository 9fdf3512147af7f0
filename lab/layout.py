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
from typing import Any

from lab.faults import KYRODB_IMAGE, KYRODB_TEXT, VRITTI

PACKAGE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
DEFAULT_BASE_PORT = 18000
HTTP_OFFSET = 1000
TEXT_DIMENSION = 384
IMAGE_DIMENSION = 512


@dataclass(frozen=True)
class Options:
    base_port: int = DEFAULT_BASE_PORT
    vritti: str = "v0.1.0"
    kyrodb_api_key: str | None = None
    kyrodb_tls: bool = False
    traffic: float = 10.0
    llm: bool = True


@dataclass(frozen=True)
class Ports:
    vritti: int
    kyrodb_text: int
    kyrodb_text_http: int
    kyrodb_image: int
    kyrodb_image_http: int
    control: int

    @classmethod
    def above(cls, base: int) -> Ports:
        return cls(
            vritti=base,
            kyrodb_text=base + 51,
            kyrodb_text_http=base + 51 + HTTP_OFFSET,
            kyrodb_image=base + 52,
            kyrodb_image_http=base + 52 + HTTP_OFFSET,
            control=base + 99,
        )

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


def claim(base: int) -> socket.socket | None:
    """The control port of the lab at this base, listening: who has it, has all six. None when one of them is taken."""
    ports = Ports.above(base)
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


def claim_free_ports() -> tuple[int, socket.socket]:
    """Any base, below the range that the kernel hands out to outgoing connections.

    Labs that start at the same moment get different ones, and no port of one is a port of another.
    """
    for _attempt in range(200):
        base = 10_000 + 2 * HTTP_OFFSET * secrets.randbelow(11) + 100 * secrets.randbelow(10)
        control = claim(base)
        if control is not None:
            return base, control
    raise RuntimeError("no free range of ports found")


class Layout:
    """The files below a lab's data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.lock = self.root / "lab.lock"
        self.state = self.root / "lab.json"
        self.inventory = self.root / "inventory.yml"
        self.keys = self.root / "keys.json"
        self.faults = self.root / "faults.json"
        self.descriptors = self.root / "kyrodb.descriptors"
        self.run = self.root / "run"
        self.supervisor_log = self.root / "supervisor.log"
        self.clients_log = self.root / "clients.log"
        self.tls = self.root / "tls"
        self.tls_ca = self.tls / "ca.crt"
        self.vritti = self.root / "vritti"
        self.vritti_environment = self.vritti / "vritti.env"
        self.vritti_log = self.vritti / "vritti.log"
        self.customers_db = self.vritti / "data" / "customers.db"
        self.dead_letters = self.vritti / "data" / "failed_reflections.log"

    def pid_file(self, process: str) -> Path:
        return self.run / f"{process}.pid"

    def kyrodb(self, instance: str) -> Path:
        return self.root / f"kyrodb_{instance}"

    def read_state(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def is_installed(self) -> bool:
        """Whether systemd runs the services: such a directory has customers and never had a supervisor."""
        return self.keys.exists() and not self.lock.exists()

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


def write_inventory(layout: Layout, options: Options, ports: Ports, admin_api_key: str) -> None:
    variables: dict[str, object] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "vritti_url": f"http://{HOST}:{ports.vritti}",
        "kyrodb_text_address": f"{HOST}:{ports.kyrodb_text}",
        "kyrodb_image_address": f"{HOST}:{ports.kyrodb_image}",
        "kyrodb_tls": options.kyrodb_tls,
    }
    if options.kyrodb_tls:
        variables["kyrodb_tls_ca"] = str(layout.tls_ca)
    if options.kyrodb_api_key is not None:
        variables["kyrodb_api_key"] = options.kyrodb_api_key
    variables |= {
        "vritti_admin_api_key": admin_api_key,
        "vritti_home": str(layout.vritti),
        "vritti_log_path": str(layout.vritti_log),
        "vritti_customers_db": str(layout.customers_db),
        "vritti_backup_dir": str(layout.root / "backups"),
        "vritti_dlq_path": str(layout.dead_letters),
        "vritti_service_manager": "process",
        "vritti_pid_file": str(layout.pid_file(VRITTI)),
        "vritti_command": start_command(layout, VRITTI),
        "vritti_environment_file": str(layout.vritti_environment),
        "kyrodb_service_manager": "process",
        "runbook_state_dir": str(layout.root / "runbooks"),
    }
    for instance, process in (("text", KYRODB_TEXT), ("image", KYRODB_IMAGE)):
        variables |= {
            f"kyrodb_{instance}_home": str(layout.kyrodb(instance)),
            f"kyrodb_{instance}_pid_file": str(layout.pid_file(process)),
            f"kyrodb_{instance}_command": start_command(layout, process),
        }
    write_private(layout.inventory, _inventory_text("vritti", "vritti-lab", variables))


def start_command(layout: Layout, process: str) -> str:
    """What starts a process again, from any directory."""
    return shlex.join([sys.executable, str(PACKAGE), "start", process, "--data-dir", str(layout.root)])


def _inventory_text(group: str, host: str, variables: Mapping[str, object]) -> str:
    # JSON scalars are YAML scalars, quoted and escaped.
    lines = ["---", f"{group}:", "  hosts:", f"    {host}:"]
    lines += [f"      {name}: {json.dumps(value)}" for name, value in variables.items()]
    return "\n".join(lines) + "\n"

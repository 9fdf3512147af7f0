# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti and its two KyroDB instances: command lines, environments, configuration files, faults."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lab import environment_file
from lab.faults import Fault
from lab.layout import HOST, Layout, Options, Ports, start_command, write_private
from lab.pidfile import VARIABLE
from lab.processes import answers, end_of
from lab.service import Installation, Memory, Program, Service
from lab.vritti.faults import FAULTS, KYRODB_IMAGE, KYRODB_TEXT, VRITTI
from lab.vritti.settings import LINES

if TYPE_CHECKING:
    from lab.processes import Child
    from lab.supervisor import Supervisor

_HTTP_OFFSET = 1000
_TEXT_DIMENSION = 384
_IMAGE_DIMENSION = 512
_OUTAGE_PROBES = 5

# Settings that Vritti's environment file may hold beside those that it is made with.
_OPTIONAL_SETTINGS = (
    "WEB_CONCURRENCY",
    "SERVICE_REQUIRE_LLM_REFLECTION",
    "EMBEDDING_TEXT_MODEL_NAME",
    "SEARCH_DEFAULT_K",
    "LOGGING_LEVEL",
    "LLM_TIMEOUT_SECONDS",
    "LLM_MAX_RETRIES",
    "LLM_CHEAP_MODEL",
    "LLM_CONSENSUS_MODEL_1",
    "LLM_CONSENSUS_MODEL_2",
    "REFLECTION_MAX_COST_PER_DAY_USD",
    "SERVICE_DEAD_LETTER_QUEUE_PATH",
    "SERVICE_DEAD_LETTER_QUEUE_MAX_SIZE_MB",
)


@dataclass(frozen=True)
class VrittiOptions(Options):
    vritti: str = LINES[0]
    kyrodb_api_key: str | None = None
    kyrodb_tls: bool = False
    llm: bool = True

    def public(self) -> dict[str, Any]:
        return {**super().public(), "kyrodb_api_key": self.kyrodb_api_key is not None}


@dataclass(frozen=True)
class VrittiPorts(Ports):
    vritti: int
    kyrodb_text: int
    kyrodb_text_http: int
    kyrodb_image: int
    kyrodb_image_http: int

    OFFSETS = MappingProxyType(
        {
            "vritti": 0,
            "kyrodb_text": 51,
            "kyrodb_text_http": 51 + _HTTP_OFFSET,
            "kyrodb_image": 52,
            "kyrodb_image_http": 52 + _HTTP_OFFSET,
            "control": 99,
        }
    )
    TITLES = MappingProxyType(
        {
            "vritti": "Vritti",
            "kyrodb_text": "the text KyroDB",
            "kyrodb_text_http": "the text KyroDB's HTTP port",
            "kyrodb_image": "the image KyroDB",
            "kyrodb_image_http": "the image KyroDB's HTTP port",
        }
    )


class VrittiLayout(Layout):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.keys = self.root / "keys.json"
        self.descriptors = self.root / "kyrodb.descriptors"
        self.tls = self.root / "tls"
        self.tls_ca = self.tls / "ca.crt"
        self.vritti = self.root / "vritti"
        self.environment = self.vritti / "vritti.env"
        self.vritti_log = self.vritti / "vritti.log"
        self.customers_db = self.vritti / "data" / "customers.db"
        self.dead_letters = self.vritti / "data" / "failed_reflections.log"

    def kyrodb(self, instance: str) -> Path:
        return self.root / f"kyrodb_{instance}"

    def kyrodb_config(self, instance: str) -> Path:
        return self.kyrodb(instance) / "kyrodb_config.toml"


class VrittiService(Service):
    name = "vritti"
    title = "Vritti"
    processes = (KYRODB_TEXT, KYRODB_IMAGE, VRITTI)
    faults = FAULTS
    clients = MappingProxyType(
        {
            "traffic-spike": "spike",
            "rate-limited": "rate-limited",
            "auth-errors": "bad-keys",
            "validation-errors": "bad-bodies",
        }
    )
    memory = Memory(
        process=VRITTI,
        # Longer than the pause after which Vritti's channels try a returned instance again.
        seconds=0.6,
        sentence="Vritti's circuit breaker may have opened meanwhile: only `restart vritti` closes it.",
        cured="the circuit breaker (vritti restarted)",
    )
    layout_type = VrittiLayout
    ports_type = VrittiPorts
    options_type = VrittiOptions
    installation = Installation(
        data=Path("/var/lib/vritti-lab"),
        environment_file=Path("/etc/vritti/vritti.env"),
        ports=VrittiPorts(
            vritti=8000,
            kyrodb_text=50051,
            kyrodb_text_http=51051,
            kyrodb_image=50052,
            kyrodb_image_http=51052,
            control=0,
        ),
    )
    layout: VrittiLayout
    options: VrittiOptions
    ports: VrittiPorts

    def __init__(self, root: Path, options: Options, ports: Ports | None = None) -> None:
        super().__init__(root, options, ports)
        self._admin_api_key = secrets.token_hex(24)

    @staticmethod
    def add_version_argument(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--vritti", choices=LINES, default=LINES[0], help="which Vritti (default: %(default)s)")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kyrodb-api-key", metavar="KEY", help="KyroDB asks for this key; Vritti never sends one")
        parser.add_argument("--kyrodb-tls", action="store_true", help="KyroDB's gRPC ports speak TLS")
        parser.add_argument("--no-llm", dest="llm", action="store_false", help="start Vritti without an LLM key")

    def url(self) -> str:
        return f"http://{HOST}:{self.ports.vritti}"

    def programs(self) -> list[Program]:
        command = [sys.executable, "-m", "uvicorn", "src.main:app", "--host", HOST, "--port", str(self.ports.vritti)]
        # Without a limit, requests that wait for a KyroDB that hangs would keep the process for minutes.
        command += ["--timeout-graceful-shutdown", "3"]
        vritti = Program(
            VRITTI,
            command,
            self.layout.vritti,
            self.layout.vritti_log,
            self._environment(VRITTI, "LAB_VRITTI_LINE", self.options.vritti),
            self.layout.environment,
            # Of Vritti's health routes the only one that does not call KyroDB, where failures would count.
            f"{self.url()}/health/liveness",
        )
        text = self._kyrodb("text", KYRODB_TEXT, self.ports.kyrodb_text, self.ports.kyrodb_text_http)
        image = self._kyrodb("image", KYRODB_IMAGE, self.ports.kyrodb_image, self.ports.kyrodb_image_http)
        return [text, image, vritti]

    def _kyrodb(self, instance: str, name: str, port: int, http_port: int) -> Program:
        directory = self.layout.kyrodb(instance)
        config = str(self.layout.kyrodb_config(instance))
        command = [sys.executable, "-m", "lab.kyrodb.kyrodb_server", "--config", config, "--port", str(port)]
        environment = self._environment(name, "LAB_PROCESS", name)
        log, health = directory / "kyrodb.log", f"http://{HOST}:{http_port}/health"
        return Program(name, command, directory, log, environment, health=health)

    def _environment(self, process: str, own: str, value: str) -> dict[str, str]:
        return {
            "PYTHONUNBUFFERED": "1",
            "LAB_FAULTS_FILE": str(self.layout.faults),
            "LAB_KYRODB_DESCRIPTORS": str(self.layout.descriptors),
            VARIABLE: str(self.layout.pid_file(process)),
            own: value,
        }

    def settings(self) -> Collection[str]:
        return (*self._settings(), *_OPTIONAL_SETTINGS)

    def _settings(self) -> dict[str, str]:
        settings = {
            "KYRODB_TEXT_HOST": HOST,
            "KYRODB_TEXT_PORT": str(self.ports.kyrodb_text),
            "KYRODB_IMAGE_HOST": HOST,
            "KYRODB_IMAGE_PORT": str(self.ports.kyrodb_image),
            "ADMIN_API_KEY": self._admin_api_key,
            "LLM_OPENROUTER_API_KEY": "sk-or-lab-0123456789abcdef" if self.options.llm else "",
        }
        if self.options.kyrodb_tls:
            settings |= {"KYRODB_ENABLE_TLS": "true", "KYRODB_TLS_CA_CERT_PATH": str(self.layout.tls_ca)}
        return settings

    def prepare(self) -> None:
        from lab.kyrodb.protocol import compile_descriptors
        from lab.kyrodb.tls import create_certificates

        layout = self.layout
        (layout.vritti / "data").mkdir(parents=True, exist_ok=True)
        # A deployment has this module in its working directory; uvicorn is started with its name.
        (layout.vritti / "src").mkdir(exist_ok=True)
        (layout.vritti / "src" / "main.py").write_text("from lab.vritti.app import app as app\n", encoding="utf-8")
        layout.environment.parent.mkdir(parents=True, exist_ok=True)
        write_private(layout.environment, environment_file.dump(self._settings()))
        compile_descriptors(layout.descriptors)
        if self.options.kyrodb_tls:
            shutil.rmtree(layout.tls, ignore_errors=True)
            create_certificates(layout.tls)
        self._write_text_config(_TEXT_DIMENSION, "data")
        self._write_kyrodb_config("image", self.ports.kyrodb_image, _IMAGE_DIMENSION, "data")

    def _write_text_config(self, dimension: int, data: str) -> None:
        self._write_kyrodb_config("text", self.ports.kyrodb_text, dimension, data)

    def _write_kyrodb_config(self, instance: str, port: int, dimension: int, data: str) -> None:
        directory = self.layout.kyrodb(instance)
        directory.mkdir(parents=True, exist_ok=True)
        quoted = json.dumps
        sections = [
            f"[server]\nhost = {quoted(HOST)}\nport = {port}\n",
            f"[hnsw]\ndimension = {dimension}\n",
            f"[persistence]\ndata_dir = {quoted(str(directory / data))}\n",
        ]
        if self.options.kyrodb_tls:
            certificate, key = str(self.layout.tls / "server.crt"), str(self.layout.tls / "server.key")
            sections.append(
                f"[server.tls]\nenabled = true\ncert_path = {quoted(certificate)}\nkey_path = {quoted(key)}\n"
            )
        if self.options.kyrodb_api_key is not None:
            keys = directory / "api_keys.yaml"
            entry = {"key": self.options.kyrodb_api_key, "tenant_id": "lab", "tenant_name": "Lab", "enabled": True}
            write_private(keys, json.dumps({"api_keys": [entry]}) + "\n")
            sections.append(f"[auth]\nenabled = true\napi_keys_file = {quoted(str(keys))}\n")
        self.layout.kyrodb_config(instance).write_text("\n".join(sections), encoding="utf-8")

    def seed(self) -> None:
        from lab.vritti.seed import seed_customers

        # Vritti spends its first second importing: time enough to create its customers.
        seed_customers(self.layout.customers_db, self.layout.keys, self.options.vritti)

    def client(self, kind: str, *rest: str) -> list[str]:
        return [sys.executable, "-m", "lab.vritti.clients", kind, self.url(), str(self.layout.keys), *rest]

    def inventory(self) -> tuple[str, str, Mapping[str, object]]:
        layout, options = self.layout, self.options
        variables: dict[str, object] = {
            "vritti_url": self.url(),
            "kyrodb_text_address": f"{HOST}:{self.ports.kyrodb_text}",
            "kyrodb_image_address": f"{HOST}:{self.ports.kyrodb_image}",
            "kyrodb_tls": options.kyrodb_tls,
        }
        if options.kyrodb_tls:
            variables["kyrodb_tls_ca"] = str(layout.tls_ca)
        if options.kyrodb_api_key is not None:
            variables["kyrodb_api_key"] = options.kyrodb_api_key
        variables |= {
            "vritti_admin_api_key": self._admin_api_key,
            "vritti_home": str(layout.vritti),
            "vritti_log_path": str(layout.vritti_log),
            "vritti_customers_db": str(layout.customers_db),
            "vritti_backup_dir": str(layout.root / "backups"),
            "vritti_dlq_path": str(layout.dead_letters),
            "vritti_service_manager": "process",
            "vritti_pid_file": str(layout.pid_file(VRITTI)),
            "vritti_command": start_command(layout, VRITTI),
            "vritti_environment_file": str(layout.environment),
            "kyrodb_service_manager": "process",
        }
        for instance, process in (("text", KYRODB_TEXT), ("image", KYRODB_IMAGE)):
            variables |= {
                f"kyrodb_{instance}_home": str(layout.kyrodb(instance)),
                f"kyrodb_{instance}_pid_file": str(layout.pid_file(process)),
                f"kyrodb_{instance}_command": start_command(layout, process),
            }
        return "vritti", "vritti-lab", variables

    def addresses(self) -> list[tuple[str, str]]:
        ports = self.ports
        return [
            (f"Vritti {self.options.vritti}", self.url()),
            ("KyroDB text", f"{HOST}:{ports.kyrodb_text} (HTTP {ports.kyrodb_text_http})"),
            ("KyroDB image", f"{HOST}:{ports.kyrodb_image} (HTTP {ports.kyrodb_image_http})"),
        ]

    def why_exited(self, child: Child) -> str:
        if child.name != VRITTI:
            return super().why_exited(child)
        found = re.findall(r"Startup failed: ([^\"\n]+)", end_of(child.log))
        reason = f": {found[-1].rstrip('.')}." if found else super().why_exited(child)
        if self.options.kyrodb_api_key is not None:
            reason += " Its client never sends an API key, so it cannot work with a KyroDB that asks for one;"
            reason += " the KyroDB instances are up."
        return reason

    def is_as_asked(self, running: Collection[str]) -> bool:
        """Where Vritti cannot run because of what was asked for, the rest of the lab is the point of it."""
        others_run = {KYRODB_TEXT, KYRODB_IMAGE} <= set(running)
        return others_run and (self.options.kyrodb_api_key is not None or not self.options.llm)

    def alter(self, lab: Supervisor, fault: Fault, amount: float | None) -> str:
        if fault.name == "wrong-dimension":
            from lab.kyrodb.kyrodb_server import DEFAULT_DIMENSION

            self._write_text_config(DEFAULT_DIMENSION, "data-shipped")
        else:
            self._stick_breaker(lab)
        return ""

    def restore(self, lab: Supervisor, fault: Fault) -> None:
        if fault.name == "wrong-dimension":
            self._write_text_config(_TEXT_DIMENSION, "data")
        else:
            lab.replace_process(VRITTI)

    def _stick_breaker(self, lab: Supervisor) -> None:
        """Cause what the fault is named after: an outage, five failures, and KyroDB's return."""
        for name in (KYRODB_TEXT, KYRODB_IMAGE):
            lab.children[name].stop()
        for _probe in range(_OUTAGE_PROBES):
            # Two Health calls each, and each that fails counts.
            answers(f"{self.url()}/health/readiness")
        for name in (KYRODB_TEXT, KYRODB_IMAGE):
            lab.replace_process(name)
        time.sleep(self.memory.seconds)


SERVICE = VrittiService

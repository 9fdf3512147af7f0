# SPDX-License-Identifier: GPL-3.0-or-later
"""wp_chat: its project's root as a deployment has it, its command line, its environment and its faults."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from lab import environment_file
from lab.faults import Fault
from lab.layout import HOST, PACKAGE, Layout, Options, Ports, start_command, write_private
from lab.pidfile import VARIABLE
from lab.processes import end_of
from lab.service import ChangeFailedError, Installation, Program, Service
from lab.wp_chat import config, models
from lab.wp_chat.canary import PATH as CANARY
from lab.wp_chat.canary import CanaryConfig
from lab.wp_chat.damage import Damage, release
from lab.wp_chat.faults import FAULTS, WP_CHAT
from lab.wp_chat.settings import HEAD, KINDS, LAB_OPENAI_KEY, LITERAL, NAMES

if TYPE_CHECKING:
    from lab.processes import Child
    from lab.supervisor import Supervisor

_ROLLOUT = 0.5
_MAKEFILE = """\
# The runbook's target; no version of wp_chat has it.
rebuild-index:
\t{command}
"""
_DASHBOARD = "<!doctype html>\n<title>wp-chat dashboard</title>\n<h1>wp-chat</h1>\n<canvas id=latency></canvas>\n"


@dataclass(frozen=True)
class WpChatOptions(Options):
    # Four visitors a second, of a thousand: within everybody's limit for good.
    traffic: float = 4.0
    wp_chat: str = HEAD
    workers: int = 1


@dataclass(frozen=True)
class WpChatPorts(Ports):
    wp_chat: int

    OFFSETS = MappingProxyType({"wp_chat": 80, "control": 98})
    TITLES = MappingProxyType({"wp_chat": "wp_chat"})


class WpChatLayout(Layout):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.home = self.root / "wp_chat"
        self.environment = self.home / "wp-chat.env"
        self.log = self.home / "wp-chat.log"
        self.hf_home = self.root / "huggingface"
        self.models = self.hf_home / "hub"
        self.models_backup = self.root / "models_backup"
        self.aside = self.root / "aside"


class WpChatService(Service):
    name = "wp_chat"
    title = "wp_chat"
    processes = (WP_CHAT,)
    faults = FAULTS
    clients = MappingProxyType({"attack": "attack"})
    layout_type = WpChatLayout
    ports_type = WpChatPorts
    options_type = WpChatOptions
    installation = Installation(
        data=Path("/var/lib/wp-chat-lab"),
        environment_file=Path("/etc/wp-chat/wp-chat.env"),
        ports=WpChatPorts(wp_chat=8080, control=0),
    )
    layout: WpChatLayout
    options: WpChatOptions
    ports: WpChatPorts

    def __init__(self, root: Path, options: Options, ports: Ports | None = None) -> None:
        super().__init__(root, options, ports)
        layout = self.layout
        cache = layout.home / ("logs/cache" if self.options.wp_chat == LITERAL else "cache")
        model = models.folder_name(models.CROSS_ENCODER)
        self._damage = Damage(layout.home, layout.aside, cache, layout.models, model)
        # What the canary was before somebody stopped it.
        self._canary: dict[str, Any] = {}
        # By fault of a file the process that had loaded it sound.
        self._loaded: dict[str, int | None] = {}

    @staticmethod
    def add_version_argument(parser: argparse.ArgumentParser) -> None:
        text = "as it is, or as the runbook's text has it (default: %(default)s)"
        parser.add_argument("--wp-chat", choices=KINDS, default=HEAD, help=text)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--workers", type=int, default=1, metavar="N", help="processes of wp_chat (default: %(default)s)"
        )

    def url(self) -> str:
        return f"http://{HOST}:{self.ports.wp_chat}"

    def programs(self) -> list[Program]:
        app = "wp_chat.chat_api:app" if self.options.wp_chat == LITERAL else "wp_chat.api.main:app"
        command = [sys.executable, "-m", "uvicorn", app, "--host", HOST, "--port", str(self.ports.wp_chat)]
        command += ["--timeout-graceful-shutdown", "3"]
        if self.options.workers > 1:
            command += ["--workers", str(self.options.workers)]
        environment = {
            "PYTHONUNBUFFERED": "1",
            "LAB_FAULTS_FILE": str(self.layout.faults),
            "LAB_WP_CHAT_KIND": self.options.wp_chat,
            VARIABLE: str(self.layout.pid_file(WP_CHAT)),
        }
        health = f"{self.url()}/stats/health"
        layout = self.layout
        return [Program(WP_CHAT, command, layout.home, layout.log, environment, layout.environment, health)]

    def settings(self) -> Collection[str]:
        return NAMES

    def prepare(self) -> None:
        from lab.wp_chat import posts
        from lab.wp_chat.build_index import DIRECTORY, POSTS, build

        layout = self.layout
        self.tidy(layout.root)
        # A deployment's root anew: nothing of an earlier lab is evidence about this one.
        for path in (layout.home, layout.hf_home, layout.models_backup, layout.aside):
            shutil.rmtree(path, ignore_errors=True)
        api = layout.home / "wp_chat" / "api"
        api.mkdir(parents=True)
        for package in (api.parent, api):
            (package / "__init__.py").write_text("", encoding="utf-8")
        module = api.parent / "chat_api.py" if self.options.wp_chat == LITERAL else api / "main.py"
        module.write_text("from lab.wp_chat.app import app as app\n", encoding="utf-8")
        (layout.home / "config.yml").write_text(config.TEXT, encoding="utf-8")
        (layout.home / "pricing.json").write_text('{"gpt-4o-mini": {"input": 0.15, "output": 0.6}}\n', encoding="utf-8")
        (layout.home / "dashboard.html").write_text(_DASHBOARD, encoding="utf-8")
        posts.write(layout.home / POSTS)
        build(layout.home / POSTS, layout.home / DIRECTORY)
        for directory in (layout.models, layout.models_backup):
            models.install(directory, models.CROSS_ENCODER)
            models.install(directory, models.EMBEDDING)
        (layout.home / CANARY).parent.mkdir(exist_ok=True)
        canary = CanaryConfig(enabled=True, rollout_percentage=_ROLLOUT, updated_by="lab")
        canary.save(layout.home / CANARY)
        if self.options.wp_chat == LITERAL:
            index = layout.home / DIRECTORY / "wp.faiss"
            shutil.copy2(index, index.with_name("wp.faiss.backup"))
            makefile = _MAKEFILE.format(command=self._rebuild_command())
            (layout.home / "Makefile").write_text(makefile, encoding="utf-8")
        layout.environment.parent.mkdir(parents=True, exist_ok=True)
        settings = {"OPENAI_API_KEY": LAB_OPENAI_KEY, "HF_HOME": str(layout.hf_home)}
        write_private(layout.environment, environment_file.dump(settings))

    def _rebuild_command(self) -> str:
        return shlex.join([sys.executable, str(PACKAGE / "wp_chat")])

    def client(self, kind: str, *rest: str) -> list[str]:
        return [sys.executable, "-m", "lab.wp_chat.clients", kind, self.url(), *rest]

    def inventory(self) -> tuple[str, str, Mapping[str, object]]:
        layout = self.layout
        return (
            "wp_chat",
            "wp-chat-lab",
            {
                "wp_chat_url": self.url(),
                "wp_chat_home": str(layout.home),
                "wp_chat_log_path": str(layout.log),
                "wp_chat_service_manager": "process",
                "wp_chat_pid_file": str(layout.pid_file(WP_CHAT)),
                "wp_chat_command": start_command(layout, WP_CHAT),
                "wp_chat_environment_file": str(layout.environment),
                "wp_chat_rebuild_command": (
                    "make rebuild-index" if self.options.wp_chat == LITERAL else self._rebuild_command()
                ),
                "wp_chat_models_dir": str(layout.models),
                "wp_chat_models_backup": str(layout.models_backup),
                "wp_chat_python": sys.executable,
            },
        )

    def addresses(self) -> list[tuple[str, str]]:
        return [(f"wp_chat {self.options.wp_chat}", self.url()), ("project's root", str(self.layout.home))]

    def why_exited(self, child: Child) -> str:
        found = re.findall(r"^\w[\w.]*Error: .+", end_of(child.log), re.MULTILINE)
        return f": {found[-1].rstrip('.')}." if found else super().why_exited(child)

    def alter(self, lab: Supervisor, fault: Fault, amount: float | None) -> str:
        if self._damage.knows(fault.name):
            self._loaded[fault.name] = lab.children[WP_CHAT].pid
            try:
                return self._damage.do(fault.name)
            except OSError as error:
                raise ChangeFailedError(f"{fault.name} cannot be brought about: {error}.") from error
        self._canary = self._call("GET", "/admin/canary/status")["config"]
        self._call("POST", "/admin/canary/emergency-stop", updated_by="somebody")
        return ""

    def restore(self, lab: Supervisor, fault: Fault) -> None:
        if not self._damage.knows(fault.name):
            if lab.children[WP_CHAT].pid is None:
                lab.replace_process(WP_CHAT)
            self._restore_canary()
            return
        self._damage.undo(fault.name)
        before, now = self._loaded.pop(fault.name), lab.children[WP_CHAT].pid
        # Whoever was started meanwhile has loaded what was broken; whoever could not start can now.
        if now != before:
            lab.replace_process(WP_CHAT)

    def _restore_canary(self) -> None:
        if not self._canary["emergency_stop"]:
            self._call("POST", "/admin/canary/clear-emergency", updated_by="lab")
        self._call("POST", "/admin/canary/rollout", percentage=self._canary["rollout_percentage"], updated_by="lab")

    def _call(self, method: str, path: str, **query: Any) -> Any:
        url = f"{self.url()}{path}?{urlencode(query)}"
        request = urllib.request.Request(url, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
                return json.load(response)
        except OSError as error:
            raise ChangeFailedError(f"{method} {path} of wp_chat failed: {error}.") from error

    @staticmethod
    def tidy(root: Path) -> None:
        for cache in ("cache", "logs/cache"):
            release(root / "wp_chat" / cache)


SERVICE = WpChatService

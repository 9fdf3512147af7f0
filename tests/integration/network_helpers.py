# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines as network namespaces, with a firewall of their own; they end with the test."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.playbook_helpers import REPOSITORY

PROGRAMS = ("ip", "nft", "ipset", "iptables", "conntrack", "sshd")
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _why_not() -> str:
    """Why there can be no network of a test's own here; empty where there can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=SBIN)]
    if os.geteuid() != 0 or missing:
        return f"takes root and network namespaces{', and not here: ' + ', '.join(missing) if missing else ''}"
    name, environment = f"oncall-{os.getpid()}", {**os.environ, "PATH": SBIN}
    try:
        for command in (["add", name], ["exec", name, "nft", "list", "tables"]):
            done = subprocess.run(
                ["ip", "netns", *command],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env=environment,
            )
            if done.returncode:
                return f"takes network namespaces with nftables, and here: {' '.join(done.stderr.split())}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False, env=environment)
    return ""


WHY_NOT = _why_not()
takes_a_network = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
PATIENCE = 30.0
COUNTER = itertools.count()


def sh(*command: str, **options: Any) -> str:
    options = options if "input" in options else {**options, "stdin": subprocess.DEVNULL}
    environment = {**os.environ, "PATH": SBIN, **options.pop("environment", {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment, **options)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


class Namespace:
    """A machine of its own, as far as the network goes."""

    def __init__(self, name: str, path: str = SBIN) -> None:
        self.name = f"ipblk{os.getpid()}{name}"
        self.path = path
        sh("ip", "netns", "add", self.name)
        self("ip", "link", "set", "lo", "up")
        # An address may be used at once, without waiting whether somebody else has it.
        self("sysctl", "-q", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        self.started: list[subprocess.Popen[str]] = []

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def __call__(self, *words: str, **options: Any) -> str:
        return sh(*self.command(*words), **options)

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": SBIN},
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """End everything that runs there, in whatever session."""
        for pid in sh("ip", "netns", "pids", self.name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        for process in self.started:
            # Of one that has ended, the number may be somebody else's by now.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout:
                process.stdout.close()
        mount = Path("/run/netns", self.name)
        if mount.exists():
            # Such as what sshd has started for a client that does not come back.
            self.kill()
            Path(f"/run/oncall-runbooks-ip-block-{mount.stat().st_ino}.lock").unlink(missing_ok=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False, env={**os.environ, "PATH": SBIN})

    def cable(self, other: Namespace, own: list[str], others: list[str]) -> None:
        """A wire between two, with the addresses of both ends."""
        number = next(COUNTER)
        here, there = f"v{number}a", f"v{number}b"
        self("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", other.name)
        for end, name, addresses in ((self, here, own), (other, there, others)):
            for address in addresses:
                end("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
            end("ip", "link", "set", name, "up")

    def module(self, name: str = "ip_block", **options: Any) -> dict[str, Any]:
        """The module as it runs on a target, without a controller."""
        options = {"connection": "local", **options} if name == "ip_block" else options
        wire = {"ANSIBLE_MODULE_ARGS": {"_ansible_remote_tmp": "/tmp", "_ansible_keep_remote_files": False, **options}}
        done = subprocess.run(
            self.command(sys.executable, "-m", f"ansible_collections.oncall.runbooks.plugins.modules.{name}"),
            input=json.dumps(wire),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PATH": self.path, "PYTHONPATH": str(REPOSITORY / "collections")},
        )
        assert done.stdout.strip(), done.stderr
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return result

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.module("ip_block_info")["entries"]
        return found


def until(what: Callable[[], bool]) -> None:
    """Wait for the kernel; how long is not what is tested."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)

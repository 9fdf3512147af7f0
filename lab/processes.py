# SPDX-License-Identifier: GPL-3.0-or-later
"""A process of the lab: usually the supervisor's child, which dies with it, but whoever restarts it is not asked."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import environment_file, pidfile

_STOP_SECONDS = 6.0
_END_BYTES = 100_000


def answers(url: str) -> bool:
    """Whether anything at all is answered there."""
    try:
        # No proxy: the lab's ports are on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def end_of(log: Path) -> str:
    """The end of a log; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


class Child:
    """One named process. It must be started from a thread that lives as long as the supervisor: Linux sends the
    parent-death signal when the thread that started the process ends.

    With a PID file it is what that file names where the supervisor's own process has ended: somebody else may have
    stopped the one and started another.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        log: Path,
        pid_file: Path | None = None,
        settings: Path | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.pid_file = pid_file
        self._cwd = cwd
        self.environment = dict(environment)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_requested = False

    @property
    def pid(self) -> int | None:
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return pidfile.holder(self.pid_file) if self.pid_file is not None else None

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process is not None and self.pid is None else None

    @property
    def state(self) -> str:
        pid = self.pid
        if pid is not None:
            return "paused" if pidfile.state(pid) == "T" else "running"
        if self._process is None or self._stop_requested:
            return "stopped"
        return "exited"

    def start(self) -> None:
        """Start it unless it runs; OSError where its settings cannot be read."""
        if self.pid is not None:
            return
        parent = os.getpid()

        def prepare() -> None:
            pidfile.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)

        self._cwd.mkdir(parents=True, exist_ok=True)
        environment = {**self.environment, **(environment_file.load(self._settings) if self._settings else {})}
        self._stop_requested = False
        # Opened for appending: the supervisor may cut the file while the process goes on writing.
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                cwd=self._cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare,  # noqa: PLW1509 -- nothing in it takes a lock
            )

    def stop(self) -> None:
        """Ask it to end, then make it."""
        self._stop_requested = True
        process = self._process
        if process is not None and process.poll() is None:
            if pidfile.state(process.pid) == "T":
                # It cannot react to anything gentler.
                process.kill()
            else:
                process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.pid_file is not None:
            pidfile.end(self.pid_file, _STOP_SECONDS)

    def kill(self) -> None:
        """What a crash or the kernel's OOM killer does."""
        pid = self.pid
        self._signal(signal.SIGKILL)
        if self._process is not None and self._process.pid == pid:
            self._process.wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        pid = self.pid
        if pid is not None:
            pidfile.send(pidfile.family(pid), number)

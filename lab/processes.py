# SPDX-License-Identifier: GPL-3.0-or-later
"""A child process of the supervisor: it is its own process, and dies with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 6.0

_prctl: Any
try:
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError):
    # Not Linux: `down` still ends the children, the supervisor's sudden death does not.
    _prctl = None


class Child:
    """One named process. It must be started from a thread that lives as long as the supervisor: Linux sends the
    parent-death signal when the thread that started the process ends."""

    def __init__(self, name: str, argv: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._cwd = cwd
        self.environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_requested = False
        self.paused = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    @property
    def state(self) -> str:
        if self.pid is not None:
            return "paused" if self.paused else "running"
        if self._process is None or self._stop_requested:
            return "stopped"
        return "exited"

    def start(self) -> None:
        if self.pid is not None:
            return
        parent = os.getpid()

        def die_with_parent() -> None:
            if _prctl is not None:
                _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self._cwd.mkdir(parents=True, exist_ok=True)
        self._stop_requested = False
        self.paused = False
        # Opened for appending: the supervisor may cut the file while the process goes on writing.
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                cwd=self._cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509 -- nothing in it takes a lock
            )

    def stop(self) -> None:
        """Ask it to end, then make it."""
        self._stop_requested = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        if self.paused:
            # It cannot react to anything gentler.
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.paused = False

    def pause(self) -> None:
        if self._process is not None and self.pid is not None:
            self._process.send_signal(signal.SIGSTOP)
            self.paused = True

    def resume(self) -> None:
        if self._process is not None and self.pid is not None:
            self._process.send_signal(signal.SIGCONT)
        self.paused = False

    def wait_exit(self, seconds: float) -> int | None:
        """The exit status, or None when it still runs after that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.returncode is None:
            time.sleep(0.02)
        return self.returncode

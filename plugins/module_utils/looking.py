# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the probes of one diagnosis share: the limits, the secrets, and looks that several checks want only once."""

from __future__ import annotations

import os
import threading
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

T = t.TypeVar("T")
# Runs a read-only command and returns its status, output and errors; the module's own run_command.
Run = t.Callable[[list[str]], tuple[int, str, str]]


class Context:
    """Given to every probe; safe to use from many threads."""

    def __init__(
        self,
        timeout: float,
        sample_seconds: float,
        secrets: t.Mapping[str, str],
        run: Run,
        fresh_seconds: float = 0.0,
    ) -> None:
        self.timeout = timeout
        self.sample_seconds = sample_seconds
        self.run = run
        # How long ago a step ended whose effect is looked for; 0 where there was none.
        self.fresh_seconds = fresh_seconds
        self._secrets = secrets
        self._lock = threading.Lock()
        self._locks: dict[t.Hashable, threading.Lock] = {}
        self._done: dict[t.Hashable, tuple[bool, t.Any]] = {}

    def secret(self, variable: str) -> str:
        """The value of a secret by its variable's name."""
        try:
            return self._secrets[variable]
        except KeyError:
            raise NoAnswer(f"The secret {variable} is not set.", "secret") from None

    def once(self, key: t.Hashable, function: t.Callable[[], T]) -> T:
        """Call the function for the first who asks; the others get the same answer, or the same failure."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._done:
                try:
                    self._done[key] = (True, function())
                except Exception as error:  # noqa: BLE001 - raised again for each who asks
                    self._done[key] = (False, error)
            good, result = self._done[key]
        if good:
            return t.cast(T, result)
        raise result

    def pair(self, key: t.Hashable, function: t.Callable[[], T]) -> tuple[T, T | None, float]:
        """Call the function now and again after the sample time; the second is None where there is no sample time."""

        def both() -> tuple[T, T | None, float]:
            began = time.monotonic()
            # Whoever wants only what is so now shares the first of the two.
            first = self.once(("now", key), function)
            if self.sample_seconds <= 0:
                return first, None, 0.0
            time.sleep(max(0.0, self.sample_seconds - (time.monotonic() - began)))
            between = time.monotonic() - began
            return first, function(), between

        return self.once(("pair", key), both)


def absolute(context: Context, path: str, port: int | None) -> str:
    """A file; a relative path starts where the service that listens on the port was started."""
    if os.path.isabs(path):
        return path
    if not port:
        raise NoAnswer(f"{path} is relative, and nobody says to what; give an absolute path.", "no data")
    try:
        found = context.once(("process", port, None), lambda: procfs.listeners(port))
        if found:
            return os.path.join(os.readlink(f"/proc/{found[0]}/cwd"), path)
    except OSError as error:
        raise NoAnswer(
            f"{path} is relative to a folder that {procfs.user(os.geteuid())} may not see ({error.strerror}); run with "
            "-b, or give an absolute path.",
            "permission",
        ) from None
    raise NoAnswer(
        f"{path} is relative to where the service was started, and nothing listens on port {port}; give an absolute "
        "path.",
        "place",
    )

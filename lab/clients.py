# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients of the services have in common: connections, an even pace, several at once."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 5.0


class Connection:
    """One keep-alive connection; whatever goes wrong is the service's business and shows there."""

    def __init__(self, url: str, source: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        # The address that the service sees, where it is not the one that the system would choose.
        self._source = (source, 0) if source else None
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> int | None:
        """The status, or None without an answer."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    self._host, self._port, timeout=TIMEOUT_SECONDS, source_address=self._source
                )
            self._connection.request("POST", path, json.dumps(body), headers)
            response = self._connection.getresponse()
            response.read()
            return response.status
        except (OSError, http.client.HTTPException):
            self.close()
            time.sleep(0.5)
            return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class Pacer:
    """Hands out evenly spaced turns to all workers; turns that were missed are not made up for."""

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            moment = time.monotonic()
            turn = max(self._next, moment - self._interval)
            self._next = turn + self._interval
        if turn > moment:
            time.sleep(turn - moment)


def run_all(workers: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

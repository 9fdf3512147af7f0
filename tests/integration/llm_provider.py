# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in of the LLM provider on loopback: a status page, a public list of models, and a route that wants a key."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Provider:
    """What it says of itself, and which keys it accepts; every request is kept."""

    def __init__(self) -> None:
        self.indicator = "none"
        self.keys: set[str] = set()
        # The status of whoever asks with a key while it has no time for that.
        self.busy: int | None = None
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    @property
    def variables(self) -> dict[str, str]:
        """Where a runbook finds it."""
        return {
            "vritti_llm_status_url": f"{self.url}/api/v2/status.json",
            "vritti_llm_key_url": f"{self.url}/api/v1/key",
        }

    def answer(self, path: str, authorization: str) -> tuple[int, Any]:
        self.requests.append((path, authorization))
        if path == "/api/v2/status.json":
            status = {"indicator": self.indicator, "description": "All Systems Operational"}
            return 200, {"page": {"name": "Provider"}, "status": status}
        if path == "/api/v1/models":
            return 200, {"data": [{"id": "x-ai/grok-4.1-fast:free"}]}
        if path == "/api/v1/key" and self.busy:
            return self.busy, {"error": {"message": "Try again later", "code": self.busy}}
        if path == "/api/v1/key":
            if authorization.removeprefix("Bearer ") in self.keys:
                return 200, {"data": {"label": "a key", "usage": 0}}
            return 401, {"error": {"message": "User not found.", "code": 401}}
        return 404, {"error": {"message": "Not found", "code": 404}}


@contextmanager
def running_provider() -> Iterator[Provider]:
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = provider.answer(self.path, self.headers.get("Authorization", ""))
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads this."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The control interface of a lab: HTTP on the loopback interface."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from lab.faults import UnknownFaultError
from lab.httpd import LoopbackServer
from lab.service import ChangeFailedError

if TYPE_CHECKING:
    from lab.supervisor import Supervisor


def _amount(query: str) -> float | None:
    given = parse_qs(query).get("amount")
    try:
        return float(given[0]) if given else None
    except ValueError as error:
        raise UnknownFaultError(f"The amount of a fault is a number, not {given}.") from error


def _route(supervisor: Supervisor, method: str, path: list[str], query: str) -> Callable[[], Any] | None:
    """What to do for a request; None when there is no such thing."""
    match method, path:
        case "GET", ["status"]:
            return supervisor.status
        case "GET", ["faults"]:
            return supervisor.fault_table
        case "PUT", ["faults", service, name]:
            return lambda: {"message": supervisor.break_fault(service, name, _amount(query))}
        case "DELETE", ["faults", service, name]:
            return lambda: {"message": supervisor.heal_fault(service, name)}
        case "DELETE", ["faults", service]:
            return lambda: {"message": supervisor.heal_all(service)}
        case "DELETE", ["faults"]:
            return lambda: {"message": supervisor.heal_all()}
        case "POST", ["processes", name, "start"]:
            return lambda: {"message": supervisor.start_process(name)}
        case "POST", ["processes", name, "stop"]:
            return lambda: {"message": supervisor.stop_process(name)}
        case "POST", ["processes", name, "restart"]:
            return lambda: {"message": supervisor.restart_process(name)}
        case _:
            return None


def build_control_server(supervisor: Supervisor, listening: socket.socket) -> LoopbackServer:
    from lab.supervisor import UnknownProcessError

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            parts = urlsplit(self.path)
            path = [unquote(part) for part in parts.path.split("/") if part]
            action = _route(supervisor, self.command, path, parts.query)
            if action is None:
                self._answer(404, {"message": f"There is no {self.command} {self.path} here."})
                return
            try:
                self._answer(200, action())
            except (UnknownFaultError, UnknownProcessError) as error:
                self._answer(404, {"message": str(error)})
            except ChangeFailedError as error:
                self._answer(409, {"message": str(error)})
            except Exception as error:  # noqa: BLE001 -- the caller waits for an answer, whatever happened
                self._answer(500, {"message": f"{type(error).__name__}: {error}"})

        do_GET = do_PUT = do_DELETE = do_POST = _serve

        def _answer(self, status: int, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads this."""

    server = LoopbackServer(listening.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    return server

# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP server that the lab's small interfaces share."""

from __future__ import annotations

import socketserver
from http.server import ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # The base class asks the resolver for the host's name, which takes seconds where there is none.
        socketserver.TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])

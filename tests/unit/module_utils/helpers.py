# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers, real certificates and real child processes for the tests. Standard library only, but for gRPC."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
import types
from concurrent import futures
from pathlib import Path

from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES

# Where `ansible_collections` is found, for child processes.
COLLECTIONS = Path(__file__).resolve().parents[3] / "collections"
# No answer may take longer than this, whatever a probe's own timeout is. It is generous for a loaded machine.
PATIENCE = 10.0


def context(timeout=5.0, sample_seconds=0.0, **secrets):
    return Context(timeout, sample_seconds, secrets, run_command)


def run_command(command):
    """As the module's own, for tests have no module."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, done.stdout, done.stderr


def source(probe, **values):
    """A source as validation would hand it over: every key of the probe, with its default."""
    spec = PROBES[probe].SPEC
    strange = set(values) - set(spec) - {"scale", "when", "note", "problem"}
    assert not strange, strange
    return {
        "probe": probe,
        "when": True,
        "scale": 1.0,
        "note": None,
        **{k: v.get("default") for k, v in spec.items()},
        **values,
    }


def look(probe, at=None, min_samples=0, thresholds=(), **values):
    """One look with a probe."""
    made = source(probe, **values)
    PROBES[probe].validate(made)
    return PROBES[probe].look(at or context(), made, {"min_samples": min_samples, "thresholds": list(thresholds)})


def free_port():
    """A port that nothing listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Raw:
    """A TCP server that does to each connection what the test says; counts them, and ends them with the test."""

    def __init__(self, serve, tls=None):
        self.serve = serve
        self.tls = tls
        self.count = 0
        self.over = threading.Event()
        self.threads = []
        self.connections = []

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        self._start(self._accept)
        return self

    def _start(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                connection, _peer = self.listener.accept()
            except OSError:
                return
            self.count += 1
            self.connections.append(connection)
            self._start(self._one, connection)

    def _one(self, connection):
        with contextlib.suppress(OSError), connection:
            self.serve(connection, self.over)

    def __exit__(self, *_error):
        self.over.set()
        # Closing alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(PATIENCE)


def mute(_connection, over):
    """Accepts and never answers."""
    over.wait(60)


def drip(first, piece, pause=0.05):
    """Answers at once, and then goes on with one piece after the other for longer than any client should wait."""

    def serve(connection, over):
        connection.recv(65536)
        connection.sendall(first)
        end = time.monotonic() + PATIENCE + 2
        while not over.wait(pause) and time.monotonic() < end:
            connection.sendall(piece)

    return serve


def say(answer):
    """Reads the request, says this, and closes."""

    def serve(connection, _over):
        connection.recv(65536)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        # The rest of what the client says, so that closing does not reset the connection.
        while connection.recv(65536):
            pass

    return serve


class Web:
    """An HTTP server: `pages` maps a path to a body, to (status, content type, body), or to a list of those in turn."""

    def __init__(self, tls=None):
        self.pages = {}
        self.requests = []
        self.headers = []
        # What came with each POST.
        self.bodies = []
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                web.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                self.do_GET()

            def do_GET(self):
                web.requests.append(self.path)
                web.headers.append(dict(self.headers))
                page = web.pages.get(self.path.partition("?")[0], (404, "text/plain", b"no such page"))
                if isinstance(page, list):
                    page = page.pop(0) if len(page) > 1 else page[0]
                if callable(page):
                    page = page(self.path)
                status, kind, body = page if isinstance(page, tuple) else (200, "text/plain; version=0.0.4", page)
                body = body.encode() if isinstance(body, str) else body
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if 300 <= status < 400:
                    self.send_header("Location", "/moved")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments):
                pass  # a client that refuses the certificate breaks off; that is what some tests are about

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"
        if tls:
            server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server_side.load_cert_chain(tls.certificate, tls.key)
            self.server.socket = server_side.wrap_socket(self.server.socket, server_side=True)

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE)


def make_certificates(folder):
    """Made by openssl, as an operator would."""

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name} authority", "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost",
        "-keyout", "server.key", "-out", "server.csr",
    )  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "server.pem",
    )  # fmt: skip
    return types.SimpleNamespace(
        ca=str(folder / "ca.pem"),
        other=str(folder / "other.pem"),
        certificate=str(folder / "server.pem"),
        key=str(folder / "server.key"),
    )


def python(code, *arguments, timeout=60, **options):
    """Run a piece of Python in a process of its own that can import the collection; its output, or its error."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Root may read everything: a test of missing permissions has to be somebody else, once everything is imported.
# What is imported later, nobody may not be able to read.
BECOME_NOBODY = """
import os
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
for name in PROBES:
    PROBES[name]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


# --- KyroDB's messages by hand: https://protobuf.dev/programming-guides/encoding/


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    """One field: int as varint, float as double, str and bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def health_bytes(status=1, version="0.1.0", components=None, uptime=4711, commit="23143d4"):
    parts = [field(1, status), field(2, version)]
    parts += [field(3, field(1, name) + field(2, state)) for name, state in (components or {}).items()]
    parts += [field(4, uptime), field(5, commit)]
    return b"".join(parts)


def metrics_bytes(p99=12.5, queries=1234):
    values = {1: 90, 2: 10, 3: 0.9, 12: 1.5, 13: 8.25, 14: p99, 15: queries, 19: 2**31, 21: 3.5}
    return b"".join(field(number, value) for number, value in values.items())


@contextlib.contextmanager
def kyrodb_server(health=None, metrics=None, service="kyrodb.v1.KyroDBService", tls=None, calls=None):
    """A gRPC server that answers raw bytes; a handler may be a function of (request bytes, context)."""
    import grpc

    def handler(answer):
        def respond(request, call):
            if calls is not None:
                calls.append((request, dict(call.invocation_metadata())))
            return answer(request, call) if callable(answer) else answer

        return grpc.unary_unary_rpc_method_handler(respond)

    methods = {"Health": handler(health_bytes() if health is None else health)}
    if metrics is not False:
        methods["Metrics"] = handler(metrics_bytes() if metrics is None else metrics)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    if tls:
        pair = (Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes())
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait(PATIENCE)

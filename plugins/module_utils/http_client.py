# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One request with its timing split, one deadline and a size limit. No redirects, proxies, retries, or cookies.

The standard library is enough for that, and a bare target has nothing else; requests hides connect and first byte.
"""

from __future__ import annotations

import io
import json
import re
import socket
import time
import typing as t
from dataclasses import dataclass
from urllib.parse import urlsplit

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

MAX_BYTES = 32 * 1024 * 1024
_PIECE = 256 * 1024


@dataclass
class Answer:
    """A response and how long its parts took, in seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    connect: float
    first_byte: float
    total: float

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


def check_url(url: str) -> str:
    """Return the URL, or raise ValueError with a sentence."""
    shown = without_credentials(url)
    if "://" not in url:
        raise ValueError(f"the URL {shown!r} has no scheme; write http://{shown.lstrip('/')}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"the URL {shown!r} is not one ({error})") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"the URL {shown!r} is neither http:// nor https://")
    if not parts.hostname:
        raise ValueError(f"the URL {shown!r} names no host")
    try:
        _port = parts.port
    except ValueError:
        # What looks like a port may be half of a password with a slash in it.
        named = "the URL" if "@" in url else f"the URL {shown!r}"
        raise ValueError(f"{named} has a port that is no number from 0 to 65535") from None
    return url


def without_credentials(url: str) -> str:
    """The URL as it may be shown: no user, no password."""
    return re.sub(r"(?<=//)[^/?#]*@", "", url)


def get(
    url: str,
    headers: t.Mapping[str, str] | None = None,
    timeout: float = 5.0,
    validate_certs: bool = True,
    ca_path: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Answer:
    """GET a URL once, or raise NoAnswer with a sentence that names it."""
    return _request("GET", url, headers, None, timeout, validate_certs, ca_path, max_bytes)


def send(
    method: str,
    url: str,
    body: t.Any = None,
    headers: t.Mapping[str, str] | None = None,
    timeout: float = 5.0,
    validate_certs: bool = True,
    ca_path: str | None = None,
) -> Answer:
    """POST, PATCH or DELETE once, with the body as JSON; NoAnswer leaves open whether it was done."""
    data = None if body is None else json.dumps(body).encode()
    headers = {**(headers or {}), "Content-Type": "application/json"}
    return _request(method, url, headers, data, timeout, validate_certs, ca_path, MAX_BYTES)


def _request(
    method: str,
    url: str,
    headers: t.Mapping[str, str] | None,
    data: bytes | None,
    timeout: float,
    validate_certs: bool,
    ca_path: str | None,
    max_bytes: int,
) -> Answer:
    # Costly to import, and the controller, which validates, never gets here.
    import http.client
    import ssl

    shown = f"{method} {without_credentials(url)}"
    parts = urlsplit(check_url(url))
    host = parts.hostname or ""
    port = (443 if parts.scheme == "https" else 80) if parts.port is None else parts.port
    began = time.monotonic()
    deadline = began + timeout
    connection = http.client.HTTPConnection(host, port)
    sock: socket.socket | None = None
    try:
        try:
            sock = socket.create_connection((host, port), timeout=timeout)
            # Small requests must not wait for the acknowledgement of the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "https":
                try:
                    context = ssl.create_default_context(cafile=ca_path)
                except OSError as error:
                    raise NoAnswer(f"{shown}: the authority {ca_path} cannot be used ({error}).", "tls") from None
                # Python 3.13 refuses authorities that curl and older Pythons accept; no answer may hang on that.
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                if not validate_certs:
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                sock = context.wrap_socket(sock, server_hostname=host)
        except socket.timeout:
            raise NoAnswer(f"{shown}: no connection within {timeout:g} s.", "timeout") from None
        except socket.gaierror as error:
            raise NoAnswer(f"{shown}: the host name {host} does not resolve ({error.strerror}).", "name") from None
        except ssl.SSLCertVerificationError as error:
            raise NoAnswer(f"{shown}: the TLS certificate does not verify ({error.verify_message}).", "tls") from None
        except ssl.SSLError as error:
            raise NoAnswer(f"{shown}: no TLS handshake ({error.reason}).", "tls") from None
        except OSError as error:
            raise NoAnswer(
                f"{shown}: no connection to {host} port {port} ({error.strerror or error}).", "connection"
            ) from None
        connected = time.monotonic()
        connection.sock = _Deadlined(sock, deadline)
        try:
            # A base address with a slash at its end must not turn every route into another one.
            path = f"/{parts.path.lstrip('/')}" + (f"?{parts.query}" if parts.query else "")
            connection.request(
                method,
                path,
                data,
                headers={"Accept": "*/*", "Connection": "close", "User-Agent": "oncall.runbooks", **(headers or {})},
            )
            response = connection.getresponse()
            first = time.monotonic()
            body = _read(response, max_bytes, shown)
        except socket.timeout:
            raise NoAnswer(f"{shown}: the port accepts and does not answer within {timeout:g} s.", "timeout") from None
        except http.client.InvalidURL:
            raise NoAnswer(f"{shown}: the URL has characters that cannot be sent.", "error") from None
        except http.client.IncompleteRead:
            raise NoAnswer(f"{shown}: the answer breaks off.", "connection") from None
        except http.client.HTTPException as error:
            raise NoAnswer(f"{shown}: what answers does not speak HTTP ({type(error).__name__}).", "protocol") from None
        except ValueError as error:
            # http.client refuses control characters in paths and headers without naming a secret's value; nor do we.
            raise NoAnswer(f"{shown}: the request cannot be sent ({type(error).__name__}).", "error") from None
        except OSError as error:
            raise NoAnswer(f"{shown}: the connection broke ({error.strerror or error}).", "connection") from None
        ended = time.monotonic()
    finally:
        if sock is not None:
            sock.close()
    lowered = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, lowered, body, connected - began, first - began, ended - began)


class _Deadlined(io.RawIOBase):
    """A socket whose every read ends with the deadline: a server that drips one byte a second does not get longer."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout
        self._sock.settimeout(left)

    def makefile(self, *_mode: t.Any, **_options: t.Any) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        self._arm()
        return self._sock.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        self._arm()
        self._sock.sendall(data)

    def close(self) -> None:
        # http.client closes its connection while the response is still to be read; get() closes the socket.
        pass


def _read(response: t.Any, max_bytes: int, shown: str) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        piece = response.read1(_PIECE)
        if not piece:
            if response.length:
                raise NoAnswer(f"{shown}: the answer breaks off after {size} bytes.", "connection")
            return b"".join(pieces)
        size += len(piece)
        if size > max_bytes:
            limit = max_bytes // 1024 // 1024
            raise NoAnswer(f"{shown}: the answer is larger than {limit} MiB and was not read.", "size")
        pieces.append(piece)

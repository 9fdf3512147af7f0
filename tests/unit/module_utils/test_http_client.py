# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import gzip
import json
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import (
    check_url,
    get,
    send,
    without_credentials,
)
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import PATIENCE, Raw, Web, drip, mute, say

OK = b"HTTP/1.1 200 OK\r\n"


def fails(url, timeout=5.0, **options):
    """The exception that get() raises, which came in time and names the URL."""
    began = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        get(url, timeout=timeout, **options)
    assert time.monotonic() - began < timeout + PATIENCE
    said = str(caught.value)
    assert said.startswith(f"GET {without_credentials(url)}")
    assert said.endswith(".")
    assert "\n" not in said
    return caught.value


def test_answer_and_its_parts(web):
    web.pages["/a"] = (203, "application/json; charset=utf-8", b'{"a": 1}')
    answer = get(f"{web.url}/a?q=1", headers={"X-One": "1"})
    assert (answer.status, answer.content_type, answer.body) == (203, "application/json", b'{"a": 1}')
    assert answer.headers["content-length"] == "8"
    assert web.requests == ["/a?q=1"]
    assert web.headers[0]["X-One"] == "1"
    assert web.headers[0]["Host"] == f"localhost:{web.port}"
    assert 0 < answer.connect <= answer.first_byte <= answer.total < PATIENCE


def test_time_to_first_byte_is_the_servers(web):
    def slow(_path):
        time.sleep(0.2)
        return b"done"

    web.pages["/"] = slow
    answer = get(web.url)
    assert answer.connect < 0.2 <= answer.first_byte <= answer.total


def test_total_counts_the_body():
    def late_body(connection, _over):
        connection.recv(65536)
        connection.sendall(OK + b"Content-Length: 2\r\n\r\na")
        time.sleep(0.2)
        connection.sendall(b"b")

    with Raw(late_body) as server:
        answer = get(server.url)
    assert answer.body == b"ab"
    assert answer.first_byte + 0.15 < answer.total


@pytest.mark.parametrize("status", [204, 404, 429, 500, 503])
def test_any_status_is_an_answer(web, status):
    web.pages["/"] = (status, "text/plain", b"")
    assert get(web.url).status == status
    assert len(web.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(web, status):
    web.pages["/"] = (status, "text/plain", b"")
    web.pages["/moved"] = b"elsewhere"
    assert get(web.url).status == status
    assert web.requests == ["/"]


def test_proxies_of_the_environment_are_not_used(web, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{helpers.free_port()}")
    web.pages["/"] = b"direct"
    assert get(web.url).body == b"direct"


def test_keep_alive_server_does_not_keep_us():
    def keep(connection, over):
        connection.recv(65536)
        connection.sendall(OK + b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
        over.wait(60)

    with Raw(keep) as server:
        assert get(server.url, timeout=30).body == b"ok"


def test_body_without_a_length_ends_with_the_connection():
    with Raw(say(OK + b"\r\nuntil the end")) as server:
        assert get(server.url).body == b"until the end"


def test_chunked_body():
    chunks = b"3\r\nabc\r\n10;ext=1\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\n"
    with Raw(say(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)) as server:
        assert get(server.url).body == b"abc0123456789abcdef"


def test_bytes_come_as_they_were_sent(web):
    body = gzip.compress(os.urandom(300_000))
    web.pages["/"] = (200, "application/octet-stream", body)
    assert get(web.url).body == body


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 100\r\n\r\nonly this",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
    ],
    ids=["length", "inside a chunk", "between chunks"],
)
def test_half_an_answer_is_none(answer):
    with Raw(say(answer)) as server:
        fails(server.url)


def test_refused():
    error = fails(f"http://127.0.0.1:{helpers.free_port()}/x")
    assert error.kind == "connection"
    assert "Connection refused" in str(error)


def test_name_that_does_not_resolve():
    error = fails("http://no-such-host.invalid/")
    assert error.kind == "name"
    assert "no-such-host.invalid does not resolve" in str(error)


def test_accepts_and_never_answers():
    with Raw(mute) as server:
        error = fails(server.url, timeout=0.5)
    assert error.kind == "timeout"
    assert "accepts and does not answer within 0.5 s" in str(error)


def test_accepts_and_never_shakes_hands():
    with Raw(mute) as server:
        error = fails(server.url.replace("http:", "https:"), timeout=0.5)
    assert error.kind == "timeout"


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (OK + b"Content-Length: 1000000\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (OK + b"\r\n", b"x"),
        (OK + b"X-Long: ", b"x"),
        (b"HTTP/1.1 200 ", b"O"),
    ],
    ids=["body", "chunks", "body without a length", "header", "status line"],
)
def test_dripping_does_not_outlast_the_deadline(first, piece):
    with Raw(drip(first, piece)) as server:
        error = fails(server.url, timeout=0.5)
    assert error.kind == "timeout"
    assert "0.5 s" in str(error)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x0a" * 3, b"", b"\n\n\n\n"])
def test_garbage(answer):
    with Raw(say(answer)) as server:
        error = fails(server.url)
    assert error.kind == "protocol"
    assert "does not speak HTTP" in str(error)


def test_endless_headers():
    with Raw(drip(OK, b"X-A: b\r\n" * 1000, pause=0)) as server:
        assert fails(server.url).kind == "protocol"


@pytest.mark.parametrize("head", [b"Content-Length: 99999999\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_larger_than_allowed_is_not_read(head):
    piece = b"40000\r\n" + b"x" * 0x40000 + b"\r\n" if b"chunked" in head else b"x" * 0x40000
    with Raw(drip(OK + head, piece, pause=0)) as server:
        error = fails(server.url, timeout=30, max_bytes=2 * 1024 * 1024)
    assert error.kind == "size"
    assert "larger than 2 MiB" in str(error)


def test_connection_is_closed_when_the_answer_is_given_up():
    closed = threading.Event()

    def flood(connection, over):
        connection.recv(65536)
        connection.sendall(OK + b"\r\n")
        try:
            while not over.is_set():
                connection.sendall(b"x" * 65536)
        except OSError:
            closed.set()

    with Raw(flood) as server:
        # The exception is kept, as Context.once() keeps it for the next check that asks.
        kept = fails(server.url, timeout=30, max_bytes=1024)
        assert closed.wait(PATIENCE)
    assert kept.kind == "size"


def test_exactly_as_large_as_allowed(web):
    web.pages["/"] = b"x" * 4096
    assert len(get(web.url, max_bytes=4096).body) == 4096
    assert fails(web.url, max_bytes=4095).kind == "size"


def test_https_with_the_right_authority(tls):
    with Web(tls) as server:
        server.pages["/"] = b"safe"
        assert get(server.url, ca_path=tls.ca).body == b"safe"
        assert get(server.url, validate_certs=False).body == b"safe"


@pytest.mark.parametrize("authority", [None, "other"])
def test_https_with_an_unknown_authority(tls, authority):
    with Web(tls) as server:
        error = fails(server.url, ca_path=getattr(tls, authority) if authority else None)
        assert server.requests == []
    assert error.kind == "tls"
    assert "certificate does not verify" in str(error)


def test_https_certificate_of_another_name(tls):
    with Web(tls) as server:
        error = fails(server.url.replace("localhost", "127.0.0.1"), ca_path=tls.ca)
    assert error.kind == "tls"
    assert "certificate does not verify" in str(error)


def test_https_to_a_plain_server(web):
    assert fails(web.url.replace("http:", "https:")).kind == "tls"


def test_http_to_a_tls_server(tls):
    with Web(tls) as server:
        error = fails(server.url.replace("https:", "http:"))
    assert error.kind in ("protocol", "connection")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authority_that_cannot_be_used_is_named(tls, tmp_path, content):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with Web(tls) as server:
        error = fails(server.url, ca_path=str(path))
    assert error.kind == "tls"
    assert str(path) in str(error)


SECRET = "hunter2sesame"


@pytest.mark.parametrize("userinfo", [f"admin:{SECRET}", f"admin:x@{SECRET}", SECRET, f":{SECRET}"])
def test_credentials_are_never_shown(userinfo):
    port = helpers.free_port()
    for url in (f"http://{userinfo}@127.0.0.1:{port}/x", f"http://{userinfo}@no-such-host.invalid/"):
        with pytest.raises(NoAnswer) as caught:
            get(url, timeout=2)
        assert SECRET not in str(caught.value)
    for url in (f"ftp://{userinfo}@h/", f"http://{userinfo}@:1/", f"http://{userinfo}@h:99999/", f"//{userinfo}@h/"):
        with pytest.raises(ValueError, match="the URL") as wrong:
            check_url(url)
        assert SECRET not in str(wrong.value)


@given(
    st.text(st.characters(exclude_characters="/?#", exclude_categories=["Cs"]), min_size=1, max_size=20).map(
        lambda text: f"{text}{SECRET}"
    ),
    st.sampled_from(["/", "", "/a@b", "/?q=a@b", "#@"]),
)
def test_without_credentials_leaves_only_the_host(userinfo, rest):
    assert without_credentials(f"https://{userinfo}@host:1{rest}") == f"https://host:1{rest}"


def test_header_with_a_line_break_is_not_sent_and_not_shown(web):
    error = fails(web.url, headers={"X-Key": f"{SECRET}\nX-Other: 1"})
    assert SECRET not in str(error)
    assert web.requests == []


@pytest.mark.parametrize("path", ["/a b", "/\x01", "/caf\u00e9"])
def test_url_that_cannot_be_sent_does_not_blame_the_server(web, path):
    with pytest.raises((NoAnswer, ValueError)) as caught:
        get(web.url + path)
    assert "does not speak HTTP" not in str(caught.value)
    assert web.requests == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8000/health", "the URL 'localhost:8000/health' has no scheme; write http://localhost:8000/health"),
        ("//localhost/health", "has no scheme; write http://localhost/health"),
        ("", "has no scheme"),
        ("ftp://localhost/", "is neither http:// nor https://"),
        ("file:///etc/passwd", "is neither http:// nor https://"),
        ("http:///health", "names no host"),
        ("http://", "names no host"),
        ("http://localhost:port/", "has a port that is no number from 0 to 65535"),
        ("http://localhost:70000/", "has a port that is no number from 0 to 65535"),
        ("http://[::1/", "the URL 'http://[::1/'"),
    ],
)
def test_url_that_is_none_is_a_sentence(url, says):
    with pytest.raises(ValueError, match="URL") as caught:
        check_url(url)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://localhost", "HTTP://localhost:80", "https://[::1]:8443/x?y=z", "http://a.example/a%20b"]
)
def test_good_urls_stay(url):
    assert check_url(url) == url


# --- requests that change something


def take(requests, answer):
    """Reads a whole request, keeps it, and says this."""

    def serve(connection, _over):
        with connection.makefile("rb") as stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline()
                if not line:
                    return
                head += line
            lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
            requests.append((lines[0], headers, stream.read(int(headers.get("content-length", 0)))))
        connection.sendall(answer)

    return serve


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_body_goes_as_json(method):
    requests = []
    with Raw(take(requests, b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")) as server:
        answer = send(method, f"{server.url}/a?q=1", {"goal": "\u00fc", "k": 2}, {"X-Key": "one"})
    assert (answer.status, answer.body) == (201, b"{}")
    ((line, headers, body),) = requests
    assert line == f"{method} /a?q=1 HTTP/1.1"
    assert (headers["content-type"], headers["x-key"]) == ("application/json", "one")
    assert json.loads(body) == {"goal": "\u00fc", "k": 2}


def test_certificate_is_verified_for_a_body_too(tls):
    with Web(tls) as server:
        server.pages["/ask"] = b"{}"
        with pytest.raises(NoAnswer) as caught:
            send("POST", f"{server.url}/ask", {})
        assert caught.value.kind == "tls"
        assert server.bodies == []
        assert send("POST", f"{server.url}/ask", {"a": 1}, ca_path=tls.ca).status == 200
        assert send("POST", f"{server.url}/ask", {"a": 2}, validate_certs=False).status == 200
        assert server.bodies == [b'{"a": 1}', b'{"a": 2}']


@pytest.mark.parametrize("body", [None, {}])
def test_content_type_is_there_whatever_the_body(body):
    requests = []
    with Raw(take(requests, b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        assert send("DELETE", server.url, body).status == 204
    assert requests[0][1]["content-type"] == "application/json"
    assert requests[0][2] == (b"" if body is None else b"{}")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\nno"])
def test_nothing_is_sent_twice(answer):
    requests = []
    with Raw(take(requests, answer)) as server:
        with pytest.raises(NoAnswer) as caught:
            send("POST", f"{server.url}/capture", {})
        assert server.count == 1
    assert len(requests) == 1
    assert str(caught.value).startswith(f"POST {server.url}/capture: ")


def test_answer_that_does_not_come_to_a_post():
    with Raw(mute) as server, pytest.raises(NoAnswer) as caught:
        send("POST", server.url, {}, timeout=0.3)
    assert caught.value.kind == "timeout"
    assert str(caught.value).startswith("POST ")


@pytest.mark.parametrize("key", ["s3cret\r\nX-More: 1", "s3cret\u20ac"])
def test_header_that_cannot_be_sent_is_not_shown(web, key):
    with pytest.raises(NoAnswer) as caught:
        send("POST", web.url, {}, {"X-API-Key": key})
    assert "s3cret" not in str(caught.value)
    assert "cannot be sent" in str(caught.value)
    assert caught.value.__cause__ is None
    assert web.requests == []

# SPDX-License-Identifier: GPL-3.0-or-later
"""KyroDB over real gRPC: the servers answer bytes that were encoded by hand from KyroDB's field numbers."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from concurrent import futures

import grpc
import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import kyrodb as probe
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import (
    PATIENCE,
    Raw,
    context,
    field,
    health_bytes,
    kyrodb_server,
    look,
    metrics_bytes,
    mute,
    say,
    source,
)

KEY = "kyro_live_0123456789abcdef"


def ask(address, timeout=5.0, samples=1, metrics=True, component="", **values):
    return kyrodb.ask(kyrodb.Endpoint(address, **values), timeout, samples, metrics, component)


def fails(address, timeout=5.0, **values):
    """The exception that ask() raises, which came in time, names the instance and shows no key."""
    began = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        ask(address, timeout, **values)
    assert time.monotonic() - began < timeout + PATIENCE
    said = str(caught.value)
    assert f"KyroDB at {address}" in said
    assert KEY not in said
    return caught.value


@pytest.mark.parametrize(
    ("number", "status"),
    [(0, "unknown"), (1, "healthy"), (2, "degraded"), (3, "unhealthy"), (7, "status 7")],
)
def test_statuses(number, status):
    with kyrodb_server(health=health_bytes(status=number)) as address:
        assert ask(address, metrics=False)["status"] == status


def test_everything_that_health_and_metrics_say():
    components = {"cache": "healthy", "hot_tier": "degraded: flushing", "cold_tier": "healthy", "wal": "healthy"}
    calls = []
    with kyrodb_server(
        health=health_bytes(2, "0.2.0", components, 86400, "abc1234"), metrics=metrics_bytes(12.5, 5000), calls=calls
    ) as address:
        seen = ask(address, samples=3)
    assert {key: seen[key] for key in ("transport", "status", "components", "version", "git_commit", "note")} == {
        "transport": "grpc",
        "status": "degraded",
        "components": components,
        "version": "0.2.0",
        "git_commit": "abc1234",
        "note": None,
    }
    assert (seen["uptime_seconds"], seen["samples"]) == (86400, 3)
    assert 0 < seen["latency_ms"] < 1000 * PATIENCE
    metrics = seen["metrics"]
    assert metrics["p99_latency_ms"] == 12.5
    assert metrics["p50_latency_ms"] == 1.5
    assert metrics["p95_latency_ms"] == 8.25
    assert metrics["total_queries"] == 5000
    assert metrics["cache_hit_rate"] == 0.9
    assert metrics["memory_usage_bytes"] == 2**31
    assert metrics["cpu_usage_percent"] == 3.5
    assert metrics["disk_usage_bytes"] == 0
    assert json.dumps(seen), "it travels as JSON"
    # One call to open the connection, three that are measured, and Metrics.
    assert len(calls) == 5


def test_empty_messages_are_defaults():
    with kyrodb_server(health=b"", metrics=b"") as address:
        seen = ask(address)
    assert (seen["status"], seen["version"], seen["components"]) == ("unknown", "", {})
    assert seen["metrics"]["p99_latency_ms"] == 0.0


def test_fields_that_we_do_not_know_are_no_matter():
    more = health_bytes() + helpers.field(99, "new") + helpers.field(98, 5)
    with kyrodb_server(health=more) as address:
        assert ask(address)["status"] == "healthy"


def test_bytes_that_are_no_message():
    with kyrodb_server(health=b"\xff\xff\xff") as address:
        assert fails(address).kind in ("error", "protocol")


@pytest.mark.parametrize(("component", "request_bytes"), [("", b""), ("wal", helpers.field(1, "wal"))])
def test_component_is_asked_for(component, request_bytes):
    calls = []
    with kyrodb_server(calls=calls) as address:
        ask(address, component=component, metrics=False)
    assert calls[0][0] == request_bytes


def test_latency_is_that_of_the_calls():
    def slow(_request, _call):
        time.sleep(0.1)
        return health_bytes()

    with kyrodb_server(health=slow) as address:
        assert 100 <= ask(address, samples=3, timeout=30, metrics=False)["latency_ms"] < 1000 * PATIENCE


def test_slow_instance_is_measured_by_fewer_calls_and_not_failed():
    def slow(_request, _call):
        time.sleep(0.4)
        return health_bytes()

    with kyrodb_server(health=slow) as address:
        seen = ask(address, samples=50, timeout=2.5, metrics=False)
    assert seen["status"] == "healthy"
    assert 1 <= seen["samples"] < 10
    assert seen["latency_ms"] >= 400


def wants_key(_request, call):
    if dict(call.invocation_metadata()).get("x-api-key") != KEY:
        call.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or invalid API key")
    return health_bytes()


def test_key_is_sent():
    calls = []
    with kyrodb_server(health=wants_key, calls=calls) as address:
        assert ask(address, api_key=KEY)["status"] == "healthy"
    assert all(metadata["x-api-key"] == KEY for _request, metadata in calls)


def test_key_that_is_missing_or_wrong():
    with kyrodb_server(health=wants_key) as address:
        missing = fails(address)
        wrong = fails(address, api_key="kyro_live_wrong")
    assert (missing.kind, wrong.kind) == ("authentication", "authentication")
    assert "wants an API key and got none" in str(missing)
    assert "refuses the API key" in str(wrong)
    assert "kyro_live_wrong" not in str(wrong)


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\u00e9", f"{KEY}\x00"])
def test_key_that_cannot_be_sent_is_not_shown(key):
    """A key from a file often ends with a line break."""
    with kyrodb_server() as address:
        error = fails(address, api_key=key)
    assert "key" in str(error)


def test_key_without_permission():
    def forbidden(_request, call):
        call.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

    with kyrodb_server(health=forbidden) as address:
        error = fails(address, api_key=KEY)
    assert error.kind == "authentication"
    assert "does not permit Health" in str(error)


def test_service_of_the_runbooks_spelling():
    with kyrodb_server(service="kyrodb.KyroDB") as address:
        assert ask(address, service="kyrodb.KyroDB")["status"] == "healthy"
        error = fails(address)
    assert error.kind == "protocol"
    assert "has no kyrodb.v1.KyroDBService/Health; it is not KyroDB" in str(error)
    with kyrodb_server() as address:
        error = fails(address, service="kyrodb.KyroDB")
    assert "has no kyrodb.KyroDB/Health; KyroDB's service is kyrodb.v1.KyroDBService" in str(error)


def test_other_errors_are_told_with_their_code():
    def broken(_request, call):
        call.abort(grpc.StatusCode.INTERNAL, "disk\nfull " + "x" * 1000)

    with kyrodb_server(health=broken) as address:
        error = fails(address)
    assert error.kind == "error"
    assert "answers Health with INTERNAL: disk full" in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize("broken", [False, lambda _request, call: call.abort(grpc.StatusCode.INTERNAL, "broken")])
def test_health_without_metrics_is_an_answer(broken):
    with kyrodb_server(metrics=broken) as address:
        seen = ask(address)
    assert (seen["status"], seen["metrics"]) == ("healthy", None)
    assert "Metrics" in seen["note"]


def sleeps(_request, call):
    while call.is_active():
        time.sleep(0.02)
    return b""


def test_handler_that_sleeps():
    with kyrodb_server(health=sleeps) as address:
        error = fails(address, timeout=0.5)
    assert error.kind == "timeout"
    assert "accepts connections and does not answer Health within 0.5 s" in str(error)


def test_metrics_that_sleep_do_not_undo_health():
    with kyrodb_server(metrics=sleeps) as address:
        seen = ask(address, timeout=1.0)
    assert seen["status"] == "healthy"
    assert "does not answer Metrics" in seen["note"]


@pytest.mark.parametrize("tls", [False, True])
def test_port_that_accepts_and_never_answers(tls):
    with Raw(mute) as server:
        error = fails(f"127.0.0.1:{server.port}", timeout=0.5, tls=tls)
    assert error.kind == "timeout"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-x\r\n", b""])
def test_port_that_speaks_something_else(answer):
    with Raw(say(answer)) as server:
        error = fails(f"127.0.0.1:{server.port}", timeout=2.0)
    assert error.kind in ("protocol", "timeout")
    if answer.startswith(b"HTTP"):
        assert error.kind == "protocol"
        assert "does not speak plaintext gRPC" in str(error)


def test_dead_port():
    address = f"127.0.0.1:{helpers.free_port()}"
    error = fails(address, api_key=KEY)
    assert error.kind == "connection"
    assert "takes no connection: Connection refused" in str(error)


def test_name_that_does_not_resolve():
    error = fails("no-such-host.invalid:50051")
    assert error.kind == "name"
    assert "does not resolve" in str(error)


def test_tls_with_the_right_authority(tls):
    with kyrodb_server(tls=tls, health=wants_key) as address:
        assert ask(address, tls=True, ca_path=tls.ca, api_key=KEY)["status"] == "healthy"


def test_tls_under_another_name(tls):
    with kyrodb_server(tls=tls) as address:
        other = address.replace("localhost", "127.0.0.1")
        error = fails(other, tls=True, ca_path=tls.ca)
        assert error.kind == "tls"
        assert ask(other, tls=True, ca_path=tls.ca, server_name="localhost")["status"] == "healthy"


@pytest.mark.parametrize("authority", [None, "other"])
def test_tls_with_an_unknown_authority(tls, authority):
    with kyrodb_server(tls=tls) as address:
        error = fails(address, tls=True, ca_path=getattr(tls, authority) if authority else None, api_key=KEY)
    assert error.kind == "tls"
    assert "its TLS certificate does not verify" in str(error)


def test_tls_files_that_cannot_be_used(tls, tmp_path):
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with kyrodb_server(tls=tls) as address:
        for values in ({"ca_path": str(tmp_path / "none.pem")}, {"ca_path": str(broken)}, {"cert_path": str(broken)}):
            error = fails(address, tls=True, **values)
            assert error.kind == "tls"
            assert "TLS files" in str(error)


def test_plaintext_server_behind_tls(tls):
    with kyrodb_server() as address:
        error = fails(address, tls=True, ca_path=tls.ca)
    assert error.kind == "tls"
    assert "TLS handshake" in str(error)


def test_tls_server_asked_in_plaintext(tls):
    with kyrodb_server(tls=tls) as address:
        error = fails(address, timeout=2.0)
    assert error.kind == "tls"
    assert "speaks TLS and was asked in plaintext; set kyrodb_tls" in str(error)


def test_proxies_of_the_environment_are_not_used(tls, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{helpers.free_port()}")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with kyrodb_server() as address:
        assert ask(address)["status"] == "healthy"
    with kyrodb_server(tls=tls) as address:
        assert ask(address, timeout=3.0, tls=True, ca_path=tls.ca)["status"] == "healthy"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://localhost:50051", "is a URL; give host:port"),
        ("localhost:50051/", "is a URL"),
        ("localhost", "is not host:port"),
        (":50051", "is not host:port"),
        ("localhost:", "is not host:port"),
        ("localhost:http", "is not host:port"),
        ("localhost:0", "is not host:port"),
        ("localhost:65536", "is not host:port"),
    ],
)
def test_address_that_is_none(address, says):
    with pytest.raises(ValueError, match=says):
        kyrodb.parse_address(address)


def test_address_in_its_parts():
    endpoint = kyrodb.Endpoint(kyrodb.parse_address("[::1]:50052"))
    assert (endpoint.host, endpoint.port) == ("::1", 50052)
    assert endpoint.observability_url == "http://[::1]:51052"
    assert kyrodb.Endpoint("a:1", http_url="http://b:2").observability_url == "http://b:2"


# --- snapshots and single documents

# One of v0.1.0's, larger than a float can tell from its neighbours.
EPISODE = 388_123_456_789_012_345


@contextlib.contextmanager
def rpc_server(rpc, answer):
    """A server with this one RPC, which answers raw bytes; its address, and the calls with their metadata."""
    calls = []

    def respond(request, call):
        calls.append((request, dict(call.invocation_metadata())))
        return answer(request, call) if callable(answer) else answer

    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    methods = {rpc: grpc.unary_unary_rpc_method_handler(respond)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(kyrodb.SERVICE, methods),))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}", calls
    finally:
        server.stop(None).wait(PATIENCE)


def test_snapshot():
    written = field(1, 1) + field(3, "/data/snapshot_3.snap") + field(4, 12) + field(5, 2**40)
    with rpc_server("CreateSnapshot", written) as (address, calls):
        seen = kyrodb.create_snapshot(kyrodb.Endpoint(address, api_key=KEY))
    assert seen == {"path": "/data/snapshot_3.snap", "documents": 12, "size_bytes": 2**40}
    # The path must be empty, and an empty field is not sent.
    assert [(request, metadata["x-api-key"]) for request, metadata in calls] == [(b"", KEY)]


def test_delete():
    with rpc_server("Delete", field(1, 1) + field(3, 1)) as (address, calls):
        assert kyrodb.delete(kyrodb.Endpoint(address), EPISODE, "acme:failures") is True
    assert calls[0][0] == field(1, EPISODE) + field(2, "acme:failures")
    with rpc_server("Delete", field(1, 1)) as (address, _calls):
        assert kyrodb.delete(kyrodb.Endpoint(address), EPISODE, "acme:failures") is False


def test_metadata_of_a_document():
    found = field(1, 1) + field(2, EPISODE) + b"".join(field(4, field(1, n) + field(2, v)) for n, v in [("a", "b")])
    with rpc_server("Query", found) as (address, calls):
        assert kyrodb.metadata_of(kyrodb.Endpoint(address), EPISODE, "acme:failures") == {"a": "b"}
    assert calls[0][0] == field(1, EPISODE) + field(3, "acme:failures")
    with rpc_server("Query", field(2, EPISODE)) as (address, _calls):
        assert kyrodb.metadata_of(kyrodb.Endpoint(address), EPISODE, "acme:failures") is None


CALLS = {
    "CreateSnapshot": kyrodb.create_snapshot,
    "Delete": lambda endpoint, timeout=5.0: kyrodb.delete(endpoint, 1, "acme:failures", timeout),
    "Query": lambda endpoint, timeout=5.0: kyrodb.metadata_of(endpoint, 1, "acme:failures", timeout),
}


@pytest.mark.parametrize(
    ("rpc", "answer", "says"),
    [
        ("CreateSnapshot", field(2, "disk\nfull"), "has written no snapshot: disk full."),
        ("CreateSnapshot", b"", "has written no snapshot and does not say why."),
        ("Delete", field(2, "writes disabled"), "does not delete document 1: writes disabled."),
        ("Query", field(6, "tier is gone"), "does not look up document 1: tier is gone."),
    ],
)
def test_refusal_inside_of_an_answer(rpc, answer, says):
    with rpc_server(rpc, answer) as (address, _calls), pytest.raises(NoAnswer) as caught:
        CALLS[rpc](kyrodb.Endpoint(address, api_key=KEY))
    assert str(caught.value) == f"KyroDB at {address} {says}"


@pytest.mark.parametrize("rpc", CALLS)
@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "error", "with FAILED_PRECONDITION: no data_dir."),
        (grpc.StatusCode.PERMISSION_DENIED, "authentication", "with this API key."),
        (grpc.StatusCode.UNAUTHENTICATED, "authentication", "refuses the API key"),
    ],
)
def test_refusal_by_a_status(rpc, code, kind, says):
    def refuse(_request, call):
        call.abort(code, "no data_dir")

    with rpc_server(rpc, refuse) as (address, calls), pytest.raises(NoAnswer) as caught:
        CALLS[rpc](kyrodb.Endpoint(address, api_key=KEY))
    assert caught.value.kind == kind
    assert says in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(calls) == 1, "nothing is repeated"


@pytest.mark.parametrize("rpc", CALLS)
def test_calls_end_with_their_time(rpc):
    with rpc_server(rpc, sleeps) as (address, _calls), pytest.raises(NoAnswer) as caught:
        CALLS[rpc](kyrodb.Endpoint(address), timeout=0.5)
    assert caught.value.kind == "timeout"
    assert f"does not answer {rpc} within 0.5 s" in str(caught.value)


def test_endpoint_of_options():
    options = {name: entry.get("default") for name, entry in kyrodb.CONNECTION_SPEC.items()}
    endpoint = kyrodb.endpoint_of({**options, "address": "db:50051", "tls": True, "more": 1}, KEY)
    assert endpoint == kyrodb.Endpoint("db:50051", api_key=KEY, tls=True)
    with pytest.raises(ValueError, match="is not host:port"):
        kyrodb.endpoint_of({**options, "address": "db"}, None)
    with pytest.raises(ValueError, match="has no scheme"):
        kyrodb.endpoint_of({**options, "address": "db:50051", "http_url": "db:51051"}, None)


# --- without grpcio

WITHOUT_CALLS = """
import sys
sys.modules[sys.argv[1]] = None
from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
at = kyrodb.Endpoint(sys.argv[2])
for call, document in ((kyrodb.create_snapshot, ()), (kyrodb.delete, (1, "")), (kyrodb.metadata_of, (1, ""))):
    try:
        call(at, *document)
    except NoAnswer as error:
        sys.stdout.write(f"{error.kind}: {error}\\n")
"""


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_nothing_stands_in_for_calls_that_change_something(web, package):
    said = helpers.python(WITHOUT_CALLS, package, f"localhost:{web.port}").splitlines()
    assert said == [f"missing: {package} is not installed on the target; install grpcio and protobuf there."] * 3
    assert web.requests == []


WITHOUT = """
import json, sys
sys.modules[sys.argv[1]] = None
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
try:
    seen = helpers.look("kyrodb", helpers.context(the_key=sys.argv[3]), **json.loads(sys.argv[2]))
except NoAnswer as error:
    seen = {"kind": error.kind, "error": str(error)}
print(json.dumps(seen))
"""


def without(package, **values):
    """What the probe sees in a process where this package cannot be imported."""
    return json.loads(helpers.python(WITHOUT, package, json.dumps(values), KEY))


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_http_stands_in(web, package):
    web.pages["/health"] = (
        200,
        "application/json",
        '{"status": "degraded", "uptime_seconds": 7, "reason": "cold cache"}',
    )
    web.pages["/slo"] = (200, "application/json", '{"current_metrics": {"p99_latency_ns": 2500000}}')
    values = {"address": f"localhost:{web.port}", "http_url": web.url, "secret_api_key": "the_key"}
    seen = without(package, value="status", **values)
    assert seen["value"] == "degraded"
    assert seen["evidence"]["transport"] == "http"
    assert seen["evidence"]["components"] == {"reason": "cold cache"}
    assert f"asked over HTTP at {web.url}, " in seen["note"]
    assert f"{package} is not installed on the target" in seen["note"]
    assert "gRPC itself is not tested" in seen["note"]
    assert {headers["x-api-key"] for headers in web.headers} == {KEY}
    assert without(package, value="p99", **values)["value"] == 0.0025


def test_http_stands_in_on_the_port_a_thousand_above(web):
    web.pages["/health"] = (200, "application/json", '{"status": "healthy"}')
    with socket.create_server(("localhost", web.port - 1000)):
        assert without("grpc", address=f"localhost:{web.port - 1000}", value="status")["value"] == "healthy"


def test_http_stands_in_only_for_a_port_that_is_open(web):
    """An instance that Vritti cannot reach is down, however well its HTTP port is."""
    web.pages["/health"] = (200, "application/json", '{"status": "healthy"}')
    seen = without("grpc", address=f"localhost:{helpers.free_port()}", http_url=web.url, value="answers")
    assert seen["value"] is False
    assert web.requests == []


def test_http_that_wants_another_key(web):
    web.pages["/health"] = (401, "text/plain", "unauthorized")
    seen = without("grpc", address=f"localhost:{web.port}", http_url=web.url, value="answers")
    assert (seen["kind"], "set kyrodb_api_key" in seen["error"]) == ("authentication", True)


def test_http_without_the_percentile(web):
    web.pages["/health"] = (200, "application/json", '{"status": "healthy"}')
    values = {"address": f"localhost:{web.port}", "http_url": web.url}
    assert without("grpc", value="answers", **values)["value"] is True
    seen = without("grpc", value="p99", **values)
    assert "gives no latency percentiles" in seen["error"]
    seen = without("grpc", value="wal", **values)
    assert "says nothing of its write-ahead log" in seen["error"]


@pytest.mark.parametrize(
    "page", [(200, "text/html", "<html>"), (200, "application/json", "[]"), (404, "text/plain", "")]
)
def test_http_that_is_not_kyrodb(web, page):
    web.pages["/health"] = page
    seen = without("grpc", address=f"localhost:{web.port}", http_url=web.url, value="answers")
    assert "without KyroDB's status" in seen["error"]
    assert "grpc is not installed" in seen["error"]
    # Something else on that port says nothing of the instance.
    assert seen["kind"] == "missing"


def test_missing_package_and_no_http_port_is_not_an_instance_that_is_down():
    """gRPC answers, but nothing here can ask it: that is not known, and no reason to restart anything."""
    with kyrodb_server() as address:
        seen = without("grpc", address=address, http_url=f"http://127.0.0.1:{helpers.free_port()}", value="answers")
    assert seen.get("value") is None
    assert "grpc" in seen["error"]


def test_missing_package_and_a_dead_port_is_an_instance_that_is_down():
    address = f"127.0.0.1:{helpers.free_port()}"
    seen = without("grpc", address=address, http_url=f"http://127.0.0.1:{helpers.free_port()}", value="answers")
    assert seen["value"] is False
    assert "Connection refused" in seen["note"]


# --- the probe


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("answers", True), ("status", "degraded"), ("wal", "unhealthy: disk full"), ("p99", 0.0125)],
)
def test_values(value, wanted):
    with kyrodb_server(health=health_bytes(2, components={"wal": "unhealthy: disk full"})) as address:
        seen = look("kyrodb", address=address, value=value)
    assert seen["value"] == wanted
    if value == "p99":
        assert seen["samples"] == 1234
        assert seen["evidence"]["cache_hit_rate"] == 0.9


def test_latency_value_is_in_seconds():
    with kyrodb_server() as address:
        seen = look("kyrodb", address=address, value="latency", samples=4)
    assert 0 < seen["value"] < PATIENCE
    assert seen["evidence"]["calls"] == 4


@pytest.mark.parametrize("value", ["wal", "p99"])
def test_value_that_the_instance_does_not_tell(value):
    with kyrodb_server(metrics=False) as address, pytest.raises(NoAnswer, match="KyroDB at") as caught:
        look("kyrodb", address=address, value=value)
    assert caught.value.kind == "no data"


def test_answers_is_false_where_that_is_certain():
    address = f"127.0.0.1:{helpers.free_port()}"
    seen = look("kyrodb", address=address, value="answers")
    assert seen["value"] is False
    assert "Connection refused" in seen["note"]
    with Raw(mute) as server:
        assert (
            look("kyrodb", context(timeout=0.5), address=f"127.0.0.1:{server.port}", value="answers")["value"] is False
        )
    for value in ("status", "wal", "latency", "p99"):
        with pytest.raises(NoAnswer, match="Connection refused"):
            look("kyrodb", address=address, value=value)


def test_answers_is_not_known_where_our_side_may_be_wrong(tls):
    with kyrodb_server(health=wants_key) as address, pytest.raises(NoAnswer, match="API key"):
        look("kyrodb", address=address, value="answers")
    with kyrodb_server(tls=tls) as address, pytest.raises(NoAnswer, match="does not verify"):
        look("kyrodb", address=address, value="answers", tls=True)
    with kyrodb_server() as address, pytest.raises(NoAnswer, match="KyroDB's service is"):
        look("kyrodb", address=address, value="answers", service="kyrodb.KyroDB")
    with pytest.raises(NoAnswer, match="does not resolve"):
        look("kyrodb", address="no-such-host.invalid:1", value="answers")


def test_secret_key():
    with kyrodb_server(health=wants_key) as address:
        values = {"address": address, "value": "answers", "secret_api_key": "the_key"}
        assert look("kyrodb", context(the_key=KEY), **values)["value"] is True
        with pytest.raises(NoAnswer, match="wants an API key and got none"):
            look("kyrodb", context(the_key=""), **values)
        with pytest.raises(NoAnswer, match="The secret the_key is not set"):
            look("kyrodb", context(), **values)


def test_instance_is_asked_once_for_all_checks():
    calls = []
    with kyrodb_server(calls=calls) as address:
        shared = context()
        for value in ("answers", "status", "latency", "p99"):
            look("kyrodb", shared, address=address, value=value, samples=2)
        assert len(calls) == 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"address": "localhost"}, "is not host:port"),
        ({"address": "h:1", "http_url": "h:2"}, "no scheme"),
        ({"address": "h:1", "samples": 0}, "samples is 0; it goes from 1 to 100"),
        ({"address": "h:1", "samples": 101}, "samples is 101"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        probe.validate(source("kyrodb", **values))


def test_description():
    assert probe.describe(source("kyrodb", address="h:1")) == "kyrodb h:1 Health"
    assert probe.describe(source("kyrodb", address="h:1", value="p99")) == "kyrodb h:1 Metrics p99_latency_ms"


# --- Documents: the requests that are sent and the answers that are read, byte by byte.


@contextlib.contextmanager
def documents(timeout=5.0, **answers):
    """The documents of a namespace at a server that answers these bytes, and the requests that it got."""
    asked = []

    def handler(rpc, answer):
        def respond(request, call):
            asked.append((rpc, request))
            return answer(request, call) if callable(answer) else answer

        return grpc.unary_unary_rpc_method_handler(respond)

    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    methods = {rpc: handler(rpc, answer) for rpc, answer in answers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(kyrodb.SERVICE, methods),))
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        with kyrodb.Documents(kyrodb.Endpoint(address), "acme:failures", timeout) as made:
            yield made, asked
    finally:
        server.stop(None).wait(PATIENCE)


HUGE = 388_123_456_789_012_345
# 1.0 and -0.5 as 32-bit numbers, packed as protobuf packs them.
TWO_FLOATS = b"\x00\x00\x80\x3f\x00\x00\x00\xbf"
NAMESPACE = "acme:failures"


def document_bytes(doc_id, **metadata):
    entries = [field(4, field(1, key) + field(2, value)) for key, value in metadata.items()]
    return field(1, 1) + field(2, doc_id) + field(3, TWO_FLOATS) + b"".join(entries)


def test_one_document():
    with documents(Query=document_bytes(HUGE, tags="[]", customer_id="acme")) as (made, asked):
        found = made.get(HUGE, embedding=True)
        made.get(HUGE)
    assert found == kyrodb.Document(HUGE, {"tags": "[]", "customer_id": "acme"}, [1.0, -0.5])
    assert asked == [
        ("Query", field(1, HUGE) + field(2, 1) + field(3, NAMESPACE)),
        ("Query", field(1, HUGE) + field(3, NAMESPACE)),
    ]


@pytest.mark.parametrize(("said", "found"), [(b"", None), (field(6, "Document not found"), None)])
def test_document_that_is_not_there(said, found):
    with documents(Query=said) as (made, _asked):
        assert made.get(5) is found
    offline = pytest.raises(NoAnswer, match="does not look up document 5: shard offline")
    with documents(Query=field(6, "shard offline")) as (made, _asked), offline:
        made.get(5)


def test_many_documents_at_once():
    answer = field(1, document_bytes(HUGE)) + field(1, field(2, 6)) + field(2, 1) + field(3, 2)
    with documents(BulkQuery=answer) as (made, asked):
        assert list(made.get_many([HUGE, 6], embeddings=True)) == [HUGE]
    ids = helpers.varint(HUGE) + helpers.varint(6)
    assert asked == [("BulkQuery", field(1, ids) + field(2, 1) + field(3, NAMESPACE))]


def test_search_for_ids():
    hits = b"".join(field(1, field(1, doc_id) + field(4, field(1, "a") + field(2, "b"))) for doc_id in (HUGE, 6))
    with documents(Search=hits, GetConfig=field(8, 2)) as (made, asked):
        assert made.search_ids(2, searches=1) == ([HUGE, 6], 1000)
        assert made.dimension() == 2
    vector = b"\x00\x00\x80\x3f\x00\x00\x00\x00"
    minus_one = helpers.varint(3 << 3 | 5) + b"\x00\x00\x80\xbf"
    assert asked[0] == ("Search", field(1, vector) + field(2, 1000) + minus_one + field(4, NAMESPACE))


def test_searches_for_ids_end_where_nothing_new_is_found():
    hits = b"".join(field(1, field(1, doc_id)) for doc_id in (HUGE, 6, 7, 8, 9))
    with documents(Search=hits, Query=document_bytes(9)) as (made, asked):
        assert made.search_ids(2) == ([HUGE, 6, 7, 8, 9], 1000)
    # Both axes in both directions, and from three of those that were found, the last ones first.
    assert [rpc for rpc, _request in asked] == [*["Search"] * 4, *["Query", "Search"] * 3]
    assert [request[:2] for rpc, request in asked if rpc == "Query"] == [field(1, one) for one in (9, 8, 7)]
    assert asked[5][1].startswith(field(1, TWO_FLOATS))
    # Those that are gone by now, or of a server without their vectors, lead nowhere.
    with documents(Search=hits, Query=b"") as (made, asked):
        assert made.search_ids(2) == ([HUGE, 6, 7, 8, 9], 1000)
    assert [rpc for rpc, _request in asked] == [*["Search"] * 4, *["Query"] * 5]


def test_metadata_is_merged_and_documents_are_inserted():
    with documents(UpdateMetadata=field(1, 1) + field(3, 1), Insert=field(1, 1)) as (made, asked):
        assert made.merge_metadata(HUGE, {"a": "b"}) is True
        made.insert(kyrodb.Document(HUGE, {"a": "b"}, [1.0, -0.5]))
    pair = field(1, "a") + field(2, "b")
    assert asked == [
        ("UpdateMetadata", field(1, HUGE) + field(2, pair) + field(3, 1) + field(4, NAMESPACE)),
        ("Insert", field(1, HUGE) + field(2, TWO_FLOATS) + field(3, pair) + field(4, NAMESPACE)),
    ]


def test_writes_that_are_refused():
    with documents(UpdateMetadata=field(2, "document not found"), Insert=field(2, "writes disabled")) as (made, _asked):
        assert made.merge_metadata(5, {}) is False
        with pytest.raises(NoAnswer, match="does not insert document 5: writes disabled"):
            made.insert(kyrodb.Document(5, {}, [1.0]))
    for said in (field(2, "writes disabled"), field(2, "writes disabled") + field(3, 1)):
        refused = pytest.raises(NoAnswer, match="does not update document 5: writes disabled")
        with documents(UpdateMetadata=said) as (made, _asked), refused:
            made.merge_metadata(5, {})


def test_update_that_finds_nothing_is_a_success_to_kyrodb():
    with documents(UpdateMetadata=field(1, 1)) as (made, _asked):
        assert made.merge_metadata(5, {"a": "b"}) is False


def test_calls_that_an_older_server_has_not():
    def only_six(request, _call):
        return document_bytes(6) if request.startswith(field(1, 6)) else b""

    with documents(Query=only_six) as (made, asked):
        assert list(made.get_many([5, 6, 7])) == [6]
        assert made.dimension() is None
        with pytest.raises(kyrodb.Unimplemented):
            made.merge_metadata(6, {})
    assert [rpc for rpc, _request in asked] == ["Query"] * 3


def test_instance_that_has_had_enough():
    def limited(_request, call):
        call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rate limit")

    enough = pytest.raises(kyrodb.TooMuch, match="answers BulkQuery with RESOURCE_EXHAUSTED: rate limit")
    with documents(BulkQuery=limited) as (made, asked), enough:
        made.get_many(range(1, 9))
    assert len(asked) == 4


def test_every_call_has_the_whole_timeout():
    def slow(_request, _call):
        time.sleep(0.4)
        return document_bytes(5)

    with documents(timeout=2.0, Query=slow) as (made, _asked):
        assert [made.get(5) is not None for _number in range(7)] == [True] * 7


def test_instance_that_ends_is_told_from_one_that_speaks_something_else():
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _call: document_bytes(5))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(kyrodb.SERVICE, {"Query": handler}),))
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    with kyrodb.Documents(kyrodb.Endpoint(address), NAMESPACE, 5.0) as made:
        assert made.get(5)
        server.stop(None).wait(PATIENCE)
        with pytest.raises(NoAnswer, match="takes no connection: Connection refused"):
            made.get(5)

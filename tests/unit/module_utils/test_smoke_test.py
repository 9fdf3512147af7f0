# SPDX-License-Identifier: GPL-3.0-or-later
"""The smoke test against a real HTTP server and a real gRPC server that do what a test wants of them."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from concurrent import futures

import grpc
import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb, smoke_test
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import PATIENCE, field, health_bytes

ADMIN = "the-secret-of-the-admins"
MADE = "em_live_" + "a" * 32 + "_" + "b" * 64
GIVEN = "em_live_" + "c" * 64
# One of v0.1.0's, larger than a float can tell from its neighbours.
EPISODE = 388_123_456_789_012_345

LIVENESS = ("GET", "/health/liveness")
USAGE = ("GET", "/api/v1/customers/acme/usage")
CUSTOMERS = ("POST", "/api/v1/customers")
CAPTURE = ("POST", "/api/v1/capture")
SEARCH = ("POST", "/api/v1/search")


class Vritti:
    """An HTTP server; `answers` maps a method and a path's end to (status, object), or to None for no answer."""

    def __init__(self):
        self.requests = []
        self.answers = {
            LIVENESS: (200, {"status": "alive"}),
            USAGE: (200, {}),
            CUSTOMERS: (201, {}),
            ("POST", "/api-keys"): (201, {"api_key": MADE, "key_id": "the/key"}),
            CAPTURE: (201, {"episode_id": EPISODE, "image_stored": False, "reflection_queued": False}),
            SEARCH: (200, {"results": []}),
            ("DELETE", "/api-keys/the%2Fkey"): (204, None),
            ("PATCH", ""): (200, {}),
        }
        vritti = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                path, _mark, query = self.path.partition("?")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                vritti.requests.append((self.command, path, query, dict(self.headers), json.loads(body or "null")))
                found = vritti.answers.get((self.command, path), "none")
                if found == "none":
                    ends = [end for method, end in vritti.answers if method == self.command and path.endswith(end)]
                    found = vritti.answers[self.command, max(ends, key=len)] if ends else (404, {"detail": "Not Found"})
                if callable(found):
                    found = found(vritti.requests[-1])
                if found is None:
                    self.close_connection = True
                    return
                status, content = found
                data = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *_arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE)

    @property
    def asked(self):
        return [(method, path) for method, path, _query, _headers, _body in self.requests]


class KyroDB:
    """A gRPC server; `answers` maps an RPC to bytes, a function of the call, or a list of those in turn."""

    def __init__(self):
        self.calls = []
        self.answers = {"Health": health_bytes(), "Delete": field(1, 1) + field(3, 1), "Query": field(1, 1)}

        def handler(rpc):
            def respond(request, call):
                self.calls.append((rpc, request))
                answer = self.answers[rpc]
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                return answer(call) if callable(answer) else answer

            return grpc.unary_unary_rpc_method_handler(respond)

        self.server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        methods = {rpc: handler(rpc) for rpc in self.answers}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(kyrodb.SERVICE, methods),))
        self.address = f"localhost:{self.server.add_insecure_port('localhost:0')}"
        self.server.start()

    def close(self):
        self.server.stop(None).wait(PATIENCE)

    @property
    def changes(self):
        return [(rpc, request) for rpc, request in self.calls if rpc != "Health"]


class World:
    def __init__(self):
        self.vritti, self.text, self.image = Vritti(), KyroDB(), KyroDB()

    def test(self, customer="", api_key="", admin_api_key=ADMIN, **more):
        settings = smoke_test.Settings(
            url=more.pop("url", self.vritti.url),
            text=kyrodb.Endpoint(more.pop("text", self.text.address)),
            image=kyrodb.Endpoint(more.pop("image", self.image.address)),
            customer=customer,
            api_key=api_key,
            admin_api_key=admin_api_key,
            **{"timeout": 10.0, "reflection_seconds": 10.0, **more},
        )
        settings.validate()
        return smoke_test.SmokeTest(settings)

    def run(self, **options):
        """The result of a whole run, in which no secret stands."""
        test = self.test(**options)
        test.check()
        result = test.run()
        shown = json.dumps(result)
        assert not [secret for secret in (ADMIN, MADE, GIVEN) if secret in shown]
        return result

    def refused(self, **options):
        """The sentence with which a test is refused that has sent Vritti nothing that counts."""
        with pytest.raises(Refused) as caught:
            self.test(**options).check()
        assert set(self.vritti.asked) <= {LIVENESS}
        said = str(caught.value)
        assert said.endswith((".", "?"))
        return said


@pytest.fixture()
def world():
    with contextlib.ExitStack() as stack:
        made = World()
        for server in (made.vritti, made.text, made.image):
            stack.callback(server.close)
        yield made


def aborts(code, details):
    return lambda call: call.abort(code, details)


def test_customer_of_its_own(world):
    world.vritti.answers[SEARCH] = lambda request: (200, {"results": [{"episode": {"goal": request[4]["goal"]}}]})
    result = world.run()
    customer = result["customer"]
    assert world.vritti.asked == [
        LIVENESS,
        CUSTOMERS,
        ("POST", f"/api/v1/customers/{customer}/api-keys"),
        CAPTURE,
        SEARCH,
        ("DELETE", f"/api/v1/customers/{customer}/api-keys/the%2Fkey"),
        ("PATCH", f"/api/v1/customers/{customer}"),
    ]
    _liveness, made, key, capture, search, _revoked, marked = world.vritti.requests
    for _method, _path, _query, headers, _body in world.vritti.requests[1:]:
        assert headers["Content-Type"] == "application/json"
    for request in (made, key, marked):
        assert (request[3]["X-Admin-API-Key"], request[3]["X-Admin-Key"]) == (ADMIN, ADMIN)
    assert made[4]["customer_id"] == customer
    assert key[4] == {"customer_id": customer, "name": customer, "expires_in_days": 1}
    assert marked[4] == {"status": "deleted"}
    assert capture[2] == "generate_reflection=false"
    assert (capture[3]["X-API-Key"], search[3]["X-API-Key"]) == (MADE, MADE)
    assert customer in capture[4]["goal"]
    assert search[4]["goal"] == capture[4]["goal"]
    assert world.text.changes == [("Delete", field(1, EPISODE) + field(2, f"{customer}:failures"))]
    assert world.image.changes == []
    assert (result["problem"], result["left"], result["changed"]) == (None, [], True)
    assert (result["captured"]["status"], result["captured"]["episode_id"]) == (201, EPISODE)
    assert (result["searched"]["status"], result["searched"]["found"]) == (200, True)
    assert [line.split()[0] for line in result["cleaned"]] == ["deleted", "revoked", "marked"]
    assert len(result["notes"]) == 2
    assert "episodes_index" in result["notes"][0]
    assert f"The row of {customer} stays" in result["notes"][1]


def test_customer_and_key_that_exist(world):
    result = world.run(customer="acme", api_key=GIVEN, admin_api_key="")
    assert world.vritti.asked == [LIVENESS, USAGE, CAPTURE, SEARCH]
    assert {request[3].get("X-API-Key") for request in world.vritti.requests[1:]} == {GIVEN}
    assert world.text.changes == [("Delete", field(1, EPISODE) + field(2, "acme:failures"))]
    assert (result["problem"], result["left"], len(result["cleaned"])) == (None, [], 1)
    assert result["searched"]["found"] is False, "which is no failure"
    assert result["notes"] == ["Customer acme was charged credits for what was done."]


def test_key_for_a_customer_that_exists(world):
    result = world.run(customer="acme")
    assert CUSTOMERS not in world.vritti.asked
    assert not [method for method, _path in world.vritti.asked if method == "PATCH"]
    assert [line.split()[0] for line in result["cleaned"]] == ["deleted", "revoked"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_key_that_is_not_the_customers(world, status):
    world.vritti.answers[USAGE] = (status, {"detail": f"no good key: {GIVEN}"})
    result = world.run(customer="acme", api_key=GIVEN)
    assert world.vritti.asked == [LIVENESS, USAGE]
    assert f"answers {status} and not 200: no good key: ********" in result["problem"]
    assert (result["changed"], result["captured"], result["left"], result["notes"]) == (False, None, [], [])


def test_usage_that_cannot_be_told_is_no_obstacle(world):
    world.vritti.answers[USAGE] = (500, None)
    assert world.run(customer="acme", api_key=GIVEN)["problem"] is None


def test_admin_key_that_is_wrong(world):
    world.vritti.answers[CUSTOMERS] = (401, {"detail": f"Invalid admin API key {ADMIN}"})
    result = world.run()
    assert result["problem"].endswith("Invalid admin API key ********; check admin_api_key.")
    assert world.vritti.asked == [LIVENESS, CUSTOMERS]
    assert (result["changed"], result["left"], result["cleaned"]) == (False, [], [])


@pytest.mark.parametrize("answer", [None, (500, None)])
def test_customer_that_may_have_been_made_is_marked(world, answer):
    world.vritti.answers[CUSTOMERS] = answer
    result = world.run()
    assert [method for method, _path in world.vritti.asked] == ["GET", "POST", "PATCH"]
    assert (result["changed"], len(result["cleaned"]), result["left"]) == (True, 1, [])
    assert result["problem"].startswith(f"POST {world.vritti.url}/api/v1/customers")


@pytest.mark.parametrize("answer", [None, (500, None), (201, {})])
def test_key_that_may_have_been_made_is_told(world, answer):
    world.vritti.answers["POST", "/api-keys"] = answer
    result = world.run()
    assert result["problem"]
    assert CAPTURE not in world.vritti.asked
    assert len(result["left"]) == 1
    assert "may have a key" in result["left"][0]
    assert [line.split()[0] for line in result["cleaned"]] == ["marked"]


@pytest.mark.parametrize(
    ("answer", "status", "unknown"),
    [
        ((500, {"detail": "Failed to capture episode: dimension mismatch: expected 768 found 384"}), 500, True),
        ((500, {"detail": "KyroDB temporarily unavailable (circuit breaker open). Retry."}), 500, False),
        ((422, {"detail": [{"type": "missing", "loc": ["body", "goal"]}]}), 422, False),
        (None, None, True),
    ],
)
def test_capture_that_fails_is_tried_once(world, answer, status, unknown):
    world.vritti.answers[CAPTURE] = answer
    result = world.run()
    assert world.vritti.asked.count(CAPTURE) == 1
    assert SEARCH not in world.vritti.asked
    assert world.text.changes == []
    assert (result["captured"]["status"], result["captured"]["episode_id"]) == (status, None)
    assert result["searched"] is None
    assert len(result["left"]) == int(unknown)
    assert not unknown or result["left"][0].endswith(f"{result['customer']}:failures holds {result['customer']}.")
    assert [line.split()[0] for line in result["cleaned"]] == ["revoked", "marked"]
    assert ("restart Vritti" in result["problem"]) == ("circuit breaker" in str(answer))
    assert not status or str(status) in result["problem"]


def test_capture_that_names_no_episode(world):
    world.vritti.answers[CAPTURE] = (201, {"collection": "failures"})
    result = world.run()
    assert (result["problem"], len(result["left"])) == (None, 1)
    assert "under which id, is not known" in result["left"][0]


@pytest.mark.parametrize("answer", [(500, {"detail": "Search failed"}), (202, {}), None])
def test_search_that_fails_is_tried_once_and_cleaned_up_after(world, answer):
    world.vritti.answers[SEARCH] = answer
    result = world.run()
    assert world.vritti.asked.count(SEARCH) == 1
    assert result["problem"].startswith(f"POST {world.vritti.url}/api/v1/search")
    assert (result["searched"]["status"], result["searched"]["found"]) == (answer and answer[0], None)
    assert (result["left"], len(result["cleaned"])) == ([], 3)
    assert [rpc for rpc, _request in world.text.changes] == ["Delete"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (aborts(grpc.StatusCode.INTERNAL, "disk full"), "is still in KyroDB's text instance"),
        (field(2, "read only"), "does not delete document"),
        (field(1, 1), "is not the customer of the API key"),
    ],
)
def test_episode_that_cannot_be_deleted_is_told(world, answer, says):
    world.text.answers["Delete"] = answer
    result = world.run()
    assert (result["problem"], len(result["left"]), len(result["cleaned"])) == (None, 1, 2)
    assert f"Episode {EPISODE}" in result["left"][0]
    assert says in result["left"][0]


def test_key_and_customer_that_stay_are_told(world):
    world.vritti.answers["DELETE", "/api-keys/the%2Fkey"] = (404, {"detail": "API key not found"})
    world.vritti.answers["PATCH", ""] = (500, None)
    result = world.run()
    assert (result["problem"], len(result["cleaned"])) == (None, 1)
    key, customer = result["left"]
    assert key.startswith(f"The API key the/key of {result['customer']} was not revoked: DELETE ")
    assert customer.startswith(f"The customer {result['customer']} was not marked as deleted: PATCH ")


def test_image_is_deleted_too(world):
    world.vritti.answers[CAPTURE] = (201, {"episode_id": 7, "image_stored": True})
    result = world.run(customer="acme", api_key=GIVEN)
    assert world.image.changes == [("Delete", field(1, 7) + field(2, "acme:failures_images"))]
    assert len(result["cleaned"]) == 2


def stored(*names):
    """A document with these names in its metadata."""
    return field(1, 1) + b"".join(field(4, field(1, name) + field(2, "x")) for name in names)


def test_reflection_is_awaited(world):
    world.vritti.answers[CAPTURE] = (201, {"episode_id": 7, "reflection_queued": True})
    world.text.answers["Query"] = [stored("goal"), stored("goal", "reflection_root_cause")]
    result = world.run(customer="acme", api_key=GIVEN)
    assert [rpc for rpc, _request in world.text.changes] == ["Query", "Query", "Delete"]
    assert not [note for note in result["notes"] if "dead letter" in note]


def test_reflection_that_does_not_come(world):
    world.vritti.answers[CAPTURE] = (201, {"episode_id": 7, "reflection_queued": True})
    world.text.answers["Query"] = stored("goal")
    result = world.run(customer="acme", api_key=GIVEN, reflection_seconds=0.0)
    assert [rpc for rpc, _request in world.text.changes] == ["Query", "Delete"]
    assert "dead letter queue" in result["notes"][0]
    assert (result["problem"], result["left"]) == (None, [])


@pytest.mark.parametrize("instance", ["text", "image"])
def test_instance_that_is_down(world, instance):
    address = f"localhost:{helpers.free_port()}"
    said = world.refused(**{instance: address})
    assert said.startswith(f"Nothing was sent to Vritti, as KyroDB's {instance} instance cannot be asked: KyroDB at ")
    assert f"{address} takes no connection: Connection refused." in said
    assert world.vritti.requests == []


def test_instance_that_cannot_write(world):
    world.image.answers["Health"] = health_bytes(3, components={"wal": "unhealthy (WAL inconsistent; writes disabled)"})
    said = world.refused()
    assert "write-ahead log of KyroDB's image instance" in said
    assert "writes disabled" in said
    assert world.vritti.requests == []


def test_instance_that_misses_its_objectives_is_no_obstacle(world):
    world.text.answers["Health"] = health_bytes(3, components={"cache": "degraded", "wal": "healthy"})
    assert world.run()["problem"] is None


def test_vritti_that_does_not_live(world):
    world.vritti.answers[LIVENESS] = (503, None)
    assert "answers 503 and not 200" in world.refused()
    assert world.vritti.asked == [LIVENESS]
    said = world.refused(url=f"http://someone:{ADMIN}@127.0.0.1:{helpers.free_port()}/")
    assert said.startswith("Nothing was captured, as Vritti does not answer: GET http://127.0.0.1:")
    assert ADMIN not in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "localhost:8000"}, "has no scheme"),
        ({"customer": "Acme"}, "customer is 'Acme'; an id has"),
        ({"customer": "../admin"}, "an id has"),
        ({"customer": "", "api_key": GIVEN}, "name the customer whose key it is"),
        ({"admin_api_key": ""}, "are both empty"),
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"reflection_seconds": -1.0}, "reflection_seconds is -1.0"),
    ],
)
def test_settings_that_make_no_sense(world, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        world.test(**options)
    assert GIVEN not in str(caught.value)
    assert world.vritti.requests == []


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb, smoke_test
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
at = kyrodb.Endpoint(sys.argv[2])
try:
    smoke_test.SmokeTest(smoke_test.Settings(sys.argv[3], at, at, "", "", "x", 5.0, 0.0)).check()
except Refused as error:
    sys.stdout.write(str(error))
"""


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_without_grpc_nothing_is_captured_that_could_not_be_deleted(world, package):
    said = helpers.python(WITHOUT, package, world.text.address, world.vritti.url)
    assert f"{package} is not installed on the target; install grpcio and protobuf there." in said
    assert world.vritti.requests == []

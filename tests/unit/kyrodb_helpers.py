# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's KyroDB in this process: real gRPC and a real store, with calls left out as in older servers."""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from concurrent import futures
from contextlib import closing

import grpc

from lab.faults import ActiveFaults
from lab.kyrodb.protocol import SERVICE, Protocol, compile_descriptors
from lab.kyrodb.server import Instance, Service
from lab.kyrodb.statistics import Statistics
from lab.kyrodb.store import Store

DIMENSION = 8
# One of v0.1.0's, larger than a float can tell from its neighbours.
HUGE = 388_123_456_789_012_345


def unit_vector(number):
    """Different for different numbers, and of length one, as KyroDB wants them."""
    return [0.6 if place == number % (DIMENSION - 1) else 0.8 if place == DIMENSION - 1 else 0.0 for place in range(8)]


def packed(episode):
    return "gz:" + base64.b64encode(zlib.compress(json.dumps(episode).encode())).decode()


class KyroDB:
    """One instance. `calls` names every RPC in turn; `before` is called with its name and request."""

    def __init__(self, folder, without=()):
        descriptors = folder / "kyrodb.descriptors"
        if not descriptors.exists():
            compile_descriptors(descriptors)
        self.store = Store(folder / "data", DIMENSION)
        self.instance = Instance(
            "text", self.store, Statistics(), ActiveFaults("kyrodb-text", ""), (), Protocol(descriptors)
        )
        self.calls = []
        self.before = lambda _rpc, _request: None
        self._without = without
        self.start()

    def start(self, port=0):
        service = Service(self.instance)
        known = {
            "Insert": service.insert,
            "UpdateMetadata": service.update_metadata,
            "Query": service.query,
            "BulkQuery": service.bulk_query,
            "Search": service.search,
            "GetConfig": service.get_config,
        }

        def handler(rpc, method):
            def serve(request, context):
                self.calls.append(rpc)
                try:
                    answer = self.before(rpc, request)
                    return method(request) if answer is None else answer
                except Exception as error:  # noqa: BLE001 - as a server does
                    code = getattr(error, "code", grpc.StatusCode.INVALID_ARGUMENT)
                    context.abort(code, getattr(error, "details", None) or str(error))

            request, _response = self.instance.protocol.methods[rpc]
            return grpc.unary_unary_rpc_method_handler(
                serve, request_deserializer=request.FromString, response_serializer=lambda it: it.SerializeToString()
            )

        handlers = {rpc: handler(rpc, method) for rpc, method in known.items() if rpc not in self._without}
        self.server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.port = self.server.add_insecure_port(f"localhost:{port}")
        self.address = f"localhost:{self.port}"
        self.server.start()

    def stop(self):
        self.server.stop(None).wait(10)

    def close(self):
        self.stop()
        self.store.close()

    def message(self, name, **fields):
        return self.instance.protocol.messages[name](**fields)

    def put(self, doc_id, customer="acme", pack=packed, namespace=None, episode=None, **metadata):
        """An episode as Vritti stores it."""
        document = {"episode_id": doc_id, "goal": f"goal {doc_id}", "reflection": None, **(episode or {})}
        held = {
            "episode_json": document if isinstance(document, str) else pack(document),
            "customer_id": customer,
            "retrieval_count": "0",
            "tags": '["a"]',
            **metadata,
        }
        self.store.insert(doc_id, unit_vector(doc_id), held, namespace or f"{customer}:failures")
        return document

    def metadata(self, doc_id):
        document, _tier = self.store.query(doc_id, "")
        return dict(document.metadata)

    def embedding(self, doc_id):
        return list(self.store.query(doc_id, "")[0].embedding)


def customers_db(path, ids=(), customers=("acme",), index=True, more=()):
    """Vritti's database with these episodes of the first customer in its index; `more` are whole rows."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE customers (customer_id TEXT PRIMARY KEY)")
        connection.executemany("INSERT INTO customers VALUES (?)", [(one,) for one in customers])
        if index:
            connection.execute(
                "CREATE TABLE episodes_index (episode_id INTEGER PRIMARY KEY, customer_id TEXT, collection TEXT, "
                "deleted INTEGER DEFAULT 0)"
            )
            rows = [(one, customers[0], "failures", 0) for one in ids]
            connection.executemany("INSERT INTO episodes_index VALUES (?, ?, ?, ?)", [*rows, *more])
        connection.commit()
    return str(path)

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Speak to a KyroDB instance: how it is (over HTTP where grpcio is missing), a snapshot, its documents.

The messages are built at run time from field numbers, so that no generated stub ties a host to one protobuf release.
Source: KyroDB's kyrodb.v1.KyroDBService; it serves neither reflection nor grpc.health.v1.
"""

from __future__ import annotations

import json
import os
import socket
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import check_url, get

SERVICE = "kyrodb.v1.KyroDBService"
STATUSES = ("unknown", "healthy", "degraded", "unhealthy")
# KyroDB listens for HTTP observability one thousand above its gRPC port unless told otherwise.
HTTP_PORT_OFFSET = 1000
# gRPC's own limit of 4 MB is less than what KyroDB answers about a few hundred episodes; one may have 10 MB.
LARGEST_ANSWER = 64 << 20
# What one BulkQuery and one Search may ask for.
MOST_IDS = 10_000
MOST_HITS = 1000
# A search for ids is made so often at most, along so many axes first, and ends after so many that find nothing new.
MOST_SEARCHES = 32
_AXES = 4
_IDLE_SEARCHES = 3
MOST_DIMENSIONS = 4096
HEALTH_FIELDS = (
    ("status", 1, "int32"),
    ("version", 2, "string"),
    ("uptime_seconds", 4, "uint64"),
    ("git_commit", 5, "string"),
)
METRICS_FIELDS = (
    ("cache_hits", 1, "uint64"),
    ("cache_misses", 2, "uint64"),
    ("cache_hit_rate", 3, "double"),
    ("cache_size", 4, "uint64"),
    ("hot_tier_size", 8, "uint64"),
    ("cold_tier_size", 11, "uint64"),
    ("p50_latency_ms", 12, "double"),
    ("p95_latency_ms", 13, "double"),
    ("p99_latency_ms", 14, "double"),
    ("total_queries", 15, "uint64"),
    ("total_inserts", 16, "uint64"),
    ("queries_per_second", 17, "double"),
    ("inserts_per_second", 18, "double"),
    ("memory_usage_bytes", 19, "uint64"),
    ("disk_usage_bytes", 20, "uint64"),
    ("cpu_usage_percent", 21, "double"),
)
MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "HealthRequest": (("component", 1, "string"),),
    "HealthResponse": (*HEALTH_FIELDS, ("components", 3, "map")),
    "MetricsRequest": (),
    "MetricsResponse": METRICS_FIELDS,
    "ConfigRequest": (),
    "ConfigResponse": (("embedding_dimension", 8, "uint64"),),
    "SnapshotRequest": (("path", 1, "string"),),
    "SnapshotResponse": (
        ("success", 1, "bool"),
        ("error", 2, "string"),
        ("snapshot_path", 3, "string"),
        ("documents_snapshotted", 4, "uint64"),
        ("snapshot_size_bytes", 5, "uint64"),
    ),
    "QueryRequest": (("doc_id", 1, "uint64"), ("include_embedding", 2, "bool"), ("namespace", 3, "string")),
    "QueryResponse": (
        ("found", 1, "bool"),
        ("doc_id", 2, "uint64"),
        ("embedding", 3, "floats"),
        ("metadata", 4, "map"),
        ("error", 6, "string"),
    ),
    "BulkQueryRequest": (("doc_ids", 1, "uint64s"), ("include_embeddings", 2, "bool"), ("namespace", 3, "string")),
    "BulkQueryResponse": (("results", 1, "QueryResponses"), ("total_found", 2, "uint32"), ("error", 4, "string")),
    # The same without the documents, for whoever only counts them.
    "BulkCountRequest": (("doc_ids", 1, "uint64s"),),
    "BulkCountResponse": (("total_found", 2, "uint32"), ("error", 4, "string")),
    "SearchRequest": (
        ("query_embedding", 1, "floats"),
        ("k", 2, "uint32"),
        ("min_score", 3, "float"),
        ("namespace", 4, "string"),
    ),
    # What the documents hold is left out: their ids are all that is asked.
    "SearchResult": (("doc_id", 1, "uint64"), ("score", 2, "float")),
    "SearchResponse": (("results", 1, "SearchResults"), ("error", 5, "string")),
    "InsertRequest": (
        ("doc_id", 1, "uint64"),
        ("embedding", 2, "floats"),
        ("metadata", 3, "map"),
        ("namespace", 4, "string"),
    ),
    "InsertResponse": (("success", 1, "bool"), ("error", 2, "string")),
    "UpdateMetadataRequest": (
        ("doc_id", 1, "uint64"),
        ("metadata", 2, "map"),
        ("merge", 3, "bool"),
        ("namespace", 4, "string"),
    ),
    "UpdateMetadataResponse": (("success", 1, "bool"), ("error", 2, "string"), ("existed", 3, "bool")),
    "DeleteRequest": (("doc_id", 1, "uint64"), ("namespace", 2, "string")),
    "DeleteResponse": (("success", 1, "bool"), ("error", 2, "string"), ("existed", 3, "bool")),
}

CONNECTION_SPEC: dict[str, t.Any] = {
    "address": {"type": "str", "required": True},
    "service": {"type": "str", "default": SERVICE},
    "tls": {"type": "bool", "default": False},
    "ca_path": {"type": "path"},
    "cert_path": {"type": "path"},
    "key_path": {"type": "path"},
    "server_name": {"type": "str"},
    "http_url": {"type": "str"},
}


class Unimplemented(NoAnswer):
    """The instance has no such call: an older KyroDB, or none at all."""


class TooMuch(NoAnswer):
    """The answer is larger than a message may be, or the instance has had enough."""


@dataclass(frozen=True)
class Document:
    """What an instance holds under one id."""

    doc_id: int
    metadata: dict[str, str]
    embedding: list[float]


@dataclass(frozen=True)
class Endpoint:
    """Where an instance is and how to speak to it."""

    address: str
    service: str = SERVICE
    api_key: str | None = None
    tls: bool = False
    ca_path: str | None = None
    cert_path: str | None = None
    key_path: str | None = None
    server_name: str | None = None
    http_url: str | None = None

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def observability_url(self) -> str:
        return self.http_url or f"http://{self.address.rpartition(':')[0]}:{self.port + HTTP_PORT_OFFSET}"


def parse_address(address: str) -> str:
    """Return the address, or raise ValueError with a sentence."""
    host, colon, port = address.rpartition(":")
    if "://" in address or "/" in address:
        raise ValueError(f"the KyroDB address {address!r} is a URL; give host:port, such as localhost:50051")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"the KyroDB address {address!r} has an IPv6 address without brackets; write [{host}]:{port}")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"the KyroDB address {address!r} is not host:port, such as localhost:50051")
    return address


def endpoint_of(options: t.Mapping[str, t.Any], api_key: str | None) -> Endpoint:
    """The endpoint that options of CONNECTION_SPEC tell of, or ValueError with a sentence."""
    parse_address(options["address"])
    if options["http_url"]:
        check_url(options["http_url"])
    return Endpoint(api_key=api_key, **{name: options[name] for name in CONNECTION_SPEC})


class _Messages:
    """The request and response classes, made once per process."""

    _instance: _Messages | None = None

    def __init__(self) -> None:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        field_type = descriptor_pb2.FieldDescriptorProto
        package = "oncall.runbooks.kyrodb"
        file = descriptor_pb2.FileDescriptorProto(name="oncall_runbooks_kyrodb.proto", package=package, syntax="proto3")
        kinds = {
            "bool": field_type.TYPE_BOOL,
            "int32": field_type.TYPE_INT32,
            "uint32": field_type.TYPE_UINT32,
            "uint64": field_type.TYPE_UINT64,
            "float": field_type.TYPE_FLOAT,
            "double": field_type.TYPE_DOUBLE,
            "string": field_type.TYPE_STRING,
        }

        def add_fields(message: t.Any, fields: t.Iterable[tuple[str, int, str]]) -> None:
            for name, number, kind in fields:
                field = message.field.add(name=name, number=number, label=field_type.LABEL_OPTIONAL)
                if kind == "map":
                    # A map of strings is a repeated message of its own.
                    entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
                    entry.options.map_entry = True
                    add_fields(entry, (("key", 1, "string"), ("value", 2, "string")))
                    field.label = field_type.LABEL_REPEATED
                    field.type = field_type.TYPE_MESSAGE
                    field.type_name = f".{package}.{message.name}.{entry.name}"
                    continue
                if kind.endswith("s"):
                    field.label = field_type.LABEL_REPEATED
                of = kind.rstrip("s")
                if of in MESSAGES:
                    field.type = field_type.TYPE_MESSAGE
                    field.type_name = f".{package}.{of}"
                else:
                    field.type = kinds[of]

        for name, fields in MESSAGES.items():
            add_fields(file.message_type.add(name=name), fields)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        for name in MESSAGES:
            setattr(self, name, _message_class(message_factory, pool.FindMessageTypeByName(f"{package}.{name}")))

    @classmethod
    def get(cls) -> t.Any:
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance


def _message_class(message_factory: t.Any, descriptor: t.Any) -> t.Any:
    # protobuf 4.22 brought GetMessageClass and 5 removed the older way.
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory().GetPrototype(descriptor)


def _read(path: str | None, what: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise NoAnswer(f"The {what} {path} cannot be read: {error.strerror}.", "tls") from error


def _require_open_port(endpoint: Endpoint, deadline: float) -> None:
    """Tell a dead port, and what TLS objects to, in words that gRPC does not give."""
    timeout = max(0.05, deadline - time.monotonic())
    try:
        connection = socket.create_connection((endpoint.host, endpoint.port), timeout=timeout)
    except socket.gaierror as error:
        raise NoAnswer(
            f"KyroDB at {endpoint.address}: the host name does not resolve ({error.strerror}).", "name"
        ) from error
    except socket.timeout as error:
        raise NoAnswer(
            f"KyroDB at {endpoint.address} takes no connection within {timeout:.1f} s.", "connection"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise NoAnswer(f"KyroDB at {endpoint.address} takes no connection: {reason}.", "connection") from error
    with connection:
        if not endpoint.tls:
            return
        import ssl

        try:
            context = ssl.create_default_context(cafile=endpoint.ca_path or None)
            # Newer Pythons refuse authorities that gRPC, which decides, accepts.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if endpoint.cert_path:
                context.load_cert_chain(endpoint.cert_path, endpoint.key_path or None)
        except OSError as error:
            raise NoAnswer(f"The TLS files for KyroDB at {endpoint.address} cannot be used: {error}.", "tls") from error
        context.set_alpn_protocols(["h2"])
        try:
            with context.wrap_socket(connection, server_hostname=endpoint.server_name or endpoint.host):
                return
        except ssl.SSLCertVerificationError as error:
            raise NoAnswer(
                f"KyroDB at {endpoint.address}: its TLS certificate does not verify ({error.verify_message}); "
                f"point the CA at the authority that signed it.",
                "tls",
            ) from error
        except ssl.SSLError as error:
            raise NoAnswer(
                f"KyroDB at {endpoint.address} does not complete a TLS handshake ({error.reason}).", "tls"
            ) from error
        except socket.timeout as error:
            raise NoAnswer(
                f"KyroDB at {endpoint.address} does not complete a TLS handshake in time.", "timeout"
            ) from error
        except OSError as error:
            raise NoAnswer(f"KyroDB at {endpoint.address} breaks off the TLS handshake: {error}.", "tls") from error


def _speaks_tls(endpoint: Endpoint) -> bool:
    """Whether a handshake gets as far as a certificate; whose it is does not matter here."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=1) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def _explain(endpoint: Endpoint, rpc: str, error: t.Any, timeout: float) -> NoAnswer:
    """Turn a gRPC status into a sentence; the code's name tells the causes apart."""
    code = error.code().name if error.code() else "UNKNOWN"
    details = " ".join(str(error.details() or "").split())[:200]
    where = f"KyroDB at {endpoint.address}"
    if code == "UNAUTHENTICATED":
        held = "refuses the API key" if endpoint.api_key else "wants an API key and got none"
        return NoAnswer(f"{where} {held}; set kyrodb_api_key.", "authentication")
    if code == "PERMISSION_DENIED":
        return NoAnswer(f"{where} does not permit {rpc} with this API key.", "authentication")
    if code == "UNIMPLEMENTED":
        if endpoint.service == SERVICE:
            said = f"{where} speaks gRPC but has no {endpoint.service}/{rpc}; it is not KyroDB."
            return Unimplemented(said, "protocol")
        return Unimplemented(f"{where} has no {endpoint.service}/{rpc}; KyroDB's service is {SERVICE}.", "protocol")
    if code == "RESOURCE_EXHAUSTED" or (code == "OUT_OF_RANGE" and "message length" in details):
        return TooMuch(f"{where} answers {rpc} with {code}: {details}.")
    if code == "DEADLINE_EXCEEDED":
        return NoAnswer(f"{where} accepts connections and does not answer {rpc} within {timeout:.1f} s.", "timeout")
    if code == "UNAVAILABLE":
        try:
            _require_open_port(endpoint, time.monotonic() + 1.0)
        except NoAnswer as gone:
            # It was there when the channel was opened.
            return gone
    if code == "UNAVAILABLE" and not endpoint.tls and _speaks_tls(endpoint):
        return NoAnswer(f"{where} speaks TLS and was asked in plaintext; set kyrodb_tls.", "tls")
    if code == "UNAVAILABLE" and not endpoint.tls:
        return NoAnswer(f"{where} accepts connections and does not speak plaintext gRPC ({details}).", "protocol")
    return NoAnswer(f"{where} answers {rpc} with {code}: {details}.", "error")


def _import_grpc() -> t.Any:
    """The module grpc, once everything can be imported that is needed with it."""
    # A probe beside this one may start a process, and gRPC's handlers for that have crashed it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import grpc

    _Messages.get()
    return grpc


def require_grpc() -> t.Any:
    """The module grpc; NoAnswer where a package is missing, for calls that nothing can stand in for."""
    try:
        return _import_grpc()
    except ImportError as error:
        raise NoAnswer(
            f"{error.name or 'grpcio'} is not installed on the target; install grpcio and protobuf there.", "missing"
        ) from None


class _Connection:
    """One open channel; the deadline is that of everything that is done over it."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        grpc = require_grpc()
        if endpoint.api_key and not (endpoint.api_key.isascii() and endpoint.api_key.isprintable()):
            raise NoAnswer(
                f"The API key for KyroDB at {endpoint.address} has characters that cannot be sent.", "authentication"
            )
        self.grpc_error = grpc.RpcError
        self.endpoint = endpoint
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.messages = _Messages.get()
        _require_open_port(endpoint, self.deadline)
        options: list[tuple[str, t.Any]] = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", LARGEST_ANSWER),
        ]
        if endpoint.tls:
            credentials = grpc.ssl_channel_credentials(
                _read(endpoint.ca_path, "CA certificate"),
                _read(endpoint.key_path, "client key"),
                _read(endpoint.cert_path, "client certificate"),
            )
            if endpoint.server_name:
                options.append(("grpc.ssl_target_name_override", endpoint.server_name))
            self._channel = grpc.secure_channel(endpoint.address, credentials, options)
        else:
            self._channel = grpc.insecure_channel(endpoint.address, options)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_error: object) -> None:
        self._channel.close()

    def call(self, rpc: str, message: str = "", **fields: t.Any) -> t.Any:
        """The response to one RPC whose messages are called `message`Request and `message`Response."""
        message = message or rpc
        request = getattr(self.messages, f"{message}Request")(**fields)
        invoke = self._channel.unary_unary(
            f"/{self.endpoint.service}/{rpc}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(self.messages, f"{message}Response").FromString,
        )
        metadata = (("x-api-key", self.endpoint.api_key),) if self.endpoint.api_key else None
        try:
            return invoke(request, timeout=max(0.05, self.deadline - time.monotonic()), metadata=metadata)
        except self.grpc_error as error:
            raise _explain(self.endpoint, rpc, error, self.timeout) from None


def ask(
    endpoint: Endpoint, timeout: float = 5.0, samples: int = 1, metrics: bool = True, component: str = ""
) -> dict[str, t.Any]:
    """Return what the instance says of itself, or raise NoAnswer.

    The round trip is the median of `samples` Health calls over one open connection; connecting is not counted.
    """
    try:
        _import_grpc()
    except ImportError as error:
        return _ask_http(endpoint, timeout, str(error.name or "grpcio"))
    with _Connection(endpoint, timeout) as connection:
        began = time.monotonic()
        health = connection.call("Health", component=component)
        first = time.monotonic() - began
        took: list[float] = []
        for _number in range(samples):
            # A slow instance is measured by what the deadline allows, not failed by the repetitions.
            if took and time.monotonic() + 2 * max(took) > connection.deadline:
                break
            began = time.monotonic()
            try:
                connection.call("Health", component=component)
            except NoAnswer:
                if not took and not first:
                    raise
                break
            took.append(time.monotonic() - began)
        took.sort()
        seen = {
            "transport": "grpc",
            "status": STATUSES[health.status] if 0 <= health.status < len(STATUSES) else f"status {health.status}",
            "components": dict(health.components),
            "version": health.version,
            "uptime_seconds": health.uptime_seconds,
            "git_commit": health.git_commit,
            "latency_ms": round((took[len(took) // 2] if took else first) * 1000, 3),
            "samples": max(1, len(took)),
            "metrics": None,
            "note": None,
        }
        if metrics:
            try:
                answer = connection.call("Metrics")
                seen["metrics"] = {name: getattr(answer, name) for name, _number, _kind in METRICS_FIELDS}
            except NoAnswer as error:
                # Health is the answer; missing numbers are said, they do not undo it.
                seen["note"] = str(error)
    return seen


def dimension(endpoint: Endpoint, timeout: float = 5.0) -> int:
    """How long the vectors are that the instance takes."""
    with _Connection(endpoint, timeout) as connection:
        found = int(connection.call("GetConfig", "Config").embedding_dimension)
    if not found:
        raise NoAnswer(f"KyroDB at {endpoint.address} does not say which dimension its vectors have.", "no data")
    return found


def create_snapshot(endpoint: Endpoint, timeout: float = 60.0) -> dict[str, t.Any]:
    """Let the instance write a snapshot into its data directory; where it is and what is in it."""
    with _Connection(endpoint, timeout) as connection:
        # KyroDB refuses every path but the empty one.
        answer = connection.call("CreateSnapshot", "Snapshot")
    if not answer.success:
        raise NoAnswer(f"KyroDB at {endpoint.address} has written no snapshot{_because(answer)}.")
    return {
        "path": answer.snapshot_path,
        "documents": answer.documents_snapshotted,
        "size_bytes": answer.snapshot_size_bytes,
    }


def metadata_of(endpoint: Endpoint, doc_id: int, namespace: str, timeout: float = 5.0) -> dict[str, str] | None:
    """The metadata of one document, or None where there is no such document."""
    with _Connection(endpoint, timeout) as connection:
        answer = connection.call("Query", doc_id=doc_id, namespace=namespace)
    if answer.error:
        raise NoAnswer(f"KyroDB at {endpoint.address} does not look up document {doc_id}{_because(answer)}.")
    return dict(answer.metadata) if answer.found else None


def delete(endpoint: Endpoint, doc_id: int, namespace: str, timeout: float = 5.0) -> bool:
    """Delete one document; whether it was there."""
    with _Connection(endpoint, timeout) as connection:
        answer = connection.call("Delete", doc_id=doc_id, namespace=namespace)
    if not answer.success:
        raise NoAnswer(f"KyroDB at {endpoint.address} does not delete document {doc_id}{_because(answer)}.")
    return bool(answer.existed)


# Vritti takes its ids in blocks of so many; the answer about one fits into a message, whatever is in the documents.
ID_BLOCK = 256
# So many blocks in a row that nobody used are the end: each restart of Vritti leaves a part of one.
_FREE_BLOCKS = 40


def highest_doc_id(endpoint: Endpoint, at_least: int, timeout: float = 60.0) -> int | None:
    """The highest document id that the instance holds from `at_least` on; None where it holds none of those.

    KyroDB lists nothing, so it is asked for ids, block by block.
    """
    with _Connection(endpoint, timeout) as connection:

        def found(first: int, last: int) -> int:
            answer = connection.call("BulkQuery", "BulkCount", doc_ids=range(first, last + 1))
            if answer.error:
                raise NoAnswer(f"KyroDB at {endpoint.address} does not look up documents{_because(answer)}.")
            return int(answer.total_found)

        highest, block, free = None, max(1, at_least), 0
        while free < _FREE_BLOCKS:
            if found(block, block + ID_BLOCK - 1):
                highest, free = block, 0
            else:
                free += 1
            block += ID_BLOCK
        if highest is None:
            return None
        low, high = highest, highest + ID_BLOCK - 1
        while low < high:
            middle = (low + high + 1) // 2
            if found(middle, high):
                low = middle
            else:
                high = middle - 1
    return low


class Documents:
    """The documents of a namespace, over one open channel. Each call has the whole timeout."""

    def __init__(self, endpoint: Endpoint, namespace: str, timeout: float) -> None:
        self._connection = _Connection(endpoint, timeout)
        self._where = f"KyroDB at {endpoint.address}"
        self.namespace = namespace
        self._has_bulk = True
        self._at_once = MOST_IDS

    def __enter__(self) -> Documents:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(*error)

    def _call(self, rpc: str, message: str = "", **fields: t.Any) -> t.Any:
        self._connection.deadline = time.monotonic() + self._connection.timeout
        return self._connection.call(rpc, message, **fields)

    def get(self, doc_id: int, embedding: bool = False) -> Document | None:
        """One document; None where there is no such document in the namespace."""
        answer = self._call("Query", doc_id=doc_id, include_embedding=embedding, namespace=self.namespace)
        return self._document(doc_id, answer)

    def get_many(self, doc_ids: t.Sequence[int], embeddings: bool = False) -> dict[int, Document]:
        """Those of the documents that exist, in as few calls as the instance and the size of its answers allow."""
        found: dict[int, Document] = {}
        place = 0
        while place < len(doc_ids):
            piece = doc_ids[place : place + self._at_once]
            if not self._has_bulk:
                piece = piece[:1]
                one = self.get(piece[0], embeddings)
                found.update({one.doc_id: one} if one else {})
            else:
                try:
                    answer = self._call(
                        "BulkQuery", doc_ids=piece, include_embeddings=embeddings, namespace=self.namespace
                    )
                except Unimplemented:
                    # Older servers have no such call, and answer about one at a time.
                    self._has_bulk = False
                    continue
                except TooMuch:
                    if len(piece) == 1:
                        raise
                    self._at_once = len(piece) // 2
                    continue
                if answer.error:
                    raise NoAnswer(f"{self._where} does not look up documents{_because(answer)}.")
                for result in answer.results:
                    document = self._document(result.doc_id, result)
                    if document:
                        found[document.doc_id] = document
            place += len(piece)
        return found

    def _document(self, doc_id: int, answer: t.Any) -> Document | None:
        if answer.found:
            return Document(doc_id, dict(answer.metadata), list(answer.embedding))
        if answer.error and "not found" not in answer.error.lower():
            raise NoAnswer(f"{self._where} does not look up document {doc_id}{_because(answer)}.")
        return None

    def dimension(self) -> int | None:
        """How long its vectors are; None where an older server does not tell."""
        try:
            return int(self._call("GetConfig", "Config").embedding_dimension) or None
        except Unimplemented:
            return None

    def search_ids(self, dimension: int, searches: int = MOST_SEARCHES) -> tuple[list[int], int]:
        """Ids that searches find, and how many each was asked for: as many as fit into an answer.

        KyroDB picks what is nearest among everybody's documents and filters by namespace afterwards, so one search may
        find none of the few that a customer has: it is made from several sides, and from what was found.
        """
        found: dict[int, None] = {}
        # Those to go on from; the last is the farthest of the last search, whose neighbours were seen least.
        beyond: list[int] = []
        most, idle = MOST_HITS, 0

        def search(vector: list[float]) -> bool:
            nonlocal most
            ids, most = self._search(vector, most)
            new = [doc_id for doc_id in ids if doc_id not in found]
            found.update(dict.fromkeys(new))
            beyond.extend(new)
            return bool(new)

        axes = _axes(dimension)[:searches]
        for vector in axes:
            search(vector)
        for _number in range(searches - len(axes)):
            if not beyond or idle == _IDLE_SEARCHES:
                break
            document = self.get(beyond.pop(), embedding=True)
            if document and any(document.embedding):
                idle = 0 if search(document.embedding) else idle + 1
        return list(found), most

    def _search(self, vector: list[float], most: int) -> tuple[list[int], int]:
        while True:
            try:
                answer = self._call("Search", query_embedding=vector, k=most, min_score=-1.0, namespace=self.namespace)
            except TooMuch:
                if most == 1:
                    raise
                most //= 2
                continue
            if answer.error:
                raise NoAnswer(f"{self._where} does not search{_because(answer)}.")
            return [result.doc_id for result in answer.results], most

    def merge_metadata(self, doc_id: int, metadata: t.Mapping[str, str]) -> bool:
        """Set these keys and leave the others; whether the document exists. Raise Unimplemented on older servers."""
        answer = self._call("UpdateMetadata", doc_id=doc_id, metadata=metadata, merge=True, namespace=self.namespace)
        # KyroDB calls it a success, too, to have found nothing that it could update.
        if not answer.existed and (answer.success or "not found" in (answer.error.lower() or "not found")):
            return False
        if answer.success:
            return True
        raise NoAnswer(f"{self._where} does not update document {doc_id}{_because(answer)}.")

    def insert(self, document: Document) -> None:
        """Write a document, in the place of the one with its id."""
        answer = self._call(
            "Insert",
            doc_id=document.doc_id,
            embedding=document.embedding,
            metadata=document.metadata,
            namespace=self.namespace,
        )
        if not answer.success:
            raise NoAnswer(f"{self._where} does not insert document {document.doc_id}{_because(answer)}.")


def _axes(dimension: int) -> list[list[float]]:
    """Unit vectors along a few axes that are far apart, in both directions."""
    places = range(0, dimension, max(1, dimension // _AXES))[:_AXES]
    return [[sign if one == place else 0.0 for one in range(dimension)] for place in places for sign in (1.0, -1.0)]


def _because(answer: t.Any) -> str:
    said = " ".join(answer.error.split())[:200]
    return f": {said}" if said else " and does not say why"


def _ask_http(endpoint: Endpoint, timeout: float, missing: str) -> dict[str, t.Any]:
    """The stand-in: the observability port knows the status and the 99th percentile, not the components."""
    url = endpoint.observability_url
    headers = {"x-api-key": endpoint.api_key} if endpoint.api_key else {}
    deadline = time.monotonic() + timeout
    # A dead gRPC port is an instance that is down, whatever its HTTP port says.
    _require_open_port(endpoint, deadline)
    try:
        answers = [get(f"{url}/health", headers=headers, timeout=timeout) for _number in range(3)]
        answer = answers[-1]
        if answer.status in (401, 403):
            raise NoAnswer(f"KyroDB at {url} wants another API key; set kyrodb_api_key.", "authentication")
        body = json.loads(answer.body)
        status = body["status"]
    except NoAnswer as error:
        kind = error.kind if error.kind == "authentication" else "missing"
        raise NoAnswer(f"{missing} is not installed on the target, and instead of gRPC: {error}", kind) from None
    except (ValueError, KeyError, TypeError):
        raise NoAnswer(
            f"{missing} is not installed on the target, and GET {url}/health answers {answer.status} "
            f"without KyroDB's status.",
            "missing",
        ) from None
    seen: dict[str, t.Any] = {
        "transport": "http",
        "status": status if status in STATUSES else f"status {status}",
        "components": {},
        "version": None,
        "uptime_seconds": body.get("uptime_seconds"),
        "git_commit": None,
        "latency_ms": round(sorted(one.total - one.connect for one in answers)[1] * 1000, 3),
        "samples": len(answers),
        "metrics": None,
        "note": f"asked over HTTP at {url}, as {missing} is not installed on the target: gRPC itself is not tested",
    }
    if body.get("reason"):
        seen["components"] = {"reason": body["reason"]}
    try:
        now = json.loads(get(f"{url}/slo", headers=headers, timeout=timeout).body)["current_metrics"]
        # There is no count of queries here, and 0 is what it says before the first.
        seen["metrics"] = {"p99_latency_ms": now["p99_latency_ns"] / 1e6} if now["p99_latency_ns"] else None
    except (NoAnswer, ValueError, KeyError, TypeError):
        seen["metrics"] = None
    return seen

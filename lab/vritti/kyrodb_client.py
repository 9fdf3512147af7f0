# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's connections to its two KyroDB instances. No API key is ever sent, as in the real client."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from lab.kyrodb.protocol import Protocol
from lab.vritti.breaker import CircuitBreaker, KyroDBCircuitBreakerError
from lab.vritti.settings import Settings

HEALTH_TIMEOUT = 5.0
TRIES = 3
_RETRY_PAUSE = 0.05
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_HEALTHY = 1
# A returned instance is noticed at once; gRPC's own pause grows to two minutes.
_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 400),
]

_logger = logging.getLogger("src.kyrodb.client")


class KyroDBError(Exception):
    """A call that KyroDB refused or did not answer."""


class KyroDBInstance:
    """One instance, behind the breaker that it shares with the other one."""

    def __init__(
        self, name: str, address: str, settings: Settings, protocol: Protocol, breaker: CircuitBreaker
    ) -> None:
        self.name = name
        self._timeout = settings.request_timeout
        self._messages = protocol.messages
        self._breaker = breaker
        if settings.tls:
            roots = Path(settings.tls_ca_path).read_bytes() if settings.tls_ca_path else None
            credentials = grpc.ssl_channel_credentials(root_certificates=roots)
            self._channel: Any = grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stubs = {name: protocol.stub(self._channel, name) for name in protocol.methods}

    async def await_health(self) -> None:
        """The first contact at start-up: an instance has five seconds to answer."""
        await self._stubs["Health"](self._messages["HealthRequest"](), timeout=HEALTH_TIMEOUT, wait_for_ready=True)

    async def is_healthy(self) -> bool:
        """One Health call. What counts is that it is answered, not what it says."""
        try:
            response = await self._breaker.call(
                lambda: self._stubs["Health"](self._messages["HealthRequest"](), timeout=HEALTH_TIMEOUT)
            )
        except (grpc.RpcError, KyroDBCircuitBreakerError) as error:
            _logger.error("%s instance health check failed: %s", self.name.capitalize(), _describe(error))
            return False
        if response.status != _HEALTHY:
            _logger.warning("%s instance reports status %s", self.name.capitalize(), response.status)
        return True

    async def insert(
        self, doc_id: int, embedding: Sequence[float], metadata: Mapping[str, str], namespace: str
    ) -> None:
        request = self._messages["InsertRequest"](
            doc_id=doc_id, embedding=embedding, metadata=metadata, namespace=namespace
        )
        response = await self._call("Insert", request)
        if not response.success:
            raise KyroDBError(f"Insert failed: {response.error}")

    async def search(self, embedding: Sequence[float], k: int, min_score: float, namespace: str) -> list[Any]:
        request = self._messages["SearchRequest"](
            query_embedding=embedding, k=k, min_score=min_score, namespace=namespace
        )
        return list((await self._call("Search", request)).results)

    async def query(self, doc_id: int, namespace: str, include_embedding: bool = False) -> Any:
        request = self._messages["QueryRequest"](
            doc_id=doc_id, namespace=namespace, include_embedding=include_embedding
        )
        return await self._call("Query", request)

    async def update_metadata(self, doc_id: int, metadata: Mapping[str, str], namespace: str) -> None:
        """Add to a document's metadata, or replace what they have of these names."""
        request = self._messages["UpdateMetadataRequest"](
            doc_id=doc_id, metadata=metadata, merge=True, namespace=namespace
        )
        response = await self._call("UpdateMetadata", request)
        if not response.success:
            raise KyroDBError(f"UpdateMetadata failed: {response.error}")

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, method: str, request: Any) -> Any:
        try:
            return await self._breaker.call(lambda: self._with_retries(method, request))
        except grpc.RpcError as error:
            raise KyroDBError(f"{method} on {self.name} instance failed: {_describe(error)}") from error

    async def _with_retries(self, method: str, request: Any) -> Any:
        for attempt in range(1, TRIES + 1):
            try:
                return await self._stubs[method](request, timeout=self._timeout)
            except grpc.aio.AioRpcError as error:
                if attempt == TRIES or error.code() not in _RETRIED:
                    raise
                await asyncio.sleep(_RETRY_PAUSE * attempt)
        raise AssertionError("unreachable")


class KyroDBRouter:
    """The text and the image instance, and the one breaker of the process."""

    def __init__(self, settings: Settings) -> None:
        protocol = Protocol(Path(os.environ["LAB_KYRODB_DESCRIPTORS"]))
        self.breaker = CircuitBreaker()
        self.text = KyroDBInstance("text", settings.text_address, settings, protocol, self.breaker)
        self.image = KyroDBInstance("image", settings.image_address, settings, protocol, self.breaker)

    async def connect(self) -> None:
        for instance in (self.text, self.image):
            try:
                await instance.await_health()
            except grpc.RpcError as error:
                raise KyroDBError(f"KyroDB {instance.name} instance is not available: {_describe(error)}") from error

    async def close(self) -> None:
        await asyncio.gather(self.text.close(), self.image.close())


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)

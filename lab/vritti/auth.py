# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may call what: customer keys with their cache, and the two admin headers."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time

from fastapi import HTTPException, Request

from lab.vritti.logs import request_context
from lab.vritti.metrics import Metrics
from lab.vritti.settings import V010_DEFAULT_ADMIN_SECRET, Settings
from lab.vritti.storage import KEY_PREFIX, Customer, CustomerDatabase

_logger = logging.getLogger("src.auth.dependencies")


class Authenticator:
    def __init__(self, settings: Settings, database: CustomerDatabase, metrics: Metrics | None) -> None:
        self._settings = settings
        self._database = database
        self._metrics = metrics
        # Valid keys only, and the customer as it was: suspension and revocation wait for the entry to expire.
        self._cache: dict[str, tuple[float, Customer]] = {}

    async def customer(self, request: Request) -> Customer:
        key = request.headers.get("x-api-key")
        authorization = request.headers.get("authorization", "")
        if not key and authorization.lower().startswith("bearer "):
            key = authorization[7:].strip()
        if not key:
            raise HTTPException(401, "API key required", headers={"WWW-Authenticate": "Bearer"})
        if not key.startswith(KEY_PREFIX):
            raise HTTPException(401, "Invalid API key format", headers={"WWW-Authenticate": "Bearer"})
        customer = await self._validated(key)
        if customer is None:
            _logger.warning("API key validation failed")
            raise HTTPException(401, "Invalid API key", headers={"WWW-Authenticate": "Bearer"})
        context = request_context.get()
        if self._settings.is_head and context is not None:
            context["customer_id"] = customer.customer_id
        return customer

    async def _validated(self, key: str) -> Customer | None:
        moment = time.monotonic()
        cached = self._cache.get(key)
        if cached is not None and cached[0] > moment:
            if self._metrics is not None:
                self._metrics.api_key_cache_hits.inc()
                # The service reports this constant, not what it measured.
                self._metrics.api_key_validation_duration.labels("true").observe(0.001)
            return cached[1]
        customer = await asyncio.to_thread(self._database.validate_key, key)
        if self._metrics is not None:
            self._metrics.api_key_cache_misses.inc()
            self._metrics.api_key_validation_duration.labels("false").observe(time.monotonic() - moment)
        if customer is None:
            self._cache.pop(key, None)
            return None
        self._cache[key] = (moment + self._settings.key_cache_ttl, customer)
        _logger.info("API key validated for customer: %s", customer.customer_id)
        return customer

    def admin(self, key: str | None) -> None:
        """The X-Admin-API-Key of /admin, and of the customers' API at the head."""
        expected = self._settings.admin_api_key
        if expected is None:
            raise HTTPException(401, "Admin API key not configured on server")
        if not key:
            raise HTTPException(401, "Admin API key required")
        _compare(key, expected)

    def customers_admin_v010(self, key: str) -> None:
        """The X-Admin-Key of v0.1.0's customers API, which has a built-in value to fall back on."""
        _compare(key, self._settings.admin_api_key or V010_DEFAULT_ADMIN_SECRET)


def _compare(presented: str, expected: str) -> None:
    if not hmac.compare_digest(presented.encode(), expected.encode()):
        raise HTTPException(401, "Invalid admin API key")

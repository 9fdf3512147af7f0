# SPDX-License-Identifier: GPL-3.0-or-later
"""wp_chat's HTTP API, for uvicorn: `app` is made from working directory and environment when it is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from lab import pidfile
from lab.strain import Strain
from lab.wp_chat import reports
from lab.wp_chat.admin import backup_routes, cache_routes, canary_routes, incident_routes
from lab.wp_chat.chat import chat_routes
from lab.wp_chat.settings import VERSION, load
from lab.wp_chat.state import State
from lab.wp_chat.stats import stats_routes


def create_app(state: State) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        strain = asyncio.create_task(Strain(state.faults, memory="memory", cpu="cpu", at_once=True).run())
        try:
            yield
        finally:
            strain.cancel()
            with suppress(asyncio.CancelledError):
                await strain
            pidfile.release()

    app = FastAPI(title="wp-chat", version=VERSION, lifespan=lifespan)

    @app.middleware("http")
    async def record(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        try:
            return await proceed(request)
        except Exception as error:
            if request.url.path.startswith(("/stats", "/admin")):
                return JSONResponse({"error": str(error)}, status_code=500)
            raise
        finally:
            if request.url.path == "/search":
                _record_search(request, started)

    routers = [chat_routes(state), stats_routes(state), canary_routes(state), cache_routes(state)]
    routers.append(incident_routes(state))
    if not state.settings.literal:
        routers.append(backup_routes(state))
    for routes in routers:
        app.include_router(routes)
    return app


def _record_search(request: Request, started: float) -> None:
    """Every request to /search, whatever became of it; its body is not looked at."""
    asked = request.query_params
    reports.record_search(
        asked.get("q", ""),
        asked.get("rerank", "").lower() == "true",
        asked.get("mode", "hybrid"),
        int(asked["topk"]) if asked.get("topk", "").isdigit() else 5,
        round((time.perf_counter() - started) * 1000, 2),
        0,
        request.headers.get("User-Agent", ""),
        request.client.host if request.client else "unknown",
    )


pidfile.claim()
app = create_app(State(load()))

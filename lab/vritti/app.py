# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's HTTP API, for uvicorn: `app` is made from the process environment when it is first asked for."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lab import pidfile
from lab.faults import ActiveFaults
from lab.strain import Strain
from lab.vritti import logs
from lab.vritti.auth import Authenticator
from lab.vritti.budget import TIERS as REFLECTION_TIERS
from lab.vritti.embedding import EmbeddingService
from lab.vritti.episodes import EpisodeService
from lab.vritti.faults import VRITTI
from lab.vritti.health import HealthChecker
from lab.vritti.kyrodb_client import KyroDBError, KyroDBRouter
from lab.vritti.limits import RateLimiter, RateLimitExceeded
from lab.vritti.metrics import Metrics
from lab.vritti.middleware import RequestMiddleware
from lab.vritti.reflections import ReflectionService
from lab.vritti.schemas import (
    CustomerCreate,
    CustomerUpdate,
    Episode,
    FixValidation,
    KeyCreate,
    Reflect,
    SearchHead,
    SearchV010,
    SkillFeedback,
)
from lab.vritti.settings import VERSION, Settings, load
from lab.vritti.storage import CUSTOMER_FIELDS, Customer, CustomerDatabase

CAPTURE_CREDITS = 1.5
SEARCH_CREDITS = 1.0
REFLECT_CREDITS = 1.0

_log = logs.EventLog("src.main")
_search_logger = logging.getLogger("src.retrieval.search")


class Service:
    """The parts of one process and how its routes use them."""

    def __init__(self, settings: Settings) -> None:
        self.faults = faults = ActiveFaults(VRITTI)
        logs.configure(settings, warned_early=bool(settings.warnings) or faults.active("log-warnings-only"))
        self.settings = settings
        self.metrics = None if settings.is_head else Metrics()
        self.database = CustomerDatabase(Path(settings.customers_db), settings.line, settings.doc_id_block)
        self.authenticator = Authenticator(settings, self.database, self.metrics)
        self.limiter = RateLimiter()
        self.reflections = ReflectionService(settings, faults, self.metrics)
        self._strain = Strain(faults, memory="memory-leak", cpu="cpu-busy")
        self._background: asyncio.Task[None] | None = None
        self.embeddings = EmbeddingService(faults, settings.text_model)
        # Both exist once start() is through, and nothing is served before.
        self.router: KyroDBRouter
        self.episodes: EpisodeService
        self._checker: HealthChecker | None = None

    @property
    def checker(self) -> HealthChecker:
        if self._checker is None:
            self._checker = HealthChecker(
                self.settings, self.router, self.database, self.embeddings, self._report_instance
            )
        return self._checker

    async def start(self) -> None:
        """All or nothing: an exception here ends uvicorn with status 3."""
        try:
            if self.settings.is_head and self.settings.require_llm and not self.settings.llm_api_key:
                raise RuntimeError("LLM_OPENROUTER_API_KEY is required while SERVICE_REQUIRE_LLM_REFLECTION is true")
            self.embeddings.load(self.settings.text_dimension)
            await asyncio.to_thread(self.database.check_startup)
            self.router = KyroDBRouter(self.settings)
            self.reflections.router = self.router
            await self.router.connect()
        except Exception as error:
            _log.error(f"Startup failed: {error}")
            raise
        self.episodes = EpisodeService(self.settings, self.router, self.database, self.embeddings)
        await self.embeddings.text("warm up")
        logging.getLogger("src.ingestion.embedding").info("Text model warmed up")
        self._background = asyncio.create_task(self._strain.run())
        _log.info("Service started")

    async def stop(self) -> None:
        if self._background is not None:
            self._background.cancel()
        await self.reflections.drain()
        await self.router.close()
        self.database.close()
        _log.info("Service stopped")

    def limit(self, customer: Customer, operation: str) -> None:
        try:
            self.limiter.hit(customer.customer_id, operation)
        except RateLimitExceeded:
            if self.metrics is not None:
                self.metrics.rate_limit_exceeded.labels(customer.customer_id, customer.subscription_tier).inc()
            raise

    async def book(self, customer: Customer, credits: float, operation: str) -> None:
        await asyncio.to_thread(self.database.book_credits, customer.customer_id, credits)
        if self.metrics is not None:
            labels = (customer.customer_id, customer.subscription_tier)
            self.metrics.credits_used.labels(*labels, operation).inc(credits)
            # From the cached customer: up to the cache's lifetime behind the database.
            limit = customer.monthly_credit_limit
            ratio = customer.credits_used_current_month / limit if limit else 0.0
            self.metrics.customer_quota_usage_ratio.labels(*labels).set(ratio)

    def _report_instance(self, instance: str, healthy: bool) -> None:
        if self.metrics is not None:
            self.metrics.kyrodb_connection_healthy.labels(instance).set(int(healthy))


def _health_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/")
    async def root() -> dict[str, Any]:
        return {"service": "Episodic Memory", "version": VERSION, "status": "running", "docs": "/docs"}

    @routes.get("/health/liveness")
    async def liveness() -> dict[str, Any]:
        return {"status": "alive", "timestamp": logs.utc_now()}

    @routes.get("/health/readiness")
    async def readiness(response: Response) -> dict[str, Any]:
        answer = await service.checker.readiness()
        if answer["status"] == "unhealthy":
            response.status_code = 503
        return answer

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        return await service.checker.comprehensive()

    @routes.get("/stats")
    async def stats() -> dict[str, Any]:
        return service.episodes.statistics.report()

    if service.metrics is not None:

        @routes.get("/metrics")
        async def metrics() -> Response:
            return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return routes


def _admin_routes(service: Service) -> APIRouter:
    def require_admin(x_admin_api_key: Annotated[str | None, Header()] = None) -> None:
        service.authenticator.admin(x_admin_api_key)

    routes = APIRouter(prefix="/admin", dependencies=[Depends(require_admin)])

    @routes.get("/budget")
    async def budget() -> dict[str, Any]:
        return service.reflections.budget.report(bool(service.settings.llm_api_key))

    @routes.get("/reflection/stats")
    async def reflection_stats() -> dict[str, Any]:
        return service.reflections.budget.statistics(bool(service.settings.llm_api_key))

    return routes


def _public(customer: Customer) -> dict[str, Any]:
    return {name: getattr(customer, name) for name in CUSTOMER_FIELDS}


def _customer_routes(service: Service) -> APIRouter:
    database = service.database

    def require_admin_head(x_admin_api_key: Annotated[str | None, Header()] = None) -> None:
        service.authenticator.admin(x_admin_api_key)

    def require_admin_v010(x_admin_key: Annotated[str, Header()]) -> None:
        service.authenticator.customers_admin_v010(x_admin_key)

    admin = [Depends(require_admin_head if service.settings.is_head else require_admin_v010)]
    routes = APIRouter(prefix="/api/v1/customers")

    def existing(customer_id: str) -> Customer:
        customer = database.customer(customer_id)
        if customer is None:
            raise HTTPException(404, f"Customer not found: {customer_id}")
        return customer

    @routes.post("", status_code=201, dependencies=admin)
    def create_customer(body: CustomerCreate) -> dict[str, Any]:
        try:
            customer = database.create_customer(
                body.customer_id, body.organization_name, body.email, body.subscription_tier
            )
        except sqlite3.IntegrityError as error:
            raise HTTPException(409, "Customer with this id or email already exists") from error
        return _public(customer)

    @routes.get("/{customer_id}", dependencies=admin)
    def get_customer(customer_id: str) -> dict[str, Any]:
        return _public(existing(customer_id))

    @routes.patch("/{customer_id}", dependencies=admin)
    def patch_customer(customer_id: str, body: CustomerUpdate) -> dict[str, Any]:
        # An unknown customer fails in the database, not here: the service answers 500 for it.
        changes = body.model_dump(exclude_none=True)
        customer = database.update_customer(customer_id, changes)
        return _public(customer if customer is not None else existing(customer_id))

    @routes.post("/{customer_id}/api-keys", status_code=201, dependencies=admin)
    def create_key(customer_id: str, body: KeyCreate) -> dict[str, Any]:
        existing(customer_id)
        key = database.create_key(customer_id, body.name, body.expires_in_days)
        return {
            "api_key": key.api_key,
            "key_id": key.key_id,
            "key_prefix": key.key_prefix,
            "customer_id": key.customer_id,
            "warning": "Store this API key now: it is not shown again.",
        }

    @routes.delete("/{customer_id}/api-keys/{key_id}", status_code=204, dependencies=admin)
    def revoke_key(customer_id: str, key_id: str) -> None:
        if not database.revoke_key(key_id):
            raise HTTPException(404, "API key not found")

    @routes.post("/{customer_id}/reset-usage", status_code=204, dependencies=admin)
    def reset_usage(customer_id: str) -> None:
        database.reset_usage(customer_id)

    def usage_report(customer_id: str) -> dict[str, Any]:
        customer = existing(customer_id)
        used, limit = customer.credits_used_current_month, customer.monthly_credit_limit
        return {
            "customer_id": customer_id,
            "credits_used": used,
            "credit_limit": limit,
            "remaining_credits": max(0, limit - used),
            "usage_percentage": round(100.0 * used / limit, 2) if limit else 0.0,
            "over_quota": used >= limit,
        }

    if service.settings.is_head:

        @routes.get("/{customer_id}/usage")
        async def usage(
            customer_id: str, customer: Annotated[Customer, Depends(service.authenticator.customer)]
        ) -> dict[str, Any]:
            if customer.customer_id != customer_id:
                raise HTTPException(403, "Access to another customer's usage is forbidden")
            return await asyncio.to_thread(usage_report, customer_id)

    else:

        @routes.get("/{customer_id}/usage")
        async def usage_v010(customer_id: str) -> dict[str, Any]:
            return await asyncio.to_thread(usage_report, customer_id)

    return routes


def _memory_routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")
    metrics = service.metrics

    def limited(operation: str) -> Any:
        async def customer(request: Request) -> Customer:
            authenticated = await service.authenticator.customer(request)
            service.limit(authenticated, operation)
            return authenticated

        return Depends(customer)

    async def capture_episode(body: Episode, customer: Customer, tier: str | None, wants_reflection: bool) -> Any:
        if tier is not None and tier not in REFLECTION_TIERS:
            raise HTTPException(400, f"Invalid tier: {tier}. Must be one of {', '.join(REFLECTION_TIERS)}")
        if tier is not None and service.settings.is_head and not service.settings.llm_api_key:
            raise HTTPException(400, "Tier override requires reflection service to be enabled")
        try:
            answer = await service.episodes.capture(body, customer.customer_id, wants_reflection)
        except Exception as error:
            raise HTTPException(500, f"Failed to capture episode: {error}") from error
        if answer["reflection_queued"]:
            service.reflections.queue(answer["episode_id"], customer.customer_id, body, tier)
        await service.book(customer, CAPTURE_CREDITS, "ingestion")
        if metrics is not None:
            has_image, has_reflection = str(answer["image_stored"]).lower(), str(answer["reflection_queued"]).lower()
            metrics.episodes_ingested.labels(customer.subscription_tier, has_image, has_reflection).inc()
        return answer

    if service.settings.is_head:

        @routes.post("/capture", status_code=201)
        async def capture(
            body: Episode, customer: Annotated[Customer, limited("capture")], tier: str | None = None
        ) -> Any:
            return await capture_episode(body, customer, tier, True)

    else:

        @routes.post("/capture", status_code=201)
        async def capture_v010(
            body: Episode,
            customer: Annotated[Customer, limited("capture")],
            tier: str | None = None,
            generate_reflection: Annotated[bool, Query()] = True,
        ) -> Any:
            return await capture_episode(body, customer, tier, generate_reflection)

    async def search_episodes(body: SearchV010 | SearchHead, customer: Customer) -> Any:
        try:
            answer = await service.episodes.search(body, customer.customer_id)
        except Exception as error:
            _search_logger.error("Search failed: %s", error)
            raise HTTPException(500, f"Search failed: {error}") from error
        await service.book(customer, SEARCH_CREDITS, "search")
        if metrics is not None:
            metrics.searches.labels(customer.subscription_tier).inc()
            metrics.search_results_returned.observe(answer["total_returned"])
        return answer

    if service.settings.is_head:

        @routes.post("/search")
        async def search(body: SearchHead, customer: Annotated[Customer, limited("search")]) -> Any:
            return await search_episodes(body, customer)

    else:

        @routes.post("/search")
        async def search_v010(body: SearchV010, customer: Annotated[Customer, limited("search")]) -> Any:
            return await search_episodes(body, customer)

    @routes.post("/reflect")
    async def reflect(body: Reflect, customer: Annotated[Customer, limited("reflect")]) -> Any:
        query = SearchHead(goal=body.goal, current_state=body.current_state)
        try:
            found = await service.episodes.search(query, customer.customer_id)
        except Exception as error:
            raise HTTPException(500, f"Reflection failed: {error}") from error
        await asyncio.to_thread(service.database.book_credits, customer.customer_id, REFLECT_CREDITS)
        matched = found["results"]
        recommendation = "hint" if matched else "proceed"
        confidence = matched[0]["scores"]["similarity"] if matched else 1.0
        if metrics is not None:
            metrics.gating_decisions.labels(recommendation, "default").inc()
            metrics.gating_latency.labels(recommendation).observe(found["search_latency_ms"] / 1000)
            metrics.gating_confidence.labels(recommendation).observe(confidence)
            metrics.gating_matched_failures.observe(len(matched))
            metrics.gating_matched_skills.observe(0)
        return {
            "recommendation": recommendation,
            "confidence": confidence,
            "rationale": f"{len(matched)} similar failures",
            "matched_failures": matched,
            "relevant_skills": [],
            "total_latency_ms": found["search_latency_ms"],
        }

    @routes.post("/validate_fix")
    async def validate_fix(
        body: FixValidation, customer: Annotated[Customer, Depends(service.authenticator.customer)]
    ) -> Any:
        if body.episode_id < 1:
            raise HTTPException(404, f"Episode {body.episode_id} not found")
        try:
            found = await service.router.text.query(body.episode_id, f"{customer.customer_id}:failures")
        except Exception as error:
            raise HTTPException(500, f"Fix validation failed: {error}") from error
        if not found.found:
            raise HTTPException(404, f"Episode {body.episode_id} not found")
        if metrics is not None:
            metrics.fix_validations.labels(customer.subscription_tier, body.outcome).inc()
        return {"episode_id": body.episode_id, "outcome": body.outcome, "promoted_to_skill": False}

    @routes.get("/skills")
    async def skills(customer: Annotated[Customer, limited("skills")]) -> Any:
        if service.settings.is_head:
            _search_logger.error("Failed to list skills: cannot normalize a vector with zero norm")
        return {"skills": [], "total": 0}

    @routes.get("/skills/{skill_id}")
    async def skill(skill_id: int, customer: Annotated[Customer, limited("skills")]) -> Any:
        raise HTTPException(404, f"Skill {skill_id} not found")

    @routes.post("/skills/{skill_id}/feedback")
    async def skill_feedback(
        skill_id: int, body: SkillFeedback, customer: Annotated[Customer, limited("skills")]
    ) -> Any:
        raise HTTPException(404, f"Skill {skill_id} not found")

    return routes


def create_app(settings: Settings) -> FastAPI:
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
            yield
            await service.stop()
        finally:
            pidfile.release()

    app = FastAPI(title="Episodic Memory", version=VERSION, lifespan=lifespan)
    app.add_middleware(RequestMiddleware, settings=settings, metrics=service.metrics, faults=service.faults)

    @app.exception_handler(RateLimitExceeded)
    async def rate_limited(_request: Request, error: RateLimitExceeded) -> JSONResponse:
        if not settings.is_head:
            # v0.1.0 registers a handler that is a coroutine function where a plain one is called: a customer over
            # the limit gets a 500.
            raise TypeError("'coroutine' object is not callable")
        return JSONResponse({"error": str(error)}, status_code=429)

    @app.exception_handler(KyroDBError)
    async def kyrodb_unavailable(_request: Request, error: KyroDBError) -> JSONResponse:
        # In practice out of reach: the routes wrap this error in a 500 before it gets here.
        detail = "Vector database temporarily unavailable"
        return JSONResponse({"detail": detail, "error": str(error)}, status_code=503)

    for routes in (
        _health_routes(service),
        _admin_routes(service),
        _customer_routes(service),
        _memory_routes(service),
    ):
        app.include_router(routes)
    return app


pidfile.claim()
app = create_app(load())

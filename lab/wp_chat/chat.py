# SPDX-License-Identifier: GPL-3.0-or-later
"""/search, /ask and /generate, and who may use them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request
from fastapi.responses import StreamingResponse

from lab.wp_chat import logs, reports
from lab.wp_chat.cache import key_of_search
from lab.wp_chat.index import NotBuiltError, highlight, snippet
from lab.wp_chat.limits import LimitExceededError, client_of
from lab.wp_chat.schemas import AskBody, GenerateBody, SearchBody
from lab.wp_chat.settings import LAB_OPENAI_KEY
from lab.wp_chat.slo import Point
from lab.wp_chat.state import State

_MODEL = "gpt-4o-mini"
_REFUSED = "Error code: 401 - {'error': {'message': 'Incorrect API key provided', 'type': 'invalid_request_error'}}"
_MISMATCH = "matmul: dimension mismatch with signature (n,k=16384),(k=16391,m)->(n,m)"

Answer = dict[str, Any]


class _Measured:
    """One request to /search or /generate; whatever comes of it is measured."""

    def __init__(self, state: State, endpoint: str, rerank: bool) -> None:
        self._state, self._endpoint, self._rerank = state, endpoint, rerank
        self._started = time.perf_counter()
        self.cache_hit = False
        self.fallback = False
        self.generation: dict[str, Any] | None = None

    @property
    def milliseconds(self) -> float:
        return (time.perf_counter() - self._started) * 1000

    def run(self, work: Callable[[], Any]) -> Any:
        try:
            answer = work()
        except LimitExceededError as error:
            self._add(429, str(error))
            raise HTTPException(429, str(error), error.headers) from error
        except HTTPException as error:
            self._add(error.status_code, str(error.detail))
            raise
        except Exception as error:
            self.fallback = True
            self._add(500, str(error))
            self._log_error(error)
            raise HTTPException(500, f"Internal server error: {error}") from error
        self._add(200, "")
        return answer

    def _add(self, status: int, message: str) -> None:
        point = Point(
            timestamp=time.time(),
            endpoint=self._endpoint,
            latency_ms=int(self.milliseconds),
            status_code=status,
            rerank_enabled=self._rerank,
            cache_hit=self.cache_hit,
            fallback_used=self.fallback,
            error_message=message,
            generation_metrics=self.generation,
        )
        self._state.measurements.add(point)

    def _log_error(self, error: Exception) -> None:
        """No version has this log, but the runbook has."""
        if self._state.settings.literal:
            moment = logs.local_time(time.time(), "milliseconds")
            logs.append_text(logs.API_ERRORS, f"{moment} ERROR {self._endpoint} 500 {type(error).__name__}: {error}")


class _Failures:
    """Evenly spread, so that few requests already show the share."""

    def __init__(self, state: State) -> None:
        self._faults = state.faults
        self._share = 0.0

    def fail_some(self) -> None:
        self._share += self._faults.amount("errors") / 100
        if self._share >= 1:
            self._share -= 1
            raise ValueError(_MISMATCH)


def chat_routes(state: State) -> APIRouter:
    settings = state.settings

    def require_key(x_api_key: Annotated[str | None, Header()] = None) -> None:
        if not settings.api_key_required:
            return
        challenge = {"WWW-Authenticate": "ApiKey"}
        if not settings.api_key:
            raise HTTPException(500, "API_KEY not configured on server")
        if not x_api_key:
            raise HTTPException(401, "API key required", challenge)
        if not secrets.compare_digest(x_api_key.encode(), settings.api_key.encode()):
            raise HTTPException(401, "Invalid API key", challenge)

    routes = APIRouter(dependencies=[Depends(require_key)])
    failures = _Failures(state)

    def contexts_for(text: str, mode: str, topk: int, rerank: bool) -> tuple[list[Answer], bool]:
        try:
            contexts = state.index.search(text, mode, topk)
        except NotBuiltError as error:
            raise HTTPException(400, str(error)) from error
        return state.reranker.rerank(text, contexts) if rerank else (contexts, False)

    def be_slow() -> None:
        time.sleep(state.faults.amount("slow") / 1000)

    def search_for(request: Request, body: SearchBody, user_id: str, highlighted: bool) -> Answer:
        measured = _Measured(state, "search", body.rerank)

        def work() -> Answer:
            query = body.query.strip()
            if not query:
                raise HTTPException(400, "query is empty")
            state.limiter.hit(client_of(request))
            be_slow()
            failures.fail_some()
            cached = state.cache.get(key_of_search(query))
            if cached is not None:
                measured.cache_hit = True
                shape = {"query": query, "mode": body.mode, "rerank": False, "highlight": highlighted}
                return {**shape, "contexts": cached, "cached": True}
            wanted = state.canary.reranks_for(user_id)
            contexts, reranked = contexts_for(query, body.mode, body.topk, body.rerank and wanted)
            shown = [_shown(context, query, highlighted) for context in contexts]
            state.cache.set(key_of_search(query), shown)
            agent, peer = _who(request)
            # The latency of these lines is never filled.
            reports.record_search(query, reranked, body.mode, body.topk, 0, len(shown), agent, peer)
            return {
                "q": query,
                "mode": body.mode,
                "rerank": reranked,
                "highlight": highlighted,
                "contexts": shown,
                "canary": {
                    "user_id": user_id,
                    "rerank_enabled": wanted,
                    "rollout_percentage": state.canary.config.rollout_percentage,
                },
            }

        answer: Answer = measured.run(work)
        return answer

    @routes.post("/search")
    def search(
        request: Request,
        body: SearchBody,
        user_id: str = "anonymous",
        highlighted: Annotated[bool, Query(alias="highlight")] = True,
    ) -> Answer:
        return search_for(request, body, user_id, highlighted)

    if settings.literal:

        @routes.get("/search")
        def search_by_get(
            request: Request,
            q: Annotated[str, Query(min_length=1, max_length=500)],
            topk: Annotated[int, Query(ge=1, le=20)] = 5,
            rerank: bool = False,
            user_id: str = "anonymous",
        ) -> Answer:
            return search_for(request, SearchBody(query=q, topk=topk, rerank=rerank), user_id, True)

    @routes.post("/ask")
    def ask(body: AskBody) -> Answer:
        """Not cached, not limited, not measured, and reranked whatever the canary says."""
        be_slow()
        contexts, reranked = contexts_for(body.question, body.mode, body.topk, body.rerank)
        shown = [
            {**_shown(context, body.question, body.highlight), "snippet": snippet(context["chunk"], body.question)}
            for context in contexts
        ]
        return {
            "question": body.question,
            "mode": body.mode,
            "rerank": reranked,
            "highlight": body.highlight,
            "contexts": shown,
        }

    @routes.post("/generate", response_model=None)
    def generate(request: Request, body: GenerateBody) -> Answer | StreamingResponse:
        measured = _Measured(state, "generate", body.rerank)

        def work() -> Answer:
            question = body.question.strip()
            if not question:
                raise HTTPException(400, "question is empty")
            state.limiter.hit(client_of(request))
            be_slow()
            key = f"generate:{question}:{body.topk}:{body.mode}:{body.rerank}"
            cached: Answer | None = state.cache.get(key)
            if cached is not None:
                measured.cache_hit = True
                return cached
            wanted = body.rerank and state.canary.reranks_for(body.user_id)
            contexts, _reranked = contexts_for(question, body.mode, body.topk, wanted)
            answer, metrics = _generated(settings.openai_api_key, contexts, measured.milliseconds)
            measured.generation = metrics
            measured.fallback = bool(metrics["error_message"])
            if not measured.fallback:
                state.cache.set(key, answer)
            return answer

        answer: Answer = measured.run(work)
        if body.stream:
            return StreamingResponse(_events(answer), media_type="text/event-stream")
        return answer

    return routes


def _who(request: Request) -> tuple[str, str]:
    peer = request.client.host if request.client else "unknown"
    return request.headers.get("User-Agent", ""), peer


def _shown(context: Answer, query: str, highlighted: bool) -> Answer:
    shown = {name: value for name, value in context.items() if name != "chunk"}
    return {**shown, "title": highlight(context["title"], query) if highlighted else context["title"]}


def _generated(key: str, contexts: list[Answer], milliseconds: float) -> tuple[Answer, dict[str, Any]]:
    """What the provider makes of it; 200 also where it refuses."""
    references = [
        {"id": number, **{name: context[name] for name in ("title", "url", "post_id", "chunk_id")}}
        for number, context in enumerate(contexts, 1)
    ]
    refused = "" if key == LAB_OPENAI_KEY else _REFUSED
    titles = ", ".join(f"{reference['title']} [{reference['id']}]" for reference in references)
    text = f"The answer could not be generated. Related articles: {titles}" if refused else f"According to {titles}."
    tokens = 0 if refused else len(text.split())
    usage = {
        "prompt_tokens": 40 * len(contexts),
        "completion_tokens": tokens,
        "total_tokens": 40 * len(contexts) + tokens,
    }
    metadata = {
        "latency_ms": int(milliseconds),
        "ttft_ms": 0 if refused else int(milliseconds),
        "token_count": tokens,
        "model": _MODEL,
        "fallback": bool(refused),
        "error_message": refused,
    }
    metrics = {
        "ttft_ms": metadata["ttft_ms"],
        "total_latency_ms": metadata["latency_ms"],
        "token_usage": usage,
        "model": _MODEL,
        "success": not refused,
        "error_message": refused,
    }
    return {"answer": text, "references": references, "metadata": metadata}, metrics


def _events(answer: Answer) -> Iterator[str]:
    def event(name: str, data: Any) -> str:
        return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"

    for word in answer["answer"].split():
        yield event("delta", {"content": word + " "})
    yield event("metrics", answer["metadata"])
    yield event("refs", answer["references"])
    yield event("done", {})

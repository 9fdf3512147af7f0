# SPDX-License-Identifier: GPL-3.0-or-later
"""The LLM provider as Vritti meets it: models that answer, or refuse, or take too long."""

from __future__ import annotations

import asyncio

from lab.faults import ActiveFaults
from lab.vritti.settings import DEFAULT_CHEAP_MODEL, DEFAULT_CONSENSUS_MODELS, Settings

# What the lab's own key begins with, which is the one that the provider may revoke.
REVOCABLE = "sk-or-lab-"
_CALL_SECONDS = 0.3
_REFUSAL_SECONDS = 0.05
# The models that the provider has; it has many more.
_MODELS = (DEFAULT_CHEAP_MODEL, *DEFAULT_CONSENSUS_MODELS, "anthropic/claude-3-haiku", "openai/gpt-4o")
_URL = "https://openrouter.ai/api/v1/chat/completions"
_MEANING = {401: "Unauthorized", 404: "Not Found", 503: "Service Unavailable"}


class ProviderError(Exception):
    """A call without an answer: the status of the refusal, or None where the time ran out."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        # The client of the cheap tier says nothing at all when its time has run out.
        super().__init__(self._sentence(status) if status is not None else "")

    @staticmethod
    def _sentence(status: int) -> str:
        kind = "Server" if status >= 500 else "Client"
        more = f"For more information check: https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/{status}"
        return f"{kind} error '{status} {_MEANING[status]}' for url '{_URL}'\n{more}"

    @property
    def permanent(self) -> bool:
        return self.status is not None and self.status < 500


class Provider:
    def __init__(self, settings: Settings, faults: ActiveFaults) -> None:
        self._settings = settings
        self._faults = faults

    async def call(self, model: str) -> float:
        """Wait for the model's answer; what it cost in USD."""
        status = self._refusal(model)
        if status is not None:
            await asyncio.sleep(_REFUSAL_SECONDS)
            raise ProviderError(status)
        seconds = self._faults.amount("llm-slow") or _CALL_SECONDS
        await asyncio.sleep(min(seconds, self._settings.llm_timeout))
        if seconds > self._settings.llm_timeout:
            raise ProviderError(None)
        # The real service books nothing: its cost is 0.0 in every tier.
        return self._faults.amount("llm-expensive")

    def _refusal(self, model: str) -> int | None:
        if self._faults.active("llm-failing"):
            return 503
        if self._faults.active("llm-key-refused") and self._settings.llm_api_key.startswith(REVOCABLE):
            return 401
        if model not in _MODELS or (self._faults.active("llm-model-gone") and model == DEFAULT_CHEAP_MODEL):
            return 404
        return None

# SPDX-License-Identifier: GPL-3.0-or-later
"""Request bodies of the chat routes. Everything else comes in the query string."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

_TAGS = re.compile(r"<[^>]*>")

Mode = Literal["hybrid", "dense", "bm25"]
WithoutTags = AfterValidator(lambda text: _TAGS.sub("", text))


class SearchBody(BaseModel):
    query: Annotated[str, Field(min_length=1, max_length=500), WithoutTags]
    topk: Annotated[int, Field(ge=1, le=20)] = 5
    mode: Mode = "hybrid"
    rerank: bool = False


class AskBody(BaseModel):
    question: Annotated[str, Field(min_length=1, max_length=1000), WithoutTags]
    topk: Annotated[int, Field(ge=1, le=20)] = 5
    mode: Mode = "hybrid"
    rerank: bool = False
    highlight: bool = True
    use_morphology: bool = False


class GenerateBody(BaseModel):
    question: Annotated[str, Field(min_length=1, max_length=1000), WithoutTags]
    topk: Annotated[int, Field(ge=1, le=10)] = 5
    mode: Mode = "hybrid"
    rerank: bool = True
    stream: bool = True
    user_id: str = "anonymous"

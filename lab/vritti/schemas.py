# SPDX-License-Identifier: GPL-3.0-or-later
"""Request bodies. Their constraints are what turns the runbooks' test requests into 422."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

Tier = Literal["free", "starter", "pro", "enterprise"]
Status = Literal["active", "suspended", "deleted"]
ErrorClass = Literal[
    "configuration_error",
    "permission_error",
    "network_error",
    "resource_error",
    "dependency_error",
    "timeout_error",
    "validation_error",
    "unknown",
]


def _check_customer_id(value: str) -> str:
    if value.startswith("-") or value.endswith("-") or "--" in value:
        raise ValueError("must not start or end with a hyphen, nor contain two in a row")
    return value


def _check_email(value: str) -> str:
    name, at, domain = value.partition("@")
    if not (name and at and "." in domain) or " " in value:
        raise ValueError("value is not a valid email address")
    return value


CustomerId = Annotated[
    str, Field(min_length=3, max_length=50, pattern="^[a-z0-9-]+$"), AfterValidator(_check_customer_id)
]
Email = Annotated[str, AfterValidator(_check_email)]


class CustomerCreate(BaseModel):
    customer_id: CustomerId
    organization_name: str = Field(min_length=1, max_length=200)
    email: Email
    subscription_tier: Tier = "free"


class CustomerUpdate(BaseModel):
    organization_name: str | None = Field(default=None, min_length=1, max_length=200)
    email: Email | None = None
    subscription_tier: Tier | None = None
    status: Status | None = None
    monthly_credit_limit: int | None = Field(default=None, ge=0)


class KeyCreate(BaseModel):
    # Required, and then ignored in favour of the path.
    customer_id: str
    name: str | None = Field(default=None, max_length=100)
    expires_in_days: int | None = Field(default=None, ge=1, le=365)


class Episode(BaseModel):
    goal: str = Field(min_length=10)
    tool_chain: list[str] = Field(min_length=1)
    actions_taken: list[str] = Field(min_length=1)
    error_trace: str = Field(min_length=10)
    episode_type: Literal["failure"] = "failure"
    error_class: ErrorClass = "unknown"
    severity: int = Field(default=3, ge=1, le=5)
    tags: list[str] = []
    environment_info: dict[str, Any] = {}
    code_state_diff: str | None = None
    resolution: str | None = None
    time_to_resolve_seconds: float | None = None
    screenshot_base64: str | None = None
    screenshot_path: str | None = None


class _SearchBase(BaseModel):
    goal: str = Field(min_length=5)
    min_similarity: float = Field(default=0.6, ge=-1, le=1)
    precondition_threshold: float = Field(default=0.5, ge=0, le=1)
    current_state: dict[str, Any] = {}
    collection: Literal["failures"] = "failures"
    tool_filter: str | None = None
    min_timestamp: str | None = None
    max_timestamp: str | None = None
    tags: list[str] | None = None
    include_archived: bool = False
    ranking_weights: dict[str, float] | None = None
    image_base64: str | None = None
    image_weight: float = Field(default=0.3, ge=0, le=1)


class SearchV010(_SearchBase):
    k: int = Field(default=5, ge=1, le=100)


class SearchHead(_SearchBase):
    k: int = Field(default=5, ge=1, le=1000)


class Reflect(BaseModel):
    goal: str = Field(min_length=5)
    proposed_action: str = Field(min_length=1)
    tool: str = Field(min_length=1)
    current_state: dict[str, Any] = {}


class FixValidation(BaseModel):
    episode_id: int
    solution_applied: str = Field(min_length=1)
    outcome: Literal["success", "failure", "partial"]


class SkillFeedback(BaseModel):
    success: bool

# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's settings, from the process environment under the names that the real service uses."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab import environment_file

V010 = "v0.1.0"
HEAD = "head"
LINES = (V010, HEAD)
VERSION = "0.1.0"
DEFAULT_TEXT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_DATABASE = "./data/customers.db"
DEFAULT_DEAD_LETTERS = "./data/failed_reflections.log"
DEFAULT_CHEAP_MODEL = "x-ai/grok-4.1-fast:free"
DEFAULT_CONSENSUS_MODELS = ("kwaipilot/kat-coder-pro:free", "tngtech/deepseek-r1t2-chimera:free")

_OF_DOTENV = ("KYRODB_", "EMBEDDING_", "LLM_", "ADMIN_API_KEY")
_PLACEHOLDERS = ("admin", "test", "dummy", "example", "your-api-key-here")
_LLM_PLACEHOLDERS = ("your-api-key-here", "example", "dummy")
MIN_ADMIN_KEY_LENGTH = 32
V010_DEFAULT_ADMIN_SECRET = "admin_secret_change_me"


@dataclass(frozen=True)
class Settings:
    line: str
    text_address: str
    image_address: str
    tls: bool
    tls_ca_path: str | None
    request_timeout: float
    admin_api_key: str | None
    llm_api_key: str
    require_llm: bool
    llm_timeout: float
    llm_tries: int
    cheap_model: str
    consensus_models: tuple[str, str]
    dead_letters_path: str
    dead_letters_max_bytes: int
    customers_db: str
    health_cache_ttl: float
    latency_warning_ms: float
    latency_error_ms: float
    slow_warning_ms: float
    slow_error_ms: float
    key_cache_ttl: float
    environment: str
    doc_id_block: int
    text_model: str
    text_dimension: int
    log_level: int
    warnings: list[str] = field(default_factory=list)

    @property
    def is_head(self) -> bool:
        return self.line == HEAD


def _flag(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on")


def _log_level(name: str) -> int:
    levels = logging.getLevelNamesMapping()
    if name.upper() not in levels:
        raise ValueError(f"LOGGING_LEVEL: {name!r} is not one of {', '.join(levels)}")
    return levels[name.upper()]


def _dotenv() -> dict[str, str]:
    """What counts of the .env in the folder that it was started in; the process's environment goes before it."""
    path = Path(".env")
    found = environment_file.load(path) if path.is_file() else {}
    return {name: value for name, value in found.items() if name.startswith(_OF_DOTENV)}


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; what is wrong with them is in `warnings`."""
    if environment is None:
        environment = {**_dotenv(), **os.environ}

    def number(name: str, default: float) -> float:
        return float(environment.get(name, default))

    line = environment.get("LAB_VRITTI_LINE", V010)
    warnings = []
    admin_key: str | None = environment.get("ADMIN_API_KEY") or None
    if admin_key is not None and any(word in admin_key.lower() for word in _PLACEHOLDERS):
        warnings.append("ADMIN_API_KEY looks like a placeholder and is ignored")
        admin_key = None
    elif admin_key is not None and len(admin_key) < MIN_ADMIN_KEY_LENGTH:
        warnings.append(f"ADMIN_API_KEY is shorter than {MIN_ADMIN_KEY_LENGTH} characters")
    llm_key = environment.get("LLM_OPENROUTER_API_KEY", "")
    if any(word in llm_key for word in _LLM_PLACEHOLDERS):
        llm_key = ""
    if not llm_key:
        warnings.append("LLM_OPENROUTER_API_KEY is not set, reflections are disabled")
    head = line == HEAD
    text_host = environment.get("KYRODB_TEXT_HOST", "localhost")
    text_port = environment.get("KYRODB_TEXT_PORT", "50051")
    image_host = environment.get("KYRODB_IMAGE_HOST", "localhost")
    image_port = environment.get("KYRODB_IMAGE_PORT", "50052")
    # Where v0.1.0 keeps its database cannot be configured.
    database = environment.get("STORAGE_CUSTOMER_DB_PATH", DEFAULT_DATABASE) if head else DEFAULT_DATABASE
    # Nor where it keeps its dead letters, which it never rotates.
    letters = environment.get("SERVICE_DEAD_LETTER_QUEUE_PATH", DEFAULT_DEAD_LETTERS) if head else DEFAULT_DEAD_LETTERS
    llm_timeout = number("LLM_TIMEOUT_SECONDS", 60)
    if not 1 <= llm_timeout <= 180:
        raise ValueError(f"LLM_TIMEOUT_SECONDS is {llm_timeout:g}; it goes from 1 to 180")
    first, second = DEFAULT_CONSENSUS_MODELS
    return Settings(
        line=line,
        text_address=f"{text_host}:{text_port}",
        image_address=f"{image_host}:{image_port}",
        tls=_flag(environment.get("KYRODB_ENABLE_TLS", "false")),
        tls_ca_path=environment.get("KYRODB_TLS_CA_CERT_PATH") or None,
        request_timeout=number("KYRODB_REQUEST_TIMEOUT_SECONDS", 60),
        admin_api_key=admin_key,
        llm_api_key=llm_key,
        require_llm=_flag(environment.get("SERVICE_REQUIRE_LLM_REFLECTION", "true")),
        llm_timeout=llm_timeout,
        llm_tries=int(number("LLM_MAX_RETRIES", 3)),
        cheap_model=environment.get("LLM_CHEAP_MODEL") or DEFAULT_CHEAP_MODEL,
        consensus_models=(
            environment.get("LLM_CONSENSUS_MODEL_1") or first,
            environment.get("LLM_CONSENSUS_MODEL_2") or second,
        ),
        dead_letters_path=letters,
        dead_letters_max_bytes=int(number("SERVICE_DEAD_LETTER_QUEUE_MAX_SIZE_MB", 100)) * 1024 * 1024,
        customers_db=database,
        health_cache_ttl=number("HEALTH_CACHE_TTL_SECONDS", 5),
        latency_warning_ms=number("HEALTH_KYRODB_LATENCY_WARNING_MS", 100),
        latency_error_ms=number("HEALTH_KYRODB_LATENCY_ERROR_MS", 500),
        slow_warning_ms=number("LOGGING_SLOW_REQUEST_WARNING_MS", 100),
        slow_error_ms=number("LOGGING_SLOW_REQUEST_ERROR_MS", 500),
        key_cache_ttl=number("AUTH_API_KEY_CACHE_TTL_SECONDS", 300) if head else 300.0,
        environment=environment.get("LOGGING_ENVIRONMENT", "development"),
        doc_id_block=int(number("STORAGE_DOC_ID_BLOCK_SIZE", 256)),
        text_model=environment.get("EMBEDDING_TEXT_MODEL_NAME") or DEFAULT_TEXT_MODEL,
        text_dimension=int(number("EMBEDDING_TEXT_DIMENSION", 384)),
        log_level=_log_level(environment.get("LOGGING_LEVEL", "INFO")),
        warnings=warnings,
    )

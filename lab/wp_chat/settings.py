# SPDX-License-Identifier: GPL-3.0-or-later
"""What wp_chat reads of its environment, and what its two kinds differ in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import environment_file

HEAD = "head"
LITERAL = "literal"
KINDS = (HEAD, LITERAL)
VERSION = "1.0.0"
# What an environment file may hold; the many other names of .env.example are not read.
NAMES = ("OPENAI_API_KEY", "API_KEY_REQUIRED", "API_KEY", "LOG_LEVEL", "LOG_FORMAT", "HF_HOME", "HF_HUB_CACHE")
# A key with which the lab's own provider answers; with any other the call fails.
LAB_OPENAI_KEY = "sk-lab-0123456789abcdef"


@dataclass(frozen=True)
class Settings:
    # As the runbook's text has it, with the routes and files that no commit ever had.
    literal: bool
    openai_api_key: str
    api_key_required: bool
    api_key: str
    log_level: str
    log_as_text: bool
    models_dir: Path

    @property
    def cache_dir(self) -> Path:
        return Path("logs/cache" if self.literal else "cache")


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Without a key of OpenAI nothing can be imported."""
    if environment is None:
        # The project's root is where it was started; what the process has goes before the file.
        dotenv = Path(".env")
        environment = {**(environment_file.load(dotenv) if dotenv.is_file() else {}), **os.environ}
    key = environment.get("OPENAI_API_KEY", "")
    if not key:
        raise ValueError("OPENAI_API_KEY environment variable is required")
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    return Settings(
        literal=environment.get("LAB_WP_CHAT_KIND") == LITERAL,
        openai_api_key=key,
        api_key_required=environment.get("API_KEY_REQUIRED", "").lower() == "true",
        api_key=environment.get("API_KEY", ""),
        log_level=environment.get("LOG_LEVEL", "INFO").upper(),
        log_as_text=environment.get("LOG_FORMAT", "json") == "text",
        models_dir=Path(environment.get("HF_HUB_CACHE") or f"{home}/hub").expanduser(),
    )

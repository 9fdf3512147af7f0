# SPDX-License-Identifier: GPL-3.0-or-later
"""Files with a process's environment, as systemd reads an EnvironmentFile."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def load(path: Path) -> dict[str, str]:
    """NAME=value lines. A # or ; begins a comment only at the start of a line; a line without a name is passed over."""
    found: dict[str, str] = {}
    text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", "")
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")) and _NAME.fullmatch(name.strip()):
            found[name.strip()] = _unquoted(value.strip())
    return found


def dump(values: dict[str, str]) -> str:
    """The file's text; values of the lab need no quotes."""
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == "'":
        return value[1:-1]
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return re.sub(r"\\(.)", r"\1", value)

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take secrets out of anything that leaves a probe: the ones that were given, and what looks like one in a log line."""

from __future__ import annotations

import re
import typing as t

MASK = "********"
# Vritti's and KyroDB's key formats, OpenRouter's, bearer tokens, and name=value pairs whose name says secret.
_LOOKS_SECRET = re.compile(
    r"(?P<key>\bem_live_\w+|\bkyro_\w+_\w+|\bsk-[\w-]{8,})"
    r"|(?P<lead>\b(?:bearer\s+|(?:[\w-]*(?:password|passwd|secret|token|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)))(?P<value>[^\s\"',;&]+)",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]*@")


def mask_text(text: str, secrets: t.Iterable[str] = ()) -> str:
    """The text without these secrets and without what looks like one."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _CREDENTIALS.sub(f"{MASK}@", text)
    return _LOOKS_SECRET.sub(lambda found: MASK if found["key"] else f"{found['lead']}{MASK}", text)


def mask(value: t.Any, secrets: t.Sequence[str]) -> t.Any:
    """The same structure with these secrets masked in every string, keys included."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, t.Mapping):
        return {mask(key, secrets): mask(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(item, secrets) for item in value]
    return value

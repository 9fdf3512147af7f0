# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take secrets out of anything that leaves a probe: the ones that were given, and what looks like one in a log line."""

from __future__ import annotations

import json
import re
import typing as t

MASK = "********"
# Vritti's and KyroDB's key formats, OpenRouter's, credentials of HTTP, and name=value pairs whose name says secret;
# a value in quotes goes as far as the quotes, which may themselves be escaped.
_LOOKS_SECRET = re.compile(
    r"(?P<key>\bem_live_\w+|\bkyro_\w+_\w+|\bsk-[\w-]{8,})"
    r"|(?P<lead>\b(?:bearer|basic)\s+"
    r"|[\w-]*(?:password|passwd|secret|token(?!s)|api[_-]?key)[\w-]*[\\\"']*\s*[=:]\s*(?:bearer\s+|basic\s+)?)"
    r"(?P<value>(?P<quote>\\*[\"']).*?(?P=quote)|[^\s\"',;&]+)",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")


def _forms(secrets: t.Iterable[str]) -> list[str]:
    """The secrets as they may stand in a text, in JSON too; the longest first, for one may begin another."""
    forms = {form for secret in secrets if secret for form in (secret, json.dumps(secret)[1:-1])}
    return sorted(forms, key=len, reverse=True)


def mask_text(text: str, secrets: t.Iterable[str] = ()) -> str:
    """The text without these secrets and without what looks like one."""
    for form in _forms(secrets):
        text = text.replace(form, MASK)
    text = _CREDENTIALS.sub(f"{MASK}@", text)
    return _LOOKS_SECRET.sub(lambda found: MASK if found["key"] else f"{found['lead']}{MASK}", text)


def mask(value: t.Any, secrets: t.Sequence[str]) -> t.Any:
    """The same structure with these secrets masked in every string, keys included."""
    return _mask(value, _forms(secrets))


def _mask(value: t.Any, forms: t.Sequence[str]) -> t.Any:
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, MASK)
        return value
    if isinstance(value, t.Mapping):
        return {_mask(key, forms): _mask(item, forms) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mask(item, forms) for item in value]
    return value

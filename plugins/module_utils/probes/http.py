# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe http: status, JSON, a header, or the time of a GET, or of a POST that only asks. It never retries by itself."""

from __future__ import annotations

import json
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import (
    Answer,
    check_url,
    get,
    send,
    without_credentials,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

# Bodies travel to the controller, where JMESPath runs; more than this is no health page.
MAX_JSON = 512 * 1024
MAX_TIMEOUT = 600

REQUEST: dict[str, t.Any] = {
    "headers": {"type": "dict", "default": {}},
    "secret_headers": {"type": "dict", "default": {}},
    "validate_certs": {"type": "bool", "default": True},
    "ca_path": {"type": "path"},
}
SPEC: dict[str, t.Any] = {
    "url": {"type": "str", "required": True},
    "value": {
        "type": "str",
        "choices": ["status", "json", "header", "connect", "first_byte", "total"],
        "default": "status",
    },
    # Sent as JSON by POST, to a route that only answers a question.
    "body": {"type": "dict"},
    # Seconds, in place of the diagnosis's own.
    "timeout": {"type": "float"},
    "jmespath": {"type": "str"},
    "header": {"type": "str"},
    "samples": {"type": "int", "default": 1},
    "quantile": {"type": "float", "default": 0.5},
    "absent": {"type": "list", "elements": "int", "default": [404]},
    **REQUEST,
}
RULES: dict[str, t.Any] = {"required_if": [("value", "json", ("jmespath",)), ("value", "header", ("header",))]}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    check_url(source["url"])
    if not 1 <= source["samples"] <= 1000:
        raise ValueError(f"samples is {source['samples']}; it goes from 1 to 1000")
    if not 0 < source["quantile"] < 1:
        raise ValueError(f"quantile is {source['quantile']}; it lies between 0 and 1")
    if source["timeout"] is not None and not 0 < source["timeout"] <= MAX_TIMEOUT:
        raise ValueError(f"timeout is {source['timeout']:g}; it is a number of seconds above 0, at most {MAX_TIMEOUT}")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    part = {"json": source.get("jmespath"), "header": source.get("header")}.get(source["value"], source["value"])
    method = "POST " if source.get("body") is not None else ""
    return f"http {method}{without_credentials(source['url'])} {part}"


def fetch(context: Context, source: t.Mapping[str, t.Any], url: str) -> Answer:
    """One request with the source's headers and secrets."""
    headers = {name: str(value) for name, value in source["headers"].items()}
    for name, named in source["secret_headers"].items():
        scheme, variable = secret_of(named)
        headers[name] = scheme + context.secret(variable)
    timeout, body = _timeout(context, source), source.get("body")
    if body is None:
        return get(url, headers, timeout, source["validate_certs"], source["ca_path"])
    return send("POST", url, body, headers, timeout, source["validate_certs"], source["ca_path"])


def _timeout(context: Context, source: t.Mapping[str, t.Any]) -> float:
    return float(source.get("timeout") or context.timeout)


def secret_of(named: t.Any) -> tuple[str, str]:
    """What goes before a header's secret, such as a scheme, and its variable: `Bearer vritti_llm_api_key`."""
    scheme, space, variable = str(named).rpartition(" ")
    return scheme + space, variable


def identity(source: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """What makes two requests the same."""
    return tuple(str(source.get(key)) for key in ("url", "body", "timeout", *REQUEST))


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Ask as often as samples says, and give the value that was asked for."""
    url = source["url"]
    shown = f"{'GET' if source['body'] is None else 'POST'} {without_credentials(url)}"
    answers = context.once(
        ("http", identity(source), source["samples"]),
        lambda: _sample(context, source),
    )
    last: Answer = answers[-1]
    if last.status in source["absent"]:
        raise Absent(f"{shown} answers {last.status}: this deployment does not have it.")
    evidence: dict[str, t.Any] = {"status": last.status}
    kind = source["value"]
    if kind == "status":
        return {"value": last.status, "evidence": {"total_ms": round(last.total * 1000, 2)}}
    if kind == "header":
        return {"value": last.headers.get(source["header"].lower()), "evidence": evidence}
    if kind == "json":
        bodies = [_body(shown, answer) for answer in answers]
        if source["samples"] == 1:
            return {"outcome": "json", "value": bodies[0], "evidence": evidence}
        if sum(len(answer.body) for answer in answers) > MAX_JSON:
            raise NoAnswer(f"{shown}: {len(answers)} answers are larger than {MAX_JSON // 1024} KiB.", "size")
        return {"outcome": "json", "value": bodies, "evidence": {**evidence, "answers": len(bodies)}}
    times = {part: sorted(getattr(answer, part) for answer in answers) for part in ("connect", "first_byte", "total")}
    evidence["timing_ms"] = {
        part: {"min": _ms(values[0]), "median": _ms(values[len(values) // 2]), "max": _ms(values[-1])}
        for part, values in times.items()
    }
    chosen = times[kind]
    note = f"quantile {source['quantile']:g} of {len(chosen)} own timings of {shown}"
    return {
        "value": chosen[min(len(chosen) - 1, int(len(chosen) * source["quantile"]))],
        "evidence": evidence,
        "note": note,
    }


def _body(shown: str, answer: Answer) -> t.Any:
    if not 200 <= answer.status < 300:
        raise NoAnswer(f"{shown} answers {answer.status}{_hint(answer.status)}.", "status")
    try:
        return json.loads(answer.body[: MAX_JSON + 1])
    except ValueError:
        kind = answer.content_type or "no content type"
        raise NoAnswer(f"{shown} answers {answer.status} with {kind} instead of JSON.", "content") from None


def _sample(context: Context, source: t.Mapping[str, t.Any]) -> list[Answer]:
    """As many answers as asked for, or as the time for one look allows of a slow service."""
    ends = time.monotonic() + _timeout(context, source)
    answers = [fetch(context, source, source["url"])]
    while len(answers) < source["samples"] and time.monotonic() + answers[-1].total < ends:
        answers.append(fetch(context, source, source["url"]))
    return answers


def _hint(status: int) -> str:
    return " (wrong or missing credentials)" if status in (401, 403) else ""


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)

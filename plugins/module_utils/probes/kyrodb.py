# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe kyrodb: ask an instance itself over gRPC, because what Vritti says of it may be old or wrong."""

from __future__ import annotations

import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import check_url
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

SPEC: dict[str, t.Any] = {
    "value": {
        "type": "str",
        "choices": ["answers", "status", "wal", "latency", "p99", "dimension"],
        "default": "status",
    },
    "samples": {"type": "int", "default": 3},
    "secret_api_key": {"type": "str"},
    **kyrodb.CONNECTION_SPEC,
}
RULES: dict[str, t.Any] = {}
# What a dead or foreign port means is certain; anything else leaves the question open.
_DOWN = ("connection", "timeout", "protocol")


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    kyrodb.parse_address(source["address"])
    if source["http_url"]:
        check_url(source["http_url"])
    if not 1 <= source["samples"] <= 100:
        raise ValueError(f"samples is {source['samples']}; it goes from 1 to 100")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    calls = {"p99": "Metrics p99_latency_ms", "dimension": "GetConfig embedding_dimension"}
    return f"kyrodb {source['address']} {calls.get(source['value'], 'Health')}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Ask the instance once for all checks that look at it."""
    secret = source["secret_api_key"]
    endpoint = kyrodb.Endpoint(
        api_key=(context.secret(secret) or None) if secret else None,
        **{key: source[key] for key in kyrodb.CONNECTION_SPEC},
    )
    kind = source["value"]
    if kind == "dimension":
        found = context.once(("dimension", endpoint), lambda: kyrodb.dimension(endpoint, context.timeout))
        return {"value": found, "evidence": {"address": source["address"]}}
    try:
        seen = context.once(("kyrodb", endpoint), lambda: kyrodb.ask(endpoint, context.timeout, source["samples"]))
    except NoAnswer as error:
        wrong_service = source["service"] != kyrodb.SERVICE and error.kind == "protocol"
        if kind == "answers" and error.kind in _DOWN and not wrong_service:
            return {"value": False, "evidence": {"error": str(error)}, "note": str(error)}
        raise
    limits = f": {seen['note']}" if seen["note"] else ""
    evidence: dict[str, t.Any] = {
        key: seen[key] for key in ("status", "components", "version", "uptime_seconds", "transport", "latency_ms")
    }
    metrics = seen["metrics"] or {}
    if kind == "answers":
        return {"value": True, "evidence": evidence, "note": seen["note"]}
    if kind == "latency":
        return {
            "value": seen["latency_ms"] / 1000,
            "evidence": {"address": source["address"], "calls": seen["samples"], "transport": seen["transport"]},
            "note": seen["note"],
        }
    if kind == "status":
        return {"value": seen["status"], "evidence": evidence, "note": seen["note"]}
    if kind == "wal":
        if "wal" not in seen["components"]:
            raise NoAnswer(
                f"KyroDB at {source['address']} says nothing of its write-ahead log{limits}.",
                "no data",
            )
        return {"value": seen["components"]["wal"], "evidence": evidence, "note": seen["note"]}
    if "p99_latency_ms" not in metrics:
        raise NoAnswer(
            f"KyroDB at {source['address']} gives no latency percentiles{limits}.",
            "no data",
        )
    return {
        "value": metrics["p99_latency_ms"] / 1000,
        "samples": metrics.get("total_queries"),
        "evidence": {"address": source["address"], **metrics},
        "note": "KyroDB's own measurement since it started",
    }

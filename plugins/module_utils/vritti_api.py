# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's HTTP API as an operator uses it: JSON in, an object out, a sentence for the rest. Nothing is retried."""

from __future__ import annotations

import json
import re
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import http_client
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

BREAKER = "circuit breaker open"
# What a customer's id may be; anything else must not get into a path.
_CUSTOMER = re.compile(r"[a-z0-9][a-z0-9-]{1,48}[a-z0-9]")
_DISCARDED = "admin, test, dummy, example or your-api-key-here"


def check_customer(customer: str) -> None:
    """Raise ValueError with a sentence for what is no customer's id."""
    if not _CUSTOMER.fullmatch(customer):
        raise ValueError(f"customer is {customer!r}; an id has 3 to 50 lower case letters, digits and hyphens")


def check_options(url: str, admin_api_key: str, customer: str, timeout: float) -> None:
    """Raise ValueError with a sentence for what the types of these, which several modules have, cannot say."""
    http_client.check_url(url)
    check_customer(customer)
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout:g}; it is a number of seconds above 0")
    if not admin_api_key:
        raise ValueError("admin_api_key is empty; give Vritti's admin key, from a vault")


class Failed(Exception):
    """A request that was not answered as it should be; the message is one sentence."""

    def __init__(self, message: str, status: int | None, seconds: float) -> None:
        super().__init__(message)
        self.status = status
        self.seconds = seconds

    @property
    def maybe_done(self) -> bool:
        return self.status is None or self.status >= 500


class Api:
    """One Vritti. `changed` tells whether something that may have changed it was sent."""

    def __init__(self, url: str, admin_api_key: str, timeout: float) -> None:
        self.url = url.rstrip("/")
        self.shown = http_client.without_credentials(self.url)
        self.changed = False
        self._admin_api_key = admin_api_key
        self._timeout = timeout

    def admin(
        self, method: str, path: str, wanted: int | tuple[int, ...], body: t.Any = None
    ) -> tuple[dict[str, t.Any], int, float]:
        # Which of the two is read depends on the route and on Vritti's version.
        key = self._admin_api_key
        headers = {"X-Admin-API-Key": key, "X-Admin-Key": key}
        return self.request(method, path, wanted, body, headers, "check admin_api_key")

    def request(
        self,
        method: str,
        path: str,
        wanted: int | tuple[int, ...],
        body: t.Any = None,
        headers: t.Mapping[str, str] | None = None,
        unauthorized: str = "check the key",
    ) -> tuple[dict[str, t.Any], int, float]:
        """The object in the answer, its status and the seconds that it took."""
        began = time.monotonic()
        try:
            if method == "GET":
                answer = http_client.get(f"{self.url}{path}", headers, self._timeout)
            else:
                answer = http_client.send(method, f"{self.url}{path}", body, headers, self._timeout)
        except NoAnswer as error:
            # It may have come as far as Vritti.
            self.changed = self.changed or method != "GET"
            raise Failed(str(error), None, round(time.monotonic() - began, 3)) from None
        self.changed = self.changed or (method != "GET" and not 400 <= answer.status < 500)
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        seconds = round(answer.total, 3)
        accepted = wanted if isinstance(wanted, tuple) else (wanted,)
        if answer.status not in accepted:
            shown = f"{method} {self.shown}{path.partition('?')[0]}"
            detail = self._detail(answer.body, found, headers or {})
            hint = _hint(answer.status, detail, unauthorized)
            raise Failed(
                f"{shown} answers {answer.status} and not {accepted[0]}{detail and ': '}{detail}{hint}.",
                answer.status,
                seconds,
            )
        return (found if isinstance(found, dict) else {}), answer.status, seconds

    def _detail(self, body: bytes, found: t.Any, headers: t.Mapping[str, str]) -> str:
        """What the service says of an error, as it may be shown: without a key, whichever it repeats."""
        detail = (found.get("detail") or found.get("error")) if isinstance(found, dict) else None
        if detail is None:
            detail = body.decode("utf-8", "replace")
        text = detail if isinstance(detail, str) else json.dumps(detail)
        return " ".join(mask_text(text, [*headers.values(), self._admin_api_key]).split())[:300].rstrip(". ")


def _hint(status: int, detail: str, unauthorized: str) -> str:
    if BREAKER in detail:
        return "; restart Vritti, whose circuit breaker does not close again by itself"
    if status == 401 and "not configured" in detail:
        return (
            f"; set its ADMIN_API_KEY and restart it: one that contains {_DISCARDED} is discarded without an error "
            "that anybody sees"
        )
    if status == 422 and "missing" in detail and re.search("x-admin-(api-)?key", detail, re.IGNORECASE):
        return "; the header was sent, so what stands between here and Vritti takes it away"
    if status in (401, 403):
        return f"; {unauthorized}"
    return ""

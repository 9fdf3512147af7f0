# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's customers: `python -m lab.clients regular|spike|rate-limited|bad-keys|bad-bodies URL KEYS_FILE [RATE]`."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 5.0
REGULAR_WORKERS = 8
CAPTURE_SHARE = 0.04
# So that a lab that is forgotten does not fill its disk: after these, one capture every now and then.
CAPTURES_AT_FULL_RATE = 240
SECONDS_BETWEEN_LATER_CAPTURES = 30.0
# A customer may search 200 times a minute: regular traffic stays well below.
RATE_PER_CUSTOMER = 2.5
SPIKE_WORKERS = 32
SPIKE_RATE = 150.0
MAX_SPIKE_SECONDS = 1800.0
LIMITED_WORKERS = 4
MISTAKEN_RATE = 20.0

_GOALS = (
    "deploy the payment service to the staging cluster",
    "run the database migration for the orders table",
    "build the container image of the web frontend",
)
_TOOLS = ("kubectl", "alembic", "docker")
_ERRORS = (
    "Error from server (Forbidden): pods is forbidden for this user",
    "sqlalchemy.exc.OperationalError: connection refused by server",
    "failed to solve: process did not complete, exit code 137",
)


@dataclass(frozen=True)
class Customer:
    customer_id: str
    api_key: str


class Connection:
    """One keep-alive connection; whatever goes wrong is the service's business and shows there."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, customer: Customer, body: dict[str, Any]) -> int | None:
        """The status, or None without an answer."""
        headers = {"X-API-Key": customer.api_key, "Content-Type": "application/json"}
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
            self._connection.request("POST", path, json.dumps(body), headers)
            response = self._connection.getresponse()
            response.read()
            return response.status
        except (OSError, http.client.HTTPException):
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            time.sleep(0.5)
            return None


def search(connection: Connection, customer: Customer) -> int | None:
    goal = random.choices(_GOALS, weights=(6, 3, 1))[0]
    body = {"goal": goal, "k": 5, "min_similarity": 0.1, "current_state": {"region": "eu-1"}}
    return connection.post("/api/v1/search", customer, body)


def capture(connection: Connection, customer: Customer) -> int | None:
    kind = random.randrange(len(_GOALS))
    body = {
        "goal": _GOALS[kind],
        "tool_chain": [_TOOLS[kind]],
        "actions_taken": [f"{_TOOLS[kind]} run", "inspect the output"],
        "error_trace": _ERRORS[kind],
        "error_class": "dependency_error",
        "tags": ["lab"],
        "environment_info": {"region": random.choice(("eu-1", "us-1"))},
    }
    return connection.post("/api/v1/capture", customer, body)


class Pacer:
    """Hands out evenly spaced turns to all workers; turns that were missed are not made up for."""

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            moment = time.monotonic()
            turn = max(self._next, moment - self._interval)
            self._next = turn + self._interval
        if turn > moment:
            time.sleep(turn - moment)


class CaptureBudget:
    """Whether the next request may be a capture."""

    def __init__(self) -> None:
        self._granted = 0
        self._last = 0.0
        self._lock = threading.Lock()

    def grant(self) -> bool:
        if random.random() >= CAPTURE_SHARE:
            return False
        with self._lock:
            moment = time.monotonic()
            if self._granted >= CAPTURES_AT_FULL_RATE and moment - self._last < SECONDS_BETWEEN_LATER_CAPTURES:
                return False
            self._granted += 1
            self._last = moment
            return True


def _run(workers: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def regular(url: str, customers: list[Customer], rate: float) -> None:
    """Searches with some captures, well inside everybody's limits, for ever."""
    customers = customers[: max(6, round(rate / RATE_PER_CUSTOMER))]
    pacer, captures = Pacer(rate), CaptureBudget()

    def work() -> None:
        connection = Connection(url)
        while True:
            pacer.wait()
            customer = random.choice(customers)
            (capture if captures.grant() else search)(connection, customer)

    _run(REGULAR_WORKERS, work)


def spike(url: str, customers: list[Customer]) -> None:
    """Many searches at once; a few customers send most of them and run into their limits."""
    weights = [1.0 / (position + 1) for position in range(len(customers))]
    pacer, end = Pacer(SPIKE_RATE), time.monotonic() + MAX_SPIKE_SECONDS

    def work() -> None:
        connection = Connection(url)
        while time.monotonic() < end:
            pacer.wait()
            search(connection, random.choices(customers, weights)[0])

    _run(SPIKE_WORKERS, work)


def rate_limited(url: str, customers: list[Customer]) -> None:
    """The last customer searches as fast as it can, and slowly once it is refused."""
    customer, end = customers[-1], time.monotonic() + MAX_SPIKE_SECONDS

    def work() -> None:
        connection = Connection(url)
        while time.monotonic() < end:
            if search(connection, customer) != 200:
                time.sleep(1.0)

    _run(LIMITED_WORKERS, work)


def mistaken(customers: list[Customer], send: Callable[[Customer], int | None]) -> None:
    """A customer's client after a release that went wrong."""
    pacer, end = Pacer(MISTAKEN_RATE), time.monotonic() + MAX_SPIKE_SECONDS
    while time.monotonic() < end:
        pacer.wait()
        send(random.choice(customers))


def bad_keys(url: str, customers: list[Customer]) -> None:
    connection = Connection(url)
    mistaken(customers, lambda it: search(connection, Customer(it.customer_id, "em_live_" + "0" * 64)))


def bad_bodies(url: str, customers: list[Customer]) -> None:
    connection = Connection(url)
    mistaken(customers, lambda it: connection.post("/api/v1/search", it, {"goal": "test"}))


def main(arguments: list[str]) -> int:
    mode, url, keys_file, *rest = arguments
    entries = json.loads(Path(keys_file).read_text(encoding="utf-8"))["customers"]
    customers = [Customer(entry["customer_id"], entry["api_key"]) for entry in entries]
    if mode == "regular":
        regular(url, customers, float(rest[0]))
    elif mode == "spike":
        spike(url, customers)
    elif mode == "rate-limited":
        rate_limited(url, customers)
    elif mode == "bad-keys":
        bad_keys(url, customers)
    elif mode == "bad-bodies":
        bad_bodies(url, customers)
    else:
        print(f"unknown kind of traffic: {mode}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

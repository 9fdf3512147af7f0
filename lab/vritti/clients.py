# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's customers:

`python -m lab.vritti.clients regular|spike|rate-limited|bad-keys|bad-bodies URL KEYS_FILE [RATE]`.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.clients import Connection, Pacer, run_all

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

    @property
    def key(self) -> dict[str, str]:
        return {"X-API-Key": self.api_key}


def search(connection: Connection, customer: Customer) -> int | None:
    goal = random.choices(_GOALS, weights=(6, 3, 1))[0]
    body = {"goal": goal, "k": 5, "min_similarity": 0.1, "current_state": {"region": "eu-1"}}
    return connection.post("/api/v1/search", body, customer.key)


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
    return connection.post("/api/v1/capture", body, customer.key)


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

    run_all(REGULAR_WORKERS, work)


def spike(url: str, customers: list[Customer]) -> None:
    """Many searches at once; a few customers send most of them and run into their limits."""
    weights = [1.0 / (position + 1) for position in range(len(customers))]
    pacer, end = Pacer(SPIKE_RATE), time.monotonic() + MAX_SPIKE_SECONDS

    def work() -> None:
        connection = Connection(url)
        while time.monotonic() < end:
            pacer.wait()
            search(connection, random.choices(customers, weights)[0])

    run_all(SPIKE_WORKERS, work)


def rate_limited(url: str, customers: list[Customer]) -> None:
    """The last customer searches as fast as it can, and slowly once it is refused."""
    customer, end = customers[-1], time.monotonic() + MAX_SPIKE_SECONDS

    def work() -> None:
        connection = Connection(url)
        while time.monotonic() < end:
            if search(connection, customer) != 200:
                time.sleep(1.0)

    run_all(LIMITED_WORKERS, work)


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
    mistaken(customers, lambda it: connection.post("/api/v1/search", {"goal": "test"}, it.key))


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

# SPDX-License-Identifier: GPL-3.0-or-later
"""The blog's visitors: `python -m lab.wp_chat.clients regular|attack URL [RATE]`."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from typing import Any

from lab.clients import Connection, Pacer, run_all

WORKERS = 4
# Of so many questions one is new, the others are what everybody asks.
NEW_EVERY = 8
# So many that none of them is still in the cache when its turn comes again, and no more files than that.
NEW_QUESTIONS = 2000
# So many that nobody is near a limit of 100 requests an hour, nor of ten for a while.
VISITORS = 1000
ATTACKERS = tuple(f"127.0.66.{number}" for number in range(1, 6))
ATTACK_RATE = 60.0
MAX_ATTACK_SECONDS = 1800.0

_QUESTIONS = (
    "postgres vacuum",
    "backup rotation overview",
    "nginx reverse proxy",
    "python packaging mistakes",
    "kubernetes rolling updates",
    "monitoring percentiles",
    "backup verification checklist",
    "postgres replication in practice",
)


def _ask(url: str, source: str, body: dict[str, Any], user: str) -> int | None:
    """One request on a connection of its own, from an address of its own."""
    connection = Connection(url, source)
    status = connection.post(f"/search?user_id={user}", body, {"User-Agent": "lab-visitor/1.0"})
    connection.close()
    return status


def _visitor(number: int) -> str:
    return f"127.0.{10 + number // 250}.{1 + number % 250}"


def regular(url: str, rate: float) -> None:
    """For ever."""
    pacer, turns, lock = Pacer(rate), itertools.count(), threading.Lock()

    def work() -> None:
        while True:
            pacer.wait()
            with lock:
                turn = next(turns)
            question = _QUESTIONS[turn % len(_QUESTIONS)]
            if turn % NEW_EVERY == NEW_EVERY - 1:
                question += f" {turn // NEW_EVERY % NEW_QUESTIONS}"
            visitor = turn % VISITORS
            _ask(url, _visitor(visitor), {"query": question, "rerank": turn % 2 == 1}, f"visitor-{visitor}")

    run_all(WORKERS, work)


def attack(url: str) -> None:
    pacer, turns, end = Pacer(ATTACK_RATE), itertools.count(), time.monotonic() + MAX_ATTACK_SECONDS
    lock = threading.Lock()

    def work() -> None:
        while time.monotonic() < end:
            pacer.wait()
            with lock:
                turn = next(turns)
            _ask(url, ATTACKERS[turn % len(ATTACKERS)], {"query": _QUESTIONS[0]}, "anonymous")

    run_all(WORKERS, work)


def main(arguments: list[str]) -> int:
    kind, url, *rest = arguments
    if kind == "regular":
        regular(url, float(rest[0]))
    elif kind == "attack":
        attack(url)
    else:
        print(f"unknown kind of traffic: {kind}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

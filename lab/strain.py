# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a process heavy: memory that is never given back, and a thread that never rests."""

from __future__ import annotations

import asyncio
import threading
import time

from lab.faults import ActiveFaults

_LOOK_SECONDS = 0.2
_STEP_BYTES = 4 * 1024 * 1024
# A lab that is forgotten does not heat the machine for ever.
_MAX_BUSY_SECONDS = 600.0
_SLICE_SECONDS = 0.02


class Strain:
    """By the faults of these names, whose amounts are MiB and percent of one core."""

    def __init__(self, faults: ActiveFaults, memory: str, cpu: str, *, at_once: bool = False) -> None:
        self._faults = faults
        # Whether all of the memory is taken in one go, or some with every look.
        self._at_once = at_once
        self._memory, self._cpu = memory, cpu
        self._held: list[bytes] = []
        self._busy: threading.Thread | None = None

    async def run(self) -> None:
        """Look for the faults until cancelled."""
        while True:
            self._leak(self._faults.amount(self._memory) * 1024 * 1024)
            if self._faults.active(self._cpu) and self._busy is None:
                self._busy = threading.Thread(target=self._spin, daemon=True)
                self._busy.start()
            await asyncio.sleep(_LOOK_SECONDS)

    def _leak(self, limit: float) -> None:
        if not limit:
            self._held.clear()
        while limit and len(self._held) * _STEP_BYTES < limit:
            # Written to, because memory that is only reserved is not resident.
            self._held.append(b"\xff" * _STEP_BYTES)
            if not self._at_once:
                break

    def _spin(self) -> None:
        end = time.monotonic() + _MAX_BUSY_SECONDS
        while time.monotonic() < end and self._faults.active(self._cpu):
            rest = _SLICE_SECONDS * (1 - self._faults.amount(self._cpu) / 100)
            until = time.monotonic() + _SLICE_SECONDS - rest
            while time.monotonic() < until:
                pass
            time.sleep(max(0.0, rest))
        self._busy = None

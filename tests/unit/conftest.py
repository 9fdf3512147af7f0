# SPDX-License-Identifier: GPL-3.0-or-later
"""Property tests draw the same examples in every run, so that a failure is there for the next who looks."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as records and findings have them: UTC, ISO 8601, to the second."""

from __future__ import annotations

from datetime import datetime, timezone

_FORM = "%Y-%m-%dT%H:%M:%SZ"


def utc(seconds: float | None) -> str:
    """A time as it is shown; a question mark where it is not known."""
    if not seconds or seconds == float("inf"):
        return "?"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime(_FORM)


def seconds(stamp: str) -> float:
    """Seconds since 1970, or ValueError."""
    return datetime.strptime(stamp, _FORM).replace(tzinfo=timezone.utc).timestamp()

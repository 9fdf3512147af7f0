# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a probe says that it has no value to give, and a module that it does nothing."""

from __future__ import annotations

import typing as t


class NoAnswer(Exception):
    """The source should have answered and did not; the message is one sentence."""

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind


class Absent(Exception):
    """The source does not exist in this deployment; the message says how that was seen."""


class Refused(Exception):
    """It is not done; the message is one sentence that says why and the way out."""

    def __init__(self, message: str, **details: t.Any) -> None:
        super().__init__(message)
        self.details = details

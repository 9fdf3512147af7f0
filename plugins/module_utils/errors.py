# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a probe says that it has no value to give."""

from __future__ import annotations


class NoAnswer(Exception):
    """The source should have answered and did not; the message is one sentence."""

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind


class Absent(Exception):
    """The source does not exist in this deployment; the message says how that was seen."""

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's own cache of what it sends for a module, kept for the next run: packing it anew is a sixth of a run."""

from __future__ import annotations

import os

from ansible import constants
from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """ONCALL_PAYLOADS is the folder; whoever sets it sees to it that no module changes meanwhile."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "payloads"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        os.symlink(os.environ["ONCALL_PAYLOADS"], os.path.join(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache"))

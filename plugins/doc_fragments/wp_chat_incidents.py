# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Where wp_chat and its incidents are; what module_utils/wp_chat_incidents.py takes as Options."""

    DOCUMENTATION = r"""
options:
  url:
    description: Where wp_chat is, seen from the target. Its C(/admin) asks for no key.
    type: str
    default: http://localhost:8080
  port:
    description: The port that it listens on, where that is not the one of O(url), as behind a proxy.
    type: int
  home:
    description: The folder in which wp_chat runs. Empty is wherever what listens on O(port) was started.
    type: str
    default: ""
  path:
    description: The file of its incidents, below O(home) unless it is absolute.
    type: str
    default: logs/incidents.jsonl
  timeout:
    description: The seconds that one request may take.
    type: float
    default: 5.0
"""

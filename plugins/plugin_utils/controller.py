# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that Ansible runs on."""

from __future__ import annotations

import os
import socket

from ansible_collections.oncall.runbooks.plugins.module_utils import protected_addresses


def own_addresses(target: str) -> list[str]:
    """Where the controller comes from, as far as it can tell, and who is connected to it over ssh."""
    found = [*protected_addresses.own_addresses(), *protected_addresses.in_environment(os.environ)]
    texts = [one.text for one in found]
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Sends nothing; the kernel says which address it would take.
            probe.connect(address)
            texts.append(str(probe.getsockname()[0]).partition("%")[0])
    except (OSError, UnicodeError):
        pass
    return list(dict.fromkeys(texts))

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to block, the best one first."""

from __future__ import annotations

from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist import Backend, Run
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_ipset import Ipset
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_iptables import Iptables
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_nftables import Nftables


def backends_of(run: Run) -> list[Backend]:
    return [Nftables(run), Ipset(run), Iptables(run)]

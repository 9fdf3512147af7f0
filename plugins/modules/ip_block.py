#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ip_block
short_description: Block addresses in the kernel, for a while, without locking yourself out
version_added: "0.5.0"
description:
  - Drops everything that comes from some addresses or networks, IPv4 and IPv6, before any other rule, and also what is
    forwarded to containers. What is there of rules stays untouched.
  - With O(ttl) the kernel ends the block by itself; nothing has to run for that, neither here nor on the controller.
  - Addresses that must not be blocked are refused by rule, see RV(refused). Those of this host, its gateways and name
    servers, where this task is connected from, and the controller with who is connected to it, are found out.
  - With O(confirm_within) the addresses are blocked for that long only, until the controller has come in again over a
    new connection. A block that locks you out ends by itself.
author:
  - oncall.runbooks maintainers (@oncall)
requirements:
  - root on the target, with the right to change the network
  - nftables, or ipset and iptables, or iptables
  - conntrack, to cut established connections; without it they are not
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: A line for each address that was asked for, before and after.
options:
  addresses:
    description:
      - IPv4 and IPv6 addresses, and networks with their length, such as V(192.0.2.0/24).
      - Anything else refuses the whole list, such as names, numbers with a leading zero, networks with bits of a host,
        and zones (C(%eth0)). IPv4 that is written as IPv6 (V(::ffff:192.0.2.1)) is taken as IPv4.
      - Of an entry that another one of the list covers, only the wider one is blocked.
    type: list
    elements: str
  state:
    description:
      - V(absent) ends the block of exactly these addresses and networks.
      - V(flushed) removes everything that this module has put there, whoever asked for it.
    type: str
    choices: [present, absent, flushed]
    default: present
  backend:
    description:
      - V(auto) takes the one that already blocks something, or the first of V(nftables), V(ipset) and V(iptables)
        that works. With O(state=absent) and O(state=flushed) it is every one that blocks something.
      - V(nftables) has a table of its own, C(inet oncall_runbooks), which C(nft delete table inet oncall_runbooks)
        removes whole.
      - V(ipset) has the sets C(oncall_runbooks4) and C(oncall_runbooks6), and the chain C(ONCALL_RUNBOOKS_SET) in the
        table C(raw) (C(mangle), where there is no C(raw)) of iptables and ip6tables.
      - V(iptables) has a rule per address in the chain C(ONCALL_RUNBOOKS) of the same tables, which every packet is
        compared with, one after the other. It is for hosts that have nothing else.
    type: str
    choices: [auto, nftables, ipset, iptables]
    default: auto
  ttl:
    description:
      - The seconds after which the kernel ends the block. Without it, it lasts until it is removed or the host is
        rebooted.
      - A block that is there already is renewed when less than half of this is left of it, so that a second run
        changes nothing. It is never shortened.
      - V(ipset) takes at most 2147483 (24 days). V(iptables) ends by the clock of the host, in UTC.
    type: int
  reason:
    description: Why, kept with each entry. With the other fields it is cut at 127 bytes.
    type: str
  incident:
    description: The incident that it is for, kept with each entry, 32 bytes at most.
    type: str
  never_block:
    description:
      - Addresses and networks of any width that must not be blocked, such as monitoring, load balancers, the cluster
        and the VPN.
    type: list
    elements: str
    default: []
  allow_private:
    description: Whether private and link-local addresses may be blocked.
    type: bool
    default: false
  allow_networks:
    description: Networks that may be blocked although they are wider than C(/24) (IPv4) or C(/48) (IPv6).
    type: list
    elements: str
    default: []
  confirm_within:
    description:
      - The seconds within which the controller has to come in over a new connection, for the block to last. Give it
        time for that, such as V(60).
    type: int
  strict:
    description:
      - Whether an address that must not be blocked refuses the whole list, which is right for a list that somebody
        wrote. Without it, for a list out of findings, such addresses are left out and named in RV(refused).
    type: bool
    default: true
  operator_addresses:
    description:
      - Addresses and networks that you come from. It is needed only where they cannot be seen from the target, and the
        module refuses for that.
    type: list
    elements: str
    default: []
  by:
    description: Who blocks, kept with each entry, 32 bytes at most. The action gives the user and the controller.
    type: str
  controller_addresses:
    description: The addresses of the controller, and of who is connected to it. The action gives them.
    type: list
    elements: str
    default: []
  connection:
    description: Whether the task came over the network. The action gives it.
    type: str
    choices: [network, local]
    default: network
  phase:
    description: V(confirm) gives O(addresses) their real O(ttl). The action uses it, after a new connection.
    type: str
    choices: [block, confirm]
    default: block
  earlier_connection:
    description: The connection that O(phase=block) came over, which the one of O(phase=confirm) may not be. The action
      gives it.
    type: list
    elements: str
    default: []
notes:
  - Nothing that a blocked address sends arrives. Services of this host keep their sockets to it until they time out.
  - For a host that is reached over a bastion, a VPN or NAT, the address that the target sees is what is protected.
    Give the others as O(never_block).
  - Restarting C(nftables.service) flushes the whole ruleset, and the blocks with it.
seealso:
  - module: oncall.runbooks.ip_block_info
"""

EXAMPLES = r"""
- name: Block two attackers for a day, on all hosts
  oncall.runbooks.ip_block:
    addresses: [198.51.100.23, "2001:db8:bad::/48"]
    ttl: 86400
    reason: credential stuffing
    incident: INC-2041
    never_block: "{{ monitoring_networks }}"
    confirm_within: 60
  become: true

- name: Block what was found, without what must not be blocked
  oncall.runbooks.ip_block:
    addresses: "{{ offenders }}"
    ttl: 3600
    strict: false
  become: true
  register: blocked

- name: End the block again
  oncall.runbooks.ip_block:
    addresses: "{{ blocked.added }}"
    state: absent
  become: true
"""

RETURN = r"""
added:
  description: What was not blocked and is now.
  type: list
  elements: str
  returned: success
  sample: ["198.51.100.23", "2001:db8:bad::/48"]
removed:
  description: What is not blocked any more.
  type: list
  elements: str
  returned: success
  sample: []
present:
  description: What was blocked already, by an entry of its own or by a network, also by one of the same list.
  type: list
  elements: str
  returned: success
  sample: []
renewed:
  description: What was blocked for less than half of O(ttl), and is now for all of it.
  type: list
  elements: str
  returned: success
  sample: []
refused:
  description: What must not be blocked and was left out.
  type: list
  elements: dict
  returned: success, and when the list is refused for it
  contains:
    address:
      description: The entry.
      type: str
      sample: 192.0.2.1
    rule:
      description:
        - V(loopback), V(unspecified), V(multicast), V(broadcast), V(private), V(too_wide), V(host), V(gateway),
          V(resolver), V(connection), V(controller), V(operator) or V(never_block).
      type: str
      sample: gateway
    why:
      description: The same in words.
      type: str
      sample: it is a gateway of this host
still_blocked:
  description: With O(state=absent), what a network goes on blocking.
  type: list
  elements: dict
  returned: success
  contains:
    address:
      description: The entry.
      type: str
      sample: 198.51.100.23
    network:
      description: The network.
      type: str
      sample: 198.51.100.0/24
backend:
  description: What blocks; several are separated by commas, and null is none.
  type: str
  returned: success
  sample: nftables
expires_at:
  description: When the first of the addresses that were asked for ends (UTC); null where none ends by itself.
  type: str
  returned: success
  sample: "2026-11-28T03:00:00Z"
established:
  description: What became of the connections of what was added; null where nothing was.
  type: dict
  returned: success
  contains:
    cut:
      description: Whether the kernel has forgotten them.
      type: bool
      sample: true
    connections:
      description: How many; null where that is not known.
      type: int
      sample: 3
    note:
      description: Why they were not cut.
      type: str
      sample: null
confirmed:
  description:
    - Whether it was confirmed for O(confirm_within), over a new connection where the task came over the network.
    - Null where that was not asked for, or not needed.
  type: bool
  returned: success
  sample: true
after_reboot:
  description: What a reboot does, in a sentence; null where nothing is blocked with.
  type: str
  returned: success
  sample: A reboot removes it, and so does whatever flushes the whole ruleset, such as a restart of nftables.service.
repaired:
  description: Why what was there already was not in force, as after somebody has flushed the rules of iptables, which
    was put right; or null.
  type: str
  returned: success
  sample: nothing leads to the chain ONCALL_RUNBOOKS of iptables
confirmation:
  description: What the action needs to confirm. It takes it out of the result.
  type: dict
  returned: to the action, with O(confirm_within)
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import (
    addresses,
    blocklist,
    clock,
    procfs,
    protected_addresses,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_all import backends_of
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

LISTS = ("added", "removed", "present", "renewed")


def _check(options: dict[str, t.Any]) -> None:
    """Raise Refused for what the types cannot say."""
    for name in ("ttl", "confirm_within"):
        if options[name] is not None and options[name] < 1:
            raise Refused(f"{name} is {options[name]}; it is a number of seconds above 0, or left out.")
    if options["state"] == "flushed" and options["addresses"]:
        raise Refused("flushed removes everything; leave out addresses, or use absent.")
    within = options["confirm_within"]
    if options["ttl"] is not None and within is not None and within >= options["ttl"]:
        raise Refused(f"confirm_within is {within} and ttl {options['ttl']}; it has to be shorter than ttl.")


def _texts(blocks: t.Iterable[addresses.Block]) -> list[str]:
    return [one.text for one in blocks]


def _empty() -> dict[str, t.Any]:
    return {
        **{name: [] for name in LISTS},
        "refused": [],
        "still_blocked": [],
        "backend": None,
        "expires_at": None,
        "established": None,
        "confirmed": None,
        "after_reboot": None,
        "repaired": None,
    }


def _present(
    module: AnsibleModule, run: blocklist.Run, wanted: list[addresses.Block], options: dict[str, t.Any]
) -> dict[str, t.Any]:
    protected, connection = protected_addresses.all_of(
        os.getpid(),
        options["connection"] == "network",
        options["controller_addresses"],
        options["operator_addresses"],
        options["never_block"],
    )
    allowed, forbidden = addresses.sift(
        wanted,
        protected,
        options["allow_private"],
        addresses.parse(options["allow_networks"], "allow_networks"),
    )
    refused = [one.told() for one in forbidden]
    if forbidden and options["strict"]:
        more = f" So it is with {len(forbidden) - 1} more, see refused." if len(forbidden) > 1 else ""
        raise Refused(f"{forbidden[0].sentence}{more} Nothing was changed.", refused=refused)
    kept, covered = addresses.merge(allowed)
    backend, _holding = blocklist.choose(backends_of(run), options["backend"])
    by = options["by"] or os.environ.get("SUDO_USER") or procfs.user(os.geteuid())
    comment = blocklist.comment(time.time(), by, options["incident"], options["reason"])
    within, ttl = options["confirm_within"], options["ttl"]
    if options["phase"] == "confirm":
        sockets = _texts_of(connection)
        if options["connection"] == "network" and set(sockets) & set(options["earlier_connection"]):
            raise blocklist.Failed("The connection is the one from before, so it proves nothing")
        blocklist.confirm(backend, kept, ttl, comment)
        return {**_empty(), "changed": True, "backend": backend.name, "expires_at": _end(ttl)}
    change = blocklist.block(backend, kept, ttl, comment, within, module.check_mode)
    written = [*change.added, *change.renewed]
    result = {
        **_empty(),
        "changed": bool(written or change.repaired),
        "repaired": change.repaired,
        "added": _texts(change.added),
        "renewed": _texts(change.renewed),
        "present": _texts([*change.present, *covered]),
        "refused": refused,
        "backend": backend.name,
        "expires_at": clock.utc(change.expires) if change.expires is not None else None,
        "after_reboot": backend.after_reboot,
    }
    if change.added and not module.check_mode:
        result["established"] = blocklist.cut_connections(run, change.added)
    if change.pending and not module.check_mode:
        result["confirmation"] = {"pending": _texts(change.pending), "sockets": _texts_of(connection)}
    if module._diff:
        until = f" until {_end(ttl)}" if ttl is not None else ""
        there = _texts([*change.present, *covered])
        result["diff"] = _diff(
            [*there, *(f"{one} (ends soon)" for one in result["renewed"])],
            [*there, *(f"{one}{until}" for one in [*result["renewed"], *result["added"]])],
        )
    return result


def _end(ttl: int | None) -> str | None:
    return clock.utc(time.time() + ttl) if ttl is not None else None


def _texts_of(connection: protected_addresses.Connection) -> list[str]:
    return [one.text for one in connection.sockets]


def _diff(before: t.Iterable[str], after: t.Iterable[str]) -> dict[str, str]:
    return {
        "before": "".join(f"{line}\n" for line in sorted(before)),
        "after": "".join(f"{line}\n" for line in sorted(after)),
    }


def _remove(
    module: AnsibleModule, run: blocklist.Run, unwanted: list[addresses.Block] | None, wanted: str
) -> dict[str, t.Any]:
    """Remove these, or all, from every backend that has something."""
    _backend, holding = blocklist.choose(backends_of(run), wanted)
    removed: dict[addresses.Block, None] = {}
    still: dict[addresses.Block, addresses.Block] = {}
    for backend in holding:
        if unwanted is None:
            removed.update(dict.fromkeys(blocklist.flush(backend, module.check_mode)))
        else:
            done = blocklist.unblock(backend, unwanted, module.check_mode)
            removed.update(dict.fromkeys(done.removed))
            still.update(done.still)
    for one, network in still.items():
        module.warn(f"{one.text} stays blocked, for it is in {network.text}.")
    result = {
        **_empty(),
        # Where there is nothing in it, the table itself is still removed.
        "changed": bool(removed) or (unwanted is None and bool(holding)),
        "removed": _texts(removed),
        "still_blocked": [{"address": one.text, "network": network.text} for one, network in still.items()],
        "backend": ",".join(backend.name for backend in holding) or None,
    }
    if module._diff:
        result["diff"] = _diff(result["removed"], [])
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "addresses": {"type": "list", "elements": "str"},
            "state": {"type": "str", "choices": ["present", "absent", "flushed"], "default": "present"},
            "backend": {"type": "str", "choices": ["auto", "nftables", "ipset", "iptables"], "default": "auto"},
            "ttl": {"type": "int"},
            "reason": {"type": "str"},
            "incident": {"type": "str"},
            "never_block": {"type": "list", "elements": "str", "default": []},
            "allow_private": {"type": "bool", "default": False},
            "allow_networks": {"type": "list", "elements": "str", "default": []},
            "confirm_within": {"type": "int"},
            "strict": {"type": "bool", "default": True},
            "operator_addresses": {"type": "list", "elements": "str", "default": []},
            "by": {"type": "str"},
            "controller_addresses": {"type": "list", "elements": "str", "default": []},
            "connection": {"type": "str", "choices": ["network", "local"], "default": "network"},
            "phase": {"type": "str", "choices": ["block", "confirm"], "default": "block"},
            "earlier_connection": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "present", ("addresses",)), ("state", "absent", ("addresses",))],
        supports_check_mode=True,
    )
    options = module.params

    run = blocklist.runner(module.run_command)
    try:
        _check(options)
        wanted = addresses.parse(options["addresses"] or [])
        if options["state"] == "present":
            result = _present(module, run, wanted, options)
        else:
            result = _remove(module, run, wanted if options["state"] == "absent" else None, options["backend"])
    except Refused as error:
        module.fail_json(msg=str(error), **error.details)
    except (NoAnswer, blocklist.Failed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must never be blocked on this host, from /proc: its addresses, gateways and resolvers, and who is connected."""

from __future__ import annotations

import os
import re
import struct
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.addresses import BITS, Block, Protected, block, parse
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

RESOLVERS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_VARIABLES = ("SSH_CONNECTION", "SSH_CLIENT")


class Socket(t.NamedTuple):
    """An established TCP connection of a process, by where it comes from."""

    peer: Block
    port: int

    @property
    def text(self) -> str:
        return f"{self.peer.text} port {self.port}"


class Connection(t.NamedTuple):
    """Who is connected through the processes above; `sockets` are those of the nearest that has any."""

    sockets: list[Socket]
    peers: list[Block]


def _or_nothing(path: str) -> str:
    try:
        return procfs.read(path)
    except OSError:
        return ""


def from_words(number: str) -> Block:
    """An address as /proc/net/tcp and /proc/net/route have it: words of 32 bits in the machine's order."""
    raw = b"".join(struct.pack("=I", int(number[at : at + 8], 16)) for at in range(0, len(number), 8))
    version = 4 if len(raw) == 4 else 6
    return block(Block(version, int.from_bytes(raw, "big"), BITS[version]).text)


def local_in_fib_trie(text: str) -> list[Block]:
    """Addresses that the host takes for its own."""
    found: dict[Block, None] = {}
    address = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"]:
            found[block(address)] = None
    return list(found)


def local_in_if_inet6(text: str) -> list[Block]:
    return [Block(6, int(line.split()[0], 16), BITS[6]) for line in text.splitlines() if line.strip()]


def gateways_in_route(text: str) -> list[Block]:
    numbers = [line.split()[2] for line in text.splitlines()[1:] if line.strip()]
    return [from_words(number) for number in numbers if int(number, 16)]


def gateways_in_ipv6_route(text: str) -> list[Block]:
    numbers = [int(line.split()[4], 16) for line in text.splitlines() if line.strip()]
    return [Block(6, number, BITS[6]) for number in numbers if number]


def resolvers_in(text: str) -> list[Block]:
    found = []
    for word in re.findall(r"^\s*nameserver\s+(\S+)", text, re.MULTILINE):
        try:
            found.append(block(word.partition("%")[0]))
        except ValueError:
            continue
    return found


def established_in(text: str) -> dict[str, Socket]:
    """Established connections of /proc/net/tcp or tcp6, by the inode of their socket."""
    found = {}
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == procfs.ESTABLISHED:
            address, _colon, port = words[2].partition(":")
            found[words[9]] = Socket(from_words(address), int(port, 16))
    return found


def own_addresses() -> list[Block]:
    """The addresses of this network namespace's interfaces."""
    return [
        *local_in_fib_trie(_or_nothing("/proc/net/fib_trie")),
        *local_in_if_inet6(_or_nothing("/proc/net/if_inet6")),
    ]


def _inodes(pid: int) -> set[str]:
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found


def in_environment(environment: t.Mapping[str, str]) -> list[Block]:
    """Where somebody came from over ssh."""
    found = []
    for name in _VARIABLES:
        words = environment.get(name, "").split()
        try:
            found.append(block(words[0].partition("%")[0]))
        except (IndexError, ValueError):
            continue
    return found


def _environment(pid: int) -> dict[str, str]:
    # Only the variables that are asked for are kept; others may hold secrets.
    pairs = (word.partition("=") for word in _or_nothing(f"/proc/{pid}/environ").split("\0"))
    return {name: value for name, _equals, value in pairs if name in _VARIABLES}


def connection(pid: int) -> Connection:
    """Follow the parents up: sudo takes SSH_CONNECTION away, and not the socket of the process that sshd started."""
    nearest: list[Socket] = []
    peers: dict[Block, None] = {}
    tables: dict[str, dict[str, Socket]] = {}
    for above in [pid, *procfs.ancestors(pid)]:
        peers.update(dict.fromkeys(in_environment(_environment(above))))
        inodes = _inodes(above)
        if not inodes:
            continue
        try:
            namespace = os.readlink(f"/proc/{above}/ns/net")
        except OSError:
            continue
        if namespace not in tables:
            tables[namespace] = {
                **established_in(_or_nothing(f"/proc/{above}/net/tcp")),
                **established_in(_or_nothing(f"/proc/{above}/net/tcp6")),
            }
        sockets = sorted(tables[namespace][inode] for inode in inodes if inode in tables[namespace])
        nearest = nearest or sockets
        peers.update(dict.fromkeys(one.peer for one in sockets))
    return Connection(nearest, list(peers))


def of_host() -> list[Protected]:
    """What this host needs to be reached and to work; NoAnswer where its own addresses cannot be seen."""
    own = own_addresses()
    if not own:
        raise NoAnswer("/proc/net/fib_trie does not tell this host's own addresses, so nothing is blocked.")
    gateways = [
        *gateways_in_route(_or_nothing("/proc/net/route")),
        *gateways_in_ipv6_route(_or_nothing("/proc/net/ipv6_route")),
    ]
    resolvers = [one for path in RESOLVERS for one in resolvers_in(_or_nothing(path))]
    found = [
        *(Protected(one, "host", "an address of this host") for one in own),
        *(Protected(one, "gateway", "a gateway of this host") for one in gateways),
        *(Protected(one, "resolver", "a name server of this host") for one in resolvers),
    ]
    return list(dict.fromkeys(found))


def all_of(
    pid: int,
    over_network: bool,
    controller: t.Iterable[str] = (),
    operator: t.Iterable[str] = (),
    never_block: t.Iterable[str] = (),
) -> tuple[list[Protected], Connection]:
    """Everything that must not be blocked; refused where it is not known who would be locked out."""
    found = connection(pid)
    named = parse(operator, "operator_addresses")
    if over_network and not found.peers and not named:
        raise Refused(
            "Nothing was changed: this task came over the network, and no process above it has a TCP connection that "
            "may be seen, so it is not known whom a block would lock out. Give operator_addresses, the addresses that "
            "you come from."
        )
    protected = [
        *(Protected(one, "connection", "where this task is connected from") for one in found.peers),
        *(Protected(one, "operator", "one of operator_addresses") for one in named),
        *(Protected(one, "controller", "an address of the controller or of who uses it") for one in _sound(controller)),
        *of_host(),
        *(Protected(one, "never_block", "one of never_block") for one in parse(never_block, "never_block")),
    ]
    return list(dict.fromkeys(protected)), found


def _sound(texts: t.Iterable[str]) -> list[Block]:
    return [one for text in texts for one in parse([text.partition("%")[0]], "controller_addresses")]

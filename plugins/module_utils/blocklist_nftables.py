# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block with nftables: a table of our own, removed whole by `nft delete table inet oncall_runbooks`.

Single addresses are in a hash set per family, networks in one per family and length. No set has intervals: to add to
one of those, nft reads all that is in it. The set `lengths` names the sets of networks (24 for v4_24, 148 for v6_48),
because to list a chain, or even the names of tables, nft 1.0 reads the elements of every set there is.
"""

from __future__ import annotations

import re
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import blocklist
from ansible_collections.oncall.runbooks.plugins.module_utils.addresses import BITS, Block
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist import NAME, Entry, Failed
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

TABLE = f"inet {NAME}"
CHAIN = "blocked"
# Before connection tracking and everything that accepts, and for what is forwarded to containers as well.
PRIORITY = -310
_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
_HEADERS = {4: "ip", 6: "ip6"}
_IPV6_LENGTH = 100
# One command for very many elements would repeat them all in an error's message.
_CHUNK = 1000
_SET = re.compile(r"\n\tset (\w+) \{(.*?)\n\t\}", re.DOTALL)
_ELEMENT = re.compile(
    r"[{,]\s+([0-9a-fA-F.:]+)(?: timeout (\w+))?(?: expires (\w+))?(?: comment \"([^\"]*)\")?(?=,| \})"
)
_UNITS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def set_of(one: Block) -> str:
    return f"v{one.version}" if one.single else f"v{one.version}_{one.length}"


def duration(text: str) -> float:
    """Seconds of `1h2m3s4ms`."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[wdhms])", text))


def parse(text: str, now: float) -> list[Entry]:
    """The elements of our sets as `nft list` prints them."""
    found = []
    for name, content in _SET.findall(text):
        version, _line, length = name[1:].partition("_")
        if not re.fullmatch(r"v[46](_\d+)?", name):
            continue
        number = int(version)
        bits = int(length or BITS[number])
        for address, timeout, expires, comment in _ELEMENT.findall(content):
            one = blocklist.parsed(address)
            if one is not None:
                ends = now + duration(expires or timeout) if timeout else None
                # Not read as a text of its own: an IPv6 one may look like mapped IPv4.
                found.append(Entry(Block(number, one.number, bits), ends, comment))
    return found


def mask(one: Block) -> str:
    number = ((1 << one.length) - 1) << (BITS[one.version] - one.length)
    return Block(one.version, number, BITS[one.version]).address


class Nftables:
    name = "nftables"
    after_reboot = (
        "A reboot removes it, and so does whatever flushes the whole ruleset, such as a restart of nftables.service."
    )

    def __init__(self, run: blocklist.Run) -> None:
        self._nft = blocklist.Tool(run, "nft")
        self._lengths: set[int] | None = None
        self._listed = ""

    def _write(self, script: t.Iterable[str]) -> None:
        status, output, errors = self._nft("-f", "-", text="\n".join([*script, ""]))
        if status:
            told = f"nftables took nothing of it: {blocklist.said(errors, output)}."
            if "File exists" in errors:
                raise FileExistsError(told)
            if "No such file or directory" in errors:
                raise FileNotFoundError(told)
            raise Failed(told)

    def holds(self) -> bool:
        status, output, errors = self._nft("-n", "list", "set", *TABLE.split(), "lengths")
        if status == 0:
            inside = output.partition("elements = {")[2].partition("}")[0]
            self._lengths = {int(number) for number in re.findall(r"\d+", inside)}
            return True
        self._lengths = None
        if "No such file or directory" not in errors:
            raise NoAnswer(f"nftables does not work here ({blocklist.said(errors)}).", "no data")
        return False

    def entries(self) -> list[Entry]:
        self._listed = ""
        if not self.holds():
            return []
        status, output, errors = self._nft("-n", "list", "table", *TABLE.split())
        if status:
            raise Failed(f"nftables does not list its table {TABLE}: {blocklist.said(errors)}.")
        self._listed = output
        return parse(output, time.time())

    def broken(self) -> str | None:
        sets = [name for name, _content in _SET.findall(self._listed) if re.fullmatch(r"v[46](_\d+)?", name)]
        chain = self._listed.partition(f"\tchain {CHAIN} {{")[2]
        if all(f"@{name} " in chain for name in sets) and (not sets or "hook prerouting" in chain):
            return None
        return f"the chain {CHAIN} of the table {TABLE} has lost its rules"

    def known(self, wanted: t.Sequence[Block]) -> list[Entry] | None:
        """Networks, of which there are few; whether an address is there, `create` tells."""
        if not self.holds():
            return []
        found = []
        for length in sorted(self._lengths or ()):
            version = 6 if length >= _IPV6_LENGTH else 4
            name = f"v{version}_{length - _IPV6_LENGTH if version == 6 else length}"
            status, output, errors = self._nft("-n", "list", "set", *TABLE.split(), name)
            if status:
                raise Failed(f"nftables does not list its set {name}: {blocklist.said(errors)}.")
            found += parse(output, time.time())
        return found

    def create(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        try:
            self._write([*self._layout(blocks), *_elements("create", blocks, ttl, comment)])
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Somebody has removed the table since.
            self._lengths = None
            self._write([*self._layout(blocks), *_elements("create", blocks, ttl, comment)])
        return True

    def apply(self, remove: t.Sequence[Block], put: t.Sequence[Block], ttl: int | None, comment: str) -> None:
        self.holds()
        # To delete what may have ended by now, it is added first.
        self._write(
            [
                *self._layout(put, whole=True),
                *_elements("add", [*remove, *put]),
                *_elements("delete", [*remove, *put]),
                *_elements("add", put, ttl, comment),
            ]
        )

    def confirm(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        try:
            self._write([*_elements("delete", blocks), *_elements("add", blocks, ttl, comment)])
        except FileNotFoundError:
            return False
        return True

    def flush(self) -> None:
        if self.holds():
            self._write([f"delete table {TABLE}"])

    def _layout(self, blocks: t.Iterable[Block], whole: bool = False) -> list[str]:
        """The table, and the sets and rules that these want; nothing where all is there."""
        wanted = {one.length + (_IPV6_LENGTH if one.version == 6 else 0) for one in blocks if not one.single}
        if self._lengths is not None and wanted <= self._lengths and not whole:
            return []
        lengths = wanted | (self._lengths or set())
        script = [f"add table {TABLE}", f"add set {TABLE} lengths {{ type inet_service; }}"]
        rules = []
        networks = [Block(6, 0, one - _IPV6_LENGTH) if one >= _IPV6_LENGTH else Block(4, 0, one) for one in lengths]
        for one in [Block(4, 0, BITS[4]), Block(6, 0, BITS[6]), *sorted(networks)]:
            name, header = set_of(one), _HEADERS[one.version]
            script.append(f"add set {TABLE} {name} {{ type {_TYPES[one.version]}; flags timeout; }}")
            part = "" if one.single else f" & {mask(one)}"
            rules.append(f"add rule {TABLE} {CHAIN} {header} saddr{part} @{name} counter drop")
        script.append(
            f"add chain {TABLE} {CHAIN} {{ type filter hook prerouting priority {PRIORITY}; policy accept; }}"
        )
        script += [f"flush chain {TABLE} {CHAIN}", *rules]
        if lengths:
            script.append(f"add element {TABLE} lengths {{ {', '.join(map(str, sorted(lengths)))} }}")
        return script


def _elements(verb: str, blocks: t.Sequence[Block], ttl: int | None = None, comment: str = "") -> list[str]:
    ending = (f" timeout {ttl}s" if ttl is not None else "") + (f' comment "{comment}"' if comment else "")
    by_set: dict[str, list[str]] = {}
    for one in blocks:
        by_set.setdefault(set_of(one), []).append(one.address + ending)
    return [
        f"{verb} element {TABLE} {name} {{ {', '.join(members[at : at + _CHUNK])} }}"
        for name, members in by_set.items()
        for at in range(0, len(members), _CHUNK)
    ]

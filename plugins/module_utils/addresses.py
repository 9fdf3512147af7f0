# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of addresses to block: what is an address, in which one form it goes on, and which must never be in a list."""

from __future__ import annotations

import bisect
import re
import socket
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused

BITS = {4: 32, 6: 128}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
# Wider ones have to be allowed by name.
WIDEST = {4: 24, 6: 48}
# What Python, the C library and the firewalls read as numbers differs (010 is 8 or 10), so only one form is taken.
_OCTET = r"(?:0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_MAPPED = 0xFFFF << 32


class Block(t.NamedTuple):
    """A network; a single address is one of full length. They sort by version, place and width, the widest first."""

    version: int
    number: int
    length: int

    @property
    def single(self) -> bool:
        return self.length == BITS[self.version]

    @property
    def last(self) -> int:
        return self.number | ((1 << (BITS[self.version] - self.length)) - 1)

    @property
    def address(self) -> str:
        return socket.inet_ntop(_FAMILY[self.version], self.number.to_bytes(BITS[self.version] // 8, "big"))

    @property
    def text(self) -> str:
        """The canonical form, without a length where it is a single address."""
        return self.address if self.single else f"{self.address}/{self.length}"

    def overlaps(self, other: Block) -> bool:
        return self.version == other.version and self.number <= other.last and other.number <= self.last

    def covers(self, other: Block) -> bool:
        return self.version == other.version and self.number <= other.number and other.last <= self.last


class Protected(t.NamedTuple):
    """What must not be blocked, by which rule, and what that is in words."""

    block: Block
    rule: str
    what: str


def _number(text: str) -> tuple[int, int] | None:
    """The version and the number of an address; None where it is none."""
    if _IPV4.fullmatch(text):
        return 4, int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
    if ":" not in text:
        return None
    try:
        return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
    except (OSError, ValueError):
        return None


def _mapped(block: Block) -> Block:
    """IPv4 written as IPv6 (::ffff:192.0.2.1) is what arrives as IPv4."""
    if block.version == 6 and block.length >= 96 and block.number >> 32 == _MAPPED >> 32:
        return Block(4, block.number & 0xFFFFFFFF, block.length - 96)
    return block


def block(entry: t.Any) -> Block:
    """One entry, or ValueError with what is wrong with it and the way out."""
    if not isinstance(entry, str):
        raise ValueError("it is not a text; write an IPv4 or IPv6 address, or a network, in quotes")
    text = entry.strip()
    if not text:
        raise ValueError("it is empty; leave it out")
    address, slash, length = text.partition("/")
    found = _number(address)
    if found is None:
        raise ValueError(_why_not(address))
    version, number = found
    bits = BITS[version]
    if not slash:
        return _mapped(Block(version, number, bits))
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", length) or int(length) > bits:
        raise ValueError(f"the part after / is a length from 0 to {bits}; netmasks and ranges are not taken")
    whole = Block(version, number, int(length))
    start = number & ~((1 << (bits - whole.length)) - 1)
    if start != number:
        network, host = Block(version, start, whole.length), Block(version, number, bits)
        raise ValueError(
            f"it has bits of a host; write {network.text} for the network, or {host.text} for the one address"
        )
    return _mapped(whole)


def _why_not(address: str) -> str:
    if "%" in address and _number(address.partition("%")[0]):
        return "it has a zone (what stands after %), which only this host understands; write the address without it"
    parts = address.split(".")
    if len(parts) == 4 and all(re.fullmatch("[0-9]+", part) for part in parts):
        if any(len(part) > 1 and part[0] == "0" for part in parts):
            return "a number in it begins with 0, which some programs read as octal; write it without"
        return "a number in it is above 255; write an IPv4 address such as 192.0.2.1"
    if re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", address) and re.search(r"[A-Za-z]", address):
        return "it is a name, and names are not looked up; write the addresses that it stands for"
    return "it is neither an address nor a network; write one such as 192.0.2.1, 192.0.2.0/24 or 2001:db8::1"


def parse(entries: t.Iterable[t.Any], name: str = "addresses") -> list[Block]:
    """The entries in their order, each once; one that is no address refuses the whole list."""
    found: dict[Block, None] = {}
    for entry in entries:
        try:
            found[block(entry)] = None
        except ValueError as error:
            shown = repr(entry if len(repr(entry)) <= 80 else f"{entry!s:.60}...")
            raise Refused(f"{name} has {shown}: {error}. Nothing was changed.") from None
    return list(found)


def merge(blocks: t.Iterable[Block]) -> tuple[list[Block], list[Block]]:
    """Those that no other one covers, in order of addresses, and those that one does."""
    kept: list[Block] = []
    covered: list[Block] = []
    # Networks are nested or apart, so only the latest that was kept can cover the next.
    for one in sorted(set(blocks)):
        (covered if kept and kept[-1].covers(one) else kept).append(one)
    return kept, covered


class Overlaps:
    """Finds what overlaps a block among many, in logarithmic time."""

    def __init__(self, blocks: t.Iterable[Block]) -> None:
        self._by_version: dict[int, tuple[list[int], list[int]]] = {}
        kept, _covered = merge(blocks)
        for version in BITS:
            spans = [one for one in kept if one.version == version]
            # Apart from one another, so ends rise with starts.
            self._by_version[version] = ([one.number for one in spans], [one.last for one in spans])

    def any(self, one: Block) -> bool:
        starts, ends = self._by_version[one.version]
        place = bisect.bisect_right(starts, one.last)
        return place > 0 and ends[place - 1] >= one.number


class Covers:
    """Finds the networks that cover a block."""

    def __init__(self, blocks: t.Iterable[Block]) -> None:
        self._blocks = set(blocks)
        self._lengths = sorted({(one.version, one.length) for one in self._blocks})

    def of(self, one: Block) -> list[Block]:
        """Those that cover it and are wider, the widest first."""
        found = []
        for version, length in self._lengths:
            if version == one.version and length < one.length:
                wider = Block(version, one.number & ~((1 << (BITS[version] - length)) - 1), length)
                if wider in self._blocks:
                    found.append(wider)
        return found


def _fixed(rule: str, *networks: tuple[str, str]) -> list[Protected]:
    return [Protected(block(network), rule, what) for network, what in networks]


# Not `is_private` of Python, which counts the networks for documentation and more, and differs by version.
NEVER = [
    *_fixed("loopback", ("127.0.0.0/8", "loopback"), ("::1", "loopback")),
    *_fixed("unspecified", ("0.0.0.0/8", "this network"), ("::", "the unspecified address")),
    *_fixed("multicast", ("224.0.0.0/4", "multicast"), ("ff00::/8", "multicast")),
    *_fixed("broadcast", ("255.255.255.255", "broadcast")),
]
PRIVATE = _fixed(
    "private",
    ("10.0.0.0/8", "a private range"),
    ("172.16.0.0/12", "a private range"),
    ("192.168.0.0/16", "a private range"),
    ("100.64.0.0/10", "the range that providers share out behind NAT"),
    ("169.254.0.0/16", "link-local"),
    ("fe80::/10", "link-local"),
    ("fc00::/7", "a private range"),
)
_WAYS_OUT = {
    "private": "leave it out, or set allow_private",
    "too_wide": "leave it out, or name it in allow_networks",
    "never_block": "leave it out of one of the two",
}


class Forbidden(t.NamedTuple):
    """An entry that must not be blocked, the rule that says so, and that in words."""

    block: Block
    rule: str
    why: str

    @property
    def sentence(self) -> str:
        return f"{self.block.text} must not be blocked: {self.why}; {_WAYS_OUT.get(self.rule, 'leave it out')}."

    def told(self) -> dict[str, str]:
        return {"address": self.block.text, "rule": self.rule, "why": self.why}


def sift(
    blocks: t.Iterable[Block],
    protected: t.Sequence[Protected],
    allow_private: bool = False,
    allow_networks: t.Container[Block] = (),
) -> tuple[list[Block], list[Forbidden]]:
    """Those that may be blocked, in their order, and those that may not."""
    rules = [*NEVER, *protected, *([] if allow_private else PRIVATE)]
    overlaps = Overlaps(rule.block for rule in rules)
    allowed, forbidden = [], []
    for one in blocks:
        if overlaps.any(one):
            rule = next(rule for rule in rules if rule.block.overlaps(one))
            how = "it is" if rule.block == one else f"it has {rule.block.text} in it,"
            if rule.block.covers(one) and rule.block != one:
                how = f"it is in {rule.block.text},"
            forbidden.append(Forbidden(one, rule.rule, f"{how} {rule.what}"))
        elif one.length < WIDEST[one.version] and one not in allow_networks:
            forbidden.append(Forbidden(one, "too_wide", f"it is wider than /{WIDEST[one.version]}"))
        else:
            allowed.append(one)
    return allowed, forbidden

# SPDX-License-Identifier: GPL-3.0-or-later
"""What is an address, and what must never be in a list: examples, and properties against Python's own ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import addresses
from ansible_collections.oncall.runbooks.plugins.module_utils.addresses import Block, Protected
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused


def texts(blocks):
    return [one.text for one in blocks]


def parse(*entries):
    return addresses.parse(entries)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("198.51.100.7", "198.51.100.7"),
        (" 198.51.100.7\n", "198.51.100.7"),
        ("198.51.100.7/32", "198.51.100.7"),
        ("198.51.100.0/24", "198.51.100.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("2001:db8::1/128", "2001:db8::1"),
        ("2001:db8::/48", "2001:db8::/48"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("::ffff:c633:6407", "198.51.100.7"),
        ("::ffff:198.51.100.0/120", "198.51.100.0/24"),
        ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_one_form(entry, text):
    assert texts(parse(entry)) == [text]


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("example.org", "it is a name"),
        ("localhost", "it is a name"),
        ("999.1.1.1", "above 255"),
        ("1.2.3.256", "above 255"),
        ("1.2.3.4; rm -rf /", "neither an address nor a network"),
        ("$(id)", "neither"),
        ("010.1.2.3", "begins with 0"),
        ("1.2.3.04", "begins with 0"),
        ("1.2.3", "neither"),
        ("16909060", "neither"),
        ("0x1.2.3.4", "it is a name"),
        ("1.2.3.4/", "a length from 0 to 32"),
        ("1.2.3.4/33", "a length from 0 to 32"),
        ("1.2.3.4/024", "a length from 0 to 32"),
        ("1.2.3.0/255.255.255.0", "netmasks"),
        ("1.2.3.4/24", "write 1.2.3.0/24 for the network, or 1.2.3.4 for the one address"),
        ("2001:db8::1/48", "write 2001:db8::/48 for the network, or 2001:db8::1 for the one address"),
        ("2001:db8::/129", "a length from 0 to 128"),
        ("fe80::1%eth0", "it has a zone"),
        ("2001:db8::g", "neither"),
        ("1.2.3.4 5.6.7.8", "neither"),
        ("1.2.3.4-9", "neither"),
        ("\u0661.2.3.4", "neither"),
        ("1.2.3.4\0", "neither"),
        ("2001:db8::1\0", "neither"),
        ("\udc80::1", "neither"),
        ("", "it is empty"),
        ("  ", "it is empty"),
        (16909060, "it is not a text"),
        (None, "it is not a text"),
        (b"1.2.3.4", "it is not a text"),
        (["1.2.3.4"], "it is not a text"),
    ],
)
def test_garbage_refuses_the_whole_list(entry, why):
    with pytest.raises(Refused) as raised:
        parse("198.51.100.7", entry)
    sentence = str(raised.value)
    assert why in sentence
    assert repr(entry) in sentence
    assert sentence.endswith("Nothing was changed.")
    assert "\n" not in sentence


def test_a_long_entry_is_cut_in_the_sentence():
    with pytest.raises(Refused) as raised:
        parse("x" * 5000)
    assert len(str(raised.value)) < 250


def test_each_once_and_only_the_widest():
    blocks = parse(
        "198.51.100.7", "198.51.100.7/32", "198.51.100.0/24", "198.51.100.0/25", "198.51.101.1", "2001:db8::1"
    )
    assert len(blocks) == 5
    kept, covered = addresses.merge(blocks)
    assert texts(kept) == ["198.51.100.0/24", "198.51.101.1", "2001:db8::1"]
    assert texts(covered) == ["198.51.100.0/25", "198.51.100.7"]


def sift(entry, protected=(), **options):
    allowed, forbidden = addresses.sift(parse(entry), list(protected), **options)
    assert len(allowed) + len(forbidden) == 1
    return forbidden[0] if forbidden else None


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("127.0.0.53", "loopback"),
        ("127.0.0.0/8", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("0.0.0.0/0", "loopback"),
        ("::/0", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
    ],
)
def test_never(entry, rule):
    for options in ({}, {"allow_private": True, "allow_networks": parse(entry)}):
        assert sift(entry, **options).rule == rule


@pytest.mark.parametrize(
    "entry",
    [
        "10.0.0.1",
        "172.31.255.255",
        "192.168.1.0/24",
        "100.64.0.1",
        "169.254.169.254",
        "fe80::1",
        "fd00::1",
        "fc00::/48",
    ],
)
def test_private_unless_allowed(entry):
    found = sift(entry)
    assert found.rule == "private"
    assert "allow_private" in found.sentence
    assert sift(entry, allow_private=True) is None


@pytest.mark.parametrize(
    "entry", ["203.0.113.0/24", "198.18.0.1", "192.0.0.8", "172.32.0.1", "240.0.0.1", "2001:db8::/48"]
)
def test_what_python_calls_private_and_is_not(entry):
    assert sift(entry) is None


def test_wide_networks_are_allowed_by_name():
    assert sift("198.51.0.0/16").rule == "too_wide"
    assert "wider than /24" in sift("198.51.0.0/23").sentence
    assert sift("2001:db8::/47").rule == "too_wide"
    assert sift("198.51.0.0/16", allow_networks=parse("198.51.0.0/16")) is None
    assert sift("198.51.0.0/17", allow_networks=parse("198.51.0.0/16")).rule == "too_wide"


def test_overlaps_in_both_directions():
    gateway = Protected(addresses.block("198.51.100.1"), "gateway", "a gateway of this host")
    vpn = Protected(addresses.block("203.0.112.0/20"), "never_block", "one of never_block")
    assert sift("198.51.100.1", [gateway, vpn]).why == "it is a gateway of this host"
    assert sift("198.51.100.0/24", [gateway, vpn]).why == "it has 198.51.100.1 in it, a gateway of this host"
    found = sift("203.0.113.9", [gateway, vpn])
    assert found.told() == {
        "address": "203.0.113.9",
        "rule": "never_block",
        "why": "it is in 203.0.112.0/20, one of never_block",
    }
    assert sift("198.51.100.2", [gateway, vpn]) is None
    assert sift("198.51.101.0/24", [gateway, vpn]) is None


# Few bits vary, so that what is drawn meets.
V4 = st.integers(0, 255).map(lambda last: (3325256704 & ~255) | last)
V6 = st.integers(0, 255).map(lambda last: (0x20010DB8 << 96) | last)


def _network(version, number, length):
    bits = addresses.BITS[version]
    return Block(version, number & ~((1 << (bits - length)) - 1), length)


BLOCKS = st.one_of(
    st.builds(_network, st.just(4), V4, st.integers(20, 32)), st.builds(_network, st.just(6), V6, st.integers(116, 128))
)
ANY = st.one_of(
    st.builds(_network, st.just(4), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(_network, st.just(6), st.integers(0, 2**128 - 1), st.integers(0, 128)),
)


def python(one):
    return ipaddress.ip_network(f"{one.address}/{one.length}")


@given(ANY)
def test_the_canonical_form_is_python_s(one):
    text = one.text
    assert ipaddress.ip_network(text) == python(one)
    again = addresses.block(text)
    assert again == addresses._mapped(one)
    assert addresses.block(again.text) == again


@given(st.text())
def test_any_text_is_an_address_or_refused(text):
    try:
        one = addresses.block(text)
    except ValueError as error:
        assert str(error)
        return
    assert ipaddress.ip_network(one.text)


@given(st.lists(BLOCKS, max_size=30))
def test_merging_loses_and_adds_nothing(blocks):
    kept, covered = addresses.merge(blocks)
    assert set(kept) | set(covered) == set(blocks)
    assert not set(kept) & set(covered)
    for one in kept:
        assert not any(other != one and other.covers(one) for other in blocks)
    for one in covered:
        assert any(other.covers(one) for other in kept)
    for version, kind in ((4, ipaddress.IPv4Network), (6, ipaddress.IPv6Network)):
        mine = [python(one) for one in kept if one.version == version]
        oracle = list(ipaddress.collapse_addresses(python(one) for one in blocks if one.version == version))
        # Python joins neighbours as well.
        assert list(ipaddress.collapse_addresses(mine)) == oracle
        assert all(isinstance(one, kind) for one in mine)


@given(st.lists(BLOCKS, max_size=20), BLOCKS)
def test_looking_up_is_comparing_with_all(blocks, one):
    assert addresses.Overlaps(blocks).any(one) == any(
        python(one).version == python(other).version and python(one).overlaps(python(other)) for other in blocks
    )
    wider = [other for other in set(blocks) if other != one and other.covers(one)]
    assert sorted(addresses.Covers(blocks).of(one)) == sorted(wider)


@given(
    st.lists(st.one_of(BLOCKS, ANY), max_size=30),
    st.lists(BLOCKS, min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_the_operator_still_gets_in(blocks, operators, allow_private, allow_all):
    """For any operator and any list, whatever is allowed: nothing that is blocked touches what is protected."""
    protected = [Protected(one, "operator", "the operator") for one in operators]
    allowed, forbidden = addresses.sift(blocks, protected, allow_private, blocks if allow_all else ())
    assert sorted([*allowed, *(one.block for one in forbidden)]) == sorted(blocks)
    kept, _covered = addresses.merge(allowed)
    for one in kept:
        for rule in [*protected, *addresses.NEVER, *([] if allow_private else addresses.PRIVATE)]:
            assert not (one.version == rule.block.version and python(one).overlaps(python(rule.block)))
        assert allow_all or one.length >= addresses.WIDEST[one.version]

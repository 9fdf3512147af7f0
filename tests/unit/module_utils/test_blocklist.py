# SPDX-License-Identifier: GPL-3.0-or-later
"""What a list comes to beside what is blocked, and the texts of the programs. The kernel is in integration."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import (
    addresses,
    blocklist,
    blocklist_ipset,
    blocklist_iptables,
    blocklist_nftables,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.addresses import Block
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist import Entry, Failed
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import COLLECTIONS

NOW = 1_795_800_000.0
TIMES = st.one_of(st.none(), st.floats(1, 1000).map(lambda seconds: NOW + seconds))
NUMBERS = st.integers(0, 15)
BLOCKS = st.builds(
    lambda number, length: Block(4, (3325256704 + number) & ~((1 << (32 - length)) - 1), length),
    NUMBERS,
    st.integers(28, 32),
)


def blocks(*texts):
    return addresses.parse(texts)


def texts(found):
    return [one.text for one in found]


def decide(wanted, there, ttl):
    entries = [Entry(addresses.block(text), expires) for text, expires in there.items()]
    found = blocklist.decide(blocks(*wanted), entries, ttl, NOW)
    return texts(found.add), texts(found.renew), texts(found.present)


def test_what_lasts_half_the_time_is_present():
    there = {"198.51.100.1": NOW + 300, "198.51.100.2": NOW + 299, "198.51.100.3": None}
    wanted = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4"]
    assert decide(wanted, there, 600) == (["198.51.100.4"], ["198.51.100.2"], ["198.51.100.1", "198.51.100.3"])
    assert decide(wanted, there, None) == (["198.51.100.4"], ["198.51.100.1", "198.51.100.2"], ["198.51.100.3"])


def test_a_network_stands_for_its_addresses_while_it_lasts():
    assert decide(["198.51.100.1"], {"198.51.100.0/24": NOW + 600}, 600) == ([], [], ["198.51.100.1"])
    assert decide(["198.51.100.1"], {"198.51.100.0/24": NOW + 5}, 600) == (["198.51.100.1"], [], [])
    assert decide(["198.51.100.0/24"], {"198.51.100.1": None}, 600) == (["198.51.100.0/24"], [], [])


@given(st.lists(BLOCKS, unique=True), st.dictionaries(BLOCKS, TIMES), st.one_of(st.none(), st.integers(1, 1000)))
def test_after_it_all_is_blocked_for_long_enough_and_a_second_run_changes_nothing(wanted, there, ttl):
    entries = [Entry(one, ends) for one, ends in there.items()]
    found = blocklist.decide(wanted, entries, ttl, NOW)
    assert sorted([*found.add, *found.renew, *found.present]) == sorted(wanted)
    ends = None if ttl is None else NOW + ttl
    after = {**there, **dict.fromkeys([*found.add, *found.renew], ends)}
    for one in wanted:
        lasting = [end for other, end in after.items() if other.covers(one)]
        assert any(end is None or (ttl is not None and end >= NOW + ttl / 2) for end in lasting)
    again = blocklist.decide(wanted, [Entry(*item) for item in after.items()], ttl, NOW)
    assert (again.add, again.renew) == ([], [])


@given(st.text(), st.text(), st.text())
def test_a_comment_is_read_back_and_harms_no_syntax(by, incident, reason):
    text = blocklist.comment(NOW, by, incident, reason)
    assert len(text.encode()) <= blocklist.COMMENT_BYTES
    assert not set(text) & set('\\"`$\n\r\0')
    parts = blocklist.parts_of(text)
    assert parts["since"] == "2026-11-27T17:20:00Z"
    for name, given_text in (("by", by), ("incident", incident), ("reason", reason)):
        assert (parts[name] or "") in blocklist._clean(given_text)


def test_the_reason_is_what_is_cut():
    parts = blocklist.parts_of(blocklist.comment(NOW, "ann@control-1", "INC-2041", "é" * 200))
    assert (parts["by"], parts["incident"]) == ("ann@control-1", "INC-2041")
    assert parts["reason"].startswith("éééé")
    assert blocklist.parts_of("by hand") == {"since": None, "by": None, "incident": None, "reason": "by hand"}
    assert blocklist.parts_of("")["reason"] is None


NFT = """table inet oncall_runbooks {
\tset lengths {
\t\ttype inet_service
\t\telements = { 24, 148 }
\t}

\tset v4 {
\t\ttype ipv4_addr
\t\tflags timeout
\t\telements = { 198.51.100.1 timeout 10m expires 9m59s996ms comment "x, 9.9.9.9 timeout 1s", 198.51.100.2,
\t\t\t     198.51.100.3 timeout 1d2h expires 1d1h1s comment "{ 8.8.8.8 }" }
\t}

\tset v6 {
\t\ttype ipv6_addr
\t\tflags timeout
\t}

\tset v6_48 {
\t\ttype ipv6_addr
\t\tflags timeout
\t\telements = { 2001:db8:: comment "y" }
\t}

\tchain blocked {
\t\ttype filter hook prerouting priority raw - 10; policy accept;
\t\tip saddr @v4 counter packets 0 bytes 0 drop
\t}
}
"""


def test_what_nft_lists():
    assert blocklist_nftables.parse(NFT, NOW) == [
        Entry(addresses.block("198.51.100.1"), NOW + 599.996, "x, 9.9.9.9 timeout 1s"),
        Entry(addresses.block("198.51.100.2")),
        Entry(addresses.block("198.51.100.3"), NOW + 90001, "{ 8.8.8.8 }"),
        Entry(addresses.block("2001:db8::/48"), None, "y"),
    ]
    assert blocklist_nftables.mask(addresses.block("198.51.100.0/25")) == "255.255.255.128"
    assert blocklist_nftables.mask(addresses.block("2001:db8::/48")) == "ffff:ffff:ffff::"


def test_what_ipset_saves():
    text = (
        "create oncall_runbooks4 hash:net family inet hashsize 1024 maxelem 1048576 timeout 0 comment\n"
        'add oncall_runbooks4 198.51.100.1 timeout 599 comment "it\'s timeout 3"\n'
        "add oncall_runbooks4 198.51.101.0/24 timeout 0\n"
        "add other4 198.51.102.0/24 timeout 0\n"
    )
    assert blocklist_ipset.parse(text, NOW) == [
        Entry(addresses.block("198.51.100.1"), NOW + 599, "it's timeout 3"),
        Entry(addresses.block("198.51.101.0/24")),
    ]


def test_what_iptables_lists():
    chain = "-A ONCALL_RUNBOOKS"
    lines = [
        f'{chain} -s 198.51.100.1/32 -m time --datestop 2026-11-27T17:30:00 -m comment --comment "it\\\'s --datestop" '
        "-j DROP",
        f"{chain} -s 2001:db8::/48 -m comment --comment one -j DROP",
        f"{chain} -s 198.51.100.0/24 -j DROP",
        "-A INPUT -s 10.0.0.1/32 -j DROP",
    ]
    found = blocklist_iptables.parse(lines)
    assert found == [
        Entry(addresses.block("198.51.100.1"), NOW + 600, "it's --datestop"),
        Entry(addresses.block("2001:db8::/48"), None, "one"),
        Entry(addresses.block("198.51.100.0/24")),
    ]
    assert blocklist_iptables.rule(found[2]) == f"{chain} -s 198.51.100.0/24 -j DROP"
    assert blocklist_iptables.rule(found[0]).startswith(
        f"{chain} -s 198.51.100.1/32 -m time --datestop 2026-11-27T17:30:00 -m comment"
    )


class Fake:
    """As far as choosing goes."""

    after_reboot = ""

    def __init__(self, name, holds):
        self.name = name
        self._holds = holds

    def holds(self):
        if isinstance(self._holds, Exception):
            raise self._holds
        return self._holds


def choose(wanted="auto", **holds):
    backend, holding = blocklist.choose([Fake(*item) for item in holds.items()], wanted)
    return backend.name, [one.name for one in holding]


def test_which_backend():
    missing = NoAnswer("nft is not installed.", "no data")
    assert choose(nftables=False, ipset=False) == ("nftables", [])
    assert choose(nftables=False, ipset=True) == ("ipset", ["ipset"])
    assert choose(nftables=True, ipset=True, iptables=True) == ("nftables", ["nftables", "ipset", "iptables"])
    assert choose(nftables=missing, ipset=False) == ("ipset", [])
    assert choose("iptables", nftables=True, iptables=False) == ("iptables", [])
    with pytest.raises(Refused, match=r"^Nothing here can block: nft is not installed\. Nothing was changed\.$"):
        choose(nftables=missing)
    with pytest.raises(NoAnswer, match="takes root"):
        choose(nftables=NoAnswer("nft takes root", "permission"), ipset=True)


def test_a_missing_program_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(blocklist, "_SBIN", str(tmp_path))
    for backend in (blocklist_nftables.Nftables, blocklist_ipset.Ipset, blocklist_iptables.Iptables):
        with pytest.raises(NoAnswer, match="is not installed"):
            backend(None).holds()
    told = blocklist.cut_connections(None, blocks("198.51.100.1"))
    assert (told["cut"], told["connections"]) == (False, None)
    assert "conntrack is not installed" in told["note"]


def test_what_a_program_said_is_one_line():
    errors = "/dev/stdin:1:42-48: Error: Could not process rule: Device or resource busy\ncreate element x\n    ^^^\n"
    assert blocklist.said(errors) == "Error: Could not process rule: Device or resource busy"
    assert blocklist.said("", "") == "no message"
    assert len(blocklist.said("error " * 1000)) <= 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lock in /run")
def test_one_run_at_a_time():
    code = (
        "import sys; from ansible_collections.oncall.runbooks.plugins.module_utils import blocklist\n"
        "with blocklist.alone():\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
    )
    with holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(Failed, match="Another run"), blocklist.alone(0.1):
            pytest.fail("two at a time")
        holder.kill()
    # The kernel gives back what a killed run held.
    with blocklist.alone():
        pass

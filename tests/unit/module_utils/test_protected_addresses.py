# SPDX-License-Identifier: GPL-3.0-or-later
"""What must not be blocked, from the texts of /proc, and from this host with a connection of the test's own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import addresses, protected_addresses
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import COLLECTIONS

LITTLE = pytest.mark.skipif(sys.byteorder != "little", reason="/proc/net has numbers in the machine's order")

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
Local:
  +-- 0.0.0.0/0 3 0 5
        |-- 192.0.2.2
           /32 host LOCAL
"""
IF_INET6 = (
    "20010db8000000000000000000000002 04 40 00 82     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n"
)
ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
IPV6_ROUTE = (
    f"{'20010db8'}{'0' * 24} 40 {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 00000001     eth0\n"
    f"{'0' * 32} 00 {'0' * 32} 00 20010db8{'0' * 23}1 00000400 00000003 00000000 00000003     eth0\n"
)
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000     0        0"
TCP = (
    f"{HEAD}   0: 020200C0:0016 00000000:0000 0A {REST} 11 1 0 100 0 0 10 0\n"
    f"   1: 020200C0:0016 6F6433C6:C350 01 {REST} 12 1 0 20 4 30 10 -1\n"
    f"   2: 020200C0:0016 706433C6:C350 08 {REST} 13 1 0 20 4 30 10 -1\n"
)
TCP6 = f"{HEAD}   0: {'0' * 16}FFFF0000020200C0:0016 {'0' * 16}FFFF0000717133CB:C350 01 {REST} 14 1 0 20 4 30 10 -1\n"


def texts(blocks):
    return [one.text for one in blocks]


@LITTLE
def test_what_proc_tells():
    assert texts(protected_addresses.local_in_fib_trie(FIB_TRIE)) == ["192.0.2.2", "127.0.0.1"]
    assert texts(protected_addresses.local_in_if_inet6(IF_INET6)) == ["2001:db8::2", "::1"]
    assert texts(protected_addresses.gateways_in_route(ROUTE)) == ["192.0.2.1"]
    assert texts(protected_addresses.gateways_in_ipv6_route(IPV6_ROUTE)) == ["2001:db8::1"]
    found = protected_addresses.established_in(TCP)
    assert {inode: one.text for inode, one in found.items()} == {"12": "198.51.100.111 port 50000"}
    # An IPv4 client of a server that listens on :: as well.
    assert [one.text for one in protected_addresses.established_in(TCP6).values()] == ["203.51.113.113 port 50000"]


def test_resolvers():
    text = "# nameserver 9.9.9.9\nnameserver 192.0.2.53\n nameserver fe80::1%eth0\nnameserver nonsense\nsearch a.b\n"
    assert texts(protected_addresses.resolvers_in(text)) == ["192.0.2.53", "fe80::1"]


def test_where_ssh_says_one_comes_from():
    environment = {"SSH_CONNECTION": "198.51.100.9 50000 192.0.2.2 22", "SSH_CLIENT": "fe80::9%eth0 50000 22"}
    assert texts(protected_addresses.in_environment(environment)) == ["198.51.100.9", "fe80::9"]
    assert protected_addresses.in_environment({"SSH_CONNECTION": "", "SSH_CLIENT": "UNKNOWN 1 2"}) == []


def test_this_host():
    rules = protected_addresses.of_host()
    own = [rule.block for rule in rules if rule.rule == "host"]
    assert addresses.block("127.0.0.1") in own
    # What the kernel would send from is an address of the host.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("127.0.0.1", 9))
        assert addresses.block(probe.getsockname()[0]) in own


def test_a_host_that_does_not_tell_its_addresses_blocks_nothing(monkeypatch):
    monkeypatch.setattr(protected_addresses, "_or_nothing", lambda path: "")
    with pytest.raises(NoAnswer, match="nothing is blocked"):
        protected_addresses.of_host()


# As sshd and sudo do: a process holds the connection, and one far below it, without its environment, looks for it.
CHILD = """
import json, os, sys
from ansible_collections.oncall.runbooks.plugins.module_utils import protected_addresses
found = protected_addresses.connection(os.getpid())
print(json.dumps([[one.text for one in found.sockets], [one.text for one in found.peers]]))
"""
PARENT = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, peer = server.accept()
child = [sys.executable, "-c", sys.argv[1]]
clean = ["env", "-i", "PYTHONPATH=" + sys.argv[2]]
print(subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *clean, *child], capture_output=True, text=True).stdout)
"""


def test_the_connection_above_is_found_without_its_environment():
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(COLLECTIONS)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    with process, socket.create_connection(("127.0.0.1", int(process.stdout.readline()))) as client:
        output = process.stdout.read()
        mine = client.getsockname()
    sockets, peers = json.loads(output)
    assert sockets == [f"127.0.0.1 port {mine[1]}"]
    assert "127.0.0.1" in peers


def test_over_the_network_somebody_must_be_seen(monkeypatch):
    nobody = protected_addresses.Connection([], [])
    monkeypatch.setattr(protected_addresses, "connection", lambda pid: nobody)
    with pytest.raises(Refused, match="operator_addresses"):
        protected_addresses.all_of(os.getpid(), over_network=True)
    protected_addresses.all_of(os.getpid(), over_network=False)
    rules, found = protected_addresses.all_of(
        os.getpid(),
        over_network=True,
        operator=["203.0.113.0/24"],
        controller=["198.51.100.9", "fe80::9%eth0"],
        never_block=["192.0.2.0/24"],
    )
    assert found == nobody
    by_rule = {(rule.rule, rule.block.text) for rule in rules}
    assert by_rule >= {
        ("operator", "203.0.113.0/24"),
        ("controller", "198.51.100.9"),
        ("controller", "fe80::9"),
        ("never_block", "192.0.2.0/24"),
        ("host", "127.0.0.1"),
    }
    with pytest.raises(Refused, match="never_block has 'example"):
        protected_addresses.all_of(os.getpid(), over_network=False, never_block=["example.org"])

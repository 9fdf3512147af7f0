# SPDX-License-Identifier: GPL-3.0-or-later
"""ip_block in the kernel: hosts, attackers and an operator as network namespaces, and packets that are really sent.

The operator comes over a NAT that takes the next of its two addresses for every new connection, so that a block can
lock out who is connected.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.network_helpers import PATIENCE, SBIN, Namespace, sh, takes_a_network, until
from tests.integration.playbook_helpers import BIN, REPOSITORY

pytestmark = takes_a_network

ATTACKERS = ("198.51.100.11", "198.51.100.12", "2001:db8:a::11", "2001:db8:a::12")
HOST = {4: "198.51.100.1", 6: "2001:db8:a::1"}
# Behind the host, as a container is.
CONTAINER = {4: "192.0.2.2", 6: "2001:db8:c::2"}
# What the operator looks like from the host, one after the other.
NAT = ("203.0.113.2", "203.0.113.3")
ECHO = r"""
import selectors, socket, sys
watch = selectors.DefaultSelector()
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        one = socket.socket(family, kind)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, 9999))
        if kind == socket.SOCK_STREAM:
            one.listen()
        watch.register(one, selectors.EVENT_READ, kind)
print("ready", flush=True)
while True:
    for key, _mask in watch.select():
        if key.data == socket.SOCK_DGRAM:
            text, sender = key.fileobj.recvfrom(100)
            key.fileobj.sendto(text, sender)
        elif key.data == socket.SOCK_STREAM:
            watch.register(key.fileobj.accept()[0], selectors.EVENT_READ, "client")
        else:
            try:
                text = key.fileobj.recv(100)
            except OSError:
                text = b""
            if text:
                key.fileobj.sendall(text)
            else:
                watch.unregister(key.fileobj)
                key.fileobj.close()
"""
# Which of some pairs of a source and a target get an answer, asked again and again until all have or the time is over.
KNOCK = r"""
import json, select, socket, sys, time
pairs, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
waiting = {}
for source, target in pairs:
    one = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((source, 0))
    waiting[one] = (source, target)
answered, end = [], time.monotonic() + seconds
while waiting and time.monotonic() < end:
    for one, (_source, target) in waiting.items():
        one.sendto(b"x", (target, 9999))
    again = time.monotonic() + 0.3
    while waiting and time.monotonic() < again:
        for one in select.select(list(waiting), [], [], 0.1)[0]:
            one.recv(100)
            answered.append(waiting.pop(one))
print(json.dumps(answered))
"""


def version(address: str) -> int:
    return 6 if ":" in address else 4


class Machine(Namespace):
    """One that answers, or asks from its addresses."""

    def echo(self) -> None:
        process = self.start(sys.executable, "-c", ECHO)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

    def reaches(self, *sources: str, target: Mapping[int, str] | None = None) -> bool:
        """Whether all of these addresses of this machine get answers."""
        return len(self._answered(sources, target, PATIENCE)) == len(sources)

    def is_cut_off(self, *sources: str, target: Mapping[int, str] | None = None) -> bool:
        """Whether none of them does."""
        return not self._answered(sources, target, 0.5)

    def _answered(self, sources: Iterable[str], target: Mapping[int, str] | None, seconds: float) -> list[Any]:
        pairs = [(source, (target or HOST)[version(source)]) for source in sources]
        answered: list[Any] = json.loads(self(sys.executable, "-c", KNOCK, json.dumps(pairs), str(seconds)))
        return answered


class Network:
    """host ── attacker; host ── container; host ── nat ── operator."""

    def __init__(self) -> None:
        self.machines: list[Machine] = []
        # The iptables and ip6tables that are tested with, where one is.
        self.xtables: list[str] = []

    def make(self) -> None:
        self.host = self._add("h")
        self.attacker = self._add("a")
        self.container = self._add("c")
        self.nat = self._add("n")
        self.operator = self._add("o")
        self.host.cable(
            self.attacker,
            [f"{HOST[4]}/24", f"{HOST[6]}/64"],
            [f"{address}/{64 if ':' in address else 24}" for address in ATTACKERS],
        )
        self.host.cable(self.container, ["192.0.2.1/24", "2001:db8:c::1/64"], ["192.0.2.2/24", "2001:db8:c::2/64"])
        self.host.cable(self.nat, ["203.0.113.1/24"], [f"{address}/24" for address in NAT])
        self.nat.cable(self.operator, ["10.99.0.1/24"], ["10.99.0.2/24"])
        for router in (self.host, self.nat):
            router("sysctl", "-q", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for end, version4, version6 in (
            (self.attacker, HOST[4], HOST[6]),
            (self.container, "192.0.2.1", "2001:db8:c::1"),
        ):
            end("ip", "route", "add", "default", "via", version4)
            end("ip", "-6", "route", "add", "default", "via", version6)
        self.operator("ip", "route", "add", "default", "via", "10.99.0.1")
        self.nat(
            "nft",
            "add table ip n; add chain ip n p { type nat hook postrouting priority 100; }; "
            f"add rule ip n p ip saddr 10.99.0.2 counter snat to numgen inc mod 2 map {{ 0: {NAT[0]}, 1: {NAT[1]} }}",
        )
        # What somebody has there already: everything is accepted, what is established first.
        self.host("nft", "-f", "-", input=EXISTING)
        self.host.echo()
        self.container.echo()

    def _add(self, name: str) -> Machine:
        machine = Machine(name)
        self.machines.append(machine)
        return machine

    def remove(self) -> None:
        for machine in self.machines:
            machine.remove()

    def rules(self) -> str:
        """What somebody has there, without counters."""
        found = [self.host("nft", "-s", "list", "table", "inet", "existing")]
        if self.xtables:
            found += [self.host(tool, "-t", table, "-S") for tool in self.xtables for table in ("filter", "raw")]
        return "\n".join(found)


EXISTING = textwrap.dedent("""
    table inet existing {
        chain input {
            type filter hook input priority -400; policy accept;
            ct state established,related accept
            udp dport 9999 accept
        }
    }
""")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.make()
        yield network
    finally:
        network.remove()
    assert f"ipblk{os.getpid()}" not in sh("ip", "netns", "list")


# Every way to block, and of the old and the new iptables each with a set and without.
KINDS = ["nftables", "ipset over nft", "ipset over legacy", "iptables over nft", "iptables over legacy"]


FEWER = pytest.mark.parametrize("backend", ["nftables", "ipset over nft", "iptables over legacy"], indirect=True)


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, network: Network, tmp_path: Path) -> Iterator[str]:
    """Each way to block, with the programs that stand behind it first in PATH."""
    name, _over, flavour = request.param.partition(" over ")
    if flavour:
        multi = shutil.which(f"xtables-{flavour}-multi", path=SBIN)
        assert multi, f"xtables-{flavour}-multi is part of iptables"
        for tool in ("iptables", "ip6tables"):
            for end in ("", "-restore", "-save"):
                (tmp_path / f"{tool}{end}").symlink_to(multi)
        network.xtables = [str(tmp_path / "iptables"), str(tmp_path / "ip6tables")]
    network.host.path = f"{tmp_path}:{SBIN}"
    existing = (("raw", "PREROUTING", "1025"), ("filter", "INPUT", "1026"))
    for verb in ("-A", "-D"):
        for tool in network.xtables:
            for table, chain, port in existing:
                rule = ("-p", "tcp", "--dport", port, "-m", "comment", "--comment", "somebody's", "-j", "ACCEPT")
                network.host(tool, "-t", table, verb, chain, *rule)
        if verb == "-A":
            yield name
            network.host.module(state="flushed")
    network.host.path = SBIN
    network.xtables = []


@pytest.fixture
def host(network: Network) -> Iterator[Machine]:
    yield network.host
    network.host.module(state="flushed")


def test_packets_of_blocked_addresses_are_dropped(network: Network, backend: str) -> None:
    host, attacker = network.host, network.attacker
    before = network.rules()
    assert attacker.reaches(*ATTACKERS)
    assert attacker.reaches(*ATTACKERS, target=CONTAINER)
    options = {
        "addresses": [ATTACKERS[0], ATTACKERS[2]],
        "backend": backend,
        "ttl": 600,
        "reason": 'it\'s "bad"; $(id) `id` | \\ é',
        "incident": "INC-1",
        "by": "ann@control",
    }
    foreseen = host.module(**options, _ansible_check_mode=True, _ansible_diff=True)
    assert attacker.reaches(ATTACKERS[0])
    assert host.entries() == []
    done = host.module(**options, _ansible_diff=True)
    assert done["added"] == foreseen["added"] == [ATTACKERS[0], ATTACKERS[2]]
    assert (done["changed"], foreseen["changed"], done["backend"], foreseen["backend"]) == (
        True,
        True,
        backend,
        backend,
    )
    assert done["diff"]["before"] == ""
    assert ATTACKERS[0] in done["diff"]["after"]
    assert done["expires_at"].endswith("Z")
    assert attacker.is_cut_off(ATTACKERS[0], ATTACKERS[2])
    assert attacker.is_cut_off(ATTACKERS[0], ATTACKERS[2], target=CONTAINER)
    for tool in network.xtables:
        first = [line for line in host(tool, "-t", "raw", "-S", "PREROUTING").splitlines() if line.startswith("-A")]
        assert "ONCALL_RUNBOOKS" in first[0]
        assert "1025" in first[1]
    assert attacker.reaches(ATTACKERS[1], ATTACKERS[3])
    entries = {entry["address"]: entry for entry in host.entries()}
    assert list(entries) == [ATTACKERS[0], ATTACKERS[2]]
    for entry in entries.values():
        assert (entry["by"], entry["incident"], entry["backend"]) == ("ann@control", "INC-1", backend)
        assert entry["reason"] == "it's 'bad'; (id) id é"
        assert entry["since"] < entry["expires_at"]
    again = host.module(**options)
    assert (again["changed"], again["added"], again["present"]) == (False, [], [ATTACKERS[0], ATTACKERS[2]])
    # The one that holds something is the one for auto.
    more = host.module(addresses=[ATTACKERS[1], ATTACKERS[0]], ttl=600)
    assert (more["backend"], more["added"], more["present"]) == (backend, [ATTACKERS[1]], [ATTACKERS[0]])
    gone = host.module(addresses=[ATTACKERS[0], "198.51.100.99"], state="absent", _ansible_diff=True)
    assert (gone["removed"], gone["changed"], gone["diff"]["after"]) == ([ATTACKERS[0]], True, "")
    assert attacker.reaches(ATTACKERS[0])
    assert attacker.is_cut_off(ATTACKERS[1])
    assert not host.module(addresses=[ATTACKERS[0]], state="absent")["changed"]
    flushed = host.module(state="flushed")
    assert (flushed["removed"], flushed["changed"]) == ([ATTACKERS[1], ATTACKERS[2]], True)
    assert attacker.reaches(*ATTACKERS)
    assert not host.module(state="flushed")["changed"]
    assert network.rules() == before


@FEWER
def test_networks_and_what_they_cover(network: Network, backend: str) -> None:
    host, attacker = network.host, network.attacker
    options = {"backend": backend, "ttl": 600}
    wide = ["198.51.100.8/29", "198.51.100.12", "2001:db8:a::10/124"]
    done = host.module(addresses=wide, **options)
    assert (done["added"], done["present"]) == (["198.51.100.8/29", "2001:db8:a::10/124"], ["198.51.100.12"])
    assert attacker.is_cut_off(*ATTACKERS)
    again = host.module(addresses=[ATTACKERS[0], "2001:db8:a::10/124"], **options)
    assert (again["changed"], again["present"]) == (False, [ATTACKERS[0], "2001:db8:a::10/124"])
    absent = host.module(addresses=[ATTACKERS[0]], state="absent")
    assert (absent["changed"], absent["still_blocked"]) == (
        False,
        [{"address": ATTACKERS[0], "network": "198.51.100.8/29"}],
    )
    # A block for longer than the network's is one of its own.
    assert host.module(addresses=[ATTACKERS[0]], backend=backend)["added"] == [ATTACKERS[0]]
    assert host.module(addresses=["198.51.100.8/29"], state="absent")["removed"] == ["198.51.100.8/29"]
    assert attacker.is_cut_off(ATTACKERS[0])
    assert attacker.reaches(ATTACKERS[1])
    renewed = host.module(addresses=["2001:db8:a::10/124"], backend=backend, ttl=6000)
    assert (renewed["changed"], renewed["renewed"]) == (True, ["2001:db8:a::10/124"])
    kept = host.module(addresses=[ATTACKERS[0]], backend=backend, ttl=60)
    assert (kept["changed"], kept["present"], kept["expires_at"]) == (False, [ATTACKERS[0]], None)


@FEWER
def test_a_block_ends_by_itself(network: Network, backend: str) -> None:
    host, attacker = network.host, network.attacker
    host.module(addresses=[ATTACKERS[0], ATTACKERS[2]], ttl=2, backend=backend)
    until(lambda: host.entries() == [])
    assert attacker.reaches(ATTACKERS[0], ATTACKERS[2])
    assert host.module(addresses=[ATTACKERS[0]], ttl=600, backend=backend)["added"] == [ATTACKERS[0]]
    assert [entry["address"] for entry in host.entries()] == [ATTACKERS[0]]


def test_established_connections(host: Machine, network: Network) -> None:
    code = (
        "import socket, sys; one = socket.create_connection(('198.51.100.1', 9999), 10, (sys.argv[1], 0));"
        "one.sendall(b'a'); print(one.recv(1).decode(), flush=True); sys.stdin.readline(); one.settimeout(1);"
        "one.sendall(b'b')\ntry:\n  print(one.recv(1).decode())\nexcept OSError:\n  print('nothing')"
    )
    client = subprocess.Popen(
        network.attacker.command(sys.executable, "-c", code, ATTACKERS[0]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": SBIN},
    )
    try:
        assert client.stdout
        assert client.stdout.readline() == "a\n"
        done = host.module(addresses=["198.51.100.0/28"], ttl=600, never_block=[])
        assert done["failed"], "the network has an address of the host itself"
        done = host.module(addresses=[ATTACKERS[0], "198.51.100.200"], ttl=600)
        assert done["established"]["cut"]
        assert done["established"]["connections"] >= 1
        output, _errors = client.communicate("go\n", timeout=30)
        assert output == "nothing\n"
    finally:
        client.kill()
        client.wait()
    listed = host("conntrack", "-L", "-s", ATTACKERS[0])
    assert "src=198.51.100.11" not in listed


def test_what_must_not_be_blocked(host: Machine) -> None:
    rules = {
        "127.0.0.1": "loopback",
        HOST[4]: "host",
        HOST[6]: "host",
        "203.0.113.0/24": "host",
        "198.51.0.0/16": "host",
        "198.18.0.0/15": "too_wide",
        "10.1.2.3": "private",
        "192.0.2.9": "never_block",
    }
    options = {"addresses": [ATTACKERS[0], *rules], "never_block": ["192.0.2.8/30"], "ttl": 60}
    refused = host.module(**options)
    assert refused["failed"]
    assert refused["msg"] == (
        "127.0.0.1 must not be blocked: it is in 127.0.0.0/8, loopback; leave it out. "
        "So it is with 7 more, see refused. Nothing was changed."
    )
    assert host.entries() == []
    left_out = host.module(**options, strict=False)
    assert left_out["added"] == [ATTACKERS[0]]
    for told in (refused, left_out):
        assert {one["address"]: one["rule"] for one in told["refused"]} == rules
    garbage = host.module(addresses=[ATTACKERS[1], "1.2.3.4; rm -rf /"], strict=False)
    assert "addresses has '1.2.3.4; rm -rf /'" in garbage["msg"]
    assert [entry["address"] for entry in host.entries()] == [ATTACKERS[0]]


def test_over_the_network_without_a_peer_it_refuses(host: Machine) -> None:
    peers = subprocess.run(
        [sys.executable, "-c", PEERS], capture_output=True, text=True, check=True, env=_python()
    ).stdout.strip()
    if peers == "0":
        refused = host.module(addresses=[ATTACKERS[0]], connection="network")
        assert refused["failed"]
        assert "operator_addresses" in refused["msg"]
    done = host.module(addresses=[ATTACKERS[0]], connection="network", operator_addresses=["203.0.113.2"], ttl=60)
    assert done["added"] == [ATTACKERS[0]]
    assert (
        host.module(addresses=["203.0.113.2"], operator_addresses=["203.0.113.2"])["refused"][0]["rule"] == "operator"
    )


PEERS = (
    "import os; from ansible_collections.oncall.runbooks.plugins.module_utils import protected_addresses as p;"
    "print(len(p.connection(os.getpid()).peers))"
)


def _python() -> dict[str, str]:
    return {**os.environ, "PATH": SBIN, "PYTHONPATH": str(REPOSITORY / "collections")}


@FEWER
def test_what_somebody_flushed_is_put_right(network: Network, backend: str) -> None:
    host, attacker = network.host, network.attacker
    options = {"addresses": [ATTACKERS[0], ATTACKERS[2]], "ttl": 600, "backend": backend}
    host.module(**options)
    if network.xtables:
        for tool in network.xtables:
            host(tool, "-t", "raw", "-D", "PREROUTING", "1")
    else:
        host("nft", "flush", "chain", "inet", "oncall_runbooks", "blocked")
    assert attacker.reaches(ATTACKERS[0], ATTACKERS[2])
    assert host.module("ip_block_info")["problem"].startswith(backend)
    foreseen = host.module(**options, _ansible_check_mode=True)
    assert attacker.reaches(ATTACKERS[0], ATTACKERS[2])
    done = host.module(**options)
    for told in (foreseen, done):
        assert (told["changed"], told["added"], told["present"]) == (True, [], options["addresses"])
        assert told["repaired"]
    assert attacker.is_cut_off(ATTACKERS[0], ATTACKERS[2])
    assert host.module("ip_block_info")["problem"] is None
    assert not host.module(**options)["changed"]


@pytest.mark.parametrize("name", ["ipset", "iptables"])
def test_what_fails_in_the_middle_is_taken_back(host: Machine, tmp_path: Path, name: str) -> None:
    """The rules for IPv6 are refused, when those for IPv4 are there already."""
    host.module(addresses=["198.51.100.50"], backend=name, ttl=600)
    (tmp_path / "ip6tables-restore").write_text("#!/bin/sh\ncat >/dev/null\necho 'ip6tables-restore: no' >&2\nexit 4\n")
    (tmp_path / "ip6tables-restore").chmod(0o755)
    host.path = f"{tmp_path}:{SBIN}"
    try:
        for texts in ([ATTACKERS[0], ATTACKERS[2]], [ATTACKERS[2]]):
            failed = host.module(addresses=texts, backend=name, ttl=600)
            assert failed["failed"]
            assert "ip6tables-restore: no" in failed["msg"]
            assert [entry["address"] for entry in host.entries()] == ["198.51.100.50"]
    finally:
        host.path = SBIN


def test_what_several_ways_block_is_removed_from_all(host: Machine) -> None:
    for name in ("nftables", "ipset", "iptables"):
        assert host.module(addresses=[ATTACKERS[0], ATTACKERS[1]], backend=name, ttl=60)["added"]
    assert len(host.entries()) == 6
    gone = host.module(addresses=[ATTACKERS[0]], state="absent")
    assert (gone["removed"], gone["backend"]) == ([ATTACKERS[0]], "nftables,ipset,iptables")
    foreseen = host.module(state="flushed", _ansible_check_mode=True)
    flushed = host.module(state="flushed")
    assert foreseen["removed"] == flushed["removed"] == [ATTACKERS[1]]
    assert host.entries() == []


def test_a_long_list_of_which_some_are_there(host: Machine) -> None:
    texts = [f"198.51.{100 + number // 250}.{number % 250 + 2}" for number in range(3000)]
    assert host.module(addresses=texts[::100], ttl=600)["changed"]
    done = host.module(addresses=texts, ttl=600)
    assert (len(done["added"]), len(done["present"])) == (2970, 30)
    assert [entry["address"] for entry in host.entries()] == texts
    assert len(host.module(addresses=texts, state="absent")["removed"]) == 3000


def test_the_table_goes_with_one_command(host: Machine) -> None:
    host.module(addresses=[ATTACKERS[0], "198.51.101.0/24"], backend="nftables")
    host("nft", "delete", "table", "inet", "oncall_runbooks")
    assert host.entries() == []
    assert host.module(addresses=[ATTACKERS[0]], backend="nftables")["added"] == [ATTACKERS[0]]


def test_what_a_diagnosis_sees(host: Machine) -> None:
    host.module(addresses=[ATTACKERS[0], ATTACKERS[2]], ttl=600, reason="attack")
    before = _all_rules(host)
    code = (
        "import json, subprocess\n"
        "from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context\n"
        "from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES\n"
        "def run(command):\n"
        "    done = subprocess.run(command, capture_output=True, text=True)\n"
        "    return done.returncode, done.stdout, done.stderr\n"
        "source = {'never_block': [], 'backend': 'auto'}\n"
        "print(json.dumps(PROBES['blocklist'].look(Context(5.0, 0.0, {}, run), source, {})))\n"
    )
    seen = json.loads(host(sys.executable, "-c", code, environment=_python()))
    assert seen["value"] == 2
    assert (seen["evidence"]["backend"], seen["evidence"]["text"]) == ("nftables", "2 in nftables")
    assert [entry["reason"] for entry in seen["evidence"]["entries"]] == ["attack", "attack"]
    assert HOST[6] in [one["network"] for one in seen["evidence"]["protected"]]
    without_times = (re.sub(r"expires \w+", "", text) for text in (before, _all_rules(host)))
    assert len(set(without_times)) == 1


def _all_rules(host: Machine) -> str:
    """Of all tables that there are, to see that looking makes none."""
    saved = host("iptables-save") + host("ip6tables-save")
    tables = host("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
    return host("nft", "-s", "list", "ruleset") + re.sub(r"^#.*$", "", saved, flags=re.MULTILINE) + tables


def test_a_list_that_ipset_cannot_hold_is_taken_back(host: Machine) -> None:
    host("ipset", "create", "oncall_runbooks4", "hash:net", "maxelem", "3", "timeout", "0", "comment")
    host.module(addresses=["198.51.100.50"], backend="ipset", ttl=600, reason="first")
    full = host.module(addresses=[f"198.51.100.{number}" for number in range(50, 60)], backend="ipset")
    assert full["failed"]
    assert "taken back" in full["msg"]
    assert [(entry["address"], entry["reason"]) for entry in host.entries()] == [("198.51.100.50", "first")]
    too_long = host.module(addresses=["198.51.100.60"], backend="ipset", ttl=9_000_000)
    assert "ipset takes at most 2147483" in too_long["msg"]


def test_runs_at_the_same_time(host: Machine) -> None:
    """Both lists are there afterwards, whoever came first, also where one lists and then writes."""
    for name in ("nftables", "iptables"):
        lists = [[f"198.51.100.{100 + number}", "198.51.100.99"] for number in range(4)]
        commands = [
            host.start(
                sys.executable,
                "-c",
                "import json, subprocess, sys; print(subprocess.run([sys.executable, '-m', sys.argv[1]], "
                "input=sys.argv[2], capture_output=True, text=True, env={**__import__('os').environ, "
                f"'PYTHONPATH': {str(REPOSITORY / 'collections')!r}}}).stdout)",
                "ansible_collections.oncall.runbooks.plugins.modules.ip_block",
                json.dumps(
                    {"ANSIBLE_MODULE_ARGS": {"addresses": one, "backend": name, "connection": "local", "ttl": 600}}
                ),
            )
            for one in lists
        ]
        for process in commands:
            output, _errors = process.communicate(timeout=120)
            assert '"failed"' not in output, output
        found = [entry["address"] for entry in host.entries()]
        assert found == ["198.51.100.99", *(one[0] for one in lists)]
        host.module(state="flushed")


# Over ssh, as an operator does.


class Operator:
    """Somebody behind the NAT, with ssh to the host."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.key = folder / "key"
        for name in ("key", "hostkey"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        # As sudo does, nothing of where one comes from is left in the environment.
        interpreter = folder / "python"
        interpreter.write_text(f'#!/bin/sh\nexec env -i PATH={SBIN} {sys.executable} "$@"\n')
        interpreter.chmod(0o755)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = folder / "sshd_config"
        config.write_text(
            f"Port 22\nListenAddress 203.0.113.1\nHostKey {folder}/hostkey\nAuthorizedKeysFile {folder}/key.pub\n"
            f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\nMaxStartups 100\n"
        )
        server = network.host.start(str(shutil.which("sshd", path=SBIN)), "-D", "-e", "-f", str(config))
        assert server.stdout
        assert "listening" in server.stdout.readline()
        self.ssh = folder / "ssh"
        self.wrap("")

    def wrap(self, first: str) -> None:
        """What stands in front of ssh."""
        self.ssh.write_text(f'#!/bin/sh\n{first}\nexec ssh "$@"\n')
        self.ssh.chmod(0o755)

    def command(self, **options: Any) -> list[str]:
        host = {
            "ansible_host": "203.0.113.1",
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            "ansible_ssh_executable": str(self.ssh),
            "ansible_control_path_dir": str(self.folder / "c"),
            "ansible_python_interpreter": str(self.folder / "python"),
        }
        where = self.folder / "inventory.json"
        where.write_text(json.dumps({"all": {"hosts": {"target": host}}}))
        return ["ansible", "target", "-i", str(where), "-m", "oncall.runbooks.ip_block", "-a", json.dumps(options)]

    @staticmethod
    def environment() -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        return {
            **clean,
            "PATH": SBIN,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
            "ANSIBLE_TIMEOUT": "3",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s",
        }

    def run(self, *arguments: str, **options: Any) -> dict[str, Any]:
        command = self.command(**options)
        done = subprocess.run(
            self.network.operator.command(str(BIN / command[0]), *command[1:], *arguments),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        output = done.stdout
        assert "=> {" in output, output
        result: dict[str, Any] = json.JSONDecoder().raw_decode(output[output.index("=> {") + 3 :])[0]
        return {**result, "status": done.returncode}

    def disconnect(self) -> None:
        """End the connections that ssh keeps open, so that the next test makes its own."""
        for path in (self.folder / "c").glob("*"):
            subprocess.run(
                self.network.operator.command("ssh", "-o", f"ControlPath={path}", "-O", "exit", "x"),
                check=False,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def connections(self) -> int:
        """How many connections the NAT has seen begin."""
        words = self.network.nat("nft", "list", "table", "ip", "n").split()
        return int(words[words.index("packets") + 1])

    def comes_next_from(self, address: str) -> None:
        """Have the next connection but one come from this address, and the next from the other one."""
        if NAT[self.connections() % 2] == address:
            self.network.operator(
                sys.executable, "-c", "import socket; socket.create_connection(('203.0.113.1', 22), 10).close()"
            )
        assert NAT[(self.connections() + 1) % 2] == address


@pytest.fixture(scope="module")
def ssh(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(network, tmp_path_factory.mktemp("ssh"))


@pytest.fixture
def operator(ssh: Operator, host: Machine) -> Iterator[Operator]:
    yield ssh
    ssh.disconnect()
    ssh.wrap("")


@pytest.mark.both_ends
def test_confirmed_over_a_new_connection(operator: Operator, host: Machine) -> None:
    before = operator.connections()
    done = operator.run(addresses=[ATTACKERS[0], ATTACKERS[2]], ttl=600, confirm_within=60, reason="attack")
    assert (done["status"], done["changed"], done["confirmed"]) == (0, True, True)
    assert "confirmation" not in done
    assert operator.connections() == before + 2
    entries = host.entries()
    assert [entry["address"] for entry in entries] == [ATTACKERS[0], ATTACKERS[2]]
    assert all(entry["by"] and "@" in entry["by"] for entry in entries)
    # 600 s from now, not 60.
    assert all(entry["expires_at"] >= _in(500) for entry in entries)
    again = operator.run(addresses=[ATTACKERS[0], ATTACKERS[2]], ttl=600, confirm_within=60)
    assert (again["changed"], again["confirmed"], again["present"]) == (False, None, [ATTACKERS[0], ATTACKERS[2]])
    checked = operator.run("--check", addresses=[ATTACKERS[1]], ttl=600, confirm_within=60)
    assert (checked["changed"], checked["confirmed"], checked["added"]) == (True, None, [ATTACKERS[1]])
    assert len(host.entries()) == 2


def _in(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def test_the_operator_is_not_in_the_list(operator: Operator, host: Machine) -> None:
    """Where the task came from is found without the environment, and the controller itself is protected as well."""
    operator.comes_next_from(NAT[1])
    refused = operator.run(addresses=[ATTACKERS[0], NAT[0]], ttl=60)
    assert refused["status"]
    assert refused["refused"][0] == {
        "address": NAT[0],
        "rule": "connection",
        "why": "it is where this task is connected from",
    }
    assert "Nothing was changed" in refused["msg"]
    own = operator.run(addresses=["10.99.0.2"], allow_private=True)
    assert own["refused"][0]["rule"] == "controller"
    assert host.entries() == []
    forbidden = operator.run(addresses=[ATTACKERS[0]], phase="confirm")
    assert "phase is for the action to say" in forbidden["msg"]


def test_a_lock_out_ends_by_itself(operator: Operator, host: Machine) -> None:
    operator.comes_next_from(NAT[1])
    locked = operator.run(addresses=[ATTACKERS[0], NAT[1]], ttl=3600, confirm_within=8)
    assert locked["status"]
    assert locked["confirmed"] is False
    assert "ends by itself within 8 s" in locked["msg"]
    assert locked["added"] == [ATTACKERS[0], NAT[1]]
    assert all(entry["expires_at"] < _in(60) for entry in host.entries())
    until(lambda: host.entries() == [])
    operator.disconnect()
    operator.comes_next_from(NAT[0])
    assert operator.run(addresses=[ATTACKERS[0]], ttl=60)["status"] == 0


def test_the_old_connection_proves_nothing(operator: Operator, host: Machine) -> None:
    operator.wrap('for word in "$@"; do [ "$word" = stop ] && exit 0; done')
    refused = operator.run(addresses=[ATTACKERS[0]], ttl=3600, confirm_within=5)
    assert refused["confirmed"] is False
    assert "The connection is the one from before" in refused["msg"]
    until(lambda: host.entries() == [])


def test_the_controller_is_killed_before_it_confirms(operator: Operator, host: Machine, network: Network) -> None:
    marker = operator.folder / "marker"
    operator.wrap(f'for word in "$@"; do [ "$word" = check ] && touch {marker} && sleep 600; done')
    command = operator.command(addresses=[ATTACKERS[0]], ttl=3600, confirm_within=6)
    process = subprocess.Popen(
        network.operator.command(str(BIN / command[0]), *command[1:]),
        cwd=operator.folder,
        env=operator.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(marker.exists)
    finally:
        # Ansible's workers have sessions of their own.
        network.operator.kill()
        process.wait()
    assert [entry["address"] for entry in host.entries()] in ([ATTACKERS[0]], [])
    until(lambda: host.entries() == [])
    assert network.attacker.reaches(ATTACKERS[0])

# SPDX-License-Identifier: GPL-3.0-or-later
"""What blocking a list of addresses costs beside the programs that do nothing else:  make bench

Blocking 10,000 addresses stands beside `nft -f` and `ipset restore` of the same list, in turn, in a network of its
own. What is timed is the work of the module: reading the list, holding it against what must not be blocked, writing
it; the start of Python and of the module is told apart. Ratios are taken within each round; quoted is their median. One
address is added to 100,000; 200 are blocked by one task and by a loop of ansible.builtin.iptables; and one is blocked
on fifty hosts with an sshd each, beside a ping of them. It is no test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INSIDE = "ONCALL_BENCH_INSIDE"
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.oncall.runbooks.plugins.module_utils import (  # noqa: E402
    addresses,
    blocklist,
    protected_addresses,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_all import backends_of  # noqa: E402

COMMENT = blocklist.comment(time.time(), "bench@here", "INC-1", "a reason of some length")


def run(command: Any, text: str | None) -> tuple[int, str, str]:
    done = subprocess.run(list(command), input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def make(count: int) -> list[str]:
    """Addresses that are in no private range."""
    return [f"20.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(count)]


def backend_of(name: str) -> blocklist.Backend:
    return next(backend for backend in backends_of(run) if backend.name == name)


def block(name: str, texts: list[str]) -> float:
    """The work of the module, from the list to the kernel."""
    began = time.perf_counter()
    wanted = addresses.parse(texts)
    protected, _connection = protected_addresses.all_of(os.getpid(), over_network=False)
    allowed, forbidden = addresses.sift(wanted, protected)
    assert not forbidden
    kept, _covered = addresses.merge(allowed)
    backend, _holding = blocklist.choose(backends_of(run), name)
    change = blocklist.block(backend, kept, 3600, COMMENT)
    seconds = time.perf_counter() - began
    assert len(change.added) == len(texts), change
    return seconds


def flush(name: str) -> None:
    blocklist.flush(backend_of(name))


def timed(command: list[str], text: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def nft(texts: list[str]) -> float:
    """The same elements into a set of the same kind."""
    elements = ", ".join(f'{one} timeout 3600s comment "{COMMENT}"' for one in texts)
    script = "add table inet bench\nadd set inet bench v4 { type ipv4_addr; flags timeout; }\n"
    seconds = timed(["nft", "-f", "-"], f"{script}add element inet bench v4 {{ {elements} }}\n")
    subprocess.run(["nft", "delete", "table", "inet", "bench"], check=True)
    return seconds


def ipset(texts: list[str]) -> float:
    lines = "\n".join(f'add bench {one} timeout 3600 comment "{COMMENT}"' for one in texts)
    seconds = timed(["ipset", "restore"], f"create bench hash:net maxelem 1048576 timeout 0 comment\n{lines}\n")
    subprocess.run(["ipset", "destroy", "bench"], check=True)
    return seconds


def beside(name: str, theirs: Callable[[list[str]], float], count: int, rounds: int) -> None:
    texts, mine, others = make(count), [], []
    for _number in range(rounds):
        mine.append(block(name, texts))
        flush(name)
        others.append(theirs(texts))
    ratio = statistics.median(one / other for one, other in zip(mine, others))
    print(
        f"{count} addresses, {name:<9} {statistics.median(mine) * 1000:7.0f} ms   alone "
        f"{statistics.median(others) * 1000:7.0f} ms   ratio {ratio:.2f} (wanted: at most 3)"
    )


def one_more(name: str, count: int, rounds: int) -> None:
    block(name, make(count))
    times = [block(name, [f"21.0.0.{number}"]) for number in range(1, rounds + 1)]
    median = statistics.median(times) * 1000
    print(f"one more beside {count}, {name:<9} {median:5.0f} ms of module work (wanted: below 100)")
    flush(name)


def start() -> None:
    """A whole run of the module, of which the start is most."""
    options = {"ANSIBLE_MODULE_ARGS": {"addresses": ["22.0.0.1"], "ttl": 60, "connection": "local"}}
    module = "ansible_collections.oncall.runbooks.plugins.modules.ip_block"
    times = []
    for _number in range(5):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(options),
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT / "collections")},
        )
        times.append(time.perf_counter() - began)
    flush("nftables")
    print(f"one address, the whole module with the start of Python: {statistics.median(times) * 1000:.0f} ms")


def play(folder: Path, tasks: list[dict[str, Any]]) -> float:
    playbook = folder / "play.json"
    playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    began = time.perf_counter()
    subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), str(playbook)],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )
    return time.perf_counter() - began


def loop(count: int) -> None:
    texts = make(count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = play(folder, [])
        mine = play(folder, [{"oncall.runbooks.ip_block": {"addresses": texts, "ttl": 3600}}]) - empty
        rule = {"chain": "INPUT", "source": "{{ item }}", "jump": "DROP", "action": "insert"}
        theirs = play(folder, [{"ansible.builtin.iptables": rule, "loop": texts}]) - empty
    flush("nftables")
    print(
        f"{count} addresses, one task of ip_block {mine:.1f} s   a loop of ansible.builtin.iptables {theirs:.1f} s   "
        f"{theirs / mine:.0f} times as long (without the {empty:.1f} s of an empty play)"
    )


class Fleet:
    """Hosts with an sshd each: processes in networks of their own, on one bridge. They end with this program."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.hosts: list[subprocess.Popen[bytes]] = []
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]

    def __enter__(self) -> Fleet:
        for name in ("key", "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/hostkey\nAuthorizedKeysFile {self.folder}/key.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPidFile none\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for command in (
            "link add br0 type bridge",
            "address add 10.77.255.1/16 dev br0",
            "link set br0 up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        for number, address in enumerate(self.addresses):
            script = (
                f"read go; ip link set lo up; ip address add {address}/16 dev eth0; ip link set eth0 up;"
                f"exec {shutil.which('sshd')} -D -f {self.folder}/sshd_config"
            )
            host = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE)
            self.hosts.append(host)
            self._wait(lambda pid=host.pid: self._apart(pid))
            link = f"link add v{number} type veth peer name eth0 netns {host.pid}"
            for command in (link, f"link set v{number} master br0 up"):
                subprocess.run(["ip", *command.split()], check=True)
            assert host.stdin
            host.stdin.write(b"go\n")
            host.stdin.close()
        for address in self.addresses:
            self._wait(lambda address=address: self._listens(address))
        variables = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "key"),
            "ansible_ssh_common_args": "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            "ansible_control_path_dir": str(self.folder / "c"),
            "ansible_python_interpreter": sys.executable,
        }
        (self.folder / "inventory.json").write_text(
            json.dumps({"all": {"hosts": dict.fromkeys(self.addresses), "vars": variables}})
        )
        return self

    def __exit__(self, *_raised: object) -> None:
        for path in (self.folder / "c").glob("*"):
            command = ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "x"]
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        for host in self.hosts:
            host.terminate()
            host.wait()

    @staticmethod
    def _apart(pid: int) -> bool:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")

    @staticmethod
    def _listens(address: str) -> bool:
        try:
            socket.create_connection((address, 22), 1).close()
        except OSError:
            return False
        return True

    @staticmethod
    def _wait(what: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not what():
            if time.monotonic() > end:
                sys.exit("a host of the fleet did not start")
            time.sleep(0.02)

    def ad_hoc(self, module: str, **options: Any) -> float:
        command = [str(Path(sys.executable).parent / "ansible"), "all", "-i", str(self.folder / "inventory.json")]
        began = time.perf_counter()
        subprocess.run(
            [*command, "-f", "25", "-m", module, *(["-a", json.dumps(options)] if options else [])],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        )
        return time.perf_counter() - began


def fleet(count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name, Fleet(Path(name), count) as hosts:
        # The connections are open, as they are after a diagnosis.
        hosts.ad_hoc("ansible.builtin.ping")
        pairs = []
        for number in range(rounds):
            ping = hosts.ad_hoc("ansible.builtin.ping")
            blocking = hosts.ad_hoc("oncall.runbooks.ip_block", addresses=[f"23.0.0.{number + 1}"], ttl=3600)
            pairs.append((blocking, ping))
        confirmed = hosts.ad_hoc("oncall.runbooks.ip_block", addresses=["23.0.1.1"], ttl=3600, confirm_within=300)
    ratio = statistics.median(blocking / ping for blocking, ping in pairs)
    print(
        f"{count} hosts over ssh: one address {statistics.median(pair[0] for pair in pairs):.1f} s   ping "
        f"{statistics.median(pair[1] for pair in pairs):.1f} s   ratio {ratio:.2f} (wanted: at most 1.5)   "
        f"confirmed over new connections {confirmed:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--addresses", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--loop", type=int, default=200)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("blocking takes root, and so does a network namespace to do it in")
    for program in ("nft", "ipset", "iptables", "unshare", "ip", "sshd"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            sys.exit(f"{program} is not installed")
    if INSIDE not in os.environ:
        # All of it in a network of its own, which ends with the process.
        os.environ[INSIDE] = "1"
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        sys.exit(subprocess.run(["unshare", "--net", sys.executable, *sys.argv], check=False).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    beside("nftables", nft, options.addresses, options.rounds)
    beside("ipset", ipset, options.addresses, options.rounds)
    for name in ("nftables", "ipset"):
        one_more(name, options.many, options.rounds)
    start()
    loop(options.loop)
    fleet(options.hosts, min(3, options.rounds))


if __name__ == "__main__":
    main()

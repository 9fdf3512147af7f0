# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe host, on this machine's own /proc and file systems; limits and logs that it lacks are files of the test."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import judge, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import host
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import context, look, source

MIB = 1 << 20


def write(folder, **files):
    """Files below a folder; two underscores stand for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture()
def groups(tmp_path, monkeypatch):
    """Control groups of the test's own."""
    monkeypatch.setattr(procfs, "CGROUP", str(tmp_path / "cgroup"))
    return tmp_path / "cgroup"


@pytest.fixture()
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "PROC", str(tmp_path / "proc"))
    return tmp_path / "proc"


# --- memory


def test_memory_of_this_machine(groups):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    seen = look("host", value="memory_used")
    assert 0 < seen["value"] < 1
    assert seen["note"] is None
    assert seen["evidence"]["total"] == pytest.approx(total, rel=0.001)
    assert seen["value"] == pytest.approx(1 - seen["evidence"]["available"] / total, abs=0.001)


def test_the_largest_processes_are_named(groups):
    held = "held = b'x' * 300_000_000; print(1, flush=True); sys.stdin.read() # s3same"
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys; {held}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as large:
        large.stdout.readline()
        seen = look("host", value="memory_used")
        large.kill()
    top = seen["evidence"]["top"]
    assert len(top) <= host.TOP
    assert [item["rss"] for item in top] == sorted((item["rss"] for item in top), reverse=True)
    mine = next(item for item in top if item["pid"] == large.pid)
    assert mine["rss"] > 300_000_000
    assert mine["share"] == pytest.approx(mine["rss"] / seen["evidence"]["total"], abs=0.001)
    assert mine["name"].startswith("python")
    assert "s3same" not in str(seen)


def test_the_limit_of_a_container(groups):
    write(
        groups,
        memory__max=f"{1000 * MIB}\n",
        memory__current=f"{900 * MIB}\n",
        memory__stat=f"anon 1\ninactive_file {400 * MIB}\n",
    )
    seen = look("host", value="memory_used")
    assert seen["value"] == pytest.approx(0.5)
    assert (seen["evidence"]["limit"], seen["evidence"]["available"]) == (1000 * MIB, 500 * MIB)
    assert seen["note"] == "of the memory limit of this container"


def test_the_limit_of_a_container_of_version_1(groups):
    write(
        groups / "memory",
        memory__limit_in_bytes=f"{1000 * MIB}\n",
        memory__usage_in_bytes=f"{900 * MIB}\n",
        memory__stat=f"inactive_file 1\ntotal_inactive_file {100 * MIB}\n",
    )
    assert look("host", value="memory_used")["value"] == pytest.approx(0.8)


@pytest.mark.parametrize("limit", ["max", str(1 << 50), "9223372036854771712"])
def test_a_limit_above_the_machines_memory_is_none(groups, limit):
    write(groups, memory__max=f"{limit}\n", memory__current="1\n", memory__stat="inactive_file 0\n")
    seen = look("host", value="memory_used")
    assert "limit" not in seen["evidence"]
    assert seen["value"] > 0.001


def test_swap(proc):
    write(proc, meminfo="MemTotal:  1000 kB\nSwapTotal:  4000 kB\nSwapFree:  1000 kB\n")
    seen = look("host", value="swap_used")
    assert (seen["value"], seen["evidence"]) == (0.75, {"total": 4096000, "free": 1024000})
    write(proc, meminfo="MemTotal:  1000 kB\nSwapTotal:  0 kB\nSwapFree:  0 kB\n")
    with pytest.raises(Absent, match="no swap"):
        look("host", value="swap_used")


# --- CPU


def test_cpu_between_two_reads(proc, monkeypatch):
    """The two reads are files of the test; the kernel counts user nice system idle iowait irq softirq steal guest."""
    pages = ["cpu  1000 0 500 8000 100 0 0 0 0 0\ncpu0 x\n", "cpu  1400 0 600 8300 200 0 0 100 300 0\ncpu0 x\n"]
    monkeypatch.setattr(procfs, "pids", list)
    real = procfs.read
    monkeypatch.setattr(procfs, "read", lambda path: pages.pop(0) if path == f"{proc}/stat" else real(path))
    seen = look("host", context(sample_seconds=0.01), value="cpu_used")
    assert seen["value"] == pytest.approx(0.6)
    assert (seen["evidence"]["iowait"], seen["evidence"]["steal"]) == (0.1, 0.1)
    assert seen["note"] is None


def test_a_busy_process_is_named():
    with subprocess.Popen([sys.executable, "-c", "while True: pass # s3same"]) as busy:
        seen = look("host", context(sample_seconds=1.0), value="cpu_used")
        busy.kill()
    mine = next(item for item in seen["evidence"]["top"] if item["pid"] == busy.pid)
    assert mine["cpu"] > 5
    assert mine["name"].startswith("python")
    assert seen["value"] > 0.05 / os.cpu_count()
    assert seen["evidence"]["cores"] == os.cpu_count()
    assert "s3same" not in str(seen)


def test_cpu_without_a_sample_time_is_since_boot(proc):
    write(proc, stat="cpu  300 0 100 500 100 0 0 0 0 0\n")
    seen = look("host", value="cpu_used")
    assert seen["value"] == pytest.approx(0.4)
    assert seen["note"] == "average since boot, without a sample time"
    assert "top" not in seen["evidence"]


def test_load():
    before = os.getloadavg()[0]
    seen = look("host", value="load")
    after = os.getloadavg()[0]
    low, high = sorted((before, after))
    assert low - 0.01 <= seen["value"] * os.cpu_count() <= high + 0.01
    assert seen["evidence"]["load_1"] == pytest.approx(seen["value"] * os.cpu_count())


# --- disks


@pytest.mark.parametrize(("value", "option"), [("disk_used", "-P"), ("inodes_used", "-Pi")])
def test_disks_as_df_has_them(value, option, tmp_path):
    said = subprocess.run(["df", option, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    percent = re.search(r"(\d+)%", said.splitlines()[1])
    seen = look("host", value=value, paths=[str(tmp_path)])
    # df rounds up.
    assert int(percent[1]) - 1.5 <= 100 * seen["value"] <= int(percent[1]) + 0.5
    assert seen["evidence"]["worst"] == str(tmp_path)
    assert seen["note"] is None


def test_the_worst_of_several():
    paths = ["/", "/dev/shm"]
    seen = look("host", value="disk_used", paths=paths)
    alone = {path: look("host", value="disk_used", paths=[path])["value"] for path in paths}
    assert seen["evidence"]["worst"] == max(alone, key=alone.get)
    assert seen["value"] == pytest.approx(max(alone.values()), abs=0.01)
    assert [row["path"] for row in seen["evidence"]["paths"]] == paths


def test_a_path_that_does_not_exist(tmp_path):
    missing = str(tmp_path / "none")
    seen = look("host", value="disk_used", paths=["/", missing])
    assert seen["evidence"]["worst"] == "/"
    assert seen["note"] == f"{missing} cannot be looked at (No such file or directory)"
    with pytest.raises(NoAnswer, match=f"{missing} cannot be looked at") as caught:
        look("host", value="disk_used", paths=[missing])
    assert caught.value.kind == "no data"


def test_file_systems_without_inodes_or_blocks():
    """/proc has neither."""
    for value in ("disk_used", "inodes_used"):
        with pytest.raises(Absent, match="The file system of /proc does not count them"):
            look("host", value=value, paths=["/proc"])
        assert [row["path"] for row in look("host", value=value, paths=["/proc", "/"])["evidence"]["paths"]] == ["/"]


# --- kills for lack of memory

NEW = "Out of memory: Killed process 123 (uvicorn) total-vm:9876kB, anon-rss:5432kB, file-rss:0kB, oom_score_adj:0"
GROUP = "Memory cgroup out of memory: Killed process 124 (python3) total-vm:9876kB, anon-rss:5432kB"
OLD = "Killed process 125 (x), UID 33, total-vm:9876kB, anon-rss:5432kB, file-rss:0kB"
BARE = "Killed process 126 (a) (b c)"
OTHERS = (
    "Out of memory: Kill process 125 (x) score 900 or sacrifice child",
    "oom_reaper: reaped process 123 (uvicorn), now anon-rss:0kB",
    "usb 1-1: new device",
)


class Journal:
    """journalctl's part of context.run: the messages (seconds ago, text) and what else it says."""

    def __init__(self, messages=(), errors="", status=0):
        self.messages = messages
        self.errors = errors
        self.status = status
        self.commands = []

    def __call__(self, command):
        command = command[2:]  # timeout and its seconds
        self.commands.append(command)
        assert os.path.basename(command[0]) == "journalctl"
        since = next((float(word[9:]) for word in command if word.startswith("--since=@")), 0.0)
        now = time.time()
        lines = [f"{now - ago:.6f} web-1 kernel: {text}" for ago, text in self.messages if now - ago >= since]
        if "--lines=1" in command:
            lines = lines[-1:]
        return self.status, "\n".join(lines or ["-- No entries --"]) + "\n", self.errors


@pytest.fixture(autouse=True)
def kernel(monkeypatch, tmp_path):
    """A kernel log that is the test's: no /dev/kmsg, and a journalctl that stands in the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "journalctl").write_text("")
    (folder / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(host, "KMSG", str(tmp_path / "kmsg"))
    return tmp_path / "kmsg"


def kills(run, **values):
    return look("host", Context(5.0, 0.0, {}, run), value="oom_kills", **values)


def test_victims_in_the_journal():
    messages = [(4000, NEW), (300, NEW), (299, OTHERS[0]), (200, GROUP), (100, OLD), (50, BARE), (40, OTHERS[1])]
    seen = kills(Journal(messages))
    assert seen["value"] == 4
    assert [(item["pid"], item["name"]) for item in seen["evidence"]["victims"]] == [
        (126, "a) (b c"),
        (125, "x"),
        (124, "python3"),
        (123, "uvicorn"),
    ]
    at = seen["evidence"]["victims"][-1]["at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", at)
    assert seen["evidence"]["window"] == "3600 s"
    assert kills(Journal(messages), seconds=5000.0)["value"] == 5
    assert kills(Journal(messages), seconds=10.0)["value"] == 0


def test_victims_of_other_services_are_named_and_not_counted():
    messages = [(300, NEW), (200, GROUP), (100, OLD)]
    seen = kills(Journal(messages), victims="^(uvicorn|python)")
    assert (seen["value"], [item["name"] for item in seen["evidence"]["victims"]]) == (2, ["python3", "uvicorn"])
    assert [item["name"] for item in seen["evidence"]["other_victims"]] == ["x"]
    assert seen["note"] == "the kernel also killed x, which is not this service's"
    none = kills(Journal(messages), victims="^postgres")
    assert (none["value"], none["evidence"]["victims"]) == (0, [])


def test_the_journal_is_asked_without_a_shell_and_beyond_the_last_boot():
    journal = Journal([(300, NEW)])
    kills(journal)
    assert len(journal.commands) == 1
    assert "_TRANSPORT=kernel" in journal.commands[0]
    assert not {"-k", "--dmesg", "-b"} & set(journal.commands[0])


def test_a_quiet_hour_in_a_journal_that_keeps_the_kernels_messages():
    journal = Journal([(9000, OTHERS[2])])
    seen = kills(journal)
    assert (seen["value"], seen["note"]) == (0, None)
    assert len(journal.commands) == 2


def kmsg(records):
    """/dev/kmsg's form: level, number, microseconds since boot; what follows a message begins with a space."""
    return "".join(
        f"6,{number},{int((time.monotonic() - ago) * 1e6)},-;{text}\n SUBSYSTEM=x\n"
        for number, (ago, text) in enumerate(records)
    )


REFUSED = "Hint: You are currently not seeing messages from other users and the system.\n"


@pytest.mark.parametrize(
    "journal",
    [Journal(), Journal([(10, OTHERS[2])], errors=REFUSED), Journal(status=1), Journal(status=124)],
    ids=["without the kernel", "of others", "broken", "slow"],
)
def test_the_kernels_own_buffer_where_the_journal_does_not_tell(kernel, journal):
    kernel.write_text(kmsg([(50, NEW), (20, GROUP), (10, OTHERS[0]), (5, OLD)]))
    seen = kills(journal, seconds=30.0)
    assert seen["value"] == 2
    assert [item["pid"] for item in seen["evidence"]["victims"]] == [125, 124]
    assert seen["note"] is None


def test_a_buffer_that_does_not_reach_back(kernel):
    kernel.write_text(kmsg([(100, OTHERS[2]), (20, NEW)]))
    seen = kills(Journal())
    assert seen["value"] == 1
    assert re.fullmatch(r"the kernel log reaches back 1\d\d s only", seen["note"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may always read the kernel's buffer")
def test_the_real_buffer_ends(monkeypatch):
    if not os.path.exists("/dev/kmsg"):
        pytest.skip("this machine has no /dev/kmsg")
    monkeypatch.setattr(host, "KMSG", "/dev/kmsg")
    seen = kills(Journal())
    assert seen["value"] == len(seen["evidence"]["victims"]) or seen["value"] > host.TOP


def test_nothing_may_be_read(proc):
    write(proc, vmstat="nr_free_pages 1\noom_kill 3\n")
    with pytest.raises(NoAnswer) as caught:
        kills(Journal(errors=REFUSED))
    assert caught.value.kind == "permission"
    assert "(3 since boot)" in str(caught.value)
    assert str(caught.value).endswith("run with -b, or join the group systemd-journal or adm.")


def test_the_kernels_counter_says_that_there_was_none(proc):
    write(proc, vmstat="nr_free_pages 1\noom_kill 0\n")
    seen = kills(Journal(errors=REFUSED))
    assert (seen["value"], seen["note"]) == (0, "none since boot; the kernel log was not read")


def test_the_kernels_counter_is_there():
    assert isinstance(kills(Journal([(10, OTHERS[2])]))["evidence"]["since_boot"], int)


@pytest.fixture()
def service(monkeypatch, groups):
    """A port that this process listens on, and the folder of the control group that it is said to be in."""
    real = procfs.read
    monkeypatch.setattr(
        procfs,
        "read",
        lambda path: "0::/system.slice/app.service\n" if path == f"/proc/{os.getpid()}/cgroup" else real(path),
    )
    folder = groups / "system.slice/app.service"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1], folder


def test_the_counter_of_the_services_control_group(service):
    port, folder = service
    write(folder, memory__events="low 0\noom 9\noom_kill 4\noom_group_kill 0\n")
    seen = kills(Journal([(10, GROUP)]), port=port)
    assert (seen["value"], seen["evidence"]["cgroup_oom_kills"]) == (1, 4)
    assert seen["note"] == "cgroup_oom_kills counts since the control group exists, without times"


def test_the_counter_is_all_there_is(service, proc):
    port, folder = service
    write(proc, vmstat="oom_kill 7\n")
    write(folder, memory__events="oom_kill 4\n")
    seen = kills(Journal(errors=REFUSED), port=port)
    assert (seen["value"], seen["evidence"]["window"]) == (4, judge.SINCE_START)
    assert seen["note"].endswith("the kernel log may not be read, so when is not known")
    # None in this group now says nothing of one before it was restarted.
    write(folder, memory__events="oom_kill 0\n")
    with pytest.raises(NoAnswer, match="7 since boot"):
        kills(Journal(errors=REFUSED), port=port)


def test_limits_of_all_groups_above_count(service, groups):
    _port, folder = service
    write(folder, memory__max="max\n")
    assert procfs.memory_limit(procfs.memory_groups(os.getpid())) is None
    write(folder.parent, memory__max=f"{500 * MIB}\n")
    write(groups, memory__max=f"{900 * MIB}\n")
    assert procfs.memory_groups(os.getpid()) == [str(folder), str(folder.parent), str(groups)]
    assert procfs.memory_limit(procfs.memory_groups(os.getpid())) == 500 * MIB


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("9:cpu,memory:/docker/abc\n0::/\n", ["memory/docker/abc", "memory/docker", "memory"]),
        ("9:memory:/gone\n0::/\n", ["memory"]),
        ("9:cpu:/docker/abc\n0::/docker\n", ["docker", "."]),
        ("0::/../../other.service\n", []),
        ("", []),
    ],
)
def test_where_a_process_is_accounted(groups, monkeypatch, text, found):
    for name in ("memory/docker/abc", "docker"):
        (groups / name).mkdir(parents=True)
    monkeypatch.setattr(procfs, "read", lambda _path: text)
    assert [os.path.relpath(folder, groups) for folder in procfs.memory_groups(1)] == found


# --- the firewall


@pytest.fixture()
def tools(monkeypatch, tmp_path):
    """The tools that are installed, each with what it prints: a function that takes them."""
    folder = tmp_path / "sbin"
    folder.mkdir()

    def install(**printed):
        for name in printed:
            (folder / name.replace("_", "-")).write_text("")
            (folder / name.replace("_", "-")).chmod(0o755)
        real = shutil.which
        monkeypatch.setattr(
            shutil,
            "which",
            lambda name, **options: real(name, path=str(folder)) if options else real(name),
        )

        def run(command):
            answer = printed[os.path.basename(command[2]).replace("-", "_")]
            return answer if isinstance(answer, tuple) else (0, answer, "")

        return Context(5.0, 0.0, {}, run)

    return install


def wall(at, port=8000):
    return look("host", at, value="firewall", port=port)


def iptables(*rules, policy="ACCEPT", chains=()):
    extra = "".join(f":{name} - [0:0]\n" for name in chains)
    lines = "".join(f"{rule}\n" for rule in rules)
    return (
        "# Generated by iptables-save v1.8.9\n*nat\n:PREROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -p tcp -m tcp --dport 8000 -j DROP\nCOMMIT\n"
        f"*filter\n:INPUT {policy} [10:20]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n{extra}{lines}COMMIT\n"
    )


DROP = "-A INPUT -p tcp -m tcp --dport 8000 -j DROP"


@pytest.mark.parametrize(
    ("rules", "policy", "value"),
    [
        ((), "ACCEPT", "open"),
        ((DROP,), "ACCEPT", "dropped"),
        (("-A INPUT -p tcp -m tcp --dport 8000 -j REJECT --reject-with tcp-reset",), "ACCEPT", "dropped"),
        (("-A INPUT -p tcp -m tcp --dport 7990:8010 -j DROP",), "ACCEPT", "dropped"),
        (("-A INPUT -p tcp -m tcp --dport :8010 -j DROP",), "ACCEPT", "dropped"),
        (("-A INPUT -p tcp -m tcp --dport 8001: -j DROP",), "ACCEPT", "open"),
        (("-A INPUT -p tcp -m multiport --dports 22,7990:8010 -j DROP",), "ACCEPT", "dropped"),
        (("-A INPUT -p tcp -m multiport --dports 22,80 -j DROP",), "ACCEPT", "open"),
        (("-A INPUT -p tcp -m tcp ! --dport 22 -j DROP",), "ACCEPT", "dropped"),
        (("-A INPUT -p udp -m udp --dport 8000 -j DROP",), "ACCEPT", "open"),
        (("-A INPUT -p tcp -m tcp --dport 80 -j DROP",), "ACCEPT", "open"),
        (("-A OUTPUT -p tcp -m tcp --dport 8000 -j DROP",), "ACCEPT", "open"),
        (("-A INPUT -i lo -p tcp -m tcp --dport 8000 -j DROP",), "ACCEPT", "open"),
        (("-A INPUT -i eth0 -p tcp -m tcp --dport 8000 -j DROP",), "ACCEPT", "dropped"),
        (("-A INPUT ! -s 10.0.0.0/8 -p tcp -m tcp --dport 8000 -j DROP",), "ACCEPT", "dropped"),
        # An address that is blocked is not the port.
        (("-A INPUT -s 203.0.113.9/32 -j DROP",), "ACCEPT", "open"),
        (("-A INPUT -s 203.0.113.9/32 -p tcp -m tcp --dport 8000 -j DROP",), "ACCEPT", "open"),
        (("-A INPUT -m conntrack --ctstate INVALID -j DROP",), "ACCEPT", "open"),
        ((DROP,), "DROP", "dropped"),
        ((), "DROP", "dropped"),
        (("-A INPUT -i lo -j ACCEPT", "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT"), "DROP", "dropped"),
        (("-A INPUT -p tcp -m tcp --dport 8000 -j ACCEPT",), "DROP", "open"),
        (("-A INPUT -i eth0 -p tcp -m conntrack --ctstate NEW -m tcp --dport 8000 -j ACCEPT",), "DROP", "open"),
        (("-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 8000 -j ACCEPT",), "DROP", "open"),
        (("-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 8000 -j ACCEPT", DROP), "DROP", "dropped"),
        (("-A INPUT -p tcp -m tcp --dport 8000 -j ACCEPT", DROP), "DROP", "open"),
        (("-A INPUT -j REJECT --reject-with icmp-host-prohibited",), "ACCEPT", "dropped"),
        (
            ('-A INPUT -p tcp -m comment --comment "no --dport 80 -j here" -m tcp --dport 8000 -j DROP',),
            "ACCEPT",
            "dropped",
        ),
        (('-A INPUT -p tcp -m tcp --dport 8000 -m limit --limit 5/min -j LOG --log-prefix "x y"',), "ACCEPT", "open"),
        (("-A INPUT -p tcp -m tcp --dport 8000 --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",), "ACCEPT", "dropped"),
        (("-A INPUT -p tcp -m tcp --dport 8000 -m connlimit --connlimit-above 20 -j REJECT",), "ACCEPT", "open"),
    ],
)
def test_iptables(tools, rules, policy, value):
    seen = wall(tools(iptables_save=iptables(*rules, policy=policy)))
    assert seen["value"] == value
    assert seen["note"].startswith("a hint")


def test_the_rules_that_drop_are_named(tools):
    seen = wall(tools(iptables_save=iptables(DROP)))
    assert seen["evidence"]["rules"] == [f"iptables filter INPUT: {DROP}"]
    seen = wall(tools(iptables_save=iptables(policy="DROP")))
    assert seen["evidence"]["policy"] == ["iptables filter INPUT: policy drop"]
    assert "rules" not in seen["evidence"]
    some = "-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 8000 -j ACCEPT"
    seen = wall(tools(iptables_save=iptables(some, policy="DROP")))
    assert seen["evidence"]["open_to_some"] == [f"iptables filter INPUT: {some}"]


@pytest.mark.parametrize(
    ("rules", "value"),
    [
        (("-A INPUT -j user", "-A user -p tcp -m tcp --dport 8000 -j ACCEPT"), "open"),
        (("-A INPUT -j user", "-A user -p tcp -m tcp --dport 8000 -j RETURN", "-A user -j ACCEPT"), "dropped"),
        (("-A INPUT -g user", "-A INPUT -j ACCEPT"), "dropped"),
        (("-A INPUT -p tcp -m multiport --dports 8000 -j user", "-A user -j ACCEPT"), "open"),
        (("-A INPUT -i docker0 -j user", "-A user -j ACCEPT"), "dropped"),
        (("-A INPUT -i eth0 -g user", "-A user -p tcp -m tcp --dport 8000 -j ACCEPT"), "open"),
        (("-A INPUT -j nowhere",), "dropped"),
        (("-A INPUT -j user", "-A user -j INPUT"), "dropped"),
    ],
)
def test_chains_of_chains(tools, rules, value):
    assert wall(tools(iptables_save=iptables(*rules, policy="DROP", chains=["user"])))["value"] == value


def test_only_one_of_the_two_protocols(tools):
    seen = wall(tools(iptables_save=iptables(), ip6tables_save=iptables(policy="DROP")))
    assert seen["value"] == "dropped"
    assert seen["note"].endswith("over IPv6 only")
    assert seen["evidence"]["policy"] == ["ip6tables filter INPUT: policy drop"]


def test_the_raw_table_drops_before_the_filter(tools):
    raw = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 8000 -j DROP\nCOMMIT\n"
    seen = wall(tools(iptables_save=iptables() + raw))
    assert seen["evidence"]["rules"] == ["iptables raw PREROUTING: -A PREROUTING -p tcp -m tcp --dport 8000 -j DROP"]


def nft(*rules, policy="accept", more=""):
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return (
        "table inet filter {\n\tset web {\n\t\ttype inet_service\n\t\tflags interval\n"
        "\t\telements = { 80, 443,\n\t\t\t     7990-8010 }\n\t}\n\n"
        "\tset blocked {\n\t\ttype ipv4_addr\n\t\telements = { 203.0.113.9 }\n\t}\n\n"
        "\tchain user {\n\t\ttcp dport 8000 accept\n\t}\n\n"
        f"\tchain input {{\n\t\ttype filter hook input priority filter; policy {policy};\n{lines}\t}}\n\n"
        "\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n" + more
    )


@pytest.mark.parametrize(
    ("rules", "policy", "value"),
    [
        ((), "accept", "open"),
        (("tcp dport 8000 drop",), "accept", "dropped"),
        (("tcp dport 8000 counter packets 0 bytes 0 drop",), "accept", "dropped"),
        (('tcp dport 8000 counter packets 1 bytes 2 reject with tcp reset comment "udp: no"',), "accept", "dropped"),
        (("meta l4proto tcp th dport 8000 drop",), "accept", "dropped"),
        (("tcp dport { 22, 8000 } drop",), "accept", "dropped"),
        (("tcp dport { 22, 7990-8010 } drop",), "accept", "dropped"),
        (("tcp dport { 22,\n\t\t\t     8000 } drop",), "accept", "dropped"),
        (("tcp dport 7990-8010 drop",), "accept", "dropped"),
        (("tcp dport != 8000 drop",), "accept", "open"),
        (("tcp dport != 22 drop",), "accept", "dropped"),
        (("tcp dport @web drop",), "accept", "dropped"),
        (("tcp dport { 22, 80 } drop", "udp dport 8000 drop"), "accept", "open"),
        (
            ("ip saddr @blocked drop", "ct state invalid drop", "ip saddr 203.0.113.9 tcp dport 8000 drop"),
            "accept",
            "open",
        ),
        (('iif "lo" tcp dport 8000 drop',), "accept", "open"),
        (('iifname "eth0" tcp dport 8000 drop',), "accept", "dropped"),
        (("ip saddr != 10.0.0.0/8 tcp dport 8000 drop",), "accept", "dropped"),
        (("reject with icmpx admin-prohibited",), "accept", "dropped"),
        (('tcp dport 8000 log prefix "drop " limit rate over 5/second drop',), "accept", "open"),
        ((), "drop", "dropped"),
        (("ct state established,related accept", 'iif "lo" accept', "meta l4proto icmp accept"), "drop", "dropped"),
        (("ip protocol icmp accept", "ct state vmap { invalid : drop, established : accept }"), "drop", "dropped"),
        (("tcp dport 8000 accept",), "drop", "open"),
        (("tcp dport @web ct state new accept",), "drop", "open"),
        (("tcp dport { 22, 8000 } ct state { new, established } counter packets 0 bytes 0 accept",), "drop", "open"),
        (("ip saddr { 10.0.0.0/8, 192.168.0.0/16 } tcp dport 8000 accept",), "drop", "open"),
        (('iifname "docker0" accept',), "drop", "dropped"),
        (("jump user",), "drop", "open"),
        (('iifname "eth0" goto user',), "drop", "open"),
        (("tcp dport 22 jump user",), "drop", "dropped"),
        (("accept",), "drop", "open"),
    ],
)
def test_nft(tools, rules, policy, value):
    assert wall(tools(nft=nft(*rules, policy=policy)))["value"] == value


def test_nft_names_the_chain(tools):
    seen = wall(tools(nft=nft("tcp dport 8000 drop")))
    assert seen["evidence"]["rules"] == ["nft inet filter input: tcp dport 8000 drop"]
    assert seen["evidence"]["tools"] == ["nft"]


FOREIGN = (
    "# Warning: table ip filter is managed by iptables-nft, do not touch!\ntable ip filter {\n\tchain INPUT {\n"
    "\t\ttype filter hook input priority filter; policy drop;\n"
    '\t\tip protocol tcp xt match "multiport" accept\n\t}\n}\n'
)


def test_tables_of_iptables_are_read_by_iptables(tools):
    accepted = iptables("-A INPUT -p tcp -m multiport --dports 8000 -j ACCEPT", policy="DROP")
    assert wall(tools(nft=nft(more=FOREIGN), iptables_save=accepted))["value"] == "open"
    assert wall(tools(nft=nft("tcp dport 8000 drop", more=FOREIGN), iptables_save=accepted))["value"] == "dropped"


def test_no_tool_is_installed(tools):
    with pytest.raises(Absent, match="neither nft nor iptables"):
        wall(tools())


@pytest.mark.parametrize(
    "answer",
    [
        (1, "", "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed\n"),
        (4, "", "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied\n"),
    ],
)
def test_the_firewall_may_not_be_seen(tools, answer):
    with pytest.raises(NoAnswer, match=r"The firewall may not be seen by .*; run with -b") as caught:
        wall(tools(nft=answer))
    assert caught.value.kind == "permission"


def test_no_rules_for_who_is_not_root_is_no_answer(tools, monkeypatch):
    at = tools(iptables_save="")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(NoAnswer, match="may not be seen"):
        wall(at)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert wall(tools(iptables_save=""))["value"] == "open"


def test_the_real_tools_of_this_machine():
    """Whatever is installed here and whoever asks, there is an answer of one of three kinds."""
    try:
        assert look("host", value="firewall", port=helpers.free_port())["value"] in ("open", "dropped")
    except Absent as absent:
        assert str(absent) == "This host has neither nft nor iptables."
    except NoAnswer as error:
        assert error.kind in ("permission", "error")


# --- what it is asked


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"value": "firewall", "port": 0}, "port is 0; it goes from 1 to 65535"),
        ({"value": "oom_kills", "seconds": 0}, "seconds is 0; it is a number above 0"),
        ({"value": "disk_used", "paths": []}, "paths is empty; name at least one path"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        host.validate(source("host", **values))


def test_description():
    assert host.describe(source("host", value="load")) == "host load"
    assert host.describe(source("host", value="disk_used", paths=["/", "/var"])) == "host disk_used / /var"
    assert host.describe(source("host", value="firewall", port=80)) == "host firewall port 80"


def test_what_needs_no_program_starts_none():
    ran = []

    def run(command):
        ran.append(command)
        return 1, "", ""

    for value in ("memory_used", "cpu_used", "load", "disk_used"):
        assert look("host", Context(5.0, 0.0, {}, run), value=value)["value"] >= 0
    assert ran == []


@pytest.mark.parametrize("value", ["memory_used", "cpu_used", "disk_used", "oom_kills", "firewall"])
def test_by_who_is_not_root(value):
    """What everybody may see has a value; the rest says that it is a permission that is missing."""
    said = helpers.python(
        """
        import sys
        from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
        from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
        exec(helpers.BECOME_NOBODY)
        try:
            seen = helpers.look("host", helpers.context(sample_seconds=0.2), value=sys.argv[1], port=8000)
            print("value", seen["value"])
        except Absent:
            print("absent")
        except NoAnswer as error:
            print(error.kind)
        """,
        value,
    )
    if value == "firewall":
        assert said in ("permission", "absent")
    elif value == "oom_kills":
        assert said == "permission" or said.startswith("value ")
    else:
        assert said.startswith("value ")

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe host: memory, CPU, disks, kills for lack of memory and firewall rules of the machine of a service."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, judge, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

TOP = 5
PROC = "/proc"
KMSG = "/dev/kmsg"
# The kernel cuts a name after fifteen characters, and it may hold parentheses.
KILLED = re.compile(r"Killed process (\d+) \((.{1,15})\)")

SPEC: dict[str, t.Any] = {
    "value": {
        "type": "str",
        "choices": [
            "memory_used",
            "swap_used",
            "cpu_used",
            "load",
            "disk_used",
            "inodes_used",
            "oom_kills",
            "firewall",
        ],
        "required": True,
    },
    "paths": {"type": "list", "elements": "path", "default": ["/"]},
    "seconds": {"type": "float", "default": 3600.0},
    "port": {"type": "int"},
    "unit": {"type": "str"},
    "victims": {"type": "str", "default": ""},
}
RULES: dict[str, t.Any] = {"required_if": [("value", "firewall", ("port",))]}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    if source["port"] is not None and not 0 < source["port"] < 65536:
        raise ValueError(f"port is {source['port']}; it goes from 1 to 65535")
    if source["seconds"] <= 0:
        raise ValueError(f"seconds is {source['seconds']}; it is a number above 0")
    try:
        re.compile(source["victims"])
    except re.error as error:
        raise ValueError(f"victims is {source['victims']!r}, which is no regular expression ({error})") from None
    if not source["paths"]:
        raise ValueError("paths is empty; name at least one path")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    kind = source["value"]
    if kind in ("disk_used", "inodes_used"):
        return f"host {kind} {' '.join(source['paths'])}"
    return f"host {kind} port {source['port']}" if kind == "firewall" else f"host {kind}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Give the value that was asked for."""
    looks: dict[str, t.Callable[[], dict[str, t.Any]]] = {
        "memory_used": lambda: _memory(context),
        "swap_used": _swap,
        "cpu_used": lambda: _cpu(context),
        "load": _load,
        "disk_used": lambda: _disks(source["paths"], _blocks),
        "inodes_used": lambda: _disks(source["paths"], _inodes),
        "oom_kills": lambda: _oom_kills(context, source),
        "firewall": lambda: _firewall(context, source["port"]),
    }
    return looks[source["value"]]()


# --- memory and CPU


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", procfs.read(f"{PROC}/meminfo"), re.MULTILINE)
    return {name: int(number) * 1024 for name, number in found}


def _memory(context: Context) -> dict[str, t.Any]:
    numbers = meminfo()
    total, available = numbers["MemTotal"], numbers["MemAvailable"]
    evidence: dict[str, t.Any] = {"total": total, "available": available}
    note = None
    group = _container()
    if group and group[0] < total:
        total, used = group
        evidence.update(available=max(0, total - used), limit=total)
        note = "of the memory limit of this container"
    evidence["top"] = [
        {"pid": pid, "name": procfs.name(pid), "rss": rss, "share": round(rss / total, 4)}
        for rss, pid in context.once(("resident",), _resident)
    ]
    return {"value": 1 - evidence["available"] / total, "evidence": evidence, "note": note}


def _container() -> tuple[int, int] | None:
    """The memory limit of the control group that this host itself lives in, and what it uses and cannot drop."""
    for folder, current, inactive in (
        (procfs.CGROUP, "memory.current", "inactive_file"),
        (f"{procfs.CGROUP}/memory", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = procfs.memory_limit([folder])
        if limit is None:
            continue
        try:
            droppable = re.search(rf"^{inactive} (\d+)$", procfs.read(f"{folder}/memory.stat"), re.MULTILINE)
            used = int(procfs.read(f"{folder}/{current}"))
        except OSError:
            continue
        return limit, max(0, used - (int(droppable[1]) if droppable else 0))
    return None


def _resident() -> list[tuple[int, int]]:
    found = []
    for pid in procfs.pids():
        try:
            found.append((procfs.resident_bytes(pid), pid))
        except OSError:
            continue
    return sorted(found, reverse=True)[:TOP]


def _swap() -> dict[str, t.Any]:
    numbers = meminfo()
    total, free = numbers.get("SwapTotal", 0), numbers.get("SwapFree", 0)
    if not total:
        raise Absent("This host has no swap.")
    return {"value": 1 - free / total, "evidence": {"total": total, "free": free}}


def _cpu_now() -> tuple[list[int], dict[int, float]]:
    """The clock ticks of all cores by what they were spent on, and the seconds of each process."""
    # What guests used is part of user and nice already.
    ticks = [int(word) for word in procfs.read(f"{PROC}/stat").split("\n", 1)[0].split()[1:9]]
    used = {}
    for pid in procfs.pids():
        try:
            used[pid] = procfs.cpu_seconds(pid)
        except (OSError, IndexError):
            continue
    return ticks, used


def _cpu(context: Context) -> dict[str, t.Any]:
    first, second, between = context.pair(("host cpu",), _cpu_now)
    note = None
    top: list[dict[str, t.Any]] = []
    if second is None:
        spent = first[0]
        note = "average since boot, without a sample time"
    else:
        spent = [max(0, after - before) for before, after in zip(first[0], second[0])]
        gained = [(used - first[1].get(pid, 0.0), pid) for pid, used in second[1].items()]
        top = [
            {"pid": pid, "name": procfs.name(pid), "cpu": round(100 * seconds / between, 1)}
            for seconds, pid in sorted(gained, reverse=True)[:TOP]
            if seconds > 0
        ]
    total = sum(spent)
    if not total:
        raise NoAnswer("The CPU times did not change between two reads; set runbook_sample_seconds higher.", "no data")
    evidence: dict[str, t.Any] = {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "iowait": round(spent[4] / total, 4),
        "steal": round(spent[7] / total, 4),
    }
    if second is not None:
        evidence.update(window=f"{between:.1f} s", top=top)
    return {"value": 1 - (spent[3] + spent[4]) / total, "evidence": evidence, "note": note}


def _load() -> dict[str, t.Any]:
    cores = os.cpu_count() or 1
    one, five, fifteen = (round(number, 2) for number in os.getloadavg())
    evidence = {"cores": cores, "load_1": one, "load_5": five, "load_15": fifteen}
    return {"value": one / cores, "evidence": evidence}


# --- disks


def _blocks(seen: os.statvfs_result) -> tuple[int, int]:
    """Used and available bytes; what is kept for root is neither, as df has it."""
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize, seen.f_bavail * seen.f_frsize


def _inodes(seen: os.statvfs_result) -> tuple[int, int]:
    return seen.f_files - seen.f_ffree, seen.f_ffree


def _disks(paths: t.Sequence[str], count: t.Callable[[os.statvfs_result], tuple[int, int]]) -> dict[str, t.Any]:
    rows: list[dict[str, t.Any]] = []
    unseen, uncounted, refused = [], [], False
    for path in paths:
        try:
            used, available = count(os.statvfs(path))
        except PermissionError:
            refused = True
            unseen.append(f"{path} may not be looked at by {procfs.user(os.geteuid())}; run with -b")
            continue
        except OSError as error:
            unseen.append(f"{path} cannot be looked at ({error.strerror})")
            continue
        if used + available <= 0:
            uncounted.append(path)
            continue
        share = used / (used + available)
        rows.append({"path": path, "share": round(share, 4), "used": used, "available": available})
    if not rows and unseen:
        raise NoAnswer(f"{unseen[0]}.", "permission" if refused else "no data")
    if not rows:
        raise Absent(f"The file system of {', '.join(uncounted)} does not count them.")
    worst = max(rows, key=lambda row: t.cast(float, row["share"]))
    return {
        "value": worst["used"] / (worst["used"] + worst["available"]),
        "evidence": {"worst": worst["path"], "paths": rows},
        "note": "; ".join(unseen) or None,
    }


# --- kills for lack of memory


@dataclass
class _KernelLog:
    """Who was killed (when, PID, name), oldest first, and what the log does not cover."""

    victims: list[tuple[float, int, str]]
    note: str | None = None


def _victims(lines: t.Iterable[tuple[float, str]], since: float) -> list[tuple[float, int, str]]:
    found = []
    for at, text in lines:
        killed = KILLED.search(text)
        if killed and at >= since:
            found.append((at, int(killed[1]), killed[2]))
    return found


def _journal(context: Context, since: float) -> _KernelLog | None:
    """The kernel's messages in the journal; None where they are not there or may not be read."""
    tool = shutil.which("journalctl")
    if tool is None:
        return None
    # Not --dmesg, which stops at the last boot; short-unix is the one form that has a time without a zone.
    command = [tool, "_TRANSPORT=kernel", "--output=short-unix", "--no-pager"]
    for limits in ([f"--since=@{int(since)}", "--lines=200000"], ["--lines=1"]):
        status, output, errors = _run(context, [*command, *limits])
        if status or "insufficient permissions" in errors or "not seeing messages" in errors:
            return None
        lines = [(float(found[1]), found[2]) for found in re.finditer(r"^(\d+\.\d+) (.*)$", output, re.MULTILINE)]
        if lines:
            return _KernelLog(_victims(lines, since))
    # Not even one message of the kernel: this journal does not keep them.
    return None


def _kmsg(context: Context, since: float) -> _KernelLog | None:
    """The kernel's own buffer; None where it may not be read."""
    content = b""
    try:
        buffer = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        end = time.monotonic() + context.timeout
        while time.monotonic() < end:
            try:
                piece = os.read(buffer, 65536)
            except BrokenPipeError:
                continue  # overwritten while it was read
            except BlockingIOError:
                break
            if not piece:
                break
            content += piece
    except OSError:
        return None
    finally:
        os.close(buffer)
    # The kernel stamps its messages with the time since boot.
    booted = time.time() - time.monotonic()
    records = re.findall(r"^\d+,\d+,(\d+),[^;\n]*;(.*)$", content.decode(errors="replace"), re.MULTILINE)
    if not records:
        return None
    lines = [(booted + int(microseconds) / 1e6, text) for microseconds, text in records]
    reach = time.time() - lines[0][0]
    short = f"the kernel log reaches back {reach:.0f} s only" if lines[0][0] > since else None
    return _KernelLog(_victims(lines, since), short)


def _kernel_log(context: Context, seconds: float) -> _KernelLog | None:
    since = time.time() - seconds
    return _journal(context, since) or _kmsg(context, since)


def _group_kills(source: t.Mapping[str, t.Any]) -> int | None:
    """The kills in the control group of the unit, else of what listens on the port."""
    found = procfs.unit_pids(source["unit"]) if source["unit"] else []
    if not found and source["port"]:
        found = procfs.listeners(source["port"])
    try:
        folders = procfs.memory_groups(found[0]) if found else []
    except OSError:
        return None
    return procfs.oom_kills(folders[0]) if folders else None


def _oom_kills(context: Context, source: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    seconds = source["seconds"]
    evidence: dict[str, t.Any] = {}
    notes = []
    group = None
    if source["unit"] or source["port"]:
        try:
            group = _group_kills(source)
        except NoAnswer as error:
            notes.append(str(error))
    if group is not None:
        evidence["cgroup_oom_kills"] = group
        notes.append("cgroup_oom_kills counts since the control group exists, without times")
    since_boot = re.search(r"^oom_kill (\d+)$", procfs.read(f"{PROC}/vmstat"), re.MULTILINE)
    if since_boot:
        evidence["since_boot"] = int(since_boot[1])
    log = context.once(("kernel log", seconds), lambda: _kernel_log(context, seconds))
    if log:
        evidence["window"] = f"{seconds:g} s"
        wanted = [victim for victim in log.victims if re.search(source["victims"], victim[2])]
        others = [victim for victim in log.victims if victim not in wanted]
        for key, victims in (("victims", wanted), ("other_victims", others)):
            if victims or key == "victims":
                evidence[key] = [
                    {"pid": pid, "name": name, "at": clock.utc(at)} for at, pid, name in reversed(victims[-TOP:])
                ]
        if others:
            names = ", ".join(dict.fromkeys(name for _at, _pid, name in others[-TOP:]))
            notes.append(f"the kernel also killed {names}, which is not this service's")
        if log.note:
            notes.append(log.note)
        return {"value": len(wanted), "evidence": evidence, "note": "; ".join(notes) or None}
    if evidence.get("since_boot") == 0:
        notes.append("none since boot; the kernel log was not read")
        return {"value": 0, "evidence": evidence, "note": "; ".join(notes)}
    if group:
        notes.append("the kernel log may not be read, so when is not known")
        evidence["window"] = judge.SINCE_START
        return {"value": group, "evidence": evidence, "note": "; ".join(notes)}
    many = f"{since_boot[1]} since boot" if since_boot else "not counted here"
    raise NoAnswer(
        f"When the kernel killed processes for memory ({many}) is in the kernel log, which "
        f"{procfs.user(os.geteuid())} may not read; run with -b, or join the group systemd-journal or adm.",
        "permission",
    )


def _run(context: Context, command: list[str]) -> tuple[int, str, str]:
    # Of coreutils, for the module's run_command has no deadline.
    return context.run([shutil.which("timeout") or "/usr/bin/timeout", str(context.timeout), *command])


# --- the firewall, as a hint: what its rules say of a new TCP connection from somewhere else


@dataclass
class _Rule:
    """A rule that may apply to the port: whether it names it, and whether only to some packets or in some places."""

    text: str
    verdict: str
    target: str = ""
    named: bool = False
    few: bool = False
    place: bool = False


@dataclass
class _Chain:
    name: str
    rules: list[_Rule] = field(default_factory=list)
    # Only those where packets come in have one.
    policy: str | None = None
    ipv6: bool = False


@dataclass
class _Seen:
    """What the walk through the chains met."""

    drops: list[str] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    some: list[str] = field(default_factory=list)


def _has_port(text: str, port: int) -> bool:
    """Whether a port is among these: 80, 8000-8100, 8000:8100, lists of them, and 0- and -1023 without an end."""
    for word in re.split(r"[,\s]+", text.strip("{} ")):
        low, dash, high = word.replace(":", "-").partition("-")
        if not (low or "0").isdigit() or not (high or "0").isdigit() or not (low or high):
            continue
        if (int(low or 0) <= port <= int(high or 65535)) if dash else int(low) == port:
            return True
    return False


def parse_iptables(text: str, port: int, ipv6: bool = False) -> dict[str, _Chain]:
    """The chains in the output of iptables-save with the rules that may apply to the port."""
    chains: dict[str, _Chain] = {}
    tool = "ip6tables" if ipv6 else "iptables"
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chain = _Chain(f"{tool} {table} {name}", ipv6=ipv6)
            if policy != "-" and (name == "INPUT" or (name == "PREROUTING" and table != "nat")):
                chain.policy = policy.lower()
            chains[f"{table} {name}"] = chain
        elif line.startswith("-A "):
            words = shlex.split(line)
            rule = _iptables_rule(line, words[2:], port)
            if rule and f"{table} {words[1]}" in chains:
                rule.target = f"{table} {rule.target}"
                chains[f"{table} {words[1]}"].rules.append(rule)
    return chains


def _iptables_rule(line: str, words: t.Sequence[str], port: int) -> _Rule | None:
    """What a rule says; None where it does not apply to TCP to this port from elsewhere."""
    rule = _Rule(line, "")
    verdicts = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
    place = 0
    while place < len(words):
        negated = words[place] == "!"
        place += negated
        option = words[place] if place < len(words) else ""
        end = place + 1
        while end < len(words) and words[end] != "!" and not re.match("--?[a-z]", words[end]):
            end += 1
        values = words[place + 1 : end]
        value = values[0] if values else ""
        place = end
        if option in ("-j", "-g"):
            rule.verdict = verdicts.get(value, "jump" if option == "-j" else "goto")
            rule.target = value
        elif option == "-p":
            if (value in ("tcp", "all")) == negated:
                return None
        elif option in ("--dport", "--dports", "--ports"):
            if _has_port(value, port) == negated:
                return None
            rule.named = rule.named or not negated
        elif option == "-i":
            if value == "lo" and not negated:
                return None
            rule.place = rule.place or value != "lo"
        elif option == "-d" or (option == "-s" and negated):
            rule.place = True
        elif option in ("--ctstate", "--state"):
            rule.few = rule.few or ("NEW" in value.split(",")) == negated
        elif option == "--tcp-flags":
            rule.few = rule.few or values[-1:] != ["SYN"]
        elif option not in ("-m", "-c", "--comment", "--syn", "--reject-with") and not option.startswith("--log"):
            rule.few = True
    return rule


_SET = r"(?:!= )?(?:\{[^}]*\}|\S+)"
# What does not narrow a rule of nft.
_NEUTRAL = re.compile(
    "|".join(
        (
            r'comment "[^"]*"',
            r'log(?: (?:prefix "[^"]*"|level \w+|flags \w+|group \d+))*',
            r"counter(?: packets \d+ bytes \d+)?",
            r"(?:meta )?l4proto (?:tcp|\{[^}]*\btcp\b[^}]*\})",
            r"ip protocol tcp|ip6 nexthdr tcp|meta nfproto ipv[46]",
            r"ct state (?:\{[^}]*\bnew\b[^}]*\}|[\w,]*\bnew\b[\w,]*)",
            r"tcp flags \S+ / \S+ == syn|tcp flags [^=]*== syn|tcp flags syn / \S+",
            r'iif(?:name)? != "?lo"?',
        )
    )
)
_VERDICT = re.compile(r"(?:^| )(accept|drop|reject|return|jump|goto)(?: with [\w -]+| (\S+))?$")
_DPORT = re.compile(r"\b(?:tcp|th) dport (!= )?(\{[^}]*\}|\S+)")
_PLACE = re.compile(rf"(?:meta )?iif(?:name)? {_SET}|ip6? daddr {_SET}|ip6? saddr != {_SET}|fib daddr type local")


def parse_nft(text: str, port: int, without: t.Collection[str] = ()) -> dict[str, _Chain]:
    """The chains in the output of nft list ruleset with the rules that may apply to the port.

    Without the tables of iptables of these families, which nft shows in a form that only iptables-save reads well.
    """
    chains: dict[str, _Chain] = {}
    rules: list[tuple[_Chain, str, str]] = []
    sets: dict[str, str] = {}
    table = block = name = foreign = ""
    skipped = False
    lines = iter(text.splitlines())
    for raw in lines:
        line = raw.strip()
        if line.startswith("# Warning: table ") and "managed by iptables-nft" in line:
            foreign = " ".join(line.split()[3:5])
        opened = re.match(r"(table|chain|set|map|flowtable|counter|quota|limit|ct \w+) (.*?) ?\{", line)
        if opened and line.endswith("{"):
            if opened[1] == "table":
                table = opened[2]
                skipped = table.split()[0] in ("arp", "bridge") or (table == foreign and table.split()[0] in without)
            block = opened[1]
            if block == "chain" and not skipped:
                chain = _Chain(f"nft {table} {opened[2]}", ipv6=table.startswith("ip6 "))
                chains[f"{table} {opened[2]}"] = chain
            name = f"{table} {opened[2]}"
            continue
        # A set may go over several lines.
        pieces = [line]
        open_braces = line.count("{") - line.count("}")
        while open_braces > 0:
            pieces.append(next(lines, "}").strip())
            open_braces += pieces[-1].count("{") - pieces[-1].count("}")
        line = " ".join(pieces)
        if not table or skipped:
            continue
        if block == "set" and line.startswith("elements = "):
            sets[name] = line.partition("{")[2].rpartition("}")[0]
        elif block == "chain" and (hook := re.match(r"type (\w+) hook (\w+) ", line)):
            if hook[2] == "input" or (hook[1] == "filter" and hook[2] in ("prerouting", "ingress")):
                policy = re.search(r"policy (\w+)", line)
                chain.policy = policy[1] if policy else "accept"
        elif block == "chain" and line not in ("", "}"):
            rules.append((chain, table, line))
    for chain, table, line in rules:
        rule = _nft_rule(line, table, sets, port)
        if rule:
            rule.target = f"{table} {rule.target}"
            chain.rules.append(rule)
    return chains


def _nft_rule(line: str, table: str, sets: t.Mapping[str, str], port: int) -> _Rule | None:
    """What a rule says; None where it does not apply to TCP to this port from elsewhere."""
    rule = _Rule(line, "")
    rest = " ".join(_NEUTRAL.sub(" ", line).split())
    verdict = _VERDICT.search(rest)
    if verdict:
        rule.verdict = {"reject": "drop"}.get(verdict[1], verdict[1])
        rule.target = verdict[2] or ""
        rest = rest[: verdict.start()]
    ports = _DPORT.search(rest)
    if ports:
        among = sets.get(f"{table} {ports[2][1:]}", "") if ports[2].startswith("@") else ports[2]
        if _has_port(among, port) == bool(ports[1]):
            return None
        rule.named = not ports[1]
        rest = _DPORT.sub(" ", rest)
    if re.search(r"\b(?:udp|udplite|icmp|icmpv6|ipv6-icmp|igmp|sctp|dccp|esp|ah|vrrp)\b", rest):
        return None
    if re.search(r'\biif(?:name)? "?lo"?(?: |$)', rest):
        return None
    rule.place = bool(_PLACE.search(rest))
    rule.few = bool(_PLACE.sub(" ", rest).strip())
    return rule


def _walk(chains: t.Mapping[str, _Chain], key: str, above: _Rule, seen: _Seen, depth: int = 0) -> str | None:
    """What happens to the connection in a chain: accept, drop, or None where it comes out at the end."""
    chain = chains.get(key)
    # The kernel allows no more than this; a circle can only be a text that was misread.
    for rule in chain.rules if chain and depth < 16 else ():
        named, few, place = rule.named or above.named, rule.few or above.few, rule.place or above.place
        text = f"{chain.name}: {rule.text}" if chain else rule.text
        if rule.verdict == "accept" and (named or not (few or place)):
            if not few:
                return "accept"
            seen.some.append(text)
        elif rule.verdict == "drop" and (named or not (few or place)):
            if not few:
                (seen.drops if named else seen.policies).append(text)
                return "drop"
        elif rule.verdict in ("jump", "goto"):
            inner = _Rule(rule.text, "", named=named, few=few, place=place)
            result = _walk(chains, rule.target, inner, seen, depth + 1)
            if result:
                return result
            if rule.verdict == "goto" and not (few or place):
                return None
        elif rule.verdict == "return" and not (few or place):
            return None
    return None


def _rulesets(context: Context) -> dict[str, str]:
    """What each tool prints; NoAnswer where one of them may not look."""
    printed: dict[str, str] = {}
    searched = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    for tool, words in (("nft", ["list", "ruleset"]), ("iptables-save", []), ("ip6tables-save", [])):
        path = shutil.which(tool, path=searched)
        if path is None:
            continue
        status, output, errors = _run(context, [path, *words])
        if status == 124:
            raise NoAnswer(f"{tool} does not end within {context.timeout:g} s.", "timeout")
        # Who may not look is told of no rules at all by some versions.
        if status or (not output.strip() and os.geteuid() != 0):
            said = (errors.strip().splitlines() or [f"status {status}"])[0]
            raise NoAnswer(
                f"The firewall may not be seen by {procfs.user(os.geteuid())} ({tool}: {said}); run with -b.",
                "permission" if os.geteuid() != 0 or re.search("ermi(?:tted|ssion)", errors) else "error",
            )
        printed[tool] = output
    if not printed:
        raise Absent("This host has neither nft nor iptables.")
    return printed


def _firewall(context: Context, port: int) -> dict[str, t.Any]:
    printed = context.once(("firewall",), lambda: _rulesets(context))
    read_well = [family for family, tool in (("ip", "iptables-save"), ("ip6", "ip6tables-save")) if tool in printed]
    seen = _Seen()
    dropping: list[_Chain] = []
    for tool, text in printed.items():
        chains = (
            parse_nft(text, port, read_well) if tool == "nft" else parse_iptables(text, port, tool.startswith("ip6"))
        )
        for key, chain in chains.items():
            if chain.policy is None:
                continue
            mine = _Seen()
            result = _walk(chains, key, _Rule("", ""), mine)
            if result is None and chain.policy == "drop":
                mine.policies.append(f"{chain.name}: policy drop")
                result = "drop"
            # A port that some may use is meant to be open to them, unless a rule of its own drops the others.
            if result == "drop" and (mine.drops or not mine.some):
                dropping.append(chain)
                seen.drops += mine.drops
                seen.policies += mine.policies
            seen.some += mine.some
    evidence: dict[str, t.Any] = {"tools": sorted(printed)}
    if seen.drops:
        evidence["rules"] = seen.drops[:TOP]
    if seen.policies:
        evidence["policy"] = seen.policies[:TOP]
    if seen.some:
        evidence["open_to_some"] = seen.some[:TOP]
    notes = ["a hint from this host's rules; a firewall elsewhere is not seen"]
    if dropping and all(chain.ipv6 for chain in dropping):
        notes.append("over IPv6 only")
    return {"value": "dropped" if dropping else "open", "evidence": evidence, "note": "; ".join(notes)}

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what Linux tells about processes in /proc; see proc(5). Nothing is started, nothing is written."""

from __future__ import annotations

import os
import pwd
import re
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

LISTEN = "0A"
ESTABLISHED = "01"
_TICKS = os.sysconf("SC_CLK_TCK")
TICK = 1 / _TICKS
_PAGE = os.sysconf("SC_PAGE_SIZE")


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def sockets(port: int, state: str) -> list[tuple[str, int]]:
    """The (inode, owner's uid) of every TCP socket in this state whose local port is `port`."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = read(table).splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == state and int(words[1].rpartition(":")[2], 16) == port:
                found.append((words[9], int(words[7])))
    return found


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _all_open() -> t.Iterator[tuple[int, str | None]]:
    """Every open file of every process, as its link in /proc; None for a process that may not be looked into."""
    for pid in pids():
        folder = f"/proc/{pid}/fd"
        try:
            links = os.listdir(folder)
        except PermissionError:
            yield pid, None
            continue
        except OSError:
            continue
        for link in links:
            yield pid, f"{folder}/{link}"


def holders(inodes: t.Iterable[str]) -> list[int]:
    """The processes that hold one of these sockets open, as far as this user may see."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for pid, link in _all_open():
        if link is None or pid in found:
            continue
        try:
            if os.readlink(link) in wanted:
                found.append(pid)
        except OSError:
            continue
    return found


DELETED = " (deleted)"


def open_files_of(inodes: t.Mapping[tuple[int, int], str], path: str) -> tuple[dict[int, set[str]], bool]:
    """Who has one of these files open, by (device, inode): {pid: names}; and whether every process could be seen.

    A file that was at `path` and is deleted counts as well, with `DELETED` after its name.
    """
    found: dict[int, set[str]] = {}
    complete = True
    for pid, link in _all_open():
        if link is None:
            complete = False
            continue
        try:
            # What is not a path is no file, and a file of another mount namespace has another path.
            target = os.readlink(link)
            if not target.startswith("/"):
                continue
            status = os.stat(link)
        except OSError:
            continue
        name = inodes.get((status.st_dev, status.st_ino))
        if target == path + DELETED:
            name = os.path.basename(target)
        if name is not None:
            found.setdefault(pid, set()).add(name)
    return found, complete


def writers_of(device: int, inode: int) -> tuple[list[int], bool]:
    """The processes that have a file open for writing, and whether every process could be seen."""
    found = []
    complete = True
    for pid, link in _all_open():
        if link is None:
            complete = False
            continue
        try:
            status = os.stat(link)
            if (status.st_dev, status.st_ino) != (device, inode):
                continue
            flags = re.search(r"^flags:\s+([0-7]+)$", read(link.replace("/fd/", "/fdinfo/")), re.MULTILINE)
        except OSError:
            continue
        if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY and pid not in found:
            found.append(pid)
    return found, complete


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def listeners(port: int) -> list[int]:
    """The processes that listen on a TCP port, oldest first; empty when nobody does."""
    open_sockets = sockets(port, LISTEN)
    if not open_sockets:
        return []
    found = holders(inode for inode, _uid in open_sockets)
    if not found:
        raise NoAnswer(
            f"Port {port} is listened on by a process of {user(open_sockets[0][1])}, "
            f"which {user(os.geteuid())} may not look into; run with -b.",
            "permission",
        )
    return sorted(found, key=lambda pid: (started(pid), pid))


def unit_pids(unit: str) -> list[int]:
    """The processes of a systemd unit, from its control group."""
    name = unit if "." in unit else f"{unit}.service"
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
        for folder in (f"{root}/system.slice/{name}", *_user_units(root, name)):
            try:
                words = read(f"{folder}/cgroup.procs").split()
            except OSError:
                continue
            if words:
                return sorted((int(word) for word in words), key=lambda pid: (started(pid), pid))
    return []


def _user_units(root: str, name: str) -> list[str]:
    uid = os.geteuid()
    return [f"{root}/user.slice/user-{uid}.slice/user@{uid}.service/app.slice/{name}"]


def _stat(pid: int) -> list[str]:
    # The command name stands in parentheses and may hold spaces and parentheses itself.
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def boot_time() -> float:
    found = re.search(r"^btime (\d+)", read("/proc/stat"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def started(pid: int) -> float:
    """When the process started, in seconds since 1970; infinity when it is gone."""
    try:
        return boot_time() + int(_stat(pid)[19]) / _TICKS
    except (OSError, IndexError):
        return float("inf")


def age(pid: int) -> float | None:
    """The seconds for which the process has been there, to a clock tick (`started`: to a second); None: gone."""
    try:
        return float(read("/proc/uptime").split()[0]) - int(_stat(pid)[19]) / _TICKS
    except (OSError, IndexError):
        return None


def start_ticks(pid: int) -> str | None:
    """The start in clock ticks since boot, which with the PID names one process for ever; None when it has ended."""
    try:
        words = _stat(pid)
        return words[19] if words[0] not in "ZX" else None
    except (OSError, IndexError):
        return None


def state(pid: int) -> str | None:
    """The letter that proc(5) has for what the process is doing: T is stopped."""
    try:
        return _stat(pid)[0]
    except (OSError, IndexError):
        return None


def parent(pid: int) -> int | None:
    try:
        return int(_stat(pid)[1])
    except (OSError, IndexError):
        return None


def children(pid: int) -> list[int]:
    """All processes below this one."""
    below: dict[int, list[int]] = {}
    for other in pids():
        above = parent(other)
        if above is not None:
            below.setdefault(above, []).append(other)
    found, todo = [], list(below.get(pid, ()))
    while todo:
        child = todo.pop(0)
        found.append(child)
        todo.extend(below.get(child, ()))
    return found


def cpu_seconds(pid: int) -> float:
    words = _stat(pid)
    return (int(words[11]) + int(words[12])) / _TICKS


def resident_bytes(pid: int) -> int:
    return int(read(f"/proc/{pid}/statm").split()[1]) * _PAGE


def memory_bytes(pids: t.Sequence[int]) -> int:
    """What processes have in memory; of several, what they share is counted once where that may be seen."""
    if len(pids) > 1:
        try:
            rollups = [read(f"/proc/{pid}/smaps_rollup") for pid in pids]
            shares = [re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE) for text in rollups]
            if all(shares):
                return sum(int(found[1]) * 1024 for found in shares if found)
        except OSError:
            pass
    return sum(map(resident_bytes, pids))


def name(pid: int) -> str:
    """The program's name. Its arguments may hold secrets and are not read."""
    try:
        return read(f"/proc/{pid}/comm").strip()
    except OSError:
        return "?"


def open_files(pid: int) -> tuple[int, int | None]:
    """How many files are open, and how many may be."""
    found = re.search(r"^Max open files\s+(\S+)", read(f"/proc/{pid}/limits"), re.MULTILINE)
    limit = int(found[1]) if found and found[1].isdigit() else None
    return len(os.listdir(f"/proc/{pid}/fd")), limit


def devices(pid: int, prefixes: t.Sequence[str]) -> list[str]:
    """The device files with these prefixes that the process has open."""
    found = set()
    for link in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{link}")
        except OSError:
            continue
        if target.startswith(tuple(prefixes)):
            found.add(target)
    return sorted(found)


def output_of(pid: int) -> str:
    """Where standard output goes: a file's path, `journal:<unit>`, or '' when it cannot be read afterwards."""
    for number in (1, 2):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except PermissionError as error:
            raise NoAnswer(
                f"The output of process {pid} may not be seen by {user(os.geteuid())}; run with -b.", "permission"
            ) from error
        except OSError:
            continue
        if target.startswith("/") and not target.startswith("/dev/") and os.path.isfile(target):
            return target
        if target.startswith("socket:"):
            unit = unit_of(pid)
            if unit:
                return f"journal:{unit}"
    return ""


def unit_of(pid: int) -> str:
    """The systemd unit that a process belongs to, or ''."""
    try:
        groups = read(f"/proc/{pid}/cgroup")
    except OSError:
        return ""
    found = re.findall(r"/([^/\n]+\.service)(?:/|$)", groups, re.MULTILINE)
    return found[-1] if found else ""


def command_line(pid: int) -> list[str]:
    """The arguments of a process. They may hold secrets: for starting it again and comparing, never for showing."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        content = file.read()
    return [os.fsdecode(word) for word in content[:-1].split(b"\0")] if content else []


def ancestors(pid: int) -> list[int]:
    """The processes above this one, nearest first."""
    found: list[int] = []
    above = parent(pid)
    while above and above not in found:
        found.append(above)
        above = parent(above)
    return found


CGROUP = "/sys/fs/cgroup"
# Version 1 says "no limit" with a number that no machine has.
_UNLIMITED = 1 << 60


def status(pid: int) -> dict[str, str]:
    """What /proc/<pid>/status says, by its names; everybody may read it."""
    return {
        key: value.strip()
        for key, _colon, value in (line.partition(":") for line in read(f"/proc/{pid}/status").splitlines())
    }


def memory_groups(pid: int) -> list[str]:
    """The folders of the control group that accounts for the memory of a process and of those above, nearest first."""
    groups = read(f"/proc/{pid}/cgroup")
    first = re.search(r"^\d+:(?:[^:\n]*,)?memory(?:,[^:\n]*)?:(/.*)$", groups, re.MULTILINE)
    found = first or re.search(r"^0::(/.*)$", groups, re.MULTILINE)
    # What lies outside of this container's control group cannot be seen from within.
    if not found or found[1].startswith("/.."):
        return []
    root, path = (f"{CGROUP}/memory" if first else CGROUP), found[1].rstrip("/")
    folders = []
    while path:
        folders.append(f"{root}{path}")
        path = path.rpartition("/")[0]
    return [folder for folder in [*folders, root] if os.path.isdir(folder)]


def memory_limit(folders: t.Iterable[str]) -> int | None:
    """The lowest memory limit of these control groups in bytes; None where none of them has one."""
    limits = []
    for folder in folders:
        for file in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = read(f"{folder}/{file}").strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits, default=None)


def oom_kills(folder: str) -> int | None:
    """How many processes of a control group the kernel has killed for memory since the group exists."""
    for file in ("memory.events", "memory.oom_control"):
        try:
            found = re.search(r"^oom_kill (\d+)$", read(f"{folder}/{file}"), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return None

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a service by its systemd unit, or by the process that its PID file or its port names. It changes nothing.

A process is what has this PID and this start time; never what matches a pattern, which may match whoever looks for it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import typing as t
from dataclasses import dataclass, field

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer

SUBJECT: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "manager": {"type": "str", "choices": ["auto", "systemd", "process", "none"], "default": "auto"},
    "unit": {"type": "str"},
    "port": {"type": "int"},
    "pid_file": {"type": "path"},
    "command": {"type": "str"},
    "directory": {"type": "path"},
    "environment_file": {"type": "path"},
    "log": {"type": "path"},
}
SYSTEMD = "/run/systemd/system"
_PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts", "TimeoutStopUSec", "EnvironmentFiles",
    "ExecMainStatus", "UnitFileState",
)  # fmt: skip

# The kernel tells when it booted in whole seconds, so a process may seem to begin a little after what it wrote.
_CLOCK_SECONDS = 5.0

Run = t.Callable[[list[str]], tuple[int, str, str]]


@dataclass
class Service:
    """What there is of a service now."""

    manager: str
    state: str
    pid: int | None = None
    started: float | None = None
    ticks: str | None = None
    pids: list[int] = field(default_factory=list)
    unit: str | None = None
    problem: str | None = None
    properties: dict[str, str] = field(default_factory=dict)
    text: str = ""
    by_hand: list[str] = field(default_factory=list)


def find(subject: t.Mapping[str, t.Any], run: Run) -> Service:
    """The service as it is; NoAnswer where that may not be seen."""
    manager, unit = subject["manager"], subject.get("unit")
    if unit and "." not in unit:
        unit = f"{unit}.service"
    if manager in ("auto", "systemd"):
        booted = os.path.isdir(SYSTEMD)
        properties = _show(unit, run) if booted and unit else {}
        if properties.get("LoadState") == "loaded":
            return _of_unit(subject, str(unit), properties)
        if manager == "systemd":
            why = (
                f"systemd does not run on this host, and {subject['name']} is said to be managed by it"
                if not booted
                else f"the unit {unit} of {subject['name']} {_not_loaded(properties)}"
            )
            problem = f"{why[0].upper()}{why[1:]}; name its unit, or another service manager."
            return Service("systemd", "missing", unit=unit, problem=problem, text=f"{unit} (missing)")
    if manager == "none":
        problem = f"{subject['name']} has no service manager here (none), so it cannot be restarted."
        return Service("none", "missing", problem=problem, text=f"{subject['name']} (no service manager)")
    found = _of_process(subject)
    if manager == "auto" and found.pid and os.path.isdir(SYSTEMD):
        # A unit under another name: what systemd has started is not started again behind its back.
        unit = procfs.unit_of(found.pid)
        properties = _show(unit, run) if unit else {}
        if properties.get("LoadState") == "loaded" and properties.get("MainPID") == str(found.pid):
            return _of_unit(subject, unit, properties)
    return found


def _not_loaded(properties: t.Mapping[str, str]) -> str:
    state = properties.get("LoadState")
    return "does not exist on this host" if state in (None, "", "not-found") else f"is {state}"


def _show(unit: str, run: Run) -> dict[str, str]:
    try:
        status, output, errors = run(["systemctl", "show", unit, f"--property={','.join(_PROPERTIES)}"])
    except OSError as error:
        raise NoAnswer(f"systemctl cannot be run: {error.strerror}.") from None
    if status:
        raise NoAnswer(f"systemctl show {unit} fails: {errors.strip() or output.strip()}.")
    return parse_show(output)


def parse_show(output: str) -> dict[str, str]:
    """What `systemctl show` prints, a property a line; of several of one name the last."""
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def _of_unit(subject: t.Mapping[str, t.Any], unit: str, properties: dict[str, str]) -> Service:
    active, sub = properties.get("ActiveState", ""), properties.get("SubState", "")
    pid = int(properties.get("MainPID") or 0) or None
    states = {"active": "running", "reloading": "running", "failed": "failed"}
    state = states.get(active, "stopped")
    started = procfs.started(pid) if pid else None
    since = f", running since {clock.utc(started)}" if started else f", {active} ({sub})"
    return Service(
        "systemd",
        state,
        pid=pid,
        started=started,
        ticks=procfs.start_ticks(pid) if pid else None,
        pids=procfs.unit_pids(unit) or ([pid] if pid else []),
        unit=unit,
        properties=properties,
        text=f"{unit} ({f'PID {pid}' if pid else 'no process'}{since})",
        by_hand=[f"sudo systemctl restart {unit}"],
    )


def environment_files(service: Service) -> list[str]:
    """The files that the unit reads its environment from."""
    words = service.properties.get("EnvironmentFiles", "").split()
    return [word for word in words if word.startswith("/")]


def stop_seconds(service: Service) -> float | None:
    """How long systemd waits for the unit to stop before it kills it."""
    text = service.properties.get("TimeoutStopUSec", "")
    if not text or text == "infinity":
        return None
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    total = 0.0
    for word in text.split():
        number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        total += float(number or 0) * units.get(word[len(number) :], 1.0)
    return total


def _of_process(subject: t.Mapping[str, t.Any]) -> Service:
    port, pid_file = subject.get("port"), subject.get("pid_file")
    if not port and not pid_file:
        problem = (
            f"{subject['name']} has no systemd unit here, and neither a port nor a PID file to find its process by."
        )
        return Service("process", "missing", problem=problem, text=f"{subject['name']} (not found)")
    named = f"on port {port}" if port else f"of {pid_file}"
    pid = pid_of_file(pid_file) if pid_file else None
    found = procfs.listeners(port) if port else []
    if pid is not None and found and pid not in found and not set(found) & set(procfs.children(pid)):
        raise NoAnswer(
            f"{pid_file} names PID {pid}, and PID {found[0]} listens on port {port}: correct the PID file or the port."
        )
    if pid is None and found:
        pid = main_of(found)
    state, why = "running", ""
    if pid is None and not pid_file:
        pid, state = _starting(subject), "starting"
        named = f"that does not listen on port {port} yet"
    if pid is None:
        what = f"nothing listens on port {port}" if port else f"{pid_file} names no running process"
        if not subject.get("command"):
            why = (
                f"{subject['name']} does not run ({what}), and nothing says how it is started; set its command or unit."
            )
        text = f"{subject['name']} ({what})"
        return Service("process", "stopped", problem=why or None, text=text, by_hand=_start_by_hand(subject))
    started = procfs.started(pid)
    if state == "starting":
        why = (
            f"{subject['name']} seems to be starting: PID {pid} runs its command since {clock.utc(started)} and does "
            f"not listen on port {port} yet; wait for it, or end it by hand."
        )
    return Service(
        "process",
        state,
        pid=pid,
        started=started,
        ticks=procfs.start_ticks(pid),
        pids=[pid, *procfs.children(pid)],
        problem=why or None,
        text=f"PID {pid} ({procfs.name(pid)}) {named}, running since {clock.utc(started)}",
        by_hand=[f"kill -TERM {pid}", *_start_by_hand(subject)],
    )


def _starting(subject: t.Mapping[str, t.Any]) -> int | None:
    """The process that runs the service's command already. It is recognised by that, and never sent a signal."""
    try:
        command = shlex.split(subject.get("command") or "")
    except ValueError:
        return None
    if len(command) < 2:
        # One word, such as a program without arguments, is too little to know it by.
        return None
    own = {os.getpid(), *procfs.ancestors(os.getpid())}
    for pid in sorted(set(procfs.pids()) - own):
        with contextlib.suppress(OSError):
            # A script's interpreter stands before it.
            if procfs.command_line(pid)[-len(command) :] != command:
                continue
            with contextlib.suppress(PermissionError):
                if subject.get("directory") and not os.path.samefile(f"/proc/{pid}/cwd", subject["directory"]):
                    continue
            return pid
    return None


def _start_by_hand(subject: t.Mapping[str, t.Any]) -> list[str]:
    # What ran may have secrets among its arguments; what the inventory says is known to everybody who reads this.
    if not subject.get("command"):
        return ["start it as it was started before"]
    return [
        f"cd {subject['directory']} && {subject['command']}" if subject.get("directory") else str(subject["command"])
    ]


def main_of(pids: t.Sequence[int]) -> int:
    """Of the processes that share a socket, the one that has started the others."""
    members = set(pids)
    mains = [pid for pid in pids if procfs.parent(pid) not in members]
    return (mains or list(pids))[0]


def pid_of_file(path: str) -> int | None:
    """The running process that a PID file names; NoAnswer where the PID now belongs to another one."""
    try:
        words = procfs.read(path).split()
        written = os.stat(path).st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NoAnswer(f"The PID file {path} cannot be read: {error.strerror}.", "permission") from None
    if not words or not words[0].isdigit():
        raise NoAnswer(f"The PID file {path} holds no PID.")
    pid = int(words[0])
    began = procfs.started(pid)
    if procfs.start_ticks(pid) is None or began == float("inf"):
        return None
    if began > written + _CLOCK_SECONDS:
        raise NoAnswer(
            f"{path} names PID {pid}, which is {procfs.name(pid)} now and began after the file was written: "
            "a process that is gone had that number; remove the file."
        )
    return pid

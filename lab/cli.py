# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: `python -m lab up|down|status|faults|break|heal|start|stop|restart|install`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab import faults as catalogue
from lab import pidfile, service
from lab.layout import DEFAULT_BASE_PORT, HOST, Layout, Ports, claim, claim_free_ports
from lab.service import Service

_UP_SECONDS = 100.0
_DOWN_SECONDS = 15.0


class LabError(Exception):
    """One sentence for the user, and the exit status."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


def _parser(chosen: type[Service]) -> argparse.ArgumentParser:
    """Of a lab of this service: its options are those of `up` and `install`."""
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument(
        "--service", dest="which", choices=service.NAMES, default=chosen.name, help="whose lab (default: vritti)"
    )
    common = argparse.ArgumentParser(add_help=False, parents=[which])
    common.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("LAB_DIR") or _default_directory(chosen.name)),
        help="where the lab keeps its files (default: $LAB_DIR, else .lab, or .lab/SERVICE of another than vritti)",
    )
    parser = argparse.ArgumentParser(prog="lab", description="Stand-ins for the services with fault injection.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    up = command("up", "Start the lab in the background.")
    up.add_argument(
        "--base-port", type=int, default=DEFAULT_BASE_PORT, help="the first port (default: %(default)s; 0: any free)"
    )
    chosen.add_version_argument(up)
    chosen.add_arguments(up)
    up.add_argument(
        "--traffic",
        type=float,
        default=chosen.options_type.traffic,
        metavar="RPS",
        help="clients' requests per second (default: %(default)s)",
    )
    command("down", "Stop the lab.")
    command("status", "Show the lab's processes and addresses.")
    command("faults", "Show the faults and which of them are active.")
    broken = command("break", "Inject a fault.")
    broken.add_argument("service")
    broken.add_argument("fault")
    broken.add_argument("amount", nargs="?", type=float, help="how much of it, where `faults` names a default")
    heal = command("heal", "Clear one fault, or all of them and what they left behind.")
    heal.add_argument("service", nargs="?")
    heal.add_argument("fault", nargs="?")
    for change in ("start", "stop", "restart"):
        changed = command(change, f"{change.capitalize()} one of the lab's processes.")
        names = ", ".join(chosen.all_processes())
        changed.add_argument("process", type=lambda name: name.replace("_", "-"), help=names)
    text = "Run the service as systemd units, at the runbooks' ports (root)."
    install = commands.add_parser("install", help=text, description=text, parents=[which])
    install.add_argument("--prefix", type=Path, required=True, help="where the lab's code is, or is copied to")
    install.add_argument("--user", required=True, help="who runs the service")
    chosen.add_version_argument(install)
    supervise = commands.add_parser("supervise", parents=[common])
    supervise.add_argument("--options", required=True)
    supervise.add_argument("--control", required=True)
    return parser


def _chosen(arguments: list[str]) -> type[Service]:
    """The service that is meant: its options are not known before."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--service", choices=service.NAMES)
    named = first.parse_known_args(arguments)[0].service
    # A fault names its service as well.
    of_fault = [word for word in arguments[1:2] if arguments[0] in ("break", "heal") and word in service.NAMES]
    return service.find(named or next(iter(of_fault), service.NAMES[0]))


def _default_directory(name: str) -> str:
    return ".lab" if name == service.NAMES[0] else f".lab/{name}"


def _call(layout: Layout, method: str, path: str) -> Any:
    """Ask the supervisor of a running lab."""
    state = layout.read_state()
    if state is None or not layout.is_locked():
        raise LabError(f"No lab runs on {layout.root}; start it with `python -m lab up`.")
    return _request(state["control_url"], method, path)


def _request(control_url: str, method: str, path: str) -> Any:
    request = urllib.request.Request(control_url + path, method=method)
    try:
        # No proxy: the control interface is on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=90) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            message = json.load(error)["message"]
        raise LabError(message, 2 if error.code == 404 else 1) from error
    except OSError as error:
        raise LabError(f"The lab's control interface at {control_url} does not answer: {error}.") from error


def _up(layout: Layout, chosen: type[Service], arguments: argparse.Namespace) -> int:
    if layout.is_locked():
        status = _call(layout, "GET", "/status")
        if status["service"] != chosen.name:
            raise LabError(f"The lab on {layout.root} runs {status['service']}; choose another --data-dir.")
        print(f"The lab on {layout.root} already runs.")
        _print_addresses(status)
        return 0
    if arguments.traffic < 0:
        raise LabError("--traffic is a number of requests per second, 0 for none.", 2)
    highest = chosen.ports_type.highest_base()
    if not 0 <= arguments.base_port <= highest:
        raise LabError(f"--base-port is a number from 1 to {highest}, or 0 for any free one.", 2)
    _end_others(layout)
    base_port, control = _claim_ports(arguments.base_port, chosen.ports_type)
    given = {each.name: getattr(arguments, each.name) for each in fields(chosen.options_type)}
    options = chosen.options_type(**{**given, "base_port": base_port})
    lab = chosen(layout.root, options)
    layout.root.mkdir(parents=True, exist_ok=True)
    # Of a lab that was killed: its supervisor's lock is gone, and with it all but what somebody else had started.
    layout.state.unlink(missing_ok=True)
    with control:
        supervisor = _spawn_supervisor(lab, control)
    status = _await_supervisor(lab, supervisor)
    if status["state"] == "failed":
        _down(layout)
        raise LabError(status["message"])
    _print_addresses(status)
    running = [name for name, process in status["processes"].items() if process["state"] == "running"]
    return 0 if status["state"] == "ready" or lab.is_as_asked(running) else 1


def _claim_ports(base: int, kind: type[Ports]) -> tuple[int, socket.socket]:
    if base == 0:
        return claim_free_ports(kind)
    control = claim(base, kind)
    if control is None:
        name, port = kind.above(base).first_taken() or ("control", kind.above(base).control)
        title = kind.TITLES.get(name, "the lab's control interface")
        raise LabError(f"Port {port} for {title} is taken; choose another --base-port (0: any free).")
    return base, control


def _spawn_supervisor(lab: Service, control: socket.socket) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")))
    )
    # The options may hold a key: they go through a pipe, not onto a command line that everybody can read.
    read_end, write_end = os.pipe()
    argv = [sys.executable, "-m", "lab", "supervise", "--data-dir", str(lab.layout.root), "--service", lab.name]
    argv += ["--options", f"fd:{read_end}", "--control", f"fd:{control.fileno()}"]
    with lab.layout.supervisor_log.open("wb") as log:
        supervisor = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[read_end, control.fileno()],
        )
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        json.dump(vars(lab.options), pipe)
    return supervisor


def _await_supervisor(lab: Service, supervisor: subprocess.Popen[bytes]) -> dict[str, Any]:
    control_url = f"http://{HOST}:{lab.ports.control}"
    end = time.monotonic() + _UP_SECONDS
    while time.monotonic() < end:
        if supervisor.poll() is not None:
            said = lab.layout.supervisor_log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise LabError(said[-1] if said else f"The lab's supervisor ended with status {supervisor.returncode}.")
        try:
            status: dict[str, Any] = _request(control_url, "GET", "/status")
        except LabError:
            time.sleep(0.05)
            continue
        if status["state"] != "starting":
            return status
        time.sleep(0.05)
    _down(lab.layout)
    raise LabError(f"The lab did not start within {_UP_SECONDS:.0f} seconds; see {lab.layout.supervisor_log}.")


def _down(layout: Layout) -> int:
    state = layout.read_state()
    if not layout.is_locked():
        layout.state.unlink(missing_ok=True)
        _end_others(layout)
        print(f"No lab runs on {layout.root}.")
        return 0
    pid = state.get("supervisor_pid") if state is not None else None
    if not isinstance(pid, int):
        raise LabError(f"The lab on {layout.root} is just starting; try again in a moment.")
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            break
        end = time.monotonic() + _DOWN_SECONDS
        while layout.is_locked() and time.monotonic() < end:
            time.sleep(0.03)
        if not layout.is_locked():
            break
    layout.state.unlink(missing_ok=True)
    _end_others(layout)
    print(f"The lab on {layout.root} is down.")
    return 0


def _end_others(layout: Layout) -> None:
    """What somebody else has started again does not end with the supervisor."""
    for path in layout.run.glob("*.pid"):
        pidfile.end(path, _DOWN_SECONDS)
    for name in service.NAMES:
        service.find(name).tidy(layout.root)


def _print_addresses(status: dict[str, Any]) -> None:
    rows = [
        *status["addresses"],
        ("control", f"http://{HOST}:{status['ports']['control']}"),
        ("inventory", status["inventory"]),
    ]
    for name, value in rows:
        print(f"{name:<15} {value}")
    if status["message"]:
        print(status["message"])


def _print_status(status: dict[str, Any]) -> None:
    _print_addresses(status)
    print()
    print(f"{'process':<15} {'state':<9} {'pid':>8}  log")
    for name, process in status["processes"].items():
        state = process["state"]
        if state == "exited":
            state = f"exit {process['returncode']}"
        print(f"{name:<15} {state:<9} {process['pid'] or '-':>8}  {process['log']}")
    print(f"active faults: {', '.join(status['faults']) or 'none'}")


def _print_faults(faults: list[dict[str, Any]]) -> None:
    print(f"{'service':<8} {'fault':<18} {'active':<7} what it does")
    for fault in faults:
        active = "yes" if fault["active"] else "no"
        print(f"{fault['service']:<8} {fault['name']:<18} {active:<7} {fault['what']}")


def _supervise(layout: Layout, chosen: type[Service], source: str, control: str) -> int:
    from lab.supervisor import main as supervisor_main

    with os.fdopen(int(source.removeprefix("fd:"))) as pipe:
        options = chosen.options_type(**json.load(pipe))
    listening = socket.socket(fileno=int(control.removeprefix("fd:")))
    listening.set_inheritable(False)  # the port is free as soon as the supervisor has ended, whatever it has started
    return supervisor_main(chosen(layout.root, options), listening)


def _install(chosen: type[Service], arguments: argparse.Namespace) -> int:
    from lab.install import InstallError, install

    try:
        given = {
            each.name: getattr(arguments, each.name) for each in fields(chosen.options_type) if each.name in arguments
        }
        print(install(chosen, arguments.prefix, arguments.user, chosen.options_type(**{**given, "traffic": 0.0})))
    except (InstallError, OSError) as error:
        raise LabError(str(error)) from error
    return 0


def _set_flag(layout: Layout, chosen: type[Service], of: str, name: str, amount: float | None) -> str:
    """A fault where systemd runs the services: one that they read from the fault file, nothing else."""
    try:
        fault = catalogue.find(chosen.faults, of, name)
        checked = catalogue.check_amount(fault, amount)
    except catalogue.UnknownFaultError as error:
        raise LabError(str(error), 2) from error
    if fault.how != catalogue.FLAG:
        raise LabError(f"{name} needs a lab that `python -m lab up` has started; here systemd runs the services.")
    pids = {process: pidfile.holder(layout.pid_file(process)) for process in fault.processes}
    if None in pids.values():
        raise LabError(f"{name} needs {', '.join(process for process, pid in pids.items() if pid is None)} to run.")
    affected = pids if fault.cured_by_restart else dict.fromkeys(pids)
    active = {**catalogue.read_active(layout.faults), name: catalogue.Active(affected, checked)}
    catalogue.write_active(layout.faults, active)
    return f"{of} {name}: {fault.what}."


def _run(chosen: type[Service], arguments: argparse.Namespace) -> int:
    if arguments.command == "install":
        return _install(chosen, arguments)
    layout = Layout(arguments.data_dir)
    match arguments.command:
        case "up":
            return _up(layout, chosen, arguments)
        case "down":
            return _down(layout)
        case "status":
            _print_status(_call(layout, "GET", "/status"))
        case "faults":
            _print_faults(_call(layout, "GET", "/faults"))
        case "break" if layout.is_installed():
            print(_set_flag(layout, chosen, arguments.service, arguments.fault, arguments.amount))
        case "heal" if layout.is_installed():
            active = catalogue.read_active(layout.faults) if arguments.fault else {}
            active.pop(arguments.fault, None)
            catalogue.write_active(layout.faults, active)
        case "break":
            path = f"/faults/{quote(arguments.service, safe='')}/{quote(arguments.fault, safe='')}"
            if arguments.amount is not None:
                path += f"?amount={arguments.amount}"
            print(_call(layout, "PUT", path)["message"])
        case "heal":
            path = "/".join(quote(part, safe="") for part in (arguments.service, arguments.fault) if part)
            print(_call(layout, "DELETE", f"/faults/{path}".rstrip("/"))["message"])
        case "start" | "stop" | "restart":
            path = f"/processes/{quote(arguments.process, safe='')}/{arguments.command}"
            print(_call(layout, "POST", path)["message"])
        case "supervise":
            return _supervise(layout, chosen, arguments.options, arguments.control)
    return 0


def main() -> int:
    try:
        chosen = _chosen(sys.argv[1:])
        return _run(chosen, _parser(chosen).parse_args())
    except LabError as error:
        print(error, file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not trip over it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

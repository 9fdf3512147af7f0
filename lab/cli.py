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
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab import faults as catalogue
from lab import pidfile
from lab.faults import PROCESSES
from lab.layout import DEFAULT_BASE_PORT, HOST, Layout, Options, Ports, claim, claim_free_ports
from lab.vritti.settings import LINES

_UP_SECONDS = 100.0
_DOWN_SECONDS = 15.0
_PORT_NAMES = {
    "vritti": "Vritti",
    "kyrodb_text": "the text KyroDB",
    "kyrodb_text_http": "the text KyroDB's HTTP port",
    "kyrodb_image": "the image KyroDB",
    "kyrodb_image_http": "the image KyroDB's HTTP port",
    "control": "the lab's control interface",
}
_HIGHEST_BASE_PORT = 65535 - 1052


class LabError(Exception):
    """One sentence for the user, and the exit status."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("LAB_DIR") or ".lab"),
        help="where the lab keeps its files (default: $LAB_DIR, else .lab)",
    )
    parser = argparse.ArgumentParser(prog="lab", description="Stand-ins for Vritti and KyroDB with fault injection.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    up = command("up", "Start the lab in the background.")
    up.add_argument(
        "--base-port", type=int, default=DEFAULT_BASE_PORT, help="the first port (default: %(default)s; 0: any free)"
    )
    up.add_argument("--vritti", choices=LINES, default=LINES[0], help="which Vritti (default: %(default)s)")
    up.add_argument("--kyrodb-api-key", metavar="KEY", help="KyroDB asks for this key; Vritti never sends one")
    up.add_argument("--kyrodb-tls", action="store_true", help="KyroDB's gRPC ports speak TLS")
    up.add_argument(
        "--traffic",
        type=float,
        default=10.0,
        metavar="RPS",
        help="customers' requests per second (default: %(default)s)",
    )
    up.add_argument("--no-llm", action="store_true", help="start Vritti without an LLM key")
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
        changed.add_argument("process", type=lambda name: name.replace("_", "-"), help=", ".join(PROCESSES))
    install = commands.add_parser("install", help="Run the services as systemd units, at the runbooks' ports (root).")
    install.add_argument("--prefix", type=Path, required=True, help="where the lab's code is, or is copied to")
    install.add_argument("--user", required=True, help="who runs the services")
    install.add_argument("--vritti", choices=LINES, default=LINES[0], help="which Vritti (default: %(default)s)")
    supervise = commands.add_parser("supervise", parents=[common])
    supervise.add_argument("--options", required=True)
    supervise.add_argument("--control", required=True)
    return parser


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


def _up(layout: Layout, arguments: argparse.Namespace) -> int:
    if layout.is_locked():
        print(f"The lab on {layout.root} already runs.")
        _print_addresses(_call(layout, "GET", "/status"))
        return 0
    if arguments.traffic < 0:
        raise LabError("--traffic is a number of requests per second, 0 for none.", 2)
    if not 0 <= arguments.base_port <= _HIGHEST_BASE_PORT:
        raise LabError(f"--base-port is a number from 1 to {_HIGHEST_BASE_PORT}, or 0 for any free one.", 2)
    _end_others(layout)
    base_port, control = _claim_ports(arguments.base_port)
    options = Options(
        base_port=base_port,
        vritti=arguments.vritti,
        kyrodb_api_key=arguments.kyrodb_api_key,
        kyrodb_tls=arguments.kyrodb_tls,
        traffic=arguments.traffic,
        llm=not arguments.no_llm,
    )
    layout.root.mkdir(parents=True, exist_ok=True)
    # Of a lab that was killed: its supervisor's lock is gone, and with it all but what somebody else had started.
    layout.state.unlink(missing_ok=True)
    with control:
        supervisor = _spawn_supervisor(layout, options, control)
    status = _await_supervisor(layout, options, supervisor)
    if status["state"] == "failed":
        _down(layout)
        raise LabError(status["message"])
    _print_addresses(status)
    return _up_status(status, options)


def _claim_ports(base: int) -> tuple[int, socket.socket]:
    if base == 0:
        return claim_free_ports()
    control = claim(base)
    if control is None:
        name, port = Ports.above(base).first_taken() or ("control", Ports.above(base).control)
        raise LabError(f"Port {port} for {_PORT_NAMES[name]} is taken; choose another --base-port (0: any free).")
    return base, control


def _up_status(status: dict[str, Any], options: Options) -> int:
    """0 also where Vritti cannot run because of what was asked for: then the rest of the lab is the point of it."""
    others_run = all(
        process["state"] == "running" for name, process in status["processes"].items() if name.startswith("kyrodb-")
    )
    asked_for = options.kyrodb_api_key is not None or not options.llm
    return 0 if status["state"] == "ready" or (asked_for and others_run) else 1


def _spawn_supervisor(layout: Layout, options: Options, control: socket.socket) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")))
    )
    # The options may hold a key: they go through a pipe, not onto a command line that everybody can read.
    read_end, write_end = os.pipe()
    argv = [sys.executable, "-m", "lab", "supervise", "--data-dir", str(layout.root), "--options", f"fd:{read_end}"]
    argv += ["--control", f"fd:{control.fileno()}"]
    with layout.supervisor_log.open("wb") as log:
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
        json.dump(vars(options), pipe)
    return supervisor


def _await_supervisor(layout: Layout, options: Options, supervisor: subprocess.Popen[bytes]) -> dict[str, Any]:
    control_url = f"http://{HOST}:{Ports.above(options.base_port).control}"
    end = time.monotonic() + _UP_SECONDS
    while time.monotonic() < end:
        if supervisor.poll() is not None:
            said = layout.supervisor_log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise LabError(said[-1] if said else f"The lab's supervisor ended with status {supervisor.returncode}.")
        try:
            status: dict[str, Any] = _request(control_url, "GET", "/status")
        except LabError:
            time.sleep(0.05)
            continue
        if status["state"] != "starting":
            return status
        time.sleep(0.05)
    _down(layout)
    raise LabError(f"The lab did not start within {_UP_SECONDS:.0f} seconds; see {layout.supervisor_log}.")


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


def _print_addresses(status: dict[str, Any]) -> None:
    ports = status["ports"]
    rows = [
        ("Vritti " + status["options"]["vritti"], f"http://{HOST}:{ports['vritti']}"),
        ("KyroDB text", f"{HOST}:{ports['kyrodb_text']} (HTTP {ports['kyrodb_text_http']})"),
        ("KyroDB image", f"{HOST}:{ports['kyrodb_image']} (HTTP {ports['kyrodb_image_http']})"),
        ("control", f"http://{HOST}:{ports['control']}"),
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


def _supervise(layout: Layout, source: str, control: str) -> int:
    from lab.supervisor import main as supervisor_main

    with os.fdopen(int(source.removeprefix("fd:"))) as pipe:
        options = Options(**json.load(pipe))
    listening = socket.socket(fileno=int(control.removeprefix("fd:")))
    listening.set_inheritable(False)  # the port is free as soon as the supervisor has ended, whatever it has started
    return supervisor_main(layout.root, options, listening)


def _install(arguments: argparse.Namespace) -> int:
    from lab.install import InstallError, install

    try:
        print(install(arguments.prefix, arguments.user, arguments.vritti))
    except (InstallError, OSError) as error:
        raise LabError(str(error)) from error
    return 0


def _set_flag(layout: Layout, service: str, name: str, amount: float | None) -> str:
    """A fault where systemd runs the services: one that they read from the fault file, nothing else."""
    try:
        fault = catalogue.find(service, name)
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
    return f"{service} {name}: {fault.what}."


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "install":
        return _install(arguments)
    layout = Layout(arguments.data_dir)
    match arguments.command:
        case "up":
            return _up(layout, arguments)
        case "down":
            return _down(layout)
        case "status":
            _print_status(_call(layout, "GET", "/status"))
        case "faults":
            _print_faults(_call(layout, "GET", "/faults"))
        case "break" if layout.is_installed():
            print(_set_flag(layout, arguments.service, arguments.fault, arguments.amount))
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
            return _supervise(layout, arguments.options, arguments.control)
    return 0


def main() -> int:
    try:
        return _run(_parser().parse_args())
    except LabError as error:
        print(error, file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not trip over it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

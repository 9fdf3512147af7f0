# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon behind a lab: it owns the processes, injects the faults and answers on the control port."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from lab import deployment
from lab import faults as catalogue
from lab.control import build_control_server
from lab.faults import CLIENTS, FAULTS, KYRODB_IMAGE, KYRODB_TEXT, PROCESSES, VRITTI, Active, Fault
from lab.kyrodb.kyrodb_server import DEFAULT_DIMENSION
from lab.layout import HOST, TEXT_DIMENSION, Layout, Options, Ports, write_inventory, write_private
from lab.processes import Child
from lab.seed import seed_customers

_REPOSITORY = Path(__file__).resolve().parent.parent
_READY_SECONDS = 60.0
# Longer than the pause after which Vritti's channels try a returned instance again.
_RECONNECT_SECONDS = 0.6
_OUTAGE_PROBES = 5
_MAX_LOG_BYTES = 32 * 1024 * 1024
_KEPT_LOG_BYTES = 4 * 1024 * 1024
_LOG_CHECK_SECONDS = 10.0
_CLIENTS = {
    "traffic-spike": "spike",
    "rate-limited": "rate-limited",
    "auth-errors": "bad-keys",
    "validation-errors": "bad-bodies",
}

# Settings that Vritti's environment file may hold beside those that it is made with.
_OPTIONAL_SETTINGS = (
    "WEB_CONCURRENCY",
    "SERVICE_REQUIRE_LLM_REFLECTION",
    "EMBEDDING_TEXT_MODEL_NAME",
    "SEARCH_DEFAULT_K",
    "LOGGING_LEVEL",
    "LLM_TIMEOUT_SECONDS",
    "LLM_MAX_RETRIES",
    "LLM_CHEAP_MODEL",
    "LLM_CONSENSUS_MODEL_1",
    "LLM_CONSENSUS_MODEL_2",
    "REFLECTION_MAX_COST_PER_DAY_USD",
    "SERVICE_DEAD_LETTER_QUEUE_PATH",
    "SERVICE_DEAD_LETTER_QUEUE_MAX_SIZE_MB",
)

T = TypeVar("T")


class UnknownProcessError(Exception):
    """A process that the lab does not have."""


class ChangeFailedError(Exception):
    """A change that could not be made, or that did not have the effect that it should have."""


class AlreadyRunningError(Exception):
    """Another supervisor holds the lock of this data directory."""


class Supervisor:
    """All changes run on one thread, one after the other."""

    def __init__(self, layout: Layout, options: Options, control: socket.socket) -> None:
        self.layout = layout
        self._control = control
        self.options = options
        self.ports = Ports.above(options.base_port)
        self.state = "starting"
        self.message = ""
        self._admin_api_key = secrets.token_hex(24)
        self._injected: dict[str, Active] = {}
        # An outage may have opened the breaker of this Vritti process; only another one is surely without it.
        self._breaker_suspect: int | None = None
        # A bare descriptor that nothing closes: the lock goes when the process does, and not a moment before.
        lock = os.open(layout.lock, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError from error
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="changes")
        self.children = {child.name: child for child in self._build_children()}
        self._extra: dict[str, Child] = {}

    def run(self) -> None:
        """Serve until a signal asks to stop."""
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        control = build_control_server(self, self._control)
        threading.Thread(target=control.serve_forever, args=(0.05,), daemon=True).start()
        self._worker.submit(self._start_lab)
        while not stop.wait(_LOG_CHECK_SECONDS):
            self._worker.submit(self._cut_logs)
        control.shutdown()
        self.state = "stopping"
        self._do(self._stop_all)
        self._worker.shutdown()
        self.layout.state.unlink(missing_ok=True)

    def status(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "message": self.message,
            "data_dir": str(self.layout.root),
            "inventory": str(self.layout.inventory),
            "supervisor_pid": os.getpid(),
            "options": self._public_options(),
            "ports": asdict(self.ports),
            "processes": {
                child.name: {
                    "state": child.state,
                    "pid": child.pid,
                    "returncode": child.returncode,
                    "argv": child.argv,
                    "log": str(child.log),
                }
                for child in [*self.children.values(), *self._extra.values()]
            },
            "faults": sorted(self._active()),
        }

    def fault_table(self) -> list[dict[str, Any]]:
        active = self._active()
        return [
            {
                "service": fault.service,
                "name": fault.name,
                "active": fault.name in active,
                "cured_by_restart_of": list(fault.processes) if fault.cured_by_restart else [],
                "what": fault.what,
            }
            for fault in FAULTS
        ]

    def break_fault(self, service: str, name: str, amount: float | None = None) -> str:
        fault = catalogue.find(service, name)
        checked = catalogue.check_amount(fault, amount)
        return self._do(lambda: self._break(fault, checked))

    def heal_fault(self, service: str, name: str) -> str:
        fault = catalogue.find(service, name)
        return self._do(lambda: self._heal(fault))

    def heal_all(self, service: str | None = None) -> str:
        if service is not None:
            catalogue.check_service(service)
        return self._do(self._heal_all)

    def start_process(self, name: str) -> str:
        self._check_process(name)
        return self._do(lambda: self._start_by_hand(name))

    def stop_process(self, name: str) -> str:
        self._check_process(name)
        return self._do(lambda: self._stop(name))

    def restart_process(self, name: str) -> str:
        self._check_process(name)
        return self._do(lambda: self._restart(name))

    def _check_process(self, name: str) -> None:
        if name not in self.children:
            raise UnknownProcessError(f"The lab has no process {name!r}; it has {', '.join(PROCESSES)}.")

    def _active(self) -> dict[str, Active]:
        """The faults that still affect somebody: a process that was replaced, by us or by others, is free of those
        that a restart cures."""
        active = {}
        for name, fault in list(self._injected.items()):
            affected = {process: pid for process, pid in fault.processes.items() if self._has(process, pid)}
            if affected or not fault.processes:
                active[name] = replace(fault, processes=affected)
        return active

    def _has(self, process: str, pid: int | None) -> bool:
        return pid is None or self.children[process].pid in (None, pid)

    def _do(self, change: Callable[[], T]) -> T:
        return self._worker.submit(change).result()

    # From here on everything runs on the worker's thread.

    def _start_lab(self) -> None:
        try:
            self._prepare()
            for name in (KYRODB_TEXT, KYRODB_IMAGE, VRITTI):
                self.children[name].start()
            # Vritti spends its first second importing: time enough to create its customers.
            seed_customers(self.layout, self.options.vritti)
            problems = [self._await_answer(name) for name in (KYRODB_TEXT, KYRODB_IMAGE, VRITTI)]
            if self.options.traffic > 0:
                self.children[CLIENTS].start()
            self.message = " ".join(problem for problem in problems if problem)
            self.state = "degraded" if self.message else "ready"
            self._write_state()
        except Exception as error:  # noqa: BLE001 -- whatever it was, `up` has to report it
            self.message = f"The lab could not start: {error}"
            self.state = "failed"
        print(f"{self.state} {self.message}", flush=True)

    def _prepare(self) -> None:
        layout, options = self.layout, self.options
        for child in self.children.values():
            # What an earlier lab logged is no evidence about this one.
            child.log.unlink(missing_ok=True)
        deployment.prepare(layout, options, self.ports, self._admin_api_key)
        self._publish()
        write_inventory(layout, options, self.ports, self._admin_api_key)
        self._write_state()

    def _build_children(self) -> list[Child]:
        layout, ports, options = self.layout, self.ports, self.options
        surroundings = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_REPOSITORY), os.environ.get("PYTHONPATH")))),
        }
        # A proxy of the surroundings is not for the loopback interface.
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            surroundings.pop(name, None)
            surroundings.pop(name.upper(), None)
        # What is removed from Vritti's own file must not come back from the surroundings.
        for name in (*deployment.vritti_settings(layout, options, ports, ""), *_OPTIONAL_SETTINGS):
            surroundings.pop(name, None)
        clients = self._client_argv("regular", str(options.traffic))
        return [
            self._kyrodb_child("text", ports.kyrodb_text, surroundings),
            self._kyrodb_child("image", ports.kyrodb_image, surroundings),
            Child(
                VRITTI,
                deployment.vritti_command(ports),
                layout.vritti,
                {**surroundings, **deployment.environment(layout, options, VRITTI)},
                layout.vritti_log,
                layout.pid_file(VRITTI),
                layout.vritti_environment,
            ),
            Child(CLIENTS, clients, layout.root, surroundings, layout.clients_log),
        ]

    def _kyrodb_child(self, instance: str, port: int, surroundings: dict[str, str]) -> Child:
        layout, name = self.layout, f"kyrodb-{instance}"
        directory = layout.kyrodb(instance)
        directory.mkdir(parents=True, exist_ok=True)
        command = deployment.kyrodb_command(layout, instance, port)
        environment = {**surroundings, **deployment.environment(layout, self.options, name)}
        return Child(name, command, directory, environment, directory / "kyrodb.log", layout.pid_file(name))

    def _write_text_config(self, dimension: int, data: str) -> None:
        port = self.ports.kyrodb_text
        deployment.write_kyrodb_config(self.layout, self.options, "text", port, dimension, data)

    def _client_argv(self, kind: str, *rest: str) -> list[str]:
        url = f"http://{HOST}:{self.ports.vritti}"
        return [sys.executable, "-m", "lab.clients", kind, url, str(self.layout.keys), *rest]

    def _await_answer(self, name: str) -> str | None:
        """Wait until a process answers; a sentence when it does not."""
        child = self.children[name]
        url = {
            KYRODB_TEXT: f"http://{HOST}:{self.ports.kyrodb_text_http}/health",
            KYRODB_IMAGE: f"http://{HOST}:{self.ports.kyrodb_image_http}/health",
            # Of Vritti's health routes the only one that does not call KyroDB, where failures would count.
            VRITTI: f"http://{HOST}:{self.ports.vritti}/health/liveness",
        }.get(name)
        if url is None:
            return None
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            if child.returncode is not None:
                return self._exit_sentence(child)
            if _answers(url):
                return None
            time.sleep(0.03)
        return f"{name} does not answer after {_READY_SECONDS:.0f} seconds; see {child.log}."

    def _exit_sentence(self, child: Child) -> str:
        sentence = f"{child.name} exited with status {child.returncode}; see {child.log}."
        reason = _last_startup_failure(child.log) if child.name == VRITTI else None
        if reason is not None:
            sentence = f"{child.name} exited with status {child.returncode}: {reason}."
        if child.name == VRITTI and self.options.kyrodb_api_key is not None:
            sentence += " Its client never sends an API key, so it cannot work with a KyroDB that asks for one;"
            sentence += " the KyroDB instances are up."
        return sentence

    def _start(self, name: str) -> str | None:
        try:
            self.children[name].start()
        except OSError as error:
            return f"{name} cannot be started: {error}."
        self._publish()
        problem = self._await_answer(name)
        self._write_state()
        return problem

    def _start_by_hand(self, name: str) -> str:
        pid = self.children[name].pid
        if pid is not None:
            return f"{name} already runs, PID {pid}."
        problem = self._start(name)
        if problem is not None:
            raise ChangeFailedError(problem)
        return f"{name} started, PID {self.children[name].pid}."

    def _stop(self, name: str) -> str:
        self.children[name].stop()
        self._write_state()
        return f"{name} stopped."

    def _restart(self, name: str) -> str:
        self.children[name].stop()
        problem = self._start(name)
        if problem is not None:
            raise ChangeFailedError(problem)
        return f"{name} restarted."

    def _publish(self) -> None:
        self._injected = self._active()
        catalogue.write_active(self.layout.faults, self._injected)

    def _break(self, fault: Fault, amount: float | None) -> str:
        if fault.name in self._active():
            return f"{fault.service} {fault.name} is already active."
        for name in fault.processes:
            if self.children[name].pid is None and fault.how not in (catalogue.STOP, catalogue.CONFIG):
                raise ChangeFailedError(f"{fault.name} needs {name}, which does not run; restart it first.")
        if fault.how == catalogue.STUCK_BREAKER:
            self._stick_breaker()
        elif fault.how == catalogue.CLIENT:
            argv = self._client_argv(_CLIENTS[fault.name])
            template = self.children[CLIENTS]
            extra = Child(fault.name, argv, self.layout.root, template.environment, self.layout.clients_log)
            self._extra[fault.name] = extra
            extra.start()
        # 0 is the PID of nothing that was there: whatever is started is something else.
        pids = {name: self.children[name].pid or 0 for name in fault.processes}
        affected = {name: pid if fault.cured_by_restart else None for name, pid in pids.items()}
        for name in fault.processes:
            if fault.how == catalogue.STOP:
                self.children[name].stop()
            elif fault.how == catalogue.KILL:
                self.children[name].kill()
            elif fault.how == catalogue.PAUSE:
                self.children[name].pause()
        if fault.opens_breaker:
            self._breaker_suspect = self.children[VRITTI].pid
        self._injected[fault.name] = Active(affected, amount)
        self._publish()
        if fault.how == catalogue.CONFIG:
            self._write_text_config(DEFAULT_DIMENSION, "data-shipped")
        if fault.how in (catalogue.RESTART_WITH_FLAG, catalogue.CONFIG):
            for name in fault.processes:
                self._restart(name)
        self._write_state()
        return f"{fault.service} {fault.name}: {fault.what}."

    def _heal(self, fault: Fault) -> str:
        active = self._active()
        if fault.name not in active:
            return f"{fault.service} {fault.name} is not active."
        affected = active[fault.name].processes
        del self._injected[fault.name]
        self._publish()
        problems = []
        if fault.how == catalogue.CLIENT:
            self._extra.pop(fault.name).stop()
        elif fault.how == catalogue.CONFIG:
            self._write_text_config(TEXT_DIMENSION, "data")
        for name in affected:
            if fault.how in (catalogue.STOP, catalogue.KILL):
                problems.append(self._start(name))
            elif fault.how == catalogue.PAUSE:
                self.children[name].resume()
            elif fault.how in (catalogue.STUCK_BREAKER, catalogue.RESTART_WITH_FLAG, catalogue.CONFIG):
                self.children[name].stop()
                problems.append(self._start(name))
        if fault.opens_breaker:
            time.sleep(_RECONNECT_SECONDS)
        self._write_state()
        if any(problems):
            raise ChangeFailedError(" ".join(problem for problem in problems if problem))
        sentence = f"{fault.service} {fault.name} healed."
        if fault.opens_breaker:
            sentence += " Vritti's circuit breaker may have opened meanwhile: only `restart vritti` closes it."
        return sentence

    def _heal_all(self) -> str:
        """Back to a lab as it was after `up`: unlike healing one fault, this includes what faults left behind."""
        healed: list[str] = []
        problems: list[str | None] = []
        for fault in FAULTS:
            if fault.name in self._active():
                healed.append(fault.name)
                try:
                    self._heal(fault)
                except ChangeFailedError as error:
                    problems.append(str(error))
        names = [name for name in PROCESSES if name != CLIENTS or self.options.traffic > 0]
        for name in names:
            if self.children[name].pid is None:
                healed.append(name)
                problems.append(self._start(name))
        if self._breaker_suspect is not None and self._breaker_suspect == self.children[VRITTI].pid:
            healed.append("the circuit breaker (vritti restarted)")
            self.children[VRITTI].stop()
            problems.append(self._start(VRITTI))
        if any(problems):
            raise ChangeFailedError(" ".join(problem for problem in problems if problem))
        return f"Healed: {', '.join(healed)}." if healed else "Nothing to heal."

    def _stick_breaker(self) -> None:
        """Cause what the fault is named after: an outage, five failures, and KyroDB's return."""
        for name in (KYRODB_TEXT, KYRODB_IMAGE):
            self.children[name].stop()
        for _probe in range(_OUTAGE_PROBES):
            # Two Health calls each, and each that fails counts.
            _answers(f"http://{HOST}:{self.ports.vritti}/health/readiness")
        problems = [self._start(name) for name in (KYRODB_TEXT, KYRODB_IMAGE)]
        time.sleep(_RECONNECT_SECONDS)
        if any(problems):
            raise ChangeFailedError(" ".join(problem for problem in problems if problem))

    def _stop_all(self) -> None:
        children = [*self._extra.values(), *(self.children[name] for name in (CLIENTS, VRITTI))]
        children += [self.children[name] for name in (KYRODB_TEXT, KYRODB_IMAGE)]
        with ThreadPoolExecutor(max_workers=len(children)) as pool:
            list(pool.map(Child.stop, children))

    def _cut_logs(self) -> None:
        """Keep the end of a log that has grown too long, as a log rotation that copies and truncates would."""
        for path in {child.log for child in self.children.values()}:
            try:
                if path.stat().st_size <= _MAX_LOG_BYTES:
                    continue
                with path.open("r+b") as file:
                    file.seek(-_KEPT_LOG_BYTES, os.SEEK_END)
                    file.readline()
                    kept = file.read()
                    file.seek(0)
                    file.truncate()
                    file.write(kept)
            except OSError as error:
                print(f"cannot cut {path}: {error}", flush=True)

    def _public_options(self) -> dict[str, Any]:
        options = asdict(self.options)
        options["kyrodb_api_key"] = self.options.kyrodb_api_key is not None
        return options

    def _write_state(self) -> None:
        state = {
            "options": self._public_options(),
            "ports": asdict(self.ports),
            "control_url": f"http://{HOST}:{self.ports.control}",
            "supervisor_pid": os.getpid(),
        }
        write_private(self.layout.state, json.dumps(state, indent=2) + "\n")


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def _last_startup_failure(log: Path) -> str | None:
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 100_000))
            found: list[bytes] = re.findall(rb"Startup failed: ([^\"\n]+)", file.read())
    except OSError:
        return None
    return found[-1].decode(errors="replace").rstrip(".") if found else None


def main(root: Path, options: Options, control: socket.socket) -> int:
    try:
        Supervisor(Layout(root), options, control).run()
    except AlreadyRunningError:
        print("A lab already runs on this data directory.", flush=True)
        return 1
    except OSError as error:
        print(f"The lab could not start: {error}", flush=True)
        return 1
    return 0

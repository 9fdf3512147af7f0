# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon behind a lab: it owns the processes, injects the faults and answers on the control port."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from lab import faults as catalogue
from lab.control import build_control_server
from lab.faults import CLIENTS, Active, Fault
from lab.layout import HOST, write_inventory, write_private
from lab.processes import Child, answers
from lab.service import ChangeFailedError, Program, Service

_REPOSITORY = Path(__file__).resolve().parent.parent
_READY_SECONDS = 60.0
_MAX_LOG_BYTES = 32 * 1024 * 1024
_KEPT_LOG_BYTES = 4 * 1024 * 1024
_LOG_CHECK_SECONDS = 10.0

T = TypeVar("T")


class UnknownProcessError(Exception):
    """A process that the lab does not have."""


class AlreadyRunningError(Exception):
    """Another supervisor holds the lock of this data directory."""


class Supervisor:
    """All changes run on one thread, one after the other."""

    def __init__(self, service: Service, control: socket.socket) -> None:
        self.service = service
        self.layout = service.layout
        self._control = control
        self.state = "starting"
        self.message = ""
        self._injected: dict[str, Active] = {}
        # A fault may have left something in this process; only another one is surely without it.
        self._suspect: int | None = None
        # A bare descriptor that nothing closes: the lock goes when the process does, and not a moment before.
        lock = os.open(self.layout.lock, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError from error
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="changes")
        self._surroundings = self._build_surroundings()
        self._programs = {program.name: program for program in service.programs()}
        clients = self._clients(CLIENTS, "regular", str(service.options.traffic))
        self.children = {child.name: child for child in (*map(self._child, self._programs.values()), clients)}
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
            "service": self.service.name,
            "addresses": self.service.addresses(),
            "data_dir": str(self.layout.root),
            "inventory": str(self.layout.inventory),
            "supervisor_pid": os.getpid(),
            "options": self.service.options.public(),
            "ports": asdict(self.service.ports),
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
            for fault in self.service.faults
        ]

    def break_fault(self, service: str, name: str, amount: float | None = None) -> str:
        fault = catalogue.find(self.service.faults, service, name)
        checked = catalogue.check_amount(fault, amount)
        return self._do(lambda: self._break(fault, checked))

    def heal_fault(self, service: str, name: str) -> str:
        fault = catalogue.find(self.service.faults, service, name)
        return self._do(lambda: self._heal(fault))

    def heal_all(self, service: str | None = None) -> str:
        if service is not None:
            catalogue.check_service(self.service.faults, service)
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
            names = ", ".join(self.service.all_processes())
            raise UnknownProcessError(f"The lab has no process {name!r}; it has {names}.")

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
            for name in self.service.processes:
                self.children[name].start()
            self.service.seed()
            problems = [self._await_answer(name) for name in self.service.processes]
            if self.service.options.traffic > 0:
                self.children[CLIENTS].start()
            self.message = " ".join(problem for problem in problems if problem)
            self.state = "degraded" if self.message else "ready"
            self._write_state()
        except Exception as error:  # noqa: BLE001 -- whatever it was, `up` has to report it
            self.message = f"The lab could not start: {error}"
            self.state = "failed"
        print(f"{self.state} {self.message}", flush=True)

    def _prepare(self) -> None:
        for child in self.children.values():
            # What an earlier lab logged is no evidence about this one.
            child.log.unlink(missing_ok=True)
        self.layout.run.mkdir(exist_ok=True)
        self.service.prepare()
        self._publish()
        write_inventory(self.layout, *self.service.inventory())
        self._write_state()

    def _build_surroundings(self) -> dict[str, str]:
        surroundings = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_REPOSITORY), os.environ.get("PYTHONPATH")))),
        }
        # A proxy of the surroundings is not for the loopback interface.
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            surroundings.pop(name, None)
            surroundings.pop(name.upper(), None)
        # What is removed from the service's own file must not come back from the surroundings.
        for name in self.service.settings():
            surroundings.pop(name, None)
        return surroundings

    def _child(self, program: Program) -> Child:
        program.directory.mkdir(parents=True, exist_ok=True)
        environment = {**self._surroundings, **program.environment}
        pid_file = self.layout.pid_file(program.name)
        return Child(
            program.name, program.argv, program.directory, environment, program.log, pid_file, program.settings
        )

    def _clients(self, name: str, kind: str, *rest: str) -> Child:
        argv = self.service.client(kind, *rest)
        return Child(name, argv, self.layout.root, self._surroundings, self.layout.clients_log)

    def _await_answer(self, name: str) -> str | None:
        """Wait until a process answers; a sentence when it does not."""
        child = self.children[name]
        if name == CLIENTS:
            return None
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            if child.returncode is not None:
                return f"{name} exited with status {child.returncode}{self.service.why_exited(child)}"
            if answers(self._programs[name].health):
                return None
            time.sleep(0.03)
        return f"{name} does not answer after {_READY_SECONDS:.0f} seconds; see {child.log}."

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
        self.replace_process(name)
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
        how = ""
        if fault.how in (catalogue.ALTER, catalogue.CONFIG):
            how = self.service.alter(self, fault, amount)
        elif fault.how == catalogue.CLIENT:
            self._extra[fault.name] = self._clients(fault.name, self.service.clients[fault.name])
            self._extra[fault.name].start()
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
        if fault.remembered and self.service.memory is not None:
            self._suspect = self.children[self.service.memory.process].pid
        self._injected[fault.name] = Active(affected, amount)
        self._publish()
        if fault.how in (catalogue.RESTART_WITH_FLAG, catalogue.CONFIG):
            for name in fault.processes:
                self._restart(name)
        self._write_state()
        return " ".join(filter(None, (f"{fault.service} {fault.name}: {fault.what}.", how)))

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
        elif fault.how in (catalogue.ALTER, catalogue.CONFIG):
            self.service.restore(self, fault)
        for name in affected:
            if fault.how in (catalogue.STOP, catalogue.KILL):
                problems.append(self._start(name))
            elif fault.how == catalogue.PAUSE:
                self.children[name].resume()
            elif fault.how in (catalogue.RESTART_WITH_FLAG, catalogue.CONFIG):
                self.children[name].stop()
                problems.append(self._start(name))
        sentence = f"{fault.service} {fault.name} healed."
        if fault.remembered and self.service.memory is not None:
            time.sleep(self.service.memory.seconds)
            sentence += f" {self.service.memory.sentence}"
        self._write_state()
        if any(problems):
            raise ChangeFailedError(" ".join(problem for problem in problems if problem))
        return sentence

    def _heal_all(self) -> str:
        """Back to a lab as it was after `up`: unlike healing one fault, this includes what faults left behind."""
        healed: list[str] = []
        problems: list[str | None] = []
        for fault in self.service.faults:
            if fault.name in self._active():
                healed.append(fault.name)
                try:
                    self._heal(fault)
                except ChangeFailedError as error:
                    problems.append(str(error))
        names = [name for name in self.children if name != CLIENTS or self.service.options.traffic > 0]
        for name in names:
            if self.children[name].pid is None:
                healed.append(name)
                problems.append(self._start(name))
        memory = self.service.memory
        if memory is not None and self._suspect is not None and self._suspect == self.children[memory.process].pid:
            healed.append(memory.cured)
            self.children[memory.process].stop()
            problems.append(self._start(memory.process))
        if any(problems):
            raise ChangeFailedError(" ".join(problem for problem in problems if problem))
        return f"Healed: {', '.join(healed)}." if healed else "Nothing to heal."

    def replace_process(self, name: str) -> None:
        """A new process in place of the one that runs, if one does; ChangeFailedError where it does not answer."""
        self.children[name].stop()
        problem = self._start(name)
        if problem is not None:
            raise ChangeFailedError(problem)

    def _stop_all(self) -> None:
        # Who asks goes before whoever is asked.
        services = [self.children[name] for name in reversed(self.service.processes)]
        children = [*self._extra.values(), self.children[CLIENTS], *services]
        with ThreadPoolExecutor(max_workers=len(children)) as pool:
            list(pool.map(Child.stop, children))
        self.service.tidy(self.layout.root)

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

    def _write_state(self) -> None:
        program = self._programs[self.service.processes[-1]]
        state = {
            "service": self.service.name,
            "process": program.name,
            "url": self.service.url(),
            "home": str(program.directory),
            "log": str(program.log),
            "options": self.service.options.public(),
            "ports": asdict(self.service.ports),
            "control_url": f"http://{HOST}:{self.service.ports.control}",
            "supervisor_pid": os.getpid(),
        }
        write_private(self.layout.state, json.dumps(state, indent=2) + "\n")


def main(service: Service, control: socket.socket) -> int:
    try:
        Supervisor(service, control).run()
    except AlreadyRunningError:
        print("A lab already runs on this data directory.", flush=True)
        return 1
    except OSError as error:
        print(f"The lab could not start: {error}", flush=True)
        return 1
    return 0

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restart a service and wait until it is ready: through systemd, or by stopping its process and starting it again.

Whatever can be refused is refused before the first signal. A signal goes to a PID only while that is the process that
was found, which its start time tells. What a process was started with may hold secrets; it is not shown.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import resource
import shlex
import signal
import stat
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.oncall.runbooks.plugins.module_utils import (
    clock,
    environment_files,
    http_client,
    kyrodb,
    procfs,
    services,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

# How long a supervisor may take to bring a service back before it is taken for one that nobody watches.
BROUGHT_BACK_SECONDS = 10.0
# SIGKILL takes effect at once, unless the process hangs in the kernel.
KILL_SECONDS = 10.0
# Where nothing else tells that it is ready: what cannot start at all ends within this time.
LIVES_SECONDS = 1.0
TRY_SECONDS = 2.0
_POLL = 0.25
_LAST_LINES = 10
_LAST_BYTES = 64 * 1024
# A shorter value, such as 1 or true, would be masked everywhere.
_SECRET_LENGTH = 6
# What a lost connection or a killed controller sends; between stop and start it would leave the service down.
_DISTURBING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
_DENIED = re.compile(
    "access denied|authentication required|permission denied|not permitted|not authorized", re.IGNORECASE
)
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})

Result = dict[str, t.Any]


class Failed(Exception):
    """Something was changed and the service is not ready; the message tells what was done and what state was left."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Process:
    """One process for ever: its PID may be given to another one, but not with this start."""

    pid: int
    ticks: str

    def lives(self) -> bool:
        return procfs.start_ticks(self.pid) == self.ticks

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False when the process has ended, whoever has its PID now, or may not be sent one."""
        if not self.lives():
            return False
        try:
            os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def identify(pids: t.Iterable[int]) -> list[Process]:
    """Those of the processes that live."""
    return [Process(pid, ticks) for pid in pids for ticks in [procfs.start_ticks(pid)] if ticks is not None]


@dataclass
class Launch:
    """What is started, and as what."""

    argv: list[str] = field(repr=False)
    directory: str
    environment: dict[str, str] = field(repr=False)
    # uid, gid and groups; None: those of whoever runs this.
    user: tuple[int, int, list[int]] | None = None
    umask: int | None = None
    limits: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Standard output and standard error.
    output: list[int] = field(default_factory=list)


def remember(pid: int) -> Launch:
    """How a process would be started again; Refused where that may not be seen."""
    owner = "somebody else"
    try:
        owner = procfs.user(os.stat(f"/proc/{pid}").st_uid)
        argv = procfs.command_line(pid)
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = os.fsdecode(file.read()).split("\0")
        directory = os.readlink(f"/proc/{pid}/cwd")
        status = dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", procfs.read(f"/proc/{pid}/status"), re.MULTILINE))
        os.kill(pid, 0)
    except PermissionError:
        raise Refused(
            f"PID {pid} ({procfs.name(pid)}) belongs to {owner}, and {procfs.user(os.geteuid())} may not stop it and "
            "start it again; run with -b. Nothing was changed."
        ) from None
    except OSError:
        raise Refused(f"PID {pid} ended while it was looked at; run this again. Nothing was changed.") from None
    limits = {}
    for number in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limits[number] = resource.prlimit(pid, number)
    # The second is the effective one.
    uid, gid = int(status["Uid"].split()[1]), int(status["Gid"].split()[1])
    return Launch(
        argv,
        directory,
        dict(pair.split("=", 1) for pair in pairs if "=" in pair),
        (uid, gid, [int(word) for word in status.get("Groups", "").split()]) if os.geteuid() == 0 else None,
        int(status["Umask"], 8) if "Umask" in status else None,
        limits,
    )


def _from_nothing(directory: str | None) -> Launch:
    """How a service is started of which no process is left: as the owner of its folder, with what a login sets."""
    uid, user = os.geteuid(), None
    if uid == 0 and directory:
        uid = os.stat(directory).st_uid
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(uid)
        environment.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name, SHELL=entry.pw_shell)
        if uid != os.geteuid():
            user = (uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid))
    if uid != os.geteuid() and not user:
        gid = os.stat(directory or "/").st_gid
        user = (uid, gid, [gid])
    for name in ("LANG", "TZ"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return Launch([], directory or "/", environment, user)


def launch(start: Launch) -> int:
    """Start it in a session of its own and return its PID; OSError where it cannot be started."""
    # Where this is ignored, the kernel keeps no exit status for us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(start)
        except (OSError, ValueError) as error:
            os.write(writer, str(getattr(error, "strerror", None) or "an argument cannot be passed").encode())
        finally:
            os._exit(127)
    os.close(writer)
    # It is closed by a successful exec.
    with os.fdopen(reader, "rb") as file:
        problem = file.read()
    if problem:
        os.waitpid(pid, 0)
        raise OSError(problem.decode())
    return pid


def _become(start: Launch) -> None:
    os.setsid()
    for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *start.output]):
        os.dup2(descriptor, number)
    # What is inherited from the connection would keep it open for as long as the service runs.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.set_inheritable(int(name), int(name) <= 2)
    for disturbing in (*_DISTURBING, signal.SIGXFSZ):
        signal.signal(disturbing, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for limit, pair in start.limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, pair)
    if start.umask is not None:
        os.umask(start.umask)
    if start.user:
        uid, gid, groups = start.user
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
    os.chdir(start.directory)
    os.execvpe(start.argv[0], start.argv, start.environment)  # noqa: S606 - no shell is what we want


@contextlib.contextmanager
def undisturbed() -> t.Iterator[None]:
    """Not to be ended by a lost connection or a killed controller."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _DISTURBING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stop(main: Process, timeout: float) -> tuple[list[int], list[int]]:
    """Stop a process and all below it. Returns the PIDs that had to be killed, and those that live all the same.

    Nothing is sent to another process that has got the PID.
    """
    family = [main, *identify(procfs.children(main.pid))] if main.lives() else [main]
    main.send(signal.SIGTERM)
    for process in family:
        # What is stopped cannot handle SIGTERM.
        if procfs.state(process.pid) == "T":
            process.send(signal.SIGCONT)
    _wait_for_end(family, timeout)
    # Something that does not end may have started more.
    late = [child for process in family if process.lives() for child in identify(procfs.children(process.pid))]
    left = [process for process in dict.fromkeys([*family, *late]) if process.lives()]
    killed = [process.pid for process in left if process.send(signal.SIGKILL)]
    _wait_for_end(left, KILL_SECONDS)
    return killed, [process.pid for process in left if process.lives()]


def _wait_for_end(family: t.Sequence[Process], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.lives() for process in family) and time.monotonic() < deadline:
        time.sleep(0.05)


def restart(options: t.Mapping[str, t.Any], run: services.Run, check_mode: bool = False) -> Result:
    """Restart or start the service; Refused or NoAnswer where nothing was changed, Failed where something was."""
    work = _Restart(options, run)
    try:
        return work.carry_out(check_mode)
    finally:
        work.close()


class _Restart:
    def __init__(self, options: t.Mapping[str, t.Any], run: services.Run) -> None:
        self.options = options
        self.name: str = options["name"]
        self.run = run
        self.before = services.find(options, run)
        if self.before.problem:
            raise Refused(f"{self.before.problem} Nothing was changed.")
        # As it was last seen.
        self.now = self.before
        self.main: Process | None = _main(self.before)
        # What was started here and has not ended: its exit status can be had.
        self.child: int | None = None
        self.log: list[tuple[int, int]] = []
        self.secrets: list[str] = []
        self.did: list[str] = []
        self.notes: list[str] = []
        self.result: Result = {
            "changed": True,
            "manager": self.before.manager,
            "before": told(self.before),
            "after": None,
            "killed": [],
            "stop_seconds": None,
            "ready_seconds": None,
            "by_hand": self.before.by_hand,
            "note": None,
        }

    def carry_out(self, check_mode: bool) -> Result:
        if self.before.state == "running" and (self.options["state"] == "started" or self._newer()):
            self.result.update(changed=False, after=self.result["before"])
            if not check_mode:
                self.did.append("runs already")
                self._wait_until_ready(time.monotonic())
        elif self.before.manager == "systemd":
            self._restart_unit(check_mode)
        else:
            self._restart_process(check_mode)
        return self._finished()

    def close(self) -> None:
        for number, _size in self.log:
            os.close(number)

    def _look(self) -> None:
        # What cannot be seen for a moment is as it was.
        with contextlib.suppress(NoAnswer):
            self.now = services.find(self.options, self.run)

    def _newer(self) -> bool:
        """Whether it was started after the file that it reads was last changed, so that it runs with it already."""
        path = self.options["unless_newer_than"]
        age = procfs.age(self.before.pid) if path and self.before.pid else None
        if age is None:
            return False
        try:
            # The kernel tells a start to a clock tick; nothing reads its files that soon.
            return age - 2 * procfs.TICK < time.time() - os.stat(path).st_mtime
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Refused(f"{path} cannot be looked at: {error.strerror}. Nothing was changed.") from None

    def _finished(self) -> Result:
        self.result["note"] = "; ".join(self.notes) or None
        return self.result

    # systemd

    def _restart_unit(self, check_mode: bool) -> None:
        self._know_secrets(services.environment_files(self.before))
        unit, own = str(self.before.unit), services.stop_seconds(self.before)
        if own is not None and own < self.options["stop_timeout"] and self.before.pid:
            self.notes.append(
                f"systemd kills {unit} {own:g} s after SIGTERM (its TimeoutStopSec), and it may need "
                f"{self.options['stop_timeout']:g} s"
            )
        if check_mode:
            return
        verb = "start" if self.options["state"] == "started" else "restart"
        limit = max(self.options["stop_timeout"], own or 0.0) + self.options["start_timeout"]
        # systemctl waits for the job, and for a unit without a limit of its own it would do so for ever.
        command = ["timeout", f"{limit:g}", "systemctl", verb, unit, "--no-ask-password"]
        try:
            status, output, errors = self.run(command)
        except OSError as error:
            raise Refused(f"systemctl cannot be run: {error.strerror}. Nothing was changed.") from None
        began = time.monotonic()
        self.did.append(
            f"was {'started' if verb == 'start' or not self.before.pid else 'restarted'} by systemd ({unit})"
        )
        if status == 0:
            self._wait_until_ready(began)
            return
        said = mask_text(" ".join((errors or output).split()))
        self._look()
        if "job for" not in said.lower() and status != 124 and self._same():
            if _DENIED.search(said):
                raise Refused(
                    f"systemd does not let {procfs.user(os.geteuid())} {verb} {unit}; run with -b. Nothing was changed."
                )
            raise Refused(f"systemctl {verb} {unit} fails: {said.rstrip('.')}. Nothing was changed.")
        self.did = [f"was to be {verb}ed by systemd ({unit})"]
        if status == 124:
            self._fail(f"which has not come to an end in {limit:g} s and goes on by itself")
        self._fail(f"which failed ({self._how_unit_ended()})")

    def _know_secrets(self, paths: t.Sequence[str]) -> None:
        """What must not be shown of the unit's last lines, as far as its environment files tell."""
        for path in paths:
            with contextlib.suppress(OSError):
                self.secrets += _secrets(environment_files.load(path))

    def _same(self) -> bool:
        """Whether the unit is as it was before."""
        now = self.now
        return (now.pid, now.ticks, now.state) == (self.before.pid, self.before.ticks, self.before.state)

    def _how_unit_ended(self) -> str:
        seen = self.now.properties
        return f"result {seen.get('Result') or '?'}, exit status {seen.get('ExecMainStatus') or '?'}"

    # process

    def _restart_process(self, check_mode: bool) -> None:
        main = self.main
        if main:
            self._refuse_own(main.pid)
        start = self._prepare()
        if check_mode:
            return
        self._open_output(start, main)
        twins = _twins(start) if main and not self.options["command"] else []
        with undisturbed():
            if main:
                self._stop(main)
            began = time.monotonic()
            self.main = self._brought_back(start, [main, *twins]) if main and not self.options["command"] else None
            if self.main:
                self.did.append(f"and brought back by whatever watches over it, as PID {self.main.pid}")
                if self.options["settings"]:
                    self.notes.append("what watches over it decides which settings it starts with")
            else:
                began = time.monotonic()
                self._start(start)
        self._wait_until_ready(began)

    def _refuse_own(self, pid: int) -> None:
        family = {pid, *procfs.children(pid)}
        if pid == 1:
            raise Refused(
                f"{self.before.text} is the first process of this host, which is not stopped; name the unit of "
                f"{self.name}. Nothing was changed."
            )
        if family & {os.getpid(), *procfs.ancestors(os.getpid())}:
            raise Refused(
                f"{self.before.text} is what this task itself runs under, so it is not stopped; run it from elsewhere. "
                "Nothing was changed."
            )

    def _prepare(self) -> Launch:
        """What will be started; Refused where that cannot work."""
        options = self.options
        directory = options["directory"]
        if directory and not os.path.isdir(directory):
            raise Refused(f"The folder {directory} of {self.name} does not exist. Nothing was changed.")
        start = remember(self.main.pid) if self.main else _from_nothing(directory)
        if options["command"]:
            try:
                start.argv = shlex.split(options["command"])
            except ValueError as error:
                raise Refused(
                    f"The command of {self.name} cannot be read: {str(error).lower()}. Nothing was changed."
                ) from None
            start.directory = directory or start.directory
        if not start.argv:
            raise Refused(
                f"{self.before.text} does not run, and nothing says how to start it; set command. Nothing was changed."
            )
        user = procfs.user(start.user[0] if start.user else os.geteuid())
        if not _may_enter(start):
            raise Refused(
                f"{user} may not enter the folder {start.directory} of {self.name}. Nothing was changed."
                if directory or os.path.isdir(start.directory)
                else f"The folder {start.directory} that PID {self.before.pid} runs in is not there any more; set "
                "directory and command. Nothing was changed."
            )
        self._set_environment(start)
        if not _executable(start):
            raise Refused(
                f"There is no program {start.argv[0]} that {user} may run to start {self.name}; correct command. "
                "Nothing was changed."
                if options["command"]
                else f"The command line of PID {self.before.pid} does not tell which program it is, so it could not be "
                "started again; set command. Nothing was changed."
            )
        return start

    def _set_environment(self, start: Launch) -> None:
        old, path = start.environment, self.options["environment_file"]
        start.environment = {name: value for name, value in old.items() if name not in self.options["settings"]}
        if path:
            try:
                start.environment.update(environment_files.load(path))
            except FileNotFoundError:
                pass  # the default of a service that has no such file
            except OSError as error:
                raise Refused(f"{path} cannot be read: {error.strerror}. Nothing was changed.") from None
        bad = [name for name, value in start.environment.items() if "\0" in value]
        if bad:
            raise Refused(f"{path} has a NUL byte in {bad[0]}, which cannot be passed on. Nothing was changed.")
        self.secrets = [*_secrets(old), *_secrets(start.environment)]

    def _open_output(self, start: Launch, main: Process | None) -> None:
        path = self.options["log"]
        if path:
            number = self._open_log(path, start.user)
            start.output = [number, number]
        else:
            start.output = [self._old_output(main, number) for number in (1, 2)]
        self.log = [(number, os.fstat(number).st_size) for number in dict.fromkeys(reversed(start.output))]

    def _open_log(self, path: str, user: tuple[int, int, list[int]] | None) -> int:
        try:
            new = not os.path.exists(path)
            # A named pipe without a reader must not stop us here.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            number = os.open(path, flags, 0o644)
            os.set_blocking(number, True)
            if new and user:
                os.fchown(number, user[0], user[1])
        except OSError as error:
            raise Refused(f"The log {path} cannot be written: {error.strerror}. Nothing was changed.") from None
        return number

    def _old_output(self, main: Process | None, number: int) -> int:
        """Where the old process writes, where that is a file; it is opened itself, whatever its name is by now."""
        if main:
            with contextlib.suppress(OSError):
                path = f"/proc/{main.pid}/fd/{number}"
                if stat.S_ISREG(os.stat(path).st_mode):
                    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def _stop(self, main: Process) -> None:
        began, timeout = time.monotonic(), self.options["stop_timeout"]
        if not main.lives():
            self.did.append(f"had ended by itself (PID {main.pid})")
            return
        was_stopped = procfs.state(main.pid) == "T"
        killed, stuck = stop(main, timeout)
        self.result.update(killed=killed, stop_seconds=round(time.monotonic() - began, 2))
        if was_stopped:
            self.notes.append(f"PID {main.pid} was stopped by SIGSTOP and was continued for SIGTERM")
        if stuck:
            self.did.append(f"was to be stopped (PID {main.pid}, SIGTERM, and SIGKILL after {timeout:g} s)")
            pid = stuck[0]
            why = "hangs in the kernel" if pid in killed else "belongs to somebody else; run with -b"
            self._fail(f"but PID {pid} ({procfs.name(pid)}) does not end and {why}, so nothing was started")
        how = f"SIGTERM, and after {timeout:g} s SIGKILL for PID {', '.join(map(str, killed))}" if killed else "SIGTERM"
        self.did.append(f"was stopped (PID {main.pid}, {how})")

    def _brought_back(self, start: Launch, old: t.Sequence[Process]) -> Process | None:
        """The process that a supervisor has started in its place; it may not listen for long yet."""
        deadline = time.monotonic() + BROUGHT_BACK_SECONDS
        while True:
            new = [process for process in _twins(start) if process not in old]
            with contextlib.suppress(NoAnswer):
                new += [process for process in [_main(services.find(self.options, self.run))] if process]
            new = [process for process in new if process not in old]
            if new:
                return new[0]
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL)

    def _start(self, start: Launch) -> None:
        again = "and started again" if self.did else "was started"
        try:
            self.child = launch(start)
        except OSError as error:
            program = os.path.basename(start.argv[0]) if self.options["command"] else "its program"
            if not self.did:
                self.did.append("was to be started")
            self._fail(f"but {program} cannot be started: {error}")
        self.main = next(iter(identify([self.child])), None)
        self.did.append(f"{again} as PID {self.child}")
        if not self.options["log"] and self.before.pid and _null(start.output):
            self.notes.append("what it prints goes nowhere, for no file was known for it; set log")

    def _keep_pid_file(self) -> None:
        """Write the PID of what was started here where nobody else has done so."""
        path = self.options["pid_file"]
        if not path or not self.child:
            return
        with contextlib.suppress(NoAnswer):
            if services.pid_of_file(path):
                return
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(number, "w") as file:
                file.write(f"{self.child}\n")
        except OSError as error:
            self.notes.append(f"the PID file {path} cannot be written ({error.strerror})")

    # ready, or not

    def _wait_until_ready(self, began: float) -> None:
        limit = self.options["start_timeout"]
        while True:
            if self.before.manager == "systemd":
                self._look()
            reason = self._not_ready(began, limit)
            ended = self._ended()
            took = time.monotonic() - began
            if ended:
                self._fail(f"which {ended} after {took:.1f} s")
            if reason is None:
                self.result["ready_seconds"] = round(took, 2)
                self._keep_pid_file()
                self.result["after"] = self._after()
                return
            if took >= limit:
                self._fail(f"and was not ready after {limit:g} s: {reason.rstrip('.')}")
            time.sleep(_POLL)

    def _not_ready(self, began: float, limit: float) -> str | None:
        """Why it is not ready yet."""
        options, systemd = self.options, self.before.manager == "systemd"
        asked = bool(options["ready_url"] or options["kyrodb"])
        # The port is what a process is found by; in front of a unit may be something else.
        if options["port"] and not (systemd and asked):
            reason = self._not_listening(options["port"])
            if reason:
                return reason
        elif not asked and not systemd and time.monotonic() - began < min(LIVES_SECONDS, limit):
            return "it has only just been started"
        if systemd and self.now.properties.get("ActiveState") not in ("active", "reloading"):
            return f"{self.now.text} is not active"
        left = max(0.5, min(TRY_SECONDS, began + limit - time.monotonic()))
        try:
            if options["ready_url"]:
                answer = http_client.get(options["ready_url"], timeout=left)
                if not 200 <= answer.status < 300:
                    return f"GET {http_client.without_credentials(options['ready_url'])} answers {answer.status}"
            if options["kyrodb"]:
                kyrodb.ask(kyrodb.Endpoint(**options["kyrodb"]), left, samples=0, metrics=False)
        except NoAnswer as error:
            return str(error)
        return None

    def _not_listening(self, port: int) -> str | None:
        try:
            found = procfs.listeners(port)
        except NoAnswer:
            return None  # somebody listens; who it is may not be seen
        if not found:
            return f"nothing listens on port {port}"
        if self.before.manager == "systemd":
            own = set(self.now.pids)
        elif self.main:
            own = {self.main.pid, *procfs.children(self.main.pid)}
        else:
            return None
        if own and not own & set(found):
            return f"PID {found[0]} ({procfs.name(found[0])}) listens on port {port}, which is not what was started"
        return None

    def _ended(self) -> str | None:
        """How what was started has ended, where it will not come back by itself."""
        if self.before.manager == "systemd":
            # While systemd tries again, the unit is activating.
            if self.now.properties.get("ActiveState") not in ("failed", "inactive"):
                return None
            return f"ended ({self._how_unit_ended()})"
        if self.child is None:
            if self.main and not self.main.lives():
                if not self.result["changed"]:
                    return "ended"
                # Whoever brought it back will do so again.
                self.main = None
            return None
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        self.child = self.main = None
        if code == 0:
            self.did.append("by a command that has returned")
            return None
        return f"ended with status {code}" if code > 0 else f"was ended by {_signal_name(-code)}"

    def _after(self) -> dict[str, t.Any] | None:
        with contextlib.suppress(NoAnswer):
            found = services.find(self.options, self.run)
            if found.pid or found.manager == "systemd":
                self.result["by_hand"] = found.by_hand
                return told(found)
        if not self.main or not self.main.lives():
            return None
        started = clock.utc(procfs.started(self.main.pid))
        text = f"PID {self.main.pid} ({procfs.name(self.main.pid)}), running since {started}"
        return {"pid": self.main.pid, "started_at": started, "text": text}

    def _fail(self, what: str) -> t.NoReturn:
        self.result["after"] = self._after()
        lines = self._last_lines()
        said = f" Its last lines: {' | '.join(lines)}" if lines else ""
        state = self._state_now()
        raise Failed(
            f"{self.name} {' '.join(self.did)}, {what}{f'; {state}' if state else ''}.{said}", self._finished()
        )

    def _state_now(self) -> str:
        after, port = self.result["after"], self.options["port"]
        if self.before.manager == "systemd":
            return f"now there is {after['text']}" if after else ""
        if port:
            with contextlib.suppress(NoAnswer):
                found = procfs.listeners(port)
                if not found:
                    runs = f"PID {self.main.pid} runs, and " if self.main and self.main.lives() else ""
                    return f"{runs}nothing listens on port {port} now"
        return f"now there is {after['text']}" if after else "it does not run now"

    def _last_lines(self) -> list[str]:
        """What was logged since the start, without secrets."""
        if self.before.manager == "systemd":
            command = ["journalctl", "-u", str(self.before.unit), "-n", str(_LAST_LINES), "--no-pager", "-o", "cat"]
            try:
                _status, text, _errors = self.run(command)
            except OSError:
                return []
        else:
            text = next(filter(str.strip, (_since(number, size) for number, size in self.log)), "")
        lines = [line.strip() for line in mask_text(text, self.secrets).splitlines() if line.strip()]
        return lines[-_LAST_LINES:]


def _secrets(environment: t.Mapping[str, str]) -> list[str]:
    return [
        value
        for name, value in environment.items()
        if len(value) >= _SECRET_LENGTH and environment_files.looks_secret(name, value)
    ]


def _main(service: services.Service) -> Process | None:
    return Process(service.pid, service.ticks) if service.pid and service.ticks else None


def told(service: services.Service) -> dict[str, t.Any]:
    """What there is of a service, as results have it."""
    started_at = clock.utc(service.started) if service.started else None
    return {"pid": service.pid, "started_at": started_at, "text": service.text}


def _twins(start: Launch) -> list[Process]:
    """The processes with the same arguments in the same folder: recognised by that, and never sent a signal."""
    found = []
    for pid in procfs.pids():
        with contextlib.suppress(OSError):
            if procfs.command_line(pid) == start.argv and os.readlink(f"/proc/{pid}/cwd") == start.directory:
                found.append(pid)
    return identify(found)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def _as_user(user: tuple[int, int, list[int]] | None) -> t.Iterator[None]:
    """What root may do says nothing about the user that the service runs as."""
    if user is None:
        yield
        return
    before = (os.geteuid(), os.getegid(), os.getgroups())
    os.setgroups(user[2])
    os.setegid(user[1])
    os.seteuid(user[0])
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


def _may_enter(start: Launch) -> bool:
    with _as_user(start.user):
        return os.path.isdir(start.directory) and os.access(start.directory, os.X_OK, effective_ids=True)


def _executable(start: Launch) -> bool:
    program = start.argv[0]
    folders = [""] if "/" in program else start.environment.get("PATH", os.defpath).split(os.pathsep)
    paths = [os.path.join(start.directory, folder, program) for folder in folders]
    with _as_user(start.user):
        return any(os.path.isfile(path) and os.access(path, os.X_OK, effective_ids=True) for path in paths)


def _null(output: t.Sequence[int]) -> bool:
    return all(stat.S_ISCHR(os.fstat(number).st_mode) for number in output)


def _since(number: int, size: int) -> str:
    """What a file that we have open for writing has got since it had this size."""
    try:
        with open(f"/proc/self/fd/{number}", "rb") as file:
            end = os.fstat(number).st_size
            file.seek(max(size, end - _LAST_BYTES))
            return file.read(_LAST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""

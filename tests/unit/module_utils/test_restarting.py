# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarting real processes: servers that obey or do not, with children, a supervisor, or somebody else's PID."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs, restarting, services
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.restarting import Failed, Process
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers

SECRET = "sk-0123456789abcdef"
# It does what the file `mode` in its folder says when it starts, and writes its own and its children's PIDs to `pids`.
SERVER = """
import http.server, json, os, signal, socket, sys, time
mode = open("mode").read().split()
def note():
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
note()
print("starting, key", os.environ.get("SECRET_KEY"), flush=True)
if "rc3" in mode:
    print("password=hunter22", file=sys.stderr, flush=True)
    sys.exit(3)
if "killed" in mode:
    os.kill(os.getpid(), signal.SIGKILL)
if "deaf" in mode:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "slow-stop" in mode:
    signal.signal(signal.SIGTERM, lambda *_: (open("stopping", "w").close(), time.sleep(1), os._exit(0)))
if "silent" in mode:
    time.sleep(600)
if "slow-start" in mode:
    time.sleep(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen = {"pid": os.getpid(), "environ": dict(os.environ), "cwd": os.getcwd(), "sid": os.getsid(0),
                "uid": os.getuid(), "files": sorted(map(int, os.listdir("/proc/self/fd"))),
                "ignored": [n for n in (1, 2, 15) if signal.getsignal(n) == signal.SIG_IGN]}
        self.send_response(503 if "sick" in mode else 200)
        self.end_headers()
        self.wfile.write(json.dumps(seen).encode())
    def log_message(self, *_words):
        pass
class Server(http.server.HTTPServer):
    allow_reuse_address = True
server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
if "workers" in mode:
    children = []
    for _number in range(2):
        child = os.fork()
        if child == 0:
            note()
            if "deaf-workers" in mode:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            server.serve_forever()
        children.append(child)
    def stop(*_):
        for child in children:
            os.kill(child, signal.SIGTERM)
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    open("forked", "w").close()
    signal.pause()
server.serve_forever(0.05)
"""


class Service:
    """A server in a folder of its own; whatever has run in that folder ends with the test."""

    def __init__(self, folder):
        self.folder = folder
        self.port = helpers.free_port()
        self.url = f"http://127.0.0.1:{self.port}/health/liveness"
        self.argv = [sys.executable, str(folder / "server.py"), str(self.port)]
        self.log = folder / "out.log"
        self.log.touch()
        (folder / "server.py").write_text(SERVER)
        (folder / "pids").touch()
        self.mode("ok")

    def mode(self, *words):
        (self.folder / "mode").write_text(" ".join(words))

    def start(self, *words, **environment):
        self.mode(*(words or ["ok"]))
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                self.argv, cwd=self.folder, stdout=log, stderr=log, env={**os.environ, **environment}
            )
        until(self.listens)
        return Process(started.pid, procfs.start_ticks(started.pid))

    def listens(self):
        return bool(procfs.sockets(self.port, procfs.LISTEN))

    def ask(self):
        with urllib.request.urlopen(self.url, timeout=helpers.PATIENCE) as answer:
            return json.load(answer)

    def pids(self):
        return [int(word) for word in (self.folder / "pids").read_text().split()]

    def options(self, **values):
        assert set(values) <= set(OPTIONS), values
        return {**OPTIONS, "port": self.port, **values}

    def restart(self, **values):
        return restarting.restart(self.options(**values), helpers.run_command)

    def refused(self, **values):
        with pytest.raises((Refused, NoAnswer)) as caught:
            self.restart(**values)
        return str(caught.value)

    def fails(self, **values):
        with pytest.raises(Failed) as caught:
            self.restart(**values)
        return str(caught.value), caught.value.result

    def end(self):
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if Path(os.readlink(f"/proc/{pid}/cwd")) == self.folder:
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


OPTIONS = {
    **{name: spec.get("default") for name, spec in services.SUBJECT.items()},
    "name": "Vritti",
    "manager": "process",
    "settings": [],
    "state": "restarted",
    "unless_newer_than": None,
    "stop_timeout": 10.0,
    "start_timeout": 15.0,
    "ready_url": None,
    "kyrodb": None,
}


def until(condition):
    deadline = time.monotonic() + 3 * helpers.PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not come to pass"
        time.sleep(0.02)


@pytest.fixture()
def service(tmp_path, monkeypatch):
    monkeypatch.setattr(restarting, "BROUGHT_BACK_SECONDS", 0.3)
    made = Service(tmp_path)
    yield made
    made.end()


def test_left_alone_when_it_has_read_the_file(service):
    """A restart because of a changed file is wanted once."""
    file = service.folder / "vritti.env"
    file.write_text("A=1")
    old = service.start()
    until(lambda: procfs.age(old.pid) > 0.1)
    unchanged = service.restart(unless_newer_than=str(file))
    assert (unchanged["changed"], unchanged["after"]["pid"]) == (False, old.pid)
    file.write_text("A=2")
    changed = service.restart(unless_newer_than=str(file))
    assert changed["changed"] is True
    again = service.restart(unless_newer_than=str(file))
    assert (again["changed"], again["after"]["pid"]) == (False, changed["after"]["pid"])
    missing = service.restart(unless_newer_than=str(service.folder / "none.env"))
    assert missing["changed"] is True


# --- a process that obeys


def test_the_same_again(service):
    old = service.start(NAME="value", SECRET_KEY=SECRET)
    before = service.ask()
    result = service.restart(ready_url=service.url)
    now = service.ask()
    assert not old.lives()
    assert now["pid"] != old.pid
    assert now["environ"] == before["environ"]
    assert now["cwd"] == str(service.folder)
    assert now["sid"] == now["pid"]
    assert now["ignored"] == []
    assert result["changed"] is True
    assert result["manager"] == "process"
    assert result["before"]["pid"] == old.pid
    assert result["after"]["pid"] == now["pid"]
    assert result["after"]["text"].startswith(f"PID {now['pid']} (")
    assert result["after"]["started_at"].endswith("Z")
    assert result["killed"] == []
    assert result["stop_seconds"] >= 0
    assert result["ready_seconds"] >= 0
    assert result["note"] is None
    assert SECRET not in json.dumps(result)


def test_output_goes_where_it_went(service):
    """Also when the file has got another name since."""
    service.start()
    service.log.rename(service.folder / "out.log.1")
    service.restart()
    assert (service.folder / "out.log.1").read_text().count("starting") == 2


def test_output_goes_to_the_log(service):
    service.start()
    log = service.folder / "new.log"
    result = service.restart(log=str(log))
    assert log.read_text().count("starting") == 1
    assert service.log.read_text().count("starting") == 1
    assert result["note"] is None


def test_output_that_was_no_file(service):
    service.mode("ok")
    with subprocess.Popen(service.argv, cwd=service.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT):
        until(service.listens)
        assert service.restart()["note"] == "what it prints goes nowhere, for no file was known for it; set log"


def test_nothing_is_inherited_from_the_connection(service):
    """Whoever holds the other end of the connection would wait for as long as the service runs."""
    service.start()
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    service.restart()
    os.close(writer)
    assert select.select([reader], [], [], helpers.PATIENCE)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_limits_and_umask_are_those_of_the_old_one(service):
    service.mode("ok")
    with service.log.open("ab") as log:
        subprocess.Popen(
            ["sh", "-c", 'umask 027; ulimit -n 345; exec "$0" "$@"', *service.argv],
            cwd=service.folder,
            stdout=log,
            stderr=log,
        )
    until(service.listens)
    service.restart()
    pid = service.ask()["pid"]
    assert procfs.open_files(pid)[1] == 345
    assert "Umask:\t0027" in procfs.read(f"/proc/{pid}/status")


def test_environment_file_and_settings(service):
    old = service.start(WEB_CONCURRENCY="4", KEPT="yes", SECRET_KEY=SECRET, CHANGED="before")
    path = service.folder / "vritti.env"
    path.write_text('# settings\nCHANGED="after all"\nNEW=1\n')
    result = service.restart(environment_file=str(path), settings=["WEB_CONCURRENCY", "CHANGED"])
    environ = service.ask()["environ"]
    assert not old.lives()
    assert "WEB_CONCURRENCY" not in environ
    assert (environ["KEPT"], environ["CHANGED"], environ["NEW"]) == ("yes", "after all", "1")
    assert SECRET not in json.dumps(result)


def test_environment_file_that_does_not_exist(service):
    service.start(WEB_CONCURRENCY="4")
    service.restart(environment_file=str(service.folder / "none"), settings=["WEB_CONCURRENCY"])
    assert "WEB_CONCURRENCY" not in service.ask()["environ"]


def test_check_mode(service):
    old = service.start()
    log = service.folder / "new.log"
    result = restarting.restart(service.options(log=str(log)), helpers.run_command, check_mode=True)
    assert result["changed"] is True
    assert result["before"]["pid"] == old.pid
    assert result["after"] is None
    assert old.lives()
    assert not log.exists()


# --- one that does not


def test_deaf_to_sigterm(service):
    old = service.start("deaf")
    service.mode("ok")
    result = service.restart(stop_timeout=0.5)
    assert result["killed"] == [old.pid]
    assert service.ask()["pid"] == result["after"]["pid"] != old.pid


def test_stopped_process(service):
    """It cannot handle SIGTERM, and need not be killed for that."""
    old = service.start("slow-stop")
    os.kill(old.pid, signal.SIGSTOP)
    until(lambda: procfs.state(old.pid) == "T")
    result = service.restart()
    assert result["killed"] == []
    assert (service.folder / "stopping").exists()
    assert result["note"] == f"PID {old.pid} was stopped by SIGSTOP and was continued for SIGTERM"


def test_stopped_and_deaf(service):
    old = service.start("deaf")
    os.kill(old.pid, signal.SIGSTOP)
    assert service.restart(stop_timeout=0.5)["killed"] == [old.pid]


def test_workers_share_the_socket(service):
    old = service.start("workers")
    until((service.folder / "forked").exists)
    family = [old, *restarting.identify(procfs.children(old.pid))]
    assert len(family) == 3
    result = service.restart(ready_url=service.url)
    assert result["before"]["pid"] == old.pid
    assert not [process for process in family if process.lives()]
    assert result["killed"] == []
    assert procfs.parent(service.ask()["pid"]) == result["after"]["pid"]


def test_workers_that_outlive_their_parent(service):
    old = service.start("workers", "deaf-workers")
    until((service.folder / "forked").exists)
    workers = procfs.children(old.pid)
    until(lambda: len(service.pids()) == 3)
    service.mode("ok")
    result = service.restart(stop_timeout=1.0)
    assert sorted(result["killed"]) == sorted(workers)
    assert service.ask()["pid"] not in workers


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of somebody else")
def test_process_that_may_not_be_killed():
    """It is told, and not taken for one that has ended."""
    with subprocess.Popen(["sleep", "60"]) as other:
        text = helpers.python(
            """
            import sys
            from ansible_collections.oncall.runbooks.plugins.module_utils import procfs, restarting
            from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
            exec(helpers.BECOME_NOBODY)
            restarting.KILL_SECONDS = 0.1
            pid = int(sys.argv[1])
            print(restarting.stop(restarting.Process(pid, procfs.start_ticks(pid)), 0.1) == ([], [pid]))
            """,
            other.pid,
        )
        assert text == "True"
        assert other.poll() is None
        other.kill()


# --- one that does not come back


def test_never_healthy(service):
    old = service.start()
    service.mode("sick")
    said, result = service.fails(ready_url=service.url, start_timeout=1.0)
    new = result["after"]["pid"]
    assert said == (
        f"Vritti was stopped (PID {old.pid}, SIGTERM) and started again as PID {new}, and was not ready after 1 s: "
        f"GET {service.url} answers 503; now there is {result['after']['text']}. Its last lines: starting, key None"
    )
    assert procfs.start_ticks(new)
    assert result["changed"] is True
    assert result["ready_seconds"] is None


def test_ends_at_once(service):
    old = service.start(SECRET_KEY=SECRET)
    service.mode("rc3")
    said, result = service.fails(ready_url=service.url)
    assert said.startswith(f"Vritti was stopped (PID {old.pid}, SIGTERM) and started again as PID ")
    assert ", which ended with status 3 after " in said
    assert f"; nothing listens on port {service.port} now. Its last lines: " in said
    assert said.endswith("password=********")
    assert SECRET not in said
    assert "hunter22" not in said
    assert result["after"] is None
    assert SECRET not in json.dumps(result)


def test_ends_by_a_signal(service):
    service.start()
    service.mode("killed")
    assert ", which was ended by SIGKILL after " in service.fails()[0]


TAKES_OVER = """
import http.server, sys, time
while True:
    try:
        server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler)
        break
    except OSError:
        time.sleep(0.005)
server.serve_forever()
"""


def test_somebody_else_answers(service):
    """The old process is gone, the new one does not listen, and what answers in its place is none of ours."""
    service.start()
    service.mode("silent")
    command = f"{sys.executable} server.py {service.port}"
    with subprocess.Popen(
        [sys.executable, "-c", TAKES_OVER, str(service.port)], cwd=service.folder, stderr=subprocess.DEVNULL
    ) as other:
        try:
            said, _result = service.fails(
                ready_url=f"http://127.0.0.1:{service.port}/", start_timeout=2.0, command=command
            )
        finally:
            other.kill()
    assert f": PID {other.pid} (" in said
    assert f"listens on port {service.port}, which is not what was started; now there is PID {other.pid} " in said


def test_nothing_but_a_pid_file_to_see_it_by(service):
    old = service.start()
    path = service.folder / "pid"
    path.write_text(f"{old.pid}\n")
    result = service.restart(port=None, pid_file=str(path))
    assert int(path.read_text()) == result["after"]["pid"] == service.ask()["pid"]
    service.mode("rc3")
    said, _result = service.fails(port=None, pid_file=str(path))
    assert "which ended with status 3" in said
    assert "; it does not run now." in said


# --- whose PID it is


def test_reused_pid_gets_no_signal(service):
    other = service.start()
    was = Process(other.pid, str(int(other.ticks) - 1))
    assert not was.lives()
    assert was.send(signal.SIGKILL) is False
    assert restarting.stop(was, 0.2) == ([], [])
    assert other.lives()
    assert service.ask()["pid"] == other.pid


def test_reused_between_looking_and_stopping(service, monkeypatch):
    """Another process gets the PID after the service was found: it is left alone."""
    other = service.start()
    work = restarting._Restart(service.options(), helpers.run_command)
    work._stop(Process(other.pid, str(int(other.ticks) - 1)))
    assert work.did == [f"had ended by itself (PID {other.pid})"]
    assert other.lives()


def test_pid_file_of_another_process(service):
    old = service.start()
    path = service.folder / "pid"
    with subprocess.Popen(["sleep", "60"]) as other:
        path.write_text(str(other.pid))
        said = service.refused(pid_file=str(path))
        assert f"{path} names PID {other.pid}, and PID {old.pid} listens on port {service.port}: correct" in said
        assert other.poll() is None
        other.kill()
    assert old.lives()


def test_pid_file_older_than_the_process(service):
    old = service.start()
    path = service.folder / "pid"
    path.write_text(str(old.pid))
    os.utime(path, (time.time() - 3600,) * 2)
    assert "began after the file was written" in service.refused(pid_file=str(path), port=None)
    assert old.lives()


def test_not_what_it_runs_under(service):
    with socket.create_server(("127.0.0.1", service.port)):
        said = service.refused()
    assert said.endswith("is what this task itself runs under, so it is not stopped; run it from elsewhere. "
                         "Nothing was changed.")  # fmt: skip
    above = os.getppid()
    path = service.folder / "pid"
    path.write_text(str(above))
    assert f"PID {above} " in service.refused(port=None, pid_file=str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into the first process of a host")
def test_not_the_first_process(service):
    path = service.folder / "pid"
    path.write_text("1")
    assert "is the first process of this host" in service.refused(port=None, pid_file=str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="there is only one user to be")
def test_process_of_somebody_else(service):
    old = service.start()
    path = service.folder / "pid"
    path.write_text(str(old.pid))
    text = helpers.python(
        """
        import json, sys
        from ansible_collections.oncall.runbooks.plugins.module_utils import restarting
        from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
        exec(helpers.BECOME_NOBODY)
        try:
            restarting.remember(int(sys.argv[1]))
        except restarting.Refused as error:
            print(error)
        """,
        old.pid,
    )
    assert text.startswith(f"PID {old.pid} (")
    assert text.endswith("may not stop it and start it again; run with -b. Nothing was changed.")


# --- what starts it


def test_command(service):
    old = service.start()
    result = service.restart(command=f"'{sys.executable}' server.py {service.port}")
    assert procfs.command_line(result["after"]["pid"])[1] == "server.py"
    assert result["by_hand"][-1].endswith(f"server.py {service.port}")
    assert not old.lives()


DAEMON = """
import os, sys
if os.fork():
    os._exit(int(sys.argv[2]))
os.setsid()
if os.fork():
    os._exit(0)
sys.stdout.flush()
os.execv(sys.executable, [sys.executable, "server.py", sys.argv[1]])
"""


def test_command_that_returns(service):
    old = service.start()
    (service.folder / "daemon.py").write_text(DAEMON)
    service.mode("slow-start")
    result = service.restart(command=f"{sys.executable} daemon.py {service.port} 0", ready_url=service.url)
    assert not old.lives()
    assert service.ask()["pid"] == result["after"]["pid"]


def test_command_that_fails(service):
    service.start()
    said, _result = service.fails(command=f"{sys.executable} -c 'import sys; print(\"no, no\"); sys.exit(5)'")
    assert ", which ended with status 5 after " in said
    assert said.endswith("Its last lines: no, no")


def test_command_when_nothing_runs(service):
    log = service.folder / "new.log"
    result = service.restart(
        command=f"{sys.executable} server.py {service.port}",
        directory=str(service.folder),
        log=str(log),
        pid_file=str(service.folder / "pid"),
        ready_url=service.url,
    )
    now = service.ask()
    assert result["before"] == {
        "pid": None,
        "started_at": None,
        "text": f"Vritti (nothing listens on port {service.port})",
    }
    assert result["after"]["pid"] == now["pid"] == int((service.folder / "pid").read_text())
    assert result["stop_seconds"] is None
    assert set(now["environ"]) <= {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "LC_CTYPE"}
    assert log.read_text() == "starting, key None\n"


@pytest.fixture()
def owned(monkeypatch):
    """A service in a folder of nobody's, who may not enter those of pytest, and a Python that everybody may run."""
    python = shutil.which("python3", path=os.defpath)
    if os.geteuid() != 0 or not python:
        pytest.skip("only root may start it as somebody else, with a Python that everybody may run")
    monkeypatch.setattr(restarting, "BROUGHT_BACK_SECONDS", 0.3)
    folder = Path(tempfile.mkdtemp())
    made = Service(folder)
    made.command = f"{python} server.py {made.port}"
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65534, 65534)
    yield made
    made.end()
    shutil.rmtree(folder)


def test_as_whom_it_is_started(owned):
    log = owned.folder / "logged"
    first = owned.restart(command=owned.command, directory=str(owned.folder), log=str(log))
    assert owned.ask()["uid"] == 65534
    assert log.stat().st_uid == 65534
    again = owned.restart()
    assert owned.ask()["uid"] == 65534
    assert owned.ask()["pid"] == again["after"]["pid"] != first["after"]["pid"]
    assert log.read_text().count("starting") == 2
    assert os.geteuid() == 0


def test_program_that_its_user_may_not_run(owned):
    """Root may, which is of no use once the service is stopped."""
    owned.restart(command=owned.command, directory=str(owned.folder))
    before = owned.ask()["pid"]
    program = owned.folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    said = owned.refused(command=str(program))
    assert said.startswith(f"There is no program {program} that {procfs.user(65534)} may run to start Vritti;")
    closed = owned.folder / "closed"
    closed.mkdir(mode=0o700)
    said = owned.refused(command=owned.command, directory=str(closed))
    assert said == f"{procfs.user(65534)} may not enter the folder {closed} of Vritti. Nothing was changed."
    assert owned.ask()["pid"] == before


SUPERVISOR = """
import subprocess, sys, time
for _number in range(3):
    with open("out.log", "ab") as log:
        subprocess.run(sys.argv[1:], stdout=log, stderr=log)
"""


def test_supervisor_brings_it_back(service, monkeypatch):
    """It is long in starting, so nothing listens for a while; a second one must not be started beside it."""
    monkeypatch.setattr(restarting, "BROUGHT_BACK_SECONDS", 10.0)
    service.mode("ok")
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, *service.argv], cwd=service.folder) as supervisor:
        try:
            until(service.listens)
            old = service.ask()["pid"]
            service.mode("slow-start")
            result = service.restart(settings=["A"])
            assert result["before"]["pid"] == old
            assert procfs.parent(result["after"]["pid"]) == supervisor.pid
            assert service.pids() == [old, result["after"]["pid"]]
            assert result["note"] == "what watches over it decides which settings it starts with"
        finally:
            supervisor.kill()


def test_supervisor_brings_back_what_fails(service, monkeypatch):
    monkeypatch.setattr(restarting, "BROUGHT_BACK_SECONDS", 10.0)
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, *service.argv], cwd=service.folder) as supervisor:
        try:
            until(service.listens)
            service.mode("silent")
            said, _result = service.fails(start_timeout=1.0)
            assert " and brought back by whatever watches over it, as PID " in said
            assert f"was not ready after 1 s: nothing listens on port {service.port}; PID " in said
        finally:
            supervisor.kill()


# --- what is refused before anything is stopped


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"command": "python 'server"}, "The command of Vritti cannot be read: no closing quotation."),
        ({"command": "no-such-program --port 1"}, "There is no program no-such-program that "),
        ({"command": "./server.py"}, "There is no program ./server.py that "),
        ({"directory": "/no/such"}, "The folder /no/such of Vritti does not exist."),
        ({"environment_file": "/proc"}, "/proc cannot be read: "),
        ({"log": "/proc/self"}, "The log /proc/self cannot be written: Is a directory."),
        ({"log": "/no/such/log"}, "The log /no/such/log cannot be written: No such file or directory."),
        ({"manager": "none"}, "Vritti has no service manager here (none), so it cannot be restarted."),
        ({"port": None}, "Vritti has no systemd unit here, and neither a port nor a PID file to find its process by."),
    ],
)
def test_refused(service, values, says):
    old = service.start()
    said = service.refused(**values)
    assert said.startswith(says)
    assert said.endswith("Nothing was changed.")
    assert old.lives()


def test_nothing_runs_and_nothing_starts_it(service):
    assert service.refused() == (
        f"Vritti does not run (nothing listens on port {service.port}), and nothing says how it is started; set its "
        "command or unit. Nothing was changed."
    )


@pytest.mark.parametrize("script", [False, True])
def test_one_that_is_starting_is_neither_stopped_nor_doubled(service, script):
    """It does not listen yet, and is known by its command alone: enough to wait for it, and not to send it a signal."""
    service.mode("silent")
    command = service.argv[1:] if script else service.argv
    started = subprocess.Popen(service.argv, cwd=service.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(service.pids)
    said = service.refused(command=" ".join(command), directory=str(service.folder))
    assert said.startswith(f"Vritti seems to be starting: PID {started.pid} runs its command since ")
    assert said.endswith("wait for it, or end it by hand. Nothing was changed.")
    assert started.poll() is None
    # The same command in another folder is another service's.
    elsewhere = service.folder / "elsewhere"
    elsewhere.mkdir()
    found = services.find(service.options(command=" ".join(command), directory=str(elsewhere)), helpers.run_command)
    assert found.state == "stopped"


def test_folder_that_is_gone(service):
    (service.folder / "old").mkdir()
    (service.folder / "old/mode").write_text("ok")
    with subprocess.Popen(service.argv, cwd=service.folder / "old") as old:
        try:
            until(service.listens)
            shutil.rmtree(service.folder / "old")
            assert "is not there any more; set directory and command." in service.refused()
            assert old.poll() is None
        finally:
            old.kill()


def test_command_line_that_was_overwritten(service):
    """Some servers put a title in its place."""
    code = f"import os, sys; os.execv({sys.executable!r}, ['server: main process', 'server.py', sys.argv[1]])"
    with subprocess.Popen([sys.executable, "-c", code, str(service.port)], cwd=service.folder) as old:
        try:
            until(service.listens)
            assert f"The command line of PID {old.pid} does not tell which program it is" in service.refused()
            assert old.poll() is None
        finally:
            old.kill()


# --- started


def test_started_and_it_runs(service):
    old = service.start()
    result = service.restart(state="started", ready_url=service.url)
    assert result["changed"] is False
    assert result["before"] == result["after"]
    assert result["after"]["pid"] == old.pid == service.ask()["pid"]


def test_started_and_it_does_not_run(service):
    values = {"state": "started", "command": f"{sys.executable} server.py {service.port}"}
    result = service.restart(**values, directory=str(service.folder))
    assert result["changed"] is True
    assert service.ask()["pid"] == result["after"]["pid"]
    assert service.restart(**values)["changed"] is False


def test_started_and_it_is_not_ready(service):
    old = service.start("sick")
    said, result = service.fails(state="started", ready_url=service.url, start_timeout=0.5)
    assert said.startswith(f"Vritti runs already, and was not ready after 0.5 s: GET {service.url} answers 503")
    assert result["changed"] is False
    assert old.lives()


# --- KyroDB


def kyrodb(address, **values):
    from ansible_collections.oncall.runbooks.plugins.module_utils.kyrodb import CONNECTION_SPEC

    return {**{k: v.get("default") for k, v in CONNECTION_SPEC.items()}, "api_key": None, "address": address, **values}


def test_kyrodb_answers(service):
    pytest.importorskip("grpc")
    service.start()
    calls = []
    with helpers.kyrodb_server(health=helpers.health_bytes(status=3), metrics=False, calls=calls) as address:
        result = service.restart(kyrodb=kyrodb(address, api_key="k1"))
    assert result["ready_seconds"] is not None
    assert [metadata["x-api-key"] for _request, metadata in calls] == ["k1"]


def test_kyrodb_does_not_answer(service):
    service.start()
    address = f"localhost:{helpers.free_port()}"
    said, result = service.fails(kyrodb=kyrodb(address, api_key=SECRET), start_timeout=1.0)
    assert f"was not ready after 1 s: KyroDB at {address} takes no connection: Connection refused; " in said
    assert SECRET not in said + json.dumps(result)


# --- a lost connection


RESTART = """
import json, sys
from ansible_collections.oncall.runbooks.plugins.module_utils import restarting
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
restarting.BROUGHT_BACK_SECONDS = 0.3
restarting.restart(json.loads(sys.argv[1]), helpers.run_command)
"""


def test_controller_that_goes_away_while_it_is_stopped(service):
    """What ends the module then would leave the service down."""
    old = service.start("slow-stop")
    work = subprocess.Popen(
        [sys.executable, "-c", RESTART, json.dumps(service.options(ready_url=service.url))],
        env={**os.environ, "PYTHONPATH": str(helpers.COLLECTIONS)},
    )
    with work:
        until((service.folder / "stopping").exists)
        service.mode("ok")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
            work.send_signal(number)
    assert work.returncode == 0
    assert not old.lives()
    now = service.ask()
    assert now["pid"] != old.pid
    assert now["ignored"] == []


def test_signals_are_as_before_afterwards(service):
    before = [signal.getsignal(number) for number in (1, 2, 13, 15)]
    service.start()
    service.restart()
    assert [signal.getsignal(number) for number in (1, 2, 13, 15)] == before


# --- systemd, as its tools answer


class Systemd:
    """Plays back what systemctl and journalctl print; each unit's `show` in turn, the last of them for ever."""

    def __init__(self, *shows, verb=(0, "", ""), journal=""):
        self.shows = list(shows)
        self.verb = verb
        self.journal = journal
        self.commands = []

    def __call__(self, command):
        if command[:2] == ["systemctl", "show"]:
            shown = self.shows.pop(0) if len(self.shows) > 1 else self.shows[0]
            return 0, "".join(f"{name}={value}\n" for name, value in {**SHOW, **shown}.items()), ""
        self.commands.append(command)
        return (0, self.journal, "") if command[0] == "journalctl" else self.verb


SHOW = {
    "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success", "MainPID": "0",
    "NRestarts": "0", "TimeoutStopUSec": "1min 30s", "ExecMainStatus": "0",
}  # fmt: skip
DEAD = {"ActiveState": "inactive", "SubState": "dead"}
BROKEN = {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "ExecMainStatus": "3"}


@pytest.fixture()
def booted(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SYSTEMD", str(tmp_path))


def unit(**values):
    return {**OPTIONS, "manager": "auto", "unit": "vritti", **values}


def test_unit(service, booted):
    old, new = service.start(), os.getpid()
    systemd = Systemd({"MainPID": str(old.pid)}, {"MainPID": str(new)})
    result = restarting.restart(unit(ready_url=service.url), systemd)
    assert systemd.commands == [["timeout", "105", "systemctl", "restart", "vritti.service", "--no-ask-password"]]
    assert result["manager"] == "systemd"
    assert (result["before"]["pid"], result["after"]["pid"]) == (old.pid, new)
    assert result["by_hand"] == ["sudo systemctl restart vritti.service"]
    assert result["stop_seconds"] is None
    assert result["note"] is None
    assert old.lives()


def test_unit_with_a_short_limit_of_its_own(booted):
    systemd = Systemd({"MainPID": str(os.getpid()), "TimeoutStopUSec": "5s"})
    result = restarting.restart(unit(stop_timeout=45.0), systemd, check_mode=True)
    assert result["changed"] is True
    assert result["note"] == "systemd kills vritti.service 5 s after SIGTERM (its TimeoutStopSec), and it may need 45 s"
    assert systemd.commands == []


def test_unit_that_is_started(booted):
    systemd = Systemd(DEAD, {"MainPID": str(os.getpid())})
    result = restarting.restart(unit(state="started"), systemd)
    assert systemd.commands[0][3] == "start"
    assert result["before"]["text"] == "vritti.service (no process, inactive (dead))"
    again = restarting.restart(unit(state="started"), systemd)
    assert again["changed"] is False
    assert len(systemd.commands) == 1


@pytest.mark.parametrize(
    "said",
    [
        "Failed to restart vritti.service: Interactive authentication required.\nSee system logs for details.",
        "Failed to restart vritti.service: Access denied",
    ],
)
def test_unit_without_permission(booted, said):
    systemd = Systemd({"MainPID": str(os.getpid())}, verb=(1, "", said))
    with pytest.raises(Refused) as caught:
        restarting.restart(unit(), systemd)
    me = procfs.user(os.geteuid())
    assert str(caught.value) == f"systemd does not let {me} restart vritti.service; run with -b. Nothing was changed."


def test_unit_that_cannot_be_restarted(booted):
    said = (
        "Failed to restart vritti.service: Operation refused, unit vritti.service may be requested by dependency only."
    )
    with pytest.raises(Refused, match=r"fails: Failed to restart .* only\. Nothing was changed\."):
        restarting.restart(unit(), Systemd({"MainPID": str(os.getpid())}, verb=(1, "", said)))


def test_unit_whose_job_fails(booted):
    systemd = Systemd(
        {"MainPID": str(os.getpid())},
        BROKEN,
        verb=(1, "", "Job for vritti.service failed because the control process exited with error code."),
        journal="Traceback\n\npassword=hunter22\n",
    )
    with pytest.raises(Failed) as caught:
        restarting.restart(unit(), systemd)
    assert str(caught.value) == (
        "Vritti was to be restarted by systemd (vritti.service), which failed (result exit-code, exit status 3); now "
        "there is vritti.service (no process, failed (failed)). Its last lines: Traceback | password=********"
    )
    assert systemd.commands[-1][:3] == ["journalctl", "-u", "vritti.service"]
    assert caught.value.result["changed"] is True


def test_unit_that_ends_after_the_start(booted):
    systemd = Systemd({"MainPID": str(os.getpid())}, {"MainPID": str(os.getpid())}, BROKEN)
    with pytest.raises(Failed, match=r"which ended \(result exit-code, exit status 3\) after "):
        restarting.restart(unit(ready_url=f"http://127.0.0.1:{helpers.free_port()}/"), systemd)


def test_unit_that_systemd_tries_again(service, booted):
    service.start()
    trying = {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code", "NRestarts": "1"}
    systemd = Systemd({"MainPID": str(os.getpid())}, trying, trying, {"MainPID": str(os.getppid()), "NRestarts": "2"})
    result = restarting.restart(unit(ready_url=service.url), systemd)
    assert result["after"]["pid"] == os.getppid()


def test_unit_that_does_not_come_to_an_end(booted):
    systemd = Systemd({"MainPID": str(os.getpid()), "TimeoutStopUSec": "infinity"}, verb=(124, "", ""))
    with pytest.raises(Failed, match=r"has not come to an end in 25 s and goes on by itself"):
        restarting.restart(unit(), systemd)
    assert systemd.commands[0][:2] == ["timeout", "25"]


def test_unit_by_its_port(service, booted, monkeypatch):
    """Without a URL the port has to be listened on by a process of the unit."""
    old = service.start()
    show = {"MainPID": str(old.pid)}
    assert restarting.restart(unit(port=service.port), Systemd(show))["after"]["pid"] == old.pid
    with pytest.raises(Failed, match=f"listens on port {service.port}, which is not what was started"):
        restarting.restart(
            unit(port=service.port, start_timeout=0.5), Systemd({"MainPID": str(os.getpid())}, journal="")
        )


def test_unit_that_does_not_exist(booted):
    with pytest.raises(Refused) as caught:
        restarting.restart(unit(manager="systemd"), Systemd({"LoadState": "not-found"}))
    assert str(caught.value) == (
        "The unit vritti.service of Vritti does not exist on this host; name its unit, or another service manager. "
        "Nothing was changed."
    )


def test_no_systemd(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SYSTEMD", str(tmp_path / "none"))
    with pytest.raises(Refused) as caught:
        restarting.restart(unit(manager="systemd"), helpers.run_command)
    assert str(caught.value).startswith("Systemd does not run on this host, and Vritti is said to be managed by it")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding a service: by its unit as systemctl prints it, by its PID file, by its port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, procfs, services
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look

SHOW = """\
LoadState=loaded
ActiveState=active
SubState=running
Result=success
MainPID={pid}
NRestarts=2
TimeoutStopUSec=1min 30s
EnvironmentFiles=/etc/vritti/vritti.env (ignore_errors=no)
ExecMainStatus=0
UnitFileState=enabled
"""


def subject(**values):
    return {**{name: spec.get("default") for name, spec in services.SUBJECT.items()}, "name": "Vritti", **values}


def systemd(pid=0, answers=None):
    """What `systemctl show` prints for each unit; for one that it does not know, what it prints then."""
    shown = {"vritti.service": SHOW.format(pid=pid)} if answers is None else answers
    asked = []

    def run(command):
        assert command[:2] == ["systemctl", "show"]
        asked.append(command[2])
        return 0, shown.get(command[2], "LoadState=not-found\nActiveState=inactive\nMainPID=0\n"), ""

    run.asked = asked
    return run


@pytest.fixture()
def booted(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SYSTEMD", str(tmp_path))


@pytest.fixture()
def sleeper():
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started.pid
        started.kill()


def test_unit(booted, sleeper):
    found = services.find(subject(unit="vritti"), systemd(sleeper))
    assert (found.manager, found.state, found.pid, found.unit) == ("systemd", "running", sleeper, "vritti.service")
    assert found.ticks == procfs.start_ticks(sleeper)
    assert found.text == f"vritti.service (PID {sleeper}, running since {clock.utc(procfs.started(sleeper))})"
    assert found.by_hand == ["sudo systemctl restart vritti.service"]
    assert services.environment_files(found) == ["/etc/vritti/vritti.env"]
    assert services.stop_seconds(found) == 90


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("1min 30s", 90), ("1h 500ms", 3600.5), ("2d", 172800), ("infinity", None), ("", None), ("90", 90)],
)
def test_stop_seconds(text, seconds):
    assert services.stop_seconds(services.Service("systemd", "", properties={"TimeoutStopUSec": text})) == seconds


@pytest.mark.parametrize(
    ("active", "state"),
    [
        ("active", "running"),
        ("reloading", "running"),
        ("failed", "failed"),
        ("inactive", "stopped"),
        ("activating", "stopped"),
    ],
)
def test_state_of_a_unit(booted, active, state):
    text = SHOW.format(pid=0).replace("ActiveState=active", f"ActiveState={active}")
    found = services.find(subject(unit="vritti.service"), systemd(answers={"vritti.service": text}))
    assert found.state == state
    assert found.text == f"vritti.service (no process, {active} (running))"


def test_unit_that_is_not_there(booted):
    found = services.find(subject(manager="systemd", unit="vritti"), systemd(answers={}))
    assert found.state == "missing"
    assert found.problem == (
        "The unit vritti.service of Vritti does not exist on this host; name its unit, or another service manager."
    )
    masked = systemd(answers={"vritti.service": "LoadState=masked\n"})
    assert "is masked" in services.find(subject(manager="systemd", unit="vritti"), masked).problem


def test_systemctl_that_fails(booted):
    with pytest.raises(NoAnswer, match=r"systemctl show vritti\.service fails: Failed to connect to bus: No such file"):
        services.find(subject(unit="vritti"), lambda _command: (1, "", "Failed to connect to bus: No such file\n"))


def test_systemctl_that_is_missing(booted, monkeypatch):
    monkeypatch.setenv("PATH", "/no/such")
    with pytest.raises(NoAnswer, match="systemctl cannot be run: No such file or directory"):
        services.find(subject(unit="vritti"), helpers.run_command)


def test_auto_without_systemd(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SYSTEMD", str(tmp_path / "none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = services.find(subject(unit="vritti", port=port), helpers.run_command)
    assert (found.manager, found.pid) == ("process", os.getpid())
    assert found.text.startswith(f"PID {os.getpid()} (")
    assert f") on port {port}, running since " in found.text


def test_process_of_a_unit_under_another_name(booted, monkeypatch):
    """It must not be started beside its unit. What merely runs within a unit is no unit's main process."""
    monkeypatch.setattr(procfs, "unit_of", lambda _pid: "api.service")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        run = systemd(answers={"api.service": SHOW.format(pid=os.getpid())})
        found = services.find(subject(unit="vritti", port=port), run)
        assert (found.manager, found.unit, found.pid) == ("systemd", "api.service", os.getpid())
        assert run.asked == ["vritti.service", "api.service"]
        run = systemd(answers={"api.service": SHOW.format(pid=os.getppid())})
        assert services.find(subject(unit="vritti", port=port), run).manager == "process"
        assert services.find(subject(manager="process", port=port), run).manager == "process"


def test_neither_unit_nor_port_nor_pid_file():
    found = services.find(subject(manager="process"), helpers.run_command)
    assert found.state == "missing"
    assert found.problem == (
        "Vritti has no systemd unit here, and neither a port nor a PID file to find its process by."
    )
    assert services.find(subject(manager="none"), helpers.run_command).problem == (
        "Vritti has no service manager here (none), so it cannot be restarted."
    )


def test_nothing_runs():
    port = helpers.free_port()
    found = services.find(
        subject(manager="process", port=port, command="uvicorn x", directory="/srv"), helpers.run_command
    )
    assert (found.state, found.pid) == ("stopped", None)
    assert found.text == f"Vritti (nothing listens on port {port})"
    assert found.by_hand == ["cd /srv && uvicorn x"]


def test_main_process_of_several_that_listen():
    code = (
        "import os, socket, time\n"
        "held = socket.create_server(('127.0.0.1', 0))\n"
        "os.fork()\n"
        "os.write(1, f'{held.getsockname()[1]}\\n'.encode())\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as started:
        try:
            port = int(started.stdout.readline())
            started.stdout.readline()
            found = services.find(subject(manager="process", port=port), helpers.run_command)
            assert found.pid == started.pid
            assert len(found.pids) == 2
        finally:
            for pid in [*procfs.children(started.pid), started.pid]:
                os.kill(pid, 9)


# --- PID files


def test_pid_file(tmp_path, sleeper):
    path = tmp_path / "pid"
    path.write_text(f"{sleeper}\n")
    found = services.find(subject(manager="process", pid_file=str(path)), helpers.run_command)
    assert found.pid == sleeper
    assert found.text.startswith(f"PID {sleeper} (sleep) of {path}, running since ")


def test_pid_file_of_a_process_that_is_gone(tmp_path):
    path = tmp_path / "pid"
    assert services.pid_of_file(str(path)) is None
    with subprocess.Popen(["true"]) as ended:
        path.write_text(str(ended.pid))
        deadline = time.monotonic() + helpers.PATIENCE
        while procfs.state(ended.pid) != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # Nobody has asked for its exit status yet.
        assert services.pid_of_file(str(path)) is None
    assert services.pid_of_file(str(path)) is None
    found = services.find(subject(manager="process", pid_file=str(path)), helpers.run_command)
    assert found.text == f"Vritti ({path} names no running process)"


def test_pid_that_another_process_has_got(tmp_path, sleeper):
    path = tmp_path / "pid"
    path.write_text(str(sleeper))
    began = procfs.started(sleeper)
    os.utime(path, (began - 3600, began - 3600))
    with pytest.raises(NoAnswer) as caught:
        services.pid_of_file(str(path))
    assert str(caught.value) == (
        f"{path} names PID {sleeper}, which is sleep now and began after the file was written: "
        "a process that is gone had that number; remove the file."
    )
    # Within the second that the kernel's time of boot is off by.
    os.utime(path, (began - 1, began - 1))
    assert services.pid_of_file(str(path)) == sleeper


@pytest.mark.parametrize("content", ["", "soon\n", "-1"])
def test_pid_file_without_a_pid(tmp_path, content):
    path = tmp_path / "pid"
    path.write_text(content)
    with pytest.raises(NoAnswer, match="holds no PID"):
        services.pid_of_file(str(path))


def test_pid_file_and_port_disagree(tmp_path, sleeper):
    path = tmp_path / "pid"
    path.write_text(str(sleeper))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(NoAnswer, match=f"names PID {sleeper}, and PID {os.getpid()} listens on port {port}"):
            services.find(subject(manager="process", port=port, pid_file=str(path)), helpers.run_command)


# --- the probe


def test_probe(booted, sleeper):
    values = dict.fromkeys(services.SUBJECT)
    values.update(name="Vritti", manager="auto", unit="vritti")
    context = helpers.context()
    context.run = systemd(sleeper)
    seen = look("service", context, **values)
    assert seen["value"] == "running"
    assert seen["evidence"]["environment_files"] == ["/etc/vritti/vritti.env"]
    assert look("service", context, **values, value="restarts")["value"] == 2
    assert look("service", context, **values, value="age")["value"] >= 0
    assert context.run.asked == ["vritti.service"]

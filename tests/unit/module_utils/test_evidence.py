# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of a service before it is restarted: real logs and real processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import evidence
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers

SECRET = "s3same-of-the-command-line"


def stamp(ago=0.0):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago))


def test_end_of_the_log_without_secrets(tmp_path):
    path = tmp_path / "service.log"
    path.write_text(
        f"{stamp(3600)} an hour ago\n{stamp(30)} api_key={SECRET} was given\n{stamp(20)} circuit breaker open\n"
        f'{{"timestamp": "{stamp(10)}", "authorization": "Bearer {SECRET}"}}\n'
    )
    kept = evidence.log_tail(helpers.context(), str(path))
    assert kept.splitlines()[0] == f"# {path}, the last 3 lines of 600 s"
    assert "circuit breaker open" in kept
    assert "an hour ago" not in kept
    assert SECRET not in kept
    assert kept.endswith("\n")


def test_long_log_is_its_last_lines(tmp_path):
    path = tmp_path / "service.log"
    path.write_text("".join(f"{stamp()} line {number}\n" for number in range(evidence.LINES + 500)))
    lines = evidence.log_tail(helpers.context(), str(path)).splitlines()
    assert len(lines) == evidence.LINES + 1
    assert lines[1].endswith(" line 500")
    assert lines[-1].endswith(f" line {evidence.LINES + 499}")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nonexistent/service.log", "The log /nonexistent/service.log does not exist."),
        ("stdout:1", "Nothing listens on port 1"),
    ],
)
def test_log_that_is_not_there_is_said_and_no_failure(path, says):
    kept = evidence.log_tail(helpers.context(), path)
    assert kept.startswith(says)
    assert kept.endswith("\n")


@pytest.fixture()
def port():
    """A real process that listens, with a secret among its arguments and in its environment."""
    code = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, SECRET],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SERVICE_API_KEY": SECRET},
    ) as process:
        yield int(process.stdout.readline()), process.pid
        process.stdin.close()


def test_memory_and_processes(port):
    number, pid = port
    kept = evidence.processes([number])
    assert f"# port {number}: 1 processes" in kept
    assert f"## PID {pid}" in kept
    for line in (
        r"^MemAvailable: +\d+ kB",
        r"^VmRSS:\s+\d+ kB",
        r"^Threads:\s+1$",
        r"^Max open files",
        r"^Name:\s+python",
    ):
        assert re.search(line, kept, re.MULTILINE), line
    assert SECRET not in kept


def test_port_without_a_process():
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    kept = evidence.processes([number])
    assert f"# port {number}: 0 processes" in kept
    assert "MemTotal:" in evidence.processes([])


def test_process_that_may_not_be_looked_into(port):
    number, _pid = port
    said = helpers.python(
        f"""
        import sys
        from ansible_collections.oncall.runbooks.plugins.module_utils import evidence
        {helpers.BECOME_NOBODY.strip().replace(chr(10), chr(10) + "        ")}
        print(evidence.processes([int(sys.argv[1])]))
        """,
        number,
    )
    if os.geteuid() == 0:
        assert f"# port {number}: Port {number} is listened on by a process of" in said
    assert "MemTotal:" in said
    assert SECRET not in said


def test_file_of_proc_that_is_not_there():
    assert evidence._read("/proc/0/status") == "# /proc/0/status: No such file or directory\n"

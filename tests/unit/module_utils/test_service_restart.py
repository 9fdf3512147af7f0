# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it: check mode and diff, no secrets in what it returns, and sentences for mistakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers

REPOSITORY = Path(__file__).resolve().parents[3]
ANSIBLE = Path(sys.executable).parent / "ansible"
SECRET = "s3cret-of-the-service"

pytestmark = pytest.mark.skipif(not ANSIBLE.exists(), reason="only a controller has Ansible")

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *_words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def run(*words, **options):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        [ANSIBLE, "localhost", "-m", "oncall.runbooks.service_restart", "-a", json.dumps(options), *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env={**clean, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_LOAD_CALLBACK_PLUGINS": "0"},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture()
def port(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    found = helpers.free_port()
    with subprocess.Popen(
        [sys.executable, "server.py", str(found)], cwd=tmp_path, env={**os.environ, "SECRET_KEY": SECRET}
    ) as started:
        deadline = time.monotonic() + 3 * helpers.PATIENCE
        while not procfs.sockets(found, procfs.LISTEN):
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield found
        started.kill()
    for pid in procfs.listeners(found):
        os.kill(pid, signal.SIGKILL)


def test_check_mode_and_then_for_good(port, tmp_path):
    options = {
        "name": "Vritti", "manager": "process", "port": port, "ready_url": f"http://127.0.0.1:{port}/",
        "command": f"{sys.executable} server.py {port}", "directory": str(tmp_path),
    }  # fmt: skip
    (old,) = procfs.listeners(port)
    status, text = run("--check", "--diff", **options)
    assert status == 0, text
    assert f"-PID {old} (" in text
    assert "+a new process" in text
    assert '"changed": true' in text
    assert procfs.listeners(port) == [old]
    status, text = run("--diff", "-vvv", **options)
    assert status == 0, text
    (new,) = procfs.listeners(port)
    assert new != old
    assert f"-PID {old} (" in text
    assert f"+PID {new} (" in text
    assert SECRET not in text
    status, text = run(state="started", **options)
    assert '"changed": false' in text
    assert procfs.listeners(port) == [new]


def test_failure_without_the_keys(port, tmp_path):
    """KyroDB's key is an argument; what the service was started with is not, and neither is told."""
    dead = helpers.free_port()
    status, text = run(
        "-vvv",
        name="KyroDB text",
        manager="process",
        port=port,
        command=f"{sys.executable} server.py {port}",
        start_timeout=0.5,
        kyrodb={"address": f"localhost:{dead}", "api_key": "kyro-key-0123456789"},
    )
    assert status == 2
    assert "KyroDB text was stopped (PID " in text
    assert f"KyroDB at localhost:{dead} takes no connection" in text
    assert '"changed": true' in text
    assert "kyro-key-0123456789" not in text
    assert SECRET not in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "one of the following is required: unit, port, pid_file"),
        ({"port": 0}, "port is 0; it goes from 1 to 65535."),
        ({"port": 1, "stop_timeout": 0}, "stop_timeout is 0; it is a number of seconds above 0."),
        ({"port": 1, "ready_url": "localhost:8000"}, "has no scheme; write http://localhost:8000."),
        ({"port": 1, "kyrodb": {"address": "http://localhost"}}, "is a URL; give host:port"),
    ],
)
def test_mistakes(options, says):
    status, text = run(name="Vritti", manager="process", **options)
    assert status == 2
    assert says in text
    assert "Traceback" not in text


def test_it_says_that_nothing_was_changed():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _status, text = run(name="Vritti", manager="process", port=listener.getsockname()[1])
    assert "is what this task itself runs under" in text
    assert "Nothing was changed." in text

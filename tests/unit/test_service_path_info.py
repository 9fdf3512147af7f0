# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it, against a real process that listens somewhere and was started somewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import COLLECTIONS

LISTEN = "import http.server, sys; s = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler); "
SERVE = "print(s.server_port, flush=True); s.serve_forever()"


@pytest.fixture()
def service(tmp_path):
    """A process with a folder and an environment of its own; its port."""
    home = tmp_path / "project"
    home.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "someone"), "CACHE": str(tmp_path / "elsewhere")}
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN + SERVE], cwd=home, env=env, stdout=subprocess.PIPE, text=True
    )
    yield home, int(process.stdout.readline())
    process.kill()
    process.communicate()


def run(**arguments):
    """The result of the module, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ansible_collections.oncall.runbooks.plugins.modules.service_path_info"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        cwd=Path(__file__).parent,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_a_relative_path_starts_where_the_service_did(service):
    home, port = service
    (home / "logs" / "cache").mkdir(parents=True)
    found = run(paths=["cache", "logs/cache"], port=port)
    assert (found["file"], found["exists"], found["changed"]) == (str(home / "logs/cache"), True, False)
    assert found["writable"] == "writable"
    assert found["user"]


def test_variables_and_home_are_the_services(service):
    home, port = service
    paths = ["${NOT_SET:-${CACHE:-/nonexistent}/hub}"]
    assert run(paths=paths, port=port)["file"] == str(home.parent / "elsewhere/hub")
    assert run(paths=["~/models"], port=port)["file"] == str(home.parent / "someone/models")


@pytest.mark.parametrize(("kind", "said"), [("file", "not a directory"), ("link", "missing"), ("nothing", "missing")])
def test_what_is_no_folder(service, kind, said):
    home, port = service
    if kind == "file":
        (home / "cache").write_text("")
    elif kind == "link":
        (home / "cache").symlink_to("nowhere")
    found = run(paths=["cache"], port=port)
    assert found["writable"] == said
    assert found["exists"] is (kind == "file")
    assert str(home / "cache") in found["note"]


def test_what_cannot_be_told_is_a_failure(service):
    home, port = service
    assert "takes the port" in run(paths=["cache"])["msg"]
    assert "nothing listens on port 1" in run(paths=["cache"], port=1)["msg"]
    assert "names no path" in run(paths=[], port=port)["msg"]
    assert run(paths=[str(home)])["writable"] == "writable"

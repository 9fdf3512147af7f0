# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of diagnose: its parts, and one real run of it under the collection's callback."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from ansible_collections.oncall.runbooks.plugins.action import diagnose as action
from ansible_collections.oncall.runbooks.plugins.plugin_utils.diagnosis import SCHEMA
from ansible_collections.oncall.runbooks.plugins.plugin_utils.documents import search

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "s3same0pen"


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({"msg": "boom"}, "boom."),
        ({"msg": "boom\n  twice.  "}, "boom twice."),
        ({}, "the module gave no result."),
        ({"msg": "x" * 1000}, "x" * 400 + "."),
        (
            {"msg": "MODULE FAILURE", "module_stderr": "cat: write error: No space left on device\n"},
            "the target has no space for Ansible's payload (No space left on device).",
        ),
        (
            {"msg": "Failed to import.", "module_stdout": "No usable temporary directory found in ['/tmp']"},
            "the target has no space for Ansible's payload (No space left on device).",
        ),
        (
            {"msg": "The module failed", "rc": 127, "module_stderr": "/bin/sh: 1: /usr/bin/python3: not found"},
            "it has no usable Python (The module failed); install python3, or set ansible_python_interpreter.",
        ),
        (
            {"msg": "The module interpreter '/no/python' was not found."},
            "it has no usable Python (The module interpreter '/no/python' was not found); install python3, or set "
            "ansible_python_interpreter.",
        ),
        (
            {"msg": "Module result deserialization failed.", "module_stderr": "Traceback\n  line\nKilled\n"},
            "Killed.",
        ),
    ],
)
def test_why_the_module_gave_nothing(seen, says):
    assert action._why(seen) == says


def test_search():
    assert search("a[0].b", {"a": [{"b": 5}]}) == 5
    assert search("a", {}) is None
    for wrong in ("a[", "length(a)"):
        with pytest.raises(ValueError, match=r"\w"):
            search(wrong, {"a": 5})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"schema": "other/1"}'])
def test_report_that_is_none(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert action._previous(str(path)) is None
    assert action._previous(str(tmp_path / "none.json")) is None
    assert action._previous(None) is None


# --- one real run


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - oncall.runbooks.diagnose:
        runbook: sample
        service: vritti
        sample_seconds: 0
        timeout: 3
        report_dir: reports
        checks:
          - id: alive
            title: It answers
            sources:
              - {probe: http, url: "{{ url }}/echo", secret_headers: {X-Key: the_key}, value: header, header: X-Echo}
            thresholds:
              - {matches: "^never$", label: P1}
          - id: status
            title: Its verdict
            needs: [alive]
            sources:
              - {probe: http, url: "{{ url }}/health", value: json, jmespath: status}
            thresholds:
              - {equals: degraded, label: P2}
            next_step: Look at the disk.
          - id: locked
            title: Wants another key
            sources:
              - {probe: http, url: "{{ url }}/locked", secret_headers: {X-Key: broken_key}}
            thresholds:
              - {above: 299, label: P1}
          - id: typo
            title: With a typo
            sources:
              - {probe: http, ulr: "{{ url }}"}
            thresholds:
              - {above: 299, label: P1}
        causes:
          - {breach: [typo], summary: "Never, as that check is wrong."}
          - {breach: [status], summary: "It says $status."}
      register: result
"""

VAULT = """!vault |
          $ANSIBLE_VAULT;1.1;AES256
          33363965326261303234626563623963633531343038373633333931643866386466353366646533
          3262616263653132383136373738313739633632663633610a643536623138333263323862366331
          31363938656130363463356132353335353132353636333530363937633163396439623032393434
          6637386366356430340a353862326466323737623538383033613636396636353039333430623838
          3634
"""


RESPONDS = "P2: 1 hour, on-call → team lead"


class Service(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        body = json.dumps({"status": "degraded"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Echo", str(self.headers.get("X-Key")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One diagnosis of two hosts: one here, one without a Python. Gives (status, output, reports' folder)."""
    folder = tmp_path_factory.mktemp("run")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    (folder / "site.yml").write_text(PLAY)
    (folder / "hosts.yml").write_text(
        "all:\n"
        "  hosts:\n"
        f"    here: {{ansible_python_interpreter: {sys.executable}}}\n"
        "    bare: {ansible_python_interpreter: /no/such/python}\n"
        "  vars:\n"
        "    ansible_connection: local\n"
        f"    url: http://127.0.0.1:{server.server_address[1]}\n"
        f"    the_key: {SECRET}\n"
        f"    broken_key: {VAULT}\n"
        "    vritti_escalation: {P2: {respond_within: 3600, path: [on-call, team lead]}}\n"
        "    vritti_contacts: '{{ [] }}'\n"
    )
    (folder / "password").write_text("another password")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    command = "site.yml -i hosts.yml --vault-password-file password -e some_value=typed"
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", *command.split()],
        cwd=folder,
        env={**clean, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    server.shutdown()
    server.server_close()
    thread.join()
    return done.returncode, done.stdout + done.stderr, folder / "reports/sample"


def load(run, host):
    return json.loads((run[2] / f"{host}.json").read_text())


def test_findings_and_summary(run):
    diagnosis = load(run, "here")
    found = {one["id"]: one for one in diagnosis["findings"]}
    assert [diagnosis[key] for key in ("schema", "runbook", "service", "host")] == [SCHEMA, "sample", "vritti", "here"]
    assert (diagnosis["status"], diagnosis["severity"], diagnosis["label"]) == ("degraded", "high", "P2")
    assert diagnosis["summary"].startswith("It says degraded.")
    assert {name: one["status"] for name, one in found.items()} == {
        "alive": "ok",
        "status": "breach",
        "locked": "unknown",
        "typo": "unknown",
    }
    assert "did you mean 'url'?" in found["typo"]["evidence"]["reason"]
    assert diagnosis["plan"] is None


def test_secret_is_sent_and_shown_nowhere(run):
    found = {one["id"]: one for one in load(run, "here")["findings"]}
    # The service gave the key back: so it was sent, and it is masked.
    assert found["alive"]["observed"] not in (None, "None", SECRET)
    for text in (run[1], *(path.read_text() for path in run[2].iterdir())):
        assert SECRET not in text


def test_secret_that_cannot_be_decrypted_costs_its_check_only(run):
    found = {one["id"]: one for one in load(run, "here")["findings"]}
    assert "broken_key cannot be decrypted" in found["locked"]["evidence"]["reason"]
    assert "/locked" not in Service.asked


def test_host_without_python_has_a_diagnosis(run):
    diagnosis = load(run, "bare")
    assert diagnosis["status"] == "unknown"
    assert "could not be looked at: it has no usable Python" in diagnosis["summary"]
    assert {one["status"] for one in diagnosis["findings"]} == {"unknown"}


def test_who_responds_is_what_the_service_says(run):
    assert load(run, "here")["escalation"] == {
        "label": "P2",
        "respond_within": 3600,
        "path": ["on-call", "team lead"],
        "others": [],
        "contacts": {},
    }
    assert load(run, "bare")["escalation"] is None


def test_run_is_red_for_what_is_wrong_with_it(run):
    status, output, _reports = run
    assert status == 2
    assert "The contacts of vritti are wrong: it is list, not a mapping of names to texts." in output
    assert "The check typo is wrong: source 1 (http) has the unknown key 'ulr'; did you mean 'url'?" in output


def test_callback_shows_the_answer_and_no_noise(run):
    output = run[1]
    lines = output.splitlines()
    assert "PLAY" not in output
    assert "TASK" not in output
    assert "2 hosts: 1 degraded, 1 unknown" in lines
    first, second = lines.index(f"DEGRADED P2  here  sample  {RESPONDS}"), lines.index("UNKNOWN  bare  sample")
    assert first < second, "the worst comes first"
    assert lines[first + 1].startswith("  It says degraded.")
    assert lines[first + 2] == "  Next: Look at the disk."
    assert "\x1b" not in output
    (again,) = (line for line in lines if line.startswith("  Again: "))
    assert again.split(maxsplit=1)[1].startswith("ansible-playbook site.yml --tags diagnose -i hosts.yml")
    assert "typed" not in again

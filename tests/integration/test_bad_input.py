# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person gets for a mistake, or a host for being in trouble: one sentence, in time, the rest intact."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.integration.lab_helpers import RunningLab, running_lab
from tests.integration.playbook_helpers import DEAD, LOCAL, ansible, diagnose, inventory, own_runbook

both_ends = pytest.mark.both_ends
BINARY = sys.executable
SECRET = "correct-horse-battery-staple"
ALIVE: dict[str, Any] = {
    "id": "alive",
    "title": "It answers",
    "sources": [{"probe": "http", "url": "{{ vritti_url }}/health/liveness"}],
    "thresholds": [{"above": 299, "label": "P1"}],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


def host(lab: RunningLab, **more: Any) -> dict[str, Any]:
    return {**lab.inventory, **more}


def check(**changes: Any) -> dict[str, Any]:
    """A second check, wrong in what the test changes; None takes a key away."""
    data = {**ALIVE, "id": "wrong", "title": "A wrong one", **changes}
    return {key: value for key, value in data.items() if value is not None}


@both_ends
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tags", "diagnoze"], "Unknown tag diagnoze: did you mean diagnose?"),
        (["--tags", "remedy"], "Unknown tag remedy: did you mean remediate?"),
        (["--tags", "never"], "Unknown tag never"),
        (["--tags", "always"], "Unknown tag always"),
        (["--skip-tags", "diagnose"], "--skip-tags diagnose would leave out what high_latency is for"),
        (["--limit", "database-1"], "high_latency does not cover database-1: it covers hosts in the group vritti"),
        (["-e", "runbook_fail_on=hihg"], "hihg"),
        (["-e", "runbook_sample_seconds=-1"], "sample_seconds is -1"),
        (["-e", "runbook_service=jarvis"], "high_latency has no checks for runbook_service 'jarvis' of"),
    ],
)
def test_a_run_that_would_do_nothing_is_refused(
    lab: RunningLab, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    where = inventory(
        tmp_path, {"vritti-1": host(lab), "database-1": LOCAL}, vritti=["vritti-1"], databases=["database-1"]
    )
    run = diagnose(tmp_path, where, *arguments)
    assert run.status == 2, run.output
    assert sentence in run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / "reports").exists()


@both_ends
def test_uncovered_hosts_are_one_line(lab: RunningLab, tmp_path: Path) -> None:
    where = inventory(tmp_path, {"vritti-1": host(lab), "db-1": LOCAL, "db-2": LOCAL}, vritti=["vritti-1"])
    run = diagnose(tmp_path, where)
    assert run.status == 0
    assert run.output.count("high_latency leaves out db-1, db-2, in no group that it covers (vritti, wp_chat).") == 1
    assert run.diagnosis("vritti-1")["status"] == "healthy"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        pytest.param(
            check(treshold=1), "The check wrong is wrong: the check has the unknown key 'treshold'", marks=both_ends
        ),
        (check(sources=[{"probe": "htpp", "url": "http://x"}]), "unknown probe 'htpp'; there are blocklist, dlq,"),
        (check(sources=[{"probe": "http", "url": "localhost:8000/health"}]), "has no scheme; write http://localhost:8000/health"),
        (check(thresholds=[{"above": 1, "label": "P3"}, {"above": 2, "label": "P2"}]), "can never match"),
        (check(thresholds=[]), "it could never fail"),
        (check(thresholds=[{"above": 1, "label": "SEV1"}]), "the label 'SEV1' is none of this service's: P1, P2"),
        (check(needs=["nothing"]), "needs names 'nothing', which is no check of this runbook"),
        (check(id="alive"), "another check has the same id"),
        (check(sources=None), "sources"),
    ],
)  # fmt: skip
def test_a_wrong_check_is_a_finding_and_a_red_run(
    lab: RunningLab, tmp_path: Path, wrong: dict[str, Any], sentence: str
) -> None:
    run = own_runbook(tmp_path, inventory(tmp_path, {"vritti-lab": host(lab)}), [ALIVE, wrong])
    assert run.status == 2, run.output
    findings = run.diagnosis()["findings"]
    # The right one is answered all the same, and the host is not called healthy.
    assert findings[0]["id"] == "alive"
    assert findings[0]["status"] == "ok"
    assert findings[-1]["status"] == "unknown"
    assert sentence in findings[-1]["evidence"]["reason"]
    assert run.diagnosis()["status"] == "unknown"
    assert sentence in " ".join(run.output.split())


@both_ends
def test_an_unreachable_host_has_a_diagnosis(lab: RunningLab, tmp_path: Path) -> None:
    gone = host(
        lab, ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=9, ansible_ssh_common_args="-F none"
    )
    run = diagnose(tmp_path, inventory(tmp_path, {"vritti-1": host(lab), "vritti-2": gone}))
    assert run.status == 4, run.output
    assert run.diagnosis("vritti-1")["status"] == "healthy"
    assert run.diagnosis("vritti-2")["status"] == "unknown"
    assert "Connection refused" in run.diagnosis("vritti-2")["summary"]
    assert {finding["status"] for finding in run.diagnosis("vritti-2")["findings"]} == {"unknown"}
    assert "2 hosts: 1 unknown, 1 healthy" in run.output


@both_ends
def test_a_host_without_python_has_a_diagnosis(lab: RunningLab, tmp_path: Path) -> None:
    bare = host(lab, ansible_python_interpreter="/nonexistent/python3")
    run = diagnose(tmp_path, inventory(tmp_path, {"vritti-1": host(lab), "vritti-2": bare}))
    assert run.status == 2, run.output
    assert run.diagnosis("vritti-1")["status"] == "healthy"
    assert "no usable Python" in run.diagnosis("vritti-2")["summary"]
    assert "/nonexistent/python3" in run.diagnosis("vritti-2")["summary"]


@both_ends
def test_a_full_disk_is_said(lab: RunningLab, tmp_path: Path) -> None:
    """The interpreter runs where no temporary directory has an inode left: in a mount namespace of its own."""
    unshare = "unshare --mount" if os.geteuid() == 0 else "unshare --user --map-root-user --mount"
    full = "for d in /tmp /var/tmp; do mount -t tmpfs -o size=4k,nr_inodes=1 none $d; done; cd /tmp"
    python = tmp_path / "python"
    # The base interpreter, since a virtual environment may itself be below /tmp.
    binary = Path(sys.executable).resolve()
    python.write_text(f'#!/bin/sh\nexec {unshare} sh -ec \'{full}; exec {binary} "$@"\' sh "$@"\n')
    python.chmod(0o755)
    full_host = host(lab, ansible_python_interpreter=str(python))
    run = diagnose(tmp_path, inventory(tmp_path, {"vritti-1": host(lab), "vritti-2": full_host}))
    assert run.status == 2, run.output
    assert "no space for Ansible's payload" in run.diagnosis("vritti-2")["summary"]
    assert run.diagnosis("vritti-1")["status"] == "healthy"


class _Strange(BaseHTTPRequestHandler):
    """A service that answers everything with the same page."""

    page: ClassVar[bytes] = b"<html><body>Log in</body></html>"
    kind: ClassVar[str] = "text/html"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_html_with_200_is_not_an_answer(lab: RunningLab, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Strange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = diagnose(
            tmp_path,
            inventory(tmp_path, {"vritti-lab": host(lab, vritti_url=f"http://127.0.0.1:{server.server_port}")}),
        )
        server.shutdown()
    findings = run.findings()
    assert run.status == 0, run.output
    assert findings["breaker"]["status"] == "unknown"
    assert "text/html instead of JSON" in findings["breaker"]["evidence"]["reason"]
    passed = findings["request_p99"]["evidence"]["passed_over"]
    assert any("text/html" in source["reason"] for source in passed)
    assert findings["kyrodb_text_answers"]["status"] == "ok"
    assert run.diagnosis()["status"] != "healthy"


def test_a_port_that_never_answers_costs_its_deadline(lab: RunningLab, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        run = diagnose(
            tmp_path,
            inventory(
                tmp_path, {"vritti-lab": host(lab, vritti_url=f"http://{address}", kyrodb_image_address=address)}
            ),
            "-e",
            "runbook_probe_timeout=1",
        )
    findings = run.findings()
    assert findings["alive"]["status"] == "breach"
    assert "accepts and does not answer within 1 s" in findings["alive"]["evidence"]["reason"]
    assert findings["kyrodb_image_answers"]["status"] == "breach"
    assert "does not answer Health" in findings["kyrodb_image_answers"]["evidence"]["note"]
    assert findings["kyrodb_text_answers"]["status"] == "ok"


def test_a_grpc_port_that_speaks_http_1(lab: RunningLab, tmp_path: Path) -> None:
    where = inventory(tmp_path, {"vritti-lab": host(lab, kyrodb_text_address=f"127.0.0.1:{lab.ports['vritti']}")})
    finding = diagnose(tmp_path, where).findings()["kyrodb_text_answers"]
    assert finding["status"] == "breach"
    assert "does not speak plaintext gRPC" in finding["evidence"]["note"]


def admin_check(lab: RunningLab) -> dict[str, Any]:
    return {
        "id": "budget",
        "title": "Budget left",
        "sources": [
            {
                "probe": "http",
                "url": "{{ vritti_url }}/admin/budget",
                "secret_headers": {"X-Admin-API-Key": "vritti_admin_api_key"},
                "value": "json",
                "jmespath": "budget_remaining_usd",
            }
        ],
        "thresholds": [{"below": 1, "label": "P3"}],
        "unit": "USD",
    }


@both_ends
def test_a_secret_is_used_and_shown_nowhere(lab: RunningLab, tmp_path: Path) -> None:
    secret = lab.inventory["vritti_admin_api_key"]
    run = own_runbook(tmp_path, inventory(tmp_path, {"vritti-lab": host(lab)}), [admin_check(lab)], "-vvv")
    assert run.findings()["budget"]["status"] == "ok", run.output
    assert secret not in run.output
    assert secret not in (tmp_path / "reports/own_runbook/vritti-lab.json").read_text()


@both_ends
@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "The secret vritti_admin_api_key is empty"), ("x" * 40, "answers 401 (wrong or missing")],
)
def test_a_wrong_secret_is_unknown(lab: RunningLab, tmp_path: Path, value: str | None, reason: str) -> None:
    where = inventory(tmp_path, {"vritti-lab": host(lab, vritti_admin_api_key=value or "")})
    run = own_runbook(tmp_path, where, [ALIVE, admin_check(lab)])
    assert run.findings()["budget"]["status"] == "unknown"
    assert reason in run.findings()["budget"]["evidence"]["reason"]
    assert run.findings()["alive"]["status"] == "ok"


@both_ends
def test_a_vaulted_secret_that_cannot_be_decrypted(lab: RunningLab, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("right\n")
    wrong.write_text("wrong\n")
    status, vaulted = ansible(
        tmp_path,
        "ansible-vault",
        "encrypt_string",
        "--vault-password-file",
        right,
        SECRET,
        "--name",
        "vritti_admin_api_key",
    )
    assert status == 0, vaulted
    folder = tmp_path / "host_vars"
    folder.mkdir()
    lines = [line for line in vaulted.splitlines() if line.startswith((" ", "vritti"))]
    (folder / "vritti-lab.yml").write_text("\n".join(lines) + "\n")
    variables = {key: value for key, value in host(lab).items() if key != "vritti_admin_api_key"}
    where = inventory(tmp_path, {"vritti-lab": variables})
    for arguments in (["--vault-password-file", str(wrong)], []):
        run = own_runbook(tmp_path, where, [ALIVE, admin_check(lab)], *arguments)
        findings = run.findings()
        assert findings["alive"]["status"] == "ok", run.output
        assert findings["budget"]["status"] == "unknown"
        assert "vritti_admin_api_key cannot be decrypted" in findings["budget"]["evidence"]["reason"]
        # The runbook that does not name it never looks at it.
        assert diagnose(tmp_path, where, *arguments).diagnosis()["status"] == "healthy"
    run = own_runbook(tmp_path, where, [admin_check(lab)], "--vault-password-file", str(right), "-vvv")
    assert "answers 401" in run.findings()["budget"]["evidence"]["reason"]
    assert SECRET not in run.output


@both_ends
def test_our_role_does_not_mind_the_tags_of_others(lab: RunningLab, tmp_path: Path) -> None:
    where = inventory(tmp_path, {"vritti-lab": host(lab)})
    run = own_runbook(tmp_path, where, [ALIVE], "--tags", "deploy")
    assert run.status == 0, run.output
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (f"address={DEAD}", "connection", "takes no connection"),
        ("address={text} service=kyrodb.KyroDB", "protocol", "KyroDB's service is kyrodb.v1.KyroDBService"),
        ("address={text} tls=true", "tls", "does not complete a TLS handshake"),
        ("address={vritti}", "protocol", "does not speak plaintext gRPC"),
    ],
)
def test_kyrodb_health_tells_errors_apart(
    lab: RunningLab, tmp_path: Path, arguments: str, kind: str, words: str
) -> None:
    filled = arguments.format(text=f"127.0.0.1:{lab.ports['kyrodb_text']}", vritti=f"127.0.0.1:{lab.ports['vritti']}")
    result = kyrodb_health(tmp_path, filled)
    assert (result["is_healthy"], result["status"], result["changed"]) == (False, "no answer", False)
    assert result["error"]["kind"] == kind
    assert words in result["error"]["message"]


@both_ends
def test_kyrodb_health_of_a_healthy_instance(lab: RunningLab, tmp_path: Path) -> None:
    result = kyrodb_health(tmp_path, f"address=127.0.0.1:{lab.ports['kyrodb_text']}")
    assert result["is_healthy"] is True
    assert result["status"] == "healthy"
    assert set(result["components"]) == {"cache", "hot_tier", "cold_tier", "wal"}
    assert result["transport"] == "grpc"
    assert result["uptime_seconds"] >= 0
    assert result["latency_ms"] > 0
    assert result["version"]


@both_ends
@pytest.mark.parametrize("arguments", ["address=localhost", "address=http://localhost:50051", "address=x:1 timeout=0"])
def test_kyrodb_health_fails_on_bad_arguments_only(tmp_path: Path, arguments: str) -> None:
    status, output = ansible(tmp_path, "ansible", "localhost", "-m", "oncall.runbooks.kyrodb_health", "-a", arguments)
    assert status == 2
    assert "FAILED" in output


def kyrodb_health(directory: Path, arguments: str) -> dict[str, Any]:
    status, output = ansible(
        directory,
        "ansible",
        "localhost",
        "-m",
        "oncall.runbooks.kyrodb_health",
        "-a",
        arguments,
        environment={"ANSIBLE_PYTHON_INTERPRETER": BINARY},
    )
    assert status == 0, output
    result: dict[str, Any] = json.loads(output.partition("SUCCESS => ")[2])
    return result

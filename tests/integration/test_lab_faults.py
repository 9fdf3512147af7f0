# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults in Vritti itself, in its clients and in what it depends on: which of them a restart cures."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.integration.lab_helpers import eventually, run_lab, running_lab


def test_hanging_vritti_accepts_and_never_answers(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        assert lab.break_fault("vritti-hang").status == 200
        with socket.create_connection(("127.0.0.1", lab.ports["vritti"]), timeout=2) as connection:
            connection.sendall(b"GET /health/liveness HTTP/1.1\r\nHost: lab\r\n\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)
        assert lab.status()["processes"]["vritti"]["state"] == "paused"
        assert lab.restart("vritti").status == 200
        assert lab.active_faults() == []
        assert lab.get("/health/liveness").status == 200


def test_killed_vritti_stays_down_until_it_is_started(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("vritti-down")
        with pytest.raises(ConnectionRefusedError):
            lab.get("/health/liveness")
        vritti = lab.status()["processes"]["vritti"]
        assert (vritti["state"], vritti["returncode"], vritti["pid"]) == ("exited", -signal.SIGKILL, None)
        assert lab.active_faults() == ["vritti-down"]
        assert run_lab(tmp_path, "start", "vritti")[0] == 0
        assert lab.get("/health/liveness").status == 200
        assert lab.active_faults() == []


def test_internal_errors_are_plain_and_counted_twice(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        assert run_lab(tmp_path, "break", "vritti", "internal-errors", "50")[0] == 0
        answers = [lab.search() for _number in range(10)]
        assert sorted(answer.status for answer in answers) == [200] * 5 + [500] * 5
        failed = next(answer for answer in answers if answer.status == 500)
        assert (failed.text, "x-request-id" in failed.headers) == ("Internal Server Error", False)
        lines = lab.get("/metrics").text.splitlines()
        errors = [line for line in lines if line.startswith("episodic_memory_errors_total{")]
        assert len(errors) == 2
        assert all(line.endswith(" 5.0") for line in errors)
        failures = [json.loads(line) for line in lab.log if line.startswith("{") and "HTTP request failed" in line]
        assert [entry["exception_type"] for entry in failures] == ["RuntimeError"] * 5
        assert lab.get("/health/liveness").status == 200
        lab.restart("vritti")
        assert {lab.search().status for _number in range(4)} == {200}
        assert lab.break_fault("internal-errors", 101).status == 404
        assert lab.break_fault("embedding-slow", 1).status == 404


def test_memory_leak_grows_to_its_bound_and_ends_with_the_process(tmp_path: Path) -> None:
    def resident_mib() -> float:
        pages = Path(f"/proc/{lab.pid()}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    with running_lab(tmp_path) as lab:
        before = resident_mib()
        lab.break_fault("memory-leak", 40)
        eventually(lambda: resident_mib() - before > 38, "the memory grew")
        assert resident_mib() - before < 60
        lab.restart("vritti")
        assert lab.active_faults() == []
        assert resident_mib() - before < 30


def test_busy_process(tmp_path: Path) -> None:
    def cpu_ticks() -> int:
        words = Path(f"/proc/{lab.pid()}/stat").read_text().rpartition(")")[2].split()
        return int(words[11]) + int(words[12])

    with running_lab(tmp_path) as lab:
        before = cpu_ticks()
        lab.break_fault("cpu-busy")
        eventually(lambda: cpu_ticks() - before > os.sysconf("SC_CLK_TCK"), "a second of one core")
        assert lab.search().status == 200
        lab.restart("vritti")
        assert lab.active_faults() == []


@pytest.mark.parametrize(("fault", "status"), [("auth-errors", 401), ("validation-errors", 422)])
def test_mistaken_clients(tmp_path: Path, fault: str, status: int) -> None:
    with running_lab(tmp_path) as lab:
        series = f'{{endpoint="/api/v1/search",method="POST",status_code="{status}"}}'
        lab.break_fault(fault)
        eventually(lambda: series in lab.get("/metrics").text, f"answers {status}")
        assert "episodic_memory_errors_total{" not in lab.get("/metrics").text
        # The clients' fault: restarting the service is no cure.
        lab.restart("vritti")
        assert lab.active_faults() == [fault]
        eventually(lambda: series in lab.get("/metrics").text, f"answers {status} again")


def test_llm_failures_are_logged_and_outlive_a_restart(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("llm-failing")
        lab.restart("vritti")
        assert lab.active_faults() == ["llm-failing"]
        assert lab.capture().json["reflection_queued"]
        eventually(lambda: lab.logged("Cheap reflection call failed (attempt 3/3)") == 1, "all tries failed")
        # A heuristic stands in, so nothing counts as a failure.
        statistics = "/admin/reflection/stats"
        eventually(lambda: lab.get(statistics, lab.admin).json["total_reflections"] == 1, "a reflection")
        assert "reflection_failure_total{" not in lab.get("/metrics").text


def test_kyrodb_with_the_shipped_configuration(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        assert lab.capture().status == 201
        assert lab.break_fault("wrong-dimension").status == 200
        assert lab.call("GetConfig").embedding_dimension == 768
        failed = lab.capture()
        assert failed.status == 500
        assert "query dimension mismatch: expected 768 found 384" in failed.json["detail"]
        assert [lab.capture().status for _number in range(4)] == [500] * 4
        assert lab.logged("Circuit breaker OPENED: KyroDB") == 1
        # The cause is a file: no restart mends it.
        lab.restart("kyrodb-text")
        lab.restart("vritti")
        assert (lab.active_faults(), lab.capture().status) == (["wrong-dimension"], 500)
        lab.heal_fault("wrong-dimension")
        lab.restart("vritti")
        assert lab.search().json["total_candidates"] == 1

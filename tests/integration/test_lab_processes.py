# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's processes: started and stopped by the lab, by hand and by others, with the settings of the moment."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from lab import environment_file, pidfile
from lab.layout import claim, claim_free_ports
from lab.vritti.service import VrittiPorts
from tests.integration.lab_helpers import eventually, processes_of, run_lab, running_lab


def start_again(pid: int, log: Path) -> subprocess.Popen[bytes]:
    """What a service manager without a command does: the same command line, environment and directory."""
    entry = Path(f"/proc/{pid}")
    argv = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
    items = (entry / "environ").read_bytes().split(b"\0")
    environment = {name: value for name, equals, value in (item.partition(b"=") for item in items) if equals}
    directory = (entry / "cwd").readlink()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: pidfile.state(pid) in ("", "Z"), "it ended")
    with log.open("ab") as output:
        return subprocess.Popen(
            argv, cwd=directory, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_processes_are_stopped_and_started(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        for process in ("kyrodb_image", "vritti"):
            name = process.replace("_", "-")
            before = lab.pid(name)
            assert run_lab(tmp_path, "start", process)[:2] == (0, f"{name} already runs, PID {before}.\n")
            assert run_lab(tmp_path, "stop", process)[0] == 0
            assert lab.status()["processes"][name]["state"] == "stopped"
            assert not (tmp_path / "run" / f"{name}.pid").exists()
            # What the inventory names is run from anywhere.
            command = shlex.split(lab.inventory[f"{process}_command"])
            assert subprocess.run(command, cwd="/", capture_output=True, timeout=60, check=False).returncode == 0
            assert lab.status()["processes"][name]["pid"] == lab.pid(name) != before
        assert lab.search().status == 200
        assert run_lab(tmp_path, "start", "nothing")[0] == 2


def test_what_somebody_else_ends_stays_down(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        os.kill(lab.pid(), signal.SIGTERM)
        eventually(lambda: lab.status()["processes"]["vritti"]["state"] == "exited", "it ended")
        lab.break_fault("kyrodb-image-down")
        status, _output, errors = run_lab(tmp_path, "start", "vritti")
        assert (status, errors.count("\n")) == (1, 1)
        assert "vritti exited with status 3: KyroDB image instance is not available" in errors
        lab.heal_all()
        assert lab.get("/health/liveness").status == 200


def test_what_somebody_else_starts_is_followed_and_ends_with_the_lab(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.break_fault("internal-errors", 100)
        assert lab.search().status == 500
        kyrodb = start_again(lab.pid("kyrodb-text"), tmp_path / "kyrodb_text" / "kyrodb.log")
        eventually(lambda: lab.status()["processes"]["kyrodb-text"]["pid"] == kyrodb.pid, "KyroDB is followed")
        eventually(lambda: listens(lab.ports["kyrodb_text"]), "KyroDB answers")
        vritti = start_again(lab.pid(), tmp_path / "vritti" / "vritti.log")
        eventually(lambda: lab.status()["processes"]["vritti"]["pid"] == vritti.pid, "Vritti is followed")
        eventually(lambda: listens(lab.ports["vritti"]), "Vritti answers")
        # A fault that a restart cures is cured whoever restarts.
        assert lab.search().status == 200
        assert lab.active_faults() == []
        assert run_lab(tmp_path, "stop", "vritti")[0] == 0
        assert vritti.wait(20) is not None
        assert run_lab(tmp_path, "start", "vritti")[0] == 0
        # Not the supervisor's child, so it outlives the supervisor, and not `down`.
        os.kill(lab.state["supervisor_pid"], signal.SIGKILL)
        eventually(lambda: pidfile.holder(tmp_path / "run" / "vritti.pid") is None, "the supervisor's child ended")
        assert kyrodb.poll() is None
        run_lab(tmp_path, "down")
        assert kyrodb.wait(20) is not None
    assert processes_of(tmp_path) == []


def test_workers_are_processes_of_their_own(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.set_environment(WEB_CONCURRENCY="3")
        assert lab.restart("vritti").status == 200
        eventually(lambda: lab.logged('"event": "Service started"') == 1 + 3, "three workers have started")
        main = lab.pid()
        sent = 0

        def one_knows_of_fewer() -> bool:
            nonlocal sent
            # Several at a time: one request alone goes to whoever is woken first, always the same one.
            list(pool.map(lambda _number: lab.get("/nowhere"), range(16)))
            sent += 16
            lines = lab.get("/metrics").text.splitlines()
            counted = [line for line in lines if "http_requests_total{" in line and '"/nowhere"' in line]
            return not counted or float(counted[0].split()[-1]) < sent

        with ThreadPoolExecutor(max_workers=16) as pool:
            eventually(one_knows_of_fewer, "the requests were spread over workers that count on their own")
        workers = [pid for pid in pidfile.family(main) if pid != main]
        assert len(workers) >= 3
        # Nobody is left when the one in the PID file is killed.
        os.kill(main, signal.SIGKILL)
        eventually(lambda: all(pidfile.state(pid) in ("", "Z") for pid in workers), "the workers ended")
        lab.set_environment(WEB_CONCURRENCY=None)
        assert run_lab(tmp_path, "start", "vritti")[0] == 0
        assert pidfile.family(lab.pid()) == [lab.pid()]


def test_environment_file_is_read_at_every_start(tmp_path: Path) -> None:
    # What the file no longer has must not come from the surroundings either.
    with running_lab(tmp_path, "--vritti", "head", environment={"LLM_OPENROUTER_API_KEY": "sk-or-elsewhere"}) as lab:
        assert lab.capture().json["reflection_queued"]
        lab.set_environment(LLM_OPENROUTER_API_KEY=None, SERVICE_REQUIRE_LLM_REFLECTION="true")
        assert "exited with status 3: LLM_OPENROUTER_API_KEY is required" in lab.restart("vritti").json["message"]
        lab.set_environment(SERVICE_REQUIRE_LLM_REFLECTION="false")
        status, output, errors = run_lab(tmp_path, "start", "vritti")
        assert (status, output, errors) == (0, f"vritti started, PID {lab.pid()}.\n", "")
        assert not lab.capture().json["reflection_queued"]
        assert lab.search().json["total_candidates"] == 2
        lab.set_environment(EMBEDDING_TEXT_MODEL_NAME="all-mpnet-base-v2")
        assert "has dimension 768, EMBEDDING_TEXT_DIMENSION is 384" in lab.restart("vritti").json["message"]
        # Another model of the same length starts, and finds nothing that the other one has stored.
        lab.set_environment(EMBEDDING_TEXT_MODEL_NAME="paraphrase-MiniLM-L3-v2")
        assert lab.restart("vritti").status == 200
        assert lab.search(min_similarity=0.5).json["total_candidates"] == 0
        (tmp_path / "vritti" / "vritti.env").unlink()
        assert "cannot be started" in lab.restart("vritti").json["message"]


def test_log_level(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.set_environment(LOGGING_LEVEL="ERROR")
        lab.restart("vritti")
        before = len(lab.log)
        assert lab.search().status == 200
        eventually(lambda: any("POST /api/v1/search" in line for line in lab.log[before:]), "the access log's line")
        assert not any(line.startswith("{") for line in lab.log[before:])


def test_reflections_are_finished_before_the_process_ends(tmp_path: Path) -> None:
    with running_lab(tmp_path, "--vritti", "head") as lab:
        lab.capture()
        os.kill(lab.pid(), signal.SIGTERM)
        eventually(lambda: lab.status()["processes"]["vritti"]["state"] == "exited", "it ended")
        assert lab.logged("Waiting for 1 background reflections") == 1
        assert lab.logged("Reflection generated and persisted for episode") == 1


def test_environment_file_syntax(tmp_path: Path) -> None:
    path = tmp_path / "service.env"
    path.write_text(
        "# comment\n; comment\n\nPLAIN=a b # c\n  SPACED =  x  \n"
        'DOUBLE="a \\"b\\""\n'
        "SINGLE='a \\n'\nLONG=one\\\n two\nnot a setting\n1BAD=x\nEMPTY=\nTWICE=1\nTWICE=2\n"
    )
    assert environment_file.load(path) == {
        "PLAIN": "a b # c",
        "SPACED": "x",
        "DOUBLE": 'a "b"',
        "SINGLE": "a \\n",
        "LONG": "one two",
        "EMPTY": "",
        "TWICE": "2",
    }


def test_a_pid_file_names_nobody_elses_process(tmp_path: Path) -> None:
    path = tmp_path / "vritti.pid"
    path.write_text(f"{os.getpid()}\n")
    assert pidfile.holder(path) is None
    pidfile.end(path, 1)
    assert not path.exists()


def test_labs_that_start_at_once_share_no_port() -> None:
    claimed = [claim_free_ports(VrittiPorts) for _number in range(20)]
    try:
        ports = [port for base, _control in claimed for port in asdict(VrittiPorts.above(base)).values()]
        assert len(set(ports)) == 6 * len(claimed)
        assert claim(claimed[0][0], VrittiPorts) is None
    finally:
        for _base, control in claimed:
            control.close()

# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab of its own for a test, on free ports, gone when the test is over."""

from __future__ import annotations

import http.client
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from lab.kyrodb.protocol import Protocol

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 30
) -> Answer:
    """One HTTP request, JSON in, whatever out; header names of the answer in lower case."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    outgoing = dict(headers or {})
    data = None
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        outgoing.setdefault("Content-Type", "application/json")
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), data, outgoing)
        response = connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, received, response.read())
    finally:
        connection.close()


def run_lab(data_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """`python -m lab` with these arguments: exit status, stdout, stderr."""
    command, *rest = arguments
    finished = subprocess.run(
        [sys.executable, "-m", "lab", command, "--data-dir", str(data_dir), *rest],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return finished.returncode, finished.stdout, finished.stderr


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that happens by itself."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        time.sleep(0.05)


class RunningLab:
    """What a test asks of a lab."""

    def __init__(self, data_dir: Path, output: str) -> None:
        self.data_dir = data_dir
        self.output = output
        self.state: dict[str, Any] = json.loads((data_dir / "lab.json").read_text())
        self.ports: dict[str, int] = self.state["ports"]
        self.control: str = self.state["control_url"]
        # The service whose lab it is, and the process that is named after it.
        self.service: str = self.state["service"]
        self.process: str = self.state["process"]
        self.url: str = self.state["url"]
        self.home = Path(self.state["home"])

    @cached_property
    def protocol(self) -> Protocol:
        """KyroDB's, where there is one."""
        return Protocol(self.data_dir / "kyrodb.descriptors")

    @property
    def log(self) -> list[str]:
        return Path(self.state["log"]).read_text().splitlines()

    @property
    def inventory(self) -> dict[str, Any]:
        """The host's variables; the file's values are JSON scalars."""
        lines = (self.data_dir / "inventory.yml").read_text().splitlines()
        pairs = [line.strip().split(": ", 1) for line in lines if ": " in line]
        return {name: json.loads(value) for name, value in pairs}

    def customer(self, position: int = -1) -> dict[str, str]:
        """A seeded customer; the last ones are not used by the background traffic."""
        customer: dict[str, str] = json.loads((self.data_dir / "keys.json").read_text())["customers"][position]
        return customer

    def key(self, position: int = -1) -> dict[str, str]:
        return {"X-API-Key": self.customer(position)["api_key"]}

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return request("GET", self.url + path, headers=headers)

    def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        return request(method, self.url + path, body, headers)

    def search(self, headers: Mapping[str, str] | None = None, **body: Any) -> Answer:
        query = {"goal": "deploy the payment service", "min_similarity": -1, **body}
        return self.send("POST", "/api/v1/search", query, headers or self.key())

    def capture(self, headers: Mapping[str, str] | None = None, query: str = "", **body: Any) -> Answer:
        episode = {
            "goal": "deploy the payment service",
            "tool_chain": ["kubectl"],
            "actions_taken": ["kubectl apply"],
            "error_trace": "pods is forbidden for this user",
            **body,
        }
        return self.send("POST", "/api/v1/capture" + query, episode, headers or self.key())

    def kyrodb_component(self, path: str = "/health/readiness") -> dict[str, Any]:
        components: list[dict[str, Any]] = self.get(path).json["components"]
        return next(component for component in components if component["name"] == "kyrodb")

    def break_fault(self, name: str, amount: float | None = None) -> Answer:
        query = "" if amount is None else f"?amount={amount}"
        return request("PUT", f"{self.control}/faults/{self.service}/{name}{query}", timeout=90)

    def heal_fault(self, name: str) -> Answer:
        return request("DELETE", f"{self.control}/faults/{self.service}/{name}", timeout=90)

    def heal_all(self) -> Answer:
        return request("DELETE", f"{self.control}/faults", timeout=90)

    def mend(self) -> None:
        """Nothing broken, and a service that remembers nothing: a breaker, what has been slow."""

        def main() -> int | None:
            pid: int | None = self.status()["processes"][self.process]["pid"]
            return pid

        before = main()
        self.heal_all()
        # What cured it may have given the service a new process already.
        if main() in (None, before):
            self.restart()

    def restart(self, process: str | None = None) -> Answer:
        """The service, unless another process is named."""
        return request("POST", f"{self.control}/processes/{process or self.process}/restart", timeout=90)

    def set_environment(self, **values: str | None) -> None:
        """Change lines of the service's environment file; None removes one. It is read when the service starts."""
        path = Path(self.inventory[f"{self.service}_environment_file"])
        lines = [line for line in path.read_text().splitlines() if line.partition("=")[0] not in values]
        lines += [f"{name}={value}" for name, value in values.items() if value is not None]
        path.write_text("\n".join(lines) + "\n")

    def pid(self, process: str | None = None) -> int:
        """What the PID file says."""
        return int((self.data_dir / "run" / f"{process or self.process}.pid").read_text())

    def logged(self, message: str) -> int:
        """How many lines of the service's log have it."""
        return sum(message in line for line in self.log)

    @property
    def admin(self) -> dict[str, str]:
        """Both spellings of the admin header: either line of Vritti ignores the other one's."""
        key = self.inventory["vritti_admin_api_key"]
        return {"X-Admin-API-Key": key, "X-Admin-Key": key}

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = request("GET", f"{self.control}/status").json
        return status

    def active_faults(self) -> list[str]:
        return [fault["name"] for fault in request("GET", f"{self.control}/faults").json if fault["active"]]

    def http(self, instance: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return request("GET", f"http://127.0.0.1:{self.ports[f'kyrodb_{instance}_http']}{path}", headers=headers)

    def call(
        self,
        method: str,
        instance: str = "text",
        headers: tuple[tuple[str, str], ...] = (),
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = 10,
        **fields: Any,
    ) -> Any:
        """One RPC on a channel of its own."""
        address = f"127.0.0.1:{self.ports[f'kyrodb_{instance}']}"
        channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
        with channel:
            message = self.protocol.methods[method][0](**fields)
            return self.protocol.stub(channel, method)(message, timeout=timeout, metadata=headers)

    def refused(self, method: str, instance: str = "text", **arguments: Any) -> tuple[grpc.StatusCode, str]:
        """The status and details with which an RPC fails."""
        try:
            self.call(method, instance, **arguments)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError(f"{method} succeeded")


@contextmanager
def running_lab(data_dir: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[RunningLab]:
    """A lab without background traffic unless the options ask for it."""
    if "--traffic" not in options:
        options = (*options, "--traffic", "0")
    try:
        status, output, errors = run_lab(data_dir, "up", "--base-port", "0", *options, environment=environment)
        assert status == 0, output + errors
        yield RunningLab(data_dir, output)
    finally:
        run_lab(data_dir, "down")


def processes_of(data_dir: Path) -> list[int]:
    """The processes whose command line or environment names the data directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            named = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(data_dir).encode() in named:
            found.append(int(entry.name))
    return found


def query(lab: RunningLab, statement: str, *values: Any) -> list[Any]:
    """What Vritti's database says, as it is written to."""
    path = lab.inventory["vritti_customers_db"]
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def is_head(lab: RunningLab) -> bool:
    """Whether it is the later line of Vritti."""
    return bool(query(lab, "SELECT 1 FROM sqlite_master WHERE name = 'doc_id_counters'"))

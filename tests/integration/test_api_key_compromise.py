# SPDX-License-Identifier: GPL-3.0-or-later
"""api_key_compromise and vritti_api_key against the lab: real keys from two addresses, and no key in any artefact."""

from __future__ import annotations

import http.client
import json
import stat
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_helpers import RunningLab, is_head, query, running_lab
from tests.integration.playbook_helpers import Operator, Run, ansible

RUNBOOK = "api_key_compromise"
CUT_OFF = ["block_addresses", "suspend_customer", "rotate_api_key", "restart_vritti"]
USUAL, STRANGE, ADMINS = "127.0.0.1", "127.0.0.2", "127.0.0.3"
# Each test takes a customer of its own from the end, which no background traffic uses.
VICTIM, BUSY, MODULE, REFUSED = -1, -2, -3, -4


@pytest.fixture(scope="module", params=["head", "v0.1.0"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", request.param) as running:
        yield running


@pytest.fixture
def operator(lab: RunningLab, tmp_path: Path) -> Operator:
    return Operator(lab, tmp_path)


with_head = pytest.mark.parametrize("lab", ["head"], indirect=True)


def active_keys(lab: RunningLab, name: str) -> set[str]:
    return {row[0] for row in query(lab, "SELECT key_id FROM api_keys WHERE customer_id = ? AND is_active", name)}


def send(lab: RunningLab, address: str, method: str, path: str, headers: dict[str, str], body: Any = None) -> int:
    """A request from one of the addresses of the loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", lab.ports["vritti"], timeout=30, source_address=(address, 0))
    with closing(connection):
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status


def search(lab: RunningLab, address: str, key: str) -> int:
    body = {"goal": "deploy the payment service", "min_similarity": -1}
    return send(lab, address, "POST", "/api/v1/search", {"X-API-Key": key}, body)


def yesterday(lab: RunningLab, address: str, name: str, count: int = 20) -> None:
    """What the log would have of a customer that has used Vritti every hour of the day before."""
    lines = []
    for number in range(count, 0, -1):
        moment = (datetime.now(UTC) - timedelta(hours=number + 1)).isoformat(timespec="microseconds")
        ids = {"request_id": str(uuid.uuid4()), "timestamp": moment.replace("+00:00", "Z"), "level": "info"}
        request = {"method": "POST", "path": "/api/v1/search"}
        done = {**request, "status_code": 200, "latency_ms": 5.0, "event": "HTTP request completed"}
        lines += [
            json.dumps({**request, "client_host": address, "event": "HTTP request started", **ids}),
            f'INFO:     {address}:40000 - "POST /api/v1/search HTTP/1.1" 200 OK',
            json.dumps({**done, **ids, **({"customer_id": name} if is_head(lab) else {})}),
        ]
    path = lab.data_dir / "vritti" / "vritti.log"
    # The same file: Vritti has it open, and appends.
    with path.open("r+", encoding="utf-8") as file:
        content = file.read()
        file.seek(0)
        file.write("\n".join(lines) + "\n" + content)


def named(name: str, *more: str) -> list[str]:
    return ["-e", json.dumps({"vritti_customer": name}), *more]


@contextmanager
def watched(*secrets: str) -> Iterator[list[str]]:
    """The command lines of all processes with one of these, or with anything that looks like a key, while it lasts."""
    found: list[str] = []
    over = threading.Event()

    def watch() -> None:
        wanted = [secret.encode() for secret in (*secrets, "em_live_")]
        while not over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                if any(secret in line for secret in wanted):
                    found.append(line.replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def halves(key: str) -> list[str]:
    """A key, and the part of it that is secret."""
    return [key, key.rpartition("_")[2]]


def no_secret(lab: RunningLab, operator: Operator, secrets: list[str], *runs: Run) -> None:
    """In nothing that is left of it, but the file with the new key and the lab's own of its seeded ones."""
    handover = operator.state / "new-keys"
    files = [path for path in operator.directory.rglob("*") if path.is_file() and handover not in path.parents]
    files += list(lab.data_dir.rglob("*.log"))
    assert len(files) > 8
    names = {path.name for path in files}
    assert {"timeline.jsonl", "receipt.json", "vritti.log", "diagnosis.json", "vritti-lab.json"} <= names
    texts = {str(path): path.read_bytes().decode(errors="replace") for path in files}
    texts.update({f"output {number}": run.output for number, run in enumerate(runs)})
    for where, text in texts.items():
        assert not [secret for secret in secrets if secret in text], where


def test_without_a_day_to_compare_with(operator: Operator, lab: RunningLab) -> None:
    """Neither an alarm nor an all-clear."""
    victim = lab.customer(VICTIM)
    assert search(lab, STRANGE, victim["api_key"]) == 200
    run = operator.run(RUNBOOK, "diagnose", *named(victim["customer_id"]))
    assert run.status == 0, run.output
    assert (run.diagnosis()["status"], run.diagnosis()["plan"]) == ("unknown", None), run.output
    found = run.findings()["key_addresses" if is_head(lab) else "any_addresses"]
    assert found["status"] == "unknown"
    assert "does not go back" in found["evidence"]["reason"]


@with_head
def test_only_addresses_that_are_known(operator: Operator, lab: RunningLab) -> None:
    """One that has used the key the day before, and one that is named."""
    victim = lab.customer(VICTIM)
    yesterday(lab, USUAL, victim["customer_id"])
    assert search(lab, USUAL, victim["api_key"]) == 200
    known = ["-e", json.dumps({"api_key_compromise_known_addresses": ["127.0.0.2*"]})]
    run = operator.run(RUNBOOK, "diagnose", *named(victim["customer_id"], *known))
    assert (run.diagnosis()["status"], run.diagnosis()["plan"]) == ("healthy", None), run.output
    assert run.findings()["key_addresses"]["evidence"]["matched"] == 1


@with_head
def test_check_mode(operator: Operator, lab: RunningLab) -> None:
    victim = lab.customer(VICTIM)
    checked = operator.run(RUNBOOK, "remediate", *named(victim["customer_id"]), "--check", "--diff")
    assert checked.status == 0, checked.output
    assert active_keys(lab, victim["customer_id"]) == {victim["key_id"]}
    assert not (operator.state / "new-keys").exists()
    assert search(lab, STRANGE, victim["api_key"]) == 200


def test_from_suspicion_to_a_new_key(operator: Operator, lab: RunningLab) -> None:
    victim = lab.customer(VICTIM)
    name, old = victim["customer_id"], victim["api_key"]
    admin = lab.inventory["vritti_admin_api_key"]
    if not is_head(lab):
        yesterday(lab, USUAL, name)
    assert [search(lab, address, old) for address in (USUAL, STRANGE)] == [200, 200]
    diagnosed = operator.run(RUNBOOK, "diagnose", *named(name), "-vvv")
    assert diagnosed.diagnosis()["label"] == "P1", diagnosed.output
    found = diagnosed.findings()["key_addresses" if is_head(lab) else "any_addresses"]
    (row,) = found["evidence"]["listed"]
    assert (row["name"], row["new"], row["before"]) == (STRANGE, True, 0)
    assert "before" in found["evidence"]["compared_with"]
    if is_head(lab):
        assert f"Somebody else may have a key of {name}: 1 new" in diagnosed.diagnosis()["summary"]
    else:
        assert "for v0.1.0 does not log whose" in diagnosed.diagnosis()["summary"]
        assert diagnosed.findings()["key_addresses"]["status"] == "skipped"
    (key,) = diagnosed.findings()["keys_in_use"]["evidence"]["rows"]
    assert (key["key_id"], key["state"]) == (victim["key_id"], "active")
    assert key["last_used"] > key["created_at"]
    steps = diagnosed.diagnosis()["plan"]["steps"]
    assert [step["id"] for step in steps] == CUT_OFF
    assert [step["reversible"] for step in steps] == [True, True, False, False]
    assert f"{operator.state}/new-keys/{name}-*.json" in steps[2]["preview"]
    assert f"Active now: {victim['key_id']} (seeded, last used 20" in steps[2]["preview"]
    plan = diagnosed.diagnosis()["plan"]["id"]
    assert f"-e runbook_plan={plan}" in diagnosed.output

    pid = lab.pid()
    # What was before a step does not count any more afterwards, which takes a moment after it.
    settled = ["-e", json.dumps({"runbook_settle_seconds": 1})]
    with watched(admin) as seen:
        run = operator.run(RUNBOOK, "remediate", *named(name, "-e", f"runbook_plan={plan}", *settled), "--diff", "-vvv")
    assert run.status == 0, run.output
    assert seen == []
    assert [step["state"] for step in operator.records[-1]["steps"]] == ["verified"] * 4
    # It says itself what is left to do.
    left = run.findings()["cut_off"]
    assert (left["label"], left["observed"]) == ("P4", "suspended, old keys revoked")
    assert "Rotate Vritti's ADMIN_API_KEY" in left["next_step"]
    assert lab.pid() != pid
    # The key was in Vritti's memory a moment ago.
    assert [search(lab, address, old) for address in (USUAL, STRANGE)] == [401, 401]
    (path,) = (operator.state / "new-keys").iterdir()
    assert [stat.S_IMODE(it.stat().st_mode) for it in (path, path.parent)] == [0o600, 0o700]
    assert str(path) in run.output
    handed = json.loads(path.read_text())
    new = handed["api_key"]
    assert handed["customer_id"] == name
    assert active_keys(lab, name) == {handed["key_id"]}
    assert search(lab, USUAL, new) == 401, "it is suspended still"
    runs = [diagnosed, run]
    if is_head(lab):
        # The log still tells of the time before, and neither is proposed again.
        runs.append(operator.run(RUNBOOK, "diagnose", *named(name)))
        steps = (runs[-1].diagnosis()["plan"] or {"steps": []})["steps"]
        assert {step["id"] for step in steps} <= {"restart_vritti"}
        runs.append(
            operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}", *settled)
        )
        assert runs[-1].status == 0, runs[-1].output
        assert "makes a revoked key valid again" in " ".join(runs[-1].output.split())
    else:
        assert lab.send("PATCH", f"/api/v1/customers/{name}", {"status": "active"}, lab.admin).status == 200
    assert search(lab, USUAL, new) == 200
    assert search(lab, STRANGE, old) == 401
    assert active_keys(lab, name) == {handed["key_id"]}
    no_secret(lab, operator, [admin, *halves(old), *halves(new)], *runs)


@with_head
def test_nobody_is_named(operator: Operator, lab: RunningLab) -> None:
    """Who stands out is said, of customers and of addresses, and nothing is proposed."""
    busy = lab.customer(BUSY)
    yesterday(lab, USUAL, busy["customer_id"])
    low = {"api_key_compromise_requests": 8, "api_key_compromise_refused": 8}
    quiet = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(low))
    assert quiet.findings()["customer_spikes"]["observed"] == 0, quiet.output
    assert quiet.findings()["admin_addresses"]["observed"] == 0
    assert quiet.findings()["key_addresses"]["evidence"]["reason"].startswith(
        "vritti_customer is empty; name a customer"
    )
    for _number in range(8):
        assert search(lab, USUAL, busy["api_key"]) == 200
        assert search(lab, STRANGE, f"em_live_{'0' * 32}_{'0' * 64}") == 401
    assert send(lab, ADMINS, "GET", f"/api/v1/customers/{busy['customer_id']}", lab.admin) == 200
    run = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(low))
    assert (run.diagnosis()["label"], run.diagnosis()["plan"]) == ("P2", None), run.output
    spike = run.findings()["customer_spikes"]
    (row,) = spike["evidence"]["listed"]
    assert (row["name"], row["count"], row["succeeded"]) == (busy["customer_id"], 8, 8)
    assert "-e vritti_customer=<id>" in spike["next_step"]
    assert [row["name"] for row in run.findings()["admin_addresses"]["evidence"]["listed"]] == [ADMINS]
    assert [row["name"] for row in run.findings()["refused_addresses"]["evidence"]["listed"]] == [STRANGE]
    assert run.findings()["keys_made"]["observed"] >= 40
    asked = operator.run(RUNBOOK, "remediate", "-e", f"runbook_steps={CUT_OFF[2]}", "-e", "runbook_max_risk=disruptive")
    assert asked.status == 2, asked.output
    assert "cannot be applied: vritti_customer is empty" in " ".join(asked.output.split())
    # Named, its spike alone is enough, and an address that is known is none to worry about.
    low["vritti_customer"] = busy["customer_id"]
    suspected = operator.run(RUNBOOK, "diagnose", "-e", json.dumps(low))
    assert suspected.findings()["customer_spike"]["label"] == "P1", suspected.output
    assert suspected.findings()["key_addresses"]["observed"] == 0
    assert [step["id"] for step in suspected.diagnosis()["plan"]["steps"]] == CUT_OFF


@with_head
def test_without_the_admin_key(operator: Operator, lab: RunningLab) -> None:
    """It is told before anything is changed, and the customer is not left suspended without a new key."""
    name = lab.customer(REFUSED)["customer_id"]
    wanted = ["-e", f"runbook_steps={','.join(CUT_OFF)}", "-e", json.dumps({"vritti_admin_api_key": ""})]
    run = operator.run(RUNBOOK, "remediate", *named(name, *wanted, "-e", "runbook_max_risk=disruptive"))
    assert run.status == 2, run.output
    assert "vritti_admin_api_key is empty" in " ".join(run.output.split())
    assert query(lab, "SELECT status FROM customers WHERE customer_id = ?", name) == [("active",)]


@with_head
def test_module(lab: RunningLab, tmp_path: Path) -> None:
    customer = lab.customer(MODULE)
    admin = lab.inventory["vritti_admin_api_key"]
    outputs = []

    def rotate(*words: str, **options: Any) -> dict[str, Any]:
        given = {
            "url": lab.url,
            "admin_api_key": admin,
            "customer": customer["customer_id"],
            "handover": str(tmp_path / "keys"),
            "receipt": str(tmp_path / "receipts" / "one.json"),
            "customers_db": lab.inventory["vritti_customers_db"],
            **options,
        }
        _status, output = ansible(
            tmp_path,
            "ansible",
            "localhost",
            *(
                "-i",
                "localhost,",
                "-c",
                "local",
                "-e",
                f"ansible_python_interpreter={sys.executable}",
                "-vvv",
                "--diff",
            ),
            *("-m", "oncall.runbooks.vritti_api_key", "-a", json.dumps(given)),
            *words,
            environment={"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        )
        outputs.append(output)
        assert "=> {" in output, output
        result: dict[str, Any] = json.JSONDecoder().raw_decode("{" + output.split("=> {", 1)[1])[0]
        return result

    credentials = lab.url.replace("://", "://someone:s3cret-of-the-url@")
    foreseen = rotate("--check", url=credentials)
    assert (foreseen["changed"], foreseen["revoked"], foreseen["handover_file"]) == (True, [customer["key_id"]], None)
    assert "(a new key)" in outputs[-1]
    done = rotate()
    assert (done["changed"], done["revoked"], done["kept"]) == (True, [customer["key_id"]], [])
    assert active_keys(lab, customer["customer_id"]) == {done["key_id"]}
    key = json.loads(Path(done["handover_file"]).read_text())["api_key"]
    assert search(lab, USUAL, key) == 200
    again = rotate()
    assert (again["changed"], again["key_id"]) == (False, done["key_id"])
    theirs = rotate(revoke=[lab.customer(VICTIM)["key_id"]], receipt=str(tmp_path / "two.json"))
    assert "has no key with the id" in theirs["msg"]
    for output in outputs:
        assert not [secret for secret in (admin, "s3cret-of-the-url", *halves(key)) if secret in output]

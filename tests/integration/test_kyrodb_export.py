# SPDX-License-Identifier: GPL-3.0-or-later
"""The module kyrodb_export, as Ansible runs it, against the lab: what was captured is what is exported."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab_helpers import RunningLab, running_lab
from tests.integration.playbook_helpers import Operator, ansible


@pytest.fixture(scope="module", params=["v0.1.0", "head"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("export"), "--vritti", request.param) as running:
        yield running


with_head = pytest.mark.parametrize("lab", ["head"], indirect=True)


def export(lab: RunningLab, directory: Path, *tasks: dict[str, Any], check: bool = False) -> list[dict[str, Any]]:
    """What these runs of the module return, in one play."""
    playbook, results = directory / "export.yml", directory / "results.json"
    given = {
        "address": lab.inventory["kyrodb_text_address"],
        "customer_id": lab.customer()["customer_id"],
        "customers_db": lab.inventory["vritti_customers_db"],
    }
    steps: list[dict[str, Any]] = []
    for number, options in enumerate(tasks):
        steps.append({"oncall.runbooks.kyrodb_export": {**given, **options}, "register": f"run{number}"})
    copy = "[" + ", ".join(f"run{number}" for number in range(len(tasks))) + "]"
    steps.append(
        {
            "ansible.builtin.copy": {"content": "{{ " + copy + " | to_json }}", "dest": str(results)},
            "check_mode": False,
        }
    )
    play = {"hosts": "localhost", "gather_facts": False, "connection": "local", "tasks": steps}
    playbook.write_text(json.dumps([play]))
    words = ["-e", f"ansible_python_interpreter={sys.executable}", "-i", "localhost,", *(["--check"] if check else [])]
    status, output = ansible(directory, "ansible-playbook", playbook, *words)
    assert status == 0, output
    found: list[dict[str, Any]] = json.loads(results.read_text())
    return found


def test_what_was_captured_is_exported(lab: RunningLab, tmp_path: Path) -> None:
    captured = sorted(int(lab.capture(tags=["one"], severity=2).json["episode_id"]) for _number in range(4))
    lab.capture(lab.key(-2))
    dest = tmp_path / "out"
    dest.mkdir()
    first, second = export(lab, tmp_path, {"dest": str(dest)}, {"dest": str(dest)})
    assert (first["changed"], second["changed"]) == (True, False)
    customer = lab.customer()["customer_id"]
    file = dest / f"{customer}.failures.jsonl"
    assert (first["export"], first["manifest"]) == (str(file), f"{file}.manifest.json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["episode_id"] for line in lines] == captured
    assert first["episodes"] == len(captured)
    assert {line["metadata"]["customer_id"] for line in lines} == {customer}
    assert lines[0]["episode"]["goal"] == "deploy the payment service"
    assert lines[0]["metadata"]["tag:one"] == "1"
    with closing(sqlite3.connect(lab.inventory["vritti_customers_db"])) as connection:
        indexed = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'episodes_index'").fetchall()
    if indexed:
        assert (first["source"], first["expected"], first["complete"]) == ("index", len(captured), True)
        return
    assert (first["source"], first["expected"], first["complete"]) == ("search", None, False)
    # Snowflakes: a double would round them.
    assert max(captured) > 2**53
    assert "has no table episodes_index" in first["notes"][0]


@with_head
def test_check_mode_and_an_episode_that_kyrodb_has_lost(lab: RunningLab, tmp_path: Path) -> None:
    lost = int(lab.capture(lab.key(-3)).json["episode_id"])
    kept = int(lab.capture(lab.key(-3)).json["episode_id"])
    customer = lab.customer(-3)["customer_id"]
    assert lab.call("Delete", doc_id=lost, namespace=f"{customer}:failures").existed
    # Nobody has told the index of this one.
    outside = {"doc_id": 999_999, "embedding": [1.0] + [0.0] * 383, "namespace": f"{customer}:failures"}
    assert lab.call("Insert", metadata={"customer_id": customer, "episode_json": "{}"}, **outside).success
    dest = tmp_path / "out.jsonl"
    options = {"customer_id": customer, "dest": str(dest), "include_embeddings": True}
    (told,) = export(lab, tmp_path, options, check=True)
    assert (told["changed"], told["episodes"], told["expected"]) == (True, 2, 2)
    assert not dest.exists()
    (result,) = export(lab, tmp_path, options)
    assert (result["complete"], result["missing"], result["sha256"]) == (False, [lost], told["sha256"])
    assert result["outside_index"] == 1
    assert result["notes"][1].endswith("there may be more; they were exported too: 999999.")
    lines = [json.loads(line) for line in dest.read_text().splitlines()]
    assert [(line["episode_id"], len(line["embedding"])) for line in lines] == [(kept, 384), (999_999, 384)]


def test_step_of_data_recovery(lab: RunningLab, tmp_path: Path) -> None:
    operator, customer = Operator(lab, tmp_path), lab.customer(-4)
    captured = int(lab.capture({"X-API-Key": customer["api_key"]}).json["episode_id"])
    folder = tmp_path / "episodes"
    wanted = ["-e", "runbook_steps=export_episodes", "-e", f"vritti_export_dir={folder}"]
    wanted += ["-e", f"vritti_customer={customer['customer_id']}"]
    told = operator.run("data_recovery", "diagnose", *wanted)
    (step,) = told.diagnosis()["plan"]["steps"]
    assert (step["id"], step["risk"], step["reversible"], step["problem"]) == ("export_episodes", "safe", False, None)
    assert f"{folder}/{customer['customer_id']}.failures.jsonl" in step["preview"]
    finding = told.findings()["customer_episodes"]
    run = operator.run("data_recovery", "remediate", *wanted, "-e", "runbook_max_risk=safe")
    assert run.status == 0, run.output
    file = folder / f"{customer['customer_id']}.failures.jsonl"
    assert [json.loads(line)["episode_id"] for line in file.read_text().splitlines()] == [captured]
    manifest = json.loads(Path(f"{file}.manifest.json").read_text())
    assert manifest["complete"] is (manifest["source"] == "index")
    if manifest["source"] == "index":
        assert ("$" not in step["preview"], finding["status"], finding["observed"]) == (True, "ok", 1)
    else:
        assert finding["status"] == "skipped"


@with_head
def test_step_without_a_customer_and_without_the_database(lab: RunningLab, tmp_path: Path) -> None:
    operator, customer = Operator(lab, tmp_path), lab.customer(-5)["customer_id"]
    lab.capture(lab.key(-5))
    folder = tmp_path / "episodes"
    wanted = ["-e", "runbook_steps=export_episodes", "-e", f"vritti_export_dir={folder}"]
    nobody = operator.run("data_recovery", "diagnose", *wanted)
    (step,) = nobody.diagnosis()["plan"]["steps"]
    assert step["problem"] == "vritti_customer is empty; name the customer with -e vritti_customer=<id>."
    wanted += ["-e", f"vritti_customer={customer}", "-e", "vritti_export_index=false", "-e", "runbook_max_risk=safe"]
    run = operator.run("data_recovery", "remediate", *wanted)
    assert run.status == 0, run.output
    manifest = json.loads((folder / f"{customer}.failures.jsonl.manifest.json").read_text())
    assert (manifest["source"], manifest["episodes"], manifest["complete"]) == ("search", 1, False)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The module dlq_replay, as Ansible runs it, on dead letters that the lab's Vritti has written itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.vritti.episodes import decode_episode
from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import Operator, ansible


@pytest.fixture(scope="module", params=["v0.1.0", "head"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("replay"), "--vritti", request.param) as running:
        yield running


def replay(lab: RunningLab, directory: Path, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
    """What these runs of the module return, in one play."""
    playbook, results = directory / "replay.yml", directory / "results.json"
    given = {"address": lab.inventory["kyrodb_text_address"], "path": str(queue(lab))}
    steps: list[dict[str, Any]] = [
        {
            "oncall.runbooks.dlq_replay": {**given, **{key: it for key, it in options.items() if key != "check_mode"}},
            "check_mode": options.get("check_mode", False),
            "ignore_errors": True,
            "register": f"run{number}",
        }
        for number, options in enumerate(tasks)
    ]
    every = ", ".join(f"run{number}" for number in range(len(tasks)))
    steps.append({"ansible.builtin.copy": {"content": "{{ [" + every + "] | to_json }}", "dest": str(results)}})
    play = {"hosts": "localhost", "gather_facts": False, "connection": "local", "tasks": steps}
    playbook.write_text(json.dumps([play]))
    words = ["-e", f"ansible_python_interpreter={sys.executable}", "-i", "localhost,"]
    status, output = ansible(directory, "ansible-playbook", playbook, *words)
    assert status == 0, output
    found: list[dict[str, Any]] = json.loads(results.read_text())
    return found


def queue(lab: RunningLab) -> Path:
    return lab.data_dir / "vritti" / "data" / "failed_reflections.log"


def letters(lab: RunningLab) -> list[dict[str, Any]]:
    return [json.loads(line) for line in queue(lab).read_text().splitlines()] if queue(lab).exists() else []


def held(lab: RunningLab, episode_id: int) -> tuple[dict[str, str], list[float]]:
    answer = lab.call("Query", doc_id=episode_id, include_embedding=True)
    assert answer.found
    return dict(answer.metadata), list(answer.embedding)


def captured(lab: RunningLab, position: int = -1) -> int:
    answer = lab.capture(lab.key(position))
    assert answer.status == 201, answer.text
    return int(answer.json["episode_id"])


def test_dead_letters_of_vritti_itself(lab: RunningLab, tmp_path: Path) -> None:
    good = captured(lab)
    eventually(lambda: "reflection_root_cause" in held(lab, good)[0], "Vritti stores a reflection")
    assert lab.break_fault("reflections-refused").status == 200
    bad = [captured(lab), captured(lab, -2)]
    eventually(lambda: len(letters(lab)) == 2, "both reflections are in the queue")
    written = queue(lab).read_bytes()
    (refused,) = replay(lab, tmp_path, {})
    assert refused["counts"] == {"replayed": 0, "skipped": 0, "failed": 2, "not_tried": 0}
    assert refused["msg"].startswith("2 entries could not be replayed and stay in the queue; episode ")
    lab.heal_all()
    before = {episode_id: held(lab, episode_id) for episode_id in bad}
    customer = lab.customer(-2)["customer_id"]
    told, one, rest, again = replay(lab, tmp_path, {"check_mode": True}, {"customer": customer}, {}, {})
    assert (told["changed"], told["counts"]["replayed"]) == (True, 2)
    assert [(run["episode_id"], run["result"]) for run in one["results"]] == [(bad[1], "replayed")]
    assert rest["counts"] == {"replayed": 1, "skipped": 1, "failed": 0, "not_tried": 0}
    assert again["counts"] == {"replayed": 0, "skipped": 2, "failed": 0, "not_tried": 0}
    assert again["changed"] is False
    stored = [{key: entry[key] for key in ("customer_id", "episode_id")} for entry in letters(lab)]
    assert (told["stored"], again["stored"]) == ([], stored)
    assert queue(lab).read_bytes() == written
    by_vritti, _vector = held(lab, good)
    for entry in letters(lab):
        metadata, vector = held(lab, entry["episode_id"])
        was, same = before[entry["episode_id"]]
        # As Vritti stores them: the same keys, and the same shape of every value.
        assert sorted(metadata) == sorted(by_vritti)
        assert vector == same
        for key in ("reflection_confidence", "reflection_cost_usd", "reflection_latency_ms"):
            assert metadata[key].rpartition(".")[2].isdigit()
            assert len(metadata[key].rpartition(".")[2]) == len(by_vritti[key].rpartition(".")[2])
        assert json.loads(metadata["reflection_preconditions"]) == entry["reflection"]["preconditions"]
        assert type(entry["reflection"]["preconditions"]) is type(json.loads(by_vritti["reflection_preconditions"]))
        episode = decode_episode(metadata["episode_json"])
        assert {**episode, "reflection": None} == {**decode_episode(was["episode_json"]), "reflection": None}
        assert episode["reflection"]["root_cause"] == entry["reflection"]["root_cause"]
        assert metadata["episode_json"].startswith("gz:") is by_vritti["episode_json"].startswith("gz:")
        assert {key: value for key, value in metadata.items() if key in was and key != "episode_json"} == {
            key: value for key, value in was.items() if key != "episode_json"
        }
    # The service still reads what was stored, with the reflection in it.
    found = lab.search(lab.key(-2), k=10).json["results"]
    shown = {result["episode"]["episode_id"]: result["episode"] for result in found}
    assert shown[bad[1]]["reflection"]["root_cause"]


@pytest.mark.parametrize("lab", ["head"], indirect=True)
def test_step_of_data_recovery(lab: RunningLab, tmp_path: Path) -> None:
    """One customer's reflections are stored, and everybody else's wait."""
    queue(lab).unlink(missing_ok=True)
    assert lab.break_fault("reflections-refused").status == 200
    mine, theirs = captured(lab, -3), captured(lab, -4)
    eventually(lambda: len(letters(lab)) == 2, "both reflections are in the queue")
    lab.heal_all()
    operator = Operator(lab, tmp_path)
    wanted = ["-e", f"vritti_customer={lab.customer(-3)['customer_id']}"]
    wanted += ["-e", f"vritti_dlq_archive_dir={tmp_path / 'archives'}", "-e", "runbook_steps=replay_dead_letters"]
    told = operator.run("data_recovery", "diagnose", *wanted)
    assert told.findings()["dead_letters"]["observed"] == 1, told.output
    run = operator.run("data_recovery", "remediate", *wanted, "-e", "runbook_max_risk=safe")
    assert run.status == 0, run.output
    assert "dead_letters fixed" in run.output
    assert "reflection_root_cause" in held(lab, mine)[0]
    assert "reflection_root_cause" not in held(lab, theirs)[0]
    assert [entry["episode_id"] for entry in letters(lab)] == [theirs]

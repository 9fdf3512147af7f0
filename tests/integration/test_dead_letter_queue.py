# SPDX-License-Identifier: GPL-3.0-or-later
"""dead_letter_queue against the lab: reflections that were not stored are found, replayed, archived, and put back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letters
from tests.integration.lab_helpers import RunningLab, eventually, running_lab
from tests.integration.playbook_helpers import LOCAL, Operator, ansible, inventory

RUNBOOK = "dead_letter_queue"
REASON = "persistence_failed_after_retries"


@pytest.fixture(scope="module", params=["head", "v0.1.0"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), "--vritti", request.param) as running:
        yield running


@pytest.fixture
def operator(lab: RunningLab, tmp_path: Path) -> Operator:
    return Operator(lab, tmp_path)


with_head = pytest.mark.parametrize("lab", ["head"], indirect=True)


def queue_of(lab: RunningLab) -> Path:
    return lab.data_dir / "vritti" / "data" / "failed_reflections.log"


def entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with dead_letters.open_queue(str(path)) as file:
        return [item.entry for item in dead_letters.items(file) if item.entry]


def dead(lab: RunningLab, count: int, customer: int = -1) -> list[int]:
    """Episodes whose reflection cannot be stored; a dead letter each."""
    before = len(entries(queue_of(lab)))
    lab.break_fault("reflections-refused")
    answers = [lab.capture(lab.key(customer)) for _number in range(count)]
    eventually(lambda: len(entries(queue_of(lab))) == before + count, f"{count} dead letters")
    lab.heal_fault("reflections-refused")
    return [answer.json["episode_id"] for answer in answers]


def reflection(lab: RunningLab, episode: int, customer: int = -1) -> str | None:
    namespace = f"{lab.customer(customer)['customer_id']}:failures"
    metadata: dict[str, str] = dict(lab.call("Query", doc_id=episode, namespace=namespace).metadata)
    return metadata.get("reflection_root_cause")


def archives(lab: RunningLab) -> list[Path]:
    return sorted((Path(lab.inventory["vritti_backup_dir"]) / "dead-letters").glob("*/*.zst"))


@with_head
def test_found_replayed_archived_and_put_back(operator: Operator, lab: RunningLab) -> None:
    healthy = operator.run(RUNBOOK, "diagnose")
    assert healthy.diagnosis()["status"] == "healthy", healthy.output
    assert healthy.findings()["dead_letters"]["observed"] == 0
    mine, other = dead(lab, 2), dead(lab, 1, customer=-2)
    queue = queue_of(lab)
    content = queue.read_bytes()
    run = operator.run(RUNBOOK, "diagnose")
    found = run.findings()
    assert run.diagnosis()["label"] == "P4", run.output
    assert "3 of them recent: Vritti made reflections and could not store them" in run.diagnosis()["summary"]
    assert found["dead_letters"]["observed"] == 3
    assert found["dead_letters"]["evidence"]["by_reason"] == {REASON: 3}
    assert [one["episode_id"] for one in found["dead_letters"]["evidence"]["last"]] == [*mine, *other]
    assert "reflection" not in found["dead_letters"]["evidence"]["last"][0]
    assert found["dead_letters_customers"]["observed"] == 0
    assert found["dead_letters_counted"]["status"] == "skipped"
    assert queue.read_bytes() == content

    (step,) = run.diagnosis()["plan"]["steps"]
    assert (step["id"], step["risk"], step["reversible"]) == ("replay_dead_letters", "safe", True)
    assert "are 3, store up to 10000 reflections" in step["preview"]
    checked = operator.run(RUNBOOK, "remediate", "--check", "--diff")
    assert checked.status == 0, checked.output
    assert queue.read_bytes() == content
    assert archives(lab) == []

    applied = operator.run(RUNBOOK, "remediate", "-e", "runbook_max_risk=safe")
    assert applied.status == 0, applied.output
    assert "dead_letters fixed" in applied.output
    assert [reflection(lab, episode) is not None for episode in mine] == [True, True]
    assert reflection(lab, other[0], customer=-2)
    assert entries(queue) == []
    (archive,) = archives(lab)
    assert [one["episode_id"] for one in entries(archive)] == [*mine, *other]
    manifest = json.loads(Path(f"{archive}.manifest.json").read_text())
    assert (manifest["entries"], len(manifest["filters"]["episodes"])) == (3, 3)
    again = operator.run(RUNBOOK, "remediate", "-e", "runbook_max_risk=safe")
    assert again.status == 0, again.output
    assert "nothing left to do" in again.output.lower()

    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert "The reflections stay with their episodes" in " ".join(undone.output.split())
    assert queue.read_bytes() == content
    assert archives(lab) == []
    # They are found in KyroDB, and archived once more.
    applied = operator.run(RUNBOOK, "remediate", "-e", "runbook_max_risk=safe")
    assert applied.status == 0, applied.output
    assert entries(queue) == []


@with_head
def test_what_cannot_be_stored_stays_or_is_archived_by_reason(operator: Operator, lab: RunningLab) -> None:
    queue = queue_of(lab)
    queue.unlink(missing_ok=True)
    (good,) = dead(lab, 1)
    lab.break_fault("redaction-failing")
    lab.capture()
    eventually(lambda: len(entries(queue)) == 2, "an entry without a reflection")
    lab.heal_fault("redaction-failing")
    gone = {**entries(queue)[0], "episode_id": 999_999, "customer_id": "nobody-knows"}
    with queue.open("a") as file:
        file.write(json.dumps(gone) + "\n" + '{"timestamp": "2026-11')
    (queue.parent / "failed_reflections.20261126_030000.log").write_text(json.dumps(gone) + "\n")
    run = operator.run(RUNBOOK, "diagnose")
    found = run.findings()
    assert found["dead_letters"]["observed"] == 4, run.output
    assert found["dead_letters_unreplayable"]["observed"] == 1
    assert found["dead_letters_torn"]["observed"] == 1
    assert found["dead_letters_customers"]["evidence"]["unknown"] == ["nobody-knows"]
    assert "wc -l misses 1 file that Vritti has renamed; jq stops at the first torn line" in json.dumps(
        found["dead_letters"]
    )
    plan = run.diagnosis()["plan"]
    assert [step["id"] for step in plan["steps"]] == ["replay_dead_letters", "archive_unreplayable"]
    applied = operator.run(RUNBOOK, "remediate", "-e", f"runbook_plan={plan['id']}")
    # What nobody can store is still there, and there is less of it.
    assert applied.status == 0, applied.output
    assert applied.findings()["dead_letters"]["observed"] == 2
    assert reflection(lab, good)
    assert [one["customer_id"] for one in entries(queue)] == ["nobody-knows"]
    assert b'{"timestamp": "2026-11' in queue.read_bytes()
    asked = operator.run(RUNBOOK, "diagnose", "-e", "runbook_steps=archive_dead_letters")
    plan = asked.diagnosis()["plan"]
    cleared = operator.run(
        RUNBOOK, "remediate", "-e", f"runbook_plan={plan['id']}", "-e", "runbook_steps=archive_dead_letters"
    )
    assert cleared.status == 0, cleared.output
    assert dead_letters.files_of(str(queue)) == [str(queue)]
    assert queue.read_bytes() == b""
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    assert [one["customer_id"] for one in entries(queue)] == ["nobody-knows", "nobody-knows"]
    # Where nothing can be stored, nothing is archived, and no folder is made for it.
    folder = Path(lab.inventory["vritti_backup_dir"]) / "dead-letters"
    before = sorted(folder.iterdir())
    in_vain = operator.run(
        RUNBOOK, "remediate", "-e", "runbook_steps=replay_dead_letters", "-e", "runbook_max_risk=safe"
    )
    assert operator.records[-1]["steps"][0]["state"] == "verified", in_vain.output
    assert sorted(folder.iterdir()) == before
    undone = operator.run(RUNBOOK, "rollback", "-e", f"runbook_rollback_id={operator.records[-1]['id']}")
    assert undone.status == 0, undone.output
    queue.unlink()


@pytest.mark.parametrize("lab", ["v0.1.0"], indirect=True)
def test_with_metrics(operator: Operator, lab: RunningLab) -> None:
    """Ids above 2^53, and a count that only goes up."""
    (episode,) = dead(lab, 1)
    assert episode > 1 << 53
    applied = operator.run(RUNBOOK, "remediate", "-e", "runbook_max_risk=safe")
    assert applied.status == 0, applied.output
    assert reflection(lab, episode)
    counted = applied.findings()["dead_letters_counted"]
    assert (counted["observed"], counted["status"]) == (1, "ok")
    assert entries(queue_of(lab)) == []


@with_head
def test_nothing_is_replayed_while_kyrodb_is_down(operator: Operator, lab: RunningLab) -> None:
    queue_of(lab).unlink(missing_ok=True)
    dead(lab, 1)
    lab.break_fault("kyrodb-text-down")
    run = operator.run(RUNBOOK, "diagnose")
    assert run.diagnosis()["label"] == "P1", run.output
    assert "text instance does not answer" in run.diagnosis()["summary"]
    steps = {step["id"]: step for step in run.diagnosis()["plan"]["steps"]}
    assert next(iter(steps)) == "restart_kyrodb_text"
    lab.heal_all()
    assert len(entries(queue_of(lab))) == 1


@with_head
def test_another_file_than_vritti_writes(operator: Operator, lab: RunningLab) -> None:
    lab.set_environment(SERVICE_DEAD_LETTER_QUEUE_PATH="/var/elsewhere.log")
    try:
        run = operator.run(RUNBOOK, "diagnose")
        assert run.findings()["dead_letters_elsewhere"]["observed"] == "/var/elsewhere.log", run.output
        assert run.findings()["dead_letters_elsewhere"]["label"] == "P4"
    finally:
        lab.set_environment(SERVICE_DEAD_LETTER_QUEUE_PATH=None)


@pytest.mark.both_ends
@with_head
def test_modules(tmp_path: Path, lab: RunningLab) -> None:
    """Through Ansible, which has names of its own in every result."""
    queue, dest = tmp_path / "failed_reflections.log", tmp_path / "archives"
    dest.mkdir()
    letter = {
        "timestamp": "2026-11-27T03:00:00Z",
        "episode_id": 5,
        "customer_id": "acme",
        "failure_reason": REASON,
        "reflection": None,
    }
    queue.write_text(json.dumps(letter) + "\n")
    play = [
        {
            "name": "Modules",
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"name": "Count", "oncall.runbooks.dlq_info": {"path": str(queue)}, "register": "info"},
                {
                    "name": "Archive",
                    "oncall.runbooks.dlq_archive": {"path": str(queue), "dest": f"{dest}/"},
                    "register": "archived",
                },
                {
                    "name": "Archive again",
                    "oncall.runbooks.dlq_archive": {"path": str(queue), "dest": f"{dest}/"},
                    "register": "again",
                },
                {
                    "name": "Put it back",
                    "oncall.runbooks.dlq_archive": {
                        "path": str(queue),
                        "state": "restored",
                        "archive": "{{ archived.archive }}",
                    },
                    "register": "restored",
                },
                {
                    "name": "Keep what was told",
                    "ansible.builtin.copy": {
                        "dest": f"{tmp_path}/told.json",
                        "content": "{{ [info, archived, again, restored] | to_json }}",
                        "mode": "0600",
                    },
                },
            ],
        }
    ]
    playbook = tmp_path / "play.yml"
    playbook.write_text(json.dumps(play))
    status, output = ansible(tmp_path, "ansible-playbook", playbook, "-i", inventory(tmp_path, {"here": LOCAL}))
    assert status == 0, output
    told = dict(
        zip(("info", "archived", "again", "restored"), json.loads((tmp_path / "told.json").read_text()), strict=True)
    )
    assert told["info"]["entries"] == 1
    assert told["info"]["by_customer"] == {"acme": 1}
    assert told["info"]["oldest"] == "2026-11-27T03:00:00Z"
    assert told["archived"]["changed"]
    assert told["archived"]["archive"].startswith(str(dest))
    assert (told["again"]["changed"], told["again"]["archive"]) == (False, None)
    assert told["restored"]["changed"]
    assert json.loads(queue.read_text()) == letter

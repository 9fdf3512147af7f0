# SPDX-License-Identifier: GPL-3.0-or-later
"""Dead letters replayed into the lab's KyroDB, by the logic alone and by the module under Ansible."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.release import __version__ as core

from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_replay, episodes, kyrodb
from ansible_collections.oncall.runbooks.tests.unit.kyrodb_helpers import HUGE, KyroDB, packed
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import COLLECTIONS, free_port, python

REFLECTION = {
    "root_cause": "The deployer's role lacks create on pods — in prod",
    "preconditions": {"tool": "kubectl"},
    "resolution_strategy": "Bind the role",
    "environment_factors": ["kubernetes"],
    "affected_components": ["rbac", "deployer"],
    "generalization_score": 0.7,
    "confidence_score": 1,
    "llm_model": "a/model:free",
    "generated_at": "2026-11-22T03:45:09.983987+00:00",
    "cost_usd": 0.0,
    "generation_latency_ms": 301.256,
    "tier": "cheap",
}
KEYS = {
    "reflection_root_cause": "The deployer's role lacks create on pods — in prod",
    "reflection_resolution": "Bind the role",
    "reflection_confidence": "1.0000",
    "reflection_generalization": "0.7000",
    "reflection_preconditions": '{"tool": "kubectl"}',
    "reflection_env_factors": '["kubernetes"]',
    "reflection_components": '["rbac", "deployer"]',
    "reflection_model": "a/model:free",
    "reflection_generated_at": "2026-11-22T03:45:09.983987+00:00",
    "reflection_cost_usd": "0.000000",
    "reflection_latency_ms": "301.26",
}


@pytest.fixture
def server(tmp_path):
    made = KyroDB(tmp_path)
    yield made
    made.close()


@pytest.fixture
def older(tmp_path):
    """A server from before UpdateMetadata."""
    made = KyroDB(tmp_path, without=("BulkQuery", "GetConfig", "UpdateMetadata"))
    yield made
    made.close()


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "failed_reflections.log")


class Queue:
    def __init__(self, path):
        self.path = path

    def put(self, doc_id, customer="acme", reflection="usual", **more):
        if reflection == "usual":
            reflection = REFLECTION
        entry = {
            "timestamp": "2026-11-22T03:45:13.000000+00:00",
            "episode_id": doc_id,
            "customer_id": customer,
            "failure_reason": "persistence_failed_after_retries" if reflection else "reflection_redaction_failed",
            "reflection": reflection,
            **more,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def replay(at, queue, *more, **options):
    """A run, in which the queue stays as it is."""
    address = at if isinstance(at, str) else at.address
    before = queue.path.read_bytes()
    made = dead_letter_replay.Replay(kyrodb.Endpoint(address), timeout=20.0, **options)
    made.run([str(queue.path), *more])
    assert queue.path.read_bytes() == before
    return made


def stored(*doc_ids, customer="acme"):
    return [{"customer_id": customer, "episode_id": doc_id} for doc_id in doc_ids]


def counts(made):
    return made.replayed, made.skipped, made.failed, made.not_tried


@pytest.mark.parametrize("line", ["server", "older"])
@pytest.mark.parametrize("pack", [packed, json.dumps])
def test_reflection_as_vritti_would_have_stored_it(request, queue, line, pack):
    at = request.getfixturevalue(line)
    at.put(HUGE, pack=pack, **{"tag:one": "1"})
    before, vector = at.metadata(HUGE), at.embedding(HUGE)
    queue.put(HUGE)
    made = replay(at, queue)
    assert counts(made) == (1, 0, 0, 0)
    assert made.results == [{"episode_id": HUGE, "customer_id": "acme", "result": "replayed", "reason": ""}]
    after = at.metadata(HUGE)
    text = after.pop("episode_json")
    assert text.startswith("gz:") is before["episode_json"].startswith("gz:")
    was = episodes.decode(before.pop("episode_json"))
    assert episodes.decode(text) == {**was, "reflection": REFLECTION}
    assert after == {**before, **KEYS}
    assert at.embedding(HUGE) == vector
    assert at.calls == (["Query", "UpdateMetadata", "Query"] if line == "server" else ["Query", "Insert", "Query"])
    # Another run stores nothing.
    at.calls.clear()
    made = replay(at, queue)
    assert (counts(made), made.by_result) == ((0, 1, 0, 0), {"already_stored": 1})
    assert at.calls == ["Query"]


def test_preconditions_of_v010_and_a_consensus(server, queue):
    server.put(5)
    consensus = {"method": "majority_vote", "confidence": 0.66666, "disagreement_points": ["cause"]}
    queue.put(5, reflection={**REFLECTION, "preconditions": ["tool=kubectl"], "consensus": consensus})
    assert replay(server, queue).replayed == 1
    held = server.metadata(5)
    assert held["reflection_preconditions"] == '["tool=kubectl"]'
    assert held["reflection_consensus_method"] == "majority_vote"
    assert held["reflection_consensus_confidence"] == "0.6667"
    assert held["reflection_disagreements"] == '["cause"]'
    assert "reflection_perspectives_count" not in held
    # Vritti could not read an episode with half a consensus in it.
    assert episodes.decode(held["episode_json"])["reflection"]["consensus"] is None


def test_a_whole_consensus_is_kept(server, queue):
    server.put(5)
    whole = {"consensus_method": "unanimous", "consensus_confidence": 1.0, "perspectives": [{"model_name": "a"}]}
    queue.put(5, reflection={**REFLECTION, "consensus": whole})
    assert replay(server, queue).replayed == 1
    held = server.metadata(5)
    assert (held["reflection_consensus_method"], held["reflection_perspectives_count"]) == ("unanimous", "1")
    assert json.loads(held["reflection_perspectives_json"]) == [{"model_name": "a"}]
    assert episodes.decode(held["episode_json"])["reflection"]["consensus"] == whole


def test_what_is_not_replayed(server, queue):
    server.put(1)
    server.put(2, reflection_root_cause="another")
    server.put(3, "other")
    server.put(4, "other", namespace="acme:failures")
    before = {doc_id: server.metadata(doc_id) for doc_id in (2, 3, 4)}
    queue.put(1, reflection=None)
    for doc_id in (2, 3, 4, 99):
        queue.put(doc_id)
    made = replay(server, queue)
    assert counts(made) == (0, 2, 3, 0)
    told = [(one["episode_id"], one["result"]) for one in made.results]
    assert told == [
        (1, "no_reflection"),
        (2, "already_stored"),
        (3, "not_found"),
        (4, "other_customer"),
        (99, "not_found"),
    ]
    assert made.stored == stored(2)
    assert made.results[0]["reason"] == "reflection_redaction_failed"
    assert made.sentence() == (
        "3 entries could not be replayed and stay in the queue; episode 3 of acme: KyroDB has no such document in "
        "acme:failures."
    )
    assert {doc_id: server.metadata(doc_id) for doc_id in (2, 3, 4)} == before


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"doc_id": 0}, "its episode_id is 0, which is no document's"),
        ({"doc_id": "5"}, "its episode_id is 5, which"),
        ({"doc_id": 5.5}, "its episode_id is 5.5"),
        ({"doc_id": True}, "its episode_id is True"),
        ({"doc_id": None}, "its episode_id is None"),
        ({"doc_id": 1 << 64}, "which is no document's"),
        ({"doc_id": 5, "reflection": ["x"]}, "its reflection is no object"),
        ({"doc_id": 5, "reflection": {}}, "has no root_cause"),
        ({"doc_id": 5, "reflection": {**REFLECTION, "root_cause": " "}}, "has no root_cause"),
        ({"doc_id": 5, "reflection": {**REFLECTION, "root_cause": "\ud800"}}, "cannot be stored"),
        ({"doc_id": 5, "reflection": {**REFLECTION, "llm_model": 5}}, "llm_model is no text"),
        ({"doc_id": 5, "reflection": {**REFLECTION, "confidence_score": "high"}}, "confidence_score is no number"),
        ({"doc_id": 5, "reflection": {**REFLECTION, "cost_usd": True}}, "cost_usd is no number"),
        ({"doc_id": 5, "reflection": {**REFLECTION, "cost_usd": 10**400}}, "cost_usd is no number"),
        ({"doc_id": 5, "customer": "a:b"}, "is no customer id"),
    ],
)
def test_entries_that_are_wrong_keep_no_other_from_being_replayed(server, queue, entry, says):
    server.put(5)
    server.put(6)
    queue.put(**entry)
    queue.put(6)
    made = replay(server, queue)
    assert counts(made) == (1, 0, 1, 0)
    assert made.results[0]["result"] == "error"
    assert says in made.results[0]["reason"]
    assert "reflection_root_cause" not in server.metadata(5)


def test_what_is_not_in_a_reflection_is_not_made_up(server, queue):
    server.put(5)
    queue.put(5, reflection={"root_cause": "why", "cost_usd": None, "consensus": None})
    assert replay(server, queue).replayed == 1
    assert [key for key in server.metadata(5) if key.startswith("reflection_")] == ["reflection_root_cause"]


def test_episode_that_cannot_be_decoded_keeps_what_it_is(server, queue):
    metadata = {"customer_id": "acme", "episode_json": "{torn"}
    server.store.insert(5, [0.0] * 7 + [1.0], metadata, "acme:failures")
    queue.put(5)
    made = replay(server, queue)
    assert made.replayed == 1
    assert "was left as it is" in made.results[0]["reason"]
    assert server.metadata(5) == {**metadata, **KEYS}


def test_torn_and_foreign_lines_and_renamed_files(server, queue, tmp_path):
    for doc_id in (1, 2, 3):
        server.put(doc_id)
    queue.put(1)
    with queue.path.open("a") as file:
        file.write('{"timestamp": "2026-11-22T03:45:13+00:00", "epis\n\n')
        file.write('{"level": "error"}\n')
    queue.put(2)
    with queue.path.open("a") as file:
        file.write(queue.path.read_text().splitlines()[0][:-40])
    later = Queue(tmp_path / "later.log")
    later.put(3)
    made = replay(server, queue, str(later.path))
    assert (counts(made), made.torn, made.foreign) == ((3, 0, 0, 0), 2, 1)


def test_archive(server, queue, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    server.put(1)
    queue.put(1)
    archive = tmp_path / "failed_reflections.20261122.log.zst"
    archive.write_bytes(zstandard.ZstdCompressor().compress(queue.path.read_bytes()))
    queue.path.write_text("")
    assert counts(replay(server, queue, str(archive))) == (1, 0, 0, 0)


def test_one_customer_and_a_limit(server, queue):
    for doc_id in range(1, 11):
        server.put(doc_id, "other" if doc_id % 2 else "acme")
        queue.put(doc_id, "other" if doc_id % 2 else "acme")
    made = replay(server, queue, customer="acme", limit=2)
    assert counts(made) == (2, 0, 0, 3)
    # What is stored by now does not count, so the next run gets on.
    made = replay(server, queue, customer="acme", limit=2)
    assert counts(made) == (2, 2, 0, 1)
    made = replay(server, queue, customer="acme")
    assert counts(made) == (1, 4, 0, 0)
    assert [doc_id for doc_id in range(1, 11) if "reflection_root_cause" in server.metadata(doc_id)] == [2, 4, 6, 8, 10]
    assert counts(replay(server, queue)) == (5, 5, 0, 0)


def test_check_mode_stores_nothing(server, queue):
    server.put(1)
    before = server.metadata(1)
    queue.put(1)
    queue.put(1)
    queue.put(99)
    server.put(2, reflection_root_cause="another")
    queue.put(2)
    made = replay(server, queue, check=True)
    assert (counts(made), made.stored) == ((1, 2, 1, 0), stored(2))
    assert server.metadata(1) == before
    assert set(server.calls) == {"Query"}
    made = replay(server, queue)
    assert (counts(made), made.stored) == ((1, 2, 1, 0), stored(1, 2))


def test_stored_tells_whose_entries_they_are(server, queue, monkeypatch):
    """An id alone would be that of another customer's entry, or of one without a reflection, as well."""
    for doc_id in (3, 1):
        server.put(doc_id)
        queue.put(doc_id)
    server.put(2, "other", reflection_root_cause="another")
    queue.put(1, "other")
    queue.put(5, reflection=None)
    queue.put(2, "other")
    queue.put(3)
    made = replay(server, queue)
    assert made.by_result == {"replayed": 2, "already_stored": 2, "not_found": 1, "no_reflection": 1}
    assert made.stored == [*stored(3, 1), *stored(2, customer="other")]
    assert replay(server, queue).stored == made.stored
    monkeypatch.setattr(dead_letter_replay, "MOST_STORED", 2)
    assert replay(server, queue).stored == stored(3, 1)


def test_halves_of_characters_are_shown_as_question_marks(server, queue):
    queue.put(5, customer="a\ud800b")
    queue.put("\udfff")
    queue.put(7, reflection=None, failure_reason="why\ud83d")
    made = replay(server, queue)
    assert [(one["episode_id"], one["customer_id"]) for one in made.results] == [(5, "a?b"), ("?", "acme"), (7, "acme")]
    assert [one["result"] for one in made.results] == ["error", "error", "no_reflection"]
    assert made.results[2]["reason"] == "why?"
    json.dumps([made.results, made.sentence()], ensure_ascii=False).encode()


def test_list_is_bounded_and_counts_are_not(server, queue):
    for doc_id in range(1, 261):
        queue.put(doc_id, reflection=None)
    queue.put(1000)
    made = replay(server, queue)
    assert made.by_result == {"no_reflection": 260, "not_found": 1}
    assert len(made.results) == dead_letter_replay.LISTED + 1
    # A failure has its place, however many others come before it.
    assert made.results[-1]["episode_id"] == 1000


def test_write_that_is_not_what_is_read(server, queue):
    server.put(1)
    queue.put(1)

    def forgets(rpc, _request):
        return server.message("UpdateMetadataResponse", success=True, existed=True) if rpc == "UpdateMetadata" else None

    server.before = forgets
    made = replay(server, queue)
    assert counts(made) == (0, 0, 1, 0)
    assert "what KyroDB holds differs in episode_json, reflection_components" in made.results[0]["reason"]

    def drops(rpc, request):
        if rpc == "UpdateMetadata":
            server.store.update_metadata(1, dict(request.metadata), False, "acme:failures")
            return server.message("UpdateMetadataResponse", success=True, existed=True)
        return None

    server.before = drops
    made = replay(server, queue)
    assert "differs in customer_id, retrieval_count, tags" in made.results[0]["reason"]


def test_writes_that_kyrodb_refuses(server, queue):
    for doc_id in (1, 2):
        server.put(doc_id)
        queue.put(doc_id)

    def refuses(rpc, _request):
        failed = server.message("UpdateMetadataResponse", error="WAL inconsistent; writes disabled", existed=True)
        return failed if rpc == "UpdateMetadata" else None

    server.before = refuses
    made = replay(server, queue)
    assert (counts(made), made.ended) == ((0, 0, 2, 0), "")
    assert "writes disabled" in made.results[1]["reason"]

    # Deleted between the look and the write, which KyroDB itself calls a success.
    def deletes(rpc, _request):
        if rpc == "UpdateMetadata":
            server.store.delete(1, "")

    server.before = deletes
    made = replay(server, queue)
    assert made.by_result == {"not_found": 1, "replayed": 1}


def test_kyrodb_that_stops_answering_ends_the_run(server, queue):
    for doc_id in range(1, 7):
        server.put(doc_id)
        queue.put(doc_id)

    def stops(_rpc, _request):
        if len(server.calls) == 7:
            server.server.stop(None)

    server.before = stops
    made = replay(server, queue)
    assert counts(made) == (2, 0, 1, 3)
    assert made.ended
    assert "2 were stored before, and 3 entries were not tried" in made.sentence()
    made = replay(server, queue)
    assert counts(made) == (0, 0, 1, 5)
    assert "takes no connection: Connection refused" in made.sentence()
    server.before = lambda _rpc, _request: None
    server.start(server.port)
    assert counts(replay(server, queue)) == (4, 2, 0, 0)


def test_no_kyrodb_is_needed_for_nothing(queue):
    queue.put(1, reflection=None)
    assert counts(replay(f"localhost:{free_port()}", queue)) == (0, 1, 0, 0)


def test_without_grpcio(queue):
    queue.put(1)
    queue.put(2)
    told = python(
        """
        import sys
        sys.modules["grpc"] = None
        from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_replay, episode_export, kyrodb
        from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
        made = dead_letter_replay.Replay(kyrodb.Endpoint("localhost:1"))
        made.run([sys.argv[1]])
        print(made.failed, made.not_tried, made.sentence())
        try:
            episode_export.Export(kyrodb.Endpoint("localhost:1"), "acme", sys.argv[1] + ".jsonl").run()
        except NoAnswer as error:
            print(error)
        """,
        queue.path,
    )
    first, second = told.splitlines()
    assert first.startswith("1 1 grpc is not installed on the target; install grpcio and protobuf there. 0 were stored")
    assert second == "grpc is not installed on the target; install grpcio and protobuf there."


CHILD = """
import sys
from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_replay, kyrodb
dead_letter_replay.Replay(kyrodb.Endpoint(sys.argv[1])).run([sys.argv[2]])
"""


@pytest.mark.parametrize("line", ["server", "older"])
@pytest.mark.parametrize(("moment", "stored"), [(9, 3), (10, 3), (11, 4)])
def test_run_that_was_killed_is_gone_on_with(request, queue, line, moment, stored):
    """While it reads back, looks, or writes, which counts once it is in KyroDB; nothing is stored twice or half."""
    at = request.getfixturevalue(line)
    for doc_id in range(1, 7):
        at.put(doc_id)
        queue.put(doc_id)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, at.address, str(queue.path)],
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
    )

    def before(_rpc, _request):
        if len(at.calls) == moment:
            child.send_signal(signal.SIGKILL)
            child.wait(20)

    at.before = before
    assert child.wait(60) == -signal.SIGKILL
    at.before = lambda _rpc, _request: None
    at.calls.clear()
    made = replay(at, queue)
    assert counts(made) == (6 - stored, stored, 0, 0)
    assert at.calls.count("UpdateMetadata") + at.calls.count("Insert") == 6 - stored
    for doc_id in range(1, 7):
        held = at.metadata(doc_id)
        assert {key: held.get(key) for key in KEYS} == KEYS
        assert episodes.decode(held["episode_json"])["reflection"] == REFLECTION


# --- Under Ansible.

REPOSITORY = Path(__file__).resolve().parents[2]


def play(directory, *runs):
    """What these runs of the module leave in their registered variables, and what Ansible says of the play."""
    tasks = []
    for number, options in enumerate(runs):
        tasks.append(
            {
                "oncall.runbooks.dlq_replay": options,
                "register": f"run{number}",
                "ignore_errors": True,
            }
        )
    every = ", ".join(
        f"{{'result': run{number}, 'is_skipped': run{number} is skipped, 'is_failed': run{number} is failed, "
        f"'is_changed': run{number} is changed}}"
        for number in range(len(runs))
    )
    results = directory / "results.json"
    tasks.append({"ansible.builtin.copy": {"content": "{{ [" + every + "] | to_json }}", "dest": str(results)}})
    playbook = directory / "play.json"
    playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), str(playbook), "-i", "localhost,", "-c", "local"]
    done = subprocess.run(
        [*command, "-e", f"ansible_python_interpreter={sys.executable}"],
        env={**clean, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "default"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(results.read_text()), done.stdout + done.stderr


def test_result_under_ansible(server, queue, tmp_path):
    """The names failed and skipped are Ansible's own; what this version makes of them is documented."""
    for doc_id in (1, 2, HUGE):
        server.put(doc_id)
    queue.put(1)
    queue.put(2, reflection=None)
    options = {"path": str(queue.path), "address": server.address}
    more = Queue(tmp_path / "more.log")
    more.put(HUGE)
    more.put(99)
    # Ansible could not even read what it returns.
    more.put(98, customer="a\ud800")
    nothing = {**options, "path": str(tmp_path / "none.log")}
    runs, output = play(tmp_path, options, options, {**options, "path": str(more.path)}, nothing)
    keeps = tuple(map(int, core.split(".")[:2])) < (2, 21)
    first, second, third, empty = (run["result"] for run in runs)
    assert first["counts"] == {"replayed": 1, "skipped": 1, "failed": 0, "not_tried": 0}
    assert (first["replayed"], first["changed"], runs[0]["is_changed"]) == (1, True, True)
    assert (runs[0]["is_failed"], runs[0]["is_skipped"]) == (False, keeps)
    assert second["counts"] == {"replayed": 0, "skipped": 2, "failed": 0, "not_tried": 0}
    assert (second["changed"], runs[1]["is_failed"]) == (False, False)
    assert third["counts"] == {"replayed": 1, "skipped": 0, "failed": 2, "not_tried": 0}
    assert third["results"][2]["customer_id"] == "a?"
    assert (third["changed"], runs[2]["is_failed"], runs[2]["is_skipped"]) == (True, True, False)
    assert third["msg"].startswith("2 entries could not be replayed and stay in the queue; episode 99 of acme")
    assert third["by_result"] == {
        "replayed": 1,
        "already_stored": 0,
        "no_reflection": 0,
        "not_found": 1,
        "other_customer": 0,
        "error": 1,
    }
    assert third["results"][0] == {"episode_id": HUGE, "customer_id": "acme", "result": "replayed", "reason": ""}
    assert (third["stored"], empty["stored"]) == (stored(HUGE), [])
    assert (empty["counts"]["failed"], empty["files"], empty["results"]) == (0, [], [])
    if keeps:
        assert (first["skipped"], first["failed"], second["skipped"]) == (1, 0, 2)
        assert (third["failed"], third["skipped"], empty["skipped"]) == (True, 0, 0)
    else:
        assert (first["failed"], third["failed"]) == (False, True)
        assert not {"skipped"} & {*first, *second, *third}
    assert "was converted" not in output
    assert "Removed reserved key" not in output


def test_arguments_that_are_wrong(tmp_path):
    options = {"path": str(tmp_path / "none.log"), "address": "localhost:1"}
    wrong = (
        {"limit": 0},
        {"customer": "a:b"},
        {"timeout": 0},
        {"address": "http://localhost"},
        {"path": str(tmp_path)},
    )
    runs, _output = play(tmp_path, *({**options, **one} for one in wrong))
    says = ("limit is 0", "is no customer id", "timeout is 0", "is a URL", "no regular file")
    for run, said in zip(runs, says):
        assert run["is_failed"]
        assert said in run["result"]["msg"]

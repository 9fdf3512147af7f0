# SPDX-License-Identifier: GPL-3.0-or-later
"""Episodes exported from the lab's KyroDB, with Vritti's index and without, through kills and refusals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import episode_export, kyrodb
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.tests.unit.kyrodb_helpers import (
    DIMENSION,
    HUGE,
    KyroDB,
    customers_db,
    packed,
    unit_vector,
)
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import COLLECTIONS, python


@pytest.fixture
def server(tmp_path):
    made = KyroDB(tmp_path)
    yield made
    made.close()


@pytest.fixture
def older(tmp_path):
    """A server from before BulkQuery and GetConfig."""
    made = KyroDB(tmp_path, without=("BulkQuery", "GetConfig", "UpdateMetadata"))
    yield made
    made.close()


@pytest.fixture
def dest(tmp_path):
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder / "acme.jsonl"


def exporter(at, dest, database=None, **options):
    address = at if isinstance(at, str) else at.address
    options.setdefault("timeout", 20.0)
    return episode_export.Export(kyrodb.Endpoint(address), "acme", str(dest), database, **options)


def export(at, dest, database=None, **options):
    """A run's result, with what is true of every run."""
    made = exporter(at, dest, database, **options)
    result = made.run()
    after = result["after"]
    data = dest.read_bytes()
    assert hashlib.sha256(data).hexdigest() == after["sha256"]
    assert (len(data), data.count(b"\n")) == (after["size_bytes"], after["episodes"])
    held = json.loads((dest.parent / f"{dest.name}.manifest.json").read_text())
    assert {**held, **{key: after[key] for key in ("started_at", "finished_at", "replaces") if key in after}} == after
    for path in (dest, dest.parent / f"{dest.name}.manifest.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in dest.parent.iterdir()) == [dest.name, f"{dest.name}.manifest.json"]
    return {**after, "changed": result["changed"], "resumed": made.resumed}


def lines(dest):
    return [json.loads(line) for line in dest.read_text().splitlines()]


def test_everything_that_the_index_promises(server, dest, tmp_path):
    ids = [1, 7, 2**53 + 1, HUGE, HUGE + 1]
    for number, doc_id in enumerate(ids):
        server.put(doc_id, pack=json.dumps if number % 2 else packed, reflection_root_cause="why")
    more = [(5000, "acme", "failures", 1), (5001, "acme", "failures_images", 0), (5002, "other", "failures", 0)]
    for doc_id, customer, _collection, _deleted in more:
        server.put(doc_id, customer, namespace="acme:failures_images" if doc_id == 5001 else None)
    database = customers_db(tmp_path / "customers.db", ids, ("acme", "other"), more=more)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("customers.db*")}
    result = export(server, dest, database)
    assert (result["episodes"], result["expected"], result["complete"]) == (5, 5, True)
    assert (result["source"], result["changed"], result["missing"], result["notes"]) == ("index", True, [], [])
    found = lines(dest)
    assert [line["episode_id"] for line in found] == ids
    assert [line["episode"]["goal"] for line in found] == [f"goal {one}" for one in ids]
    assert found[0]["metadata"] == {
        "customer_id": "acme",
        "retrieval_count": "0",
        "tags": '["a"]',
        "reflection_root_cause": "why",
    }
    assert "embedding" not in found[0]
    # The exact digits, which a reader of doubles would not see.
    assert f'"episode_id": {HUGE + 1}' in dest.read_text()
    # Nothing was made beside the database, and nothing in it.
    assert {path.name: path.read_bytes() for path in tmp_path.glob("customers.db*")} == before


def test_second_run_changes_nothing(server, dest, tmp_path):
    ids = list(range(1, 20))
    for doc_id in ids:
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", ids)
    assert export(server, dest, database)["changed"]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(dest.parent.iterdir())]
    assert not export(server, dest, database)["changed"]
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(dest.parent.iterdir())] == before
    # Something new, in KyroDB alone.
    server.put(5, reflection_root_cause="why")
    assert export(server, dest, database)["changed"]
    assert lines(dest)[4]["metadata"]["reflection_root_cause"] == "why"
    assert not export(server, dest, database)["changed"]


def test_missing_and_others_documents(server, dest, tmp_path):
    ids = list(range(1, 300))
    for doc_id in ids[:100]:
        server.put(doc_id)
    # Given out twice: another customer's documents have these ids, in this customer's namespace or in their own.
    server.put(1, "other", namespace="acme:failures")
    server.put(2, "other")
    # Of nobody.
    server.store.insert(3, unit_vector(3), {"episode_json": "{}"}, "acme:failures")
    more = [(0, "acme", "failures", 0), (-4, "acme", "failures", 0)]
    result = export(server, dest, customers_db(tmp_path / "customers.db", ids, more=more))
    assert (result["episodes"], result["expected"], result["complete"]) == (97, 301, False)
    assert (result["missing_count"], result["other_customer"]) == (202, 2)
    # At most so many are named.
    assert result["missing"] == [-4, 0, 2, *range(101, 198)]
    assert "KyroDB has not 202 of the episodes that are in the index" in result["notes"][0]
    assert "2 of the documents are another customer's" in result["notes"][1]
    assert [line["episode_id"] for line in lines(dest)] == ids[3:100]
    assert "other" not in dest.read_text()
    # That nothing is missing any more is news, though it may be the same lines.
    database = customers_db(tmp_path / "second.db", ids[3:100])
    result = export(server, dest, database)
    assert (result["changed"], result["complete"], result["expected"]) == (True, True, 97)


@pytest.mark.parametrize(
    "value",
    [
        "gz:not base64",
        "gz:" + "AAAA",
        packed({"a": 1})[:-8],
        "{torn",
        "[1]",
        '{"a": NaN}',
        "[" * 100_000,
        None,
    ],
)
def test_what_cannot_be_decoded_is_kept(server, dest, tmp_path, value):
    server.put(1)
    metadata = {"customer_id": "acme", "tags": "[]", **({} if value is None else {"episode_json": value})}
    server.store.insert(2, unit_vector(2), metadata, "acme:failures")
    result = export(server, dest, customers_db(tmp_path / "customers.db", [1, 2]))
    assert (result["episodes"], result["undecoded"], result["complete"]) == (2, 1, False)
    assert "1 episodes cannot be decoded" in result["notes"][0]
    line = lines(dest)[1]
    assert (line["episode"], line["episode_json"]) == (None, value)


def test_more_than_the_index_has(server, dest, tmp_path):
    ids = list(range(1, 6))
    outside = [HUGE, *range(100, 130)]
    for doc_id in (*ids, *outside):
        server.put(doc_id)
    # Another customer's and nobody's in this namespace, and what is deleted, are nothing to export.
    server.put(50, "other", namespace="acme:failures")
    server.store.insert(51, unit_vector(51), {"episode_json": "{}"}, "acme:failures")
    server.put(52)
    database = customers_db(tmp_path / "customers.db", ids, more=[(52, "acme", "failures", 1)])
    result = export(server, dest, database)
    assert (result["source"], result["expected"], result["episodes"]) == ("index", 5, 36)
    assert (result["complete"], result["outside_index"], result["other_customer"]) == (False, 31, 0)
    assert [line["episode_id"] for line in lines(dest)] == [*ids, *range(100, 130), HUGE]
    (note,) = result["notes"]
    assert note.startswith("KyroDB has 31 episodes of this customer that the index has not")
    assert note.endswith(f"{', '.join(map(str, range(100, 120)))} and others.")
    assert not export(server, dest, database)["changed"]
    # They are counted as well where a run goes on from their lines.
    killed(server, dest, database, after=3)
    result = export(server, dest, database)
    assert (result["resumed"], result["outside_index"], result["episodes"]) == (8, 31, 36)
    assert result["notes"] == [note]


def test_search_beside_the_index_that_is_not_answered(older, dest, tmp_path):
    older.put(5)
    result = export(older, dest, customers_db(tmp_path / "customers.db", [5]))
    assert (result["episodes"], result["complete"]) == (1, True)
    assert "was not searched for: KyroDB at" in result["notes"][0]
    assert "expected 8 found 384" in result["notes"][0]
    result = export(older, dest, customers_db(tmp_path / "second.db", [5]), dimension=DIMENSION)
    assert (result["complete"], result["notes"]) == (True, [])


def test_index_is_read_after_the_search(server, dest, tmp_path):
    """What is captured in between is in the index, and no surprise."""
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1])

    def captures(rpc, _request):
        if rpc == "Search":
            server.put(2)
            with closing(sqlite3.connect(database, isolation_level=None)) as connection:
                connection.execute("INSERT OR IGNORE INTO episodes_index VALUES (2, 'acme', 'failures', 0)")

    server.before = captures
    result = export(server, dest, database)
    assert (result["expected"], result["episodes"], result["complete"], result["notes"]) == (2, 2, True, [])


@pytest.mark.parametrize("collection", ["failures_images", "skills", "cluster_templates"])
def test_collection_that_the_index_has_not(server, dest, tmp_path, collection):
    server.put(1)
    server.put(2, namespace=f"acme:{collection}")
    database = customers_db(tmp_path / "customers.db", [1])
    result = export(server, dest, database, collection=collection)
    assert (result["source"], result["expected"], result["complete"]) == ("search", None, False)
    assert [line["episode_id"] for line in lines(dest)] == [2]
    assert f"the index in {database} has none of {collection}" in result["notes"][0]


def test_collection_that_is_none(dest):
    with pytest.raises(ValueError, match="'failure' is no collection; Vritti's are failures, failures_images, skills"):
        exporter("localhost:1", dest, collection="failure")


def test_embeddings_are_the_same_numbers(server, dest, tmp_path):
    server.put(4)
    database = customers_db(tmp_path / "customers.db", [4])
    export(server, dest, database, include_embeddings=True)
    (line,) = lines(dest)
    assert line["embedding"] == pytest.approx([0, 0, 0, 0, 0.6, 0, 0, 0.8])
    # As 32-bit numbers they are exactly what KyroDB has.
    before = server.embedding(4)
    server.store.insert(4, line["embedding"], server.metadata(4), "acme:failures")
    assert server.embedding(4) == before
    assert not export(server, dest, database, include_embeddings=True)["changed"]


def test_server_without_bulk_query(older, dest, tmp_path):
    for doc_id in (3, HUGE):
        older.put(doc_id)
    database = customers_db(tmp_path / "customers.db", [3, 9, HUGE])
    result = export(older, dest, database, dimension=DIMENSION)
    assert (result["episodes"], result["expected"], result["missing"]) == (2, 3, [9])
    assert older.calls == ["Search", *["Query"] * 3]


@pytest.mark.parametrize("why", ["no table", "not given"])
def test_without_an_index_a_search(server, dest, tmp_path, why):
    for doc_id in (HUGE, 5, 6):
        server.put(doc_id)
    server.put(7, "other")
    server.put(8, namespace="acme:skills")
    database = customers_db(tmp_path / "customers.db", index=False) if why == "no table" else None
    result = export(server, dest, database)
    assert [line["episode_id"] for line in lines(dest)] == [5, 6, HUGE]
    assert (result["expected"], result["complete"], result["source"]) == (None, False, "search")
    assert "It may be incomplete" in result["notes"][0]
    assert ("has no table episodes_index" if why == "no table" else "customers_db") in result["notes"][0]
    assert "1000 at most" in result["notes"][0]
    assert server.calls[:2] == ["GetConfig", "Search"]
    assert not export(server, dest, database)["changed"]


def test_search_asks_for_everything(server, dest):
    asked = []
    server.before = lambda rpc, request: asked.append(request) if rpc == "Search" else None
    export(server, dest)
    # Along axes that are far apart, in both directions; with nothing found there is nothing to go on from.
    assert len({tuple(request.query_embedding) for request in asked}) == len(asked) == 8
    for request in asked:
        assert (request.k, request.min_score, request.namespace) == (1000, -1.0, "acme:failures")
        assert sum(abs(value) for value in request.query_embedding) == 1
        assert len(request.query_embedding) == DIMENSION


def crowded(server):
    """As KyroDB searches: among the nearest of everybody's documents, of which only the namespace's are answered."""
    asked = []

    def before(rpc, request):
        if rpc != "Search":
            return None
        asked.append(request)
        hits = server.store.search(request.query_embedding, 4 * request.k, request.min_score, "").hits
        mine = [hit.document.doc_id for hit in hits if hit.document.namespace == request.namespace]
        answer = server.message("SearchResponse")
        for doc_id in mine[: request.k]:
            answer.results.add(doc_id=doc_id)
        return answer

    server.before = before
    return asked


def towards(*parts):
    """A unit vector with these numbers in these places."""
    length = sum(value * value for _place, value in parts) ** 0.5
    return [dict(parts).get(place, 0.0) / length for place in range(DIMENSION)]


def test_few_episodes_among_many_of_others(server, dest, monkeypatch):
    """They are found from another side, or from their neighbours; or not, and the export says so."""
    monkeypatch.setattr(kyrodb, "MOST_HITS", 5)
    metadata = {"customer_id": "acme", "episode_json": "{}"}
    for doc_id in range(100, 125):
        # In front of whoever looks along the first axis.
        server.store.insert(doc_id, towards((0, 1.0), (1, doc_id / 1e4)), metadata, "other:failures")
    mine = {
        1: towards((4, -1.0), (5, 0.1)),
        2: towards((4, -1.0), (5, 0.9)),
        # Along no axis that is looked along, but near the second one.
        3: towards((4, -0.6), (5, 1.0), (7, 1.0)),
    }
    for doc_id, vector in mine.items():
        server.store.insert(doc_id, vector, metadata, "acme:failures")
    asked = crowded(server)
    with kyrodb.Documents(kyrodb.Endpoint(server.address), "acme:failures", 20.0) as documents:
        assert documents.search_ids(DIMENSION, searches=1) == ([], 5)
        found, most = documents.search_ids(DIMENSION)
    assert (sorted(found), most) == ([1, 2, 3], 5)
    asked.clear()
    result = export(server, dest)
    assert [line["episode_id"] for line in lines(dest)] == [1, 2, 3]
    assert result["complete"] is False
    assert "a customer with few in a busy instance may be crowded out" in result["notes"][0]
    assert 8 < len(asked) <= kyrodb.MOST_SEARCHES


def test_searches_go_on_from_what_they_find_and_come_to_an_end(server, dest, monkeypatch):
    monkeypatch.setattr(kyrodb, "MOST_HITS", 20)
    for doc_id in range(1, 201):
        angle = doc_id / 200
        server.store.insert(
            doc_id,
            towards((1, 1.0), (2, angle), (3, angle * angle)),
            {"customer_id": "acme", "episode_json": "{}"},
            "acme:failures",
        )
    asked = crowded(server)
    found = export(server, dest)["episodes"]
    assert found == 200
    assert 8 < len(asked) < kyrodb.MOST_SEARCHES
    asked.clear()
    with kyrodb.Documents(kyrodb.Endpoint(server.address), "acme:failures", 20.0) as documents:
        along_axes = documents.search_ids(DIMENSION, searches=8)[0]
        bounded = documents.search_ids(DIMENSION, searches=12)[0]
    assert (len(along_axes), len(asked)) == (40, 8 + 12)
    assert 40 < len(bounded) < 200
    assert len(set(bounded)) == len(bounded)


def test_dimension_of_a_server_that_does_not_tell(older, dest):
    older.put(5)
    with pytest.raises(NoAnswer, match="expected 8 found 384"):
        export(older, dest)
    assert list(dest.parent.iterdir()) == []
    assert export(older, dest, dimension=DIMENSION)["episodes"] == 1


def test_answers_larger_than_a_message(server, dest, tmp_path, monkeypatch):
    ids = list(range(1, 61))
    for doc_id in ids:
        server.put(doc_id, pack=json.dumps, episode={"error_trace": "x" * 100_000})
    database = customers_db(tmp_path / "customers.db", ids)
    # gRPC's own limit would be 4 MB.
    assert export(server, dest, database)["complete"]
    assert server.calls == ["GetConfig", "Search", "BulkQuery"]
    server.calls.clear()
    monkeypatch.setattr(kyrodb, "LARGEST_ANSWER", 1 << 20)
    assert not export(server, dest, database)["changed"]
    assert 7 < server.calls.count("BulkQuery") < 20
    # A search's answer has the documents in it as well.
    result = export(server, dest)
    assert 7 <= result["episodes"] <= 60
    assert "7 is what fits into an answer here" in result["notes"][0]
    # One that is too large by itself is told, and nothing is left out in silence.
    monkeypatch.setattr(kyrodb, "LARGEST_ANSWER", 1 << 16)
    with pytest.raises(NoAnswer, match="RESOURCE_EXHAUSTED"):
        export(server, dest, database)


CHILD = """
import sys
from ansible_collections.oncall.runbooks.plugins.module_utils import episode_export, kyrodb
episode_export.CHUNK = 5
address, dest, database = sys.argv[1:]
episode_export.Export(kyrodb.Endpoint(address), "acme", dest, database, timeout=20.0).run()
"""


def killed(server, dest, database, after):
    """An export in another process that is killed when it asks for its chunk of that number."""
    asked = 0
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, server.address, str(dest), database],
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
    )

    def before(rpc, _request):
        nonlocal asked
        asked += rpc == "BulkQuery"
        if asked == after:
            child.send_signal(signal.SIGKILL)
            child.wait(20)

    server.before = before
    assert child.wait(60) == -signal.SIGKILL
    server.before = lambda _rpc, _request: None
    server.calls.clear()


def test_run_that_was_killed_is_gone_on_with(server, dest, tmp_path, monkeypatch):
    ids = [*range(1, 50), HUGE]
    for doc_id in ids:
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", ids)
    killed(server, dest, database, after=5)
    part = dest.parent / f"{dest.name}.part"
    assert not dest.exists()
    assert part.read_bytes().count(b"\n") == 20
    assert stat.S_IMODE(part.stat().st_mode) == 0o600
    # Torn in the middle of a line, as a full disk or a lost power supply leaves it.
    whole = part.read_bytes()
    part.write_bytes(whole[:-30])
    monkeypatch.setattr(episode_export, "CHUNK", 5)
    result = export(server, dest, database)
    assert (result["episodes"], result["complete"], result["resumed"]) == (50, True, 19)
    assert server.calls == ["GetConfig", "Search", *["BulkQuery"] * 7]
    assert [line["episode_id"] for line in lines(dest)] == ids
    # Twice, at other places; what is there stays what it is until the new one is complete.
    server.put(1, reflection_root_cause="why")
    before = dest.read_bytes()
    killed(server, dest, database, after=2)
    killed(server, dest, database, after=3)
    assert dest.read_bytes() == before
    assert part.read_bytes().count(b"\n") == 15
    assert export(server, dest, database)["changed"]
    assert not export(server, dest, database)["changed"]


def test_remainder_with_an_episode_that_is_deleted_by_now(server, dest, tmp_path):
    ids = list(range(1, 31))
    for doc_id in ids:
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", ids)
    killed(server, dest, database, after=4)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE episodes_index SET deleted = 1 WHERE episode_id = 3")
    result = export(server, dest, database)
    assert (result["episodes"], result["expected"], result["complete"], result["resumed"]) == (29, 29, True, 0)
    assert 3 not in [line["episode_id"] for line in lines(dest)]


def test_remainder_with_an_id_twice(server, dest, tmp_path):
    for doc_id in (1, 2, 3):
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", [1, 2, 3])
    remainder(server, dest, [1, 2, 2], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    result = export(server, dest, database)
    assert (result["episodes"], result["expected"], result["complete"], result["resumed"]) == (3, 3, True, 0)
    assert [line["episode_id"] for line in lines(dest)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("started_at", "resumed"),
    [(59, 2), (61, 0), (-5, 0), ("yesterday", 0), (None, 0), (5, 2)],
)
def test_remainder_that_is_old(server, dest, tmp_path, started_at, resumed):
    """What its lines say may have changed since. A number is minutes ago."""
    for doc_id in (1, 2, 3):
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", [1, 2, 3])
    if isinstance(started_at, int):
        began = datetime.now(UTC) - timedelta(minutes=started_at)
        started_at = began.strftime("%Y-%m-%dT%H:%M:%SZ")
    remainder(server, dest, [1, 2], started_at)
    result = export(server, dest, database)
    assert (result["resumed"], result["episodes"], result["complete"]) == (resumed, 3, True)
    assert (result["started_at"] == started_at) is bool(resumed)


def remainder(server, dest, ids, started_at=None):
    """What a run that was cut short has left, with these lines."""
    told = {
        "schema": episode_export.SCHEMA,
        "customer_id": "acme",
        "address": server.address,
        "collection": "failures",
        "include_embeddings": False,
        "started_at": started_at,
    }
    part = dest.parent / f"{dest.name}.part"
    written = [json.dumps({"episode_id": one, "episode": {}, "metadata": {}}) + "\n" for one in ids]
    part.write_text("".join(written))
    (part.parent / f"{part.name}.manifest.json").write_text(json.dumps(told))


def test_remainder_of_another_shape_or_of_somebody_else(server, dest, tmp_path):
    ids = list(range(1, 31))
    for doc_id in ids:
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", ids, ("acme", "other"))
    part = dest.parent / f"{dest.name}.part"
    killed(server, dest, database, after=4)
    other = episode_export.Export(kyrodb.Endpoint(server.address), "other", str(dest), database)
    with pytest.raises(Refused, match=r"is an export of acme:failures from localhost:\d+; move it away"):
        other.run()
    assert part.read_bytes().count(b"\n") == 15
    # Lines without vectors are no part of one with them.
    result = export(server, dest, database, include_embeddings=True)
    assert (result["resumed"], result["episodes"]) == (0, 30)
    part.write_text("somebody's own\n")
    with pytest.raises(Refused, match="move it away"):
        export(server, dest, database)
    assert part.read_text() == "somebody's own\n"
    part.unlink()
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="is a symbolic link"):
        export(server, dest, database)
    assert not (tmp_path / "elsewhere").exists()


def test_killed_between_the_manifest_and_the_file(server, dest, tmp_path, monkeypatch):
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1])
    export(server, dest, database)
    old = dest.read_bytes()
    server.put(1, reflection_root_cause="why")

    def gone(*_names):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # The manifest is renamed by another module, so this is the file's own rename.
        real = os.replace
        patched.setattr(os, "replace", lambda source, to: gone() if str(to) == str(dest) else real(source, to))
        with pytest.raises(KeyboardInterrupt):
            exporter(server, dest, database).run()
    assert dest.read_bytes() == old
    result = export(server, dest, database)
    assert (result["changed"], result["resumed"]) == (True, 1)
    assert lines(dest)[0]["metadata"]["reflection_root_cause"] == "why"


def test_two_runs_at_once(server, dest, tmp_path):
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1])
    refusals = []

    def before(rpc, _request):
        if rpc == "BulkQuery" and not refusals:
            refusals.append("")
            with pytest.raises(Refused, match="is being written by another run") as caught:
                exporter(server, dest, database).run()
            refusals[0] = str(caught.value)

    server.before = before
    assert export(server, dest, database)["changed"]
    assert "wait for its end" in refusals[0]


def test_what_is_no_export_is_not_overwritten(server, dest, tmp_path):
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1], ("acme", "other"))
    dest.write_text("somebody's own\n")
    for attempt in ("run", "foresee"):
        with pytest.raises(Refused, match="no manifest beside it says"):
            getattr(exporter(server, dest, database), attempt)()
    assert dest.read_text() == "somebody's own\n"
    dest.unlink()
    export(server, dest, database)
    # Changed by hand since: it may be somebody's work.
    with dest.open("a") as file:
        file.write("note\n")
    with pytest.raises(Refused, match="as it was written"):
        export(server, dest, database)
    dest.unlink()
    export(server, dest, database)
    other = episode_export.Export(kyrodb.Endpoint(server.address), "other", str(dest), database)
    with pytest.raises(Refused, match="is an export of acme:failures"):
        other.run()
    with pytest.raises(Refused, match="is no regular file"):
        (tmp_path / "link.jsonl").symlink_to(dest)
        exporter(server, tmp_path / "link.jsonl", database).run()
    with pytest.raises(Refused, match="create the folder"):
        exporter(server, tmp_path / "none" / "a.jsonl", database).run()
    with pytest.raises(ValueError, match="of this module's own"):
        exporter(server, f"{dest}.part", database)


def test_folder(server, dest, tmp_path):
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1])
    export(server, dest, database)
    made = exporter(server, dest.parent, database)
    assert made.run()["changed"]
    assert made.dest == str(dest.parent / "acme.failures.jsonl")
    assert (dest.parent / "acme.failures.jsonl").read_bytes() == dest.read_bytes()
    assert exporter(server, f"{tmp_path}/new/", database).dest == f"{tmp_path}/new/acme.failures.jsonl"


def test_check_mode_counts_and_writes_nothing(server, dest, tmp_path):
    for doc_id in (1, 2):
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", [1, 2, 3])
    told = exporter(server, dest, database).foresee()
    assert (told["changed"], told["after"]["episodes"], told["after"]["missing"]) == (True, 2, [3])
    assert list(dest.parent.iterdir()) == []
    # Somebody else would have made the folder by now.
    assert exporter(server, tmp_path / "none" / "a.jsonl", database).foresee()["changed"]
    result = export(server, dest, database)
    assert result["sha256"] == told["after"]["sha256"]
    assert not exporter(server, dest, database).foresee()["changed"]
    server.put(1, reflection_root_cause="why")
    assert exporter(server, dest, database).foresee()["changed"]


@pytest.mark.parametrize("customer", ["", "acme:failures", "../acme", "acme' OR '1'='1", "Acme", "a--b", "-a"])
def test_customer_that_is_none(dest, customer):
    with pytest.raises(ValueError, match="is no customer id"):
        episode_export.Export(kyrodb.Endpoint("localhost:1"), customer, str(dest))


def test_databases_that_are_not_the_one(server, dest, tmp_path):
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1], ("other",))
    with pytest.raises(NoAnswer, match="has no customer acme; correct customer_id"):
        export(server, dest, database)
    with pytest.raises(NoAnswer, match="does not exist; name Vritti's database"):
        export(server, dest, str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()
    text = tmp_path / "text.db"
    text.write_text("no database " * 100)
    with pytest.raises(NoAnswer, match="is no SQLite database"):
        export(server, dest, str(text))
    strange = tmp_path / "strange.db"
    with closing(sqlite3.connect(strange, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE anything (a)")
    with pytest.raises(NoAnswer, match="has no table customers"):
        export(server, dest, str(strange))
    assert list(dest.parent.iterdir()) == []


def test_index_that_somebody_writes_to(server, dest, tmp_path):
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1])
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO episodes_index VALUES (2, 'acme', 'failures', 0)")
        result = export(server, dest, database)
        assert (result["expected"], result["complete"]) == (1, True)
        writer.execute("COMMIT")
        # It is in the log alone.
        assert export(server, dest, database)["missing"] == [2]


def test_kyrodb_that_ends_in_between(server, dest, tmp_path, monkeypatch):
    ids = list(range(1, 31))
    for doc_id in ids:
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", ids)
    monkeypatch.setattr(episode_export, "CHUNK", 10)

    class Gone(Exception):
        code = grpc.StatusCode.INTERNAL
        details = "disk on fire"

    def before(rpc, _request):
        if server.calls.count("BulkQuery") == 3:
            raise Gone

    server.before = before
    made = exporter(server, dest, database)
    with pytest.raises(NoAnswer, match="disk on fire"):
        made.run()
    assert (
        made.remainder()
        == f" What was exported until then is in {dest}.part; a run within an hour of its start goes on from there."
    )
    server.before = lambda _rpc, _request: None
    assert export(server, dest, database)["resumed"] == 20

    # It is gone from one call to the next.
    def stops(rpc, _request):
        if rpc == "BulkQuery":
            server.server.stop(None)

    server.before = stops
    with pytest.raises(NoAnswer, match=r"takes no connection|answers BulkQuery with"):
        exporter(server, dest, database).run()
    server.before = lambda _rpc, _request: None
    with pytest.raises(NoAnswer, match="takes no connection: Connection refused"):
        exporter(server, dest, database).run()
    server.start(server.port)
    assert not export(server, dest, database)["changed"]


def test_results_that_say_what_went_wrong(server, dest, tmp_path):
    server.put(1)
    database = customers_db(tmp_path / "customers.db", [1, 2])

    def answer(error, top=""):
        one = server.message("QueryResponse", found=False, doc_id=2, error=error)
        return lambda rpc, _request: (
            server.message("BulkQueryResponse", results=[one], error=top) if rpc == "BulkQuery" else None
        )

    server.before = answer("Document not found")
    assert export(server, dest, database)["missing"] == [1, 2]
    server.before = answer("shard offline")
    with pytest.raises(NoAnswer, match="does not look up document 2: shard offline"):
        exporter(server, dest, database).run()
    server.before = answer("", "index is loading")
    with pytest.raises(NoAnswer, match="does not look up documents: index is loading"):
        exporter(server, dest, database).run()


FULL = """
import resource, signal, sys
from ansible_collections.oncall.runbooks.plugins.module_utils import episode_export, kyrodb
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
episode_export.CHUNK = 5
address, dest, database = sys.argv[1:]
made = episode_export.Export(kyrodb.Endpoint(address), "acme", dest, database, timeout=20.0)
try:
    made.run()
except OSError as error:
    print(f"{error}.{made.remainder()}")
"""


def test_file_that_cannot_grow(server, dest, tmp_path):
    """As on a full disk: a piece of the last write is there, and the next run goes on before it."""
    ids = list(range(1, 41))
    for doc_id in ids:
        server.put(doc_id)
    database = customers_db(tmp_path / "customers.db", ids)
    said = python(FULL, server.address, dest, database)
    assert said.endswith(
        f"What was exported until then is in {dest}.part; a run within an hour of its start goes on from there."
    )
    part = (dest.parent / f"{dest.name}.part").read_bytes()
    assert len(part) == 3000
    assert not part.endswith(b"\n")
    assert not dest.exists()
    result = export(server, dest, database)
    assert (result["resumed"], result["episodes"], result["complete"]) == (part.count(b"\n"), 40, True)
    assert [line["episode_id"] for line in lines(dest)] == ids

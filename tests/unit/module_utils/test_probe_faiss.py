# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_backups, faiss_index
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.faiss_helpers import (
    BEFORE_VECTORS,
    COUNT,
    DIMENSION,
    NAMES,
    Service,
    contents,
    flip,
    make,
)
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look


@pytest.fixture()
def service(tmp_path):
    return Service(tmp_path).aged()


def seen(service, at=None, **more):
    options = {
        "path": str(service.index),
        "dimension": DIMENSION,
        "backups": str(service.backups),
        "history": str(service.history),
    }
    return look("faiss", at, **{**options, **more})


class TestState:
    def test_sound(self, service):
        found = seen(service)
        assert (found["value"], found["note"]) == ("ok", "")
        assert (found["evidence"]["ntotal"], found["evidence"]["metadata_items"]) == (COUNT, COUNT)
        assert "posts" not in found["evidence"]

    def test_truncated(self, service):
        os.truncate(service.index / "wp.faiss", 918)
        found = seen(service)
        assert found["value"] == "truncated"
        assert f"wp.faiss has 918 bytes, and {COUNT} vectors of {DIMENSION} dimensions take" in found["note"]
        assert found["evidence"]["errors"]
        assert seen(service, value="ntotal")["value"] == COUNT

    def test_missing(self, service):
        shutil.rmtree(service.index)
        assert seen(service)["value"] == "missing"
        with pytest.raises(NoAnswer, match="does not exist; correct the path"):
            seen(service, value="ntotal")

    def test_what_cannot_be_judged_is_no_answer(self, service, tmp_path):
        with pytest.raises(NoAnswer, match="is no program that can be run; correct python"):
            seen(service, depth="full", python=str(tmp_path / "none"))
        with pytest.raises(NoAnswer, match="allow more time"):
            seen(service, helpers.context(timeout=0.0))
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        script.chmod(0o755)
        with pytest.raises(NoAnswer, match="is not installed for"):
            seen(service, depth="full", python=str(script))

    def test_relative_to_the_service(self, service):
        listener = (
            "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", listener], cwd=service.home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                port = int(process.stdout.readline())
                service.saved()
                relative = {"path": "data/index", "backups": "backups", "history": "logs/backup_history.jsonl"}
                assert seen(service, **relative, port=port)["value"] == "ok"
                assert seen(service, **relative, port=port, value="checksum")["value"] == "same"
            finally:
                process.kill()
        with pytest.raises(NoAnswer, match=f"nothing listens on port {port}"):
            seen(service, path="data/index", port=port)


class TestChecksum:
    def test_same_changed_and_rebuilt(self, service):
        with pytest.raises(Absent, match=r"there is no backup of .* to compare it with; take one"):
            seen(service, value="checksum")
        archive = service.saved()
        found = seen(service, value="checksum")
        assert (found["value"], found["evidence"]["backup"]) == ("same", str(archive))
        flip(service.index / "wp.faiss", BEFORE_VECTORS + 401, 2)
        found = seen(service, value="checksum")
        assert found["value"] == "changed"
        assert found["evidence"]["differences"] == [
            {"file": "wp.faiss", "bytes": 1, "first": BEFORE_VECTORS + 401, "size": 2970, "size_saved": 2970}
        ]
        assert f"differs in 1 byte of 2970, the first at {BEFORE_VECTORS + 401}" in found["note"]
        # It loads like any other.
        assert seen(service)["value"] == "ok"
        make(service.index, count=COUNT + 2, seed=3)
        found = seen(service, value="checksum")
        assert (found["value"], found["evidence"]["checksum"]) == (None, "rebuilt")
        assert "take a new one" in found["note"]

    def test_backups_that_cannot_be_trusted(self, service):
        flip(service.saved(), 500)
        for value in ("checksum", "backup_age", "restore"):
            with pytest.raises(NoAnswer, match=r"no backup of .* that can be trusted.* its MD5 is"):
                seen(service, value=value)

    def test_no_time(self, service):
        service.saved()
        at = helpers.context(timeout=5.0)
        seen(service, at)
        at.timeout = 0.0
        with pytest.raises(NoAnswer, match="did not end within 0 s") as caught:
            seen(service, at, value="checksum")
        assert caught.value.kind == "timeout"


class TestBackups:
    def test_age(self, service):
        with pytest.raises(Absent, match=r"has no backup of wp.faiss; take one"):
            seen(service, value="backup_age")
        service.saved(ago=7200)
        found = seen(service, value="backup_age")
        assert 7200 <= found["value"] < 7300
        assert (found["evidence"]["ntotal"], found["evidence"]["manifest"]) == (COUNT, False)
        faiss_backups.take(dimension=DIMENSION, **{**service.options, "history": None})
        found = seen(service, value="backup_age")
        assert found["value"] < 100
        assert found["evidence"]["manifest"]

    def test_one_of_a_damaged_index_has_no_age(self, service):
        older = service.saved(ago=7200)
        os.truncate(service.index / "wp.faiss", 918)
        service.saved(ago=60)
        found = seen(service, value="backup_age")
        assert (found["evidence"]["backup"], found["value"] >= 7200) == (str(older), True)
        assert "has 918 bytes" in found["note"]


class TestRestore:
    def test_what_it_would_do(self, service):
        archive = service.saved()
        assert seen(service, value="restore")["value"] == f"nothing would change: it has what {archive} has"
        os.truncate(service.index / "wp.faiss", 918)
        before = contents(service.index)
        found = seen(service, value="restore")
        assert found["value"].startswith(f"from {archive} of ")
        assert f"({COUNT} vectors): there now: {COUNT} vectors, truncated" in found["value"]
        assert found["evidence"]["action"] == "restored"
        # In a finding, that is what is new since the last one.
        assert "changed" not in found["evidence"]
        assert contents(service.index) == before

    def test_none_to_restore(self, service):
        with pytest.raises(NoAnswer, match="has no backup of wp that can be trusted"):
            seen(service, value="restore")
        with pytest.raises(NoAnswer, match=r"backup_7.tar.gz does not exist"):
            seen(service, value="restore", backup="backup_7")

    def test_nothing_is_changed(self, service):
        service.saved()
        os.truncate(service.index / "wp.faiss", 918)

        def state():
            return sorted(
                (str(path), path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
                for path in service.home.rglob("*")
            )

        before = state()
        for value in ("state", "ntotal", "checksum", "backup_age", "restore"):
            seen(service, value=value)
        assert state() == before


def test_what_several_checks_want_is_looked_at_once(service, monkeypatch):
    service.saved()
    looks, calls = faiss_index.look, []
    monkeypatch.setattr(faiss_index, "look", lambda *arguments, **more: calls.append(1) or looks(*arguments, **more))
    at = helpers.context()
    for value in ("state", "ntotal", "checksum", "restore"):
        seen(service, at, value=value)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "more, says",
    [
        ({"name": "a/b"}, "name is 'a/b'; it is what the names"),
        ({"dimension": 0}, "dimension is 0; it is that of the vectors"),
        ({"load_pickle": True}, "load_pickle goes with the depth full, and depth is quick"),
        ({"memory_limit": 0, "depth": "full"}, "memory_limit is 0; it is a number of bytes"),
    ],
)
def test_what_makes_no_sense(more, says):
    with pytest.raises(ValueError) as caught:
        PROBES["faiss"].validate(helpers.source("faiss", path="/x", **more))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "value, says",
    [
        ("state", "faiss data/index/wp.*"),
        ("checksum", "faiss data/index/wp.* against backups"),
        ("backup_age", "backups of wp.faiss in backups"),
        ("restore", "restore of latest_verified over data/index/wp.*"),
    ],
)
def test_what_it_is_called(value, says):
    assert PROBES["faiss"].describe(helpers.source("faiss", path="data/index", value=value)) == says


def test_names_are_those_of_the_service():
    assert tuple(faiss_index.names("wp").values()) == NAMES

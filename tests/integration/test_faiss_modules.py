# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for FAISS indexes as somebody uses them in a play of their own: in check mode, with --diff."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.playbook_helpers import ansible
from tests.unit.module_utils.faiss_helpers import COUNT, DIMENSION, Service, contents, flip


def task(directory: Path, module: str, options: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
    """The result of one task."""
    status, output = ansible(
        directory,
        *("ansible", "localhost", "-m", f"oncall.runbooks.{module}", "-a", json.dumps(dict(options)), *arguments),
        environment={"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"},
    )
    said = output[output.index("=> {") + 3 :]
    result: dict[str, Any] = json.JSONDecoder().raw_decode(said)[0]
    return {**result, "failed": status != 0, "output": output}


@pytest.mark.both_ends
def test_from_a_look_to_undoing_a_restore(tmp_path: Path) -> None:
    service = Service(tmp_path).aged()
    index = {"path": str(service.index), "dimension": DIMENSION}
    kept = {**index, "backup_dir": str(service.backups), "history": str(service.history)}
    seen = task(tmp_path, "faiss_info", index)
    # Ansible adds the state of a file to results that have a path; it must not take the place of ours.
    assert (seen["state"], seen["index"], seen["ntotal"], seen["checksum"]) == ("ok", str(service.index), COUNT, None)
    assert task(tmp_path, "faiss_backup", kept, "--check")["changed"]
    assert list(service.backups.iterdir()) == []
    made = task(tmp_path, "faiss_backup", kept, "--diff")
    assert (made["changed"], made["verified"], made["state"]) == (True, True, "ok")
    assert made["files"]["wp.faiss"]["sha256"] in made["output"]
    assert not task(tmp_path, "faiss_backup", kept)["changed"]
    good = contents(service.index)
    flip(service.index / "wp.faiss", 500)
    seen = task(tmp_path, "faiss_info", kept)
    assert (seen["state"], seen["checksum"], seen["compared_with"]) == ("ok", "changed", made["backup"])
    assert (seen["differences"][0]["bytes"], seen["differences"][0]["first"]) == (1, 500)
    foreseen = task(tmp_path, "faiss_restore", kept, "--check", "--diff")
    told = task(tmp_path, "faiss_restore", kept)
    for key in ("action", "state", "lost", "backup", "changed", "atomic"):
        assert told[key] == foreseen[key]
    assert (told["action"], told["atomic"], contents(service.index)) == ("restored", True, good)
    assert foreseen["files_after"]["wp.faiss"] in foreseen["output"]
    again = task(tmp_path, "faiss_restore", kept)
    assert (again["action"], again["changed"], again["undo"]) == ("none", False, None)
    undone = task(tmp_path, "faiss_restore", told["undo"])
    assert (undone["action"], contents(service.index) == good) == ("undone", False)


def test_failures_are_sentences(tmp_path: Path) -> None:
    service = Service(tmp_path).aged()
    kept = {"path": str(service.index), "dimension": DIMENSION, "backup_dir": str(service.backups)}
    refused = task(tmp_path, "faiss_restore", kept)
    assert refused["msg"] == f"{service.backups} has no backup of wp that can be trusted."
    os.truncate(service.index / "wp.faiss", 918)
    refused = task(tmp_path, "faiss_backup", kept)
    assert (refused["failed"], refused["state"]) == (True, "truncated")
    assert "is not backed up, its state is truncated" in refused["msg"]
    for module in ("faiss_info", "faiss_backup", "faiss_restore"):
        broken = task(tmp_path, module, {**kept, "path": "/etc/passwd"})
        assert broken["failed"]
        assert "/etc/passwd is no folder; name the folder of the index." in broken["msg"]
        assert "Traceback" not in broken["output"]

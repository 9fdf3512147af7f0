# SPDX-License-Identifier: GPL-3.0-or-later
"""The record that runs write, checked as somebody at a shell does it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.playbook_helpers import DEAD, LOCAL, REPOSITORY, ansible, diagnose, inventory

KEY = "s3same-key-of-the-record-0123456789"
VARIABLE = "ONCALL_RUNBOOKS_RECORD_KEY"


def recorded(directory: Path, key: str = KEY) -> tuple[Path, str]:
    """The timeline of two diagnoses of a host on which nothing runs, and what the second has printed of it."""
    where = inventory(directory, {"vritti-lab": {**LOCAL, "vritti_url": f"http://{DEAD}"}})
    environment = {VARIABLE: key} if key else {}
    for _run in range(2):
        run = diagnose(directory, where, environment=environment)
        assert run.status == 0, run.output
    (told,) = re.findall(r"Record: .*timeline\.jsonl \((.*)\)", run.output)
    path = directory / "records" / "timeline.jsonl"
    assert path.exists(), run.output
    return path, str(told)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, str]:
    """A directory with a timeline, what is in it, and the last MAC."""
    directory = tmp_path_factory.mktemp("record")
    path, told = recorded(directory)
    assert told.startswith("last MAC ")
    return directory, path.read_bytes(), told.removeprefix("last MAC ")


def check(directory: Path, *arguments: str, playbook: str = "", key: str = KEY) -> tuple[int, str]:
    where = playbook or str(REPOSITORY / "playbooks" / "check_timeline.yml")
    status, output = ansible(
        directory, "ansible-playbook", where, *arguments, environment={VARIABLE: key} if key else {}
    )
    assert KEY not in output
    return status, " ".join(output.split())


@pytest.mark.parametrize("playbook", ["", "oncall.runbooks.check_timeline"])
def test_whole(sound: tuple[Path, bytes, str], playbook: str) -> None:
    directory, content, last = sound
    status, output = check(directory, "-e", f"runbook_record_last={last}", playbook=playbook)
    lines = [json.loads(line) for line in content.splitlines()]
    assert status == 0, output
    assert (
        f"The record {directory}/records/timeline.jsonl is whole: {len(lines)} lines "
        f"from {lines[0]['at']} to {lines[-1]['at']} (last MAC {last})."
    ) in output
    assert (directory / "records" / "timeline.jsonl").read_bytes() == content


def changed(sound: tuple[Path, bytes, str], directory: Path, content: bytes) -> Path:
    """A copy of the record with other content."""
    folder = directory / "copy"
    folder.mkdir()
    (folder / "timeline.jsonl").write_bytes(content)
    (folder / "timeline.jsonl.head").write_bytes((sound[0] / "records" / "timeline.jsonl.head").read_bytes())
    return folder


def test_one_flipped_byte(sound: tuple[Path, bytes, str], tmp_path: Path) -> None:
    _directory, content, last = sound
    place = content.index(b"diagnosed", content.index(b"\n"))
    folder = changed(sound, tmp_path, content[:place] + b"D" + content[place + 1 :])
    status, output = check(tmp_path, "-e", f"runbook_record_dir={folder}", "-e", f"runbook_record_last={last}")
    assert status == 2
    assert (
        f"The record {folder}/timeline.jsonl is not whole: line 2 has been changed, or was written with another key."
    ) in output


def test_cut_tail(sound: tuple[Path, bytes, str], tmp_path: Path) -> None:
    _directory, content, last = sound
    lines = content.splitlines(keepends=True)
    folder = changed(sound, tmp_path, b"".join(lines[:-1]))
    status, output = check(tmp_path, "-e", f"runbook_record_dir={folder}")
    assert status == 2
    assert f"is not whole: its tail was cut: it ends with line {len(lines) - 1}, and had {len(lines)}." in output
    # Whoever cuts the head to fit is found by the last MAC.
    (folder / "timeline.jsonl.head").unlink()
    status, output = check(tmp_path, "-e", f"runbook_record_dir={folder}", "-e", f"runbook_record_last={last}")
    assert status == 2
    assert "is not whole: timeline.jsonl.head is missing, so a cut tail would not show." in output


def test_key_of_a_file(sound: tuple[Path, bytes, str], tmp_path: Path) -> None:
    directory, _content, last = sound
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o640)
    arguments = [
        "-e",
        f"runbook_record_key_file={os.path.relpath(file, directory)}",
        "-e",
        f"runbook_record_last={last}",
    ]
    status, output = check(directory, *arguments, key="")
    assert status == 2
    assert f"The key of the record {file} may be read by others; chmod 600 it." in output
    file.chmod(0o600)
    status, output = check(directory, *arguments, key="")
    assert status == 0, output
    assert "is whole" in output


def test_wrong_key_and_none(sound: tuple[Path, bytes, str]) -> None:
    directory = sound[0]
    status, output = check(directory, key="another-key")
    assert status == 2
    assert "is not whole: line 1 has been changed, or was written with another key." in output
    status, output = check(directory, key="")
    assert status == 2
    assert "is not whole: line 1 cannot be verified: the key it was written with is needed." in output


def test_without_a_key_it_says_how_little_that_proves(tmp_path: Path) -> None:
    _path, told = recorded(tmp_path, key="")
    assert told == "not tamper-evident, no key is given"
    status, output = check(tmp_path, key="")
    assert status == 0, output
    assert "(not tamper-evident, no key is given)." in output


def test_no_record(tmp_path: Path) -> None:
    status, output = check(tmp_path)
    assert status == 2
    assert (
        f"The record {tmp_path}/records/timeline.jsonl is not whole: it cannot be read (No such file or directory)."
        in output
    )


def test_module_on_a_hosts_copy(sound: tuple[Path, bytes, str], tmp_path: Path) -> None:
    lines = sound[1].splitlines(keepends=True)
    copy = tmp_path / "timeline.jsonl"
    copy.write_bytes(lines[-1])
    words = ["ansible", "localhost", "-c", "local", "-m", "oncall.runbooks.timeline_info", "--check", "-a"]

    def asked(**options: Any) -> dict[str, Any]:
        arguments = json.dumps({"path": str(copy), **options})
        environment = {VARIABLE: KEY, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "0"}
        status, output = ansible(tmp_path, *words, arguments, environment=environment)
        assert status == 0, output
        answer: dict[str, Any] = json.loads(output[output.index("{") : output.rindex("}") + 1])
        return answer

    found = asked(partial=True)
    assert (found["changed"], found["valid"], found["tamper_evident"], found["lines"]) == (False, True, True, 1)
    assert found["mac"] == json.loads(lines[-1])["mac"]
    assert "problem" not in found
    found = asked()
    assert not found["valid"]
    assert f"line 1 does not follow the line before it: its number is {len(lines)} and 1 is due" in found["problem"]

# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it; what it does to a file is tested with module_utils."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECRETS = ("old-old-secret", "new-new-secret", "by-its-option")


@pytest.fixture()
def run(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    env.update(
        ANSIBLE_HOME=str(tmp_path / "home"),
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
        ANSIBLE_REMOTE_TEMP=str(tmp_path / "remote"),
        ANSIBLE_LOCALHOST_WARNING="false",
        ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default",
    )

    def run(*options, **arguments):
        words = [
            "-m",
            "oncall.runbooks.environment_setting",
            "-i",
            "localhost,",
            "-c",
            "local",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            "-vvv",
            *options,
        ]
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible"), "localhost", *words, "-a", json.dumps(arguments)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        output = done.stdout + done.stderr
        assert not [secret for secret in SECRETS if secret in output], output
        assert "=> {" in done.stdout, output
        told, result = done.stdout.split("=> {", 1)
        return done.returncode, told, json.JSONDecoder().raw_decode("{" + result)[0]

    return run


@pytest.fixture()
def env_file(tmp_path):
    path = tmp_path / "vritti.env"
    path.write_text("# Vritti\nSEARCH_DEFAULT_K=10\nADMIN_API_KEY=old-old-secret\n")
    return path


def test_set_and_restore(run, env_file, tmp_path):
    before = env_file.read_bytes()
    wanted = {
        "path": str(env_file),
        "settings": {"SEARCH_DEFAULT_K": 5, "ENABLED": True, "ADMIN_API_KEY": "new-new-secret"},
        "secrets": {"OTHER": "by-its-option"},
        "backup": str(tmp_path / "backup"),
    }
    status, told, checked = run("--check", "--diff", **wanted)
    assert (status, checked["changed"]) == (0, True)
    assert env_file.read_bytes() == before
    assert not (tmp_path / "backup").exists()
    for line in ("-SEARCH_DEFAULT_K=10", "+SEARCH_DEFAULT_K=5", "+ENABLED=true", "+OTHER=(a secret)"):
        assert line in told.splitlines()

    status, _told, done = run(**wanted)
    assert (status, done["changed"]) == (0, True)
    assert done["before"] == checked["before"]
    assert (
        done["after"]
        == checked["after"]
        == {
            "SEARCH_DEFAULT_K": "5",
            "ENABLED": "true",
            "ADMIN_API_KEY": "(a secret)",
            "OTHER": "(a secret)",
        }
    )
    assert done["path"] == str(env_file)
    assert done["backup"] == str(tmp_path / "backup")
    assert env_file.read_text() == (
        "# Vritti\nSEARCH_DEFAULT_K=5\nADMIN_API_KEY=new-new-secret\nENABLED=true\nOTHER=by-its-option\n"
    )

    status, _told, back = run(path=str(env_file), state="restored", backup=str(tmp_path / "backup"))
    assert (status, back["changed"], back["before"], back["after"]) == (0, True, done["after"], done["before"])
    assert env_file.read_bytes() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "settings and secrets are both empty; name what is to be set."),
        (
            {"settings": {"A": "1"}, "secrets": {"A": "by-its-option"}},
            "A stands in settings and in secrets; leave it in one of them.",
        ),
        (
            {"settings": {"A_PASSWORD": ["new-new-secret"]}},
            "Nothing was changed: the value of A_PASSWORD is neither text nor a number; "
            "write it as text, between quotes.",
        ),
        (
            {"settings": {"A": "1"}, "state": "restored", "backup": "/nowhere/backup"},
            "state=restored takes its settings from the backup; leave out settings and secrets.",
        ),
        ({"state": "restored"}, "state is restored but all of the following are missing: backup"),
    ],
)
def test_refusals(run, env_file, arguments, message):
    before = env_file.read_bytes()
    status, _told, result = run(path=str(env_file), **arguments)
    assert status == 2
    assert result["msg"] == message
    assert env_file.read_bytes() == before

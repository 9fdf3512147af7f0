# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import setting
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look, source


@pytest.fixture()
def env(tmp_path):
    path = tmp_path / "vritti.env"
    path.write_text(
        "SEARCH_DEFAULT_K=10\nLLM_OPENROUTER_API_KEY=hush-hush-hush\nEMPTY=\nexport SEARCH_DEFAULT_K='20'\n"
    )
    return str(path)


@pytest.mark.parametrize(
    "name, shown",
    [
        ("SEARCH_DEFAULT_K", "20"),
        ("LLM_OPENROUTER_API_KEY", "(a secret)"),
        ("EMPTY", "(empty)"),
        ("WEB_CONCURRENCY", "(not set)"),
    ],
)
def test_value(env, name, shown):
    seen = look("setting", path=env, name=name)
    assert seen == {"value": shown, "evidence": {"text": shown}, "note": None}
    assert "hush" not in json.dumps(seen)


def test_a_missing_file_sets_nothing(tmp_path):
    path = tmp_path / "no.env"
    seen = look("setting", path=str(path), name="A")
    assert seen == {"value": "(not set)", "evidence": {"text": "(not set)"}, "note": f"{path} does not exist"}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["", None])
def test_no_file_is_known(path):
    with pytest.raises(Absent, match="no environment file is known"):
        look("setting", path=path, name="A")


def test_what_is_no_file_is_no_answer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(NoAnswer, match=f"{path} cannot be read .it is no regular file.; correct the path"):
            look("setting", path=str(path), name="A")


def test_the_file_is_read_once_for_all_settings(env):
    at = helpers.context()
    assert look("setting", at=at, path=env, name="SEARCH_DEFAULT_K")["value"] == "20"
    Path(env).write_text("SEARCH_DEFAULT_K=30\n")
    assert look("setting", at=at, path=env, name="SEARCH_DEFAULT_K")["value"] == "20"
    assert look("setting", path=env, name="SEARCH_DEFAULT_K")["value"] == "30"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read it")
def test_a_file_that_may_not_be_read_is_no_answer():
    # pytest's own folder is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "vritti.env"
        path.write_text("A=1\n")
        path.chmod(0o600)
        said = helpers.python(
            f"""
            import sys
            from ansible_collections.oncall.runbooks.plugins.module_utils import looking
            from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
            from ansible_collections.oncall.runbooks.plugins.module_utils.probes import setting
            {helpers.BECOME_NOBODY.strip().replace(chr(10), chr(10) + " " * 12)}
            try:
                setting.look(looking.Context(5, 0, {{}}, None), {{"path": sys.argv[1], "name": "A"}}, {{}})
            except NoAnswer as error:
                print(error.kind, error)
            """,
            path,
        )
        assert said == f"permission {path} may not be read by nobody; run with -b."


def test_a_wrong_name_is_refused():
    with pytest.raises(ValueError, match="'A B' is no name of a setting"):
        setting.validate(source("setting", path="/x", name="A B"))


def test_describe():
    assert setting.describe(source("setting", path="/etc/x.env", name="A")) == "setting A in /etc/x.env"

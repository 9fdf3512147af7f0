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


# The service's own .env.


def test_dotenv_counts_where_the_file_has_not_got_it(env, tmp_path):
    dotenv = tmp_path / ".env"
    more = {"path": env, "dotenv": str(dotenv)}
    assert look("setting", name="LLM_CHEAP_MODEL", **more)["value"] == "(not set)"
    dotenv.write_text("LLM_CHEAP_MODEL=a/b\nSEARCH_DEFAULT_K=5\nEMPTY=no\n")
    seen = look("setting", name="LLM_CHEAP_MODEL", **more)
    assert (seen["value"], seen["note"]) == ("a/b", f"{dotenv} sets it")
    # The process's environment goes before it, also where it is empty there.
    assert look("setting", name="SEARCH_DEFAULT_K", **more)["value"] == "20"
    assert look("setting", name="EMPTY", **more)["value"] == "(empty)"
    assert setting.describe(source("setting", name="A", **more)) == f"setting A in {env} and {dotenv}"


def test_dotenv_of_a_folder_that_is_not_known_is_no_answer(env):
    with pytest.raises(NoAnswer, match=r"\.env is relative, and nobody says to what"):
        look("setting", path=env, dotenv=".env", name="LLM_CHEAP_MODEL")
    assert look("setting", path=env, dotenv=".env", name="EMPTY")["value"] == "(empty)"


def test_placeholder_is_told_and_not_shown(tmp_path):
    path = tmp_path / "vritti.env"
    path.write_text("LLM_OPENROUTER_API_KEY=sk-or-Example-1234\nOTHER=sk-or-v1-1234\n")
    words = {"path": str(path), "placeholders": ["your-api-key-here", "example", "dummy"]}
    seen = look("setting", name="LLM_OPENROUTER_API_KEY", **words)
    assert seen["value"] == "(a placeholder)"
    assert "1234" not in json.dumps(seen)
    assert look("setting", name="LLM_CHEAP_MODEL", **words)["value"] == "(not set)"


@pytest.mark.parametrize(
    ("most", "content", "value", "note"),
    [
        (90, "LLM_TIMEOUT_SECONDS=60\n", True, None),
        (90, "LLM_TIMEOUT_SECONDS=90\n", True, None),
        (90, "LLM_TIMEOUT_SECONDS=120\n", False, "LLM_TIMEOUT_SECONDS is 120 in {path}, and 90 would be less"),
        (45, "", False, "LLM_TIMEOUT_SECONDS is 60 in {path}, and 45 would be less"),
    ],
)
def test_whether_it_is_no_more(tmp_path, most, content, value, note):
    path = tmp_path / "vritti.env"
    path.write_text(content)
    seen = look("setting", path=str(path), name="LLM_TIMEOUT_SECONDS", default="60", at_most=most)
    assert (seen["value"], seen["note"]) == (value, note and note.format(path=path))


def test_default_is_said_to_be_one(env):
    seen = look("setting", path=env, name="LLM_TIMEOUT_SECONDS", default="60")
    assert (seen["value"], seen["note"]) == ("60", "it is not set, so this is the default")
    with pytest.raises(NoAnswer, match=r"EMPTY in .* is \(empty\), which is no number"):
        look("setting", path=env, name="EMPTY", default="60", at_most=90)


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

# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe git, on real repositories."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import git as probe
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import context, look, source


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    """Whatever the machine says of git is no part of these tests."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("LC_ALL", "C")


def git(folder, *words, **extra):
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **extra},
    )
    return done.stdout.strip()


def commit(folder, name, subject, date=None):
    file = Path(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(subject)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", subject, **({"GIT_COMMITTER_DATE": date} if date else {}))


@pytest.fixture()
def checkout(tmp_path):
    """Three commits, one of them old, two under src/models."""
    folder = tmp_path / "app"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "src/models/a.py", "long ago", "2020-01-01T00:00:00Z")
    commit(folder, "src/models/b.py", "a model of yesterday")
    commit(folder, "README", "words only")
    return folder


def everything(folder):
    """Every file below a folder, with what is in it and when it was written."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in sorted(Path(folder).rglob("*"))
    }


def test_commits_of_the_window(checkout):
    seen = look("git", path=str(checkout))
    assert (seen["value"], seen["note"]) == (2, None)
    # The last ones are named, however old they are.
    subjects = [item["subject"] for item in seen["evidence"]["commits"]]
    assert subjects == ["words only", "a model of yesterday", "long ago"]
    assert seen["evidence"]["checkout"] == str(checkout)
    newest = seen["evidence"]["commits"][0]
    assert git(checkout, "rev-parse", "HEAD").startswith(newest["commit"])
    assert newest["date"] == clock.utc(float(git(checkout, "log", "-1", "--format=%ct")))
    assert look("git", path=str(checkout), seconds=60.0 * 365 * 86400)["value"] == 3


def test_only_what_touches_these_folders(checkout):
    assert look("git", path=str(checkout), under=["src/models"])["value"] == 1
    assert look("git", path=str(checkout), under=["src/models", "README"])["value"] == 2
    # From within: names are below the path that was given.
    assert look("git", path=str(checkout / "src"), under=["models"])["value"] == 1
    assert look("git", path=str(checkout / "src"))["value"] == 1


def test_a_name_that_is_not_there_is_said(checkout):
    seen = look("git", path=str(checkout), under=["src/modles"])
    assert (seen["value"], seen["note"]) == (0, f"src/modles does not exist in {checkout}")


def test_names_are_no_patterns(checkout):
    assert look("git", path=str(checkout), under=["*.py"])["value"] == 0
    assert look("git", path=str(checkout), under=[":(top)README"])["value"] == 0


def test_many_commits(checkout):
    for number in range(probe.MOST):
        git(checkout, "commit", "-q", "--allow-empty", "-m", "nothing")
        commit(checkout, "README", f"change {number}")
    seen = look("git", path=str(checkout))
    assert (seen["value"], seen["note"]) == (probe.MOST, "50 or more")
    assert len(seen["evidence"]["commits"]) == probe.SHOWN


def test_a_subject_with_a_secret_or_a_tab(checkout):
    commit(checkout, "README", "rotate em_live_abcdef\tand more")
    assert look("git", path=str(checkout))["evidence"]["commits"][0]["subject"] == "rotate ********\tand more"


def test_nothing_is_written(checkout):
    # The index is stale now: git status, and git log of a careless kind, would refresh it.
    os.utime(checkout / "README", (1, 1))
    (checkout / "src/models/new.py").write_text("not added")
    before = everything(checkout)
    assert any(".git/index" in name for name in before)
    assert look("git", path=str(checkout), under=["src/models"])["value"] == 1
    assert everything(checkout) == before


def test_no_program_of_the_repository_is_run(checkout, tmp_path):
    """What a repository's configuration names is run by nobody who only looks, root least of all."""
    mark = tmp_path / "was-run"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {mark}\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "core.pager", "pager.log", "gpg.program", "core.sshCommand"):
        git(checkout, "config", key, str(script))
    git(checkout, "config", "log.showSignature", "true")
    tree = git(checkout, "rev-parse", "HEAD^{tree}")
    signed = (
        f"tree {tree}\nparent {git(checkout, 'rev-parse', 'HEAD~1')}\nauthor t <t@example.com> 4000000000 +0000\n"
        "committer t <t@example.com> 4000000000 +0000\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n"
        " -----END PGP SIGNATURE-----\n\nsigned\n"
    )
    (tmp_path / "object").write_text(signed)
    made = git(checkout, "hash-object", "-t", "commit", "-w", str(tmp_path / "object"))
    git(checkout, "update-ref", "HEAD", made)
    # The trap works: who looks without care springs it.
    git(checkout, "log", "-1")
    assert mark.exists()
    mark.unlink()
    assert look("git", path=str(checkout))["value"] == 2
    assert not mark.exists()


def test_a_partial_clone_fetches_nothing(checkout, tmp_path):
    git(checkout, "config", "uploadpack.allowFilter", "true")
    git(checkout, "config", "uploadpack.allowAnySHA1InWant", "true")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--no-checkout", "--filter=tree:0", f"file://{checkout}", str(clone))
    before = everything(clone)
    with pytest.raises(NoAnswer, match=f"git log in {clone} fails: "):
        look("git", path=str(clone), under=["src/models"])
    assert everything(clone) == before


def test_no_checkout(tmp_path):
    for path in ("", None):
        with pytest.raises(Absent, match="No checkout is known"):
            look("git", path=path)
    with pytest.raises(Absent, match=f"{tmp_path} is no checkout: it was deployed without .git"):
        look("git", path=str(tmp_path))
    with pytest.raises(NoAnswer, match="none is no folder; correct the path of the checkout") as caught:
        look("git", path=str(tmp_path / "none"))
    assert caught.value.kind == "no data"


def test_a_checkout_without_a_commit_or_that_is_broken(tmp_path):
    git(tmp_path, "init", "-q", "-b", "main")
    with pytest.raises(NoAnswer, match="does not have any commits yet"):
        look("git", path=str(tmp_path))
    (tmp_path / ".git/HEAD").unlink()
    with pytest.raises(NoAnswer, match=f"git log in {tmp_path} fails: fatal: not a git repository"):
        look("git", path=str(tmp_path))


def test_git_is_not_installed(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(NoAnswer, match="git is not installed") as caught:
        look("git", path=str(checkout))
    assert caught.value.kind == "missing"


def test_a_checkout_of_somebody_else(checkout, monkeypatch):
    # Git's own switch for its own tests of this refusal.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert look("git", path=str(checkout))["value"] == 2
    # Where git is too old to be told so on its command line.
    monkeypatch.setattr(probe, "HARMLESS", probe.HARMLESS[:-2])
    with pytest.raises(NoAnswer, match=f"git config --global --add safe.directory {checkout} as ") as caught:
        look("git", path=str(checkout))
    assert caught.value.kind == "permission"


def test_the_folder_of_what_listens(checkout):
    port = helpers.free_port()
    server = ["-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen([sys.executable, *server], cwd=checkout, stderr=subprocess.DEVNULL) as started:
        try:
            deadline = time.monotonic() + helpers.PATIENCE
            while not procfs.sockets(port, procfs.LISTEN) and time.monotonic() < deadline:
                time.sleep(0.02)
            seen = look("git", port=port, under=["src/models"])
        finally:
            started.kill()
    assert (seen["value"], seen["evidence"]["checkout"]) == (1, str(checkout))
    with pytest.raises(Absent, match="No checkout is known"):
        look("git", port=port)


@pytest.mark.parametrize("closed", [".", ".git"])
def test_a_checkout_that_may_not_be_read(closed):
    # pytest's own folder is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "app"
        checkout.mkdir()
        Path(folder).chmod(0o755)
        git(checkout, "init", "-q")
        (checkout / closed).chmod(0)
        said = helpers.python(
            """
            import os, sys
            from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
            from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
            exec(helpers.BECOME_NOBODY)
            try:
                print(helpers.look("git", path=sys.argv[1]))
            except NoAnswer as error:
                print(error.kind, error)
            """,
            checkout,
        )
        (checkout / closed).chmod(0o755)
    assert said.startswith(f"permission {checkout} may not be read by ")


def test_it_has_a_deadline(checkout):
    ran = []

    def run(command):
        ran.append(command)
        return 124, "", ""

    with pytest.raises(NoAnswer, match=f"git log in {checkout} does not end within 5 s") as caught:
        look("git", Context(5.0, 0.0, {}, run), path=str(checkout))
    assert caught.value.kind == "timeout"
    assert os.path.basename(ran[0][0]) == "timeout"
    assert ran[0][1] == str(context().timeout)


def test_mistakes():
    with pytest.raises(ValueError, match="seconds is 0; it is a number above 0"):
        probe.validate(source("git", path="/x", seconds=0))


def test_description():
    assert probe.describe(source("git", path="/app", under=["src"])) == "git /app src"
    assert probe.describe(source("git", path="")) == "git no checkout"

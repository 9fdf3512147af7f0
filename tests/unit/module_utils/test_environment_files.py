# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import environment_files
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers

# systemd's own parser of such files, in a program that needs no running systemd.
GENERATOR = "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator"
systemd = pytest.mark.skipif(not os.path.exists(GENERATOR), reason="systemd's environment generator is not installed")

FILE = b"""\
# Vritti's environment
SEARCH_DEFAULT_K=10

  ; another comment
export LOGGING_LEVEL = 'info'  \x20
NAMES="a \\"quoted\\" one" \\
  and more
no assignment
1INVALID=x
WEIRD=\xff\xfe
SEARCH_DEFAULT_K=20
ADMIN_API_KEY=hush-hush-hush
LAST=no newline"""


def read_by_systemd(content, folder):
    """What systemd makes of this content; its generator leaves empty values out and expands $NAME."""
    (folder / "environment.d").mkdir(exist_ok=True)
    (folder / "environment.d" / "x.conf").write_bytes(content)
    own = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    told = subprocess.run([GENERATOR], env=own, capture_output=True, check=True).stdout.decode()
    script = 'set -a; eval "$1"; exec env -0'
    output = subprocess.run(["bash", "-c", script, "-", told], env={}, capture_output=True, check=True).stdout
    return dict(item.split("=", 1) for item in output.decode().split("\0") if "=" in item)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=1\nA=2", {"A": "2"}),
        ("# A=1\n;B=2\n \t# C=3\n\n", {}),
        ("  A = 1 2  \n", {"A": "1 2"}),
        ("export A=1\nexport\tB=2\nexportC=3\n", {"A": "1", "B": "2", "exportC": "3"}),
        ("A='1 # \"2\" '\nB=\"1 '2' \"  \n", {"A": '1 # "2" ', "B": "1 '2' "}),
        ('A="\\"\\\\\\$\\`\\n"\n', {"A": '"\\$`\\n'}),
        ("A=a\\\nb\nB='c\nd'\nC=\"e\\\nf\"\n", {"A": "ab", "B": "c\nd", "C": "ef"}),
        ("A=\\ a\\ \nB=a\\\\b\n", {"A": " a ", "B": "a\\b"}),
        ("A=\nB=''\nC=\"\"", {"A": "", "B": "", "C": ""}),
        ("A='x y'   'z'\nB=a'b'\n", {"A": "x yz", "B": "a'b'"}),
        ("A=1 # no comment\n", {"A": "1 # no comment"}),
        ("no assignment\n=x\n1A='B=1\nC=2'\nA B=3\nD=4\n", {"D": "4"}),
        ("A='open\nB=1\n", {"A": "open\nB=1\n"}),
        ("A=\\", {"A": ""}),
        ("", {}),
    ],
)
def test_load(tmp_path, text, expected):
    path = tmp_path / "env"
    path.write_bytes(text.encode())
    assert environment_files.load(str(path)) == expected


def test_what_is_no_utf8_is_there_as_in_the_process(tmp_path):
    (tmp_path / "env").write_bytes(FILE)
    assert os.fsencode(environment_files.load(str(tmp_path / "env"))["WEIRD"]) == b"\xff\xfe"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        environment_files.load(str(tmp_path / "pipe"))


TRICKY = """A='x y'   'z'
B=a"b" c \t
C="a\\nb\\\\n\\"q\\"\\`"
D=a\\
b\\ \\\\
F =  v
1X='G=1
H=2'
I="a"  tail
J=\\'a
A=last
K='open
"""


@systemd
def test_read_as_systemd_reads(tmp_path):
    content = TRICKY[: TRICKY.index("K=")].encode()
    expected = read_by_systemd(content, tmp_path)
    assert expected["A"] == "last"
    assert environment_files.values(content) == {name: expected.get(name) for name in "ABCDFIJ"}


NAMES = st.sampled_from(["A", "B", "B2", "LONG_NAME", "API_TOKEN"])
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from("\t '\"\\`$#;=a"))
VALUES = VALUES.filter(lambda value: not ("${" in value and "}" in value))
CHANGES = st.dictionaries(NAMES, st.none() | VALUES, min_size=1)
LINES = st.lists(
    st.builds("{}={}".format, NAMES, st.text("ab '\"\\ \t#$=;\r\u00e9"))
    | st.builds("{}='{}'".format, NAMES, st.text('ab "\\\n'))
    | st.sampled_from(
        ["# comment", "; B=1", "", "   ", "garbage", "export A=1", "B2=a\\", "# c\\", "OTHER=1 # x", "1A='"]
    )
)
CONTENTS = st.builds(
    lambda lines, end, last: (end.join(lines) + (end if last else "")).encode() + b"",
    LINES,
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)


@systemd
@given(st.lists(VALUES.filter(str.isprintable), max_size=30))
def test_systemd_reads_what_was_meant(tmp_path_factory, values):
    # The generator escapes what is not printable in what it says, and expands $; neither is done to a service's file.
    wanted = {f"V{place}": value.replace("$", "") for place, value in enumerate(values)}
    read = read_by_systemd(environment_files.edit(b"", wanted), tmp_path_factory.mktemp("env"))
    assert {name: read.get(name, "") for name in wanted} == wanted


def edited(content, changes):
    """The edited content, where the drawn one can be edited at all."""
    try:
        return environment_files.edit(content, changes)
    except ValueError as error:
        assume("never closed" not in str(error))
        raise


@given(CONTENTS, CHANGES)
def test_edit_changes_what_it_is_told_and_nothing_else(content, changes):
    new = edited(content, changes)
    expected = {**environment_files.values(content), **changes}
    assert environment_files.values(new) == {name: value for name, value in expected.items() if value is not None}
    assert environment_files.edit(new, changes) == new
    # Of what was there, lines are missing only where a changed setting stood.
    if not set(changes) & set(environment_files.values(content)):
        assert new.startswith(content)


@given(CONTENTS, NAMES, VALUES)
def test_only_the_last_assignment_is_replaced(content, name, value):
    marked = content + b"\n\n" + f"{name}=was\n# after é\n".encode() + b"\xff\xfe"
    new = edited(marked, {name: value})
    if value != "was":
        assert new.startswith(content + b"\n\n" + f"{name}=".encode())
        assert new.endswith("\n# after é\n".encode() + b"\xff\xfe")


def test_bytes_stay():
    new = environment_files.edit(FILE, {"SEARCH_DEFAULT_K": "5", "LOGGING_LEVEL": "a b", "NEW": "", "NAMES": None})
    assert (
        new
        == FILE.replace(b"=20", b"=5")
        .replace(b"'info'  \x20", b"'a b'")
        .replace(FILE[FILE.index(b"NAMES") : FILE.index(b"no assignment")], b"")
        + b"\nNEW=\n"
    )


def test_a_value_that_is_right_stays_as_it_is_written():
    content = b'A = "1"  \nB=2'
    assert environment_files.edit(content, {"A": "1", "B": "2"}) == content


def test_line_ends_of_windows_stay():
    assert (
        environment_files.edit(b"A=1\r\nB=2\r\nC=3", {"A": "x y", "B": None, "D": "4"}) == b"A='x y'\r\nC=3\r\nD=4\r\n"
    )


@pytest.mark.parametrize("content", [b"A=a\\", b"A=a\\\n", b"# comment\\", b"# comment\\\n", b"A=1", b"A='x' \\\n"])
def test_a_new_setting_does_not_join_the_last_line(content):
    new = environment_files.edit(content, {"NEW": "1"})
    assert new.startswith(content)
    assert environment_files.values(new) == {**environment_files.values(content), "NEW": "1"}


@pytest.mark.parametrize(
    "value, written",
    [
        ("a,b/c:1.5", "a,b/c:1.5"),
        ("a b", "'a b'"),
        ('["x"]', "'[\"x\"]'"),
        ("it's", '"it\'s"'),
        ('\\d"', '"\\\\d\\""'),
        ("", ""),
    ],
)
def test_quoting(value, written):
    assert environment_files.quote("A", value) == written


@pytest.mark.parametrize("value", ["hush\nhush", "hush\0", "hush\rhush", "hush ${HOME}", "hush\udcff"])
def test_what_cannot_be_written_alike_is_refused_and_not_told(value):
    with pytest.raises(ValueError, match=r"^the value of A ") as refusal:
        environment_files.edit(b"", {"A": value})
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A\n", "Ä"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="is no name of a setting"):
        environment_files.edit(b"", {name: "1"})


@pytest.mark.parametrize("content", [b"A=1\nB='x\nC=2\n", b'A=1\n1B="x\nC=2\n'])
def test_an_open_quote_is_refused(content):
    with pytest.raises(ValueError, match="quote in line 2 is never closed"):
        environment_files.edit(content, {"A": "2"})


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("A", None, "(not set)"),
        ("API_KEY", "", "(empty)"),
        ("API_KEY", "1", "(a secret)"),
        ("LLM_MAX_TOKENS", "100", "100"),
        ("REDIS_URL", "redis://u:pw@h/0", "(a secret)"),
        ("A", "sk-or-v1-abcdefgh", "(a secret)"),
        ("A", "x\udcff", "x\ufffd"),
    ],
)
def test_shown(name, value, expected):
    assert environment_files.shown(name, value) == expected


# The file.


@pytest.fixture()
def env(tmp_path):
    path = tmp_path / "vritti.env"
    path.write_bytes(FILE)
    path.chmod(0o640)
    return path


def present(path, changes, backup=None, secrets=(), check=False):
    return environment_files.present(str(path), changes, secrets, str(backup) if backup else None, check)


def restored(path, backup, check=False):
    return environment_files.restored(str(path), str(backup), check)


def test_present_and_restored(env, tmp_path):
    backup = tmp_path / "backup"
    told = present(env, {"SEARCH_DEFAULT_K": "5", "NEW": "x"}, backup)
    assert told["changed"]
    assert told["before"] == {"SEARCH_DEFAULT_K": "20", "NEW": "(not set)"}
    assert told["after"] == {"SEARCH_DEFAULT_K": "5", "NEW": "x"}
    assert told["diff"]["before"] == "SEARCH_DEFAULT_K=20\n"
    assert told["diff"]["after"] == "SEARCH_DEFAULT_K=5\nNEW=x\n"
    assert (told["path"], told["backup"]) == (str(env), str(backup))
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in backup.iterdir()} == {0o600}
    assert (backup / "original").read_bytes() == FILE
    manifest = json.loads((backup / "manifest.json").read_text())
    assert (manifest["path"], manifest["existed"], manifest["mode"]) == (str(env), True, "0640")
    assert manifest["settings"]["SEARCH_DEFAULT_K"]["previous"] == "20"
    assert manifest["settings"]["NEW"]["previous"] is None
    again = present(env, {"SEARCH_DEFAULT_K": "5", "NEW": "x"}, backup)
    assert not again["changed"]
    assert again["before"] == again["after"] == told["after"]
    back = restored(env, backup)
    assert (back["changed"], back["before"], back["after"]) == (True, told["after"], told["before"])
    assert env.read_bytes() == FILE
    assert not restored(env, backup)["changed"]


@given(CONTENTS, CHANGES, CHANGES)
def test_restored_gives_the_very_bytes(tmp_path_factory, content, first, second):
    edited(content, first)
    folder = tmp_path_factory.mktemp("restored")
    path = folder / "env"
    path.write_bytes(content)
    for changes in (first, second):
        present(path, changes, folder / "backup")
    restored(path, folder / "backup")
    assert path.read_bytes() == content


def test_check_mode_changes_nothing(env, tmp_path):
    told = present(env, {"NEW": "x"}, tmp_path / "backup", check=True)
    assert told["changed"]
    assert told["backup"] is None
    assert sorted(os.listdir(tmp_path)) == ["vritti.env"]
    assert env.read_bytes() == FILE
    done = present(env, {"NEW": "x"}, tmp_path / "backup")
    assert {**told, "backup": done["backup"]} == done
    content = env.read_bytes()
    assert restored(env, tmp_path / "backup", check=True)["changed"]
    assert env.read_bytes() == content


def test_a_file_that_was_not_there_goes_again(tmp_path):
    path = tmp_path / "new.env"
    assert present(path, {"A": "1"}, tmp_path / "backup")["before"] == {"A": "(not set)"}
    assert path.read_bytes() == b"A=1\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    restored(path, tmp_path / "backup")
    assert not path.exists()
    assert not restored(path, tmp_path / "backup")["changed"]


def test_a_file_that_was_not_there_stays_for_what_others_wrote(tmp_path):
    path = tmp_path / "new.env"
    present(path, {"A": "1"}, tmp_path / "backup")
    path.write_bytes(b"A=1\nB=2\n")
    restored(path, tmp_path / "backup")
    assert path.read_bytes() == b"B=2\n"


def test_a_file_that_was_not_there_goes_when_only_ours_is_in_it(tmp_path):
    path = tmp_path / "new.env"
    present(path, {"A": "1"}, tmp_path / "backup")
    path.write_bytes(b"A='1'\n")
    restored(path, tmp_path / "backup")
    assert not path.exists()


def test_a_file_that_others_removed_is_made_only_for_what_was_removed_from_it(env, tmp_path):
    present(env, {"NEW": "1"}, tmp_path / "added")
    present(env, {"SEARCH_DEFAULT_K": None}, tmp_path / "removed")
    env.unlink()
    assert not restored(env, tmp_path / "added")["changed"]
    assert not env.exists()
    assert restored(env, tmp_path / "removed")["changed"]
    assert env.read_bytes() == b"SEARCH_DEFAULT_K=20\n"
    assert stat.S_IMODE(env.stat().st_mode) == 0o640


def test_owner_mode_and_link_stay(env, tmp_path):
    if os.geteuid() == 0:
        os.chown(env, 65534, 65533)
    before = env.stat()
    link = tmp_path / "link.env"
    link.symlink_to(env)
    assert present(link, {"NEW": "1"}, tmp_path / "backup")["path"] == str(env)
    assert link.is_symlink()
    assert b"NEW=1" in env.read_bytes()
    after = env.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    restored(link, tmp_path / "backup")
    assert env.read_bytes() == FILE
    assert env.stat().st_uid == before.st_uid


def test_the_file_is_newer_after_a_change(env, tmp_path):
    """Whoever asks whether a service has started since the last change goes by this time."""
    os.utime(env, (1, 1))
    present(env, {"SEARCH_DEFAULT_K": "20"}, tmp_path / "backup")
    assert env.stat().st_mtime == 1
    present(env, {"SEARCH_DEFAULT_K": "5"}, tmp_path / "backup")
    assert env.stat().st_mtime > 1


def test_the_first_try_is_what_is_kept(env, tmp_path):
    backup = tmp_path / "backup"
    present(env, {"SEARCH_DEFAULT_K": "5"}, backup)
    present(env, {"SEARCH_DEFAULT_K": "6", "NEW": "1"}, backup)
    settings = json.loads((backup / "manifest.json").read_text())["settings"]
    assert (settings["SEARCH_DEFAULT_K"]["previous"], settings["SEARCH_DEFAULT_K"]["written"]) == ("20", "6")
    assert settings["NEW"]["written"] == "1"
    assert (backup / "original").read_bytes() == FILE


def test_what_others_changed_meanwhile_stays(env, tmp_path):
    present(env, {"SEARCH_DEFAULT_K": "5", "NAMES": None, "NEW": "1"}, tmp_path / "backup")
    env.write_bytes(env.read_bytes().replace(b"# Vritti's", b"# Our Vritti's") + b"THEIRS=1\n")
    restored(env, tmp_path / "backup")
    content = env.read_bytes()
    assert content.startswith(b"# Our Vritti's environment\nSEARCH_DEFAULT_K=10\n")
    settings = environment_files.values(content)
    assert settings == {**environment_files.values(FILE), "THEIRS": "1"}
    assert not restored(env, tmp_path / "backup")["changed"]


def test_a_setting_that_others_changed_is_a_conflict(env, tmp_path):
    present(env, {"SEARCH_DEFAULT_K": "5", "ADMIN_API_KEY": "ours-ours"}, tmp_path / "backup")
    env.write_bytes(env.read_bytes().replace(b"ours-ours", b"theirs-theirs"))
    content = env.read_bytes()
    with pytest.raises(Refused, match=f"^ADMIN_API_KEY in {env} has been changed .* {tmp_path}/backup") as refusal:
        restored(env, tmp_path / "backup")
    assert "theirs-theirs" not in str(refusal.value)
    assert env.read_bytes() == content


def test_without_a_copy_nothing_was_changed(env, tmp_path):
    assert not present(env, {"SEARCH_DEFAULT_K": "20"}, tmp_path / "backup")["changed"]
    assert not (tmp_path / "backup").exists()
    assert restored(env, tmp_path / "backup") == {
        "changed": False,
        "path": str(env),
        "before": {},
        "after": {},
        "backup": None,
        "diff": {"before": "", "after": ""},
    }
    with pytest.raises(Refused, match="no folder for"):
        restored(env, tmp_path / "typo" / "backup")


def test_a_copy_of_another_file_is_refused(env, tmp_path):
    present(env, {"NEW": "1"}, tmp_path / "backup")
    (tmp_path / "other.env").write_text("NEW=1\n")
    for change in (
        lambda path: present(path, {"NEW": "2"}, tmp_path / "backup"),
        lambda path: restored(path, tmp_path / "backup"),
    ):
        with pytest.raises(Refused, match=r"holds the copy of .*vritti.env and not of .*other.env"):
            change(tmp_path / "other.env")
    assert (tmp_path / "other.env").read_text() == "NEW=1\n"


def test_a_damaged_manifest_is_refused(env, tmp_path):
    present(env, {"NEW": "1"}, tmp_path / "backup")
    (tmp_path / "backup" / "manifest.json").write_text('{"path": ')
    with pytest.raises(Refused, match="is damaged"):
        restored(env, tmp_path / "backup")


def test_a_missing_folder_is_a_sentence(tmp_path):
    with pytest.raises(Refused, match=f"{tmp_path}/no is no folder"):
        present(tmp_path / "no" / "x.env", {"A": "1"}, tmp_path / "backup")
    assert os.listdir(tmp_path) == []


def test_secrets_are_not_told(env, tmp_path):
    changes = {"ADMIN_API_KEY": "new-new-new", "OTHER": "by-its-option"}
    told = present(env, changes, tmp_path / "backup", secrets=["OTHER"])
    back = restored(env, tmp_path / "backup")
    for result in (told, back):
        assert not [secret for secret in ("hush-hush", "new-new", "by-its") if secret in json.dumps(result)]
    # They differ, and so the lines of the difference do.
    assert told["diff"]["before"] == "ADMIN_API_KEY=(a secret)\n"
    assert told["diff"]["after"] == "ADMIN_API_KEY=(another secret)\nOTHER=(a secret)\n"


KILLED = """
import os, signal, sys
from ansible_collections.oncall.runbooks.plugins.module_utils import environment_files
path, backup, last, state = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
done = 0
def hook(event, arguments):
    global done
    if event == "os.rename":
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
if state == "present":
    environment_files.present(path, {"SEARCH_DEFAULT_K": "5", "NEW": "1"}, (), backup, False)
else:
    environment_files.restored(path, backup, False)
"""


def killed(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(helpers.COLLECTIONS)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("last, noted", [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("goes_on", [True, False])
def test_killed_before_the_copy_the_manifest_or_the_file_is_in_place(env, tmp_path, last, noted, goes_on):
    backup = tmp_path / "backup"
    killed(env, backup, last, "present")
    assert env.read_bytes() == FILE
    assert (backup / "manifest.json").exists() == noted
    if goes_on:
        assert present(env, {"SEARCH_DEFAULT_K": "5", "NEW": "1"}, backup)["changed"]
        assert environment_files.load(str(env))["NEW"] == "1"
    assert restored(env, backup)["changed"] == goes_on
    assert env.read_bytes() == FILE


def test_killed_while_it_was_restored(env, tmp_path):
    present(env, {"SEARCH_DEFAULT_K": "5", "NEW": "1"}, tmp_path / "backup")
    content = env.read_bytes()
    killed(env, tmp_path / "backup", 1, "restored")
    assert env.read_bytes() == content
    restored(env, tmp_path / "backup")
    assert env.read_bytes() == FILE


REFUSED = """
    import sys
    from pathlib import Path
    from ansible_collections.oncall.runbooks.plugins.module_utils import environment_files, remediation
    {first}
    try:
        environment_files.present(sys.argv[1], {{"NEW": "1"}}, (), sys.argv[2] or None, False)
    except remediation.Refused as error:
        print(error)
"""
NO_ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"


@pytest.mark.parametrize("backup", ["", "backup"])
def test_no_room_is_a_sentence_and_nothing_is_changed(env, tmp_path, backup):
    """A limit of the size of files stands for a full file system: the same write fails."""
    folder = str(tmp_path / backup) if backup else ""
    said = helpers.python(REFUSED.format(first=NO_ROOM), env, folder)
    assert "(File too large)" in said
    assert said.endswith("Nothing was changed.")
    assert env.read_bytes() == FILE
    assert not [name for _folder, _folders, names in os.walk(tmp_path) for name in names if name != "vritti.env"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write there")
@pytest.mark.parametrize("mode, verb", [(0o600, "read"), (0o644, "written")])
def test_what_is_not_permitted_is_a_sentence_and_nothing_is_changed(mode, verb):
    # pytest's own folder is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "vritti.env"
        path.write_bytes(FILE)
        path.chmod(mode)
        become = helpers.BECOME_NOBODY.strip().replace("\n", "\n    ")
        said = helpers.python(REFUSED.format(first=become), path, "")
        assert said == f"{path} cannot be {verb} (Permission denied); become root with -b. Nothing was changed."
        assert path.read_bytes() == FILE
        assert os.listdir(folder) == ["vritti.env"]


def test_as_text():
    assert [environment_files.as_text("A", value) for value in ("x", True, 5, 0.5, None)] == [
        "x",
        "true",
        "5",
        "0.5",
        None,
    ]
    with pytest.raises(ValueError, match="the value of A is neither text nor a number") as refusal:
        environment_files.as_text("A", ["hush"])
    assert "hush" not in str(refusal.value)

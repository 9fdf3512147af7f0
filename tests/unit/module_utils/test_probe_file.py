# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import file
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers, sqlite_helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import context, look, source

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root can be somebody else, mount, and make a folder immutable")
NOBODY = 65534
# Listens, and then does what it is told: tries to write to a folder, as a service would.
SERVER = """
import os, socket, sys
user, groups, port = int(sys.argv[1]), [int(word) for word in sys.argv[2].split()], int(sys.argv[3])
if os.geteuid() == 0 and user:
    os.setgroups(groups[1:])
    os.setgid(groups[0])
    os.setuid(user)
with socket.create_server(("127.0.0.1", port)):
    print("ready", flush=True)
    for line in sys.stdin:
        name = os.path.join(line.rstrip("\\n"), "tried")
        try:
            with open(name, "wb") as file:
                file.write(b"x" * 65536)
            print("yes", flush=True)
        except OSError as error:
            print(error.strerror, flush=True)
        finally:
            try:
                os.unlink(name)
            except OSError:
                pass
"""


class Service:
    """A process of some user that listens on a port, and can be asked whether it can really write."""

    def __init__(self, process, port):
        self.process = process
        self.port = port

    def tries(self, folder):
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture()
def serve():
    """Starts a service as a user, in a folder, with an environment."""
    with contextlib.ExitStack() as stack:

        def serve(uid=None, cwd="/", groups=(NOBODY,), before=(), **environment):
            port = helpers.free_port()
            user = os.geteuid() if uid is None else uid
            command = [*before, sys.executable, "-c", SERVER, str(user), " ".join(map(str, groups)), str(port)]
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={"PATH": os.environ["PATH"], **environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.stdin.close)
            assert process.stdout.readline() == "ready\n"
            return Service(process, port)

        yield serve


@pytest.fixture()
def folder():
    """A folder whose parents everybody may pass, which pytest's own are not."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def value_of(**values):
    seen = look("file", **values)
    return seen["value"]


# --- which file is meant


def test_the_first_that_exists_else_the_first(tmp_path):
    paths = [str(tmp_path / name) for name in ("cache", "logs", "third")]
    with pytest.raises(Absent, match=rf"^{tmp_path}/cache does not exist\.$"):
        look("file", paths=paths, value="entries")
    (tmp_path / "third").mkdir()
    assert look("file", paths=paths, value="entries")["evidence"]["file"] == paths[2]
    (tmp_path / "logs").mkdir()
    assert look("file", paths=paths, value="writable")["evidence"]["file"] == paths[1]
    (tmp_path / "cache").symlink_to("nowhere")
    assert look("file", paths=paths, value="age")["evidence"]["file"] == paths[1]


def test_paths_of_the_service(serve, tmp_path):
    home = tmp_path / "home"
    (home / ".cache/hub/model").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    service = serve(cwd=str(tmp_path), HOME=str(home), EMPTY="", OTHER=str(tmp_path / "other"), STRANGE="${HOME}")

    def found(path):
        return look("file", paths=[path], port=service.port)["evidence"]["file"]

    assert found("home") == str(home)
    assert found("~/.cache") == str(home / ".cache")
    assert found("~") == str(home)
    assert found("${OTHER}") == str(tmp_path / "other")
    assert found("${OTHER:-${HOME}}/x") == f"{tmp_path}/other/x"
    assert found("${NONE:-${EMPTY:-~/.cache}/hub}/model") == str(home / ".cache/hub/model")
    # What is not used need not be there.
    assert found("${OTHER:-${NONE}}") == str(tmp_path / "other")
    # What a variable holds is a path, whatever it looks like.
    assert found("${STRANGE}") == f"{tmp_path}/${{HOME}}"
    with pytest.raises(NoAnswer, match="has NONE, which the service's environment has not") as caught:
        found("${NONE}b/x")
    assert caught.value.kind == "no data"


def test_dotenv_of_the_service(serve, tmp_path):
    """What is in the environment goes before it."""
    (tmp_path / ".env").write_text("OTHER=/from/file\nHUB='/hub of it'\n")
    service = serve(cwd=str(tmp_path), OTHER="/from/environment")
    for path, meant in {"${HUB}/x": "/hub of it/x", "${OTHER}": "/from/environment", "${NONE:-/y}": "/y"}.items():
        assert look("file", paths=[path], port=service.port)["evidence"]["file"] == meant
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    with pytest.raises(NoAnswer, match=r"may not be read by .*; run with -b") as caught:
        look("file", paths=["${HUB}"], port=service.port)
    assert caught.value.kind == "permission"


@as_root
def test_home_that_the_host_knows(serve):
    service = serve(uid=1, groups=[1])
    seen = look("file", paths=["~/x"], port=service.port)
    assert seen["evidence"]["file"] == os.path.join(pwd.getpwuid(1).pw_dir, "x")


def test_service_that_is_not_there(tmp_path):
    port = helpers.free_port()
    for path in ("~/x", "${A:-/x}"):
        with pytest.raises(NoAnswer, match=f"depends on the service's environment, and nothing listens on port {port}"):
            look("file", paths=[path], port=port)
    with pytest.raises(
        NoAnswer, match=r"^cache is relative to where the service was started, and nothing lis"
    ) as caught:
        look("file", paths=["cache"], port=port)
    assert caught.value.kind == "place"
    # It takes none to see that the first is there.
    assert value_of(paths=[str(tmp_path), "~/x"], port=port) is True


# --- exists


def test_exists(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    for name, there in {
        "file": True,
        "link": True,
        "dangling": False,
        "loop": False,
        "none": False,
        "file/x": False,
    }.items():
        assert value_of(paths=[str(tmp_path / name)]) is there, name
    seen = look("file", paths=[str(tmp_path / "dangling")])
    assert seen["note"] == f"{tmp_path}/dangling is a link to {tmp_path}/nowhere, which does not exist"
    assert look("file", paths=[str(tmp_path / "none")])["note"] == f"{tmp_path}/none does not exist"


def test_patterns(tmp_path):
    hub = tmp_path / "a[1]" / "models--x--y"
    for snapshot in ("one", "two"):
        (hub / "snapshots" / snapshot).mkdir(parents=True)
    (hub / "snapshots" / ".hidden").mkdir()
    (hub / "blobs").mkdir()
    (hub / "snapshots/one/model.safetensors").symlink_to("../../blobs/gone")
    pattern = f"{tmp_path}/a[[]1]/models--*/snapshots/*/model.safetensors"
    seen = look("file", paths=[pattern])
    assert (seen["value"], seen["note"]) == (False, f"nothing matches {pattern}")
    (hub / "blobs/gone").write_text("")
    seen = look("file", paths=[pattern])
    assert seen["value"] is True
    assert seen["evidence"]["found"] == [f"{hub}/snapshots/one/model.safetensors"]
    assert value_of(paths=[f"{tmp_path}/a?1?/*/snapshots/t[wx]o"]) is True
    assert look("file", paths=[f"{tmp_path}/*/*/snapshots/*"])["evidence"]["found"] == [
        f"{hub}/snapshots/one",
        f"{hub}/snapshots/two",
    ]
    assert value_of(paths=[f"{tmp_path}/a/b*", f"{tmp_path}/a*"]) is True


def test_what_the_host_has_is_no_pattern(serve, tmp_path):
    """A folder may be called like one."""
    (tmp_path / "x[1]").mkdir()
    (tmp_path / "x1").mkdir()
    (tmp_path / "x[1]" / "right").write_text("")
    (tmp_path / "x1" / "wrong").write_text("")
    service = serve(cwd=str(tmp_path / "x[1]"), WHERE=str(tmp_path / "x[1]"))
    for pattern in ("*", "${WHERE}/*"):
        seen = look("file", paths=[pattern], port=service.port)
        assert seen["evidence"]["found"] == [f"{tmp_path}/x[1]/right"]


CLOSED = """
import sys
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
exec(helpers.BECOME_NOBODY)
try:
    print(helpers.look("file", paths=[sys.argv[1]], value=sys.argv[2], jmespath=sys.argv[3] or None))
except NoAnswer as error:
    print(error.kind, error)
"""


@as_root
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("closed/x", "exists", "Whether {}/closed/x exists may not be seen by nobody; run with -b."),
        ("closed/*", "exists", "What {}/closed has may not be seen by nobody; run with -b."),
        ("*/x", "exists", "Whether {}/closed/x exists may not be seen by nobody; run with -b."),
        ("closed", "entries", "{}/closed may not be read by nobody; run with -b."),
        ("closed", "strangers", "{}/closed may not be read by nobody; run with -b."),
        ("closed", "writable", "Whether {}/closed is immutable may not be seen by nobody; run with -b."),
        ("file", "json", "{}/file may not be read by nobody; run with -b."),
    ],
)
def test_what_may_not_be_seen_is_not_known(folder, path, value, says):
    (folder / "closed").mkdir(mode=0o700)
    (folder / "file").write_text("{}")
    (folder / "file").chmod(0o600)
    said = helpers.python(CLOSED, folder / path, value, "a" if value == "json" else "")
    assert said == f"permission {says.format(folder)}"


# --- writable: what is said against what really happens


def writable(path, service=None):
    seen = look("file", paths=[str(path)], value="writable", port=service.port if service else None)
    assert str(path) in seen["note"]
    return seen["value"], seen["note"]


def test_writable(serve, folder):
    before = os.stat(folder)
    service = serve()
    value, note = writable(folder, service)
    assert value == "writable"
    me = procfs.user(os.geteuid())
    assert note.startswith(f"{folder} belongs to {me}:")
    assert note.endswith(f"(drwxr-xr-x), and {me} can write to it")
    after = os.stat(folder)
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns), "nothing was tried"
    assert service.tries(folder) == "yes"


def test_missing_and_no_folder(folder):
    assert writable(folder / "x") == ("missing", f"{folder}/x does not exist")
    (folder / "link").symlink_to("gone")
    assert writable(folder / "link")[0] == "missing"
    (folder / "file").write_text("")
    assert writable(folder / "file")[0] == "not a directory"
    assert writable(folder / "file" / "x")[0] == "missing"


def test_without_a_service_it_is_judged_for_its_owner(folder):
    port = helpers.free_port()
    seen = look("file", paths=[str(folder)], value="writable", port=port)
    assert seen["value"] == "writable"
    assert seen["note"].endswith(f"nothing listens on port {port}, so it is judged for its owner")
    if ROOT:
        (folder / "theirs").mkdir()
        os.chown(folder / "theirs", 1, 1)
        (folder / "theirs").chmod(0o577)
        assert writable(folder / "theirs")[0] == "not writable"


MODES = [0o777, 0o755, 0o700, 0o070, 0o007, 0o722, 0o733, 0o577, 0o707, 0o770, 0o000]


@as_root
@pytest.mark.parametrize(("owner", "group"), [(NOBODY, 0), (0, NOBODY), (0, 4711), (0, 0), (NOBODY, NOBODY)])
def test_mode_bits(serve, folder, owner, group):
    service = serve(uid=NOBODY, groups=[NOBODY, 4711])
    root = serve()
    os.chown(folder, owner, group)
    for mode in MODES:
        folder.chmod(mode)
        value, note = writable(folder, service)
        really = service.tries(folder)
        assert value == ("writable" if really == "yes" else "not writable"), (oct(mode), really)
        assert " and nobody " in note
        assert (writable(folder, root)[0], root.tries(folder)) == ("writable", "yes")


@as_root
def test_folder_above_is_closed(serve, folder):
    below = folder / "above" / "cache"
    below.mkdir(parents=True)
    below.chmod(0o777)
    (folder / "above").chmod(0o700)
    service = serve(uid=NOBODY)
    value, note = writable(below, service)
    assert (value, service.tries(below)) == ("not writable", "Permission denied")
    assert note.endswith(f"nobody cannot write to it, as {folder}/above is closed to it")
    # Who is in there already does not pass it.
    os.chown(folder / "above", NOBODY, NOBODY)
    inside = serve(uid=NOBODY, cwd=str(folder / "above"))
    os.chown(folder / "above", 0, 0)
    (folder / "above").chmod(0o701)
    folder.chmod(0o700)
    assert inside.tries("cache") == "yes"
    assert value_of(paths=["cache"], value="writable", port=inside.port) == "writable"
    assert inside.tries(below) == "Permission denied"
    assert value_of(paths=[str(below)], value="writable", port=inside.port) == "not writable"


ACL_ENTRY = struct.Struct("<HHI")
NO_ID = 2**32 - 1


@as_root
@given(
    user=st.one_of(st.none(), st.integers(0, 7)),
    group=st.one_of(st.none(), st.integers(0, 7)),
    mask=st.integers(0, 7),
    bits=st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 7)),
    owners=st.sampled_from([(0, 0), (0, NOBODY), (NOBODY, 0)]),
)
@settings(max_examples=60, deadline=None)
def test_access_control_lists(acl_service, user, group, mask, bits, owners):
    """Against what the kernel itself says to a process of that user."""
    service, made = acl_service
    os.chown(made, *owners)
    entries = [(1, bits[0], NO_ID)]
    entries += [(2, user, NOBODY)] if user is not None else []
    entries += [(4, bits[1], NO_ID)]
    entries += [(8, group, 4711)] if group is not None else []
    entries += [(16, mask, NO_ID)] if len(entries) > 2 else []
    entries += [(32, bits[2], NO_ID)]
    data = struct.pack("<I", 2) + b"".join(ACL_ENTRY.pack(*entry) for entry in entries)
    try:
        os.setxattr(made, "system.posix_acl_access", data)
    except OSError as error:
        pytest.skip(f"this filesystem has no access control lists: {error.strerror}")
    really = service.tries(made)
    assert writable(made, service)[0] == ("writable" if really == "yes" else "not writable"), (entries, really)


@pytest.fixture(scope="module")
def acl_service():
    made = Path(tempfile.mkdtemp())
    port = helpers.free_port()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(NOBODY), f"{NOBODY} 4711", str(port)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        yield Service(process, port), made
        process.stdin.close()
    shutil.rmtree(made)


@as_root
@pytest.mark.parametrize("letter", ["i", "a"])
def test_immutable(serve, folder, letter):
    service = serve()
    done = subprocess.run(["chattr", f"+{letter}", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no folder can be made immutable here: {done.stderr.strip()}")
    try:
        value, note = writable(folder, service)
        assert value == "immutable"
        assert f"chattr -{letter} takes that away" in note
        if letter == "i":
            assert service.tries(folder) == "Operation not permitted"
    finally:
        subprocess.run(["chattr", f"-{letter}", folder], check=True)
    (folder / "tried").unlink(missing_ok=True)
    assert writable(folder, service)[0] == "writable"


@as_root
def test_read_only_filesystem(serve, folder):
    with sqlite_helpers.filesystem(folder / "fs", "2m") as where:
        (where / "cache").mkdir()
        service = serve()
        assert writable(where / "cache", service)[0] == "writable"
        subprocess.run(["mount", "-o", "remount,ro", where], check=True)
        assert service.tries(where / "cache") == "Read-only file system"
        value, note = writable(where / "cache", service)
        assert value == "read-only filesystem"
        assert "root cannot write to it, as its filesystem is mounted read-only" in note


@as_root
def test_read_only_for_the_service_alone(serve, folder):
    """As systemd's ProtectSystem makes it; the host sees nothing of that."""
    (folder / "cache").mkdir()
    script = f'mount --bind {folder}/cache {folder}/cache && mount -o remount,bind,ro {folder}/cache && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own can be made here")
    service = serve(before=before)
    assert service.tries(folder / "cache") == "Read-only file system"
    assert writable(folder / "cache", service)[0] == "read-only filesystem"
    assert writable(folder / "cache", serve())[0] == "writable"
    assert writable(folder, service)[0] == "writable"


@as_root
def test_no_space(serve, folder):
    with sqlite_helpers.filesystem(folder / "fs", "3m") as where:
        service = serve()
        (where / "most").write_bytes(b"x" * (1024 * 1024))
        assert writable(where, service)[0] == "writable"
        with contextlib.suppress(OSError), (where / "rest").open("wb", buffering=0) as rest:
            while True:
                rest.write(b"x" * 65536)
        assert service.tries(where) == "No space left on device"
        value, note = writable(where, service)
        assert (value, note.rpartition(", as ")[2]) == ("no space", "its filesystem has 0 bytes left")


@as_root
def test_no_inodes(serve, folder):
    with sqlite_helpers.filesystem(folder / "fs", "4m,nr_inodes=10") as where:
        service = serve()
        number = 0
        with contextlib.suppress(OSError):
            while True:
                (where / str(number)).touch()
                number += 1
        assert service.tries(where) == "No space left on device"
        value, note = writable(where, service)
        assert (value, note.rpartition(", as ")[2]) == ("no inodes", "its filesystem has no inode left")
        (where / "0").unlink()
        assert writable(where, service)[0] == "writable"


@as_root
def test_root_without_its_power(serve, folder):
    """A unit or a container may have taken it from it."""
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    service = serve(before=["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"])
    os.chown(folder, 1, 1)
    assert service.tries(folder) == "Permission denied"
    assert writable(folder, service)[0] == "not writable"


# --- what is in it


def test_entries_and_strangers(tmp_path):
    for name in ("a.cache", "a.meta", ".hidden"):
        (tmp_path / name).write_text("")
    assert value_of(paths=[str(tmp_path)], value="entries") == 3
    assert value_of(paths=[str(tmp_path)], value="strangers") == 0
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("a.cache")
    os.mkfifo(tmp_path / "pipe")
    seen = look("file", paths=[str(tmp_path)], value="strangers")
    assert seen["value"] == 3
    assert seen["evidence"] == {"file": str(tmp_path), "entries": 6, "strangers": ["link", "pipe", "sub"]}
    assert seen["note"] == f"{tmp_path} has link, pipe, sub"
    with pytest.raises(NoAnswer, match=r"a\.cache is no folder"):
        look("file", paths=[str(tmp_path / "a.cache")], value="entries")


def test_names_of_any_bytes(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    seen = look("file", paths=[str(tmp_path)], value="strangers")
    assert seen["value"] == 1
    assert json.dumps(seen["evidence"], ensure_ascii=False).encode()


def test_size(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "blobs" / "one", tmp_path / "again")
    (tmp_path / "two").write_bytes(b"x" * 50)
    assert value_of(paths=[str(tmp_path / "two")], value="size") == 50
    assert value_of(paths=[str(tmp_path)], value="size") == 1050


def test_age(tmp_path):
    path = tmp_path / "x"
    path.write_text("")
    os.utime(path, (time.time() - 500, time.time() - 500))
    seen = look("file", paths=[str(path)], value="age")
    assert seen["value"] == pytest.approx(500, abs=60)
    assert seen["evidence"]["modified_at"].endswith("Z")
    os.utime(path, (time.time() + 500, time.time() + 500))
    assert value_of(paths=[str(path)], value="age") == 0.0


@pytest.mark.parametrize("value", ["entries", "strangers", "size", "age", "json", "yaml"])
def test_what_is_not_there_is_absent(tmp_path, value):
    with pytest.raises(Absent, match="does not exist"):
        look("file", paths=[str(tmp_path / "x")], value=value, jmespath="a" if value in ("json", "yaml") else None)


def test_json(tmp_path):
    path = tmp_path / "canary_config.json"
    data = {"enabled": True, "rollout_percentage": 0.5, "updated_by": "ü"}
    path.write_text(json.dumps(data, ensure_ascii=False))
    seen = look("file", paths=[str(path)], value="json", jmespath="enabled")
    assert (seen["outcome"], seen["value"], seen["evidence"]) == ("json", data, {"file": str(path)})
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert value_of(paths=[str(path)], value="json", jmespath="a") == [1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no JSON: it is empty."),
        (b' {"enabled": tru', "is no JSON: Expecting value in line 1, column 14."),
        (b'{"a": 1}\n{"a": 2}', "is no JSON: Extra data in line 2, column 1."),
        (b'{"a": NaN}', "is no JSON that can be read: NaN is no number of JSON."),
        (b'{"a": "\xff"}', "is no JSON: byte 8 is no UTF-8."),
        (b"[" * 100_000, "is no JSON that can be read: it is nested too deeply."),
    ],
)
def test_broken_json(tmp_path, content, says):
    path = tmp_path / "canary_config.json"
    path.write_bytes(content)
    with pytest.raises(NoAnswer) as caught:
        look("file", paths=[str(path)], value="json", jmespath="enabled")
    assert (caught.value.kind, str(caught.value)) == ("content", f"{path} {says}")


@pytest.mark.parametrize("value", ["json", "yaml"])
def test_what_is_no_file_or_too_large(tmp_path, value):
    with pytest.raises(NoAnswer, match="is a folder") as caught:
        look("file", paths=[str(tmp_path)], value=value, jmespath="a")
    assert caught.value.kind == "content"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoAnswer, match="it is no regular file"):
        look("file", paths=[str(tmp_path / "pipe")], value=value, jmespath="a")
    (tmp_path / "large").write_text("x\n" * 262_145)
    with pytest.raises(NoAnswer, match="is larger than 512 KiB and was not read"):
        look("file", paths=[str(tmp_path / "large")], value=value, jmespath="a")


CONFIG = """\
# wp_chat; api_key=s3same
api:
  rate_limit:   {max_requests: 100, window_seconds: 3600}
  cache:
    enabled: true   # read once
    search_ttl: 1800
  token: s3same
  api_keys:
    # old
  - s3same
  - name: s3same
  after: [1, 2]
  "client-secret": |
    s3same

    s3same
  flow: {password: s3same, kept: 7}
  list:
    - password: "s3same
        s3same"
      beside: 8
    - url: https://user:s3same@host/x
  header: "Authorization: Bearer s3same"
  max_tokens: 500
last: 9
"""


def test_yaml_has_no_secrets_and_is_still_yaml(tmp_path):
    yaml = pytest.importorskip("yaml", reason="only a controller has PyYAML")
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    seen = look("file", paths=[str(path)], value="yaml", jmespath="api.cache.enabled")
    assert seen["outcome"] == "yaml"
    assert "s3same" not in seen["value"]
    data = yaml.safe_load(seen["value"])
    assert data == {
        "api": {
            "rate_limit": {"max_requests": 100, "window_seconds": 3600},
            "cache": {"enabled": True, "search_ttl": 1800},
            "token": "masked",
            "api_keys": "masked",
            "after": [1, 2],
            "client-secret": "masked",
            "flow": {"password": "masked", "kept": 7},
            "list": [{"password": "masked", "beside": 8}, {"url": "https://masked@host/x"}],
            "header": "Authorization: Bearer masked",
            "max_tokens": 500,
        },
        "last": 9,
    }


def test_yaml_without_secrets_stays_as_it_is():
    text = "# c\r\na: {b: [1, 2]}\nc: |\n  x } y\n\n  z\nd: ü"
    assert file.masked_yaml(text) == text


KEYS = st.sampled_from(["api", "cache", "max_tokens", "password", "api_key", "client-secret", "token", "x.y", "on"])
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.text("ab c}]{[#:-\n'\"", max_size=8), st.floats(-9, 9))


def looks_secret(key):
    return any(word in key for word in ("password", "secret", "api_key")) or key == "token"


def without_secrets(value):
    """What is left of a configuration without them."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not looks_secret(key)}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def with_secrets(value, secret=False):
    """The same with a marked text in place of everything that is below a key of a secret."""
    if isinstance(value, dict):
        return {key: with_secrets(item, secret or looks_secret(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [with_secrets(item, secret) for item in value]
    return f"s3same {value} s3same" if secret else value


@given(
    st.dictionaries(
        KEYS,
        st.recursive(
            PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
        ),
    ),
    st.integers(2, 6),
    st.sampled_from([20, 80]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_yaml_without_its_secrets_is_the_same(data, indent, width, unicode):
    yaml = pytest.importorskip("yaml", reason="only a controller has PyYAML")
    text = yaml.safe_dump(with_secrets(data), indent=indent, width=width, allow_unicode=unicode)
    masked = file.masked_yaml(text)
    assert "s3same" not in masked
    assert without_secrets(yaml.safe_load(masked)) == without_secrets(data)


def test_long_lines_of_yaml(tmp_path):
    assert file.masked_yaml(f"# {'c' * 3000}\na:\n  b: {'x' * 3000}\n  c: 1") == "a:\n  b: masked\n  c: 1"
    path = tmp_path / "config.yml"
    path.write_text("- " + "x" * 3000)
    with pytest.raises(NoAnswer, match="is no YAML that can be read: it has a line of more than 2000 characters"):
        look("file", paths=[str(path)], value="yaml", jmespath="a")


def test_match(tmp_path):
    path = tmp_path / "Makefile"
    path.write_text("all: x\n\nrebuild-index:\n\ttrue\n")
    assert value_of(paths=[str(path)], value="match", pattern="^rebuild-index:") is True
    seen = look("file", paths=[str(path)], value="match", pattern="^index:")
    assert (seen["value"], seen["note"]) == (False, f"{path} has no line that matches ^index:")
    # What does not exist has no such line.
    seen = look("file", paths=[str(tmp_path / "none")], value="match", pattern="x")
    assert (seen["value"], seen["note"]) == (False, f"{tmp_path}/none does not exist")


# --- what it may say


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"paths": []}, "paths names no path"),
        ({"paths": [""]}, "paths names no path"),
        ({"paths": ["/x", ""]}, "paths has an empty path"),
        ({"paths": ["/x"], "pattern": "a"}, "pattern goes with the value match, and value is exists"),
        ({"paths": ["/x"], "value": "match", "pattern": "("}, r"pattern '\(' is no regular expression"),
        ({"paths": ["/x"], "jmespath": "a"}, "jmespath goes with the values json and yaml, and value is exists"),
        (
            {"paths": ["/x/*"], "value": "writable"},
            r"'/x/\*' has one of \* \? \[, which only the value exists looks for",
        ),
        ({"paths": ["cache"]}, "'cache' depends on the service, which takes the port that it listens on"),
        ({"paths": ["~/cache"]}, "depends on the service"),
        ({"paths": ["/${A}"]}, "has a variable of the service, which takes the port"),
        ({"paths": ["~root/x"], "port": 1}, "begins with ~ and not with ~/"),
        ({"paths": ["${A"], "port": 1}, "that is neither"),
        ({"paths": ["${A:-${B}"], "port": 1}, "that is neither"),
        ({"paths": ["${A-b}"], "port": 1}, "that is neither"),
        ({"paths": ["${1}"], "port": 1}, "that is neither"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        file.validate(source("file", **values))


def test_description():
    assert file.describe(source("file", paths=["cache", "logs/cache"], value="writable")) == (
        "file cache or logs/cache writable"
    )
    assert file.describe(source("file", paths=["c.yml"], value="yaml", jmespath="a.b")) == "file c.yml a.b"


def test_equal_looks_for_the_service_are_made_once(serve, tmp_path, monkeypatch):
    service = serve(cwd=str(tmp_path))
    asked = []
    whole = procfs.listeners
    monkeypatch.setattr(procfs, "listeners", lambda port: asked.append(port) or whole(port))
    shared = context()
    for path in ("a", "b"):
        look("file", shared, paths=[path], port=service.port)
    assert asked == [service.port]

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe file: is a file or folder there, can its service write to it, what is in it. Nothing is created to find out."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import glob
import grp
import json
import os
import platform
import pwd
import re
import stat
import struct
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, environment_files, jsonlines, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context, absolute
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import MASK, mask_text

VALUES = ("exists", "writable", "strangers", "entries", "size", "age", "match", "json", "yaml")
# What is parsed on the controller travels there; more than this is no configuration.
MAX_BYTES = 512 * 1024
MAX_LINE = 2000
# Less is no room for anything.
LEAST_SPACE = 1024 * 1024
SHOWN = 5
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^${}]*))?\}", re.ASCII)
_KEPT = re.compile("\0(\\d+)\0")
_UNSET = "\1"
# Who has this capability is not stopped by mode bits: root, unless it was taken from it.
_CAP_DAC_OVERRIDE = 1 << 1
# _IOR('f', 1, long) of linux/fs.h; some architectures say "read" with another bit.
_ELSEWHERE = platform.machine().startswith(("ppc", "mips", "sparc", "alpha"))
_GETFLAGS = (0x40000000 if _ELSEWHERE else 0x80000000) | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_IMMUTABLE, _APPEND = 0x10, 0x20
_WRITE, _SEARCH = 2, 1

SPEC: dict[str, t.Any] = {
    "paths": {"type": "list", "elements": "str", "required": True},
    "port": {"type": "int"},
    "value": {"type": "str", "choices": list(VALUES), "default": "exists"},
    "jmespath": {"type": "str"},
    "pattern": {"type": "str"},
}
RULES: dict[str, t.Any] = {
    "required_if": [
        ("value", "json", ("jmespath",)),
        ("value", "yaml", ("jmespath",)),
        ("value", "match", ("pattern",)),
    ]
}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    value = source["value"]
    if not any(source["paths"]):
        raise ValueError("paths names no path")
    if source["jmespath"] and value not in ("json", "yaml"):
        raise ValueError(f"jmespath goes with the values json and yaml, and value is {value}")
    if source["pattern"]:
        if value != "match":
            raise ValueError(f"pattern goes with the value match, and value is {value}")
        try:
            re.compile(source["pattern"])
        except re.error as error:
            raise ValueError(f"pattern {source['pattern']!r} is no regular expression: {error}") from None
    for path in source["paths"]:
        if not path:
            raise ValueError("paths has an empty path")
        rest = path
        while _VARIABLE.search(rest):
            rest = _VARIABLE.sub("", rest)
        if "${" in rest:
            raise ValueError(f"the path {path!r} has a ${{ that is neither ${{NAME}} nor ${{NAME:-default}}")
        if path.startswith("~") and path != "~" and not path.startswith("~/"):
            raise ValueError(f"the path {path!r} begins with ~ and not with ~/, the home of the service's user")
        if value != "exists" and glob.has_magic(path):
            raise ValueError(f"the path {path!r} has one of * ? [, which only the value exists looks for")
        if not source["port"] and not os.path.isabs(path):
            raise ValueError(f"the path {path!r} depends on the service, which takes the port that it listens on")
        if not source["port"] and "${" in path:
            raise ValueError(f"the path {path!r} has a variable of the service, which takes the port it listens on")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    return f"file {' or '.join(source['paths'])} {source['jmespath'] or source['value']}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Take the first path that exists, else the first, and give the value of it."""
    value = source["value"]
    if value == "exists":
        return _exists(context, source)
    text, path, status = _chosen(context, source)
    if status is None and value != "writable":
        if value == "match":
            # What does not exist has no such line.
            return _no_match(path, _missing(path), source.get("note"))
        raise Absent(f"{_missing(path)}.")
    try:
        if status is None or value == "writable":
            return _writable(context, source["port"], text, path, status)
        evidence: dict[str, t.Any] = {"file": path}
        if value == "age":
            evidence["modified_at"] = clock.utc(status.st_mtime)
            return {"value": max(0.0, time.time() - status.st_mtime), "evidence": evidence}
        if value == "size":
            return {"value": _size(context, path, status), "evidence": evidence}
        if value in ("entries", "strangers"):
            return _entries(context, path, value)
        if value == "match":
            return _match(path, source["pattern"], source.get("note"))
        return _content(path, value)
    except PermissionError:
        raise NoAnswer(f"{path} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission") from None
    except NotADirectoryError:
        raise NoAnswer(f"{path} is no folder.", "content") from None
    except IsADirectoryError:
        raise NoAnswer(f"{path} is a folder.", "content") from None
    except OSError as error:
        raise NoAnswer(f"{path} cannot be read: {error.strerror}.", "error") from None


# --- which file is meant


def _chosen(context: Context, source: t.Mapping[str, t.Any]) -> tuple[str, str, os.stat_result | None]:
    """The first of the paths that exists, else the first: as it was given, as it is, and what is there."""
    first = None
    for text in source["paths"]:
        # One after the other, for the next may depend on what cannot be seen.
        path = _resolved(context, text, source["port"])
        status = _stat(path)
        first = first or (text, path, status)
        if status is not None:
            return text, path, status
    if first is None:
        raise NoAnswer("No path is given.", "no data")
    return first


def _pid(context: Context, port: int | None) -> int | None:
    """The service's process: the oldest that listens on the port; None where there is none."""
    if not port:
        return None
    found = context.once(("process", port, None), lambda: procfs.listeners(port))
    return found[0] if found else None


def _environment(context: Context, path: str, port: int) -> tuple[int, dict[str, str]]:
    """The process that listens on the port, and what it was started with."""
    pid = _pid(context, port)
    if pid is None:
        raise NoAnswer(
            f"{path} depends on the service's environment, and nothing listens on port {port}; give an absolute path.",
            "no data",
        )
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError as error:
        raise NoAnswer(
            f"{path} depends on the service's environment, which {procfs.user(os.geteuid())} may not see "
            f"({error.strerror}); run with -b, or give an absolute path.",
            "permission",
        ) from None
    pairs = (os.fsdecode(word).partition("=") for word in words)
    return pid, {**_dotenv(context, pid), **{name: value for name, _equals, value in pairs}}


def _dotenv(context: Context, pid: int) -> dict[str, str]:
    """What a .env file where the process was started adds to its environment, as python-dotenv and others do."""
    path = f"/proc/{pid}/cwd/.env"
    try:
        return context.once(("dotenv", path), lambda: environment_files.load(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise NoAnswer(
            f"The service's .env may not be read by {procfs.user(os.geteuid())} ({error.strerror}); run with -b.",
            "permission",
        ) from None


def _resolved(context: Context, path: str, port: int | None, escape: t.Callable[[str], str] = str) -> str:
    """An absolute path; `escape` is for what comes from the host, where the path is a pattern."""
    text = path
    if port and ("${" in path or path.startswith("~")):
        pid, environment = _environment(context, path, port)
        text = _expanded(path, environment, escape)
        if text == "~" or text.startswith("~/"):
            text = escape(_home(pid, environment)) + text[1:]
    if os.path.isabs(text):
        return text
    return escape(absolute(context, text, port)[: -len(text)]) + text


def _expanded(path: str, environment: t.Mapping[str, str], escape: t.Callable[[str], str]) -> str:
    """The path with the variables of the service; as in a shell, an empty one is as good as none."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        value = environment.get(found[1]) or None
        if value is None and found[2] is not None:
            return found[2]
        # What a variable holds is not looked into for variables; and that one is not set may not matter.
        kept.append(f"{_UNSET}{found[1]}{_UNSET}" if value is None else escape(value))
        return f"\0{len(kept) - 1}\0"

    text = path
    while _VARIABLE.search(text):
        text = _VARIABLE.sub(keep, text)
    text = _KEPT.sub(lambda found: kept[int(found[1])], text)
    if _UNSET in text:
        name = text.split(_UNSET)[1]
        raise NoAnswer(f"{path} has {name}, which the service's environment has not.", "no data")
    return text


def _home(pid: int, environment: t.Mapping[str, str]) -> str:
    if environment.get("HOME"):
        return environment["HOME"]
    uid = os.stat(f"/proc/{pid}").st_uid
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        raise NoAnswer(
            f"uid {uid}, as which the service runs, has no home; give an absolute path.", "no data"
        ) from None


def _stat(path: str) -> os.stat_result | None:
    """What there is behind a path, links followed; None where there is nothing."""
    try:
        return os.stat(path)
    except PermissionError:
        raise NoAnswer(
            f"Whether {path} exists may not be seen by {procfs.user(os.geteuid())}; run with -b.", "permission"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise NoAnswer(f"{path} cannot be looked at: {error.strerror}.", "error") from None


def _missing(path: str) -> str:
    """That something does not exist; a link to nothing looks as if it did."""
    try:
        return f"{path} is a link to {os.readlink(path)}, which does not exist"
    except OSError:
        return f"{path} does not exist"


# --- its values


def _exists(context: Context, source: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    first = ""
    for text in source["paths"]:
        magic = glob.has_magic(text)
        path = _resolved(context, text, source["port"], glob.escape if magic else str)
        first = first or path
        found = _matching(path) if magic else [path][: _stat(path) is not None]
        if found:
            return {"value": True, "evidence": {"file": found[0], "found": found[:SHOWN]}}
    note = f"nothing matches {first}" if glob.has_magic(source["paths"][0]) else _missing(first)
    return {"value": False, "evidence": {"file": first, "found": []}, "note": note}


def _matching(pattern: str) -> list[str]:
    """What exists and matches. Unlike the glob of the standard library, it says what it was not let into."""
    found = ["/"]
    refused: list[NoAnswer] = []
    for part in filter(None, pattern.split("/")):
        below = []
        for folder in found:
            try:
                below += _below(folder, part)
            except NoAnswer as error:
                refused.append(error)
        found = below
    if not found and refused:
        raise refused[0]
    return found


def _below(folder: str, part: str) -> list[str]:
    if not glob.has_magic(part):
        path = os.path.join(folder, part)
        return [path] if _stat(path) is not None else []
    try:
        names = sorted(os.listdir(folder))
    except PermissionError:
        user = procfs.user(os.geteuid())
        raise NoAnswer(f"What {folder} has may not be seen by {user}; run with -b.", "permission") from None
    except OSError:
        return []
    names = [name for name in names if name[0] != "." or part[0] == "."]
    paths = (os.path.join(folder, name) for name in fnmatch.filter(names, part))
    return [path for path in paths if _stat(path) is not None]


def _size(context: Context, path: str, status: os.stat_result) -> int:
    """The bytes of a file; of a folder, those of all files below it, each once, however many names it has."""
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    ends = time.monotonic() + context.timeout
    seen: set[tuple[int, int]] = set()
    total = 0
    folders = [path]
    while folders:
        folder = folders.pop()
        for entry in _listed(folder, ends):
            one = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(one.st_mode):
                folders.append(entry.path)
            elif (one.st_dev, one.st_ino) not in seen:
                seen.add((one.st_dev, one.st_ino))
                total += one.st_size
    return total


def _listed(folder: str, ends: float) -> t.Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if time.monotonic() > ends:
                raise NoAnswer(f"What {folder} has takes too long to be read.", "timeout")
            yield entry


def _entries(context: Context, path: str, value: str) -> dict[str, t.Any]:
    count = 0
    strangers = []
    for entry in _listed(path, time.monotonic() + context.timeout):
        count += 1
        if value == "strangers" and not entry.is_file(follow_symlinks=False):
            strangers.append(entry.name)
    evidence: dict[str, t.Any] = {"file": path, "entries": count}
    if value == "entries":
        return {"value": count, "evidence": evidence}
    evidence["strangers"] = [_shown(name) for name in sorted(strangers)[:SHOWN]]
    note = f"{path} has {', '.join(evidence['strangers'])}" if strangers else None
    return {"value": len(strangers), "evidence": evidence, "note": note}


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def _read(path: str) -> bytes:
    with jsonlines.open_file(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise NoAnswer(f"{path} is larger than {MAX_BYTES // 1024} KiB and was not read.", "size")
    return data


def _match(path: str, pattern: str, otherwise: str | None) -> dict[str, t.Any]:
    """Whether a line of a file matches; `otherwise` says what to do where none does."""
    found = re.search(pattern, _read(path).decode("utf-8", "replace"), re.MULTILINE)
    if not found:
        return _no_match(path, f"{path} has no line that matches {pattern}", otherwise)
    return {"value": True, "evidence": {"file": path}, "note": None}


def _no_match(path: str, why: str, otherwise: str | None) -> dict[str, t.Any]:
    return {"value": False, "evidence": {"file": path}, "note": "; ".join(filter(None, (why, otherwise)))}


def _content(path: str, value: str) -> dict[str, t.Any]:
    """What is in a file, for JMESPath on the controller."""
    data = _read(path)
    kind = value.upper()
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text, parse_constant=_refuse) if value == "json" else masked_yaml(text)
    except UnicodeDecodeError as error:
        raise NoAnswer(f"{path} is no {kind}: byte {error.start + 1} is no UTF-8.", "content") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} in line {error.lineno}, column {error.colno}" if text.strip() else "it is empty"
        raise NoAnswer(f"{path} is no JSON: {where}.", "content") from None
    except RecursionError:
        raise NoAnswer(f"{path} is no JSON that can be read: it is nested too deeply.", "content") from None
    except ValueError as error:
        raise NoAnswer(f"{path} is no {kind} that can be read: {error}.", "content") from None
    return {"outcome": value, "value": content, "evidence": {"file": path}}


def _refuse(constant: str) -> t.NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


_KEY = re.compile(r"(?P<lead>(?P<indent>\s*)(?:- +)*)(?P<key>[\"']?[\w.-]+[\"']?)\s*:(?=\s|$)")


def masked_yaml(text: str) -> str:
    """YAML without what looks like a secret, and still YAML with the same structure around it."""
    lines: list[str] = []
    deeper: int | None = None
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        if deeper is not None:
            # The rest of a secret: a block, a list, which may be as far out as its key, or a text of several lines.
            begins = line.lstrip()[:2]
            if not begins or begins[0] == "#" or indent > deeper or (indent == deeper and begins == "- "):
                continue
            deeper = None
        found = _KEY.match(line)
        # To find what looks like a secret takes seconds in a line of many thousand letters.
        long = len(line) > MAX_LINE
        if long and line.lstrip()[0] == "#":
            continue
        if long and not (found and len(found["key"]) < MAX_LINE):
            raise ValueError(f"it has a line of more than {MAX_LINE} characters")
        if found and (long or mask_text(f"{found['key']}: x").endswith(MASK)):
            lines.append(f"{found['lead']}{found['key']}: masked")
            deeper = len(found["lead"]) if found["lead"].strip() else len(found["indent"])
            continue
        # What closes a list or a mapping in one line is not part of its last value.
        spaced = re.sub(r"(?=[}\]])", " ", line)
        cleaned = mask_text(spaced)
        lines.append(line if cleaned == spaced else cleaned.replace(MASK, "masked"))
    return "\n".join(lines)


# --- whether the service can write to a folder


@dataclass
class _User:
    uid: int
    gids: frozenset[int]
    # Whether mode bits are no obstacle.
    mighty: bool
    note: str = ""

    @property
    def name(self) -> str:
        return procfs.user(self.uid)


def _user_of(context: Context, port: int | None, status: os.stat_result) -> tuple[_User, int | None]:
    """As whom the service runs; where nothing does, the folder's owner stands for it."""
    pid = _pid(context, port)
    if pid is not None:
        try:
            said = procfs.status(pid)
            # The identity that counts for files is the last of four.
            gids = [int(said["Gid"].split()[3]), *map(int, said["Groups"].split())]
            mighty = bool(int(said["CapEff"], 16) & _CAP_DAC_OVERRIDE)
            return _User(int(said["Uid"].split()[3]), frozenset(gids), mighty), pid
        except (OSError, KeyError, IndexError):
            why = f"what listened on port {port} has just ended"
    else:
        why = f"nothing listens on port {port}" if port else "no port names the service"
    uid, gids = status.st_uid, [status.st_gid]
    try:
        entry = pwd.getpwuid(uid)
        gids = os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, OSError):
        pass
    return _User(uid, frozenset(gids), uid == 0, f"{why}, so it is judged for its owner"), None


def _writable(
    context: Context, port: int | None, text: str, path: str, status: os.stat_result | None
) -> dict[str, t.Any]:
    if status is None:
        return {"value": "missing", "evidence": {"file": path}, "note": _missing(path)}
    user_of, pid = _user_of(context, port, status)
    if not stat.S_ISDIR(status.st_mode):
        note = f"{path} is no folder, but a file of {procfs.user(status.st_uid)}, and {user_of.name} cannot write in it"
        return {"value": "not a directory", "evidence": {"file": path}, "note": note}
    seen = _as_seen_by(pid, path)
    owner = f"{procfs.user(status.st_uid)}:{_group(status.st_gid)}"
    space = os.statvfs(seen)
    # What is kept for root is there for root alone.
    root = user_of.uid == 0
    free = (space.f_bfree if root else space.f_bavail) * space.f_frsize
    inodes = space.f_ffree if root else space.f_favail
    evidence = {
        "file": path,
        "user": user_of.name,
        "owner": owner,
        "permissions": stat.filemode(status.st_mode),
        "free_bytes": free if space.f_blocks else None,
        "free_inodes": inodes if space.f_files else None,
    }
    value, why = "writable", "can write to it"
    # A relative path is looked up from where the service is, however it came there.
    relative = not text.startswith(("/", "~", "$"))
    barrier = _barrier(path, os.path.realpath(absolute(context, "", port)) if relative else "/", user_of)
    flags = _flags(seen, path)
    if space.f_flag & os.ST_RDONLY:
        value, why = "read-only filesystem", "cannot write to it, as its filesystem is mounted read-only"
    elif flags & (_IMMUTABLE | _APPEND):
        kind, letter = ("immutable", "i") if flags & _IMMUTABLE else ("append-only", "a")
        value, why = "immutable", f"cannot write to it, as it is {kind} (chattr -{letter} takes that away)"
    elif barrier:
        value, why = "not writable", f"cannot write to it, as {barrier}"
    elif space.f_blocks and free < LEAST_SPACE:
        value, why = "no space", f"cannot write to it, as its filesystem has {free} bytes left"
    elif space.f_files and not inodes:
        value, why = "no inodes", "cannot write to it, as its filesystem has no inode left"
    note = f"{path} belongs to {owner} ({evidence['permissions']}), and {user_of.name} {why}"
    return {"value": value, "evidence": evidence, "note": "; ".join(filter(None, (note, user_of.note)))}


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def _as_seen_by(pid: int | None, path: str) -> str:
    """The folder where the service has mounts of its own, such as those that systemd makes read-only for a unit."""
    try:
        if pid is not None and os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            seen = f"/proc/{pid}/root{path}"
            if os.path.isdir(seen):
                return seen
    except OSError:
        pass
    return path


def _flags(seen: str, path: str) -> int:
    """The attributes that chattr sets; filesystems without any have none set."""
    try:
        handle = os.open(seen, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        user = procfs.user(os.geteuid())
        raise NoAnswer(f"Whether {path} is immutable may not be seen by {user}; run with -b.", "permission") from None
    try:
        return int(struct.unpack("i", fcntl.ioctl(handle, _GETFLAGS, struct.pack("l", 0))[:4])[0])
    except OSError:
        return 0
    finally:
        os.close(handle)


def _barrier(path: str, start: str, user: _User) -> str:
    """What keeps the user from writing to a folder that is looked up from `start`; '' for nothing."""
    if user.mighty:
        return ""
    real = os.path.realpath(path)
    folders = [real]
    while folders[-1] not in ("/", start):
        folders.append(os.path.dirname(folders[-1]))
    for folder in reversed(folders[1:]):
        if not _permits(folder, user, _SEARCH):
            return f"{folder} is closed to it"
    return "" if _permits(real, user, _WRITE | _SEARCH) else "its permissions are against it"


_ACL = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK = 2, 4, 8, 16


def _permits(path: str, user: _User, wanted: int) -> bool:
    """Whether mode bits, and access control lists where there are any, let a user do this to a folder."""
    status = os.stat(path)
    mode = status.st_mode
    if user.uid == status.st_uid:
        return mode >> 6 & wanted == wanted
    try:
        data = os.getxattr(path, "system.posix_acl_access")[4:]
    except OSError:
        data = b""
    entries = [(tag, number, bits) for tag, bits, number in _ACL.iter_unpack(data)]
    mask = next((bits for tag, _number, bits in entries if tag == _ACL_MASK), 7)
    for tag, number, bits in entries:
        if tag == _ACL_USER and number == user.uid:
            return bits & mask & wanted == wanted
    if entries:
        groups = [
            bits & mask
            for tag, number, bits in entries
            if (tag == _ACL_GROUP and number in user.gids) or (tag == _ACL_GROUP_OBJ and status.st_gid in user.gids)
        ]
    else:
        groups = [mode >> 3] if status.st_gid in user.gids else []
    if groups:
        return any(bits & wanted == wanted for bits in groups)
    return mode & wanted == wanted

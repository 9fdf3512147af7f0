# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environment files as systemd reads them (EnvironmentFile=): read them, change single settings, and put them back.

`uvicorn --env-file` and pydantic read the same files with dotenv, so a value is written as both understand it. Whatever
is not the changed assignment stays byte by byte; a file is replaced in one step, once a copy of it is safe.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import typing as t
from dataclasses import dataclass

from ansible_collections.oncall.runbooks.plugins.module_utils import durable, masking
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused

HIDDEN = "(a secret)"
MANIFEST, COPY = "manifest.json", "original"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEAD = re.compile(r"(?![ \t]*[#;])[ \t]*(?P<key>[^ \t\r\n][^=\r\n]*?)[ \t]*=[ \t]*")
# systemd ignores lines with export; dotenv and a shell do not.
_KEY = re.compile(r"(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_EXPANDED = re.compile(r"\$\{[^}]*\}")
_WAYS = {
    errno.EACCES: "become root with -b",
    errno.EPERM: "become root with -b, and see that the file is not immutable",
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room in the quota of its owner",
    errno.EROFS: "mount its file system read-write",
    errno.ENOENT: "make its folder, or correct the path",
}


Told = dict[str, t.Any]


@dataclass(frozen=True)
class Assignment:
    """One assignment: it stands at text[start:end] without its newline, and what it assigns begins at `value_at`."""

    name: str
    value: str
    start: int
    value_at: int
    end: int


# Reading.


def read(path: str) -> bytes:
    """The bytes of a regular file; OSError otherwise, for opening a pipe would wait for its writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    with open(path, "rb") as file:
        return file.read()


def load(path: str) -> dict[str, str]:
    """The settings of a file; of several assignments of a name the last counts. OSError where it cannot be read."""
    return values(read(path))


def values(content: bytes) -> dict[str, str]:
    """The settings of a file's content. What is no UTF-8 in it is there as surrogates, as in `os.environ`."""
    return {found.name: found.value for found in _parse(_text(content))[0]}


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _parse(text: str) -> tuple[list[Assignment], int | None]:
    """The assignments in their order, and where a value begins whose quote is never closed."""
    found: list[Assignment] = []
    at = 0
    while at < len(text):
        head = _HEAD.match(text, at)
        if not head:
            newline = _NEWLINE.search(text, at)
            at = newline.end() if newline else len(text)
            continue
        value, end, unclosed = _value(text, head.end())
        named = _KEY.fullmatch(head["key"])
        if named:
            found.append(Assignment(named["name"], value, at, head.end(), end))
        if unclosed:
            return found, head.end()
        at = _after(text, end)
    return found, None


def _after(text: str, end: int) -> int:
    """Where the line after this end of a line begins."""
    newline = _NEWLINE.match(text, end)
    return newline.end() if newline else end


def _value(text: str, at: int) -> tuple[str, int, bool]:
    """The value from here on, where it ends, and whether its quote stays open; as systemd's parse_env_file()."""
    value: list[str] = []
    kept = 0  # what is quoted or escaped is not stripped from the end
    quote, bare = "", False
    while at < len(text):
        char = text[at]
        at += 1
        if char == quote:
            quote, kept = "", len(value)
        elif quote == '"' and char == "\\":
            char = text[at : at + 1]
            at += 1
            value.append(char if char in '"\\`$' else "" if char == "\n" else f"\\{char}")
        elif quote:
            value.append(char)
        elif char in "\r\n":
            return _stripped(value, kept), at - 1, False
        elif char == "\\":
            # Of CR and LF only the first is escaped, so that the line ends here.
            value.append(text[at : at + 1].strip("\r\n"))
            at += 1
            bare, kept = True, len(value)
        elif char in "'\"" and not bare:
            quote = char
        elif bare or char not in " \t":
            bare = True
            value.append(char)
    return ("".join(value) if quote else _stripped(value, kept)), len(text), bool(quote)


def _stripped(value: list[str], kept: int) -> str:
    return "".join(value[:kept]) + "".join(value[kept:]).rstrip(" \t")


# Changing the content.


def edit(content: bytes, changes: t.Mapping[str, str | None]) -> bytes:
    """The content with these settings; None removes one. ValueError with a sentence where that cannot be written.

    The last assignment of a name is replaced where it stands, a new one comes at the end, and nothing else is touched.
    """
    text = _text(content)
    last = {found.name: found for found in _parse(text)[0]}
    texts: dict[str, str | None] = {}
    for name, value in changes.items():
        check_name(name)
        found = last.get(name)
        if value is None:
            texts[name] = None
            continue
        quoted = quote(name, value)
        if not found:
            texts[name] = f"{name}={quoted}"
        elif found.value != value:
            texts[name] = text[found.start : found.value_at] + quoted
    return _put(content, texts)


def check_name(name: str) -> None:
    """Raise ValueError for what is no name of a setting."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a setting; use letters, digits and _, and no digit first")


def quote(name: str, value: str) -> str:
    """The value so that systemd and dotenv read the same; ValueError, which does not tell it, where they would not."""
    if _CONTROL.search(value):
        raise ValueError(f"the value of {name} holds a line break or another control character; write it without")
    if _SURROGATE.search(value):
        raise ValueError(f"the value of {name} is no UTF-8, and systemd would ignore the whole file; write it in UTF-8")
    if _EXPANDED.search(value):
        raise ValueError(f"the value of {name} holds ${{...}}, which dotenv expands and systemd does not; write it out")
    if _PLAIN.fullmatch(value):
        return value
    if "'" not in value and "\\" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _put(content: bytes, texts: t.Mapping[str, str | None]) -> bytes:
    """The content with the last assignment of each name replaced by this text; None removes all of them."""
    text = _text(content)
    found, unclosed = _parse(text)
    if unclosed is not None and texts:
        line = len(_NEWLINE.findall(text, 0, unclosed)) + 1
        raise ValueError(f"the quote in line {line} is never closed, and holds all that follows; close it first")
    last = {each.name: each for each in found}
    for each in reversed(found):
        new = texts.get(each.name)
        if each.name in texts and new is None:
            text = text[: each.start] + text[_after(text, each.end) :]
        elif new is not None and each == last[each.name]:
            text = text[: each.start] + new + text[each.end :]
    newline = "\r\n" if "\r\n" in text else "\n"
    for name, new in texts.items():
        if new is None or name in last:
            continue
        if text and not text.endswith(("\n", "\r")):
            text += newline
        if text.rstrip("\r\n").endswith("\\") and len(_NEWLINE.findall(text[-4:])) < 2:
            # A backslash at the end of the last line would join the new one to it.
            text += newline
        text += new + newline
    return _bytes(text)


def as_text(name: str, value: t.Any) -> str | None:
    """The text of a value that YAML gave; None stays. ValueError, which does not tell it, for lists and such."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise ValueError(f"the value of {name} is neither text nor a number; write it as text, between quotes")


# Showing.


def looks_secret(name: str, value: str) -> bool:
    """Whether the name says that it is a secret, or the value looks like one."""
    pair = f"{name}=x"
    return masking.mask_text(pair) != pair or masking.mask_text(value) != value


def shown(name: str, value: str | None, secret: bool = False) -> str:
    """The value as it may be told to everybody."""
    if value is None:
        return "(not set)"
    if not value:
        return "(empty)"
    if secret or looks_secret(name, value):
        return HIDDEN
    return _bytes(value).decode("utf-8", "replace")


# Changing the file.


def present(
    path: str, changes: t.Mapping[str, str | None], secrets: t.Collection[str], backup: str | None, check: bool
) -> Told:
    """Give the settings these values, None for none at all, once a copy is safe; Refused where that cannot be done."""
    path = os.path.realpath(path)
    old = _current(path)
    try:
        new = edit(old or b"", changes)
    except ValueError as error:
        raise Refused(f"{path} cannot be changed: {error}. Nothing was changed.") from None
    was, then = values(old or b""), values(new)
    manifest = _manifest(backup, path) if backup else None
    if not check and new != (old or b""):
        if backup:
            changed = [name for name in changes if was.get(name) != then.get(name)]
            manifest = _keep(backup, manifest, path, old, new, changed, secrets)
        try:
            _replace(path, new)
        except OSError as error:
            raise _cannot(path, error) from None
    return _told(path, changes, was, then, secrets, backup if manifest else None)


def restored(path: str, backup: str, check: bool) -> Told:
    """Give the settings that `present` changed their previous values; Refused where somebody else has changed one."""
    path = os.path.realpath(path)
    manifest = _manifest(backup, path)
    if manifest is None:
        # The manifest is written before the file is touched.
        if not check and not os.path.isdir(os.path.dirname(os.path.abspath(backup))):
            raise Refused(f"There is no folder for {backup}; name the one that the change was made with.")
        return _told(path, (), {}, {}, (), None)
    old, settings = _current(path), manifest["settings"]
    original = _original(backup) if manifest["existed"] else None
    was = values(old or b"")
    strange = [name for name, kept in settings.items() if was.get(name) not in (kept["previous"], kept["written"])]
    new: bytes | None
    if old == original or (old is not None and _digest(old) in manifest["written_sha256"]):
        new = original
    elif strange:
        raise Refused(
            f"{', '.join(strange)} in {path} has been changed by somebody else meanwhile; set it by hand, the copy of "
            f"the file is in {backup}. Nothing was changed."
        )
    else:
        texts = {name: kept["text"] for name, kept in settings.items() if was.get(name) != kept["previous"]}
        try:
            new = _put(old or b"", texts)
        except ValueError as error:
            raise Refused(f"{path} cannot be changed: {error}. Nothing was changed.") from None
        if not new and (old is None or not manifest["existed"]):
            new = None
    if not check and new != old:
        try:
            if new is None:
                os.unlink(path)
                durable.sync_folder(os.path.dirname(path))
            else:
                _replace(path, new, manifest["owner"], manifest["group"], int(manifest["mode"], 8))
        except OSError as error:
            raise _cannot(path, error) from None
    secrets = [name for name, kept in settings.items() if kept["secret"]]
    return _told(path, settings, was, values(new or b""), secrets, backup)


def _told(
    path: str,
    names: t.Iterable[str],
    was: t.Mapping[str, str],
    then: t.Mapping[str, str],
    secrets: t.Collection[str],
    backup: str | None,
) -> Told:
    """What became of these settings, without their secrets."""
    names = list(names)
    before = {name: shown(name, was.get(name), name in secrets) for name in names}
    after = {name: shown(name, then.get(name), name in secrets) for name in names}
    changed = [name for name in names if was.get(name) != then.get(name)]
    lines: dict[str, str] = {"before_header": path, "after_header": path}
    for side, told, those in (("before", before, was), ("after", after, then)):
        # Two secrets look alike, and their line is there because they are not.
        other = "(another secret)" if side == "after" else HIDDEN
        lines[side] = "".join(
            f"{name}={other if told[name] == before[name] == HIDDEN else told[name] if those[name] else ''}\n"
            for name in changed
            if name in those
        )
    return {
        "changed": bool(changed),
        "path": path,
        "before": before,
        "after": after,
        "backup": backup,
        "diff": lines if changed else {"before": "", "after": ""},
    }


def _current(path: str) -> bytes | None:
    """The file's bytes, None where there is none yet."""
    try:
        return read(path)
    except FileNotFoundError:
        if os.path.isdir(os.path.dirname(path)):
            return None
        raise Refused(
            f"{path} cannot be made, for {os.path.dirname(path)} is no folder; make it, or correct the path."
        ) from None
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); {_way(error)}. Nothing was changed.") from None


def _cannot(path: str, error: OSError) -> Refused:
    return Refused(f"{path} cannot be written ({error.strerror}); {_way(error)}. Nothing was changed.")


def _way(error: OSError) -> str:
    return _WAYS.get(error.errno or 0, "look at it")


# The copy.


def _keep(
    backup: str,
    manifest: Told | None,
    path: str,
    old: bytes | None,
    new: bytes,
    changed: t.Iterable[str],
    secrets: t.Collection[str],
) -> Told:
    """Note how the file is before it becomes `new`; what an earlier try has noted stays."""
    text = _text(old or b"")
    last = {found.name: found for found in _parse(text)[0]}
    then = values(new)
    try:
        if not os.path.isdir(backup):
            os.makedirs(backup, mode=0o700)
            os.chmod(backup, 0o700)
            durable.sync_folder(os.path.dirname(os.path.abspath(backup)))
        if manifest is None:
            about = os.stat(path) if old is not None else None
            if old is not None:
                _replace(os.path.join(backup, COPY), old)
            manifest = {
                "path": path,
                "existed": old is not None,
                "owner": about.st_uid if about else -1,
                "group": about.st_gid if about else -1,
                "mode": f"{stat.S_IMODE(about.st_mode) if about else 0o600:04o}",
                "settings": {},
                # All that the file has been by us alone; from each of them the copy leads back.
                "written_sha256": [],
            }
        ours = manifest["written_sha256"]
        if old == (_original(backup) if manifest["existed"] else None) or (old is not None and _digest(old) in ours):
            ours.append(_digest(new))
        for name in changed:
            found = last.get(name)
            first = {
                "previous": found.value if found else None,
                "text": text[found.start : found.end] if found else None,
            }
            manifest["settings"][name] = {
                **manifest["settings"].get(name, first),
                "written": then.get(name),
                "secret": name in secrets,
            }
        _replace(os.path.join(backup, MANIFEST), (json.dumps(manifest, indent=1) + "\n").encode())
    except OSError as error:
        raise Refused(
            f"The copy of {path} cannot be kept in {backup} ({error.strerror}); {_way(error)}. Nothing was changed."
        ) from None
    return manifest


def _manifest(backup: str, path: str) -> Told | None:
    """What an earlier try has noted; None where there was none."""
    try:
        manifest = json.loads(read(os.path.join(backup, MANIFEST)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{backup} cannot be read ({error.strerror}); {_way(error)}. Nothing was changed.") from None
    except ValueError:
        raise Refused(f"{backup}/{MANIFEST} is damaged; look at it, and set the settings by hand.") from None
    if manifest["path"] != path:
        raise Refused(f"{backup} holds the copy of {manifest['path']} and not of {path}; name the folder of this file.")
    return t.cast(Told, manifest)


def _original(backup: str) -> bytes:
    try:
        return read(os.path.join(backup, COPY))
    except OSError as error:
        raise Refused(
            f"The copy {backup}/{COPY} cannot be read ({error.strerror}); {_way(error)}. Nothing was changed."
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace(path: str, content: bytes, owner: int = -1, group: int = -1, mode: int = 0o600) -> None:
    """Replace a file so that a crash at any moment leaves the old or the new one; the owner and the mode stay."""
    folder = os.path.dirname(path)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if os.path.exists(path):
                about = os.stat(path)
                os.chown(temporary, about.st_uid, about.st_gid)
                # The mode, and with the extended attributes ACLs and the label of SELinux; but not the time.
                shutil.copystat(path, temporary)
                os.utime(temporary)
            else:
                os.chown(temporary, owner, group)
                os.chmod(temporary, mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    durable.sync_folder(folder)

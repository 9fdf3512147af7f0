# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The timeline: one line of JSON for everything that happened, each chained to the one before.

A line ends with its number, the link of the line before and its own: an HMAC-SHA256 over everything before it when
there is a key, else a plain SHA-256, which finds accidents and nothing else. `<timeline>.head` repeats the last link:
a cut tail is found without anything else; whoever cuts both is found with the link that a run has printed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import stat
import tempfile
import typing as t
from dataclasses import dataclass, field

ENVIRONMENT = "ONCALL_RUNBOOKS_RECORD_KEY"
NONE = "0" * 64
_BLOCK = 64 * 1024
_MAC = b',"mac":"'
_LINK = re.compile(rb'[0-9a-f]{64}"}')
# A timeline with another key has one problem, not one for each line.
_MOST = 20


class Broken(ValueError):
    """The timeline cannot be appended to; the message is one sentence."""


@dataclass
class Appended:
    """The last link, and the lines as they stand in the file."""

    last: str
    texts: list[str]


@dataclass
class Verification:
    """Whether the chain holds; problems say where it does not, warnings what a crash has left."""

    lines: int = 0
    keyed: bool = False
    last: str = NONE
    first_at: str | None = None
    last_at: str | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def load_key(path: str | None, environ: t.Mapping[str, str]) -> bytes | None:
    """The key from its file, else from the environment, else None; ValueError for a file that cannot be one."""
    if not path:
        return environ[ENVIRONMENT].encode() if environ.get(ENVIRONMENT) else None
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read().strip()
    except OSError as error:
        raise ValueError(f"The key of the record {path} cannot be read: {error.strerror}.") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"The key of the record {path} may be read by others; chmod 600 it.")
    if not key:
        raise ValueError(
            f"The key of the record {path} is empty; put a random one in, such as of openssl rand -hex 32."
        )
    return key


def _link(body: bytes, key: bytes | None) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest() if key else hashlib.sha256(body).hexdigest()


def _line(entry: t.Mapping[str, t.Any], number: int, before: str, key: bytes | None) -> tuple[bytes, str]:
    data = {**entry, "keyed": key is not None, "seq": number, "prev": before}
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=str).encode()[:-1]
    link = _link(body, key)
    return body + _MAC + link.encode() + b'"}\n', link


def _split(line: bytes) -> tuple[bytes, str]:
    """What a line's link covers, and the link; ValueError when it is no line of a timeline."""
    body, separator, rest = line.rpartition(_MAC)
    if not separator or not _LINK.fullmatch(rest) or not body.startswith(b"{"):
        raise ValueError("it is no line of a timeline")
    return body, rest[:64].decode("ascii")


def _parsed(line: bytes | str, link: str) -> dict[str, t.Any]:
    """A line, or a head, with its number and a link under its name; ValueError when it is none."""
    try:
        data = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(data, dict) or not isinstance(data.get("seq"), int) or not isinstance(data.get(link), str):
        raise ValueError("it is no line of a timeline")
    return data


def append(path: str, entries: t.Sequence[t.Mapping[str, t.Any]], key: bytes | None) -> Appended:
    """Add lines under a lock, and fsync them; a last line that a killed run left torn is kept and told of."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Unbuffered: what could not be written must not be tried again when the file is closed.
        with open(path, "a+b", buffering=0) as file:
            tail = _tail(file)
            torn, number, before = tail.torn, 0, NONE
            if tail.last:
                number, before = _checked(path, tail.last, key)
            _refuse_cut(path, number, before)
            end = file.seek(0, os.SEEK_END)
            written, texts = b"" if tail.ended else b"\n", []
            for entry in entries:
                number += 1
                extra = {} if torn is None else {"after_torn": hashlib.sha256(torn).hexdigest()}
                torn = None
                line, before = _line({**entry, **extra}, number, before, key)
                written += line
                texts.append(line[:-1].decode())
            try:
                while written:
                    written = written[file.write(written) :]
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, end)
                raise
        _write_head(path, number, before, key)
    return Appended(before, texts)


@dataclass
class _Tail:
    """The last whole line, what a killed run left after it, and whether the file ends with a newline."""

    last: bytes = b""
    torn: bytes | None = None
    ended: bool = True


def _tail(file: t.BinaryIO) -> _Tail:
    at = file.seek(0, os.SEEK_END)
    if not at:
        return _Tail()
    data = b""
    while at > 0 and data.count(b"\n") < 3:
        size = min(_BLOCK, at)
        at -= size
        file.seek(at)
        data = file.read(size) + data
    ended = data.endswith(b"\n")
    lines = data.removesuffix(b"\n").split(b"\n")
    try:
        # Whole, even where a killed run did not come to its newline.
        _split(lines[-1])
        return _Tail(lines[-1], None, ended)
    except ValueError:
        return _Tail(lines[-2] if len(lines) > 1 else b"", lines[-1], ended)


def _checked(path: str, line: bytes, key: bytes | None) -> tuple[int, str]:
    """The number and the link of the last whole line."""
    try:
        body, link = _split(line)
        data = _parsed(line, "prev")
    except ValueError:
        raise Broken(f"The last line of the timeline {path} is damaged; look at it, and move the file away.") from None
    if data.get("keyed") is not (key is not None) or not hmac.compare_digest(_link(body, key), link):
        raise Broken(
            f"The timeline {path} was written with another key, or changed: give the key that it was written with, or "
            "move it away."
        )
    return data["seq"], link


def _refuse_cut(path: str, number: int, link: str) -> None:
    """The head is written after its line: a tail that ends before that one was cut, and going on would hide it."""
    try:
        seq, mac, _covered, _proof = _read_head(path)
    except FileNotFoundError:
        # The first line is there a moment before the first head.
        if number > 1:
            raise Broken(
                f"{path}.head is missing, so a tail that was cut off would not show; look at the timeline, and move it "
                "away."
            ) from None
        return
    except ValueError:
        raise Broken(f"{path}.head is damaged; look at the timeline, and move both away.") from None
    if seq > number or (seq == number and mac != link):
        raise Broken(
            f"The timeline {path} ends with line {number}, and {path}.head names another line {seq}: its end was cut "
            "off or changed; look at it, and move both away."
        )


def _read_head(path: str) -> tuple[int, str, bytes, str]:
    """The number and the link of the last line, what the head's own link covers, and that link."""
    with open(f"{path}.head", encoding="ascii") as file:
        covered, proof = file.read().splitlines()
    data = _parsed(covered, "mac")
    return data["seq"], data["mac"], covered.encode(), proof


def _write_head(path: str, number: int, link: str, key: bytes | None) -> None:
    body = json.dumps({"seq": number, "mac": link}, separators=(",", ":"))
    folder = os.path.dirname(path) or "."
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{body}\n{_link(body.encode(), key)}\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, f"{path}.head")
        folder_handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder_handle)
        finally:
            os.close(folder_handle)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def verify(path: str, key: bytes | None, last: str | None = None, partial: bool = False) -> Verification:
    """Read all of it and follow its chain; `partial` for a host's copy, in which lines are missing by design."""
    result = Verification(keyed=key is not None)
    with contextlib.ExitStack() as stack:
        # A run may be writing just now. A copy of the file has no lock.
        with contextlib.suppress(OSError):
            lock = stack.enter_context(open(f"{path}.lock", "rb"))
            fcntl.flock(lock, fcntl.LOCK_SH)
        links, number, torn = _follow(path, key, result, partial)
        if not partial:
            _compare_head(path, key, result, links, number)
    if last and last != result.last:
        if last in links:
            result.warnings.append(
                f"{last[:12]} is not the last link: it is that of line {links[last]}, and lines have been added since"
            )
        else:
            result.problems.append(
                f"the link {last[:12]}, which a run has printed, is not in it: its tail was cut or rewritten"
            )
    if torn and (result.problems or partial):
        result.problems.append(f"line {torn} is cut: it does not end with a newline")
    elif torn:
        # Every line that was ever told of is there, so this one is of a run that never came to its end.
        result.warnings.append(f"line {torn} was torn when a run was killed while it wrote")
    if not result.lines and not result.problems:
        result.problems.append("it is empty")
    if len(result.problems) > _MOST:
        result.problems[_MOST:] = [f"and {len(result.problems) - _MOST} more"]
    return result


def report(path: str, key: bytes | None, last: str | None = None, partial: bool = False) -> dict[str, t.Any]:
    """What verifying says, for a person and for a job; a timeline that cannot be read is a problem too."""
    try:
        found = verify(path, key, last, partial)
    except OSError as error:
        found = Verification(keyed=key is not None, problems=[f"it cannot be read ({error.strerror})"])
    told: dict[str, t.Any] = {
        "valid": found.ok,
        "tamper_evident": found.keyed,
        "lines": found.lines,
        "first_at": found.first_at,
        "last_at": found.last_at,
        "mac": found.last if found.lines else None,
        "problems": found.problems,
        "remarks": found.warnings,
    }
    if found.problems:
        told["problem"] = f"The record {path} is not whole: {found.problems[0]}."
    return told


def _follow(
    path: str, key: bytes | None, result: Verification, partial: bool
) -> tuple[dict[str, int], int, int | None]:
    """The links with the numbers of their lines, the last number, and the place of a line without its end."""
    links: dict[str, int] = {}
    number = 0
    torn: tuple[int, bytes] | None = None
    with open(path, "rb") as file:
        for place, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                if torn is not None:
                    result.problems.append(f"line {torn[0]} is no line of a timeline")
                return links, number, place
            try:
                body, link = _split(raw[:-1])
                data = _parsed(raw, "prev")
            except ValueError:
                if torn is not None or partial:
                    result.problems.append(f"line {place} is no line of a timeline")
                torn = None if partial else (place, raw[:-1])
                continue
            seq, prev = data["seq"], data["prev"]
            if torn is not None:
                if data.get("after_torn") == hashlib.sha256(torn[1]).hexdigest():
                    result.warnings.append(f"line {torn[0]} was torn when a run was killed while it wrote")
                else:
                    result.problems.append(f"line {torn[0]} is no line of a timeline")
                torn = None
            elif "after_torn" in data and not partial:
                result.problems.append(f"the torn line before line {place} is missing")
            if bool(data.get("keyed")) != (key is not None):
                needs = "the key it was written with is needed" if data.get("keyed") else "it was written without a key"
                result.problems.append(f"line {place} cannot be verified: {needs}")
                break
            if not hmac.compare_digest(_link(body, key), link):
                result.problems.append(f"line {place} has been changed, or was written with another key")
            if not partial and seq != number + 1:
                result.problems.append(
                    f"line {place} does not follow the line before it: its number is {seq} and {number + 1} is due"
                )
            elif not partial and prev != result.last:
                result.problems.append(f"line {place} does not follow the line before it")
            result.last, number = link, seq
            result.last_at = str(data.get("at"))
            result.first_at = result.first_at or result.last_at
            links[link] = seq
            result.lines += 1
    if torn is not None:
        result.problems.append(f"line {torn[0]} is no line of a timeline")
    return links, number, None


def _compare_head(path: str, key: bytes | None, result: Verification, links: dict[str, int], number: int) -> None:
    try:
        seq, mac, covered, proof = _read_head(path)
    except FileNotFoundError:
        result.problems.append(f"{os.path.basename(path)}.head is missing, so a cut tail would not show")
        return
    except (OSError, ValueError):
        result.problems.append(f"{os.path.basename(path)}.head is damaged")
        return
    if not hmac.compare_digest(_link(covered, key), proof):
        result.problems.append(f"{os.path.basename(path)}.head has been changed, or was written with another key")
    elif seq > number:
        result.problems.append(f"its tail was cut: it ends with line {number}, and had {seq}")
    elif links.get(mac) != seq:
        result.problems.append(f"line {seq} is not the one that {os.path.basename(path)}.head names")
    elif seq < number:
        result.warnings.append(
            f"{os.path.basename(path)}.head names line {seq} of {number}: a run was killed while it wrote"
        )

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocked addresses in the kernel: what is there, what a list would change, and changing it; for all backends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import addresses, clock
from ansible_collections.oncall.runbooks.plugins.module_utils.addresses import Block, Covers
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

NAME = "oncall_runbooks"
# Runs a program with this as its input, and returns status, output and errors.
Run = t.Callable[[t.Sequence[str], t.Optional[str]], "tuple[int, str, str]"]
# nftables takes 128 bytes with the end of the text, the others more.
COMMENT_BYTES = 127
_FIELD_BYTES = {"by": 32, "incident": 32}
_LOCK_SECONDS = 60.0
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class Entry(t.NamedTuple):
    """A block in force; `expires` is in seconds since 1970, None where it does not end by itself."""

    block: Block
    expires: float | None = None
    comment: str = ""


class Failed(Exception):
    """The kernel or a program did not do it; one sentence."""


class Backend(t.Protocol):
    """One way to block. Everything that changes is one transaction per call, or is taken back."""

    name: str
    after_reboot: str

    def holds(self) -> bool:
        """Whether something of ours is there; NoAnswer where this backend does not work here."""

    def entries(self) -> list[Entry]:
        """All that is blocked, or would be but for what `broken` says."""

    def broken(self) -> str | None:
        """Why what `entries` has just listed is not in force, in a sentence; `apply` mends it."""

    def known(self, wanted: t.Sequence[Block]) -> list[Entry] | None:
        """What could be seen at once and may stand for one of these; None where all has to be listed."""

    def create(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        """Add these; False, and nothing is changed, where one of them exists."""

    def apply(self, remove: t.Sequence[Block], put: t.Sequence[Block], ttl: int | None, comment: str) -> None:
        """Remove some, and put others in, in place of their like."""

    def confirm(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        """Put these in place of their like; False, and nothing is changed, where one of them has ended."""

    def flush(self) -> None:
        """Remove everything of ours."""


def program(name: str) -> str | None:
    """Where a program is; sudo and cron often have no sbin in their PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH') or os.defpath}:{_SBIN}")


def runner(run_command: t.Callable[..., tuple[int, str, str]]) -> Run:
    """Run programs by a module's own way. That one fails to run does not end the module."""

    def run(command: t.Sequence[str], text: str | None) -> tuple[int, str, str]:
        options = {"environ_update": {"LC_ALL": "C"}, "errors": "surrogate_then_replace", "handle_exceptions": False}
        try:
            return run_command(list(command), data=text, **options)
        except (OSError, ValueError) as error:
            return 127, "", f"{command[0]}: {error}"

    return run


class Tool:
    """A program that may be missing."""

    def __init__(self, run: Run, name: str) -> None:
        self.name = name
        self._run = run
        self._path = program(name)

    @property
    def there(self) -> bool:
        return self._path is not None

    def __call__(self, *words: str, text: str | None = None) -> tuple[int, str, str]:
        if self._path is None:
            raise NoAnswer(f"{self.name} is not installed.", "no data")
        status, output, errors = self._run([self._path, *words], text)
        if status and re.search(r"not permitted|ermission denied|must be root", errors):
            raise NoAnswer(
                f"{self.name} takes root, with the right to change the network (NET_ADMIN); run with -b.", "permission"
            )
        return status, output, errors


def said(errors: str, output: str = "") -> str:
    """The line of a program that tells what went wrong, short."""
    lines = [line.strip() for line in (errors or output).splitlines() if line.strip()]
    told = next((line for line in lines if "rror" in line or "ermi" in line), lines[0] if lines else "no message")
    return re.sub(r"^(/dev/stdin|-|[^:\s]*):\d+:[\d-]+: ", "", told)[:200].rstrip(". ")


def _short(text: str, limit: int) -> str:
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").rstrip()


def _clean(text: str | None) -> str:
    """One line without what a firewall's syntax, or the parts of a comment, are told by."""
    printable = "".join(one if one.isprintable() else " " for one in text or "")
    return " ".join(re.sub(r"[\\|`$]", " ", printable).replace('"', "'").split())


def comment(now: float, by: str | None, incident: str | None, reason: str | None) -> str:
    """Since when, who, for which incident and why; the reason is cut at what is left of 127 bytes."""
    parts = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))]
    parts += [_short(_clean(by), _FIELD_BYTES["by"]), _short(_clean(incident), _FIELD_BYTES["incident"])]
    return _short("|".join([*parts, _clean(reason)]), COMMENT_BYTES)


def parts_of(text: str) -> dict[str, str | None]:
    """A comment read back; what somebody else wrote is the reason."""
    words = text.split("|", 3)
    if len(words) < 3 or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", words[0]):
        return {"since": None, "by": None, "incident": None, "reason": text or None}
    words += [""] * (4 - len(words))
    return {"since": words[0], "by": words[1] or None, "incident": words[2] or None, "reason": words[3] or None}


@contextlib.contextmanager
def alone(seconds: float = _LOCK_SECONDS) -> t.Iterator[None]:
    """One run at a time lists and then writes, for each network namespace. The kernel gives the lock back."""
    path = f"/run/oncall-runbooks-ip-block-{os.stat('/proc/self/ns/net').st_ino}.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Failed(f"{path} cannot be locked ({error.strerror}), so nothing was changed.") from None
    try:
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Failed(
                        f"Another run has been changing the blocked addresses for {seconds:g} s, so nothing was "
                        "changed; try again when it has ended."
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


class Decision(t.NamedTuple):
    """What a list comes to, beside what is there."""

    add: list[Block]
    renew: list[Block]
    present: list[Block]


def decide(wanted: t.Iterable[Block], there: t.Iterable[Entry], ttl: int | None, now: float) -> Decision:
    """What lasts for half the time that is wanted is present; a network stands for its addresses."""
    entries = {entry.block: entry for entry in there}
    lasting = {
        one
        for one, entry in entries.items()
        if entry.expires is None or (ttl is not None and entry.expires - now >= ttl / 2)
    }
    covers = Covers(lasting)
    found = Decision([], [], [])
    for one in wanted:
        if one in lasting or covers.of(one):
            found.present.append(one)
        else:
            (found.renew if one in entries else found.add).append(one)
    return found


class Change(t.NamedTuple):
    """What was done, or would be. `pending` got the short time of a confirmation, or wait for it.

    `repaired`: somebody else had taken out the rule that makes the entries count.
    """

    added: list[Block]
    removed: list[Block]
    renewed: list[Block]
    present: list[Block]
    pending: list[Block]
    expires: float | None
    repaired: str | None


def block(
    backend: Backend,
    wanted: t.Sequence[Block],
    ttl: int | None,
    comment: str,
    confirm_within: int | None = None,
    check: bool = False,
) -> Change:
    """Block these until they end by themselves. With `confirm_within` that is soon, until `confirm`."""
    now = time.time()
    short = ttl if confirm_within is None else confirm_within
    if not wanted:
        return Change([], [], [], [], [], None, None)
    known = None if check else backend.known(wanted)
    if known is not None:
        found = decide(wanted, known, ttl, now)
        if not found.renew and (not found.add or backend.create(found.add, short, comment)):
            return _change(found, known, ttl, now, confirm_within, None)
    if check:
        there = backend.entries()
        return _change(decide(wanted, there, ttl, now), there, ttl, now, confirm_within, backend.broken())
    with alone():
        there = backend.entries()
        broken = backend.broken()
        now = time.time()
        found = decide(wanted, there, ttl, now)
        ending = {entry.block: entry.expires for entry in there}
        put = list(found.add)
        for one in found.renew:
            ends = ending[one]
            # What is in force goes on; it only must not end before it can be confirmed.
            if confirm_within is None or (ends is not None and ends - now < confirm_within):
                put.append(one)
        if put or broken:
            backend.apply([], put, short, comment)
        return _change(found, there, ttl, now, confirm_within, broken)


def _change(
    found: Decision,
    there: t.Iterable[Entry],
    ttl: int | None,
    now: float,
    confirm_within: int | None,
    repaired: str | None,
) -> Change:
    entries = {entry.block: entry.expires for entry in there}
    covers = Covers(entries)
    ends = []
    for one in found.present:
        blocking = [entries[other] for other in [one, *covers.of(one)] if other in entries]
        # It is blocked until the last of what blocks it ends.
        if blocking and None not in blocking:
            ends.append(max(end for end in blocking if end is not None))
    written = [*found.add, *found.renew]
    if written and ttl is not None:
        ends.append(now + ttl)
    pending = written if confirm_within is not None else []
    return Change(found.add, [], found.renew, found.present, pending, min(ends, default=None), repaired)


def confirm(backend: Backend, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> None:
    """Give what waits for it its real time, or nothing where a part has ended."""
    with alone():
        if not backend.confirm(blocks, ttl, comment):
            raise Failed(
                "The confirmation came too late: some of the addresses are not blocked any more, and the others end "
                "by themselves as well. Set confirm_within to more seconds and run it again."
            )


class Removal(t.NamedTuple):
    """What was removed, or would be, and what stays blocked by a network, with that network."""

    removed: list[Block]
    still: list[tuple[Block, Block]]


def unblock(backend: Backend, unwanted: t.Sequence[Block], check: bool = False) -> Removal:
    """Remove exactly these."""
    with contextlib.nullcontext() if check else alone():
        there = {entry.block for entry in backend.entries()}
        gone = [one for one in unwanted if one in there]
        if gone and not check:
            backend.apply(gone, [], None, "")
    covers = Covers(there - set(gone))
    return Removal(gone, [(one, covering[0]) for one in unwanted for covering in [covers.of(one)] if covering])


def flush(backend: Backend, check: bool = False) -> list[Block]:
    """Remove everything of ours, whoever put it there."""
    with contextlib.nullcontext() if check else alone():
        there = [entry.block for entry in backend.entries()]
        if not check:
            backend.flush()
    return sorted(there)


def choose(backends: t.Sequence[Backend], wanted: str) -> tuple[Backend, list[Backend]]:
    """The backend to block with, and all that hold something of ours; the first that does is the one for `auto`."""
    holding: list[Backend] = []
    working: list[Backend] = []
    reasons = []
    for backend in backends:
        if wanted not in ("auto", backend.name):
            continue
        try:
            (holding if backend.holds() else working).append(backend)
        except NoAnswer as error:
            if error.kind == "permission":
                raise
            reasons.append(str(error).rstrip("."))
    if not holding and not working:
        raise Refused(f"Nothing here can block: {'; '.join(reasons)}. Nothing was changed.")
    return (holding or working)[0], holding


def cut_connections(run: Run, blocks: t.Sequence[Block]) -> dict[str, t.Any]:
    """Forget the connections of these in the kernel's tracking; one list, and one command per source that is in it."""
    tool = Tool(run, "conntrack")
    if not tool.there:
        return {
            "cut": False,
            "connections": None,
            "note": "conntrack is not installed, so the kernel's entries of connections stay until they time out; "
            "nothing that a blocked address sends on them arrives.",
        }
    try:
        return _cut(tool, blocks)
    except NoAnswer as error:
        return {"cut": False, "connections": None, "note": str(error)}


def _cut(tool: Tool, blocks: t.Sequence[Block]) -> dict[str, t.Any]:
    covers, exact = Covers(blocks), set(blocks)
    count = 0
    for version in sorted({one.version for one in blocks}):
        family = ["-f", "ipv4" if version == 4 else "ipv6"]
        status, output, errors = tool("-L", *family)
        if status:
            return {"cut": False, "connections": None, "note": f"conntrack does not list connections: {said(errors)}."}
        sources: dict[str, int] = {}
        for source in re.findall(r"^[^=\n]*? src=(\S+) ", output, re.MULTILINE):
            sources[source] = sources.get(source, 0) + 1
        for source, connections in sources.items():
            one = parsed(source)
            if one is None or (one not in exact and not covers.of(one)):
                continue
            status, _output, errors = tool("-D", *family, "-s", source)
            # They may have ended by themselves meanwhile.
            if status and "0 flow entries" not in errors:
                return {"cut": False, "connections": count, "note": f"conntrack did not cut them: {said(errors)}."}
            count += connections
    return {"cut": True, "connections": count, "note": None}


def parsed(text: str) -> Block | None:
    """An address that a program has printed."""
    try:
        return addresses.block(text)
    except ValueError:
        return None


def told(holding: t.Iterable[Backend]) -> list[dict[str, t.Any]]:
    """What is blocked, as it is shown."""
    found = [(entry, backend.name) for backend in holding for entry in backend.entries()]
    return [
        {
            "address": entry.block.text,
            "expires_at": None if entry.expires is None else clock.utc(entry.expires),
            **parts_of(entry.comment),
            "backend": name,
        }
        for entry, name in sorted(found, key=lambda pair: pair[0].block)
    ]

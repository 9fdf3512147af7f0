# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block with iptables and ip6tables alone: a chain of our own with a rule per address, written whole in one commit.

A rule ends by `-m time --datestop`; it is taken out of the chain by the next run that changes something.
"""

from __future__ import annotations

import contextlib
import re
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import blocklist, clock, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.addresses import Block
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist import Entry, Failed
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

CHAIN = "ONCALL_RUNBOOKS"
# raw comes before connection tracking. Some kernels do not have it.
TABLES = ("raw", "mangle")
_LEGACY_TABLES = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}
_LATEST = 2**31 - 1
_STAMP = "%Y-%m-%dT%H:%M:%S"
_COMMENT = re.compile(r"--comment (?:\"((?:[^\"\\]|\\.)*)\"|(\S+))")


class Xtables:
    """iptables or ip6tables, and a chain of ours in the first table that a packet meets."""

    def __init__(self, run: blocklist.Run, version: int, chain: str) -> None:
        self.version = version
        self.chain = chain
        self.name = "iptables" if version == 4 else "ip6tables"
        self._tool = blocklist.Tool(run, self.name)
        self._restore = blocklist.Tool(run, f"{self.name}-restore")
        self._legacy: bool | None = None

    @property
    def there(self) -> bool:
        return self._tool.there and self._restore.there

    def _there_already(self, table: str) -> bool:
        """Whether looking at a table leaves no trace: the old iptables makes a table by looking at it."""
        if self._legacy is None:
            _status, output, _errors = self._tool("--version")
            self._legacy = "nf_tables" not in output
        if not self._legacy:
            return True
        try:
            return table in procfs.read(_LEGACY_TABLES[self.version]).split()
        except OSError:
            # Only with the module loaded is there such a file.
            return False

    def _list(self, table: str) -> list[str] | None:
        """The rules of a table; None where the kernel has no such table."""
        status, output, _errors = self._tool("-w", "-t", table, "-S")
        if status:
            return None
        return output.splitlines()

    def find(self) -> tuple[str, list[str]] | None:
        """The table with our chain, and the rules of that table."""
        if not self.there:
            return None
        for table in TABLES:
            lines = self._list(table) if self._there_already(table) else None
            if lines is not None and f"-N {self.chain}" in lines:
                return table, lines
        return None

    def works(self) -> bool:
        """Whether it may be used, as far as that can be told without a trace."""
        if not self.there:
            return False
        return not self._there_already("filter") or self._list("filter") is not None

    def rules(self) -> list[str]:
        found = self.find()
        start = f"-A {self.chain} "
        return [line for line in found[1] if line.startswith(start)] if found else []

    def _commit(self, table: str, lines: t.Iterable[str]) -> None:
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        status, output, errors = self._restore("--noflush", "-w", text=text)
        if status:
            raise Failed(f"{self.name}-restore took nothing of it: {blocklist.said(errors, output)}.")

    def jumped_to(self) -> bool:
        """Whether packets come to our chain."""
        found = self.find()
        return found is not None and f"-A PREROUTING -j {self.chain}" in found[1]

    def write(self, rules: t.Sequence[str]) -> None:
        """These rules in our chain, in place of those that are there, and the chain before everything else."""
        found = self.find()
        if found is None:
            usable = ((table, self._list(table)) for table in TABLES)
            found = next(((table, lines) for table, lines in usable if lines is not None), None)
        if found is None:
            raise Failed(f"{self.name} has neither a raw nor a mangle table here, so it cannot block.")
        table, lines = found
        before = [line for line in lines if line.startswith("-A PREROUTING ")]
        jump = f"-A PREROUTING -j {self.chain}"
        script = [f":{self.chain} - [0:0]", *rules]
        if before[:1] != [jump] or before.count(jump) > 1:
            script += [f"-D PREROUTING -j {self.chain}"] * before.count(jump)
            script.append(f"-I PREROUTING 1 -j {self.chain}")
        self._commit(table, script)

    def remove(self) -> None:
        found = self.find()
        if found is None:
            return
        table, lines = found
        jumps = lines.count(f"-A PREROUTING -j {self.chain}")
        self._commit(table, [*[f"-D PREROUTING -j {self.chain}"] * jumps, f"-F {self.chain}", f"-X {self.chain}"])


def parse(lines: t.Iterable[str]) -> list[Entry]:
    """The rules of our chain as `iptables -S` prints them."""
    found = []
    for line in lines:
        source = re.match(rf"-A {CHAIN} -s (\S+) ", line)
        one = blocklist.parsed(_short(source[1])) if source else None
        if one is None:
            continue
        comment = _COMMENT.search(line)
        told = comment[1] if comment and comment[1] is not None else comment[2] if comment else ""
        stop = re.search(r" --datestop (\S+)", _COMMENT.sub("", line))
        ends = clock.seconds(f"{stop[1]}Z") if stop else None
        found.append(Entry(one, ends, re.sub(r"\\(.)", r"\1", told)))
    return found


def _short(source: str) -> str:
    return re.sub(r"/32$" if ":" not in source else r"/128$", "", source)


def rule(entry: Entry) -> str:
    parts = [f"-A {CHAIN} -s {entry.block.address}/{entry.block.length}"]
    if entry.expires is not None:
        parts.append(f"-m time --datestop {time.strftime(_STAMP, time.gmtime(entry.expires))}")
    if entry.comment:
        parts.append(f'-m comment --comment "{entry.comment}"')
    return " ".join([*parts, "-j DROP"])


class Iptables:
    name = "iptables"
    after_reboot = "A reboot removes it, unless somebody saves the rules of iptables and loads them again."

    def __init__(self, run: blocklist.Run) -> None:
        self._tables = {version: Xtables(run, version, CHAIN) for version in (4, 6)}

    def holds(self) -> bool:
        if not any(tables.there for tables in self._tables.values()):
            raise NoAnswer("iptables is not installed", "no data")
        if any(tables.find() for tables in self._tables.values()):
            return True
        if not any(tables.works() for tables in self._tables.values()):
            raise NoAnswer("iptables does not work here", "no data")
        return False

    def entries(self) -> list[Entry]:
        """What is in force; rules that have ended are none."""
        now = time.time()
        found = [one for tables in self._tables.values() for one in parse(tables.rules())]
        return [entry for entry in found if entry.expires is None or entry.expires > now]

    def broken(self) -> str | None:
        for tables in self._tables.values():
            if tables.rules() and not tables.jumped_to():
                return f"nothing leads to the chain {CHAIN} of {tables.name}"
        return None

    def known(self, wanted: t.Sequence[Block]) -> list[Entry] | None:
        return None

    def create(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        return False

    def apply(self, remove: t.Sequence[Block], put: t.Sequence[Block], ttl: int | None, comment: str) -> None:
        now = time.time()
        if ttl is not None and now + ttl > _LATEST:
            raise Refused("ttl is too long for iptables, which ends in 2038; leave it out. Nothing was changed.")
        ends = None if ttl is None else float(int(now + ttl) + 1)
        there = {entry.block: entry for entry in self.entries()}
        later = {one: entry for one, entry in there.items() if one not in {*remove}}
        later.update({one: Entry(one, ends, comment) for one in put})
        # Without any, it is to mend what is there.
        touched = sorted({one.version for one in [*remove, *put] or there})
        for version in touched:
            if not self._tables[version].there:
                raise Refused(f"{self._tables[version].name} is not installed, so nothing was changed.")
        done: list[int] = []
        try:
            for version in touched:
                self._write(version, later)
                done.append(version)
        except Failed:
            for version in done:
                with contextlib.suppress(Failed):
                    self._write(version, there)
            raise

    def _write(self, version: int, entries: t.Mapping[Block, Entry]) -> None:
        rules = [rule(entry) for one, entry in sorted(entries.items()) if one.version == version]
        if rules:
            self._tables[version].write(rules)
        else:
            self._tables[version].remove()

    def confirm(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        if not {*blocks} <= {entry.block for entry in self.entries()}:
            return False
        self.apply([], blocks, ttl, comment)
        return True

    def flush(self) -> None:
        for tables in self._tables.values():
            tables.remove()

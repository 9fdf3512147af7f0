# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block with ipset and iptables: a set per family, and a chain of our own with the one rule that drops what is in it.

`ipset restore` is no transaction: where it stops in the middle, what this run had done is taken back.
"""

from __future__ import annotations

import contextlib
import re
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import blocklist
from ansible_collections.oncall.runbooks.plugins.module_utils.addresses import Block
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist import NAME, Entry, Failed
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_iptables import Xtables
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

SETS = {4: f"{NAME}4", 6: f"{NAME}6"}
# Apart from the one of the backend iptables, which has rules of its own in it.
CHAIN = "ONCALL_RUNBOOKS_SET"
MOST = 1048576
LONGEST = 2147483
_FAMILIES = {4: "inet", 6: "inet6"}
_ADD = re.compile(rf"^add {NAME}([46]) (\S+)(?: timeout (\d+))?(?:.*? comment \"([^\"]*)\")?", re.MULTILINE)


def parse(text: str, now: float) -> list[Entry]:
    """The members of our sets as `ipset save` prints them."""
    found = []
    for _version, address, timeout, comment in _ADD.findall(text):
        one = blocklist.parsed(address)
        if one is not None:
            found.append(Entry(one, now + int(timeout) if timeout and int(timeout) else None, comment))
    return found


def member(one: Block, ttl: int | None, comment: str) -> str:
    line = f"add {SETS[one.version]} {one.text} timeout {ttl or 0}"
    return f'{line} comment "{comment}"' if comment else line


class Ipset:
    name = "ipset"
    after_reboot = "A reboot removes it, unless somebody saves the sets and the rules and loads them again."

    def __init__(self, run: blocklist.Run) -> None:
        self._ipset = blocklist.Tool(run, "ipset")
        self._tables = {version: Xtables(run, version, CHAIN) for version in (4, 6)}
        self._there: dict[Block, Entry] = {}

    def _sets(self) -> list[int]:
        """The families that have a set of ours."""
        status, output, errors = self._ipset("list", "-n")
        if status:
            raise NoAnswer(f"ipset does not work here ({blocklist.said(errors)})", "no data")
        names = output.split()
        return [version for version, name in SETS.items() if name in names]

    def holds(self) -> bool:
        if self._sets() or any(tables.find() for tables in self._tables.values()):
            return True
        if not self._tables[4].works():
            raise NoAnswer("ipset takes iptables, which does not work here", "no data")
        return False

    def entries(self) -> list[Entry]:
        found = []
        for version in self._sets():
            status, output, errors = self._ipset("save", SETS[version])
            if status:
                raise Failed(f"ipset does not list {SETS[version]}: {blocklist.said(errors)}.")
            found += parse(output, time.time())
        self._there = {entry.block: entry for entry in found}
        return found

    def broken(self) -> str | None:
        for version in {one.version for one in self._there}:
            tables = self._tables[version]
            if self._rule(version) not in tables.rules() or not tables.jumped_to():
                return f"no rule of {tables.name} drops what is in the set {SETS[version]}"
        return None

    @staticmethod
    def _rule(version: int) -> str:
        return f"-A {CHAIN} -m set --match-set {SETS[version]} src -j DROP"

    def known(self, wanted: t.Sequence[Block]) -> list[Entry] | None:
        """For one address, ipset itself tells whether anything in the set has it; more have to be listed."""
        if len(wanted) > 1:
            return None
        if wanted[0].version not in self._sets():
            return []
        status, _output, errors = self._ipset("test", SETS[wanted[0].version], wanted[0].text)
        return [] if status and "NOT in set" in errors else None

    def create(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        if len(blocks) > 1:
            return False
        self._check(blocks, ttl)
        try:
            self._write(blocks, [member(blocks[0], ttl, comment)])
        except FileExistsError:
            return False
        except Failed as error:
            # It was not there before.
            if blocks[0].version in self._sets():
                self._ipset("del", SETS[blocks[0].version], blocks[0].text, "-exist")
            raise Failed(f"{str(error).rstrip('.')}; what was done of it is taken back.") from None
        return True

    def apply(self, remove: t.Sequence[Block], put: t.Sequence[Block], ttl: int | None, comment: str) -> None:
        self._check(put, ttl)
        lines = [f"del {SETS[one.version]} {one.text} -exist" for one in remove]
        lines += [f"{member(one, ttl, comment)} -exist" for one in put]
        try:
            self._write(put, lines)
        except Failed as error:
            self._take_back([*remove, *put])
            raise Failed(f"{str(error).rstrip('.')}; what was done of it is taken back.") from None

    def _check(self, blocks: t.Sequence[Block], ttl: int | None) -> None:
        if ttl is not None and ttl > LONGEST:
            raise Refused(
                f"ttl is {ttl} s, and ipset takes at most {LONGEST} (24 days); give less, or leave it out. Nothing "
                "was changed."
            )
        for version in {one.version for one in blocks}:
            if not self._tables[version].there:
                raise Refused(f"{self._tables[version].name} is not installed. Nothing was changed.")

    def _write(self, blocks: t.Sequence[Block], lines: t.Sequence[str]) -> None:
        there = self._sets()
        # Without any, it is to mend what is there.
        versions = sorted({one.version for one in blocks} or there)
        made = [
            f"create {SETS[version]} hash:net family {_FAMILIES[version]} maxelem {MOST} timeout 0 comment"
            for version in versions
            if version not in there
        ]
        status, output, errors = self._ipset("restore", text="\n".join([*made, *lines, ""]))
        if status:
            told = f"ipset did not take it: {blocklist.said(errors, output)}."
            if "already added" in errors:
                raise FileExistsError(told)
            raise Failed(told)
        for version in versions:
            self._tables[version].write([self._rule(version)])

    def _take_back(self, blocks: t.Iterable[Block]) -> None:
        """As it was: members that were there with the time they had left, the others gone."""
        now, lines = time.time(), []
        for one in blocks:
            entry = self._there.get(one)
            if entry is None:
                lines.append(f"del {SETS[one.version]} {one.text} -exist")
            elif entry.expires is None or entry.expires > now + 1:
                left = None if entry.expires is None else int(entry.expires - now)
                lines.append(f"{member(one, left, entry.comment)} -exist")
        # A set that was never made has nothing to take back.
        for version in self._sets():
            mine = [line for line in lines if line.split()[1] == SETS[version]]
            self._ipset("restore", text="\n".join([*mine, ""]))
        if not self._there:
            with contextlib.suppress(Failed):
                self.flush()

    def confirm(self, blocks: t.Sequence[Block], ttl: int | None, comment: str) -> bool:
        if not {*blocks} <= {entry.block for entry in self.entries()}:
            return False
        self.apply([], blocks, ttl, comment)
        return True

    def flush(self) -> None:
        for tables in self._tables.values():
            tables.remove()
        for version in self._sets():
            # The kernel lets go of a set a moment after the rule that used it.
            for attempt in range(20):
                status, _output, errors = self._ipset("destroy", SETS[version])
                if status == 0:
                    break
                if attempt == 19:
                    raise Failed(f"ipset does not remove {SETS[version]}: {blocklist.said(errors)}.")
                time.sleep(0.05)

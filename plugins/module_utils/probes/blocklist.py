# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe blocklist: how many addresses are blocked here, and what must never be; see module_utils/blocklist.py."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import addresses, protected_addresses
from ansible_collections.oncall.runbooks.plugins.module_utils import blocklist as blocked
from ansible_collections.oncall.runbooks.plugins.module_utils.blocklist_all import backends_of
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

_SHOWN = 20

SPEC: dict[str, t.Any] = {
    "never_block": {"type": "list", "elements": "str", "default": []},
    "backend": {"type": "str", "choices": ["auto", "nftables", "ipset", "iptables"], "default": "auto"},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    try:
        addresses.parse(source["never_block"], "never_block")
    except Refused as error:
        raise ValueError(str(error).removesuffix(" Nothing was changed.").rstrip(".")) from None


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    return "blocked addresses"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """How many entries there are. What must not be blocked is in the evidence, also where the entries are not seen."""
    key = ("blocklist", source["backend"], tuple(source["never_block"]))
    return context.once(key, lambda: _look(context, source))


def _look(context: Context, source: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    evidence: dict[str, t.Any] = {"backend": None, "text": "not seen", "protected": _protected(source["never_block"])}

    def run(command: t.Sequence[str], _text: str | None) -> tuple[int, str, str]:
        return context.run(list(command))

    try:
        backend, holding = blocked.choose(backends_of(run), source["backend"])
        entries = blocked.told(holding)
        problems = [problem for one in holding for problem in [one.broken()] if problem]
    except NoAnswer as error:
        return {"outcome": "no_answer", "kind": error.kind, "note": str(error), "evidence": evidence}
    except blocked.Failed as error:
        return {"outcome": "no_answer", "kind": "error", "note": str(error), "evidence": evidence}
    except Refused as error:
        raise Absent(str(error).removesuffix(" Nothing was changed.").rstrip(".")) from None
    names = ", ".join(one.name for one in holding)
    evidence["backend"] = names or backend.name
    evidence["entries"] = entries[:_SHOWN]
    evidence["text"] = f"{len(entries)} in {names}" if entries else "none"
    return {
        "value": len(entries),
        "evidence": evidence,
        "note": f"what is listed is not in force: {'; '.join(problems)}" if problems else None,
    }


def _protected(never_block: t.Iterable[str]) -> list[dict[str, str]]:
    """What a block on this host would refuse, but for the fixed ranges; also to take it out of a list of offenders."""
    found, _connection = protected_addresses.all_of(os.getpid(), over_network=False, never_block=never_block)
    return [{"network": one.block.text, "rule": one.rule, "what": one.what} for one in found]

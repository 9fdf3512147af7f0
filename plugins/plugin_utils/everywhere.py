# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps that are for all hosts at once, about what findings list: who attacks one is blocked on all. Pure functions."""

from __future__ import annotations

import string
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import addresses
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused

# As many are named in a preview; the plan's file has them all.
NAMED = 10

Step = dict[str, t.Any]
Row = dict[str, t.Any]


def listed(checks: t.Sequence[str], findings: t.Sequence[t.Mapping[str, t.Any]]) -> list[Row]:
    """What the findings in breach among these list, whoever has the most first."""
    rows: dict[str, Row] = {}
    for item in findings:
        if item["id"] in checks and item["status"] == "breach":
            for row in item["evidence"].get("listed") or []:
                _add(rows, row)
    return _ranked(rows)


def merge(
    steps: t.Mapping[str, t.Sequence[Step]],
    everywhere: t.Mapping[str, t.Sequence[Step]],
    frozen: t.Mapping[str, t.Any],
) -> list[Step]:
    """The steps of all hosts. One for all hosts is on each that could be looked at, with what any of them has found.

    `everywhere` has these steps as each host would do them, whether or not it has found anything; `frozen` is what an
    approved plan lists.
    """
    plan: list[Step] = []
    others = any(not step["everywhere"] for own in steps.values() for step in own)
    wanted = list(dict.fromkeys(step["id"] for own in steps.values() for step in own if step["everywhere"]))
    for name in wanted:
        asked = {host: step for host, own in steps.items() for step in own if step["id"] == name}
        each = {host: step for host, own in everywhere.items() for step in own if step["id"] == name}
        given = _given(asked)
        problem = None
        rows: list[Row] = []
        left_out: list[Row] = []
        try:
            if given:
                rows, problem = _named(given, each)
            elif name in frozen:
                rows, left_out = [list(frozen[name].get(key) or []) for key in ("listed", "left_out")]
            else:
                rows, left_out = _judged(asked, each)
        except Refused as error:
            problem = str(error)
        if not rows and not others and problem is None:
            problem = f"there is no address left to block. {_left(left_out)}".strip()
        for host, step in each.items():
            plan.append(_filled(asked.get(host, step), rows, left_out, problem))
    plan += [step for own in steps.values() for step in own if not step["everywhere"]]
    return plan


def frozen_lists(steps: t.Sequence[Step]) -> dict[str, t.Any]:
    """What a plan has to keep of its lists, which grow while one reads them."""
    return {
        step["id"]: {"listed": step["listed"], "left_out": step["left_out"]} for step in steps if step["everywhere"]
    }


def _add(rows: dict[str, Row], row: t.Mapping[str, t.Any]) -> None:
    known = rows.setdefault(str(row["name"]), {"name": str(row["name"]), "count": 0})
    for key in ("count", "succeeded"):
        if key in row:
            known[key] = known.get(key, 0) + row[key]


def _ranked(rows: t.Mapping[str, Row]) -> list[Row]:
    return sorted(rows.values(), key=lambda row: (-row["count"], row["name"]))


def _given(asked: t.Mapping[str, Step]) -> list[str]:
    """What the operator lists, whatever findings do."""
    values = [value for step in asked.values() for name in step["lists"] for value in step["params"].get(name) or []]
    return list(dict.fromkeys(str(value) for value in values))


def _named(given: t.Sequence[str], each: t.Mapping[str, Step]) -> tuple[list[Row], str | None]:
    """The operator's list, and the sentence that refuses it whole."""
    blocks = addresses.parse(given, "runbook_block_addresses")
    forbidden = _forbidden(blocks, each)
    sentences = [f"{item.sentence[:-1]} (on {host})." for host, item in forbidden.values()]
    # As the runbooks' variables name it.
    problem = next((text.replace("allow_private", "runbook_block_private") for text in sentences), None)
    return [{"name": item.text} for item in blocks], problem


def _forbidden(
    blocks: t.Sequence[addresses.Block], each: t.Mapping[str, Step]
) -> dict[addresses.Block, tuple[str, addresses.Forbidden]]:
    """Which of them must not be blocked, and on which host that is so."""
    found: dict[addresses.Block, tuple[str, addresses.Forbidden]] = {}
    for host, step in each.items():
        protected = [
            addresses.Protected(addresses.block(rule["network"]), rule["rule"], rule["what"])
            for rule in step["protected"]
        ]
        protected += [
            addresses.Protected(one, "never_block", "in runbook_never_block")
            for one in addresses.parse(step["params"].get("never_block") or [], "runbook_never_block")
        ]
        _allowed, forbidden = addresses.sift(blocks, protected, bool(step["params"].get("allow_private")))
        for item in forbidden:
            found.setdefault(item.block, (host, item))
    return found


def _judged(asked: t.Mapping[str, Step], each: t.Mapping[str, Step]) -> tuple[list[Row], list[Row]]:
    """What the hosts have found, ranked, without what must not be blocked on one of them, which is named."""
    found: dict[str, Row] = {}
    left_out: list[Row] = []
    for step in asked.values():
        for row in step["listed"]:
            _add(found, row)
    blocks: dict[str, addresses.Block] = {}
    for name, row in found.items():
        try:
            blocks[name] = addresses.block(name)
        except ValueError:
            left_out.append({**row, "why": "no address"})
    forbidden = _forbidden(list(blocks.values()), each)
    rows: dict[str, Row] = {}
    for name, one in blocks.items():
        if one in forbidden:
            host, item = forbidden[one]
            left_out.append({**found[name], "name": one.text, "why": f"{item.why}, on {host}"})
        else:
            # One address may be written in two ways.
            _add(rows, {**found[name], "name": one.text})
    return _ranked(rows), left_out


def _filled(step: Step, rows: list[Row], left_out: list[Row], wrong: str | None) -> Step:
    """The step of a host with the list of all."""
    names = [row["name"] for row in rows]
    said = [_told(row) for row in rows[:NAMED]]
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    flagged = [row["name"] for row in rows if row.get("succeeded", 0) >= max(1, row.get("count", 0))]
    beware = (
        f"Much of what comes from {_some(flagged)} is answered well: a proxy or a NAT with others behind it would be "
        "blocked whole."
        if flagged
        else ""
    )
    texts = {
        "addresses": f"{', '.join(said)}{more}" if rows else "no address",
        "count": f"{len(rows)} address{'es' if len(rows) > 1 else ''}",
        "notes": " ".join(filter(None, (beware, _left(left_out)))),
    }
    params = {**step["params"], **dict.fromkeys(step["lists"], names)}
    about = {**step["identity"]["params"], **dict.fromkeys(step["lists"], sorted(names))}
    identity = {**step["identity"], "params": about}
    problem = step["problem"] or wrong
    if not rows and wrong is None:
        step = {
            **step,
            "preview": f"Block no address: of what was found none may be blocked. {_left(left_out)}".strip(),
        }
    fill = {key: string.Template(step[key]).safe_substitute(texts) for key in ("preview", "undo") if step[key]}
    return {
        **{name: value for name, value in step.items() if name != "protected"},
        **fill,
        "by_hand": [string.Template(line).safe_substitute(texts) for line in step["by_hand"]],
        "params": params,
        "identity": identity,
        "problem": problem,
        "listed": rows,
        "left_out": left_out,
    }


def _left(left_out: t.Sequence[Row]) -> str:
    said = [f"{row['name']} ({row['why']})" for row in left_out]
    return f"Left out: {_some(said)}." if said else ""


def _told(row: Row) -> str:
    if "count" not in row:
        return str(row["name"])
    beside = f", {row['succeeded']} answered well" if "succeeded" in row else ""
    return f"{row['name']} ({row['count']}{beside})"


def _some(names: t.Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a run of a runbook would do what its caller means. Pure functions that return sentences."""

from __future__ import annotations

import difflib
import typing as t

# What a run can do; only the first without being asked by name.
OURS = ("diagnose", "verify", "remediate", "rollback")
# Untagged runs report these; any other name on the command line must be one of ours.
_HARMLESS = ("all",)


def refuse_tags(
    runbook: str, ours: t.Sequence[str], run_tags: t.Sequence[str], skip_tags: t.Sequence[str]
) -> str | None:
    """Why these tags would leave the run without its work, or None."""
    asked = [tag for tag in run_tags if tag in OURS]
    if len(asked) > 1:
        return f"--tags {','.join(asked)} asks for several things; {runbook} does one at a time."
    for tag in run_tags:
        if tag not in ours and tag not in _HARMLESS:
            near = difflib.get_close_matches(tag, ours, 1)
            hint = f"did you mean {near[0]}?" if near else f"{runbook} knows {', '.join(ours)}."
            return f"Unknown tag {tag}: {hint}"
    for tag in skip_tags:
        if tag in ours or tag in ("always", "all", "tagged"):
            return f"--skip-tags {tag} would leave out what {runbook} is for; name what to run with --tags instead."
    return None


def refuse_without_steps(runbook: str, run_tags: t.Sequence[str], has_steps: t.Callable[[], bool]) -> str | None:
    """Why a runbook that only diagnoses does nothing under a tag that changes or compares, or None."""
    asked = next((tag for tag in OURS[1:] if tag in run_tags), None)
    if asked is None or has_steps():
        return None
    what = {"verify": "verify", "remediate": "remediate", "rollback": "roll back"}[asked]
    return f"{runbook} only diagnoses, so there is nothing to {what}; leave --tags {asked} out."


def refuse_mode(mode: str, run_tags: t.Sequence[str], skip_tags: t.Sequence[str]) -> tuple[str | None, str | None]:
    """Why a change must not be made under these tags: an error, or under other people's tags a remark."""
    ours = [tag for tag in run_tags if tag in OURS]
    if len(ours) > 1:
        return f"Nothing was changed: --tags {','.join(run_tags)} asks for several things; {mode} runs alone.", None
    skipped = [tag for tag in skip_tags if tag in OURS or tag in ("always", "all", "tagged")]
    if ours == [mode] and skipped:
        return f"Nothing was changed: --skip-tags {skipped[0]} leaves out what makes {mode} safe.", None
    if ours != [mode]:
        return None, f"{mode} was left out: it runs only under --tags {mode}."
    return None, None


def cover(
    hosts: t.Sequence[str],
    services: t.Sequence[str],
    groups: t.Mapping[str, t.Sequence[str]],
    named: t.Callable[[str], str | None],
) -> tuple[list[str], dict[str, list[str]], dict[str, str]]:
    """The hosts that no service covers, those that more than one does, and those whose runbook_service is none."""
    uncovered: list[str] = []
    ambiguous: dict[str, list[str]] = {}
    strange: dict[str, str] = {}
    members = {service: set(groups.get(service, ())) for service in services}
    for host in hosts:
        own = named(host)
        found = [service for service in services if host in members[service]]
        if own:
            if own not in services:
                strange[host] = own
        elif not found:
            uncovered.append(host)
        elif len(found) > 1:
            ambiguous[host] = found
    return uncovered, ambiguous, strange


def refuse_hosts(
    runbook: str,
    hosts: t.Sequence[str],
    services: t.Sequence[str],
    limit: str | None,
    covered: tuple[list[str], dict[str, list[str]], dict[str, str]],
) -> str | None:
    """Why the runbook cannot run on these hosts, or None."""
    uncovered, ambiguous, strange = covered
    for host, own in strange.items():
        return f"{runbook} has no checks for runbook_service {own!r} of {host}; it has them for {', '.join(services)}."
    for host, found in ambiguous.items():
        return f"{host} is in the groups {' and '.join(found)}; set runbook_service for it."
    if uncovered and (limit or len(uncovered) == len(hosts)):
        return (
            f"{runbook} does not cover {some(uncovered)}: it covers hosts in the group {' or '.join(services)}, "
            f"and hosts with runbook_service set."
        )
    return None


def some(names: t.Sequence[str], most: int = 5) -> str:
    """The names, or the first of them and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

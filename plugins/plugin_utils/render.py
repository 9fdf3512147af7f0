# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A diagnosis as text: the answer in the first lines, then one table."""

from __future__ import annotations

import textwrap
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import judge

Paint = t.Callable[[str, str], str]
WIDTH = 120
_ORDER = {"breach": 0, "unknown": 1, "ok": 2}


def plain(text: str, _kind: str) -> str:
    """No colour."""
    return text


def render(
    diagnosis: t.Mapping[str, t.Any],
    width: int = WIDTH,
    paint: Paint = plain,
    remediate: str | None = None,
    onward: str | None = None,
) -> list[str]:
    """The lines to print for one host.

    `remediate` is the command that applies its plan, `onward` the one that runs what a triage says to run next.
    """
    if "line" in diagnosis:
        return overview([diagnosis], width, paint)
    width = max(60, width)
    status = str(diagnosis["status"])
    badge = _badge(diagnosis)
    head = f"{diagnosis['host']}  {diagnosis['runbook']}"
    lines = [f"{paint(badge, diagnosis['severity'] or status)}  {head}"]
    people = diagnosis.get("escalation")
    whom = responds(people) if people else ""
    # The answer stays in the first three lines: whom it concerns is beside it, not below.
    if whom and len(f"{badge}  {head}  {whom}") <= width:
        lines[0] += f"  {whom}"
        whom = ""
    lines += textwrap.wrap(str(diagnosis["summary"]), width - 2, initial_indent="  ", subsequent_indent="  ")
    lines += textwrap.wrap(_page(diagnosis), width - 2, initial_indent="  ", subsequent_indent="  ")
    lines += textwrap.wrap(whom, width - 2, initial_indent="  ", subsequent_indent="  ")
    if remediate and diagnosis.get("plan"):
        # To be copied, so it is not wrapped.
        lines.append(f"  Remediate: {remediate}")
    ranked = diagnosis.get("runbooks")
    if ranked:
        return lines + _ranked(diagnosis, width, paint, onward)
    cause = next_finding(diagnosis["findings"])
    if cause and cause["next_step"]:
        lines += textwrap.wrap(
            f"Next: {cause['next_step']}", width - 2, initial_indent="  ", subsequent_indent="        "
        )
    reasons = {item["evidence"].get("reason") for item in diagnosis["findings"]}
    if len(diagnosis["findings"]) > 1 and len(reasons) == 1 and None not in reasons and status == "unknown":
        # The host could not be looked at, and the summary has said why.
        return lines
    lines.append("")
    lines += _table(diagnosis["findings"], width, paint)
    lines += _people([diagnosis], width)
    lines += _notes(diagnosis["findings"], width)
    changed = _changes(diagnosis["findings"])
    if changed:
        lines += [
            "",
            *textwrap.wrap(
                f"Changed since the last diagnosis: {changed}", width - 2, initial_indent="  ", subsequent_indent="    "
            ),
        ]
    skipped = [item for item in diagnosis["findings"] if item["status"] == "skipped"]
    if skipped:
        lines += ["", f"  Skipped ({len(skipped)}):"]
        for item in skipped:
            lines += textwrap.wrap(
                f"{item['title']}: {item['evidence'].get('reason', '')}",
                width - 4,
                initial_indent="    ",
                subsequent_indent="      ",
            )
    if diagnosis.get("plan"):
        lines += ["", *plan_lines(diagnosis["plan"], width, diagnosis["findings"])]
    return lines


def _ranked(diagnosis: t.Mapping[str, t.Any], width: int, paint: Paint, onward: str | None) -> list[str]:
    """What to run next, and then the runbooks that found something; those that found nothing else beside them."""
    ranked = diagnosis["runbooks"]
    wrong = [entry for entry in ranked if entry["breaches"]]
    lines = []
    if wrong:
        # To be copied, so it is not wrapped.
        lines.append(f"  Next: {onward or 'run ' + wrong[0]['runbook']}")
    rows = [entry for entry in wrong if not entry["same_as"]]
    if rows:
        longest = max(len(entry["runbook"]) for entry in rows)
        labels = max(6, *(len(entry["label"]) for entry in rows))
        lines += ["", f"  {'STATUS':<{labels}}  {'RUNBOOK':<{longest}}  WHAT IT SAYS"]
        for entry in rows:
            left = f"  {entry['label']:<{labels}}  {entry['runbook']:<{longest}}  "
            text = textwrap.wrap(entry["summary"], max(20, width - len(left) - 2))
            same = [other["runbook"] for other in wrong if other["same_as"] == entry["runbook"]]
            if same:
                text += textwrap.wrap(f"(also seen by {', '.join(same)})", max(20, width - len(left) - 2))
            painted = paint(f"{entry['label']:<{labels}}", entry["severity"])
            lines.append(f"  {painted}  {entry['runbook']:<{longest}}  {text[0]}")
            lines += [" " * len(left) + line for line in text[1:]]
    lines += _people([diagnosis], width)
    unseen = [item for item in diagnosis["findings"] if item["status"] == "unknown"]
    reasons: dict[str, list[str]] = {}
    for item in unseen:
        reasons.setdefault(str(item["evidence"].get("reason", "")).rstrip("."), []).append(item["title"])
    if reasons:
        lines += ["", f"  Not known ({len(unseen)}):"]
        for reason, titles in reasons.items():
            named = ", ".join(dict.fromkeys(titles))
            lines += textwrap.wrap(f"{named}: {reason}.", width - 4, initial_indent="    ", subsequent_indent="      ")
    quiet = [entry["runbook"] for entry in ranked if entry["status"] == "healthy"]
    if quiet:
        lines += [
            "",
            *textwrap.wrap(
                f"Nothing found by: {', '.join(quiet)}", width - 2, initial_indent="  ", subsequent_indent="    "
            ),
        ]
    lines += _notes([item for item in diagnosis["findings"] if item["status"] == "breach"], width)
    return lines


def overview(diagnoses: t.Sequence[t.Mapping[str, t.Any]], width: int = WIDTH, paint: Paint = plain) -> list[str]:
    """One line per host, never wrapped, and below them what their labels ask of people."""
    badges = [_badge(diagnosis) for diagnosis in diagnoses]
    longest = max(len(badge) for badge in badges)
    hosts = max(len(str(diagnosis["host"])) for diagnosis in diagnoses)
    lines = []
    for diagnosis, badge in zip(diagnoses, badges):
        status = str(diagnosis["status"])
        # Where something is wrong the cause comes first: what follows may be beyond the terminal's edge.
        cause = "" if status == "healthy" else " ".join(str(diagnosis["summary"]).split())
        shown = f"({diagnosis['line']})" if cause and diagnosis["line"] else diagnosis["line"]
        painted = paint(badge, diagnosis["severity"] or status) + " " * (longest - len(badge))
        words = " ".join(filter(None, (cause, _page(diagnosis), shown)))
        lines.append(f"{diagnosis['host']:<{hosts}}  {painted}  {words}".rstrip())
    return lines + _people(diagnoses, width, everybody=True)


def responds(entry: t.Mapping[str, t.Any]) -> str:
    """Who responds to a label, and within which time."""
    seconds = int(entry["respond_within"])
    size, word = next(
        (size, word) for size, word in ((3600, "hour"), (60, "minute"), (1, "second")) if seconds % size == 0
    )
    count = seconds // size
    return f"{entry['label']}: {count} {word}{'s' if count > 1 else ''}, {' → '.join(entry['path'])}"


def _badge(diagnosis: t.Mapping[str, t.Any]) -> str:
    return " ".join(filter(None, (str(diagnosis["status"]).upper(), diagnosis["label"])))


def _page(diagnosis: t.Mapping[str, t.Any]) -> str:
    """The sentence that somebody is to be paged, where one is."""
    return next((str(item["evidence"]["page"]) for item in diagnosis["findings"] if item["evidence"].get("page")), "")


def _people(diagnoses: t.Sequence[t.Mapping[str, t.Any]], width: int, everybody: bool = False) -> list[str]:
    """Who responds to the labels that the first line does not tell of, or to all of them, and where they are found."""
    told = [diagnosis["escalation"] for diagnosis in diagnoses if diagnosis.get("escalation")]
    entries = [entry for one in told for entry in ([one] if everybody else []) + one["others"]]
    places = {f"{name}: {place}": None for one in told for name, place in one["contacts"].items()}
    # What is to be responded to soonest comes first.
    named = dict.fromkeys(responds(entry) for entry in sorted(entries, key=lambda entry: entry["respond_within"]))
    texts = [*named, *(["Contacts: " + "; ".join(places)] if places else [])]
    lines = [
        line
        for text in texts
        for line in textwrap.wrap(
            text, width - 2, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    ]
    return ["", *lines] if lines else []


def plan_lines(
    plan: t.Mapping[str, t.Any], width: int = WIDTH, findings: t.Sequence[t.Mapping[str, t.Any]] = ()
) -> list[str]:
    """What would be done, step by step."""
    titles = {item["id"]: item["title"] for item in findings}
    count = len(plan["steps"])
    what = "To undo" if plan.get("undo") else "Plan"
    lines = [f"  {what} {plan['id']}: {count} step{'s' if count > 1 else ''} on {', '.join(plan['hosts'])}"]
    for place, step in enumerate(plan["steps"], 1):
        words = [step["risk"], "can be rolled back" if step["reversible"] else "cannot be undone"]
        lines.append(f"  {place}. {step['title']} on {step['host']} ({', '.join(words)})")
        because = ", ".join(titles.get(name, name) for name in step["because"])
        for line in [*([f"Because of: {because}"] if because else []), *str(step["preview"]).splitlines()]:
            lines += textwrap.wrap(
                line, width - 5, initial_indent="     ", subsequent_indent="     ", break_on_hyphens=False
            )
        if step.get("problem"):
            lines += textwrap.wrap(
                f"It cannot be applied: {step['problem']}", width - 5, initial_indent="     ", subsequent_indent="     "
            )
    return lines


def _notes(findings: t.Sequence[t.Mapping[str, t.Any]], width: int) -> list[str]:
    """What limits findings, or where else their values come from, below the table; the same is said once."""
    titles: dict[str, list[str]] = {}
    for item in findings:
        if item["status"] in ("ok", "breach") and item["evidence"].get("note"):
            titles.setdefault(str(item["evidence"]["note"]), []).append(item["title"])
    lines: list[str] = []
    for note, named in titles.items():
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        lines += textwrap.wrap(f"* {named[0]}{more}: {note}", width - 2, initial_indent="  ", subsequent_indent="    ")
    return lines


def next_finding(findings: t.Sequence[t.Mapping[str, t.Any]]) -> t.Mapping[str, t.Any] | None:
    """The finding to act on first: the cause, else the worst."""
    cause = [item for item in findings if item["evidence"].get("cause")]
    wrong = sorted((item for item in findings if item["status"] in ("breach", "unknown")), key=_urgency)
    return next(iter(cause or wrong), None)


def _urgency(item: t.Mapping[str, t.Any]) -> tuple[int, bool, int]:
    severity = {"critical": 0, "high": 1, "medium": 2, "low": 3}.get(item["severity"], 4)
    return _ORDER.get(item["status"], 3), not item["evidence"].get("cause"), severity


def _table(findings: t.Sequence[t.Mapping[str, t.Any]], width: int, paint: Paint) -> list[str]:
    rows = []
    for item in sorted((item for item in findings if item["status"] in _ORDER), key=_urgency):
        status = item["label"] if item["status"] == "breach" else item["status"]
        observed = judge.show(item["observed"], item["unit"])
        if item["evidence"].get("worst"):
            observed += f" ({item['evidence']['worst']})"
        if item["evidence"].get("window") == judge.SINCE_START:
            observed += f", {judge.SINCE_START}"
        then = item["next_step"] if item["status"] == "breach" else ""
        reason = str(item["evidence"].get("reason") or "")
        if item["status"] == "unknown" or (item["status"] == "breach" and reason):
            then = f"{reason.rstrip('.')}. {then}".strip()
        rows.append((status, item["title"], observed, item["expected"] or "", then, item["severity"] or item["status"]))
    if not rows:
        return []
    titles = ("STATUS", "CHECK", "OBSERVED", "EXPECTED")
    sizes = [max(len(titles[place]), *(len(str(row[place])) for row in rows)) for place in range(4)]
    # A narrow terminal gets narrow columns, so that the last one keeps a readable width.
    room = min(82, width - 30)
    sizes = [min(size, limit) for size, limit in zip(sizes, (8, room * 34 // 82, room * 24 // 82, room * 16 // 82))]
    left = 2 + sum(sizes) + 2 * 4
    last = max(10, width - left)
    lines = [("  " + "  ".join(title.ljust(size) for title, size in zip(titles, sizes)) + "  NEXT STEP").rstrip()]
    for row in rows:
        cells = [textwrap.wrap(str(row[place]), sizes[place]) or [""] for place in range(4)]
        cells.append(textwrap.wrap(row[4], last) or [""])
        for number in range(max(len(cell) for cell in cells)):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            first = parts[0].ljust(sizes[0])
            tail = "  ".join(part.ljust(size) for part, size in zip(parts[1:4], sizes[1:4]))
            lines.append(f"  {paint(first, row[5])}  {tail}  {parts[4]}".rstrip())
    return lines


def _changes(findings: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    parts = []
    for item in findings:
        for key, change in (item["evidence"].get("changed") or {}).items():
            if key != "since":
                parts.append(f"{key.replace('_', ' ')} ({item['title']}) {change['was']} -> {change['is']}")
    return "; ".join(parts)

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.filter.diagnosis_stats import diagnosis_stats
from ansible_collections.oncall.runbooks.plugins.filter.diagnosis_text import diagnosis_text
from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.plugin_utils.diagnosis import SCHEMA, finding
from ansible_collections.oncall.runbooks.plugins.plugin_utils.render import (
    WIDTH,
    next_finding,
    overview,
    render,
    responds,
)

NOW = "2026-11-23T03:00:00Z"
SEVERITIES = {"P1": "critical", "P2": "high", "P3": "medium", "P4": "low"}


def item(name, status="ok", label=None, **values):
    return finding(name, f"Title of {name}", NOW, status=status, label=label, severity=SEVERITIES.get(label), **values)


def diagnosis(*findings, status="degraded", label="P2", severity="high", summary="KyroDB is slow."):
    return {
        "schema": SCHEMA,
        "host": "vritti-1",
        "runbook": "high_latency",
        "service": "vritti",
        "status": status,
        "label": label,
        "severity": severity,
        "summary": summary,
        "findings": list(findings),
    }


def test_answer_is_in_the_first_three_lines():
    lines = render(
        diagnosis(
            item("fine", observed=1),
            item(
                "slow", "breach", "P2", observed=0.25, unit="s", expected="at most 50 ms", next_step="Look at the disk."
            ),
        )
    )
    assert lines[:3] == ["DEGRADED P2  vritti-1  high_latency", "  KyroDB is slow.", "  Next: Look at the disk."]
    assert lines[3] == ""


def test_next_step_is_that_of_the_cause():
    worst = item("worst", "breach", "P1", next_step="Wrong.")
    cause = item("cause", "breach", "P3", next_step="Right.", evidence={"cause": True})
    assert next_finding([worst, cause])["id"] == "cause"
    assert "  Next: Right." in render(diagnosis(worst, cause))[:3]
    assert next_finding([item("low", "breach", "P4"), worst])["id"] == "worst"
    assert next_finding([item("u", "unknown"), item("low", "breach", "P4")])["id"] == "low"
    assert next_finding([item("a"), item("b", "skipped")]) is None


def test_table_is_sorted_by_urgency_and_shows_units():
    lines = render(
        diagnosis(
            item("ok_one", observed=0.0042, unit="s", expected="at most 50 ms"),
            item("what", "unknown", evidence={"reason": "Connection refused."}),
            item("low", "breach", "P4", observed=7),
            item("crit", "breach", "P1", observed=False, expected="an answer", next_step="Start it."),
            item("worst", "breach", "P2", observed=2, unit="s", evidence={"worst": "/api/v1/search"}),
            item("old", observed=3, evidence={"window": judge.SINCE_START}),
        )
    )
    rows = [line for line in lines if re.match(r"  (P\d|ok|unknown) ", line)]
    assert [re.findall(r"Title of (\w+)", row)[0] for row in rows] == ["crit", "worst", "low", "what", "ok_one", "old"]
    assert re.search(r"P1 +Title of crit +no +an answer +Start it\.", rows[0])
    text = " ".join(" ".join(lines).split())
    assert "2 s (/api/v1/search)" in text
    assert "3, since process start" in text
    assert re.search(r"ok +Title of ok_one +4\.2 ms +at most 50 ms$", rows[4])
    assert "Connection refused." in rows[3]


def test_cause_is_the_first_row():
    lines = render(diagnosis(item("worst", "breach", "P1"), item("cause", "breach", "P3", evidence={"cause": True})))
    rows = [re.findall(r"Title of (\w+)", line)[0] for line in lines if line.startswith("  P")]
    assert rows == ["cause", "worst"]


def test_breach_by_silence_says_why_and_what_next():
    text = " ".join(
        render(diagnosis(item("a", "breach", "P1", next_step="Start it.", evidence={"reason": "Refused."})))
    )
    assert "Refused. Start it." in " ".join(text.split())


def test_notes_changes_and_skipped_checks_are_told():
    lines = render(
        diagnosis(
            item("a", observed=1, evidence={"note": "an average"}),
            item("b", observed=1, evidence={"changed": {"since": NOW, "started_at": {"was": "x", "is": "y"}}}),
            item("c", "skipped", evidence={"reason": "this deployment exports no metrics."}),
        )
    )
    assert "  * Title of a: an average" in lines
    assert "  Changed since the last diagnosis: started at (Title of b) x -> y" in lines
    assert lines[-2:] == ["  Skipped (1):", "    Title of c: this deployment exports no metrics."]


def test_colour_is_around_words_and_changes_no_column():
    one = diagnosis(
        item("a", "breach", "P2", observed=1, next_step="Go."),
        item("b"),
        item("c", "unknown", evidence={"reason": "?"}),
    )
    painted = render(one, paint=lambda text, kind: f"<{kind}|{text}>")
    assert painted[0].startswith("<high|DEGRADED P2>")
    assert any("<high|P2" in line for line in painted)
    assert any("<ok|ok" in line for line in painted)
    assert any("<unknown|unknown" in line for line in painted)
    assert [re.sub(r"<\w+\|([^>]*)>", r"\1", line) for line in painted] == render(one)


def test_only_skipped():
    lines = render(diagnosis(item("c", "skipped"), status="unknown", label=None, severity=None))
    assert lines[0] == "UNKNOWN  vritti-1  high_latency"
    assert not any("NEXT STEP" in line for line in lines)


PLAN = {
    "id": "20261124T0300Z-0123456789ab",
    "hosts": ["vritti-1"],
    "steps": [
        {
            "id": "restart_vritti",
            "title": "Restart Vritti",
            "host": "vritti-1",
            "risk": "disruptive",
            "reversible": False,
            "because": ["a"],
            "preview": "Stop it.\nThe same by hand: systemctl restart vritti",
            "problem": None,
        }
    ],
}


def test_the_command_that_remediates_is_the_third_line():
    lines = render(
        {**diagnosis(item("a", "breach", "P1")), "plan": PLAN}, remediate="ansible-playbook x.yml " + "y" * 200
    )
    assert lines[2] == "  Remediate: ansible-playbook x.yml " + "y" * 200


def test_the_plan_is_shown_step_by_step():
    lines = render({**diagnosis(item("a", "breach", "P1")), "plan": PLAN})
    text = "\n".join(lines)
    assert (
        "  Plan 20261124T0300Z-0123456789ab: 1 step on vritti-1\n"
        "  1. Restart Vritti on vritti-1 (disruptive, cannot be undone)\n" in text
    )
    assert text.endswith("     Stop it.\n     The same by hand: systemctl restart vritti")


def test_whom_to_page_is_said_before_what_to_type():
    late = {**item("a", "breach", "P1"), "evidence": {"page": "Page the on-call engineer."}}
    lines = render({**diagnosis(late), "plan": PLAN}, remediate="x")
    assert lines[2:4] == ["  Page the on-call engineer.", "  Remediate: x"]


PEOPLE = {
    "label": "P1",
    "respond_within": 900,
    "path": ["on-call", "team lead", "VP Engineering"],
    "others": [{"label": "P3", "respond_within": 14400, "path": ["on-call via ticket"]}],
    "contacts": {"Slack": "#vritti-incidents", "status page": "status.example.com"},
}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (900, "15 minutes"),
        (3600, "1 hour"),
        (5400, "90 minutes"),
        (86400, "24 hours"),
        (60, "1 minute"),
        (45, "45 seconds"),
    ],
)
def test_response_times_are_words(seconds, words):
    assert responds({"label": "P2", "respond_within": seconds, "path": ["a", "b"]}) == f"P2: {words}, a → b"


def test_who_responds_stands_beside_the_answer_and_those_of_other_labels_below_the_table():
    one = diagnosis(item("a", "breach", "P1", next_step="Go."), item("b", "breach", "P3"), label="P1")
    lines = render({**one, "escalation": PEOPLE})
    assert lines[:4] == [
        "DEGRADED P1  vritti-1  high_latency  P1: 15 minutes, on-call → team lead → VP Engineering",
        "  KyroDB is slow.",
        "  Next: Go.",
        "",
    ]
    assert lines[-3:] == [
        "",
        "  P3: 4 hours, on-call via ticket",
        "  Contacts: Slack: #vritti-incidents; status page: status.example.com",
    ]
    assert len([text for text in lines if "P1: 15 minutes" in text]) == 1


def test_who_responds_has_a_line_of_its_own_on_a_narrow_terminal():
    lines = render({**diagnosis(item("a", "breach", "P1"), label="P1"), "escalation": PEOPLE}, 80)
    assert lines[:3] == [
        "DEGRADED P1  vritti-1  high_latency",
        "  KyroDB is slow.",
        "  P1: 15 minutes, on-call → team lead → VP Engineering",
    ]


def test_nobody_is_named_where_nobody_is_known():
    healthy = {**diagnosis(item("a")), "status": "healthy", "label": None, "severity": None, "escalation": None}
    nobody = {**PEOPLE, "others": [], "contacts": {}}
    for one in (healthy, {**diagnosis(item("a", "breach", "P1"), label="P1"), "escalation": nobody}):
        assert not any("Contacts" in text for text in render(one))
        assert sum("→" in text for text in render(one)) == (one is not healthy)


LINES = [
    {**diagnosis(item("a", "breach", "P1"), status="critical", label="P1", severity="critical", summary="It is\ndown."),
     "line": "kyrodb -, P99 -", "escalation": PEOPLE},
    {**diagnosis(item("a", "breach", "P3"), label="P3", severity="medium", summary="Slow."), "host": "a-long-name",
     "line": "kyrodb healthy", "escalation": {**PEOPLE["others"][0], "others": [], "contacts": PEOPLE["contacts"]}},
    {**diagnosis(item("a", "unknown"), status="unknown", label=None, severity=None, summary="It is lost."),
     "line": "", "escalation": None},
    {**diagnosis(item("a"), status="healthy", label=None, severity=None, summary="Nothing wrong."),
     "line": "kyrodb healthy, " + "P99 12 ms, " * 30, "escalation": None},
]  # fmt: skip


def test_one_line_per_host_where_the_runbook_says_so():
    lines = overview(LINES)
    assert lines[:3] == [
        "vritti-1     CRITICAL P1  It is down. (kyrodb -, P99 -)",
        "a-long-name  DEGRADED P3  Slow. (kyrodb healthy)",
        "vritti-1     UNKNOWN      It is lost.",
    ]
    assert lines[3] == "vritti-1     HEALTHY      " + LINES[3]["line"].rstrip(), "never wrapped"
    assert lines[4:] == [
        "",
        "  P1: 15 minutes, on-call → team lead → VP Engineering",
        "  P3: 4 hours, on-call via ticket",
        "  Contacts: Slack: #vritti-incidents; status page: status.example.com",
    ]


def test_one_line_says_whom_to_page():
    late = {**item("a", "breach", "P1"), "evidence": {"page": "Page the on-call engineer."}}
    assert overview([{**LINES[0], "findings": [late]}])[0] == (
        "vritti-1  CRITICAL P1  It is down. Page the on-call engineer. (kyrodb -, P99 -)"
    )


def test_one_line_has_the_same_columns_in_colour_and_in_the_filter():
    painted = overview(LINES, paint=lambda text, kind: f"<{kind}|{text}>")
    assert painted[0].startswith("vritti-1     <critical|CRITICAL P1>  It")
    assert [re.sub(r"<\w+\|([^>]*)>", r"\1", text) for text in painted] == overview(LINES)
    assert render(LINES[3]) == overview(LINES[3:]) == diagnosis_text(LINES[3])
    assert len(overview(LINES[3:])) == 1


WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=9), max_size=25).map(" ".join)
LONG = st.text("klmnopqrst-/", min_size=1, max_size=150)
TEXT = WORDS | LONG
FINDING = st.builds(
    lambda name, title, status, label, observed, unit, expected, step, evidence: {
        **item(name, status, label if status == "breach" else None),
        "title": title,
        "observed": observed if status in ("ok", "breach") else None,
        "unit": unit,
        "expected": expected,
        "next_step": step,
        "evidence": evidence,
    },
    st.text("abc_", min_size=1, max_size=8),
    TEXT,
    st.sampled_from(["ok", "breach", "unknown", "skipped"]),
    st.sampled_from(list(SEVERITIES)),
    st.none() | st.booleans() | st.floats(allow_nan=False) | TEXT,
    st.sampled_from([None, "s", "B", "%", "/s"]),
    st.none() | TEXT,
    TEXT,
    st.fixed_dictionaries({}, optional={"reason": TEXT, "note": TEXT, "worst": TEXT}),
)


@given(
    st.lists(FINDING, max_size=8),
    TEXT,
    st.sampled_from([60, 80, 100, WIDTH, 200]),
    st.sampled_from([None, PEOPLE, {**PEOPLE, "path": ["someone " * 30], "contacts": {"a": "b-" * 90}}]),
)
def test_no_line_is_longer_than_the_width(findings, summary, width, people):
    for line in render({**diagnosis(*findings, summary=summary), "escalation": people}, width):
        assert len(line) <= width
        assert "\n" not in line
        assert line == line.rstrip()


def letters(text):
    return sorted(re.sub(r"\s", "", text))


@given(st.lists(FINDING, min_size=1, max_size=4), TEXT, st.sampled_from([60, 80, WIDTH, 200]))
def test_nothing_is_lost(findings, summary, width):
    """Every letter of what belongs into the output is in it, as often as it was given."""
    shown = letters("".join(render(diagnosis(*findings, summary=summary), width)))
    # The same note is said once, whoever it belongs to.
    notes = {one["evidence"].get("note", "") for one in findings if one["status"] in ("ok", "breach")}
    wanted = [summary, *notes]
    for one in findings:
        wanted.append(one["title"])
        if one["status"] == "skipped":
            wanted.append(one["evidence"].get("reason", ""))
            continue
        wanted += [judge.show(one["observed"], one["unit"]), one["expected"] or "", one["evidence"].get("worst", "")]
        if one["status"] in ("breach", "unknown"):
            wanted.append(one["evidence"].get("reason", ""))
        if one["status"] == "breach":
            wanted.append(one["next_step"])
    for letter in set("".join(wanted)) - set(" .\n"):
        assert shown.count(letter) >= "".join(wanted).count(letter), letter


def test_filter_gives_plain_lines_and_wants_a_diagnosis():
    one = diagnosis(item("a", "breach", "P2", next_step="Go."))
    assert diagnosis_text(one) == render(one)
    assert diagnosis_text(one, width=80) == render(one, 80)
    for wrong in (None, "text", {}, {**one, "schema": "other/1"}):
        with pytest.raises(AnsibleFilterError, match="diagnosis_text takes a diagnosis"):
            diagnosis_text(wrong)


def test_filter_collects_the_diagnoses_that_there_are():
    one = diagnosis(item("a", evidence={"x": "y" * 50_000}))
    hostvars = {
        "h1": {"result": {"diagnosis": one}},
        "h2": {},
        "h3": {"result": {"failed": True}},
        "h4": {"result": None},
    }
    collected = diagnosis_stats(hostvars, "result", ["h1", "h2", "h3", "h4"])
    assert list(collected) == ["h1"]
    assert collected["h1"]["capped"] is True
    assert collected["h1"]["summary"] == one["summary"]
    assert one["findings"][0]["evidence"], "the diagnosis itself keeps its evidence"


def test_a_host_that_cannot_be_looked_at_is_no_table():
    """One reason for everything: the summary says it once."""
    findings = [item(name, "unknown", evidence={"reason": "Connection refused"}) for name in ("a", "b", "c")]
    lines = render(
        {**diagnosis(*findings, summary="It could not be looked at: Connection refused."), "status": "unknown"}
    )
    assert len(lines) == 2
    assert "Connection refused" in lines[1]

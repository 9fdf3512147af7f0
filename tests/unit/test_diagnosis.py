# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from datetime import UTC, datetime

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import judge
from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import LABELS
from ansible_collections.oncall.runbooks.plugins.plugin_utils.checks import validate_check
from ansible_collections.oncall.runbooks.plugins.plugin_utils.diagnosis import (
    capped,
    escalation,
    finding,
    judge_all,
    judge_check,
    line,
    overall,
    page,
    reached,
    settled,
    summarise,
)

NOW = "2026-11-23T03:00:00Z"
URL = "http://localhost:8000/x"
KEYS = [
    "id", "title", "status", "severity", "label", "observed", "unit", "expected", "source", "evidence", "next_step",
    "reproduce", "suggests", "observed_at", "duration_ms",
]  # fmt: skip


def check(name="a", *, sources=1, jmes=None, **values):
    source = {"probe": "http", "url": URL}
    if jmes:
        source |= {"value": "json", "jmespath": jmes}
    return validate_check(
        {
            "id": name,
            "title": f"Title of {name}",
            "sources": [dict(source) for _number in range(sources)],
            "thresholds": [{"above": 10, "label": "P2"}, {"above": 5, "label": "P3"}],
            "suggests": ["restart"],
            "next_step": f"Look at {name}.",
            **values,
        },
        LABELS,
    )


def value(number, **more):
    return {"outcome": "value", "value": number, "evidence": {}, "note": None, "duration_ms": 1.5, **more}


def silent(note="No answer.", **more):
    return {"outcome": "no_answer", "note": note, "duration_ms": 2.0, **more}


ABSENT = {"outcome": "absent", "note": "It answers 404.", "duration_ms": 1.0}


def search(expression, data):
    try:
        return jmespath.search(expression, data)
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(str(error)) from None


def judged(one, *looks, unmet=()):
    return judge_check(one, {"looks": list(looks), "unmet": list(unmet)}, LABELS, search, NOW)


def diagnosed(checks, looks, bad=(), previous=None, at=NOW):
    results = {name: {"looks": list(seen), "unmet": []} for name, seen in looks.items()}
    return {
        item["id"]: item
        for item in judge_all(
            checks, list(bad), results, LABELS, search, at, {"findings": list(previous)} if previous else None
        )
    }


@pytest.mark.parametrize(
    ("number", "status", "label", "severity"),
    [(11, "breach", "P2", "high"), (6, "breach", "P3", "medium"), (5, "ok", None, None), (0, "ok", None, None)],
)
def test_status_and_label(number, status, label, severity):
    item = judged(check(), value(number))
    assert list(item) == KEYS
    assert (item["status"], item["label"], item["severity"], item["observed"]) == (status, label, severity, number)
    assert item["suggests"] == (["restart"] if status == "breach" else [])
    assert (item["expected"], item["source"]) == ("at most 5", f"http {URL} status")
    assert (item["observed_at"], item["duration_ms"]) == (NOW, 1.5)
    assert json.dumps(item)


@pytest.mark.parametrize("observed", [False, 0, "", 0.0])
def test_value_that_is_false_is_a_value(observed):
    one = check(thresholds=[{"equals": "x", "label": "P1"}])
    assert judged(one, value(observed))["status"] == "ok"


def test_first_source_that_answers_is_judged_and_the_others_are_named():
    item = judged(check(sources=3), ABSENT, silent("Refused."), value(6))
    assert item["status"] == "breach"
    assert [passed["reason"] for passed in item["evidence"]["passed_over"]] == ["It answers 404.", "Refused."]
    assert item["duration_ms"] == 4.5


@pytest.mark.parametrize(
    ("on_no_data", "status"), [("unknown", "unknown"), ("breach", "breach"), ("skipped", "skipped")]
)
def test_no_answer(on_no_data, status):
    item = judged(check(sources=2, on_no_data=on_no_data), ABSENT, silent("Refused."))
    assert item["status"] == status
    assert item["evidence"]["reason"] == "It answers 404; Refused"
    assert item["observed"] is None
    assert (item["label"], item["severity"]) == (("P2", "high") if status == "breach" else (None, None))
    assert item["suggests"] == (["restart"] if status == "breach" else [])


@pytest.mark.parametrize("on_no_data", ["unknown", "breach", "skipped"])
def test_absent_is_skipped_whatever_silence_means(on_no_data):
    assert judged(check(sources=2, on_no_data=on_no_data), ABSENT, ABSENT)["status"] == "skipped"


@pytest.mark.parametrize("on_no_data", ["unknown", "breach", "skipped"])
def test_missing_permission_is_unknown_whatever_silence_means(on_no_data):
    one = check(sources=2, on_no_data=on_no_data)
    assert judged(one, silent("May not be read; run with -b.", kind="permission"), ABSENT)["status"] == "unknown"


@pytest.mark.parametrize(
    ("kind", "on_no_data", "status"),
    [
        # What only explains may do without a key that nobody gave; what decides may not.
        ("secret", "skipped", "skipped"),
        ("secret", "unknown", "unknown"),
        ("secret", "breach", "unknown"),
        ("name", "skipped", "skipped"),
        ("name", "unknown", "unknown"),
        ("name", "breach", "unknown"),
        # A file relative to where the service was started, while it does not run, is not a broken one.
        ("place", "skipped", "skipped"),
        ("place", "breach", "unknown"),
        # A key that is wrong, and a certificate, are mistakes.
        ("authentication", "skipped", "unknown"),
        ("tls", "skipped", "unknown"),
    ],
)
def test_silence_that_is_about_the_question(kind, on_no_data, status):
    one = check(sources=2, on_no_data=on_no_data)
    item = judged(one, silent("The secret admin_key is empty.", kind=kind), ABSENT)
    assert (item["status"], item["suggests"]) == (status, [])
    assert item["evidence"]["reason"].startswith("The secret admin_key is empty")


def test_secret_that_cannot_be_decrypted_is_a_mistake():
    said = "The secret admin_key cannot be decrypted; give the right vault password."
    assert judged(check(on_no_data="skipped"), silent(said, kind="secret"))["status"] == "unknown"


def test_no_look_at_all_is_not_ok():
    assert judged(check())["status"] == "unknown"


def test_unmet_needs_are_skipped_and_named():
    item = judged(check(on_no_data="breach"), unmet=["b", "c"])
    assert item["status"] == "skipped"
    assert item["evidence"]["reason"] == "not looked at, because b and c is not ok"


@pytest.mark.parametrize(
    ("samples", "status", "reason"),
    [
        (20, "ok", None),
        (None, "ok", None),
        (19, "unknown", "19 samples, and 20 are needed"),
        (0, "unknown", "0 samples"),
    ],
)
def test_min_samples(samples, status, reason):
    item = judged(check(min_samples=20), value(1, samples=samples))
    assert item["status"] == status
    assert reason is None or reason in item["evidence"]["reason"]


def test_nothing_observed_says_so():
    item = judged(check(), value(None, samples=0, note="99 since process start, and 100 are needed"))
    assert item["status"] == "unknown"
    assert item["evidence"]["reason"] == "nothing was observed (99 since process start, and 100 are needed)"


@pytest.mark.parametrize(
    ("expression", "body", "status", "observed"),
    [
        ("a.b", {"a": {"b": 7}}, "breach", 7),
        ("a.b", {"a": {"b": False}}, "unknown", None),
        ("a.b", {"a": {}}, "unknown", None),
        ("a.b", [], "unknown", None),
        ("a[", {}, "unknown", None),
        ("length(a)", {"a": 5}, "unknown", None),
        ("a.b", {"a": {"b": "7.5"}}, "breach", "7.5"),
        ("a.b", {"a": {"b": float("nan")}}, "unknown", None),
    ],
)
def test_json(expression, body, status, observed):
    item = judged(check(jmes=expression), {"outcome": "json", "value": body, "evidence": {"status": 200}})
    assert (item["status"], item["observed"]) == (status, observed)
    if status == "unknown":
        assert item["evidence"]["reason"]


def test_json_that_gives_nothing_goes_on_to_the_next_source():
    one = check(sources=2, jmes="a.b")
    item = judged(
        one,
        {"outcome": "json", "value": {}, "evidence": {}},
        {"outcome": "json", "value": {"a": {"b": 1}}, "evidence": {}},
    )
    assert (item["status"], item["observed"]) == ("ok", 1)
    assert item["evidence"]["passed_over"][0]["reason"] == "a.b gives nothing in its answer"


def test_json_is_scaled():
    one = validate_check(
        {
            "id": "a",
            "title": "A",
            "sources": [{"probe": "http", "url": URL, "value": "json", "jmespath": "ms", "scale": 0.001}],
            "thresholds": [{"above": 0.1, "label": "P2"}],
        },
        LABELS,
    )
    assert judged(one, {"outcome": "json", "value": {"ms": 250}, "evidence": {}})["observed"] == 0.25


def test_value_that_cannot_be_judged():
    item = judged(check(), value("text"))
    assert item["status"] == "unknown"
    assert "is no number" in item["evidence"]["reason"]


def test_notes_of_source_and_look_are_kept():
    one = check()
    one["sources"][0]["note"] = "an average"
    assert judged(one, value(1, note="of two"))["evidence"]["note"] == "an average; of two"


# --- one check explains another


@pytest.mark.parametrize(
    ("other", "status"), [(value(99), "breach"), (value(1), "ok"), (silent(), "ok"), (ABSENT, "ok")]
)
def test_breach_that_only_explains_counts_beside_what_it_explains(other, status):
    found = diagnosed([check("cause", explains=["effect"]), check("effect")], {"cause": [value(99)], "effect": [other]})
    item = found["cause"]
    assert item["status"] == status
    if status == "ok":
        assert (item["label"], item["severity"], item["suggests"]) == (None, None, [])
        assert "effect, which it would explain, is not in breach" in item["evidence"]["note"]
        assert item["observed"] == 99


def test_one_of_several_explained_is_enough():
    checks = [check("cause", explains=["one", "two"]), check("one"), check("two")]
    found = diagnosed(checks, {"cause": [value(99)], "one": [value(1)], "two": [value(99)]})
    assert found["cause"]["status"] == "breach"


def test_what_explains_nothing_any_more_is_withdrawn_in_whatever_order():
    checks = [check("first", explains=["second"]), check("second", explains=["third"]), check("third")]
    found = diagnosed(checks, {"first": [value(99)], "second": [value(99)], "third": [value(1)]})
    assert [found[name]["status"] for name in ("first", "second", "third")] == ["ok", "ok", "ok"]


# --- what does not matter while another check is past its threshold


@pytest.mark.parametrize(("off", "status"), [(value(99), "ok"), (value(1), "breach"), (silent(), "breach")])
def test_breach_does_not_count_beside_what_makes_it_meaningless(off, status):
    checks = [check("folder", unless=["off"], suggests=["mend"]), check("off", explains=["folder"], title="It is off")]
    found = diagnosed(checks, {"folder": [value(99)], "off": [off]})
    assert found["folder"]["status"] == status
    assert found["folder"]["suggests"] == (["mend"] if status == "breach" else [])
    if status == "ok":
        # What makes it meaningless is no incident by itself.
        assert found["off"]["status"] == "ok"
        assert found["folder"]["evidence"]["note"] == "past its threshold, which does not matter here: It is off"
        assert found["folder"]["observed"] == 99


# --- documents


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        ({"outcome": "json", "value": {"a": {"b": 5}}}, ("value", 10.0)),
        ({"outcome": "yaml", "value": "a:\n  b: 5  # comment\n"}, ("value", 10.0)),
        ({"outcome": "yaml", "value": "a: {b: none}"}, ("value", "none")),
        ({"outcome": "yaml", "value": "a: ["}, ("no_answer", None)),
        ({"outcome": "yaml", "value": "!!python/object/apply:os.system [true]"}, ("no_answer", None)),
        ({"outcome": "absent", "note": "no file"}, ("absent", None)),
        ({"outcome": "value", "value": 7}, ("value", 7)),
    ],
)
def test_document_is_settled_on_the_controller(look, expected):
    source = {"jmespath": "a.b", "scale": 2.0}
    seen = settled(source, look, jmespath.search)
    assert (seen["outcome"], seen.get("value")) == expected
    if expected[0] == "no_answer":
        assert seen["note"].startswith("it is no YAML")


# --- since when


def later(seconds):
    return datetime.fromtimestamp(datetime(2026, 11, 23, 3, tzinfo=UTC).timestamp() + seconds, UTC).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


DURATION = [{"above": 10, "label": "P2", "for_seconds": 300}]


def test_duration_is_not_established_by_one_diagnosis():
    item = diagnosed([check(thresholds=DURATION)], {"a": [value(99)]})["a"]
    assert item["evidence"]["duration"].startswith("not established; the runbook asks for 5 min")
    assert "since" not in item["evidence"]
    assert "crossed" not in item["evidence"]


def test_duration_from_earlier_diagnoses():
    one = check(thresholds=DURATION)
    previous = diagnosed([one], {"a": [value(99)]})
    for number in (1, 2, 3):
        previous = diagnosed([one], {"a": [value(99)]}, previous=previous.values(), at=later(number * 200))
        evidence = previous["a"]["evidence"]
        assert evidence["since"] == NOW
        assert evidence["since_by"] == "earlier diagnoses"
        enough = number * 200 >= 300
        assert evidence["duration"].startswith("at least ")
        assert ("less than the 5 min" in evidence["duration"]) is not enough


def test_steps_wait_until_the_threshold_has_lasted():
    one = check(thresholds=DURATION)
    first = diagnosed([one], {"a": [value(99)]})
    assert first["a"]["suggests"] == []
    assert first["a"]["evidence"]["duration"].endswith("its steps are proposed once it has lasted that long")
    soon = diagnosed([one], {"a": [value(99)]}, previous=first.values(), at=later(200))
    assert soon["a"]["suggests"] == []
    late = diagnosed([one], {"a": [value(99)]}, previous=soon.values(), at=later(301))
    assert late["a"]["suggests"] == ["restart"]
    at_once = diagnosed([check()], {"a": [value(99)]})
    assert at_once["a"]["suggests"] == ["restart"]


def test_one_that_became_worse_is_that_bad_since_then():
    mild = diagnosed([check()], {"a": [value(7)]})
    worse = diagnosed([check()], {"a": [value(99)]}, previous=mild.values(), at=later(1000))
    assert (worse["a"]["label"], worse["a"]["evidence"].get("since")) == ("P2", None)
    still = diagnosed([check()], {"a": [value(99)]}, previous=worse.values(), at=later(1200))
    assert still["a"]["evidence"]["since"] == later(1000)
    better = diagnosed([check()], {"a": [value(7)]}, previous=still.values(), at=later(1300))
    assert better["a"]["evidence"]["since"] == later(1000)


@pytest.mark.parametrize(
    "before",
    [
        {"status": "ok"},
        {"status": "unknown"},
        {"status": "breach", "observed_at": later(-4000)},
        {"status": "breach", "observed_at": later(500)},
        {"status": "breach", "observed_at": "never"},
        {"status": "breach", "observed_at": None},
    ],
)
def test_diagnosis_that_says_nothing_of_the_time_in_between(before):
    before = {"id": "a", "observed_at": later(-100), "evidence": {}, **before}
    item = diagnosed([check(thresholds=DURATION)], {"a": [value(99)]}, previous=[before])["a"]
    assert "since" not in item["evidence"]
    assert "not established" in item["evidence"]["duration"]


@pytest.mark.parametrize(
    "report", [{}, {"findings": []}, {"findings": ["x", 5, None, {}]}, {"findings": [{"id": "a"}]}]
)
def test_report_in_another_shape_does_no_harm(report):
    results = {"a": {"looks": [value(99)], "unmet": []}}
    (item,) = judge_all([check(thresholds=DURATION)], [], results, LABELS, search, NOW, report)
    assert item["status"] == "breach"


def history(*values):
    start = datetime(2026, 11, 23, 3, tzinfo=UTC).timestamp() - 60 * (len(values) - 1)
    return [[start + 60 * place, number] for place, number in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "minutes"), [((99, 99, 99), 2), ((99, 1, 99, 99), 1), ((1,) * 9 + (99,) * 7, 6), ((99, 1), None)]
)
def test_duration_from_a_servers_history(values, minutes):
    look = value(99, evidence={"history": history(*values)})
    evidence = diagnosed([check(thresholds=DURATION)], {"a": [look]})["a"]["evidence"]
    assert "history" not in evidence
    if minutes is None:
        assert "not established" in evidence["duration"]
        return
    assert evidence["since"] == later(-60 * minutes)
    assert evidence["since_by"] == "the Prometheus server"
    assert ("less than" in evidence["duration"]) == (minutes * 60 < 300)


def test_a_servers_history_pages_without_an_earlier_diagnosis():
    look = value(99, evidence={"history": history(*(99,) * 20)})
    found = diagnosed([check()], {"a": [look]})
    page(list(found.values()), {"P2": {"respond_within": 900, "path": ["on-call"], "page": True}})
    assert found["a"]["evidence"]["page"] == (
        "Page the on-call engineer: Title of a is P2 for 19 min by the Prometheus server, more than 15 min."
    )
    assert "duration" not in found["a"]["evidence"]


def test_history_leaves_a_finding_that_is_ok():
    look = value(1, evidence={"history": history(1, 1)})
    assert diagnosed([check(thresholds=DURATION)], {"a": [look]})["a"]["evidence"] == {}


# --- what changed


def test_tracked_evidence_that_changed_is_said():
    one = check(track=["commit", "started_at"])
    before = diagnosed([one], {"a": [value(1, evidence={"commit": "aaa", "started_at": "x", "other": 1})]})
    after = diagnosed(
        [one],
        {"a": [value(1, evidence={"commit": "bbb", "started_at": "x", "other": 2})]},
        previous=before.values(),
        at=later(60),
    )
    assert after["a"]["evidence"]["changed"] == {"since": NOW, "commit": {"was": "aaa", "is": "bbb"}}
    again = diagnosed(
        [one], {"a": [value(1, evidence={"commit": "bbb", "started_at": "x"})]}, previous=after.values(), at=later(120)
    )
    assert "changed" not in again["a"]["evidence"]


def test_evidence_that_was_not_there_before_is_no_change():
    before = diagnosed([check(track=["commit"])], {"a": [silent()]})
    after = diagnosed(
        [check(track=["commit"])], {"a": [value(1, evidence={"commit": "b"})]}, previous=before.values(), at=later(60)
    )
    assert "changed" not in after["a"]["evidence"]


# --- the whole


def item(name, status="ok", severity=None, **values):
    labels = {severity: label for label, severity in LABELS.items() if label.startswith("P")}
    return finding(
        name,
        f"Title of {name}",
        NOW,
        **{"status": status, "severity": severity, "label": labels.get(severity), **values},
    )


@pytest.mark.parametrize(
    ("findings", "wanted"),
    [
        ([item("a")], ("healthy", None, None)),
        ([item("a"), item("b", "skipped")], ("healthy", None, None)),
        ([item("a"), item("b", "unknown")], ("unknown", None, None)),
        ([item("b", "skipped")], ("unknown", None, None)),
        ([], ("unknown", None, None)),
        ([item("a", "breach", "low"), item("b", "unknown")], ("degraded", "low", "P4")),
        ([item("a", "breach", "medium"), item("b", "breach", "high")], ("degraded", "high", "P2")),
        ([item("a", "breach", "low"), item("b", "breach", "critical")], ("critical", "critical", "P1")),
    ],
)
def test_overall(findings, wanted):
    assert overall(findings) == wanted


@pytest.mark.parametrize(
    ("levels", "findings", "wanted"),
    [
        ([], [item("a", "breach", "critical"), item("b", "unknown")], False),
        (["high"], [item("a", "breach", "critical")], True),
        (["high"], [item("a", "breach", "high")], True),
        (["high"], [item("a", "breach", "medium")], False),
        (["critical", "low"], [item("a", "breach", "medium")], True),
        (["unknown"], [item("a", "unknown")], True),
        (["unknown"], [item("a", "breach", "critical")], False),
        (["critical"], [item("a", "unknown"), item("b"), item("c", "skipped")], False),
    ],
)
def test_levels_that_are_reached(levels, findings, wanted):
    assert reached(findings, levels) is wanted


def cause(*breach, summary="It is $a.", ok=(), fresh=()):
    return {"breach": list(breach), "ok": list(ok), "fresh": list(fresh), "summary": summary}


def test_summary_is_the_first_cause_that_fits():
    findings = [item("a", "breach", "high", observed=0.25, unit="s"), item("b"), item("c", "breach", "low")]
    causes = [
        cause("b", summary="never"),
        cause("a", "b", summary="never"),
        cause("a", ok=["c"], summary="never"),
        cause("a", ok=["b"], summary="Slow: $a, ${a}, $unknown costs $$5."),
        cause("a", summary="too late"),
    ]
    assert summarise(findings, causes) == "Slow: 250 ms, 250 ms, $unknown costs $5."
    assert findings[0]["evidence"]["cause"] is True
    assert "cause" not in findings[2]["evidence"]


@pytest.mark.parametrize("status", ["unknown", "skipped", "breach"])
def test_cause_wants_ok_where_it_says_ok(status):
    findings = [item("a", "breach", "high", observed=1), item("b", status, "low" if status == "breach" else None)]
    assert summarise(findings, [cause("a", ok=["b"], summary="never")]) != "never"


@pytest.mark.parametrize(("window", "fits"), [(judge.SINCE_START, False), ("5.0 s", True), (None, True)])
def test_cause_that_wants_fresh_data(window, fits):
    findings = [item("a", "breach", "high", observed=1, evidence={"window": window} if window else {})]
    said = summarise(findings, [cause("a", fresh=["a"], summary="fresh"), cause("a", summary="old")])
    assert said == ("fresh" if fits else "old")


def test_summary_without_a_cause_is_the_worst_breach():
    findings = [
        item("a", "breach", "low", observed=1, expected="at most 0"),
        item("b", "breach", "high", observed=7, unit="/s", expected="at most 5"),
        item("c", "unknown"),
    ]
    assert summarise(findings, []) == (
        "Title of b is 7 /s, expected at most 5, and 1 more. 1 of 3 checks gave no answer."
    )


def test_summary_of_silence_that_is_the_incident():
    findings = [item("a", "breach", "critical", expected="a 2xx status", evidence={"reason": "Refused."})]
    assert summarise(findings, []) == "Title of a is without an answer (Refused), expected a 2xx status."


def test_summary_of_what_is_not_known():
    findings = [item("a"), item("b", "unknown", evidence={"reason": "Refused."}), item("c", "unknown")]
    assert summarise(findings, []) == "Title of b is not known: Refused. 1 more checks gave no answer."


def test_summary_of_health_names_a_measurement():
    findings = [item("a", observed=200), item("b", observed=0.0042, unit="s"), item("c", "skipped")]
    assert summarise(findings, []) == "Nothing wrong: 2 checks are ok; Title of b is 4.2 ms."
    assert summarise([item("a", "skipped")], []) == "Nothing could be established: every check was skipped."


def test_wrong_checks_are_findings_after_the_others():
    results = {"a": {"looks": [value(1)], "unmet": []}}
    findings = judge_all([check()], [("b", "B's title", "The check b is wrong.")], results, LABELS, search, NOW, None)
    assert [(one["id"], one["status"]) for one in findings] == [("a", "ok"), ("b", "unknown")]
    assert findings[1]["evidence"]["reason"] == "The check b is wrong."
    assert list(findings[1]) == KEYS
    assert overall(findings)[0] == "unknown"


def test_second_check_of_the_same_id_does_not_hide_the_first():
    results = {"a": {"looks": [value(99)], "unmet": []}}
    bad = [("a", "A again", "The check a is wrong: another check has the same id.")]
    findings = judge_all([check()], bad, results, LABELS, search, NOW, None)
    assert summarise(findings, [cause("a", summary="A is slow.")]).startswith("A is slow.")


# --- capped

SIZES = st.integers(0, 3000)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "breach", "unknown", "skipped"]), SIZES, st.integers(0, 400)), max_size=150
    ),
    st.sampled_from([8192, 32768]),
)
def test_capped_is_within_the_limit(sizes, limit):
    findings = [
        item(
            f"c{place}",
            status,
            "high" if status == "breach" else None,
            evidence={"x": "y" * size},
            next_step="z" * step,
        )
        for place, (status, size, step) in enumerate(sizes)
    ]
    diagnosis = {"schema": "s", "host": "h", "summary": "It is slow.", "status": "degraded", "findings": findings}
    before = json.dumps(diagnosis)
    small = capped(diagnosis, limit)
    assert json.dumps(diagnosis) == before
    assert len(json.dumps(small)) <= limit
    assert {key: small[key] for key in diagnosis if key != "findings"} == {
        key: diagnosis[key] for key in diagnosis if key != "findings"
    }
    if len(before) <= limit:
        assert small == diagnosis
    else:
        assert small["capped"] is True
        kept = {one["id"] for one in small["findings"]}
        breaches = [one["id"] for one in findings if one["status"] == "breach"]
        if len(json.dumps([{**one, "evidence": {}} for one in findings if one["status"] == "breach"])) < limit - 1000:
            assert kept.issuperset(breaches[:100])


@pytest.mark.parametrize("status", ["breach", "unknown", "ok"])
@pytest.mark.parametrize("count", [50, 100, 200])
def test_capped_holds_for_many_findings_that_say_much(status, count):
    findings = [
        item(f"c{number}", status, "high" if status == "breach" else None, next_step="z" * 700)
        for number in range(count)
    ]
    small = capped({"findings": findings, "summary": "x" * 500})
    assert len(json.dumps(small)) <= 32768
    assert small["findings"] or status == "ok"


def test_capped_counts_all_of_the_diagnosis():
    findings = [item("a", "breach", "high", evidence={"x": "y" * 7700})]
    assert len(json.dumps(capped({"findings": findings, "summary": "x" * 1000}, 8192))) <= 8192


def test_capped_leaves_the_evidence_of_breaches_where_it_can():
    findings = [item(f"c{number}", evidence={"x": "y" * 3000}) for number in range(20)]
    findings.append(item("bad", "breach", "high", evidence={"worst": "/search"}))
    small = capped({"findings": findings, "summary": ""})
    assert len(small["findings"]) == 21
    assert small["findings"][-1]["evidence"] == {"worst": "/search"}
    assert small["findings"][0]["evidence"] == {}


@pytest.mark.parametrize(
    ("since", "says"),
    [
        (
            "2026-11-24T02:40:00Z",
            "Page the on-call engineer: a is P1 for 20 min by a server, more than 15 min.",
        ),
        ("2026-11-24T02:45:01Z", None),
        (None, None),
    ],
)
def test_a_breach_that_lasts_is_to_be_paged(since, says):
    def lasting(label):
        evidence = {"since": since, "since_by": "a server"} if since else {}
        return finding("a", "a", "2026-11-24T03:00:00Z", status="breach", label=label, evidence=evidence)

    late, other = lasting("P1"), lasting("P2")
    page([late, other], {"P1": ESCALATION["P1"], "P2": {**ESCALATION["P2"], "respond_within": 60}})
    assert late["evidence"].get("page") == says
    assert "page" not in other["evidence"], "only what says so is paged"


ESCALATION = {
    "P1": {"respond_within": 900, "path": ["on-call", "team lead"], "page": True},
    "P2": {"respond_within": 3600, "path": ["on-call"], "page": False},
    "P4": {"respond_within": 86400, "path": ["normal ticket queue"], "page": False},
}


def of(status, label=None):
    severity = LABELS.get(label)
    return finding(f"{status}_{label}", "A", NOW, status=status, label=label, severity=severity)


def test_the_escalation_is_that_of_the_worst_breach_and_names_the_other_labels():
    findings = [of("breach", "P4"), of("breach", "P2"), of("ok"), of("breach", "P1"), of("breach", "P2")]
    assert escalation(findings, ESCALATION, {"Slack": "#x"}) == {
        "label": "P1",
        "respond_within": 900,
        "path": ["on-call", "team lead"],
        "others": [
            {"label": "P2", "respond_within": 3600, "path": ["on-call"]},
            {"label": "P4", "respond_within": 86400, "path": ["normal ticket queue"]},
        ],
        "contacts": {"Slack": "#x"},
    }


@pytest.mark.parametrize("findings", [[], [of("ok"), of("unknown"), of("skipped")], [of("breach", "P3")]])
def test_no_escalation_without_a_breach_that_the_table_knows(findings):
    assert escalation(findings, ESCALATION, {"Slack": "#x"}) is None


# --- one line per host


def test_the_line_has_values_with_their_units_and_never_passes_over_what_is_not_known():
    findings = [
        finding("p99", "A", NOW, status="ok", observed=0.012, unit="s"),
        finding("old", "B", NOW, status="breach", observed=0.2, unit="ratio", evidence={"window": judge.SINCE_START}),
        finding("off", "C", NOW, status="skipped"),
        finding("what", "D", NOW, status="unknown"),
        finding("silent", "E", NOW, status="breach"),
        finding("p99", "with an id that is taken", NOW, status="unknown"),
    ]
    assert line("P99 $p99, 5xx $old, LLM $off, db $what, Vritti $silent, $other", findings) == (
        "P99 12 ms, 5xx 20 % since process start, LLM -, db unknown, Vritti no answer, $other"
    )


def test_a_source_says_why_its_answer_has_no_value():
    one = check(jmes="status", on_no_data="skipped")
    one["sources"][0]["missing"] = "this version does not tell"
    found = diagnosed([one], {"a": [{"outcome": "json", "value": {}}]})["a"]
    assert (found["status"], found["evidence"]["reason"]) == ("skipped", "this version does not tell")
    assert diagnosed([one], {"a": [{"outcome": "json", "value": {"status": 1}}]})["a"]["status"] == "ok"

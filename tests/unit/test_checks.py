# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils.diagnose_spec import ARGUMENT_SPEC, LABELS
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.plugins.plugin_utils.checks import (
    BROKEN,
    Wrong,
    options,
    source_of,
    used,
    validate_causes,
    validate_check,
    validate_checks,
    validate_contacts,
    validate_escalation,
    validate_operation,
    validate_steps,
)

HTTP = {"probe": "http", "url": "http://localhost:8000/health"}
JSON = {**HTTP, "value": "json", "jmespath": "status"}


def check(name="alive", **values):
    return {
        "id": name,
        "title": name.title(),
        "sources": [dict(HTTP)],
        "thresholds": [{"above": 299, "label": "P1"}],
        **values,
    }


def wrong(data):
    """The sentence about a check that is wrong."""
    with pytest.raises(Wrong) as caught:
        validate_check(data, LABELS)
    return str(caught.value)


def test_types_and_defaults():
    good = validate_check(check(), LABELS)
    assert good["sources"][0] == {
        "probe": "http",
        "url": "http://localhost:8000/health",
        "value": "status",
        "jmespath": None,
        "header": None,
        "samples": 1,
        "quantile": 0.5,
        "absent": [404],
        "headers": {},
        "secret_headers": {},
        "body": None,
        "timeout": None,
        "validate_certs": True,
        "ca_path": None,
        "when": True,
        "scale": 1.0,
        "note": None,
        "lifetime": False,
        "missing": None,
    }
    assert {key: good[key] for key in ("on_no_data", "needs", "explains", "track", "suggests", "min_samples")} == {
        "on_no_data": "unknown",
        "needs": [],
        "explains": [],
        "track": [],
        "suggests": [],
        "min_samples": 0,
    }
    assert good["thresholds"][0]["above"] == 299.0


def test_strings_of_the_command_line_become_numbers():
    good = validate_check(
        check(
            sources=[{**HTTP, "value": "total", "samples": "5", "quantile": "0.9", "scale": "0.001"}],
            thresholds=[{"above": "0.1", "label": "P2", "for_seconds": "300"}, {"above": "0.05", "label": "P3"}],
            min_samples="20",
            heavy="yes",
        ),
        LABELS,
    )
    assert [threshold["above"] for threshold in good["thresholds"]] == [0.1, 0.05]
    assert good["thresholds"][0]["for_seconds"] == 300.0
    assert (good["min_samples"], good["heavy"]) == (20, True)
    source = good["sources"][0]
    assert (source["samples"], source["quantile"], source["scale"]) == (5, 0.9, 0.001)
    # Sorted as numbers, not as text: 5 is less than 10.
    validate_check(check(thresholds=[{"above": "10", "label": "P2"}, {"above": "5", "label": "P3"}]), LABELS)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"treshold": 1}, "the check has the unknown key 'treshold'"),
        ({"threshold": 1}, "did you mean 'thresholds'?"),
        ({"zzz": 1}, "it knows "),
        ({"title": None}, "title"),
        ({"id": "Not-Snake"}, "the id 'Not-Snake' is not snake_case"),
        ({"id": "1st"}, "is not snake_case"),
        ({"sources": []}, "it has no source, so it can never answer"),
        ({"sources": "http"}, "the check:"),
        (
            {"sources": [{"url": "http://h"}]},
            f"source 1 names no probe; there are {', '.join(sorted(PROBES))}",
        ),
        (
            {"sources": [{"probe": "htpp"}]},
            f"source 1 names the unknown probe 'htpp'; there are {', '.join(sorted(PROBES))}",
        ),
        ({"sources": [{"probe": ["http"]}]}, "source 1 names the unknown probe"),
        ({"sources": [{"probe": None}]}, "source 1 names the unknown probe"),
        ({"sources": [HTTP, {**HTTP, "ulr": "x"}]}, "source 2 (http) has the unknown key 'ulr'; did you mean 'url'?"),
        ({"sources": [{"probe": "http"}]}, "source 1 (http): missing required arguments: url"),
        ({"sources": [{"probe": "http", "url": "localhost:8000"}]}, "has no scheme; write http://localhost:8000"),
        ({"sources": [{"probe": "http", "url": ""}]}, "has no scheme"),
        ({"sources": [{**HTTP, "value": "josn"}]}, "value of value must be one of"),
        ({"sources": [{**HTTP, "value": "json"}]}, "jmespath"),
        ({"sources": [{**HTTP, "samples": "many"}]}, "source 1 (http)"),
        ({"sources": [{"probe": "log", "path": "/x", "value": "quantile"}]}, "source 1 (log)"),
        ({"sources": [{"probe": "process"}]}, "one of the following is required: port, unit"),
        ({"sources": [{"probe": "process", "port": 1, "unit": "x"}]}, "mutually exclusive"),
        ({"sources": [{"probe": "kyrodb", "address": "localhost"}]}, "is not host:port"),
        ({"sources": [{"probe": "prometheus", "url": "http://h"}]}, "a scrape needs metric or histogram"),
        ({"sources": [{"probe": "prometheus", "url": "http://h", "histogram": "m"}]}, "quantile"),
        ({"sources": [{"probe": "prometheus", "url": "http://h", "change": "rate"}]}, "source 1 (prometheus)"),
        ({"thresholds": []}, "it has no threshold, so it could never fail"),
        ({"thresholds": [{"above": 1}]}, "threshold 1: missing required arguments: label"),
        ({"thresholds": [{"label": "P1"}]}, "threshold 1 needs exactly one of above, below, equals and matches"),
        ({"thresholds": [{"above": 1, "below": 2, "label": "P1"}]}, "and has above, below"),
        ({"thresholds": [{"above": "much", "label": "P1"}]}, "threshold 1"),
        ({"thresholds": [{"abvoe": 1, "label": "P1"}]}, "did you mean 'above'?"),
        ({"thresholds": [{"above": 1, "label": "P9"}]}, "the label 'P9' is none of this service's: P1, P2, P3, P4"),
        ({"thresholds": [{"above": 1, "label": "P2"}, {"above": 2, "label": "P1"}]}, "put the stricter one first"),
        ({"thresholds": [{"matches": "(", "label": "P1"}]}, "is no regular expression"),
        ({"thresholds": [{"above": "nan", "label": "P1"}]}, "threshold 1"),
        ({"thresholds": ["above"]}, "the check:"),
        ({"on_no_data": "ignore"}, "value of on_no_data must be one of"),
        ({"min_samples": "few"}, "the check:"),
    ],
)
def test_mistakes_are_sentences(values, says):
    assert says in wrong(check(**values))


@pytest.mark.parametrize("data", [None, "alive", ["alive"], 5])
def test_check_that_is_no_mapping(data):
    assert "not a mapping" in wrong(data)


@pytest.mark.parametrize("when", [False, "false", "False", "no", "off"])
def test_source_that_is_not_there_need_not_be_complete(when):
    empty = {"probe": "prometheus", "server": "", "promql": "up", "when": when}
    good = validate_check(check(sources=[empty, HTTP]), LABELS)
    assert good["sources"][0]["when"] is False
    assert len(good["sources"]) == 2


@pytest.mark.parametrize("when", [True, "yes"])
def test_source_that_is_there_has_to_be(when):
    assert "no scheme" in wrong(check(sources=[{"probe": "prometheus", "server": "", "promql": "up", "when": when}]))


def test_when_that_is_no_truth():
    assert "when" in wrong(check(sources=[{**HTTP, "when": "maybe"}]))


def test_source_that_is_like_the_first_of_another_check():
    data = [
        check("b", sources=[{"like": "a", "value": "total", "samples": "3"}]),
        check("a", sources=[HTTP, {"probe": "process", "port": 80}]),
    ]
    good, bad = validate_checks(data, LABELS)
    assert bad == []
    source = good[0]["sources"][0]
    assert (source["probe"], source["url"], source["value"], source["samples"]) == ("http", HTTP["url"], "total", 3)
    assert good[1]["sources"][0]["value"] == "status"


@pytest.mark.parametrize("like", ["none", "a", "c", "d", "e", "f", None, 5, ["a"], {"a": 1}])
def test_source_that_is_like_nothing(like):
    data = [
        check("a", sources=[{"like": like}]),
        check("c", sources=[{"like": "a"}]),
        check("d", sources=[]),
        check("e", sources="http"),
        check("f", sources={"probe": "http"}),
    ]
    good, bad = validate_checks(data, LABELS)
    assert good == []
    assert "source 1 is like" in bad[0][2]


def test_the_same_look_by_hand_is_that_of_the_source_in_use():
    off = {"probe": "prometheus", "server": "", "promql": "up", "when": False}
    source = {**HTTP, "url": "http://user:s3same@h/x"}
    made = validate_check(check(sources=[off, source], reproduce="curl -s $url | awk '{print $1}' $other"), LABELS)
    assert made["reproduce"] == "curl -s http://h/x | awk '{print $1}' $other"
    made = validate_check(check(reproduce="curl $ca_path $url"), LABELS)
    assert "None" not in made["reproduce"]


def test_source_that_is_not_in_use_keeps_its_reason():
    made = validate_check(
        check(sources=[{"probe": "http", "url": "", "when": False, "note": "nobody is named"}]), LABELS
    )
    assert made["sources"][0]["note"] == "nobody is named"


def test_one_wrong_check_does_not_take_the_others_down():
    good, bad = validate_checks([check("a"), {"id": "b", "title": "B's title"}, "c", check("d")], LABELS)
    assert [item["id"] for item in good] == ["a", "d"]
    assert [(name, title) for name, title, _why in bad] == [("b", "B's title"), ("check_3", "check_3")]
    assert bad[0][2].startswith("The check b is wrong: ")
    assert all(why.endswith(".") for _name, _title, why in bad)


def test_duplicate_id_is_said_and_the_first_stays():
    good, bad = validate_checks([check("a", title="first"), check("a", title="second"), check("b")], LABELS)
    assert [(item["id"], item["title"]) for item in good] == [("a", "first"), ("b", "B")]
    assert [title for _name, title, _why in bad] == ["second"]
    assert "another check has the same id" in bad[0][2]


@pytest.mark.parametrize(
    ("data", "kept", "says"),
    [
        ([check("a", needs=["none"])], [], "needs names 'none', which is no check of this runbook"),
        ([check("a", explains=["none"])], [], "explains names 'none', which is no check of this runbook"),
        ([check("a", needs=["a"])], [], "its needs lead back to itself"),
        ([check("a", needs=["b"]), check("b", needs=["c"]), check("c", needs=["a"])], [], "lead back to itself"),
        (
            [check("a", needs=["b"]), check("b", sources=[HTTP, JSON])],
            ["b"],
            "needs names 'b', which is judged by JMESPath",
        ),
        ([check("a", explains=["b"]), check("b", sources=[JSON])], ["a", "b"], None),
        ([check("a", needs=["b"]), check("b", needs=["c"]), check("c")], ["a", "b", "c"], None),
        # What is needed is itself wrong: this one is said once, and the other is skipped.
        ([check("a", needs=["b"]), check("b", title=None)], ["a"], "The check b is wrong"),
    ],
)
def test_relations(data, kept, says):
    good, bad = validate_checks(data, LABELS)
    assert [item["id"] for item in good] == kept
    if says:
        assert says in bad[0][2]
    else:
        assert bad == []


def test_circle_is_named_by_those_in_it_only():
    good, bad = validate_checks(
        [check("outside", needs=["b"]), check("b", needs=["c"]), check("c", needs=["b"])], LABELS
    )
    assert [item["id"] for item in good] == ["outside"]
    assert [name for name, _title, _why in bad] == ["b", "c"]


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(["http", "P1", "(", "", "alive"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["probe", "url", "above", "label", "when", "equals", "like"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("title", "sources", "thresholds", "needs", "unit"), NESTED)
        ).map(lambda values: {**check(), **values})
        | NESTED,
        max_size=3,
    )
)
def test_any_data_gives_sentences_and_no_traceback(data):
    good, bad = validate_checks(data, LABELS)
    assert len(good) + len(bad) == len(data)
    assert all(isinstance(why, str) and why for _name, _title, why in bad)


def test_causes():
    (cause,) = validate_causes([{"breach": ["a"], "summary": "A is wrong."}], {"a", "b"})
    assert cause == {"id": None, "breach": ["a"], "ok": [], "fresh": [], "summary": "A is wrong."}
    assert validate_causes(None, set()) == []


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        ({"breach": ["none"], "summary": "x"}, "cause 1 names 'none', which is no check of this runbook"),
        ({"breach": ["a"], "ok": ["none"], "summary": "x"}, "names 'none'"),
        ({"breach": ["a"], "fresh": ["none"], "summary": "x"}, "names 'none'"),
        ({"breach": ["a"]}, "missing required arguments: summary"),
        ({"summary": "x"}, "missing required arguments: breach"),
        ({"breach": [], "summary": "x"}, "cause 1"),
        ({"breach": ["a"], "summary": "x", "sumary": "y"}, "did you mean 'summary'?"),
        ("a", "not a mapping"),
    ],
)
def test_causes_that_are_wrong(cause, says):
    with pytest.raises(Wrong) as caught:
        validate_causes([cause], {"a", "b"})
    assert says in str(caught.value)


SECONDS = {"respond_within": 900, "path": ["on-call"]}


def test_escalation_has_types_and_defaults():
    table = validate_escalation({"P1": {**SECONDS, "page": "yes"}, "P2": {**SECONDS, "respond_within": "60"}}, LABELS)
    assert table == {
        "P1": {"respond_within": 900, "path": ["on-call"], "page": True},
        "P2": {"respond_within": 60, "path": ["on-call"], "page": False},
    }
    assert validate_escalation({}, LABELS) == {}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("soon", "it is str, not a mapping of labels"),
        ({"SEV1": SECONDS}, "the label 'SEV1' is none of this service's: P1"),
        ({"P1": "soon"}, "P1 is str, not a mapping"),
        ({"P1": {**SECONDS, "pth": []}}, "P1 has the unknown key 'pth'; did you mean 'path'?"),
        ({"P1": {"path": ["on-call"]}}, "missing required arguments: respond_within"),
        ({"P1": {**SECONDS, "respond_within": "soon"}}, "P1: "),
        ({"P1": {**SECONDS, "respond_within": 0}}, "P1 is to be responded to within 0 s; it is a number above 0"),
        ({"P1": {**SECONDS, "path": []}}, "P1 has an empty path"),
    ],
)
def test_escalation_that_is_wrong(data, says):
    with pytest.raises(Wrong) as caught:
        validate_escalation(data, LABELS)
    assert says in str(caught.value)


def test_contacts_without_what_is_empty():
    assert validate_contacts({"Slack": "#x", "mail": "", "page": None, "phone": 112}) == {"Slack": "#x", "phone": "112"}
    with pytest.raises(Wrong, match="it is list, not a mapping"):
        validate_contacts(["#x"])


def test_options_of_the_task():
    args = options({"runbook": "r", "service": "s", "checks": [], "timeout": "2.5"}, ARGUMENT_SPEC)
    assert (args["timeout"], args["sample_seconds"], args["severities"]) == (2.5, 5.0, LABELS)
    with pytest.raises(Wrong, match="missing required arguments: runbook"):
        options({"service": "s", "checks": []}, ARGUMENT_SPEC)
    with pytest.raises(Wrong, match="timeout"):
        options({"runbook": "r", "service": "s", "checks": [], "timeout": "soon"}, ARGUMENT_SPEC)


# --- what a service shares with its runbooks


SHARED = [{"id": "alive", "title": "Alive", "suggests": ["restart"]}, {"id": "p99", "title": "P99"}, "no mapping"]


def test_what_is_used_comes_from_the_service():
    own = {"id": "mine", "title": "Mine"}
    found = used([{"use": "alive"}, own, {"use": "p99", "title": "Mine", "unit": "s"}], SHARED, "check")
    assert found == [SHARED[0], own, {"id": "p99", "title": "Mine", "unit": "s"}]
    # What the service shares is the same for the next runbook.
    assert SHARED[1] == {"id": "p99", "title": "P99"}
    assert used(["text", None, 5], SHARED, "check") == ["text", None, 5]
    # The same check twice, under another name.
    assert used([{"use": "p99", "id": "p99_again"}], SHARED, "check")[0]["id"] == "p99_again"


@pytest.mark.parametrize(
    ("name", "shared", "says"),
    [
        ("aliv", SHARED, "use names 'aliv', which is no check of the service; did you mean 'alive'?"),
        ("zzz", SHARED, "use names 'zzz', which is no check of the service; it has alive, p99"),
        ("zzz", [], "use names 'zzz', which is no check of the service; it has none"),
        (None, SHARED, "use names 'None', which is no check of the service"),
        (["alive"], SHARED, "is no check of the service"),
    ],
)
def test_use_of_what_the_service_does_not_have_is_that_checks_mistake(name, shared, says):
    items = used([{"use": name}, check("other")], shared, "check")
    assert says in items[0][BROKEN]
    good, bad = validate_checks(items, LABELS)
    assert [item["id"] for item in good] == ["other"]
    assert bad[0][2].startswith(f"The check {name} is wrong: use names ")


def test_source_of_an_operation():
    source = source_of({"probe": "process", "port": "8000"})
    assert (source["probe"], source["port"], source["when"]) == ("process", 8000, True)
    with pytest.raises(Wrong, match="names the unknown probe 'proces'"):
        source_of({"probe": "proces"})
    with pytest.raises(Wrong, match="is like 'alive', which is no check"):
        source_of({"like": "alive"})


OPERATIONS = {"restart": {}, "set": {}}


def step(name="restart_vritti", **values):
    return {"id": name, "title": "Restart Vritti", "operation": "restart", **values}


def test_steps_with_types_and_defaults():
    rest = {
        "title": "Restart Vritti",
        "operation": "restart",
        "risk": None,
        "always": False,
        "everywhere": False,
        "lists": {},
    }
    assert validate_steps([step(), step("both", replaces="restart_vritti", params={"a": 1})], OPERATIONS) == [
        {"id": "restart_vritti", "params": {}, "replaces": [], **rest},
        {"id": "both", "params": {"a": 1}, "replaces": ["restart_vritti"], **rest},
    ]
    assert validate_steps([], OPERATIONS) == []


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([step(everywhere=True)], "step restart_vritti has one of everywhere and lists, and each needs the other"),
        ([step(lists={"a": ["p99"]})], "step restart_vritti has one of everywhere and lists"),
        (["restart"], "step 1 is str, not a mapping of keys to values"),
        ([step(), step("x", operation=None)], "step 2: missing required arguments: operation"),
        ([step(operation="restrat")], "step restart_vritti names 'restrat', which is no operation of the service"),
        ([step(), step()], "two steps have the id 'restart_vritti'"),
        ([step(parms={})], "step 1 has the unknown key 'parms'; did you mean 'params'?"),
        ([step(replaces=["none"])], "step restart_vritti replaces 'none', which is no step of this runbook"),
        ([step(params="a")], "step 1: "),
        ([step(risk="none")], "step 1: value of risk must be one of: safe, disruptive, destructive"),
        (
            used([{"use": "restrat"}], [step("restart")], "step"),
            "step 1: use names 'restrat', which is no step of the service",
        ),
    ],
)
def test_steps_that_are_wrong(steps, says):
    with pytest.raises(Wrong) as caught:
        validate_steps(steps, OPERATIONS)
    assert says in str(caught.value)


def test_operation_with_types_and_defaults():
    assert validate_operation("restart", {"risk": "disruptive", "preview": "Restart $process."}) == {
        "risk": "disruptive",
        "preview": "Restart $process.",
        "irreversible": "",
        "undo": "",
        "by_hand": [],
        "looks_by_hand": True,
        "looks": [],
        "requires": [],
        "sources": {},
        "state": [],
        "identity": None,
    }
    # Known by nothing but its name, which is not the same as by all its parameters.
    assert validate_operation("x", {"risk": "safe", "preview": "x", "identity": []})["identity"] == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"preview": "x"}, "the operation restart: missing required arguments: risk"),
        ({"risk": "safe"}, "the operation restart: missing required arguments: preview"),
        ({"risk": "harmless", "preview": "x"}, "value of risk must be one of: safe, disruptive, destructive"),
        ({"risk": "safe", "preview": "x", "redo": "y"}, "the operation restart has the unknown key 'redo'"),
        ({"risk": "safe", "preview": "x", "sources": ["a"]}, "the operation restart: "),
        ({BROKEN: "vritti_unit is undefined"}, "the operation restart: vritti_unit is undefined"),
        (None, "the operation restart is NoneType, not a mapping"),
    ],
)
def test_operations_that_are_wrong(data, says):
    with pytest.raises(Wrong) as caught:
        validate_operation("restart", data)
    assert says in str(caught.value)

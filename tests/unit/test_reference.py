# SPDX-License-Identifier: GPL-3.0-or-later
"""The emergency reference: from a runbook's own data, and of the real runbooks exactly what 004 says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from ansible import context
from ansible.errors import AnsibleLookupError
from ansible.module_utils.common.collections import ImmutableDict

from ansible_collections.oncall.runbooks.plugins.lookup.as_given import LookupModule as AsGiven
from ansible_collections.oncall.runbooks.plugins.module_utils.wp_chat_incidents import TYPES
from ansible_collections.oncall.runbooks.plugins.plugin_utils import incident_text, reference

REPOSITORY = Path(__file__).resolve().parents[2]

# 004, Quick Reference, with the service's own ids of the actions: incident, severity, primary and secondary action.
QUICK_REFERENCE = {
    "high_latency": ("high", "disable_rerank", "clear_cache"),
    "high_error_rate": ("critical", "emergency_stop", "check_logs"),
    "model_failure": ("high", "disable_rerank", "check_model_files"),
    "index_corruption": ("critical", "verify_index", "rebuild_index"),
    "memory_exhaustion": ("high", "clear_cache", "restart_service"),
    "cache_failure": ("medium", "disable_cache", "clear_cache"),
    "rate_limit_attack": ("high", "adjust_rate_limits", "block_attacker"),
    "canary_failure": ("high", "emergency_stop_canary", "disable_canary"),
}
# What 004 and the service have besides, in their order, and how long each takes.
ACTIONS = {
    "high_latency": [("disable_rerank", 30), ("clear_cache", 60), ("restart_service", 120)],
    "high_error_rate": [("emergency_stop", 30), ("check_logs", 60), ("restart_service", 120)],
    "model_failure": [("disable_rerank", 30), ("check_model_files", 30), ("reload_model", 180)],
    "index_corruption": [("verify_index", 60), ("rebuild_index", 1800), ("restore_backup", 300)],
    "memory_exhaustion": [("check_memory", 30), ("clear_cache", 60), ("restart_service", 120)],
    "cache_failure": [("disable_cache", 30), ("clear_cache", 60), ("check_cache_dir", 30)],
    "rate_limit_attack": [("check_rate_limits", 30), ("adjust_rate_limits", 60), ("block_attacker", 120)],
    "canary_failure": [("emergency_stop_canary", 30), ("disable_canary", 30), ("check_canary_status", 30)],
}

BOOK = {
    "slow_reference": {
        "incident": "Slow",
        "type": "slowness",
        "severity": "high",
        "quick": ["hurry", "rest"],
        "actions": [
            {"do": "speed", "action": "check_speed", "seconds": 30},
            {"do": "hurry", "action": "make_haste", "seconds": 60},
            {"do": "rest", "seconds": 1800},
        ],
    },
    "slow_checks": [{"use": "speed", "title": "Speed of it"}],
    "slow_steps": [{"use": "hurry"}, {"id": "rest", "title": "Rest", "operation": "rest"}, {"use": "block_addresses"}],
}
SERVICE = {"own_checks": [{"id": "speed", "title": "Speed"}], "own_causes": []}
STEPS = {"own_steps": [{"id": "hurry", "title": "Hurry up", "operation": "hurry"}]}
ENGINE = {"__runbook_steps": [{"id": "block_addresses", "title": "Block", "operation": "block_addresses"}]}


@pytest.fixture()
def roles(tmp_path):
    """The roles of a service, whose data is in two files."""
    write(tmp_path, "slow/vars/own", BOOK)
    write(tmp_path, "own/vars/main/checks", SERVICE)
    write(tmp_path, "own/vars/main/steps", STEPS)
    write(tmp_path, "runbook/vars/main", ENGINE)
    # Neither another service's nor one without a reference is in the table.
    write(tmp_path, "slow/vars/other", {"slow_checks": []})
    write(tmp_path, "health_check/vars/own", {"health_check_checks": [{"use": "speed"}]})
    return tmp_path


def write(folder, name, data):
    path = folder / f"{name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data))


def changed(roles, **changes):
    write(roles, "slow/vars/own", {**BOOK, "slow_reference": {**BOOK["slow_reference"], **changes}})


@pytest.fixture()
def command_line(monkeypatch):
    """Sets what somebody has typed."""

    def typed(*playbooks, **more):
        monkeypatch.setattr(context, "CLIARGS", ImmutableDict({"args": playbooks, **more}))

    return typed


class TestTable:
    def test_titles_are_the_runbook_s_and_the_service_s(self, roles):
        (incident,) = reference.table("own", str(roles))
        assert (incident["runbook"], incident["type"], incident["severity"]) == ("slow", "slowness", "high")
        assert [(item["kind"], item["title"], item["seconds"]) for item in incident["actions"]] == [
            ("check", "Speed of it", 30),
            ("step", "Hurry up", 60),
            ("step", "Rest", 1800),
        ]
        assert [item["do"] for item in incident["more"]] == ["block_addresses"]

    def test_the_quick_reference_may_leave_a_check_out(self, roles):
        (incident,) = reference.table("own", str(roles))
        assert [item["do"] for item in incident["quick"]] == ["hurry", "rest"]
        changed(roles, quick=None)
        (incident,) = reference.table("own", str(roles))
        assert [item["do"] for item in incident["quick"]] == ["speed", "hurry"]

    def test_a_title_has_the_roles_defaults_in_it(self, roles):
        write(roles, "own/vars/main/checks", {"own_checks": [{"id": "speed", "title": "{{ a }}, {{ b }} and {{ c }}"}]})
        write(roles, "own/defaults/main", {"a": 10, "b": "{{ a }}"})
        write(roles, "slow/vars/own", {**BOOK, "slow_checks": [{"use": "speed"}]})
        (incident,) = reference.table("own", str(roles))
        assert incident["actions"][0]["title"] == "10, … and …"

    def test_the_worst_come_first(self, roles):
        write(
            roles,
            "down/vars/own",
            {
                "down_reference": {**BOOK["slow_reference"], "severity": "critical"},
                **{key.replace("slow", "down"): value for key, value in BOOK.items() if key != "slow_reference"},
            },
        )
        assert [item["runbook"] for item in reference.table("own", str(roles))] == ["down", "slow"]

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"type": ""}, "slow_reference has no type."),
            ({"severity": "P1"}, "slow_reference has the severity 'P1'; it is one of critical, high, medium, low."),
            ({"quick": ["spede"]}, "slow_reference has 'spede' in quick, which is none of its actions."),
            (
                {"actions": [{"do": "spede", "seconds": 3}]},
                "slow_reference names 'spede', which is no step or check of slow.",
            ),
        ],
    )
    def test_a_mistake_is_a_sentence(self, roles, changes, sentence):
        changed(roles, **{"quick": [], **changes})
        with pytest.raises(reference.Wrong) as error:
            reference.table("own", str(roles))
        assert str(error.value) == sentence

    def test_what_nobody_has_written_is_a_sentence(self, roles):
        with pytest.raises(reference.Wrong, match=r"has a reference for nowhere"):
            reference.table("nowhere", str(roles))
        (roles / "slow/vars/own.yml").write_text("a: [")
        with pytest.raises(reference.Wrong, match=r"slow/vars/own.yml cannot be read"):
            reference.table("own", str(roles))


class TestActions:
    def test_by_our_id_or_by_the_service_s(self, roles):
        incidents = reference.table("own", str(roles))
        incident = reference.of_type(incidents, "slowness")
        assert reference.of_type(incidents, "slow") is incident
        assert {reference.action_of(incident, name)["do"] for name in ("hurry", "make_haste")} == {"hurry"}
        assert reference.action_of(incident, "block_addresses")["kind"] == "step"

    @pytest.mark.parametrize("name", ["", "hury"])
    def test_another_one_is_a_sentence(self, roles, name):
        incident = reference.table("own", str(roles))[0]
        said = "did you mean hurry" if name else "it has speed, hurry, rest, block_addresses"
        with pytest.raises(reference.Wrong, match=f"slow has no action '{name}': {said}"):
            reference.action_of(incident, name)

    def test_another_type_is_a_sentence(self, roles):
        with pytest.raises(reference.Wrong, match=r"of the type unknown; .* for slowness"):
            reference.of_type(reference.table("own", str(roles)), "unknown")


class TestCommands:
    def test_steps_are_carried_out_and_checks_are_made(self, roles):
        actions = reference.table("own", str(roles))[0]["actions"]
        assert actions[0]["command"] == "ansible-playbook playbooks/slow.yml --tags diagnose"
        assert actions[1]["command"] == "ansible-playbook playbooks/slow.yml --tags remediate -e runbook_steps=hurry"

    def test_they_are_as_this_run_s_own(self, roles, command_line):
        command_line("/srv/it/playbooks/wp_chat_incident_procedures.yml", inventory=["hosts.yml"], become=True)
        actions = reference.table("own", str(roles), host="chat 1")[0]["actions"]
        assert shlex.split(actions[1]["command"])[1:] == [
            "/srv/it/playbooks/slow.yml",
            "--tags",
            "remediate",
            "-i",
            "hosts.yml",
            "-l",
            "chat 1",
            "-b",
            "-e",
            "runbook_steps=hurry",
        ]

    def test_by_collection_name_and_without_tags(self, command_line):
        command_line("oncall.runbooks.wp_chat_incident_active")
        said = reference.beside("wp_chat_incident_resolve", "", ["-e", "incident_id=1"])
        assert said == "ansible-playbook oncall.runbooks.wp_chat_incident_resolve -e incident_id=1"

    def test_of_somebody_s_own_playbook_they_are_the_checkout_s(self, command_line):
        command_line("mine.yml")
        assert reference.beside("slow", "diagnose", []) == "ansible-playbook playbooks/slow.yml --tags diagnose"


def test_as_text(roles):
    text = reference.lines(reference.table("own", str(roles)))
    assert text[:2] == [
        "INCIDENT  SEVERITY  PRIMARY ACTION   SECONDARY ACTION",
        "Slow      high      Hurry up (60 s)  Rest (30 min)",
    ]
    assert "  1. Check: Speed of it (30 s)  [speed, check_speed]" in text
    assert "  3. Rest (30 min)  [rest]" in text


class TestRealData:
    def test_it_is_004_s_quick_reference(self):
        table = {item["type"]: item for item in reference.table("wp_chat")}
        assert {
            kind: (item["severity"], *(action["action"] for action in item["quick"])) for kind, item in table.items()
        } == QUICK_REFERENCE

    def test_actions_are_004_s_in_its_order(self):
        table = reference.table("wp_chat")
        assert {
            item["type"]: [(action["action"], action["seconds"]) for action in item["actions"]] for item in table
        } == ACTIONS

    def test_every_type_of_the_service_but_unknown_has_a_runbook(self):
        assert {item["type"] for item in reference.table("wp_chat")} == set(TYPES) - {"unknown"}

    def test_every_runbook_has_its_playbook(self):
        for item in reference.table("wp_chat"):
            assert (REPOSITORY / "playbooks" / f"{item['runbook']}.yml").is_file()

    def test_the_service_s_ids_find_our_steps(self):
        incident = reference.of_type(reference.table("wp_chat"), "memory_exhaustion")
        action = reference.action_of(incident, "restart_service")
        assert (incident["runbook"], action["do"], action["kind"]) == ("resource_exhaustion", "restart_wp_chat", "step")

    def test_titles_say_what_004_says(self):
        titles = {
            action["action"]: action["title"] for item in reference.table("wp_chat") for action in item["actions"]
        }
        for action, words in {
            "disable_rerank": "rerank",
            "clear_cache": "cache",
            "restart_service": "restart",
            "rebuild_index": "index",
            "block_attacker": "block",
            "disable_canary": "canary",
        }.items():
            assert words in titles[action].lower(), (action, titles[action])


def incident(name, kind="high_latency", **more):
    return {
        "incident_id": name,
        "incident_type": kind,
        "severity": "high",
        "active": True,
        "detected_at": "2026-11-22T03:36:14Z",
        "resolved_at": None,
        "description": "",
        "affected_components": [],
        "actions_taken": [],
        "resolution_notes": "",
        "assigned_to": "",
        **more,
    }


def told(*active, **more):
    return {
        "source": "/srv/logs/incidents.jsonl",
        "api": "It answers 500.",
        "active": list(active),
        "recent": [],
        "torn": 0,
        "notes": [],
        **more,
    }


class TestText:
    NOW = 1795318574 + 720

    def test_the_answer_is_in_the_first_three_lines(self):
        worst = incident("incident_1", severity="critical", description="p95 is 6 s\nsince the deployment")
        text = incident_text.status("chat-1", told(worst, incident("incident_2", "canary_failure")), self.NOW)
        assert text[0] == "chat-1: 2 active incidents (1 critical, 1 high), 0 in the last 24 h"
        assert text[1] == (
            "  CRITICAL  high_latency  incident_1  since 2026-11-22T03:36:14Z (12 min)  p95 is 6 s since the deployment"
        )
        assert text[2] == (
            "  Next: ansible-playbook playbooks/wp_chat_incident_procedures.yml -e incident_id=incident_1"
        )
        assert text[-1] == "  From /srv/logs/incidents.jsonl. It answers 500."

    def test_nothing_active_is_one_line(self):
        assert incident_text.active("chat-1", told()) == ["chat-1: no active incident, 0 in the last 24 h"]

    def test_what_cannot_be_read_is_said(self):
        assert incident_text.active("chat-1", told(torn=2))[0].endswith("; 2 torn lines")

    def test_procedures_are_the_runbook_s(self):
        text = incident_text.procedures(
            "chat-1",
            {"incident": incident("incident_1"), "catalogue": [{"action_id": "pray"}], "source": "api"},
            self.NOW,
        )
        assert text[0] == "chat-1: incident_1 is active since 2026-11-22T03:36:14Z (12 min), high high_latency"
        assert text[1].startswith("  1. ")
        assert text[1].endswith("(30 s)  [disable_reranking, disable_rerank]")
        assert "  The service itself also lists pray, which this runbook does not have." in text
        assert any("wp_chat_incident_execute.yml --tags remediate -e incident_id=incident_1" in line for line in text)

    def test_what_no_runbook_is_for_is_for_triage(self):
        text = incident_text.procedures(
            "chat-1", {"incident": incident("incident_1", "unknown"), "catalogue": None, "source": "api"}, self.NOW
        )
        assert "No runbook is for an incident of the type unknown" in text[1]
        assert text[2].endswith("playbooks/triage.yml --tags diagnose")

    def test_what_was_done(self):
        done = {"changed": True, "incident": incident("incident_1"), "notes": ["A note."]}
        assert incident_text.recorded("chat-1", done, False) == [
            "chat-1: recorded incident_1, high high_latency",
            "  A note.",
        ]
        over = {**done, "incident": incident("incident_1", active=False)}
        assert incident_text.recorded("chat-1", over, True)[0].startswith("chat-1: would be resolved incident_1")
        assert incident_text.recorded("chat-1", {**done, "changed": False}, False) == ["chat-1: A note."]


class TestAsGiven:
    def run(self, name, variables):
        return AsGiven().run([name], variables)[0]

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ("incident_notes=Fixed by restart", "Fixed by restart"),
            ("incident_notes='Fixed by restart'", "Fixed by restart"),
            ("incident_notes=max=10 and {{ braces }}", "max=10 and {{ braces }}"),
            ("incident_id=incident_1 incident_notes='Fixed by restart'", "Fixed by restart"),
            ("incident_notes='Fixed by restart' incident_id=incident_1", "Fixed by restart"),
            ('{"incident_notes": "Fixed by restart"}', "Fixed by restart"),
            ("@notes.yml", "Fixed by restart"),
        ],
    )
    def test_all_of_the_text(self, command_line, given, text):
        command_line("mine.yml", extra_vars=(given,))
        value = "Fixed" if given.startswith("incident_notes=Fixed") else text
        assert self.run("incident_notes", {"incident_notes": value}) == text

    def test_the_last_one_counts(self, command_line):
        command_line("mine.yml", extra_vars=("incident_notes=the first one", "incident_notes=the last one", "b=c"))
        assert self.run("incident_notes", {"incident_notes": "the"}) == "the last one"

    def test_words_that_would_be_lost_are_a_sentence(self, command_line):
        command_line("mine.yml", extra_vars=("incident_id=incident_1 incident_notes=Fixed by restart",))
        with pytest.raises(
            AnsibleLookupError, match="'by restart' belongs to no variable; give incident_notes in a -e"
        ):
            self.run("incident_notes", {"incident_notes": "Fixed"})

    def test_what_is_not_given_is_empty(self, command_line):
        command_line("mine.yml")
        assert self.run("incident_notes", {}) == ""
        assert self.run("incident_notes", {"incident_notes": "from {{ an }} inventory"}) == "from {{ an }} inventory"

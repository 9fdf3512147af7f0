# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import shlex

import pytest
from ansible import context
from ansible.utils.context_objects import CLIArgs

from ansible_collections.oncall.runbooks.plugins.plugin_utils.command import again
from ansible_collections.oncall.runbooks.plugins.plugin_utils.preflight import (
    cover,
    refuse_hosts,
    refuse_mode,
    refuse_tags,
    refuse_without_steps,
    some,
)

OURS = ["diagnose", "verify", "remediate", "rollback"]


@pytest.mark.parametrize("tags", [["all"], ["diagnose"], ["verify"], ["rollback"], []])
def test_tags_that_are_ours(tags):
    assert refuse_tags("high_latency", OURS, tags, []) is None


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        (["diagnoze"], "Unknown tag diagnoze: did you mean diagnose?"),
        (["diagnose", "remediat"], "Unknown tag remediat: did you mean remediate?"),
        (["xyz"], "Unknown tag xyz: high_latency knows diagnose, verify, remediate, rollback."),
        (["never"], "Unknown tag never"),
        (["untagged"], "Unknown tag untagged"),
        (["Diagnose"], "Unknown tag Diagnose: did you mean diagnose?"),
    ],
)
def test_tags_that_are_not(tags, says):
    assert refuse_tags("high_latency", OURS, tags, []).startswith(says)


@pytest.mark.parametrize("tag", [*OURS, "always", "all", "tagged"])
def test_skipping_what_the_run_is_for(tag):
    said = refuse_tags("high_latency", OURS, ["all"], ["mine", tag])
    assert said.startswith(f"--skip-tags {tag} would leave out what high_latency is for")


@pytest.mark.parametrize("tags", [["remediate", "rollback"], ["diagnose", "remediate"], ["all", "verify", "rollback"]])
def test_one_thing_at_a_time(tags):
    said = refuse_tags("high_latency", OURS, tags, [])
    named = ",".join(tag for tag in tags if tag in OURS)
    assert said == f"--tags {named} asks for several things; high_latency does one at a time."


@pytest.mark.parametrize(("tag", "what"), [("verify", "verify"), ("remediate", "remediate"), ("rollback", "roll back")])
def test_a_runbook_without_steps_only_diagnoses(tag, what):
    said = refuse_without_steps("health_check", [tag], lambda: False)
    assert said == f"health_check only diagnoses, so there is nothing to {what}; leave --tags {tag} out."
    assert refuse_without_steps("high_latency", [tag], lambda: True) is None


@pytest.mark.parametrize("tags", [["all"], ["diagnose"], ["mine"], []])
def test_a_diagnosis_does_not_read_whether_there_are_steps(tags):
    assert refuse_without_steps("health_check", tags, lambda: pytest.fail("it was read")) is None


@pytest.mark.parametrize("mode", ["remediate", "rollback"])
def test_change_under_its_own_tag(mode):
    assert refuse_mode(mode, [mode], []) == (None, None)
    # Somebody's own tags beside it are theirs.
    assert refuse_mode(mode, [mode, "mine"], ["theirs"]) == (None, None)


@pytest.mark.parametrize("mode", ["remediate", "rollback"])
@pytest.mark.parametrize(
    "tags", [["all"], ["never"], ["mine"], ["diagnose"], ["verify"], ["all", "never"], ["tagged"], []]
)
def test_change_is_left_out_under_any_other_tag(mode, tags):
    assert refuse_mode(mode, tags, []) == (None, f"{mode} was left out: it runs only under --tags {mode}.")


@pytest.mark.parametrize("mode", ["remediate", "rollback"])
def test_change_together_with_something_else_is_refused(mode):
    for other in OURS:
        if other != mode:
            refused, remark = refuse_mode(mode, [mode, other], [])
            assert refused == f"Nothing was changed: --tags {mode},{other} asks for several things; {mode} runs alone."
            assert remark is None


@pytest.mark.parametrize("mode", ["remediate", "rollback"])
@pytest.mark.parametrize("skipped", [*OURS, "always", "all", "tagged"])
def test_change_without_what_makes_it_safe_is_refused(mode, skipped):
    refused, remark = refuse_mode(mode, [mode], ["mine", skipped])
    assert (refused, remark) == (f"Nothing was changed: --skip-tags {skipped} leaves out what makes {mode} safe.", None)


def test_skipping_a_tag_of_somebody_else():
    assert refuse_tags("high_latency", OURS, ["all"], ["mine"]) is None


GROUPS = {"vritti": ["v1", "v2", "both"], "jarvis": ["j1", "both"], "web": ["w1"]}


def named(**values):
    return values.get


def test_covered():
    found = cover(["v1", "w1", "both", "j1"], ["jarvis", "vritti"], GROUPS, named())
    assert found == (["w1"], {"both": ["jarvis", "vritti"]}, {})


def test_own_service_comes_first():
    found = cover(
        ["v1", "w1", "both", "j1"], ["jarvis", "vritti"], GROUPS, named(both="vritti", w1="vritti", j1="aragora")
    )
    assert found == ([], {}, {"j1": "aragora"})


def test_service_without_a_group():
    assert cover(["v1"], ["vritti", "wp_chat"], GROUPS, named()) == ([], {}, {})
    assert cover(["v1"], ["wp_chat"], GROUPS, named())[0] == ["v1"]


@pytest.mark.parametrize(
    ("hosts", "limit", "covered", "says"),
    [
        (["v1"], None, ([], {}, {}), None),
        (["v1", "w1"], None, (["w1"], {}, {}), None),
        (["v1", "w1"], "v1:w1", (["w1"], {}, {}), "r does not cover w1"),
        (["w1"], None, (["w1"], {}, {}), "r does not cover w1: it covers hosts in the group vritti or jarvis"),
        (
            ["b"],
            None,
            ([], {"b": ["jarvis", "vritti"]}, {}),
            "b is in the groups jarvis and vritti; set runbook_service",
        ),
        (
            ["j1"],
            None,
            ([], {}, {"j1": "x"}),
            "r has no checks for runbook_service 'x' of j1; it has them for vritti, jarvis.",
        ),
    ],
)
def test_hosts_that_are_refused(hosts, limit, covered, says):
    said = refuse_hosts("r", hosts, ["vritti", "jarvis"], limit, covered)
    assert said is None if says is None else said.startswith(says)


def test_some_names():
    assert some(["a"]) == "a"
    assert some(list("abcde")) == "a, b, c, d, e"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"


# --- the command to type again


@pytest.fixture()
def typed(monkeypatch):
    """Make the run look as if these arguments had been typed."""

    def typed(**arguments):
        arguments.setdefault("args", ("playbooks/high_latency.yml",))
        monkeypatch.setattr(context, "CLIARGS", CLIArgs(arguments))

    return typed


def test_again_repeats_where_and_never_a_value(typed, tmp_path):
    vars_file = f"@{tmp_path}/secret vars.yml"
    typed(
        inventory=("inventories/example", "one,"),
        subset="vritti-1:&prod",
        extra_vars=(
            "vritti_admin_api_key=s3same",
            vars_file,
            '{"runbook_prometheus_url": "http://u:s3same@p"}',
            "@more.json",
        ),
    )
    command = again("remediate", ["-e", "runbook_plan=x"])
    assert "s3same" not in command
    assert shlex.split(command) == [
        "ansible-playbook", "playbooks/high_latency.yml", "--tags", "remediate",
        "-i", "inventories/example", "-i", "one,", "-l", "vritti-1:&prod", "-e", vars_file, "-e", "@more.json",
        "-e", "runbook_plan=x",
    ]  # fmt: skip


def test_again_of_a_plain_run(typed):
    typed()
    assert again("diagnose") == "ansible-playbook playbooks/high_latency.yml --tags diagnose"
    typed(args=("oncall.runbooks.high_latency",), extra_vars=(), inventory=None, subset=None, become=False)
    assert again("diagnose") == "ansible-playbook oncall.runbooks.high_latency --tags diagnose"


def test_again_keeps_how_to_become_and_to_decrypt(typed):
    typed(
        become=True,
        become_ask_pass=True,
        vault_ids=("prod@prompt",),
        vault_password_files=("/etc/vault pass",),
        ask_vault_pass=True,
    )
    words = shlex.split(again("diagnose"))
    assert words[4:] == [
        "-b",
        "-K",
        "--vault-id",
        "prod@prompt",
        "--vault-password-file",
        "/etc/vault pass",
        "--ask-vault-pass",
    ]


def test_again_shortens_paths_below_here(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed(args=(f"{tmp_path}/site.yml",), inventory=(f"{tmp_path}/inventories/example", "/etc/hosts.yml"))
    words = shlex.split(again("diagnose"))
    assert words[1] == "site.yml"
    assert "inventories/example" in words


def test_again_leaves_out_the_inventory_of_the_configuration(typed):
    from ansible import constants

    typed(inventory=tuple(constants.DEFAULT_HOST_LIST))
    assert "-i" not in shlex.split(again("diagnose"))


def test_again_where_there_is_no_command_line(monkeypatch):
    monkeypatch.setattr(context, "CLIARGS", CLIArgs({}))
    assert again("diagnose") is None

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.plugin_utils import reports


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert (
        reports.host_path("reports", "high_latency", "v-1.example.com")
        == f"{tmp_path}/reports/high_latency/v-1.example.com.json"
    )
    assert reports.plan_path("~/reports", "high_latency") == "/home/ann/reports/high_latency/plan.json"
    assert reports.host_path(None, "r", "v") is None
    assert reports.host_path("", "r", "v") is None
    assert reports.plan_path("", "r") is None


@given(st.text(min_size=1))
def test_no_host_reaches_out_of_its_folder_or_is_taken_for_the_plan(host):
    path = reports.host_path("/reports", "r", host)
    assert os.path.dirname(os.path.normpath(path)) == "/reports/r"
    assert path != reports.plan_path("/reports", "r")


def test_host_whose_name_is_plan():
    assert reports.host_path("/reports", "r", "plan") != reports.plan_path("/reports", "r")


def test_what_is_written_is_read(tmp_path):
    path = str(tmp_path / "a" / "b" / "x.json")
    reports.write(path, {"summary": "ä"})
    reports.write(path, {"summary": "ö"})
    assert reports.read(path) == {"summary": "ö"}
    assert "ö" in (tmp_path / "a" / "b" / "x.json").read_text(encoding="utf-8")
    assert os.listdir(tmp_path / "a" / "b") == ["x.json"]
    reports.write(None, {})


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_reports_are_for_whom_the_umask_lets_read_them(tmp_path, umask):
    before = os.umask(umask)
    try:
        reports.write(str(tmp_path / "x.json"), {})
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"x"'])
def test_what_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert reports.read(str(tmp_path / "x.json")) is None
    assert reports.read(str(tmp_path / "none.json")) is None
    assert reports.read(str(tmp_path)) is None


def test_plan_is_found_by_its_id_of_whichever_runbook(tmp_path):
    # A folder may be named like a pattern.
    folder = tmp_path / "[reports]"
    for runbook, name in (("a", "1"), ("b", "2")):
        plan = {"id": name, "runbook": runbook, "hosts": ["v1"], "steps": [{"host": "v1"}, {"host": "v1"}]}
        reports.write_plan(reports.plan_path(str(folder), runbook), plan)
        assert reports.read(reports.plan_path(str(folder), runbook)) == plan
    reports.write(reports.host_path(str(folder), "a", "v1"), {"id": "3"})
    (folder / "a" / "c").mkdir()
    (folder / "d").mkdir()
    (folder / "d" / "plan.json").write_text("{")
    assert reports.plan_with(str(folder), "2")["runbook"] == "b"
    # -e @ reads it, and Ansible warns of a variable named hosts.
    reports.write_plan(reports.plan_path(str(folder), "b"), {**plan, "runbook_frozen": {"block": {}}})
    assert "hosts" not in reports.read(reports.plan_path(str(folder), "b"))
    assert reports.plan_with(str(folder), "2")["hosts"] == ["v1"]
    assert reports.plan_with(str(folder), "3") is None
    assert reports.plan_with(str(tmp_path / "none"), "2") is None
    assert reports.plan_with(None, "2") is None


def test_failure_leaves_the_report_before(tmp_path):
    path = str(tmp_path / "x.json")
    reports.write(path, {"a": 1})
    with pytest.raises(TypeError):
        reports.write(path, {"a": object()})
    assert reports.read(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_readers_see_a_report_before_or_after_and_never_half(tmp_path):
    path = str(tmp_path / "x.json")
    code = """
import json, sys
sys.path[:0] = sys.argv[2:]
from ansible_collections.oncall.runbooks.plugins.plugin_utils import reports
for number in range(300):
    reports.write(sys.argv[1], {"number": number, "long": "x" * 20000})
"""
    reports.write(path, {"number": -1})
    with subprocess.Popen([sys.executable, "-c", code, path, *sys.path]) as writer:
        seen = set()
        while writer.poll() is None:
            with open(path, encoding="utf-8") as file:
                seen.add(json.load(file)["number"])
    assert writer.returncode == 0
    assert reports.read(path)["number"] == 299
    assert seen

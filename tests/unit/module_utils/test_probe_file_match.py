# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe file, the value match: whether a line of a file matches."""

from __future__ import annotations

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import file
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look

TARGET = r"^(([\w.%/-]+[ \t]+)*rebuild-index[ \t]*(?=[\s:])[^=#\n]*:(?!=)|[-s]?include\b)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("all:\n\ttrue\nrebuild-index: posts\n\tbuild\n", True),
        ("bm25 rebuild-index : posts\n", True),
        ("-include more.mk\n", True),
        (".PHONY: rebuild-index\n", False),
        ("rebuild-index-fast:\n", False),
        ("rebuild-index := 1\n", False),
        ("# rebuild-index:\n\trebuild-index:\n", False),
        ("all: rebuild-index\n", False),
        ("", False),
        ("\udcff\nrebuild-index:\n", True),
    ],
)
def test_a_target_of_a_makefile(tmp_path, text, value):
    path = tmp_path / "Makefile"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = look("file", paths=[str(path)], value="match", pattern=TARGET)
    assert found["value"] is value
    assert found["evidence"] == {"file": str(path)}
    assert (found["note"] is None) is value


def test_a_note_is_the_way_out(tmp_path):
    path = tmp_path / "Makefile"
    options = {"paths": [str(path)], "value": "match", "pattern": "^a", "note": "write one"}
    none = look("file", **options)
    assert (none["value"], none["note"]) == (False, f"{path} does not exist; write one")
    path.write_text("b\n")
    assert look("file", **options)["note"] == f"{path} has no line that matches ^a; write one"


def test_a_large_file_is_not_read(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * (file.MAX_BYTES + 1))
    with pytest.raises(NoAnswer, match="larger than 512 KiB"):
        look("file", paths=[str(tmp_path / "large")], value="match", pattern="x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"value": "match", "pattern": "("}, "is no regular expression"),
        ({"value": "size", "pattern": "x"}, "pattern goes with the value match"),
    ],
)
def test_options(options, says):
    with pytest.raises(ValueError, match=says):
        file.validate(helpers.source("file", paths=["/x"], **options))

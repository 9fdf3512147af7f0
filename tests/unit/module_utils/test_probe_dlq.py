# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe dlq on real files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.dead_letter_helpers import (
    NAME,
    NULL,
    REASON,
    entry,
    line,
    write,
)
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look


def test_a_queue(tmp_path):
    path = write(tmp_path, [entry(1), entry(2, customer="other"), {**entry(3), **NULL}])
    write(tmp_path, [entry(9)], "failed_reflections.20261126_030000.log")
    with path.open("ab") as file:
        file.write(b"torn\n")
    before = path.stat()
    seen = look("dlq", path=str(path))
    assert seen["value"] == 4
    assert seen["evidence"]["by_reason"] == {REASON: 3, "reflection_redaction_failed": 1}
    assert seen["evidence"]["by_customer"] == {"acme": 3, "other": 1}
    assert [one["episode_id"] for one in seen["evidence"]["last"]] == [1, 2, 3]
    assert all("reflection" not in one for one in seen["evidence"]["last"])
    assert seen["note"] == "wc -l misses 1 file that Vritti has renamed; jq stops at the first torn line"
    assert look("dlq", path=str(path), customer="acme")["value"] == 3
    assert look("dlq", path=str(path), customer="acme", reason=REASON)["value"] == 2
    assert look("dlq", path=str(path), reason="reflection_redaction_failed")["value"] == 1
    assert look("dlq", path=str(path), customer="nobody")["value"] == 0
    assert look("dlq", path=str(path), value="torn")["value"] == 1
    age = look("dlq", path=str(path), value="age")["value"]
    assert age == pytest.approx(time.time() - 1_795_748_401, abs=5)
    assert path.stat() == before


def test_no_file_is_an_empty_queue(tmp_path):
    path = str(tmp_path / NAME)
    assert look("dlq", path=path)["value"] == 0
    assert look("dlq", path=path, value="recent")["value"] == 0
    with pytest.raises(Absent, match="is empty"):
        look("dlq", path=path, value="age")
    assert os.listdir(tmp_path) == []


def test_recent(tmp_path):
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
    path = write(tmp_path, [entry(1), {**entry(2), "timestamp": stamp}])
    seen = look("dlq", path=str(path), value="recent", window=120.0)
    assert (seen["value"], seen["note"]) == (1, None)
    assert look("dlq", path=str(path), value="recent", window=10.0)["value"] == 0


def test_growth(tmp_path):
    path = write(tmp_path, [entry(1)])
    with pytest.raises(Absent, match="no second look"):
        look("dlq", path=str(path), value="growth")

    def later():
        time.sleep(0.2)
        with path.open("ab") as file:
            file.write(line(entry(2)) + line(entry(3)))

    writer = threading.Thread(target=later)
    writer.start()
    seen = look("dlq", at=helpers.context(sample_seconds=0.6), path=str(path), value="growth")
    writer.join()
    assert seen["evidence"]["lines"] == 2
    assert seen["value"] == pytest.approx(60 * 2 / 0.6, rel=0.5)


def test_customers_that_the_database_has_not(tmp_path):
    path = write(tmp_path, [entry(1), entry(2, customer="gone")])
    database = tmp_path / "customers.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE customers (customer_id TEXT)")
        connection.execute("INSERT INTO customers VALUES ('acme')")
    seen = look("dlq", path=str(path), value="unknown_customers", customers_db=str(database))
    assert (seen["value"], seen["evidence"]["unknown"]) == (1, ["gone"])
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(NoAnswer, match="does not tell its customers"):
        look("dlq", path=str(path), value="unknown_customers", customers_db=str(database))
    path.unlink()
    assert look("dlq", path=str(path), value="unknown_customers", customers_db=str(database))["value"] == 0


def test_a_file_that_may_not_be_read():
    # Below a folder that everybody may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - that is the point
        path = write(Path(folder), [entry(1)])
        path.chmod(0)
        said = helpers.python(
            """
            import sys
            from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
            from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
            exec(helpers.BECOME_NOBODY)
            try:
                helpers.look("dlq", path=sys.argv[1])
            except NoAnswer as error:
                print(error.kind, error)
            """,
            path,
        )
        assert said == f"permission {path} may not be read by nobody; run with -b."


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"value": "torn", "customer": "acme"}, "customer and reason are for the value entries; leave them out"),
        ({"value": "unknown_customers"}, "value is unknown_customers, which takes customers_db"),
    ],
)
def test_mistakes(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        PROBES["dlq"].validate(helpers.source("dlq", path="/x", **wrong))

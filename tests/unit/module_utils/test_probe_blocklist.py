# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe blocklist on this host; with entries it is in the integration tests, in a network of its own."""

from __future__ import annotations

import pytest

from ansible_collections.oncall.runbooks.plugins.module_utils import blocklist
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent
from ansible_collections.oncall.runbooks.plugins.module_utils.registry import PROBES
from ansible_collections.oncall.runbooks.plugins.module_utils.run_probes import one_look
from ansible_collections.oncall.runbooks.tests.unit.module_utils import helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.helpers import look


def answering(monkeypatch, tmp_path, status, output, errors):
    """A host with nft alone, which says this."""
    nft = tmp_path / "nft"
    nft.write_text(f"#!/bin/sh\nprintf '%s' '{output}'\nprintf '%s' '{errors}' >&2\nexit {status}\n")
    nft.chmod(0o755)
    monkeypatch.setattr(blocklist, "program", lambda name: str(nft) if name == "nft" else None)


def protected(seen):
    return {(one["network"], one["rule"]) for one in seen["evidence"]["protected"]}


def test_nothing_is_blocked(monkeypatch, tmp_path):
    answering(monkeypatch, tmp_path, 1, "", "Error: No such file or directory")
    seen = look("blocklist", never_block=["203.0.113.0/24"])
    assert seen["value"] == 0
    assert (seen["evidence"]["backend"], seen["evidence"]["text"]) == ("nftables", "none")
    assert ("203.0.113.0/24", "never_block") in protected(seen)
    assert ("127.0.0.1", "host") in protected(seen)


def test_without_root_what_must_not_be_blocked_is_seen_all_the_same(monkeypatch, tmp_path):
    answering(monkeypatch, tmp_path, 1, "", "netlink: Error: cache initialization failed: Operation not permitted")
    seen = one_look(helpers.context(), helpers.source("blocklist"), {})
    assert (seen["outcome"], seen["kind"], seen["value"]) == ("no_answer", "permission", None)
    assert "run with -b" in seen["note"]
    assert ("127.0.0.1", "host") in protected(seen)


def test_a_host_that_cannot_block(monkeypatch):
    monkeypatch.setattr(blocklist, "program", lambda name: None)
    with pytest.raises(Absent, match="nft is not installed; ipset is not installed; iptables is not installed"):
        look("blocklist")


def test_a_wrong_never_block_is_a_sentence():
    with pytest.raises(ValueError, match="never_block has 'example"):
        PROBES["blocklist"].validate({**helpers.source("blocklist"), "never_block": ["example.org"]})

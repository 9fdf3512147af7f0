# SPDX-License-Identifier: GPL-3.0-or-later
"""Episodes as KyroDB holds them. What is exported and replayed is tested with a server, in tests/unit."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

# It has to be importable on every target.
from ansible_collections.oncall.runbooks.plugins.module_utils import episode_export, episodes

EPISODE = {"goal": "gö", "number": 388_123_456_789_012_345, "tags": ["a"], "reflection": None}


def packed(text, level=9):
    return "gz:" + base64.b64encode(zlib.compress(text.encode(), level)).decode()


@pytest.mark.parametrize(
    "text", [json.dumps(EPISODE), json.dumps(EPISODE, ensure_ascii=False), packed(json.dumps(EPISODE))]
)
def test_packed_or_plain(text):
    assert episodes.decode(text) == EPISODE
    again = episodes.encode(EPISODE, like=text)
    assert again.startswith("gz:") is text.startswith("gz:")
    assert episodes.decode(again) == EPISODE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "JSONDecodeError"),
        ("gz:!", "Error"),
        ("gz:" + base64.b64encode(b"not deflated").decode(), "error"),
        (packed(json.dumps(EPISODE))[:27], "cut off"),
        (packed("x" * 100), "JSONDecodeError"),
        (packed("[]"), "no JSON object"),
        ('{"a": Infinity}', "Infinity is no JSON"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_what_is_no_episode(text, says):
    with pytest.raises(episodes.Undecodable, match=says):
        episodes.decode(text)


def test_what_unpacks_to_more_than_an_episode_can_have():
    bomb = "gz:" + base64.b64encode(zlib.compress(bytes(65 << 20))).decode()
    with pytest.raises(episodes.Undecodable, match="64 MiB"):
        episodes.decode(bomb)


def test_namespaces():
    assert episodes.namespace("acme-corp") == "acme-corp:failures"
    assert episodes.namespace("a1", "failures_images") == "a1:failures_images"
    assert episodes.namespace("a1", "cluster_templates") == "a1:cluster_templates"
    for name in ("a:b", "failure", "Failures", ""):
        with pytest.raises(ValueError, match="is no collection; Vritti's are failures, failures_images, skills, clus"):
            episodes.namespace("acme", name)
    assert episode_export.CHUNK > 0

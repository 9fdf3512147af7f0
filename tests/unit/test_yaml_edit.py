# SPDX-License-Identifier: GPL-3.0-or-later
"""Single values of a YAML text: only they change, and what cannot be done so is refused in a sentence."""

from __future__ import annotations

import re

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.filter.yaml_put_back import yaml_put_back
from ansible_collections.oncall.runbooks.plugins.filter.yaml_set import yaml_set
from ansible_collections.oncall.runbooks.plugins.filter.yaml_unset import yaml_unset

CONFIG = """\
# The service's own configuration.
api:
  cache:
    enabled: true   # read once
    search_ttl: 1800
    # 100 MB, whatever this says
    max_size_mb: 100
  rate_limit:
    max_requests: 100    # per window
    "window_seconds": 3600
    burst_limit: 20

llm:
  prompt: |
    # no comment
    Answer: briefly.

  models: [small, 'large']
"""
LIMIT = "api.rate_limit.max_requests"


def test_only_the_characters_of_the_value_are_replaced():
    edited = yaml_set(CONFIG, "api.cache.enabled", False)
    assert edited == CONFIG.replace("enabled: true   #", "enabled: false   #")
    assert yaml_set(edited, "api.cache.enabled", False) == edited


def test_several_values_at_once():
    values = {LIMIT: 10, "api.rate_limit.window_seconds": 60}
    edited = yaml_set(CONFIG, values)
    assert edited == CONFIG.replace("max_requests: 100 ", "max_requests: 10 ").replace(": 3600", ": 60")
    assert yaml_put_back(edited, CONFIG, values) == CONFIG


@pytest.mark.parametrize(
    ("before", "path", "value", "after"),
    [
        # What is missing comes at the end of its mapping, with its indentation.
        ("a:\n    b: 1\nc: 2\n", "a.d", 3, "a:\n    b: 1\n    d: 3\nc: 2\n"),
        (
            "a:\n    b: 1  # why\n    # and this\nc: 2\n",
            "a.d",
            3,
            "a:\n    b: 1  # why\n    d: 3\n    # and this\nc: 2\n",
        ),
        ("a:\n    b: 1\n", "a.c.d", True, "a:\n    b: 1\n    c:\n        d: true\n"),
        ("a:\n  b: 1", "a.c", 3, "a:\n  b: 1\n  c: 3"),
        ("a: 1\r\nb:\r\n  c: 2\r\n", "b.d", 3, "a: 1\r\nb:\r\n  c: 2\r\n  d: 3\r\n"),
        ("a: 1\r\n", "a", 2, "a: 2\r\n"),
        ("\ufeffa: 1\n", "a", 2, "\ufeffa: 2\n"),
        ("\ufeffa: 1\n", "b", 2, "\ufeffa: 1\nb: 2\n"),
        ("---\na: 1\n...\n", "b", 2, "---\na: 1\nb: 2\n...\n"),
        ("a:\n- x\n- y\n", "b", 2, "a:\n- x\n- y\nb: 2\n"),
        ("a:\n  t: |\n    x\n\n# c\nb: 1\n", "a.u", 2, "a:\n  t: |\n    x\n\n  u: 2\n# c\nb: 1\n"),
        # Nothing but comments.
        ("", "a.b", 1, "a:\n  b: 1\n"),
        ("# nothing yet", "a", 1, "# nothing yet\na: 1\n"),
        ("# nothing yet\r\n", "a.b", 1, "# nothing yet\r\na:\r\n  b: 1\r\n"),
        ("---\n", "a", 1, "---\na: 1\n"),
        ("~ # yet\n", "a.b", 1, "{a: {b: 1}} # yet\n"),
        # Braces.
        ("a: {b: 1, c: 2} # x\n", "a.b", 10, "a: {b: 10, c: 2} # x\n"),
        ("a: {b: 1}\n", "a.c.d", 2, "a: {b: 1, c: {d: 2}}\n"),
        ("a: {}\n", "a.b", 2, "a: {b: 2}\n"),
        ("a: {b: 1,\n  c: 2,  # last\n}\n", "a.d", 3, "a: {b: 1,\n  c: 2, d: 3,  # last\n}\n"),
        ('{"a": {"b": 1}}', "a.b", 2, '{"a": {"b": 2}}'),
        # Nothing behind the colon.
        ("a:\n  b: # later\n  c: 1\n", "a.b", True, "a:\n  b: true # later\n  c: 1\n"),
        ("a:\nb: 1\n", "a.c", 2, "a: {c: 2}\nb: 1\n"),
        ("a: ~\nb: 1\n", "a.c", 2, "a: {c: 2}\nb: 1\n"),
        ("a: {b: , c: 1}\n", "a.b", 2, "a: {b: 2 , c: 1}\n"),
        # Whatever it was written like.
        ("a: 'yes'   # x\n", "a", True, "a: true   # x\n"),
        ("a: !!str 1\n", "a", 1, "a: 1\n"),
        ("a: &one 1\nb: 2\n", "a", 3, "a: 3\nb: 2\n"),
        ("a: |  # why\n  text\n\nb: 1\n", "a", 2, "a: 2  # why\n\nb: 1\n"),
        ("a: one\n  two\nb: 1\n", "a", 2, "a: 2\nb: 1\n"),
        ("größe: ä # ü\n名: 1\n", "名", 2, "größe: ä # ü\n名: 2\n"),
        ("a: 1\n", "größe", "ä", 'a: 1\n"gr\\xF6\\xDFe": "\\xE4"\n'),
        # Types of YAML.
        ("a: 1\n", "a", True, "a: true\n"),
        ("a: true\n", "a", "true", 'a: "true"\n'),
        ("a: 10\n", "a", "10", 'a: "10"\n'),
        ("a: 1\n", "a", "x: # y\nz", 'a: "x: # y\\nz"\n'),
        ("a: 1\n", "a", None, "a: null\n"),
        ("a: 1\n", "a", 1e16, "a: 1.0e+16\n"),
        # What a merge brings is overridden beside it.
        ("x: &x {b: 1}\na:\n  <<: *x\n  c: 2\n", "a.b", 9, "x: &x {b: 1}\na:\n  <<: *x\n  c: 2\n  b: 9\n"),
    ],
)
def test_set(before, path, value, after):
    assert yaml_set(before, path, value) == after


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("a: &x {b: 1}\nc: *x\n", "a.b", "a is shared by an anchor"),
        ("a: &x {b: 1}\nc: *x\n", "c.b", "c is shared by an anchor"),
        ("a: &x 1\nc: *x\n", "a", "a is shared by an anchor"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "a.b", "a is shared by an anchor"),
        ("x: &x {a: {b: 1, c: 2}}\ny:\n  <<: *x\n", "y.a.b", "y.a.b cannot be changed without changing something else"),
        ("a: 1\nb: 2\na: 3\n", "a", "it has a more than once, in the lines 1 and 3"),
        ("a: {b: 1, b: 2}\n", "a.b", "it has a.b more than once, in the lines 1 and 1"),
        ("- a\n", "a", "its document is a list, no mapping"),
        ("just text\n", "a", "its document is a single value, no mapping"),
        ("a: [1]\n", "a.b", "a is a list, no mapping"),
        ("a: 1\n", "a.b", "a is a single value, no mapping"),
        ("a: {b: 1}\n", "a", "a is a mapping, no single value"),
        ("a:\n  - 1\n", "a", "a is a list, no single value"),
        ("a:\n\tb: 1\n", "a.b", "it is no valid YAML in line 2: found character"),
        ("a: [1\n", "a", "it is no valid YAML in line 2"),
        ("a: \x00\n", "a", "it is no valid YAML: the character U+0000 is not allowed, at position 3"),
        ("a: \udce4\n", "a", "it is no valid YAML: the character U+DCE4"),
        ("a: 1\n---\nb: 2\n", "a", "it is no valid YAML in line 2: but found another document"),
        ("a: !mine 1\n", "a", "it is no valid YAML in line 1: could not determine a constructor"),
        ("a: 2026-13-45\n", "a", "it is no YAML that can be read"),
        ("? a\n", "a", "a cannot be changed without changing something else"),
        ("a: 1\n", "a..b", "the path 'a..b' is none"),
        ("a: 1\n", "", "the path '' is none"),
    ],
)
def test_what_is_refused(text, path, says):
    with pytest.raises(AnsibleFilterError) as caught:
        yaml_set(text, path, 5, "config.yml")
    said = str(caught.value)
    assert said.startswith(f"config.yml is not changed: {says}"), said
    assert said.count("\n") == 0
    assert said.endswith(".")


def test_a_value_is_one():
    with pytest.raises(AnsibleFilterError, match=r"a is to become a mapping; give a single value\."):
        yaml_set("a: 1\n", "a", {"b": 1})


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        ("a: 1\nb: 2  # x\nc: 3\n", "b", "a: 1\nc: 3\n"),
        ("a: 1\nb: 2", "b", "a: 1"),
        ("a: 1\r\nb: 2", "b", "a: 1"),
        ("a: 1\n", "b", "a: 1\n"),
        ("a:\n  b:\n    c: 1\nd: 2\n", "a.b.c", "d: 2\n"),
        ("a:\n  b: 1\n  t: |\n    x\n\nd: 2\n", "a.t", "a:\n  b: 1\nd: 2\n"),
        ("a: {b: 1, c: 2}\n", "a.b", "a: {c: 2}\n"),
        ("a: {b: 1, c: 2}\n", "a.c", "a: {b: 1}\n"),
        ("# x\na: 1\n", "a", "# x\n"),
        ("{a: 1}", "a", "{}"),
    ],
)
def test_unset(before, path, after):
    assert yaml_unset(before, path) == after


def test_what_a_merge_brings_cannot_be_unset():
    with pytest.raises(AnsibleFilterError, match=r"a\.b comes from a merge key"):
        yaml_unset("x: &x {b: 1}\na:\n  <<: *x\n", "a.b")


def test_put_back_leaves_what_others_have_changed_since():
    before = "api:\n  rate_limit:\n    max_requests: 100\n"
    values = {LIMIT: 10, "api.rate_limit.window_seconds": 60, "api.cache.enabled": False}
    edited = yaml_set(before, values).replace("\n", "\n# somebody's\n", 1)
    assert yaml_put_back(edited, before, values) == before.replace("\n", "\n# somebody's\n", 1)


# Any YAML with comments.

KEYS = st.text("abcxyz_é名", min_size=1, max_size=4)
SCALARS = st.one_of(
    st.integers(-999, 999),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False, width=16),
    st.text("ab :#'\"{}[],\n\té", max_size=8),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
COMMENTS = re.compile(r"#c\d+")


@st.composite
def documents(draw):
    """A mapping as text, in lines or in braces, with comments between the lines and behind them."""
    tree = draw(st.dictionaries(KEYS, TREES, min_size=1, max_size=4))
    text = yaml.safe_dump(
        tree, default_flow_style=draw(st.sampled_from([False, None, True])), indent=draw(st.integers(2, 4)),
        allow_unicode=True, sort_keys=False, width=10_000,
    )  # fmt: skip
    lines = text.splitlines()
    for place in range(len(lines), -1, -1):
        if draw(st.booleans()):
            commented = [*lines[:place], f"{' ' * draw(st.integers(0, 6))}#c{place}", *lines[place:]]
            if _says(commented, tree):
                lines = commented
        if place < len(lines) and draw(st.booleans()):
            commented = [*lines[:place], f"{lines[place]}  #c{place + 100}", *lines[place + 1 :]]
            if _says(commented, tree):
                lines = commented
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    text = newline.join(lines) + draw(st.sampled_from([newline, ""]))
    return text if _says([text], tree) else "\n".join(lines) + "\n"


def _says(lines, tree):
    try:
        return repr(yaml.safe_load("\n".join(lines))) == repr(tree)
    except yaml.YAMLError:
        return False


def paths(data, prefix=()):
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*prefix, key)
            yield from paths(value, (*prefix, key))


def _with(data, path, value):
    return {**(data or {}), path[0]: value if len(path) == 1 else _with((data or {}).get(path[0]), path[1:], value)}


@given(st.data(), documents(), SCALARS)
def test_it_changes_that_value_and_keeps_every_other_byte(data, text, value):
    tree = yaml.safe_load(text)
    known = sorted(paths(tree))
    path = data.draw(st.sampled_from(known))
    if data.draw(st.booleans()):
        path = (*path[:-1], *data.draw(st.lists(KEYS, min_size=1, max_size=2)))
    dotted = ".".join(path)
    try:
        edited = yaml_set(text, dotted, value)
    except AnsibleFilterError as error:
        # Where it is no single value, or the last line is a text whose end is the file's.
        assert re.search("no single value|no mapping|cannot be changed without", str(error)), error
        if "cannot be changed" in str(error):
            assert re.search(r": [|>]", text), (text, dotted)
        return
    assert repr(yaml.safe_load(edited)) == repr(_with(tree, path, value))
    assert COMMENTS.findall(edited) == COMMENTS.findall(text)
    # What is before the change and behind it is the text, to the byte; between is the value, or the new key.
    before = next((n for n, pair in enumerate(zip(text, edited)) if pair[0] != pair[1]), min(len(text), len(edited)))
    rest = min(len(text), len(edited)) - before
    behind = next((n for n in range(rest) if text[-1 - n] != edited[-1 - n]), rest)
    replaced = text[before : len(text) - behind]
    assert "#c" not in replaced
    if path not in known:
        assert replaced in ("", "null") or not replaced.strip()
    assert yaml_put_back(edited, text, {dotted: value}) == text


@given(st.data(), documents())
def test_unsetting_what_was_set_leaves_what_was_there(data, text):
    tree = yaml.safe_load(text)
    inner = [path for path in sorted(paths(tree)) if len(path) > 1]
    path = (*(data.draw(st.sampled_from(inner))[:-1] if inner else ()), "new")
    try:
        edited = yaml_set(text, ".".join(path), 1)
    except AnsibleFilterError:
        assert re.search(r": [|>]", text), text
        return
    assert repr(yaml.safe_load(yaml_unset(edited, ".".join(path)))) == repr(tree)
    if re.search(r": [|>]", text) is None:
        assert yaml_unset(edited, ".".join(path)) == text

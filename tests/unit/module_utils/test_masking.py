# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils.masking import MASK, mask, mask_text

# No asterisks: a secret that is a part of the mask cannot be told from it.
LETTERS = st.text("abcdef0123 \n\"'\\/", min_size=4, max_size=8)
SECRETS = st.lists(LETTERS, min_size=1, max_size=4)


def strings(value):
    """Every string of a structure, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


@st.composite
def leaks(draw):
    """Secrets, and a structure that has them in every place."""
    secrets = draw(SECRETS)
    text = st.lists(st.sampled_from(secrets) | st.text('abcdef0123 "', max_size=5), max_size=4).map("".join)
    plain = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False) | text
    nested = st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(text, inner, max_size=4),
        max_leaves=15,
    )
    return secrets, draw(nested)


@given(leaks())
def test_no_secret_survives_in_any_structure(case):
    secrets, structure = case
    masked = mask(structure, secrets)
    for text in strings(masked):
        for secret in secrets:
            assert secret not in text


@given(leaks())
def test_what_is_no_secret_stays(case):
    _secrets, structure = case
    assert mask(structure, ["\x00nowhere"]) == json.loads(json.dumps(structure))


def test_secret_that_is_the_start_of_another_leaves_no_tail():
    assert mask("abcdefgh", ["abcd", "abcdefgh"]) == MASK
    assert mask_text("abcdefgh", ["abcd", "abcdefgh"]) == MASK


def test_secret_in_json_inside_a_text():
    """A body that quotes a key has it escaped."""
    secret = 'pa"ss\\word'
    text = json.dumps({"key": secret})
    assert json.dumps(secret)[1:-1] not in mask(text, [secret])


def test_secrets_are_masked_in_place():
    assert mask({"a": ["x s3same y", {"s3same": 5}]}, ["s3same"]) == {"a": [f"x {MASK} y", {MASK: 5}]}
    assert mask((1, None, True, 0.5), ["s3same"]) == [1, None, True, 0.5]


@pytest.mark.parametrize(
    "line",
    [
        "customer em_live_S3same0penS3same0pen refused",
        "key kyro_live_S3same0pen",
        "key kyro_t1_S3same0pen.",
        "using sk-or-v1-S3same0penS3same0pen",
        "Authorization: Bearer S3same0pen",
        "authorization: bearer   S3same0pen, next",
        "password=S3same0pen",
        "PASSWORD = S3same0pen;",
        "db_password: S3same0pen",
        '"password": "S3same0pen"',
        "{'passwd': 'S3same0pen'}",
        "X-API-Key: S3same0pen",
        "api_key=S3same0pen&x=1",
        "apikey=S3same0pen",
        "GET /cb?access_token=S3same0pen&state=1",
        "client_secret=S3same0pen",
        "SECRET_KEY=S3same0pen",
        "aws_secret_access_key = S3same0pen",
        "redis://:S3same0pen@localhost:6379/0",
        "postgresql://user:S3same0pen@db/x",
        "postgresql://user:p@S3same0pen@db/x",
        "Authorization: Basic S3same0pen==",
        r'{"event": "body {\"password\": \"S3same0pen\"}"}',
        'password="S3same0pen with spaces S3same0pen"',
    ],
)
def test_lines_that_hold_a_key(line):
    masked = mask_text(line)
    assert MASK in masked
    assert "S3same0pen" not in masked


@pytest.mark.parametrize(
    "line",
    [
        "tokens: 53 used",
        "max_tokens=4096",
        "GET /api/v1/search 200",
        "the password was wrong",
        "sk-1 is short",
        "see https://example.com/a@b",
        '{"event": "HTTP request completed", "latency_ms": 5, "path": "/api/v1/search"}',
    ],
)
def test_lines_that_hold_none_stay(line):
    assert mask_text(line) == line


def test_what_surrounds_a_key_stays():
    assert mask_text("a password=x1, b=2") == f"a password={MASK}, b=2"
    assert mask_text("redis://:x@host/0") == f"redis://{MASK}@host/0"
    assert mask_text("one two", ["two"]) == f"one {MASK}"

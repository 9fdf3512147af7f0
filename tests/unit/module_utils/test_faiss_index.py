# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import array
import contextlib
import importlib.util
import io
import json
import math
import os
import pickle
import struct
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_index
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer
from ansible_collections.oncall.runbooks.tests.unit.module_utils import faiss_helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.faiss_helpers import (
    BEFORE_VECTORS,
    COUNT,
    DIMENSION,
    flip,
    index_bytes,
    make,
    vectors,
)

needs_faiss = pytest.mark.skipif(
    not (importlib.util.find_spec("faiss") and importlib.util.find_spec("numpy")),
    reason="faiss-cpu and numpy are not installed for this Python",
)
IDS = BEFORE_VECTORS + COUNT * DIMENSION * 4 + 8
SIZE = 90 + COUNT * (4 * DIMENSION + 8)
# Two numbers in each of the two headers that every version of faiss writes and none reads.
RESERVED = {*range(16, 32), *range(53, 69)}


@pytest.fixture()
def index(tmp_path):
    return make(tmp_path / "index")


def look(folder, depth="quick", dimension=DIMENSION, **more):
    return faiss_index.look(str(folder), "wp", dimension, depth, **more)


def rewrite(folder, name, content):
    (folder / name).write_bytes(content)
    return folder


def made_by_faiss(rows, kind="IDMap2,Flat", metric="METRIC_INNER_PRODUCT"):
    """What faiss itself writes."""
    import faiss
    import numpy

    data = numpy.array([list(row) for row in rows], dtype="float32")
    made = faiss.index_factory(len(rows[0]), kind, getattr(faiss, metric))
    made.train(data)
    if kind.startswith("IDMap"):
        made.add_with_ids(data, numpy.arange(len(rows)))
    else:
        made.add(data)
    return bytes(faiss.serialize_index(made))


class TestSound:
    def test_what_is_told(self, index):
        seen = look(index)
        assert (seen["state"], seen["damage"], seen["errors"], seen["limits"]) == ("ok", [], [], [])
        assert (seen["type"], seen["ntotal"], seen["dimension"]) == ("IxM2/IxFI", COUNT, DIMENSION)
        assert (seen["size_bytes"], seen["expected_bytes"]) == (SIZE, SIZE)
        assert (seen["metadata_items"], seen["tfidf_rows"], seen["tfidf_columns"]) == (COUNT, COUNT, 50)
        assert (seen["metric"], seen["hybrid"], len(seen["posts"])) == ("inner product", True, COUNT // 2)

    def test_nothing_is_changed(self, index):
        def state():
            return [(about.name, about.stat().st_mtime_ns, about.read_bytes()) for about in sorted(index.iterdir())]

        before = state()
        look(index)
        assert state() == before

    @needs_faiss
    def test_bytes_are_those_of_faiss(self, index):
        assert made_by_faiss(vectors()) == index_bytes(vectors())
        assert (index / "wp.faiss").read_bytes() == made_by_faiss(vectors())

    def test_size_of_a_real_one(self, index):
        # wp-chat's own index of 348 chunks.
        rewrite(index, "wp.faiss", index_bytes(vectors(348, 384)))
        seen = look(index, dimension=384)
        assert (seen["size_bytes"], seen["expected_bytes"], seen["state"]) == (537402, 537402, "metadata_mismatch")

    def test_without_tfidf(self, tmp_path):
        index = make(tmp_path / "index", tfidf=False)
        seen = look(index)
        assert (seen["state"], seen["hybrid"]) == ("tfidf_missing", False)
        assert "the modes hybrid and bm25 do not work" in seen["errors"][0]
        seen = look(index, tfidf=False)
        assert (seen["state"], seen["hybrid"]) == ("ok", False)
        assert "the modes hybrid and bm25 do not work" in seen["limits"][0]


NOT_UNIT = [array.array("f", [2.0] + [0.0] * (DIMENSION - 1)), *vectors()[1:]]


@pytest.mark.parametrize(
    "name, content, state, says",
    [
        ("wp.faiss", None, "missing", "wp.faiss does not exist; restore it from a backup"),
        ("wp.faiss", b"", "empty", "wp.faiss is empty"),
        ("wp.faiss", index_bytes([]), "empty", "wp.faiss holds no vector"),
        ("wp.faiss", b"\0" * SIZE, "unrecognized", "begins with b'\\x00\\x00\\x00\\x00' (zeros)"),
        ("wp.faiss", b"version https://git-lfs", "unrecognized", "begins with b'vers'"),
        ("wp.faiss", index_bytes(vectors(), inner=b"abcd"), "unrecognized", "holds b'abcd'"),
        ("wp.faiss", index_bytes(vectors())[:918], "truncated", f"has 918 bytes, and {COUNT} vectors"),
        ("wp.faiss", index_bytes(vectors()) + b"\0", "oversized", f"has {SIZE + 1} bytes"),
        ("wp.faiss", index_bytes(vectors(), kind=b"IxMp"), "unknown_type", "is of the type IxMp"),
        ("wp.faiss", index_bytes(vectors(), inner=b"IHNf"), "unknown_type", "is of the type IxM2/IHNf"),
        ("wp.faiss", b"IBxF" + b"\1" * 90, "unknown_type", "is of the type IBxF"),
        ("wp.faiss", index_bytes(vectors(), metric=1, inner=b"IxF2"), "unknown_type", "has the metric 1 (L2)"),
        ("wp.faiss", index_bytes(vectors(), metric=1), "wrong_metric", "has the metric 1 (L2), not the inner product"),
        ("wp.faiss", index_bytes(vectors(), trained=0), "untrained", "cannot be searched"),
        ("wp.faiss", index_bytes(vectors(dimension=8)), "wrong_dimension", "of 8 dimensions, and those of the service"),
        ("wp.faiss", index_bytes(vectors(), ids=[*range(1, COUNT), 0]), "ids", "has the id 1 where 0 belongs"),
        ("wp.faiss", index_bytes(NOT_UNIT), "vectors", "vector 0 in"),
        ("wp.faiss", index_bytes(vectors(COUNT + 1)), "metadata_mismatch", f"has {COUNT} items and"),
        ("wp.meta.json", None, "metadata_missing", "without which no hit has a text"),
        ("wp.meta.json", b"", "metadata_broken", "is broken: it is empty"),
        ("wp.meta.json", b"{}", "metadata_broken", "it is no JSON list"),
        ("wp.meta.json", b"[1]", "metadata_broken", "item 0 is no object"),
        ("wp.meta.json", b"[{}]", "metadata_broken", "item 0 has no post_id, chunk_id, url"),
        ("wp.meta.json", b"[] []", "metadata_broken", "something follows the list"),
        ("wp.meta.json", b"\xef\xbb\xbf[]", "metadata_broken", "it is no JSON list"),
        ("wp.meta.json", b'[{"post_id": "\xff"}]', "metadata_broken", "is no UTF-8 after item 0"),
        ("wp.meta.json", b'[{"a": ' + b"[" * 100000, "metadata_broken", "item 0 cannot be read"),
        ("wp.meta.json", json.dumps(faiss_helpers.metadata(COUNT - 1)).encode(), "metadata_mismatch", "39 items"),
        ("wp.tfidf.pkl", None, "tfidf_broken", "wp.tfidf.pkl does not exist, and the other of the two does"),
        ("wp.tfidf.pkl", b"", "tfidf_broken", "wp.tfidf.pkl is empty"),
        ("wp.tfidf.pkl", b"<html>", "tfidf_broken", "is no pickle"),
        ("wp.tfidf.pkl", faiss_helpers.vectorizer_bytes()[:-9], "tfidf_broken", "it is cut off"),
        ("wp.tfidf.npz", None, "tfidf_broken", "wp.tfidf.npz does not exist, and the other of the two does"),
        ("wp.tfidf.npz", b"", "tfidf_broken", "wp.tfidf.npz is empty"),
        ("wp.tfidf.npz", b"PK", "tfidf_broken", "is broken: File is not a zip file"),
        ("wp.tfidf.npz", faiss_helpers.matrix_bytes(COUNT - 1), "tfidf_mismatch", "has 39 rows and"),
    ],
)  # fmt: skip
def test_every_state_is_said_in_a_sentence(index, name, content, state, says):
    if content is None:
        (index / name).unlink()
    else:
        rewrite(index, name, content)
    seen = look(index)
    assert seen["state"] == state
    assert any(says in sentence for sentence in seen["errors"]), seen["errors"]
    assert says in seen["errors"][0] or state == "unknown_type"
    assert all(sentence.endswith(".") and str(index) in sentence for sentence in seen["errors"])
    assert set(seen["damage"]) <= set(faiss_index.STATES)


def test_no_folder(tmp_path):
    seen = look(tmp_path / "none")
    assert (seen["state"], seen["errors"]) == (
        "missing",
        [f"{tmp_path / 'none'} does not exist; correct the path, or restore it from a backup, or build it anew."],
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(NoAnswer, match="is no folder"):
        look(tmp_path / "file")


def test_the_worst_is_the_state_and_all_is_said(index):
    os.truncate(index / "wp.faiss", 918)
    (index / "wp.meta.json").write_text("[")
    (index / "wp.tfidf.npz").write_bytes(b"")
    seen = look(index)
    assert seen["damage"] == ["truncated", "metadata_broken", "tfidf_broken"]
    assert len(seen["errors"]) == 3


@needs_faiss
@pytest.mark.parametrize("kind", ["Flat", "IDMap,Flat", "IVF4,Flat", "HNSW8", "SQ8", "PQ4x4", "IDMap2,HNSW8"])
def test_other_types_of_faiss_are_never_called_ok(index, kind):
    rows = vectors(200)
    rewrite(index, "wp.faiss", made_by_faiss(rows, kind))
    rewrite(index, "wp.meta.json", json.dumps(faiss_helpers.metadata(200)).encode())
    rewrite(index, "wp.tfidf.npz", faiss_helpers.matrix_bytes(200))
    seen = look(index)
    assert (seen["state"], seen["ntotal"], seen["dimension"]) == ("unknown_type", 200, DIMENSION)
    assert "only faiss itself can tell" in seen["errors"][0]


class TestDamage:
    @settings(max_examples=60)
    @given(size=st.integers(0, SIZE - 1))
    def test_cut_off_anywhere(self, tmp_path, size):
        index = make(tmp_path / "index")
        os.truncate(index / "wp.faiss", size)
        assert look(index)["state"] == ("truncated" if size else "empty")

    @pytest.mark.parametrize("at", [1, 3, 4, 40, 41, 89, 90, IDS - 8, IDS, SIZE - 1])
    def test_cut_off_at_its_joints(self, index, at):
        os.truncate(index / "wp.faiss", at)
        assert look(index)["state"] == "truncated"

    def test_every_bit_of_the_headers(self, index):
        whole = (index / "wp.faiss").read_bytes()
        for at in range(BEFORE_VECTORS):
            for bit in range(8):
                changed = bytearray(whole)
                changed[at] ^= 1 << bit
                rewrite(index, "wp.faiss", bytes(changed))
                assert (look(index)["state"] == "ok") == (at in RESERVED), (at, bit)

    @needs_faiss
    def test_what_is_not_noticed_in_the_headers_is_nothing_to_faiss(self, index):
        import faiss
        import numpy

        for at in sorted(RESERVED):
            flip(index / "wp.faiss", at, 5)
        assert look(index)["state"] == "ok"
        read = faiss.read_index(str(index / "wp.faiss"))
        wanted = numpy.array([list(row) for row in vectors()], dtype="float32")
        assert (read.reconstruct_n(0, COUNT) == wanted).all()

    @settings(max_examples=60)
    @given(at=st.integers(IDS - 8, SIZE - 1), bit=st.integers(0, 7))
    def test_a_bit_of_the_ids(self, tmp_path, at, bit):
        index = make(tmp_path / "index")
        flip(index / "wp.faiss", at, bit)
        assert look(index)["state"] == ("ids" if at >= IDS else "damaged")

    def test_ids_beyond_the_first_piece(self, index, monkeypatch):
        monkeypatch.setattr(faiss_index, "PIECE", 64)
        flip(index / "wp.faiss", IDS + 8 * 33, 2)
        assert "has the id 37 where 33 belongs" in look(index)["errors"][0]

    @settings(max_examples=40)
    @given(data=st.data())
    def test_metadata_cut_off_anywhere(self, tmp_path, data):
        index = make(tmp_path / "index")
        whole = (index / "wp.meta.json").read_bytes()
        os.truncate(index / "wp.meta.json", data.draw(st.integers(0, len(whole) - 1)))
        assert look(index)["state"] == "metadata_broken"

    @settings(max_examples=40)
    @given(data=st.data())
    def test_matrix_cut_off_anywhere(self, tmp_path, data):
        index = make(tmp_path / "index")
        whole = (index / "wp.tfidf.npz").read_bytes()
        os.truncate(index / "wp.tfidf.npz", data.draw(st.integers(0, len(whole) - 1)))
        assert look(index)["state"] == "tfidf_broken"

    @settings(max_examples=150)
    @given(name=st.sampled_from(faiss_helpers.NAMES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_a_bit_anywhere_is_no_crash(self, tmp_path, name, place, bit):
        index = make(tmp_path / "index")
        flip(index / name, int(place * (index / name).stat().st_size), bit)
        seen = look(index)
        assert seen["state"] in ("ok", *faiss_index.STATES)
        assert bool(seen["errors"]) == (seen["state"] != "ok")

    def test_a_bit_in_the_matrix_shows_by_its_own_checksum(self, index):
        with zipfile.ZipFile(index / "wp.tfidf.npz") as packed:
            inside = packed.getinfo("data.npy").header_offset + 200
        flip(index / "wp.tfidf.npz", inside, 3)
        assert look(index)["state"] == "tfidf_broken"

    @settings(max_examples=60)
    @given(content=st.binary(max_size=300))
    def test_anything_at_all(self, tmp_path, content):
        index = make(tmp_path / "index")
        for name in faiss_helpers.NAMES:
            rewrite(index, name, content)
        assert look(index)["state"] in ("empty", "unrecognized", "truncated", "unknown_type", "damaged")


class TestMetadata:
    @settings(max_examples=200)
    @given(
        items=st.lists(
            st.dictionaries(
                st.text(max_size=5),
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                    max_leaves=5,
                ),
                max_size=4,
            ),
            max_size=6,
        ),
        indent=st.sampled_from([None, 1]),
        ascii_only=st.booleans(),
        piece=st.integers(1, 40),
    )
    def test_a_stream_gives_what_json_does(self, monkeypatch, items, indent, ascii_only, piece):
        monkeypatch.setattr(faiss_index, "PIECE", piece)
        text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
        got = list(faiss_index._items(io.BytesIO(text.encode("utf-8", "surrogatepass")), faiss_index.Clock(None)))
        assert got == items

    @settings(max_examples=150)
    @given(text=st.text(alphabet='[]{},:"01a\\ \n', max_size=30), piece=st.integers(1, 9))
    def test_what_is_no_list_of_objects_is_refused(self, monkeypatch, text, piece):
        monkeypatch.setattr(faiss_index, "PIECE", piece)
        try:
            wanted = json.loads(text)
        except ValueError:
            wanted = None
        good = isinstance(wanted, list) and all(isinstance(item, dict) for item in wanted)
        try:
            got = list(faiss_index._items(io.BytesIO(text.encode()), faiss_index.Clock(None)))
        except ValueError:
            got = None
        assert got == (wanted if good else None)

    def test_an_item_without_end_takes_no_more_than_its_limit(self, index, monkeypatch):
        monkeypatch.setattr(faiss_index, "_MAX_ITEM", 5000)
        monkeypatch.setattr(faiss_index, "PIECE", 1000)
        rewrite(index, "wp.meta.json", b'[{"post_id": "' + b"x" * 100000)
        assert "item 0 cannot be read: it has more than" in look(index)["errors"][0]


def test_pickle_is_never_loaded(index, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    rewrite(index, "wp.tfidf.pkl", pickle.dumps(Trap()))
    assert look(index)["state"] == "ok"
    look(index, "full")
    assert not (tmp_path / "sprung").exists()


def test_shape_that_costs_memory_is_refused(index):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("shape.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b" " * 100)
        packed.writestr("format.npy", b"")
        packed.writestr("data.npy", b"\0" * (1 << 22))
    rewrite(index, "wp.tfidf.npz", out.getvalue())
    assert "no array of NumPy that can be read" in look(index)["errors"][0]


class TestMeanwhile:
    def test_files_that_are_written_to(self, index, monkeypatch):
        examine = faiss_index.examine

        def slow(*arguments, **more):
            seen = examine(*arguments, **more)
            rewrite(index, "wp.faiss", index_bytes(vectors()))
            return seen

        monkeypatch.setattr(faiss_index, "examine", slow)
        seen = look(index)
        assert seen["state"] == "unknown"
        assert "was written to while it was looked at, 3 times; look again" in seen["limits"][0]

    def test_a_folder_that_is_replaced_once(self, index, tmp_path, monkeypatch):
        examine, other = faiss_index.examine, make(tmp_path / "other", count=7)
        pending = [True]

        def slow(*arguments, **more):
            seen = examine(*arguments, **more)
            if pending:
                pending.clear()
                index.rename(tmp_path / "old")
                other.rename(index)
            return seen

        monkeypatch.setattr(faiss_index, "examine", slow)
        seen = look(index)
        assert (seen["state"], seen["ntotal"]) == ("ok", 7)

    def test_a_link_to_a_file_is_no_change_of_it(self, index, tmp_path, monkeypatch):
        examine = faiss_index.examine

        def linked(*arguments, **more):
            with contextlib.suppress(FileExistsError):
                os.link(index / "wp.faiss", tmp_path / "link")
            return examine(*arguments, **more)

        monkeypatch.setattr(faiss_index, "examine", linked)
        assert look(index)["state"] == "ok"


def test_what_may_not_be_read(index):
    (index / "wp.faiss").chmod(0)
    with pytest.raises(NoAnswer, match=r"may not be read by .*; run with -b") as caught:
        as_nobody(lambda: look(index))
    assert caught.value.kind == "permission"


def as_nobody(function):
    """Call it as somebody who is not root."""
    if os.geteuid():
        return function()
    os.seteuid(65534)
    try:
        return function()
    finally:
        os.seteuid(0)


def test_no_time(index):
    seen = look(index, timeout=0.0)
    assert (seen["state"], seen["damage"]) == ("unknown", [])
    assert "was not read to its end within 0 s; allow more time" in seen["limits"][0]


def test_a_pipe_in_place_of_a_file(index):
    (index / "wp.meta.json").unlink()
    os.mkfifo(index / "wp.meta.json")
    with pytest.raises(NoAnswer, match="is no regular file"):
        look(index)


@pytest.mark.parametrize("name", ["", "a/b", "../wp", ".wp"])
def test_names(index, name):
    with pytest.raises(ValueError, match="it is what the names of the index's files begin with"):
        faiss_index.look(str(index), name)


class TestFull:
    @needs_faiss
    def test_sound(self, index):
        seen = look(index, "full", load_pickle=True)
        assert (seen["state"], seen["limits"]) == ("ok", [])
        assert seen["faiss_version"]

    @needs_faiss
    def test_a_flipped_byte_that_makes_a_vector_longer(self, tmp_path):
        rows = vectors(200)
        index = make(tmp_path / "index", count=200)
        # None of those that a quick look reads.
        row = next(row for row in range(200) if row % (200 // 32))
        column = max(range(DIMENSION), key=lambda at: abs(rows[row][at]))
        flip(index / "wp.faiss", BEFORE_VECTORS + (row * DIMENSION + column) * 4 + 3, 0)
        assert look(index)["state"] == "ok"
        seen = look(index, "full")
        assert seen["state"] == "vectors"
        assert f"1 of 200 vectors in {index}/wp.faiss have not the length 1" in seen["errors"][0]
        assert f"the first is {row} with" in seen["errors"][0]

    @needs_faiss
    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_no_number(self, tmp_path, number):
        index = make(tmp_path / "index", count=100)
        with open(index / "wp.faiss", "r+b") as file:
            file.seek(BEFORE_VECTORS + DIMENSION * 4)
            file.write(struct.pack("<f", number))
        seen = look(index, "full")
        assert (seen["state"], "(1 of them are no numbers)" in seen["errors"][0]) == ("vectors", True)

    @needs_faiss
    def test_the_same_vector_twice_is_found(self, tmp_path):
        rows = vectors()
        index = make(tmp_path / "index")
        rewrite(index, "wp.faiss", index_bytes([rows[0]] * COUNT))
        assert look(index, "full")["state"] == "ok"

    @needs_faiss
    def test_vocabulary_and_columns(self, index):
        rewrite(index, "wp.tfidf.pkl", faiss_helpers.vectorizer_bytes(49))
        assert look(index, "full")["state"] == "ok"
        seen = look(index, "full", load_pickle=True)
        assert seen["state"] == "tfidf_mismatch"
        assert "has a vocabulary of 49 words, and the matrix has 50 columns" in seen["errors"][0]

    @needs_faiss
    def test_a_pickle_that_cannot_be_loaded(self, index):
        rewrite(index, "wp.tfidf.pkl", pickle.dumps({"no": "vectorizer"}))
        seen = look(index, "full", load_pickle=True)
        assert (seen["state"], "cannot be loaded: AttributeError" in seen["errors"][0]) == ("tfidf_broken", True)

    @needs_faiss
    def test_memory_has_a_limit(self, index):
        seen = look(index, "full", memory_limit=1 << 26)
        assert seen["state"] == "unknown"
        assert seen["limits"]

    @needs_faiss
    def test_time_has_one(self, index, tmp_path):
        python = script(tmp_path / "python", "exec sleep 60")
        seen = look(index, "full", python=python, timeout=1.0)
        assert (seen["state"], "faiss did not end within" in seen["limits"][0]) == ("unknown", True)

    def test_without_the_package_nothing_is_known(self, index, tmp_path):
        python = script(tmp_path / "python", f'exec {sys.executable} -S "$@"')
        seen = look(index, "full", python=python)
        assert seen["state"] == "unknown"
        assert (
            f"is not installed for {python}; name the service's own interpreter as python, or install"
            in (seen["limits"][0])
        )

    def test_an_interpreter_that_is_none(self, index, tmp_path):
        seen = look(index, "full", python=str(tmp_path / "none"))
        assert (seen["state"], "is no program that can be run; correct python" in seen["limits"][0]) == (
            "unknown",
            True,
        )
        seen = look(index, "full", python=script(tmp_path / "python", "kill -SEGV $$"))
        assert (seen["state"], "ended with signal 11" in seen["limits"][0]) == ("unknown", True)

    def test_what_is_broken_already_is_not_given_to_faiss(self, index, tmp_path):
        os.truncate(index / "wp.faiss", 918)
        python = script(tmp_path / "python", f"touch {tmp_path}/asked")
        assert look(index, "full", python=python)["state"] == "truncated"
        assert not (tmp_path / "asked").exists()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the index anew from the cleaned posts: four files that belong together, the same bytes every time."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np

from lab.wp_chat.embedding import DIMENSION, embed
from lab.wp_chat.tfidf import Vectorizer

POSTS = Path("data/clean/posts_clean.jsonl")
DIRECTORY = Path("data/index")
_CHUNK = 900
_OVERLAP = 150


def chunks(post: dict[str, Any]) -> list[dict[str, Any]]:
    """What the metadata says of the pieces of a post."""
    text = post["text"]
    starts = range(0, max(1, len(text) - _OVERLAP), _CHUNK - _OVERLAP)
    about = {name: post[name] for name in ("post_id", "title", "url")}
    return [{**about, "chunk_id": number, "chunk": text[at : at + _CHUNK]} for number, at in enumerate(starts)]


def build(posts: Path, directory: Path) -> int:
    """How many chunks it has."""
    with posts.open(encoding="utf-8") as file:
        metadata = [chunk for line in file for chunk in chunks(json.loads(line))]
    texts = [f"{chunk['title']} {chunk['chunk']}" for chunk in metadata]
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSION))
    index.add_with_ids(embed(texts), np.arange(len(texts), dtype=np.int64))
    vectorizer = Vectorizer()
    matrix = vectorizer.fit_transform(texts)
    archive = io.BytesIO()
    matrix.save(archive)
    directory.mkdir(parents=True, exist_ok=True)
    vectors = faiss.serialize_index(index).tobytes()
    # All four are written before the first one is put in its place.
    fresh = [
        _written(directory / "wp.faiss", lambda file: file.write(vectors)),
        _written(directory / "wp.meta.json", lambda file: file.write(_json(metadata))),
        _written(directory / "wp.tfidf.pkl", lambda file: pickle.dump(vectorizer, file)),
        _written(directory / "wp.tfidf.npz", lambda file: file.write(archive.getvalue())),
    ]
    for path in fresh:
        os.replace(path, path.with_suffix(""))
    return len(metadata)


def _json(metadata: list[dict[str, Any]]) -> bytes:
    return json.dumps(metadata, ensure_ascii=False).encode()


def _written(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return fresh


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="build_index", description="Build wp_chat's index anew.")
    parser.add_argument("--posts", type=Path, default=POSTS, help="the cleaned posts (default: %(default)s)")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where to (default: %(default)s)")
    given = parser.parse_args(arguments)
    print(f"{build(given.posts, given.directory)} chunks in {given.directory}")
    return 0

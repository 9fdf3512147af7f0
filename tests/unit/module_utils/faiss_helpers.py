# SPDX-License-Identifier: GPL-3.0-or-later
"""A FAISS index as wp_chat has one, its archives as wp_chat makes them, and ways to damage both."""

from __future__ import annotations

import array
import hashlib
import io
import json
import math
import os
import pickle
import random
import struct
import tarfile
import time
import types
import zipfile

DIMENSION = 16
COUNT = 40
NAMES = ("wp.faiss", "wp.meta.json", "wp.tfidf.pkl", "wp.tfidf.npz")
BEFORE_VECTORS = 82


def vectors(count=COUNT, dimension=DIMENSION, seed=1):
    """Vectors of the length 1, as rows of floats of 32 bits."""
    draw = random.Random(seed)  # noqa: S311
    rows = []
    for _row in range(count):
        numbers = [draw.gauss(0, 1) for _number in range(dimension)]
        norm = math.sqrt(sum(number * number for number in numbers))
        rows.append(array.array("f", [number / norm for number in numbers]))
    return rows


def index_bytes(rows, kind=b"IxM2", inner=b"IxFI", metric=0, trained=1, ids=None):
    """What faiss.write_index writes for an IndexIDMap2 over an IndexFlatIP."""
    count, dimension = len(rows), len(rows[0]) if rows else DIMENSION
    header = struct.pack("<iqqq", dimension, count, 1 << 20, 1 << 20) + bytes([trained]) + struct.pack("<i", metric)
    numbers = b"".join(row.tobytes() for row in rows)
    ids = array.array("q", range(count) if ids is None else ids).tobytes()
    return (
        kind + header + inner + header
        + struct.pack("<q", count * dimension) + numbers
        + struct.pack("<q", count) + ids
    )  # fmt: skip


def metadata(count=COUNT, word="text"):
    return [
        {
            "post_id": 1000 + number // 2,
            "title": f"Post {number // 2}",
            "url": f"https://blog.example.test/{1000 + number // 2}/",
            "chunk_id": number % 2,
            "chunk": f'{word} {number} \N{LATIN SMALL LETTER U WITH DIAERESIS}"\\ ' * 20,
        }
        for number in range(count)
    ]


def npy(kind, shape, content):
    shown = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shown}, }}"
    header = header.ljust(-(-(len(header) + 11) // 64) * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def matrix_bytes(rows=COUNT, columns=50, seed=1):
    """What scipy.sparse.save_npz writes for a CSR matrix."""
    draw = random.Random(seed)  # noqa: S311
    places = [sorted(draw.sample(range(columns), 5)) for _row in range(rows)]
    indices = array.array("i", [place for row in places for place in row])
    indptr = array.array("i", range(0, 5 * rows + 1, 5))
    data = array.array("d", [draw.random() for _value in indices])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, kind, shape, content in (
            ("indices", "<i4", (len(indices),), indices.tobytes()),
            ("indptr", "<i4", (len(indptr),), indptr.tobytes()),
            ("format", "|S3", (), b"csr"),
            ("shape", "<i8", (2,), struct.pack("<2q", rows, columns)),
            ("data", "<f8", (len(data),), data.tobytes()),
        ):
            packed.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), npy(kind, shape, content))
    return out.getvalue()


def vectorizer_bytes(columns=50):
    """A pickle of what has the one attribute that is looked at."""
    return pickle.dumps(types.SimpleNamespace(vocabulary_={f"w{number}": number for number in range(columns)}))


def make(folder, count=COUNT, seed=1, word="text", tfidf=True):
    """The four files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wp.faiss").write_bytes(index_bytes(vectors(count, seed=seed)))
    (folder / "wp.meta.json").write_text(json.dumps(metadata(count, word), ensure_ascii=False), encoding="utf-8")
    if tfidf:
        (folder / "wp.tfidf.pkl").write_bytes(vectorizer_bytes())
        (folder / "wp.tfidf.npz").write_bytes(matrix_bytes(count, seed=seed))
    return folder


def flip(path, at, bit=0):
    """Change one bit and leave the file's time alone, as a disk does it."""
    about = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def contents(folder):
    """The four files, by name."""
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).exists()}


def saved(index, backups, at, kind="index", more=()):
    """An archive as wp_chat's /admin/backup/create makes it, and the line in its history."""
    backups.mkdir(exist_ok=True)
    archive = backups / f"backup_{int(at)}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in more:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
        for name in ("wp.tfidf.pkl", "wp.meta.json", "wp.tfidf.npz", "wp.faiss"):
            if (index / name).exists():
                tar.add(index / name, arcname=name)
    history = backups.parent / "logs" / "backup_history.jsonl"
    history.parent.mkdir(exist_ok=True)
    line = {
        "backup_id": f"backup_{int(at)}",
        "backup_type": kind,
        "created_at": at,
        "size_bytes": archive.stat().st_size,
        "file_count": 4,
        "checksum": hashlib.md5(archive.read_bytes()).hexdigest(),  # noqa: S324
        "status": "verified",
        "description": "nightly",
        "files": [f"data/index/{name}" for name in NAMES],
        "metadata": {"backup_path": f"backups/{archive.name}", "compression": True},
        "type": "backup",
    }
    with history.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return archive


class Service:
    """The folders of a wp_chat: its index, its backups and its history."""

    def __init__(self, home):
        self.home = home
        self.index = make(home / "data" / "index")
        self.backups = home / "backups"
        self.backups.mkdir()
        self.history = home / "logs" / "backup_history.jsonl"

    def saved(self, ago=60.0, **more):
        return saved(self.index, self.backups, time.time() - ago, **more)

    def aged(self, ago=3600.0):
        """All files were written so long ago."""
        for name in NAMES:
            if (self.index / name).exists():
                os.utime(self.index / name, (time.time() - ago, time.time() - ago))
        return self

    @property
    def options(self):
        return {"path": str(self.index), "backup_dir": str(self.backups), "history": str(self.history)}

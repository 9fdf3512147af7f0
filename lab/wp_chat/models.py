# SPDX-License-Identifier: GPL-3.0-or-later
"""The two models: folders as the hub's cache has them, one looked at once at the start, one with every reranking."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
import time
from pathlib import Path
from typing import Any

from lab.faults import ActiveFaults

EMBEDDING = "sentence-transformers/all-MiniLM-L6-v2"
CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L-6-v2"
LARGE_CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L-12-v2"
TIMEOUT_SECONDS = 5.0
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"

_log = logging.getLogger("wp_chat.core.cross_encoder")


def folder_name(model: str) -> str:
    return "models--" + model.replace("/", "--")


def install(models_dir: Path, model: str) -> None:
    """A snapshot whose files are links to blobs, as a download leaves them; the weights are made up."""
    folder = models_dir / folder_name(model)
    revision = hashlib.sha1(model.encode(), usedforsecurity=False).hexdigest()
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(revision, encoding="ascii")
    values = b"".join(hashlib.sha256(f"{model} {number}".encode()).digest() for number in range(256))
    header = json.dumps({"weight": {"dtype": "F16", "shape": [len(values) // 2], "data_offsets": [0, len(values)]}})
    weights = struct.pack("<Q", len(header)) + header.encode() + values
    config = json.dumps({"architectures": ["BertModel"], "hidden_size": 384, "_name_or_path": model}, indent=2)
    for name, content in ((_WEIGHTS, weights), (_CONFIG, config.encode())):
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path("../../blobs") / blob.name)


def load(models_dir: Path, model: str) -> bytes:
    """The weights; OSError as the library has it where a file is not there."""
    # A folder of the model's name in the working directory goes before the cache.
    local = Path(model)
    if not local.is_dir():
        folder = models_dir / folder_name(model)
        try:
            local = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="ascii").strip()
        except OSError:
            raise _not_there() from None
    try:
        json.loads((local / _CONFIG).read_bytes())
        weights = (local / _WEIGHTS).read_bytes()
    except OSError:
        raise _not_there() from None
    if len(weights) < 8 or len(weights) < 8 + struct.unpack("<Q", weights[:8])[0]:
        raise OSError("Error while deserializing header: header too small")
    return weights


def _not_there() -> OSError:
    return OSError(
        "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files."
        " Check your internet connection or see how to run the library in offline mode."
    )


class Reranker:
    """Loads its model every time, so that one which is put back is found without a restart."""

    def __init__(self, models_dir: Path, faults: ActiveFaults) -> None:
        self._models_dir = models_dir
        self._faults = faults

    def rerank(self, query: str, contexts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
        """The contexts by their new scores, and whether there is a model at all."""
        try:
            weights = load(self._models_dir, CROSS_ENCODER)
        except OSError as error:
            _log.warning("Failed to load %s on cpu: %s", CROSS_ENCODER, error)
            _log.warning("Falling back to: %s", CROSS_ENCODER)
            print(f"Reranking failed: {error}", flush=True)
            return contexts, False
        seconds = self._faults.amount("rerank-slow") / 1000
        time.sleep(min(seconds, TIMEOUT_SECONDS))
        if seconds > TIMEOUT_SECONDS:
            # It is called reranked all the same.
            _log.warning("Reranking timed out after %.1fs", TIMEOUT_SECONDS)
            return contexts, True
        scale = 0.8 + weights[-1] / 2550
        words = set(re.findall(r"\w+", query.lower()))
        for context in contexts:
            text = set(re.findall(r"\w+", f"{context['title']} {context['chunk']}".lower()))
            shared = len(words & text) / (len(words) or 1)
            context["ce_score"] = round(scale * (0.1 + 0.9 * shared) * (0.9 + 0.1 * context["hybrid_score"]), 6)
        ordered = sorted(contexts, key=lambda context: -context["ce_score"])
        return [{**context, "rank": rank} for rank, context in enumerate(ordered, 1)], True

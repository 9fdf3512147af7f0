# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Vritti's episodes as KyroDB holds them: which documents are whose, and what is in the metadata value episode_json.

Source: later versions of Vritti write "gz:" and the base64 of the deflated JSON; older rows are plain JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import typing as t
import zlib

COLLECTION = "failures"
COLLECTIONS = (COLLECTION, "failures_images", "skills", "cluster_templates")
EPISODE = "episode_json"
_PACKED = "gz:"
# Vritti takes requests of 10 MiB; what unpacks to more than this is no episode.
_LARGEST = 64 << 20
# Vritti's own rule; a namespace is made of the two.
_CUSTOMER = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Undecodable(Exception):
    """A value is no episode; the message says why."""


def namespace(customer_id: str, collection: str = COLLECTION) -> str:
    """The namespace of a customer's documents, or ValueError with a sentence."""
    if not _CUSTOMER.fullmatch(customer_id):
        raise ValueError(f"{customer_id!r} is no customer id; Vritti's have a-z, 0-9 and single hyphens, as acme-corp")
    if collection not in COLLECTIONS:
        raise ValueError(f"{collection!r} is no collection; Vritti's are {', '.join(COLLECTIONS)}")
    return f"{customer_id}:{collection}"


def decode(text: str) -> dict[str, t.Any]:
    """The episode in a value of episode_json. Its integers are exact."""
    try:
        if text.startswith(_PACKED):
            unpack = zlib.decompressobj()
            packed = base64.b64decode(text[len(_PACKED) :], validate=True)
            data = unpack.decompress(packed, _LARGEST)
            if not unpack.eof:
                raise Undecodable(f"it is cut off, or has more than {_LARGEST >> 20} MiB")
            text = data.decode()
        found = json.loads(text, parse_constant=_refuse)
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}"[:200]) from None
    if not isinstance(found, dict):
        raise Undecodable("it is no JSON object")
    return found


def _refuse(constant: str) -> t.NoReturn:
    raise ValueError(f"{constant} is no JSON")


def encode(episode: t.Mapping[str, t.Any], like: str) -> str:
    """The value of episode_json, packed or plain as the one before."""
    text = json.dumps(episode, separators=(",", ":"))
    return _PACKED + base64.b64encode(zlib.compress(text.encode())).decode() if like.startswith(_PACKED) else text

# SPDX-License-Identifier: GPL-3.0-or-later
"""A visitor of the wp_chat on this host: `wp-chat-visitor METHOD PATH [TIMES]` prints every status."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time


def main(method: str, path: str, times: str = "1") -> None:
    # Every call is somebody else, whom no rate limit knows yet.
    address = f"127.1.{os.getpid() // 250 % 256}.{os.getpid() % 250 + 1}"
    for _number in range(int(times)):
        # What nobody has asked yet is not answered from the cache.
        question = f"backup rotation {time.time_ns()}"
        body = json.dumps({"query": question, "question": question, "rerank": True}) if method == "POST" else None
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=30, source_address=(address, 0))
        connection.request(method, path, body, {"Content-Type": "application/json"})
        sys.stdout.write(f"{connection.getresponse().status}\n")
        connection.close()


main(*sys.argv[1:])

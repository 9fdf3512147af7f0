# SPDX-License-Identifier: GPL-3.0-or-later
"""A customer of the Vritti on this host: `vritti-customer METHOD PATH [TIMES [PAUSE]]` prints every status."""

from __future__ import annotations

import http.client
import json
import sys
import time
from pathlib import Path

KEYS = Path("/var/lib/vritti-lab/keys.json")
BODY = {
    "goal": "Deploy the service",
    "k": 5,
    "tool_chain": ["kubectl"],
    "actions_taken": ["kubectl apply"],
    "error_trace": "ImagePullBackOff: the registry refused the image",
    "error_class": "dependency_error",
}


def main(method: str, path: str, times: str = "1", pause: str = "0") -> None:
    # One after the other, so that nobody exceeds a rate limit.
    keys = [customer["api_key"] for customer in json.loads(KEYS.read_text(encoding="utf-8"))["customers"]]
    for number in range(int(times)):
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=20)
        headers = {"X-API-Key": keys[number % len(keys)], "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(BODY) if method == "POST" else None, headers)
        sys.stdout.write(f"{connection.getresponse().status}\n")
        connection.close()
        time.sleep(float(pause))


main(*sys.argv[1:])

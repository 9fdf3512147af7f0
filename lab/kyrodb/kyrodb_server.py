# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one instance in the foreground, with the command line options of the real server."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

from lab import pidfile
from lab.faults import ActiveFaults
from lab.kyrodb.observability import build_http_server
from lab.kyrodb.protocol import Protocol
from lab.kyrodb.server import Instance, build_server
from lab.kyrodb.statistics import Statistics
from lab.kyrodb.store import CorruptStoreError, Store

DEFAULT_DIMENSION = 768
HTTP_PORT_OFFSET = 1000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kyrodb_server")
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("-p", "--port", type=int)
    parser.add_argument("-d", "--data-dir", type=Path)
    return parser.parse_args()


def _api_keys(auth: dict[str, Any]) -> tuple[str, ...]:
    if not auth.get("enabled"):
        return ()
    # The real file is YAML; the lab writes it in YAML's JSON subset and needs no parser for more.
    entries = json.loads(Path(auth["api_keys_file"]).read_text(encoding="utf-8"))["api_keys"]
    return tuple(entry["key"] for entry in entries if entry.get("enabled", True))


def main() -> int:
    arguments = _arguments()
    config = tomllib.loads(arguments.config.read_text(encoding="utf-8"))
    server_config = config.get("server", {})
    host = server_config.get("host", "127.0.0.1")
    port = arguments.port or server_config.get("port", 50051)
    data_dir = arguments.data_dir or Path(config.get("persistence", {}).get("data_dir", "./data"))
    dimension = config.get("hnsw", {}).get("dimension", DEFAULT_DIMENSION)
    try:
        store = Store(data_dir, dimension)
    except CorruptStoreError as error:
        print(f"ERROR recovery failed: {error}", flush=True)
        return 1
    process_name = os.environ.get("LAB_PROCESS", "kyrodb-text")
    instance = Instance(
        name=process_name.removeprefix("kyrodb-"),
        store=store,
        statistics=Statistics(),
        faults=ActiveFaults(process_name),
        api_keys=_api_keys(config.get("auth", {})),
        protocol=Protocol(Path(os.environ["LAB_KYRODB_DESCRIPTORS"])),
    )
    tls_config = server_config.get("tls", {})
    tls = (Path(tls_config["cert_path"]), Path(tls_config["key_path"])) if tls_config.get("enabled") else None
    try:
        http_server = build_http_server(instance, host, server_config.get("http_port", port + HTTP_PORT_OFFSET))
        grpc_server = build_server(instance, f"{host}:{port}", tls)
    except OSError as error:
        print(f"ERROR cannot listen: {error}", flush=True)
        return 1
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pidfile.claim()
    grpc_server.start()
    threading.Thread(target=http_server.serve_forever, args=(0.05,), daemon=True).start()
    print(f"INFO KyroDB serving on {host}:{port}, dimension {dimension}, data in {data_dir}", flush=True)
    stop.wait()
    http_server.shutdown()
    grpc_server.stop(grace=1).wait()
    store.close()
    pidfile.release()
    print("INFO KyroDB stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

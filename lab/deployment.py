# SPDX-License-Identifier: GPL-3.0-or-later
"""What the services are deployed with, whoever runs them: command lines, environments, configuration files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from lab import environment_file
from lab.faults import VRITTI
from lab.kyrodb.protocol import compile_descriptors
from lab.layout import HOST, IMAGE_DIMENSION, TEXT_DIMENSION, Layout, Options, Ports, write_private
from lab.pidfile import VARIABLE
from lab.tls import create_certificates


def prepare(layout: Layout, options: Options, ports: Ports, admin_api_key: str) -> None:
    """Everything that the processes find when they start, customers excepted."""
    (layout.vritti / "data").mkdir(parents=True, exist_ok=True)
    # A deployment has this module in its working directory; uvicorn is started with its name.
    (layout.vritti / "src").mkdir(exist_ok=True)
    (layout.vritti / "src" / "main.py").write_text("from lab.vritti.app import app as app\n", encoding="utf-8")
    layout.run.mkdir(exist_ok=True)
    layout.vritti_environment.parent.mkdir(parents=True, exist_ok=True)
    settings = vritti_settings(layout, options, ports, admin_api_key)
    write_private(layout.vritti_environment, environment_file.dump(settings))
    compile_descriptors(layout.descriptors)
    if options.kyrodb_tls:
        shutil.rmtree(layout.tls, ignore_errors=True)
        create_certificates(layout.tls)
    write_kyrodb_config(layout, options, "text", ports.kyrodb_text, TEXT_DIMENSION)
    write_kyrodb_config(layout, options, "image", ports.kyrodb_image, IMAGE_DIMENSION)


def vritti_settings(layout: Layout, options: Options, ports: Ports, admin_api_key: str) -> dict[str, str]:
    settings = {
        "KYRODB_TEXT_HOST": HOST,
        "KYRODB_TEXT_PORT": str(ports.kyrodb_text),
        "KYRODB_IMAGE_HOST": HOST,
        "KYRODB_IMAGE_PORT": str(ports.kyrodb_image),
        "ADMIN_API_KEY": admin_api_key,
        "LLM_OPENROUTER_API_KEY": "sk-or-lab-0123456789abcdef" if options.llm else "",
    }
    if options.kyrodb_tls:
        settings |= {"KYRODB_ENABLE_TLS": "true", "KYRODB_TLS_CA_CERT_PATH": str(layout.tls_ca)}
    return settings


def write_kyrodb_config(
    layout: Layout, options: Options, instance: str, port: int, dimension: int, data: str = "data"
) -> None:
    directory = layout.kyrodb(instance)
    directory.mkdir(parents=True, exist_ok=True)
    quoted = json.dumps
    sections = [
        f"[server]\nhost = {quoted(HOST)}\nport = {port}\n",
        f"[hnsw]\ndimension = {dimension}\n",
        f"[persistence]\ndata_dir = {quoted(str(directory / data))}\n",
    ]
    if options.kyrodb_tls:
        certificate, key = str(layout.tls / "server.crt"), str(layout.tls / "server.key")
        sections.append(f"[server.tls]\nenabled = true\ncert_path = {quoted(certificate)}\nkey_path = {quoted(key)}\n")
    if options.kyrodb_api_key is not None:
        keys = directory / "api_keys.yaml"
        entry = {"key": options.kyrodb_api_key, "tenant_id": "lab", "tenant_name": "Lab", "enabled": True}
        write_private(keys, json.dumps({"api_keys": [entry]}) + "\n")
        sections.append(f"[auth]\nenabled = true\napi_keys_file = {quoted(str(keys))}\n")
    _config(layout, instance).write_text("\n".join(sections), encoding="utf-8")


def vritti_command(ports: Ports) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", "src.main:app", "--host", HOST, "--port", str(ports.vritti)]
    # Without a limit, requests that wait for a KyroDB that hangs would keep the process for minutes.
    return [*command, "--timeout-graceful-shutdown", "3"]


def kyrodb_command(layout: Layout, instance: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "lab.kyrodb.kyrodb_server", "--config", str(_config(layout, instance))]
    return [*command, "--port", str(port)]


def environment(layout: Layout, options: Options, process: str) -> dict[str, str]:
    """What a process has in its environment beside the settings of the real service."""
    variables = {
        "PYTHONUNBUFFERED": "1",
        "LAB_FAULTS_FILE": str(layout.faults),
        "LAB_KYRODB_DESCRIPTORS": str(layout.descriptors),
        VARIABLE: str(layout.pid_file(process)),
    }
    own = {"LAB_VRITTI_LINE": options.vritti} if process == VRITTI else {"LAB_PROCESS": process}
    return {**variables, **own}


def _config(layout: Layout, instance: str) -> Path:
    return layout.kyrodb(instance) / "kyrodb_config.toml"

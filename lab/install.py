# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-ins as systemd units, at the ports that the runbooks name: for test hosts, as root."""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from lab import deployment
from lab import faults as catalogue
from lab.faults import KYRODB_IMAGE, KYRODB_TEXT, VRITTI
from lab.layout import HOST, PACKAGE, Layout, Options, Ports
from lab.seed import seed_customers

DATA = Path("/var/lib/vritti-lab")
ENVIRONMENT_FILE = Path("/etc/vritti/vritti.env")
UNITS = Path("/etc/systemd/system")
PORTS = Ports(
    vritti=8000,
    kyrodb_text=50051,
    kyrodb_text_http=51051,
    kyrodb_image=50052,
    kyrodb_image_http=51052,
    control=0,
)
_READY_SECONDS = 60.0


class InstallError(Exception):
    """One sentence that says why it cannot be installed."""


def install(prefix: Path, user: str, line: str) -> str:
    if os.geteuid() != 0:
        raise InstallError("Units are installed by root; use sudo.")
    if not Path("/run/systemd/system").is_dir():
        raise InstallError("systemd does not run on this host; use `python -m lab up` instead.")
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise InstallError(f"There is no user {user} on this host; create it or name another one.") from error
    code = prefix.resolve() / "lab"
    if code != PACKAGE:
        shutil.copytree(PACKAGE, code, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    _systemctl("stop", *_units(), check=False)
    layout, options = Layout(DATA), Options(vritti=line, traffic=0)
    layout.root.mkdir(parents=True, exist_ok=True)
    layout.vritti_environment = ENVIRONMENT_FILE
    deployment.prepare(layout, options, PORTS, secrets.token_hex(24))
    catalogue.write_active(layout.faults, {})
    seed_customers(layout, line)
    for path in (layout.root, *layout.root.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid)
    for process, text in _unit_texts(layout, options, code.parent, user).items():
        (UNITS / f"{process}.service").write_text(text, encoding="utf-8")
    _systemctl("daemon-reload")
    _systemctl("enable", "--quiet", "--now", *_units())
    _await_vritti()
    return f"{', '.join(_units())} run as {user}; their data is in {DATA}, Vritti's settings in {ENVIRONMENT_FILE}."


def _units() -> list[str]:
    return [f"{process}.service" for process in (KYRODB_TEXT, KYRODB_IMAGE, VRITTI)]


def _unit_texts(layout: Layout, options: Options, code: Path, user: str) -> dict[str, str]:
    commands = {
        KYRODB_TEXT: (deployment.kyrodb_command(layout, "text", PORTS.kyrodb_text), layout.kyrodb("text")),
        KYRODB_IMAGE: (deployment.kyrodb_command(layout, "image", PORTS.kyrodb_image), layout.kyrodb("image")),
        VRITTI: (deployment.vritti_command(PORTS), layout.vritti),
    }
    texts = {}
    for process, (command, directory) in commands.items():
        variables = {**deployment.environment(layout, options, process), "PYTHONPATH": str(code)}
        # An order and no more: neither does a restart of KyroDB restart Vritti, nor one of Vritti start KyroDB.
        after = "After=kyrodb-text.service kyrodb-image.service\n" if process == VRITTI else ""
        texts[process] = (
            f"[Unit]\nDescription=Stand-in for {process}\n{after}\n"
            f"[Service]\nUser={user}\nWorkingDirectory={directory}\n"
            + "".join(f'Environment="{name}={value}"\n' for name, value in variables.items())
            + (f"EnvironmentFile={ENVIRONMENT_FILE}\nTimeoutStopSec=45\n" if process == VRITTI else "")
            + f"ExecStart={shlex.join(command)}\nRestart=no\n\n[Install]\nWantedBy=multi-user.target\n"
        )
    return texts


def _systemctl(*arguments: str, check: bool = True) -> None:
    finished = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if check and finished.returncode:
        raise InstallError(f"systemctl {' '.join(arguments)} failed: {finished.stderr.strip()}")


def _await_vritti() -> None:
    url = f"http://{HOST}:{PORTS.vritti}/health/liveness"
    end = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise InstallError(f"Vritti does not answer on {url}: {error}; see journalctl -u vritti.") from error
            time.sleep(0.1)

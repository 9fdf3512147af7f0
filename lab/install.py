# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-ins as systemd units, at the ports that the runbooks name: for test hosts, as root."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from lab import faults as catalogue
from lab.layout import PACKAGE, Options
from lab.processes import answers
from lab.service import Service

UNITS = Path("/etc/systemd/system")
_READY_SECONDS = 60.0


class InstallError(Exception):
    """One sentence that says why it cannot be installed."""


def install(kind: type[Service], prefix: Path, user: str, options: Options) -> str:
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
    where = kind.installation
    service = kind(where.data, options, where.ports)
    layout = service.layout
    units = [f"{process}.service" for process in kind.processes]
    _systemctl("stop", *units, check=False)
    layout.root.mkdir(parents=True, exist_ok=True)
    layout.run.mkdir(exist_ok=True)
    layout.environment = where.environment_file
    layout.environment.parent.mkdir(parents=True, exist_ok=True)
    service.prepare()
    catalogue.write_active(layout.faults, {})
    service.seed()
    layout.installed.write_text(f"{kind.name}\n", encoding="utf-8")
    for path in (layout.root, *layout.root.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    for name, text in _unit_texts(service, code.parent, user).items():
        (UNITS / name).write_text(text, encoding="utf-8")
    _systemctl("daemon-reload")
    _systemctl("enable", "--quiet", "--now", *units)
    _await_answers(service)
    settings = f"{kind.title}'s settings in {layout.environment}"
    return f"{', '.join(units)} run as {user}; their data is in {layout.root}, {settings}."


def _unit_texts(service: Service, code: Path, user: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for program in service.programs():
        variables = {**program.environment, "PYTHONPATH": str(code)}
        # An order and no more: neither does a restart of what it needs restart it, nor the other way round.
        after = f"After={' '.join(texts)}\n" if program.settings is not None and texts else ""
        settings = f"EnvironmentFile={program.settings}\nTimeoutStopSec=45\n" if program.settings is not None else ""
        texts[f"{program.name}.service"] = (
            f"[Unit]\nDescription=Stand-in for {program.name}\n{after}\n"
            f"[Service]\nUser={user}\nWorkingDirectory={program.directory}\n"
            + "".join(f'Environment="{name}={value}"\n' for name, value in variables.items())
            + settings
            + f"ExecStart={shlex.join(program.argv)}\nRestart=no\n\n[Install]\nWantedBy=multi-user.target\n"
        )
    return texts


def _systemctl(*arguments: str, check: bool = True) -> None:
    finished = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if check and finished.returncode:
        raise InstallError(f"systemctl {' '.join(arguments)} failed: {finished.stderr.strip()}")


def _await_answers(service: Service) -> None:
    program = service.programs()[-1]
    end = time.monotonic() + _READY_SECONDS
    while not answers(program.health):
        if time.monotonic() > end:
            raise InstallError(
                f"{service.title} does not answer on {program.health}; see journalctl -u {program.name}."
            )
        time.sleep(0.1)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host itself says, as root: main processes, the settings' hash, what they are, what runs have left.

Its arguments are the settings' file and the units, the service's own first. What it runs with are the lines of a
file that it reads with every request (*.yml), else its environment.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

SETTINGS, UNITS = Path(sys.argv[1]), sys.argv[2:]
STATE = Path("/var/lib/oncall-runbooks")


def main_pid(unit: str) -> str:
    command = ["systemctl", "show", "--property=MainPID", "--value", unit]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def runs_with(pid: str) -> list[str]:
    if SETTINGS.suffix == ".yml":
        return [line.partition("#")[0].strip() for line in SETTINGS.read_text().splitlines()]
    return [] if pid == "0" else Path(f"/proc/{pid}/environ").read_text().split("\0")


pids = {unit: main_pid(unit) for unit in UNITS}
said = {
    "pids": pids,
    "settings": hashlib.sha256(SETTINGS.read_bytes()).hexdigest(),
    "runs_with": runs_with(pids[UNITS[0]]),
    "records": [json.loads(path.read_text()) for path in sorted((STATE / "records").glob("*.json"))],
    "locked": (STATE / "lock.json").exists(),
    # Its mode, and the remediations whose evidence is there: nobody but root sees in.
    "private": f"{(STATE / 'private').stat().st_mode & 0o7777:04o}" if (STATE / "private").exists() else "",
    "evidence": [path.parent.name for path in STATE.glob("private/*/diagnosis.json")],
    "memory_kib": int(Path("/proc/meminfo").read_text().split()[1]),
}
json.dump(said, sys.stdout)

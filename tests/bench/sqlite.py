# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup and a check of a large SQLite database cost beside SQLite's own shell:  make bench

A backup, until it is synced to disk, stands beside `sqlite3 DB ".backup COPY"`, and the quick check beside `PRAGMA
quick_check`; each pair runs in turn, in processes of its own, over a database whose pages are cached. Ratios are taken
within each round; quoted is their median. It is no test.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = r"""
import json, re, sys, time
sys.path.insert(0, sys.argv[1])
from ansible_collections.oncall.runbooks.plugins.module_utils import sqlite_backups, sqlite_files
began = time.perf_counter()
told = {}
if sys.argv[2] == "backup":
    told = sqlite_backups.take(sys.argv[3], sys.argv[4])
else:
    assert sqlite_files.look(sys.argv[3], "quick")["state"] == "ok"
told["seconds"] = time.perf_counter() - began
# Of this program alone; getrusage begins with what its parent had.
told["kib"] = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
print(json.dumps({key: told[key] for key in ("seconds", "kib", "copy_seconds", "verify_seconds") if key in told}))
"""


def make(path: Path, mebibytes: int) -> None:
    """Rows of a few hundred bytes with an index, as an audit log has them."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE audit_log (id INTEGER PRIMARY KEY, customer TEXT, details BLOB)")
        connection.execute("BEGIN")
        rows = mebibytes * 1024 * 1024 // 530
        connection.executemany(
            "INSERT INTO audit_log VALUES (?, ?, randomblob(480))",
            ((number, f"customer-{number % 5000}") for number in range(rows)),
        )
        connection.execute("CREATE INDEX audit_log_customer ON audit_log (customer)")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")


def ours(what: str, path: Path, *more: Path) -> dict[str, float]:
    command = [sys.executable, "-c", RUN, str(ROOT / "collections"), what, str(path), *map(str, more)]
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return told


def shell(path: Path, statement: str) -> float:
    began = time.perf_counter()
    subprocess.run(["sqlite3", str(path), statement], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not shutil.which("sqlite3"):
        sys.exit("sqlite3 is not installed; it is what the figures stand beside (apt-get install sqlite3)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "large.db"
        make(path, options.mebibytes)
        rounds = []
        for _number in range(options.rounds):
            path.read_bytes()
            copy, reference = folder / "ours.bak", folder / "shell.bak"
            mine = ours("backup", path, copy)
            theirs = shell(path, f".backup '{reference}'")
            checked, pragma = ours("quick", path), shell(path, "PRAGMA quick_check")
            rounds.append((mine, theirs, checked, pragma))
            for made in (copy, reference, folder / "ours.bak.manifest.json"):
                made.unlink()
        size = path.stat().st_size >> 20
    print(f"{size} MiB, {options.rounds} rounds, medians; SQLite {sqlite3.sqlite_version}")
    backup = statistics.median(mine["copy_seconds"] / theirs for mine, theirs, _checked, _pragma in rounds)
    copying = statistics.median(mine["copy_seconds"] for mine, *_rest in rounds)
    shells = statistics.median(theirs for _mine, theirs, *_rest in rounds)
    verifying = statistics.median(mine["verify_seconds"] for mine, *_rest in rounds)
    quick = statistics.median(checked["seconds"] / pragma for _mine, _theirs, checked, pragma in rounds)
    looking = statistics.median(checked["seconds"] for _mine, _theirs, checked, _pragma in rounds)
    memory = max(max(mine["kib"], checked["kib"]) for mine, _theirs, checked, _pragma in rounds) / 1024
    print(f"backup        {copying:6.2f} s   sqlite3 .backup {shells:6.2f} s   ratio {backup:.2f} (wanted: 1.15)")
    print(f"verifying it  {verifying:6.2f} s   (integrity_check, rows, SHA-256)")
    print(f"depth quick   {looking:6.2f} s   PRAGMA quick_check           ratio {quick:.2f} (wanted: 1.1)")
    print(f"memory        {memory:6.1f} MiB (wanted: below 100)")


if __name__ == "__main__":
    main()

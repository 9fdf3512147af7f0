# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients of SQLite in processes of their own, and ways to damage their databases."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

# What a client does, told to it line by line; it answers each line with one.
CLIENT = r"""
import os, signal, sqlite3, sys
path = sys.argv[1]
connection = sqlite3.connect(path, isolation_level=None, timeout=10)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(connection.execute(line).fetchall(), flush=True)
    except sqlite3.Error as error:
        print("error:", error, flush=True)
"""

# Writes one row after the other until it is ended, and says which it has committed.
WRITER = r"""
import sqlite3, sys, time
path, lasting, pause = sys.argv[1], sys.argv[2] == "lasting", float(sys.argv[3])
number = 0
connection = None
while True:
    number += 1
    try:
        if connection is None:
            connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        connection.execute("INSERT INTO written VALUES (?)", (number,))
        print(number, flush=True)
        if not lasting:
            connection.close()
            connection = None
        time.sleep(pause)
    except sqlite3.OperationalError as error:
        print("error:", error, file=sys.stderr, flush=True)
"""


class Client:
    """A process that has a database open."""

    def __init__(self, path, *statements):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(path), *statements],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    @property
    def pid(self):
        return self.process.pid

    def __call__(self, statement):
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(timeout=20)
        self.process.stdout.close()


@contextlib.contextmanager
def writer(path, lasting=True, pause=0):
    """A process that writes row after row; what it has committed when it is over is in the list."""
    committed = []
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "lasting" if lasting else "anew", str(pause)],
        stdout=subprocess.PIPE,
        text=True,
    )
    committed.append(int(process.stdout.readline()))
    try:
        yield committed
    finally:
        process.send_signal(signal.SIGTERM)
        committed += [int(line) for line in process.stdout.read().splitlines()]
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def filesystem(where, size):
    """A filesystem of its own, where this machine lets one be mounted."""
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def make(path, rows=200, mode="wal", page_size=4096, extra=()):
    """A small database like Vritti's: customers with keys, an index, a counter."""
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute(f"PRAGMA journal_mode={mode}").fetchall()
        connection.executescript(
            """
            CREATE TABLE customers (id TEXT PRIMARY KEY, email TEXT, created_at TEXT);
            CREATE TABLE api_keys (id INTEGER PRIMARY KEY, customer TEXT REFERENCES customers (id), hash BLOB);
            CREATE TABLE doc_id_counters (scope TEXT PRIMARY KEY, next_doc_id INTEGER);
            CREATE INDEX customers_email ON customers (email);
            """
        )
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO customers VALUES (?, ?, ?)",
            [(f"c-{n:06}", f"{n}@example.com", f"2026-11-{1 + n % 20:02}T00:00:00+00:00") for n in range(rows)],
        )
        connection.executemany(
            "INSERT INTO api_keys VALUES (?, ?, ?)", [(n, f"c-{n:06}", bytes([n % 256]) * 60) for n in range(rows)]
        )
        connection.execute("INSERT INTO doc_id_counters VALUES ('kyrodb_text', 257)")
        connection.execute("COMMIT")
        for statement in extra:
            connection.execute(statement).fetchall()
    return path


def query(path, statement):
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        return connection.execute(statement).fetchall()


def run(path, *statements):
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()


def state_of(folder):
    """Every file below a folder, with what is in it, its times and its mode."""
    found = {}
    for name in sorted(Path(folder).rglob("*")):
        about = name.lstat()
        content = hashlib.sha256(name.read_bytes()).hexdigest() if name.is_file() else None
        found[str(name)] = (content, about.st_mtime_ns, about.st_mode, about.st_ino)
    return found


def root_page(path, name):
    return query(path, f"SELECT rootpage FROM sqlite_master WHERE name = '{name}'")[0][0]  # noqa: S608


def overwrite(path, offset, content):
    with Path(path).open("r+b") as file:
        file.seek(offset)
        file.write(content)


def damage_index(path, name="customers_email", table="customers"):
    """Let an index lack a row that its table has, as a bug of SQLite or of an extension does."""
    row = query(path, f"SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name = '{name}'")[0]  # noqa: S608
    run(path, "PRAGMA writable_schema=ON", f"DELETE FROM sqlite_master WHERE name = '{name}'")  # noqa: S608
    run(path, f"INSERT INTO {table} (id) VALUES ('without-index')")  # noqa: S608
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)


def damage_data(path, name="customers", page_size=4096):
    """Overwrite the first page of a table."""
    overwrite(path, (root_page(path, name) - 1) * page_size, os.urandom(page_size))


def flip_in_value(path, text=b"17@example.com"):
    """Change a byte inside of a value where no index has it: no check of SQLite notices."""
    content = Path(path).read_bytes()
    at = content.index(text)
    overwrite(path, at, bytes([text[0] ^ 1]))

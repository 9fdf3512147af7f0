# SPDX-License-Identifier: GPL-3.0-or-later
"""customers.db: the schema of each line, and each line's way of connecting to it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lab.vritti.settings import HEAD

KEY_PREFIX = "em_live_"
TIER_LIMITS = {"free": 1_000, "starter": 10_000, "pro": 100_000, "enterprise": 999_999_999}
STATUSES = ("active", "suspended", "deleted")
TEXT_COUNTER = "kyrodb_text"

# The real v0.1.0 hashes with bcrypt (12 rounds), the head with scrypt. Here both use scrypt, at a cost that does not
# drown the latencies of a small machine; the format of the keys and of the columns is each line's own.
_SCRYPT = {"n": 2**11, "r": 8, "p": 1}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS customers (
    customer_id TEXT PRIMARY KEY CHECK (customer_id GLOB '[a-z0-9-]*'),
    organization_name TEXT NOT NULL,
    email TEXT NOT NULL UNIQUE,
    subscription_tier TEXT NOT NULL DEFAULT 'free',
    status TEXT NOT NULL DEFAULT 'active',
    monthly_credit_limit INTEGER NOT NULL DEFAULT 1000 CHECK (monthly_credit_limit >= 0),
    credits_used_current_month INTEGER NOT NULL DEFAULT 0 CHECK (credits_used_current_month >= 0),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    last_api_call_at TEXT
);
CREATE TABLE IF NOT EXISTS api_keys (
    key_id TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL REFERENCES customers(customer_id) ON DELETE CASCADE,
    key_hash TEXT NOT NULL{key_hash_unique},
    key_prefix TEXT NOT NULL,
    name TEXT,
    created_at TEXT NOT NULL,
    last_used_at TEXT,
    expires_at TEXT,
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1))
);
CREATE TABLE IF NOT EXISTS audit_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp TEXT NOT NULL,
    customer_id TEXT REFERENCES customers(customer_id) ON DELETE SET NULL,
    action TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    details TEXT,
    ip_address TEXT
);
CREATE INDEX IF NOT EXISTS idx_customers_email ON customers(email);
CREATE INDEX IF NOT EXISTS idx_customers_status ON customers(status);
CREATE INDEX IF NOT EXISTS idx_api_keys_customer_id ON api_keys(customer_id);
CREATE INDEX IF NOT EXISTS idx_api_keys_key_hash ON api_keys(key_hash);
CREATE INDEX IF NOT EXISTS idx_api_keys_is_active ON api_keys(is_active);
CREATE INDEX IF NOT EXISTS idx_audit_log_customer_id ON audit_log(customer_id);
CREATE INDEX IF NOT EXISTS idx_audit_log_timestamp ON audit_log(timestamp);
"""

_HEAD_SCHEMA = """
CREATE TABLE IF NOT EXISTS episodes_index (
    episode_id INTEGER PRIMARY KEY,
    customer_id TEXT NOT NULL REFERENCES customers(customer_id) ON DELETE CASCADE,
    collection TEXT NOT NULL,
    created_at TEXT NOT NULL,
    has_image INTEGER NOT NULL DEFAULT 0,
    archived INTEGER NOT NULL DEFAULT 0,
    archived_at TEXT,
    deleted INTEGER NOT NULL DEFAULT 0,
    deleted_at TEXT,
    last_updated_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS skills_index (
    skill_id INTEGER PRIMARY KEY,
    customer_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0,
    deleted_at TEXT,
    last_updated_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS doc_id_counters (
    scope TEXT PRIMARY KEY,
    next_doc_id INTEGER NOT NULL CHECK (next_doc_id >= 1),
    updated_at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_episodes_customer ON episodes_index(customer_id, collection);
CREATE INDEX IF NOT EXISTS idx_episodes_listing
    ON episodes_index(customer_id, collection, archived, deleted, created_at);
CREATE INDEX IF NOT EXISTS idx_skills_listing ON skills_index(customer_id, deleted, created_at);
"""

CUSTOMER_FIELDS = (
    "customer_id",
    "organization_name",
    "email",
    "subscription_tier",
    "status",
    "monthly_credit_limit",
    "credits_used_current_month",
    "created_at",
)

_CUSTOMER = """
SELECT customer_id, organization_name, email, subscription_tier, status, monthly_credit_limit,
    credits_used_current_month, created_at
FROM customers WHERE customer_id = ?
"""
_UPDATE_CUSTOMER = """
UPDATE customers SET
    organization_name = coalesce(:organization_name, organization_name),
    email = coalesce(:email, email),
    subscription_tier = coalesce(:subscription_tier, subscription_tier),
    status = coalesce(:status, status),
    monthly_credit_limit = coalesce(:monthly_credit_limit, monthly_credit_limit),
    updated_at = :updated_at
WHERE customer_id = :customer_id
"""
_KEYS_BY_ID = """
SELECT key_id, customer_id, key_hash FROM api_keys
WHERE key_id = ? AND is_active = 1 AND (expires_at IS NULL OR expires_at > ?)
"""
_KEYS_BY_PREFIX = """
SELECT key_id, customer_id, key_hash FROM api_keys
WHERE key_prefix = ? AND is_active = 1 AND (expires_at IS NULL OR expires_at > ?)
"""

# v0.1.0's ids are snowflakes: milliseconds since this moment, shifted by 22 bits.
_SNOWFLAKE_EPOCH_MS = 1_672_531_200_000


def now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True)
class Customer:
    customer_id: str
    organization_name: str
    email: str
    subscription_tier: str
    status: str
    monthly_credit_limit: int
    credits_used_current_month: int
    created_at: str


@dataclass(frozen=True)
class NewKey:
    api_key: str
    key_id: str
    key_prefix: str
    customer_id: str


def _hash(key: str) -> str:
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(key.encode(), salt=salt, n=_SCRYPT["n"], r=_SCRYPT["r"], p=_SCRYPT["p"])
    return f"scrypt${_SCRYPT['n']}${_SCRYPT['r']}${_SCRYPT['p']}${salt.hex()}${digest.hex()}"


def _matches(key: str, stored: str) -> bool:
    try:
        _name, n, r, p, salt, digest = stored.split("$")
        computed = hashlib.scrypt(key.encode(), salt=bytes.fromhex(salt), n=int(n), r=int(r), p=int(p))
    except ValueError:
        return False
    return hmac.compare_digest(computed.hex(), digest)


class CustomerDatabase:
    """Opened lazily, by the first request that needs it."""

    def __init__(self, path: Path, line: str, doc_id_block: int = 256) -> None:
        self._path = path
        self._head = line == HEAD
        self._block = doc_id_block
        self._lock = threading.RLock()
        self._persistent: sqlite3.Connection | None = None
        self._prepared = False
        self._reserved = range(0)
        self._sequence = 0

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A transaction: on a fresh connection at the head, on the one persistent connection at v0.1.0."""
        if self._head:
            connection = self._open(busy_timeout_ms=5000)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
            return
        with self._lock:
            if self._persistent is None:
                self._persistent = self._open(busy_timeout_ms=0)
            with self._persistent:
                yield self._persistent

    def close(self) -> None:
        with self._lock:
            if self._persistent is not None:
                self._persistent.close()
                self._persistent = None

    def ping(self) -> None:
        with self.connection() as connection:
            connection.execute("SELECT 1").fetchone()

    def create_customer(self, customer_id: str, organization_name: str, email: str, tier: str) -> Customer:
        moment = now()
        with self.connection() as connection:
            connection.execute(
                "INSERT INTO customers (customer_id, organization_name, email, subscription_tier, status,"
                " monthly_credit_limit, credits_used_current_month, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, 'active', ?, 0, ?, ?)",
                (customer_id, organization_name, email, tier, TIER_LIMITS[tier], moment, moment),
            )
            details = {"organization_name": organization_name, "email": email, "subscription_tier": tier}
            self._audit(connection, customer_id, "CREATE", "customer", customer_id, details)
        return Customer(customer_id, organization_name, email, tier, "active", TIER_LIMITS[tier], 0, moment)

    def customer(self, customer_id: str) -> Customer | None:
        with self.connection() as connection:
            return self._customer(connection, customer_id)

    def update_customer(self, customer_id: str, changes: dict[str, Any]) -> Customer | None:
        with self.connection() as connection:
            if changes:
                values = {name: changes.get(name) for name in CUSTOMER_FIELDS}
                connection.execute(_UPDATE_CUSTOMER, {**values, "updated_at": now(), "customer_id": customer_id})
                # For an unknown customer the update touches nothing and this insert breaks the foreign key.
                self._audit(connection, customer_id, "UPDATE", "customer", customer_id, changes)
            return self._customer(connection, customer_id)

    def reset_usage(self, customer_id: str) -> None:
        with self.connection() as connection:
            connection.execute(
                "UPDATE customers SET credits_used_current_month = 0, updated_at = ? WHERE customer_id = ?",
                (now(), customer_id),
            )
            self._audit(connection, customer_id, "RESET_USAGE", "customer", customer_id, {"credits": 0})

    def book_credits(self, customer_id: str, credits: float) -> None:
        moment = now()
        with self.connection() as connection:
            connection.execute(
                "UPDATE customers SET credits_used_current_month = credits_used_current_month + ?,"
                " last_api_call_at = ?, updated_at = ? WHERE customer_id = ?",
                (int(credits), moment, moment, customer_id),
            )

    def create_key(self, customer_id: str, name: str | None, expires_in_days: int | None) -> NewKey:
        if self._head:
            key_id = secrets.token_hex(16)
            api_key = f"{KEY_PREFIX}{key_id}_{secrets.token_hex(32)}"
            prefix = key_id[:8]
        else:
            key_id = str(uuid.uuid4())
            secret = secrets.token_hex(32)
            api_key = KEY_PREFIX + secret
            prefix = secret[:8]
        expires = None
        if expires_in_days is not None:
            expires = (datetime.now(UTC) + timedelta(days=expires_in_days)).isoformat()
        stored = _hash(api_key)
        with self.connection() as connection:
            connection.execute(
                "INSERT INTO api_keys (key_id, customer_id, key_hash, key_prefix, name, created_at, expires_at,"
                " is_active) VALUES (?, ?, ?, ?, ?, ?, ?, 1)",
                (key_id, customer_id, stored, prefix, name, now(), expires),
            )
            self._audit(connection, customer_id, "CREATE", "api_key", key_id, {"name": name})
        return NewKey(api_key, key_id, prefix, customer_id)

    def revoke_key(self, key_id: str) -> bool:
        with self.connection() as connection:
            row = connection.execute("SELECT customer_id FROM api_keys WHERE key_id = ?", (key_id,)).fetchone()
            if row is None:
                return False
            connection.execute("UPDATE api_keys SET is_active = 0 WHERE key_id = ?", (key_id,))
            self._audit(connection, row["customer_id"], "REVOKE", "api_key", key_id, {"is_active": False})
            return True

    def validate_key(self, api_key: str) -> Customer | None:
        """The active customer of a valid key."""
        secret = api_key.removeprefix(KEY_PREFIX)
        query, value = (_KEYS_BY_ID, secret.partition("_")[0]) if self._head else (_KEYS_BY_PREFIX, secret[:8])
        moment = now()
        with self.connection() as connection:
            rows = connection.execute(query, (value, moment)).fetchall()
        for row in rows:
            if not _matches(api_key, row["key_hash"]):
                continue
            with self.connection() as connection:
                connection.execute("UPDATE api_keys SET last_used_at = ? WHERE key_id = ?", (moment, row["key_id"]))
                customer = self._customer(connection, row["customer_id"])
            return customer if customer is not None and customer.status == "active" else None
        return None

    def next_doc_id(self) -> int:
        """At the head from blocks that are reserved in the database; at v0.1.0 a snowflake."""
        with self._lock:
            if not self._head:
                self._sequence = (self._sequence + 1) & 0xFFF
                return (int(time.time() * 1000) - _SNOWFLAKE_EPOCH_MS) << 22 | self._sequence
            if not self._reserved:
                with self.connection() as connection:
                    row = connection.execute(
                        "INSERT INTO doc_id_counters (scope, next_doc_id, updated_at) VALUES (?, ?, ?)"
                        " ON CONFLICT (scope) DO UPDATE"
                        " SET next_doc_id = next_doc_id + ?, updated_at = excluded.updated_at"
                        " RETURNING next_doc_id",
                        (TEXT_COUNTER, 1 + self._block, now(), self._block),
                    ).fetchone()
                end = int(row["next_doc_id"])
                self._reserved = range(end - self._block, end)
            first, self._reserved = self._reserved[0], self._reserved[1:]
            return first

    def index_episode(self, episode_id: int, customer_id: str, collection: str, has_image: bool) -> None:
        if not self._head:
            return
        moment = now()
        with self.connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO episodes_index (episode_id, customer_id, collection, created_at, has_image,"
                " last_updated_at) VALUES (?, ?, ?, ?, ?, ?)",
                (episode_id, customer_id, collection, moment, int(has_image), moment),
            )

    def check_startup(self) -> None:
        """The head refuses an api_keys table of another time. A database that does not exist yet is left alone."""
        if not self._head or not self._path.exists():
            return
        with sqlite3.connect(f"file:{self._path}?mode=ro", uri=True) as connection:
            columns = {row[1] for row in connection.execute("PRAGMA table_info(api_keys)")}
        connection.close()
        if columns and ("key_hash" not in columns or "key_hash_sha256" in columns):
            raise RuntimeError("api_keys has an unsupported schema")

    def _open(self, busy_timeout_ms: int) -> sqlite3.Connection:
        with self._lock:
            if not self._prepared:
                self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=busy_timeout_ms / 1000, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        # A lab outlives no power cut, and fsync on a busy disk would show up as latency of the service.
        connection.execute("PRAGMA synchronous = OFF")
        with self._lock:
            if not self._prepared:
                unique = "" if self._head else " UNIQUE"
                connection.executescript(_SCHEMA.replace("{key_hash_unique}", unique))
                if self._head:
                    connection.executescript(_HEAD_SCHEMA)
                self._prepared = True
        return connection

    @staticmethod
    def _customer(connection: sqlite3.Connection, customer_id: str) -> Customer | None:
        row = connection.execute(_CUSTOMER, (customer_id,)).fetchone()
        return None if row is None else Customer(**dict(row))

    @staticmethod
    def _audit(
        connection: sqlite3.Connection,
        customer_id: str,
        action: str,
        resource_type: str,
        resource_id: str,
        details: dict[str, Any],
    ) -> None:
        connection.execute(
            "INSERT INTO audit_log (timestamp, customer_id, action, resource_type, resource_id, details)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (now(), customer_id, action, resource_type, resource_id, repr(details)),
        )

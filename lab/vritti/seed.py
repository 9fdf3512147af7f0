# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's customers and their keys, as an operator would have created them before the service's start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lab.layout import write_private
from lab.vritti.storage import CustomerDatabase

# Enough customers for a spike to spread over; regular traffic uses the first few.
CUSTOMERS = 40
_TIERS = ("free", "starter", "pro", "enterprise")


def seed_customers(customers_db: Path, keys: Path, line: str) -> None:
    """Create customers.db and keys.json, unless those of the same line are there."""
    if customers_db.exists() and _seeded_line(keys) == line:
        return
    # The two lines' keys and tables differ: a database of the other line would be of no use to this one.
    shutil.rmtree(customers_db.parent, ignore_errors=True)
    database = CustomerDatabase(customers_db, line)
    customers = []
    for number in range(1, CUSTOMERS + 1):
        customer_id = f"customer-{number:02d}"
        tier = _TIERS[number % len(_TIERS)]
        database.create_customer(customer_id, f"Customer {number}", f"ops@{customer_id}.example", tier)
        key = database.create_key(customer_id, "seeded", None)
        customers.append(
            {"customer_id": customer_id, "subscription_tier": tier, "key_id": key.key_id, "api_key": key.api_key}
        )
    database.close()
    write_private(keys, json.dumps({"line": line, "customers": customers}, indent=2) + "\n")


def _seeded_line(keys: Path) -> str | None:
    try:
        line = json.loads(keys.read_text(encoding="utf-8"))["line"]
    except (OSError, ValueError, KeyError):
        return None
    return str(line)

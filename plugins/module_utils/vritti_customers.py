# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A customer of Vritti as it should be: its tier, its limit, its status, and what it has used.

Vritti's API sets the first three, and resets the last, which it cannot set. So what a reset takes away is written to a
receipt before, and undoing it adds that to customers.db, in the one transaction that also writes down that it was done:
however often it is begun and cut short, it is added once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import typing as t
from dataclasses import dataclass
from datetime import datetime, timezone

from ansible_collections.oncall.runbooks.plugins.module_utils import durable, http_client, sqlite_files, vritti_api
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused

# The limit that a tier has when a customer is made in it. Changing the tier later does not change the limit.
LIMITS = {"free": 1_000, "starter": 10_000, "pro": 100_000, "enterprise": 999_999_999}
STATUSES = ("active", "suspended", "deleted")
USED = "credits_used_current_month"
# How long a worker of Vritti believes in a key that it has checked, and what the customer was then.
CACHE_SECONDS = 300
_RESETS = "SELECT id FROM audit_log WHERE customer_id = ? AND action = 'RESET_USAGE' AND id > ? ORDER BY id"
_USED = "SELECT credits_used_current_month FROM customers WHERE customer_id = ?"

Customer = dict[str, t.Any]
Receipt = dict[str, t.Any]


@dataclass(frozen=True)
class Options:
    """As the module vritti_customer documents them."""

    url: str
    admin_api_key: str
    customer: str
    subscription_tier: str | None = None
    monthly_credit_limit: int | None = None
    status: str | None = None
    reset_usage: bool = False
    restore_usage: bool = False
    customers_db: str | None = None
    receipt: str | None = None
    timeout: float = 30.0

    def validate(self) -> None:
        """Raise ValueError with a sentence for what the types cannot say."""
        vritti_api.check_options(self.url, self.admin_api_key, self.customer, self.timeout)
        if self.monthly_credit_limit is not None and self.monthly_credit_limit < 0:
            raise ValueError(f"monthly_credit_limit is {self.monthly_credit_limit}; it is a number from 0")
        if self.receipt and not (self.reset_usage or self.restore_usage):
            raise ValueError("receipt is set, and neither reset_usage nor restore_usage is; leave it out")

    @property
    def wanted(self) -> Customer:
        """What the customer is to have."""
        limit = self.monthly_credit_limit
        if limit is None and self.subscription_tier:
            limit = LIMITS[self.subscription_tier]
        fields = {
            "subscription_tier": self.subscription_tier,
            "monthly_credit_limit": limit,
            "status": self.status,
        }
        return {name: value for name, value in fields.items() if value is not None}


class Ensure:
    """One run; `before`, `after` and `changed` tell how far it came, also where it fails."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.api = vritti_api.Api(options.url, options.admin_api_key, options.timeout)
        self.before: Customer | None = None
        self.after: Customer | None = None
        self.notes: list[str] = []
        self._written = False

    @property
    def changed(self) -> bool:
        return self.api.changed or self._written

    def run(self, check: bool) -> None:
        """Look, and change what differs. Raise Refused with a sentence where that does not work."""
        self.before = self.after = self._look()
        changes = {name: value for name, value in self.options.wanted.items() if self.before[name] != value}
        resets = self.options.reset_usage and self._reset_is_due()
        restores = _Restore(self.options, self.before) if self.options.restore_usage else None
        self._remark(changes)
        if changes and self.options.customers_db:
            same_customer(self.options, self.before)
        if check:
            self._written = bool(changes or resets or (restores and restores.due))
            used = 0 if resets else self.before[USED] + (restores.due if restores else 0)
            self.after = {**self.before, **changes, USED: used}
        else:
            if changes:
                self._patch(changes)
            if resets:
                self._reset()
            if restores and restores.due:
                self._restore(restores)
        if restores:
            self.notes.append(restores.why)

    def _look(self) -> Customer:
        """The customer. PATCH of one that does not exist would be an internal error."""
        customer = self.options.customer
        try:
            found = self.api.admin("GET", self._path, 200)[0]
        except vritti_api.Failed as error:
            # Of a route that does not exist it is said that it was not found, and nothing of a customer.
            if error.status == 404 and "customer" in str(error).rpartition("not 200")[2].lower():
                raise Refused(
                    f"Vritti at {self.api.shown} has no customer {customer!r}; its ids are in customers.db, table "
                    "customers. Nothing was changed."
                ) from None
            raise Refused(f"Nothing was changed: {error}") from None
        wrong = [name for name in ("subscription_tier", "status") if not isinstance(found.get(name), str)]
        wrong += [name for name in ("monthly_credit_limit", USED) if not _is_count(found.get(name))]
        if found.get("customer_id") != customer or wrong:
            raise Refused(
                f"GET {self.api.shown}{self._path} answers with something else than a customer"
                f"{f' ({wrong[0]} is missing or of another type)' if wrong else ''}; is this Vritti?"
            )
        return found

    @property
    def _path(self) -> str:
        return f"/api/v1/customers/{self.options.customer}"

    def _remark(self, changes: t.Mapping[str, t.Any]) -> None:
        if changes.get("status") in ("suspended", "deleted"):
            self.notes.append(
                f"An API key of {self.options.customer} that a worker of Vritti has checked within the last "
                f"{CACHE_SECONDS} s (AUTH_API_KEY_CACHE_TTL_SECONDS at later versions) works until that time is over, "
                "or until Vritti is restarted; then it is answered 401."
            )
        if "monthly_credit_limit" in changes and self.options.monthly_credit_limit is None:
            self.notes.append(
                "Vritti does not change the limit with the tier, so the limit that a new customer of that tier gets is "
                "set too."
            )

    def _patch(self, changes: Customer) -> None:
        try:
            found = self.api.admin("PATCH", self._path, 200, changes)[0]
        except vritti_api.Failed as error:
            raise Refused(f"{error} {maybe(error)}") from None
        self.after = {**t.cast(Customer, self.before), **found}
        kept = [name for name, value in changes.items() if self.after.get(name) != value]
        if kept:
            raise Refused(
                f"Vritti answers 200 to PATCH {self.api.shown}{self._path}, and {kept[0]} is "
                f"{self.after.get(kept[0])!r} still, not {changes[kept[0]]!r}."
            )

    # Resetting what was used.

    def _reset_is_due(self) -> bool:
        used = t.cast(Customer, self.before)[USED]
        receipt = self.options.receipt and _load(self.options.receipt, self.options.customer)
        if receipt and not receipt["void"]:
            _used, resets = _account(self.options, receipt["last_reset"])
            if resets:
                self.notes.append(f"The usage was reset with this receipt before ({receipt['credits']} credits).")
                return False
            if used < receipt["credits"]:
                raise Refused(
                    f"Whether the usage of {self.options.customer} was reset cannot be established: {used} credits are "
                    f"used, {receipt['credits']} were when the receipt was written, and audit_log has no reset since. "
                    "Nothing was changed."
                )
        return bool(used)

    def _reset(self) -> None:
        if self.options.receipt:
            self._write_receipt(self.options.receipt)
        try:
            self.api.admin("POST", f"{self._path}/reset-usage", 204)
        except vritti_api.Failed as error:
            if self.options.receipt and not error.maybe_done:
                # A reset that somebody else makes later is none of this receipt's.
                _void(self.options.receipt)
            raise Refused(f"{error} {maybe(error)}") from None
        self.after = self._look_again()
        if not self.options.receipt:
            self.notes.append("Without a receipt the reset cannot be undone by this module.")

    def _write_receipt(self, path: str) -> None:
        used, resets = _account(self.options, 0)
        _same_database(self.options, used, t.cast(Customer, self.before)[USED])
        receipt = {
            "customer": self.options.customer,
            "credits": used,
            "last_reset": max(resets, default=0),
            "at": _now(),
        }
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            durable.write(path, (json.dumps(receipt, indent=1) + "\n").encode(), 0o600)
        except OSError as error:
            raise Refused(
                f"The receipt {path} cannot be written ({error.strerror}), so the usage was not reset."
            ) from None

    def _restore(self, restores: _Restore) -> None:
        used = restores.carry_out()
        self._written = restores.due > 0
        self.after = self._look_again()
        if self.after[USED] < used:
            raise Refused(
                f"{self.options.customers_db} has {used} credits used by {self.options.customer} now, and Vritti at "
                f"{self.api.shown} says {self.after[USED]}: that is not the database which it uses, or the usage was "
                "reset at this moment."
            )

    def _look_again(self) -> Customer:
        try:
            return self._look()
        except Refused as error:
            raise Refused(f"It was done, and how the customer is now cannot be seen: {error}") from None


class _Restore:
    """What adding a reset's credits would do: `due`, and why; then carry_out()."""

    def __init__(self, options: Options, seen: Customer) -> None:
        self._options = options
        self._seen = seen[USED]
        path = t.cast(str, options.receipt)
        receipt = _load(path, options.customer)
        if receipt is None:
            raise Refused(f"There is no receipt {path}, so what a reset took away is not known. Nothing was changed.")
        self._receipt = receipt
        self.due, self.why = 0, ""
        _require_sound(options)
        reading(options, self._judge)

    def _judge(self, connection: sqlite3.Connection) -> int:
        """The audit's id of the reset to undo; `due` is 0 where there is none."""
        credits, customer = self._receipt["credits"], self._options.customer
        used, resets = _rows(connection, customer, self._receipt["last_reset"])
        _same_database(self._options, used, self._seen)
        self.due = 0
        if self._receipt["void"]:
            self.why = f"The reset of the usage of {customer} was not carried out, so there is nothing to add."
            return 0
        if not resets:
            if used < credits:
                raise Refused(
                    f"Whether the usage of {customer} was reset cannot be established: {used} credits are used, "
                    f"{credits} were when the receipt was written, and audit_log has no reset since; was the "
                    "database restored? Nothing was changed."
                )
            self.why = f"The reset of the usage of {customer} was not carried out, so there is nothing to add."
            return 0
        if len(resets) > 1:
            self.why = f"The usage of {customer} was reset again later, after which these credits would not count."
            return 0
        mark = self._mark(resets[0])
        if connection.execute(
            "SELECT 1 FROM audit_log WHERE customer_id = ? AND details = ?", (customer, mark)
        ).fetchone():
            self.why = f"The {credits} credits were added to the usage of {customer} before."
            return 0
        self.due, self.why = credits, f"{credits} credits, which the reset took away, are added to the usage again."
        return resets[0]

    def _mark(self, reset: int) -> str:
        """What the audit says of the undoing, in the form of Vritti's own details; the same whenever it is undone."""
        return str({"undoes_reset": reset, "credits_added": self._receipt["credits"]})

    def carry_out(self) -> int:
        """Add them, unless somebody has done it since; and the credits that are used now."""
        customer, moment = self._options.customer, _now()

        def add(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            reset = self._judge(connection)
            if self.due:
                connection.execute(
                    "UPDATE customers SET credits_used_current_month = credits_used_current_month + ?, updated_at = ? "
                    "WHERE customer_id = ?",
                    (self.due, moment, customer),
                )
                connection.execute(
                    "INSERT INTO audit_log (timestamp, customer_id, action, resource_type, resource_id, details) "
                    "VALUES (?, ?, 'UPDATE', 'customer', ?, ?)",
                    (moment, customer, customer, self._mark(reset)),
                )
            used = _rows(connection, customer, 0)[0]
            connection.execute("COMMIT")
            return used

        with _sentences(self._options):
            path = t.cast(str, self._options.customers_db)
            with contextlib.closing(sqlite_files.connect(path, self._options.timeout, mode="rw")) as connection:
                return add(connection)


# The database.


def _require_sound(options: Options) -> None:
    path = t.cast(str, options.customers_db)
    try:
        seen = sqlite_files.look(path, "quick", timeout=options.timeout)
    except NoAnswer as error:
        raise Refused(f"Nothing was changed: {error}") from None
    if seen["state"] != "ok" and seen["damage"] != ["foreign_keys"]:
        why = "; ".join(seen["errors"] or seen["limits"])
        raise Refused(
            f"Nothing was changed: {path} is {seen['state']} ({why}), and nothing is written to it like that."
        )


def _rows(connection: sqlite3.Connection, customer: str, after: int) -> tuple[int, list[int]]:
    """The credits used, and the resets with a higher id in the audit."""
    row = connection.execute(_USED, (customer,)).fetchone()
    if row is None:
        raise Refused(f"The database has no customer {customer!r} any more. Nothing was changed.")
    return int(row[0]), [int(found[0]) for found in connection.execute(_RESETS, (customer, after))]


def _account(options: Options, after: int) -> tuple[int, list[int]]:
    found: tuple[int, list[int]] = reading(options, lambda connection: _rows(connection, options.customer, after))
    return found


def reading(options: Options, function: t.Callable[[sqlite3.Connection], t.Any]) -> t.Any:
    with _sentences(options):
        path = t.cast(str, options.customers_db)
        if not os.path.exists(path):
            raise Refused(f"{path} does not exist; give the customers_db that Vritti uses. Nothing was changed.")
        return sqlite_files.read(path, function, options.timeout, as_client=True)


@contextlib.contextmanager
def _sentences(options: Options) -> t.Iterator[None]:
    """Whatever SQLite says, as a refusal; a transaction that was begun is rolled back with its connection."""
    try:
        yield
    except (sqlite_files.Locked, NoAnswer) as error:
        raise Refused(f"Nothing was changed: {error}") from None
    except sqlite3.Error as error:
        raise Refused(f"Nothing was changed: {options.customers_db} cannot be used: {error}.") from None


def _same_database(options: Options, used: int, said: int) -> None:
    """Usage only grows between two looks; a database with less is another one than Vritti's."""
    if used < said:
        raise Refused(
            f"{options.customers_db} has {used} credits used by {options.customer}, and Vritti at "
            f"{http_client.without_credentials(options.url)} says {said}: it is not the database which it uses. "
            "Nothing was changed."
        )


def same_customer(options: Options, seen: Customer) -> None:
    """Refuse where the database has the customer otherwise than Vritti: it is another one than Vritti's."""
    names = ("subscription_tier", "monthly_credit_limit", "status")

    def row(connection: sqlite3.Connection) -> t.Any:
        query = f"SELECT {', '.join(names)} FROM customers WHERE customer_id = ?"  # noqa: S608 - our own names
        return connection.execute(query, (options.customer,)).fetchone()

    found = reading(options, row)
    if found is None or list(found) != [seen[name] for name in names]:
        raise Refused(
            f"{options.customers_db} does not have {options.customer} as Vritti at "
            f"{http_client.without_credentials(options.url)} says: it is not the database which it uses. Nothing was "
            "changed."
        )


# The receipt.


def _load(path: str, customer: str) -> Receipt | None:
    try:
        with open(path, encoding="utf-8") as file:
            receipt = json.load(file)
        keys = (receipt["customer"], int(receipt["credits"]), int(receipt["last_reset"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"The receipt {path} cannot be read ({error.strerror}). Nothing was changed.") from None
    except (ValueError, TypeError, KeyError):
        raise Refused(f"{path} is no receipt of a reset. Nothing was changed.") from None
    if keys[0] != customer:
        raise Refused(f"The receipt {path} is of {keys[0]!r}, not of {customer!r}. Nothing was changed.")
    return {"customer": keys[0], "credits": keys[1], "last_reset": keys[2], "void": receipt.get("void") is True}


def _void(path: str) -> None:
    """Remember that the reset of a receipt was refused."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="utf-8") as file:
            receipt = json.load(file)
        durable.write(path, (json.dumps({**receipt, "void": True}, indent=1) + "\n").encode(), 0o600)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def maybe(error: vritti_api.Failed) -> str:
    if error.maybe_done:
        return "Whether it was done is not known; run it again, which looks first."
    return "It was not done."


def _is_count(value: t.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new API key for a customer of Vritti, handed over in a file, and its old ones revoked.

Vritti shows a key once, in its answer. So the file is there before the key is asked for, and nothing is revoked before
the key is in it for good. A receipt, which holds no key, remembers what a run that is cut short had begun: a key of its
name that is in no file is lost, and is revoked by the next run, which makes another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import sqlite3
import stat
import typing as t
from dataclasses import dataclass
from datetime import datetime, timezone

from ansible_collections.oncall.runbooks.plugins.module_utils import (
    durable,
    procfs,
    vritti_api,
    vritti_customers,
)
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Refused

ALL = "all"
MOST_NAME = 100
# An id is part of a path.
_ID = re.compile(r"[0-9A-Za-z_-]{1,100}")
_KEYS = (
    "SELECT key_id, coalesce(name, '') AS name, is_active, last_used_at FROM api_keys WHERE customer_id = ? "
    "ORDER BY created_at, key_id"
)

Receipt = dict[str, t.Any]


@dataclass(frozen=True)
class Key:
    """A key as the database has it, without what could be used as one."""

    key_id: str
    name: str
    active: bool
    last_used_at: str | None


@dataclass(frozen=True)
class Options:
    """As the module vritti_api_key documents them."""

    url: str
    admin_api_key: str
    customer: str
    handover: str
    receipt: str
    customers_db: str
    revoke: tuple[str, ...] = (ALL,)
    name: str = "rotated"
    expires_in_days: int | None = None
    timeout: float = 30.0

    def validate(self) -> None:
        """Raise ValueError with a sentence for what the types cannot say."""
        vritti_api.check_options(self.url, self.admin_api_key, self.customer, self.timeout)
        if not self.revoke or (ALL in self.revoke and len(self.revoke) > 1):
            raise ValueError("revoke is a list of keys' ids, or all alone; a rotation that revokes nothing is none")
        for key_id in self.revoke:
            # What is given here by mistake may be a key.
            if not _ID.fullmatch(key_id) or key_id.startswith("em_live_"):
                raise ValueError("revoke has an entry that is no key's id; the ids are in customers_db, table api_keys")
        if not self.name or len(self.name) > MOST_NAME - 9:
            raise ValueError(f"name has {len(self.name)} characters; it has 1 to {MOST_NAME - 9}")
        if self.expires_in_days is not None and not 1 <= self.expires_in_days <= 365:
            raise ValueError(f"expires_in_days is {self.expires_in_days}; it goes from 1 to 365")
        for option in ("handover", "receipt"):
            if not os.path.isabs(getattr(self, option)):
                raise ValueError(f"{option} is {getattr(self, option)!r}; give a path that begins with /")


class Rotation:
    """One run; what it has done is told also where it fails."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.api = vritti_api.Api(options.url, options.admin_api_key, options.timeout)
        self._look = vritti_customers.Options(
            url=options.url,
            admin_api_key=options.admin_api_key,
            customer=options.customer,
            customers_db=options.customers_db,
            timeout=options.timeout,
        )
        self.key_id: str | None = None
        self.handover_file: str | None = None
        self.before: list[Key] = []
        self.revoked: list[str] = []
        self.notes: list[str] = []
        self._written = self._foreseen = False

    @property
    def changed(self) -> bool:
        return self.api.changed or self._written

    @property
    def active_before(self) -> list[str]:
        return [key.key_id for key in self.before if key.active]

    @property
    def active_after(self) -> list[str]:
        """As it would be in check mode, whose new key has no id yet."""
        new = self.key_id or ("(a new key)" if self._foreseen else None)
        return [*self.kept, *([new] if new else [])]

    @property
    def kept(self) -> list[str]:
        """The keys that were there, are active, and stay so."""
        return [key_id for key_id in self.active_before if key_id not in (self.key_id, *self.revoked)]

    def run(self, check: bool) -> None:
        """Look, and do what is left to do. Raise Refused with a sentence where that does not work."""
        self._same_database()
        self.before = self._keys()
        receipt = self._load()
        old = receipt["revoke"] if receipt else self._chosen()
        made = receipt["key_id"] if receipt else None
        left = self._left(receipt, old, self.before)
        if receipt:
            self.handover_file, self.key_id = receipt["handover"], made
        if made and not left:
            # The folder may be gone by now, with the key in it.
            self._remark(self.before)
            return
        self._check_folder()
        if check:
            self.revoked, self._written, self._foreseen = left, True, not made
            return
        with self._alone():
            # As another run may have left it in the meantime.
            self.before = self._keys()
            self._carry_out(self._load() or self._begin(old))

    def _carry_out(self, receipt: Receipt) -> None:
        self.handover_file = receipt["handover"]
        if not receipt["key_id"]:
            made = self._handed_over(receipt) or self._create(receipt)
            self._require_known(made)
            receipt["key_id"] = made
            self._write_receipt(receipt)
        self.key_id = receipt["key_id"]
        self._revoke(receipt)

    # Looking.

    def _same_database(self) -> None:
        """The ids of keys are read there, and Vritti revokes by an id whosever key it is."""
        customer = vritti_customers.Ensure(self._look)
        customer.run(check=True)
        vritti_customers.same_customer(self._look, t.cast(vritti_customers.Customer, customer.before))

    def _keys(self) -> list[Key]:
        """The customer's keys, also those that were revoked."""

        def rows(connection: sqlite3.Connection) -> list[Key]:
            found = connection.execute(_KEYS, (self.options.customer,))
            return [Key(str(row[0]), str(row[1]), bool(row[2]), row[3]) for row in found]

        keys: list[Key] = vritti_customers.reading(self._look, rows)
        return keys

    def _again(self, handover: str) -> list[Key]:
        """The keys after something was changed, with a sentence that says so where they cannot be read."""
        try:
            return self._keys()
        except Refused as error:
            why = str(error).replace("Nothing was changed: ", "").replace(" Nothing was changed.", "")
            raise Refused(
                f"The new key is in {handover}, and which old ones are left is not known; run it again with the same "
                f"receipt. {why[:1].upper()}{why[1:]}"
            ) from None

    def _chosen(self) -> list[str]:
        """The ids to revoke, each of them a key of this customer."""
        known = {key.key_id: key for key in self.before}
        if self.options.revoke == (ALL,):
            return [key_id for key_id, key in known.items() if key.active]
        unknown = [key_id for key_id in self.options.revoke if key_id not in known]
        if unknown:
            raise Refused(
                f"{self.options.customer} has no key with the id {unknown[0]} in {self.options.customers_db}; correct "
                "revoke. Nothing was changed."
            )
        return list(self.options.revoke)

    @staticmethod
    def _left(receipt: Receipt | None, old: t.Sequence[str], keys: t.Sequence[Key]) -> list[str]:
        """What is still to be revoked: the old ones, and what a run that was cut short has made and lost."""
        made = receipt["key_id"] if receipt else None
        lost = [key.key_id for key in keys if receipt and made and key.name == receipt["name"]]
        return [key.key_id for key in keys if key.active and key.key_id != made and key.key_id in (*old, *lost)]

    def _remark(self, keys: t.Sequence[Key]) -> None:
        if self.key_id not in [key.key_id for key in keys if key.active]:
            self.notes.append(f"The new key {self.key_id} is not active any more.")
        if self.revoked:
            self.notes.append(
                f"A key that a worker of Vritti has checked within the last {vritti_customers.CACHE_SECONDS} s works "
                "until that time is over, or until Vritti is restarted."
            )

    # The receipt.

    def _load(self) -> Receipt | None:
        path, customer = self.options.receipt, self.options.customer
        try:
            with open(path, encoding="utf-8") as file:
                receipt = json.load(file)
            wanted = {"customer": str, "asked": list, "name": str, "handover": str, "revoke": list}
            if not all(isinstance(receipt[name], kind) for name, kind in wanted.items()):
                raise ValueError
            known: Receipt = {**{name: receipt[name] for name in wanted}, "key_id": receipt["key_id"]}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refused(f"The receipt {path} cannot be read ({error.strerror}). Nothing was changed.") from None
        except (ValueError, TypeError, KeyError):
            raise Refused(f"{path} is no receipt of a rotation. Nothing was changed.") from None
        if known["customer"] != customer or known["asked"] != list(self.options.revoke):
            raise Refused(
                f"The receipt {path} is of another rotation (customer {known['customer']!r}, revoke "
                f"{', '.join(map(str, known['asked']))}); give this one a receipt of its own. Nothing was changed."
            )
        return known

    def _begin(self, old: t.Sequence[str]) -> Receipt:
        token = secrets.token_hex(4)
        receipt: Receipt = {
            "customer": self.options.customer,
            "asked": list(self.options.revoke),
            "name": f"{self.options.name}-{token}",
            "handover": os.path.join(self.options.handover, f"{self.options.customer}-{token}.json"),
            "revoke": list(old),
            "key_id": None,
        }
        self._write_receipt(receipt)
        return receipt

    def _write_receipt(self, receipt: Receipt) -> None:
        path = self.options.receipt
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            durable.write(path, (json.dumps(receipt, indent=1) + "\n").encode(), 0o600)
        except OSError as error:
            done = f"The new key is in {receipt['handover']}, and n" if receipt["key_id"] else "N"
            raise Refused(
                f"The receipt {path} cannot be written ({error.strerror}). {done}o key was revoked."
            ) from None
        self._written = True

    # The folder of the handover.

    def _check_folder(self) -> None:
        folder = os.path.normpath(self.options.handover)
        try:
            about = os.lstat(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._no_folder(error) from None
        if not stat.S_ISDIR(about.st_mode):
            raise Refused(f"{folder} is no folder; name one, and no link to one. Nothing was changed.")
        if about.st_uid != os.geteuid() or about.st_mode & 0o077:
            me = procfs.user(os.geteuid())
            raise Refused(
                f"{folder} belongs to {procfs.user(about.st_uid)} and has the mode {stat.S_IMODE(about.st_mode):04o}; "
                f"a key is only put where nobody but {me} can look. Give it to {me} with the mode 0700, or name "
                "another one. Nothing was changed."
            )

    def _no_folder(self, error: OSError) -> Refused:
        return Refused(
            f"The folder {self.options.handover} for the new key cannot be used ({error.strerror}). Nothing was "
            "changed."
        )

    @contextlib.contextmanager
    def _alone(self) -> t.Iterator[None]:
        """The folder, for nobody else's eyes, and no other run in it."""
        folder = os.path.normpath(self.options.handover)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._check_folder()
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise self._no_folder(error) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"Another run works in {folder}; wait for its end. Nothing was changed.") from None
            yield
        finally:
            os.close(handle)

    def _handed_over(self, receipt: Receipt) -> str | None:
        """The id of the key that an earlier run has put into the file, where it is active."""
        try:
            with open(receipt["handover"], encoding="utf-8") as file:
                found = json.load(file)
            key_id = str(found["key_id"]) if found["api_key"] else ""
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return key_id if key_id in [key.key_id for key in self.before if key.active] else None

    # Doing.

    def _create(self, receipt: Receipt) -> str:
        """Make a key and put it into the file; its id."""
        path = receipt["handover"]
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            # Before the key is asked for: where it cannot be written, none is made.
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Refused(
                f"{path}, for the new key, cannot be written ({error.strerror}). No key was made, and none revoked."
            ) from None
        made = ""
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                key, made = self._ask(receipt["name"])
                content = {
                    "customer_id": self.options.customer,
                    "api_key": key,
                    "key_id": made,
                    "name": receipt["name"],
                    "expires_in_days": self.options.expires_in_days,
                    "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "url": self.api.shown,
                }
                file.write(json.dumps(content, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            durable.sync_folder(os.path.dirname(path))
        except OSError as error:
            raise Refused(
                f"The new key could not be written to {path} ({error.strerror}). {self._withdraw(path, made)}"
            ) from None
        except Refused:
            self._forget(path)
            raise
        return made

    def _ask(self, name: str) -> tuple[str, str]:
        """A new key and its id. The runbook's route first, which no version of Vritti has; then the real one."""
        body: dict[str, t.Any] = {"customer_id": self.options.customer, "name": name}
        if self.options.expires_in_days:
            body["expires_in_days"] = self.options.expires_in_days
        try:
            try:
                answer = self.api.admin("POST", f"{self._path}/rotate-key", (200, 201), body)[0]
            except vritti_api.Failed as error:
                if error.status not in (404, 405):
                    raise
                answer = self.api.admin("POST", f"{self._path}/api-keys", 201, body)[0]
        except vritti_api.Failed as error:
            known = (
                "Whether a key was made is not known, and no old one was revoked; run it again with the same receipt."
                if error.maybe_done
                else "No key was made, and none revoked."
            )
            raise Refused(f"{error} {known}") from None
        key, key_id = answer.get("api_key"), answer.get("key_id")
        if not isinstance(key, str) or not key.strip() or not isinstance(key_id, str) or not _ID.fullmatch(key_id):
            raise Refused(
                f"Vritti at {self.api.shown} answers without a key, or without its id, and what it has made is not "
                "known; see the customer's keys in its database. No old one was revoked."
            )
        return key, key_id

    def _require_known(self, made: str) -> None:
        """Whoever went by the ids in another database would revoke somebody else's keys, or nothing."""
        file = t.cast(str, self.handover_file)
        if made not in [key.key_id for key in self._again(file) if key.active]:
            raise Refused(
                f"The new key {made} is not in {self.options.customers_db}: it is not the database which Vritti at "
                f"{self.api.shown} uses. {self._withdraw(file, made)}"
            )

    def _withdraw(self, path: str, key_id: str) -> str:
        """Revoke a key that nobody is to have, and say what became of it."""
        self._forget(path)
        try:
            self._delete(key_id)
        except vritti_api.Failed:
            return f"It is in no file now and its id is {key_id}; revoke it. No old key was revoked."
        return "It was revoked, and no old key was."

    @staticmethod
    def _forget(path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _revoke(self, receipt: Receipt) -> None:
        file = receipt["handover"]
        keys = self._again(file)
        names = {key.key_id: key.name for key in keys}
        for key_id in self._left(receipt, receipt["revoke"], keys):
            try:
                self._delete(key_id)
            except vritti_api.Failed as error:
                known = (
                    "whether that key was revoked is not known; run it again with the same receipt, which looks first"
                    if error.maybe_done
                    else "that key was not revoked"
                )
                raise Refused(f"{error} The new key is in {file}; {known}.") from None
            keys = self._again(file)
            if key_id in [key.key_id for key in keys if key.active]:
                raise Refused(
                    f"Vritti answers 204 to DELETE {self.api.shown}{self._path}/api-keys/{key_id}, and in "
                    f"{self.options.customers_db} the key is active still. The new key is in {file}."
                )
            self.revoked.append(key_id)
            if names[key_id] == receipt["name"]:
                self.notes.append(
                    f"The key {key_id} was made by a run that was cut short before it could be handed over; nobody has "
                    "it, and it was revoked."
                )
        self._remark(keys)

    def _delete(self, key_id: str) -> None:
        if not _ID.fullmatch(key_id):
            raise Refused(f"{self.options.customers_db} has a key with the id {key_id!r}, which fits into no path.")
        self.api.admin("DELETE", f"{self._path}/api-keys/{key_id}", 204)

    @property
    def _path(self) -> str:
        return f"/api/v1/customers/{self.options.customer}"

# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Capture an episode with Vritti, search for it, and clean up.

Vritti counts every failed call to KyroDB for as long as its process lives, and after five it stops for good. So both
instances are asked first, over a way of our own, and nothing is sent twice.
"""

from __future__ import annotations

import json
import re
import secrets
import time
import typing as t
from dataclasses import dataclass
from urllib.parse import quote

from ansible_collections.oncall.runbooks.plugins.module_utils import http_client, kyrodb, vritti_api
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.vritti_api import Failed

# What Vritti itself gives an instance to answer.
HEALTH_SECONDS = 5.0
POLL_SECONDS = 0.5
# Keys of v0.1.0 have no id in them; later versions also have an index of episodes that nothing can be deleted from.
_KEY_WITH_ID = re.compile(r"em_live_[0-9a-f]{32}_")


@dataclass(frozen=True)
class Settings:
    """What the test needs; see the module's options."""

    url: str
    text: kyrodb.Endpoint
    image: kyrodb.Endpoint
    customer: str
    api_key: str
    admin_api_key: str
    timeout: float
    reflection_seconds: float

    def validate(self) -> None:
        """Raise ValueError with a sentence for what the types cannot say."""
        http_client.check_url(self.url)
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout}; it is a number of seconds above 0")
        if self.reflection_seconds < 0:
            raise ValueError(f"reflection_seconds is {self.reflection_seconds}; it is a number of seconds from 0")
        if self.customer:
            vritti_api.check_customer(self.customer)
        if self.api_key and not self.customer:
            raise ValueError("api_key is set and customer is not; name the customer whose key it is")
        if not self.api_key and not self.admin_api_key:
            raise ValueError("api_key and admin_api_key are both empty; set the one or the other")


class SmokeTest:
    """One run: check(), then run(), which cleans up whatever happens."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.marker = f"oncall-smoke-{secrets.token_hex(4)}"
        self.customer = settings.customer or self.marker
        self._api = vritti_api.Api(settings.url, settings.admin_api_key, settings.timeout)
        self.api_key = settings.api_key
        self.namespace = f"{self.customer}:failures"
        self.captured: dict[str, t.Any] | None = None
        self.searched: dict[str, t.Any] | None = None
        self.cleaned: list[str] = []
        self.left: list[str] = []
        self.notes: list[str] = []
        self._customer_made = False
        self._key_id: str | None = None
        self._episode: dict[str, t.Any] = {}

    def check(self) -> None:
        """Raise Refused where the test could do harm, or could not clean up."""
        for name, endpoint in (("text", self.settings.text), ("image", self.settings.image)):
            try:
                kyrodb.require_grpc()
                seen = kyrodb.ask(endpoint, HEALTH_SECONDS, samples=0, metrics=False)
            except NoAnswer as error:
                raise Refused(
                    f"Nothing was sent to Vritti, as KyroDB's {name} instance cannot be asked: {error}"
                ) from None
            wal = seen["components"].get("wal", "")
            if wal.startswith("unhealthy"):
                raise Refused(
                    f"Nothing was sent to Vritti, as the write-ahead log of KyroDB's {name} instance at "
                    f"{endpoint.address} is {wal}."
                )
        url = f"{self._api.url}/health/liveness"
        try:
            status = http_client.get(url, timeout=min(self.settings.timeout, HEALTH_SECONDS)).status
        except NoAnswer as error:
            raise Refused(f"Nothing was captured, as Vritti does not answer: {error}") from None
        if status != 200:
            shown = http_client.without_credentials(url)
            raise Refused(f"Nothing was captured, as GET {shown} answers {status} and not 200; is this Vritti?")

    def plan(self) -> str:
        """What run() would do, in a sentence."""
        customer = self.settings.customer
        made = "" if self.api_key else f"make {'' if customer else 'a customer and '}an API key, "
        return (
            f"Would {made}capture one episode for {customer or 'that customer'} at "
            f"{self._api.shown}, search for it, and remove what it has made."
        )

    def run(self) -> dict[str, t.Any]:
        """The result; `problem` in it is a sentence where the test failed."""
        problem = None
        try:
            self._prepare()
            self._capture()
            self._search()
        except Failed as error:
            problem = str(error)
        finally:
            self._clean_up()
        return {
            "changed": self._api.changed,
            "customer": self.customer,
            "captured": self.captured,
            "searched": self.searched,
            "cleaned": self.cleaned,
            "left": self.left,
            "notes": self.notes,
            "problem": problem,
        }

    def summary(self) -> str:
        """What run() has seen, in a sentence."""
        captured, searched = self.captured or {}, self.searched or {}
        return (
            f"Vritti captured episode {captured.get('episode_id')} in {captured.get('seconds')} s and answered a "
            f"search in {searched.get('seconds')} s, which {'found' if searched.get('found') else 'did not return'} it."
        )

    def _prepare(self) -> None:
        """A customer and a key."""
        if self.api_key:
            # Later versions refuse the key of another customer here, before anything of theirs is touched.
            path = f"/api/v1/customers/{self.customer}/usage"
            try:
                self._customers("GET", path, 200)
            except Failed as error:
                if error.status in (401, 403, 404):
                    raise
            return
        if not self.settings.customer:
            body = {
                "customer_id": self.customer,
                "organization_name": "On-call smoke test",
                "email": f"{self.customer}@example.com",
                "subscription_tier": "free",
            }
            try:
                self._api.admin("POST", "/api/v1/customers", 201, body)
            except Failed as error:
                self._customer_made = error.maybe_done
                raise
            self._customer_made = True
        # A key that could not be revoked ends by itself.
        wish = {"customer_id": self.customer, "name": self.marker, "expires_in_days": 1}
        try:
            answer, _status, _seconds = self._api.admin(
                "POST", f"/api/v1/customers/{self.customer}/api-keys", 201, wish
            )
        except Failed as error:
            if error.maybe_done:
                self._leave_unknown_key()
            raise
        self._key_id = str(answer.get("key_id") or "")
        self.api_key = str(answer.get("api_key") or "")
        if not self._key_id:
            self._leave_unknown_key()
        if not self.api_key:
            raise Failed(f"Vritti's answer to POST /api/v1/customers/{self.customer}/api-keys holds no key.", 201, 0.0)

    def _leave_unknown_key(self) -> None:
        self.left.append(
            f"Customer {self.customer} may have a key named {self.marker}, whose id is not known; it ends in a day."
        )

    def _capture(self) -> None:
        # v0.1.0 can leave out the reflection. Later versions pay no attention to the parameter, and refuse to be told a
        # tier where they have no LLM key; for this error class they take the cheap one anyway.
        path = "/api/v1/capture?generate_reflection=false"
        body = {
            "goal": self._goal,
            "tool_chain": ["oncall.runbooks"],
            "actions_taken": ["capture this episode, search for it and delete it"],
            "error_trace": "No error: this is a smoke test by the on-call runbooks.",
            "error_class": "unknown",
            "severity": 1,
            "tags": ["oncall-smoke-test"],
        }
        try:
            self._episode, status, seconds = self._customers("POST", path, 201, body)
        except Failed as error:
            self.captured = {"status": error.status, "episode_id": None, "seconds": error.seconds}
            # An open breaker lets nothing through to KyroDB.
            if error.maybe_done and vritti_api.BREAKER not in str(error):
                self._leave_unknown_episode()
            raise
        self.captured = {"status": status, "episode_id": self._episode_id, "seconds": seconds}
        if self._episode_id is None:
            self._leave_unknown_episode()

    def _leave_unknown_episode(self) -> None:
        self.left.append(
            f"Whether Vritti stored the episode, and under which id, is not known; if it did, the goal of one in "
            f"KyroDB's namespace {self.namespace} holds {self.marker}."
        )

    @property
    def _goal(self) -> str:
        return f"On-call smoke test {self.marker}: see whether episodes are captured and found"

    @property
    def _episode_id(self) -> int | None:
        found = self._episode.get("episode_id")
        return found if isinstance(found, int) else None

    def _search(self) -> None:
        # A result may be missing for good reasons (preconditions, ranking), so only the status is judged.
        body = {"goal": self._goal, "k": 10, "min_similarity": 0.0, "precondition_threshold": 0.0}
        try:
            answer, status, seconds = self._customers("POST", "/api/v1/search", 200, body)
        except Failed as error:
            self.searched = {"status": error.status, "found": None, "seconds": error.seconds}
            raise
        found = self.marker in json.dumps(answer.get("results"))
        self.searched = {"status": status, "found": found, "seconds": seconds}

    def _clean_up(self) -> None:
        if self._episode_id is not None:
            self._delete_episode(self._episode_id)
        if self._key_id:
            path = f"/api/v1/customers/{self.customer}/api-keys/{quote(self._key_id, safe='')}"
            self._undo("DELETE", path, 204, None, f"the API key {self._key_id} of {self.customer}", "revoked")
        if self._customer_made:
            path, body = f"/api/v1/customers/{self.customer}", {"status": "deleted"}
            if self._undo("PATCH", path, 200, body, f"the customer {self.customer}", "marked as deleted"):
                self.notes.append(f"The row of {self.customer} stays in Vritti's customers: no route removes one.")
        elif self.captured and self.captured["status"] == 201:
            self.notes.append(f"Customer {self.customer} was charged credits for what was done.")

    def _undo(self, method: str, path: str, wanted: int, body: t.Any, what: str, done: str) -> bool:
        try:
            self._api.admin(method, path, wanted, body)
        except Failed as error:
            self.left.append(f"{what[0].upper()}{what[1:]} was not {done}: {error}")
            return False
        self.cleaned.append(f"{done} {what}")
        return True

    def _delete_episode(self, episode_id: int) -> None:
        if self._episode.get("reflection_queued"):
            self._await_reflection(episode_id)
        places = [("text", self.settings.text, self.namespace)]
        if self._episode.get("image_stored"):
            places.append(("image", self.settings.image, f"{self.namespace}_images"))
        for name, endpoint, namespace in places:
            where = f"KyroDB's {name} instance, namespace {namespace}"
            try:
                existed = kyrodb.delete(endpoint, episode_id, namespace, self.settings.timeout)
            except NoAnswer as error:
                self.left.append(f"Episode {episode_id} is still in {where}: {error}")
                continue
            if existed:
                self.cleaned.append(f"deleted episode {episode_id} from {where}")
            else:
                self.left.append(
                    f"Episode {episode_id} was not in {where}; if {self.customer} is not the customer of the API key, "
                    f"it is in the namespace of the one who is."
                )
        if _KEY_WITH_ID.match(self.api_key):
            self.notes.append(
                f"The row of episode {episode_id} stays in customers.db, table episodes_index: no route removes one."
            )

    def _await_reflection(self, episode_id: int) -> None:
        """Vritti writes a reflection into the dead letter queue when its episode is gone before."""
        deadline = time.monotonic() + self.settings.reflection_seconds
        while True:
            try:
                found = kyrodb.metadata_of(self.settings.text, episode_id, self.namespace)
            except NoAnswer:
                return  # deleting will say why
            if found is None or "reflection_root_cause" in found:
                return
            if time.monotonic() >= deadline:
                self.notes.append(
                    f"Episode {episode_id} was deleted before Vritti had stored its reflection, which may come as a "
                    f"line into the dead letter queue; that line can be dropped."
                )
                return
            time.sleep(POLL_SECONDS)

    def _customers(
        self, method: str, path: str, wanted: int, body: t.Any = None
    ) -> tuple[dict[str, t.Any], int, float]:
        return self._api.request(method, path, wanted, body, {"X-API-Key": self.api_key}, "check customer and api_key")

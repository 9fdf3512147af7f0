# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""wp_chat's canary as it should be: whether reranking is on, for which share of the users, and the emergency stop.

Every worker of wp_chat has a configuration of its own, and a request reaches one of them. So one look says little: what
is wanted is sent again for as long as a worker answers that has something else.
"""

from __future__ import annotations

import json
import math
import os
import time
import typing as t
from dataclasses import dataclass
from urllib.parse import urlencode

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, durable, http_client
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

_API = "/admin/canary/"
_TYPES: dict[str, tuple[type, ...]] = {
    "enabled": (bool,),
    "rollout_percentage": (int, float),
    "emergency_stop": (bool,),
}

Config = dict[str, t.Any]


@dataclass(frozen=True)
class Options:
    """As the module wp_chat_canary documents them."""

    url: str
    updated_by: str
    enabled: bool | None = None
    rollout: float | None = None
    emergency_stop: bool | None = None
    memory: str | None = None
    reads: int = 25
    attempts: int = 25
    timeout: float = 10.0
    validate_certs: bool = True
    ca_path: str | None = None

    def validate(self) -> None:
        """Raise ValueError with a sentence for what the types cannot say."""
        http_client.check_url(self.url)
        if self.rollout is not None and not 0 <= self.rollout <= 1:
            raise ValueError(f"rollout is {self.rollout:g}; it is a share from 0 to 1, such as 0.25 for a quarter")
        if self.rollout and self.enabled is False:
            raise ValueError(f"enabled is false and rollout is {self.rollout:g}; wp_chat has no canary that is both")
        if self.rollout == 0 and self.enabled:
            raise ValueError("enabled is true and rollout is 0, with which wp_chat switches the canary off")
        for name, least in (("reads", 1), ("attempts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a number from {least}")
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout:g}; it is a number of seconds above 0")


class Ensure:
    """One run; `before`, `after`, `posts` and `states` tell how far it came, also where it fails."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.shown = http_client.without_credentials(options.url).rstrip("/")
        self.before: Config | None = None
        self.after: Config | None = None
        self.posts = 0
        # What different workers have answered since the last change.
        self.states: list[Config] = []
        self.remembered: float | None = None
        self.changed = False

    def run(self, check: bool) -> None:
        """Look, and send what differs. Raise Refused with a sentence where that does not work."""
        for _attempt in range(self.options.attempts):
            differs = self._differs()
            if differs is None:
                return
            if not self.posts:
                self.before = _told(differs)
            calls = self._calls(differs)
            if check:
                self.changed, self.after = True, _told(self._foreseen(differs))
                return
            self._remember(differs)
            for route, parameters in calls:
                self._post(route, parameters)
        if self._differs(stop=False) is not None:
            raise Refused(
                f"{self.shown} was told {self.posts} times, and one of its workers is not as it should be still; "
                f"{len(self.states)} different answers were seen, so at least {len(self.states)} workers run, each "
                "with a configuration of its own: restart wp_chat, whose workers read what was written last when they "
                "start."
            )

    def _differs(self, stop: bool = True) -> Config | None:
        """The first configuration that is not as it should be; None once so many in a row are."""
        self.states = []
        differs = None
        for _place in range(self.options.reads):
            config = self._look()
            told = _told(config)
            self.before = self.before or told
            if told not in self.states:
                self.states.append(told)
            if not self._calls(config):
                self.after = told
            elif stop:
                return config
            else:
                differs = config
        return differs

    def _calls(self, config: Config) -> list[tuple[str, dict[str, t.Any]]]:
        """What has to be sent to change this configuration: a stop comes first, and it is cleared last."""
        options = self.options
        calls: list[tuple[str, dict[str, t.Any]]] = []
        if options.emergency_stop and not config["emergency_stop"]:
            calls.append(("emergency-stop", {}))
        if options.enabled is False or options.rollout == 0:
            if config["enabled"]:
                calls.append(("disable", {}))
        elif options.enabled or options.rollout:
            rollout = self._rollout(config)
            if not config["enabled"]:
                calls.append(("enable", {"percentage": rollout}))
            elif not _is(config["rollout_percentage"], rollout):
                calls.append(("rollout", {"percentage": rollout}))
        if options.emergency_stop is False and config["emergency_stop"]:
            calls.append(("clear-emergency", {}))
        return calls

    def _foreseen(self, config: Config) -> Config:
        """The configuration once that was sent."""
        found = dict(config)
        for route, parameters in self._calls(config):
            if route in ("enable", "rollout"):
                found.update(enabled=True, rollout_percentage=parameters["percentage"])
            elif route == "disable":
                found.update(enabled=False, rollout_percentage=0.0)
            else:
                found["emergency_stop"] = route == "emergency-stop"
        return found

    # The rollout, which wp_chat forgets when the canary is switched off.

    def _rollout(self, config: Config) -> float:
        if self.options.rollout is not None:
            return self.options.rollout
        if self.remembered is None:
            # Whatever another worker has by now is not older than what was written down.
            if config["enabled"]:
                self.remembered = float(config["rollout_percentage"])
            else:
                self.remembered = self._recall()
        return self.remembered

    def _recall(self) -> float:
        path = self.options.memory
        why = "memory is not given" if not path else f"{path} does not exist"
        if path and os.path.exists(path):
            try:
                with open(path, encoding="utf-8") as file:
                    rollout = json.load(file)["rollout"]
                if _is_share(rollout) and rollout > 0:
                    return float(rollout)
                why = f"{path} has {str(rollout)[:40]!r} for it"
            except (OSError, ValueError, KeyError, TypeError) as error:
                why = f"{path} cannot be read ({type(error).__name__})"
        raise Refused(
            f"Which rollout the canary of {self.shown} had is not known: it is off, wp_chat forgets it then, and {why}"
            "; give rollout. Nothing was changed."
        )

    def _remember(self, config: Config) -> None:
        """Write the rollout down before it is lost."""
        off = self.options.enabled is False or self.options.rollout == 0
        path, rollout = self.options.memory, config["rollout_percentage"]
        if not (path and off and config["enabled"] and rollout > 0):
            return
        self.remembered = float(rollout)
        content = {"rollout": rollout, "at": clock.utc(time.time()), "by": self.options.updated_by, "url": self.shown}
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            durable.write(path, (json.dumps(content) + "\n").encode(), 0o644)
        except OSError as error:
            raise Refused(
                f"The rollout of {rollout:g} cannot be written to {path} ({error.strerror}), and wp_chat would forget "
                "it; nothing was changed."
            ) from None

    # The API.

    def _look(self) -> Config:
        found = self._ask("GET", "status", {})
        config = found.get("config")
        for name, types in _TYPES.items():
            value = config.get(name) if isinstance(config, dict) else None
            # Of numbers, true is none.
            if not isinstance(value, types) or isinstance(value, bool) is not (types == (bool,)):
                raise Refused(
                    f"GET {self.shown}{_API}status answers with something else than a canary ({name} is missing or of "
                    f"another type), so that is no wp_chat. {self._so_far('GET')}"
                )
        return t.cast(Config, {"status": found.get("status"), **t.cast(Config, config)})

    def _post(self, route: str, parameters: dict[str, t.Any]) -> None:
        # It may have come as far as wp_chat even where no answer comes.
        self.changed = True
        self.posts += 1
        # In the body it would be ignored, and 10 % enabled.
        self._ask("POST", route, {**parameters, "updated_by": self.options.updated_by})

    def _ask(self, method: str, route: str, parameters: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        options, shown = self.options, f"{method} {self.shown}{_API}{route}"
        url = f"{options.url.rstrip('/')}{_API}{route}" + (f"?{urlencode(parameters)}" if parameters else "")
        try:
            if method == "GET":
                answer = http_client.get(url, None, options.timeout, options.validate_certs, options.ca_path)
            else:
                answer = http_client.send(
                    method, url, None, None, options.timeout, options.validate_certs, options.ca_path
                )
        except NoAnswer as error:
            raise Refused(f"{error} {self._so_far(method)}") from None
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if answer.status != 200 or not isinstance(found, dict):
            if answer.status == 404:
                detail = "this version of wp_chat has no canary, or something else answers there"
            elif isinstance(found, dict):
                detail = str(found.get("error") or found.get("detail") or found)
            else:
                detail = answer.body.decode("utf-8", "replace") or "nothing"
            text = " ".join(mask_text(detail).split())[:300].rstrip(". ")
            raise Refused(f"{shown} answers {answer.status}: {text}. {self._so_far(method)}")
        return found

    def _so_far(self, method: str) -> str:
        if method == "POST":
            return "Whether it was done is not known; look at GET /admin/canary/status, and run this again."
        return "What was sent before was done." if self.posts else "Nothing was changed."


def _told(config: Config) -> Config:
    """A configuration as it is returned."""
    return {
        "enabled": config["enabled"],
        "rollout": float(config["rollout_percentage"]),
        "emergency_stop": config["emergency_stop"],
    }


def _is(one: float, other: float) -> bool:
    return math.isclose(one, other, abs_tol=1e-9)


def _is_share(value: t.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1

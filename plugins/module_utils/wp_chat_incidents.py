# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""wp_chat's incidents: what its API says, what its file says, which is not the same, and how to add to them.

The API answers 500 for as long as it has an incident to show, and records all the same. So the file is the truth.
"""

from __future__ import annotations

import json
import os
import re
import time
import typing as t
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, http_client, jsonlines, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context, Run, absolute
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

SEVERITIES = ("critical", "high", "medium", "low")
TYPES = (
    "high_latency",
    "high_error_rate",
    "model_failure",
    "index_corruption",
    "memory_exhaustion",
    "cache_failure",
    "rate_limit_attack",
    "canary_failure",
    "unknown",
)
RECENT_SECONDS = 24 * 3600
# One request for each incident of which the service is asked whether it takes it for active.
ASKED_AT_MOST = 20
# What an incident begins with in the file, also behind a line that was cut off.
_BEGIN = b'{"incident_id"'
_ID = re.compile(r"[\w.:-]+")

Incident = dict[str, t.Any]

# Documented in doc_fragments/wp_chat_incidents.py.
ARGUMENT_SPEC: dict[str, dict[str, t.Any]] = {
    "url": {"type": "str", "default": "http://localhost:8080"},
    "port": {"type": "int"},
    "home": {"type": "str", "default": ""},
    "path": {"type": "str", "default": "logs/incidents.jsonl"},
    "timeout": {"type": "float", "default": 5.0},
}


@dataclass
class Options:
    """Where the service is, and its file."""

    url: str
    path: str
    home: str
    port: int
    timeout: float


@dataclass
class Log:
    """What a file of incidents says: each as its last line has it, in the order of their first ones."""

    exists: bool = False
    incidents: list[Incident] = field(default_factory=list)
    torn: int = 0

    @property
    def active(self) -> list[Incident]:
        return [item for item in self.incidents if is_active(item)]

    def named(self, name: str) -> list[Incident]:
        return [item for item in self.incidents if str(item["incident_id"]) == name]


def options_of(params: t.Mapping[str, t.Any]) -> Options:
    """A module's parameters, or ValueError with a sentence for what their types cannot say."""
    parts = urlsplit(http_client.check_url(params["url"]))
    port = params["port"] or parts.port or (443 if parts.scheme == "https" else 80)
    if not 0 < port < 65536:
        raise ValueError(f"port is {port}; it is a number from 1 to 65535")
    if not params["timeout"] > 0:
        raise ValueError(f"timeout is {params['timeout']:g}; it is a number of seconds above 0")
    if not params["path"]:
        raise ValueError("path is empty; it is logs/incidents.jsonl below the folder in which wp_chat runs")
    return Options(params["url"], params["path"], params["home"], port, params["timeout"])


def check_id(name: str) -> None:
    if not _ID.fullmatch(name):
        raise ValueError(f"incident_id is {name!r}; an id looks like incident_1795318574")


# The file.


def locate(options: Options, run: Run) -> str:
    """The file: a relative one is below home, or where what listens on the port was started. NoAnswer says why not."""
    path = os.path.join(options.home, options.path) if options.home else options.path
    return absolute(Context(options.timeout, 0.0, {}, run), path, options.port)


def read(path: str) -> Log:
    """The file, folded. Without a file no incident was ever recorded; one that may not be read is NoAnswer."""
    log = Log()
    found: dict[tuple[str, t.Any], Incident] = {}
    try:
        with open(path, "rb") as file:
            log.exists = True
            for line in file:
                if line.strip():
                    item, whole = _parsed(line)
                    log.torn += not whole
                    if item:
                        at = item.get("detected_at")
                        found[str(item["incident_id"]), seconds(at) or str(at)] = item
    except FileNotFoundError:
        home = os.path.dirname(os.path.dirname(path))
        if not os.path.isdir(home):
            raise NoAnswer(
                f"{path} does not exist, nor does {home}; say in which folder wp_chat runs (home).", "no data"
            ) from None
    except PermissionError as error:
        raise NoAnswer(
            f"{error.filename or path} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission"
        ) from None
    except OSError as error:
        raise NoAnswer(f"{path} cannot be read: {error.strerror or error}.", "error") from None
    log.incidents = list(found.values())
    return log


def _parsed(line: bytes) -> tuple[Incident | None, bool]:
    """The incident of a line, and whether it is nothing else; a torn line may have another one appended to it."""
    begin = 0
    while begin != -1:
        item = jsonlines.parse(line[begin:])
        if item and item.get("incident_id"):
            return item, begin == 0
        begin = line.find(_BEGIN, begin + 1)
    return None, False


def seconds(moment: t.Any) -> float | None:
    """A time in the file: seconds since 1970, or ISO 8601, which without a zone is the host's own time."""
    return jsonlines.moment_of(moment, time.time())


def is_active(item: Incident) -> bool:
    return not item.get("resolved_at")


def _rank(item: Incident) -> tuple[int, float]:
    """The worst first, and of those the newest."""
    severity = str(item.get("severity"))
    place = SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)
    return place, -(seconds(item.get("detected_at")) or 0.0)


def shown(item: Incident) -> Incident:
    """An incident as it is returned: times in UTC, nothing that looks like a secret."""

    def when(name: str) -> str | None:
        value = item.get(name)
        moment = seconds(value)
        return clock.utc(moment) if moment else (str(value) if value else None)

    def words(name: str) -> list[str]:
        value = item.get(name) or []
        return [mask_text(str(one)) for one in (value if isinstance(value, list) else [value])]

    def text(name: str) -> str:
        return mask_text(str(item.get(name) or ""))

    return {
        "incident_id": str(item.get("incident_id") or "") or None,
        "incident_type": str(item.get("incident_type") or "unknown"),
        "severity": str(item.get("severity") or "unknown"),
        "active": is_active(item),
        "detected_at": when("detected_at"),
        "resolved_at": when("resolved_at"),
        "description": text("description"),
        "affected_components": words("affected_components"),
        "actions_taken": words("actions_taken"),
        "resolution_notes": text("resolution_notes"),
        "assigned_to": text("assigned_to"),
    }


# The service.


class Api:
    """One wp_chat, as far as its incidents go. Nothing is retried."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self.shown = http_client.without_credentials(self._url)

    def get(self, path: str) -> tuple[int, t.Any]:
        return self._told(http_client.get(f"{self._url}/admin/incidents{path}", timeout=self._timeout))

    def post(self, path: str, query: t.Mapping[str, str], body: t.Any = None) -> tuple[int, t.Any]:
        """Parameters of /admin are read from the query alone."""
        text = urlencode({name: value for name, value in query.items() if value})
        url = f"{self._url}/admin/incidents{path}{f'?{text}' if text else ''}"
        return self._told(http_client.send("POST", url, body, timeout=self._timeout))

    @staticmethod
    def _told(answer: http_client.Answer) -> tuple[int, t.Any]:
        try:
            return answer.status, json.loads(answer.body)
        except ValueError:
            return answer.status, None

    def procedures(self, name: str) -> tuple[int, t.Any]:
        return self.get(f"/{quote(name, safe='')}/procedures")

    def knows_as_active(self, name: str) -> bool | None:
        """Whether the service takes an incident for active; None where it does not say."""
        try:
            status, body = self.procedures(name)
        except NoAnswer:
            return None
        if status == 200:
            return True
        # Where there is no such route, nothing is said of an incident.
        return False if status == 404 and "incident" in _words(body).lower() else None


def _words(body: t.Any) -> str:
    """What an answer says of an error."""
    if isinstance(body, dict):
        body = body.get("error") or body.get("detail") or ""
    text = body if isinstance(body, str) else json.dumps(body)
    return " ".join(mask_text(text).split())[:300].rstrip(". ")


def _incidents_of(value: t.Any) -> list[Incident] | None:
    if isinstance(value, list) and all(isinstance(item, dict) and item.get("incident_id") for item in value):
        return value
    return None


@dataclass
class Told:
    """What the API lists; None where it does not."""

    active: list[Incident] | None
    recent: list[Incident] | None
    # Why not, a sentence; whether it answers at all; whether it fails as it does with an incident to show.
    why: str = ""
    alive: bool = True
    failing: bool = False

    @property
    def usable(self) -> bool:
        return self.active is not None and self.recent is not None


def ask(api: Api) -> Told:
    """The two lists of the API."""
    found: list[t.Any] = []
    why, failing = "", False
    for path in ("/status", "/active"):
        try:
            status, body = api.get(path)
        except NoAnswer as error:
            return Told(None, None, str(error), alive=False)
        found.append(body if status == 200 and isinstance(body, dict) else {})
        failing = failing or status >= 500
        if status != 200:
            words = _words(body)
            why = why or f"GET {api.shown}/admin/incidents{path} answers {status}{f' ({words})' if words else ''}."
    active = _incidents_of(found[1].get("active_incidents"))
    recent = _incidents_of(found[0].get("recent_incidents_list"))
    if not why and (active is None or recent is None):
        why = f"GET {api.shown}/admin/incidents answers 200 and lists no incidents."
    return Told(active, recent, why, failing=failing)


# What there is.


def info(options: Options, run: Run, name: str = "") -> dict[str, t.Any]:
    """Active and recent incidents, from whom they are, and what the service itself believes; Refused says why not."""
    api = Api(options.url, options.timeout)
    told = ask(api)
    log, path, problem = _look(options, run)
    if log is None and not told.usable:
        raise Refused(f"{told.why} {problem}")
    if log is not None and not log.exists and told.failing:
        raise Refused(
            f"{told.why} It does so while it has an incident to show, and {path} does not exist: is wp_chat run in "
            "another folder (home)?"
        )
    notes = []
    believed = _believed(api, told, log)
    # An incident that the service has forgotten is one that nobody has resolved.
    if log is not None and (
        not told.usable or {_key(item) for item in log.active} - {_key(i) for i in told.active or ()}
    ):
        source, active, known = path, log.active, log.incidents
        recent = [item for item in known if (seconds(item.get("detected_at")) or 0) > time.time() - RECENT_SECONDS]
    else:
        source, active, recent = "api", list(told.active or ()), list(told.recent or ())
        known = [*active, *recent, *(log.incidents if log else ())]
        if log is None:
            notes.append(f"The file was not read: {problem}")
    if log is not None:
        notes += _differences(log, believed, path)
    both = list({_key(item): item for item in [*recent, *active]}.values())
    result: dict[str, t.Any] = {
        "source": source,
        "api": told.why or "It lists its incidents.",
        "active": [shown(item) for item in sorted(active, key=_rank)],
        "recent": [shown(item) for item in sorted(recent, key=lambda item: -(seconds(item.get("detected_at")) or 0))],
        "by_severity": _counts(both, "severity"),
        "by_type": _counts(both, "incident_type"),
        "torn": log.torn if log else 0,
        "believed_active": believed,
        "notes": notes,
    }
    if name:
        # Of several with one id, made in the same second, the one that is active, else the newest.
        same = sorted(
            (item for item in known if str(item["incident_id"]) == name), key=lambda i: (not is_active(i), _rank(i))
        )
        result["incident"] = shown(same[0]) if same else None
        result["catalogue"] = _catalogue(api, name) if told.alive else None
    return result


def _look(options: Options, run: Run) -> tuple[Log | None, str, str]:
    """The file folded, where it is, and why it could not be read."""
    try:
        path = locate(options, run)
        return read(path), path, ""
    except NoAnswer as error:
        return None, options.path, str(error)


def _key(item: Incident) -> tuple[str, t.Any]:
    at = item.get("detected_at")
    return str(item["incident_id"]), seconds(at) or str(at)


def _counts(items: t.Iterable[Incident], name: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        value = shown(item)[name]
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _believed(api: Api, told: Told, log: Log | None) -> list[str] | None:
    """The ids that the service takes for active, of those that the file has; None where it does not say."""
    if told.active is not None:
        return sorted({str(item["incident_id"]) for item in told.active})
    if log is None or not told.alive:
        return None
    newest = sorted(log.incidents, key=lambda item: (not is_active(item), -(seconds(item.get("detected_at")) or 0)))
    believed = []
    for name in list(dict.fromkeys(str(item["incident_id"]) for item in newest))[:ASKED_AT_MOST]:
        known = api.knows_as_active(name)
        if known is None:
            return None
        if known:
            believed.append(name)
    return sorted(believed)


def _differences(log: Log, believed: list[str] | None, path: str) -> list[str]:
    """Where the service and its file disagree, and what follows from torn lines: a sentence each."""
    notes = []
    if believed is not None:
        active = {str(item["incident_id"]) for item in log.active}
        again = [name for name in believed if name not in active and log.named(name)]
        forgotten = sorted(active.difference(believed))
        if again:
            notes.append(
                f"The service takes {_listed(again)} for active again, as it does with what was resolved before its "
                "last start; that is in its memory alone."
            )
        if forgotten:
            notes.append(
                f"The service does not know {_listed(forgotten)}, which nobody has resolved: when it starts it reads "
                "its file up to the first line that is broken."
            )
    if log.torn:
        notes.append(
            f"{path} has {log.torn} line{'s' if log.torn > 1 else ''} that cannot be read; the service forgets at its "
            "next start what stands behind the first of them."
        )
    return notes


def _listed(names: t.Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _catalogue(api: Api, name: str) -> list[dict[str, t.Any]] | None:
    """What the service itself would have done for an incident; None where it does not say."""
    try:
        status, body = api.procedures(name)
    except NoAnswer:
        return None
    listed = body.get("procedures") if status == 200 and isinstance(body, dict) else None
    if not isinstance(listed, list):
        return None
    return [
        {
            "action_id": str(item.get("action_id")),
            "name": str(item.get("name")),
            "command": mask_text(str(item.get("command") or "")),
            "requires_confirmation": bool(item.get("requires_confirmation")),
            "estimated_time": item.get("estimated_time"),
        }
        for item in listed
        if isinstance(item, dict)
    ]


# Adding to them.

# How the service says it.
_NOT_FOUND = {"error": "Incident not found"}
_NOT_WITHOUT = "Nothing was recorded: {} Only the service itself records; its file is not written to behind its back."


def _may_have_arrived(error: NoAnswer) -> bool:
    """Whether a request that was not answered may have been received."""
    return error.kind in ("timeout", "connection", "protocol", "size") and "no connection" not in str(error)


class Change:
    """One incident recorded or resolved. `before` and `after` are how it was and is, or would be in check mode."""

    def __init__(self, options: Options, run: Run, check_mode: bool) -> None:
        self.options = options
        self.check_mode = check_mode
        self.changed = False
        self.before: Incident | None = None
        self.after: Incident | None = None
        self.notes: list[str] = []
        self._run = run
        self._api = Api(options.url, options.timeout)
        self._log, self._path, self._problem = _look(options, run)

    def _post(self, path: str, query: t.Mapping[str, str], body: t.Any = None) -> tuple[int | None, t.Any, str]:
        """Status, body and a sentence's beginning; without a status it may have been recorded all the same."""
        try:
            status, told = self._api.post(path, query, body)
        except NoAnswer as error:
            if _may_have_arrived(error):
                return None, None, str(error)
            raise Refused(_NOT_WITHOUT.format(error)) from None
        words = _words(told) if status != 200 else ""
        return (
            status,
            told,
            f"POST {self._api.shown}/admin/incidents{path} answers {status}{f' ({words})' if words else ''}",
        )

    def _require_service(self) -> None:
        """In check mode, what would be refused is refused."""
        try:
            self._api.get("/active")
        except NoAnswer as error:
            raise Refused(_NOT_WITHOUT.format(error)) from None

    def _again(self) -> Log | None:
        return _look(self.options, self._run)[0]

    # Recording one.

    def detect(self, kind: str, severity: str, description: str, components: t.Sequence[str]) -> None:
        same = self._active_of(kind)
        if same:
            self.before = self.after = same[0]
            self.notes.append(f"An incident of this type is active: {same[0]['incident_id']}; nothing was recorded.")
            return
        wanted = {
            "incident_id": None,
            "incident_type": kind,
            "severity": severity,
            "description": description,
            "affected_components": list(components),
        }
        if self.check_mode:
            self._require_service()
            self.changed, self.after = True, wanted
            return
        query = {"incident_type": kind, "severity": severity, "description": description}
        status, told, said = self._post("/detect", query, list(components) or None)
        if status is not None and 400 <= status < 500:
            raise Refused(f"Nothing was recorded: {said}.")
        # It answers 500 and has recorded the incident; the file tells.
        log = self._again()
        if log is not None and self._log is not None:
            known = {_key(item) for item in self._log.incidents}
            new = [item for item in log.incidents if _key(item) not in known and item.get("incident_type") == kind]
            if new:
                self.changed, self.after = True, new[-1]
                return
            reason = f"{self._path} has no new line" if log.exists else f"{self._path} does not exist"
            if status is None:
                raise Refused(f"{said} {reason[0].upper()}{reason[1:]}, so nothing was recorded until now.")
            raise Refused(
                f"{said}, and {reason}, so it is not proven that anything was recorded: is this the file of the "
                "service that was asked (home)?"
            )
        if status == 200:
            found = told.get("incident_id") if isinstance(told, dict) else None
            self.changed, self.after = True, {**wanted, "incident_id": found}
            self.notes.append(f"The service says so; the file was not read: {self._problem}")
            return
        raise Refused(f"{said.rstrip('.')}, and whether it was recorded cannot be seen: {self._problem}")

    def _active_of(self, kind: str) -> list[Incident]:
        """Active incidents of a type, the newest first."""
        active = self._log.active if self._log is not None else None
        if active is None:
            told = ask(self._api)
            if told.active is None:
                raise Refused(
                    f"Nothing was recorded: whether an incident of the type {kind} is active already cannot be seen. "
                    f"{told.why} {self._problem}"
                )
            active = told.active
        return sorted((item for item in active if item.get("incident_type") == kind), key=_rank)

    # Resolving one.

    def resolve(self, name: str, notes: str, assigned_to: str) -> None:
        known = self._log.named(name) if self._log is not None else []
        active = [item for item in known if is_active(item)]
        self.before = self.after = (active or known)[-1] if known else None
        believed = self._api.knows_as_active(name)
        if self.before is not None and not active:
            given = {"resolution_notes": notes, "assigned_to": assigned_to}
            if all(not value or self.before.get(key) == value for key, value in given.items()):
                again = ", and the service takes it for active again, as it does after a restart" if believed else ""
                self.notes.append(f"{name} was resolved before, at {shown(self.before)['resolved_at']}{again}.")
                return
        # A second resolution replaces what the first one said.
        if self.before is not None:
            notes = notes or str(self.before.get("resolution_notes") or "")
            assigned_to = assigned_to or str(self.before.get("assigned_to") or "")
        if self.check_mode:
            self._foresee(name, notes, assigned_to, believed)
            return
        query = {"resolution_notes": notes, "assigned_to": assigned_to}
        path = f"/{quote(name, safe='')}/resolve"
        status, told, said = self._post(path, query)
        if status == 404:
            raise Refused(self._unknown(name, told))
        if status is not None and status != 200 and status < 500:
            raise Refused(f"Nothing was recorded: {said}.")
        log = self._again()
        if log is not None and self._log is not None:
            before = {_key(item): item for item in known}
            new = [item for item in log.named(name) if not is_active(item) and before.get(_key(item)) != item]
            if new:
                self.changed, self.after = True, new[-1]
                left = [item for item in log.named(name) if is_active(item)]
                if left:
                    self.notes.append(
                        f"Another incident of the same second has the id {name} and is active still; the service "
                        "resolves the first of them alone."
                    )
                return
            if status is None:
                raise Refused(f"{said} {self._path} has no new line, so nothing was recorded until now.")
            raise Refused(
                f"{said}, and {self._path} has no new line, so it is not proven that {name} was resolved: is this the "
                "file of the service that was asked (home)?"
            )
        if status == 200:
            self.changed, self.after = True, self._resolved(name, notes, assigned_to)
            self.notes.append(f"The service says so; the file was not read: {self._problem}")
            return
        raise Refused(f"{said.rstrip('.')}, and whether it was recorded cannot be seen: {self._problem}")

    def _foresee(self, name: str, notes: str, assigned_to: str, believed: bool | None) -> None:
        self._require_service()
        # What it has resolved itself it resolves again; of that it only says that it is not active.
        if believed is False and (self.before is None or is_active(self.before)):
            raise Refused(self._unknown(name, _NOT_FOUND))
        if believed is None and self.before is None:
            raise Refused(f"Nothing is known of {name}: the service at {self._api.shown} does not say. {self._problem}")
        self.changed, self.after = True, self._resolved(name, notes, assigned_to)

    def _resolved(self, name: str, notes: str, assigned_to: str) -> Incident:
        before = self.before or {"incident_id": name}
        return {**before, "resolved_at": time.time(), "resolution_notes": notes, "assigned_to": assigned_to}

    def _unknown(self, name: str, told: t.Any) -> str:
        """What a 404 means, which the service says alike of what it never had, has forgotten, and has resolved."""
        if "incident" not in _words(told).lower():
            return f"Nothing was recorded: the service at {self._api.shown} has no route to resolve an incident (404)."
        if self._log is None:
            return (
                f"Nothing was recorded: the service does not know {name}, or has resolved it, and which of them cannot "
                f"be seen: {self._problem}"
            )
        if self.before is None:
            known = [str(item["incident_id"]) for item in reversed(self._log.active)]
            return (
                f"Nothing was recorded: neither the service nor {self._path} has an incident {name}; active are "
                f"{_listed(known) or 'none'}."
            )
        if is_active(self.before):
            return (
                f"Nothing was recorded: {self._path} has {name} as active, and the service does not know it any more; "
                f"it reads its file when it starts, up to the first broken line ({self._log.torn} "
                f"{'is' if self._log.torn == 1 else 'are'} broken): mend the file, restart the service, and resolve it "
                "then."
            )
        return (
            f"Nothing was recorded: {name} was resolved at {shown(self.before)['resolved_at']}, and the service does "
            "not know it any more, so what was noted then stays."
        )

# SPDX-License-Identifier: GPL-3.0-or-later
"""Incidents: what is recorded works; what is shown does not, unless the kind is literal."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from lab.wp_chat import logs

PATH = Path("logs/incidents.jsonl")
_DAY = 86400
_log = logging.getLogger("wp_chat.core.runbook")


class IncidentType(Enum):
    HIGH_LATENCY = "high_latency"
    HIGH_ERROR_RATE = "high_error_rate"
    MODEL_FAILURE = "model_failure"
    INDEX_CORRUPTION = "index_corruption"
    MEMORY_EXHAUSTION = "memory_exhaustion"
    CACHE_FAILURE = "cache_failure"
    RATE_LIMIT_ATTACK = "rate_limit_attack"
    CANARY_FAILURE = "canary_failure"
    UNKNOWN = "unknown"


class Severity(Enum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass
class Incident:
    incident_id: str
    incident_type: IncidentType
    severity: Severity
    detected_at: float
    resolved_at: float | None = None
    description: str = ""
    affected_components: list[str] = field(default_factory=list)
    actions_taken: list[str] = field(default_factory=list)
    resolution_notes: str = ""
    assigned_to: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As it would be shown: the enums are what no JSON response can hold."""
        return dict(vars(self))

    def as_json(self) -> dict[str, Any]:
        values = self.as_dict()
        return {**values, "incident_type": self.incident_type.value, "severity": self.severity.value}


@dataclass(frozen=True)
class Action:
    action_id: str
    name: str
    command: str
    requires_confirmation: bool
    estimated_time: int

    def as_json(self) -> dict[str, Any]:
        return {
            "action_id": self.action_id,
            "name": self.name,
            "description": f"{self.name} ({self.estimated_time} s)",
            "command": self.command,
            "parameters": None,
            "requires_confirmation": self.requires_confirmation,
            "estimated_time": self.estimated_time,
        }


_API = "http://localhost:8080"
_POST = f"curl -X POST {_API}/admin"
_RESTART = "pkill -f uvicorn && sleep 5 && uvicorn src.chat_api:app --host 0.0.0.0 --port 8080 --reload &"
_ADJUST = """-d '{"max_requests": 10, "window_seconds": 3600}'"""
_VERIFY = "python -c \"import faiss; idx = faiss.read_index('data/index/wp.faiss'); print(idx.ntotal)\""

_DISABLE_RERANK = Action("disable_rerank", "Disable Reranking", f"{_POST}/canary/disable", True, 30)
_CLEAR_CACHE = Action("clear_cache", "Clear Cache", f"{_POST}/cache/clear", True, 60)
_RESTART_SERVICE = Action("restart_service", "Restart Service", _RESTART, True, 120)
CATALOGUE: dict[IncidentType, tuple[Action, ...]] = {
    IncidentType.HIGH_LATENCY: (_DISABLE_RERANK, _CLEAR_CACHE, _RESTART_SERVICE),
    IncidentType.HIGH_ERROR_RATE: (
        Action("emergency_stop", "Emergency Stop", f"{_POST}/canary/emergency-stop", True, 30),
        Action("check_logs", "Check Error Logs", "tail -n 100 logs/api_errors.log", False, 60),
        _RESTART_SERVICE,
    ),
    IncidentType.MODEL_FAILURE: (
        _DISABLE_RERANK,
        Action("check_model_files", "Check Model Files", "ls -la ~/.cache/huggingface/transformers/", False, 30),
        Action("reload_model", "Reload Model", _RESTART, True, 180),
    ),
    IncidentType.INDEX_CORRUPTION: (
        Action("verify_index", "Verify Index", _VERIFY, False, 60),
        Action("rebuild_index", "Rebuild Index", "make rebuild-index", True, 1800),
        Action("restore_backup", "Restore Backup", "cp data/index/wp.faiss.backup data/index/wp.faiss", True, 300),
    ),
    IncidentType.MEMORY_EXHAUSTION: (
        Action("check_memory", "Check Memory", "free -h && ps aux --sort=-%mem | head -10", False, 30),
        _CLEAR_CACHE,
        _RESTART_SERVICE,
    ),
    IncidentType.CACHE_FAILURE: (
        Action("disable_cache", "Disable Cache", f"{_POST}/cache/disable", True, 30),
        _CLEAR_CACHE,
        Action("check_cache_dir", "Check Cache Directory", "ls -la logs/cache/ && df -h logs/cache/", False, 30),
    ),
    IncidentType.RATE_LIMIT_ATTACK: (
        Action("check_rate_limits", "Check Rate Limits", f"curl {_API}/stats/rate-limit", False, 30),
        Action("adjust_rate_limits", "Adjust Rate Limits", f"{_POST}/rate-limit/adjust {_ADJUST}", True, 60),
        Action("block_attacker", "Block Attacker", "iptables -A INPUT -s <ATTACKER_IP> -j DROP", True, 120),
    ),
    IncidentType.CANARY_FAILURE: (
        Action("emergency_stop_canary", "Emergency Stop Canary", f"{_POST}/canary/emergency-stop", True, 30),
        Action("disable_canary", "Disable Canary", f"{_POST}/canary/disable", True, 30),
        Action("check_canary_status", "Check Canary Status", f"curl {_API}/admin/canary/status", False, 30),
    ),
}


class Incidents:
    def __init__(self, perform: dict[str, Callable[[], Any]] | None) -> None:
        # By action what is really done; None where nothing ever is.
        self._perform = perform
        self._lock = threading.Lock()
        # Every line is taken for an incident of its own: what was resolved is active again after a restart.
        self._incidents: list[Incident] = []
        try:
            if PATH.exists():
                for line in PATH.read_text(encoding="utf-8").splitlines():
                    found = json.loads(line)
                    kinds = {"incident_type": IncidentType(found["incident_type"])}
                    self._incidents.append(Incident(**{**found, **kinds, "severity": Severity(found["severity"])}))
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.error("Failed to load incidents: %s", error)

    def active(self) -> list[Incident]:
        with self._lock:
            return [incident for incident in self._incidents if incident.resolved_at is None]

    def recent(self) -> list[Incident]:
        since = time.time() - _DAY
        with self._lock:
            return [incident for incident in self._incidents if incident.detected_at > since]

    def status(self, show: Callable[[Incident], dict[str, Any]]) -> dict[str, Any]:
        active, recent = self.active(), self.recent()
        return {
            "active_incidents": len(active),
            "recent_incidents_24h": len(recent),
            "severity_breakdown": dict(Counter(incident.severity.value for incident in recent)),
            "type_breakdown": dict(Counter(incident.incident_type.value for incident in recent)),
            "active_incidents_list": [show(incident) for incident in active],
            "recent_incidents_list": [show(incident) for incident in recent],
        }

    def detect(self, kind: IncidentType, severity: Severity, description: str, components: list[str]) -> Incident:
        now = time.time()
        # Two within a second are called the same.
        incident = Incident(
            f"incident_{int(now)}", kind, severity, now, description=description, affected_components=components
        )
        with self._lock:
            self._incidents.append(incident)
        logs.append(PATH, incident.as_json())
        _log.warning("INCIDENT DETECTED: %s - %s (%s)", incident.incident_id, kind.value, severity.value)
        return incident

    def auto_detect(self, slo: dict[str, Any]) -> list[Incident]:
        """From the SLO's violations, the last one deciding; again with every call."""
        found = []
        for endpoint, block in slo.items():
            if not block["violations"]:
                continue
            kind, severity = IncidentType.UNKNOWN, Severity.MEDIUM
            for violation in block["violations"]:
                if "latency" in violation["type"]:
                    kind, severity = IncidentType.HIGH_LATENCY, Severity.HIGH
                elif "success_rate" in violation["type"] or "error_rate" in violation["type"]:
                    kind, severity = IncidentType.HIGH_ERROR_RATE, Severity.CRITICAL
                elif "fallback" in violation["type"]:
                    kind, severity = IncidentType.MODEL_FAILURE, Severity.HIGH
            messages = "; ".join(violation["message"] for violation in block["violations"])
            description = f"SLO violations detected for {endpoint}: {messages}"
            found.append(self.detect(kind, severity, description, [endpoint]))
        return found

    def find(self, incident_id: str, *, active: bool) -> Incident | None:
        with self._lock:
            named = [incident for incident in self._incidents if incident.incident_id == incident_id]
        return next((each for each in reversed(named) if not active or each.resolved_at is None), None)

    def execute(self, incident: Incident, action: Action, confirm: bool) -> dict[str, Any]:
        if action.requires_confirmation and not confirm:
            return {"success": False, "output": "Action requires confirmation", "action": action.as_json()}
        incident.actions_taken.append(action.action_id)
        success, output = self._run(action)
        return {"success": success, "output": output, "action": action.as_json()}

    def _run(self, action: Action) -> tuple[bool, str]:
        if self._perform is not None:
            perform = self._perform.get(action.action_id)
            return (True, json.dumps(perform())) if perform else (False, "This has to be done on the host")
        try:
            # The line is taken for the name of a program, which no machine has.
            finished = subprocess.run([action.command], capture_output=True, text=True, check=False, timeout=30)
        except OSError as error:
            return False, str(error)
        return finished.returncode == 0, finished.stdout

    def resolve(self, incident: Incident, notes: str, assigned_to: str) -> None:
        incident.resolved_at = time.time()
        incident.resolution_notes = notes
        incident.assigned_to = assigned_to
        # A second full line; the first one stays.
        logs.append(PATH, incident.as_json())
        _log.info("INCIDENT RESOLVED: %s", incident.incident_id)

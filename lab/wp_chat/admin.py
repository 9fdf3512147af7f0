# SPDX-License-Identifier: GPL-3.0-or-later
"""/admin: nobody is asked for a key, and what a handler refuses comes out as 500."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError

from lab.wp_chat.backups import BackupError
from lab.wp_chat.incidents import CATALOGUE, Incident, IncidentType, Severity
from lab.wp_chat.state import State

Json = dict[str, Any]
Kind = Literal["full", "incremental", "index", "cache", "config"]


def _done(message: str) -> Json:
    return {"message": message, "status": "success"}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


def canary_routes(state: State) -> APIRouter:
    routes = APIRouter(prefix="/admin/canary")
    canary = state.canary

    @routes.get("/status")
    def status() -> Json:
        return canary.report()

    @routes.post("/enable")
    def enable(percentage: float = 0.1, updated_by: str = "api") -> Json:
        canary.set_rollout(percentage, updated_by)
        return _done(f"Canary deployment enabled at {percentage * 100:.1f}%")

    @routes.post("/rollout")
    def rollout(percentage: float, updated_by: str = "api") -> Json:
        canary.set_rollout(percentage, updated_by)
        return _done(f"Canary rollout updated to {percentage * 100:.1f}%")

    @routes.post("/disable")
    def disable(updated_by: str = "api") -> Json:
        canary.disable(updated_by)
        return _done("Canary deployment disabled")

    @routes.post("/emergency-stop")
    def emergency_stop(updated_by: str = "api") -> Json:
        canary.set_emergency(True, updated_by)
        return _done("Emergency stop activated - rerank disabled for all users")

    @routes.post("/clear-emergency")
    def clear_emergency(updated_by: str = "api") -> Json:
        canary.set_emergency(False, updated_by)
        return _done("Emergency stop cleared")

    return routes


class _LimitBody(BaseModel):
    max_requests: Annotated[int, Field(ge=1)]
    window_seconds: Annotated[int, Field(ge=1)]


def cache_routes(state: State) -> APIRouter:
    """Cache and rate limit; all but the first of these routes are the runbook's invention."""
    routes = APIRouter(prefix="/admin")

    @routes.post("/cache/clear")
    def clear() -> Json:
        # The status tells nothing of what became of it.
        return {"success": state.cache.clear(), "message": "Cache cleared"}

    if state.settings.literal:

        @routes.post("/cache/disable")
        def disable() -> Json:
            return state.switch_cache(False)

        @routes.post("/cache/enable")
        def enable() -> Json:
            return state.switch_cache(True)

        @routes.post("/rate-limit/adjust")
        async def adjust(request: Request) -> Json:
            """JSON, whatever its type is called: curl -d calls it a form."""
            try:
                body = _LimitBody(**json.loads(await request.body()))
            except (ValidationError, ValueError, TypeError) as error:
                raise HTTPException(422, str(error)) from error
            return state.adjust_limit(body.max_requests, body.window_seconds)

    return routes


def incident_routes(state: State) -> APIRouter:
    routes = APIRouter(prefix="/admin/incidents")
    incidents = state.incidents
    # The head puts enums into its answers, which no JSON can hold: 500, and all the same recorded.
    show: Callable[[Incident], Json] = Incident.as_json if state.settings.literal else Incident.as_dict

    @routes.get("/status")
    def status() -> Response:
        return _shown(incidents.status(show))

    @routes.get("/active")
    def active() -> Response:
        return _shown({"active_incidents": [show(incident) for incident in incidents.active()]})

    @routes.post("/detect")
    def detect(
        incident_type: str,
        severity: str,
        description: str = "",
        affected_components: Annotated[list[str] | None, Body()] = None,
    ) -> Response:
        try:
            kind, level = IncidentType(incident_type), Severity(severity)
        except ValueError as error:
            return _error(400, f"Invalid incident type or severity: {error}")
        incident = incidents.detect(kind, level, description, affected_components or [])
        return _shown({"message": f"Incident {incident.incident_id} detected", "incident": show(incident)})

    @routes.post("/auto-detect")
    def auto_detect() -> Response:
        found = incidents.auto_detect(state.measurements.slo())
        return _shown({"message": f"Detected {len(found)} incidents", "incidents": [show(each) for each in found]})

    @routes.get("/{incident_id}/procedures")
    def procedures(incident_id: str) -> Response:
        incident = incidents.find(incident_id, active=True)
        if incident is None:
            return _error(404, "Incident not found")
        kind = incident.incident_type
        actions = [action.as_json() for action in CATALOGUE.get(kind, ())]
        return _shown({"incident_id": incident_id, "incident_type": kind.value, "procedures": actions})

    @routes.post("/{incident_id}/execute")
    def execute(incident_id: str, action_id: str, confirm: bool = False) -> Response:
        incident = incidents.find(incident_id, active=True)
        if incident is None:
            return _error(404, "Incident not found")
        known = CATALOGUE.get(incident.incident_type, ())
        action = next((action for action in known if action.action_id == action_id), None)
        if action is None:
            return _error(404, "Action not found")
        return _shown(incidents.execute(incident, action, confirm))

    @routes.post("/{incident_id}/resolve")
    def resolve(incident_id: str, resolution_notes: str = "", assigned_to: str = "") -> Response:
        incident = incidents.find(incident_id, active=False)
        if incident is None:
            return _error(404, "Incident not found")
        incidents.resolve(incident, resolution_notes, assigned_to)
        return _shown(_done(f"Incident {incident_id} resolved"))

    return routes


def _shown(content: Json) -> JSONResponse:
    """TypeError for what JSON cannot hold."""
    return JSONResponse(content)


def backup_routes(state: State) -> APIRouter:
    routes = APIRouter(prefix="/admin/backup")
    backups = state.backups

    @routes.get("/status")
    def status() -> Json:
        return backups.status()

    @routes.get("/list")
    def list_backups(backup_type: Kind | None = None) -> Json:
        return {"backups": backups.list(backup_type)}

    @routes.post("/create")
    def create(backup_type: Kind = "full", description: str = "") -> Json:
        backup = backups.create(backup_type, description)
        return {"message": f"Backup created: {backup.backup_id}", "backup": vars(backup)}

    @routes.post("/restore")
    def restore(backup_id: str, target_path: str | None = None, verify: bool = True) -> Json:
        restored = backups.restore(backup_id, target_path, verify)
        return {"message": f"Restore completed: {restored['restore_id']}", "restore": restored}

    @routes.post("/cleanup")
    def cleanup() -> Json:
        deleted = backups.cleanup()
        return {"message": f"Cleaned up {deleted} old backups", "deleted_count": deleted}

    @routes.post("/schedule")
    def schedule() -> Json:
        try:
            backup = backups.create("full", "scheduled")
        except BackupError:
            return {"message": "No backup needed", "backup": None}
        return {"message": f"Scheduled backup created: {backup.backup_id}", "backup": vars(backup)}

    @routes.delete("/{backup_id}")
    def delete(backup_id: str) -> Response:
        if not backups.delete(backup_id):
            return _error(404, "Backup not found")
        return JSONResponse({"message": f"Backup {backup_id} deleted", "status": "success"})

    return routes

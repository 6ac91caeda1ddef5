"""The part of the OpenAPI document that describes the Label Studio ML backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamcl.serving.label_studio.label_studio import (
    BackendHealth,
    SetupAccepted,
    SetupRequest,
    TaskPredictions,
    TasksRequest,
)
from streamcl.serving.label_studio.label_studio_events import AnnotationEvent, EventOutcome

BACKEND_RESPONSES = (BackendHealth, SetupAccepted, TaskPredictions, EventOutcome)
BACKEND_REQUESTS = (SetupRequest, TasksRequest, AnnotationEvent)
_CHOICES = {
    "name": "choices",
    "in": "query",
    "description": "The name of the choices, where an annotation has several.",
    "schema": {"type": "string"},
}


def backend_paths(problems: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operations by path and method. problems: the responses of errors."""
    webhook = _post(
        "webhook",
        "Annotations become labels; a deleted one is taken back.",
        "AnnotationEvent",
        "EventOutcome",
        problems,
    )
    webhook["post"]["parameters"] = [_CHOICES]
    return {
        "/health": {
            "get": {
                "summary": "Whether the server answers at all, for Label Studio.",
                "operationId": "backend_health",
                "responses": {"200": {"description": "It does.", "content": _json("BackendHealth")}},
            }
        },
        "/setup": _post("setup", "Whether a project fits.", "SetupRequest", "SetupAccepted", problems),
        "/predict": _post("predict", "Predictions for tasks.", "TasksRequest", "TaskPredictions", problems),
        "/webhook": webhook,
    }


def _post(
    name: str, summary: str, request: str, response: str, problems: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "operationId": f"backend_{name}",
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {"200": {"description": summary, "content": _json(response)}, **problems},
        }
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

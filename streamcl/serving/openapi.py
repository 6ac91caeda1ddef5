"""The HTTP interface of `streamcl serve`, described by OpenAPI; tests compare it with what is answered."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from streamcl import __version__
from streamcl.events import ForgetRequest
from streamcl.serving.problems import PROBLEM
from streamcl.serving.schemas import (
    MAX_REQUEST_IMAGES,
    MAX_TOP_K,
    RECEIPT_SCHEMA,
    ErrorDocument,
    PredictResponse,
    Readiness,
    RequestEntry,
    RequestList,
    StatusResponse,
)

RESPONSES = (PredictResponse, StatusResponse, Readiness, RequestEntry, RequestList, ErrorDocument)
DESCRIPTION = "Predictions by the model that a run has learned so far, and requests to forget."
_IMAGE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": _IMAGE, "minItems": 1, "maxItems": MAX_REQUEST_IMAGES}
    },
    "required": ["image"],
}


def openapi_document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    models = [(each, "serialization") for each in RESPONSES] + [(ForgetRequest, "validation")]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {"title": "streamcl serve", "version": __version__, "description": DESCRIPTION},
        "paths": _paths(),
        "components": {"schemas": schemas["$defs"]},
    }


def _paths() -> dict[str, Any]:
    return {
        "/v1/predict": {
            "post": {
                "summary": "The classes of one image or of several.",
                "operationId": "predict",
                "parameters": [
                    {
                        "name": "top_k",
                        "in": "query",
                        "description": "Classes to return for each image.",
                        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 1},
                    }
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        "image/*": {"schema": _IMAGE},
                        "application/octet-stream": {"schema": _IMAGE},
                        "multipart/form-data": {"schema": _FORM},
                    },
                },
                "responses": {
                    "200": _reply("PredictResponse", "The predictions, in the order of the images."),
                    **_problems(400, 403, 408, 413, 422, 429, 503),
                },
            }
        },
        "/v1/status": _read("status", "The state of server and run.", "StatusResponse"),
        "/v1/forget": {
            "post": {
                "summary": "A request to forget; durable when it is answered.",
                "operationId": "forget",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _ref("ForgetRequest")}},
                },
                "responses": {
                    "202": _reply("RequestEntry", "The request is in the ledger."),
                    **_problems(400, 403, 408, 413, 415, 422),
                },
            }
        },
        "/v1/receipts": _read("receipts", "All requests to forget, with their state.", "RequestList"),
        "/v1/receipts/{request}": {
            "get": {
                "summary": "The receipt of a request's last attempt.",
                "operationId": "receipt",
                "parameters": [
                    {"name": "request", "in": "path", "required": True, "schema": {"type": "string"}}
                ],
                "responses": {
                    "200": {
                        "description": "The receipt.",
                        "content": {"application/json": {"schema": RECEIPT_SCHEMA}},
                    },
                    **_problems(403, 404, 422),
                },
            }
        },
        "/health/live": {
            "get": {
                "summary": "Whether the server answers at all.",
                "operationId": "live",
                "responses": {"200": {"description": "It does."}, **_problems(403)},
            }
        },
        "/health/ready": {
            "get": {
                "summary": "Whether predictions are answered: a predictor has predicted an image, and lives.",
                "operationId": "ready",
                "responses": {
                    "200": _reply("Readiness", "Ready."),
                    "503": _reply("Readiness", "Not ready."),
                    **_problems(403),
                },
            }
        },
        "/metrics": _text("metrics", "The metrics for Prometheus.", "text/plain"),
        "/openapi.json": _text("openapi", "This document.", "application/json"),
    }


def _read(name: str, summary: str, schema: str) -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "operationId": name,
            "responses": {"200": _reply(schema, summary), **_problems(403)},
        }
    }


def _text(name: str, summary: str, media: str) -> dict[str, Any]:
    content = {media: {"schema": {"type": "string" if media == "text/plain" else "object"}}}
    return {
        "get": {
            "summary": summary,
            "operationId": name,
            "responses": {"200": {"description": summary, "content": content}, **_problems(403)},
        }
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _reply(schema: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


_MEANINGS = {
    400: "The request is not as described here.",
    403: "It was sent from a page of another site, or to another name of this host.",
    404: "There is none.",
    408: "The body was too slow.",
    413: "The body is too large.",
    415: "The body has another content type.",
    422: "The image cannot be read, or the request is not valid.",
    429: "The queue is full; Retry-After says when to come again.",
    503: "No predictor is there; Retry-After says when to come again.",
}


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(each): {
            "description": _MEANINGS[each],
            "content": {PROBLEM: {"schema": _ref("ErrorDocument")}},
        }
        for each in statuses
    }

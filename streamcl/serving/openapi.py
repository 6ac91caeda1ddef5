"""The HTTP interface of `streamcl serve`, described by OpenAPI; tests compare it with what is answered."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from streamcl import __version__
from streamcl.events import ForgetRequest
from streamcl.serving.label_studio import label_studio_openapi as label_studio
from streamcl.serving.open_inference import inference_openapi as inference
from streamcl.serving.problems import PROBLEM
from streamcl.serving.route_table import EVENTS, ROUTES, RouteRule
from streamcl.serving.schemas import (
    MAX_DEADLINE_MS,
    MAX_REQUEST_IMAGES,
    MAX_TOP_K,
    RECEIPT_SCHEMA,
    ErrorDocument,
    LabelsAccepted,
    LabelsRequest,
    PredictResponse,
    Readiness,
    Ready,
    RecordFields,
    RecordsAccepted,
    RequestEntry,
    RequestList,
    StatusResponse,
)

RESPONSES = (
    *(PredictResponse, StatusResponse, Ready, Readiness, RequestEntry, RequestList),
    *(RecordsAccepted, LabelsAccepted, ErrorDocument),
    *inference.INFERENCE_RESPONSES,
    *label_studio.BACKEND_RESPONSES,
)
REQUESTS = (
    *(ForgetRequest, LabelsRequest, RecordFields),
    *(*inference.INFERENCE_REQUESTS, *label_studio.BACKEND_REQUESTS),
)
DESCRIPTION = "Predictions by the model that a run has learned so far, and requests to forget."
_IMAGE = {"type": "string", "format": "binary"}
_IMAGES: dict[str, Any] = {"type": "array", "items": _IMAGE, "minItems": 1, "maxItems": MAX_REQUEST_IMAGES}
_FORM = {"type": "object", "properties": {"image": _IMAGES}, "required": ["image"]}
_RECORDS_FORM = {
    "type": "object",
    "properties": {
        "image": _IMAGES,
        "records": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": "A list of objects, one for each image in their order: RecordFields.",
        },
    },
    "required": ["image"],
}


def openapi_document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    models = [(each, "serialization") for each in RESPONSES] + [(each, "validation") for each in REQUESTS]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {"title": "streamcl serve", "version": __version__, "description": DESCRIPTION},
        "paths": _with_access(_all_paths()),
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"token": _TOKEN}},
    }


def _all_paths() -> dict[str, Any]:
    backend = label_studio.backend_paths(_problems(400, 408, 409, 413, 415, 422, 503))
    return {**_paths(), **inference.inference_paths(), **backend}


_TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token of `streamcl token add`. A server on a loopback address needs none unless it was "
    "started with --require-tokens. `x-roles` of an operation are the roles that may use it.",
}


def _with_access(paths: dict[str, Any]) -> dict[str, Any]:
    """Return the operations with the roles that the table of routes gives them."""
    for rule in ROUTES:
        operation = paths[rule.path][rule.method.lower()]
        operation |= _access(rule)
        problems = inference.inference_problems if rule.path.startswith("/v2") else _problems
        operation["responses"] = {**problems(401, 403, 429), **operation["responses"]}
    return paths


def _access(rule: RouteRule) -> dict[str, Any]:
    if None in rule.roles:
        return {"security": [], "x-roles": list(rule.role_names)}
    return {"security": [{"token": []}, {}], "x-roles": list(rule.role_names)}


def _paths() -> dict[str, Any]:
    return {
        "/v1/predict": {
            "post": {
                "summary": "The classes of one image or of several.",
                "operationId": "predict",
                "parameters": [
                    _number("top_k", "Classes to return for each image.", MAX_TOP_K, default=1),
                    _number("deadline_ms", "To predict in, by fewer blocks if need be.", MAX_DEADLINE_MS),
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
        "/v1/records": {
            "post": {
                "summary": "Images for the stream, of a run whose source is push; durable when answered.",
                "operationId": "records",
                "parameters": [_field(name) for name in ("id", "label", "domain", "privacy")],
                "requestBody": {
                    "required": True,
                    "content": {
                        "image/*": {"schema": _IMAGE},
                        "application/octet-stream": {"schema": _IMAGE},
                        "multipart/form-data": {"schema": _RECORDS_FORM},
                    },
                },
                "responses": {
                    "202": _reply("RecordsAccepted", "The records are in the spool."),
                    **_problems(400, 403, 408, 409, 413, 422, 429, 503),
                },
            }
        },
        "/v1/labels": {
            "post": {
                "summary": "Labels of records that have come before: late, corrected or withdrawn; durable.",
                "operationId": "labels",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _ref("LabelsRequest")}},
                },
                "responses": {
                    "202": _reply("LabelsAccepted", "The labels are in the stream."),
                    **_problems(400, 403, 408, 409, 413, 415, 422, 429, 503),
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
                    "200": _reply("Readiness", "Ready.", "Ready"),
                    "503": _reply("Readiness", "Not ready.", "Ready"),
                    **_problems(403),
                },
            }
        },
        "/metrics": _text("metrics", "The metrics for Prometheus.", "text/plain"),
        "/openapi.json": _text("openapi", "This document.", "application/json"),
        EVENTS: _of_page(
            "events", "The live page and its changes, as server-sent events.", "text/event-stream", 503
        ),
        "/": _of_page("page", "The live page.", "text/html"),
        "/page/{name}": _of_page("page_file", "A file of the live page.", "text/css", 404),
        "/page/charts/{name}.svg": _of_page("page_chart", "A chart of the live page.", "image/svg+xml", 404),
        "/page/images/{number}": _of_page("page_image", "A recent image.", "image/*", 404),
    }


def _of_page(name: str, summary: str, media: str, *problems: int) -> dict[str, Any]:
    """Return the operation of a route of the live page, whose path names its parameter."""
    read = _text(name, summary, media)
    read["get"]["responses"]["200"]["content"][media] = {"schema": {"type": "string"}}
    read["get"]["responses"] |= _problems(*problems)
    if parameter := {"page_file": "name", "page_chart": "name", "page_image": "number"}.get(name):
        read["get"]["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return read


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


def _number(name: str, description: str, maximum: int, **more: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": maximum, **more}
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _field(name: str) -> dict[str, Any]:
    """Return a field of a record as a parameter."""
    schema = RecordFields.model_json_schema()["properties"][name]
    return {"name": name, "in": "query", "description": schema["description"], "schema": schema}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _reply(schema: str, description: str, without_token: str | None = None) -> dict[str, Any]:
    """Return a JSON response. without_token: the schema of those who send no token."""
    found: dict[str, Any] = _ref(schema)
    if without_token is not None:
        found = {"anyOf": [_ref(schema), _ref(without_token)]}
    return {"description": description, "content": {"application/json": {"schema": found}}}


_MEANINGS = {
    400: "The request is not as described here.",
    401: "There is no token, or it is not valid.",
    403: "The token's role may not do this, or it was sent from a page of another site or to another name.",
    404: "There is none.",
    408: "The body was too slow.",
    409: "This run does not take them; the answer says why.",
    413: "The body is too large.",
    415: "The body has another content type.",
    422: "An image cannot be read, or the request is not valid.",
    429: "The queue is full, or too many requests or wrong tokens came; Retry-After says when to come again.",
    503: "The process that does it is not there; Retry-After says when to come again.",
}


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(each): {
            "description": _MEANINGS[each],
            "content": {PROBLEM: {"schema": _ref("ErrorDocument")}},
        }
        for each in statuses
    }

"""The part of the OpenAPI document that describes the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from streamcl.serving.open_inference.inference_protocol import (
    HEADER_LENGTH,
    InferenceError,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    ServerMetadata,
)

INFERENCE_RESPONSES = (ServerMetadata, ModelMetadata, InferenceResponse, InferenceError)
INFERENCE_REQUESTS = (InferenceRequest,)
_BYTES = {"type": "string", "format": "binary"}
_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"


def inference_paths() -> dict[str, Any]:
    """Return the operations by path and method."""
    return {
        "/v2": _read("v2_server", "The server.", "ServerMetadata"),
        "/v2/health/live": _read("v2_live", "Whether the server answers at all.", None),
        "/v2/health/ready": _read("v2_ready", "Whether predictions are answered.", None, 503),
        **_of_model(_MODEL, "v2_model", "v2"),
        **_of_model(_VERSION, "v2_version", "v2_version"),
    }


def inference_problems(*statuses: int) -> dict[str, Any]:
    """Return the responses of errors, which are objects with "error"."""
    return {
        str(each): {"description": "See the message.", "content": _json("InferenceError")}
        for each in statuses
    }


def _of_model(path: str, name: str, verb: str) -> dict[str, Any]:
    parameters = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
        for each in ("name", "version")
        if f"{{{each}}}" in path
    ]
    found = {
        path: _read(name, "The inputs and outputs of the model.", "ModelMetadata", 404),
        f"{path}/ready": _read(f"{name}_ready", "Whether predictions are answered.", None, 404, 503),
        f"{path}/infer": {"post": _infer(f"{verb}_infer")},
    }
    for operations in found.values():
        for operation in operations.values():
            operation["parameters"] = [*parameters, *operation.get("parameters", ())]
    return found


def _infer(name: str) -> dict[str, Any]:
    return {
        "summary": "The classes of images; the tensors in JSON, or after it in binary form.",
        "operationId": name,
        "parameters": [
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "description": "Bytes of the JSON, where tensors in binary form follow it.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {**_json("InferenceRequest"), "application/octet-stream": {"schema": _BYTES}},
        },
        "responses": {
            "200": {
                "description": "The outputs, in the order in which they were asked for.",
                "content": {**_json("InferenceResponse"), "application/octet-stream": {"schema": _BYTES}},
            },
            **inference_problems(400, 404, 408, 413, 415, 422, 503),
        },
    }


def _read(name: str, summary: str, schema: str | None, *problems: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}} if schema is None else _json(schema)
    return {
        "get": {
            "summary": summary,
            "operationId": name,
            "responses": {
                "200": {"description": summary, "content": content},
                **{
                    str(each): {"description": "Not ready.", "content": content}
                    if each == 503
                    else inference_problems(each)[str(each)]
                    for each in problems
                },
            },
        }
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

"""Errors as JSON problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from streamcl.serving.schemas import ErrorDocument

PROBLEM = "application/problem+json"


def problem_response(status: int, detail: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem document with the status's own title."""
    document = ErrorDocument(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(document.model_dump_json(), status, dict(headers or {}), PROBLEM)

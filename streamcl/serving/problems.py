"""Errors as JSON problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streamcl.serving.open_inference.inference_protocol import InferenceError
from streamcl.serving.schemas import ErrorDocument

PROBLEM = "application/problem+json"


class ProblemResponse(Response):
    """A problem document; below /v2 an object with "error" instead, as the protocol has it there."""

    def __init__(self, document: ErrorDocument, headers: Mapping[str, str]) -> None:
        super().__init__(document.model_dump_json(), document.status, dict(headers), PROBLEM)
        error = InferenceError(error=document.detail or document.title).model_dump_json()
        self._below_v2 = Response(error, document.status, dict(headers), "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if scope["path"].startswith("/v2"):
            await self._below_v2(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def problem_response(status: int, detail: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem document with the status's own title."""
    document = ErrorDocument(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return ProblemResponse(document, headers or {})

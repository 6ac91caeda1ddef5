"""The HTTP interface of a run that is served, as an ASGI application; it imports no torch."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streamcl.errors import BadRecord, ForgettingError, SourceError, SpoolFull
from streamcl.factory.inbox import NotAccepted
from streamcl.serving.access.access_control import (
    RULE,
    AccessControl,
    AccessOptions,
    caller_of,
    note_forget_request,
)
from streamcl.serving.access.access_log import AccessLog
from streamcl.serving.access.limits import BodyLimits, KnownHosts
from streamcl.serving.access.security_headers import SECURITY_HEADERS, SecurityHeaders
from streamcl.serving.bodies import (
    checked,
    deadline_of,
    images_of,
    json_of,
    pushed_records_of,
    top_k_of,
)
from streamcl.serving.label_studio.label_studio import LabelStudioServer
from streamcl.serving.label_studio.label_studio_routes import LabelStudioRoutes
from streamcl.serving.metrics import ServerMetrics
from streamcl.serving.open_inference.inference_routes import InferenceRoutes
from streamcl.serving.openapi import openapi_document
from streamcl.serving.page.routes import PageRoutes, receipt_page, wants_page
from streamcl.serving.page.served import served_feed
from streamcl.serving.prediction.batching import NoPredictor, QueueFull
from streamcl.serving.problems import problem_response
from streamcl.serving.route_table import EVENTS, ROUTES
from streamcl.serving.schemas import LabelsRequest, Ready
from streamcl.serving.sent_status import SentStatus
from streamcl.serving.service import ServingService

MAX_BODY_BYTES = 64 << 20
BODY_SECONDS = 30.0
RETRY_AFTER = {"Retry-After": "1"}


def build_app(
    service: ServingService,
    access: AccessOptions,
    *,
    label_studio: LabelStudioServer | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_seconds: float = BODY_SECONDS,
) -> Starlette:
    """Return the application over a service, whose predictors live as long as it does.

    Its `state.end_updates` ends the updates of live pages, which go on by themselves.

    Args:
        service: predicts, and knows the run.
        access: who may use it.
        label_studio: from where images of tasks are fetched; by default from nowhere.
        max_body_bytes: the largest body accepted.
        body_seconds: the longest time in which a body may come.
    """
    routes, feed = _Routes(service, ServerMetrics()), served_feed(service)
    groups = (
        routes,
        InferenceRoutes(service, routes.server_metrics),
        LabelStudioRoutes(service, routes.server_metrics, label_studio),
        PageRoutes(feed, service.recent),
    )
    log = None if access.log is None else AccessLog(access.log)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001 - given by Starlette
        service.pool.start()
        try:
            yield
        finally:
            await feed.close()
            await service.pool.close()
            if log is not None:
                log.flush()

    app = Starlette(
        routes=[Route(each.path, _endpoint(each.name, *groups), methods=[each.method]) for each in ROUTES],
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(Measured, metrics=routes.server_metrics),
            Middleware(KnownHosts, names=access.public_names, any_address=access.required),
            Middleware(AccessControl, options=access, log=log),
            Middleware(BodyLimits, max_bytes=max_body_bytes, seconds=body_seconds),
        ],
        exception_handlers={
            HTTPException: _http_problem,
            QueueFull: _queue_full,
            NoPredictor: _no_predictor,
            ForgettingError: _unprocessable,
            BadRecord: _unprocessable,
            NotAccepted: _not_taken,
            SpoolFull: _queue_full,
            SourceError: _no_learner,
            Exception: _fault,
        },
        lifespan=lifespan,
    )
    app.state.end_updates = feed.close
    return app


def _endpoint(name: str, *groups: object) -> Callable[[Request], Awaitable[Response]]:
    """Return the function of that name, which one of the groups has."""
    (found,) = (getattr(group, name) for group in groups if hasattr(group, name))
    endpoint: Callable[[Request], Awaitable[Response]] = found
    return endpoint


class _Routes:
    """The functions behind the routes, with the names that the table of routes gives them."""

    def __init__(self, service: ServingService, metrics: ServerMetrics) -> None:
        self._service = service
        self.server_metrics = metrics
        pool, batcher = service.pool, service.batcher
        metrics.gauge("waiting_images", "Images in the queue.", lambda: len(batcher))
        metrics.gauge("predictors_ready", "Predictors that have predicted an image.", lambda: pool.ready)
        metrics.counter("predictor_restarts_total", "Predictors that were replaced.", lambda: pool.restarts)
        metrics.counter(
            "missed_deadlines_total",
            "Requests answered after their deadline.",
            lambda: service.missed_deadlines,
        )
        metrics.gauge("learner_up", "1 while the learner lives.", service.learner_alive)
        metrics.gauge("model_offset_records", "Records that the model in use has read.", self._offset)
        metrics.gauge(
            "source_lag_records", "Records that wait at the source; NaN: it does not say.", self._lag
        )

    async def predict(self, request: Request) -> Response:
        """Predict the image that is the body, or those of a multipart form."""
        top_k, seconds = top_k_of(request), deadline_of(request)
        if len(self._service.batcher) >= self._service.batcher.capacity:
            raise QueueFull("the queue is full")  # before the body is read
        images = await images_of(request)
        response = await self._service.predict(images, top_k, seconds)
        self.server_metrics.images([each.exit for each in response.predictions])
        only = response.predictions[0]
        if len(images) == 1 and only.error is not None:
            return problem_response(422, only.error)
        return _json(response)

    async def status(self, request: Request) -> Response:  # noqa: ARG002
        """Return the state of server and run."""
        return _json(await run_in_threadpool(self._service.status))

    async def forget(self, request: Request) -> Response:
        """Submit a request to forget, a JSON object."""
        fields = await json_of(request, "a request to forget")
        entry = await run_in_threadpool(self._service.forget, fields)
        note_forget_request(request, entry.id)
        return _json(entry, 202)

    async def records(self, request: Request) -> Response:
        """Put images into the stream: the body, or those of a multipart form."""
        records = await pushed_records_of(request)
        return _json(await run_in_threadpool(self._service.add_records, records), 202)

    async def labels(self, request: Request) -> Response:
        """Put labels of earlier records into the stream, a JSON object."""
        fields = await json_of(request, "a list of labels")
        labels = checked(LabelsRequest, fields).labels
        return _json(await run_in_threadpool(self._service.add_labels, labels), 202)

    async def receipts(self, request: Request) -> Response:  # noqa: ARG002
        """List the requests to forget."""
        return _json(await run_in_threadpool(self._service.requests))

    async def receipt(self, request: Request) -> Response:
        """Return one receipt, as a page where a browser asks for one."""
        name = request.path_params["request"]
        if wants_page(request):
            page = await run_in_threadpool(self._service.receipt_page, name)
            if page is not None:
                note_forget_request(request, name)
                return receipt_page(page)
        found = await run_in_threadpool(self._service.receipt, name)
        if found is None:
            raise HTTPException(404, "there is no receipt of such a request")
        note_forget_request(request, name)
        return JSONResponse(found, headers={"Vary": "Accept"})

    async def live(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200: the server answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Return 200 where a predictor has predicted, else 503; details only to those who may read them."""
        readiness = await run_in_threadpool(self._service.readiness)
        caller = caller_of(request)
        known = caller.trusted or caller.role is not None
        return _json(readiness if known else Ready(ready=readiness.ready), 200 if readiness.ready else 503)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Return the metrics."""
        text = await run_in_threadpool(self.server_metrics.exposition)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        """Return the description of this interface."""
        return JSONResponse(openapi_document())

    def _lag(self) -> float:
        lag = self._service.lag()
        return math.nan if lag is None else lag

    def _offset(self) -> float:
        model = self._service.pool.model
        return 0 if model is None else model.offset


class Measured:
    """Counts answered requests by route and status, and times them."""

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, noted = time.perf_counter(), SentStatus(send)
        try:
            await self._app(scope, receive, noted)
        finally:
            rule = scope.get(RULE)
            path, method = ("none", "any") if rule is None else (rule.path, rule.method)
            seconds = None if path == EVENTS else time.perf_counter() - began  # as long as somebody looks
            self._metrics.request(path, method, noted.status, seconds)


def _json(content: BaseModel, status: int = 200) -> Response:
    return Response(content.model_dump_json(by_alias=True), status, media_type="application/json")


async def _http_problem(request: Request, error: Any) -> Response:  # noqa: ARG001
    return problem_response(error.status_code, error.detail, error.headers)


async def _queue_full(request: Request, error: Any) -> Response:  # noqa: ARG001
    return problem_response(429, str(error), RETRY_AFTER)


async def _no_predictor(request: Request, error: Any) -> Response:  # noqa: ARG001
    return problem_response(503, str(error), RETRY_AFTER)


async def _no_learner(request: Request, error: Any) -> Response:  # noqa: ARG001
    return problem_response(503, str(error), RETRY_AFTER)


async def _not_taken(request: Request, error: Any) -> Response:  # noqa: ARG001
    return problem_response(409, str(error))


async def _unprocessable(request: Request, error: Any) -> Response:  # noqa: ARG001
    hint = f"; {error.hint}" if error.hint else ""
    return problem_response(422, f"{error}{hint}")


async def _fault(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the server logs it
    return problem_response(500, "the server has a fault; its log says which", SECURITY_HEADERS)

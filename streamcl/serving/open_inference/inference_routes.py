"""The routes of the Open Inference Protocol: /v2, health, metadata and inference."""

from __future__ import annotations

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from streamcl import __version__
from streamcl.serving.bodies import checked
from streamcl.serving.metrics import ServerMetrics
from streamcl.serving.open_inference.inference_protocol import (
    HEADER_LENGTH,
    InferenceRequest,
    MalformedTensor,
    ModelMetadata,
    ServerMetadata,
    images_of_tensor,
    response_body,
    split_body,
)
from streamcl.serving.prediction.batching import QueueFull
from streamcl.serving.service import ServingService


class InferenceRoutes:
    """The functions behind the routes; the model has the name of the run."""

    def __init__(self, service: ServingService, metrics: ServerMetrics) -> None:
        self._service, self._metrics = service, metrics

    async def v2_server(self, request: Request) -> Response:  # noqa: ARG002
        """Return the name and version of the server."""
        return _json(ServerMetadata(version=__version__))

    async def v2_live(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200: the server answers."""
        return JSONResponse({"live": True})

    async def v2_ready(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200 where a predictor has predicted, else 503."""
        ready = (await run_in_threadpool(self._service.readiness)).ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def v2_model(self, request: Request) -> Response:
        """Return the inputs and outputs of the model."""
        self._check_model(request)
        model = self._service.pool.model
        return _json(
            ModelMetadata(name=self._service.name, versions=() if model is None else (str(model.number),))
        )

    async def v2_model_ready(self, request: Request) -> Response:
        """Return 200 where a predictor has predicted, else 503."""
        self._check_model(request)
        ready = (await run_in_threadpool(self._service.readiness)).ready
        return JSONResponse({"name": self._service.name, "ready": ready}, 200 if ready else 503)

    async def v2_infer(self, request: Request) -> Response:
        """Predict images."""
        self._check_model(request)
        if len(self._service.batcher) >= self._service.batcher.capacity:
            raise QueueFull("the queue is full")  # before the body is read
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "compressed requests are not read")
        body, header_length = await request.body(), request.headers.get(HEADER_LENGTH)
        inference, images = await run_in_threadpool(_parsed, body, header_length)
        found = await self._service.predict(images, inference.parameters.top_k)
        self._metrics.images([each.exit for each in found.predictions])
        for place, each in enumerate(found.predictions):
            if each.error is not None:
                raise HTTPException(422, f"image {place}: {each.error}")
        self._check_version(request, found.model.version)
        answer, length = response_body(self._service.name, inference, found)
        if length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    v2_version, v2_version_ready, v2_version_infer = v2_model, v2_model_ready, v2_infer

    def _check_model(self, request: Request) -> None:
        """Raise HTTPException 404 for another model, or a version that is not in use."""
        if request.path_params["name"] != self._service.name:
            raise HTTPException(404, f"the model is {self._service.name!r}")
        model = self._service.pool.model
        self._check_version(request, None if model is None else model.number)

    def _check_version(self, request: Request, version: int | None) -> None:
        given = request.path_params.get("version")
        if given is not None and given != str(version):
            raise HTTPException(404, f"the version in use is {version}; others are not kept")


def _parsed(body: bytes, header_length: str | None) -> tuple[InferenceRequest, list[bytes]]:
    """Return a request with its images. Raise HTTPException 400 or 422."""
    try:
        fields, binary = split_body(body, header_length)
        inference = checked(InferenceRequest, fields)
        return inference, images_of_tensor(inference.inputs[0], binary)
    except MalformedTensor as error:
        raise HTTPException(400, str(error)) from None


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(), media_type="application/json")

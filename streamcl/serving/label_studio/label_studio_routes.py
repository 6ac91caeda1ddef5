"""The routes of a Label Studio ML backend: health, setup, predictions and the webhook."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from streamcl.errors import BadRecord
from streamcl.serving.bodies import checked, json_of
from streamcl.serving.label_studio.annotation_labels import take_annotations
from streamcl.serving.label_studio.label_studio import (
    BackendHealth,
    ChoicesControl,
    LabellingTask,
    LabelStudioServer,
    SetupAccepted,
    SetupRequest,
    TaskPrediction,
    TaskPredictions,
    TasksRequest,
    choices_control,
    image_of_task,
)
from streamcl.serving.label_studio.label_studio_events import AnnotationEvent, changes_of
from streamcl.serving.metrics import ServerMetrics
from streamcl.serving.service import ServingService

TASKS_AT_ONCE = 8
"""Tasks whose images are fetched and predicted together."""


class LabelStudioRoutes:
    """The functions behind the routes. server: from which images are fetched; None is none."""

    def __init__(
        self, service: ServingService, metrics: ServerMetrics, server: LabelStudioServer | None
    ) -> None:
        self._service, self._metrics, self._server = service, metrics, server

    async def backend_health(self, request: Request) -> Response:  # noqa: ARG002
        """Return 200: the server answers."""
        return _json(BackendHealth())

    async def backend_setup(self, request: Request) -> Response:
        """Return the model's version. Raise BadRecord where the project has no choices for an image."""
        choices_control(checked(SetupRequest, await json_of(request, "a project")).label_config)
        model = self._service.pool.model
        return _json(SetupAccepted(model_version="none" if model is None else str(model.number)))

    async def backend_predict(self, request: Request) -> Response:
        """Predict tasks."""
        asked = checked(TasksRequest, await json_of(request, "a list of tasks"))
        control = choices_control(asked.label_config)
        found: list[TaskPrediction] = []
        for start in range(0, len(asked.tasks), TASKS_AT_ONCE):
            found += await self._predict(asked.tasks[start : start + TASKS_AT_ONCE], control)
        return _json(TaskPredictions(results=tuple(found)))

    async def backend_webhook(self, request: Request) -> Response:
        """Take the labels of annotations, as POST /v1/labels does, and take back those of deleted ones."""
        event = checked(AnnotationEvent, await json_of(request, "an event"))
        changes = list(changes_of(event, request.query_params.get("choices")))
        return _json(await run_in_threadpool(take_annotations, self._service, changes))

    async def _predict(self, tasks: Sequence[LabellingTask], control: ChoicesControl) -> list[TaskPrediction]:
        images = await asyncio.gather(*(self._image(task, control.image_key) for task in tasks))
        readable = [each for each in images if each]
        if not readable:
            return [TaskPrediction(model_version="none") for _ in tasks]
        found = await self._service.predict(readable, 1)
        self._metrics.images([each.exit for each in found.predictions])
        version, results = str(found.model.version), iter(found.predictions)
        return [
            control.result_of(next(results), version) if image else TaskPrediction(model_version=version)
            for image in images
        ]

    async def _image(self, task: LabellingTask, key: str) -> bytes | None:
        try:
            return await run_in_threadpool(image_of_task, task, key, self._server)
        except BadRecord:
            return None


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(), media_type="application/json")

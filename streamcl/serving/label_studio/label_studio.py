"""Label Studio's view of a run: tasks in, predicted choices out."""

from __future__ import annotations

import base64
import binascii
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import unquote_to_bytes, urljoin, urlsplit
from xml.etree import ElementTree

from pydantic import Field

from streamcl.errors import BadRecord
from streamcl.serving.schemas import ForeignMessage, ImageResult

MAX_TASKS = 1000
MAX_CONFIG_CHARACTERS = 1 << 18
FETCH_SECONDS = 15.0
MAX_IMAGE_BYTES = 64 << 20


class LabellingTask(ForeignMessage):
    """A task. data: its image, and where the record has another id than "task-<id>", that as "id"."""

    id: int | None = None
    data: dict[str, Any] = Field(default_factory=dict)

    @property
    def record(self) -> str:
        """The id of the task's record: `id` of its data, else that of the source `label_studio`."""
        given = self.data.get("id")
        if isinstance(given, str | int) and not isinstance(given, bool) and str(given):
            return str(given)
        if self.id is None:
            raise BadRecord("the task has no id")
        return f"task-{self.id}"


class SetupRequest(ForeignMessage):
    """The labelling configuration of a project, as XML."""

    label_config: str = Field("", alias="schema", max_length=MAX_CONFIG_CHARACTERS)


class SetupAccepted(ForeignMessage):
    """The version of the model; "none" before the first."""

    model_version: str


class TasksRequest(ForeignMessage):
    """Tasks to predict."""

    tasks: tuple[LabellingTask, ...] = Field(max_length=MAX_TASKS)
    label_config: str = Field("", max_length=MAX_CONFIG_CHARACTERS)


class TaskPrediction(ForeignMessage):
    """The prediction for one task; `result` is empty where there is none."""

    result: tuple[dict[str, Any], ...] = ()
    score: float = 0.0
    model_version: str


class TaskPredictions(ForeignMessage):
    """The predictions, in the order of the tasks."""

    results: tuple[TaskPrediction, ...]


class BackendHealth(ForeignMessage):
    """The server is there."""

    status: Literal["UP"] = "UP"
    model_class: str = "streamcl"


@dataclass(frozen=True, slots=True)
class ChoicesControl:
    """The choices of a labelling configuration.

    name: theirs. image_name: of the image that they are for. image_key: of the image in a task's data.
    values: the choices; none where tasks bring their own.
    """

    name: str
    image_name: str
    image_key: str
    values: frozenset[str]

    def result_of(self, found: ImageResult, model_version: str) -> TaskPrediction:
        """Return a prediction as Label Studio has it; it is empty where the class is none of the choices."""
        if found.label is None or (self.values and found.label not in self.values):
            return TaskPrediction(model_version=model_version)
        part = {
            "from_name": self.name,
            "to_name": self.image_name,
            "type": "choices",
            "value": {"choices": [found.label]},
            "score": found.confidence,
        }
        return TaskPrediction(result=(part,), score=found.confidence, model_version=model_version)


def choices_control(label_config: str) -> ChoicesControl:
    """Return the first choices for an image. Raise BadRecord where the configuration has none."""
    try:
        root = ElementTree.fromstring(label_config)
    except (ElementTree.ParseError, ValueError):
        raise BadRecord("the labelling configuration is not XML") from None
    images = {each.get("name"): each.get("value", "") for each in root.iter("Image")}
    for each in root.iter("Choices"):
        name, image = each.get("name"), each.get("toName")
        if name and image in images and images[image].startswith("$"):
            values = frozenset(choice.get("value", "") for choice in each.iter("Choice"))
            return ChoicesControl(name, str(image), images[image].removeprefix("$"), values)
    raise BadRecord('the labelling configuration has no <Choices> for an <Image value="$...">')


@dataclass(frozen=True, slots=True)
class LabelStudioServer:
    """The one server from which images of tasks are fetched; no other address is asked for.

    url: its base. token: its API key; None where it needs none.
    """

    url: str
    token: str | None = None

    def fetch(self, place: str) -> bytes:
        """Return an image of this server. Raise BadRecord for another one, a redirection, or a failure."""
        address, base = urljoin(self.url, place), urlsplit(self.url)
        found = urlsplit(address)
        if (found.scheme, found.netloc) != (base.scheme, base.netloc):
            raise BadRecord("the image of a task lies on another server than --label-studio names")
        headers = {} if self.token is None else {"Authorization": f"Token {self.token}"}
        try:
            request = urllib.request.Request(address, headers=headers)
            with _OPENER.open(request, timeout=FETCH_SECONDS) as answer:
                data: bytes = answer.read(MAX_IMAGE_BYTES + 1)
        except (OSError, ValueError, HTTPException) as error:
            raise BadRecord(f"the image of a task cannot be fetched: {error}") from error
        return data


def image_of_task(task: LabellingTask, key: str, server: LabelStudioServer | None) -> bytes:
    """Return the encoded image of a task, from its data URI or from Label Studio. Raise BadRecord."""
    place = task.data.get(key)
    if not isinstance(place, str) or not place:
        raise BadRecord(f"the task has no {key!r} among its data")
    if place.startswith("data:"):
        return _data_uri(place)
    if server is None:
        raise BadRecord("images of tasks are fetched where --label-studio names the server")
    return server.fetch(place)


def _data_uri(place: str) -> bytes:
    head, _, body = place.partition(",")
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError):
        raise BadRecord("the data URI of a task is no base64") from None


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """Lets a redirection be an error: it could lead anywhere in this network."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return None: do not follow."""


_OPENER = urllib.request.build_opener(_NoRedirections, urllib.request.ProxyHandler({}))


def server_from(url: str | None, environment: Mapping[str, str]) -> LabelStudioServer | None:
    """Return the server of that address, with the API key in LABEL_STUDIO_API_KEY; None without one."""
    return None if url is None else LabelStudioServer(url, environment.get("LABEL_STUDIO_API_KEY"))

"""The JSON objects of the HTTP interface: sent by the server, read by the client, described by OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamcl.requests.status import RequestStatus

Learning: TypeAlias = Literal["running", "finished", "stopped"]
"""running: the stream goes on; finished: it has ended; stopped: the learner's process has ended."""


MAX_REQUEST_IMAGES = 64
"""Of one request; more go into several requests, so that none keeps the others waiting."""
MAX_TOP_K = 100
MAX_DEADLINE_MS = 60_000
MAX_LABELS = 1000
"""Of one request."""


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class ForeignMessage(BaseModel):
    """A message of somebody else's protocol: fields that are not known here are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelVersion(_Schema):
    """The version of a model: its snapshot's number, and how far the stream was learned then."""

    version: int = Field(description="Number of the snapshot; never repeated in a run directory.")
    offset: int = Field(description="Records of the stream that had been read.")
    step: int = Field(description="Learning steps that had been made.")
    published: float = Field(description="When it was published, in seconds since the epoch.")


class RankedClass(_Schema):
    """A class and its probability."""

    label: Annotated[str, Field(alias="class")]
    confidence: float


class ImageResult(_Schema):
    """The prediction for one image, in the order of the request."""

    label: str | None = Field(alias="class", description="null: the model knows no class, or see 'error'.")
    confidence: float = Field(description="Its probability, from 0 to 1.")
    top: tuple[RankedClass, ...] = Field(description="The most probable classes, 'top_k' at most.")
    exit: int | None = Field(
        None,
        description="With a deadline: the exit of the backbone that gave the prediction, from 1; null where "
        "all blocks did, as there was no deadline or the learner has no exits.",
    )
    work: float | None = Field(None, description="The share of the work of all blocks up to that exit.")
    error: str | None = Field(None, description="Why this image could not be read.")


class PredictResponse(_Schema):
    """The predictions for the images of a request, all by one version of the model or by two in a row."""

    model: ModelVersion = Field(description="The oldest version that predicted any of the images.")
    predictions: tuple[ImageResult, ...]


class PredictorCounts(_Schema):
    """The predictor processes: those that have predicted an image, those wanted, those replaced so far."""

    ready: int
    configured: int
    restarts: int


class Ready(_Schema):
    """Whether predictions are answered."""

    ready: bool


class Readiness(Ready):
    """Whether predictions are answered, and whether the stream is still learned."""

    learning: Learning
    predictors: PredictorCounts
    model: ModelVersion | None


class StatusResponse(Readiness):
    """The state of the server and of its run."""

    run: str = Field(description="The name of the run.")
    newest: ModelVersion | None = Field(description="The newest version published; 'model' predicted last.")
    waiting: int = Field(description="Images in the queue.")
    capacity: int = Field(description="Images that may wait in the queue.")
    lag: int | None = Field(None, description="Records that wait at the source; null where it does not say.")
    streamcl: str = Field(description="The version of streamcl.")


class RequestEntry(_Schema):
    """A request to forget. 'received' and 'finished' in seconds since the epoch."""

    id: str
    status: RequestStatus
    received: float
    finished: float | None = None
    reason: str | None = None
    receipt: str | None = Field(None, description="Path of the receipt on this server, once there is one.")


class RequestList(_Schema):
    """All requests to forget, in the order of their arrival."""

    requests: tuple[RequestEntry, ...]


class LabelOfRecord(_Schema):
    """The label of a record that has come before: a late one, a correction, or its withdrawal."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=1024, description="Of the record.")
    label: str | None = Field(None, min_length=1, max_length=1024, description="The class.")
    withdraw: bool = Field(
        False, strict=True, description="The record's label is taken back; without a label here."
    )

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.withdraw == (self.label is not None):
            raise ValueError("a label, or withdraw: true")
        return self


class LabelsRequest(_Schema):
    """Labels of records that have come before."""

    model_config = ConfigDict(extra="forbid")

    labels: tuple[LabelOfRecord, ...] = Field(min_length=1, max_length=MAX_LABELS)


class LabelsAccepted(_Schema):
    """How many labels are in the stream; durable. What becomes of each is counted in summary.json."""

    accepted: int


class RecordFields(_Schema):
    """The facts known about a pushed image."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(
        None, min_length=1, max_length=1024, description="Known again where it is sent twice."
    )
    label: str | None = Field(None, min_length=1, max_length=1024, description="Its class.")
    subject: str | None = Field(
        None, min_length=1, max_length=1024, description="The person whose data it is."
    )
    domain: str | None = Field(None, min_length=1, max_length=1024, description="Where it comes from.")
    privacy: Literal["core", "user"] | None = Field(
        None, description="core may be learned for ever; user may have to be forgotten."
    )


class RecordsAccepted(_Schema):
    """The ids of the records in the stream, in their order; durable. 'repeated' had come before."""

    ids: tuple[str, ...]
    repeated: int


class ErrorDocument(_Schema):
    """A problem document (RFC 9457), sent as application/problem+json."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""


RECEIPT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A receipt; docs/receipts.md has its fields.",
}

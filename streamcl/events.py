"""The events of a stream as plain data: samples, batches of them, and requests to forget."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field, model_validator

from streamcl.errors import ForgettingError, first_fault, malformed_request
from streamcl.requests.label import Label
from streamcl.requests.packed_sample import PackedSample
from streamcl.requests.terms import SELECTING, Id, RequestTerms

Privacy: TypeAlias = Literal["core", "user"]
Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One labelled image.

    image: uint8 RGB, [H, W, 3], any H and W.
    label: the class's name, str(k) for an integer label k; None: unlabelled, predicted and never learned.
    id: stable for the life of the stream: the same record has the same id when it is replayed.
    subject: the person whose sample it is; selected by requests of kind "subject".
    privacy: "core" samples may train shared weights for ever, "user" samples may have to be forgotten
        (mixed-privacy forgetting, arXiv 2012.13431).
    """

    id: str
    image: Pixels
    label: str | None = None
    subject: str | None = None
    domain: str | None = None
    privacy: Privacy = "core"


def pack_sample(sample: Sample) -> dict[str, Any]:
    """Return a sample as JSON: its pixels in base64, with their shape."""
    pixels = base64.b64encode(np.ascontiguousarray(sample.image).tobytes()).decode()
    names = {name: getattr(sample, name) for name in ("id", "label", "subject", "domain", "privacy")}
    return {"image": pixels, "shape": list(sample.image.shape), **names}


def unpack_sample(packed: Sample | Mapping[str, Any]) -> Sample:
    """Return the sample that `pack_sample` packed. Raise ForgettingError where `packed` is none."""
    if isinstance(packed, Sample):
        return packed
    try:
        fields = PackedSample.model_validate(packed)
        return Sample(image=fields.pixels(), **fields.model_dump(exclude={"image", "shape"}))
    except ValueError as error:
        why = first_fault(error) if isinstance(error, pydantic.ValidationError) else error
        raise ForgettingError(f"a sample that the request carries cannot be read: {why}") from None


NO_PIXELS: Pixels = np.zeros((0, 0, 3), np.uint8)  # the image of a record whose pixels were not asked for


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that is not a valid sample. It keeps its place in the stream, so offsets stay dense.

    label, subject, domain, privacy: as far as they could be read, so that an erasure finds the record.
    """

    offset: int
    id: str
    reason: str
    label: str | None = None
    subject: str | None = None
    domain: str | None = None
    privacy: Privacy = "core"


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The records at the offsets [offset, end): those that became samples, in order, and those rejected.

    Offsets count records of both kinds, so end - offset == len(samples) + len(rejected). predict_only: it is
    not to be learned, since more came than could be learned. labels: came with it, of its own records or of
    earlier ones. time: seconds since the epoch at which it was cut, as in a replay; None: without a clock.
    """

    offset: int
    samples: tuple[Sample, ...]
    rejected: tuple[RejectedRecord, ...] = ()
    predict_only: bool = False
    labels: tuple[Label, ...] = ()
    time: float | None = None

    @property
    def end(self) -> int:
        """The offset of the first record after this batch."""
        return self.offset + len(self.samples) + len(self.rejected)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The offset of each sample."""
        rejected = {record.offset for record in self.rejected}
        return tuple(offset for offset in range(self.offset, self.end) if offset not in rejected)

    @property
    def labelled(self) -> tuple[Sample, ...]:
        """The samples with a label."""
        return tuple(sample for sample in self.samples if sample.label is not None)

    @property
    def labelled_offsets(self) -> tuple[int, ...]:
        """The offset of each sample in `labelled`."""
        return tuple(o for o, s in zip(self.offsets, self.samples, strict=True) if s.label is not None)

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches of half the samples each, cut at an offset, without labels of other records.

        >>> samples = tuple(Sample(f"s{k}", np.zeros((1, 1, 3), np.uint8), "ant") for k in range(4))
        >>> batch = Batch(10, samples, (RejectedRecord(11, "bad", "not an image"),))
        >>> batch.end, batch.offsets
        (15, (10, 12, 13, 14))
        >>> [(half.offset, half.end) for half in batch.halves()]
        [(10, 13), (13, 15)]
        """
        half = len(self.samples) // 2
        cut = self.offsets[half]
        early = tuple(record for record in self.rejected if record.offset < cut)
        late = tuple(record for record in self.rejected if record.offset >= cut)
        return Batch(self.offset, self.samples[:half], early), Batch(cut, self.samples[half:], late)

    def __len__(self) -> int:
        return len(self.samples)


CarriedSample: TypeAlias = Annotated[
    Sample, pydantic.PlainValidator(unpack_sample), pydantic.PlainSerializer(pack_sample)
]


class ForgetRequest(RequestTerms):
    """A request to forget, taking effect between two batches. Raise ForgettingError where it is not valid.

    Kinds "samples" and "subject" ask for the model retrained without them, kind "class" for the removal of
    the concept. `samples` carries samples that the source cannot fetch, and selects them where nothing else
    is selected. `id` names the receipt, so it should name nobody; requests with the same `key` are the same.
    `deadline`: seconds since the epoch. `requested_by` and `grounds` go into the receipt as they are.
    """

    id: Id = Field(default_factory=lambda: f"request-{secrets.token_hex(8)}")
    key: Id | None = Field(None, description="The same key again is the same request.")
    deadline: float | None = Field(None, description="When it has to be done; goes into the receipt.")
    requested_by: Id | None = Field(
        None, description="Who asks, as an office or a ticket and no person; goes into the receipt."
    )
    grounds: Id | None = Field(None, description="Why, without a name; goes into the receipt.")
    samples: tuple[CarriedSample, ...] = Field((), strict=False)

    @property
    def end(self) -> int:
        """Equal to `offset`: a request has no record of its own in the stream."""
        return self.offset

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, data: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        """Read the carried samples and take their ids; report the first fault in one line."""
        try:
            return handler(_select_carried(data) if isinstance(data, dict) else data)
        except pydantic.ValidationError as error:
            raise malformed_request(error, cls.model_fields) from None


def _select_carried(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a request's fields with its carried samples read, and selected where nothing else is.

    A value that is not a list, and ids that are not names, are left for the model to refuse.
    """
    if not fields.get("samples") or not _is_list(fields["samples"]):
        return fields
    carried = [unpack_sample(each) for each in fields["samples"]]
    fields = {**fields, "samples": carried}
    ids = fields.get("ids", ())
    selected = any(fields.get(name) for name in SELECTING if name != "ids")
    if not selected and _is_list(ids) and all(isinstance(each, str | int) for each in ids):
        fields["ids"] = tuple(dict.fromkeys([*ids, *(each.id for each in carried)]))
    return fields


def _is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


@dataclass(frozen=True, slots=True)
class Idle:
    """A moment in which the source has no record to give. It takes no offset, and no state depends on it."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Records that have come and wait for their batch to be complete; they are predicted, and not learned.

    batch: the records since the last preview. Each comes again in the batch that it is learned in.
    """

    batch: Batch


PlacedEvent: TypeAlias = Batch | ForgetRequest
"""An event with offsets, which is part of the stream."""

Event: TypeAlias = PlacedEvent | Idle | Preview
"""An event of the stream; or, between two of them, a moment in which a live source is idle or previews."""


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """A sample's prediction before it was learned; see `Prediction`."""

    id: str
    offset: int
    label: str | None
    predicted: str | None
    confidence: float
    stability: float | None = None
    novelty: float | None = None
    work: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted class, None while the learner knows none, and its probability in [0, 1].

    stability: the probability that an equally good model predicts the same class. novelty: of the sample; 1
    as a new one is on average. work: the share of that of all blocks, where fewer were used. Else None.
    """

    label: str | None
    confidence: float
    stability: float | None = None
    novelty: float | None = None
    work: float | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of learning one batch.

    predictions: one per sample of the batch, made before anything was learned from it.
    losses: the data loss of each labelled sample before the step, in nats, without regularisers; of the
        learned samples alone where only some were learned. May hold NaN or infinity where none was.
    learned: the offsets of the samples that were learned: `batch.labelled_offsets` after a step, else ().
        Nothing in the learner's state comes from any other sample.
    features: [B, d], each sample's features by weights that never change, where the learner has such weights,
        for the detector. Those of a half of a batch that was not learned are missing.
    """

    predictions: tuple[Prediction, ...]
    losses: tuple[float, ...]
    learned: tuple[int, ...]
    features: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class HoldoutPart:
    """Held-out samples of the classes of one part of the stream, or of one domain.

    It is a column of the accuracy matrix. end_offset: the stream offset after the last sample of these
    classes (or the domain); None where it is not known.
    """

    name: str
    samples: Sequence[Sample]
    end_offset: int | None = None

    def places(self, limit: int | None) -> range:
        """Return the places of at most `limit` samples, at equal distances; of all for None."""
        count = len(self.samples)
        return range(0, count, 1 if limit is None else max(1, -(-count // limit)))


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A source's description before it runs; everything but the name may be unknown.

    length: records in the stream. classes: names, in the order of integer labels where those exist.
    shifts: offsets at which the source changes classes or domains; reports compare detected shifts with
        them, and no learner or detector sees them.
    """

    name: str
    length: int | None = None
    classes: tuple[str, ...] = ()
    shifts: tuple[int, ...] = ()
    holdout: tuple[HoldoutPart, ...] = ()

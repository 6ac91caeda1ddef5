"""What a stream is made of: samples, the batches they come in, and requests to forget. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Privacy: TypeAlias = Literal["core", "user"]
Kind: TypeAlias = Literal["samples", "subject", "class"]
Guarantee: TypeAlias = Literal["exact", "bounded", "approximate"]
Relearn: TypeAlias = Literal["deny", "allow"]
Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One labelled image.

    image: uint8 RGB, [H, W, 3], any H and W.
    label: the class's name (an integer label k is the name str(k)); None is an unlabelled sample, which is
        predicted and never learned.
    id: stable for the life of the stream: the same record has the same id when it is replayed.
    subject: whose sample it is; what a request of kind "subject" selects.
    privacy: "core" samples may train shared weights for ever, "user" samples may be asked back
        (mixed-privacy forgetting, arXiv 2012.13431).
    """

    id: str
    image: Pixels
    label: str | None = None
    subject: str | None = None
    domain: str | None = None
    privacy: Privacy = "core"


NO_PIXELS: Pixels = np.zeros((0, 0, 3), np.uint8)
"""The image of a record whose pixels were not asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class RemoteSample(Sample):
    """A sample whose pixels another rank holds (see `process_group`); all else of it is known.

    rank: whose it is. The image has no pixels.
    """

    rank: int = 0

    @classmethod
    def of(cls, sample: Sample, rank: int) -> RemoteSample:
        """The same sample without its pixels."""
        return cls(
            sample.id, NO_PIXELS, sample.label, sample.subject, sample.domain, sample.privacy, rank=rank
        )


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that could not become a sample. It keeps its place in the stream, so offsets stay dense."""

    offset: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The records at the offsets [offset, end): those that became samples, in order, and those refused.

    An offset counts records, samples and refused ones alike, from the beginning of the stream, so
    end - offset == len(samples) + len(refused).
    """

    offset: int
    samples: tuple[Sample, ...]
    refused: tuple[RejectedRecord, ...] = ()

    @property
    def end(self) -> int:
        """The offset of the first record after this batch."""
        return self.offset + len(self.samples) + len(self.refused)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The offset of each sample: those of the batch less the refused ones'."""
        refused = {record.offset for record in self.refused}
        return tuple(offset for offset in range(self.offset, self.end) if offset not in refused)

    @property
    def labelled(self) -> tuple[Sample, ...]:
        """The samples that can be learned from."""
        return tuple(sample for sample in self.samples if sample.label is not None)

    @property
    def labelled_offsets(self) -> tuple[int, ...]:
        """The offset of each of those."""
        pairs = zip(self.offsets, self.samples, strict=True)
        return tuple(offset for offset, sample in pairs if sample.label is not None)

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches of half the samples each, cut at an offset: refused records stay in their places."""
        half = len(self.samples) // 2
        cut = self.offsets[half]
        refused = [record for record in self.refused if record.offset < cut]
        later = [record for record in self.refused if record.offset >= cut]
        return (
            Batch(self.offset, self.samples[:half], tuple(refused)),
            Batch(cut, self.samples[half:], tuple(later)),
        )

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which samples a request of kind "samples" names: by id, or by what all of them share.

    Fields that are given are joined by "and"; `offsets` is a half-open range of stream offsets, and
    `id_pattern` what an id looks like: * stands for any letters, ? for one.
    """

    ids: tuple[str, ...] = ()
    id_pattern: str | None = None
    subject: str | None = None
    domain: str | None = None
    offsets: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """A request to forget, taking effect between two batches at `offset`.

    kind "samples" and "subject" ask for the model retrained without them; kind "class" asks that the
    concept be gone. `key` makes the request idempotent: a second one with the same key is the same request.
    `samples` may carry the samples themselves where the source cannot bring them back.
    `deadline` is a wall-clock instant in seconds since the epoch, for the receipt only. `relearn` says what
    happens when the stream brings back what was erased: "deny" drops it, "allow" learns it anew.
    `all_users`, of kind "subject", names no subject but every sample whose privacy is "user".
    """

    id: str
    kind: Kind
    offset: int
    label: str | None = None
    subject: str | None = None
    all_users: bool = False
    selector: Selector = field(default_factory=Selector)
    samples: tuple[Sample, ...] = ()
    key: str | None = None
    deadline: float | None = None
    guarantee: Guarantee | None = None
    method: str = "auto"
    relearn: Relearn = "deny"

    @property
    def end(self) -> int:
        """A request takes no offset of its own."""
        return self.offset


Event: TypeAlias = Batch | ForgetRequest


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """What was predicted for one sample before it was learned.

    predicted is None while no class is known; confidence is a probability in [0, 1].
    """

    id: str
    offset: int
    label: str | None
    predicted: str | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """A learner's answer for one image: the class it names (None while it knows none) and how sure it is."""

    label: str | None
    confidence: float


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of learning one batch.

    guesses: one per sample of the batch, made before anything was learned from it.
    losses: the data loss of each labelled sample before the step, in nats, regulariser left out. Where some
        labelled samples were learned and others were not, those of the former alone; where none was learned
        it may hold NaN or infinity.
    learned: the offsets of the samples that were learned, none of them without a label: those of
        `batch.labelled_offsets` where a step was made, () where it was not. Nothing in the learner's state
        comes from any other sample.
    features: [B, d]: what weights that never move make of each sample, where the learner has such weights; a
        detector may look at it. In a batch of which a half was not learned, that half's are missing.
    """

    predictions: tuple[Prediction, ...]
    losses: tuple[float, ...]
    learned: tuple[int, ...]
    features: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch after its learning step, as the parts that follow the loop are given it.

    batch: without the samples that were forgotten before it came.
    predictions: one per sample, made before the step.
    result: what the learner returned; where the batch was split, of all its steps together.
    loss: mean of `result.losses`, in nats; None where there are none, or where nothing was learned because
        numbers were not finite. It may be NaN or infinity.
    not_finite: labelled samples that were not learned because losses or gradients of their step were not
        finite; the others that were not learned did not fit into memory.
    segment: detected shifts before this batch.
    """

    batch: Batch
    predictions: tuple[PredictionRecord, ...]
    result: StepResult
    loss: float | None
    not_finite: int
    segment: int


@dataclass(frozen=True, slots=True)
class HoldoutPart:
    """Held-out samples that belong together: the classes of one part of the stream, or one domain.

    taught_at: the stream offset at which the last sample of this part's classes (or domain) has passed;
        None where that is not known. Columns of the accuracy matrix, in order.
    """

    name: str
    samples: Sequence[Sample]
    end_offset: int | None = None


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a source knows about itself before it runs; everything but the name may be unknown.

    length: records in the stream. classes: names, in the order of integer labels where those exist.
    shifts: offsets at which the source itself changes classes or domains: the truth that reports compare
        detected shifts with, never shown to a learner or a detector.
    """

    name: str
    length: int | None = None
    classes: tuple[str, ...] = ()
    shifts: tuple[int, ...] = ()
    holdout: tuple[HoldoutPart, ...] = ()

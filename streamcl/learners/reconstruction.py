"""Classes and pictures from one stream: a ridge head, and a decoder of hidden patches of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from streamcl.capabilities.declaration import Capabilities
from streamcl.config.options.base import BlockIndex, Options, Warn
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge import RidgeLearner, build_ridge
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.learners.statistics import ClosedFormStatistics, PerHead
from streamcl.learners.step import Transaction
from streamcl.protocols import State

with lazy_imports():
    from streamcl.heads import patch_decoder
    from streamcl.learners import masked_patches

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.patch_decoder import HiddenPatches, PatchDecoder, PatchSums
    from streamcl.heads.statistics import Statistics
    from streamcl.learners.masked_patches import MaskedPatchReader


class DecoderOptions(Options):
    """A linear decoder of the pixels of hidden patches, in closed form."""

    block: BlockIndex | None = Field(
        None, description="The block whose tokens are decoded, from 0; null: at a quarter of the depth."
    )
    hidden: float = Field(
        0.5, gt=0, lt=1, description="Share of the patches that is hidden from the backbone and filled in."
    )
    cells: int = Field(
        7, ge=1, le=64, description="Values a side of a patch to which its pixels are averaged."
    )
    trace_ridge: Warn[float] = Field(
        1e-3, gt=0, le=1e6, description="Ridge: a share of the mean of the Gram matrix's diagonal."
    )


class ReconstructOptions(RidgeOptions):
    """A ridge head, and a decoder that fills in hidden patches of images: no gradients, exact forgetting."""

    name: Literal["reconstruct"] = Field("reconstruct", description="Classes and pictures in closed form.")
    decoder: DecoderOptions = Field(DecoderOptions(), description="The decoder of patches.")


@dataclass(frozen=True, slots=True, eq=False)
class ReconstructionSums:
    """The statistics of samples in the head and in the decoder."""

    head: PerHead[Statistics]
    decoder: PatchSums

    def __add__(self, other: ReconstructionSums) -> ReconstructionSums:
        """Return the statistics of both."""
        return ReconstructionSums(self.head + other.head, self.decoder + other.decoder)

    def relative_error(self, other: ReconstructionSums) -> float:
        """Return the largest relative error in the head or in the decoder."""
        return max(self.head.relative_error(other.head), self.decoder.relative_error(other.decoder))


@dataclass(frozen=True, slots=True, eq=False)
class ReconstructionStatistics:
    """RemovableStatistics of a head and a decoder."""

    head: ClosedFormStatistics[Statistics]
    reconstruction: Reconstruction

    @property
    def by_rows(self) -> None:
        """None: a sample adds many rows to the decoder's sums."""
        return

    def of(self, samples: Sequence[Sample]) -> ReconstructionSums:
        """Return what labelled samples add; ForgettingError for a class that was never learned."""
        return ReconstructionSums(self.head.of(samples), self.reconstruction.sums_of(samples))

    def subtract(self, value: ReconstructionSums) -> Mapping[str, Any]:
        """Subtract from both or, where one refuses, from neither; return the figures of both."""
        decoder = self.reconstruction.decoder
        with Transaction(decoder.savepoint()):
            decoder.remove(value.decoder)
            return {**self.head.subtract(value.head), **decoder.removal_figures()}


class Reconstruction:
    """Fills in the hidden patches of images.

    Attributes:
        reader: hides patches, and reads the others.
        decoder: of the contexts that the reader returns.
    """

    def __init__(self, reader: MaskedPatchReader, decoder: PatchDecoder) -> None:
        self.reader, self.decoder = reader, decoder

    def read(self, samples: Sequence[Sample]) -> HiddenPatches:
        """Return the hidden patches of samples, one or more; always the same for the same sample."""
        return self.reader(samples)

    def pictures(self, patches: Tensor) -> Tensor:
        """Return pictures [B, H, W, 3], 0 to 1, put together from all their patches [B, N, V]."""
        return self.reader.pictures(patches)

    def sums_of(self, samples: Sequence[Sample]) -> PatchSums:
        """Return what samples add to the decoder's sums; change nothing."""
        return patch_decoder.PatchSums.of(self.read(samples))


class ReconstructLearner:
    """A ridge head that names classes, beside a decoder that fills in hidden patches of images.

    The head is that of the learner `ridge`. The decoder regresses the pixels of hidden patches on what the
    frozen backbone makes of the others. Both are sums over the labelled samples, which are subtracted alike.

    Args:
        classifier: names classes.
        reconstruction: fills in patches.
    """

    def __init__(self, classifier: RidgeLearner[Statistics], reconstruction: Reconstruction) -> None:
        self.classifier, self.reconstruction = classifier, reconstruction

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the logits."""
        return self.classifier.classes

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """Return one prediction for each sample; change no state."""
        return self.classifier.predict(samples)

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C] of samples, one or more, whose softmax is the classes' probabilities."""
        return self.classifier.logits(samples)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then add its labelled samples to the sums of head and decoder."""
        if not batch.labelled:
            return self.classifier.learn(batch)
        sums, decoder = self.reconstruction.sums_of(batch.labelled), self.reconstruction.decoder
        with Transaction(decoder.savepoint()) as step:
            if not sums.is_finite:
                return self.classifier.refused(batch)
            decoder.merge(sums)
            result = self.classifier.learn(batch)
            if not result.learned:
                step.refuse()
        return result

    def consolidate(self) -> Mapping[str, Any]:
        """Do nothing: a plateau of the stream changes no sums."""
        return {}

    @property
    def capabilities(self) -> Capabilities:
        """Those of the classifier, with the statistics of both, and pictures."""
        return replace(
            self.classifier.capabilities,
            statistics=ReconstructionStatistics(self.classifier.statistics, self.reconstruction),
            reconstruction=self.reconstruction,
        )

    def state_dict(self) -> State:
        """Return the state of head and decoder."""
        return {
            "classifier": self.classifier.state_dict(),
            "decoder": self.reconstruction.decoder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.classifier.load_state_dict(state["classifier"])
        self.reconstruction.decoder.load_state_dict(state["decoder"])


def build_reconstruct(options: ReconstructOptions, context: LearnerContext) -> ReconstructLearner:
    """Return the learner.

    Raises:
        ConfigError: there is no such block, or the backbone cannot leave out patches.
    """
    shared = {name: getattr(options, name) for name in RidgeOptions.model_fields}
    classifier = build_ridge(RidgeOptions(**shared), context)
    backbone, wanted = context.backbone, options.decoder
    block = (backbone.depth - 1) // 4 if wanted.block is None else wanted.block
    if block >= backbone.depth:
        message = f"block {block} does not exist; there are {backbone.depth}"
        raise context.refuse("learner.decoder.block", message)
    if not backbone.places_first:
        message = f"{backbone.name} needs all patches of an image, so none can be hidden from it"
        raise context.refuse("learner", message)
    reader = masked_patches.MaskedPatchReader(
        backbone, context.compute, block=block, hidden=wanted.hidden, cells=wanted.cells, seed=context.seed
    )
    decoder = patch_decoder.PatchDecoder(
        reader.context_width,
        reader.values,
        trace_ridge=wanted.trace_ridge,
        device=context.compute.device,
    )
    return ReconstructLearner(classifier, Reconstruction(reader, decoder))


RECONSTRUCT = LearnerFactory(ReconstructOptions, build_reconstruct)

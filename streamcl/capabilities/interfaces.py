"""The interface of each capability; a learner, or a part of it, has the methods of those that it declares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from streamcl.events import ForgetRequest, Prediction, Sample

if TYPE_CHECKING:  # a learner without torch declares its capabilities too
    import torch

    from streamcl.heads.linear import LinearHead
    from streamcl.heads.patch_decoder import HiddenPatches, PatchDecoder
    from streamcl.nn.adapted_blocks import Adapters
    from streamcl.nn.backbone import Backbone
    from streamcl.nn.device import Compute

Rows: TypeAlias = npt.NDArray[np.float64]
"""float64 [n, D]: one row for each of n samples."""

LearnedListener: TypeAlias = Callable[[Sequence[Sample], Sequence[Rows | None]], None]
"""Is given samples that were learned and, for each head, their rows; None where they cannot be subtracted."""


TraceListener: TypeAlias = Callable[[Sequence[Sample], Sequence[bytes]], None]
"""Is given samples that were learned and the trace of each."""


class StatisticsPart(NamedTuple):
    """Sums of some samples in one head: R [r, D] with R^T R = G; by class a count and a sum of rows [D]."""

    root: Rows
    sums: Mapping[str, tuple[int, Rows]]


class AdapterExport(NamedTuple):
    """The part of a learner that can be written as a PEFT adapter.

    head: classifies the backbone's final features [B, d]; None where the heads read other features, and are
    not exported. classes: the names of its columns.
    """

    adapters: Adapters
    head: LinearHead | None
    classes: tuple[str, ...]


class Additive(Protocol):
    """Statistics of samples as a value."""

    def __add__(self, other: Self) -> Self: ...

    def relative_error(self, other: Self) -> float:
        """Return how far another derivation of the same statistics is from this one, relative to its size."""


V = TypeVar("V", bound=Additive)
V_co = TypeVar("V_co", bound=Additive, covariant=True)


class RemovableStatistics(Protocol[V]):
    """A learner's statistics: sums over samples, from which samples can be subtracted."""

    @property
    def by_rows(self) -> StatisticRows[V] | None:
        """The same by rows, which can be stored; None where they are no sums over rows of fixed heads."""

    def of(self, samples: Sequence[Sample]) -> V:
        """Return what labelled samples add, derived exactly as when they were learned; change nothing."""

    def subtract(self, value: V) -> Mapping[str, Any]:
        """Subtract and return figures that show that the result is sound.

        Raises:
            ForgettingError: the value cannot be part of the statistics; nothing has changed.
        """


class StatisticRows(Protocol[V_co]):
    """Statistics as sums over rows, one row a sample and head: G = sum of h^T h, Q = sum of h^T y."""

    @property
    def widths(self) -> tuple[int, ...]:
        """D of the rows of each head."""

    def rows_of(self, samples: Sequence[Sample]) -> tuple[Rows, ...]:
        """Return the rows [n, D] of samples for each head, derived as when they were learned."""

    def from_parts(self, parts: Sequence[Iterable[StatisticsPart]]) -> V_co:
        """Return the sum of the parts given for each head, of classes that the learner knows."""

    def on_learned(self, listener: LearnedListener) -> None:
        """Call the listener after each batch, within the step: where it raises, nothing is learned."""


class SampleTraces(Protocol[V_co]):
    """A few bytes of each learned sample, its trace, from which its share of the statistics follows."""

    def of_traces(self, traces: Sequence[bytes], labels: Sequence[str]) -> V_co:
        """Return what samples added, by their traces and the labels that they were learned with.

        Raises:
            ForgettingError: a trace is not one of this learner's, or a class is not known.
        """

    def on_learned(self, listener: TraceListener) -> None:
        """Call the listener after each batch, within the step: where it raises, nothing is learned."""


class RetrainedWeights(Protocol):
    """Weights that gradients trained on stored features alone, and so can be trained again without some."""

    def remove(self, offsets: Collection[int]) -> int:
        """Remove the stored features of samples at these offsets; return how many there were.

        The weights become, bit for bit, those of a learner that was never given these samples, at the
        latest when they are next used.
        """

    def seconds(self, offsets: Collection[int]) -> float:
        """Return how long `remove` and training again would take."""


class StoredFeatures(Protocol):
    """Features of single samples, stored to be learned again."""

    def remove(self, offsets: Collection[int]) -> int:
        """Remove those of samples at these offsets; return how many there were."""


class ReplayBuffer(Protocol):
    """Stored samples."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples."""

    def purge(self, predicate: Callable[[Sample], bool]) -> int:
        """Remove every sample for which the predicate is true; return their number."""


class LearnedSample(Protocol):
    """A sample that was learned, as the lineage remembers it."""

    @property
    def offset(self) -> int:
        """Its position in the stream."""

    @property
    def private(self) -> bool:
        """Whether its privacy was "user"."""


class ParameterImportance(Protocol):
    """Importance weights, estimated from samples."""

    @property
    def consolidations(self) -> int:
        """The number of consolidations at which they were estimated."""

    def clear(self) -> None:
        """Set them to zero, as before the first consolidation."""


class CohortPartitioned(Protocol):
    """Parts of a learner that were taught by one cohort each, and on which nothing was built."""

    @property
    def over_capacity(self) -> bool:
        """Whether a cohort has come for which there was no part of its own."""

    def selected_cohorts(self, request: ForgetRequest) -> tuple[str, ...]:
        """Return the cohorts with parts of their own that a request names whole."""

    def sample_count(self, names: Sequence[str]) -> int:
        """Return the number of samples that these cohorts' parts have learned."""

    def drop_cohorts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Remove the parts of these cohorts; return figures."""


class UserPartitioned(Protocol):
    """Weights of users alone, linear around those of the core; samples of users reach nothing else."""

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on the users' weights, in units of 1 / a feature's own."""

    def user_sample_count(self, subject: str) -> int:
        """Return the number of samples in the sums that are stored for a subject alone."""

    def forget_subject(self, subject: str) -> Mapping[str, Any]:
        """Subtract a subject's sums and make the Newton step; return figures, with `bound_nats`."""

    def forget_users(self) -> None:
        """Set the users' weights and sums to zero."""


class CachesFeatures(Protocol):
    """A learner whose features of a sample no erasure changes, so that the pixels are read once."""

    def read(self, samples: Sequence[Sample]) -> Any:
        """Return all that `scores` needs of samples, one or more; indexed by rows, that of some of them."""

    def refresh_features(self, reading: Any) -> Any:
        """Return an older reading with what can be read by now; the same object where that is no more."""

    def scores(self, reading: Any) -> Any:
        """Return a tensor [B, C] by the weights in use."""


class ReconstructsImages(Protocol):
    """Fills in hidden patches of images by a decoder in closed form."""

    @property
    def decoder(self) -> PatchDecoder:
        """Maps contexts of hidden patches to their pixels, as learned from the stream."""

    def read(self, samples: Sequence[Sample]) -> HiddenPatches:
        """Return the hidden patches of samples, one or more; always the same for the same sample."""

    def pictures(self, patches: torch.Tensor) -> torch.Tensor:
        """Return pictures [B, H, W, 3], 0 to 1, put together from all their patches [B, N, V]."""


class CalibratedScores(Protocol):
    """Confidences that are fitted to samples which are never learned."""

    @property
    def features_version(self) -> Any:
        """Compares equal as long as the features of a sample stay the same."""

    @property
    def is_fitted(self) -> bool:
        """Whether confidences of `predict` depend on held-out samples and weights alone."""

    def read(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, ...]:
        """Return what `fit` needs of N samples: tensors [N, d], equal rows whichever come together."""

    def fit(self, features: tuple[torch.Tensor, ...], labels: Sequence[str]) -> None:
        """Fit to samples.

        Args:
            features: of N samples, as `read` returns them: tensors [N, d]; none for no samples.
            labels: N classes that are known.
        """

    def predict(self, features: tuple[torch.Tensor, ...]) -> tuple[Prediction, ...]:
        """Return what the learner predicts for samples, of what `read` returned for them: tensors [N, d]."""

    def restart(self) -> None:
        """Let what follows predictions before learning begin anew, at the fit where there is one."""


class GradientModel(Protocol):
    """Adapted blocks and a linear head on a frozen backbone, trained by one optimizer."""

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone."""

    @property
    def compute(self) -> Compute:
        """Device and precision."""

    @property
    def adapters(self) -> Adapters | None:
        """The adapted blocks."""

    @property
    def head(self) -> LinearHead:
        """The classifier."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, with the moments of all that is trained."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the head."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the trained parameters, by name."""

    def features(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Return the backbone's final features [B, d]; gradients reach the adapters only."""

    def targets(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Return int64 [N]: the columns of the samples' classes, -1 for those not known."""

"""Keys of frozen features: of each sample a few bytes are kept, by which it is forgotten to the bit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import Rows, StatisticsPart, TraceListener
from streamcl.errors import ForgettingError
from streamcl.events import Sample
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge import RIDGE_SHARPNESS, RidgeLearner, build_closed_form
from streamcl.learners.ridge_options import FrozenFeatureOptions, RidgeOptions
from streamcl.learners.statistics import ClosedFormStatistics, PerHead

with lazy_imports():
    from streamcl.heads import key_pairs
    from streamcl.learners import block_features
    from streamcl.nn import synthetic_images

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.statistics import Statistics

PROBE_IMAGES = 32
"""Synthetic images by which keys are placed; 8 to 64 differ by less than two seeds do."""


class KeysOptions(FrozenFeatureOptions):
    """Keys of frozen features, from which single samples are forgotten exactly (after arXiv 2207.11240)."""

    name: Literal["keys"] = Field("keys", description="Keys, for exact forgetting without the samples.")
    keys: int = Field(
        512,
        ge=2,
        le=8192,
        multiple_of=2,
        description="Keys of a sample; half as many bytes of each learned sample are kept.",
    )


@dataclass(frozen=True, slots=True, eq=False)
class KeyTraces:
    """The traces of single samples, which are their keys.

    Attributes:
        statistics: of a learner whose only head has keys for rows.
    """

    statistics: ClosedFormStatistics[Statistics]

    def of_traces(self, traces: Sequence[bytes], labels: Sequence[str]) -> PerHead[Statistics]:
        """Return what samples added, by their traces and the labels that they were learned with.

        Raises:
            ForgettingError: a trace is not of this many keys, or a class is not known.
        """
        if unknown := set(labels) - set(self.statistics.index.names):
            raise ForgettingError(f"{len(unknown)} classes of the samples are not among those learned")
        rows = unpack_keys(traces, *self.statistics.widths)
        places = {name: np.array([label == name for label in labels]) for name in dict.fromkeys(labels)}
        sums = {name: (int(mine.sum()), rows[mine].sum(axis=0)) for name, mine in places.items()}
        return self.statistics.from_parts([[StatisticsPart(rows, sums)]])

    def on_learned(self, listener: TraceListener) -> None:
        """Call the listener after each batch, within the step: where it raises, nothing is learned."""

        def with_traces(samples: Sequence[Sample], rows: Sequence[Rows | None]) -> None:
            (keys,) = rows
            assert keys is not None
            listener(samples, pack_keys(keys))

        self.statistics.on_learned(with_traces)


class KeysLearner(RidgeLearner["Statistics"]):
    """A ridge head on keys of frozen features, which knows of each sample its keys and nothing else.

    They are kept with the sample's row in the lineage, and its share of the sums follows from them alone.
    """

    @property
    def capabilities(self) -> Capabilities:
        """Those of a closed-form head, and traces of single samples."""
        return replace(super().capabilities, traces=KeyTraces(self.statistics))


def pack_keys(rows: Rows) -> list[bytes]:
    """Return a trace for each row [N, H] of keys: two keys a byte."""
    numbers = ((rows + 15) / 2).astype(np.uint8)  # 0 to 15
    pairs = numbers[:, ::2] << 4 | numbers[:, 1::2]
    return [pair.tobytes() for pair in pairs]


def unpack_keys(traces: Sequence[bytes], count: int) -> Rows:
    """Return the keys float64 [N, count] that traces are of.

    Raises:
        ForgettingError: a trace is not of so many keys.
    """
    if any(2 * len(trace) != count for trace in traces):
        raise ForgettingError(f"a trace is not of {count} keys, as those of this learner are")
    pairs = np.frombuffer(b"".join(traces), np.uint8).reshape(len(traces), -1)
    numbers = np.stack([pairs >> 4, pairs & 15], axis=2).reshape(len(traces), count)
    return 2.0 * numbers - 15


def build_keys(options: KeysOptions, context: LearnerContext) -> RidgeLearner[Statistics]:
    """Return a learner on keys of frozen features."""
    backbone, blocks = context.backbone, context.blocks(options.blocks)
    reader = block_features.FrozenReader(backbone, context.compute, blocks, tta_views=options.tta_views)

    def probe() -> Tensor:
        images = synthetic_images.synthetic_images(PROBE_IMAGES, backbone.image_size)
        return reader([Sample(f"synthetic-{place}", image) for place, image in enumerate(images)])

    ridge = RidgeOptions().model_dump(include={"variance_ridge", "gcv_margin", "trace_ridge"})
    head = functools.partial(key_pairs.KeyPairsHead, probe=probe, **ridge)
    return build_closed_form(options, context, head, sharpness=RIDGE_SHARPNESS, learner=KeysLearner)


KEYS = LearnerFactory(KeysOptions, build_keys, distributed=True, keeps_traces=True)

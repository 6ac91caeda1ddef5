"""Predictions at intermediate blocks: exits of one closed-form head, solved from the same sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamcl.capabilities.prediction_interfaces import EarlyPredictions
from streamcl.events import Sample
from streamcl.learners.adapted_branch import RidgeLoRAFeatures
from streamcl.learners.block_features import (
    FrozenReader,
    concat_block_tokens,
    mean_over_views,
    pad_to_chunks,
    tta_views,
)
from streamcl.learners.exit_walk import ExitWalk, WalkRows

if TYPE_CHECKING:
    from streamcl.learners.ridge import RidgeLearner
    from streamcl.learners.ridge_lora import RidgeLoRALearner


class EarlyExit:
    """Predicts each sample at the first exit at which its two best scores lie far enough apart.

    An exit follows each block that the frozen branch reads. Its weights are those of a head on the features
    up to there, whatever was learned and erased, since they are solved from a part of the same sums. Where
    there is an adapted branch, the last exit is both branches together, as for `predict`. A prediction does
    not depend on the other samples of a request, but for rounding where chunks fit requests.

    Args:
        exact: the frozen branch, whose head has `leading_scores`.
        reader: of that branch.
        blend: the learner of which it is the frozen branch; None where it is the learner.

    Attributes:
        costs: of each exit the share of the work of all blocks that lies between it and the one before.
    """

    def __init__(
        self, exact: RidgeLearner[Any], reader: FrozenReader, blend: RidgeLoRALearner | None = None
    ) -> None:
        self._exact, self._reader, self._blend = exact, reader, blend
        adapted = None if blend is None else blend.adapted
        self._adapted = adapted if adapted is not None and adapted.frozen else None
        self._calibration = exact.calibration if blend is None else blend.calibration
        self._spans = list(pairwise([0, *(block + 1 for block in reader.blocks)]))
        work = [(stop - start) * reader.tta_views for start, stop in self._spans]
        if self._adapted is not None:
            work.append(self._adapted.blocks[-1] + 1 - self._adapted.adapters.first_block)
        self.costs = tuple(each / sum(work) for each in work)

    def predict(self, samples: Sequence[Sample], thresholds: Sequence[float]) -> EarlyPredictions:
        """Return the logits of samples, one or more, from the exit that each of them takes.

        Args:
            samples: N of them.
            thresholds: of the margin at each exit but the last; a sample that reaches it goes no further.
        """
        walk, limits = self.begin(samples), [*thresholds, -math.inf]
        margins = torch.full((len(samples), len(limits)), math.nan, dtype=torch.float64)
        going = torch.arange(len(samples))
        for number, limit in enumerate(limits):
            walk.advance(going)
            margins[going, number] = walk.margins[going]
            going = going[walk.margins[going] < limit]
            if not len(going):
                break
        return EarlyPredictions(walk.logits, walk.exits, margins)

    def rows_computed(self, count: int) -> int:
        """Return how many rows are computed where `count` samples are advanced together."""
        return sum(self._reader.compute.part_sizes(count))

    def begin(self, samples: Sequence[Sample]) -> ExitWalk:
        """Return samples, one or more, before the first block."""
        backbone, found = self._reader.backbone, []
        for chunk in pad_to_chunks(samples, self._reader.compute):
            with torch.no_grad(), self._reader.compute.autocast():
                pixels = backbone.prepare([sample.image for sample in chunk])
                views = tta_views(pixels, self._reader.tta_views)
                found.append(backbone.stem(torch.cat(views)).chunk(len(views)))
        tokens = [torch.cat(view)[: len(samples)] for view in zip(*found, strict=True)]
        features = tokens[0].new_empty(len(samples), 0).float()
        return ExitWalk(self, WalkRows(torch.arange(len(samples)), tokens, [], features))

    def advanced(self, rows: WalkRows, number: int) -> WalkRows:
        """Run the blocks up to an exit of the frozen branch; the adapted branch runs with its scores."""
        if number == len(self._spans):
            return rows
        backbone, compute, (start, stop) = self._reader.backbone, self._reader.compute, self._spans[number]
        count, views = len(rows.places), len(rows.tokens)
        sizes = compute.part_sizes(count)
        order = torch.arange(sum(sizes)).clamp(max=count - 1)
        features, tokens, branch = [], [], []
        for part in order.split(sizes):
            with torch.no_grad(), compute.autocast():
                entering = torch.cat([view[part] for view in rows.tokens])  # [V * n, N, d]
                outputs = backbone.run(entering, start, stop)
                read = concat_block_tokens(backbone, outputs, [stop - 1], start)
                features.append(mean_over_views(read, views))
            tokens.append(outputs[-1].chunk(views))
            if self._adapted is not None and start <= (cut := self._adapted.adapters.first_block) < stop:
                branch.append([entering, *outputs][cut - start].chunk(views)[0])
        return WalkRows(
            rows.places,
            [torch.cat(view)[:count] for view in zip(*tokens, strict=True)],
            [torch.cat(branch)[:count]] if branch else rows.branch,
            torch.cat([rows.features, torch.cat(features)[:count]], dim=1),
        )

    def scores_at(self, rows: WalkRows, number: int) -> Tensor:
        """Return the scores [n, C] of rows at an exit."""
        if number < len(self._spans) - 1:
            return self._exact.head.leading_scores(rows.features)
        if self._blend is None or self._adapted is None or number < len(self._spans):
            return self._exact.head.scores_refit(rows.features)
        adapted = self._adapted.features(rows.branch[0])
        return self._blend.scores_refit(RidgeLoRAFeatures(rows.features, (), adapted))

    def logits_of(self, scores: Tensor) -> Tensor:
        """Return the calibrated logits [n, C] of scores [n, C]."""
        return self._calibration.for_predictions(scores)


def early_exit_of(exact: RidgeLearner[Any], blend: RidgeLoRALearner | None = None) -> EarlyExit | None:
    """Return the exits of a learner, or of its frozen branch and both; None where the head cannot be cut."""
    if not isinstance(exact.reader, FrozenReader) or not exact.head.has_leading:
        return None
    return EarlyExit(exact, exact.reader, blend)

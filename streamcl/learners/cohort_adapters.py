"""A learner whose cohorts each have an adapter of their own, so that one can be dropped whole and exactly."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from streamcl.capabilities.declaration import Capabilities
from streamcl.config.options.base import Options, Warn
from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, Sample, StepResult
from streamcl.learners.adapted_branch import AdaptedBranch, LoRABranchOptions, build_branch
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge import RIDGE_SHARPNESS
from streamcl.learners.ridge_lora_options import RidgeBranchOptions
from streamcl.learners.step import LogitLearner, Transaction, prepare_step
from streamcl.protocols import State, savepoint_of

with lazy_imports():
    import torch

    from streamcl.heads import solving
    from streamcl.heads import statistics as head_statistics
    from streamcl.learners import block_features, predictions
    from streamcl.learners import cohort as cohort_parts

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.block_features import FrozenReader
    from streamcl.learners.cohort import Cohort, CohortRule, SharedSolution


class CohortLoRAOptions(LoRABranchOptions):
    """The adapter of each cohort."""

    warmup_samples: Warn[int] = Field(
        256, ge=1, le=10**9, description="Labelled samples of a cohort after which its adapter freezes."
    )


class CohortRidgeOptions(RidgeBranchOptions):
    """The closed-form part that all cohorts share."""

    gcv_margin: None = Field(None, description="Not for this learner.")
    defer_solve: None = Field(None, description="Not for this learner.")
    robust_share: None = Field(None, description="Not for this learner.")


class CohortAdaptersOptions(Options):
    """Cohorts with adapters of their own, each of which can be forgotten whole and exactly."""

    name: Literal["cohort_adapters"] = Field("cohort_adapters", description="An adapter for each cohort.")
    cohort_by: Literal["domain", "subject", "offset_range"] = Field(
        "domain", description="What makes a cohort: a domain (a tenant), a subject, or a range of offsets."
    )
    records_per_cohort: int = Field(
        1000, ge=1, le=10**12, description="Records of a cohort where cohort_by is offset_range."
    )
    max_adapters: int = Field(
        8, ge=1, le=1000, description="Most cohorts with an adapter; later ones have none."
    )
    ridge: CohortRidgeOptions = Field(CohortRidgeOptions(), description="The shared closed-form part.")
    lora: CohortLoRAOptions = Field(CohortLoRAOptions(), description="The adapters.")


_REPLACED = ("cohorts", "over_capacity", "index", "_used", "_fresh")
"""Attributes whose values are replaced, never written to; a cohort has a savepoint of its own."""


class CohortAdaptersLearner(LogitLearner):
    """A shared ridge regression on frozen features, and a LoRA branch for each cohort, joined at the scores.

    The shared part is solved from the total of sums that are kept apart by cohort. A branch starts at the
    frozen backbone, is trained by its own cohort alone, over that cohort's own classes, with a generator
    seeded by the cohort's name, and is frozen after a number of its own samples, never at a plateau of the
    stream, on which no cohort may depend. Nothing is trained on its output. So a cohort that is dropped takes
    everything of its samples along, and the rest is what there would be if it had never come.
    """

    def __init__(
        self,
        reader: FrozenReader,
        division: CohortRule,
        branch: Callable[[str], AdaptedBranch],
        *,
        width: int,
        cut: int,
        variance_ridge: float = 300.0,
        refit_fraction: float = 0.1,
        sharpness: float = 10.0,
    ) -> None:
        self.reader = reader
        self.division = division
        self.cohorts: dict[str, Cohort] = {}
        self.over_capacity = False  # whether a cohort has come past the limit
        self._branch, self._cut = branch, cut
        self._width, self._variance_ridge, self._refit_fraction = width, variance_ridge, refit_fraction
        self._sharpness = sharpness
        self.index = ClassIndex()
        self._used = self._unsolved()
        self._fresh: SharedSolution | None = None  # of all that is known; only spares a second solve

    @property
    def backbone(self) -> Any:
        """The frozen backbone."""
        return self.reader.backbone

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C], by the branch of each sample's cohort or, without one, the mean of all."""
        features, views = self._read(samples)
        names = [self.division.name(sample, None) for sample in samples]
        if self._fresh is None:
            self._fresh = self._solved()
        return self._sharpness * self._scores(self._fresh.scores(features), views[0], names, exact=True)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then teach each cohort its labelled samples."""
        if not batch.samples:
            return StepResult((), (), learned=())
        features, views = self._read(batch.samples)
        names = self._names(batch)
        scores = self._scores(self._used.scores(features), views[0], names, exact=False)
        step = prepare_step(batch, self._sharpness * scores, self.index)
        if not step.rows or not predictions.all_finite(features):
            return step.refused()
        with Transaction(savepoint_of(self, *_REPLACED)) as transaction:
            self.index = step.index
            cohort_names = {row: self._cohort_for(names[row]) for row in step.rows}
            for name in dict.fromkeys(cohort_names.values()):
                own = [row for row in step.rows if cohort_names[row] == name]
                cohort = self.cohorts[name]
                transaction.cover(cohort.savepoint())
                labels = [str(batch.samples[row].label) for row in own]
                if not cohort.learn(features[own], [view[own] for view in views], labels):
                    transaction.refuse()
                    return step.refused()
            self._refit_if_due()
        return step.learned()

    @property
    def capabilities(self) -> Capabilities:
        """Adapters of one cohort each, which are dropped whole."""
        return Capabilities(cohorts=self, shared_weights=self.weights_trained_on)

    def selected_cohorts(self, request: ForgetRequest) -> tuple[str, ...]:
        """Return the cohorts with adapters that a request names."""
        return tuple(name for name in self.division.selected_cohorts(request) if name in self.cohorts)

    def sample_count(self, names: Sequence[str]) -> int:
        """Return the number of samples that these cohorts have learned."""
        return sum(self.cohorts[name].learned for name in names)

    def drop_cohorts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Drop these cohorts, with adapters, sums, and classes of no other cohort; return figures."""
        if missing := [name for name in names if name not in self.cohorts]:
            raise ForgettingError(f"{len(missing)} of the cohorts to drop do not exist")
        self.cohorts = {name: each for name, each in self.cohorts.items() if name not in names}
        left = {each for cohort in self.cohorts.values() for each in cohort.classes}
        self.index = ClassIndex(name for name in self.classes if name in left)
        self._used, self._fresh = self._solved(), None
        return {"cohorts_dropped": len(names), "cohorts_left": len(self.cohorts)}

    def weights_trained_on(self, samples: Iterator[Sequence[object]]) -> tuple[str, ...]:
        """Adapters are a cohort's own, and cannot be freed of some of its samples."""
        touched = any(chunk for chunk in samples) and any(each.branch for each in self.cohorts.values())
        return ("cohort adapters",) if touched else ()

    def state_dict(self) -> State:
        """Return every cohort, the classes, and the shared weights in use."""
        used = {name: getattr(self._used, name).cpu().numpy().copy() for name in ("W", "b", "counts")}
        cohorts = {name: cohort.state_dict() for name, cohort in self.cohorts.items()}
        return {
            "classes": list(self.classes),
            "cohorts": cohorts,
            "over_capacity": self.over_capacity,
            "used": used,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.index, self.cohorts, self._fresh = ClassIndex(state["classes"]), {}, None
        self.over_capacity = bool(state["over_capacity"])
        for name, saved in state["cohorts"].items():
            self._new(name).load_state_dict(saved)
        device = self.backbone.device
        self._used = cohort_parts.SharedSolution(
            **{name: torch.tensor(np.asarray(array)).to(device) for name, array in state["used"].items()}
        )

    def _read(self, samples: Sequence[Sample]) -> tuple[Tensor, list[Tensor]]:
        """Frozen features [B, D], and each view's tokens where branches begin."""
        return self.reader.read(samples, self._cut)

    def _names(self, batch: Batch) -> list[str]:
        return [self.division.name(s, offset) for s, offset in zip(batch.samples, batch.offsets, strict=True)]

    def _cohort_for(self, name: str) -> str:
        """The cohort of that name, made where there is room for one; else the pool."""
        taken = sum(each != cohort_parts.SHARED_COHORT for each in self.cohorts)
        if (
            name not in self.cohorts
            and name != cohort_parts.SHARED_COHORT
            and taken >= self.division.max_adapters
        ):
            self.over_capacity, name = True, cohort_parts.SHARED_COHORT
        if name not in self.cohorts:
            self._new(name)
        return name

    def _new(self, name: str) -> Cohort:
        branch = None if name == cohort_parts.SHARED_COHORT else self._branch(name)
        cohort = cohort_parts.Cohort(branch, self._width, self.backbone.device)
        self.cohorts = {**self.cohorts, name: cohort}
        return cohort

    def _scores(self, shared: Tensor, tokens: Tensor, names: Sequence[str], *, exact: bool) -> Tensor:
        """float64 [B, C]: the shared scores, joined with those of each sample's branch."""
        blended = shared.clone()
        for name in dict.fromkeys(names):
            rows = [row for row, each in enumerate(names) if each == name]
            own = self.cohorts.get(name)
            chosen = [own] if own is not None and own.branch is not None else list(self.cohorts.values())
            chosen = [cohort for cohort in chosen if cohort.ready]
            if chosen:
                parts = [c.blend_scores(shared[rows], tokens[rows], self.index, exact=exact) for c in chosen]
                blended[rows] = torch.stack(parts).mean(0)
        return blended

    def _refit_if_due(self) -> None:
        """Solve the shared part anew where a class has doubled or a share of all samples is new."""
        self._fresh = None
        total = reduce(torch.add, [cohort.sums(self.index).counts for cohort in self.cohorts.values()])
        solved = head_statistics.zero_padded(self._used.counts, len(total) - len(self._used.counts))
        if solving.is_due(total, solved, total > solved, self._refit_fraction):
            self._used = self._solved()
        else:
            self._used = self._used.widened(len(total))

    def _solved(self) -> SharedSolution:
        """The shared weights of all that is known: the sums of the cohorts, added up in their order."""
        if not self.cohorts:
            return self._unsolved()
        sums = reduce(operator.add, [cohort.sums(self.index) for cohort in self.cohorts.values()])
        problem = solving.Quadratic(sums, self._variance_ridge)
        W = problem.minimiser()
        return cohort_parts.SharedSolution(W, problem.intercept(W), sums.counts)

    def _unsolved(self) -> SharedSolution:
        W = torch.zeros(self._width, len(self.index), dtype=torch.float64, device=self.backbone.device)
        return cohort_parts.SharedSolution(W, W[0].clone(), W[0].long())


def build_cohort_adapters(options: CohortAdaptersOptions, context: LearnerContext) -> CohortAdaptersLearner:
    """Return a shared closed form, and a maker of adapters, one for each cohort."""
    ridge, lora, backbone = options.ridge, options.lora, context.backbone
    blocks = context.blocks(ridge.blocks)
    if ridge.variance_ridge is None or ridge.projection is not None:
        raise context.refuse("learner.ridge", "cohort adapters need a variance_ridge, and no projection")

    def branch(cohort: str) -> AdaptedBranch:
        digest = hashlib.sha256(f"{context.seed} {cohort}".encode()).digest()
        return build_branch(ridge, lora, context, int.from_bytes(digest[:7], "big"))

    branch("")  # an impossible option is refused now, not when the first cohort comes
    return CohortAdaptersLearner(
        block_features.FrozenReader(backbone, context.compute, blocks, tta_views=ridge.tta_views),
        cohort_parts.CohortRule(options.cohort_by, options.records_per_cohort, options.max_adapters),
        branch,
        width=block_features.concat_width(backbone, blocks),
        cut=lora.first_adapted(backbone.depth),
        variance_ridge=ridge.variance_ridge,
        refit_fraction=ridge.refit_fraction,
        sharpness=RIDGE_SHARPNESS,
    )


COHORT_ADAPTERS = LearnerFactory(CohortAdaptersOptions, build_cohort_adapters)

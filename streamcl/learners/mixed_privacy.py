"""Mixed privacy: core samples train everything, user samples only what is linear around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import LearnedSample
from streamcl.config.options.base import Options, Warn
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.ridge_lora import (
    LoRABranchOptions,
    RidgeBranchOptions,
    RidgeLoRAFeatures,
    RidgeLoRALearner,
    build_ridge_lora,
)
from streamcl.learners.rollback import Rollback, Transaction
from streamcl.protocols import State
from streamcl.registry import lazy_imports

with lazy_imports():
    from streamcl.heads import user_weights
    from streamcl.learners import block_features, mixed_statistics, predictions, tangent_features

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.user_weights import UserWeights
    from streamcl.learners.mixed_statistics import MixedPrivacyStatistics
    from streamcl.learners.tangent_features import TangentReader


class UserOptions(Options):
    """The linear part that samples of users train, around the core's weights (arXiv 2012.13431)."""

    tangents: int = Field(
        256, ge=0, le=16_384, description="Width of the sketch of LoRA's tangent features; 0: none of them."
    )
    linearised_blocks: int = Field(1, ge=1, le=512, description="Last blocks whose LoRA is linearised.")
    variance_ridge: Warn[float] = Field(
        300.0, gt=0, le=1e9, description="Ridge of each feature: its variance times so many samples."
    )
    noise: Warn[float] = Field(
        1e-3,
        ge=0,
        le=1e3,
        description="Standard deviation of the noise on the weights in use, in units of 1 / their feature's; "
        "0: none, and no bound.",
    )
    max_tracked_subjects: Warn[int] = Field(
        64,
        ge=0,
        le=100_000,
        description="Subjects with sums of their own; later ones are forgotten by their samples only.",
    )


class MixedPrivacyOptions(Options):
    """Mixed privacy: a ridge_lora learner that only core samples train, and the users' linear part on top."""

    name: Literal["mixed_privacy"] = Field(
        "mixed_privacy", description="Core samples train all, users a linear part."
    )
    ridge: RidgeBranchOptions = Field(RidgeBranchOptions(), description="The core's closed-form branch.")
    lora: LoRABranchOptions = Field(LoRABranchOptions(), description="The core's adapted branch.")
    users: UserOptions = Field(UserOptions(), description="The users' part.")


USER_STATISTICS = "user statistics of unsettled adapters"


class MixedPrivacyLearner:
    """f(x) = f_c(x) + z(x) V (arXiv 2012.13431): RidgeLoRALearner for core samples, linear part for users.

    z is 1 or 0 for whether the adapters hold still, the last block's frozen tokens and, once they hold still,
    tangent features of their LoRA; until then those are 0, so earlier samples of users reach the weights of
    the frozen tokens alone. No user sample trains adapters, the core's heads or its calibration, or is shown
    to the detector before the adapters have settled: the core is bit-equal to that of a stream without users.
    Core samples are in the sums of z as well, so that V is what users change and no more.
    """

    def __init__(
        self, core: RidgeLoRALearner, users: UserWeights, tangents: TangentReader | None, *, frozen: int
    ) -> None:
        self.core = core
        self.users = users
        self.tangents = tangents
        self._frozen = frozen  # the last so many of the exact branch's features are the last block's
        self._index = ClassIndex()
        self._moved_until = 0  # the offset up to which samples came while the adapters moved

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, in the order in which they were first learned."""
        return self._index.names

    @property
    def backbone(self) -> Any:
        """The frozen backbone."""
        return self.core.backbone

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """One guess per sample; changes nothing that decides the future."""
        return predictions.to_predictions(self.logits(samples), self.classes) if samples else ()

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Scores [B, C] of samples, one or more, whose softmax is the classes' probabilities."""
        reading = self.core.read(samples)
        scores = self._total(self.core.scores_refit(reading), self.users.scores_refit(self._z(reading)))
        return self.core.sharpness * scores

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, teach the core its core samples, and add everything to the sums of z."""
        if not batch.samples:
            return StepResult((), (), learned=())
        sides = [_Side(batch, privacy) for privacy in ("core", "user")]
        seen = {
            side.privacy: (side, reading, self._z(reading))
            for side in sides
            if side.rows
            for reading in (self.core.read(side.samples),)
        }
        scores = self._scores(batch, list(seen.values()))
        predicted = predictions.to_predictions(self.core.sharpness * scores, self.classes)
        losses = self._losses(batch, scores)
        if not all(predictions.all_finite(z) for _, _, z in seen.values()):
            return StepResult(predicted, losses, learned=())
        moving = self._moving
        with Transaction(self._savepoint()) as step:
            self._index = ClassIndex([*self.classes, *(str(sample.label) for sample in batch.labelled)])
            self.users.grow(len(self._index))
            for side, _, z in seen.values():
                self._add(side, z)
            self.users.refit_if_due()
            if not all(self._taught(side, reading) for side, reading, _ in seen.values()):
                step.refuse()
        if step.accepted and moving:
            self._moved_until = batch.end
        return StepResult(predicted, losses, learned=batch.labelled_offsets if step.accepted else ())

    def consolidate(self) -> Mapping[str, Any]:
        """At the first plateau of the core's loss the adapters settle."""
        return self.core.consolidate()

    @property
    def statistics(self) -> MixedPrivacyStatistics:
        """The removable statistics, of core samples and of users."""
        return mixed_statistics.MixedPrivacyStatistics(
            self.core, self.users, lambda samples: self._z(self.core.read(samples)), self._index
        )

    @property
    def capabilities(self) -> Capabilities:
        """Statistics that samples are subtracted from, and weights of users alone."""
        return Capabilities(
            statistics=self.statistics,
            drop_class=self.drop_class,
            shared_weights=self.weights_trained_on,
            users=self,
            adapter_export=self.core.capabilities.adapter_export,  # what users have taught is not exported
        )

    def drop_class(self, name: str) -> None:
        """Lose a class whose samples are all forgotten; later classes move up by one column."""
        left = self._index.without(name)
        self.users.select([i for i, each in enumerate(self.classes) if each != name])
        if name in self.core.classes:
            self.core.drop_class(name)
        self._index = left

    def weights_trained_on(self, samples: Iterator[Sequence[LearnedSample]]) -> tuple[str, ...]:
        """Return weights trained while the adapters moved; their statistics cannot be derived again."""
        early = {each.private for chunk in samples for each in chunk if each.offset < self._moved_until}
        found = ("adapters", "adapted statistics") if False in early else ()
        return (*found, USER_STATISTICS) if True in early else found

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on the users' weights, in units of 1 / a feature's own."""
        return self.users.noise

    def user_sample_count(self, subject: str) -> int:
        """How many samples are in the sums that are kept of a subject."""
        sums = self.users.cohorts.get(mixed_statistics.subject_cohort(subject))
        return 0 if sums is None else sums.total

    def forget_subject(self, subject: str) -> Mapping[str, Any]:
        """Take a subject's own sums out; classes that only it had go too. Figures, with the bound."""
        figures = self.users.forget_cohort(mixed_statistics.subject_cohort(subject))
        counts = dict(zip(self.classes, self.users.counts.tolist(), strict=True))
        self._keep([name for name in self.classes if counts[name] or name in self.core.classes])
        return {**figures, "linear_since": self._moved_until}

    def forget_users(self) -> None:
        """Set the users' weights and sums to zero: what is left is the core, as if no user had ever come."""
        self.users.forget_users()
        self._keep(self.core.classes)

    def state_dict(self) -> State:
        """The core, the users' sums and weights, the classes."""
        return {
            "core": self.core.state_dict(),
            "users": self.users.state_dict(),
            "classes": list(self.classes),
            "moved_until": self._moved_until,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.core.load_state_dict(state["core"])
        self.users.load_state_dict(state["users"])
        self._index = ClassIndex(state["classes"])
        self._moved_until = int(state["moved_until"])

    def _savepoint(self) -> Rollback:
        """Return a callable that restores everything but the core, which restores itself."""
        users, index = self.users.savepoint(), self._index

        def undo() -> None:
            users()
            self._index = index

        return undo

    def _taught(self, side: _Side, reading: RidgeLoRAFeatures) -> bool:
        """Teach the core, if these are its samples; False where it has not learned them."""
        if side.privacy == "user":
            return True
        batch = side.batch
        return self.core.learn_from(batch, reading).learned == batch.labelled_offsets

    @property
    def _moving(self) -> bool:
        return self.tangents is not None and not self.tangents.fixed

    def _z(self, reading: RidgeLoRAFeatures) -> Tensor:
        """float32 [B, 1 + frozen + tangents]."""
        import torch

        features = reading.features[:, -self._frozen :].float()
        still = features.new_full((len(features), 1), float(not self._moving))
        if self.tangents is None:
            return torch.cat([still, features], dim=1)
        if self._moving:
            tangents = features.new_zeros(len(features), self.tangents.width)
        else:
            tangents = self.tangents(reading.views[0])
        return torch.cat([still, features, tangents], dim=1)

    def _scores(self, batch: Batch, seen: Sequence[tuple[_Side, RidgeLoRAFeatures, Tensor]]) -> Tensor:
        """float64 [B, C] by the weights in use; each side is read apart, so neither rounds by the other."""
        parts = [self._total(self.core.scores(reading), self.users.scores(z)) for _, reading, z in seen]
        scores = parts[0].new_empty(len(batch), len(self.classes))
        for (side, _, _), part in zip(seen, parts, strict=True):
            scores[side.rows] = part
        return scores

    def _total(self, core: Tensor, users: Tensor) -> Tensor:
        """[B, C] from the core's [B, c] and the users': a class that the core has not met scores 0 there."""
        import torch

        total = users.clone()
        if self.core.classes:
            total[:, self._index.columns(self.core.classes, users.device)] += core.masked_fill(
                core.isinf(), 0.0
            )
        return total.masked_fill(self.users.counts == 0, -torch.inf)

    def _losses(self, batch: Batch, scores: Tensor) -> tuple[float, ...]:
        """Of labelled samples; while the adapters move the core's alone, for they decide when to settle."""
        rows = [
            row
            for row, sample in enumerate(batch.samples)
            if sample.label is not None and (sample.privacy == "core" or not self._moving)
        ]
        names = [str(batch.samples[row].label) for row in rows]
        targets = ClassIndex([*self.classes, *names]).columns(names, scores.device)
        return tuple(predictions.open_set_nll(self.core.sharpness * scores[rows], targets).tolist())

    def _add(self, side: _Side, z: Tensor) -> None:
        """Put labelled samples into the sums: the core's at once, users' cohort by cohort."""
        cohorts: dict[str | None, list[int]] = {}
        for row, sample in enumerate(side.samples):
            if sample.label is not None:
                name = None if side.privacy == "core" else mixed_statistics.subject_cohort(sample.subject)
                cohorts.setdefault(name, []).append(row)
        for name, rows in cohorts.items():
            targets = self._index.columns([side.samples[row].label for row in rows], z.device)
            share = self.users.statistics_of(z[rows], targets)
            if name is None:
                self.users.add_core(share)
            else:
                self.users.add_users(share, name or None)

    def _keep(self, names: Sequence[str]) -> None:
        """Have these classes, in this order."""
        self.users.select([self.classes.index(name) for name in names])
        self._index = ClassIndex(names)


class _Side:
    """The core's or the users' samples of a batch, and their rows in it."""

    def __init__(self, batch: Batch, privacy: str) -> None:
        self.privacy = privacy
        self.rows = [row for row, sample in enumerate(batch.samples) if sample.privacy == privacy]
        self.samples = [batch.samples[row] for row in self.rows]

    @property
    def batch(self) -> Batch:
        """These samples as a batch of their own; its offset is of no account."""
        return Batch(0, tuple(self.samples))


def build_mixed_privacy(options: MixedPrivacyOptions, context: LearnerContext) -> MixedPrivacyLearner:
    """Return a ridge_lora learner that core samples train, with a part for users on top."""
    core, users = build_ridge_lora(options.ridge, options.lora, context), options.users
    tangents = None
    if core.adapted is not None and users.tangents:
        tangents = tangent_features.TangentReader(
            core.adapted,
            width=users.tangents,
            linearised_blocks=users.linearised_blocks,
            seed=context.seed,
        )
    last = max(context.blocks(options.ridge.blocks))
    frozen = block_features.concat_width(context.backbone, [last])
    weights = user_weights.UserWeights(
        1 + frozen + (0 if tangents is None else tangents.width),
        **users.model_dump(include={"variance_ridge", "noise", "max_tracked_subjects"}),
        refit_fraction=options.ridge.refit_fraction,
        device=context.compute.device,
    )
    return MixedPrivacyLearner(core, weights, tangents, frozen=frozen)


MIXED_PRIVACY = LearnerFactory(MixedPrivacyOptions, build_mixed_privacy)

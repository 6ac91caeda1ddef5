"""Mixed privacy: core samples train everything, user samples only what is linear around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import LearnedSample
from streamcl.config.options.base import Options, Warn
from streamcl.events import Batch, Sample, StepResult
from streamcl.learners.adapted_branch import LoRABranchOptions, RidgeLoRAFeatures
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge_lora import RidgeLoRALearner, build_ridge_lora
from streamcl.learners.ridge_lora_options import RidgeBranchOptions
from streamcl.learners.statistics import MixedPrivacyStatistics, subject_cohort
from streamcl.learners.step import LogitLearner, Transaction
from streamcl.protocols import State, savepoint_of

with lazy_imports():
    import torch

    from streamcl.heads import user_weights
    from streamcl.learners import block_features, predictions, tangent_features

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.user_weights import UserWeights
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
        1e-3, ge=0, le=1e3, description="Noise on weights in use, in 1 / a feature's deviation; 0: none."
    )
    max_tracked_subjects: Warn[int] = Field(
        64, ge=0, le=100_000, description="Subjects with sums of their own; others go by their samples."
    )


class MixedPrivacyOptions(Options):
    """Mixed privacy: a ridge_lora learner that only core samples train, and the users' linear part on top."""

    name: Literal["mixed_privacy"] = Field("mixed_privacy", description="Core trains all, users a part.")
    ridge: RidgeBranchOptions = Field(RidgeBranchOptions(), description="The core's closed-form branch.")
    lora: LoRABranchOptions = Field(LoRABranchOptions(), description="The core's adapted branch.")
    users: UserOptions = Field(UserOptions(), description="The users' part.")


class MixedPrivacyLearner(LogitLearner):
    """f(x) = f_c(x) + z(x) V (arXiv 2012.13431): RidgeLoRALearner for core samples, linear part for users.

    z is 1 or 0 for whether the adapters are frozen, the last block's frozen tokens and, once they are,
    tangent features of their LoRA; until then those are 0, so earlier samples of users reach the weights of
    the frozen tokens alone. No user sample trains adapters, the core's heads or its calibration, or is shown
    to the detector before the adapters are frozen: the core is bit-equal to that of a stream without users.
    Core samples are in the sums of z as well, so that V is what users change and no more.
    """

    def __init__(
        self, core: RidgeLoRALearner, users: UserWeights, tangents: TangentReader | None, *, frozen: int
    ) -> None:
        self.core = core
        self.users = users
        self.tangents = tangents
        self._frozen = frozen  # the last so many of the exact branch's features are the last block's
        self.index = ClassIndex()
        self._moved_until = 0  # the offset up to which samples came while the adapters moved

    @property
    def backbone(self) -> Any:
        """The frozen backbone."""
        return self.core.backbone

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C] by weights of all that is known."""
        reading = self.core.read(samples)
        scores = self._total(self.core.scores_refit(reading), self.users.scores_refit(self._z(reading)))
        return self.core.calibration.for_predictions(scores)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, teach the core its core samples, and add everything to the sums of z."""
        if not batch.samples:
            return StepResult((), (), learned=())
        sides = self._sides(batch)
        scores = self._scores(batch, sides)
        calibrated = self.core.calibration.before_learning(scores)
        predicted = predictions.to_predictions(calibrated, self.classes)
        losses = self._losses(batch, self._scores(batch, sides, last_solve=True))
        if not all(predictions.all_finite(side.z) for side in sides):
            return StepResult(predicted, losses, learned=())
        moving = self._moving
        with Transaction(self.users.savepoint(), savepoint_of(self, "index")) as step:
            self.index = ClassIndex([*self.classes, *(str(sample.label) for sample in batch.labelled)])
            self.users.grow(len(self.index))
            for side in sides:
                self._add(side)
            self.users.refit_if_due()
            if not all(self._teach_core(side) for side in sides if side.privacy == "core"):
                step.refuse()
        if step.accepted and moving:
            self._moved_until = batch.end
        return StepResult(predicted, losses, learned=batch.labelled_offsets if step.accepted else ())

    def consolidate(self) -> Mapping[str, Any]:
        """Freeze the adapters at the first plateau of the core's loss."""
        return self.core.consolidate()

    @property
    def statistics(self) -> MixedPrivacyStatistics:
        """The removable statistics, of core samples and of users."""
        return MixedPrivacyStatistics(
            self.core, self.users, lambda samples: self._z(self.core.read(samples)), self.index
        )

    @property
    def capabilities(self) -> Capabilities:
        """Statistics that samples are subtracted from, and weights of users alone."""
        return Capabilities(
            statistics=self.statistics,
            drop_class=self.drop_class,
            shared_weights=self.weights_trained_on,
            users=self,
            adapter_export=self.core.capabilities.adapter_export,  # nothing of users is exported
        )

    def drop_class(self, name: str) -> None:
        """Lose a class whose samples are all forgotten; later classes move up by one column."""
        left = self.index.without(name)
        self.users.select([i for i, each in enumerate(self.classes) if each != name])
        if name in self.core.classes:
            self.core.drop_class(name)
        self.index = left

    def weights_trained_on(self, samples: Iterator[Sequence[LearnedSample]]) -> tuple[str, ...]:
        """Return weights trained while the adapters moved; their statistics cannot be derived again."""
        early = {each.private for chunk in samples for each in chunk if each.offset < self._moved_until}
        found = ("adapters", "adapted statistics") if False in early else ()
        return (*found, "user statistics of unsettled adapters") if True in early else found

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on the users' weights, in units of 1 / a feature's own."""
        return self.users.noise

    def user_sample_count(self, subject: str) -> int:
        """Return the number of samples in the sums that are stored for a subject."""
        sums = self.users.cohorts.get(subject_cohort(subject))
        return 0 if sums is None else sums.total

    def forget_subject(self, subject: str) -> Mapping[str, Any]:
        """Subtract a subject's sums, and drop classes that only it had; return figures, with the bound."""
        figures = self.users.forget_cohort(subject_cohort(subject))
        counts = dict(zip(self.classes, self.users.counts.tolist(), strict=True))
        self._keep([name for name in self.classes if counts[name] or name in self.core.classes])
        return {**figures, "linear_since": self._moved_until}

    def forget_users(self) -> None:
        """Set the users' weights and sums to zero: the core is left, as if no user had ever come."""
        self.users.forget_users()
        self._keep(self.core.classes)

    def state_dict(self) -> State:
        """Return the core, the users' sums and weights, and the classes."""
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
        self.index = ClassIndex(state["classes"])
        self._moved_until = int(state["moved_until"])

    def _sides(self, batch: Batch) -> list[_Side]:
        """Read the core's samples and the users' apart, so that neither are rounded by the others."""
        sides = []
        for privacy in ("core", "user"):
            if rows := [row for row, sample in enumerate(batch.samples) if sample.privacy == privacy]:
                reading = self.core.read(samples := tuple(batch.samples[row] for row in rows))
                z = self._z(reading)
                sides.append(_Side(privacy, rows, samples, reading, z, self.users.scores(z)))
        return sides

    def _teach_core(self, side: _Side) -> bool:
        """Return whether the core has learned its samples."""
        batch = Batch(0, side.samples)  # nothing in the core depends on the offset, which is not theirs
        return self.core.learn_from(batch, side.reading).learned == batch.labelled_offsets

    @property
    def _moving(self) -> bool:
        return self.tangents is not None and not self.tangents.fixed

    def _z(self, reading: RidgeLoRAFeatures) -> Tensor:
        """float32 [B, 1 + frozen + tangents]."""
        features = reading.features[:, -self._frozen :].float()
        still = features.new_full((len(features), 1), float(not self._moving))
        if self.tangents is None:
            return torch.cat([still, features], dim=1)
        if self._moving:
            tangents = features.new_zeros(len(features), self.tangents.width)
        else:
            tangents = self.tangents(reading.views[0])
        return torch.cat([still, features, tangents], dim=1)

    def _scores(self, batch: Batch, sides: Sequence[_Side], *, last_solve: bool = False) -> Tensor:
        """Return float64 [B, C] by the weights in use."""
        of = self.core.last_solve_scores if last_solve else self.core.scores
        parts = [self._total(of(side.reading), side.user_scores) for side in sides]
        scores = parts[0].new_empty(len(batch), len(self.classes))
        for side, part in zip(sides, parts, strict=True):
            scores[side.rows] = part
        return scores

    def _total(self, core: Tensor, users: Tensor) -> Tensor:
        """[B, C] from the core's [B, c] and the users': a class that the core has not met scores 0 there."""
        total, columns = users.clone(), self.index.columns(self.core.classes, users.device)
        total[:, columns] += core.masked_fill(core.isinf(), 0.0)
        return total.masked_fill(self.users.counts == 0, -torch.inf)

    def _losses(self, batch: Batch, scores: Tensor) -> tuple[float, ...]:
        """Return those of labelled samples; of the core alone while its adapters train, which they end."""
        rows = [
            row
            for row, sample in enumerate(batch.samples)
            if sample.label is not None and (sample.privacy == "core" or not self._moving)
        ]
        names = [str(batch.samples[row].label) for row in rows]
        targets = ClassIndex([*self.classes, *names]).columns(names, scores.device)
        return tuple(predictions.open_set_nll(self.core.exact.sharpness * scores[rows], targets).tolist())

    def _add(self, side: _Side) -> None:
        """Add labelled samples to the sums: the core's at once, users' cohort by cohort."""
        cohorts: dict[str | None, list[int]] = {}
        for row, sample in enumerate(side.samples):
            if sample.label is not None:
                name = None if side.privacy == "core" else subject_cohort(sample.subject)
                cohorts.setdefault(name, []).append(row)
        for name, rows in cohorts.items():
            targets = self.index.columns([side.samples[row].label for row in rows], side.z.device)
            share = self.users.statistics_of(side.z[rows], targets)
            if name is None:
                self.users.add_core(share)
            else:
                self.users.add_users(share, name or None)

    def _keep(self, names: Sequence[str]) -> None:
        """Keep these classes, in this order."""
        self.users.select([self.classes.index(name) for name in names])
        self.index = ClassIndex(names)


class _Side(NamedTuple):
    """The core's or the users' samples of a batch, their rows in it, features z and users' scores."""

    privacy: str
    rows: list[int]
    samples: tuple[Sample, ...]
    reading: RidgeLoRAFeatures
    z: Tensor
    user_scores: Tensor


def build_mixed_privacy(options: MixedPrivacyOptions, context: LearnerContext) -> MixedPrivacyLearner:
    """Return a ridge_lora learner that core samples train, with a part for users on top."""
    core, users = build_ridge_lora(options.ridge, options.lora, context), options.users
    tangents = None
    if core.adapted is not None and users.tangents:
        tangents = tangent_features.TangentReader(
            core.adapted, width=users.tangents, linearised_blocks=users.linearised_blocks, seed=context.seed
        )
    frozen = block_features.concat_width(context.backbone, [max(context.blocks(options.ridge.blocks))])
    weights = user_weights.UserWeights(
        1 + frozen + (0 if tangents is None else tangents.width),
        **users.model_dump(include={"variance_ridge", "noise", "max_tracked_subjects"}),
        refit_fraction=options.ridge.refit_fraction,
        device=context.compute.device,
    )
    return MixedPrivacyLearner(core, weights, tangents, frozen=frozen)


MIXED_PRIVACY = LearnerFactory(MixedPrivacyOptions, build_mixed_privacy)

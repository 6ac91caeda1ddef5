"""The user's part of mixed-privacy learning: a quadratic problem on sums that come out again by cohort.

Golatkar and others (arXiv 2012.13431): core weights are fixed, user weights are linear around them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.errors import ForgettingError
from streamcl.heads.solving import Quadratic, is_due
from streamcl.heads.statistics import Statistics, select_columns, subtracted
from streamcl.protocols import Rollback, State, savepoint_of


class UserWeights:
    """The scores that users add, [N, C] = z V + b, on features z [N, D] that never move.

    With L(W) = 1/2 sum |y - z W|^2 + 1/2 sum_j variance_ridge var_j |W_j|^2 over centred features and one-hot
    targets, W is the minimiser over the core's and the users' samples, W_c that over the core's alone, and
    V = W - W_c + noise: no user, no V. Targets are scaled by the rarity of their class, as in RidgeHead.
    The noise is N(0, noise^2) for each weight in units of 1 / its feature's standard deviation; its seed is
    a hash of the users' sums, so the same sums give the same noise, and nobody can derive it without them.

    Args:
        width: D.
        variance_ridge: the ridge of each feature, its variance times so many samples.
        noise: standard deviation of a weight, times that of its feature.
        refit_fraction: share of new samples at which, or when a class has doubled, a solve is due.
        max_tracked_subjects: cohorts with sums of their own, 8 D (D / 2 + C) bytes each; later ones only add
            to the total.
        device: of the sums and weights.
    """

    def __init__(
        self,
        width: int,
        *,
        variance_ridge: float = 300.0,
        noise: float = 1e-3,
        refit_fraction: float = 0.1,
        max_tracked_subjects: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.width, self.noise = width, noise
        self._variance_ridge, self._refit_fraction = variance_ridge, refit_fraction
        self._limit = max_tracked_subjects
        self._device = torch.device(device)
        self.core, self.users = self._nothing(), self._nothing()
        self.cohorts: dict[str, Statistics] = {}
        self._fresh: _Published | None = None  # of all that is known; only spares a second solve
        self._used = self._nobody()

    @property
    def classes(self) -> int:
        """The number of class columns."""
        return self.core.classes

    @property
    def counts(self) -> Tensor:
        """int64 [C]: the core's and the users' samples of each class."""
        return self.core.counts + self.users.counts

    def grow(self, classes: int) -> None:
        """Have at least `classes` columns; the old ones keep their values."""
        more = classes - self.classes
        if more <= 0:
            return
        self.core, self.users = self.core.widened(classes), self.users.widened(classes)
        self.cohorts = {name: each.widened(classes) for name, each in self.cohorts.items()}
        self._used = self._used.select([*range(classes - more), *[-1] * more])
        self._fresh = None

    def statistics_of(self, z: Tensor, targets: Tensor) -> Statistics:
        """Return the statistics of samples.

        Args:
            z: [N, D].
            targets: int64 [N], columns that exist.
        """
        return Statistics.of(z, targets, self.classes)

    def add_core(self, share: Statistics) -> None:
        """Learn core samples."""
        self.core, self._fresh = self.core + share, None

    def add_users(self, share: Statistics, cohort: str | None) -> None:
        """Learn samples of one cohort; without a name, or past the limit, they only join the total."""
        self.users, self._fresh = self.users + share, None
        if cohort is None or (cohort not in self.cohorts and len(self.cohorts) >= self._limit):
            return
        self.cohorts = {**self.cohorts, cohort: self.cohorts.get(cohort, self._nothing()) + share}

    def refit_if_due(self) -> None:
        """Solve anew where that is due; nothing ever is while there are no users."""
        if not self.users.total:
            return
        counts, solved = self.counts, self._used.counts
        if is_due(counts, solved, counts > solved, self._refit_fraction):
            self._used = self._solved()

    def scores(self, z: Tensor) -> Tensor:
        """Return float64 [N, C] for z [N, D], by the weights in use while learning."""
        return self._used.scores(z.detach().double())

    def scores_refit(self, z: Tensor) -> Tensor:
        """Return float64 [N, C] for z [N, D], by weights of all that is known; changes no state."""
        if not self.users.total:
            return self.scores(z)
        if self._fresh is None:
            self._fresh = self._solved()
        return self._fresh.scores(z.detach().double())

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present state; copies nothing."""
        return savepoint_of(self, "core", "users", "cohorts", "_used", "_fresh")

    def forget_cohort(self, name: str) -> Mapping[str, Any]:
        """Take a cohort's sums out and make the Newton step to the minimiser of what remains.

        The figures are those of `remaining` information: w - w_r* is H_r^-1 times the gradient of what
        remains, at the weights before and after the step. Raises ForgettingError, and changes nothing, where
        no sums were kept of it.
        """
        if name not in self.cohorts:
            raise ForgettingError("no sums of that cohort are kept")
        return self.remove(None, {name: self.cohorts[name]}, self.cohorts[name])

    def remove(
        self, core: Statistics | None, cohorts: Mapping[str, Statistics], users: Statistics | None
    ) -> Mapping[str, Any]:
        """Take these sums out of the core's, of the cohorts' own and of all users', then step as above.

        Raises ForgettingError, and changes nothing, where they cannot be in them.
        """
        before = self._used.W
        kept = self.core if core is None else subtracted(self.core, core)
        left = self.users if users is None else subtracted(self.users, users)
        apart = {name: subtracted(self.cohorts[name], each) for name, each in cohorts.items()}
        self.core, self.users, self._fresh = kept, left, None
        self.cohorts = {name: each for name, each in (self.cohorts | apart).items() if each.total}
        figures: dict[str, Any] = {"noise": self.noise, "user_samples_left": self.users.total}
        if not self.users.total:
            self._used = self._nobody()
            return {**figures, "bound_nats": 0.0}
        problem = self._quadratic()
        after = problem.newton(before)
        self._used = self._published(problem, after)
        return {
            **figures,
            "newton_distance": float(problem.distance(after).abs().max()),
            "bound_nats": problem.nats(after, self.noise),
            "nats_without_the_step": problem.nats(before, self.noise),
        }

    def forget_users(self) -> None:
        """Remove every user: the weights are zero, as if there had never been one."""
        self.users, self.cohorts = self._nothing(self.classes), {}
        self._used, self._fresh = self._nobody(), None

    def select(self, columns: Sequence[int]) -> None:
        """Keep these class columns, in this order; a column that goes must have no samples left."""
        gone = [i for i in range(self.classes) if i not in set(columns)]
        if gone and int(self.counts[gone].sum()):
            raise ForgettingError("a class that still has samples in the user sums cannot be removed")
        self.core, self.users = self.core.select(columns), self.users.select(columns)
        self.cohorts = {name: each.select(columns) for name, each in self.cohorts.items()}
        self._used, self._fresh = self._used.select(columns), None

    def state_dict(self) -> State:
        """Return the sums, and the weights in use with the counts that they belong to."""
        return {
            "core": self.core.state_dict(),
            "users": self.users.state_dict(),
            "cohorts": {name: each.state_dict() for name, each in self.cohorts.items()},
            "used": {
                name: getattr(self._used, name).cpu().numpy().copy() for name in ("W", "V", "b", "counts")
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the weights that returned `state`."""
        self.core, self.users = self._imported(state["core"]), self._imported(state["users"])
        self.cohorts = {name: self._imported(each) for name, each in state["cohorts"].items()}
        used = {
            name: torch.tensor(np.asarray(value)).to(self._device) for name, value in state["used"].items()
        }
        self._used, self._fresh = _Published(**used), None

    def _quadratic(self) -> Quadratic:
        return Quadratic(self.core + self.users, self._variance_ridge)

    def _solved(self) -> _Published:
        problem = self._quadratic()
        return self._published(problem, problem.minimiser())

    def _published(self, problem: Quadratic, W: Tensor) -> _Published:
        """The published form of W, weights for the problem of all sums.

        The core's own minimiser is taken off, noise is put on.
        Laid out in memory as a state restores them: the last bits of products depend on it.
        """
        core = Quadratic(self.core, self._variance_ridge)
        noisy = W + self._noise(problem)
        base = core.minimiser()
        b = problem.intercept(noisy) - core.intercept(base)
        return _Published(W.contiguous(), (noisy - base).contiguous(), b, self.counts)

    def _noise(self, problem: Quadratic) -> Tensor:
        """[D, C], from a generator that the users' sums seed; none where a weight is held at zero."""
        digest = hashlib.sha256(self.users.Q.cpu().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        drawn = torch.randn(self.width, self.classes, generator=generator, dtype=torch.float64)
        return self.noise * drawn.to(self._device) * problem.unit[:, None] * problem.present

    def _nothing(self, classes: int = 0) -> Statistics:
        return Statistics.empty(self.width, self._device, classes)

    def _nobody(self) -> _Published:
        none = self._nothing(self.classes)
        return _Published(none.Q, none.Q.clone(), none.Q[0].clone(), none.counts)

    def _imported(self, state: Mapping[str, Any]) -> Statistics:
        return Statistics.from_state(state, self.width, self._device)


@dataclass(frozen=True, slots=True, eq=False)
class _Published:
    """W: the minimiser without noise. V [D, C], b [C]: what scores are made of. counts: solved for these."""

    W: Tensor
    V: Tensor
    b: Tensor
    counts: Tensor

    def scores(self, z: Tensor) -> Tensor:
        return z @ self.V + self.b

    def select(self, columns: Sequence[int]) -> _Published:
        """These columns in this order; -1 is a new one, all zero."""
        return _Published(*(select_columns(each, columns) for each in (self.W, self.V, self.b, self.counts)))

"""Fast-NTK (arXiv 2312.14923): forgetting by a closed-form step in few weights of the linearised model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.jacobian import ParameterSubset, SampleOutput
from streamcl.forgetting.methods.objective import ForgetObjective, margins_over_others
from streamcl.forgetting.methods.protocol import Context, ErasureResult
from streamcl.forgetting.methods.retain_set import Retain, missing_reason, retained_samples
from streamcl.forgetting.methods.weight_repair import (
    RepairableBlocks,
    finish_repair,
    repairable_blocks,
    rounded,
    samples_to_forget,
    unrepairable_reason,
)
from streamcl.requests.terms import Guarantee

MAX_JACOBIAN_BYTES = 1 << 30
"""Bytes that the Jacobian may have; the products made of it are never larger."""

STEP_SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of a step, tried in turn: past some length the model is not the linear one that the step was made for."""

MIN_AGREEMENT = 0.95
"""Share of retained answers that every step must keep as they were before the first."""

REPAIR_DESCRIPTION = "repaired, not retrained: closed-form steps in the adapters of the last {} blocks"

FAST_NTK_RESIDUAL = (
    "The steps are right for a linear model and all retained data; here they are estimates from a few "
    "samples, so whoever holds the weights may find traces of what was forgotten or relearn it faster."
)


class FastNTK:
    """Steps of -P J_f^T M V in lora_B of the last blocks, the model linearised anew before each.

    V is how far outputs of the samples to forget are above those of samples never learned: for each the
    margin of its class over the others, less the margin at which its loss is the bound (see
    ForgetObjective). P keeps the outputs of retained samples, M is the inverse of what P leaves of the
    forgotten samples' kernel. The paper takes labels less the untrained model's outputs for V, and the head
    among the weights. On a pretrained vision transformer that step is right and yet forgets nothing: on
    photos it took 0.79 off the own logit (0.72 by the linear model), all of it from the class's own row of
    the head; that row is dropped anyway, and whoever kept a copy can restore it. So for a class the head
    does not move, V reaches all the way to what was never learned, each step goes only as far as retained
    answers stay, and an erasure that does not reach the bound fails.

    Args:
        retain: gives samples to retain (see `retain_set`).
        blocks: the lora_B of the last so many move.
        forget, retain_samples: how many samples of each kind are used.
        sketches: random signed sums of a retained sample's remaining logits, which stand for all of them.
        ridge: lambda, as a share of the mean diagonal entry of J J^T.
        steps: at most.
        limit: bytes of J.
    """

    name = "fast_ntk"
    guarantee: Guarantee = "approximate"
    cost = 60

    def __init__(
        self,
        retain: Retain | None = None,
        *,
        blocks: int = 2,
        forget: int = 48,
        retain_samples: int = 128,
        sketches: int = 6,
        ridge: float = 1e-2,
        steps: int = 6,
        limit: int = MAX_JACOBIAN_BYTES,
    ) -> None:
        self._retain, self._blocks = retain, blocks
        self._forget, self._retain_samples, self._sketches = forget, retain_samples, sketches
        self._ridge, self._steps, self._limit = ridge, steps, limit

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason unless there are adapted blocks, samples of both sorts, a Jacobian that fits."""
        if reason := unrepairable_reason(request, context) or missing_reason(self._retain, request, context):
            return reason
        forget = min(self._forget, context.scope.learned or len(request.samples))
        subset = self._subset(repairable_blocks(context, self._blocks), request)
        return self._too_large(forget, self._retain_samples, subset.count)

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Take the steps, drop the class, finish the repair.

        Raise ForgettingError, with the weights as they were, where a system cannot be solved, or the samples
        are not forgotten enough, or too much else is.
        """
        blocks = repairable_blocks(context, self._blocks)
        subset = self._subset(blocks, request)
        forgotten = samples_to_forget(request, context, self._forget)
        others = retained_samples(self._retain, request, context, forgotten, self._retain_samples)
        if reason := self._too_large(len(forgotten), len(others), subset.count):
            raise ForgettingError(reason)
        objective = ForgetObjective.of(blocks, request, forgotten, others)
        before, backup = objective.figures(), subset.copy()
        try:
            walked = self._walk(objective, subset, before)
            after = objective.figures()
            objective.check(before, after)
        except ForgettingError:
            subset.restore(backup)
            raise
        figures = {**objective.report(before, after), **walked, "parameters": subset.count}
        locations = finish_repair(request, context, others, REPAIR_DESCRIPTION.format(len(blocks.names)))
        return ErasureResult(self.name, self.guarantee, FAST_NTK_RESIDUAL, locations, rounded(figures))

    def _subset(self, blocks: RepairableBlocks, request: ForgetRequest) -> ParameterSubset:
        """Return the parameters to move: not the head for a class, whose row is dropped anyway."""
        return ParameterSubset(blocks, None if request.kind == "class" else blocks.model.head)

    def _too_large(self, forget: int, retain: int, parameters: int) -> str | None:
        rows = forget + self._sketches * (forget + retain)
        size = 8 * rows * parameters
        if size <= self._limit:
            return None
        return (
            f"the Jacobian of {rows} outputs by {parameters} parameters takes {size / 1e9:.1f} GB, "
            f"more than the limit of {self._limit / 1e9:.1f}"
        )

    def _walk(
        self, objective: ForgetObjective, subset: ParameterSubset, before: dict[str, float]
    ) -> dict[str, float | int]:
        """Step until the objective is reached; return the number of steps and the distance that they led."""
        generator = torch.Generator().manual_seed(0)  # a repetition after a crash comes to the same weights
        started = torch.cat([p.detach().reshape(-1) for p in subset.parameters])
        taken, now = 0, before
        while taken < self._steps and not objective.is_done(now):
            if not self._go(objective, subset, self._step(objective, subset, generator)):
                break
            taken, now = taken + 1, objective.figures()
        moved = torch.cat([p.detach().reshape(-1) for p in subset.parameters]) - started
        return {"steps": taken, "step_norm": float(moved.norm())}

    def _step(
        self, objective: ForgetObjective, subset: ParameterSubset, generator: torch.Generator
    ) -> Tensor:
        """Return float64 [p]: in the linear model it lowers every margin that is too high to the aim."""
        J_f = subset.jacobian(objective.forget, [_margin(objective)])
        J_r = sketched_outputs(objective, subset, objective.retain, self._sketches, generator)
        if objective.instead is not None:  # a forgotten class's samples keep their answers among the others
            J_r = torch.cat(
                [J_r, sketched_outputs(objective, subset, objective.forget, self._sketches, generator)]
            )
        excess = (_margins(objective) - objective.target_margin).clamp(min=0)
        ridge = self._ridge * float((J_f.square().sum() + J_r.square().sum()) / (len(J_f) + len(J_r)))
        return unlearning_step(J_f, J_r, excess, J_r.new_zeros(len(J_r)), ridge)

    def _go(self, objective: ForgetObjective, subset: ParameterSubset, step: Tensor) -> bool:
        """Move by the largest share that forgets some and keeps the answers; return whether there was one."""
        here, before = subset.copy(), float(_margins(objective).mean())
        for share in STEP_SHARES:
            subset.move(share * step)
            if objective.agreement() >= MIN_AGREEMENT and float(_margins(objective).mean()) < before:
                return True
            subset.restore(here)
        return False


def sketched_outputs(
    objective: ForgetObjective,
    subset: ParameterSubset,
    tokens: Tensor,
    sketches: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the Jacobian of random signed sums of remaining logits, scaled to weigh as all do.

    The sums are of logits less their mean, as answers do not depend on what is added to all of them. If
    the logits themselves were held, the features could leave the forgotten class only along what its row
    does not share with the remaining ones. Rows sum to about zero, so an earlier class's row, which the
    head lacks by then, points the other way, and that class came back.

    Args:
        objective: names the columns that stay.
        subset: the parameters that move.
        tokens: [N, T, d], those that enter the first of the blocks.
        sketches: K sums a sample.
        generator: draws the signs.

    Returns:
        Float64 [K N, p].
    """
    shape = (sketches, len(tokens), len(objective.columns))
    signs = 2.0 * torch.randint(2, shape, generator=generator).to(tokens.device) - 1

    def sketch(number: int) -> SampleOutput:
        return lambda _, logits, rows: (signs[number, rows] * _centred(logits[:, objective.columns])).sum(1)

    outputs = [sketch(number) for number in range(sketches)]
    return subset.jacobian(tokens, outputs) / math.sqrt(sketches)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)


def _margin(objective: ForgetObjective) -> SampleOutput:
    """Return a forgotten sample's logit less the logsumexp of all others; its loss is softplus(-margin)."""

    def margin(features: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        return margins_over_others(*objective.scored(features, logits, rows))

    return margin


@torch.no_grad()
def _margins(objective: ForgetObjective) -> Tensor:
    """Return float64 [F]."""
    features = objective.blocks.features(objective.forget)
    rows = torch.arange(len(features), device=features.device)
    return _margin(objective)(features, objective.blocks.model.head(features), rows).double()


def unlearning_step(J_f: Tensor, J_r: Tensor, v_f: Tensor, v_r: Tensor, ridge: float) -> Tensor:
    """Return w(retained) - w(all), float64 [p], in the smaller of two forms that are equal.

    w(D) = argmin |J (w - w0) - v|^2 + ridge |w - w0|^2 over the outputs of D (Fast-NTK, arXiv 2312.14923).

    Args:
        J_f: [F, p], Jacobian of the forgotten samples' outputs at w0.
        J_r: [R, p], that of the retained samples' outputs.
        v_f: [F], targets less outputs, y - f(w0), of the forgotten samples.
        v_r: [R], those of the retained samples.
        ridge: above zero, or zero where the problem has one solution without it.

    Raises:
        ForgettingError: the problem has no one solution.
    """
    form = kernel_form if len(J_f) + len(J_r) < J_f.shape[1] else primal_form
    return form(J_f.double(), J_r.double(), v_f.double(), v_r.double(), ridge)


def kernel_form(J_f: Tensor, J_r: Tensor, v_f: Tensor, v_r: Tensor, ridge: float) -> Tensor:
    """Return -P J_f^T M V, float64 [p], by systems of the size of the outputs: equations 5 to 7 of the paper.

    P = I - J_r^T Theta_rr^-1 J_r, M = (Theta_ff - Theta_rf^T Theta_rr^-1 Theta_rf)^-1,
    V = v_f - Theta_rf^T Theta_rr^-1 v_r, Theta = J J^T + ridge I.

    Args:
        J_f, J_r: float64 [F, p] and [R, p], see `unlearning_step`.
        v_f, v_r: float64 [F] and [R].
        ridge: see `unlearning_step`.
    """
    theta_rf = J_r @ J_f.T  # [R, F]
    rr = _factor(J_r @ J_r.T, ridge)
    across = torch.cholesky_solve(theta_rf, rr)  # Theta_rr^-1 Theta_rf
    complement = J_f @ J_f.T - theta_rf.T @ across
    weights = torch.cholesky_solve((v_f - across.T @ v_r)[:, None], _factor(complement, ridge))[:, 0]
    return J_r.T @ (across @ weights) - J_f.T @ weights


def primal_form(J_f: Tensor, J_r: Tensor, v_f: Tensor, v_r: Tensor, ridge: float) -> Tensor:
    """Return -(J_r^T J_r + ridge I)^-1 J_f^T (v_f - J_f (w(all) - w0)), [p], by systems of p unknowns.

    Args:
        J_f, J_r: float64 [F, p] and [R, p], see `unlearning_step`.
        v_f, v_r: float64 [F] and [R].
        ridge: see `unlearning_step`.
    """
    gram = J_r.T @ J_r
    right = (J_f.T @ v_f + J_r.T @ v_r)[:, None]
    trained = torch.cholesky_solve(right, _factor(gram + J_f.T @ J_f, ridge))[:, 0]
    return -torch.cholesky_solve((J_f.T @ (v_f - J_f @ trained))[:, None], _factor(gram, ridge))[:, 0]


def _factor(matrix: Tensor, ridge: float) -> Tensor:
    matrix = matrix.clone()
    size = float(matrix.diagonal().abs().max()) if len(matrix) else 0.0
    matrix.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    smallest = float(factor.diagonal().square().min()) if len(matrix) else 1.0
    if int(failed) or not smallest > 1e-13 * size:
        raise ForgettingError(
            "the linearised problem has no unique solution: outputs repeat, or a parameter affects none",
            hint="use a ridge above zero",
        )
    return torch.as_tensor(factor)

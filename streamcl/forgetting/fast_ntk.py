"""Fast-NTK (arXiv 2312.14923): the step from trained to retrained weights of the linearised model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Guarantee
from streamcl.forgetting.protocol import Context, Evidence
from streamcl.forgetting.repair import (
    Blocks,
    Repairable,
    Trained,
    close,
    opened,
    rounded,
    to_forget,
    unfit,
)
from streamcl.forgetting.retain import Answers, Retain, kept_columns, missing, retained

INTACT = 0.75
"""Share of retained answers that must stay the same, or the erasure counts as failed."""

LIMIT = 1 << 30
"""Bytes that the Jacobian may have; the products made of it are never larger."""


class FastNTK:
    """Moves LoRA and head by w(retained) - w(all), the minimisers of the model linearised where it stands.

    Both minimise |f(w0) + J (w - w0) - y|^2 + lambda |w - w0|^2: w0 has lora_B and head at zero, as they
    began, and y are the answers that the model gives now, so no labels are needed. The paper starts from a
    model whose loss is that square; this one was trained by cross-entropy, so the step is an approximation
    twice over. What was folded into the blocks' weights is not reached.

    retain: brings samples to hold on to (see streamcl.forgetting.retain). forget, retain_samples: how many of
    each are looked at. ridge: lambda, as a share of the mean diagonal entry of J J^T. limit: bytes of J.
    """

    name = "fast_ntk"
    guarantee: Guarantee = "approximate"

    def __init__(
        self,
        retain: Retain | None = None,
        *,
        forget: int = 16,
        retain_samples: int = 32,
        ridge: float = 1e-2,
        limit: int = LIMIT,
    ) -> None:
        self._retain = retain
        self._forget, self._retain_samples = forget, retain_samples
        self._ridge, self._limit = ridge, limit

    def can(self, request: ForgetRequest, context: Context) -> str | None:
        """Adapted blocks, samples of both sorts, and a Jacobian that is not too large."""
        if reason := unfit(request, context) or missing(self._retain, request, context):
            return reason
        learner = context.learner
        assert isinstance(learner, Repairable)
        if request.kind == "class" and request.label not in learner.classes:
            return "the class has no row in the head, so no output to linearise"
        forget = min(self._forget, context.scope.learned or len(request.samples))
        return self._too_large(learner.model, forget + self._retain_samples)

    def erase(self, request: ForgetRequest, context: Context) -> Evidence:
        """Take the step, drop the class and what is kept.

        Raises ForgettingError, with the weights as they were, where the system cannot be solved or too much
        else would be forgotten.
        """
        blocks = opened(context)
        forgotten = to_forget(request, context, self._forget)
        others = retained(self._retain, request, context, forgotten, self._retain_samples)
        if reason := self._too_large(blocks.model, len(forgotten) + len(others)):
            raise ForgettingError(reason)
        targets = blocks.model.targets(forgotten)
        gone = int(targets[0]) if request.kind == "class" else None
        forget, retain = blocks.entering(forgotten), blocks.entering(others)
        answers = Answers(_logits(blocks, retain), kept_columns(len(blocks.model.classes), gone))
        before = _look(blocks, forget, targets, "before")
        parameters = blocks.model.parameters()
        backup = [parameter.detach().clone() for parameter in parameters.values()]
        step = self._step(blocks, forget, retain)
        _move(parameters, step)
        agreement = answers.agreement(_logits(blocks, retain))
        if not agreement >= INTACT:
            _restore(parameters, backup)
            raise ForgettingError(
                f"only {agreement:.0%} of the retained answers would stay the same",
                hint="give more samples to hold on to, or use gs_lora",
            )
        figures = {
            **before,
            **_look(blocks, forget, targets, "after"),
            "retained_agreement_after": agreement,
            "step_norm": float(step.norm()),
            "parameters": step.numel(),
            "forget_samples": len(forgotten),
            "retain_samples": len(others),
        }
        places = close(request, context, "repaired, not retrained: one closed-form step", repaired=True)
        return Evidence(self.name, self.guarantee, RESIDUAL, places, rounded(figures))

    def _too_large(self, model: Trained, samples: int) -> str | None:
        rows = samples * len(model.classes)
        parameters = sum(p.numel() for p in model.parameters().values())
        size = 8 * rows * parameters
        if size <= self._limit:
            return None
        return (
            f"the Jacobian of {rows} outputs by {parameters} parameters takes {size / 1e9:.1f} GB, "
            f"more than the limit of {self._limit / 1e9:.1f}"
        )

    def _step(self, blocks: Blocks, forget: Tensor, retain: Tensor) -> Tensor:
        parameters = blocks.model.parameters()
        J_f, J_r = jacobian(blocks, parameters, forget), jacobian(blocks, parameters, retain)
        moved = torch.cat([_moved(name, p).reshape(-1) for name, p in parameters.items()])
        ridge = self._ridge * float((J_f.square().sum() + J_r.square().sum()) / (len(J_f) + len(J_r)))
        return unlearning_step(J_f, J_r, J_f @ moved, J_r @ moved, ridge)


RESIDUAL = (
    "The step would be right for a linear model with a squared loss and all retained data; here it is an "
    "estimate from a few samples, so whoever holds the weights may find traces of what was forgotten."
)


def unlearning_step(J_f: Tensor, J_r: Tensor, v_f: Tensor, v_r: Tensor, ridge: float) -> Tensor:
    """w(retained) - w(all), float64 [p], in the smaller of two forms that are equal.

    J_f [F, p], J_r [R, p]: Jacobians on forgotten and retained outputs; v_f [F], v_r [R]: y - f(w0) of each;
    w(D) = argmin |J (w - w0) - v|^2 + ridge |w - w0|^2. Raises ForgettingError where that has no one
    solution.
    """
    form = kernel_form if len(J_f) + len(J_r) < J_f.shape[1] else primal_form
    return form(J_f.double(), J_r.double(), v_f.double(), v_r.double(), ridge)


def kernel_form(J_f: Tensor, J_r: Tensor, v_f: Tensor, v_r: Tensor, ridge: float) -> Tensor:
    """-P J_f^T M V by systems of the size of the outputs: equations 5 to 7 of the paper.

    P = I - J_r^T Theta_rr^-1 J_r, M = (Theta_ff - Theta_rf^T Theta_rr^-1 Theta_rf)^-1,
    V = v_f - Theta_rf^T Theta_rr^-1 v_r, Theta = J J^T + ridge I.
    """
    theta_rf = J_r @ J_f.T  # [R, F]
    rr = _factor(J_r @ J_r.T, ridge)
    across = torch.cholesky_solve(theta_rf, rr)  # Theta_rr^-1 Theta_rf
    complement = J_f @ J_f.T - theta_rf.T @ across
    weights = torch.cholesky_solve((v_f - across.T @ v_r)[:, None], _factor(complement, ridge))[:, 0]
    return J_r.T @ (across @ weights) - J_f.T @ weights


def primal_form(J_f: Tensor, J_r: Tensor, v_f: Tensor, v_r: Tensor, ridge: float) -> Tensor:
    """-(J_r^T J_r + ridge I)^-1 J_f^T (v_f - J_f (w(all) - w0)) by systems of the size of the parameters."""
    gram = J_r.T @ J_r
    right = (J_f.T @ v_f + J_r.T @ v_r)[:, None]
    trained = torch.cholesky_solve(right, _factor(gram + J_f.T @ J_f, ridge))[:, 0]
    return -torch.cholesky_solve((J_f.T @ (v_f - J_f @ trained))[:, None], _factor(gram, ridge))[:, 0]


def jacobian(blocks: Blocks, parameters: dict[str, nn.Parameter], tokens: Tensor) -> Tensor:
    """float64 [N C, p]: d logit / d parameter, rows by sample and then class, of tokens [N, T, d]."""
    rows = []
    for i in range(len(tokens)):
        logits = blocks.model.head(blocks.features(tokens[i : i + 1]))[0]  # [C]
        for column in range(len(logits)):
            found = torch.autograd.grad(
                logits[column],
                list(parameters.values()),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            rows.append(torch.cat([gradient.reshape(-1) for gradient in found]).double())
    return torch.stack(rows)


def _factor(matrix: Tensor, ridge: float) -> Tensor:
    matrix = matrix.clone()
    size = float(matrix.diagonal().abs().max()) if len(matrix) else 0.0
    matrix.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    smallest = float(factor.diagonal().square().min()) if len(matrix) else 1.0
    if int(failed) or not smallest > 1e-13 * size:
        raise ForgettingError(
            "the linearised problem has no one solution: outputs repeat or a parameter reaches none",
            hint="use a ridge above zero",
        )
    return torch.as_tensor(factor)


def _moved(name: str, parameter: Tensor) -> Tensor:
    """w - w0: lora_A counts as where it began, all else began at zero."""
    value = parameter.detach().double()
    return torch.zeros_like(value) if name.endswith("lora_A") else value


@torch.no_grad()
def _move(parameters: dict[str, nn.Parameter], step: Tensor) -> None:
    parts = step.split([p.numel() for p in parameters.values()])
    for parameter, part in zip(parameters.values(), parts, strict=True):
        parameter.copy_(parameter.double() + part.view_as(parameter))


@torch.no_grad()
def _restore(parameters: dict[str, nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters.values(), values, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def _logits(blocks: Blocks, tokens: Tensor) -> Tensor:
    return torch.as_tensor(blocks.model.head(blocks.features(tokens)))


def _look(blocks: Blocks, forget: Tensor, targets: Tensor, when: str) -> dict[str, float]:
    """Mean loss in nats and accuracy of the samples to be forgotten."""
    logits = _logits(blocks, forget)
    hits = (logits.argmax(1) == targets).double().mean()
    return {
        f"forget_loss_{when}": float(F.cross_entropy(logits, targets)),
        f"forget_accuracy_{when}": float(hits),
    }

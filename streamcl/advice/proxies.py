"""Zero-shot proxies of candidates, and how far they agree with what the candidates are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import kendalltau
from torch import Tensor

from streamcl.advice.block_tokens import BackboneSizes
from streamcl.advice.gradient_proxies import (
    BATCH,
    BATCHES,
    GradientProxies,
    batch_gradients,
    gradient_proxies,
    layer_weights,
)
from streamcl.advice.transferability import h_score, log_evidence
from streamcl.events import Sample
from streamcl.nn.backbone import Backbone

FEATURE_SAMPLES = 256
"""Samples for LogME and the H-score, at most."""
GRADIENT_SAMPLES = BATCH * BATCHES
"""Samples for the proxies from gradients, at most."""


def feature_proxies(rows: Tensor, targets: Tensor) -> dict[str, float]:
    """Return LogME and the H-score of the features of samples.

    Args:
        rows: [N, D].
        targets: int64 [N].
    """
    rows, targets = rows[:FEATURE_SAMPLES], targets[:FEATURE_SAMPLES]
    present = targets.unique(return_inverse=True)[1]
    return {"logme": log_evidence(rows, present), "h_score": h_score(rows, present)}


def size_proxies(sizes: BackboneSizes, depth: int) -> dict[str, float]:
    """Return the parameters, and the multiplications and additions of one image in one view.

    Args:
        sizes: of the backbone.
        depth: blocks that are run.
    """
    parameters = sum(sizes.parameters[: depth + 1])
    attention = 2 * depth * sizes.tokens**2 * sizes.width  # Q K^T, and its product with V
    return {"params": parameters, "flops": 2 * (sizes.tokens * parameters + attention)}


def trainability(
    backbone: Backbone, depth: int, samples: Sequence[Sample], targets: Tensor
) -> GradientProxies:
    """Return ZiCo, the norm of the gradient and SNIP of the first blocks.

    Args:
        backbone: frozen; it is as it was afterwards.
        depth: blocks that are run.
        samples: of a few batches.
        targets: int64 [N], of at least as many samples.
    """
    pixels = backbone.prepare([sample.image for sample in samples])
    batches = batch_gradients(backbone, depth, pixels, targets[: len(samples)])
    return gradient_proxies([weight.detach() for weight in layer_weights(backbone, depth)], batches)


def agreement(proxies: Sequence[Mapping[str, float]], accuracies: Sequence[float]) -> dict[str, float]:
    """Return Kendall's tau of each proxy with the accuracies.

    Args:
        proxies: of each candidate, by name.
        accuracies: of each candidate.
    """
    names = proxies[0] if proxies else {}
    return {name: float(kendalltau([each[name] for each in proxies], accuracies)[0]) for name in names}

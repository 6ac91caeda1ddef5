"""Measures of pictures: PSNR, SSIM, a Frechet distance on frozen features, and a class score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

SSIM_PAPER = "Wang et al. 2004"
"""Image quality assessment: from error visibility to structural similarity; here with a uniform window."""
FRECHET_PAPER = "arXiv 1706.08500"
"""Heusel et al., equation 6, which names it FID on Inception's features; here on those of the run's frozen
backbone, so that values compare with one another, and never with published ones."""
CLASS_SCORE_PAPER = "arXiv 1606.03498"
"""Salimans et al., section 4, where Inception names the classes; here the run's own classifier does."""

SSIM_WINDOW = 7
"""Pixels of a side of the window, as in scikit-image."""
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # the paper's, for values between 0 and 1

MIN_ERROR = 1e-10
"""Least mean square error, so that equal pictures have 100 dB."""


def levels_of(pictures: Tensor) -> npt.NDArray[np.uint8]:
    """Return the levels 0..255 [..., H, W, 3] of pictures [..., H, W, 3] between 0 and 1."""
    return (255 * pictures).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def psnr(pixels: Tensor, true: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each picture, [B]; values lie between 0 and 1.

    Args:
        pixels: [B, ...].
        true: [B, ...], the same shape.
    """
    errors = (pixels.double() - true.double()).square().flatten(1).mean(dim=1)
    return -10 * errors.clamp(min=MIN_ERROR).log10()


def ssim(pictures: Tensor, true: Tensor) -> Tensor:
    """Return the structural similarity of each picture, [B]: 1 for equal ones; values between 0 and 1.

    Args:
        pictures: [B, H, W, 3]; a side of less than SSIM_WINDOW pixels makes the window smaller.
        true: [B, H, W, 3].
    """
    x, y = (each.double().permute(0, 3, 1, 2) for each in (pictures, true))
    window = min(SSIM_WINDOW, *x.shape[2:])

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, stride=1)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    values = (2 * mx * my + SSIM_C1) * (2 * both + SSIM_C2)
    return (values / ((mx * mx + my * my + SSIM_C1) * (vx + vy + SSIM_C2))).flatten(1).mean(dim=1)


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return |mu - mu'|^2 + tr(S + S' - 2 (S S')^1/2), between normal distributions fitted to two sets.

    The trace of the root is the sum of the singular values of X X'^T over the centred features, so that no
    root of a [D, D] matrix is taken, and few samples of many features do no harm.

    Args:
        features: [n, D], n > 1.
        others: [m, D], m > 1.
    """
    x, y = features.double(), others.double()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    x, y = ((each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (x, y))
    return float(apart + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum())


def class_score(probabilities: Tensor) -> float:
    """Return exp(mean KL(p(y | x) || p(y))), from 1 to C: high for pictures of sure and of many classes.

    Args:
        probabilities: [n, C], a row for each picture.
    """
    p = probabilities.double()
    kl = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(dim=1).mean()
    return float(kl.exp())


def mean_cosine(features: Tensor, others: Tensor) -> float:
    """Return the mean cosine between the features of pictures and those of others, row by row.

    Args:
        features: [n, D].
        others: [n, D].
    """
    return float(F.cosine_similarity(features.double(), others.double(), dim=1).mean())

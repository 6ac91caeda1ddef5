"""LogME and the H-score against what they are defined as: a search of a grid, and matrices written out."""

import numpy as np
import pytest
import torch

from streamcl.advice.transferability import BayesianRegression, h_score, log_evidence, shrinkage


def samples(count=40, width=12, classes=3, seed=0, apart=1.0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    means = torch.randn(classes, width, generator=draw)
    return (apart * means[y] + torch.randn(count, width, generator=draw)).double(), y


def evidence_by_density(rows, target, alpha, beta):
    """The log evidence of a sample: the density of targets of covariance F F^T / alpha + 1 / beta."""
    covariance = rows @ rows.T / alpha + torch.eye(len(rows), dtype=torch.float64) / beta
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(rows), dtype=torch.float64), covariance)
    return float(normal.log_prob(target)) / len(rows)


def regression(rows, target):
    basis, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    squares = (basis.T @ target).square()
    return BayesianRegression(singular.square(), squares, float(target.square().sum()), *rows.shape)


@pytest.mark.parametrize("width", [12, 90])
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 2.0), (50.0, 0.7)])
def test_the_evidence_is_the_density_of_the_targets(width, alpha, beta):
    rows, y = samples(width=width)
    target = (y == 1).double()
    expected = evidence_by_density(rows, target, alpha, beta)
    assert regression(rows, target).log_evidence(alpha, beta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_logme_is_the_largest_evidence_on_a_grid(seed):
    rows, y = samples(seed=seed)
    best = []
    for label in range(3):
        one = regression(rows, (y == label).double())
        alphas, betas = 10 ** np.linspace(-1, 4, 51), 10 ** np.linspace(0, 2.5, 26)
        best.append(max(one.log_evidence(alpha, beta) for alpha in alphas for beta in betas))
        assert one.max_log_evidence() >= best[-1] - 1e-9
    assert log_evidence(rows, y) == pytest.approx(sum(best) / 3, abs=3e-3)


def test_classes_that_lie_apart_have_more_evidence_and_a_higher_score():
    near, y = samples(apart=0.2)
    far, _ = samples(apart=3.0)
    assert log_evidence(far, y) > log_evidence(near, y)
    assert h_score(far, y) > h_score(near, y)


@pytest.mark.parametrize("width", [6, 80])
def test_the_h_score_is_the_trace_of_shrunk_covariances(width):
    rows, y = samples(width=width)
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / len(rows)
    level = float(covariance.trace()) / width
    # Ledoit and Wolf, 2004: the mean distance of one sample's outer product from the covariance
    noise = sum(float((torch.outer(x, x) - covariance).square().sum()) for x in centred) / len(rows) ** 2
    spread = float((covariance - level * torch.eye(width)).square().sum())
    share = min(noise / spread, 1.0)
    assert shrinkage(centred @ centred.T, width, level) == pytest.approx(share, rel=1e-9)
    shrunk = (1 - share) * covariance + share * level * torch.eye(width, dtype=torch.float64)
    means = torch.stack([centred[y == y[row]].mean(dim=0) for row in range(len(rows))])
    between = means.T @ means / len(rows)
    expected = float(torch.linalg.solve(shrunk, between).trace())
    assert h_score(rows, y) == pytest.approx(expected, rel=1e-9)


def test_features_that_say_nothing_have_no_h_score():
    assert h_score(torch.ones(9, 4), torch.arange(9) % 3) == 0.0

"""Measures of pictures agree with their definitions, written out."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from streamcl.audit.image_measures import class_score, frechet_distance, mean_cosine, psnr, ssim


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_of_a_known_error():
    true = rand(3, 4, 4, 3)
    assert psnr(true + 0.1, true) == pytest.approx([20.0] * 3)
    assert psnr(true, true) == pytest.approx([100.0] * 3)


def test_ssim_is_the_mean_over_windows():
    one, other = rand(1, 9, 10, 3, seed=1), rand(1, 9, 10, 3, seed=2)
    x, y, values = one[0].numpy(), other[0].numpy(), []
    for channel in range(3):
        for row in range(3):
            for column in range(4):
                a, b = (each[row : row + 7, column : column + 7, channel] for each in (x, y))
                covariance = ((a - a.mean()) * (b - b.mean())).mean()
                above = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
                values.append(above / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)))
    assert float(ssim(one, other)) == pytest.approx(np.mean(values))
    assert float(ssim(one, one)) == pytest.approx(1.0)
    assert float(ssim(one[:, :3, :3], other[:, :3, :3])) < 1.0


def test_a_set_is_at_no_distance_from_itself():
    features = rand(40, 6)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    few = rand(5, 30)
    assert frechet_distance(few, few.flip(0)) == pytest.approx(0.0, abs=1e-9)


def test_the_distance_of_two_normal_distributions_is_the_closed_form():
    one, other = rand(50, 4), rand(30, 4, seed=1) @ rand(4, 4, seed=2) + 0.3
    a, b = (np.cov(each.numpy().T) for each in (one, other))
    apart = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = float(apart) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(one + 2.0, one) == pytest.approx(4 * 2.0**2)


def test_the_class_score_counts_the_classes_that_are_sure():
    assert class_score(torch.full((8, 4), 0.25)) == pytest.approx(1.0)
    assert class_score(torch.eye(4).repeat(2, 1)) == pytest.approx(4.0)
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    mean = p.mean(0)
    kl = [sum(float(v) * math.log(float(v / m)) for v, m in zip(row, mean, strict=True)) for row in p]
    assert class_score(p) == pytest.approx(math.exp(np.mean(kl)))


def test_the_cosine_is_a_mean_over_rows():
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert mean_cosine(one, torch.tensor([[2.0, 0.0], [0.0, 3.0]])) == pytest.approx(0.5)

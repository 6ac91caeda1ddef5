"""Scores of samples left out, from one solve: those of as many refits without each of them."""

import math

import pytest
import torch
from torch.nn import functional as F

from streamcl.heads import cross_validation
from streamcl.heads.cross_validation import cross_validated_ridge, cross_validated_ridge_of
from streamcl.heads.leave_one_out import leave_one_out_scores
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import rarity, variance
from streamcl.heads.statistics import Statistics

COUNT, WIDTH, CLASSES = 60, 24, 4


def samples(count=COUNT, width=WIDTH, wrong=0.0, seed=0):
    """Features [N, D] around the means of classes that are not equally frequent, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=draw).minimum(
        torch.randint(CLASSES, (count,), generator=draw)
    )
    y[: 2 * CLASSES] = torch.arange(CLASSES).repeat(2)
    means = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    x = means[y] * 0.5 + torch.randn(count, width, generator=draw)
    noise = torch.rand(count, generator=draw) < wrong
    return x.double(), torch.where(noise, torch.randint(CLASSES, (count,), generator=draw), y)


def refit_without(row, x, y, ridge, *, raised):
    """Scores [C] of one sample by the normal equations of all others, solved anew with the same ridges."""
    others = [each for each in range(len(x)) if each != row]
    h, counts = x[others], torch.bincount(y[others], minlength=CLASSES)
    mean, one_hot = h.mean(dim=0), F.one_hot(y[others], CLASSES).double()
    centred = h - mean
    W = torch.linalg.solve(centred.T @ centred + torch.diag(ridge), centred.T @ one_hot)
    if not raised:
        return (x[row] - mean) @ W + counts.double() / len(others)
    return (x[row] - mean) @ (W * rarity(counts, len(others))) + 1 / int((counts > 0).sum())


@pytest.mark.parametrize("strength", [0.5, 20.0, 1000.0])
def test_scores_are_those_of_a_refit_without_each_sample(strength):
    x, y = samples()
    ridge = strength * variance(Statistics.of(x, y, CLASSES))
    expected = torch.stack([refit_without(row, x, y, ridge, raised=True) for row in range(len(x))])
    found = leave_one_out_scores(x, y, variance_ridge=strength)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_so_are_those_with_a_ridge_for_all_features():
    x, y = samples()
    centred = x - x.mean(dim=0)
    ridge = torch.full((WIDTH,), 0.1 * float(centred.square().sum()) / WIDTH, dtype=torch.float64)
    expected = torch.stack([refit_without(row, x, y, ridge, raised=False) for row in range(len(x))])
    found = leave_one_out_scores(x, y, trace_ridge=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_they_are_near_those_of_heads_that_find_their_own_ridges():
    x, y = samples(wrong=0.2)
    found = leave_one_out_scores(x, y, variance_ridge=5.0, gcv_margin=2.0)
    refits = []
    for row in range(len(x)):
        others = [each for each in range(len(x)) if each != row]
        head = RidgeHead(WIDTH, variance_ridge=5.0, gcv_margin=2.0)
        head.grow(CLASSES)
        head.update(x[others], y[others])
        refits.append(head.scores_refit(x[row : row + 1])[0])
    assert float((found - torch.stack(refits)).abs().max()) < 0.1
    assert int((found.argmax(dim=1) == torch.stack(refits).argmax(dim=1)).sum()) >= COUNT - 2


@pytest.mark.parametrize("features", [10, 1024])
@pytest.mark.parametrize("count", [40, 200])
def test_the_ridge_is_the_one_that_is_found_from_the_sums(monkeypatch, features, count):
    monkeypatch.setattr(cross_validation, "MAX_FEATURES", features)
    x, y = samples(count, wrong=0.6, seed=5)
    expected = cross_validated_ridge(Statistics.of(x, y, CLASSES), 0.2, 2.0)
    assert expected > 0.2
    assert cross_validated_ridge_of(x, y, 0.2, 2.0) == pytest.approx(expected, rel=1e-12)


def test_a_class_without_another_sample_has_no_score():
    x, y = samples()
    y[5] = CLASSES
    found = leave_one_out_scores(x, y, variance_ridge=5.0)
    assert found[5, CLASSES] == -math.inf
    assert found[:5].isfinite().all()


def test_more_features_than_samples_and_equal_samples_are_solved():
    x, y = samples(30, width=200)
    x[:, 7] = 1.0  # says nothing
    x[1] = x[0]
    assert leave_one_out_scores(x, y, variance_ridge=300.0).isfinite().all()

"""How far equally good models disagree: against closed forms, and against counting."""

import math

import pytest
import torch

from streamcl.evaluation.multiplicity import multiplicity, rashomon_capacity


def drawn(models=7, samples=40, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(models, samples, classes, generator=generator, dtype=torch.float64).softmax(dim=2)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.3, 0.5])
def test_the_capacity_of_a_binary_symmetric_channel(p):
    entropy = 0.0 if p == 0 else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    found = rashomon_capacity(torch.tensor([[[1 - p, p], [p, 1 - p]]]))
    assert float(found) == pytest.approx(1 - entropy, abs=1e-5)


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_the_capacity_of_a_binary_erasure_channel(p):
    found = rashomon_capacity(torch.tensor([[[1 - p, 0.0, p], [0.0, 1 - p, p]]]))
    assert float(found) == pytest.approx(1 - p, abs=1e-5)


def test_the_capacity_of_a_z_channel_whose_best_weights_are_not_even():
    p = 0.5
    found = rashomon_capacity(torch.tensor([[[1.0, 0.0], [p, 1 - p]]]))
    assert float(found) == pytest.approx(math.log2(1 + (1 - p) * p ** (p / (1 - p))), abs=1e-5)


def test_models_that_say_the_same_have_no_capacity():
    row = torch.tensor([0.7, 0.2, 0.1]).expand(1, 5, 3)
    assert float(rashomon_capacity(row)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_models_that_are_each_sure_of_another_class_have_all_of_it(classes):
    sure = torch.eye(classes)[None]
    assert float(rashomon_capacity(sure)) == pytest.approx(math.log2(classes), abs=1e-5)
    again = torch.cat([sure, sure], dim=1)  # twice as many models, with nothing new to say
    assert float(rashomon_capacity(again)) == pytest.approx(math.log2(classes), abs=1e-5)


def test_the_capacity_lies_between_its_bounds_and_more_models_never_lower_it():
    chances = drawn().transpose(0, 1)
    found = rashomon_capacity(chances)
    assert bool(((found >= 0) & (found <= 2)).all())
    assert bool((rashomon_capacity(chances[:, :4]) <= found + 1e-5).all())


def test_figures_are_those_of_counting():
    models, samples = 7, 40
    chances, reference = drawn(models, samples), drawn(1, samples, seed=1)[0]
    found = multiplicity(chances, reference)
    shares = []
    for m in range(models):
        shares.append(
            sum(int(chances[m, n].argmax() != reference[n].argmax()) for n in range(samples)) / samples
        )
    any_other = 0
    for n in range(samples):
        column = int(reference[n].argmax())
        scores = [float(chances[m, n, column]) for m in range(models)]
        mean = sum(scores) / models
        assert float(found.viable_range[n]) == pytest.approx(max(scores) - min(scores))
        assert float(found.score_variance[n]) == pytest.approx(
            sum((score - mean) ** 2 for score in scores) / models
        )
        any_other += any(int(chances[m, n].argmax()) != column for m in range(models))
    assert found.discrepancy == pytest.approx(max(shares))
    assert found.ambiguity == pytest.approx(any_other / samples)
    assert found.discrepancy <= found.ambiguity


def test_the_reference_alone_disagrees_nowhere():
    chances = drawn(1)
    found = multiplicity(chances, chances[0])
    assert (found.ambiguity, found.discrepancy) == (0.0, 0.0)
    assert float(found.viable_range.max()) == 0.0
    assert float(found.capacity.max()) == pytest.approx(0.0, abs=1e-9)

"""Each measure on answers whose right value is known, and the judging of values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.audit.data import Examples, ModelGroup, ModelOutputs, ProbeSet
from streamcl.audit.measures import (
    klom,
    lira,
    neighbour_class,
    neighbour_separability,
    rmia,
    tug_of_war,
    u_lira,
)
from streamcl.audit.significance import (
    compare_with_permutations,
    compare_with_references,
    with_outcomes,
)

RNG = np.random.default_rng(0)


def answers(margin, right=None, labels=None, chances=None):
    margin = np.asarray(margin, dtype=float)
    right = margin > 0 if right is None else right
    loss = np.log1p(np.exp(-margin))
    labels = np.zeros(margin.shape[1], dtype=np.int64) if labels is None else labels
    return ModelOutputs(margin, loss, right, labels, chances)


def group(forget, retain=None, test=None):
    retain = np.ones((len(forget), 5)) if retain is None else retain
    test = np.ones((len(forget), 5)) if test is None else test
    member = np.ones(np.shape(retain), dtype=bool)
    return ModelGroup(answers(forget), answers(retain), answers(test), member)


def around(mean, models=64, samples=40, spread=1.0):
    return RNG.normal(mean, spread, (models, samples))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(8, 80))
def test_a_new_observation_is_out_of_range_as_often_as_p_says(seed, count):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(200, count + 1))
    ps = np.array([compare_with_references("x", row[:1], row[1:]).p_value for row in values])
    assert (ps < 0.1).mean() == pytest.approx(0.1, abs=0.09)  # over four standard errors


def test_a_value_is_judged_on_its_bad_side_only():
    references = RNG.normal(size=50)
    assert compare_with_references("x", np.array([9.0]), references, side="low").p_value == 1.0
    assert compare_with_references("x", np.array([-9.0]), references, side="low").p_value < 1e-6
    assert compare_with_references("x", np.array([9.0]), references).p_value < 1e-6


def test_equal_references_leave_room_for_one_step():
    references = np.ones(20)
    assert compare_with_references("x", np.array([1.0]), references).p_value == 1.0
    assert compare_with_references("x", np.array([0.99]), references, step=0.01).p_value > 0.3
    assert compare_with_references("x", np.array([0.99]), references).p_value == 0.0


def test_the_rate_is_shared_among_the_measures():
    finding = compare_with_permutations("x", 5.0, np.arange(5.0 - 199, 5.0))
    assert finding.p_value == pytest.approx(1 / 200), "larger than all 199"
    others = [compare_with_references("y", np.array([0.0]), np.zeros(9))] * 4
    assert with_outcomes([finding], 0.01)[0].outcome == "too high"
    assert with_outcomes([finding, *others], 0.01)[0].passed


def test_few_models_do_not_vouch_for_themselves():
    """Judged by densities that it is in itself, a reference looks safer than another model would."""
    references, same = group(around(0, models=8, samples=2000)), group(around(0, models=8, samples=2000))
    assert lira(references, references, same).mean() == pytest.approx(0.5, abs=0.06)
    assert lira(same, references, same).mean() == pytest.approx(0.5, abs=0.06)


def test_the_range_is_that_of_a_new_observation():
    found = compare_with_references("x", np.array([3.0]), np.array([-1.0, 1.0]))
    t = 3.0 / (math.sqrt(2) * math.sqrt(1 + 1 / 2))
    assert found.p_value == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-12), "Cauchy"


def test_lira_tells_models_that_learned_from_those_that_did_not():
    references, unforgotten = group(around(0)), group(around(4))
    assert lira(references, references, unforgotten).mean() < 0.05
    assert lira(unforgotten, references, unforgotten).mean() > 0.95
    same = group(around(0))
    assert lira(references, references, same).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("distance", "least", "most"), [(0.0, 0.45, 0.55), (2.0, 0.8, 0.88), (9.0, 0.99, 1.0)]
)
def test_u_lira_is_chance_for_equal_models_and_the_normal_overlap_otherwise(distance, least, most):
    margins = np.concatenate([around(distance), around(0)])
    first = np.arange(128)[None, :] < 64
    assert least <= u_lira(margins, first)[0] <= most


def test_klom_is_the_divergence_of_normal_distributions():
    margins = np.concatenate([around(1.0, 4000, 10, 2.0), around(0.0, 4000, 10, 1.0)])
    first = np.arange(8000)[None, :] < 4000
    assert klom(margins, first)[0] == pytest.approx(0.5 * (4 - 1 - math.log(4) + 1), rel=0.1)
    assert klom(np.concatenate([around(0, 4000), around(0, 4000)]), first)[0] < 0.002


def test_rmia_rises_with_what_the_model_was_taught():
    references = group(around(0), test=around(0))
    taught = group(around(2), test=around(0))
    assert rmia(references, references).mean() == pytest.approx(0.5, abs=0.1)
    assert (rmia(taught, references) > 0.8).all()


def test_tug_of_war_is_one_for_the_references_mean_and_the_product_of_the_gaps_otherwise():
    half = np.tile([1.0, -1.0], (8, 5))
    references = group(half, half, half)
    assert tug_of_war(references, references) == pytest.approx(1.0)
    assert tug_of_war(group(np.ones((1, 10)), half[:1], -np.ones((1, 10))), references) == pytest.approx(0.25)


def test_tug_of_war_compares_a_reference_with_the_others():
    references = group(np.array([[1.0, 1.0], [-1.0, -1.0]]))
    assert tug_of_war(references, references).tolist() == [0.0, 0.0]  # each is all wrong beside the other


def test_the_neighbour_attack_detects_a_class_that_stands_out():
    labels = np.repeat([1, 2], 20)
    held = np.zeros((3, 40, 3), dtype=np.float32)
    held[:, :20, 1] = 0.9
    held += RNG.uniform(0, 0.05, held.shape).astype(np.float32)
    hidden, shown = (np.tile(np.array([0, p, 0.1], np.float32), (3, 15, 1)) for p in (0.92, 0.2))
    test = answers(np.ones((3, 40)), labels=labels, chances=held)
    both = [
        ModelGroup(answers(np.ones((3, 15)), chances=chances), test, test, np.ones((3, 40), bool))
        for chances in (hidden, shown)
    ]
    assert neighbour_class(both[0]) == 1
    assert (neighbour_separability(both[0], 1) < 0.8).all()
    assert neighbour_separability(both[1], 1) == pytest.approx(1.0)


def ask(scores, labels, gone):
    examples = Examples(torch.zeros(len(labels), 4), torch.tensor(labels))
    probes = ProbeSet(examples, examples, examples, gone, 1.0)
    return probes.evaluate([lambda _: scores.clone()], np.ones((1, len(labels)), bool))


def test_outputs_of_one_model():
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    examples = Examples(torch.zeros(2, 4), torch.tensor([0, 2]))
    asked = ProbeSet(examples, examples, examples, None, 1.0).evaluate(
        [lambda _: scores.clone()], np.ones((1, 2), bool)
    )
    assert asked.test.margin.tolist() == [[1.0, -2.0]]
    assert asked.test.correct.tolist() == [[True, False]]
    expected = (scores.logsumexp(1) - scores[[0, 1], [0, 2]]).numpy()
    assert asked.test.loss[0] == pytest.approx(expected)


def test_outputs_on_an_erased_class_are_about_the_remaining_classes():
    scores = torch.tensor([[9.0, 3.0, 1.0], [-math.inf, 3.0, 1.0]], dtype=torch.float64)
    examples = Examples(torch.zeros(2, 4), torch.tensor([0, 0]))
    asked = ProbeSet(examples, examples, examples, 0, 1.0).evaluate(
        [lambda _: scores.clone()], np.ones((1, 2), bool)
    )
    assert asked.forget.correct.tolist() == [[True, False]]  # the first still names it
    assert asked.forget.margin.tolist() == [[2.0, 2.0]]
    assert asked.forget.probabilities[..., 0].tolist() == [[0.0, 0.0]]

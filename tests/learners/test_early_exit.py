"""Exits of a closed-form learner: exact, in order, and without an influence of other samples."""

import math

import pytest
import torch
from pictures import make_batch
from tiny_learners import LABELS, hybrid, ncm, ridge, teach

from streamcl.capabilities.declaration import capabilities_of
from streamcl.learners.exit_plan import expected_cost, plan_exits

SAMPLES = make_batch(4000, LABELS * 3).samples


@pytest.fixture(params=[ridge, hybrid], ids=lambda make: make.__name__)
def learner(request, tiny_backbone, fp32):
    made = request.param(tiny_backbone, fp32)
    teach(made, batches=10)
    return made


def exits_of(learner):
    return capabilities_of(learner).early_exit


def number_of_thresholds(learner):
    return len(exits_of(learner).costs) - 1


def test_costs_are_shares_of_all_work(learner):
    costs = exits_of(learner).costs
    assert sum(costs) == pytest.approx(1)
    assert len(costs) == (4 if hasattr(learner, "adapted") else 3)


def test_thresholds_that_nothing_reaches_give_the_bytes_of_predict(learner):
    found = exits_of(learner).predict(SAMPLES, [math.inf] * number_of_thresholds(learner))
    assert torch.equal(found.logits, learner.logits(SAMPLES))
    assert set(found.exits.tolist()) == {number_of_thresholds(learner)}
    assert not found.margins.isnan().any()


def test_thresholds_that_all_reach_give_the_first_exit(learner):
    found = exits_of(learner).predict(SAMPLES, [-math.inf] * number_of_thresholds(learner))
    exact = getattr(learner, "exact", learner)
    width = exact.head.width // 3
    scores = exact.head.leading_scores(exact.features(SAMPLES)[:, :width])
    assert torch.equal(found.logits, learner.calibration.for_predictions(scores))
    assert set(found.exits.tolist()) == {0}


def test_each_exit_is_a_head_on_the_features_up_to_there(learner):
    exact = getattr(learner, "exact", learner)
    second = [math.inf, -math.inf, *[math.inf] * (number_of_thresholds(learner) - 2)]
    found = exits_of(learner).predict(SAMPLES, second)
    scores = exact.head.leading_scores(exact.features(SAMPLES)[:, : 2 * exact.head.width // 3])
    assert torch.equal(found.logits, learner.calibration.for_predictions(scores))


def test_exit_and_logits_do_not_depend_on_the_other_samples(learner):
    exits, count = exits_of(learner), number_of_thresholds(learner)
    margins = exits.predict(SAMPLES, [math.inf] * count).margins[:, :-1]
    thresholds = margins.median(dim=0).values.tolist()
    together = exits.predict(SAMPLES, thresholds)
    assert len(set(together.exits.tolist())) > 1
    for place in range(0, len(SAMPLES), 3):
        alone = exits.predict(SAMPLES[place : place + 1], thresholds)
        assert torch.equal(alone.logits[0], together.logits[place])
        assert int(alone.exits) == int(together.exits[place])
    for shown in (together.margins, margins):
        assert bool((shown[:, 0] == margins[:, 0]).all())


def test_higher_thresholds_never_cost_less(learner):
    exits, count = exits_of(learner), number_of_thresholds(learner)
    margins = exits.predict(SAMPLES, [math.inf] * count).margins[:, :-1]
    last = torch.full((len(SAMPLES),), -1)
    for share in (0.0, 0.3, 0.6, 0.9):
        found = exits.predict(SAMPLES, margins.quantile(share, dim=0).tolist()).exits
        assert bool((found >= last).all())
        last = found


def test_learners_without_a_head_that_can_be_cut_have_no_exits(tiny_backbone, fp32):
    assert exits_of(ncm(tiny_backbone, fp32)) is None


def test_while_the_branch_adapts_the_exits_are_the_frozen_branch_s(tiny_backbone, fp32):
    made = hybrid(tiny_backbone, fp32, adapt=10_000)
    teach(made, batches=3)
    found = exits_of(made).predict(SAMPLES, [math.inf] * 2)
    assert torch.equal(found.logits, made.logits(SAMPLES))


# --- the plan ---------------------------------------------------------------------------------------


def drawn_margins(count=200, exits=3):
    return torch.rand(count, exits, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


COSTS = (0.4, 0.2, 0.2, 0.2)


@pytest.mark.parametrize("budget", [0.4, 0.5, 0.66, 0.8, 1.0])
def test_the_expected_cost_is_the_mean_cost_of_following_the_thresholds(budget):
    margins = drawn_margins()
    plan = plan_exits(margins, COSTS, budget)
    spent = []
    for row in margins.tolist():
        cost = 0.0
        for number, each in enumerate(COSTS):
            cost += each
            if number < 3 and row[number] >= plan.thresholds[number]:
                break
        spent.append(cost)
    assert plan.expected_cost == pytest.approx(sum(spent) / len(spent), rel=1e-12)
    assert plan.expected_cost <= budget + 1e-12
    assert plan.expected_cost > budget - 0.01


def test_the_plan_takes_all_work_that_it_may_and_none_that_it_may_not():
    margins = drawn_margins()
    assert plan_exits(margins, COSTS, 1.0).reach[-1] == 1.0
    assert plan_exits(margins, COSTS, 0.4).reach == (1.0, 0.0, 0.0, 0.0)
    assert plan_exits(margins, COSTS, 0.39) is None


def test_the_expected_cost_of_a_chain():
    assert expected_cost([1.0, 2.0, 4.0], [0.5, 0.25]) == 1 + 0.5 * 2 + 0.125 * 4
    assert expected_cost([1.0], []) == 1.0


def test_a_request_s_rows_that_go_on_are_hardly_padded(fp32):
    fitted = fp32.for_requests()
    for count in range(1, 200):
        sizes = fitted.part_sizes(count)
        assert all(size & (size - 1) == 0 and size <= fitted.rows for size in sizes)
        assert 0 <= sum(sizes) - count < 4
        assert fp32.part_sizes(count) == fp32.chunk_sizes(count)  # those of a run have one shape


def test_exits_of_a_request_give_what_those_of_a_run_give(tiny_backbone, fp32):
    run, request = ridge(tiny_backbone, fp32), ridge(tiny_backbone, fp32.for_requests())
    for made in (run, request):
        teach(made, batches=10)
    margins = exits_of(run).predict(SAMPLES, [math.inf] * 2).margins[:, :-1]
    thresholds = (margins.median(dim=0).values + 1e-4).tolist()  # between two, whatever the last bits are
    mine, theirs = (exits_of(made).predict(SAMPLES, thresholds) for made in (run, request))
    assert torch.equal(mine.exits, theirs.exits)
    assert len(set(mine.exits.tolist())) > 1
    assert torch.allclose(mine.logits, theirs.logits, rtol=1e-3, atol=1e-3)

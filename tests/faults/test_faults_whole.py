"""F20: a learning step that runs out of memory anywhere leaves the learner bit for bit as it was."""

from __future__ import annotations

import pytest
import torch
from memory_faults import baseline, check_every_failure, hybrid, online_lora, ridge
from pictures import make_batch
from tiny_learners import latent_replay

from streamcl.heads.gram import Gram
from streamcl.heads.ncm import NCMHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.heads.solving import solve_ridge
from streamcl.learners import adapter_model
from streamcl.learners.baselines.ewc import EWCPlusPlus
from streamcl.learners.baselines.finetune import FinetuneLearner
from streamcl.learners.baselines.replay import DERPlusPlus, ExperienceReplay
from streamcl.storage.plain_state import state_hash
from streamcl.testing.torch_faults import OutOfMemory

pytestmark = pytest.mark.faults

HEADS = [
    RidgeHead,
    SLDAHead,
    NCMHead,
    lambda width: RidgeHead(width, projection=600, variance_ridge=32.0),
    lambda width: RidgeHead(width, variance_ridge=32.0, defer_solve=4),
]


def features(rows, seed):
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed))


def two_updates(head):
    for seed in (0, 1):
        head.grow(2 + seed)
        head.update(features(8, seed), torch.arange(8) % (2 + seed))


@pytest.mark.parametrize("make", HEADS)
def test_an_update_of_a_head_is_whole_or_not_at_all(make):
    check_every_failure(
        lambda: make(24), two_updates, lambda head: head.update(features(8, 2), torch.ones(8).long())
    )


def test_a_solve_that_fails_stays_due():
    failures = [ZeroDivisionError()]

    def rule(statistics, ridge):
        if failures:
            raise failures.pop()
        return solve_ridge(1e-2, statistics, ridge)

    head = RidgeHead(24, rule=rule)
    two_updates(head)
    with pytest.raises(ZeroDivisionError):
        head.scores(features(1, 3))
    other = RidgeHead(24)
    two_updates(other)
    assert torch.equal(head.scores(features(1, 3)), other.scores(features(1, 3)))


def test_rows_that_a_sum_has_taken_in_half_way_are_taken_in_once(monkeypatch):
    rows = torch.randn(4, 1600, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, broken = Gram(1600), Gram(1600)
    for gram in (whole, broken):
        gram.add(rows)
        gram.add(rows.roll(1, 1))
    for fails_at in (1, 2, 3, 2, 3):  # a block has a few operations
        with pytest.raises(torch.OutOfMemoryError), OutOfMemory(3 * fails_at):
            broken.full()
    assert torch.equal(broken.full(), whole.full())


def test_what_a_sum_has_taken_in_is_not_taken_back():
    gram = Gram(4)
    undo = gram.savepoint()
    gram.add(torch.ones(1, 4, dtype=torch.float64))
    assert gram.trace == 4.0
    with pytest.raises(RuntimeError, match="cannot be taken back"):
        undo()


STEPS = {
    "online_lora": (online_lora, 29),
    "latent replay": (latent_replay, 29),
    "naive_lora": (baseline(FinetuneLearner), 59),
    "er": (baseline(ExperienceReplay, replay_size=6), 29),
    "der_pp": (baseline(DERPlusPlus, replay_size=6), 59),
    "ewc_pp": (baseline(EWCPlusPlus), 29),
    "ridge": (ridge, 1),
    "hybrid while it adapts": (hybrid(100), 29),
    "hybrid as it settles": (hybrid(12), 29),
    "hybrid settled": (hybrid(4), 7),
}


def one_batch(learner):
    learner.learn(make_batch(0, ["a", "b"] * 4))


def a_batch_with_a_new_class(learner):
    learner.learn(make_batch(8, ["a", "b", "c", None]))


@pytest.mark.long
@pytest.mark.parametrize("name", STEPS)
def test_a_learner_learns_a_batch_whole_or_not_at_all(tiny_backbone, fp32, name):
    make, stride = STEPS[name]
    check_every_failure(lambda: make(tiny_backbone, fp32), one_batch, a_batch_with_a_new_class, stride)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_at_every_single_operation(tiny_backbone, fp32, name):
    make, _ = STEPS[name]
    check_every_failure(lambda: make(tiny_backbone, fp32), one_batch, a_batch_with_a_new_class)


def test_a_step_that_is_not_finite_after_another_leaves_no_part_of_it(tiny_backbone, fp32, monkeypatch):
    learner = hybrid(100)(tiny_backbone, fp32)
    one_batch(learner)
    before = state_hash(learner.state_dict())
    real, calls = adapter_model.finite_gradients, []

    def second_is_not(*args, **options):
        calls.append(0)
        return real(*args, **options) if len(calls) < 2 else None

    monkeypatch.setattr(adapter_model, "finite_gradients", second_is_not)
    lesson = learner.learn(make_batch(8, ["a", "b", "c"]))
    assert not lesson.learned
    assert state_hash(learner.state_dict()) == before

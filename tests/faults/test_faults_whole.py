"""F20: a learning step that runs out of memory anywhere leaves the learner bit for bit as it was."""

from __future__ import annotations

import functools

import pytest
import torch
from pictures import make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from streamcl.heads.gram import Gram
from streamcl.heads.ncm import NCMHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.adapter_model import AdapterModel
from streamcl.learners.baselines.ewc import EWCPlusPlus
from streamcl.learners.baselines.finetune import FinetuneLearner
from streamcl.learners.baselines.replay import DERPlusPlus, ExperienceReplay
from streamcl.learners.block_features import concat_width
from streamcl.learners.hybrid import RidgeLoRALearner
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge import RidgeLearner
from streamcl.nn.adapted_blocks import Adapters
from streamcl.storage.plain_state import state_hash

pytestmark = pytest.mark.faults

HEADS = [RidgeHead, SLDAHead, NCMHead, lambda width: RidgeHead(width, projection=600, shrinkage=32.0)]
BLOCKS = [0, 1]


class Memory(TorchDispatchMode):
    """Runs out at one operation of torch; counts them all."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.fails_at, self.count = fails_at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.fails_at:
            raise torch.OutOfMemoryError(f"no memory for {func}")
        return func(*args, **(kwargs or {}))


def operations(make, prepare, step):
    """How many operations a step on a fresh object takes, and the hash of the state that it ends in."""
    thing = make()
    prepare(thing)
    thing.state_dict()
    with Memory() as memory:
        step(thing)
    return memory.count, state_hash(thing.state_dict())


def check_every_failure(make, prepare, step, stride=1):
    """Fail at one operation after another; the state is the old one each time, and then the step is made."""
    count, after = operations(make, prepare, step)
    assert count > 10
    thing = make()
    prepare(thing)
    before = state_hash(thing.state_dict())
    assert before != after
    for fails_at in range(1, count + 1, stride):
        with pytest.raises(torch.OutOfMemoryError), Memory(fails_at):
            step(thing)
        assert state_hash(thing.state_dict()) == before, f"operation {fails_at} of {count}"
    step(thing)
    assert state_hash(thing.state_dict()) == after


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


def test_a_solve_that_fails_stays_due(monkeypatch):
    head = RidgeHead(24)
    two_updates(head)
    monkeypatch.setattr(head, "_weights", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        head.scores(features(1, 3))
    monkeypatch.undo()
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
        with pytest.raises(torch.OutOfMemoryError), Memory(3 * fails_at):
            broken.full()
    assert torch.equal(broken.full(), whole.full())


def test_what_a_sum_has_taken_in_is_not_taken_back():
    gram = Gram(4)
    undo = gram.savepoint()
    gram.add(torch.ones(1, 4, dtype=torch.float64))
    assert gram.trace == 4.0
    with pytest.raises(RuntimeError, match="cannot be taken back"):
        undo()


def ridge(backbone, compute):
    return RidgeLearner(backbone, compute, RidgeHead(concat_width(backbone, BLOCKS)), blocks=BLOCKS)


def hybrid(adapt):
    def make(backbone, compute):
        head = RidgeHead(concat_width(backbone, BLOCKS[1:]))
        branch = AdaptedBranch(
            backbone, compute, head, blocks=BLOCKS[1:], first_block=1, steps=2, adapt=adapt
        )
        return RidgeLoRALearner(ridge(backbone, compute), branch)

    return make


def online_lora(backbone, compute):
    return OnlineLoRALearner(backbone, compute, rank=2, buffer=3)


def baseline(make, **options):
    def made(backbone, compute):
        generator = torch.Generator().manual_seed(0)
        adapters = Adapters(backbone, rank=2, first_block=0, generator=generator)
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)
        model = AdapterModel(backbone, compute, adapters, optimizer=optimizer, generator=generator)
        return make(model, **options)

    return made


STEPS = {
    "online_lora": (online_lora, 29),
    "naive_lora": (baseline(FinetuneLearner), 59),
    "er": (baseline(ExperienceReplay, buffer=6), 29),
    "der_pp": (baseline(DERPlusPlus, buffer=6), 59),
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
    real, calls = AdaptedBranch._step, []

    def second_is_not(self, *args):
        calls.append(0)
        return len(calls) < 2 and real(self, *args)

    monkeypatch.setattr(AdaptedBranch, "_step", second_is_not)
    lesson = learner.learn(make_batch(8, ["a", "b", "c"]))
    assert not lesson.learned
    assert state_hash(learner.state_dict()) == before

"""Operations of torch that run out of memory, and small learners whose steps are tried under them."""

from __future__ import annotations

import functools

import pytest
import torch

from streamcl.heads.ridge import RidgeHead
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.adapter_model import AdapterModel
from streamcl.learners.block_features import concat_width
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.nn.adapted_blocks import Adapters
from streamcl.storage.plain_state import state_hash
from streamcl.testing.torch_faults import OutOfMemory

BLOCKS = [0, 1]


def operations(make, prepare, step):
    """How many operations a step on a fresh object takes, and the hash of the state that it ends in."""
    thing = make()
    prepare(thing)
    thing.state_dict()
    with OutOfMemory() as memory:
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
        with pytest.raises(torch.OutOfMemoryError), OutOfMemory(fails_at):
            step(thing)
        assert state_hash(thing.state_dict()) == before, f"operation {fails_at} of {count}"
    step(thing)
    assert state_hash(thing.state_dict()) == after


def ridge(backbone, compute):
    return RidgeLearner(backbone, compute, RidgeHead(concat_width(backbone, BLOCKS)), blocks=BLOCKS)


def hybrid(adapt):
    def make(backbone, compute):
        head = RidgeHead(concat_width(backbone, BLOCKS[1:]))
        branch = AdaptedBranch(
            backbone, compute, head, blocks=BLOCKS[1:], first_block=1, steps=2, warmup_samples=adapt
        )
        return RidgeLoRALearner(ridge(backbone, compute), branch)

    return make


def online_lora(backbone, compute):
    return OnlineLoRALearner(backbone, compute, rank=2, hard_buffer_size=3)


def baseline(make, **options):
    def made(backbone, compute):
        generator = torch.Generator().manual_seed(0)
        adapters = Adapters(backbone, rank=2, first_block=0, generator=generator)
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)
        model = AdapterModel(backbone, compute, adapters, optimizer=optimizer, generator=generator)
        return make(model, **options)

    return made

"""Learners: predicting changes nothing, learning is test-then-train, outputs survive consolidation."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import make_batch
from tiny_learners import BASELINES, LABELS, LEARNERS, hybrid, latent_replay, online_lora, teach

from streamcl.errors import CheckpointError, ForgettingError
from streamcl.events import Batch
from streamcl.heads import linear
from streamcl.heads.ridge import RidgeHead
from streamcl.learners import adapter_model
from streamcl.learners.adapted_branch import AdaptedBranch, LoRABranchOptions
from streamcl.learners.block_features import tta_views
from streamcl.learners.factory import LearnerContext
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_lora import RIDGE_LORA, RidgeLoRALearner
from streamcl.learners.ridge_lora_options import RidgeBranchOptions, RidgeLoRAOptions
from streamcl.nn.build import build_backbone
from streamcl.nn.device import resolve_compute
from streamcl.storage.plain_state import state_hash
from streamcl.testing import check_learner

BY_STEPS = {online_lora, latent_replay, *BASELINES}


@pytest.fixture(params=LEARNERS, ids=lambda make: make.__name__)
def make(request, tiny_backbone, fp32):
    return partial(request.param, tiny_backbone, fp32)


def test_every_learner_keeps_the_contract(make):
    check_learner(make)


def test_it_learns(make):
    learner = make()
    teach(learner, batches=40 if make.func in BY_STEPS else 12)  # a closed form is there at once
    samples = make_batch(4000, LABELS * 4).samples
    hits = [
        guess.label == sample.label for guess, sample in zip(learner.predict(samples), samples, strict=True)
    ]
    assert np.mean(hits) > 0.8


def test_a_new_class_grows_the_learner(make):
    learner = make()
    teach(learner, labels=["ant", "bee"])
    lesson = learner.learn(make_batch(300, [None, "cat", None]))
    assert learner.classes[2:] == ("cat",)
    assert len(lesson.predictions) == 3
    assert len(lesson.losses) == 1


def test_a_learner_that_takes_over_a_state_with_fewer_classes_goes_on_like_its_owner(make):
    owner, taker = make(), make()
    for learner, labels in ((owner, LABELS[:2]), (taker, LABELS)):
        learner.learn(make_batch(0, [labels[k % len(labels)] for k in range(8)]))
    taker.load_state_dict(owner.state_dict())
    for k in range(1, 4):
        batch = make_batch(8 * k, LABELS[:3] * 2)
        assert owner.learn(batch) == taker.learn(batch)
        assert state_hash(taker.state_dict()) == state_hash(owner.state_dict())


def test_the_adapter_is_alive_after_every_consolidation(tiny_backbone, fp32):
    """The reference leaves both factors at zero, where the gradient of each is zero for ever."""
    learner = online_lora(tiny_backbone, fp32)
    for times in range(3):
        teach(learner, start=1000 * times)
        learner.consolidate()
        fresh = {name: p.detach().clone() for name, p in learner.adapters.trainable().items()}
        teach(learner, start=1000 * times + 500, batches=3)
        for name, parameter in learner.adapters.trainable().items():
            assert not torch.equal(parameter, fresh[name]), name


def test_the_backbone_is_never_touched(make, tiny_backbone):
    before = {name: p.detach().clone() for name, p in tiny_backbone.named_parameters()}
    learner = make()
    teach(learner)
    learner.consolidate()
    teach(learner, start=100)
    assert all(torch.equal(p, before[name]) for name, p in tiny_backbone.named_parameters())


def test_consolidation_drops_the_moments_of_the_pair_only(tiny_backbone, fp32):
    learner = online_lora(tiny_backbone, fp32)
    teach(learner)
    learner.consolidate()
    assert set(learner.state_dict()["moments"]) == {"head.weight", "head.bias"}


def test_the_buffer_holds_samples_not_batches_and_rides_in_the_step(tiny_backbone, fp32):
    learner = online_lora(tiny_backbone, fp32, hard_buffer_size=4)
    teach(learner)
    assert len(learner.buffer.samples) == 4


def test_without_a_hard_buffer_there_is_no_importance_whatever_is_consolidated(tiny_backbone, fp32):
    learner = online_lora(tiny_backbone, fp32, hard_buffer_size=0, regularisation=2000.0)
    teach(learner)
    assert set(learner.consolidate()) == {"adapter_norm", "buffer"}
    teach(learner, start=500)
    assert float(learner.importance.penalty(learner.adapters.trainable(), 2000.0)) == 0.0
    assert learner.capabilities.importance is None
    assert learner.weights_trained_on(iter([["s0"]])) == ("adapters", "head")


def test_importance_comes_from_every_held_sample(tiny_backbone, fp32):
    """The reference reads one item off an exhausted iterator."""
    learner = online_lora(tiny_backbone, fp32)
    teach(learner)
    learner.consolidate()
    assert learner.importance.consolidations == 1
    assert all(float(v.sum()) > 0 for name, v in learner.importance.values.items() if "lora_B" in name)


def test_state_size_does_not_grow_with_consolidations(tiny_backbone, fp32):
    learner = online_lora(tiny_backbone, fp32)

    def size(state):
        return sum(size(v) if isinstance(v, dict) else getattr(v, "nbytes", 0) for v in state.values())

    sizes = []
    for times in range(4):
        teach(learner, start=1000 * times)
        learner.consolidate()
        sizes.append(size(learner.state_dict()))
    assert sizes[1:] == [sizes[1]] * 3


@pytest.mark.parametrize(("weight", "share"), [("sample", 4 / 8), ("batch", 1.0)])
def test_a_held_sample_counts_as_a_fresh_one_unless_the_paper_is_followed(
    tiny_backbone, fp32, monkeypatch, weight, share
):
    learner = online_lora(tiny_backbone, fp32, hard_buffer_size=4, buffer_weight=weight)
    teach(learner, batches=1)
    each, whole = [], []
    by_sample, gradients = linear.masked_cross_entropy, adapter_model.finite_gradients

    def noted(*args):
        each.append(by_sample(*args))
        return each[-1]

    def noted_whole(loss, *args, **options):
        whole.append(loss)
        return gradients(loss, *args, **options)

    monkeypatch.setattr(linear, "masked_cross_entropy", noted)
    monkeypatch.setattr(adapter_model, "finite_gradients", noted_whole)
    teach(learner, batches=1, start=100)
    losses = each[0].tolist()  # of eight fresh samples and four held
    expected = np.mean(losses[:8]) + share * np.mean(losses[8:])
    assert whole[0].item() == pytest.approx(expected, rel=1e-5)


def test_absent_classes_are_masked_unless_the_paper_is_followed_to_the_letter(tiny_backbone, fp32):
    for mask, moved in [(True, False), (False, True)]:
        learner = online_lora(tiny_backbone, fp32, mask_absent=mask, hard_buffer_size=0)
        teach(learner, labels=["ant", "bee"])
        before = learner.head.weight.detach().clone()
        learner.model.optimizer.state.clear()
        teach(learner, labels=["cat", "dog"], batches=1, start=600)
        assert (not torch.equal(learner.head.weight[:2], before[:2])) == moved


def test_a_step_that_is_not_finite_changes_nothing_that_was_learned(tiny_backbone, fp32, monkeypatch):
    learner = online_lora(tiny_backbone, fp32)
    teach(learner)
    before = state_hash(learner.state_dict())
    final = type(learner.backbone).final
    monkeypatch.setattr(
        type(learner.backbone), "final", lambda self, tokens: final(self, tokens) * float("nan")
    )
    lesson = learner.learn(make_batch(800, ["ant", "bee"]))
    assert not lesson.learned
    assert state_hash(learner.state_dict()) == before


def test_a_hybrid_forgets_late_samples_exactly_and_early_ones_with_its_branch(tiny_backbone, fp32):
    early, late = make_batch(0, LABELS * 8), make_batch(40, LABELS * 4)
    rest, forgotten = late.samples[5:], late.samples[:5]
    learner, other = hybrid(tiny_backbone, fp32, adapt=20), hybrid(tiny_backbone, fp32, adapt=20)
    for each in (learner, other):
        each.learn(early)
    assert learner.adapted.frozen
    learner.learn(late)
    other.learn(Batch(40, rest))
    traces = [SimpleNamespace(offset=40), SimpleNamespace(offset=45)]
    assert learner.weights_trained_on(iter([traces])) == ()
    assert learner.weights_trained_on(iter([[SimpleNamespace(offset=3)]])) == (
        "adapters",
        "adapted statistics",
    )
    learner.statistics.subtract(learner.statistics.of(forgotten))
    for mine, theirs in [(learner.exact.head, other.exact.head), (learner.adapted.head, other.adapted.head)]:
        apart = mine.statistics.gram.full() - theirs.statistics.gram.full()
        assert float(apart.abs().max()) <= 1e-9 * theirs.statistics.gram.largest
    with pytest.raises(ForgettingError):
        learner.statistics.subtract(learner.statistics.of([*forgotten, *late.samples, *early.samples]))
    undo = learner.drop_adapted()
    assert learner.weights_trained_on(iter([[SimpleNamespace(offset=3)]])) == ()
    undo()
    assert learner.adapted is not None


def test_the_adapted_branch_speaks_of_a_class_by_its_share_of_samples_after_settling(tiny_backbone, fp32):
    branch = hybrid(tiny_backbone, fp32, adapt=10**6).adapted
    draw = torch.Generator().manual_seed(0)
    branch.head.grow(4)  # the last one never has samples
    branch.head.update(torch.randn(6, 128, generator=draw), torch.tensor([0, 0, 0, 1, 1, 1]))
    branch.freeze()
    branch.head.update(torch.randn(6, 128, generator=draw), torch.tensor([1, 1, 1, 2, 2, 2]))
    frozen, adapted = torch.zeros(5, 4).double(), torch.ones(5, 4).double()
    frozen[:, 3] = adapted[:, 3] = -torch.inf
    weights = torch.tensor([0.0, 1 / 6, 1 / 3, -torch.inf]).double()
    assert torch.allclose(branch.blend_scores(frozen, adapted), weights.expand(5, 4))
    other = hybrid(tiny_backbone, fp32, adapt=10**6).adapted
    other.load_state_dict(branch.state_dict())
    assert torch.equal(other.blend_scores(frozen, adapted), branch.blend_scores(frozen, adapted))


def test_while_its_branch_adapts_a_hybrid_guesses_by_the_frozen_one_alone(tiny_backbone, fp32):
    learner = hybrid(tiny_backbone, fp32, adapt=10**6)
    learner.learn(make_batch(0, LABELS * 4))
    reading = learner.read(make_batch(900, LABELS).samples)
    assert torch.equal(learner.scores_refit(reading), learner.exact.head.scores_refit(reading.features))


def test_views_are_the_image_its_inner_part_and_both_mirrored(tiny_backbone):
    pixels = tiny_backbone.prepare([each.image for each in make_batch(0, LABELS).samples])
    whole, mirrored_inner, mirrored, inner = tta_views(pixels, 4)
    assert torch.equal(whole, pixels)
    assert torch.equal(mirrored, pixels.flip(-1))
    torch.testing.assert_close(mirrored_inner, inner.flip(-1))
    assert not torch.allclose(inner, pixels)
    for count in (1, 2):
        fewer = tta_views(pixels, count)
        assert len(fewer) == count
        assert all(map(torch.equal, fewer, (whole, mirrored_inner)))


@pytest.mark.parametrize(
    ("precision", "views"),  # bf16 is emulated, and slow, where the processor has none
    [
        *[("32-true", 1), ("32-true", 2)],
        *[
            pytest.param(*each, marks=pytest.mark.long)
            for each in (("32-true", 4), ("bf16-mixed", 1), ("bf16-mixed", 2))
        ],
        pytest.param("bf16-mixed", 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("batch_size", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_features_are_the_same_to_the_last_bit_whichever_images_come_together(precision, views, batch_size):
    compute = resolve_compute("cpu", precision, batch_size=batch_size)
    vit = build_backbone("vit_small_patch14_dinov2", weights="none", image_size=70, depth=3)
    learner = RidgeLearner(vit, compute, RidgeHead(4 * 384), blocks=(1, 2), tta_views=views)
    head = RidgeHead(2 * 384)
    branch = AdaptedBranch(vit, compute, head, blocks=(2,), first_block=1, warmup_samples=0)
    branch.freeze()
    both = RidgeLoRALearner(learner, branch)
    samples = make_batch(0, LABELS * 16).samples
    whole = both.read(samples)
    for some in (samples[:1], samples[3:8], samples[40:64], samples[17:50]):
        start, few = samples.index(some[0]), both.read(some)
        assert torch.equal(few.features, whole.features[start : start + len(some)])
        assert torch.equal(few.adapted, whole.adapted[start : start + len(some)])


def test_without_its_branch_a_hybrid_is_a_ridge_learner(tiny_backbone, fp32):
    mixed = hybrid(tiny_backbone, fp32)
    plain = RidgeLearner(
        tiny_backbone, fp32, RidgeHead(3 * 64, variance_ridge=3.0), blocks=(0, 1, 2), tta_views=2
    )
    for number in range(5):
        batch = make_batch(8 * number, LABELS * 2)
        mixed.learn(batch)
        plain.learn(batch)
    mixed.drop_adapted()
    samples = make_batch(900, LABELS).samples
    assert [g.label for g in mixed.predict(samples)] == [g.label for g in plain.predict(samples)]
    assert mixed.exact.classes == plain.classes
    assert state_hash(mixed.exact.head.state_dict()) == state_hash(plain.head.state_dict())
    fresh = hybrid(tiny_backbone, fp32)
    fresh.load_state_dict(mixed.state_dict())
    assert fresh.adapted is None


def test_a_state_from_before_the_branch_was_dropped_brings_the_branch_back(tiny_backbone, fp32):
    options = RidgeLoRAOptions(
        ridge=RidgeBranchOptions(blocks=[0, 1, 2]), lora=LoRABranchOptions(first_block=1, warmup_samples=20)
    )
    learner = RIDGE_LORA.build(options, LearnerContext(tiny_backbone, fp32))
    learner.learn(make_batch(0, LABELS * 8))
    before = learner.state_dict()
    learner.drop_adapted()
    learner.load_state_dict(before)
    assert learner.adapted is not None
    assert state_hash(learner.state_dict()) == state_hash(before)


def test_a_learner_made_without_a_branch_refuses_a_state_with_one(tiny_backbone, fp32):
    owner = hybrid(tiny_backbone, fp32)
    owner.learn(make_batch(0, LABELS * 2))
    taker = RidgeLoRALearner(owner.exact, None)
    before = state_hash(taker.state_dict())
    with pytest.raises(CheckpointError, match="was made without one"):
        taker.load_state_dict(owner.state_dict())
    assert state_hash(taker.state_dict()) == before

"""Adapters trained from stored latents: when they are, on whom, and what a failure leaves."""

from collections import Counter

import pytest
import torch
from pictures import TINY_VIT, make_batch
from tiny_learners import LABELS, latent, teach

from streamcl.errors import ConfigError
from streamcl.learners.factory import LearnerContext
from streamcl.learners.latent_ridge_lora import LatentRidgeLoRALearner
from streamcl.learners.ridge_lora import RIDGE_LORA, RidgeLoRALearner
from streamcl.nn.build import build_backbone
from streamcl.nn.device import resolve_compute
from streamcl.storage.plain_state import state_hash
from streamcl.testing.torch_faults import OutOfMemory


@pytest.fixture
def make(tiny_backbone, fp32):
    return lambda **options: latent(tiny_backbone, fp32, **options)


def test_before_the_first_training_the_frozen_branch_answers_alone(make):
    learner = make(first=1000, rows=2000)
    teach(learner, batches=3)
    samples = make_batch(900, [*LABELS]).samples
    assert not learner.adapted.trained
    scores = learner.scores_refit(learner.read(samples))
    assert torch.equal(scores, learner.exact.head.scores_refit(learner.exact.features(samples)))


def test_at_the_end_of_a_stream_all_that_is_stored_trains_and_stays(make):
    learner = make(first=24, rows=400)
    teach(learner, batches=8)  # 64 samples: trained at 24, next at 96
    assert learner.adapted.trained
    stored, before = len(learner.adapted.store), learner.adapted.version
    assert learner.end_stream(64) == {"samples": stored, "trainings": 2}
    assert learner.adapted.version > before
    assert stored == 64
    assert learner.adapted.head.counts == learner.exact.head.counts
    assert learner.end_stream(70) == {}  # little has come since
    teach(learner, batches=8, start=64)  # the stream goes on, and trains at 96
    assert learner.adapted.head.counts == learner.exact.head.counts


def test_a_short_stream_is_trained_at_its_end_alone(make):
    learner = make(first=1000, rows=2000)
    teach(learner, batches=3)
    assert learner.end_stream(24)["trainings"] == 1
    assert learner.adapted.trained


def test_where_not_all_are_stored_each_stands_for_others(make):
    learner = make(first=8, rows=30)
    teach(learner, batches=20)
    groups = learner.adapted.store.groups
    assert min(group.weight for group in groups) > 1
    assert len(learner.adapted.store) <= 60
    assert sum(learner.adapted.head.counts) == sum(group.weight * len(group) for group in groups)


def test_the_weight_of_a_class_falls_with_the_root_of_its_stored_part(make):
    learner = make(first=8, rows=30)
    teach(learner, batches=20)
    branch = learner.adapted
    stored = Counter(label for group in branch.store.groups for label in group.labels)
    counts = branch.head.statistics.counts.tolist()
    parts = [stored[name] / count for name, count in zip(learner.classes, counts, strict=True)]
    assert min(parts) < 0.8
    assert branch.shares.tolist() == pytest.approx([part**0.5 / 3 for part in parts])


@pytest.mark.parametrize(("stored", "second"), [(1, 1 / 3), (2, 1 / 2)])
def test_predictions_are_of_two_views_and_the_head_learns_those_that_are_stored(make, stored, second):
    learner = make(views=stored, rows=400)
    teach(learner, batches=6)
    branch, batch = learner.adapted, make_batch(48, [*LABELS])
    _, views = learner.exact.reader.read(batch.samples, 1)
    one, other = (branch.features(torch.cat([view, view], dim=1))[0] for view in views)
    assert not torch.equal(one, other)
    found = learner.read(batch.samples)
    assert torch.allclose(found.adapted, (1 - second) * one + second * other, atol=1e-5)
    learned = (one + other) / 2 if stored == 2 else one
    assert torch.equal(found.to_teach, learned)
    before = branch.head.statistics.Q.clone()
    assert learner.learn(batch).learned
    assert branch.store.groups[-1].tokens.restored().shape[1] == stored * views[0].shape[1]
    added = (branch.head.statistics.Q - before).sum(1)
    assert torch.allclose(added, learned.double().sum(0), rtol=1e-4)


@pytest.mark.parametrize("views", [1, 2])
def test_a_head_that_is_filled_anew_has_the_bits_of_one_that_learned_on_the_way(make, views):
    learner, twin = make(views=views, rows=400), make(views=views, rows=400)
    for each in (learner, twin):
        teach(each, batches=5)  # 40 samples, trained at 24
    teach(learner, batches=1, start=40)
    assert learner.adapted.remove(range(40, 48)) == 8
    assert state_hash(learner.adapted.state_dict()) == state_hash(twin.adapted.state_dict())


@pytest.mark.parametrize(
    ("tta_views", "asked", "stored"), [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 2), (4, 2, 2)]
)
def test_no_more_views_are_stored_than_the_frozen_branch_reads(tta_views, asked, stored):
    backbone = build_backbone("vit_tiny_patch16_224", weights="none", image_size=16, args=TINY_VIT)
    context = LearnerContext(backbone, resolve_compute("cpu", "32-true"))
    options = {"ridge": {"blocks": [1, 2], "tta_views": tta_views}, "lora": {"first_block": 1}}
    branch = RIDGE_LORA(context, **options, latents={"budget": "1MB", "views": asked}).adapted
    assert branch.training.views == stored
    assert branch.predicted_views == min(tta_views, 2)


@pytest.mark.parametrize("part", [0.2, 0.7, 1.0])
def test_what_could_not_be_done_for_want_of_memory_is_done_at_the_next_use(make, part):
    learner, twin = make(), make()
    for each in (learner, twin):
        teach(each, batches=6)
        assert each.adapted.remove(range(8))
    with OutOfMemory() as counted:
        expected = state_hash(twin.state_dict())
    with pytest.raises((torch.OutOfMemoryError, MemoryError)), OutOfMemory(int(part * counted.count)):
        learner.state_dict()
    assert state_hash(learner.state_dict()) == expected


def test_a_budget_makes_the_default_learner_one_that_stores_latents():
    backbone = build_backbone("vit_tiny_patch16_224", weights="none", image_size=16, args=TINY_VIT)
    context = LearnerContext(backbone, resolve_compute("cpu", "32-true"))
    options = {"ridge": {"blocks": [1, 2]}, "lora": {"first_block": 1}}
    assert isinstance(RIDGE_LORA(context, **options), RidgeLoRALearner)
    assert isinstance(RIDGE_LORA(context, **options, latents={"budget": "1MB"}), LatentRidgeLoRALearner)
    with pytest.raises(ConfigError, match="not even one sample"):
        RIDGE_LORA(context, **options, latents={"budget": "10B"})
    with pytest.raises(ConfigError, match="is no size"):
        RIDGE_LORA(context, **options, latents={"budget": "many"})


@pytest.mark.parametrize(("options", "share"), [({}, 1 / 3), ({"share": 0.5}, 0.5), ({"share": 0}, 0.0)])
def test_where_all_is_stored_the_adapted_branch_has_the_share_of_the_options(options, share):
    backbone = build_backbone("vit_tiny_patch16_224", weights="none", image_size=16, args=TINY_VIT)
    context = LearnerContext(backbone, resolve_compute("cpu", "32-true"))
    latents = {"budget": "1MB", "first_samples": 24, **options}
    learner = RIDGE_LORA(context, ridge={"blocks": [1, 2]}, lora={"first_block": 1}, latents=latents)
    teach(learner, batches=6)
    samples = make_batch(900, [*LABELS]).samples
    reading = learner.read(samples)
    frozen, adapted = (
        learner.exact.head.scores(reading.features),
        learner.adapted.head.scores(reading.adapted),
    )
    torch.testing.assert_close(learner.scores(reading), frozen + share * (adapted - frozen))

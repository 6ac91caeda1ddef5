"""Online-LoRA with stored tokens: what a step learns, and which options go together."""

import pytest
import torch
from pictures import make_batch
from pydantic import ValidationError
from tiny_learners import LABELS, latent_replay, online_lora, teach
from torch.nn import functional as F

from streamcl.errors import ConfigError
from streamcl.learners.factory import LearnerContext
from streamcl.learners.online_lora import ONLINE_LORA
from streamcl.memory.latent_replay import StoredBatch


def built(backbone, compute, **options):
    context = LearnerContext(backbone, compute)
    return ONLINE_LORA.build(ONLINE_LORA.options(**options), context)


def test_tokens_ride_along_as_their_images_would(tiny_backbone, fp32):
    model = online_lora(tiny_backbone, fp32, hard_buffer_size=0).model
    old, new = make_batch(0, [*LABELS, *LABELS]), make_batch(8, ["ant", None, "bee"])
    model.grow(old.samples)
    stored = StoredBatch(model.tokens(old.samples), tuple(str(each.label) for each in old.samples))
    by_tokens, by_images = model.forward_with_stored(new, stored), model.forward(new, old.samples)
    assert by_tokens.predictions == by_images.predictions
    assert torch.equal(by_tokens.targets, by_images.targets)
    torch.testing.assert_close(by_tokens.logits, by_images.logits)
    assert torch.equal(by_tokens.tokens, model.tokens(new.labelled))


def test_the_first_batch_is_learned_as_without_a_store_and_later_ones_with_old_samples(tiny_backbone, fp32):
    with_store, without = (
        latent_replay(tiny_backbone, fp32),
        online_lora(tiny_backbone, fp32, hard_buffer_size=0),
    )
    seen = []
    original = with_store.model.forward_with_stored
    with_store.model.forward_with_stored = lambda batch, stored: (
        seen.append(stored) or original(batch, stored)
    )
    for learner in (with_store, without):
        teach(learner, batches=1)
    torch.testing.assert_close(with_store.head.weight, without.head.weight)
    teach(with_store, batches=2, start=8)
    assert seen[0] is None
    assert [len(each.labels) for each in seen[1:]] == [8, 8]
    assert len(with_store.latents) == 24


def test_stored_samples_compete_with_all_classes_and_new_ones_with_those_of_the_batch(tiny_backbone, fp32):
    learner = latent_replay(tiny_backbone, fp32)
    teach(learner, labels=["ant", "bee"], batches=2)
    passes = []
    gradients, forward = learner.model.gradients, learner.model.forward_with_stored
    learner.model.gradients = lambda loss: passes.append(float(loss.detach())) or gradients(loss)
    learner.model.forward_with_stored = lambda *args: passes.append(forward(*args)) or passes[-1]
    learner.learn(make_batch(16, ["cat", "dog", "cat", "dog"]))
    seen, loss = passes
    own = F.cross_entropy(seen.logits[:4, 2:], seen.targets[:4] - 2)
    stored = F.cross_entropy(seen.logits[4:], seen.targets[4:])
    assert seen.logits.shape == (8, 4)
    assert loss == pytest.approx(float((own + stored).detach()), rel=1e-5)


def test_old_classes_stay_known_where_only_others_come(tiny_backbone, fp32):
    asked = make_batch(5000, ["ant", "bee"] * 10).samples
    right = []
    for learner in (latent_replay(tiny_backbone, fp32), online_lora(tiny_backbone, fp32, hard_buffer_size=0)):
        teach(learner, labels=["ant", "bee"], batches=10)
        teach(learner, labels=["cat", "dog"], batches=25, start=80)
        answers = zip(learner.predict(asked), asked, strict=True)
        right.append(sum(answer.label == sample.label for answer, sample in answers))
    assert right[0] > right[1]


def test_a_batch_without_labels_is_predicted_and_stores_nothing(tiny_backbone, fp32):
    learner = latent_replay(tiny_backbone, fp32)
    teach(learner, batches=2)
    assert learner.learn(make_batch(16, [None] * 4)).learned == ()
    assert len(learner.latents) == 16


def test_a_step_that_is_refused_stores_nothing(tiny_backbone, fp32):
    learner = latent_replay(tiny_backbone, fp32)
    teach(learner, batches=2)
    tokens = learner.model.tokens
    learner.model.tokens = lambda samples: tokens(samples) * torch.nan
    assert learner.learn(make_batch(16, LABELS)).learned == ()
    assert len(learner.latents) == 16


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"latents": {}}, "set first_block or last_blocks"),
        ({"latents": {"budget": 100}, "first_block": 1}, "not even one sample"),
    ],
)
def test_latents_without_frozen_blocks_or_without_room_are_refused(tiny_backbone, fp32, options, why):
    with pytest.raises(ConfigError, match=why):
        built(tiny_backbone, fp32, **options)


def test_latents_and_a_hard_buffer_exclude_each_other():
    with pytest.raises(ValidationError, match="exclude each other"):
        ONLINE_LORA.options(latents={}, hard_buffer_size=4, first_block=1)


def test_several_ranks_are_refused(tiny_backbone, fp32):
    class Two:
        world_size = 2

    context = LearnerContext(tiny_backbone, fp32, group=Two())
    with pytest.raises(ConfigError, match="one process only"):
        ONLINE_LORA.build(ONLINE_LORA.options(latents={}, first_block=1), context)


def test_a_budget_of_nothing_is_no_store(tiny_backbone, fp32):
    assert built(tiny_backbone, fp32, latents={"budget": 0}, hard_buffer_size=4).latents is None


def test_last_blocks_give_the_block_whose_tokens_are_stored(tiny_backbone, fp32):
    learner = built(tiny_backbone, fp32, latents={"budget": "1MB", "dtype": "float16"}, last_blocks=1)
    batch = make_batch(0, LABELS)
    learner.learn(batch)
    pixels = tiny_backbone.prepare([sample.image for sample in batch.samples])
    tokens = tiny_backbone.run(tiny_backbone.stem(pixels))[-2]
    found = learner.latents.draw(4, torch.Generator())
    order = [LABELS.index(label) for label in found.labels]
    torch.testing.assert_close(found.tokens, tokens[order], rtol=2e-3, atol=2e-3)

"""The learner of classes and pictures: hidden patches reach nothing, and both forget by subtraction."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_backbones
import torch
from pictures import make_batch, picture
from tiny_learners import LABELS, reconstruct, ridge, teach

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import Batch, Sample
from streamcl.learners.factory import LearnerContext
from streamcl.learners.masked_patches import MaskedPatchReader
from streamcl.learners.reconstruction import RECONSTRUCT


def reader(backbone, compute, **options):
    given = {"block": 1, "hidden": 0.5, "cells": 4, "seed": 0} | options
    return MaskedPatchReader(backbone, compute, **given)


def samples(count, side=32):
    images = tiny_backbones.images(count, side)
    return [Sample(f"s{number}", image, "abc"[number % 3]) for number, image in enumerate(images)]


@pytest.mark.parametrize("hidden", [0.01, 0.5, 0.75, 0.99])
def test_hidden_pixels_do_not_reach_the_contexts(tiny_backbone, fp32, hidden):
    read = reader(tiny_backbone, fp32, hidden=hidden)
    (sample,) = samples(1)
    found = read([sample])
    assert 1 <= found.places.shape[1] <= 15
    other = sample.image.copy()
    for place in found.places[0].tolist():
        row, column = 8 * (place // 4), 8 * (place % 4)
        other[row : row + 8, column : column + 8] = 255 - other[row : row + 8, column : column + 8]
    again = read([replace(sample, image=other)])
    assert again.contexts.equal(found.contexts)
    assert not again.pixels.equal(found.pixels)
    assert found.contexts.shape == (1, found.places.shape[1], read.context_width)
    other[:] = 255 - sample.image
    assert not read([replace(sample, image=other)]).contexts.equal(found.contexts)


def test_a_context_holds_the_patches_around_it(tiny_backbone, fp32):
    read = reader(tiny_backbone, fp32)
    (sample,) = samples(1)
    places = read.places([sample])
    tokens = torch.randn(1, 1 + 16 - places.shape[1], 32)
    tokens[:, 1:] += 100 * torch.arange(tokens.shape[1] - 1)[None, :, None]  # the norm takes it away
    contexts = read.contexts(tokens, places)[0]
    hidden = set(places[0].tolist())
    for number, place in enumerate(places[0].tolist()):
        row, column = divmod(place, 4)
        sides = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
        parts = contexts[number, 32 : 32 + 4 * 9].view(4, 9)
        for (r, c), part in zip(sides, parts, strict=True):
            is_seen = 0 <= r < 4 and 0 <= c < 4 and 4 * r + c not in hidden
            assert part[8] == is_seen
            assert part[:8].abs().sum() > 0 if is_seen else part[:8].abs().sum() == 0
        assert contexts[number, 68:].nonzero().flatten().tolist() == [place, 16]


def test_a_sample_is_read_alike_in_any_company(tiny_backbone, fp32):
    read = reader(tiny_backbone, fp32)
    several = samples(5)
    together = read(several)
    for number in (0, 3):
        alone = read([several[number]])
        assert alone.places.equal(together.places[[number]])
        assert alone.contexts.equal(together.contexts[[number]])
    assert len({tuple(row.tolist()) for row in together.places}) > 1, "each sample has a mask of its own"
    assert not reader(tiny_backbone, fp32, seed=1)(several).places.equal(together.places)


def test_patches_put_together_are_the_picture(tiny_backbone, fp32):
    read = reader(tiny_backbone, fp32, cells=8)
    one, other = samples(2)
    found = read([one, other])
    assert found.patches.shape == (2, 16, read.values)
    levels = (255 * read.pictures(found.patches)).round().numpy().astype(np.uint8)
    assert (levels == np.stack([one.image, other.image])).all()


def test_a_patch_that_follows_from_its_neighbours_is_filled_in(tiny_backbone, fp32):
    """Pictures of one colour each: the mean error is far below that of the mean colour."""
    learner = reconstruct(tiny_backbone, fp32)
    colours = np.random.default_rng(0).integers(0, 256, (220, 1, 1, 3), dtype=np.uint8)
    plain = [Sample(f"p{i}", np.tile(colour, (32, 32, 1)), "a") for i, colour in enumerate(colours)]
    for start in range(0, 200, 20):
        learner.learn(Batch(start, tuple(plain[start : start + 20])))
    hidden = learner.reconstruction.read(plain[200:])
    error = (learner.reconstruction.decoder.decode(hidden.contexts) - hidden.pixels).square().mean()
    assert error < 0.3 * (hidden.pixels - hidden.pixels.mean()).square().mean()


def test_its_classes_are_those_of_the_ridge_head(tiny_backbone, fp32):
    one, other = reconstruct(tiny_backbone, fp32), ridge(tiny_backbone, fp32)
    assert teach(one) == teach(other)
    assert one.logits(make_batch(900, LABELS).samples).equal(other.logits(make_batch(900, LABELS).samples))


def batches(without=frozenset()):
    labels = [LABELS[number % 3] for number in range(24)]
    whole = [make_batch(8 * k, labels[8 * k : 8 * k + 8]) for k in range(3)]
    return [
        Batch(each.offset, tuple(sample for sample in each.samples if sample.id not in without))
        for each in whole
    ]


def test_what_is_forgotten_was_never_learned(tiny_backbone, fp32):
    learner, never = reconstruct(tiny_backbone, fp32), reconstruct(tiny_backbone, fp32)
    gone = [sample for batch in batches() for sample in batch.samples][3:11]
    for batch in batches():
        learner.learn(batch)
    for batch in batches({sample.id for sample in gone}):
        never.learn(batch)
    statistics = capabilities_of(learner).statistics
    figures = statistics.subtract(statistics.of(gone[:5]) + statistics.of(gone[5:]))
    assert figures["samples_left"] == figures["decoder_samples_left"] == 16
    shown, expected = (
        each.reconstruction.decoder.decode(each.reconstruction.read(gone).contexts)
        for each in (learner, never)
    )
    torch.testing.assert_close(shown, expected, rtol=1e-6, atol=1e-6)
    assert learner.reconstruction.decoder.sums.relative_error(never.reconstruction.decoder.sums) < 1e-12
    features = learner.classifier.features(gone)
    scores = (each.classifier.head.scores_refit(features) for each in (learner, never))
    torch.testing.assert_close(*scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("part", ["head", "decoder"])
def test_where_one_part_refuses_the_other_stays(tiny_backbone, fp32, part):
    learner = reconstruct(tiny_backbone, fp32)
    for batch in batches():
        learner.learn(batch)
    statistics = capabilities_of(learner).statistics
    value = statistics.of(batches()[0].samples)
    head, decoder = value.head, value.decoder
    for _ in range(3):
        head, decoder = (head + value.head, decoder) if part == "head" else (head, decoder + value.decoder)
    before = learner.state_dict()
    with pytest.raises(ForgettingError):
        statistics.subtract(replace(value, head=head, decoder=decoder))
    after = learner.state_dict()
    assert after["decoder"]["moments"].tobytes() == before["decoder"]["moments"].tobytes()
    assert after["classifier"]["head"]["Q"].tobytes() == before["classifier"]["head"]["Q"].tobytes()


def test_contexts_that_are_not_finite_are_not_learned(tiny_backbone, fp32, monkeypatch):
    learner = reconstruct(tiny_backbone, fp32)
    teach(learner)
    before = learner.reconstruction.decoder.sums
    contexts = MaskedPatchReader.contexts
    monkeypatch.setattr(MaskedPatchReader, "contexts", lambda *given: contexts(*given) * torch.nan)
    result = learner.learn(make_batch(900, LABELS))
    assert result.learned == ()
    assert len(result.predictions) == len(LABELS)
    assert learner.reconstruction.decoder.sums is before


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("swin", {}, "none can be hidden"),
        ("dinov3", {}, "none can be hidden"),
        ("vit", {"decoder": {"block": 3}}, "block 3 does not exist; there are 3"),
    ],
)
def test_what_cannot_be_built_is_refused(fp32, family, options, message):
    context = LearnerContext(tiny_backbones.shared(family), fp32)
    with pytest.raises(ConfigError, match=message):
        RECONSTRUCT(context, **options)


@pytest.mark.parametrize("family", ["dinov2", "siglip", "deit"])
def test_it_learns_with_register_tokens_and_without_a_class_token(fp32, family):
    learner = RECONSTRUCT(LearnerContext(tiny_backbones.shared(family), fp32))
    images = [picture(LABELS[number % 2], number) for number in range(12)]
    batch = Batch(0, tuple(Sample(f"{k}", image, LABELS[k % 2]) for k, image in enumerate(images)))
    assert learner.learn(batch).learned == tuple(range(12))
    assert learner.reconstruction.decoder.sums.patches == 12 * 8

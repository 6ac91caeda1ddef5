"""The decoder of patches: sums free of order, weights as by least squares, forgetting by subtraction."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import ForgettingError
from streamcl.heads.patch_decoder import HiddenPatches, PatchDecoder, PatchSums

WIDTH, VALUES, PATCHES, HIDDEN = 7, 4, 6, 2


def hidden(count, seed=0):
    """Contexts of which the pixels are a noisy linear function."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randn(count, HIDDEN, WIDTH, generator=generator)
    contexts[..., 0] = 1.0
    true = torch.randn(WIDTH, VALUES, generator=torch.Generator().manual_seed(99)) * 0.03
    pixels = 0.5 + contexts @ true + 0.01 * torch.randn(count, HIDDEN, VALUES, generator=generator)
    places = torch.stack(
        [torch.randperm(PATCHES, generator=generator)[:HIDDEN].sort().values for _ in range(count)]
    )
    patches = torch.rand(count, PATCHES, VALUES, generator=generator)
    return HiddenPatches(
        contexts, patches.scatter(1, places[..., None].expand(-1, -1, VALUES), pixels), places
    )


def learned(patches, cuts=(), **options):
    decoder = PatchDecoder(WIDTH, VALUES, **options)
    ends = [0, *sorted(cuts), len(patches)]
    for start, end in pairwise(ends):
        decoder.merge(PatchSums.of(patches.at(slice(start, end))))
    return decoder


def same(one, other):
    torch.testing.assert_close(one.weights(), other.weights(), rtol=1e-9, atol=1e-12)
    assert (one.sums.samples, one.sums.patches) == (other.sums.samples, other.sums.patches)


def test_weights_are_those_of_ridge_regression_on_all_rows():
    patches = hidden(20)
    decoder = learned(patches, trace_ridge=0.01)
    z, p = patches.contexts.flatten(0, 1).double(), patches.pixels.flatten(0, 1).double()
    ridge = 0.01 * (z.T @ z).trace() / WIDTH
    torch.testing.assert_close(
        decoder.weights(), torch.linalg.solve(z.T @ z + ridge * torch.eye(WIDTH), z.T @ p)
    )
    error = (decoder.decode(patches.contexts) - patches.pixels).square().mean()
    assert error < 5e-4
    assert decoder.decode(100 * patches.contexts).max() == 1.0


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), cuts=st.sets(st.integers(1, 19), max_size=3))
def test_any_order_in_any_batches_gives_the_same_decoder(seed, cuts):
    patches = hidden(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    same(learned(patches.at(order), cuts), learned(patches))


@settings(deadline=None, max_examples=25)
@given(gone=st.sets(st.integers(0, 19), min_size=1, max_size=20), seed=st.integers(0, 9))
def test_forgetting_equals_never_having_learned(gone, seed):
    patches = hidden(20, seed)
    stay = torch.tensor([i for i in range(20) if i not in gone], dtype=torch.int64)
    decoder = learned(patches)
    decoder.remove(PatchSums.of(patches.at(torch.tensor(sorted(gone)))))
    same(decoder, learned(patches.at(stay)) if len(stay) else PatchDecoder(WIDTH, VALUES))
    assert decoder.removal_figures()["decoder_samples_left"] == len(stay)


@pytest.mark.parametrize("wrong", ["twice", "others", "all but others", "more"])
def test_what_cannot_be_in_the_sums_is_refused_and_nothing_changes(wrong):
    patches = hidden(3)
    decoder = learned(patches)
    first = PatchSums.of(patches.at(slice(0, 1)))
    others = {
        "twice": first + first,
        "others": PatchSums.of(hidden(2, seed=5)),
        "all but others": PatchSums.of(hidden(3, seed=5)),
        "more": PatchSums.of(hidden(4)),
    }
    before = decoder.sums
    with pytest.raises(ForgettingError):
        decoder.remove(others[wrong])
    assert decoder.sums is before


def test_a_state_gives_the_same_decoder_and_refuses_another_shape():
    decoder = learned(hidden(10))
    again = PatchDecoder(WIDTH, VALUES)
    again.load_state_dict(decoder.state_dict())
    assert again.weights().equal(decoder.weights())
    assert again.sums.relative_error(decoder.sums) == 0.0
    with pytest.raises(ValueError, match="shape"):
        PatchDecoder(WIDTH, VALUES + 1).load_state_dict(decoder.state_dict())


def test_a_savepoint_restores_the_sums():
    patches = hidden(10)
    decoder = learned(patches)
    before, weights = decoder.sums, decoder.weights()
    restore = decoder.savepoint()
    decoder.merge(PatchSums.of(patches))
    restore()
    assert decoder.sums is before
    assert decoder.weights() is weights


def test_without_samples_everything_is_black():
    assert PatchDecoder(WIDTH, VALUES).decode(hidden(2).contexts).max() == 0.0


def test_decoded_patches_take_the_hidden_places():
    patches = hidden(4)
    assert patches.filled(patches.pixels).equal(patches.patches)
    changed = patches.filled(torch.zeros_like(patches.pixels)) != patches.patches
    assert changed.any(dim=2).sum(dim=1).tolist() == [HIDDEN] * 4
    assert PatchSums.of(patches).is_finite
    assert not PatchSums.of(
        HiddenPatches(patches.contexts * torch.inf, patches.patches, patches.places)
    ).is_finite

"""The head on keys: its sums are integers, whatever comes and goes in whichever order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import ForgettingError
from streamcl.heads.key_pairs import KeyPairsHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import random_projection
from streamcl.storage.plain_state import state_hash

WIDTH, KEYS, CLASSES, COUNT = 6, 64, 3, 30


def probe():
    return 3 * torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(99))


def made(probe=probe, **options):
    return KeyPairsHead(WIDTH, keys=KEYS, probe=probe, variance_ridge=3.0, refit_fraction=0.0, **options)


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(COUNT) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=generator) * 2
    return centres[y] + torch.randn(COUNT, WIDTH, generator=generator), y


def learned(x, y, cuts=()):
    head = made()
    head.grow(CLASSES)
    for features, targets in zip(x.tensor_split(list(cuts)), y.tensor_split(list(cuts)), strict=True):
        head.update(features, targets)
    return head


def equal(one, other, x):
    for mine, theirs in zip(integers(one), integers(other), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(one.scores_refit(x), other.scores_refit(x))


def integers(head):
    """Every statistic of a head; all of them are whole numbers."""
    found = [head.statistics.gram.full(), head.statistics.Q, head.statistics.counts]
    assert all(torch.equal(each, each.round()) for each in found)
    return found


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(0, COUNT), max_size=3))
def test_any_order_in_any_batches_gives_the_same_integers_and_scores(seed, cuts):
    x, y = data()
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
    equal(learned(x[shuffled], y[shuffled], sorted(cuts)), learned(x, y), x)


@settings(deadline=None, max_examples=25)
@given(
    gone=st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=20),
    back=st.sets(st.integers(0, COUNT - 1), max_size=5),
    seed=st.integers(0, 9),
)
def test_forgetting_equals_never_having_learned_to_the_bit(gone, back, seed):
    x, y = data(seed)
    head, leave, again = learned(x, y), sorted(gone), sorted(gone & back)
    head.remove(head.statistics_of(x[leave], y[leave]))
    if again:
        head.update(x[again], y[again])
    stay = [i for i in range(COUNT) if i not in gone or i in back]
    equal(head, learned(x[stay], y[stay]), x)


def test_the_same_is_not_true_of_a_ridge_head_on_features_as_they_are():
    """The guard seen failing: it is the keys that make sums exact."""
    x, y = data()
    head, never = (RidgeHead(WIDTH, variance_ridge=3.0, refit_fraction=0.0) for _ in range(2))
    for each in (head, never):
        each.grow(CLASSES)
    head.update(x, y)
    head.remove(head.statistics_of(x[:7], y[:7]))
    never.update(x[7:], y[7:])
    assert not torch.equal(head.statistics.gram.full(), never.statistics.gram.full())


@pytest.mark.parametrize("rows", [slice(0, 3), slice(9, 12)], ids=["taken out before", "never learned"])
def test_samples_that_are_not_in_the_sums_are_refused(rows):
    x, y = data()
    head = learned(x[:9], y[:9])
    head.remove(head.statistics_of(x[:3], y[:3]))
    before = state_hash(head.state_dict())
    with pytest.raises(ForgettingError):
        head.remove(head.statistics_of(x[rows], y[rows]))
    assert state_hash(head.state_dict()) == before


def test_keys_are_the_nearest_of_sixteen_points_along_each_direction():
    x, _ = data()
    head = made(seed=3)
    keys = head.statistic_rows(x)
    centre, spacing = head.state_dict()["centre"], head.state_dict()["spacing"]
    along = (x - torch.from_numpy(centre)) @ random_projection(WIDTH, KEYS, 3) / spacing
    points = torch.arange(-15, 16, 2) / 2.0
    nearest = points[(along[..., None] - points).abs().argmin(dim=-1)]
    assert torch.equal(keys, 2.0 * nearest.double())
    assert not torch.equal(keys, made(seed=4).statistic_rows(x))


def test_keys_of_a_sample_do_not_depend_on_others():
    x, _ = data()
    head = made()
    assert torch.equal(head.statistic_rows(x), torch.cat([head.statistic_rows(row[None]) for row in x]))


def test_features_that_are_not_finite_are_refused():
    x, y = data()
    head = learned(x, y)
    before = state_hash(head.state_dict())
    x[4, 2] = torch.nan
    assert torch.isnan(head.statistic_rows(x)).any(dim=1).tolist() == [i == 4 for i in range(COUNT)]
    with pytest.raises(ValueError, match="not finite"):
        head.update(x, y)
    assert state_hash(head.state_dict()) == before


def test_a_restored_head_has_the_keys_of_its_state_and_goes_on_alike():
    x, y = data()
    owner = learned(x[:20], y[:20])
    taker = made(probe=lambda: pytest.fail("the keys are in the state"))
    taker.load_state_dict(owner.state_dict())
    for head in (owner, taker):
        head.update(x[20:], y[20:])
    equal(owner, taker, x)
    assert state_hash(owner.state_dict()) == state_hash(taker.state_dict())

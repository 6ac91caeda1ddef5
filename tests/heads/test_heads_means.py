"""Heads of class means: the order of the stream is nothing to them, and forgetting is subtraction."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import ForgettingError
from streamcl.heads.ncm import NCMHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.storage.plain_state import state_hash

WIDTH, CLASSES = 6, 3
HEADS = {
    "ncm-cosine": functools.partial(NCMHead, WIDTH, metric="cosine"),
    "ncm-euclid": functools.partial(NCMHead, WIDTH, metric="euclid"),
    "slda": functools.partial(SLDAHead, WIDTH, shrinkage=1e-2, refit_fraction=0.0),
}


@pytest.fixture(params=HEADS)
def make(request):
    return HEADS[request.param]


def data(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=generator) * 2
    return centres[y] + torch.randn(count, WIDTH, generator=generator), y


def learned(make, x, y, cuts=(), classes=CLASSES):
    head = make()
    head.grow(classes)
    for features, targets in zip(x.tensor_split(list(cuts)), y.tensor_split(list(cuts)), strict=True):
        head.update(features, targets)
    return head


def same(one, other, x):
    torch.testing.assert_close(one.scores(x), other.scores(x), rtol=1e-8, atol=1e-8)
    assert one.counts == other.counts


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(sorted(HEADS)),
    seed=st.integers(0, 999),
    cuts=st.lists(st.integers(0, 30), max_size=3),
)
def test_any_order_in_any_batches_gives_the_same_head(kind, seed, cuts):
    x, y = data(30)
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    straight = learned(HEADS[kind], x, y)
    same(learned(HEADS[kind], x[shuffled], y[shuffled], sorted(cuts)), straight, x)


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(sorted(HEADS)), gone=st.sets(st.integers(0, 29), max_size=20), seed=st.integers(0, 9)
)
def test_forgetting_equals_never_having_learned(kind, gone, seed):
    x, y = data(30, seed)
    stay = [i for i in range(30) if i not in gone]
    head, leave = learned(HEADS[kind], x, y), sorted(gone)
    head.downdate(x[leave], y[leave])
    same(head, learned(HEADS[kind], x[stay], y[stay]), x)


def test_removed_statistics_equal_a_downdate(make):
    x, y = data(30)
    one, other = learned(make, x, y), learned(make, x, y)
    one.remove(one.statistics_of(x[:7], y[:7]))
    other.downdate(x[:7], y[:7])
    same(one, other, x)
    one.merge(one.statistics_of(x[:7], y[:7]))
    same(one, learned(make, x, y), x)


def test_a_dropped_class_was_never_there(make):
    x, y = data(30)
    head = learned(make, x, y)
    with pytest.raises(ForgettingError, match="still has 10 samples"):
        head.drop_class(1)
    head.downdate(x[y == 1], y[y == 1])
    assert (head.scores(x)[:, 1] == -torch.inf).all()
    head.drop_class(1)
    rest = y != 1
    same(head, learned(make, x[rest], y[rest] // 2, classes=2), x)
    with pytest.raises(ForgettingError, match="no class column 2"):
        head.drop_class(2)


def test_everything_forgotten_is_a_fresh_head(make):
    x, y = data(30)
    head = learned(make, x, y)
    head.downdate(x, y)
    assert (head.scores(x) == -torch.inf).all()
    head.update(x, y)
    same(head, learned(make, x, y), x)


def test_what_was_not_learned_is_not_forgotten(make):
    x, y = data(30)
    head = learned(make, x, y)
    before = state_hash(head.state_dict())
    with pytest.raises(ForgettingError, match="more samples"):
        head.downdate(torch.cat([x, x[:1]]), torch.cat([y, y[:1]]))
    with pytest.raises(ForgettingError, match="these are not"):
        head.downdate(-x[y == 1], y[y == 1])
    assert state_hash(head.state_dict()) == before


def test_bad_input_changes_nothing(make):
    x, y = data(6)
    head = learned(make, x, y)
    before = state_hash(head.state_dict())
    for features, targets in [(x[:, :2], y), (x, y[:2]), (x, y + 1), (x * torch.nan, y)]:
        with pytest.raises(ValueError, match=r"shape|columns|finite"):
            head.update(features, targets)
    assert state_hash(head.state_dict()) == before


def test_state_round_trip(make):
    x, y = data(30)
    head, twin = learned(make, x, y), make()
    twin.load_state_dict(head.state_dict())
    assert state_hash(twin.state_dict()) == state_hash(head.state_dict())
    assert torch.equal(twin.scores(x), head.scores(x))
    for each in (head, twin):
        each.grow(5)
        each.update(x, y)
    assert torch.equal(twin.scores(x), head.scores(x))
    with pytest.raises(ValueError, match="shape"):
        type(head)(WIDTH + 1).load_state_dict(head.state_dict())


def test_it_finds_the_classes(make):
    x, y = data(300)
    head = learned(make, x[:200], y[:200])
    assert (head.scores(x[200:]).argmax(dim=1) == y[200:]).double().mean() > 0.9


def test_cosine_ignores_length_and_euclid_does_not():
    x, y = data(30)
    scaled = x * torch.linspace(0.1, 10, 30)[:, None]
    cosine, euclid = (HEADS[f"ncm-{metric}"] for metric in ("cosine", "euclid"))
    same(learned(cosine, scaled, y), learned(cosine, x, y), x)
    assert not torch.allclose(learned(euclid, scaled, y).scores(x), learned(euclid, x, y).scores(x))


def test_euclid_is_the_nearest_mean():
    x, y = data(30)
    means = torch.stack([x[y == c].double().mean(dim=0) for c in range(CLASSES)])
    nearest = torch.cdist(x.double(), means).argmin(dim=1)
    assert torch.equal(learned(HEADS["ncm-euclid"], x, y).scores(x).argmax(dim=1), nearest)


def test_slda_scores_are_gaussian_log_ratios_under_the_shared_covariance():
    x, y = data(60)
    head = learned(functools.partial(SLDAHead, WIDTH, shrinkage=1e-12), x, y)
    x = x.double()
    means = torch.stack([x[y == c].mean(dim=0) for c in range(CLASSES)])
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    density = [torch.distributions.MultivariateNormal(m, within).log_prob(x) for m in (*means, x.mean(dim=0))]
    expected = torch.stack(density[:-1], dim=1) - density[-1][:, None]
    torch.testing.assert_close(head.scores(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shrinkage", [1e-3, 0.5])
def test_slda_is_checked_after_an_erasure_by_a_ridge_of_its_own_shrinkage(shrinkage):
    x, y = data(60)
    gram = x.double().T @ x.double()
    least = float(torch.linalg.eigvalsh(gram)[0]) / (shrinkage * float(gram.trace()) / WIDTH)
    head = learned(functools.partial(SLDAHead, WIDTH, shrinkage=shrinkage), x, y)
    assert head.smallest_eigenvalue() == pytest.approx(1 + least, rel=0.2)


def test_slda_of_single_samples_has_no_variance_and_stays_finite():
    x, y = data(CLASSES)
    head = learned(HEADS["slda"], x, y)
    assert head.scores(x).isfinite().all()
    assert torch.equal(head.scores(x).argmax(dim=1), y)


@pytest.mark.parametrize(
    "make", [RidgeHead, functools.partial(RidgeHead, variance_ridge=32.0), SLDAHead, NCMHead]
)
def test_a_head_that_was_restored_scores_the_same_to_the_last_bit(make):
    """At sizes where a product's last bits depend on the order in which the weights lie in memory."""
    generator = torch.Generator().manual_seed(0)
    head, restored = make(512), make(512)
    head.grow(60)
    for _ in range(20):
        head.update(torch.randn(8, 512, generator=generator), torch.randint(60, (8,), generator=generator))
    restored.load_state_dict(head.state_dict())
    x = torch.randn(8, 512, generator=generator)
    assert torch.equal(head.scores(x), restored.scores(x))
    assert torch.equal(head.scores_refit(x), restored.scores_refit(x))

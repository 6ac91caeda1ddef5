"""Stability of a ridge head's predictions: exact for the whole ellipsoid of equally good models."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import normal_equations, rarity
from streamcl.heads.stability import RidgeStability, flip_probability

D, C = 12, 4
RIDGES = [None, 7.0]  # a share of the trace; in samples, with columns raised by their rarity


def drawn(n, seed=0, classes=C):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, D, generator=generator)
    spread = torch.linspace(0.2, 2.0, D)
    return centres[targets] + spread * torch.randn(n, D, generator=generator), targets


def learned(x, y, variance_ridge=7.0, classes=C):
    head = RidgeHead(x.shape[1], trace_ridge=0.05, variance_ridge=variance_ridge)
    head.grow(classes)
    head.update(x, y)
    return head


def equations_of(head, variance_ridge=7.0):
    return normal_equations(0.05, head.statistics, variance_ridge)


def leverage_of(stability, queries):
    return stability.uncertainty(queries).novelty * stability.usual_leverage


class Loss:
    """The regularised squared error of an affine model around the mean feature, before columns are raised."""

    def __init__(self, x, y, equations):
        self.x, self.equations = x.double() - equations.mean, equations
        self.targets = torch.nn.functional.one_hot(y, C).double()
        self.W = torch.cholesky_solve(equations.moments, torch.linalg.cholesky(self.A))
        self.b = self.targets.mean(0)

    @property
    def A(self):
        return self.x.T @ self.x + torch.diag(self.equations.ridge)

    def __call__(self, delta_W, delta_b):
        W, b = self.W + delta_W, self.b + delta_b
        residual = self.targets - self.x @ W - b
        return float(residual.square().sum() + (W.square() * self.equations.ridge[:, None]).sum())

    def rise(self, delta_W, delta_b):
        return self(delta_W, delta_b) - self(torch.zeros_like(delta_W), torch.zeros_like(delta_b))


@pytest.mark.parametrize("ridge", RIDGES)
def test_the_model_that_flips_a_prediction_costs_what_the_leverage_says_and_flips_it(ridge):
    x, y = drawn(60)
    head = learned(x, y, ridge)
    equations, loss = equations_of(head, ridge), Loss(x, y, equations_of(head, ridge))
    queries = drawn(9, seed=5)[0]
    leverage = leverage_of(RidgeStability(equations), queries)
    reach = torch.outer(leverage + 1 / 60, equations.scale.square())  # q r^2
    scores = head.scores(queries)
    for i, row in enumerate(scores):
        a, b = row.topk(2).indices.tolist()
        margin = float(row[a] - row[b])
        cost = margin**2 / float(reach[i, a] + reach[i, b])
        centred = queries[i].double() - equations.mean
        direction = torch.zeros(C, dtype=torch.float64)
        direction[a], direction[b] = -equations.scale[a], equations.scale[b]
        step = margin / float(reach[i, a] + reach[i, b])
        delta_W = step * torch.outer(torch.linalg.solve(loss.A, centred), direction)
        delta_b = step / 60 * direction
        assert loss.rise(delta_W, delta_b) == pytest.approx(
            cost, rel=1e-8, abs=1e-11 * loss(delta_W, delta_b)
        )
        moved = row + equations.scale * (centred @ delta_W + delta_b)
        assert float(moved[a] - moved[b]) == pytest.approx(0, abs=1e-8 * margin)
        assert float(leverage[i]) == pytest.approx(float(centred @ torch.linalg.solve(loss.A, centred)))


@pytest.mark.parametrize("ridge", RIDGES)
def test_no_equally_good_model_scores_further_away_than_the_viable_range(ridge):
    x, y = drawn(60)
    head = learned(x, y, ridge)
    equations = equations_of(head, ridge)
    loss, stability, queries = Loss(x, y, equations), RidgeStability(equations), drawn(20, seed=7)[0]
    reach = torch.outer(leverage_of(stability, queries) + 1 / 60, equations.scale.square())
    centred, factor = queries.double() - equations.mean, torch.linalg.cholesky(loss.A)
    eps, nearest = 0.3, 1.0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        white = torch.randn(D + 1, C, generator=generator, dtype=torch.float64)
        white *= math.sqrt(eps) / white.norm()
        delta_W = torch.linalg.solve_triangular(factor.T, white[:D], upper=True)
        delta_b = white[D] / math.sqrt(60)
        assert loss.rise(delta_W, delta_b) == pytest.approx(eps, rel=1e-7)
        moved = ((centred @ delta_W + delta_b) * equations.scale).abs()
        assert bool((moved <= (eps * reach).sqrt() * (1 + 1e-9)).all())
        nearest = min(nearest, float(1 - (moved / (eps * reach).sqrt()).max()))
    assert nearest < 0.6  # the bound is not far from what random models reach


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(RIDGES), st.integers(1, 25))
def test_after_an_erasure_it_is_that_of_a_head_that_never_saw_the_samples(seed, ridge, erased):
    x, y = drawn(70, seed)
    head = learned(x, y, ridge)
    head.downdate(x[:erased], y[:erased])
    other = learned(x[erased:], y[erased:], ridge)
    one, two = (RidgeStability(equations_of(each, ridge)) for each in (head, other))
    queries = drawn(8, seed + 1)[0]
    assert one.degrees_of_freedom == pytest.approx(two.degrees_of_freedom, rel=1e-9)
    assert one.residual_variance == pytest.approx(two.residual_variance, rel=1e-9)
    for figure, expected in zip(one.uncertainty(queries), two.uncertainty(queries), strict=True):
        assert figure == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ridge", RIDGES)
def test_residual_and_freedom_come_from_the_sums_as_from_the_samples(ridge):
    x, y = drawn(50)
    equations = equations_of(learned(x, y, ridge), ridge)
    loss, stability = Loss(x, y, equations), RidgeStability(equations)
    hat = loss.x @ torch.linalg.solve(loss.A, loss.x.T)
    freedom = float(hat.trace()) + 1
    residual = loss.targets - loss.x @ loss.W - loss.b
    assert stability.degrees_of_freedom == pytest.approx(freedom, rel=1e-10)
    left = 50 * float(residual.square().sum()) / ((50 - freedom) ** 2 * C)
    assert stability.residual_variance == pytest.approx(left, rel=1e-9)
    queries = drawn(6, seed=2)[0]
    maps = torch.linalg.solve(loss.A, loss.x.T).T @ (queries.double() - equations.mean).T  # by each target
    spread = left * (maps.square().sum(0) + 1 / 50)
    expected = torch.outer(spread, equations.scale.square())
    assert stability.uncertainty(queries).variance == pytest.approx(expected, rel=1e-9)


def test_novelty_is_about_one_for_new_samples_of_the_same_stream_and_large_for_others():
    x, y = drawn(400)
    stability = RidgeStability(equations_of(learned(x, y)))
    new, _ = drawn(400, seed=0)
    noise = torch.Generator().manual_seed(3)
    same = stability.uncertainty(new + 0.1 * torch.randn(new.shape, generator=noise)).novelty
    far = stability.uncertainty(new + 5.0).novelty
    assert 0.7 < float(same.mean()) < 1.4
    assert float(far.min()) > float(same.mean())
    assert float(far.mean()) > 3 * float(same.mean())


def test_probabilities_of_a_change_agree_with_draws_of_the_scores():
    scores = torch.tensor(
        [[1.0, 0.4, -math.inf], [0.3, 0.3, 0.3], [2.0, 0.0, 0.1], [1.0, 0.6, 0.5]], dtype=torch.float64
    )
    variance = torch.tensor(
        [[0.2, 0.1, 1.0], [0.2, 0.1, 0.1], [0.01, 0.01, 0.01], [0.1, 0.2, 0.3]], dtype=torch.float64
    )
    noise = torch.randn(200_000, *scores.shape, generator=torch.Generator().manual_seed(0))
    drawn_class = (scores + variance.sqrt() * noise).argmax(dim=2)
    changes = (drawn_class != scores.argmax(dim=1)).double().mean(dim=0)
    assert flip_probability(scores, variance) == pytest.approx(changes, abs=5e-3)


def test_a_change_has_no_probability_without_classes_and_none_with_a_single_one():
    none = flip_probability(torch.zeros(2, 0), torch.zeros(2, 0))
    assert none.isnan().all()
    erased = flip_probability(torch.full((1, 2), -math.inf), torch.ones(1, 2))
    assert erased.isnan().all()
    assert float(flip_probability(*torch.zeros(2, 1, 1, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)


def test_one_picture_again_and_again_has_finite_figures():
    x = torch.ones(5, D)
    stability = RidgeStability(equations_of(learned(x, torch.zeros(5, dtype=torch.int64))))
    for figure in stability.uncertainty(torch.randn(3, D)):
        assert figure.isfinite().all()


# --- of the weights in use --------------------------------------------------------------------------


def keeping(x, y, **options):
    head = RidgeHead(D, variance_ridge=7.0, refit_fraction=0.5, keeps_uncertainty=True, **options)
    head.grow(C)
    head.update(x, y)
    return head


def test_the_uncertainty_of_the_weights_in_use_is_of_their_solve():
    x, y = drawn(60)
    head, queries = keeping(x, y), drawn(9, seed=5)[0]
    then = RidgeStability(normal_equations(0.01, head.statistics, 7.0)).uncertainty(queries)
    kept = head.uncertainty_in_use(queries)
    assert torch.allclose(kept.variance, then.variance, rtol=1e-4)
    assert torch.allclose(kept.novelty, then.novelty, rtol=1e-4)
    head.update(*drawn(8, seed=6))  # no solve falls due, but classes are as rare as they are now
    now, counts = head.uncertainty_in_use(queries), head.statistics.counts
    before, after = (rarity(each, int(each.sum())).square() for each in (y.bincount(minlength=C), counts))
    assert torch.allclose(now.variance / after, kept.variance / before)
    assert torch.equal(now.novelty, kept.novelty)
    head.update(*drawn(60, seed=7))
    assert not torch.equal(head.uncertainty_in_use(queries).variance, kept.variance)


def test_keeping_the_uncertainty_changes_no_weight():
    x, y = drawn(60)
    plain = RidgeHead(D, variance_ridge=7.0, refit_fraction=0.5)
    plain.grow(C)
    plain.update(x, y)
    queries = drawn(9, seed=5)[0]
    assert torch.equal(plain.scores(queries), keeping(x, y).scores(queries))
    assert plain.uncertainty_in_use(queries) is None


def test_the_kept_uncertainty_is_a_part_of_the_state():
    x, y = drawn(60)
    head, queries = keeping(x, y), drawn(9, seed=5)[0]
    head.scores(queries)
    head.update(*drawn(8, seed=6))
    state = head.state_dict()
    twin = keeping(*drawn(4, seed=9))
    twin.load_state_dict(state)
    for mine, theirs in zip(head.uncertainty_in_use(queries), twin.uncertainty_in_use(queries), strict=True):
        assert torch.equal(mine, theirs)
    without = RidgeHead(D, variance_ridge=7.0, refit_fraction=0.5)
    without.load_state_dict(state)
    assert without.uncertainty_in_use(queries) is None
    assert "uncertainty" not in without.state_dict()


def test_after_an_erasure_it_is_of_the_samples_that_are_left():
    x, y = drawn(60)
    head, queries = keeping(x, y), drawn(9, seed=5)[0]
    head.scores(queries)
    head.downdate(x[:20], y[:20])
    left = keeping(x[20:], y[20:]).uncertainty_in_use(queries)
    assert torch.allclose(head.uncertainty_in_use(queries).variance, left.variance, rtol=1e-3)


def test_class_columns_come_and_go():
    x, y = drawn(60, classes=C - 1)
    head, queries = keeping(x, y), drawn(9, seed=5)[0]
    head.grow(C + 1)
    assert head.uncertainty_in_use(queries).variance.shape == (9, C + 1)
    head.drop_class(C)
    assert head.uncertainty_in_use(queries).variance.shape == (9, C)


def test_an_empty_head_keeps_none():
    head = RidgeHead(D, keeps_uncertainty=True)
    assert head.uncertainty_in_use(drawn(3)[0]) is None

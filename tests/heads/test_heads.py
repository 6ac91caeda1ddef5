"""Heads grow without touching old classes; the closed form is free of order and forgets exactly."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import streamcl.heads.ridge_solver as module_of_solver
from streamcl.errors import ForgettingError
from streamcl.heads.gram import Gram
from streamcl.heads.linear import LinearHead, masked_cross_entropy
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import log_scores, solve_ridge
from streamcl.heads.statistics import Statistics

# --- linear ---------------------------------------------------------------------------------------


def test_a_linear_head_begins_empty_and_a_new_row_at_zero():
    head = LinearHead(4)
    assert head(torch.randn(3, 4)).shape == (3, 0)
    head.grow(2)
    assert not head.weight.any()
    assert not head.bias.any()


@pytest.mark.parametrize("fused", [False, True])
def test_growth_keeps_old_rows_and_the_optimizers_moments(fused):
    torch.manual_seed(0)
    head = LinearHead(4)
    head.grow(2)
    optimizer = torch.optim.Adam([{"params": head.parameters(), "name": "head"}], lr=0.1, fused=fused)
    for _ in range(3):
        step(head, optimizer, targets=[0, 1, 1])
    weight, moments = head.weight.detach().clone(), dict(optimizer.state[head.weight])
    head.grow(5, optimizer)
    assert torch.equal(head.weight[:2], weight)
    assert optimizer.param_groups[0]["params"][0] is head.weight
    assert len(optimizer.state) == 2
    grown = optimizer.state[head.weight]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(grown[key][:2], moments[key])
        assert not grown[key][2:].any()
    assert grown["step"] == moments["step"]
    step(head, optimizer, targets=[4, 1, 0])
    assert head.weight[4].any()


def test_growth_during_training_does_not_change_what_old_rows_learn():
    plain, grown = LinearHead(4), LinearHead(4)
    heads = []
    for head in (plain, grown):
        torch.manual_seed(0)
        head.grow(2)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
        step(head, optimizer, targets=[0, 1, 1], present=[0, 1])
        if head is grown:
            head.grow(3, optimizer)
        step(head, optimizer, targets=[0, 1, 1], present=[0, 1])
        heads.append(head)
    assert torch.equal(plain.weight, grown.weight[:2])


def step(head, optimizer, targets, present=(0, 1, 2, 3, 4)):
    present = torch.tensor([c for c in present if c < head.classes])
    loss = masked_cross_entropy(head(torch.randn(3, 4)), torch.tensor(targets), present).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_absent_classes_are_left_alone():
    logits = torch.randn(3, 5, requires_grad=True)
    targets = torch.tensor([1, 3, 1])
    losses = masked_cross_entropy(logits, targets, torch.tensor([3, 1]))
    expected = F.cross_entropy(logits[:, [1, 3]], torch.tensor([0, 1, 0]), reduction="none")
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert not logits.grad[:, [0, 2, 4]].any()
    assert logits.grad[:, [1, 3]].all()


def test_a_batch_of_one_class_competes_with_all_known_classes():
    logits = torch.randn(2, 3)
    one = masked_cross_entropy(logits, torch.tensor([1, 1]), torch.tensor([1]))
    torch.testing.assert_close(one, F.cross_entropy(logits, torch.tensor([1, 1]), reduction="none"))
    alone = masked_cross_entropy(torch.randn(2, 1), torch.tensor([0, 0]), torch.tensor([0]))
    assert alone.tolist() == [0.0, 0.0]


def test_linear_state_round_trip_across_a_different_number_of_classes():
    head, twin = LinearHead(4), LinearHead(4)
    head.grow(3)
    torch.nn.init.normal_(head.weight)
    twin.import_state(head.export_state())
    assert torch.equal(head.weight, twin.weight)
    kept = twin.weight
    twin.import_state(head.export_state())
    assert twin.weight is kept
    with pytest.raises(ValueError, match="shape"):
        LinearHead(5).import_state(head.export_state())


# --- ridge ----------------------------------------------------------------------------------------

WIDTH, CLASSES = 6, 3


def data(count, seed=0, classes=CLASSES, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=generator) * 2
    return centres[y] + torch.randn(count, width, generator=generator), y


def ridge(classes=CLASSES, **options):
    head = RidgeHead(WIDTH, **options)
    head.grow(classes)
    return head


def learned(x, y, batches=(), classes=CLASSES, **options):
    head, start = ridge(classes, **options), 0
    for size in (*batches, len(x)):
        head.update(x[start : start + size], y[start : start + size])
        start += size
    return head


def distance(one, other):
    """The largest relative difference of two heads' statistics."""
    a, b = one.statistics, other.statistics
    assert a.counts.tolist() == b.counts.tolist()
    pairs = ((a.gram.full(), b.gram.full()), (a.Q, b.Q))
    return max(float((p - q).norm() / q.norm().clamp_min(1e-300)) for p, q in pairs)


def bits(state, prefix=""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from bits(value, f"{prefix}{key}.")
        else:
            yield prefix + key, np.asarray(value).tobytes()


def test_it_solves_ridge_regression_with_an_unpenalised_intercept():
    x, y = data(60)
    W, b = learned(x, y, trace_ridge=0.1).exact_weights()
    h = x.double() - x.double().mean(0)
    Y = F.one_hot(y, CLASSES).double()
    ridge_ = 0.1 * h.square().sum() / WIDTH
    expected = torch.linalg.solve(
        h.T @ h + ridge_ * torch.eye(WIDTH, dtype=torch.float64), h.T @ (Y - Y.mean(0))
    )
    torch.testing.assert_close(W, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(b, Y.mean(0) - x.double().mean(0) @ W, rtol=1e-10, atol=1e-12)


def test_it_separates_what_can_be_separated():
    x, y = data(300)
    assert (learned(x, y).scores(x).argmax(1) == y).double().mean() > 0.9


def test_an_empty_head_has_no_scores_and_a_column_without_samples_is_never_named():
    x, y = data(10)
    assert RidgeHead(WIDTH).scores(x).shape == (10, 0)
    head = learned(x, y, classes=5)
    assert head.scores(x)[:, 3:].isneginf().all()
    assert head.scores(x)[:, :3].isfinite().all()


def test_one_class_and_one_sample_give_finite_scores():
    x, _ = data(1)
    head = learned(x, torch.zeros(1, dtype=torch.int64), classes=1)
    assert head.scores(x).tolist() == [[1.0]]
    head = learned(torch.ones(5, WIDTH) * 1e6, torch.zeros(5, dtype=torch.int64), classes=1)
    assert head.scores(x).isfinite().all()


def test_features_without_variance_give_the_class_frequencies():
    x, y = torch.rand(1, WIDTH).expand(700, WIDTH) * 1e3, torch.arange(700) % 3
    scores = learned(x, y, [7] * 99).scores(x + 1)
    torch.testing.assert_close(scores, torch.full_like(scores, 1 / 3), rtol=0, atol=2e-3)


@settings(deadline=None)
@given(st.permutations(range(24)), st.lists(st.integers(0, 9), max_size=5))
def test_statistics_do_not_depend_on_the_order(order, batches):
    x, y = data(24)
    one, other = learned(x, y), learned(x[list(order)], y[list(order)], batches)
    assert distance(other, one) < 1e-12


operations = st.lists(
    st.tuples(st.booleans(), st.sets(st.integers(0, 29), min_size=1, max_size=8)), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(operations, st.sampled_from([None, 20]))
def test_any_interleaving_of_learning_and_forgetting_equals_the_stream_without_the_forgotten(steps, wide):
    x, y = data(30)
    head, held = ridge(projection=wide), set()
    for learn, chosen in steps:
        rows = sorted(chosen - held if learn else chosen & held)
        (head.update if learn else head.downdate)(x[rows], y[rows])
        held = held | set(rows) if learn else held - set(rows)
    rest = sorted(held)
    other = learned(x[rest], y[rest], projection=wide)
    assert distance(head, other) < 1e-9
    head.exact_weights()
    other.exact_weights()
    torch.testing.assert_close(head.scores(x), other.scores(x), rtol=1e-6, atol=1e-8)
    assert torch.equal(head.scores(x).argmax(1), other.scores(x).argmax(1))


def test_a_forgotten_class_that_is_dropped_was_never_there():
    x, y = data(90)
    head = learned(x, y, [30, 30])
    head.downdate(x[y == 1], y[y == 1])
    assert head.scores(x)[:, 1].isneginf().all()
    head.drop_class(1)
    never = learned(x[y != 1], y[y != 1].clamp_max(1), classes=2)
    assert distance(head, never) < 1e-9
    never.exact_weights()
    torch.testing.assert_close(head.scores(x), never.scores(x), rtol=1e-8, atol=1e-10)


def test_a_head_that_forgets_everything_is_exactly_empty():
    x, y = data(30)
    head = learned(x, y)
    for rows in (slice(0, 11), slice(11, 30)):
        head.downdate(x[rows], y[rows])
    assert not head.statistics.gram.full().any()
    assert not head.statistics.Q.any()


@pytest.mark.parametrize(
    "case", ["again", "never learned", "other features", "count", "all of another", "same sums"]
)
def test_what_is_not_in_the_statistics_cannot_be_forgotten(case):
    x, y = data(9)
    head = learned(x, y)
    if case == "again":
        head.downdate(x[:3], y[:3])
        request = (x[:3], y[:3])
    elif case == "never learned":
        request = (data(3, seed=5)[0] * 10, y[:3])
    elif case == "other features":
        request = (x[y == 1] + 0.01, y[y == 1])
    elif case == "same sums":  # of each class, so that only G tells
        swing = torch.tensor([1.0, 1, 1, -1, -1, -1, 0, 0, 0])[:, None] * 1e-3
        request = (x + swing, y)
    elif case == "count":
        request = (x[:4], torch.zeros(4, dtype=torch.int64))
    else:
        request = (x.flip(0) + 1, y)
    before = dict(bits(head.state_dict()))
    with pytest.raises(ForgettingError):
        head.downdate(*request)
    assert dict(bits(head.state_dict())) == before


def test_a_class_with_samples_is_not_dropped():
    head = learned(*data(9))
    for column in (1, 3, -1):
        with pytest.raises(ForgettingError, match="class column"):
            head.drop_class(column)


def test_statistics_store_can_be_merged_and_removed():
    x, y = data(60)
    whole, head = learned(x, y), learned(x[:40], y[:40])
    part = head.statistics_of(x[40:], y[40:])
    head.merge(part)
    assert distance(head, whole) < 1e-12
    head.remove(part)
    assert distance(head, learned(x[:40], y[:40])) < 1e-12
    with pytest.raises(ForgettingError):
        head.remove(whole.statistics)
    with pytest.raises(ValueError, match="do not fit"):
        ridge(2).merge(part)


@pytest.mark.parametrize("weight", [1, 3])
@pytest.mark.parametrize("classes", [3, 200])
def test_sums_of_a_few_columns_are_those_of_all_to_the_bit(weight, classes):
    head = ridge(classes)
    for seed in range(4):
        x, y = data(40, seed=seed, classes=min(classes, 30))
        before = head.statistics
        own = Statistics.of(x, y, classes)
        head.update(x, y, weight)
        assert torch.equal(head.statistics.Q, before.Q + weight * own.Q)
        assert torch.equal(head.statistics.counts, before.counts + weight * own.counts)
        assert head.statistics.Q.is_contiguous()


def test_growth_keeps_old_columns_and_scores():
    x, y = data(30)
    head = learned(x, y)
    before = head.scores(x)
    head.grow(7)
    head.grow(2)
    assert head.classes == 7
    assert torch.equal(head.scores(x)[:, :3], before)


def test_asking_changes_no_state_and_a_restored_head_goes_on_bit_by_bit():
    x, y = data(200, classes=5)
    asked, resumed = ridge(5), None
    for i in range(0, 200, 8):
        rows = slice(i, i + 8)
        asked.scores(x)
        asked.update(x[rows], y[rows])
        silent = learned(x[: i + 8], y[: i + 8], [8] * (i // 8), classes=5)
        assert dict(bits(silent.state_dict())) == dict(bits(asked.state_dict()))
        if resumed is not None:
            resumed.update(x[rows], y[rows])
            assert dict(bits(resumed.state_dict())) == dict(bits(asked.state_dict()))
        resumed = ridge(0)
        resumed.load_state_dict(asked.state_dict())


def solved_counts(head):
    """The samples of each class that the weights in use were solved for."""
    return head.state_dict()["solved"]


def test_a_wide_head_waits_before_it_solves_for_a_class_that_is_new_or_doubled():
    head, random = RidgeHead(480, refit_fraction=0.5), np.random.default_rng(0)

    def learn(label, count):
        before = solved_counts(head)
        head.grow(label + 1)
        head.update(torch.from_numpy(random.normal(size=(count, 480))), torch.full((count,), label))
        return not np.array_equal(solved_counts(head)[: len(before)], before)

    learn(0, 200)
    assert not learn(1, 2)  # a new class is taken in
    assert not learn(1, 17)  # twice and more, but 480 / 24 samples have not come since
    assert not learn(0, 5)  # they have, but this class has not doubled
    assert learn(1, 1)


def test_by_another_rule_a_wide_head_solves_for_a_new_class_at_once():
    head = RidgeHead(480, refit_fraction=0.5, rule=functools.partial(solve_ridge, 1e-2))
    head.grow(2)
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(208, 480)))
    for part, label in ((rows[:200], 0), (rows[200:202], 1)):
        head.update(part, torch.full((len(part),), label))
    assert solved_counts(head).tolist() == [200, 2]
    head.update(rows[202:206], torch.full((4,), 1))
    assert solved_counts(head).tolist() == [200, 2]  # twice and more, but 480 / 48 have not come since


def test_weights_are_solved_anew_only_when_it_is_due(monkeypatch):
    x, y = data(2000)
    solves, solve = [], module_of_solver.normal_equations
    monkeypatch.setattr(module_of_solver, "normal_equations", lambda *a: solves.append(1) or solve(*a))
    head = ridge(refit_fraction=0.1)
    for i in range(0, 2000, 10):
        head.scores(x[:1])
        head.update(x[i : i + 10], y[i : i + 10])
    assert 30 < len(solves) < 50  # about log(200) / log(1.1) + the first few


def test_the_same_seed_makes_the_same_projection():
    x, y = data(20)
    one, same, other = (learned(x, y, projection=9, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.scores(x), same.scores(x))
    assert not torch.equal(one.scores(x), other.scores(x))


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.ones(2, WIDTH + 1), torch.zeros(2, dtype=torch.int64), "expected \\[N, 6\\]"),
        (torch.ones(2, WIDTH), torch.zeros(3, dtype=torch.int64), "targets have shape"),
        (torch.ones(2, WIDTH), torch.tensor([0, 3]), "call grow"),
        (torch.ones(2, WIDTH), torch.tensor([0, -1]), "call grow"),
        (torch.full((2, WIDTH), float("nan")), torch.zeros(2, dtype=torch.int64), "not finite"),
    ],
)
def test_refused_input_changes_nothing(x, y, said):
    head = learned(*data(9))
    before = dict(bits(head.state_dict()))
    with pytest.raises(ValueError, match=said):
        head.update(x, y)
    assert dict(bits(head.state_dict())) == before


def test_a_state_of_another_width_is_refused():
    with pytest.raises(ValueError, match="expected"):
        RidgeHead(WIDTH + 1).load_state_dict(learned(*data(9)).state_dict())
    with pytest.raises(ValueError, match="trace_ridge"):
        RidgeHead(WIDTH, trace_ridge=0)


def test_a_width_of_several_blocks():
    x, y = data(40, width=1100)
    head = RidgeHead(1100)
    head.grow(3)
    head.update(x, y)
    torch.testing.assert_close(head.statistics.gram.full(), x.double().T @ x.double())
    assert head.statistics.gram.trace == pytest.approx(float(x.double().square().sum()))


def test_a_head_that_becomes_another_keeps_no_weights_of_its_own():
    def learned(sizes, seed):
        head = RidgeHead(6, refit_fraction=0.9)
        head.grow(2)
        draw = torch.Generator().manual_seed(seed)
        for size in sizes:
            head.update(torch.randn(size, 6, generator=draw), torch.arange(size) % 2)
        return head

    asked = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
    one, other = learned((8, 2), 1), learned((8, 2), 2)
    one.scores_refit(asked)  # solves beside the weights in use
    one.smallest_eigenvalue()
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.scores_refit(asked), other.scores_refit(asked))
    assert one.smallest_eigenvalue() == other.smallest_eigenvalue()


def test_the_smallest_eigenvalue_is_near_that_of_a_full_decomposition():
    head = RidgeHead(6, trace_ridge=0.5)
    head.grow(2)
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    head.update(features, torch.arange(40) % 2)
    head.downdate(features[:20], torch.arange(20) % 2)
    gram = head.statistics.gram.full()
    ridge = 0.5 * float(gram.trace()) / 6
    expected = float(torch.linalg.eigvalsh(gram / ridge)[0]) + 1
    found = head.smallest_eigenvalue()
    assert expected * (1 - 1e-9) <= found <= 1.4 * expected
    head.update(features[:2], torch.arange(2))
    assert head.smallest_eigenvalue() != found


@pytest.mark.parametrize("samples", [1_000, 200_000])
def test_rounding_moves_the_smallest_eigenvalue_by_no_more_than_is_said(samples):
    """Features of rank 3 in 8 dimensions: five eigenvalues would be zero but for rounding."""
    rng = torch.Generator().manual_seed(0)
    head, mixed = RidgeHead(8, variance_ridge=300.0, refit_fraction=1.0), torch.randn(3, 8, generator=rng)
    head.grow(2)
    features = (3 + torch.rand(samples, 3, generator=rng)) @ mixed
    for part in features.split(500):
        head.update(part, torch.arange(len(part)) % 2)
    head.downdate(features[:10], torch.arange(10) % 2)
    figures = head.removal_figures()
    rounding = figures["rounding_over_lambda"]
    assert 1 - figures["smallest_eigenvalue_over_lambda"] <= rounding
    assert (rounding > 1e-9) == (samples > 1_000)


@pytest.mark.parametrize("width", [1, 511, 512, 1100])
def test_a_matrix_taken_apart_by_blocks_solves_as_one_does(width):
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * width, width, dtype=torch.float64, generator=rng)
    less = rows[: width // 4]
    gram = Gram(width)
    gram.add(rows)
    before = gram.full()
    ridge = torch.rand(width, dtype=torch.float64, generator=rng) + 0.5
    right = torch.randn(7, width, dtype=torch.float64, generator=rng).T
    expected = torch.linalg.solve(before - less.T @ less + ridge.diag(), right)
    torch.testing.assert_close(
        gram.regularised(ridge, less=less).solve(right), expected, rtol=1e-9, atol=1e-12
    )
    assert torch.equal(gram.full(), before)  # the sum itself is as it was


@pytest.mark.parametrize("bad", [0, 511, 512, 899])
def test_a_matrix_that_is_not_positive_definite_cannot_be_taken_apart(bad):
    gram = Gram(900)
    gram.add(torch.eye(900, dtype=torch.float64))
    ridge = torch.zeros(900, dtype=torch.float64)
    gram.regularised(ridge)
    ridge[bad] = -1.5
    with pytest.raises(ArithmeticError):
        gram.regularised(ridge)


def test_logarithms_of_scores_keep_their_order_and_classes_that_cannot_be_predicted():
    scores = torch.tensor([[-math.inf, -1e6, -50.0, -1.0, 0.0, 1e-9, 0.5, 1.0, 40.0]], dtype=torch.float64)
    found = log_scores(scores)
    assert (found.diff() > 0).all()
    assert found.isfinite().tolist() == scores.isfinite().tolist()
    known = scores[:, 3:8]
    expected = torch.nn.functional.softplus(math.sqrt(8) * known).log()
    assert torch.allclose(found[:, 3:8], expected, rtol=1e-7)

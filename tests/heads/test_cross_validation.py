"""The ridge that leaving samples out asks for: found from sums alone, and never by what was forgotten."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from streamcl.heads import cross_validation
from streamcl.heads.cross_validation import cross_validated_ridge, explained_shares
from streamcl.heads.gram import Gram
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics

WIDTH, CLASSES = 24, 4


def data(count, *, wrong=0.0, seed=0, width=WIDTH):
    """Samples [N, D] around the means of classes, and their labels, of which a share is drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=draw)
    means = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    x = 0.6 * means[y] + torch.randn(count, width, generator=draw)
    noted = torch.where(
        torch.rand(count, generator=draw) < wrong, torch.randint(CLASSES, (count,), generator=draw), y
    )
    return x, y, noted


def head(margin: float | None = 2.0, **options):
    made = RidgeHead(WIDTH, variance_ridge=5.0, gcv_margin=margin, refit_fraction=0.1, **options)
    made.grow(CLASSES)
    return made


def learned(x, y, size=16, **options):
    made = head(**options)
    for start in range(0, len(x), size):
        made.update(x[start : start + size], y[start : start + size])
    return made


def ridge(made):
    """The variance ridge that is found for all that the head knows."""
    twin = head()
    twin.load_state_dict(made.state_dict())
    twin.exact_weights()
    return twin.state_dict()["strength"]


@pytest.mark.parametrize("penalty", [1.0, 30.0, 1000.0])
def test_it_is_the_correlation_with_scores_of_samples_left_out_by_their_mean_leverage(penalty):
    x, _, y = data(90, wrong=0.2)
    found = explained_shares(
        Statistics.of(x, y, CLASSES + 1), [penalty]
    )  # a class without samples counts nowhere
    h = x.double() - x.double().mean(0)
    Y = F.one_hot(y, CLASSES).double()
    Y = Y - Y.mean(0)
    ridges = torch.diag(penalty * h.square().mean(0))
    hat = h @ torch.linalg.solve(h.T @ h + ridges, h.T)
    leverage = float(hat.trace()) / len(x)
    scores = (hat @ Y - leverage * Y) / (1 - leverage)
    agreed = (scores * Y).sum(0)
    expected = agreed.square() / scores.square().sum(0) / Y.square().sum(0)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-9)


def test_it_is_near_what_truly_leaving_each_sample_out_gives():
    x, _, y = data(120, wrong=0.3)
    ridges = [1.0, 10.0, 100.0, 1000.0, 10000.0]
    found = explained_shares(Statistics.of(x, y, CLASSES), ridges)
    for ridge, value in zip(ridges, found.tolist(), strict=True):
        scores = []
        for i in range(len(x)):
            rest = [j for j in range(len(x)) if j != i]
            one = RidgeHead(WIDTH, variance_ridge=ridge)
            one.grow(CLASSES)
            one.update(x[rest], y[rest])
            W, _ = one.exact_weights()
            scores.append((x[i].double() - x[rest].double().mean(0)) @ W)
        table, Y = torch.stack(scores), F.one_hot(y, CLASSES).double()
        pairs = zip(table.T, Y.T, strict=True)
        true = np.mean([np.corrcoef(a.numpy(), b.numpy())[0, 1] ** 2 for a, b in pairs])
        assert value == pytest.approx(true, abs=0.015)


def test_wrong_labels_ask_for_more_and_right_ones_for_no_more_than_was_set():
    x, truth, y = data(600, wrong=0.5)
    clean = Statistics.of(x, truth, CLASSES)
    noisy = Statistics.of(x, y, CLASSES)
    assert cross_validated_ridge(noisy, 20.0, 2.0) > cross_validated_ridge(clean, 20.0, 2.0)
    assert cross_validated_ridge(Statistics.of(*data(600)[:2], CLASSES), 200.0, 2.0) == 200.0


def test_it_makes_up_for_wrong_labels():
    x, _, y = data(300, wrong=0.6)
    test, truth, _ = data(2000, seed=1)
    right = [
        float((learned(x, y, margin=margin).scores_refit(test).argmax(1) == truth).double().mean())
        for margin in (None, 2.0)
    ]
    assert right[1] > right[0] + 0.01


def test_what_is_forgotten_has_no_part_in_it():
    x, truth, y = data(400, wrong=0.7)
    bad = torch.arange(len(x)) >= 120
    everything = learned(x, torch.where(bad, y, truth))
    everything.downdate(x[bad], y[bad])
    never = learned(x[~bad], truth[~bad])
    assert ridge(everything) == ridge(never)
    torch.testing.assert_close(everything.scores_refit(x), never.scores_refit(x), rtol=1e-9, atol=1e-10)
    still = learned(x, torch.where(bad, y, truth))
    assert ridge(still) != ridge(never)  # or there would be nothing to see
    everything.downdate(x[~bad], truth[~bad])
    assert everything.state_dict()["strength"] == 5.0  # of nothing, nothing is known
    everything = learned(x, torch.where(bad, y, truth))
    everything.downdate(x[bad], y[bad])
    W, _ = never.exact_weights()
    torch.testing.assert_close(everything.exact_weights()[0], W, rtol=1e-9, atol=1e-10)


def test_exact_scores_are_those_of_a_head_that_learned_all_at_once():
    x, _, y = data(500, wrong=0.6)
    asked, once = head(), head()
    for start in range(0, len(x), 10):
        asked.scores(x[:3])
        asked.update(x[start : start + 10], y[start : start + 10])
    once.update(x, y)
    torch.testing.assert_close(asked.scores_refit(x), once.scores_refit(x), rtol=1e-9, atol=1e-10)
    assert asked.state_dict()["found_at"] < len(x)  # the one in use is older


def test_what_is_found_never_depends_on_when_scores_were_asked_for():
    x, _, y = data(400, wrong=0.5)
    asked, silent, resumed = head(), head(), head()
    for start in range(0, len(x), 10):
        rows = slice(start, start + 10)
        asked.scores(x[:3])
        asked.scores_refit(x[:3])
        for each in (asked, silent):
            each.update(x[rows], y[rows])
        resumed.update(x[rows], y[rows])
        twin = head()
        twin.load_state_dict(resumed.state_dict())
        resumed = twin
    for other in (silent, resumed):
        assert other.state_dict()["strength"] == asked.state_dict()["strength"]
        assert torch.equal(other.scores(x), asked.scores(x))
        assert torch.equal(other.scores_refit(x), asked.scores_refit(x))


def test_it_is_looked_for_when_the_samples_have_doubled(monkeypatch):
    looked = []
    real = cross_validation.cross_validated_ridge
    monkeypatch.setattr(cross_validation, "cross_validated_ridge", lambda *a: looked.append(1) or real(*a))
    x, _, y = data(1024)
    made = head()
    for start in range(0, len(x), 8):
        made.scores(x[:1])
        made.update(x[start : start + 8], y[start : start + 8])
    assert 7 <= len(looked) <= 8  # 8, 16, ..., 1024


def test_a_learning_that_is_taken_back_leaves_what_was_found():
    x, _, y = data(100, wrong=0.5)
    made = learned(x[:60], y[:60])
    before = made.state_dict()
    undo = made.savepoint()
    made.update(x[60:], y[60:])
    undo()
    assert made.state_dict()["strength"] == before["strength"]
    assert made.state_dict()["found_at"] == before["found_at"]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_samples_ask_for_nothing(count):
    x, _, y = data(8)
    assert cross_validated_ridge(Statistics.of(x[:count], y[:count], CLASSES), 5.0, 2.0) >= 5.0
    same = torch.zeros(8, dtype=torch.int64)
    assert cross_validated_ridge(Statistics.of(x, same, CLASSES), 5.0, 2.0) == 5.0  # one class
    flat = cross_validated_ridge(
        Statistics.of(torch.ones(8, WIDTH), y, CLASSES), 5.0, 2.0
    )  # no variance at all
    assert np.isfinite(flat)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.7])
def test_images_that_are_all_alike_ask_for_nothing(value):
    x, y = torch.full((50, WIDTH), value), torch.arange(50) % CLASSES
    x[:, ::2] *= torch.linspace(0.1, 3, WIDTH // 2)  # each feature rounds in its own way
    found = explained_shares(Statistics.of(x, y, CLASSES), [5.0, 50.0])
    assert found.isfinite().all()
    assert learned(x, y).scores_refit(x).isfinite().all()


@pytest.mark.parametrize("step", [1, 2, 3, 7, 600])
def test_every_so_many_rows_and_columns(step):
    gram = Gram(1100)
    rows = torch.randn(20, 1100, dtype=torch.float64)
    gram.add(rows)
    expected = (rows[:, ::step].T @ rows[:, ::step]).tril()
    torch.testing.assert_close(gram.subsampled(step).tril(), expected)


def test_a_wide_head_looks_at_features_evenly_spaced(monkeypatch):
    monkeypatch.setattr(cross_validation, "MAX_FEATURES", 200)
    width = 1000
    latent, _, y = data(300, width=60, wrong=0.3)
    x = latent @ torch.randn(60, width, generator=torch.Generator().manual_seed(3))  # features say much twice
    few = explained_shares(Statistics.of(x, y, CLASSES), [50.0, 500.0, 5000.0])
    monkeypatch.setattr(cross_validation, "MAX_FEATURES", width)
    every = explained_shares(Statistics.of(x, y, CLASSES), [50.0, 500.0, 5000.0])
    assert int(few.argmax()) == int(every.argmax())
    torch.testing.assert_close(few, every, rtol=0.2, atol=0.05)


def test_a_margin_that_is_no_number_above_zero_is_refused():
    with pytest.raises(ValueError, match="gcv_margin"):
        RidgeHead(WIDTH, variance_ridge=5.0, gcv_margin=0.0)

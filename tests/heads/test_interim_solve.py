"""What was learned after a solve is taken in by its factor, as a solve with its ridge would take it in."""

import numpy as np
import pytest
import torch

from streamcl.heads import interim_solve
from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.deferred_solve import Solve
from streamcl.heads.interim_solve import InterimSolve, SolveFactor
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import normal_equations
from streamcl.heads.statistics import Statistics

WIDTH, OLD, CLASSES = 9, 60, 6


def statistics_of(x, y):
    return Statistics.of(x, y, CLASSES)


def old_samples():
    """Of the first four classes."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(OLD) % 4
    return torch.randn(OLD, WIDTH, generator=rng).double() + 2 * torch.eye(CLASSES, WIDTH)[y].double(), y


def new_samples(counts):
    """So many samples of each class, all of one class alike."""
    y = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
    return (torch.eye(CLASSES, WIDTH) * 3 + 0.5)[y].double(), y


def solved(statistics, variance_ridge):
    equations = normal_equations(0.01, statistics, variance_ridge)
    factor = SolveFactor.of(equations, statistics.Q)
    ridge = AdaptiveRidge.of(variance_ridge, None)
    return Solve(*equations.solve(), statistics.counts, ridge, factor=factor), equations


def by_hand(x, y, equations, variance_ridge):
    """Scores of the rows of x by centred ridge regression on x, y with the ridge of other equations."""
    x, targets, total = x.numpy(), np.eye(CLASSES)[y.numpy()], len(y)
    counts, centred = targets.sum(axis=0), x - x.mean(axis=0)
    W = np.linalg.solve(centred.T @ centred + np.diag(equations.ridge.numpy()), centred.T @ targets)
    if variance_ridge is None:
        return centred @ W + counts / total
    present = np.count_nonzero(counts)
    return centred @ W * np.sqrt(total / present / np.maximum(counts, 1)) + 1 / present


@pytest.mark.parametrize("variance_ridge", [None, 5.0])
@pytest.mark.parametrize("counts", [[0, 0, 0, 0, 3, 0], [0, 0, 0, 0, 1, 7], [4, 0, 1, 0, 2, 9]])
def test_samples_alike_within_a_class_are_taken_in_as_a_solve_does(variance_ridge, counts):
    (x, y), (more, labels) = old_samples(), new_samples(counts)
    used, equations = solved(statistics_of(x, y), variance_ridge)
    whole, of_whole = torch.cat([x, more]), torch.cat([y, labels])
    interim = InterimSolve.of(used, used.factor, statistics_of(whole, of_whole))
    expected = by_hand(whole, of_whole, equations, variance_ridge)
    assert interim.known.tolist() == [count > 0 or column < 4 for column, count in enumerate(counts)]
    np.testing.assert_allclose(
        interim.scores(whole)[:, interim.known].numpy(), expected[:, interim.known.numpy()], atol=2e-5
    )


def test_where_nothing_is_new_there_is_nothing_to_correct():
    x, y = old_samples()
    used, _ = solved(statistics_of(x, y), 5.0)
    assert InterimSolve.of(used, used.factor, statistics_of(x, y)) is None


def test_where_many_classes_have_grown_new_ones_come_first_then_those_that_grew_most(monkeypatch):
    x, y = old_samples()
    used, _ = solved(statistics_of(x, y), 5.0)
    more, labels = new_samples([2, 9, 0, 0, 1, 1])
    grown = statistics_of(torch.cat([x, more]), torch.cat([y, labels]))
    whole = InterimSolve.of(used, used.factor, grown).scores(x)
    monkeypatch.setattr(interim_solve, "MAX_GROWN_CLASSES", 3)
    assert InterimSolve.of(used, used.factor, grown).known.all()
    assert not torch.equal(InterimSolve.of(used, used.factor, grown).scores(x), whole)
    of_three, of_their_labels = new_samples([0, 9, 0, 0, 1, 1])
    three = statistics_of(torch.cat([x, of_three]), torch.cat([y, of_their_labels]))
    of_most, expected = (InterimSolve.of(used, used.factor, each) for each in (grown, three))
    assert torch.allclose(of_most.scores(x), expected.scores(x))


@pytest.mark.parametrize("keeps_uncertainty", [False, True])
def test_a_class_that_comes_while_a_solve_is_pending_is_recognised(keeps_uncertainty):
    (x, y), (more, labels) = old_samples(), new_samples([0, 0, 0, 0, 8, 8])
    head = RidgeHead(WIDTH, variance_ridge=5.0, defer_solve=1000, keeps_uncertainty=keeps_uncertainty)
    head.grow(CLASSES)
    head.update(x, y)
    head.update(more[:8], labels[:8])
    head.update(more[8:], labels[8:])
    assert head.scores(more).argmax(dim=1).tolist() == labels.tolist()
    if keeps_uncertainty:
        assert (head.uncertainty_in_use(more).variance > 0).all()


def test_scores_do_not_depend_on_who_asked_before():
    (x, y), (more, labels) = old_samples(), new_samples([1, 1, 1, 1, 8, 8])
    asked, silent = (RidgeHead(WIDTH, variance_ridge=5.0, defer_solve=1000) for _ in range(2))
    for head in (asked, silent):
        head.grow(CLASSES)
        head.update(x, y)
        for row in range(0, len(labels), 5):
            head.update(more[row : row + 5], labels[row : row + 5])
            if head is asked:
                head.scores(x)
    assert torch.equal(asked.scores(x), silent.scores(x))

"""What is learned after a solve is taken in by its factor, as a solve with its ridge would take it in."""

import itertools

import numpy as np
import pytest
import torch

from streamcl.heads import interim_solve
from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.deferred_solve import Solve
from streamcl.heads.interim_solve import InterimSolve, NewSamples, SolveFactor
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import normal_equations
from streamcl.heads.statistics import Statistics
from streamcl.storage.plain_state import state_hash

WIDTH, OLD, CLASSES = 9, 60, 6
WIDE = 1152  # features of a head that takes in 3 samples at a time, and solves for a new class after 48


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


def wide(x):
    """The same samples with so many features that neither few of them nor a new class make a solve due."""
    return torch.nn.functional.pad(x, (0, WIDE - WIDTH))


def head_of(x, y, **options):
    """A head that has learned samples and solved for them."""
    head = RidgeHead(x.shape[1], variance_ridge=5.0, refit_fraction=0.5, **options)
    head.grow(CLASSES)
    head.update(x, y)
    head.scores(x)
    return head


def interim_of(used, statistics):
    return InterimSolve(used, used.factor, NewSamples.since(used, statistics))


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
    interim = interim_of(used, statistics_of(whole, of_whole))
    expected = by_hand(whole, of_whole, equations, variance_ridge)
    assert interim.known.tolist() == [count > 0 or column < 4 for column, count in enumerate(counts)]
    np.testing.assert_allclose(
        interim.scores(whole)[:, interim.known].numpy(), expected[:, interim.known.numpy()], atol=2e-5
    )


def test_where_nothing_is_new_there_is_nothing_to_correct():
    x, y = old_samples()
    used, _ = solved(statistics_of(x, y), 5.0)
    assert NewSamples.since(used, statistics_of(x, y)) is None


def test_where_many_classes_have_grown_new_ones_come_first_then_those_that_grew_most(monkeypatch):
    x, y = old_samples()
    used, _ = solved(statistics_of(x, y), 5.0)
    more, labels = new_samples([2, 9, 0, 0, 1, 1])
    grown = statistics_of(torch.cat([x, more]), torch.cat([y, labels]))
    whole = interim_of(used, grown).scores(x)
    monkeypatch.setattr(interim_solve, "MAX_GROWN_CLASSES", 3)
    assert interim_of(used, grown).known.all()
    assert not torch.equal(interim_of(used, grown).scores(x), whole)
    of_three, of_their_labels = new_samples([0, 9, 0, 0, 1, 1])
    three = statistics_of(torch.cat([x, of_three]), torch.cat([y, of_their_labels]))
    of_most, expected = (interim_of(used, each) for each in (grown, three))
    assert torch.allclose(of_most.scores(x), expected.scores(x))


@pytest.mark.parametrize("keeps_uncertainty", [False, True])
@pytest.mark.parametrize("defer_solve", [None, 1000])
def test_a_class_that_comes_before_the_next_solve_is_recognised(defer_solve, keeps_uncertainty):
    (x, y), (more, labels) = old_samples(), new_samples([0, 0, 0, 0, 8, 8])
    head = head_of(wide(x), y, defer_solve=defer_solve, keeps_uncertainty=keeps_uncertainty)
    head.update(wide(more[:8]), labels[:8])
    head.update(wide(more[8:]), labels[8:])
    assert head.state_dict()["solved"].sum() == OLD
    assert head.scores(wide(more)).argmax(dim=1).tolist() == labels.tolist()
    if keeps_uncertainty:
        assert (head.uncertainty_in_use(wide(more)).variance > 0).all()


def test_known_classes_that_look_otherwise_from_one_moment_on_are_recognised_before_the_next_solve():
    """A domain that changes just after a solve, when a share of all samples would have to come."""
    x, y = old_samples()
    other = torch.randn(OLD, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    other[torch.arange(OLD), 4 + y] += 4  # features that said nothing until now
    head = head_of(wide(x), y)
    before = (head.scores(wide(other)).argmax(dim=1) == y).double().mean()
    head.update(wide(other[:16]), y[:16])
    assert head.state_dict()["solved"].sum() == OLD
    after = (head.scores(wide(other[16:])).argmax(dim=1) == y[16:]).double().mean()
    assert before < 0.5
    assert after > 0.7


def test_scores_do_not_depend_on_who_asked_before():
    (x, y), (more, labels) = old_samples(), new_samples([1, 1, 1, 1, 8, 8])
    for defer_solve in (None, 1000):
        asked, silent = (head_of(wide(x), y, defer_solve=defer_solve) for _ in range(2))
        for row in range(0, len(labels), 5):
            for head in (asked, silent):
                head.update(wide(more[row : row + 5]), labels[row : row + 5])
            asked.scores(wide(x))
        assert torch.equal(asked.scores(wide(x)), silent.scores(wide(x)))
        assert state_hash(asked.state_dict()) == state_hash(silent.state_dict())


def test_single_samples_are_taken_in_together_and_a_new_class_at_once():
    (x, y), scores = old_samples(), []
    head = head_of(wide(x), y)
    for row, column in enumerate([0, 1, 0, 1, 4, 0]):
        head.update(wide(x[row : row + 1]), torch.tensor([column]))
        scores.append(head.scores(wide(x)))
    changed = [not torch.equal(*pair) for pair in itertools.pairwise(scores)]
    assert changed == [False, True, False, True, False]  # 3 of 1,152 / 384 at a time, then class 4
    assert head.state_dict()["solved"].sum() == OLD


def test_a_head_that_is_restored_between_solves_goes_on_bit_by_bit():
    (x, y), (more, labels) = old_samples(), new_samples([2, 3, 1, 0, 4, 2])
    head, resumed, between = head_of(wide(x), y), None, 0
    for row in range(len(labels)):
        for each in (head, resumed):
            if each is not None:
                each.update(wide(more[row : row + 1]), labels[row : row + 1])
        if resumed is not None:
            assert torch.equal(resumed.scores(wide(x)), head.scores(wide(x)))
            assert state_hash(resumed.state_dict()) == state_hash(head.state_dict())
        between += "new" in head.state_dict()
        resumed = RidgeHead(WIDE, variance_ridge=5.0, refit_fraction=0.5)
        resumed.load_state_dict(head.state_dict())
    assert between > 5


def test_a_step_that_is_taken_back_leaves_what_was_taken_in():
    (x, y), (more, labels) = old_samples(), new_samples([2, 3, 1, 0, 4, 2])
    head, twin = (head_of(wide(x), y) for _ in range(2))
    for row in range(0, len(labels), 4):
        undo = head.savepoint()
        head.update(wide(x[:9]), y[:9])
        head.scores(wide(x))
        undo()
        for each in (head, twin):
            each.update(wide(more[row : row + 4]), labels[row : row + 4])
        assert torch.equal(head.scores(wide(x)), twin.scores(wide(x)))
        assert state_hash(head.state_dict()) == state_hash(twin.state_dict())


def test_after_an_erasure_nothing_is_left_of_what_was_taken_in():
    (x, y), (more, labels) = old_samples(), new_samples([0, 0, 0, 0, 4, 4])
    head, never = (head_of(wide(x), y) for _ in range(2))
    head.update(wide(more), labels)
    assert "new" in head.state_dict()
    head.downdate(wide(more), labels)
    never.exact_weights()
    assert "new" not in head.state_dict()
    assert torch.allclose(head.scores(wide(x))[:, :4], never.scores(wide(x))[:, :4], atol=1e-9)
    assert head.scores(wide(x))[:, 4:].isneginf().all()


def test_a_state_of_an_earlier_version_is_solved_at_once():
    (x, y), (more, labels) = old_samples(), new_samples([1, 0, 0, 0, 2, 0])
    head = head_of(wide(x), y)
    head.update(wide(more), labels)
    state = {name: value for name, value in head.state_dict().items() if name not in {"factor", "new"}}
    loaded = head_of(wide(x), y)
    loaded.load_state_dict(state)
    head.exact_weights()
    assert torch.equal(loaded.scores(wide(x)), head.scores(wide(x)))
    assert loaded.state_dict()["solved"].tolist() == head.statistics.counts.tolist()


def test_more_new_classes_than_are_taken_in_are_solved_for(monkeypatch):
    monkeypatch.setattr("streamcl.heads.solve_schedule.MAX_GROWN_CLASSES", 1)
    (x, y), (more, labels) = old_samples(), new_samples([0, 0, 0, 0, 1, 1])
    head = head_of(wide(x), y)
    head.update(wide(more[:1]), labels[:1])
    assert head.state_dict()["solved"].sum() == OLD
    head.update(wide(more[1:]), labels[1:])
    assert head.state_dict()["solved"].sum() == OLD + 2


def test_the_factor_is_not_copied_into_a_state():
    x, y = old_samples()
    blocks = [head_of(wide(x), y).state_dict()["factor"]["factor"]["0"] for _ in range(2)]
    assert not any(block.flags.writeable for block in blocks)
    head = head_of(wide(x), y)
    one, two = (head.state_dict()["factor"] for _ in range(2))
    assert np.shares_memory(one["factor"]["0"], two["factor"]["0"])
    assert np.shares_memory(one["Q"], two["Q"])


def test_last_solve_scores_take_in_new_classes_alone():
    (x, y), (more, labels) = old_samples(), new_samples([2, 9, 0, 0, 3, 0])
    head = head_of(wide(x), y)
    before = head.scores(wide(x))
    assert torch.equal(head.last_solve_scores(wide(x)), before)
    head.update(wide(more), labels)
    of_last_solve, scores = head.last_solve_scores(wide(x)), head.scores(wide(x))
    assert torch.equal(of_last_solve[:, :4], before[:, :4])
    assert not torch.equal(scores[:, :4], before[:, :4])
    assert torch.equal(of_last_solve[:, 4], scores[:, 4])
    assert of_last_solve[:, 5].isneginf().all()

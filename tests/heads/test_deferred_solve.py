"""A deferred solve comes into use at a position of the stream, whatever the thread that computes it does."""

import functools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import ForgettingError
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.heads.solving import solve_ridge
from streamcl.storage.plain_state import state_hash

WIDTH, CLASSES, COUNT = 7, 5, 160
PATIENCE = 60.0  # seconds until a thread that never comes fails a test


def data(seed=0, count=COUNT, classes=CLASSES):
    """Integers, so that sums are exact; classes that come one after the other."""
    rng = torch.Generator().manual_seed(seed)
    y = (torch.arange(count) * classes // count + (torch.rand(count, generator=rng) < 0.3)) % classes
    centres = torch.randint(-4, 5, (classes, WIDTH), generator=rng)
    return (centres[y] + torch.randint(-2, 3, (count, WIDTH), generator=rng)).double(), y


def made(defer_solve=20, make=RidgeHead, **options):
    head = make(WIDTH, defer_solve=defer_solve, **options)
    head.grow(CLASSES)
    return head


HEADS = {
    "trace": made,
    "variance": functools.partial(made, variance_ridge=5.0),
    "cross-validated": functools.partial(made, variance_ridge=5.0, gcv_margin=2.0),
    "uncertainty": functools.partial(made, variance_ridge=5.0, keeps_uncertainty=True),
    "projection": functools.partial(made, projection=20),
    "slda": functools.partial(made, make=SLDAHead),
}


def learn(head, rows, seed=0):
    x, y = data(seed)
    head.update(x[rows], y[rows])


def by_trace(statistics, ridge):
    """A rule, by which nothing is kept of a solve but its weights."""
    return solve_ridge(1e-2, statistics, ridge)


def in_use(head):
    """The weights in use, and how many samples they were solved from."""
    state = head.state_dict()
    return (state["W"].tobytes(), state["b"].tobytes()), int(state["solved"].sum())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 24), min_size=3, max_size=16),
    st.sampled_from([1, 10, 33]),
    st.sampled_from([0.0, 0.1, 0.6]),
)
def test_weights_in_use_are_those_of_an_earlier_position_to_the_bit(sizes, defer_solve, fraction):
    """A head that is asked nothing does the same, and no weights are younger than the option says."""
    asked, silent = (made(defer_solve, refit_fraction=fraction) for _ in range(2))
    plain, x, y, start = made(None), *data(), 0
    exact, at, positions = {}, [], []
    for size in sizes:
        rows = slice(start, min(start + size, COUNT))
        asked.scores(x)
        for head in (asked, silent, plain):
            head.update(x[rows], y[rows])
        start = rows.stop
        at.append(start)
        W, b = plain.exact_weights()
        exact[start] = W.numpy().tobytes(), b.numpy().tobytes()
        weights, position = in_use(asked)
        assert weights == exact[position]
        assert position == at[0] or position <= start - defer_solve
        positions.append(position)
        if start == COUNT:
            break
    assert positions == sorted(positions)
    assert state_hash(asked.state_dict()) == state_hash(silent.state_dict())


def test_weights_come_into_use_at_the_first_batch_after_the_position():
    head = made(defer_solve=20, refit_fraction=0.0)
    solved = []
    for start in range(0, 80, 8):
        learn(head, slice(start, start + 8))
        solved.append(in_use(head)[1])
    assert solved == [8, 8, 8, 8, 16, 16, 16, 40, 40, 40]  # 16 + 20 and 40 + 20 have come after 40 and 64


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_was_restored_while_a_solve_is_pending_goes_on_bit_by_bit(name):
    head, resumed, pending = HEADS[name](), None, 0
    queries = data(seed=1)[0]
    for start in range(0, COUNT, 8):
        rows = slice(start, start + 8)
        learn(head, rows)
        if resumed is not None:
            learn(resumed, rows)
            assert torch.equal(resumed.scores(queries), head.scores(queries))
            assert state_hash(resumed.state_dict()) == state_hash(head.state_dict())
        state = head.state_dict()
        pending += "pending" in state
        resumed = HEADS[name]()
        resumed.load_state_dict(state)
    assert pending > 3


def test_a_state_with_a_pending_solve_may_go_on_without_deferring():
    head, plain = made(), made(None)
    for start in (0, 8, 16):
        learn(head, slice(start, start + 8))
    assert "pending" in head.state_dict()
    plain.load_state_dict(head.state_dict())
    assert in_use(plain)[1] == 24
    assert "pending" not in plain.state_dict()


def test_by_another_rule_a_class_scores_nothing_until_a_solve_that_knows_it_is_in_use():
    head, (x, _) = made(defer_solve=16, make=SLDAHead), data()
    head.update(x[:8], torch.arange(8) % 2)
    assert head.scores(x)[:, :2].isfinite().all()  # the first solve is not deferred
    head.update(x[8:16], torch.full((8,), 2))
    assert head.scores(x)[:, 2].isneginf().all()
    assert head.scores_refit(x)[:, :3].isfinite().all()
    head.update(x[16:24], torch.arange(8) % 2)
    assert head.scores(x)[:, 2].isneginf().all()
    head.update(x[24:32], torch.arange(8) % 2)
    assert head.scores(x)[:, :3].isfinite().all()


def test_columns_that_come_while_a_solve_is_pending_have_scores_once_they_have_samples():
    head, (x, _) = made(defer_solve=8, keeps_uncertainty=True), data()
    head.update(x[:8], torch.arange(8) % 2)
    head.update(x[8:16], torch.arange(8) % 3)
    head.scores(x)
    head.grow(CLASSES + 2)
    head.update(x[16:24], torch.full((8,), CLASSES + 1))
    known = torch.tensor([True, True, True, False, False, False, True])
    assert head.scores(x)[:, known].isfinite().all()
    assert head.scores(x)[:, ~known].isneginf().all()
    assert head.uncertainty_in_use(x).variance.shape == (COUNT, CLASSES + 2)


# --- erasure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trace", "variance", "cross-validated", "uncertainty"])
def test_an_erasure_discards_a_pending_solve_and_solves_what_is_left_at_once(name):
    head, never = HEADS[name](refit_fraction=1.0), HEADS[name](refit_fraction=1.0)
    x, y = data()
    y = torch.arange(COUNT) % CLASSES
    for start in range(0, 32, 8):
        head.update(x[start : start + 8], y[start : start + 8])
    assert "pending" in head.state_dict()
    head.downdate(x[24:32], y[24:32])
    never.update(x[:24], y[:24])
    never.exact_weights()
    assert torch.equal(head.scores(x), never.scores(x))
    assert state_hash(head.state_dict()) == state_hash(never.state_dict())
    for start in range(32, 56, 8):  # past the position of what was discarded
        for each in (head, never):
            each.update(x[start : start + 8], y[start : start + 8])
        assert torch.equal(head.scores(x), never.scores(x))


def test_after_an_erasure_no_thread_holds_what_was_erased():
    gate = threading.Event()

    def rule(statistics, ridge):
        if "solve" in threading.current_thread().name:
            assert gate.wait(PATIENCE)
        return by_trace(statistics, ridge)

    head, (x, y) = made(rule=rule), data()
    for start in (0, 8, 16):
        learn(head, slice(start, start + 8))
    head.scores(x)
    threads = [each for each in threading.enumerate() if each.name.startswith("solve")]
    assert threads
    head.downdate(x[16:24], y[16:24])
    threading.Timer(0.05, gate.set).start()
    head.state_dict()
    for each in threads:
        each.join(PATIENCE)
        assert not each.is_alive()


def test_an_erasure_that_is_taken_back_leaves_the_pending_solve():
    head, twin = made(), made()
    for each in (head, twin):
        for start in (0, 8, 16):
            learn(each, slice(start, start + 8))
        each.scores(data()[0])
    undo = head.savepoint()
    x, y = data()
    head.downdate(x[16:24], y[16:24])
    undo()
    with pytest.raises(ForgettingError):
        head.downdate(x[:24] + 1, y[:24])
    assert state_hash(head.state_dict()) == state_hash(twin.state_dict())


def test_a_step_that_is_taken_back_leaves_what_is_pending_and_owed():
    head, twin = made(defer_solve=12), made(defer_solve=12)
    for start in range(0, COUNT - 8, 8):
        for each in (head, twin):
            learn(each, slice(start, start + 8))
        undo = head.savepoint()
        head.grow(CLASSES + 1)
        learn(head, slice(start + 8, start + 16), seed=3)
        undo()
        assert state_hash(head.state_dict()) == state_hash(twin.state_dict())


def test_a_class_that_is_dropped_while_a_solve_is_pending_was_never_there():
    head, twin = made(classes := 20), made(classes)
    x, y = data()[0], torch.arange(COUNT) % 2
    for each in (head, twin):
        for start in (0, 8, 16):
            each.update(x[start : start + 8], 3 * y[start : start + 8])
    assert "pending" in head.state_dict()
    head.drop_class(1)
    twin.exact_weights()
    assert torch.equal(head.scores(x), twin.scores(x)[:, [0, 2, 3, 4]])


# --- the thread ---------------------------------------------------------------------------------------


def test_the_stream_goes_on_while_a_solve_is_computed_and_waits_for_it_at_its_position():
    gate, solves = threading.Event(), []

    def rule(statistics, ridge):
        if len(solves) == 1:
            assert gate.wait(PATIENCE)
        solves.append(statistics.total)
        return by_trace(statistics, ridge)

    head, (x, _) = made(defer_solve=20, rule=rule, refit_fraction=0.0), data()
    for start in range(0, 32, 8):
        learn(head, slice(start, start + 8))
        head.scores(x)
    assert solves == [8]
    threading.Timer(0.05, gate.set).start()
    learn(head, slice(32, 40))
    head.scores(x)
    assert solves[:2] == [8, 16]


def test_an_error_in_the_thread_surfaces_at_the_position_and_loses_nothing():
    broken = [False]

    def rule(statistics, ridge):
        if broken[0]:
            raise ZeroDivisionError
        return by_trace(statistics, ridge)

    head, twin = made(rule=rule, refit_fraction=1.0), made(rule=by_trace, refit_fraction=1.0)
    x, _ = data()
    for start in range(0, 40, 8):
        for each in (head, twin):
            learn(each, slice(start, start + 8))
        if start == 0:
            head.scores(x)
        broken[0] = True
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            head.scores(x)
        with pytest.raises(ZeroDivisionError):
            learn(head, slice(40, 48))
    broken[0] = False
    for each in (head, twin):
        learn(each, slice(40, 48))
    assert torch.equal(head.scores(x), twin.scores(x))
    assert state_hash(head.state_dict()) == state_hash(twin.state_dict())


def test_an_error_that_the_thread_alone_has_is_mended():
    def rule(statistics, ridge):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return by_trace(statistics, ridge)

    head, twin = made(rule=rule), made(rule=by_trace)
    for start in range(0, COUNT, 8):
        for each in (head, twin):
            learn(each, slice(start, start + 8))
    assert state_hash(head.state_dict()) == state_hash(twin.state_dict())

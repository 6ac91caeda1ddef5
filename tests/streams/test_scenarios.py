from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_data import collection, picture

from streamcl.errors import ConfigError
from streams.replay.collection import Collection
from streams.replay.scenarios import (
    SCENARIOS,
    Order,
    ScenarioPart,
    as_is,
    blur,
    disjoint,
    domain_incremental,
    fit_to_capacity,
    iid,
    new_instances_and_classes,
    order_for,
    segments,
    si_blurry,
)

IMAGE = picture(0)


def unevenly(counts: list[int], seed: int = 0) -> Collection:
    """A collection with so many images of each class, interleaved."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    return collection(labels.tolist(), len(counts), images=[IMAGE] * len(labels))


def stretches(order: Order) -> list[np.ndarray]:
    return np.split(order.indices, list(order.shifts))


counts = st.lists(st.integers(1, 12), min_size=5, max_size=12)
seeds = st.integers(0, 2**16)


@settings(deadline=None, max_examples=60)
@given(counts=counts, parts=st.integers(1, 5), seed=seeds)
def test_disjoint_gives_every_class_to_one_part(counts: list[int], parts: int, seed: int) -> None:
    train = unevenly(counts)
    order = disjoint(train, parts, seed)
    assert sorted(order.indices) == list(range(len(train)))
    assert len(order.shifts) == parts - 1
    classes = [set(train.labels[piece]) for piece in stretches(order)]
    assert sum(map(len, classes)) == len(set.union(*classes)) == len(counts)
    assert max(map(len, classes)) - min(map(len, classes)) <= 1
    for part, codes in zip(order.parts, classes, strict=True):
        assert set(part.classes) == {train.classes[code] for code in codes}


@settings(deadline=None, max_examples=100)
@given(
    counts=counts,
    parts=st.integers(1, 5),
    own=st.integers(0, 100),
    blurry=st.integers(0, 100),
    seed=seeds,
)
def test_si_blurry_keeps_disjoint_classes_apart(
    counts: list[int], parts: int, own: int, blurry: int, seed: int
) -> None:
    train = unevenly(counts)
    order = si_blurry(train, parts, own, blurry, seed)
    assert sorted(order.indices) == list(range(len(train)))
    assert len(order.parts) == parts
    taught = [name for part in order.parts for name in part.classes]
    assert sorted(taught) == sorted(train.classes)
    pieces = stretches(order)
    homes = [
        sum((set(train.labels[piece]) == {code}) or (code in train.labels[piece]) for piece in pieces)
        for code in range(len(counts))
    ]  # in how many stretches each class is seen
    assert sum(home == 1 for home in homes) >= int(len(counts) * own / 100)
    if blurry == 0 or own == 100:
        assert all(home == 1 for home in homes)


@settings(deadline=None, max_examples=100)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), percent=st.integers(0, 100), seed=seeds)
def test_blurring_pools_exactly_that_share_and_keeps_every_size(
    sizes: list[int], percent: int, seed: int
) -> None:
    pieces = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    blurred = blur(pieces, percent, np.random.default_rng(seed))
    assert [len(piece) for piece in blurred] == sizes
    assert sorted(np.concatenate(blurred).tolist()) == list(range(sum(sizes)))
    moved = sum(len(set(after) - set(before)) for before, after in zip(pieces, blurred, strict=True))
    assert moved <= int(sum(sizes) * percent / 100)


@given(pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6))
def test_amounts_that_do_not_fit_go_to_other_parts(pairs: list[tuple[int, int]]) -> None:
    asked, room = [want for want, _ in pairs], [most for _, most in pairs]
    amounts = fit_to_capacity(asked, room)
    assert all(0 <= amount <= most for amount, most in zip(amounts, room, strict=True))
    assert sum(amounts) == min(sum(asked), sum(room))


def test_classes_come_in_a_seeded_order() -> None:
    train = unevenly([3] * 10)
    firsts = {disjoint(train, 5, seed).parts[0].classes for seed in range(10)}
    assert len(firsts) > 5
    firsts = {frozenset(si_blurry(train, 2, 100, 0, seed).parts[0].classes) for seed in range(10)}
    assert len(firsts) > 5


def test_blurring_moves_what_was_pooled() -> None:
    pieces = np.split(np.arange(1000), 5)
    blurred = blur(pieces, 50, np.random.default_rng(0))
    moved = sum(len(set(after) - set(before)) for before, after in zip(pieces, blurred, strict=True))
    assert 200 < moved <= 500  # a pooled image may be handed back to the part that it came from


def test_si_blurry_parts_differ_in_size_and_may_be_empty() -> None:
    train = unevenly([10] * 10)
    sizes = [len(stretches(si_blurry(train, 5, 50, 10, seed))) for seed in range(40)]
    assert min(sizes) < 5  # some stretch was empty, so there was one shift fewer
    assert max(sizes) == 5


def test_si_blurry_is_distributed_as_published() -> None:
    """N = 50, M = 10, five parts of 100 classes, as in the sampler of arXiv 2308.09303.

    Its cut points are four sorted integers drawn uniformly below the number of classes, so a first part has
    9.6 of 50 classes on average (the expected least of four draws) and is empty in about one of 13 streams;
    a tenth of the blurry images goes round, of which the share not handed back to its own part is displaced.
    """
    train = unevenly([20] * 100)
    firsts, displaced = [], []
    for seed in range(200):
        order = si_blurry(train, 5, 50, 10, seed)
        ends = np.cumsum([20 * len(part.classes) for part in order.parts])
        home = {name: number for number, part in enumerate(order.parts) for name in part.classes}
        part_of = np.searchsorted(ends, np.arange(len(train)), side="right")
        own = np.array([home[train.classes[code]] for code in train.labels[order.indices]])
        away = np.flatnonzero(part_of != own)
        moved = set(train.labels[order.indices[away]].tolist())
        assert len(moved) <= 50  # half of the classes never leave their part
        assert len(away) <= 100  # a tenth of the 1,000 blurry images
        displaced.append(len(away))
        firsts.append(len(order.parts[0].classes))
    assert np.mean(firsts) == pytest.approx(2 * 9.6, abs=2.5)  # the blurry half is cut in the same way
    assert 40 < np.mean(displaced) < 95
    assert max(displaced) > 75


def test_domain_incremental_goes_domain_by_domain() -> None:
    train = collection([0, 1, 0, 1, 0, 1], 2, domains=[0, 1, 2, 0, 1, 2])
    order = domain_incremental(train)
    assert order.indices.tolist() == [0, 3, 1, 4, 2, 5]
    assert order.shifts == (2, 4)
    assert [part.domains for part in order.parts] == [("d0",), ("d1",), ("d2",)]
    other = domain_incremental(train, order=["d2", "d0"], seed=1)
    assert [set(piece) for piece in stretches(other)] == [{2, 5}, {0, 3}]


def test_as_is_shifts_only_where_whole_domains_end() -> None:
    assert as_is(collection([0] * 4, 1, domains=[0, 0, 1, 1])).shifts == (2,)
    assert as_is(collection([0] * 4, 1, domains=[0, 1, 0, 1])).shifts == ()
    assert as_is(collection([0] * 4, 1)).shifts == ()


def test_every_nic_part_is_one_class_group_in_one_domain() -> None:
    train = collection([0, 1, 2, 3] * 6, 4, domains=[0] * 8 + [1] * 8 + [2] * 8)
    order = new_instances_and_classes(train, parts=2, seed=3)
    assert sorted(order.indices) == list(range(24))
    assert len(order.parts) == 6
    for piece in stretches(order):
        assert train.domains is not None
        assert len(set(train.domains.index[piece])) == 1
        assert len(set(train.labels[piece])) == 2
        assert list(piece) == sorted(piece)


def test_segments_are_cut_to_length_and_refuse_emptiness() -> None:
    train = collection([0, 0, 0, 1, 1, 1], 2, domains=[0, 0, 1, 1, 1, 1])
    order = segments(train, [ScenarioPart("a", ("c0",), ("d0",)), ScenarioPart("b", ("c1",))], length=2)
    assert [len(piece) for piece in stretches(order)] == [2, 2]
    with pytest.raises(ConfigError, match="'empty' has no image"):
        segments(train, [ScenarioPart("empty", ("c1",), ("d0",))])


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_same_seed_gives_the_same_order(name: str) -> None:
    train = collection([0, 1, 2] * 20, 3, domains=[0, 1] * 30)
    args = {"parts": 3} if name in {"disjoint", "si_blurry", "new_instances_and_classes"} else {}
    one, same, other = (order_for(name, train, args, seed) for seed in (5, 5, 6))
    assert np.array_equal(one.indices, same.indices)
    assert (one.shifts, one.parts) == (same.shifts, same.parts)
    if name != "as_is":
        assert not np.array_equal(one.indices, other.indices)
    assert one.indices.dtype == np.int64


def test_iid_never_shifts() -> None:
    order = iid(unevenly([5, 5]), 1)
    assert order.shifts == ()
    assert sorted(order.indices) == list(range(10))


def test_unlabelled_images_are_in_no_class_scenario() -> None:
    train = collection([0, -1, 1, -1], 2)
    assert sorted(disjoint(train, 2).indices) == [0, 2]
    assert sorted(iid(train).indices) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda train: disjoint(train, 7), "7 parts were asked for and 3 classes have images"),
        (lambda train: si_blurry(train, 0), "0 parts"),
        (lambda train: si_blurry(train, 2, disjoint_percent=101), "disjoint_percent is 101"),
        (lambda train: si_blurry(train, 2, blurry_percent=-1), "blurry_percent is -1"),
        (domain_incremental, "has no domains"),
        (lambda train: order_for("disjont", train), "no scenario is named 'disjont'"),
        (lambda train: order_for("disjoint", train, {"part": 2}), "no argument 'part'"),
        (lambda train: order_for("disjoint", train, {"parts": 1.5}), "1.5 parts"),
        (lambda train: order_for("iid", train, {"seed": "x"}), "cannot be made"),
    ],
)
def test_impossible_orders_say_what_was_found(attempt: Callable[[Collection], Order], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        attempt(unevenly([2, 2, 2]))
    assert caught.value.hint


def test_unknown_domains_are_refused() -> None:
    train = collection([0, 0], 1, domains=[0, 1])
    with pytest.raises(ConfigError, match="no domain 'd7'"):
        domain_incremental(train, order=["d7"])
    with pytest.raises(ConfigError, match="twice"):
        domain_incremental(train, order=["d0", "d0"])

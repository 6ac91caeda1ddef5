from __future__ import annotations

import numpy as np
import pytest
from streams_data import collection, picture

from streamcl.errors import BadRecord, SourceError
from streamcl.events import Batch, RejectedRecord
from streamcl.testing.source_checks import check_source
from streams.replay.replay import ReplaySource, holdout_parts
from streams.replay.scenarios import Order, ScenarioPart, as_is, disjoint, domain_incremental, iid, si_blurry

LABELS = [0, 1, 2, 3] * 6
DOMAINS = [0] * 8 + [1] * 8 + [2] * 8


def test_replay_is_a_source() -> None:
    train = collection(LABELS, 4, DOMAINS)
    test = collection(LABELS, 4, DOMAINS)
    for order in (
        as_is(train),
        iid(train, 1),
        disjoint(train, 2),
        domain_incremental(train),
        si_blurry(train, 3),
    ):
        check_source(lambda order=order: ReplaySource(train, order, 5, test))  # type: ignore[misc]


def test_bad_images_keep_their_offset() -> None:
    train = collection([0, 0, 0, 0], 1, images=[picture(0), b"not an image", picture(2), picture(3)])
    check_source(lambda: ReplaySource(train, as_is(train), 3))
    first, second = ReplaySource(train, as_is(train), 3)
    assert [sample.id for sample in first.samples] == ["drawn/0000", "drawn/0002"]
    assert first.end == second.offset == 3
    (rejected,) = first.rejected
    assert isinstance(rejected, RejectedRecord)
    assert (rejected.offset, rejected.id) == (1, "drawn/0001")


def test_bad_images_end_the_stream_where_the_policy_says_so() -> None:
    train = collection([0, 0], 1, images=[picture(0), b"not an image"])
    with pytest.raises(BadRecord):
        list(ReplaySource(train, as_is(train), 1, on_bad_record="fail"))


def test_a_position_in_another_order_is_refused() -> None:
    train = collection(LABELS, 4)
    source = ReplaySource(train, iid(train, 0), 4)
    next(iter(source))
    with pytest.raises(SourceError, match="another order"):
        ReplaySource(train, iid(train, 1), 4).load_state_dict(source.state_dict())
    broken = {**source.state_dict(), "offset": 99}
    with pytest.raises(SourceError, match="offset is 99"):
        ReplaySource(train, iid(train, 0), 4).load_state_dict(broken)


def test_samples_come_in_the_order_given() -> None:
    train = collection(LABELS, 4)
    order = iid(train, 3)
    seen = [sample.id for batch in ReplaySource(train, order, 7) for sample in batch.samples]
    assert seen == [train.ids[index] for index in order.indices]


def test_fetch_brings_train_samples_back() -> None:
    train = collection(LABELS, 4)
    source = ReplaySource(train, as_is(train), 4)
    batch = next(iter(source))
    assert isinstance(batch, Batch)
    again = source.fetch([sample.id for sample in batch.samples] + ["gone"])
    assert [each.id for each in again] == [sample.id for sample in batch.samples]


def test_disjoint_holds_out_the_classes_of_each_part() -> None:
    train, test = collection(LABELS, 4), collection(LABELS, 4)
    order = disjoint(train, 2, seed=1)
    parts = holdout_parts(order, train, test)
    assert [part.end_offset for part in parts] == [order.shifts[0], len(train)]
    for part, taught in zip(parts, order.parts, strict=True):
        assert {sample.label for sample in part.samples} == set(taught.classes)
    assert sum(len(part.samples) for part in parts) == len(test)


def test_domain_incremental_holds_out_each_domain() -> None:
    train, test = collection(LABELS, 4, DOMAINS), collection(LABELS, 4, DOMAINS)
    parts = holdout_parts(domain_incremental(train), train, test)
    assert [(part.name, part.end_offset) for part in parts] == [("d0", 8), ("d1", 16), ("d2", 24)]
    assert all({sample.domain for sample in part.samples} == {part.name} for part in parts)


def test_test_domains_that_are_never_taught_are_parts_of_their_own() -> None:
    both = collection(LABELS, 4, DOMAINS)
    train, test = both.take(np.arange(16)), both.take(np.arange(16, 24))  # d2 is for testing only
    parts = holdout_parts(domain_incremental(train), train, test)
    assert [(part.name, part.end_offset, len(part.samples)) for part in parts] == [("d2", None, 8)]


def test_without_parts_everything_is_one_or_one_per_domain() -> None:
    train = collection(LABELS, 4)
    (whole,) = holdout_parts(iid(train), train, train)
    assert (whole.name, whole.end_offset, len(whole.samples)) == ("all", 24, 24)
    train = collection(LABELS, 4, DOMAINS)
    assert [part.name for part in holdout_parts(iid(train), train, train)] == ["d0", "d1", "d2"]


def test_parts_without_test_samples_are_left_out() -> None:
    train = collection(LABELS, 4)
    test = train.take(train.where(("c0",)))
    parts = holdout_parts(disjoint(train, 4), train, test)
    assert len(parts) == 1
    assert ReplaySource(train, Order(np.arange(4)), 2).info.holdout == ()


def test_a_part_that_taught_nothing_holds_out_nothing() -> None:
    train = collection(LABELS, 4)
    order = Order(
        np.arange(24), parts=(ScenarioPart("part 1"), ScenarioPart("part 2", ("c1",)))
    )  # Si-Blurry's first was empty
    assert [part.name for part in holdout_parts(order, train, train)] == ["part 2"]

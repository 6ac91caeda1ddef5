"""Gaps in a Redis stream: found by counting entries, whoever removed them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.live.brokers.stream_position import BEGINNING, StreamFacts, StreamPosition, order


class Stream:
    """A stream as Redis keeps it: entries with ids 1-0, 2-0 and so on, and what XINFO counts."""

    def __init__(self) -> None:
        self.left: list[int] = []
        self.added, self.deleted = 0, 0

    def add(self) -> None:
        self.added += 1
        self.left.append(self.added)

    def trim(self, count: int) -> None:
        del self.left[:count]

    def delete(self, number: int) -> None:
        if number in self.left:
            self.left.remove(number)
            self.deleted = max(self.deleted, number)

    @property
    def facts(self) -> StreamFacts:
        first = f"{self.left[0]}-0" if self.left else None
        removed = self.added - len(self.left)
        return StreamFacts(first, f"{self.added}-0", self.added, removed, f"{self.deleted}-0")


STEPS = st.lists(
    st.one_of(
        st.just(("add", 0)),
        st.just(("read", 0)),
        st.tuples(st.just("trim"), st.integers(1, 3)),
        st.tuples(st.just("delete"), st.integers(1, 12)),
    ),
    max_size=40,
)


@given(before=STEPS, steps=STEPS)
def test_a_gap_is_found_exactly_where_an_entry_is_removed_before_it_was_read(before, steps):
    stream = Stream()
    for name, number in before:
        if name != "read":
            getattr(stream, name)(*[number] * (name != "add"))
    position, lost = StreamPosition.before_first(stream.facts), False
    for name, number in steps:
        unread = {each for each in stream.left if (each, 0) > order(position.id)}
        if name == "read":
            if unread:
                position = position.after(f"{min(unread)}-0")
            continue
        getattr(stream, name)(*[number] * (name != "add"))
        lost = lost or not unread <= set(stream.left)
        found = position.gap(stream.facts)
        assert bool(found) == lost, (found, position, stream.facts)
        if lost:
            break


def test_the_gap_names_how_many_entries_are_gone_and_where():
    stream = Stream()
    for _ in range(9):
        stream.add()
    position = StreamPosition.before_first(stream.facts).after("1-0")
    stream.trim(4)
    found = position.gap(stream.facts)
    assert found == "3 entries were removed after 1-0, and never read; the first that is left is 5-0"
    stream.trim(9)
    assert "8 entries were removed after 1-0" in position.gap(stream.facts)
    assert "none is left" in position.gap(stream.facts)


def test_a_stream_that_is_gone_or_was_made_anew_is_a_gap():
    position = StreamPosition("7-0", 7)
    assert "is gone" in position.gap(None)
    assert "made anew" in position.gap(StreamFacts("1-0", "2-0", 2, 0, BEGINNING))
    assert "made anew" in position.gap(StreamFacts("900-0", "950-0", 30, 0, BEGINNING))
    assert StreamPosition().gap(None) is None


@given(before=STEPS, steps=STEPS)
def test_past_a_gap_that_is_accepted_there_is_none(before, steps):
    stream = Stream()
    for name, number in (*before, *steps):
        if name != "read":
            getattr(stream, name)(*[number] * (name != "add"))
    position = StreamPosition()
    if position.gap(stream.facts):
        position = position.beyond(stream.facts)
    assert position.gap(stream.facts) is None
    assert StreamPosition("3-0", 3).beyond(None).gap(None) is None


@pytest.mark.parametrize(("entry", "expected"), [("5-0", (5, 0)), ("1526919030474-55", (1526919030474, 55))])
def test_ids_are_ordered_as_numbers(entry, expected):
    assert order(entry) == expected

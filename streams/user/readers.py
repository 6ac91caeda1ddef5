"""Reads items from any iterable of a user, and returns to a position in it where that is possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from streamcl.errors import BadRecord, SourceError
from streams.user.raw_record import ALIASES, RawRecord, is_batch
from streams.user.state_codec import from_plain, to_plain

ENDED = object()
"""Returned by `pull` after the last item."""


class RecordReader(Protocol):
    """Items one after another, from the position at which the reader was opened."""

    replayable: bool

    def pull(self) -> Any:
        """Return the next item, or ENDED."""

    def state(self) -> Any:
        """Return the state that opens a reader at the next item; None where the count of items is enough."""


def open_reader(made: Any, items: int, state: Any, *, deterministic: bool) -> RecordReader:
    """Return a reader of the object `made` after its first `items` items.

    Something with `__len__` and `__getitem__` is read by index. Something with `state_dict` and
    `load_state_dict`, itself or its iterator, is brought to `state`. Anything else can only be read once,
    unless it is `deterministic`: then items are pulled and dropped up to the position.
    Raise SourceError where the object is not iterable or shorter than `items`.
    """
    if is_map_style(made):
        return IndexedReader(made, items)
    if is_stateful(made):
        if state is not None:
            made.load_state_dict(from_plain(state))
        return StatefulReader(iterator_of(made), made)
    iterator: Any = iterator_of(made)
    if is_stateful(iterator):
        if state is not None:
            iterator.load_state_dict(from_plain(state))
        return StatefulReader(iterator, iterator)
    reader = OneShotReader(iterator, replayable=deterministic)
    for done in range(items):
        if reader.pull() is ENDED:
            raise SourceError(f"the source replays shorter: it ends after {done} of {items} items")
    return reader


class IndexedReader:
    """A sequence or a map-style data set: `made[0]` to `made[len(made) - 1]`."""

    replayable = True

    def __init__(self, made: Any, index: int) -> None:
        self._made = made
        self._length = len(made)
        self._index = index
        if index > self._length:
            raise SourceError(
                f"the source replays shorter: it has {self._length} items, {index} were read before"
            )

    def pull(self) -> Any:
        """Return the item at the next index; a BadRecord that the data set raises is returned as the item."""
        if self._index >= self._length:
            return ENDED
        try:
            item = self._made[self._index]
        except BadRecord as bad:
            item = bad
        self._index += 1
        return item

    def state(self) -> None:
        """Return None: the count of items is enough."""


class StatefulReader:
    """An iterator with a state of its own, or of an iterable that has one."""

    replayable = True

    def __init__(self, iterator: Iterator[Any], stateful: Any) -> None:
        self._iterator = iterator
        self._stateful = stateful

    def pull(self) -> Any:
        """Return the next item, or ENDED."""
        return next(self._iterator, ENDED)

    def state(self) -> Any:
        """Return a plain copy of the user's own state."""
        return to_plain(self._stateful.state_dict())


class OneShotReader:
    """An iterator that cannot go back."""

    def __init__(self, iterator: Iterator[Any], *, replayable: bool) -> None:
        self._iterator = iterator
        self.replayable = replayable

    def pull(self) -> Any:
        """Return the next item, or ENDED."""
        return next(self._iterator, ENDED)

    def state(self) -> None:
        """Return None: only the count of items is known."""


def is_map_style(made: Any) -> bool:
    """Return whether items are read by index; PyTorch's iterable sets inherit a useless `__getitem__`."""
    kinds = {base.__name__ for base in type(made).__mro__}
    indexed = hasattr(type(made), "__len__") and hasattr(type(made), "__getitem__")
    return indexed and "IterableDataset" not in kinds and not isinstance(made, Mapping | str | bytes)


def as_items(made: Any) -> Any:
    """Return the object; where it is one batch, (X, Y) or a mapping of columns, a list of that batch."""
    pair = isinstance(made, tuple) and len(made) in {2, 3}
    columns = isinstance(made, Mapping) and any(key in made for key in ALIASES["image"])
    return [made] if (pair or columns) and is_batch(RawRecord.of(made)) else made


def is_stateful(thing: Any) -> bool:
    """Return whether the object has `state_dict` and `load_state_dict`."""
    return all(callable(getattr(thing, name, None)) for name in ("state_dict", "load_state_dict"))


def iterator_of(made: Any) -> Iterator[Any]:
    """Return `iter(made)`. Raise SourceError, with what was expected, where it is not iterable."""
    if isinstance(made, str | bytes | Mapping) or not hasattr(type(made), "__iter__"):
        hint = "return an iterable of records, (x, y) or mappings, or a data set with __len__ and __getitem__"
        if hasattr(made, "__aiter__"):
            hint = "asynchronous iterators are not read: yield the records from a plain generator"
        raise SourceError(f"the source is a {type(made).__name__}, which is no stream of records", hint=hint)
    return iter(made)


def length_of(made: Any) -> int | None:
    """Return `len(made)`, or None where it has none."""
    try:
        return len(made)
    except TypeError:  # also PyTorch's loaders of data sets without a length
        return None

"""Reads items from any iterable of a user, and keeps its state as plain data, to return to a position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamcl.errors import BadRecord, SourceError
from streams.user.inner_state import from_plain, to_plain
from streams.user.raw_record import ALIASES, RawRecord, is_batch

MAX_INSPECTED = 1000  # objects inside a user's one that are looked at; some make a new one for any attribute
END_OF_ITEMS = object()
"""Returned by `pull` after the last item."""


def open_reader(made: Any, items: int, state: Any, *, deterministic: bool) -> IndexedReader | IteratorReader:
    """Return a reader of the object `made` after its first `items` items.

    Something with `__len__` and `__getitem__` is read by index. Something with `state_dict` and
    `load_state_dict`, itself or its iterator, is brought to `state`, unless its state is known to lack
    records (see `lost_by_state`). Anything else can only be read once, unless it is `deterministic`: then
    items are pulled and dropped up to the position.
    Raise SourceError where the object is not iterable or shorter than `items`.
    """
    if is_map_style(made):
        return IndexedReader(made, items)
    complete = lost_by_state(made) is None
    owner: Any = made if complete and is_stateful(made) else iterator_of(made)
    if complete and is_stateful(owner):
        if state is not None:
            owner.load_state_dict(from_plain(state))
        return IteratorReader(iterator_of(made) if owner is made else owner, owner)
    reader = IteratorReader(owner, replayable=deterministic)
    for done in range(items):
        if reader.pull() is END_OF_ITEMS:
            raise SourceError(f"the source ended early when it was read again: after {done} of {items} items")
    return reader


class IndexedReader:
    """The items of a sequence or a map-style data set: `made[0]` to `made[len(made) - 1]`."""

    replayable = True

    def __init__(self, made: Any, index: int) -> None:
        self._made, self._length, self._index = made, len(made), index
        if index > self._length:
            items = f"{self._length} items, {index} were read before"
            raise SourceError(f"the source has become shorter: it has {items}")

    def pull(self) -> Any:
        """Return the item at the next index; a BadRecord that the data set raises is returned as the item."""
        if self._index >= self._length:
            return END_OF_ITEMS
        try:
            item = self._made[self._index]
        except BadRecord as bad:
            item = bad
        self._index += 1
        return item

    def state(self) -> None:
        """Return None: the count of items is enough."""


class IteratorReader:
    """An iterator that cannot go back; `stateful`, itself or its iterable, has a state to return to."""

    def __init__(self, iterator: Iterator[Any], stateful: Any = None, *, replayable: bool = True) -> None:
        self._iterator, self._stateful = iterator, stateful
        self.replayable = replayable

    def pull(self) -> Any:
        """Return the next item, or END_OF_ITEMS."""
        return next(self._iterator, END_OF_ITEMS)

    def state(self) -> Any:
        """Return a plain copy of the user's own state; None where only the count of items is known."""
        return None if self._stateful is None else to_plain(self._stateful.state_dict())


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


def lost_by_state(made: Any) -> str | None:
    """Return what the object's own state leaves out; None where nothing is known to be.

    Hugging Face's iterable data sets do not save their shuffle buffers: records in them would never come.
    """
    todo, seen = [made], set[int]()
    while todo and len(seen) < MAX_INSPECTED:
        part = todo.pop()
        seen.add(id(part))
        buffer = getattr(part, "buffer_size", 0)
        if "BufferShuffled" in type(part).__name__ and isinstance(buffer, int) and buffer > 1:
            return f"the shuffle buffer of {buffer} records"
        links = [getattr(part, name, None) for name in ("dataset", "_ex_iterable", "ex_iterable")]
        several = getattr(part, "ex_iterables", ())
        links += several if isinstance(several, list | tuple) else []
        todo += [link for link in links if link is not None and id(link) not in seen]
    return None


def iterator_of(made: Any) -> Iterator[Any]:
    """Return `iter(made)`. Raise SourceError, with what was expected, where it is not iterable."""
    if isinstance(made, str | bytes | Mapping) or not hasattr(type(made), "__iter__"):
        hint = "return an iterable of records, (x, y) or mappings, or a data set with __len__ and __getitem__"
        if hasattr(made, "__aiter__"):
            hint = "asynchronous iterators are not read: yield the records from a plain generator"
        raise SourceError(f"the source, a {type(made).__name__}, is not a stream of records", hint=hint)
    return iter(made)

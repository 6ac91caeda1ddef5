"""Reads a user's iterable item by item, and makes it anew where it raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from streamcl.errors import SourceError, StreamclError, cause_of
from streams.user.readers import END_OF_ITEMS, IndexedReader, IteratorReader, as_items, open_reader


@contextmanager
def user_code(what_failed: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a SourceError that begins with `what_failed`."""
    try:
        yield
    except StreamclError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and exit
        raise SourceError(f"{what_failed}: {cause_of(error)}") from error


class RetryingReader:
    """Reads what `make` returns, from an item where reading can start again; see `IterableSource`.

    items: the number of items read so far.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        name: str,
        *,
        deterministic: bool,
        retries: int,
        backoff: float,
        sleep: Callable[[float], None],
    ) -> None:
        self._make, self._name, self._deterministic = make, name, deterministic
        self._retries, self._backoff, self._sleep = retries, backoff, sleep
        self._reader: IndexedReader | IteratorReader | None = None
        self._length = 0  # as the object gives it; 0 where it gives none
        with user_code(f"{name} could not be made"):
            self.made = as_items(make())
        self._unread = True  # whether `made` has not been read from
        self.restart(0, None)

    def restart(self, items: int, inner: Any) -> None:
        """Continue after the first `items` items, where the user's state was `inner`."""
        self._reader = None
        self.items = items
        self._start = items, inner

    def mark(self) -> Any:
        """Open later readers at the present item; return the user's own state there, as plain data."""
        inner = self._reader.state() if self._reader is not None else None
        self._start = self.items, inner
        return inner

    @property
    def replayable(self) -> bool:
        """Whether the object can be read by index, keeps its own state, or is deterministic."""
        if self._reader is None:
            with user_code(f"{self._name} cannot be inspected"):
                self._reader = self._open()
        return self._reader.replayable

    @property
    def can_mark(self) -> bool:
        """Whether there is an open reader that could be opened again at the present item."""
        return self._reader is not None and self._reader.replayable

    def pull(self, offset: int) -> Any:
        """Return the next item, or END_OF_ITEMS; `offset` is that of the next record, for messages.

        Where the user's code raises and the object is replayable, it is made anew up to `retries` times.
        """
        attempt = 0
        while True:
            try:
                if self._reader is None:
                    self._reader = self._open()
                item = self._reader.pull()
            except StreamclError:
                raise
            except (Exception, SystemExit) as error:  # the user's code may raise anything, and exit
                can_return = self._reader is None or self._reader.replayable
                can_return &= not isinstance(error, SystemExit)
                self._reader = None
                if not can_return or attempt >= self._retries:
                    place = f"offset {offset}, {attempt + 1} times" if attempt else f"offset {offset}"
                    raise SourceError(f"{self._name} failed at {place}: {cause_of(error)}") from error
                self._sleep(self._backoff * 2**attempt)
                attempt += 1
            else:
                most = max(self.items, offset)  # a length counts items or records
                if item is END_OF_ITEMS and most < self._length:
                    raise SourceError(f"{self._name} ended early, after {most} of {self._length}")
                self.items += item is not END_OF_ITEMS
                return item

    def _open(self) -> IndexedReader | IteratorReader:
        """Open a reader after the item read last, by way of the latest resume point."""
        made = self.made if self._unread else as_items(self._make())
        self._unread = False
        self._length = 0
        with suppress(TypeError):  # also raised by PyTorch's loaders of data sets without a length
            self._length = len(made)
        start, inner = self._start
        reader = open_reader(made, start, inner, deterministic=self._deterministic)
        for _ in range(self.items - start):
            if reader.pull() is END_OF_ITEMS:
                raise SourceError(
                    f"{self._name} ended early when it was read again: before item {self.items}"
                )
        return reader

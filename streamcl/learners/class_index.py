"""Names as columns and as hashes: an open set of classes, and pseudonyms of subjects and tenants."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from streamcl.errors import ForgettingError
from streamcl.events import Sample
from streamcl.learners.lazy_imports import lazy_imports

with lazy_imports():
    import torch

if TYPE_CHECKING:
    from torch import Tensor


class ClassIndex:
    """Class names in the order in which they were first learned; a name's place is its column everywhere."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._columns: dict[str, int] = {}
        self.add(names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, by column."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def add(self, names: Iterable[str]) -> None:
        """Give every name that is not known yet the next column."""
        for name in names:
            self._columns.setdefault(name, len(self._columns))

    def columns(self, names: Sequence[str | None], device: torch.device | str = "cpu") -> Tensor:
        """int64 [len(names)]: the column of each name, -1 for None and for names not known."""
        known = [-1 if name is None else self._columns.get(name, -1) for name in names]
        return torch.tensor(known, dtype=torch.int64, device=device)

    def known_columns(self, samples: Sequence[Sample], device: torch.device | str = "cpu") -> Tensor:
        """Return int64 [B]: the columns of labelled samples.

        Raises:
            ForgettingError: a sample's class was never learned.
        """
        columns = self.columns([sample.label for sample in samples], device)
        if bool((columns < 0).any()):
            raise ForgettingError("a sample's class is not among those learned, so it cannot be in the sums")
        return columns

    def without(self, name: str) -> ClassIndex:
        """Return the index without a class; later ones move up by one column.

        Raises:
            ForgettingError: the class is not known.
        """
        if name not in self:
            raise ForgettingError("there is no such class to drop")
        return ClassIndex(each for each in self.names if each != name)


def pseudonym(name: str) -> str:
    """Return 32 hexadecimal digits in place of a subject or tenant, so that no state holds the name."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()

"""A learning step happens whole or not at all: savepoints, and the transaction that goes back to them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

Rollback: TypeAlias = Callable[[], None]
"""Restores the state of a savepoint, bit for bit."""


class Transaction:
    """A block of statements that changes a learner whole or not at all.

    Where the block raises, or was refused, every savepoint is restored, the last one first. A refusal does
    not raise: it says that losses or gradients are not finite.

        with Transaction(head.savepoint()) as step:
            if not all_finite(features):
                step.refuse()
        learned = batch.labelled_offsets if step.accepted else ()
    """

    def __init__(self, *savepoints: Rollback) -> None:
        self._savepoints = list(savepoints)
        self.accepted = True

    def cover(self, savepoint: Rollback) -> None:
        """Restore this savepoint too."""
        self._savepoints.append(savepoint)

    def refuse(self) -> None:
        """Restore everything at the end of the block."""
        self.accepted = False

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.accepted or isinstance(error, Exception):
            for restore in reversed(self._savepoints):
                restore()

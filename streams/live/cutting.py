"""When the batches of a live source are complete."""

from __future__ import annotations

from dataclasses import dataclass

from streams.batch_size import BatchSize


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """When a batch is complete.

    size: records, or labels, in a full batch. adaptive: it is smaller while little of the stream has passed
    (see `BatchSize`). max_wait: seconds after which the first of them has waited
    enough; None: until the batch is full. previews: whether records are shown before it is complete.
    learn_one_in: of the batches that are cut while more than `overload` records wait, here and at the other
    end, one in so many is learned, and the others are only predicted; 0: none is learned.
    """

    size: int = 64
    adaptive: bool = False
    max_wait: float | None = 2.0
    previews: bool = False
    overload: int | None = None
    learn_one_in: int = 0

    def size_at(self, offset: int) -> int:
        """Return the size of the batch that begins at `offset`."""
        return BatchSize(self.size, self.adaptive).at(offset)

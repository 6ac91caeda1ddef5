"""The processes of one run, called ranks, and what they exchange; here the run of a single process."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from streamcl.events import Sample

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")

TIMEOUT = 1800.0
"""Seconds that a rank waits for the others: more than a source may stall, or an erasure take."""


class ProcessGroup:
    """The group of a run in one process; `TorchProcessGroup` is the same for several processes.

    The methods `all_...`, `fetch_pixels` and `broadcast_object` are collective: every rank calls them at the
    same points of the run, with the same samples, of which each rank holds the pixels of its own share.
    """

    rank = 0
    world_size = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reads and writes the run directory."""
        return self.rank == 0

    def local_samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples whose pixels this rank holds, in order; one blank sample where it holds none."""
        return samples

    def scatter(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples, which every rank holds, with the pixels of each on one rank only."""
        return samples

    def all_gather_rows(self, rows: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Return the rows [N, ...] of all N samples, in their order, computed by all ranks.

        Every rank gets the same values; gradients flow back to the rows that it computed itself.

        Args:
            rows: [n + surplus, ...], those of this rank's share of n samples first.
            samples: the N samples of the batch.
        """
        return rows if len(rows) == len(samples) else rows[: len(samples)]

    def all_reduce_gradients(
        self,
        gradients: Mapping[str, Tensor],
        replicated: Collection[str] = (),  # noqa: ARG002 - nothing is counted twice here
    ) -> dict[str, Tensor]:
        """Return the gradients by name, summed over ranks, in the order of ranks so that bits are repeatable.

        Args:
            gradients: by name, of any shape; names and shapes are the same on every rank.
            replicated: names whose gradient every rank has for all samples (of parameters after
                `all_gather_rows`): rank 0's is taken.
        """
        return dict(gradients)

    def count_once(self, loss: Tensor) -> Tensor:
        """Return a scalar with the value of `loss`, a scalar of every rank, and a gradient on rank 0 only."""
        return loss

    def fetch_pixels(
        self,
        stored: Sequence[Sample],
        among: Sequence[Sample],  # noqa: ARG002 - all have their pixels here
    ) -> Sequence[Sample]:
        """Return the samples `stored` with their pixels; `among` are the batch's, each held by one rank."""
        return stored

    def all_gather_object(self, value: _T) -> list[_T]:
        """Return each rank's `value`, in the order of ranks."""
        return [value]

    def broadcast_object(self, value: _T) -> _T:
        """Return rank 0's `value`."""
        return value

    def close(self) -> None:
        """Leave the group."""

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # a rank that fails must not wait for others, which may be gone
            self.close()


SINGLE_PROCESS = ProcessGroup()


def launched() -> bool:
    """Return whether this process was started as one of several ranks, by torchrun or with its variables."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarted() -> bool:
    """Return whether torchrun has started the ranks again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_rank() -> int:
    """Return this rank's number among those of this machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))

"""Several processes, called ranks, that learn one stream; the only module that uses torch.distributed.

Each rank computes its share of a batch, forward and backward. The results are gathered, features in the order
of the batch and gradients in the order of ranks, and every rank goes on with the same numbers. So all ranks
have the same state, bit by bit, and any of them could write it.

torch's DistributedDataParallel is not used. It averages the gradients of separate losses, whereas a masked
cross-entropy needs the classes of the whole batch and a ridge head the features of all its samples; its
buckets are fixed when a model is wrapped, whereas these heads grow; and it chooses the order of its sums.
Gradients are small (0.4 MB for a ViT-S with adapters of rank 4): one gather a step carries them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from streamcl.distributed.process_group import TIMEOUT, ProcessGroup
from streamcl.errors import DistributedError
from streamcl.events import Sample
from streamcl.nn.process_settings import configure_process
from streamcl.sources.remote_sample import RemoteSample

_T = TypeVar("_T")

PLACEHOLDER = Sample("", np.zeros((8, 8, 3), np.uint8))
"""Computed by a rank without a sample of a batch, so that its tensors have a shape; the rows are dropped."""


class TorchProcessGroup(ProcessGroup):
    """Several processes over torch.distributed: gloo for tensors on the CPU, NCCL for those on a GPU.

    Made from the environment that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Collective
    methods raise DistributedError where another rank is gone or does not answer for `timeout` seconds.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        import torch.distributed as dist

        self._dist: Any = dist
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        if gpus:
            configure_process(deterministic=True)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        self._translated(self._join, backend, timedelta(seconds=timeout))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def local_samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples that are not remote, in order; PLACEHOLDER where there is none."""
        return [sample for sample in samples if not isinstance(sample, RemoteSample)] or [PLACEHOLDER]

    def scatter(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples, of which sample i keeps its pixels on rank i modulo the number of ranks."""
        ranks = [i % self.world_size for i in range(len(samples))]
        pairs = zip(samples, ranks, strict=True)
        return [each if rank == self.rank else RemoteSample.of(each, rank) for each, rank in pairs]

    def all_gather_rows(self, rows: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Return the rows [N, ...] of all samples; rows are sent without their graph.

        Args:
            rows: [n + surplus, ...], those of this rank's n samples first.
            samples: the N samples of the batch.
        """
        holders = [each.rank if isinstance(each, RemoteSample) else self.rank for each in samples]
        counts = [holders.count(rank) for rank in range(self.world_size)]
        own = rows[: counts[self.rank]]
        if not samples:
            return own
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(own)] = own.detach()
        parts = self._gathered(padded)
        by_rank = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        places = np.argsort(np.argsort(holders, kind="stable"))  # [N], each sample's row in by_rank
        whole = by_rank[torch.from_numpy(places).to(rows.device)]
        if not own.requires_grad:
            return whole
        mine = torch.tensor([i for i, holder in enumerate(holders) if holder == self.rank], dtype=torch.int64)
        return whole.index_add(0, mine.to(rows.device), own - own.detach())  # adds zeros, and the graph

    def all_reduce_gradients(
        self, gradients: Mapping[str, Tensor], replicated: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return the sums by name, from one gather; every rank adds them in the same order.

        Args:
            gradients: by name, of any shape.
            replicated: names whose gradient is taken from rank 0.
        """
        if not gradients:
            return {}
        skipped = () if self.is_main else replicated
        mine = [torch.zeros_like(g) if name in skipped else g for name, g in gradients.items()]
        first, *others = self._gathered(torch.cat([each.flatten() for each in mine]))
        summed = first.clone()
        for other in others:
            summed += other
        pieces = summed.split([each.numel() for each in mine])
        return {name: piece.view_as(gradients[name]) for name, piece in zip(gradients, pieces, strict=True)}

    def count_once(self, loss: Tensor) -> Tensor:
        """Return a scalar: `loss`, a scalar too, detached on all ranks but the first."""
        return loss if self.is_main else loss.detach()

    def fetch_pixels(self, stored: Sequence[Sample], among: Sequence[Sample]) -> Sequence[Sample]:
        """Return `stored` with pixels, from one gather; from none where the batch has none of them."""
        fresh = {sample.id for sample in among}
        wanted = [sample for sample in stored if sample.id in fresh]
        if not wanted:
            return stored
        mine = {sample.id: sample for sample in wanted if not isinstance(sample, RemoteSample)}
        found = {name: sample for part in self.all_gather_object(mine) for name, sample in part.items()}
        return [found[each.id] if isinstance(each, RemoteSample) else each for each in stored]

    def all_gather_object(self, value: _T) -> list[_T]:
        """Return each rank's `value`, in the order of ranks; pickled, since ranks trust one another."""
        parts: list[Any] = [None] * self.world_size
        self._translated(self._dist.all_gather_object, parts, value)
        return parts

    def broadcast_object(self, value: _T) -> _T:
        """Return rank 0's `value`; the other ranks' is not read."""
        content = [value if self.is_main else None]
        self._translated(self._dist.broadcast_object_list, content, 0)
        return content[0]  # type: ignore[return-value]

    def close(self) -> None:
        """Leave the group. Leaving twice is harmless."""
        if self._dist.is_initialized():
            self._dist.destroy_process_group()

    def _join(self, backend: str, timeout: timedelta) -> None:
        store, rank, world = next(self._dist.rendezvous("env://", timeout=timeout))
        # torchrun's store outlives a restart, and with it the addresses of the ranks that were killed.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = self._dist.PrefixStore(f"attempt {attempt} of {world}", store)
        self._dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        """Return every rank's tensor, all of the shape of `mine`, in the order of ranks."""
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        self._translated(self._dist.all_gather, parts, mine.contiguous())
        return parts

    def _translated(self, operation: Callable[..., Any], *args: Any) -> None:
        """Call `operation`. Raise DistributedError for torch's errors about ranks that are gone."""
        try:
            operation(*args)
        except (RuntimeError, ValueError) as error:
            who = f"rank {self.rank} of {self.world_size}" if self.world_size > 1 else "this rank"
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DistributedError(
                f"{who} has lost contact with the others: one of them failed, was killed or hangs ({cause})",
                hint="the cause is in the log of the rank that failed first; "
                "the same command continues from the last checkpoint, as torchrun --max-restarts does",
            ) from error

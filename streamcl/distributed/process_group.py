"""The processes, called ranks, that learn one stream together; torch.distributed is used here alone.

Each rank computes its share of a batch, forward and backward. What comes of that is gathered, features in the
order of the batch and gradients in the order of ranks, and all that follows is done by every rank alike, on
the same numbers. So all ranks have the same state, bit by bit, and any of them could write it.

torch's DistributedDataParallel is not used. It averages what each rank made of a loss of its own, whereas a
masked cross-entropy needs the classes of the whole batch and a ridge head the features of all its samples;
its buckets are fixed when a model is wrapped, whereas these heads grow; and the library chooses the order of
its sums. The gradients are few (0.4 MB for a ViT-S with adapters of rank 4): one gather a step carries them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from streamcl.errors import DistributedError
from streamcl.events import RemoteSample, Sample

T = TypeVar("T")

TIMEOUT = 1800.0
"""Seconds that a rank waits for the others: more than a source may stall, or an erasure take."""

ENVELOPE = 4096
"""Bytes of the one message that a small value travels in; a larger one takes a second."""

BLANK = Sample("", np.zeros((8, 8, 3), np.uint8))
"""What a rank computes where a batch has nothing for it, so that shapes come out; it counts nowhere."""


class ProcessGroup:
    """A run in one process, where everybody is one. `TorchProcessGroup` is the same for several.

    All ranks call the methods that move something (`joined`, `total`, `completed`, `everyone`, `from_first`)
    at the same points, with samples that are alike but for where their pixels are.
    """

    rank = 0
    world_size = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reads and writes the run directory."""
        return self.rank == 0

    def local_samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those whose pixels are here, in order; never empty, so a rank that has none gets a blank one."""
        return samples

    def scatter(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Samples that every rank holds, dealt out: each is computed by one."""
        return samples

    def all_gather_rows(self, rows: Tensor, samples: Sequence[Sample]) -> Tensor:
        """[N, ...] in the order of N samples, of each rank's rows [n + surplus, ...] for its share of n.

        Gradients reach the rows that were computed here; values are the same everywhere.
        """
        return rows if len(rows) == len(samples) else rows[: len(samples)]

    def all_reduce_gradients(
        self,
        gradients: Mapping[str, Tensor],
        replicated: Collection[str] = (),  # noqa: ARG002 - one rank has everything whole
    ) -> dict[str, Tensor]:
        """Gradients by name, summed in the order of ranks; of those in `whole` the first rank's count.

        `whole` names what stands behind `joined`, where every rank has the gradient of all samples.
        """
        return dict(gradients)

    def count_once(self, loss: Tensor) -> Tensor:
        """A part of a loss that every rank has whole: its gradient counts on the first rank only."""
        return loss

    def fetch_pixels(
        self,
        kept: Sequence[Sample],
        among: Sequence[Sample],  # noqa: ARG002 - here they have their pixels
    ) -> Sequence[Sample]:
        """Samples to be kept, with their pixels; `among` are the batch's, each held by one rank."""
        return kept

    def all_gather_object(self, value: T) -> list[T]:
        """What each rank passed, in the order of ranks."""
        return [value]

    def broadcast_object(self, value: T) -> T:
        """What the first rank passed."""
        return value

    def close(self) -> None:
        """Leave the others."""

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # a rank that leaves in error must not wait for those that may be gone
            self.close()


SINGLE_PROCESS = ProcessGroup()


class TorchProcessGroup(ProcessGroup):
    """Several processes over torch.distributed: gloo for what is on the CPU, NCCL for what is on a GPU.

    Reads the environment that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Every method that
    moves something raises RanksError where another rank is gone, or does not answer for `timeout` seconds.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        import torch.distributed as dist

        self._dist: Any = dist
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        if gpus:
            _choose_repeatable_kernels()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        self._plainly(self._join, backend, timedelta(seconds=timeout))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def local_samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those whose pixels are here."""
        return [sample for sample in samples if not isinstance(sample, RemoteSample)] or [BLANK]

    def scatter(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Sample i to rank i modulo their number."""
        world = self.world_size
        return [
            sample if i % world == self.rank else RemoteSample.of(sample, i % world)
            for i, sample in enumerate(samples)
        ]

    def all_gather_rows(self, rows: Tensor, samples: Sequence[Sample]) -> Tensor:
        """As promised there; rows travel without the graph and keep it where they were made."""
        holders = [self._holder(sample) for sample in samples]
        counts = [holders.count(rank) for rank in range(self.world_size)]
        own = rows[: counts[self.rank]]
        if not samples:
            return own
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(own)] = own.detach()
        parts = self._gathered(padded)
        by_rank = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        places = np.argsort(np.argsort(holders, kind="stable"))  # where each sample lies among them
        whole = by_rank[torch.from_numpy(places).to(rows.device)]
        if not own.requires_grad:
            return whole
        mine = torch.tensor([i for i, holder in enumerate(holders) if holder == self.rank], dtype=torch.int64)
        return whole.index_add(0, mine.to(rows.device), own - own.detach())  # adds zeros, and the graph

    def all_reduce_gradients(
        self, gradients: Mapping[str, Tensor], replicated: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """In one message; the sum is the same on every rank because each adds the same numbers up alike."""
        if not gradients:
            return {}
        mine = [
            torch.zeros_like(gradient) if name in replicated and not self.is_main else gradient
            for name, gradient in gradients.items()
        ]
        first, *others = self._gathered(torch.cat([each.flatten() for each in mine]))
        summed = first.clone()
        for other in others:
            summed += other
        pieces = summed.split([each.numel() for each in mine])
        return {name: piece.view_as(gradients[name]) for name, piece in zip(gradients, pieces, strict=True)}

    def count_once(self, loss: Tensor) -> Tensor:
        """With a gradient on the first rank only."""
        return loss if self.is_main else loss.detach()

    def fetch_pixels(self, kept: Sequence[Sample], among: Sequence[Sample]) -> Sequence[Sample]:
        """One message, where anything of the batch is kept at all."""
        fresh = {sample.id for sample in among}
        wanted = [sample for sample in kept if sample.id in fresh]
        if not wanted:
            return kept
        mine = {sample.id: sample for sample in wanted if not isinstance(sample, RemoteSample)}
        found = {name: sample for part in self.all_gather_object(mine) for name, sample in part.items()}
        return [found[each.id] if isinstance(each, RemoteSample) else each for each in kept]

    def all_gather_object(self, value: T) -> list[T]:
        """Pickled: ranks trust one another as one program does its own memory."""
        data = pickle.dumps(value)
        letters = self._gathered(_envelope(data))
        sizes = [_size(letter) for letter in letters]
        if max(sizes) > ENVELOPE - 8:
            padded = torch.zeros(max(sizes), dtype=torch.uint8)
            padded[: len(data)] = _bytes(data)
            letters = self._gathered(padded)
        else:
            letters = [letter[8:] for letter in letters]
        return [
            pickle.loads(letter[:size].numpy().tobytes()) for letter, size in zip(letters, sizes, strict=True)
        ]

    def broadcast_object(self, value: T) -> T:
        """Pickled, as `everyone` does."""
        data = pickle.dumps(value) if self.is_main else b""
        letter = _envelope(data)
        self._plainly(self._dist.broadcast, letter, 0)
        size = _size(letter)
        if size <= ENVELOPE - 8:
            content = letter[8 : 8 + size]
        else:
            content = _bytes(data) if self.is_main else torch.empty(size, dtype=torch.uint8)
            self._plainly(self._dist.broadcast, content, 0)
        return value if self.is_main else pickle.loads(content.numpy().tobytes())

    def close(self) -> None:
        """Leave the others; harmless twice."""
        if self._dist.is_initialized():
            self._dist.destroy_process_group()

    def _join(self, backend: str, timeout: timedelta) -> None:
        store, rank, world = next(self._dist.rendezvous("env://", timeout=timeout))
        # torchrun's store outlives a restart, and with it the addresses of the ranks that were killed.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = self._dist.PrefixStore(f"attempt {attempt} of {world}", store)
        self._dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)

    def _holder(self, sample: Sample) -> int:
        return sample.rank if isinstance(sample, RemoteSample) else self.rank

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        """Every rank's tensor of this shape, in the order of ranks."""
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        self._plainly(self._dist.all_gather, parts, mine.contiguous())
        return parts

    def _plainly(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """What torch says of ranks that are gone, as an error of ours."""
        try:
            operation(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            who = f"rank {self.rank} of {self.world_size}" if self.world_size > 1 else "this rank"
            raise DistributedError(
                f"{who} has lost the others: one of them failed, was killed or hangs ({_first_line(error)})",
                hint="what went wrong is said by the rank that failed first; "
                "the same command goes on from the last checkpoint, as torchrun --max-restarts does",
            ) from error


def launched() -> bool:
    """Whether this process was started as one of several ranks, by torchrun or in its manner."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarted() -> bool:
    """Whether torchrun has started the ranks again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_rank() -> int:
    """Which of the ranks on this machine this one is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))


def _choose_repeatable_kernels() -> None:
    """Every rank repeats what the others do to the gathered numbers, so kernels must not race."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _envelope(data: bytes) -> Tensor:
    """uint8 [ENVELOPE]: the size in eight bytes, then the data where there is room for it."""
    letter = np.zeros(ENVELOPE, np.uint8)
    letter[:8] = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
    if len(data) <= ENVELOPE - 8:
        letter[8 : 8 + len(data)] = np.frombuffer(data, np.uint8)
    return torch.from_numpy(letter)


def _size(letter: Tensor) -> int:
    return int.from_bytes(letter[:8].numpy().tobytes(), "little")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

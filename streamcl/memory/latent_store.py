"""A bounded store of latents: tokens of some learned samples, on which adapters can be trained again.

A sample's place is a keyed hash of its id, and it is stored where that lies under a share that depends on
the position in the stream alone. So nobody's place depends on anybody else: the store of a stream in which a
sample was refused is this one without that sample's row.

Tokens lie in segments, mapped from files, which do not change. Where one ends depends on the offsets of its
samples alone, so where a sample is removed the segments of others stay as they are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.memory.quantised_tokens import QuantisedTokens, TokenArray, TokenDtype
from streamcl.memory.token_rows import TokenRows, final_segment
from streamcl.protocols import State

_PLACES = 2**64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio: multiples of it, modulo 2**64, are spread most evenly (Knuth, 6.4)."""


@dataclass(frozen=True, slots=True, eq=False)
class LatentGroup:
    """Stored samples that entered together.

    Attributes:
        trainings: how often adapters had been trained before they entered.
        weight: how many learned samples each of them stands for.
        offsets: int64 [n], their places in the stream.
        places: float64 [n] in [0, 1), the keyed hashes of their ids.
        labels: n class names.
        tokens: of n samples.
    """

    trainings: int
    weight: int
    offsets: npt.NDArray[np.int64]
    places: npt.NDArray[np.float64]
    labels: tuple[str, ...]
    tokens: TokenRows

    def select(self, rows: npt.NDArray[np.int64]) -> LatentGroup:
        """Return the group with some of its rows, int64 [m], in their order."""
        labels = tuple(self.labels[row] for row in rows)
        return replace(
            self,
            offsets=self.offsets[rows],
            places=self.places[rows],
            labels=labels,
            tokens=self.tokens.select(rows),
        )

    def chunks(self, size: int) -> Iterator[LatentGroup]:
        """Yield the rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.select(np.arange(start, min(start + size, len(self))))

    def __len__(self) -> int:
        return len(self.offsets)


class LatentStore:
    """The groups of stored samples, oldest first.

    Args:
        dtype: of the codes.
        key: of the hashes of ids.
        segment_rows: samples of a segment, in the mean. Those after the last full one are in memory.
        folder: where the files of segments lie, without a name; None: all stays in memory.
    """

    def __init__(
        self, dtype: TokenDtype, key: bytes, *, segment_rows: int = 1024, folder: Path | None = None
    ) -> None:
        self._dtype, self._key = dtype, key
        self._segment_rows, self._folder = segment_rows, folder
        self.groups: tuple[LatentGroup, ...] = ()

    def place(self, name: str) -> float:
        """Return the place of the sample with this id, in [0, 1)."""
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=8, person=b"latent store").digest()
        return int.from_bytes(digest, "big") / _PLACES

    def round_trip(self, tokens: TokenArray) -> TokenArray:
        """Return tokens as they would come out of the store, float32 [n, N, d].

        Args:
            tokens: float32 [n, N, d].
        """
        return QuantisedTokens.of(tokens, self._dtype).restored()

    def add(
        self,
        tokens: TokenArray,
        labels: Sequence[str],
        offsets: Sequence[int],
        places: Sequence[float],
        *,
        trainings: int,
        weight: int,
    ) -> LatentGroup:
        """Store samples as one group. Return the group.

        Raise CheckpointError where a segment is full and cannot be written; nothing is stored then.

        Args:
            tokens: float32 [n, N, d].
            labels: n class names.
            offsets: n places in the stream.
            places: n keyed hashes.
            trainings: see `LatentGroup`.
            weight: see `LatentGroup`.
        """
        group = LatentGroup(
            trainings,
            weight,
            np.array(offsets, np.int64),
            np.array(places, np.float64),
            tuple(labels),
            TokenRows.of([QuantisedTokens.of(tokens, self._dtype)]),
        )
        groups = (*self.groups, group)
        self.groups = self._settled(groups) if self._begins_segment(group.offsets).any() else groups
        return group

    def thin(self, share: float, *, trainings: int, weight: int) -> None:
        """Keep the samples whose place lies under a share, as one group."""
        kept = [group.select(np.flatnonzero(group.places < share)) for group in self.groups]
        kept = [group for group in kept if len(group)]
        whole = [replace(_joined(kept), trainings=trainings, weight=weight)] if kept else []
        self.groups = self._settled(whole)

    def entered_before(self, trainings: int) -> LatentGroup | None:
        """Return all samples that entered before a training, as one group; None where there are none."""
        old = [group for group in self.groups if group.trainings < trainings]
        return _joined(old) if old else None

    def remove(self, offsets: Collection[int]) -> tuple[int, ...]:
        """Remove the samples at these offsets; return `trainings` of each that was there."""
        gone = np.array(sorted(offsets), np.int64)
        removed: list[int] = []
        left: list[LatentGroup] = []
        for group in self.groups:
            keep = ~np.isin(group.offsets, gone)
            removed += [group.trainings] * int((~keep).sum())
            left.append(group if keep.all() else group.select(np.flatnonzero(keep)))
        if removed:
            self.groups = self._settled([group for group in left if len(group)])
        return tuple(removed)

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens."""
        return sum(group.tokens.nbytes for group in self.groups)

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def state_dict(self) -> State:
        """Return the groups' rows as one array a field, tokens by segment, and how many rows each group has.

        The arrays of a full segment are read-only, and the same objects as long as none of it is removed.
        """
        if not self.groups:
            return {"sizes": []}
        whole = _joined(self.groups)
        return {
            "sizes": [len(group) for group in self.groups],
            "trainings": [group.trainings for group in self.groups],
            "weights": [group.weight for group in self.groups],
            "offsets": whole.offsets,
            "places": whole.places,
            "labels": list(whole.labels),
            "segments": [
                {"codes": segment.codes, "scales": segment.scales}
                for segment in (part.as_segment() for part in self._segments(whole))
            ],
        }

    @staticmethod
    def without_tokens(state: State) -> State:
        """Return a store's state with all but the tokens, from which a store can be asked for no sample."""
        if not state["sizes"]:
            return state
        none = np.zeros((sum(state["sizes"]), 0), np.uint8)
        return {**state, "segments": [{"codes": none, "scales": none.astype(np.float32)}]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the store that returned `state`. Arrays that are read-only are used as they are."""
        self.groups, start = (), 0
        if not state["sizes"]:
            return
        parts = state.get("segments", [state])  # earlier versions had one array of codes and one of scales
        tokens = TokenRows.of(QuantisedTokens(part["codes"], part["scales"]) for part in parts)
        whole = LatentGroup(0, 1, state["offsets"], state["places"], tuple(state["labels"]), tokens)
        groups = []
        for size, trainings, weight in zip(state["sizes"], state["trainings"], state["weights"], strict=True):
            rows = whole.select(np.arange(start, start + size))
            groups.append(replace(rows, trainings=int(trainings), weight=int(weight)))
            start += size
        self.groups = tuple(groups)

    def _settled(self, groups: Sequence[LatentGroup]) -> tuple[LatentGroup, ...]:
        """Return the groups with the tokens of each full segment in a file of its own."""
        if not groups:
            return ()
        *full, last = self._segments(_joined(groups))
        segments = [final_segment(part.as_segment(), self._folder) for part in full]
        tokens, start, settled = TokenRows.of([*segments, last.as_segment()]), 0, []
        for group in groups:
            settled.append(replace(group, tokens=tokens.select(slice(start, start + len(group)))))
            start += len(group)
        return tuple(settled)

    def _segments(self, whole: LatentGroup) -> list[TokenRows]:
        """Return the tokens of all samples, one or more, by segment."""
        begins = np.flatnonzero(self._begins_segment(whole.offsets))
        cuts = [0, *begins[begins > 0].tolist(), len(whole)]
        return [whole.tokens.select(slice(*cut)) for cut in itertools.pairwise(cuts)]

    def _begins_segment(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return whether a segment begins with the sample at each offset, bool [n]."""
        return offsets.astype(np.uint64) * _GOLDEN < np.uint64((_PLACES - 1) // self._segment_rows)


def _joined(groups: Sequence[LatentGroup]) -> LatentGroup:
    """Return the rows of groups, one or more, as one group with the first's `trainings` and weight."""
    return replace(
        groups[0],
        offsets=np.concatenate([group.offsets for group in groups]),
        places=np.concatenate([group.places for group in groups]),
        labels=tuple(label for group in groups for label in group.labels),
        tokens=TokenRows.concat([group.tokens for group in groups]),
    )


@dataclass(frozen=True, slots=True)
class LatentSchedule:
    """When adapters are trained, and which share of the samples is stored, by the position in the stream.

    Its positions are `first` and each time that this has doubled; between two of them lies a period. What
    enters in it is stored with a share of its own, a power of a half, such that two thirds of `rows` are
    enough at its end; the last third is for those that the training before it has used, which stay until
    then so that it can be repeated. Both hold in expectation.

    Attributes:
        first: position of the first training.
        rows: samples for which there is room.
    """

    first: int
    rows: int

    def position(self, period: int) -> int:
        """Return the position at which a period, 0 or later, ends and adapters are trained."""
        return self.first << period

    def trains(self, period: int) -> bool:
        """Return whether adapters are trained at its end: while all samples are stored, every other time."""
        return period % 2 == 0 or self.weight(period) > 1

    def weight(self, period: int) -> int:
        """Return how many samples each one stands for that enters in a period; its share is the inverse.

        >>> schedule = LatentSchedule(first=1000, rows=6200)
        >>> [(schedule.position(period), schedule.weight(period)) for period in (0, 2, 3, 4)]
        [(1000, 1), (4000, 1), (8000, 2), (16000, 4)]
        """
        weight = 1
        while 3 * self.position(period) > 2 * self.rows * weight:
            weight *= 2
        return weight

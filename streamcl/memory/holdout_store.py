"""Labelled samples of the stream that are held out: never learned, and kept to evaluate on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from PIL import Image

from streamcl.events import NO_PIXELS, Batch, HoldoutPart, Pixels, Sample
from streamcl.memory.png import PngBytes, from_png, to_png
from streamcl.protocols import BatchRecord, Collective, State
from streamcl.sources.remote_sample import RemoteSample

FIRST_LEARNED = 20
"""Samples of a class that are learned before one is held out: a new class needs each of its first ones."""
MAX_PIXEL_BYTES = 64 << 20
"""Compressed pixels that are kept at most: they are part of every checkpoint."""
PART_NAME = "held out"


@dataclass(frozen=True, slots=True)
class _Kept:
    """A held-out sample without pixels, its offset, the number drawn for its id, and its pixels."""

    sample: Sample
    offset: int
    draw: float
    pixels: PngBytes


class HoldoutStore(Sequence[Sample]):
    """The held-out samples of a stream whose source holds none out, oldest first.

    A labelled sample is held out where the number drawn for its id, a keyed hash in [0, 1), is below `limit`,
    once FIRST_LEARNED samples of its class were learned. So the same stream with the same seed holds out the
    same samples, also when it is continued or read again. `limit` begins as `share`. Where more would be kept
    than the bounds allow, the sample with the largest number leaves and `limit` falls to that number: an
    endless stream keeps a uniform choice of its samples and learns nearly all of the others.

    Images are scaled down to `side` pixels at their shorter side. Pixels are compressed without loss.

    Args:
        share: of the labelled samples, in [0, 1); 0 holds nothing out.
        max_samples: that are kept.
        seed: of the run.
        side: pixels of a side that the backbone sees; None keeps images as they are.
        group: the ranks of the run, which all keep the same; None: one process.
    """

    def __init__(
        self,
        share: float = 0.0,
        *,
        max_samples: int = 256,
        seed: int = 0,
        side: int | None = None,
        group: Collective | None = None,
    ) -> None:
        self._share = self._limit = share
        self._max_samples, self._key, self._side, self._group = max_samples, f"{seed}".encode(), side, group
        self._kept: dict[str, _Kept] = {}
        self._bytes = 0
        self._learned = Counter[str]()  # samples of each class, up to FIRST_LEARNED
        self._taken: set[str] = set()  # ids of samples that come back under another label
        self.version = 0
        """Changes whenever the samples do."""

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        kept = list(self._kept.values())[place]
        if isinstance(kept, list):
            return [_unpacked(each) for each in kept]
        return _unpacked(kept)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The place of each sample in the stream."""
        return tuple(kept.offset for kept in self._kept.values())

    @property
    def parts(self) -> tuple[HoldoutPart, ...]:
        """The samples as one part, which changes as they do; none where nothing is held out."""
        return (HoldoutPart(PART_NAME, self),) if self._share else ()

    def may_hold_out(self, sample: Sample) -> bool:
        """Return whether the sample is held out, or will be once more of its class have been learned."""
        return sample.id in self._kept or self._draw(sample.id) < self._limit

    def choose(self, batch: Batch) -> frozenset[int]:
        """Return the offsets of the samples of a batch that are not to be learned; change nothing."""
        if not self._share or batch.predict_only:
            return frozenset()
        chosen, learned = set[int](), Counter[str]()
        for offset, sample in zip(batch.offsets, batch.samples, strict=True):
            if sample.label is None:
                continue
            if self._is_held_out(sample, self._learned[sample.label] + learned[sample.label]):
                chosen.add(offset)
            else:
                learned[sample.label] += 1
        return frozenset(chosen)

    def label_of(self, name: str) -> str | None:
        """Return the label of the sample with this id; None where it is not kept."""
        return self._kept[name].sample.label if name in self._kept else None

    def take(self, name: str) -> tuple[int, Sample]:
        """Remove the sample with this id; return it with its offset. It is held out again when it comes back.

        Raise KeyError where it is not kept.
        """
        kept = self._remove(name)
        self._taken.add(name)
        return kept.offset, _unpacked(kept)

    def after_batch(self, record: BatchRecord) -> None:
        """Keep what was held out of a batch, and count what was learned of it."""
        if not self._share:
            return
        learned = frozenset(record.result.learned)
        placed = list(zip(record.batch.offsets, record.batch.samples, strict=True))
        for offset, sample in placed:
            if offset in learned and sample.label is not None and self._learned[sample.label] < FIRST_LEARNED:
                self._learned[sample.label] += 1
        self._keep([(at, each) for at, each in placed if at in record.held_out and each.id not in self._kept])

    def purge(self, ids: Collection[str]) -> int:
        """Remove the samples with these ids; return how many there were."""
        self._taken.difference_update(ids)
        found = [name for name in ids if name in self._kept]
        for name in found:
            self._remove(name)
        return len(found)

    def forget_class(self, label: str) -> int:
        """Remove the samples of a class, and its name; return how many samples there were."""
        self._learned.pop(label, None)
        return self.purge([name for name, kept in self._kept.items() if kept.sample.label == label])

    def state_dict(self) -> State:
        """Return the samples: facts as JSON, and compressed pixels (one flat uint8 array)."""
        if not self._share:
            return {}
        kept = list(self._kept.values())
        return {
            "limit": self._limit,
            "learned": dict(self._learned),
            "taken": sorted(self._taken),
            "facts": [json.dumps(_facts(each)) for each in kept],
            "sizes": np.array([len(each.pixels) for each in kept], np.int64),
            "pixels": np.frombuffer(b"".join(each.pixels for each in kept), np.uint8),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the store that returned `state`; one that holds nothing out stays empty."""
        self._kept, self._bytes, start = {}, 0, 0
        self.version += 1
        if not self._share:
            return
        self._limit = min(self._share, state.get("limit", self._share))
        self._learned, self._taken = Counter(state.get("learned", {})), set(state.get("taken", ()))
        pixels = np.asarray(state.get("pixels", ()), np.uint8).tobytes()
        for facts, size in zip(state.get("facts", ()), state.get("sizes", ()), strict=True):
            self._add(_with_pixels(json.loads(facts), pixels[start : start + int(size)]))
            start += int(size)

    def _is_held_out(self, sample: Sample, learned: int) -> bool:
        """Return whether a sample is held out, after so many of its class were learned."""
        known = sample.id in self._kept or sample.id in self._taken
        return known or (learned >= FIRST_LEARNED and self._draw(sample.id) < self._limit)

    def _draw(self, name: str) -> float:
        """Return the number in [0, 1) that belongs to an id."""
        text = name.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, key=self._key, person=b"hold-out", digest_size=8).digest()
        return (int.from_bytes(digest) >> 11) / 2**53

    def _keep(self, held_out: Sequence[tuple[int, Sample]]) -> None:
        if not held_out:
            return
        packed = self._packed([sample for _, sample in held_out])
        for (offset, sample), pixels in zip(held_out, packed, strict=True):
            bare = Sample(sample.id, NO_PIXELS, sample.label, sample.subject, sample.domain, sample.privacy)
            self._add(_Kept(bare, offset, self._draw(sample.id), pixels))
        while len(self._kept) > self._max_samples or self._bytes > MAX_PIXEL_BYTES:
            largest = max(self._kept.values(), key=lambda each: each.draw)
            self._limit = min(self._limit, self._remove(largest.sample.id).draw)

    def _packed(self, samples: Sequence[Sample]) -> list[PngBytes]:
        """Return the pixels of each sample, whichever rank has them."""
        own = [to_png(self._scaled(each.image)) for each in samples if not isinstance(each, RemoteSample)]
        if self._group is None:
            return own
        of_rank = [iter(each) for each in self._group.all_gather_object(own)]
        here = self._group.rank
        return [next(of_rank[each.rank if isinstance(each, RemoteSample) else here]) for each in samples]

    def _scaled(self, image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        if self._side is None or min(height, width) <= self._side:
            return image
        factor = self._side / min(height, width)
        size = (max(self._side, round(width * factor)), max(self._side, round(height * factor)))
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    def _add(self, kept: _Kept) -> None:
        self._kept[kept.sample.id] = kept
        self._taken.discard(kept.sample.id)
        self._bytes += len(kept.pixels)
        self.version += 1

    def _remove(self, name: str) -> _Kept:
        kept = self._kept.pop(name)
        self._bytes -= len(kept.pixels)
        self.version += 1
        return kept


def _unpacked(kept: _Kept) -> Sample:
    return replace(kept.sample, image=from_png(kept.pixels))


def _facts(kept: _Kept) -> list[Any]:
    sample = kept.sample
    names = [sample.id, sample.label, sample.subject, sample.domain, sample.privacy]
    return [*names, kept.offset, kept.draw]


def _with_pixels(facts: list[Any], pixels: PngBytes) -> _Kept:
    name, label, subject, domain, privacy, offset, draw = facts
    return _Kept(Sample(name, NO_PIXELS, label, subject, domain, privacy), offset, draw, pixels)

"""A batch together with samples of earlier batches whose labels have come."""

from __future__ import annotations

from dataclasses import dataclass

from streamcl.events import Batch


@dataclass(frozen=True, slots=True, eq=False)
class MergedBatch(Batch):
    """A batch, preceded by samples of earlier batches. Its offsets and end are those of the stream.

    earlier: the offset of each of the first `len(earlier)` samples.
    """

    earlier: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The offset of the first record after this batch."""
        return self.offset + len(self.samples) - len(self.earlier) + len(self.rejected)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The offset of each sample, those of earlier batches first."""
        own = Batch(self.offset, self.samples[len(self.earlier) :], self.rejected)
        return (*self.earlier, *own.offsets)

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches of half the samples each; rejected records keep their places.

        >>> from streamcl.events import NO_PIXELS, Sample
        >>> samples = tuple(Sample(name, NO_PIXELS, "ant") for name in "abcd")
        >>> merged = MergedBatch(10, samples, earlier=(3, 5, 7))
        >>> merged.offsets, merged.end
        ((3, 5, 7, 10), 11)
        >>> [(half.offsets, half.end) for half in merged.halves()]
        [((3, 5), 10), ((7, 10), 11)]
        """
        half = len(self.samples) // 2
        cut = self.offset if half <= len(self.earlier) else self.offsets[half]
        early = tuple(record for record in self.rejected if record.offset < cut)
        late = tuple(record for record in self.rejected if record.offset >= cut)
        return (
            MergedBatch(self.offset, self.samples[:half], early, earlier=self.earlier[:half]),
            MergedBatch(cut, self.samples[half:], late, earlier=self.earlier[half:]),
        )

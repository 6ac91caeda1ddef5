"""A sample of which another process has the pixels."""

from __future__ import annotations

from dataclasses import dataclass

from streamcl.events import NO_PIXELS, Sample


@dataclass(frozen=True, slots=True, eq=False)
class RemoteSample(Sample):
    """A sample whose pixels the process `rank` holds (see `process_group`); its image has none here."""

    rank: int = 0

    @classmethod
    def of(cls, sample: Sample, rank: int) -> RemoteSample:
        """Return the same sample without its pixels."""
        names = (sample.label, sample.subject, sample.domain, sample.privacy)
        return cls(sample.id, NO_PIXELS, *names, rank=rank)

"""Groups the records of a stream into mini-batches with dense offsets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamcl.events import Batch, RejectedRecord, Sample


def batches(records: Iterable[Sample | RejectedRecord], size: int, offset: int = 0) -> Iterator[Batch]:
    """Batches of `size` records, the last one shorter; the first record has the given offset."""
    samples: list[Sample] = []
    refused: list[RejectedRecord] = []
    for record in records:
        if isinstance(record, Sample):
            samples.append(record)
        else:
            refused.append(record)
        if len(samples) + len(refused) == size:
            batch = Batch(offset, tuple(samples), tuple(refused))
            yield batch
            offset = batch.end
            samples, refused = [], []
    if samples or refused:
        yield Batch(offset, tuple(samples), tuple(refused))

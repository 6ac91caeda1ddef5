"""Which samples of a stream an audit is about: what a receipt erased, and what the run has kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, Sample, Selector
from streamcl.forgetting.lineage import LINEAGE, Lineage
from streamcl.forgetting.receipts.receipt import read_chain

Item = TypeVar("Item")
PORTION = 64  # samples that go through the backbone together


class Scope:
    """What a receipt says was forgotten: samples by salted hashes of their ids, up to an offset."""

    def __init__(self, receipt: Mapping[str, Any], fingerprint: Callable[[str, str], str]) -> None:
        self.end = int(receipt["offset"])
        self._ids = frozenset(receipt["scope"]["ids"])
        self._fingerprint = fingerprint

    def holds(self, offset: int, sample: Sample) -> bool:
        """Whether the sample was forgotten then; one without a label was never learned."""
        known = offset < self.end and sample.label is not None
        return known and self._fingerprint("sample", sample.id) in self._ids


def receipt_of(folder: Path, request: str | None) -> dict[str, Any]:
    """The newest receipt of an erasure, or this request's. Raises ForgettingError where there is none."""
    done = [content for _, content in read_chain(folder) if content["outcome"] == "done"]
    chosen = [content for content in done if request in {None, content["request"]}]
    if not chosen:
        known = ", ".join(content["request"] for content in done[-5:])
        of = f" by the request {request!r:.100}" if request else ""
        raise ForgettingError(
            f"{folder} has no receipt of an erasure{of}",
            hint=f"carried out: {known}" if known else "nothing has been forgotten in this run",
        )
    return chosen[-1]


def kept_by(folder: Path) -> dict[int, str]:
    """Which offsets the model has learned and not forgotten, with the label that each was learned with."""
    if not (folder / LINEAGE).exists():
        raise ForgettingError(f"{folder} has no {LINEAGE}, so what it has learned is not known")
    everything = ForgetRequest("audit", "samples", 0, selector=Selector(offsets=(0, 2**62)))
    with closing(Lineage(folder / LINEAGE)) as lineage:
        chunks = lineage.chunks(everything, learned=True)
        return {trace.offset: str(trace.label) for chunk in chunks for trace in chunk}


def placed(batch: Batch) -> Iterator[tuple[int, Sample]]:
    """The samples of a batch with their offsets."""
    return zip(batch.offsets, batch.samples, strict=True)


def portions(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items, a few at a time."""
    for start in range(0, len(items), PORTION):
        yield items[start : start + PORTION]

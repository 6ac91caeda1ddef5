"""The places outside the learner where the data could be, and what an erasure did in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.events import Kind
from streamcl.forgetting.methods.protocol import DataLocation
from streamcl.forgetting.receipts.receipt import PurgedCheckpoint

IN_LEARNER = (
    *("head statistics", "adapters", "optimizer moments", "importance", "hard buffer"),
    *("prototypes", "calibration"),
)
ON_DISK = (
    *("shift detector", "metrics", "prediction log, quarantine and events", "gallery", "report and summary"),
    *("exports", "caches", "checkpoints", "ledger", "lineage", "metrics services", "source data"),
)
NAMES = frozenset({*IN_LEARNER, *ON_DISK, "kept statistics"})
"""What every receipt of an erasure must say something of; methods and runs may have more."""


def in_learner(state: Mapping[str, Any], reported: Sequence[DataLocation]) -> tuple[DataLocation, ...]:
    """Return what a method reported, and what no method knows of. state: the learner's before."""
    kept = "calibration" in state or any("calibration" in part for part in _parts(state))
    what = "running losses of six factors; no sample can be told from them" if kept else "there is none"
    calibration = DataLocation("calibration", "remains" if kept else "not affected", what)
    beside = "none are kept beside the head's statistics, which class means are part of"
    prototypes = DataLocation("prototypes", "not affected", beside)
    named = {location.name for location in reported}
    return (*reported, *(each for each in (prototypes, calibration) if each.name not in named))


def _parts(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for part in state.values() if isinstance(part, Mapping)]


def on_disk(
    kind: Kind, checkpoint: PurgedCheckpoint | None, changed: int, derived: Sequence[str], rows: int
) -> tuple[DataLocation, ...]:
    """Return one entry a location. changed: log records edited; derived: files removed; rows: lineage."""
    return (
        DataLocation(
            "shift detector",
            "not affected",
            "keeps a few figures of batches, of which no sample can be told; mean features begin anew",
        ),
        DataLocation(
            "metrics", "erased", "the class's name; its counts stay under another name, aggregates are kept"
        )
        if kind == "class"
        else DataLocation(
            "metrics", "remains", "aggregate counts include the samples' predictions; no ids, no pixels"
        ),
        DataLocation(
            "prediction log, quarantine and events",
            "erased" if changed else "not affected",
            f"{changed} records were emptied; their places stay",
        ),
        DataLocation("gallery", "erased", "thumbnails of the samples, where there were any"),
        _removed("report and summary", derived, ("summary.json", "report.html")),
        _removed("exports", derived, ("adapter",), "; copies made elsewhere are not reachable"),
        DataLocation(
            "caches", "not affected", "the run keeps no features and no images on disk beside the gallery"
        ),
        DataLocation("checkpoints", "erased", f"older ones removed: {checkpoint.removed}")
        if checkpoint
        else DataLocation("checkpoints", "not affected", "this run keeps none"),
        DataLocation(
            "ledger", "erased", "what the request said is overwritten; salted hashes and times stay"
        ),
        DataLocation("lineage", "erased", f"{rows} rows"),
        DataLocation(
            "metrics services",
            "not reachable",
            "figures sent to TensorBoard or MLflow hold no ids; they stay",
        ),
        DataLocation("source data", "not reachable", "the stream's own files are not streamcl's to change"),
    )


def _removed(location: str, derived: Sequence[str], names: Sequence[str], more: str = "") -> DataLocation:
    found = [name for name in names if name in derived]
    if not found:
        return DataLocation(location, "not affected", f"there were none{more}")
    return DataLocation(location, "erased", f"{', '.join(found)} removed{more}")

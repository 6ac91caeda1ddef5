"""The places outside the learner where the data could be, and what an erasure did in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from streamcl.forgetting.methods.protocol import DataLocation

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


def also_in_learner(state: Mapping[str, Any], told: Sequence[DataLocation]) -> list[dict[str, Any]]:
    """What a method said of the learner, and what no method has to know of. state: the learner's before."""
    kept = "calibration" in state or any("calibration" in part for part in _parts(state))
    what = "running losses of six factors; no sample can be told from them" if kept else "there is none"
    calibration = DataLocation("calibration", "remains" if kept else "not affected", what)
    beside = "none are kept beside the head's statistics, which class means are part of"
    prototypes = DataLocation("prototypes", "not affected", beside)
    named = {place.name for place in told}
    return [asdict(row) for row in (*told, prototypes, calibration) if row in told or row.name not in named]


def _parts(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for part in state.values() if isinstance(part, Mapping)]


def on_disk(
    receipt: Mapping[str, Any], changed: int, derived: Sequence[str], traces: int
) -> list[dict[str, Any]]:
    """One row a place. changed: records edited in the logs; derived: files removed; traces: lineage rows."""
    of_class = receipt["kind"] == "class"
    checkpoint = receipt["checkpoint"]
    rows = [
        DataLocation(
            "shift detector",
            "not affected",
            "keeps a few figures of batches, of which no sample can be told; mean features begin anew",
        ),
        DataLocation(
            "metrics", "erased", "the class's name; its counts stay under another name, aggregates are kept"
        )
        if of_class
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
        DataLocation("checkpoints", "erased", f"older ones removed: {checkpoint['removed']}")
        if checkpoint
        else DataLocation("checkpoints", "not affected", "this run keeps none"),
        DataLocation(
            "ledger", "erased", "what the request said is overwritten; salted hashes and times stay"
        ),
        DataLocation("lineage", "erased", f"{traces} rows"),
        DataLocation(
            "metrics services",
            "not reachable",
            "figures sent to TensorBoard or MLflow hold no ids; they stay",
        ),
        DataLocation("source data", "not reachable", "the stream's own files are not streamcl's to change"),
    ]
    return [asdict(row) for row in rows]


def _removed(place: str, derived: Sequence[str], names: Sequence[str], more: str = "") -> DataLocation:
    found = [name for name in names if name in derived]
    if not found:
        return DataLocation(place, "not affected", f"there were none{more}")
    return DataLocation(place, "erased", f"{', '.join(found)} removed{more}")

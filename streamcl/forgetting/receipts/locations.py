"""Where the data of a request could be, location by location, with the outcome of the erasure there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.forgetting.methods.protocol import DataLocation, not_affected
from streamcl.forgetting.receipts.receipt import PurgedCheckpoint


def learner_locations(
    state: Mapping[str, Any], reported: Sequence[DataLocation], *, recalibrated: bool
) -> tuple[DataLocation, ...]:
    """Return the locations that a method reported, and those that no method knows.

    Args:
        state: the learner's before the erasure.
        reported: by the method.
        recalibrated: whether confidences depend on remaining weights and held-out samples alone.
    """
    calibration = not_affected(("calibration",), "there is none")
    if _has_calibration(state):
        calibration = (_recalibrated() if recalibrated else _running_calibration(),)
    why = "none are stored beside the head's statistics, which class means are part of"
    named = {location.name for location in reported}
    others = (*not_affected(("prototypes",), why), *calibration)
    return (*reported, *(each for each in others if each.name not in named))


def _has_calibration(state: Mapping[str, Any]) -> bool:
    parts = [part for part in state.values() if isinstance(part, Mapping)]
    return "calibration" in state or any(_has_calibration(part) for part in parts)


def _recalibrated() -> DataLocation:
    why = "fitted anew, by the weights after the erasure, to held-out samples, which are never learned"
    return DataLocation("calibration", "erased", why)


def _running_calibration() -> DataLocation:
    why = (
        "eight numbers that follow how sure predictions were and how often right, which reveal no sample: "
        "too few samples are held out to fit confidences to"
    )
    return DataLocation("calibration", "remains", why)


def disk_locations(
    named: bool,
    checkpoint: PurgedCheckpoint | None,
    changed: int,
    derived: Sequence[str],
    *,
    rows: int,
    stored_at: str | None = None,
    requests: int = 1,
) -> tuple[DataLocation, ...]:
    """Return one entry a location.

    Args:
        named: whether a class, a domain or a held-out part has lost its name with its samples.
        checkpoint: the one that the erasure is committed in; None where the run keeps none.
        changed: log records that were edited.
        derived: files that were removed.
        rows: of the lineage.
        stored_at: where the records came from.
        requests: how many were carried out at once.
    """
    origin = "the stream's own files are not streamcl's to change"
    if stored_at is not None:
        origin = f"{stored_at}; {origin}"
    metrics = DataLocation(
        "metrics", "remains", "aggregate counts include the samples' predictions; no ids, no pixels"
    )
    if named:
        why = (
            "names of classes, domains and held-out parts of which nothing is left, figures of the "
            "latter two as well; a class's counts stay under another name, aggregates are kept"
        )
        metrics = DataLocation("metrics", "erased", why)
    checkpoints = not_affected(("checkpoints",), "this run keeps none")
    if checkpoint is not None:
        checkpoints = (DataLocation("checkpoints", "erased", f"older ones removed: {checkpoint.removed}"),)
    return (
        *not_affected(
            ("shift detector",),
            "keeps a few figures of batches, which reveal no sample; mean features and labels begin anew",
        ),
        metrics,
        DataLocation(
            "prediction log, quarantine and events",
            "erased" if changed else "not affected",
            f"{changed} records were emptied{_together(requests)}; their places stay",
        ),
        DataLocation("thumbnails", "erased", "those of the samples, where there were any"),
        _removed("report and summary", derived, ("summary.json", "report.html")),
        _removed("exports", derived, ("adapter",), "; copies made elsewhere are not reachable"),
        *not_affected(
            ("caches",), "the run keeps no features, and no images on disk other than the places named here"
        ),
        *checkpoints,
        DataLocation("ledger", "erased", "what the request said is overwritten; keyed hashes and times stay"),
        DataLocation("lineage", "erased", f"{rows} rows"),
        DataLocation(
            "metrics services",
            "not reachable",
            "figures sent to MLflow or another service hold no ids; they stay, with names of held-out parts",
        ),
        DataLocation("source data", "not reachable", origin),
    )


def with_spool_location(
    locations: Sequence[DataLocation], erased: int, description: str, *, requests: int = 1
) -> tuple[DataLocation, ...]:
    """Return the locations of a run whose source has a spool.

    Args:
        locations: those without the spool.
        erased: records that were taken out of it.
        description: what the spool keeps, and for how long.
        requests: how many were carried out at once.
    """
    explanation = (
        f"{description}; {erased} records were emptied{_together(requests)}, and their places stay; what is "
        "forgotten and comes again is emptied once it was read"
    )
    spool = DataLocation("spool", "erased" if erased else "not affected", explanation)
    return (*locations, spool)


def _together(requests: int) -> str:
    return "" if requests == 1 else f", for {requests} requests together"


def _removed(location: str, derived: Sequence[str], names: Sequence[str], more: str = "") -> DataLocation:
    found = [name for name in names if name in derived]
    if not found:
        return DataLocation(location, "not affected", f"there were none{more}")
    return DataLocation(location, "erased", f"{', '.join(found)} removed{more}")

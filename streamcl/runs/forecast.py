"""The method, guarantee, cost and remains of a request to forget in a run, before it is submitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from streamcl.config.options.run import RunConfig
from streamcl.errors import StreamclError
from streamcl.events import ForgetRequest
from streamcl.factory.backbone import BackboneFactory, build_vit
from streamcl.factory.forgetting import build_methods
from streamcl.factory.source import build_source
from streamcl.forgetting.erasure.erasure_plan import request_replay
from streamcl.forgetting.erasure.retrieval import Retrieval, retain_source
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.ledger.tombstones import Tombstones
from streamcl.forgetting.lineage.feature_probe import FeatureProbe, ProbeHistory
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.lineage.selection import Selection
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval, needs_samples
from streamcl.forgetting.methods.protocol import Context, DataLocation, ForgettingMethod, RequestScope
from streamcl.forgetting.methods.replay_from_checkpoint import ReplayFromCheckpoint
from streamcl.forgetting.methods.select import select_method
from streamcl.forgetting.receipts import locations
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.forgetting.receipts.uncovered import uncovered_locations
from streamcl.forgetting.request_replay import RequestReplay
from streamcl.forgetting.statistics.store import STATISTICS, By, StatisticsSelection, StatisticsStore
from streamcl.nn.probe_features import probe_features
from streamcl.protocols import Source
from streamcl.requests.terms import Guarantee
from streamcl.runs.checkpoint_replay import CheckpointReplay
from streamcl.runs.learner import load_run
from streamcl.runs.summary import library_versions
from streamcl.sinks.jsonl import ids_in
from streamcl.sources.retention import stored_at
from streamcl.storage.json_lines import json_object

SAMPLES_TIMED = 32
"""Samples that are derived to measure how long one takes."""
LOG_END = 1 << 16  # bytes at the end of a log in which the newest line of a kind is looked for
REPAIRS = 40
"""The cost from which on a method trains, for as long as only an erasure by it can tell."""
IN_THE_MODEL: Mapping[Guarantee, str] = {
    "exact": "nothing of the samples, beyond rounding",
    "bounded": "an influence of the samples that is limited; the receipt will state the limit",
    "approximate": "traces in weights that many samples share; streamcl audit measures them",
}


@dataclass(frozen=True, slots=True)
class ErasureForecast:
    """The expected course of a request.

    method, guarantee, reason: what would be chosen, and why nothing stronger. learned, passed: how many
    samples it reaches. seconds: expected, by what takes them. unknown: what is not known beforehand; None
    where all can. remaining: the places where something stays, and why.
    """

    method: str
    guarantee: Guarantee
    reason: str
    learned: int
    passed: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    unknown: str | None = None
    remaining: tuple[DataLocation, ...] = ()


def forecast_request(
    folder: Path, request: ForgetRequest, *, vit: BackboneFactory = build_vit
) -> ErasureForecast:
    """Return what a request would come to, by the newest checkpoint; nothing is changed or submitted.

    A process may work on the run meanwhile. Raise ForgettingError where every method would refuse, with the
    reasons, CheckpointError where the run has no checkpoint.
    """
    loaded = load_run(folder, vit=vit)
    learner, config = loaded.learner, loaded.config
    probe = FeatureProbe.of(probe_features(loaded.backbone), library_versions())
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / LEDGER))
        lineage = stack.enter_context(closing(Lineage(folder / LINEAGE)))
        source = stack.enter_context(closing(build_source(config)))
        rows = stack.enter_context(closing(lineage.select(request)))
        tombstones = Tombstones(ledger)
        source.load_state_dict(loaded.state["source"])  # a live source fetches what it has delivered
        retrieval = Retrieval(request, source, lineage.content)
        scope = RequestScope(
            request,
            learned=rows.learned,
            passed=rows.passed,
            forgotten_before=request.label is not None and tombstones.are_set("class", request.label),
            chunks=lambda: rows.chunks(learned=True),
        )
        context = Context(
            learner,
            scope,
            retrieval.samples,
            unavailable=retrieval.unavailable,
            changed_features=ProbeHistory(ledger, probe).difference_from_learned(scope.chunks()),
            statistics=_statistics(config, folder, lineage, rows, stack),
            others=retain_source(source, lineage, tombstones.drop_erased),
            replay=request_replay(
                CheckpointReplay(config, source, learner, loaded.checkpoints),
                rows,
                lineage,
                tombstones,
                loaded.checkpoints.newest_offset(),
            ),
        )
        method, reason = select_method(build_methods(), request, context)
        remaining = _remaining(folder, context, source, method.guarantee)
        seconds, unknown = _seconds(folder, context, rows, method)  # a rehearsal changes the copy
        return ErasureForecast(
            method.name,
            method.guarantee,
            reason,
            rows.learned,
            rows.passed,
            seconds,
            unknown,
            remaining,
        )


def _statistics(
    config: RunConfig, folder: Path, lineage: Lineage, rows: Selection, stack: ExitStack
) -> StatisticsSelection | None:
    """Return the stored statistics that a request reaches; None where the run stores none."""
    if config.forgetting.keep_statistics is None or not (folder / STATISTICS).is_file():
        return None
    by: By = "class" if config.forgetting.keep_statistics == "per_class" else "subject"
    store = StatisticsStore(folder / STATISTICS, by, digest=lineage.digest)
    stack.callback(store.file.close)
    return store.select(rows.cohorts(by))


def _seconds(
    folder: Path, context: Context, rows: Selection, method: ForgettingMethod
) -> tuple[dict[str, float], str | None]:
    """Return the expected seconds by what takes them, and what is not known."""
    found = {"logs": _timed(lambda: [list(ids_in(path)) for path in sorted(folder.glob("*.jsonl"))])}
    if (commit := _newest_figure(folder / "metrics.jsonl", "checkpoint", "seconds")) is not None:
        found["checkpoint"] = commit
    if not context.scope.learned:
        return found, None
    if method.name == ReplayFromCheckpoint.name and context.replay is not None:
        return _replay_seconds(folder, context.replay, found)
    if method.cost >= REPAIRS:
        return _repair_seconds(folder, context, method, found)
    found |= _training_seconds(context, method)
    if needs_samples(context) and context.capabilities.statistics is not None:
        samples = next(rows.chunks(learned=True, size=SAMPLES_TIMED))
        try:
            found["samples derived again"] = (
                _derivation(context, samples) * context.scope.learned / len(samples)
            )
        except StreamclError as error:
            return found, f"how long the samples take: {error}"
    return found, None


def _training_seconds(context: Context, method: ForgettingMethod) -> dict[str, float]:
    """Return the seconds in which weights are trained again from stored features; none where they are not."""
    retrained = context.capabilities.retrained
    if retrained is None or method.name != ClosedFormRemoval.name:
        return {}
    seconds = retrained.seconds(context.scope.offsets)
    return {"adapters trained again": seconds} if seconds else {}


def _repair_seconds(
    folder: Path, context: Context, method: ForgettingMethod, found: dict[str, float]
) -> tuple[dict[str, float], str | None]:
    """Add the seconds of earlier erasures by a method that trains, or of a rehearsal on the loaded copy."""
    before = [r for _, r in read_receipts(folder) if r.method == method.name and r.started is not None]
    if before:
        seconds = median(r.completed - (r.started or 0.0) for r in before)
        return {**found, "erasures by it before, median": seconds}, None
    try:
        seconds = _timed(lambda: method.erase(context.scope.request, context))
    except StreamclError as error:
        return found, f"how long {method.name} takes: it failed when it was tried on a copy: {error}"
    return {**found, f"{method.name}, tried on a copy": seconds}, None


def _replay_seconds(
    folder: Path, replay: RequestReplay, found: dict[str, float]
) -> tuple[dict[str, float], str | None]:
    """Add the seconds of a replay, at the pace at which the run has learned last."""
    records = replay.end - (replay.start or 0)
    pace = _newest_figure(folder / "metrics.jsonl", "step", "images_per_s")
    if pace is None:
        return found, f"how long {records} records take: the run has logged no pace of learning yet"
    return {**found, f"{records} records learned again": records / pace}, None


def _derivation(context: Context, rows: Sequence[LineageRow]) -> float:
    """Return the seconds in which samples are retrieved, and their share is derived."""
    statistics = context.capabilities.statistics
    assert statistics is not None
    derive = statistics.of if statistics.by_rows is None else statistics.by_rows.rows_of
    return _timed(lambda: derive(context.samples(rows)))


def _newest_figure(log: Path, kind: str, name: str) -> float | None:
    """Return a figure of the newest record of a kind in a log of metrics; None where there is none."""
    if not log.is_file():
        return None
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - LOG_END))
        found = [json_object(line) or {} for line in lines]
    figures = (each.get(name) for each in reversed(found) if each.get("kind") == kind)
    return next((float(figure) for figure in figures if figure is not None), None)


def _remaining(
    folder: Path, context: Context, source: Source, guarantee: Guarantee
) -> tuple[DataLocation, ...]:
    at = stored_at(source)
    on_disk = locations.disk_locations(False, None, 0, (), rows=context.scope.passed, stored_at=at)
    calibration = context.capabilities.calibration
    fitted = calibration is not None and calibration.is_fitted
    places = (
        *locations.learner_locations(context.learner.state_dict(), (), recalibrated=fitted),
        *on_disk,
        *uncovered_locations(folder),
    )
    left = tuple(each for each in places if each.status in {"remains", "not reachable"})
    return (DataLocation("model", "remains", IN_THE_MODEL[guarantee]), *left)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began

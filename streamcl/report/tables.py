"""The report's tables: shifts, accuracy matrix, classes, confusion, thumbnails, requests to forget."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streamcl.errors import ForgettingError
from streamcl.forgetting.receipts.archive import read_audits, read_receipts
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.report.reading import RunLog
from streamcl.report.series import PredictionSeries, as_float, as_int, submapping

# what fits a page of 1,100 pixels without scrolling
MAX_ROWS = 24
"""Rows of the accuracy matrix that are shown; more are thinned out evenly."""
MAX_COLUMNS = 24
MAX_CLASSES = 30
"""Classes up to which the confusion matrix is shown; beyond, the largest confusions are listed."""
MAX_BARS = 60
MAX_SHIFTS = 200
MAX_THUMBNAIL_GROUPS = 12
MAX_REQUESTS = 200
MAX_ATTENTION = 12


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """A true shift, its detection, or both; verdict: found, missed, false alarm or detected."""

    true: int | None
    detected: int | None
    reason: str
    verdict: str

    @property
    def delay(self) -> int | None:
        """Number of samples from the shift to its detection."""
        return None if self.true is None or self.detected is None else self.detected - self.true


@dataclass(frozen=True, slots=True)
class Bar:
    """Accuracy, held-out accuracy where known, and number of samples of a class or a domain."""

    name: str
    accuracy: float
    held_out: float | None
    samples: int | None


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """A prediction that is worth a look. why: "least stable" or "most novel"."""

    why: str
    record: str
    predicted: str | None
    label: str | None
    confidence: float | None
    stability: float | None
    novelty: float | None


@dataclass(frozen=True, slots=True)
class HeatTable:
    """A table of shares: name, cells and a description of each cell by row; None is an empty cell."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None], Sequence[str]]]


def shift_rows(run: RunLog, shifts: Mapping[str, Any]) -> list[ShiftRow]:
    """Return true and detected shifts in stream order; without true ones the verdict is "detected"."""
    reasons = {
        as_int(event.get("offset")): str(event.get("reason") or "") for event in run.events.get("shift", [])
    }
    rows = []
    for true, detected in shifts.get("matches") or []:
        verdict = "missed" if detected is None else "found"
        rows.append(ShiftRow(true, detected, reasons.get(detected, ""), verdict))
    unmatched = "false alarm" if shifts.get("true") else "detected"
    for offset in shifts.get("false_offsets") or []:
        rows.append(ShiftRow(None, offset, reasons.get(offset, ""), unmatched))
    return sorted(rows, key=lambda row: (row.true if row.detected is None else row.detected) or 0)


def attention_rows(predictions: PredictionSeries) -> list[AttentionRow]:
    """Return the newest predictions that are worth a look: the least stable, then the most novel ones."""
    chosen = [("least stable", each) for each in predictions.by_instability(MAX_ATTENTION // 2)]
    chosen += [("most novel", each) for each in predictions.by_novelty(MAX_ATTENTION // 2)]
    return [
        AttentionRow(
            why,
            str(record.get("id")),
            _name(record.get("predicted")),
            _name(record.get("label")),
            *(as_float(record.get(field)) for field in ("confidence", "stability", "novelty")),
        )
        for why, record in chosen
    ]


def _name(value: Any) -> str | None:
    return None if value is None else str(value)


def accuracy_matrix(matrix: Mapping[str, Any]) -> HeatTable | None:
    """Return held-out accuracy by evaluation (rows) and part (columns), thinned where it is large.

    None where there is one part only, which the chart over the stream shows.
    """
    offsets, parts, accuracy = (list(matrix.get(key) or []) for key in ("offsets", "parts", "accuracy"))
    if not offsets or len(parts) < 2:
        return None
    rows, columns = evenly_spaced(len(offsets), MAX_ROWS), evenly_spaced(len(parts), MAX_COLUMNS)
    found = []
    for row in rows:
        cells = [as_float(accuracy[row][column]) for column in columns]
        words = [f"{parts[column]} at {offsets[row]:,}" for column in columns]
        found.append((f"{offsets[row]:,}", cells, words))
    return HeatTable([str(parts[column]) for column in columns], found)


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Return at most `limit` indices below `count`, evenly apart, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(place * (count - 1) / (limit - 1)) for place in range(limit)]


def bars(accuracies: Mapping[str, Any], samples: Mapping[str, Any], held_out: Mapping[str, Any]) -> list[Bar]:
    """Return a bar for each name; of more than MAX_BARS those with the lowest and highest accuracy."""
    known = {str(name): share for name, value in accuracies.items() if (share := as_float(value)) is not None}
    names = list(known)
    if len(names) > MAX_BARS:
        ranked = sorted(names, key=lambda name: known[name])
        names = ranked[: MAX_BARS // 2] + ranked[-MAX_BARS // 2 :]
    return [Bar(name, known[name], as_float(held_out.get(name)), as_int(samples.get(name))) for name in names]


def latest_per_class(run: RunLog) -> Mapping[str, Any]:
    """Return the accuracy by class of the last held-out evaluation; empty where it is not recorded."""
    return submapping(run.holdout[max(run.holdout)], "per_class") if run.holdout else {}


def confusion_matrix(predictions: PredictionSeries) -> HeatTable | None:
    """Return the share of each class's samples by prediction; None without classes or for too many."""
    labels = list(predictions.support)
    if not labels or len(labels) > MAX_CLASSES:
        return None
    other = {guess for _, guess in predictions.pairs} - set(labels)
    columns: list[str | None] = [*labels, *sorted(guess for guess in other if guess is not None)]
    columns = [*columns[: MAX_CLASSES + 4], *([None] if None in other else [])]
    rows = []
    for label in labels:
        counts = [predictions.pairs.get((label, column), 0) for column in columns]
        cells = [count / predictions.support[label] if count else None for count in counts]
        words = [
            f"{count:,} of {predictions.support[label]:,} {label} as {c}"
            for c, count in zip(columns, counts, strict=True)
        ]
        rows.append((label, cells, words))
    return HeatTable([class_name(column) for column in columns], rows)


def largest_confusions(predictions: PredictionSeries, limit: int = 20) -> list[tuple[str, str, int, float]]:
    """Return (class, prediction, count, share of the class's samples), the most frequent first."""
    mistakes = [
        (count, label, guess) for (label, guess), count in predictions.pairs.items() if label != guess
    ]
    mistakes.sort(key=lambda item: (-item[0], item[1], item[2] or ""))
    return [
        (label, class_name(other), n, n / predictions.support[label]) for n, label, other in mistakes[:limit]
    ]


def class_name(name: str | None) -> str:
    """Return the predicted class, or "(no prediction)" for None."""
    return "(no prediction)" if name is None else name


def thumbnail_groups(run: RunLog) -> list[tuple[int, list[dict[str, Any]]]]:
    """Return thumbnails by the offset of their shift, each with its picture as a data URI."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for entry in run.thumbnails:
        offset = as_int(entry.get("offset")) or 0
        label, guess = entry.get("label"), entry.get("predicted")
        group = groups.setdefault(offset, [])
        group.append(
            {
                "uri": "data:image/png;base64," + base64.b64encode(entry["png"]).decode("ascii"),
                "label": "(unlabelled)" if label is None else str(label),
                "predicted": class_name(None if guess is None else str(guess)),
                "right": None if label is None else label == guess,
                "confidence": as_float(entry.get("confidence")),
            }
        )
    return sorted(groups.items())[:MAX_THUMBNAIL_GROUPS]


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One request; page: the receipt's page relative to the report, audit: the newest verdict or ""."""

    receipt: Receipt
    page: str
    audit: str

    @property
    def kind(self) -> str:
        """The kind of request in words."""
        kinds = {"samples": "samples", "subject": "a subject", "class": "a class"}
        return kinds.get(self.receipt.kind, "unreadable")

    @property
    def good(self) -> bool:
        """Whether it was carried out and no audit failed."""
        return self.receipt.outcome == "done" and self.audit != "fail"


def request_rows(folder: Path, run: RunLog) -> list[RequestRow]:
    """Return a row for each receipt in order; damaged receipts are named in the run's notes."""
    try:
        receipts, audits = read_receipts(folder), read_audits(folder)
    except ForgettingError as error:
        run.notes.append(f"Receipts cannot be shown: {error}.")
        return []
    verdicts = {each.body["request"]: each.body["audit"]["verdict"] for each in audits}
    return [
        RequestRow(each, f"receipts/{quote(f'{path.stem}.html')}", verdicts.get(each.request, ""))
        for path, each in receipts
    ]


def relapse_sentence(run: RunLog) -> str:
    """Return the results of the relapse tests in one sentence; empty where there were none."""
    tests, relapses = run.events.get("retest", []), run.events.get("relapse", [])
    if not tests:
        return ""
    times = "once" if len(tests) == 1 else f"{len(tests):,} times"
    text = f"Erased data were tested for relapse {times}, after shifts and at the end"
    if not relapses:
        return f"{text}; none was found."
    again = sum(1 for event in relapses if event.get("again"))
    return f"{text}; {len(relapses):,} relapses were found, {again:,} of which were erased again."

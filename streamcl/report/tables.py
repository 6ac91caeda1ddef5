"""The report's tables: shifts and verdicts, the accuracy matrix, classes, confusion, thumbnails."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamcl.report.overview import inner
from streamcl.report.reading import RunLog
from streamcl.report.series import PredictionSeries, number, whole_number

MOST_ROWS = 24
"""Rows of the accuracy matrix that are shown; more are thinned out evenly."""
MOST_COLUMNS = 24
MOST_CLASSES = 30
"""Classes up to which the whole confusion matrix is shown, and beyond which its largest cells are."""
MOST_BARS = 60
MOST_SHIFTS = 200
MOST_GALLERIES = 12


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """A true shift, its detection, or both; verdict is found, missed, false alarm or detected."""

    true: int | None
    detected: int | None
    reason: str
    verdict: str

    @property
    def delay(self) -> int | None:
        """Samples from the shift to its detection."""
        return None if self.true is None or self.detected is None else self.detected - self.true


@dataclass(frozen=True, slots=True)
class Bar:
    """A class or a domain: its accuracy, its held-out accuracy where known, and how many samples it had."""

    name: str
    accuracy: float
    held: float | None
    samples: int | None


@dataclass(frozen=True, slots=True)
class Heat:
    """A table of shares: each row's name, cells, and words for each cell. None is an empty cell."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None], Sequence[str]]]


def shift_rows(run: RunLog, shifts: Mapping[str, Any]) -> list[ShiftRow]:
    """True and detected shifts in the order of the stream. Where no truth is known nothing is judged."""
    reasons = {
        whole_number(event.get("offset")): str(event.get("reason") or "")
        for event in run.events.get("shift", [])
    }
    rows = []
    for true, detected in shifts.get("matches") or []:
        verdict = "missed" if detected is None else "found"
        rows.append(ShiftRow(true, detected, reasons.get(detected, ""), verdict))
    unmatched = "false alarm" if shifts.get("true") else "detected"
    for offset in shifts.get("false_offsets") or []:
        rows.append(ShiftRow(None, offset, reasons.get(offset, ""), unmatched))
    return sorted(rows, key=lambda row: (row.true if row.detected is None else row.detected) or 0)


def accuracy_matrix(matrix: Mapping[str, Any]) -> Heat | None:
    """Held-out accuracy, a row an evaluation, a column a part; thinned where it is large."""
    offsets, parts, accuracy = (list(matrix.get(key) or []) for key in ("offsets", "parts", "accuracy"))
    if not offsets or not parts:
        return None
    rows, columns = _spread(len(offsets), MOST_ROWS), _spread(len(parts), MOST_COLUMNS)
    found = []
    for row in rows:
        cells = [number(accuracy[row][column]) for column in columns]
        words = [f"{parts[column]} at {offsets[row]:,}" for column in columns]
        found.append((f"{offsets[row]:,}", cells, words))
    return Heat([str(parts[column]) for column in columns], found)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices, evenly apart, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def bars(accuracies: Mapping[str, Any], samples: Mapping[str, Any], held: Mapping[str, Any]) -> list[Bar]:
    """One for each name, in order; of very many, those with the lowest and the highest accuracy."""
    known = {str(name): share for name, value in accuracies.items() if (share := number(value)) is not None}
    names = list(known)
    if len(names) > MOST_BARS:
        ranked = sorted(names, key=lambda name: known[name])
        names = ranked[: MOST_BARS // 2] + ranked[-MOST_BARS // 2 :]
    return [Bar(name, known[name], number(held.get(name)), whole_number(samples.get(name))) for name in names]


def latest_per_class(run: RunLog) -> Mapping[str, Any]:
    """Each class's accuracy at the last held-out evaluation, where it was written."""
    return inner(run.holdout[max(run.holdout)], "per_class") if run.holdout else {}


def confusion(guesses: PredictionSeries) -> Heat | None:
    """Shares of each true class's samples by what they were taken for; None for too many classes, or none."""
    labels = list(guesses.support)
    if not labels or len(labels) > MOST_CLASSES:
        return None
    other = {guess for _, guess in guesses.pairs} - set(labels)
    columns: list[str | None] = [*labels, *sorted(guess for guess in other if guess is not None)]
    columns = [*columns[: MOST_CLASSES + 4], *([None] if None in other else [])]
    rows = []
    for label in labels:
        counts = [guesses.pairs.get((label, column), 0) for column in columns]
        cells = [count / guesses.support[label] if count else None for count in counts]
        words = [
            f"{count:,} of {guesses.support[label]:,} {label} as {c}"
            for c, count in zip(columns, counts, strict=True)
        ]
        rows.append((label, cells, words))
    return Heat([name_of(column) for column in columns], rows)


def most_confused(guesses: PredictionSeries, most: int = 20) -> list[tuple[str, str, int, float]]:
    """(true class, taken for, how often, share of the true class's samples), the most frequent first."""
    mistakes = [(count, label, guess) for (label, guess), count in guesses.pairs.items() if label != guess]
    mistakes.sort(key=lambda item: (-item[0], item[1], item[2] or ""))
    return [
        (label, name_of(guess), count, count / guesses.support[label])
        for count, label, guess in mistakes[:most]
    ]


def name_of(guess: str | None) -> str:
    """A guess's class, or words for none."""
    return "(no guess)" if guess is None else guess


def galleries(run: RunLog) -> list[tuple[int, list[dict[str, Any]]]]:
    """Thumbnails grouped by the shift after which they came, each with its picture as a data URI."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for entry in run.gallery:
        offset = whole_number(entry.get("offset")) or 0
        label, guess = entry.get("label"), entry.get("predicted")
        group = groups.setdefault(offset, [])
        group.append(
            {
                "uri": "data:image/png;base64," + base64.b64encode(entry["png"]).decode("ascii"),
                "label": "(unlabelled)" if label is None else str(label),
                "guess": name_of(None if guess is None else str(guess)),
                "right": None if label is None else label == guess,
                "confidence": number(entry.get("confidence")),
            }
        )
    return sorted(groups.items())[:MOST_GALLERIES]

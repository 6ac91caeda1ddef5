"""Held-out accuracy over time, and what the literature derives from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from streamcl.protocols import State


@dataclass(slots=True)
class HoldoutRow:
    """One evaluation: the accuracy of each part at an offset, and whether a part had just ended."""

    offset: int
    accuracy: dict[str, float]
    milestone: bool


class HoldoutHistory:
    """The accuracy matrix of a run (rows: evaluations; columns: parts) and the figures drawn from it.

    All accuracies are shares in [0, 1]. The figures are exact for a stream of any length; of the matrix at
    most `max_rows` rows are kept, those right after the end of a part for longest.
    """

    def __init__(self, max_rows: int = 200) -> None:
        if max_rows < 4:
            raise ValueError(f"max_rows is {max_rows}; at least 4 are needed to thin the matrix out")
        self._max_rows = max_rows
        self._rows: list[HoldoutRow] = []
        self._parts: list[str] = []
        self._best: dict[str, float] = {}  # before the latest evaluation
        self._initial: dict[str, float] = {}  # at the first evaluation after the part's end, in that order
        self._fresh: list[str] = []  # parts that ended just before the latest evaluation
        self._seen: list[float] = []  # the latest accuracy over what was learned: one value, or none
        self._seen_sum, self._seen_count = 0.0, 0
        self.calibration_error: float | None = None
        """That of the latest evaluation, in [0, 1]; None before one of classes that were seen."""
        self.older_than_erasure = False
        """Whether samples have been erased since the latest evaluation."""

    def record(
        self,
        offset: int,
        accuracies: Mapping[str, float],
        sizes: Mapping[str, int],
        learned: Sequence[str],
        seen: float | None = None,
        *,
        calibration_error: float | None = None,
    ) -> None:
        """Take one evaluation of every part, made when `offset` records had passed.

        A second evaluation at the same offset takes the place of the first.

        Args:
            offset: records that have passed.
            accuracies: of each part, in [0, 1].
            sizes: samples of each part.
            learned: the parts whose classes (or domain) have passed, in order.
            seen: the accuracy over samples of every class that has passed, where parts are not made of whole
                classes; None takes the learned parts, each by its size.
            calibration_error: of the samples that `seen` is of.

        Raises:
            ValueError: an earlier offset.
        """
        last = self._rows[-1] if self._rows else None
        if last is not None and offset < last.offset:
            raise ValueError(f"evaluation at offset {offset} after one at {last.offset}")
        self.calibration_error, self.older_than_erasure = calibration_error, False
        if last is not None and offset == last.offset:
            self._replace(accuracies, sizes, [part for part in learned if part in accuracies], seen)
            return
        for part, accuracy in last.accuracy.items() if last else ():
            self._best[part] = max(accuracy, self._best.get(part, accuracy))
        known = [part for part in learned if part in accuracies]
        self._fresh = [part for part in known if part not in self._initial]
        self._initial |= {part: float(accuracies[part]) for part in self._fresh}
        self._parts += [part for part in accuracies if part not in self._parts]
        plain = {part: float(accuracy) for part, accuracy in accuracies.items()}
        self._rows.append(HoldoutRow(offset, plain, bool(self._fresh)))
        self._seen = _weighted(accuracies, sizes, known) if seen is None else [float(seen)]
        self._seen_sum += sum(self._seen)
        self._seen_count += len(self._seen)
        self._thin()

    def _replace(
        self,
        accuracies: Mapping[str, float],
        sizes: Mapping[str, int],
        known: Sequence[str],
        seen: float | None,
    ) -> None:
        """Put an evaluation in the place of the latest one."""
        self._rows[-1].accuracy = {part: float(accuracy) for part, accuracy in accuracies.items()}
        self._initial |= {part: float(accuracies[part]) for part in self._fresh}
        before, self._seen = (
            self._seen,
            _weighted(accuracies, sizes, known) if seen is None else [float(seen)],
        )
        self._seen_sum += sum(self._seen) - sum(before)
        self._seen_count += len(self._seen) - len(before)

    def _thin(self) -> None:
        if len(self._rows) <= self._max_rows:
            return
        *rows, last = self._rows
        kept = [row for place, row in enumerate(rows) if row.milestone or place % 2 == 0]
        self._rows = [*(kept if len(kept) <= self._max_rows * 3 // 4 else rows[::2]), last]

    @property
    def A_T(self) -> float | None:  # noqa: N802 - the literature's name
        """Mean over the parts learned so far of their accuracy now (average accuracy, arXiv 1801.10112)."""
        learned = [a for part, a in self._now.items() if part in self._initial]
        return fmean(learned) if learned else None

    @property
    def A_AUC(self) -> float | None:  # noqa: N802
        """Mean over the evaluations of the accuracy over everything learned by then (arXiv 2110.10031)."""
        return self._seen_sum / self._seen_count if self._seen_count else None

    @property
    def A_Last(self) -> float | None:  # noqa: N802
        """Accuracy now over everything learned so far, each sample counting once (arXiv 2110.10031)."""
        return self._seen[0] if self._seen else None

    @property
    def forgetting_measure(self) -> float | None:
        """Mean over the parts before the last of best-so-far minus now (arXiv 1801.10112)."""
        return self._mean_change(self._best, sign=-1)

    @property
    def backward_transfer(self) -> float | None:
        """Mean over the parts before the last of now minus just after learning (arXiv 1706.08840, eq. 3)."""
        return self._mean_change(self._initial, sign=1)

    def _mean_change(self, since: Mapping[str, float], sign: int) -> float | None:
        """Return the mean change; None while no part has been evaluated twice since its end."""
        before_last = [part for part in list(self._initial)[:-1] if part not in self._fresh]
        changes = [sign * (self._now[part] - since[part]) for part in before_last if part in self._now]
        return fmean(changes) if changes else None

    @property
    def _now(self) -> dict[str, float]:
        return self._rows[-1].accuracy if self._rows else {}

    @property
    def matrix(self) -> dict[str, list[Any]]:
        """{"offsets", "parts", "accuracy"}: accuracy[row][column], None where a part was not evaluated."""
        return {
            "offsets": [row.offset for row in self._rows],
            "parts": list(self._parts),
            "accuracy": [[row.accuracy.get(part) for part in self._parts] for row in self._rows],
        }

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts, in the order in which they were first evaluated."""
        return tuple(self._parts)

    def summary(self) -> dict[str, Any]:
        """Return the "holdout" part of summary.json."""
        names = ("A_T", "A_AUC", "A_Last", "forgetting_measure", "backward_transfer")
        figures = {name: getattr(self, name) for name in (*names, "calibration_error", "matrix")}
        return figures | ({"older_than_erasure": True} if self.older_than_erasure else {})

    def outdate(self) -> bool:
        """Note an erasure; return whether figures have become older than it by that."""
        changed = bool(self._rows) and not self.older_than_erasure
        self.older_than_erasure = self.older_than_erasure or changed
        return changed

    def forget_parts(self, names: Collection[str]) -> None:
        """Drop the columns of parts; figures over everything learned (A_AUC, A_Last) stay as they are."""
        for row in self._rows:
            row.accuracy = _without(row.accuracy, names)
        self._best, self._initial = _without(self._best, names), _without(self._initial, names)
        self._parts = [part for part in self._parts if part not in names]
        self._fresh = [part for part in self._fresh if part not in names]

    def state_dict(self) -> State:
        """Return plain JSON values: pairs, not objects, where the order of the parts matters."""
        return {
            "rows": [asdict(row) for row in self._rows],
            "parts": list(self._parts),
            "best": dict(self._best),
            "initial": [list(pair) for pair in self._initial.items()],
            "fresh": list(self._fresh),
            "seen": [*self._seen, self._seen_sum, self._seen_count],
            "calibration_error": self.calibration_error,
            "older_than_erasure": self.older_than_erasure,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the object that returned `state`."""
        self._rows = [
            HoldoutRow(row["offset"], dict(row["accuracy"]), row["milestone"]) for row in state["rows"]
        ]
        self._parts = list(state["parts"])
        self._best = dict(state["best"])
        self._initial = dict(state["initial"])
        self._fresh = list(state["fresh"])
        *self._seen, self._seen_sum, self._seen_count = state["seen"]
        self.calibration_error = state.get("calibration_error")
        self.older_than_erasure = state.get("older_than_erasure", False)


def _without(figures: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    return {part: figure for part, figure in figures.items() if part not in names}


def _weighted(accuracies: Mapping[str, float], sizes: Mapping[str, int], parts: Sequence[str]) -> list[float]:
    """Return the accuracy over the samples of all the parts; an empty list where there are none."""
    total = sum(sizes[part] for part in parts)
    return [sum(accuracies[part] * sizes[part] for part in parts) / total] if total else []

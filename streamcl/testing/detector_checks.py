"""Checks that a detector keeps what `streamcl.protocols.ShiftDetector` promises; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from streamcl.protocols import ShiftDetector
from streamcl.testing.source_checks import plain_hash, require

Report: TypeAlias = tuple[str | None, str | None]
"""The shift and the plateau that a detector reports after an update."""


def loss_stream(seed: int = 0, segments: Sequence[int] = (40, 50, 40)) -> list[float]:
    """Return losses that fall from 3 towards 1 nat in each segment, with 15 % noise; at each shift they jump.

    >>> [len(loss_stream()), round(loss_stream(segments=[5])[0], 1)]
    [130, 3.1]
    """
    clean = np.concatenate([1 + 2 * np.exp(-np.arange(length) / 6) for length in segments])
    noise = np.random.default_rng(seed).standard_normal(len(clean))
    return [float(loss) for loss in clean * np.exp(0.15 * noise)]


def check_detector(make: Callable[[], ShiftDetector], losses: Sequence[float] | None = None) -> None:
    """Check a detector on a stream of losses, one value a batch.

    It must report at most one plateau between two shifts, refuse NaN and infinity with ValueError and without
    a change, return plain states that are copies, and continue from any of them as if uninterrupted.

    Args:
        make: makes the detector anew, with the same arguments each time.
        losses: mean losses of batches, in nats; by default three segments (`loss_stream`).

    Raises:
        AssertionError: says which promise is broken, and at which batch.
    """
    losses = loss_stream() if losses is None else losses
    detector = make()
    reports: list[Report] = []
    states = [detector.state_dict()]
    hashes = [plain_hash(states[0])]
    for loss in losses:
        detector.update(loss)
        reports.append(_report(detector))
        states.append(detector.state_dict())
        hashes.append(plain_hash(states[-1]))
        _check_refusals(detector)
    require([plain_hash(state) for state in states] == hashes, "a state changed after it was returned")
    _check_one_plateau_a_segment(reports)
    for index, loss in enumerate(losses):
        detector = make()
        detector.load_state_dict(states[index])
        detector.update(loss)
        require(_report(detector) == reports[index], f"resumed before batch {index}, its report differs")
        same = plain_hash(detector.state_dict()) == hashes[index + 1]
        require(same, f"resumed before batch {index}, its state differs")
        detector.load_state_dict(states[index + 1])
        require(
            _report(detector) == reports[index], f"loading the state after batch {index} loses its report"
        )


def _report(detector: ShiftDetector) -> Report:
    return detector.shift, detector.plateau


def _check_refusals(detector: ShiftDetector) -> None:
    before = plain_hash(detector.state_dict()), _report(detector)
    for bad in (math.nan, math.inf, -math.inf):
        try:
            detector.update(bad)
        except ValueError:
            after = plain_hash(detector.state_dict()), _report(detector)
            require(after == before, f"refusing a loss of {bad} changed the detector")
        else:
            raise AssertionError(f"a loss of {bad} was not refused with ValueError")


def _check_one_plateau_a_segment(reports: Sequence[Report]) -> None:
    seen = False
    for index, (shift, plateau) in enumerate(reports):
        seen = seen and shift is None
        require(
            not (seen and plateau is not None),
            f"a second plateau of one segment is reported at batch {index}",
        )
        seen = seen or plateau is not None

"""Losses to show to shift detectors, and detectors that are restored on the way."""

import numpy as np

from streamcl.shift.relative_rise import RelativeRiseDetector


def steady(count, seed=0):
    """Losses without a trend."""
    return np.random.default_rng(seed).gamma(50, 0.02, count).tolist()


def reports_whole_and_restored(shown, losses, look):
    """Return the reports of a detector at each update, and of one that is restored between its two looks.

    Args:
        shown: what it looks at before each update, as two parts.
        losses: of the updates.
        look: shows a part to a detector.
    """
    whole, other = RelativeRiseDetector(), RelativeRiseDetector()
    said, again = [], []
    for (first, second), loss in zip(shown, losses, strict=True):
        for detector in (whole, other):
            look(detector, first)
        twin = RelativeRiseDetector()
        twin.load_state_dict(other.state_dict())
        other = twin
        for detector, reports in ((whole, said), (other, again)):
            look(detector, second)
            detector.update(loss)
            reports.append((detector.shift, detector.plateau))
    return said, again

"""Corruptions keep an image's shape, are the same for the same image, and grow with the severity."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from corruption_kinds import KINDS, SEVERITIES, corrupted, resized

PICTURE = resized(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8), 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_keeps_the_shape_is_repeatable_and_grows(kind):
    changes = []
    for severity in SEVERITIES:
        image = corrupted(PICTURE, kind, severity, "a")
        assert (image.shape, image.dtype) == (PICTURE.shape, np.uint8)
        assert np.array_equal(image, corrupted(PICTURE, kind, severity, "a"))
        changes.append(float(np.abs(image.astype(float) - PICTURE).mean()))
    assert 0 < changes[0] < changes[-1]


def test_noise_differs_between_images_and_a_mean_is_kept():
    assert not np.array_equal(*(corrupted(PICTURE, "gaussian_noise", 1, name) for name in "ab"))
    for kind in ("defocus_blur", "gaussian_blur", "motion_blur", "contrast"):
        assert abs(float(corrupted(PICTURE, kind, 5, "a").mean()) - float(PICTURE.mean())) < 3

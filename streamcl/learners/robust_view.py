"""Corrupted views of images, drawn by the ids of samples, which a ridge head learns beside the images.

The kinds and strengths are of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261), as they were published
for images of 64 pixels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from streamcl.events import Pixels, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.block_features import FeatureReader

Draws: TypeAlias = np.random.RandomState
"""Numbers that are the same with every version of numpy, as those of its newer generators need not be."""

NOISE_DEVIATIONS = (0.04, 0.08, 0.12, 0.15, 0.18)
"""Standard deviation of noise, as a share of the range of levels, by severity."""
BLUR_DEVIATIONS = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Standard deviation of a blur, in pixels."""
JPEG_QUALITIES = (65, 58, 50, 40, 25)
"""Quality of a JPEG."""
LIGHT_INCREASES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Increase of the largest of a pixel's three levels, as a share of the range."""


def robust_view(pixels: Pixels, side: int, name: str) -> Pixels:
    """Return an image with noise, blurred, compressed, or with more light, at one of five severities.

    Args:
        pixels: uint8 RGB [H, W, 3].
        side: S, to which the image is resized before it is corrupted: the size that a backbone reads.
        name: decides the kind, the severity and the noise.

    Returns:
        uint8 RGB [S, S, 3], the same bytes for the same image and name.
    """
    draws = np.random.RandomState(list(hashlib.sha256(name.encode()).digest()))
    kind, severity = _KINDS[draws.randint(len(_KINDS))], draws.randint(len(NOISE_DEVIATIONS))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return kind(image, severity, draws)


class RobustReader:
    """Reads the robust view of each sample.

    Args:
        reader: of features, [B, D], of B samples.
        side: S, of the images that its backbone reads.
    """

    def __init__(self, reader: FeatureReader, side: int) -> None:
        self._reader, self._side = reader, side

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Return the features float32 [B, D] of the views of B samples, one or more."""
        return self._reader(
            [replace(each, image=robust_view(each.image, self._side, each.id)) for each in samples]
        )


def _noisy(image: Image.Image, severity: int, draws: Draws) -> Pixels:
    levels = np.asarray(image, np.float64)
    return _rounded(levels + 255 * NOISE_DEVIATIONS[severity] * draws.standard_normal(levels.shape))


def _blurred(image: Image.Image, severity: int, _: Draws) -> Pixels:
    return np.array(image.filter(ImageFilter.GaussianBlur(BLUR_DEVIATIONS[severity])))


def _compressed(image: Image.Image, severity: int, _: Draws) -> Pixels:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITIES[severity])
    return np.array(Image.open(file))


def _lighter(image: Image.Image, severity: int, _: Draws) -> Pixels:
    levels = np.asarray(image, np.float64)
    value = levels.max(axis=2, keepdims=True)
    raised = np.minimum(value + 255 * LIGHT_INCREASES[severity], 255)
    return _rounded(np.where(value > 0, levels * raised / np.maximum(value, 1), raised))


def _rounded(levels: npt.NDArray[np.float64]) -> Pixels:
    return np.asarray(np.rint(levels.clip(0, 255)), np.uint8)


_KINDS: tuple[Callable[[Image.Image, int, Draws], Pixels], ...] = (_noisy, _blurred, _compressed, _lighter)

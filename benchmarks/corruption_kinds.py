"""Corruptions of images: kinds and strengths of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261).

Severities 1 to 5 have the published strengths for images of 64 pixels (Tiny ImageNet-C), so images are
resized to the size that a model reads before they are corrupted. Computed here by numpy, scipy and Pillow;
fog is fractal noise of octaves in place of the diamond-square algorithm, motion blur a line in place of
ImageMagick's. The same image, kind, severity and id give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Pixels: TypeAlias = npt.NDArray[np.uint8]
Levels: TypeAlias = npt.NDArray[np.float64]
"""RGB levels [H, W, 3] in [0, 1]."""
Corrupt: TypeAlias = Callable[[Levels, int, np.random.Generator], Levels]

SEVERITIES = range(1, 6)


def gaussian_noise(levels: Levels, severity: int, random: np.random.Generator) -> Levels:
    """Add normal noise to every level."""
    return levels + random.normal(scale=(0.04, 0.08, 0.12, 0.15, 0.18)[severity - 1], size=levels.shape)


def impulse_noise(levels: Levels, severity: int, random: np.random.Generator) -> Levels:
    """Set a share of the levels to 0 or 1."""
    drawn = random.random(levels.shape)
    share = (0.01, 0.02, 0.05, 0.08, 0.14)[severity - 1]
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, levels))


def defocus_blur(levels: Levels, severity: int, random: np.random.Generator) -> Levels:  # noqa: ARG001
    """Average over a disc."""
    radius, soft = ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1))[severity - 1]
    y, x = np.mgrid[-4:5, -4:5]
    return _filtered(levels, ndimage.gaussian_filter((x**2 + y**2 <= radius**2).astype(float), soft))


def gaussian_blur(levels: Levels, severity: int, random: np.random.Generator) -> Levels:  # noqa: ARG001
    """Average with normal weights."""
    sigma = (0.5, 0.75, 1, 1.25, 1.5)[severity - 1]
    return np.asarray(ndimage.gaussian_filter(levels, (sigma, sigma, 0), mode="mirror"))


def motion_blur(levels: Levels, severity: int, random: np.random.Generator) -> Levels:
    """Average along a line of any direction within 45 degrees of a row, with half of normal weights."""
    angle, steps = np.deg2rad(random.uniform(-45, 45)), np.arange(0, 13, 0.25)
    weights = np.exp(-((steps / (1, 1.5, 2, 2.5, 3)[severity - 1]) ** 2) / 2)
    kernel = np.zeros((27, 27))
    rows, columns = (np.rint(13 + steps * part(angle)).astype(int) for part in (np.sin, np.cos))
    np.add.at(kernel, (rows, columns), weights)
    return _filtered(levels, kernel)


def fog(levels: Levels, severity: int, random: np.random.Generator) -> Levels:
    """Lay bright fractal noise over the image, and scale to the brightest level that it had."""
    amount, decay = ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75))[severity - 1]
    brightest = levels.max()
    foggy = levels + amount * _fractal(levels.shape[:2], decay, random)[..., None]
    return np.asarray(foggy * brightest / (brightest + amount))


def brightness(levels: Levels, severity: int, random: np.random.Generator) -> Levels:  # noqa: ARG001
    """Add to the largest of the three levels of each pixel, at the same hue and saturation."""
    value = levels.max(axis=2, keepdims=True)
    raised = np.minimum(value + 0.1 * severity, 1)
    return np.asarray(np.where(value > 0, levels * raised / np.maximum(value, 1e-9), raised))


def contrast(levels: Levels, severity: int, random: np.random.Generator) -> Levels:  # noqa: ARG001
    """Move every level towards the mean of its channel."""
    mean = levels.mean(axis=(0, 1), keepdims=True)
    return np.asarray(mean + (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] * (levels - mean))


def jpeg_compression(levels: Levels, severity: int, random: np.random.Generator) -> Levels:  # noqa: ARG001
    """Compress and decompress."""
    file = io.BytesIO()
    Image.fromarray(_bytes(levels)).save(file, "JPEG", quality=(65, 58, 50, 40, 25)[severity - 1])
    return _levels(np.asarray(Image.open(file)))


def pixelate(levels: Levels, severity: int, random: np.random.Generator) -> Levels:  # noqa: ARG001
    """Make the image smaller, and as large as before, by averages over boxes."""
    height, width = levels.shape[:2]
    share = (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    whole = Image.fromarray(_bytes(levels)).resize(small, Image.Resampling.BOX)
    return _levels(np.asarray(whole.resize((width, height), Image.Resampling.BOX)))


KINDS: dict[str, Corrupt] = {
    each.__name__: each
    for each in (
        gaussian_noise,
        impulse_noise,
        defocus_blur,
        gaussian_blur,
        motion_blur,
        fog,
        brightness,
        contrast,
        jpeg_compression,
        pixelate,
    )
}


def resized(pixels: Pixels, side: int) -> Pixels:
    """Return uint8 [S, S, 3], resized as a backbone does: bicubic, antialiased, aspect ratio not kept."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def corrupted(pixels: Pixels, kind: str, severity: int, name: str) -> Pixels:
    """Return uint8 [H, W, 3] of the same size, with draws by the kind, the severity and the image's name."""
    random = _generator(f"{kind} {severity} {name}")
    return _bytes(KINDS[kind](_levels(pixels), severity, random))


def _generator(text: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()[:16]))


def _levels(pixels: npt.NDArray[np.uint8]) -> Levels:
    return np.asarray(pixels / 255.0, np.float64)


def _bytes(levels: Levels) -> Pixels:
    return np.asarray(np.rint(255 * np.clip(levels, 0, 1)), np.uint8)


def _filtered(levels: Levels, kernel: Levels) -> Levels:
    """Each channel averaged with the weights of a kernel [k, k]."""
    return np.asarray(ndimage.convolve(levels, kernel[..., None] / kernel.sum(), mode="mirror"))


def _fractal(shape: tuple[int, ...], decay: float, random: np.random.Generator) -> Levels:
    """[H, W] in [0, 1]: random grids of 2, 4, 8 ... cells a side, each weaker by a factor, interpolated."""
    total = np.zeros(shape)
    for octave in range(1, max(shape).bit_length()):
        cells = 2**octave + 1
        grid = random.uniform(-1, 1, (cells, cells))
        total += ndimage.zoom(grid, [side / cells for side in shape], order=1) / decay ** (octave - 1)
    total -= total.min()
    return np.asarray(total / max(total.max(), 1e-9))

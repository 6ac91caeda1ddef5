"""Images as PNG files in memory: compressed without loss."""

from __future__ import annotations

import io
from typing import TypeAlias

import numpy as np
from PIL import Image

from streamcl.events import Pixels

PngBytes: TypeAlias = bytes
"""A picture as a PNG file."""
PNG_COMPRESSION = 1  # zlib's level: a photograph in some 8 ms, and hardly larger than at the best


def to_png(image: Pixels) -> PngBytes:
    """Return uint8 RGB [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", compress_level=PNG_COMPRESSION)
    return file.getvalue()


def from_png(content: PngBytes) -> Pixels:
    """Return the image [H, W, 3] that `to_png` was given."""
    return np.array(Image.open(io.BytesIO(content)))

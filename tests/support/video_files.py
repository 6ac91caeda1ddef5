"""Writes small videos, each frame of one shade of grey."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32  # pixels of either side


def write_video(path: Path, shades: Iterable[int], *, rate: int = 10, gop: int = 12) -> Path:
    """Write a frame for each shade (a multiple of 8 survives encoding within 4), `rate` a second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"g": str(gop)})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for shade in shades:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture_of(shade))):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def picture_of(shade: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), shade, np.uint8)


def shade_of(png: bytes) -> int:
    """Return the shade that a frame was written with: a multiple of 8."""
    grey = float(np.asarray(Image.open(io.BytesIO(png))).mean())
    return round(grey / 8) * 8


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture_of(shade)).save(file, "JPEG")
    return file.getvalue()


def noise(seed: int) -> bytes:
    """Return a JPEG that is 150 kB as a PNG."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()

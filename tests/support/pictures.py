"""A tiny vision transformer's arguments and small batches of pictures whose label can be seen."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from streamcl.events import Batch, Sample

TINY_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def picture(label: str, number: int) -> np.ndarray:
    """uint8 [16, 16, 3]: stripes whose direction, colour and width the label decides, with noise."""
    look = np.random.default_rng(sum(label.encode()))
    noise = np.random.default_rng(number)
    wave = np.sin(np.arange(16) * look.uniform(0.4, 2.0)) * 60
    plane = wave[:, None] if look.random() < 0.5 else wave[None, :]
    image = plane[..., None] + look.uniform(40, 215, 3) + noise.normal(0, 12, (16, 16, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def encoded_picture(label: str, number: int) -> bytes:
    """The same as a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture(label, number)).save(file, "PNG")
    return file.getvalue()


def make_batch(offset: int, labels: Sequence[str | None]) -> Batch:
    """A batch whose samples have the ids s0, s1, ... of their offsets."""
    samples = [
        Sample(
            f"s{offset + i}",
            picture(label or "?", offset + i),
            label,
            subject=f"p{(offset + i) % 5}",
            domain="d",
        )
        for i, label in enumerate(labels)
    ]
    return Batch(offset, tuple(samples))

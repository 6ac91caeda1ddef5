"""What several tests share: a tiny random ViT and small streams of pictures that can be told apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from streamcl.events import Batch, Sample

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("untimed")

TINY_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="session")
def tiny_backbone():
    from streamcl.nn.build import build_backbone

    return build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=TINY_VIT)


@pytest.fixture(scope="session")
def fp32():
    from streamcl.nn.device import resolve_compute

    return resolve_compute("cpu", "32-true")


@pytest.fixture
def dev_data() -> Path:
    folder = Path(os.environ.get("STREAMCL_DEV_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the development images are not here (STREAMCL_DEV_DATA)")
    return folder


def picture(label: str, number: int) -> np.ndarray:
    """uint8 [16, 16, 3]: stripes whose direction, colour and width the label decides, with noise."""
    look = np.random.default_rng(sum(label.encode()))
    noise = np.random.default_rng(number)
    wave = np.sin(np.arange(16) * look.uniform(0.4, 2.0)) * 60
    plane = wave[:, None] if look.random() < 0.5 else wave[None, :]
    image = plane[..., None] + look.uniform(40, 215, 3) + noise.normal(0, 12, (16, 16, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


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

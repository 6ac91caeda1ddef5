"""Small data for the tests of `streams`: drawn on the fly, or the development images where they lie."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from streams.replay.collection import Collection, Grouping


def picture(number: int, size: int = 8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)


def write_picture(path: Path, number: int = 0, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, size)).save(path)
    return path


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "png")
    return file.getvalue()


def collection(
    labels: Sequence[int], classes: int, domains: Sequence[int] | None = None, images: Any = None
) -> Collection:
    names = tuple(f"d{code}" for code in range(max(domains or [0]) + 1))
    return Collection(
        name="drawn",
        images=images if images is not None else [picture(index) for index in range(len(labels))],
        labels=np.array(labels, np.int64),
        classes=tuple(f"c{code}" for code in range(classes)),
        ids=tuple(f"drawn/{index:04d}" for index in range(len(labels))),
        domains=Grouping(names, np.array(domains, np.int64)) if domains is not None else None,
    )


def dev_pack(name: str) -> dict[str, npt.NDArray[Any]]:
    """A development pack's arrays; skips the test where it is absent."""
    with np.load(dev_path(name), allow_pickle=False) as pack:
        return {key: pack[key] for key in pack.files}


def dev_path(name: str) -> Path:
    sibling = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("STREAMCL_DEV_DATA", sibling))
    path = folder / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"the development images {path} are absent; set STREAMCL_DEV_DATA to their folder")
    return path

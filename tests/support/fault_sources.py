"""Streams that the fault tests name in their YAML, as a user's own module would hold them."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.events import Batch, Sample

CLASSES = ("ant", "bee", "cat", "dog")


def picture(label: str, number: int, size: int = 16) -> np.ndarray[Any, Any]:
    """uint8 [size, size, 3]: a colour of the class, with noise of the number."""
    look = np.random.default_rng(sum(label.encode()))
    noise = np.random.default_rng(number).normal(0, 12, (size, size, 3))
    return np.clip(look.uniform(40, 215, 3) + noise, 0, 255).astype(np.uint8)


class Pictures:
    """A data set read by index: classes come one after another, two at a time."""

    def __init__(self, records: int = 96) -> None:
        self.records = records
        self.holdout = [
            {"image": picture(label, 10_000 + number), "label": label, "id": f"held-{label}-{number}"}
            for label in CLASSES
            for number in range(2)
        ]

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.records:
            raise IndexError(index)
        label = CLASSES[2 * (2 * index >= self.records) + index % 2]
        return {"image": picture(label, index), "label": label, "id": f"{index:06d}"}


class Growing(Pictures):
    """A data set whose length stands in a file."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    def __len__(self) -> int:
        self.records = 10**6
        return int(self.file.read_text())


class Shaken(Pictures):
    """The same, changed at random by all three process-wide generators, as augmentations do."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        record = super().__getitem__(index)
        shift = random.random() + np.random.random() + float(torch.rand(()))
        return {**record, "image": (record["image"] * shift / 3).astype(np.uint8)}


class EveryFew:
    """A detector: a shift every 5th batch, a plateau every 3rd."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, loss: float) -> None:
        assert math.isfinite(loss)
        self.count += 1

    @property
    def shift(self) -> str | None:
        return "every 5th" if self.count % 5 == 0 else None

    @property
    def plateau(self) -> str | None:
        return "every 3rd" if self.count % 3 == 0 else None

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


class Always(EveryFew):
    """A detector that sees a shift and a plateau in every batch."""

    @property
    def shift(self) -> str | None:
        return "always"

    plateau = shift


class OneClass(Pictures):
    """The same picture of one class again and again."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "image": picture("ant", 0), "label": "ant"}


class Slow(Pictures):
    """The same, with a pause before each record."""

    def __init__(self, records: int = 96, seconds: float = 0.02) -> None:
        super().__init__(records)
        self.seconds = seconds

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.seconds)
        return super().__getitem__(index)


class Hangs(Pictures):
    """Nothing comes after record 40."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 40:
            time.sleep(3600)
        return super().__getitem__(index)


class EndsEarly:
    """An iterable that promises more than it has."""

    def __len__(self) -> int:
        return 96

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (Pictures()[index] for index in range(48))


class Raises(Pictures):
    """Record 40 cannot be had, ever."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 40:
            raise OSError("the camera is gone")
        return super().__getitem__(index)


class Odd(Pictures):
    """Every fourth record is what `kind` says."""

    def __init__(self, kind: str, records: int = 64) -> None:
        super().__init__(records)
        self.kind = kind

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        return record if index % 4 else {**record, **odd(self.kind, index)}


def odd(kind: str, index: int) -> dict[str, Any]:
    """The fields of a record that are odd."""
    whole = np.zeros((16, 16, 3), np.float32)
    return {
        "label -1": {"label": -1},
        "label -100": {"label": -100},
        "label float": {"label": 1.5},
        "label nan": {"label": float("nan")},
        "label missing": {"label": None},
        "label string": {"label": "another"},
        "label list": {"label": [1, 2]},
        "label new": {"label": f"class {index}"},
        "pixels nan": {"image": np.full_like(whole, np.nan)},
        "pixels inf": {"image": np.full_like(whole, np.inf)},
        "pixels large": {"image": whole + 300},
        "shape": {"image": np.zeros((16,), np.uint8)},
        "channels": {"image": np.zeros((16, 16, 7), np.uint8)},
        "dtype": {"image": np.zeros((16, 16, 3), np.complex64)},
        "empty": {"image": np.zeros((0, 16, 3), np.uint8)},
        "strip": {"image": np.zeros((1, 100_000, 3), np.uint8)},
        "text": {"image": "no such file.png"},
        "none": {"image": None},
    }[kind]


def shrinks() -> Iterator[dict[str, Any]]:
    """Interrupts its process at record 40; read a second time, it has 20 records."""
    before = Path("read-before")
    second = before.exists()
    before.touch()
    for index in range(20 if second else 96):
        if index == 40:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        yield Pictures()[index]


def files() -> list[dict[str, Any]]:
    """The files of a folder, by their paths."""
    return [
        {"image": str(path), "label": "any", "id": path.name} for path in sorted(Path("pictures").iterdir())
    ]


def once() -> Iterator[dict[str, Any]]:
    """A generator, which interrupts its process at record 40."""
    for index in range(96):
        if index == 40:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        yield Pictures()[index]


def jumping(by: int) -> Iterator[Batch]:
    """Batches of eight whose second one is `by` records from where it should be."""
    pictures = Pictures()
    for first in (0, 8 + by, 16 + by):
        records = [pictures[index] for index in range(first, first + 8)]
        yield Batch(first, tuple(Sample(r["id"], r["image"], r["label"]) for r in records))


class Broken:
    """A sink whose service is down, or takes `seconds` a record."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        assert folder.is_dir()
        self.seconds = seconds

    def write(self, topic: str, record: Any) -> None:
        time.sleep(self.seconds)
        raise ConnectionError("down")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Sluggish(Broken):
    """The same, to stand beside the other."""


class Mute:
    """An object that raises when it is asked `about` itself."""

    def __init__(self, about: str) -> None:
        self.about = about

    def __getattr__(self, name: str) -> Any:
        if name == self.__dict__.get("about"):
            raise RuntimeError("not today")
        raise AttributeError(name)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (Pictures()[index] for index in range(8))

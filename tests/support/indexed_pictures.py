"""A data set of pictures that is read by index, as a run names it in its YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pictures import picture


class IndexedPictures:
    """160 pictures whose labels take turns, with the ids PREFIX0, PREFIX1, ...; none is held out by it."""

    def __init__(self, labels: Sequence[str] = ("ant", "bee"), prefix: str = "picture-") -> None:
        self._labels, self._prefix = labels, prefix

    def __len__(self) -> int:
        return 160

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = self._labels[index % len(self._labels)]
        return {"image": picture(label, index), "label": label, "id": f"{self._prefix}{index}"}


PICTURE_SOURCE = {"class": "indexed_pictures:IndexedPictures"}
"""The `source` of a configuration that names it."""

"""A data set of pictures that is read by index, as a run names it in its YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pictures import picture


class IndexedPictures:
    """160 pictures whose labels take turns, with the ids PREFIX0, PREFIX1, ...; none is held out by it.

    mislabelled_every: every so many pictures one has the next label, so that predictions are not certain; 0:
    none.
    """

    def __init__(
        self,
        labels: Sequence[str] = ("ant", "bee"),
        prefix: str = "picture-",
        mislabelled_every: int = 0,
    ) -> None:
        self._labels, self._prefix, self._mislabelled_every = labels, prefix, mislabelled_every

    def __len__(self) -> int:
        return 160

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = self._labels[index % len(self._labels)]
        image = picture(label, index)
        if self._mislabelled_every and index % self._mislabelled_every == 0:
            label = self._labels[(index + 1) % len(self._labels)]
        return {"image": image, "label": label, "id": f"{self._prefix}{index}"}


PICTURE_SOURCE = {"class": "indexed_pictures:IndexedPictures"}
"""The `source` of a configuration that names it."""

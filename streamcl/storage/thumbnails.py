"""Thumbnails of the first samples after each shift, named so that an erasure can find and delete them."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from streamcl.events import Pixels, PredictionRecord, RemoteSample, Sample
from streamcl.protocols import State
from streamcl.storage import files

SIDE = 96
"""The longest side of a thumbnail, in pixels."""
INDEX = "index.json"
THUMBNAIL = re.compile(r"[0-9a-f]{64}\.png")


class Thumbnails:
    """Keeps `<folder>/<sha256 of the sample's id>.png` and `<folder>/index.json`, which says what each shows.

    per_shift: how many samples of each shift are kept. max_shifts: of how many shifts, so that a stream that
    shifts at every step cannot fill the disk. Neither ids nor subjects are written anywhere.
    """

    def __init__(
        self, folder: Path, per_shift: int = 8, *, max_shifts: int = 40, disk: files.Disk = files.DISK
    ) -> None:
        self._folder, self._per_shift, self._max_shifts, self._disk = folder, per_shift, max_shifts, disk
        self._entries: list[dict[str, Any]] = []

    @property
    def entries(self) -> tuple[Mapping[str, Any], ...]:
        """One for each thumbnail, oldest first: offset (of the shift), file, label, predicted, confidence."""
        return tuple(dict(entry) for entry in self._entries)

    def keep(self, offset: int, samples: Sequence[Sample], predictions: Sequence[PredictionRecord]) -> None:
        """Keep samples after the shift at `offset`, with what was predicted for each, until it has enough.

        May be called again with the same offset and later samples. Raises OSError where the disk fails.
        """
        shifts = {entry["offset"] for entry in self._entries}
        room = self._per_shift - sum(entry["offset"] == offset for entry in self._entries)
        if room <= 0 or (offset not in shifts and len(shifts) >= self._max_shifts):
            return
        files.make_folder(self._folder, disk=self._disk)
        pairs = zip(samples, predictions, strict=True)
        here = [pair for pair in pairs if not isinstance(pair[0], RemoteSample)]  # the others have no pixels
        for sample, prediction in here[:room]:
            name = thumbnail_name(sample.id)
            files.atomic_write(self._folder / name, thumbnail(sample.image), disk=self._disk)
            self._entries.append(
                {
                    "offset": offset,
                    "file": name,
                    "label": sample.label,
                    "predicted": prediction.predicted,
                    "confidence": prediction.confidence,
                }
            )
        self._write_index()

    def purge(self, ids: Iterable[str]) -> int:
        """Delete the thumbnails of these samples, indexed or left by a crash; how many there were."""
        names = {thumbnail_name(sample_id) for sample_id in ids}
        before = len(self._entries)
        self._entries = [entry for entry in self._entries if entry["file"] not in names]
        if len(self._entries) < before:
            self._write_index()
        found = [name for name in sorted(names) if (self._folder / name).exists()]
        self._delete(found)
        return len(found)

    def forget_class(self, label: str) -> None:
        """Delete the thumbnails of a class, and name it no more as the prediction for others."""
        left = [
            {**entry, "predicted": None if entry["predicted"] == label else entry["predicted"]}
            for entry in self._entries
            if entry["label"] != label
        ]
        if left != self._entries:
            gone = {entry["file"] for entry in self._entries} - {entry["file"] for entry in left}
            self._entries = left
            self._write_index()
            self._delete([name for name in sorted(gone) if (self._folder / name).exists()])

    def state_dict(self) -> State:
        """Return the index; the thumbnails themselves stay where they are."""
        return {"entries": [dict(entry) for entry in self._entries]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the gallery that returned `state`; thumbnails that it does not know are deleted."""
        self._entries = [dict(entry) for entry in state["entries"]]
        if not self._folder.is_dir():
            return
        known = {entry["file"] for entry in self._entries}
        found = sorted(path.name for path in self._folder.iterdir())
        self._write_index()
        self._delete([name for name in found if THUMBNAIL.fullmatch(name) and name not in known])

    def _write_index(self) -> None:
        text = json.dumps(self._entries, indent=1)
        files.atomic_write(self._folder / INDEX, text.encode(), disk=self._disk)

    def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            files.remove(self._folder / name, disk=self._disk)


def thumbnail_name(sample_id: str) -> str:
    """The file name of a sample's thumbnail: it can be found from the id, and the id not from it."""
    return hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest() + ".png"


def thumbnail(image: Pixels) -> bytes:
    """A PNG of at most SIDE pixels a side with the proportions of `image`, uint8 RGB [H, W, 3]."""
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, "PNG", optimize=True)
    return content.getvalue()

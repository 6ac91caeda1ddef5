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

from streamcl.events import Pixels, PredictionRecord, Sample
from streamcl.protocols import State
from streamcl.sources.remote_sample import RemoteSample
from streamcl.storage import files

SIDE = 96
"""The longest side of a thumbnail, in pixels."""
INDEX = "index.json"
THUMBNAIL = re.compile(r"[0-9a-f]{64}\.png")


class Thumbnails:
    """Keeps `<folder>/<sha256 of the sample's id>.png` and a description of each in `<folder>/index.json`.

    per_shift: samples kept of each shift. max_shifts: shifts of which samples are kept, so that a stream that
    shifts at every step cannot fill the disk. Neither ids nor subjects are written.
    """

    def __init__(
        self, folder: Path, per_shift: int = 8, *, max_shifts: int = 40, disk: files.Disk = files.DISK
    ) -> None:
        self._folder, self._per_shift, self._max_shifts, self._disk = folder, per_shift, max_shifts, disk
        self._entries: list[dict[str, Any]] = []

    @property
    def entries(self) -> tuple[Mapping[str, Any], ...]:
        """The index, oldest first: offset (of the shift), file, label, predicted, confidence."""
        return tuple(dict(entry) for entry in self._entries)

    def keep(self, offset: int, samples: Sequence[Sample], predictions: Sequence[PredictionRecord]) -> None:
        """Keep samples after the shift at `offset`, with their predictions, until there are `per_shift`.

        May be called again with the same offset and later samples. Raise OSError where the disk fails.
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
            entry = {"offset": offset, "file": name, "label": sample.label}
            entry |= {"predicted": prediction.predicted, "confidence": prediction.confidence}
            self._entries.append(entry)
        self._write_index()

    def purge(self, ids: Iterable[str]) -> int:
        """Delete the thumbnails of these samples, indexed or left by a crash; return how many."""
        names = {thumbnail_name(sample_id) for sample_id in ids}
        before = len(self._entries)
        self._entries = [entry for entry in self._entries if entry["file"] not in names]
        if len(self._entries) < before:
            self._write_index()
        return self._delete(names)

    def forget_class(self, label: str) -> None:
        """Delete the thumbnails of a class, and its name as the prediction for others."""
        left = [
            {**entry, "predicted": None if entry["predicted"] == label else entry["predicted"]}
            for entry in self._entries
            if entry["label"] != label
        ]
        if left != self._entries:
            gone = {entry["file"] for entry in self._entries} - {entry["file"] for entry in left}
            self._entries = left
            self._write_index()
            self._delete(gone)

    def state_dict(self) -> State:
        """Return the index; the thumbnails themselves stay where they are."""
        return {"entries": [dict(entry) for entry in self._entries]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the index; delete thumbnails that are not in it."""
        self._entries = [dict(entry) for entry in state["entries"]]
        if not self._folder.is_dir():
            return
        known = {entry["file"] for entry in self._entries}
        found = {path.name for path in self._folder.iterdir() if THUMBNAIL.fullmatch(path.name)}
        self._write_index()
        self._delete(found - known)

    def _write_index(self) -> None:
        text = json.dumps(self._entries, indent=1)
        files.atomic_write(self._folder / INDEX, text.encode(), disk=self._disk)

    def _delete(self, names: Iterable[str]) -> int:
        """Delete those of the files that exist; return how many."""
        found = [path for name in sorted(names) if (path := self._folder / name).exists()]
        for path in found:
            files.remove(path, disk=self._disk)
        return len(found)


def thumbnail_name(sample_id: str) -> str:
    """Return the file name of a sample's thumbnail, a hash of the id."""
    return hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest() + ".png"


def thumbnail(image: Pixels) -> bytes:
    """Return a PNG of at most SIDE pixels a side with the proportions of `image`, uint8 RGB [H, W, 3]."""
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, "PNG", optimize=True)
    return content.getvalue()

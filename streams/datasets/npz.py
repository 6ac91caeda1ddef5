"""Labelled images in one `.npz` file: arrays as numpy writes them, never pickles."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import SourceError
from streams.datasets.layout import split_by_group
from streams.download.archives import refuse_bomb
from streams.replay.collection import Collection, Grouping, Images, Indices

Arrays = dict[str, npt.NDArray[Any]]

_EXPECTED = (
    "x (images [N, H, W] or [N, H, W, 3], uint8 or float in [0, 1]) or jpg + off (image files end to end and "
    "their int64 [N + 1] offsets), y (N labels); and, where there are any, d (domain), inst (subject), "
    "split (0 train, 1 test), meta (JSON text with the names: classes, domains, inst_names)"
)


def npz(path: str | Path, test_percent: float = 20, seed: int = 0) -> tuple[Collection, Collection]:
    """Read the two sides of an .npz file; without `split`, `test_percent` of each class is held out.

    Integer labels are indices into meta's `classes`, or are the class names as they stand ("0", "1", ...);
    string labels are class names, sorted. A negative label, domain or instance is none. Ids are
    "<file name>/<position in the file>".
    """
    file = Path(path).expanduser()
    arrays = _load(file)
    both = _collection(file, arrays)
    if "split" in arrays:
        test = np.flatnonzero(_integers(file, arrays, "split") == 1).astype(np.int64)
    else:
        names = (*both.classes, "unlabelled")  # label -1 is the last name
        test = split_by_group(both.labels % len(names), names, test_percent, seed)
    return both.split(test)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Image files end to end: file i is data[offsets[i]:offsets[i + 1]], of uint8 and int64 [N + 1]."""

    data: npt.NDArray[np.uint8]
    offsets: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int, /) -> bytes:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()


def _load(file: Path) -> Arrays:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            refuse_bomb(file, sum(info.file_size for info in archive.zip.infolist()))
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise SourceError(f"{file} does not exist", hint=f"expected an .npz file with {_EXPECTED}") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        hint = "arrays of Python objects are refused: they are pickles. Save strings as numpy strings"
        raise SourceError(f"{file} cannot be read as .npz: {error}", hint=hint) from error


def _collection(file: Path, arrays: Arrays) -> Collection:
    images = _images(file, arrays)
    meta = _meta(file, arrays)
    labels, classes = _labels(file, arrays, meta)
    if len(labels) != len(images):
        found = f"{len(images)} images and {len(labels)} labels"
        raise SourceError(f"{file}: {found}", hint=f"expected {_EXPECTED}")
    return Collection(
        name=file.stem,
        images=images,
        labels=labels,
        classes=classes,
        ids=tuple(f"{file.stem}/{index:05d}" for index in range(len(labels))),
        domains=_groups(file, arrays, "d", meta.get("domains")),
        subjects=_groups(file, arrays, "inst", meta.get("inst_names")),
    )


def _images(file: Path, arrays: Arrays) -> Images:
    if "x" in arrays and arrays["x"].ndim in (3, 4):
        return arrays["x"]
    if {"jpg", "off"} <= arrays.keys():
        offsets = _integers(file, arrays, "off")
        whole = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] <= len(arrays["jpg"])
        if not whole or (np.diff(offsets) < 0).any():
            raise SourceError(f"{file}: off does not rise from 0 to the length of jpg")
        return Packed(arrays["jpg"], offsets)
    found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
    raise SourceError(f"{file} has no images; it holds {found}", hint=f"expected {_EXPECTED}")


def _labels(file: Path, arrays: Arrays, meta: dict[str, Any]) -> tuple[Indices, tuple[str, ...]]:
    if "y" not in arrays:
        raise SourceError(f"{file} has no labels y", hint=f"expected {_EXPECTED}")
    if arrays["y"].dtype.kind == "U":
        names, codes = np.unique(arrays["y"], return_inverse=True)
        return codes.astype(np.int64), tuple(str(name) for name in names)
    labels = np.maximum(_integers(file, arrays, "y"), -1)
    return labels, _names(file, "classes", meta.get("classes"), labels)


def _groups(file: Path, arrays: Arrays, key: str, names: Any) -> Grouping | None:
    """Return None where the file has no groups, or the same for every image."""
    if key not in arrays:
        return None
    codes = np.maximum(_integers(file, arrays, key), -1)
    if len(np.unique(codes)) < 2:
        return None
    return Grouping(_names(file, key, names, codes), codes)


def _names(file: Path, what: str, names: Any, codes: Indices) -> tuple[str, ...]:
    count = int(codes.max(initial=-1)) + 1
    if names is None:
        return tuple(str(code) for code in range(count))
    if not isinstance(names, list) or len(names) < count or len(set(map(str, names))) != len(names):
        raise SourceError(f"{file}: meta has no list of {count} different names for {what}")
    return tuple(str(name) for name in names)


def _integers(file: Path, arrays: Arrays, key: str) -> Indices:
    array = arrays[key]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise SourceError(f"{file}: {key} is {array.dtype} {list(array.shape)}, expected integers [N]")
    return array.astype(np.int64)


def _meta(file: Path, arrays: Arrays) -> dict[str, Any]:
    if "meta" not in arrays:
        return {}
    try:
        meta = json.loads(str(arrays["meta"]))
    except ValueError as error:
        raise SourceError(f"{file}: meta is not JSON: {error}") from error
    return meta if isinstance(meta, dict) else {}

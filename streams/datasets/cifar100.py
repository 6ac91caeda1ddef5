"""CIFAR-100 (Krizhevsky 2009) from its python pickles, which are read without running what they may hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamcl.errors import SourceError
from streams.datasets.layout import FolderLayout
from streams.replay.collection import Collection

_LAYOUT = FolderLayout(
    "cifar-100-python/{train, test, meta}",
    "`streamcl fetch cifar100` downloads it (161 MB); give the folder that it names as root",
    ("cifar-100-python",),
)


def cifar100(root: str | Path, level: Literal["fine", "coarse"] = "fine") -> tuple[Collection, Collection]:
    """Read the 50,000 train and 10,000 test images of 32 x 32, in 100 fine or 20 coarse classes."""
    base = _LAYOUT.find_root(root)
    if not all((base / name).is_file() for name in ("train", "test", "meta")):
        raise _LAYOUT.refuse(base)
    names = _field(base / "meta", f"{level}_label_names", list)
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return _side(base, "train", level, classes), _side(base, "test", level, classes)


def _side(base: Path, side: str, level: str, classes: tuple[str, ...]) -> Collection:
    data = _field(base / side, "data", np.ndarray)  # [N, 3072] uint8, planes R, G, B of 32 x 32
    labels = np.array(_field(base / side, f"{level}_labels", list), np.int64)
    if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        raise SourceError(
            f"{base / side}: data is {data.dtype} {list(data.shape)}, expected uint8 [{len(labels)}, 3072]"
        )
    return Collection(
        name="cifar100",
        images=np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)),
        labels=labels,
        classes=classes,
        ids=tuple(f"cifar100/{side}/{index:05d}" for index in range(len(labels))),
    )


def _field(path: Path, key: str, kind: type[Any]) -> Any:
    table = read_pickle(path)
    value = table.get(key.encode(), table.get(key)) if isinstance(table, dict) else None
    if not isinstance(value, kind):
        raise SourceError(f"{path} has no {key!r}; expected {_LAYOUT.expected}", hint=_LAYOUT.hint)
    return value


def read_pickle(path: Path) -> Any:
    """Read a pickle of plain values, bytes and numpy arrays; run nothing that it names.

    Raise SourceError where the pickle is damaged or names any other global.
    """
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="bytes").load()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}", hint=_LAYOUT.hint) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise SourceError(f"{path} is not a pickle of plain arrays: {error}", hint=_LAYOUT.hint) from error


def _latin1(text: str, encoding: str) -> bytes:
    """Encode text as pickle protocol 2 writes bytes; no other codec is admitted."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not admitted")
    return text.encode("latin1")


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(0).__reduce_ex__(5)[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")
        return _ADMITTED[module, name]

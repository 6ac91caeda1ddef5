"""Lets timm be imported where torchvision's C++ operators cannot load, as beside a CPU-only torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a Library takes its schemas with it when it is collected


def declare() -> None:
    """Declare the operators whose absence makes `import torchvision` fail; call before timm is imported.

    timm needs torchvision's transforms only, never these operators, so a schema without a kernel is
    enough. Nothing happens where torchvision is absent, where its operators load, or the second time.
    """
    if _libraries or not _torchvision_is_installed() or _operators_load():
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def _torchvision_is_installed() -> bool:
    return importlib.util.find_spec("torchvision") is not None


def _operators_load() -> bool:
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    try:
        torch.ops.load_library(str(_extension()))
    except (OSError, ImportError):
        return False
    return hasattr(torch.ops.torchvision, "nms")


def _extension() -> Path:
    """torchvision's operators on disk; importing it to ask would leave half of it behind."""
    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob("_C*.*"))]
    if not found:
        raise ImportError("torchvision has no _C extension")
    return found[0]

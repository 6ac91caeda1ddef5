"""Makes torchvision importable beside a torch of another build, where its own operators do not load."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a Library takes its schemas with it when it is collected


def declare_torchvision_operators() -> None:
    """Declare the operators whose absence makes `import torchvision` fail.

    Transforms and data sets never call these operators, so a schema without a kernel is enough. Nothing
    happens where torchvision is absent, where its operators load, or the second time.
    """
    spec = importlib.util.find_spec("torchvision")
    if _libraries or spec is None or _operators_load(spec):
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def _operators_load(spec: ModuleSpec) -> bool:
    """Load torchvision's extension by its path; importing torchvision would leave half of it behind."""
    if not hasattr(torch.ops.torchvision, "nms"):
        folders = spec.submodule_search_locations or []
        found = [path for folder in folders for path in sorted(Path(folder).glob("_C*.*"))]
        try:
            torch.ops.load_library(str(found[0]))
        except (IndexError, OSError, ImportError):
            return False
    return hasattr(torch.ops.torchvision, "nms")

"""Reads backbone weights from files and checks that they fill the model."""

from __future__ import annotations

from streamcl.weights.convert import convert_onnx
from streamcl.weights.fit import fitting, refuse_other_patches
from streamcl.weights.formats import read

__all__ = ["convert_onnx", "fitting", "read", "refuse_other_patches"]

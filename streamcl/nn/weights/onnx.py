"""Reads the weights back out of an ONNX export of a ViT, whose exporter has renamed the matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamcl.errors import MissingExtra, WeightsError


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ViT's ONNX graph by name, matrices under that of the bias added after them.

    Exporters fold the transposition of a linear layer's weight into an anonymous initialiser
    (`onnx::MatMul_17`); its product is added to `...fc1.bias`, so it is `...fc1.weight`, transposed. The
    position embedding, anonymous too, is found by its shape, given the class token's.
    Raise MissingExtra without the onnx package.
    """
    graph, numpy_helper = _graph(path)
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    named = {key: value for key, value in tensors.items() if not key.startswith("onnx::")}
    named |= _matrices(graph, tensors)
    if not any(key.endswith(("position_embeddings", "pos_embed")) for key in named):
        named |= _positions(tensors)
    return named


def _graph(path: Path) -> tuple[Any, Any]:
    """Return the file's graph, and onnx.numpy_helper."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        hint = "pip install 'streamcl[onnx]', or convert the file where onnx is installed"
        raise MissingExtra(f"{path}: reading ONNX needs the onnx package", hint=hint) from error
    try:
        return onnx.load(path).graph, numpy_helper
    except Exception as error:  # protobuf's DecodeError is not importable from one stable place
        raise WeightsError(f"{path}: not an ONNX file: {error}") from error


def _matrices(graph: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights [out, in] of the linear layers: MatMul with an initialiser, then Add of a named bias."""
    product = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    found = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name in tensors and name.endswith(".bias")), None)
        matrix = next((product[name] for name in node.input if name in product), None)
        if bias is not None and matrix is not None:
            found[bias.removesuffix("bias") + "weight"] = tensors[matrix].T.contiguous()
    return found


def _positions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the position embedding of class token [1, 1, d] and grid [1, N, d], which exporters split."""
    token = next((key for key in tensors if key.endswith("cls_token")), None)
    if token is None:
        return {}
    shape = tensors[token].shape
    anonymous = [value for key, value in tensors.items() if key.startswith("onnx::") and value.ndim == 3]
    fitting = [value for value in anonymous if value.shape[0] == 1 and value.shape[-1] == shape[-1]]
    first = [value for value in fitting if value.shape == shape]
    grid = [value for value in fitting if value.shape[1] > 1]
    if len(grid) != 1 or len(first) > 1:
        return {}
    name = "position_embeddings" if "embeddings." in token else "pos_embed"
    return {token.removesuffix("cls_token") + name: torch.cat([*first, *grid], dim=1)}

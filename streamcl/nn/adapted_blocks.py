"""Adapted copies of a frozen transformer's later blocks, which share every tensor that is not their own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamcl.errors import CheckpointError, ConfigError
from streamcl.nn.backbone import Backbone
from streamcl.nn.frozen_linear import FrozenLinear
from streamcl.nn.lora import LoRALinear
from streamcl.nn.low_pass_backprop import LowPass, low_pass_linears
from streamcl.protocols import State

AttentionKind: TypeAlias = Literal["fused", "plain", "recomputed"]


class Adapters(nn.Module):
    """Adapted copies of the blocks first_block .. depth - 1, sharing every frozen tensor with the backbone.

    The backbone itself stays as it was, so a frozen and an adapted branch can run side by side. Any linear
    layer of a copy can be given a weight of its own (`set_weight`), which the exported state holds in full.

    low_pass: computes the gradient through the copies' frozen weights on bases of the patch grid
    (arXiv 2309.15275, 2301.00330); None computes it in full.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int,
        first_block: int,
        generator: torch.Generator,
        low_pass: LowPass | None = None,
    ) -> None:
        super().__init__()
        count = len(backbone.blocks)
        if not 0 <= first_block < count:
            raise ConfigError(f"first_block is {first_block}, expected 0..{count - 1}")
        blocks = backbone.blocks[first_block:]
        self.first_block = first_block
        self.rank = rank
        self._backbone = (backbone,)  # in a tuple, so that it is no submodule: its parameters are not ours
        self.block_names = backbone.block_names[first_block:]
        self.names = tuple(f"{name}.attn.qkv" for name in self.block_names)
        self.layers = [LoRALinear(backbone.qkv(block), rank, generator, low_pass) for block in blocks]
        self.blocks = nn.ModuleList(map(_adapted, blocks, self.layers))
        if low_pass is not None:
            for block in self.blocks:
                low_pass_linears(block, low_pass)
        self._attentions: list[Any] = [block.attn for block in self.blocks]
        self._fused = [bool(getattr(attention, "fused_attn", False)) for attention in self._attentions]
        frozen = [layer for layer in self.linears.values() if isinstance(layer, FrozenLinear)]
        self._quick_products = [(layer, layer.quick_product) for layer in frozen]
        self._use_quick_products(used=False)
        self._originals: dict[str, Any] = {}  # by path: the backbone's weight where ours differs
        self.eval()

    def train(self, mode: bool = True) -> Adapters:  # noqa: ARG002
        """Stay in evaluation mode: the frozen blocks' dropout is off while the adapters learn."""
        return super().train(mode=False)

    @property
    def backbone(self) -> Backbone:
        """The backbone whose blocks are adapted; never changed."""
        return self._backbone[0]

    def run(self, tokens: Tensor) -> list[Tensor]:
        """Return the outputs [B, N, d] of each adapted block, given the tokens [B, N, d] of first_block."""
        self._choose_attention(tokens)
        return self.backbone.run(tokens, self.first_block, None, list(self.blocks))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Return the classifier's input [B, width], given the tokens [B, N, d] that enter first_block."""
        self._choose_attention(tokens)
        return self.backbone.forward_head(tokens, self.first_block, list(self.blocks))

    def _choose_attention(self, tokens: Tensor) -> None:
        """Have attention computed as `_attention_kind` says, by what timm's attention reads at each call."""
        kind = _attention_kind(tokens, len(self.blocks), self._attentions[0].num_heads)
        for attention, fused in zip(self._attentions, self._fused, strict=True):
            attention.fused_attn = fused and kind == "fused"
            attention.__dict__.pop("forward", None)
            if kind == "recomputed":
                attention.forward = _recomputing(attention)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return lora_A and lora_B of every layer by timm's path, as `blocks.3.attn.qkv.lora_A`."""
        pairs = zip(self.names, self.layers, strict=True)
        return {f"{name}.{key}": getattr(layer, key) for name, layer in pairs for key in ("lora_A", "lora_B")}

    def consolidate(self, generator: torch.Generator) -> None:
        """Merge every pair into its layer's weights and draw others, as Online-LoRA does (arXiv 2411.05663).

        Outputs do not change. The parameters are the same objects with new values: drop their moments.
        """
        for layer in self.layers:
            layer.merge()
            layer.reset_lora(generator)

    def bypass_lora(self) -> None:
        """Skip the live pairs, which add nothing while they are new, in passes without gradients."""
        for layer in self.layers:
            layer.bypassed = True
        self._use_quick_products(used=True)

    def _use_quick_products(self, *, used: bool) -> None:
        """Have the copies' linear layers multiply as the backbone's do in passes without gradients, or not.

        They do not while the pairs are live, whose learning and predictions are of one kind of product.
        """
        for layer, product in self._quick_products:
            layer.quick_product = product if used else None

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers of the adapted blocks by timm's path, as `blocks.3.mlp.fc1`; none is a qkv."""
        blocks = zip(self.block_names, self.blocks, strict=True)
        found = ((f"{name}.{path}", m) for name, block in blocks for path, m in block.named_modules())
        return {path: module for path, module in found if isinstance(module, nn.Linear)}

    def linear(self, path: str) -> nn.Linear:
        """Return one of `linears`. Raise KeyError."""
        return self.linears[path]

    def frozen_weight(self, path: str) -> Tensor:
        """Return the backbone's own weight [o, d] of a linear layer."""
        return torch.as_tensor(self._originals.get(path, self.linear(path).weight))

    def set_weight(self, path: str, weight: Tensor) -> None:
        """Replace the weight of an adapted block's linear layer by a copy.

        Args:
            path: one of `linears`.
            weight: [o, d], the shape of the layer's own.

        Raises:
            ValueError: another shape.
            KeyError: there is no such layer.
        """
        layer = self.linear(path)
        if weight.shape != layer.weight.shape:
            raise ValueError(f"{path}: {tuple(weight.shape)} is not the shape {tuple(layer.weight.shape)}")
        self._originals.setdefault(path, layer.weight)
        layer.weight = nn.Parameter(weight.detach().to(layer.weight, copy=True), requires_grad=False)

    @property
    def replaced_weights(self) -> dict[str, Tensor]:
        """The weights [o, d] that `set_weight` has put into linear layers, by path."""
        return {path: self.linear(path).weight.detach() for path in self._originals}

    @property
    def weight_changes(self) -> dict[str, Tensor]:
        """The replaced weights less the backbone's, [o, d] float64 by path."""
        edits = self.replaced_weights
        return {path: edits[path].double() - old.double() for path, old in self._originals.items()}

    def restore_weights(self) -> None:
        """Give every linear layer whose weight was replaced the backbone's weight again."""
        for path, weight in self._originals.items():
            self.linear(path).weight = weight
        self._originals.clear()

    def export_state(self) -> State:
        """Return float32 copies by layer: lora_A, lora_B, q and v rows once merged, and replaced weights."""
        pairs = {name: each.export_state() for name, each in zip(self.names, self.layers, strict=True)}
        replaced = self.replaced_weights.items()
        return pairs | {path: {"weight": weight.cpu().numpy().copy()} for path, weight in replaced}

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Become the adapters that exported `state`. Raise CheckpointError where the layers differ."""
        edits = {path: _exported_weight(self, path, state[path]) for path in state if path not in self.names}
        if missing := set(self.names) - set(state):
            raise CheckpointError(f"adapters of {sorted(state)} were expected to be of {sorted(missing)} too")
        for name, layer in zip(self.names, self.layers, strict=True):
            layer.import_state(name, state[name])
        self._use_quick_products(used=False)
        self.restore_weights()
        for path, weight in edits.items():
            self.set_weight(path, weight)


def _adapted(block: nn.Module, layer: LoRALinear) -> nn.Module:
    """Return a copy of the block that shares its tensors, with `layer` for its qkv projection."""
    shared = {id(tensor): tensor for tensor in [*block.parameters(), *block.buffers()]}
    copied: Any = copy.deepcopy(block, shared)
    copied.attn.qkv = layer
    if hasattr(copied.attn, "qkv_bias_separate"):
        copied.attn.qkv_bias_separate = True  # else eva reads qkv.weight and never calls the layer
    return copied  # type: ignore[no-any-return]


ATTENTION_MAP_LIMIT = 2**30
"""Bytes of attention maps that are kept for the backward pass."""


def attention_map_bytes(tokens: Tensor, heads: int) -> int:
    """Return the bytes of the maps of one block that products in bf16 keep, at most.

    Args:
        tokens: [B, N, d], or [B, H, W, d] of a swin, whose windows have smaller maps.
        heads: of its attention.
    """
    return 12 * len(tokens) * heads * tokens[0, ..., 0].numel() ** 2  # a float32 softmax and its bf16 copies


def _attention_kind(tokens: Tensor, blocks: int, heads: int) -> AttentionKind:
    """Return how to compute attention: by torch's fused kernel, or by plain products.

    On a CPU the fused kernel takes 3 to 5 times as long in bf16, forward and backward (64 images of a ViT-S
    at 26 tokens: 46 ms and 9; 16 of a ViT-B at 197 tokens: 148 and 51); in float32 they are even. Plain
    products keep their maps for the backward pass. Where those of all blocks are past ATTENTION_MAP_LIMIT,
    each block computes its own anew there, with the same results; where those of one are, the kernel, which
    has none, is used. The choice depends on shapes and precision alone, so a resumed run computes as before.
    """
    if not (tokens.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return "fused"
    of_block = attention_map_bytes(tokens, heads)
    if of_block > ATTENTION_MAP_LIMIT:
        return "fused"
    return "plain" if of_block * blocks <= ATTENTION_MAP_LIMIT else "recomputed"


def _recomputing(attention: Any) -> Callable[..., Tensor]:
    """Return a forward pass by plain products that keeps its input alone, and runs again when going back."""

    def plain(*args: Any, **kwargs: Any) -> Tensor:
        fused, attention.fused_attn = attention.fused_attn, False  # another pass may have set it since
        try:
            return type(attention).forward(attention, *args, **kwargs)  # type: ignore[no-any-return]
        finally:
            attention.fused_attn = fused

    return functools.partial(checkpoint, plain, use_reentrant=False, preserve_rng_state=False)


def _exported_weight(adapters: Adapters, path: str, state: Mapping[str, Any]) -> Tensor:
    """Return the exported weight of a linear layer. Raise CheckpointError where the blocks have none such."""
    try:
        weight, own = torch.from_numpy(state["weight"]), adapters.linear(path).weight
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a linear layer of these adapted blocks") from error
    if weight.shape != own.shape:
        raise CheckpointError(f"{path} has shape {tuple(weight.shape)}, expected {tuple(own.shape)}")
    return weight

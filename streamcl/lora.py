"""Low-rank adapters on the query and value rows of a frozen transformer's fused qkv projections."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamcl.adapted_product import AdaptedProduct
from streamcl.errors import CheckpointError, ConfigError
from streamcl.low_pass import LowPass, low_pass_linears
from streamcl.protocols import State


class Adaptable(Protocol):
    """What the adapters need of a backbone."""

    model: Any
    width: int

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in the order of depth."""
        ...

    @property
    def block_names(self) -> tuple[str, ...]:
        """Their paths in the model."""
        ...

    @property
    def classifier(self) -> tuple[str, ...]:
        """Paths of the classifiers in the model."""
        ...

    def qkv(self, block: nn.Module) -> nn.Linear:
        """The fused projection of a block."""
        ...

    def run(
        self,
        tokens: Tensor,
        start: int = 0,
        stop: int | None = None,
        blocks: Sequence[nn.Module] | None = None,
    ) -> list[Tensor]:
        """Outputs after the blocks start .. stop - 1, with other blocks in their place where given."""
        ...


class LoRALinear(nn.Module):
    """A frozen qkv projection plus low-rank updates of its q and v rows (arXiv 2106.09685, 2411.05663).

    y = x W^T + b, then q += x A_q^T B_q^T and v += x A_v^T B_v^T; k is untouched and nothing is scaled
    by alpha / r. lora_A [2r, d] holds A_q above A_v, so one product serves both; lora_B [2, o, r] holds
    B_q and B_v, o = d_out / 3. W and b are the frozen layer's own tensors until the first `fold`.
    """

    def __init__(
        self, frozen: nn.Linear, rank: int, generator: torch.Generator, low_pass: LowPass | None = None
    ) -> None:
        super().__init__()
        self.low_pass = low_pass
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        if not 1 <= rank <= self.in_features:
            raise ConfigError(f"a LoRA rank lies between 1 and the width {self.in_features}, not at {rank}")
        self.rank = rank
        self.weight = frozen.weight  # [3o, d]
        self.bias = frozen.bias
        self._frozen = (frozen.weight,)  # in a tuple: the backbone's for good, not a parameter of ours
        self._cast: Any = None  # W itself, what it was like when it was cast, and the cast W and b
        device = frozen.weight.device
        self.lora_A = nn.Parameter(torch.empty(2 * rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.empty(2, self.out_features // 3, rank, device=device))
        self.redraw(generator)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] to [..., 3o]."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        weight, bias = self._cast_to(dtype)
        with torch.autocast(kind, enabled=False):
            A, R = self.lora_A.to(dtype), self._rows().to(dtype)
            rows = x.to(dtype).reshape(-1, self.in_features)
            y, _ = AdaptedProduct.apply(rows, weight, bias, A, R, self.low_pass)  # type: ignore[no-untyped-call]
        return torch.as_tensor(y).view(*x.shape[:-1], self.out_features)

    def _cast_to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """W and b in that dtype. What was cast is kept until W changes: autocast would cast at every call."""
        if self.weight.dtype == dtype:
            return self.weight, self.bias
        key = (dtype, self.weight.device, self.weight._version)
        if self._cast is None or self._cast[0] is not self.weight or self._cast[1] != key:
            bias = None if self.bias is None else self.bias.to(dtype)
            self._cast = (self.weight, key, self.weight.to(dtype), bias)
        return self._cast[2], self._cast[3]

    def _rows(self) -> Tensor:
        """[3o, 2r]: B_q in the q rows over A_q's columns, B_v in the v rows over A_v's, zero elsewhere."""
        query, value = self.lora_B
        none = torch.zeros_like(query)
        return torch.cat(
            [torch.cat([query, none], 1), torch.cat([none, none], 1), torch.cat([none, value], 1)]
        )

    @property
    def folded(self) -> bool:
        """Whether W is this layer's own copy, no longer the backbone's."""
        return self.weight is not self._frozen[0]

    @torch.no_grad()
    def delta(self) -> Tensor:
        """[2, o, d] float64: B_q A_q and B_v A_v, what the live pair adds to the q and the v rows."""
        return self.lora_B.double() @ self.lora_A.double().view(2, self.rank, self.in_features)

    @torch.no_grad()
    def fold(self) -> None:
        """Add the live pair to this layer's own copy of W. The pair is left as it is: `redraw` it next."""
        rows = (self.adapted_rows().double() + self.delta()).to(self.weight.dtype)
        self.set_adapted_rows(rows)

    @torch.no_grad()
    def redraw(self, generator: torch.Generator) -> None:
        """A fresh pair: A ~ kaiming uniform (a = sqrt 5), B = 0. It adds nothing, yet B has a gradient."""
        bound = 1 / math.sqrt(self.in_features)  # kaiming's bound sqrt(6 / ((1 + a^2) d)) at a = sqrt 5
        drawn = torch.rand(self.lora_A.shape, generator=generator, device=generator.device)
        self.lora_A.copy_((2 * drawn - 1) * bound)
        self.lora_B.zero_()

    @torch.no_grad()
    def total(self) -> Tensor:
        """[2, o, d] float64: what the q and v rows have gained over the backbone's, folded and live."""
        frozen = self._frozen[0].view(3, -1, self.in_features)[[0, 2]]
        return self.adapted_rows().double() - frozen.double() + self.delta()

    @torch.no_grad()
    def adapted_rows(self) -> Tensor:
        """[2, o, d]: a copy of W's q and v rows, with all that was folded."""
        return self.weight.view(3, -1, self.in_features)[[0, 2]]

    @torch.no_grad()
    def set_adapted_rows(self, rows: Tensor) -> None:
        """Have these q and v rows in W, which from now on is this layer's own."""
        if not self.folded:
            self.weight = nn.Parameter(self.weight.clone(), requires_grad=False)
        triple = self.weight.view(3, -1, self.in_features)  # q, k, v
        for part, changed in zip((0, 2), rows, strict=True):
            triple[part].copy_(changed)

    def unfold(self) -> None:
        """Go back to the backbone's own W, as before the first fold."""
        self.weight = self._frozen[0]


class Adapters(nn.Module):
    """Adapted copies of the blocks first_block .. depth - 1, sharing every frozen tensor with the backbone.

    The backbone itself stays as it was, so a frozen and an adapted branch can run side by side. Any linear
    layer of a copy can be given a weight of its own (`edit`); it is part of the exported state, whole.

    low_pass: takes the gradient through the frozen weights of the copies on low-pass bases (arXiv
    2309.15275); None passes it whole.
    """

    def __init__(
        self,
        backbone: Adaptable,
        *,
        rank: int,
        first_block: int,
        generator: torch.Generator,
        low_pass: LowPass | None = None,
    ) -> None:
        super().__init__()
        count = len(backbone.blocks)
        if not 0 <= first_block < count:
            raise ConfigError(f"first_block lies in 0..{count - 1}, not at {first_block}")
        blocks = backbone.blocks[first_block:]
        self.first_block = first_block
        self.rank = rank
        self._backbone = (backbone,)  # in a tuple, so that it is no submodule: its parameters are not ours
        self.names = tuple(f"{name}.attn.qkv" for name in backbone.block_names[first_block:])
        self.layers = [LoRALinear(backbone.qkv(block), rank, generator, low_pass) for block in blocks]
        self.blocks = nn.ModuleList(map(_adapted, blocks, self.layers))
        if low_pass is not None:
            for block in self.blocks:
                low_pass_linears(block, low_pass)
        self.block_names = backbone.block_names[first_block:]
        self._attentions: list[Any] = [block.attn for block in self.blocks]
        self._fused = [bool(getattr(attention, "fused_attn", False)) for attention in self._attentions]
        self._originals: dict[str, Any] = {}  # by path: the backbone's weight where ours differs
        self.eval()

    def train(self, mode: bool = True) -> Adapters:  # noqa: ARG002
        """Stay in evaluation mode: the frozen blocks' dropout is off while the adapters learn."""
        return super().train(mode=False)

    @property
    def backbone(self) -> Adaptable:
        """The backbone whose blocks are adapted; never changed."""
        return self._backbone[0]

    def run(self, tokens: Tensor) -> list[Tensor]:
        """Outputs after the blocks first_block .. depth - 1, given the tokens that enter first_block.

        timm's attention reads `fused_attn` at each call; see `_by_hand` for when it is off.
        """
        by_hand = _by_hand(tokens, len(self.blocks), self._attentions[0].num_heads)
        for block, fused in zip(self._attentions, self._fused, strict=True):
            block.fused_attn = fused and not by_hand
        return self.backbone.run(tokens, self.first_block, None, list(self.blocks))

    def trainable(self) -> dict[str, nn.Parameter]:
        """lora_A and lora_B of every layer, by timm's path of the layer, as `blocks.3.attn.qkv.lora_A`."""
        pairs = zip(self.names, self.layers, strict=True)
        return {f"{name}.{key}": getattr(layer, key) for name, layer in pairs for key in ("lora_A", "lora_B")}

    def consolidate(self, generator: torch.Generator) -> None:
        """Fold every pair into its layer's weights and draw fresh ones; outputs stay as they are.

        The fresh pairs are the same parameters with new values: drop an optimizer's moments of them.
        """
        for layer in self.layers:
            layer.fold()
            layer.redraw(generator)

    def linear(self, path: str) -> nn.Linear:
        """An adapted block's own linear layer by timm's path, as `blocks.3.mlp.fc1`; KeyError for no such."""
        for name, block in zip(self.block_names, self.blocks, strict=True):
            if path.startswith(f"{name}."):
                found = dict(block.named_modules()).get(path.removeprefix(f"{name}."))
                if isinstance(found, nn.Linear):
                    return found
        raise KeyError(path)

    def has_linear(self, path: str) -> bool:
        """Whether there is such a linear layer; a qkv projection is none of them."""
        try:
            return path not in self.names and self.linear(path) is not None
        except KeyError:
            return False

    def original(self, path: str) -> Tensor:
        """The backbone's own weight of a linear layer."""
        weight: Tensor = self._originals.get(path, self.linear(path).weight)
        return weight

    def edit(self, path: str, weight: Tensor) -> None:
        """Have this weight, copied, in that linear layer from now on; the backbone keeps its own."""
        layer = self.linear(path)
        if weight.shape != layer.weight.shape:
            raise ValueError(f"{path}: {tuple(weight.shape)} is not the shape {tuple(layer.weight.shape)}")
        self._originals.setdefault(path, layer.weight)
        layer.weight = nn.Parameter(weight.detach().to(layer.weight, copy=True), requires_grad=False)

    @property
    def edits(self) -> dict[str, Tensor]:
        """The weights that were given to linear layers, by path."""
        return {path: self.linear(path).weight.detach() for path in self._originals}

    @property
    def gains(self) -> dict[str, Tensor]:
        """float64, by path: what the weights given to linear layers have over the backbone's."""
        edits = self.edits
        return {path: edits[path].double() - old.double() for path, old in self._originals.items()}

    def revert(self) -> None:
        """Go back to the backbone's own weight in every linear layer that was given another."""
        for path, weight in self._originals.items():
            self.linear(path).weight = weight
        self._originals.clear()

    def export_state(self) -> State:
        """Per layer lora_A, lora_B and, once folded, the q and v rows of W; per edited layer its weight.

        Float32 arrays, copied.
        """
        pairs = {name: _layer_state(layer) for name, layer in zip(self.names, self.layers, strict=True)}
        edits = {path: {"weight": weight.cpu().numpy().copy()} for path, weight in self.edits.items()}
        return pairs | edits

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Become the adapters that exported `state`. Raises CheckpointError where it is of others."""
        edits = {path: _edit_of(self, path, state[path]) for path in state if path not in self.names}
        if missing := set(self.names) - set(state):
            raise CheckpointError(f"adapters of {sorted(state)} were expected to be of {sorted(missing)} too")
        for name, layer in zip(self.names, self.layers, strict=True):
            _load_layer(name, layer, state[name])
        self.revert()
        for path, weight in edits.items():
            self.edit(path, weight)


def _adapted(block: nn.Module, layer: LoRALinear) -> nn.Module:
    """A copy of the block's modules around the very same tensors, with `layer` for its qkv projection."""
    shared = {id(tensor): tensor for tensor in [*block.parameters(), *block.buffers()]}
    copied: Any = copy.deepcopy(block, shared)
    copied.attn.qkv = layer
    if hasattr(copied.attn, "qkv_bias_separate"):
        copied.attn.qkv_bias_separate = True  # else eva reads qkv.weight and never calls the layer
    return copied  # type: ignore[no-any-return]


_ROOM = 2**30  # bytes that kept attention maps may take


def _by_hand(tokens: Tensor, blocks: int, heads: int) -> bool:
    """Whether attention is to be made of plain products, which keep the attention maps for the way back.

    On a CPU torch's fused attention with its backward pass takes 3 to 5 times as long in bf16 (64 images of a
    ViT-S at 26 tokens: 46 ms and 9; 16 of a ViT-B at 197 tokens: 148 and 51); in float32 they are even. It
    depends on shapes and precision alone, so a resumed run computes as the one before it did.
    """
    if not (tokens.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return False
    batch, count = len(tokens), tokens[0, ..., 0].numel()  # swin's windows are smaller: an upper bound
    maps = batch * heads * count**2 * blocks
    return 12 * maps <= _ROOM  # a float32 softmax and its bf16 copies


def _layer_state(layer: LoRALinear) -> State:
    tensors: dict[str, Tensor] = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}
    if layer.folded:
        tensors["rows"] = layer.adapted_rows()
    return {key: value.detach().cpu().numpy().copy() for key, value in tensors.items()}


def _edit_of(adapters: Adapters, path: str, state: Mapping[str, Any]) -> Tensor:
    """The weight of an edited linear layer; CheckpointError where it is not one of these adapters."""
    try:
        weight, own = torch.from_numpy(state["weight"]), adapters.linear(path).weight
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no linear layer of these adapted blocks") from error
    if weight.shape != own.shape:
        raise CheckpointError(f"{path} has shape {tuple(weight.shape)}, expected {tuple(own.shape)}")
    return weight


def _load_layer(name: str, layer: LoRALinear, state: Mapping[str, Any]) -> None:
    own: dict[str, Tensor] = {"lora_A": layer.lora_A, "lora_B": layer.lora_B, "rows": layer.adapted_rows()}
    wrong = [key for key in state if key not in own or state[key].shape != tuple(own[key].shape)]
    missing = {"lora_A", "lora_B"} - set(state)
    if wrong or missing:
        raise CheckpointError(f"{name}: {sorted({*wrong, *missing})} is missing, unknown or of another shape")
    with torch.no_grad():
        layer.lora_A.copy_(torch.from_numpy(state["lora_A"]))
        layer.lora_B.copy_(torch.from_numpy(state["lora_B"]))
    if "rows" in state:
        layer.set_adapted_rows(torch.from_numpy(state["rows"]))
    else:
        layer.unfold()

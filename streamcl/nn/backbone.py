"""A frozen timm transformer as stem, blocks and final norm, which can be run in part."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl.errors import ConfigError
from streamcl.events import Pixels
from streamcl.nn.frozen_linear import freeze_linears
from streamcl.nn.timm_compat import block_paths, fused_qkv, tokens_of_head


class Backbone(nn.Module):
    """A frozen timm transformer whose blocks can be run in part, or replaced by adapted copies.

    Attributes: name, image_size (pixels of a side), width (of `final`), depth (blocks kept), fingerprint
    (sha256 of the architecture's name, the image size and the weights). Tokens are [B, N, d], and
    [B, H, W, d] in swin, where d grows from stage to stage. Parameters never require gradients, and the model
    stays in evaluation mode even after `train()`.
    """

    def __init__(self, name: str, model: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.name = name
        self.model = cast(Any, model.requires_grad_(False))
        freeze_linears(model)
        self.image_size: int = self.model.patch_embed.img_size[0]
        self.width: int = self.model.head_hidden_size
        self.block_names, self._downsample = block_paths(model)
        self.depth = len(self.block_names)
        self.fingerprint = _fingerprint(name, self.image_size, model)
        self._mean: Tensor
        self._scale: Tensor
        self.register_buffer("_mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)
        self._quick: dict[int, Callable[..., Tensor]] = {}
        self._quick_rows: frozenset[int] = frozenset()
        self._rope: Tensor | None
        self.eval()
        self.register_buffer("_rope", _rotary(self.model, self.image_size), persistent=False)

    @property
    def classifier(self) -> tuple[str, ...]:
        """Paths in the timm model of the classifiers that read `final`; a distilled model has two."""
        named = self.model.pretrained_cfg.get("classifier") or "head"
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in the order of depth; swin's stages one after another."""
        return [self.model.get_submodule(name) for name in self.block_names]

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """Prefix tokens, rows and columns of patches, which together are the tokens of every block.

        None in swin, whose blocks see windows.
        """
        if self._downsample:
            return None
        height, width = self.model.patch_embed.grid_size
        return int(getattr(self.model, "num_prefix_tokens", 0)), int(height), int(width)

    @property
    def places_first(self) -> bool:
        """Whether patches get their places before the blocks, so that blocks can run on some of them."""
        return not self._downsample and self._rope is None

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._mean.device

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002
        """Stay in evaluation mode: a frozen model has no dropout, no stochastic depth."""
        return super().train(mode=False)

    def prepare(self, images: Sequence[Pixels]) -> Tensor:
        """Return [B, 3, S, S] float32 on the device, of B uint8 RGB images [H, W, 3] of any sizes.

        The whole image is resized (bicubic, antialiased; the aspect ratio is not kept) and normalised
        with the model's own mean and standard deviation. Images of equal size are sent as one uint8 tensor.
        """
        pixels = torch.empty(len(images), 3, self.image_size, self.image_size, device=self.device)
        for shape in sorted({image.shape for image in images}):
            rows = [row for row, image in enumerate(images) if image.shape == shape]
            levels = torch.from_numpy(np.stack([images[row] for row in rows]))
            if self.device.type == "cuda":  # pinned, so that the copy need not wait for the GPU's queue
                levels = levels.pin_memory().to(self.device, non_blocking=True)
            pixels[rows] = _resized(levels.to(self.device).permute(0, 3, 1, 2), self.image_size).float()
        return pixels.sub_(self._mean).mul_(self._scale)

    def levels(self, pixels: Tensor) -> Tensor:
        """Return the levels 0..255 [B, 3, S, S] of pixels [B, 3, S, S] as `prepare` returns them."""
        return (pixels / self._scale + self._mean).round()

    def stem(self, pixels: Tensor) -> Tensor:
        """Return the tokens [B, N, d] ([B, H, W, d] in swin) that enter block 0, of pixels [B, 3, S, S]."""
        tokens = self.model.patch_embed(pixels)
        if hasattr(self.model, "_pos_embed"):
            placed = self.model._pos_embed(tokens)
            tokens = placed[0] if isinstance(placed, tuple) else placed  # eva returns (tokens, rope)
            tokens = self.model.norm_pre(tokens)
        return torch.as_tensor(tokens)

    def run(
        self,
        tokens: Tensor,
        start: int = 0,
        stop: int | None = None,
        blocks: Sequence[Callable[..., Tensor]] | None = None,
    ) -> list[Tensor]:
        """Return the outputs [B, N, d] after each of the blocks start .. stop - 1.

        Args:
            tokens: [B, N, d], those that enter block `start` ([B, H, W, d] in swin).
            start: number of the first block to run.
            stop: the block before which to stop; None runs to the last.
            blocks: run in place of the backbone's own from `start` on. Swin's downsampling before the first
                block of a stage is always the backbone's.
        """
        chosen = self.blocks[start:] if blocks is None else blocks
        outputs = []
        for index in range(start, self.depth if stop is None else stop):
            tokens = self._step(index, chosen[index - start], tokens)
            outputs.append(tokens)
        return outputs

    def forward_head(
        self, tokens: Tensor, start: int = 0, blocks: Sequence[nn.Module] | None = None
    ) -> Tensor:
        """Return `final` [B, width] float32.

        Where the classifier reads the class token alone, the last block's MLP, two thirds of its work, is run
        on that token only: the same result for a twentieth less of a ViT-S.

        Args:
            tokens: [B, N, d], those that enter block `start`.
            start: number of the first block to run.
            blocks: as in `run`.
        """
        own = self.blocks[start:] if blocks is None else blocks
        chosen: list[Callable[..., Tensor]] = [*own]
        if own and (read := tokens_of_head(self.model, own[-1])):
            chosen[-1] = functools.partial(_narrowed, own[-1], read)
        return self.final([tokens, *self.run(tokens, start, None, chosen)][-1])

    @property
    def quick_blocks(self) -> list[Callable[..., Tensor]]:
        """The blocks as they run without gradients: those of `use_quick_blocks`, else its own."""
        return [self._quick.get(id(block), block) for block in self.blocks]

    def use_quick_blocks(self, blocks: Sequence[Callable[..., Tensor]], *, rows: frozenset[int]) -> None:
        """Use compiled or captured blocks in place of its own, where no gradients are needed.

        Args:
            blocks: one for each block, of tokens [B, N, d].
            rows: the batch sizes B for which they are used.
        """
        self._quick = {id(own): quick for own, quick in zip(self.blocks, blocks, strict=True)}
        self._quick_rows = rows

    def _step(self, index: int, own: Callable[..., Tensor], tokens: Tensor) -> Tensor:
        if index in self._downsample:
            tokens = self.model.get_submodule(self._downsample[index])(tokens)
        quick = len(tokens) in self._quick_rows and not torch.is_grad_enabled()
        block = self._quick.get(id(own), own) if quick else own
        if self._rope is None:
            return torch.as_tensor(block(tokens))
        mixed = getattr(self.model, "rope_mixed", False)  # one rotary embedding a block
        return torch.as_tensor(block(tokens, rope=self._rope[index] if mixed else self._rope))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return [B, F] float32 of tokens [B, N, d]: class and mean patch token, each layer-normalised.

        The norm has no affine part. F is twice the tokens' width, or once where the model has no class
        token. Register and distillation tokens are left out.
        """
        first, patches = self._class_and_patches(tokens)
        mean = patches.mean(1, dtype=torch.float32)
        return _normalised(*(mean,) if first is None else (first, mean))

    def class_and_centre_tokens(self, tokens: Tensor) -> Tensor:
        """Return [B, 2 d] float32 of tokens [B, N, d]: class and mean central patch token, each normalised.

        The norm has no affine part. The centre is the patch grid less a fifth at each side; all patches where
        the grid is not square. Without a class token the mean of all patches stands in its place.
        """
        first, patches = self._class_and_patches(tokens)
        if first is None:
            first = patches.mean(1, dtype=torch.float32)
        side = math.isqrt(patches.shape[1])
        edge = side // 5
        if edge and side * side == patches.shape[1]:
            grid = patches.unflatten(1, (side, side))
            patches = grid[:, edge : side - edge, edge : side - edge].flatten(1, 2)
        return _normalised(first, patches.mean(1, dtype=torch.float32))

    def _class_and_patches(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the class token [B, d] float32, None where there is none, and the patches [B, N - p, d]."""
        tokens = tokens.flatten(1, -2)  # [B, N, d]
        first = None if getattr(self.model, "cls_token", None) is None else tokens[:, 0].float()
        return first, tokens[:, getattr(self.model, "num_prefix_tokens", 0) :]

    def final(self, tokens: Tensor) -> Tensor:
        """Return the input [B, width] float32 of the model's classifier, given the last block's [B, N, d]."""
        return torch.as_tensor(self.model.forward_head(self.model.norm(tokens), pre_logits=True)).float()

    def qkv(self, block: nn.Module) -> nn.Linear:
        """Return the fused query-key-value projection of one of `blocks`. Raise ConfigError without one."""
        projection = fused_qkv(block)
        if projection is None:
            raise ConfigError(f"{self.name} has a block without a fused qkv projection")
        return cast(nn.Linear, projection)


def _normalised(*parts: Tensor) -> Tensor:
    """Return the parts [B, d], each layer-normalised without affine, side by side."""
    return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in parts], dim=-1)


def _narrowed(block: Any, count: int, tokens: Tensor) -> Tensor:
    """Return the first `count` tokens [B, count, d] after one of timm's plain blocks, in evaluation mode."""
    tokens = (tokens + block.ls1(block.attn(block.norm1(tokens))))[:, :count]
    return torch.as_tensor(tokens + block.ls2(block.mlp(block.norm2(tokens))))


def _resized(levels: Tensor, side: int) -> Tensor:
    """Return levels 0..255 [B, 3, side, side] of uint8 [B, 3, H, W]."""
    if levels.shape[-2:] == (side, side):
        return levels
    if levels.device.type == "cpu":  # torch's uint8 kernel is Pillow's arithmetic, ten times as fast as float
        return F.interpolate(levels, (side, side), mode="bicubic", antialias=True)
    smooth = F.interpolate(levels.float(), (side, side), mode="bicubic", antialias=True)
    return smooth.round_().clamp_(0, 255)  # bicubic overshoots at edges


def _rotary(model: Any, image_size: int) -> Tensor | None:
    """Return eva's rotary embedding of the patch grid, which depends on the size of the image only."""
    if getattr(model, "rope", None) is None:
        return None
    with torch.no_grad():
        patches = model.patch_embed(torch.zeros(1, 3, image_size, image_size))
        return torch.as_tensor(model._pos_embed(patches)[1])


def _fingerprint(name: str, image_size: int, model: nn.Module) -> str:
    digest = hashlib.sha256(f"{name} {image_size}".encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        if key != "pos_embed":  # resampling it may differ in the last bit between two machines
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()

"""A low-rank adapter on the query and value rows of a frozen fused qkv projection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamcl.errors import CheckpointError, ConfigError
from streamcl.nn.frozen_linear import Product, affine, cast_linear
from streamcl.nn.low_pass_backprop import LowPass
from streamcl.protocols import State


class LoRALinear(nn.Module):
    """A frozen qkv projection plus low-rank updates of its q and v rows (arXiv 2106.09685, 2411.05663).

    y = x W^T + b, then q += x A_q^T B_q^T and v += x A_v^T B_v^T; k is untouched and nothing is scaled
    by alpha / r. lora_A [2r, d] holds A_q above A_v, so one product serves both; lora_B [2, o, r] holds
    B_q and B_v, o = d_out / 3. W and b are the frozen layer's own tensors until the first `merge`.

    Args:
        frozen: the fused projection W [3o, d] with b [3o] or None.
        rank: r, from 1 to d.
        generator: draws lora_A; see `reset_lora`.
        low_pass: takes the gradient for x through W on bases of the grid (arXiv 2309.15275, 2301.00330).
    """

    def __init__(
        self, frozen: nn.Linear, rank: int, generator: torch.Generator, low_pass: LowPass | None = None
    ) -> None:
        super().__init__()
        self.low_pass = low_pass
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        if not 1 <= rank <= self.in_features:
            raise ConfigError(f"the LoRA rank is {rank}, expected 1..{self.in_features} (the width)")
        self.rank = rank
        self.weight = frozen.weight  # [3o, d]
        self.bias = frozen.bias
        self._frozen = (frozen.weight,)  # in a tuple: the backbone's for good, not a parameter of ours
        device = frozen.weight.device
        self.lora_A = nn.Parameter(torch.empty(2 * rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.empty(2, self.out_features // 3, rank, device=device))
        self.quick_product: Product | None = getattr(frozen, "quick_product", None)  # for a bypassed pair
        self.bypassed = False  # skip the live pair, which adds nothing, in passes without gradients
        self.reset_lora(generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., 3o] of x [..., d], in autocast's dtype."""
        passed = self.bypassed and not torch.is_grad_enabled()
        if passed and self.quick_product is not None:
            return self.quick_product(x, self.weight, self.bias)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        weight, bias = cast_linear(self.weight, self.bias, dtype)
        with torch.autocast(kind, enabled=False):
            if passed:
                return affine(x.to(dtype), weight, bias)
            A, R = self.lora_A.to(dtype), self._rows().to(dtype)
            rows = x.to(dtype).reshape(-1, self.in_features)
            y, *_ = AdaptedProduct.apply(rows, weight, bias, A, R, self.low_pass)  # type: ignore[no-untyped-call]
        return torch.as_tensor(y).view(*x.shape[:-1], self.out_features)

    def _rows(self) -> Tensor:
        """Return R [3o, 2r]: B_q in the q rows over A_q's columns, B_v in the v rows over A_v's."""
        query, value = self.lora_B
        none = torch.zeros_like(query)
        return torch.cat([torch.cat([query, none, none]), torch.cat([none, none, value])], 1)

    @property
    def merged(self) -> bool:
        """Whether W is this layer's own copy, no longer the backbone's."""
        return self.weight is not self._frozen[0]

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return B_q A_q and B_v A_v, [2, o, d] float64: the live pair's part of the q and v rows."""
        return self.lora_B.double() @ self.lora_A.double().view(2, self.rank, self.in_features)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the live pair to this layer's own copy of W. The pair itself stays: call `reset_lora` next."""
        self.set_adapted_rows((self.adapted_rows().double() + self.delta()).to(self.weight.dtype))

    @torch.no_grad()
    def reset_lora(self, generator: torch.Generator) -> None:
        """Draw a fresh pair that adds nothing yet can learn: A ~ kaiming uniform (a = sqrt 5), B = 0."""
        bound = 1 / math.sqrt(self.in_features)  # kaiming's bound sqrt(6 / ((1 + a^2) d)) at a = sqrt 5
        drawn = torch.rand(self.lora_A.shape, generator=generator, device=generator.device)
        self.lora_A.copy_((2 * drawn - 1) * bound)
        self.lora_B.zero_()

    @torch.no_grad()
    def merged_delta(self) -> Tensor:
        """Return the q and v rows less the backbone's, merged and live parts, [2, o, d] float64."""
        frozen = self._frozen[0].view(3, -1, self.in_features)[[0, 2]]
        return self.adapted_rows().double() - frozen.double() + self.delta()

    @torch.no_grad()
    def adapted_rows(self) -> Tensor:
        """Return a copy [2, o, d] of W's q and v rows, with all merged pairs."""
        return self.weight.view(3, -1, self.in_features)[[0, 2]]

    @torch.no_grad()
    def set_adapted_rows(self, rows: Tensor) -> None:
        """Write `rows` [2, o, d] into W's q and v rows; W is this layer's own copy from then on."""
        if not self.merged:
            self.weight = nn.Parameter(self.weight.clone(), requires_grad=False)
        triple = self.weight.view(3, -1, self.in_features)  # q, k, v
        for part, changed in zip((0, 2), rows, strict=True):
            triple[part].copy_(changed)

    def unmerge(self) -> None:
        """Use the backbone's own W again, as before the first `merge`."""
        self.weight = self._frozen[0]

    def export_state(self) -> State:
        """Return float32 copies of lora_A, lora_B and, once merged, the q and v rows of W."""
        tensors: dict[str, Tensor] = {"lora_A": self.lora_A, "lora_B": self.lora_B}
        if self.merged:
            tensors["rows"] = self.adapted_rows()
        return {key: value.detach().cpu().numpy().copy() for key, value in tensors.items()}

    def import_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Become the layer that exported `state`, with the live pair in use.

        Raise CheckpointError, which names the layer `name`, where the state is another layer's.
        """
        own: dict[str, Tensor] = {"lora_A": self.lora_A, "lora_B": self.lora_B, "rows": self.adapted_rows()}
        wrong = [key for key in state if key not in own or state[key].shape != tuple(own[key].shape)]
        missing = {"lora_A", "lora_B"} - set(state)
        if wrong or missing:
            found = sorted({*wrong, *missing})
            raise CheckpointError(f"{name}: {found} is missing, unknown or of another shape")
        self.bypassed = False
        with torch.no_grad():
            self.lora_A.copy_(torch.from_numpy(state["lora_A"]))
            self.lora_B.copy_(torch.from_numpy(state["lora_B"]))
        if "rows" in state:
            self.set_adapted_rows(torch.from_numpy(state["rows"]))
        else:
            self.unmerge()


class AdaptedProduct(torch.autograd.Function):
    """y = x W^T + b + (x A^T) R^T, with W and b frozen; gradients for x, A and R (arXiv 2106.09685).

    x [N, d], W [o, d], b [o] or None, A [2r, d] and R [o, 2r], all of one dtype. The update is added by
    the product that makes it, forwards to y and backwards to x's gradient, and nothing is kept but x and
    h = x A^T: 0.92 of the time that autograd's own steps take for an adapted ViT-S block in bf16 (CPU), the
    same in fp32. low_pass: takes x's gradient through W on bases of the patch grid; the update's own part is
    exact, and so is A's gradient unless activations are pooled, where x is kept on these bases alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by place
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        R: Tensor,
        low_pass: LowPass | None,
    ) -> tuple[Tensor, ...]:
        """Return y [N, o], and h [N, 2r] for the backward pass; with them Q x where activations are pooled.

        Args:
            x: [N, d].
            W: [o, d].
            b: [o], or None.
            A: [2r, d].
            R: [o, 2r].
            low_pass: for the gradient of x and, where it pools activations, of A.
        """
        h = x @ A.T
        y = x @ W.T if b is None else torch.addmm(b, x, W.T)
        pooled = () if low_pass is None or not low_pass.pools_activations else (low_pass.pooled_rows(x),)
        return torch.addmm(y, h, R.T), h, *pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the tensors of `forward` that the gradients need.

        Args:
            ctx: autograd's context.
            inputs: those of `forward`, in order.
            output: y [N, o], h [N, 2r] and, where activations are pooled, Q x [M, d].
        """
        x, W, _, A, R, ctx.low_pass = inputs
        _, h, *pooled = output
        ctx.mark_non_differentiable(h, *pooled)
        ctx.save_for_backward(*(pooled or [x]), h, W, A, R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and R, given y's [N, o]."""
        kept, h, W, A, R = ctx.saved_tensors
        g = gradients[0]
        down = g @ R  # [N, 2r]
        of_x = None
        if ctx.needs_input_grad[0]:
            through = g @ W if ctx.low_pass is None else ctx.low_pass.filtered_product_of_rows(g, W)  # [N, d]
            of_x = torch.addmm(through, down, A)
        if len(kept) < len(g):
            down = ctx.low_pass.pooled_rows(down)  # [B (m + p), 2r]
        return of_x, None, None, down.T @ kept, g.T @ h, None

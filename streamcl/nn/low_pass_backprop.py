"""Cheaper back-propagation: the gradient passes frozen linear layers on a few bases of the patch grid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl.nn.frozen_linear import FrozenLinear, cast_linear


def low_pass_basis(height: int, width: int, order: int) -> Tensor:
    """Return Q [m, height * width]: the Walsh-Hadamard bases of row + column order below `order`.

    Its rows are orthonormal (LBP-WHT, arXiv 2309.15275, section 3). A side that is not a power of two has the
    functions of the next power of two on its first points, made orthonormal in the order of their sign
    changes; from order height + width - 1 on the basis is complete.
    """
    rows, columns = _walsh(height), _walsh(width)
    pairs = [(i, j) for i in range(height) for j in range(width) if i + j < order]
    return torch.stack([torch.outer(rows[i], columns[j]).flatten() for i, j in pairs]).float()


def _walsh(side: int) -> Tensor:
    """Return [side, side] float64: Walsh functions on `side` points, orthonormal, by rising sequency."""
    functions = torch.ones(1, 1, dtype=torch.float64)
    while len(functions) < side:
        top, bottom = torch.cat([functions, functions], 1), torch.cat([functions, -functions], 1)
        functions = torch.cat([top, bottom])
    changes = (functions.diff(dim=1) != 0).sum(1)
    cut = functions[changes.argsort()][:, :side]
    chosen: list[Tensor] = []
    for row in cut:  # Gram-Schmidt; on the first points some functions are sums of those before
        rest = row - sum((row @ each) * each for each in chosen)
        if float(rest.norm()) > 1e-6:
            chosen.append(rest / rest.norm())
    return torch.stack(chosen[:side])


def cell_basis(height: int, width: int, side: int) -> Tensor:
    """Return Q [m, height * width]: the indicators of cells of `side` x `side` patches, of length one.

    Q^T Q gives each patch the mean of its cell (gradient filtering, arXiv 2301.00330). Where `side` does not
    divide a side of the grid, the cells at its end are smaller.
    """
    place = [torch.arange(length) // side for length in (height, width)]
    columns = int(place[1][-1]) + 1
    cells = (place[0][:, None] * columns + place[1]).flatten()  # [height * width]
    members = F.one_hot(cells).T.float()
    return members / members.sum(dim=1, keepdim=True).sqrt()


class LowPass:
    """The backward pass of a frozen linear layer over m + p of its N tokens: g_x = Q^T((Q g_y) W).

    Q [m + p, N] passes the p prefix tokens (class, registers) as they are and the patches on their bases, so
    the product with W is N / (m + p) times as small. Parameters' own gradients are not touched, unless
    activations are pooled.

    Args:
        prefix: p.
        patches: the bases of the patches, [m, N - p], orthonormal.
        pools_activations: keep Q x in place of an adapter's input x for the gradient of its lora_A, which
            then is that of the low-passed input and gradient.
    """

    def __init__(self, prefix: int, patches: Tensor, *, pools_activations: bool = False) -> None:
        self.basis = torch.block_diag(torch.eye(prefix), patches) if prefix else patches
        self.pools_activations = pools_activations

    @property
    def tokens(self) -> int:
        """N, the tokens of an image in the gradients."""
        return self.basis.shape[1]

    def filtered_product(self, g: Tensor, W: Tensor) -> Tensor:
        """Return g W, [B, N, d], its patch part low-passed.

        Args:
            g: [B, N, o], the gradient at the layer's output.
            W: [o, d].
        """
        Q = self.basis = self.basis.to(g)
        return Q.T @ ((Q @ g) @ W)

    def filtered_product_of_rows(self, g: Tensor, W: Tensor) -> Tensor:
        """Return g W, [B N, d], low-passed as by `filtered_product`.

        Args:
            g: [B N, o], whose tokens are in the order of their images.
            W: [o, d].
        """
        return self.filtered_product(g.view(-1, self.tokens, g.shape[1]), W).reshape(len(g), -1)

    def pooled_rows(self, x: Tensor) -> Tensor:
        """Return Q x, [B (m + p), d], of rows [B N, d] in the order of their images."""
        Q = self.basis = self.basis.to(x)
        return (Q @ x.view(-1, self.tokens, x.shape[1])).flatten(0, 1)


class _Product(torch.autograd.Function):
    """x W^T + b, forwards exact, backwards through a LowPass; W and b are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, low_pass: LowPass) -> Tensor:
        ctx.save_for_backward(W)
        ctx.low_pass = low_pass
        return F.linear(x, W, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (W,) = ctx.saved_tensors
        return ctx.low_pass.filtered_product(gradients[0], W), None, None, None


class LowPassLinear(FrozenLinear):
    """A frozen linear layer whose input's gradient is low-passed; made by `low_pass_linears`.

    It saves its weight alone for the backward pass, not its input.
    """

    low_pass: LowPass

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, o] of x [B, N, d]; the plain layer's without gradients or for another N."""
        fits = x.ndim == 3 and x.shape[1] == self.low_pass.tokens
        if not (fits and x.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            weight, bias = cast_linear(self.weight, self.bias, dtype)
            y = _Product.apply(x.to(dtype), weight, bias, self.low_pass)  # type: ignore[no-untyped-call]
        return torch.as_tensor(y)


def low_pass_linears(module: nn.Module, low_pass: LowPass) -> None:
    """Replace each linear layer in a module by a LowPassLinear that shares its tensors."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and type(child) in {nn.Linear, FrozenLinear}:
            setattr(module, name, _around(child, low_pass))
        else:
            low_pass_linears(child, low_pass)


def _around(layer: nn.Linear, low_pass: LowPass) -> LowPassLinear:
    twin = LowPassLinear.__new__(LowPassLinear)
    nn.Module.__init__(twin)
    twin.in_features, twin.out_features = layer.in_features, layer.out_features
    twin.weight, twin.bias, twin.low_pass = layer.weight, layer.bias, low_pass
    return twin

"""Options of back-propagation through frozen weights: on which bases of the patch grid gradients pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import Options
from streamcl.learners.factory import LearnerContext
from streamcl.learners.lazy_imports import lazy_imports

with lazy_imports():
    from streamcl.nn import low_pass_backprop

if TYPE_CHECKING:
    from streamcl.nn.low_pass_backprop import LowPass


class LowPassOptions(Options):
    """LBP-WHT: low-pass back-propagation through frozen weights (arXiv 2309.15275)."""

    order: int = Field(
        3,
        ge=1,
        le=1024,
        description="Walsh-Hadamard bases of row + column order below this; more is closer and slower.",
    )


class GradientFilterOptions(Options):
    """Gradient filtering: gradients as means over cells of patches (arXiv 2301.00330)."""

    patch: int = Field(
        2,
        ge=1,
        le=1024,
        description="Side of a cell, in patches; those at the end of the grid are smaller where it does not "
        "divide. Less is closer and slower; 1: in full.",
    )
    pool_activations: bool = Field(
        False,
        description="Keep the adapters' inputs as sums over cells too: less memory, and an approximate "
        "gradient of lora_A.",
    )


class BackpropOptions(Options):
    """Back-propagation through the frozen weights of adapted blocks."""

    lbp_wht: LowPassOptions | None = Field(
        None, description="On low-pass bases of the patch grid (LBP-WHT); null: in full."
    )
    grad_filter: GradientFilterOptions | None = Field(
        None,
        description="On cells of the patch grid (gradient filtering), in place of lbp_wht; null: in full.",
    )

    @model_validator(mode="after")
    def _one_basis(self) -> BackpropOptions:
        if self.lbp_wht is not None and self.grad_filter is not None:
            raise PydanticCustomError("both", "'lbp_wht' and 'grad_filter' exclude each other: give one")
        return self


def build_low_pass(options: BackpropOptions, context: LearnerContext) -> LowPass | None:
    """Return the bases on which gradients pass frozen weights; None passes them whole.

    Raises:
        ConfigError: the backbone has no single grid of patches.
    """
    filtered, wanted = options.grad_filter, options.lbp_wht
    if filtered is None and wanted is None:
        return None
    name = "lbp_wht" if filtered is None else "grad_filter"
    if context.backbone.grid is None:
        why = f"{context.backbone.name} has no single grid of patches"
        raise context.refuse(f"learner.backprop.{name}", why)
    prefix, height, width = context.backbone.grid
    if filtered is not None:
        cells = low_pass_backprop.cell_basis(height, width, filtered.patch)
        return low_pass_backprop.LowPass(prefix, cells, pools_activations=filtered.pool_activations)
    assert wanted is not None
    patches = low_pass_backprop.low_pass_basis(height, width, wanted.order)
    return low_pass_backprop.LowPass(prefix, patches)

"""Options of ridge_lora: of both branches, and of the store of latents that adapters are trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import Options, ViewCount, Warn
from streamcl.learners.adapted_branch import LoRABranchOptions
from streamcl.learners.latent_options import StoredTokensOptions
from streamcl.learners.ridge_options import RidgeOptions


class RidgeBranchOptions(RidgeOptions):
    """A ridge head on the frozen backbone, over two views of each image by default."""

    tta_views: ViewCount = 2


class LatentOptions(StoredTokensOptions):
    """Tokens of some learned samples, kept so that adapters are trained anew as the stream grows.

    With them every sample can be erased exactly, those too that have trained adapters: these are then trained
    again without it.
    """

    views: Literal[1, 2] = Field(
        1,
        description="Views of an image whose tokens are stored, for the adapted branch's head to learn; at "
        "most the frozen branch's. Two take twice the bytes. Predictions are of two views in any case.",
    )
    first_samples: int = Field(
        1000,
        ge=1,
        le=10**9,
        description="Position in the stream of the first training; later ones are at four times that and so "
        "on, at every doubling once not all samples can be stored, and at the end.",
    )
    passes: Warn[float] = Field(
        0.5, gt=0, le=100, description="Passes over the stored samples at each training, and so its cost."
    )
    share: Warn[float] = Field(
        1 / 3,
        ge=0,
        lt=1,
        description="Largest weight of the adapted branch's scores beside the frozen one's; a half is better "
        "with two passes.",
    )
    learning_rate: Warn[float] = Field(2e-3, gt=0, le=10, description="Adam's largest step size.")


class RidgeLoRAOptions(Options):
    """A ridge head that forgets exactly, and adapters for what the frozen features lack."""

    name: Literal["ridge_lora"] = Field(
        "ridge_lora", description="Ridge head and adapters together; the default."
    )
    ridge: RidgeBranchOptions = Field(RidgeBranchOptions(), description="The closed-form branch.")
    lora: LoRABranchOptions = Field(LoRABranchOptions(), description="The adapted branch.")
    latents: LatentOptions | None = Field(
        None,
        description="Stored tokens, on which adapters are trained as the stream grows; null: none, and the "
        "adapters are trained on the first samples alone.",
    )

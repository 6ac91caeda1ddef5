"""Options of stores of latents, whatever they are for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import Options, Size


class StoredTokensOptions(Options):
    """A bounded store of samples' tokens at the block where the adapters begin."""

    budget: Size = Field(
        64 * 2**20,
        description="Bytes of tokens that are kept, such as 64MB, 13,000 samples of a ViT-S at 70 pixels; 0: "
        "no store, as without these options.",
    )
    dtype: Literal["int4", "int8", "float16"] = Field(
        "int4", description="How tokens are stored; int8 and float16 take twice and four times the bytes."
    )


class LatentReplayOptions(StoredTokensOptions):
    """Tokens of some learned samples, of which as many as a batch has are learned with each batch again."""

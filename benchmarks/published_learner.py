"""Online-LoRA with its paper's hard buffer, which the product's own default leaves out."""

from __future__ import annotations

from typing import Any

ONLINE_LORA: dict[str, Any] = {"name": "online_lora", "hard_buffer_size": 4}
"""Options of the paper's learner (arXiv 2411.05663), whose speed and memory programs here measure."""


def learner_options(name: str) -> dict[str, Any] | str:
    """Return a configuration's `learner` for a name; `online_lora` is the paper's."""
    return ONLINE_LORA if name == "online_lora" else name

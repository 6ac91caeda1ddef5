"""Where and in which precision the model runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from streamcl.errors import ConfigError

Precision: TypeAlias = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and a precision; both are part of what makes a run repeatable."""

    device: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the backbone and the adapters run."""
        if self.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def resolve_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """Pick the GPU where there is one, and bf16 where the processor multiplies it in hardware.

    Raises ConfigError for a CUDA device that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(
            f"device {device!r} was asked for, but torch sees {found} CUDA devices", hint="device: auto"
        )
    if precision == "auto":
        precision = "bf16-mixed" if _multiplies_bf16(chosen) else "32-true"
    return Compute(chosen, "bf16-mixed" if precision == "bf16-mixed" else "32-true")


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())

"""A detector that sees nothing: for learners that never consolidate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from streamcl.protocols import State


class SilentDetector:
    """Reports neither shifts nor plateaus."""

    shift: str | None = None
    plateau: str | None = None

    def update(self, loss: float) -> None:
        """Take a loss and say nothing; refuses NaN and infinity like every detector."""
        if not math.isfinite(loss):
            raise ValueError(f"a detector takes finite losses, got {loss}")

    def state_dict(self) -> State:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to become."""

"""The process-wide random generators of Python, NumPy and torch, as state that a checkpoint can hold."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamcl.protocols import State

NUMPY_FIELDS = ("kind", "keys", "position", "has_gauss", "cached")


def seed_generators(seed: int) -> None:
    """Seed all three, so that a source or a learner that draws from them is repeatable."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def capture_generators() -> State:
    """Return a copy of their state; of torch's only where torch is loaded."""
    version, words, gauss = random.getstate()
    state: State = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": dict(zip(NUMPY_FIELDS, np.random.get_state(), strict=True)),
    }
    if torch := sys.modules.get("torch"):
        state["torch"] = torch.get_rng_state().numpy().copy()
    return state


def restore_generators(state: Mapping[str, Any]) -> None:
    """Restore the state that `capture_generators` returned."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(tuple(state["numpy"][name] for name in NUMPY_FIELDS))
    if "torch" in state and (torch := sys.modules.get("torch")):
        torch.set_rng_state(torch.from_numpy(state["torch"].copy()))

"""What a learner's state holds of single samples."""

import numpy as np

STORED = {"pixels", "codes", "scales", "logits"}
"""Names of arrays, in states of learners, that hold data of single samples."""


def stored_bytes(state):
    """Return the bytes of arrays anywhere in a state that hold data of single samples."""
    if isinstance(state, list):
        return sum(map(stored_bytes, state))
    if not isinstance(state, dict):
        return 0
    own = sum(
        value.nbytes for name, value in state.items() if name in STORED and isinstance(value, np.ndarray)
    )
    return own + sum(map(stored_bytes, state.values()))

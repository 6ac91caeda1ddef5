"""Strategies and damage that the fuzzers share, and how a command must end whatever it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fault_runs import Done
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

KNOWN = {0, 1, 2, 3, 4, 5}


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}


def sound(done: Done, codes=frozenset(KNOWN)) -> None:
    """It ended by itself, with a code of ours, and said so in a few words."""
    assert done.code is not None, "it hangs"
    assert done.code in codes, (done.code, done.err)
    assert "Traceback" not in done.err + done.out, done.err
    assert done.code == 0 or done.err.strip() or done.out.strip()
    assert "--debug shows where" not in done.err, done.err  # nothing that we did not think of
    assert len(done.err) < 20_000


def damage(path: Path, kind: str, where: float, byte: int) -> None:
    data = path.read_bytes()
    at = int(where * len(data))
    if kind == "cut":
        path.write_bytes(data[:at])
    elif kind == "flip" and data:
        path.write_bytes(data[:at] + bytes([data[at] ^ (byte or 1)]) + data[at + 1 :])
    elif kind == "insert":
        path.write_bytes(data[:at] + bytes([byte] * 64) + data[at:])
    elif kind == "gone":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(byte).bytes(1000))


DAMAGE = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["cut", "flip", "insert", "gone", "folder", "noise"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
)


PIXELS = arrays.arrays(
    dtype=st.one_of(arrays.integer_dtypes(), arrays.floating_dtypes(), arrays.boolean_dtypes()),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
)


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8)
)


THING = st.recursive(
    PLAIN | PIXELS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.sampled_from(["image", "label", "id", "subject", "domain", "privacy", "x"]), inner
        )
    ),
    max_leaves=6,
)


ITEM = THING | st.tuples(PIXELS, PLAIN) | st.fixed_dictionaries({"image": PIXELS, "label": PLAIN})

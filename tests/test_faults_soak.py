"""F16: a long run of a tiny model: memory, files, threads, checkpoints and step time stay flat."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import soak

pytestmark = pytest.mark.faults

EASY = soak.ALLOWED | {"step_time": 0.5}  # other tests may run beside this one


@pytest.mark.slow
def test_thirty_thousand_steps_leave_nothing_behind(tmp_path):
    notes = soak.soak(30_000, tmp_path)
    found = soak.rises(notes)
    assert {name: rise for name, rise in found.items() if rise > EASY[name]} == {}


@pytest.mark.parametrize("name", soak.ALLOWED)
def test_the_slope_test_sees_growth(name):
    notes = {each: [100.0] * 100 for each in soak.ALLOWED} | {"step": [float(n) for n in range(100)]}
    assert all(rise == 0 for rise in soak.rises(notes).values())
    notes[name] = [100.0 + 60 * number for number in range(100)]
    assert soak.rises(notes)[name] > soak.ALLOWED[name]

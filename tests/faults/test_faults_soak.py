"""F16: a long run of a tiny model: memory, files, threads, checkpoints and step time stay flat."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import soak

pytestmark = pytest.mark.faults


class Slowing(soak.Tiny):
    """Looks back on every step that it has made."""

    def learn(self, batch):
        sum(range(200 * self._steps))
        return super().learn(batch)


@pytest.mark.slow
def test_thirty_thousand_steps_leave_nothing_behind(tmp_path):
    setting = soak.tiny(30_000)
    found = soak.rises(soak.soak(30_000, tmp_path, setting))
    assert {name: rise for name, rise in found.items() if rise > soak.ALLOWED[name]} == {}
    assert median(soak.compared(tmp_path, setting)) < 1.5, "other tests may run beside this one"


@pytest.mark.long
def test_steps_that_grow_are_seen_beside_earlier_ones(tmp_path):
    setting = soak.Setting(Slowing, soak.Endless, 100)
    soak.soak(1000, tmp_path, setting)
    assert median(soak.compared(tmp_path, setting, 5, 10)) > 1.5


@pytest.mark.parametrize("name", soak.FITTED)
def test_the_slope_test_sees_growth(name):
    notes = {each: [100.0] * 100 for each in soak.ALLOWED} | {"step": [float(n) for n in range(100)]}
    assert all(rise == 0 for rise in soak.rises(notes).values())
    notes[name] = [100.0 + 60 * number for number in range(100)]
    assert soak.rises(notes)[name] > soak.ALLOWED[name]

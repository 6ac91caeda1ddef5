"""Energy counters are summed once each, wrap, and are left out where nobody may read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import throughput
from energy import ABSENT, EnergyMeter

SPAN = 1_000_000
ZONES = {
    "intel-rapl:0": ("package-0", 100_000),
    "intel-rapl:0:0": ("core", 60_000),
    "intel-rapl:0:1": ("dram", 10_000),
    "intel-rapl:1": ("package-1", 200_000),
    "intel-rapl:2": ("psys", 500_000),
    "intel-rapl-mmio:0": ("package-0", 100_000),
}


@pytest.fixture
def powercap(tmp_path):
    """A folder of counters as Linux shows it."""
    for folder, (name, microjoules) in ZONES.items():
        zone = tmp_path / folder
        zone.mkdir()
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{microjoules}\n")
        (zone / "max_energy_range_uj").write_text(f"{SPAN}\n")
    return tmp_path


def spend(powercap, folder, microjoules):
    (powercap / folder / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_and_memory_count_once(powercap) -> None:
    meter = EnergyMeter(powercap)
    before = meter.read()
    for folder, (_, microjoules) in ZONES.items():
        spend(powercap, folder, microjoules + 50_000)
    assert meter.joules(before) == pytest.approx(3 * 0.05)


def test_a_counter_that_starts_again_goes_on(powercap) -> None:
    meter = EnergyMeter(powercap)
    before = meter.read()
    spend(powercap, "intel-rapl:1", 5_000)
    assert meter.joules(before) == pytest.approx((SPAN - 200_000 + 5_000) / 1e6)


def test_without_counters_there_is_no_figure(tmp_path) -> None:
    meter = EnergyMeter(tmp_path)
    assert meter.joules(meter.read()) is None


def test_a_counter_that_cannot_be_read_is_left_out(powercap) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    (powercap / "intel-rapl:0" / "energy_uj").mkdir()  # reading fails for root too
    assert len(EnergyMeter(powercap).zones) == 2


def test_joules_stand_beside_images_per_second_where_they_are_known() -> None:
    rates = {
        "images_per_s": 10.0,
        "quartiles": [9.0, 11.0],
        "of_floor": 1.0,
        "of_floor_quartiles": [1.0, 1.0],
    }
    found = {
        "machine": dict.fromkeys(["date", "cpu", "cores", "threads", "device", "torch", "load"], "x"),
        "options": dict.fromkeys(
            ["backbone", "depth", "size", "batch", "precision", "images", "repeats", "clock"], "x"
        ),
        "results": {"floor": {**rates, "at_begin": None}},
    }
    assert ABSENT in throughput.table(found)
    found["results"]["floor"]["joules_per_image"] = 2.5
    text = throughput.table(found)
    assert ABSENT not in text
    assert "joules an image" in text
    assert "| 2.50 |" in text

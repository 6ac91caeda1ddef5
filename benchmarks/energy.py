"""Reads the processor's energy counters (RAPL), so that joules stand beside images per second.

The counters are of whole processor packages and their memory, idle power and other programs included. Linux
shows them under /sys/class/powercap, for AMD's processors too, mostly to root alone and seldom in a virtual
machine; where none can be read, figures have no energy and `ABSENT` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
ABSENT = "No joules: the processor's energy counters (RAPL, /sys/class/powercap) cannot be read here."
_MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter: microjoules in a file, which starts again at 0 past `span`."""

    path: Path
    span: int

    def read(self) -> int:
        """Return the counter's microjoules."""
        return int(self.path.read_text(encoding="ascii"))


class EnergyMeter:
    """The energy of all packages and of memory that has counters of its own.

    >>> EnergyMeter(Path("/nowhere")).zones
    ()
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self.zones = tuple(_zones(root))

    def read(self) -> list[int]:
        """Return each counter's microjoules, to be handed to `joules` later."""
        return [zone.read() for zone in self.zones]

    def joules(self, before: list[int]) -> float | None:
        """Return joules since `before`, or None without counters.

        A counter may have started again once in between: at 100 W that is some 40 minutes for most packages.
        """
        if not self.zones:
            return None
        spent = [
            now - then if now >= then else now - then + zone.span
            for zone, now, then in zip(self.zones, self.read(), before, strict=True)
        ]
        return sum(spent) * _MICRO


def _zones(root: Path) -> list[Zone]:
    """Return packages (`intel-rapl:0`) and the memory in them (`intel-rapl:0:1`), those that can be read.

    A package's own parts (core, uncore) are within its counter, `psys` contains the packages, and
    `intel-rapl-mmio` shows the same ones again.
    """
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            zone = Zone(
                folder / "energy_uj", int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
            )
            zone.read()
        except (OSError, ValueError):  # not this user's to read, or no counter
            continue
        if name.startswith("package") or name == "dram":
            found.append(zone)
    return found

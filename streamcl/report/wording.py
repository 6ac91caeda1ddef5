"""Formats numbers with units for the report and the terminal."""

from __future__ import annotations

from typing import Any

from streamcl.report.series import as_float

NONE = "–"
NARROW_SPACE = "\u202f"  # the narrow space between a number and its unit, which never breaks


def count(value: Any) -> str:
    """Return the value as 12,345, or a dash."""
    found = as_float(value)
    return NONE if found is None else f"{found:,.0f}"


def percent(value: Any) -> str:
    """Return a share in [0, 1] as 81.3 %, or a dash."""
    found = as_float(value)
    return NONE if found is None else f"{100 * found:.1f}{NARROW_SPACE}%"


def points(value: Any, sign: str = "+") -> str:
    """Return a difference of two shares as +1.2 pts, or a dash; sign: in front of positive values."""
    found = as_float(value)
    if found is None:
        return NONE
    tenths = round(1000 * found)
    mark = "−" if tenths < 0 else sign if tenths > 0 else ""
    return f"{mark}{abs(tenths) / 10:,.1f}{NARROW_SPACE}pts"


def decimal(value: Any, digits: int = 1) -> str:
    """Return the value as 1,234.5, or a dash."""
    found = as_float(value)
    return NONE if found is None else f"{found:,.{digits}f}"


def duration(value: Any) -> str:
    """Return seconds as 48 s, 3 min 20 s or 2 h 05 min, or a dash."""
    found = as_float(value)
    if found is None or found < 0:
        return NONE
    seconds = round(found)
    if found < 10:
        return f"{found:.1f}{NARROW_SPACE}s"
    if seconds < 60:
        return f"{seconds}{NARROW_SPACE}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}{NARROW_SPACE}min {seconds:02d}{NARROW_SPACE}s"
    return f"{minutes // 60}{NARROW_SPACE}h {minutes % 60:02d}{NARROW_SPACE}min"


def memory(value: Any) -> str:
    """Return MiB as 812 MiB or 3.4 GiB, or a dash."""
    found = as_float(value)
    if found is None:
        return NONE
    return f"{found:,.0f}{NARROW_SPACE}MiB" if found < 1024 else f"{found / 1024:,.1f}{NARROW_SPACE}GiB"


def plural(amount: Any, noun: str) -> str:
    """Return the amount and the noun: 1 shift, 2 shifts, 3 classes, 4 batches."""
    found = as_float(amount) or 0.0
    ending = "" if found == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{count(found)} {noun}{ending}"


def visible(name: str) -> str:
    """Return the name, or "(blank)" for one of white space."""
    return name if name.strip() else "(blank)"

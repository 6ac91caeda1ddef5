"""streamcl forget --plan: prints the expected course of a request; nothing is changed or submitted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streamcl.cli.terminal import echo

if TYPE_CHECKING:
    from streamcl.events import ForgetRequest


def print_plan(run: Path, request: ForgetRequest) -> None:
    """Print method, guarantee, expected seconds and what will remain. Raise ForgettingError where refused."""
    from streamcl.runs.forecast import forecast_request

    found = forecast_request(run, request)
    echo(f"method: {found.method}, because {found.reason}")
    echo(f"guarantee: {found.guarantee}")
    echo(f"reaches: {found.learned} samples that were learned, {found.passed} that have passed")
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.seconds.items())
    echo(f"expected: {sum(found.seconds.values()):.1f} s ({parts})")
    if found.unknown is not None:
        echo(f"not known: {found.unknown}")
    for place in found.remaining:
        echo(f"{place.status}: {place.name}: {place.explanation}")

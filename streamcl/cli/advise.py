"""streamcl advise: which image size, depth and feature blocks fit a budget, before the first run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamcl.cli.inspect_commands import OVERRIDES
from streamcl.cli.messages import show_messages
from streamcl.cli.terminal import echo

if TYPE_CHECKING:
    from streamcl.advice.advise import Advice

EXIT_NOTHING_FITS = 8
"""The exit code where no candidate is within the budget."""


def _quantity(parse: Callable[[str], Any]) -> Callable[[Any, Any, str | None], float]:
    """Return the callback of an option that `parse` reads; without a value there is no limit."""

    def read(context: Any, parameter: Any, value: str | None) -> float:  # noqa: ARG001 - click's signature
        if value is None:
            return math.inf
        try:
            found = float(parse(value))
        except ValueError as error:
            raise click.BadParameter(f"{value!r} {error}") from error
        if not found > 0:
            raise click.BadParameter(f"{value!r} is not more than 0")
        return found

    return read


def _seconds(value: str) -> Any:
    from streamcl.config.options.base import seconds

    return seconds(value)


def _size(value: str) -> Any:
    from streamcl.config.options.base import size

    return size(value)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
@click.option(
    "--latency", callback=_quantity(_seconds), metavar="TIME", help="Limit for one image, alone: 20ms."
)
@click.option("--memory", callback=_quantity(_size), metavar="SIZE", help="Limit of a run: 500MB, 2GB.")
@click.option(
    "--probe", type=click.IntRange(6, 100_000), default=512, show_default=True, help="Images to compare on."
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="NAME=WEIGHTS",
    help="A further backbone to compare, as backbone.name and backbone.weights; may be repeated.",
)
@click.option("--proxies", is_flag=True, help="Zero-shot proxies of each candidate as well: ZiCo, LogME, ...")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a chart as SVG."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all candidates.")
def advise(
    config: Path,
    overrides: tuple[str, ...],
    *,
    latency: float,
    memory: float,
    probe: int,
    backbones: tuple[str, ...],
    proxies: bool,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Say which image size, depth and feature blocks to take for CONFIG, a YAML file.

    Candidates are compared on labelled images of the stream by the accuracy of the ridge head on each image
    left out, by the time that a prediction takes on this machine, and by the memory of a run. Of those within
    the limits the most accurate is recommended, or the cheapest that ties with it. Test images are not
    read, and nothing is written but the file of --plot. Exit code 8 where none is within the limits; the
    nearest is then shown.
    """
    from streamcl.config.load import load_config

    load_config(config, overrides)  # faults are found before torch is loaded
    from streamcl.advice.advise import advise as compare
    from streamcl.advice.front import Budget
    from streamcl.advice.wording import advice_json, advice_text

    choices = [_choice(each) for each in backbones]
    with show_messages():
        found = compare(
            lambda further: load_config(config, (*overrides, *further)),
            Budget(latency, memory),
            images=probe,
            backbones=choices,
            proxies=proxies,
        )
    if plot is not None:
        _draw(found, plot)
    echo(json.dumps(advice_json(found), indent=2) if as_json else advice_text(found, str(config)))
    return 0 if found.chosen is not None else EXIT_NOTHING_FITS


def _draw(found: Advice, path: Path) -> None:
    from streamcl.report.advice_chart import CandidatePoint, write_advice_chart

    several = len({each.candidate.backbone for each in found.assessed}) > 1
    names = [each.candidate.backbone.name if several else "" for each in found.assessed]
    points = [
        CandidatePoint(
            milliseconds=1000 * each.costs.seconds,
            accuracy=100 * each.costs.accuracy,
            error=100 * each.error,
            series=f"{names[place]} {each.candidate.image_size} px".strip(),
            label=f"{each.candidate.depth}: {','.join(map(str, each.candidate.blocks))}",
            on_front=place in found.front,
            is_chosen=place == found.chosen,
        )
        for place, each in enumerate(found.assessed)
    ]
    write_advice_chart(points, 1000 * found.budget.seconds, path)


def _choice(text: str) -> Any:
    from streamcl.advice.candidates import BackboneChoice

    name, equals, weights = text.partition("=")
    if not (name and equals and weights):
        raise click.BadParameter(
            f"{text!r}: expected NAME=WEIGHTS, such as vit_base_patch14_dinov2=file:PATH"
        )
    return BackboneChoice(name, weights)

"""streamcl predict: the classes of images, by the model that a run has learned so far."""

from __future__ import annotations

import gc
import glob
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import echo, one_line, printable
from streamcl.errors import BadRecord, ConfigError

if TYPE_CHECKING:
    from streamcl.events import Prediction, Sample
    from streamcl.runs.learner import AssessedPrediction, LoadedRun

IMAGES_DECODED_AT_ONCE = 64  # images that are decoded before they are predicted


@click.command()
@click.argument("run", type=RUN)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Classes for each image.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Confidence below which an image has no class.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def predict(run: Path, images: tuple[str, ...], top: int, threshold: float, as_json: bool) -> int:
    """Name the class of each of IMAGES with the model that RUN has learned so far.

    IMAGES are files, folders (with all images in them), patterns such as "inbox/*.png", and - for paths on
    standard input, one a line. Exit code 3 where one of them cannot be read.

    With --json each has, beside its confidence, its stability (the probability that an equally good model,
    learned from other images of the same stream, names the same class) and its novelty (1: as a new image
    of the stream is on average); null where the learner cannot compute them. Where `answer.unknown` is set
    in the configuration of RUN, an image unlike those learned has no class and is called unknown.
    """
    paths = list(find_images(images))
    if not paths:
        raise ConfigError(f"no image is found in {', '.join(images)}")
    with _collector_paused():
        from streamcl.runs.learner import AssessedPrediction, assess_predictions, load_run, rank_classes

        loaded = load_run(run, fitted=True)
        learner = loaded.learner
    unread, limit = 0, _limit(loaded)
    for start in range(0, len(paths), IMAGES_DECODED_AT_ONCE):
        part = paths[start : start + IMAGES_DECODED_AT_ONCE]
        samples = list(_decoded(part))
        unread += len(part) - len(samples)
        if as_json or limit is not None:
            predicted = assess_predictions(learner, samples, top, math.inf if limit is None else limit)
        else:
            predicted = [AssessedPrediction(ranked) for ranked in rank_classes(learner, samples, top)]
        for sample, found in zip(samples, predicted, strict=True):
            named = [] if found.is_unknown else found.ranked
            kept = [each for each in named if each.label is not None and each.confidence >= threshold]
            if as_json:
                judged = {} if limit is None else {"unknown": found.is_unknown}
                echo(json.dumps({**_as_fields(sample.id, kept, found, top), **judged}))
            else:
                echo(_as_text(sample.id, kept, found))
    return BadRecord.exit_code if unread else 0


def find_images(named: Sequence[str]) -> Iterator[Path]:
    """Yield the paths that the arguments name: files as they are, the images of folders, and of patterns."""
    for each in named:
        path = Path(each)
        if each == "-":
            yield from (Path(line) for line in map(str.strip, sys.stdin) if line)
        elif path.is_dir():
            yield from _images_below(path)
        elif path.exists() or not glob.has_magic(each):
            yield path
        else:
            yield from (found for found in map(Path, sorted(glob.glob(each))) if found.is_file())  # noqa: PTH207


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Let what is loaded stay out of all garbage collections, which take a tenth of one prediction's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _images_below(folder: Path) -> Iterator[Path]:
    from streams.datasets.layout import files_below, is_image_file

    return filter(is_image_file, files_below(folder))


def _decoded(paths: Sequence[Path]) -> Iterator[Sample]:
    """Yield the images that can be read; say of each other one why not."""
    from streamcl.events import Sample
    from streams.user.images import ImageLimits, decode

    for path in paths:
        try:
            yield Sample(str(path), decode(path, ImageLimits()))
        except BadRecord as error:
            echo(one_line(f"streamcl: {path}: {error}"), err=True)


def _limit(run: LoadedRun) -> float | None:
    """Return the limit of `answer.unknown`; None where it is not set; warn where it has no effect."""
    from streamcl.runs.learner import unsupported_limit

    if (share := run.config.answer.unknown) is None:
        return None
    if (limit := unsupported_limit(run, share)) is None:
        reason = (
            "too few images of known classes are held out, or the learner cannot tell how new an image is"
        )
        echo(f"streamcl: answer.unknown has no effect: {reason}", err=True)
    return limit


def _as_fields(name: str, kept: Sequence[Prediction], found: AssessedPrediction, top: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "image": name,
        "class": kept[0].label if kept else None,
        "confidence": found.confidence,
        "stability": found.stability,
        "novelty": found.novelty,
    }
    if top > 1:
        answer["top"] = [{"class": each.label, "confidence": each.confidence} for each in kept]
    return answer


def _as_text(name: str, kept: Sequence[Prediction], found: AssessedPrediction) -> str:
    classes = [f"{printable(str(each.label))}\t{each.confidence:.3f}" for each in kept]
    missing = "unknown" if found.is_unknown else "no class"
    return "\t".join([printable(name), *(classes or [f"({missing})\t{found.confidence:.3f}"])])

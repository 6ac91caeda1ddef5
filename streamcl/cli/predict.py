"""streamcl predict: the classes of images, by the model that a run has learned so far."""

from __future__ import annotations

import gc
import glob
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import echo, one_line, printable
from streamcl.errors import BadRecord, ConfigError

if TYPE_CHECKING:
    from streamcl.events import Prediction, Sample
    from streamcl.runs.early_prediction import EarlyPrediction
    from streamcl.runs.learner import LoadedRun

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
@click.option(
    "--budget",
    callback=lambda context, parameter, value: _budget(value),  # noqa: ARG005 - the signature is click's
    metavar="SHARE",
    help="Share of the work of all blocks that is used on average, such as 50%.",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(0, min_open=True),
    help="Milliseconds for each 64 images, once they are decoded.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def predict(
    run: Path,
    images: tuple[str, ...],
    *,
    top: int,
    threshold: float,
    budget: float | None,
    deadline_ms: float | None,
    as_json: bool,
) -> int:
    """Name the class of each of IMAGES with the model that RUN has learned so far.

    IMAGES are files, folders (with all images in them), patterns such as "inbox/*.png", and - for paths on
    standard input, one a line. Exit code 3 where one of them cannot be read.

    With --json each has, beside its confidence, its stability (the probability that an equally good model,
    learned from other images of the same stream, names the same class) and its novelty (1: as a new image
    of the stream is on average); null where the learner cannot compute them. Where `answer.unknown` is set
    in the configuration of RUN, an image unlike those learned has no class and is called unknown.

    With --budget an image goes no further through the backbone than until its class stands out, by thresholds
    from the images that RUN holds out; --json then gives the share of the work that it took in their place.

    With --deadline-ms all of up to 64 images go as far through the backbone as there is time for, the least
    certain ones further than the others. The time of each group of blocks is measured beforehand. Every
    image passes at least the first group, and how many deadlines were missed is said at the end.
    """
    if budget is not None and deadline_ms is not None:
        raise click.UsageError("--budget and --deadline-ms exclude each other")
    paths = list(find_images(images))
    if not paths:
        raise ConfigError(f"no image is found in {', '.join(images)}")
    with _collector_paused():
        from streamcl.runs.learner import load_run

        loaded = load_run(run, fitted=True)
        timed = None if deadline_ms is None else _Timed(loaded, deadline_ms / 1000, top)
        predict_batch = _predictor(loaded, top, budget, assess=as_json) if timed is None else timed.predict
    unread = 0
    for start in range(0, len(paths), IMAGES_DECODED_AT_ONCE):
        part = paths[start : start + IMAGES_DECODED_AT_ONCE]
        samples = list(_decoded(part))
        unread += len(part) - len(samples)
        for sample, found in zip(samples, predict_batch(samples), strict=True):
            kept = [each for each in found.ranked if each.label is not None and each.confidence >= threshold]
            echo(_as_json(sample.id, kept, found, top) if as_json else _as_text(sample.id, kept, found))
    if timed is not None:
        timed.warn_of_missed()
    return BadRecord.exit_code if unread else 0


@dataclass(frozen=True, slots=True)
class _Found:
    """What is printed of an image. missing: in place of a class. facts: further fields of its JSON object."""

    ranked: Sequence[Prediction]
    confidence: float
    missing: str = "no class"
    facts: Mapping[str, Any] = field(default_factory=dict)


_Predictor: TypeAlias = Callable[[Sequence["Sample"]], list[_Found]]


def _predictor(run: LoadedRun, top: int, budget: float | None, *, assess: bool) -> _Predictor:
    """Return the function that predicts a batch of images."""
    if budget is not None:
        return _within_budget(run, top, budget)
    limit = _limit(run)
    if assess or limit is not None:
        return _assessed(run, top, limit)
    from streamcl.runs.learner import rank_classes

    def rank(samples: Sequence[Sample]) -> list[_Found]:
        return [_Found(row, _best(row)) for row in rank_classes(run.learner, samples, top)]

    return rank


def _assessed(run: LoadedRun, top: int, limit: float | None) -> _Predictor:
    from streamcl.runs.learner import assess_predictions

    def assess(samples: Sequence[Sample]) -> list[_Found]:
        found = assess_predictions(run.learner, samples, top, math.inf if limit is None else limit)
        return [
            _Found(
                () if each.is_unknown else each.ranked,
                _best(each.ranked),
                "unknown" if each.is_unknown else "no class",
                {"stability": each.stability, "novelty": each.novelty}
                | ({} if limit is None else {"unknown": each.is_unknown}),
            )
            for each in found
        ]

    return assess


def _within_budget(run: LoadedRun, top: int, budget: float) -> _Predictor:
    from streamcl.runs.early_prediction import BudgetedPredictor

    predictor = BudgetedPredictor(run, budget)

    def predict_early(samples: Sequence[Sample]) -> list[_Found]:
        return _early(predictor.predict(samples, top))

    return predict_early


class _Timed:
    """Predicts each batch within some seconds; before the first, measures how long its images take."""

    def __init__(self, run: LoadedRun, seconds: float, top: int) -> None:
        from streamcl.runs.early_prediction import DeadlinePredictor

        self._predictor, self._seconds, self._top = DeadlinePredictor(run.learner), seconds, top
        self._measured = False

    def predict(self, samples: Sequence[Sample]) -> list[_Found]:
        if samples and not self._measured:
            self._predictor.measure(samples)
            self._measured = True
        return _early(self._predictor.predict(samples, self._top, self._seconds))

    def warn_of_missed(self) -> None:
        found = self._predictor
        if found.missed:
            late = f"at most by {1000 * found.most_late:.1f} ms"
            echo(f"streamcl: the deadline was missed {found.missed} times, {late}", err=True)


def _early(found: Sequence[EarlyPrediction]) -> list[_Found]:
    return [_Found(each.ranked, _best(each.ranked), facts={"work": round(each.cost, 4)}) for each in found]


def _best(ranked: Sequence[Prediction]) -> float:
    return ranked[0].confidence if ranked else 0.0


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


def _budget(value: str | None) -> float | None:
    """Return the share that 50% or 0.5 stands for."""
    if value is None:
        return None
    number, _, rest = value.strip().partition("%")
    try:
        budget = float(number) / (100 if "%" in value else 1)
    except ValueError:
        budget = math.nan
    if rest or not 0 < budget <= 1:
        raise click.BadParameter(f"{value} is no share of the work; write 50% or 0.5")
    return budget


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


def _as_json(name: str, kept: Sequence[Prediction], found: _Found, top: int) -> str:
    fields: dict[str, Any] = {
        "image": name,
        "class": kept[0].label if kept else None,
        "confidence": found.confidence,
        **found.facts,
    }
    if top > 1:
        fields["top"] = [{"class": each.label, "confidence": each.confidence} for each in kept]
    return json.dumps(fields)


def _as_text(name: str, kept: Sequence[Prediction], found: _Found) -> str:
    classes = [f"{printable(str(each.label))}\t{each.confidence:.3f}" for each in kept]
    return "\t".join([printable(name), *(classes or [f"({found.missing})\t{found.confidence:.3f}"])])

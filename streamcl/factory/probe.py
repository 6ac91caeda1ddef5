"""A probe: some labelled images of a stream, drawn at random. The stream is read, and nothing is changed."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from streamcl.config.options.run import RunConfig
from streamcl.errors import ConfigError, SourceError
from streamcl.events import Batch, Sample
from streamcl.factory.source import inspectable_source
from streamcl.protocols import Fetch, Sliceable, Source, fetch_of
from streams.live.source import LiveSource

MIN_OF_CLASS = 3
"""Images of a class, at least: with fewer, leaving one out says little about the class."""
MAX_RECORDS = 1_000_000
"""Records whose labels are read, at most: a stream may have no end."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Samples of a stream, by their ids.

    labels: the class of each sample, by its id. classes: in the order of their names. rare: classes of the
    stream with too few samples, which are left out. fetch: reads samples by their ids.
    """

    labels: Mapping[str, str]
    classes: tuple[str, ...]
    rare: tuple[str, ...]
    fetch: Fetch

    def chunks(self, size: int) -> Iterator[list[Sample]]:
        """Yield the samples, read anew, in lists of that size; those that cannot be decoded are left out."""
        samples = self.fetch(list(self.labels))
        while chunk := list(itertools.islice(samples, size)):
            yield [replace(sample, label=self.labels[sample.id]) for sample in chunk]


def draw_probe(config: RunConfig, count: int) -> Probe:
    """Return labelled samples of a run's stream; test images that the source has are never read.

    Every class has three samples, and the others are drawn from all that the stream has.

    Args:
        config: of the run, whose seed decides which samples are drawn.
        count: the number of samples, or fewer where the stream has fewer.

    Raises:
        ConfigError: too few samples for three of each class.
        SourceError: the source is live or is read once, or has no two classes with three samples each.
    """
    with TemporaryDirectory(prefix="streamcl-probe-") as folder:
        _, source = inspectable_source(config, Path(folder))
        fetch = None if isinstance(source, LiveSource) else fetch_of(source)
        if fetch is None or not source.replayable:
            raise SourceError(
                f"{source.info.name} cannot be probed: its records cannot be read by their ids, and again",
                hint="name a data set with images like those to come, such as "
                "source: {name: image_folder, args: {root: PATH}}",
            )
        by_class = _ids_by_class(source, min(config.max_samples or MAX_RECORDS, MAX_RECORDS))
    rare = tuple(sorted(name for name, ids in by_class.items() if len(ids) < MIN_OF_CLASS))
    classes = tuple(sorted(by_class.keys() - set(rare)))
    if len(classes) < 2:
        found = sum(map(len, by_class.values()))
        raise SourceError(
            f"{source.info.name} has {found} labelled samples, and {len(classes)} classes with "
            f"{MIN_OF_CLASS} of them or more; to compare candidates takes two such classes",
            hint="the labels of the stream decide: name a source whose records have them",
        )
    if count < MIN_OF_CLASS * len(classes):
        raise ConfigError(
            f"a probe of {count} images is too small for {len(classes)} classes: {MIN_OF_CLASS} of each",
            hint=f"--probe {MIN_OF_CLASS * len(classes)} or more",
        )
    drawn = _drawn({name: by_class[name] for name in classes}, count, config.seed)
    return Probe(drawn, classes, rare, fetch)


def _ids_by_class(source: Source, limit: int) -> dict[str, list[str]]:
    """Return the ids of the labelled samples by class, without decoding images where that can be helped."""
    if isinstance(source, Sliceable):
        source.read_slice(1, 1)  # no offset is 1 modulo 1
    labels: dict[str, str | None] = {}
    for event in source:
        if not isinstance(event, Batch):
            continue
        if event.offset >= limit and event.samples:
            break
        labels |= {sample.id: sample.label for sample in event.samples}
        labels |= {each.id: each.label for each in event.labels if each.id in labels}
    found = defaultdict[str, list[str]](list)
    for name, label in labels.items():
        if label is not None:
            found[label].append(name)
    return found


def _drawn(by_class: Mapping[str, Sequence[str]], count: int, seed: int) -> dict[str, str]:
    """Return the class of each sample that is drawn, by its id, in random order."""
    draw = random.Random(seed)
    shuffled = {name: draw.sample(list(ids), len(ids)) for name, ids in by_class.items()}
    first = [(each, name) for name, ids in shuffled.items() for each in ids[:MIN_OF_CLASS]]
    others = [(each, name) for name, ids in shuffled.items() for each in ids[MIN_OF_CLASS:]]
    chosen = first + draw.sample(others, min(len(others), count - len(first)))
    return dict(draw.sample(chosen, len(chosen)))

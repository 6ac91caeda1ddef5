"""Puts a user's own data set, read by index, into the order of a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamcl.errors import BadRecord, ConfigError
from streamcl.events import NO_PIXELS, Pixels, RejectedRecord, Sample
from streamcl.protocols import Source
from streams.replay.collection import Collection, Grouping, groups_of
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import order_for
from streams.user.metadata import label_names
from streams.user.readers import is_map_style
from streams.user.records import RecordPolicy, to_samples
from streams.user.retrying import user_code


def scenario_dataset(
    make: Callable[[], Any],
    scenario: tuple[str, Mapping[str, Any]],
    *,
    name: str = "stream",
    batch_size: int = 64,
    seed: int = 0,
    policy: RecordPolicy | None = None,
    columns: Mapping[str, str] | None = None,
    label_delay: int | None = None,
    rate: float | None = None,
) -> Source:
    """Return a replayable source of the data set that `make` returns, ordered by `scenario`.

    `scenario` is (name, arguments). Labels, domains and subjects are read once, at the start; each image is
    read again when it is streamed. A `holdout` of the same kind is held out in the scenario's parts.
    `label_delay`, `rate`: see `ReplaySource`. Raise ConfigError for what is not read by index (`__len__` and
    `__getitem__`): an iterator has its own order.
    Every exception of the user's code becomes a SourceError.
    """
    rules = policy or RecordPolicy()
    with user_code(f"{name} could not be made"):
        made = make()
    train = _collection(made, name, rules, columns, {})
    held = getattr(made, "holdout", None)
    known = {label: code for code, label in enumerate(train.classes)}
    test = None if held is None else _collection(held, f"{name}-holdout", rules, columns, known)
    order = order_for(scenario[0], train, scenario[1], seed)
    return ReplaySource(
        train, order, batch_size, test, rules.on_bad_record, label_delay=label_delay, rate=rate
    )


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of a data set, read at access."""

    read: Callable[[int], Sample]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Pixels:
        return self.read(index).image


def _collection(
    made: Any, name: str, policy: RecordPolicy, columns: Mapping[str, str] | None, classes: dict[str, int]
) -> Collection:
    if not is_map_style(made):
        raise ConfigError(
            f"{name} is a {type(made).__name__}, which brings its own order, so no scenario can be applied",
            hint="leave the scenario out, or return something with __len__ and __getitem__",
        )
    with user_code(f"{name} cannot be inspected"):
        names, length = label_names(made, columns), len(made)

    def read(index: int) -> Sample:
        with user_code(f"{name} failed at record {index}"):
            item = made[index]
        records = to_samples(item, offset=index, name=name, policy=policy, class_names=names, columns=columns)
        match list(records):
            case [Sample() as sample]:
                return sample
            case [RejectedRecord() as rejected, *_]:
                reason = rejected.reason
            case _:
                reason = "it is not one record"
        raise BadRecord(f"record {index}: {reason}")

    samples = [_without_pixels(read, index) for index in range(length)]
    for sample in samples:
        if sample.label is not None:
            classes.setdefault(sample.label, len(classes))
    return Collection(
        name,
        _Images(read, len(samples)),
        np.array([-1 if s.label is None else classes[s.label] for s in samples], np.int64),
        tuple(classes),
        tuple(sample.id for sample in samples),
        domains=_groups([sample.domain for sample in samples]),
        subjects=_groups([sample.subject for sample in samples]),
    )


def _groups(values: list[str | None]) -> Grouping | None:
    return groups_of([value or "" for value in values]) if any(values) else None


def _without_pixels(read: Callable[[int], Sample], index: int) -> Sample:
    """Return the sample without its image; a bad record is unlabelled, and rejected when it is streamed."""
    try:
        return replace(read(index), image=NO_PIXELS)
    except BadRecord:
        return Sample(f"record-{index}", NO_PIXELS)

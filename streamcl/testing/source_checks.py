"""Checks that a source keeps what `streamcl.protocols.Source` promises; no torch."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice, pairwise
from typing import Any

import numpy as np

from streamcl.events import Batch, ForgetRequest, PlacedEvent, Sample, StreamInfo
from streamcl.protocols import Source, State, fetch_of
from streamcl.storage.plain_state import state_hash


def check_source(make_source: Callable[[], Source], *, limit: int | None = 200) -> None:
    """Check a source over its first events: info, offsets, samples, states, resuming and fetching.

    The same arguments must make the same stream, and a new source that loads the state after event k must
    yield exactly the events after k (not required of a source that is not replayable).

    Args:
        make_source: makes the source anew, with the same arguments each time.
        limit: events to read; None reads to the end.

    Raises:
        AssertionError: says which promise is broken, and where.
    """
    _check_info(make_source, limit)
    _check_events(first_events(make_source(), limit))
    _check_states(make_source, limit)
    again = fingerprints(first_events(make_source(), limit))
    expected = fingerprints(first_events(make_source(), limit))
    require(again == expected, "the same arguments made another stream")
    _check_fetch(make_source, limit)
    if make_source().replayable:
        _check_resuming(make_source, limit)
        _check_iterating_again(make_source, expected)


def first_events(source: Source, limit: int | None = None) -> list[PlacedEvent]:
    """Return the next `limit` events that have a place in the stream, or all of them."""
    return list(islice((event for event in source if isinstance(event, PlacedEvent)), limit))


def samples_of(events: Iterable[PlacedEvent]) -> list[Sample]:
    """Return the samples of all batches among the events."""
    return [sample for event in events if isinstance(event, Batch) for sample in event.samples]


def fingerprints(events: Iterable[PlacedEvent]) -> list[tuple[Any, ...]]:
    """Return everything of the events that a learner could see, comparable with ==."""
    return [event_fingerprint(event) for event in events]


def event_fingerprint(event: PlacedEvent) -> tuple[Any, ...]:
    """Return everything of one event, its pixels by their hash, comparable with ==."""
    if isinstance(event, ForgetRequest):
        carried = tuple(_sample_fingerprint(sample) for sample in event.samples)
        facts = (event.id, event.kind, event.selection)
        return ("forget", event.offset, *facts, carried)
    samples = tuple(_sample_fingerprint(each) for each in event.samples)
    return ("batch", event.offset, samples, event.rejected, event.labels)


def _sample_fingerprint(sample: Sample) -> tuple[Any, ...]:
    digest = hashlib.sha256(np.ascontiguousarray(sample.image).tobytes()).hexdigest()
    facts = (sample.id, sample.label, sample.subject, sample.domain, sample.privacy)
    return (*facts, sample.image.shape, digest)


def _check_info(make_source: Callable[[], Source], limit: int | None) -> None:
    """Require that info is there before the stream runs, does not change while it runs, and is true."""
    source = make_source()
    require(isinstance(source, Source), f"{type(source).__name__} lacks methods of streamcl.protocols.Source")
    info = source.info
    require(isinstance(info, StreamInfo) and bool(info.name), "info is not a StreamInfo with a name")
    require(all(isinstance(name, str) for name in info.classes), f"classes are not strings: {info.classes}")
    require(len(set(info.classes)) == len(info.classes), f"a class comes twice in info: {info.classes}")
    require(list(info.shifts) == sorted(set(info.shifts)), f"shifts do not ascend: {info.shifts}")
    events = first_events(source, limit)
    facts = (info.name, info.length, info.classes, info.shifts)
    later = source.info
    require(
        (later.name, later.length, later.classes, later.shifts) == facts, "info changed during the stream"
    )
    if info.length is not None:
        require(all(0 < shift < info.length for shift in info.shifts), f"shifts out of range: {info.shifts}")
        end = max((event.end for event in events), default=0)
        ended = limit is None or len(events) < limit
        as_said = end == info.length if ended else end <= info.length
        require(as_said, f"the length is {info.length}, the stream came to offset {end}")
    unknown = {sample.label for sample in samples_of(events) if sample.label} - set(info.classes)
    require(
        not info.classes or not unknown, f"labels that are not among the classes: {sorted(map(str, unknown))}"
    )
    for part in info.holdout:
        require(bool(part.name), "a held-out part has no name")
        for index in {0, len(part.samples) - 1} if len(part.samples) else set():
            _check_sample(part.samples[index])


def _check_events(events: list[PlacedEvent]) -> None:
    """Require dense offsets, rejected records in their places, well-formed samples, and unique ids."""
    require(bool(events), "the source yields no event, so nothing can be checked")
    require(events[0].offset == 0, f"the first event is at offset {events[0].offset}, expected 0")
    for before, after in pairwise(events):
        require(
            after.offset == before.end,
            f"an event at offset {after.offset} follows one that ends at {before.end}",
        )
    for event in events:
        if isinstance(event, Batch):
            require(
                event.end > event.offset or bool(event.labels), f"the batch at offset {event.offset} is empty"
            )
            for rejected in event.rejected:
                inside = event.offset <= rejected.offset < event.end
                require(inside, f"a rejected record at {rejected.offset} lies outside of its batch")
                require(bool(rejected.id and rejected.reason), "a rejected record lacks its id or reason")
    ids = set[str]()
    for sample in samples_of(events):
        _check_sample(sample)
        require(sample.id not in ids, f"the id {sample.id!r} comes twice")
        ids.add(sample.id)


def _check_sample(sample: Sample) -> None:
    require(isinstance(sample.id, str) and bool(sample.id), f"the id {sample.id!r} is not a string")
    labelled = isinstance(sample.label, str) and bool(sample.label)
    require(sample.label is None or labelled, f"the label {sample.label!r} of {sample.id!r} is not a string")
    require(sample.privacy in {"core", "user"}, f"privacy of {sample.id!r} is {sample.privacy!r}")
    image = sample.image
    rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(image.shape) >= 1
    require(rgb, f"the image of {sample.id!r} is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")


def _check_states(make_source: Callable[[], Source], limit: int | None) -> None:
    """Require that states are plain data, and copies that later events do not change."""
    source = make_source()
    states = [source.state_dict()]
    hashes = [plain_hash(states[0])]
    for _ in islice(source, limit):
        states.append(source.state_dict())
        hashes.append(plain_hash(states[-1]))
    require([plain_hash(state) for state in states] == hashes, "a state changed after it was returned")


def _check_fetch(make_source: Callable[[], Source], limit: int | None) -> None:
    """Require that `fetch`, where there is one, returns only requested samples, under their ids."""
    source = make_source()
    if (fetch := fetch_of(source)) is None:
        return
    ids = [sample.id for sample in samples_of(first_events(source, limit))][:3]
    with closing(fetch([*ids, "no such id"])) as found:
        for sample in found:
            require(sample.id in ids, f"fetch returned {sample.id!r}, which was not requested")


def _check_resuming(make_source: Callable[[], Source], limit: int | None) -> None:
    source = make_source()
    states = [copy.deepcopy(source.state_dict())]
    events: list[PlacedEvent] = []
    for event in islice((each for each in source if isinstance(each, PlacedEvent)), limit):
        events.append(event)
        states.append(copy.deepcopy(source.state_dict()))
    expected, ended = fingerprints(events), limit is None or len(events) < limit
    for index, state in enumerate(states):
        restored = make_source()
        restored.load_state_dict(state)
        same = plain_hash(restored.state_dict()) == plain_hash(state)
        require(same, f"the state after event {index} changed when it was loaded")
        rest = first_events(
            restored, len(events) - index + ended
        )  # one more than there may be, to see the end
        require(fingerprints(rest) == expected[index:], f"resumed after event {index}, other events follow")


def _check_iterating_again(make_source: Callable[[], Source], expected: list[tuple[Any, ...]]) -> None:
    """Require that a second loop over the same object continues where the first one stopped."""
    source, half = make_source(), len(expected) // 2
    found = fingerprints(first_events(source, half)) + fingerprints(
        first_events(source, len(expected) - half)
    )
    require(found == expected, "iterating again does not continue where the first loop stopped")


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def plain_hash(state: State) -> str:
    """Return a hash of the state; raise AssertionError where it holds what no checkpoint can."""
    try:
        return state_hash(state)
    except TypeError as error:
        raise AssertionError(f"the state is not plain data: {error}") from error

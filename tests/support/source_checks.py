"""What every source owes its reader, as functions that take a way to make the source: call `check_source`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from typing import Any

import numpy as np

from streamcl.events import Batch, Event, ForgetRequest, Sample, StreamInfo
from streamcl.protocols import Source

MakeSource = Callable[[], Source]
LEAVES = (str, int, float, bool, type(None), np.ndarray)


def check_source(make_source: MakeSource, *, most: int | None = 200) -> None:
    """All of the checks below, each on fresh sources, over the first `most` events (None: all)."""
    check_info(make_source, most)
    check_offsets(make_source, most)
    check_samples(make_source, most)
    check_same_stream(make_source, most)
    check_states(make_source, most)
    check_restored_at_every_event(make_source, most)
    check_iterating_again_goes_on(make_source, most)


def check_info(make_source: MakeSource, most: int | None = None) -> None:
    """Info is there before the stream runs, does not change while it runs, and is true."""
    source = make_source()
    assert isinstance(source, Source)
    info = source.info
    assert isinstance(info, StreamInfo)
    assert info.name
    assert len(set(info.classes)) == len(info.classes)
    assert all(isinstance(name, str) for name in info.classes)
    assert list(info.shifts) == sorted(set(info.shifts))
    events = take(source, most)
    again = source.info
    assert (again.name, again.length, again.classes, again.shifts) == (
        info.name,
        info.length,
        info.classes,
        info.shifts,
    )
    if info.length is not None:
        assert all(0 < shift < info.length for shift in info.shifts)
        end = max((event.end for event in events), default=0)
        assert end <= info.length
        if most is None or len(events) < most:
            assert end == info.length
    if info.classes:
        assert {sample.label for sample in samples_of(events) if sample.label} <= set(info.classes)
    for part in info.holdout:
        assert part.name
        for index in {0, len(part.samples) - 1} if len(part.samples) else set():
            check_sample(part.samples[index])


def check_offsets(make_source: MakeSource, most: int | None = None) -> None:
    """Events follow one another without a gap or a repetition, and refused records keep their places."""
    events = take(make_source(), most)
    assert events, "a source with no event shows nothing"
    assert events[0].offset == 0
    for before, after in pairwise(events):
        assert after.offset == before.end
    for event in events:
        if isinstance(event, Batch):
            assert event.end > event.offset
            assert all(event.offset <= refused.offset < event.end for refused in event.refused)
            assert all(refused.id and refused.reason for refused in event.refused)


def check_samples(make_source: MakeSource, most: int | None = None) -> None:
    """Samples are uint8 RGB with string labels, and no id comes twice in one pass."""
    samples = samples_of(take(make_source(), most))
    for sample in samples:
        check_sample(sample)
    ids = [sample.id for sample in samples]
    assert len(set(ids)) == len(ids)


def check_sample(sample: Sample) -> None:
    assert isinstance(sample.id, str)
    assert sample.id
    assert sample.label is None or (isinstance(sample.label, str) and sample.label)
    assert sample.privacy in {"core", "user"}
    assert sample.image.dtype == np.uint8
    assert sample.image.ndim == 3
    assert sample.image.shape[2] == 3
    assert min(sample.image.shape) >= 1


def check_same_stream(make_source: MakeSource, most: int | None = None) -> None:
    """The same arguments make the same stream."""
    assert prints(take(make_source(), most)) == prints(take(make_source(), most))


def check_states(make_source: MakeSource, most: int | None = None) -> None:
    """States are plain data, and what was handed out does not change when the source goes on."""
    source = make_source()
    states = [source.state_dict()]
    copies = [copy.deepcopy(states[0])]
    for _ in islice(source, most):
        states.append(source.state_dict())
        copies.append(copy.deepcopy(states[-1]))
    assert all(same_state(kept, then) for kept, then in zip(states, copies, strict=True))
    for state in states:
        check_plain(state)


def check_restored_at_every_event(make_source: MakeSource, most: int | None = None) -> None:
    """A new source given the state after event k yields exactly the events after k."""
    source = make_source()
    if not source.replayable:
        return
    states = [copy.deepcopy(source.state_dict())]
    events: list[Event] = []
    for event in islice(source, most):
        events.append(event)
        states.append(copy.deepcopy(source.state_dict()))
    expected, ended = prints(events), most is None or len(events) < most
    for index, state in enumerate(states):
        restored = make_source()
        restored.load_state_dict(state)
        assert same_state(restored.state_dict(), state), f"the state after event {index} did not survive"
        rest = take(restored, len(events) - index + ended)  # one more than there may be, to see the end
        assert prints(rest) == expected[index:], f"restored after event {index}, the remainder differs"


def check_iterating_again_goes_on(make_source: MakeSource, most: int | None = None) -> None:
    """Iterating the same object again goes on from where it is: half by one loop, half by the next."""
    whole = prints(take(make_source(), most))
    source = make_source()
    if not source.replayable:
        return
    half = len(whole) // 2
    first = prints(take(source, half))
    rest = prints(take(source, len(whole) - half))
    assert first + rest == whole


def take(source: Source, most: int | None = None) -> list[Event]:
    return list(islice(source, most))


def samples_of(events: Iterable[Event]) -> list[Sample]:
    return [sample for event in events if isinstance(event, Batch) for sample in event.samples]


def prints(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Everything of the events that a learner could see, comparable with ==."""
    return [event_print(event) for event in events]


def event_print(event: Event) -> tuple[Any, ...]:
    if isinstance(event, ForgetRequest):
        carried = tuple(sample_print(sample) for sample in event.samples)
        facts = (event.id, event.kind, event.selection)
        return ("forget", event.offset, *facts, carried)
    return ("batch", event.offset, tuple(sample_print(sample) for sample in event.samples), event.refused)


def sample_print(sample: Sample) -> tuple[Any, ...]:
    digest = hashlib.sha256(np.ascontiguousarray(sample.image).tobytes()).hexdigest()
    facts = (sample.id, sample.label, sample.subject, sample.domain, sample.privacy)
    return (*facts, sample.image.shape, digest)


def check_plain(value: Any, path: str = "state") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            assert isinstance(key, str), f"{path} has the key {key!r}, which is no string"
            check_plain(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_plain(inner, f"{path}[{index}]")
    else:
        assert isinstance(value, LEAVES), f"{path} is a {type(value).__name__}"


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same_state(one[key], other[key]) for key in one)
        )
    if isinstance(one, list):
        return (
            isinstance(other, list)
            and len(one) == len(other)
            and all(same_state(a, b) for a, b in zip(one, other, strict=True))
        )
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    return bool(type(one) is type(other) and one == other)

"""The shipped checks of sources and detectors: that each promise, broken, is found."""

from dataclasses import replace

import pytest

from streamcl.events import Batch
from streamcl.shift.relative_rise import RelativeRiseDetector
from streamcl.testing import Jump, ScriptedSource, check_detector, check_source


class Counted(ScriptedSource):
    """Ten batches, some promise of which is broken by a subclass."""

    made = 0

    def __init__(self):
        super().__init__([3] * 10)
        type(self).made += 1


class WrongLength(Counted):
    @property
    def info(self):
        return super().info.__class__("wrong", 31)


class UnknownClasses(Counted):
    @property
    def info(self):
        return super().info.__class__("unknown", 30, ("odd",))


class Gap(ScriptedSource):
    def __init__(self):
        super().__init__([3, Jump(2), 3])

    @property
    def info(self):
        return super().info.__class__("gap")


class SameIds(Counted):
    def __iter__(self):
        for event in super().__iter__():
            yield Batch(event.offset, (event.samples[0],) * 3)


class NeverTheSame(Counted):
    def __iter__(self):
        for event in super().__iter__():
            samples = tuple(replace(each, id=f"{self.made} {each.id}") for each in event.samples)
            yield replace(event, samples=samples)


class SharedState(Counted):
    state = {"list": []}  # noqa: RUF012 - shared on purpose

    def state_dict(self):
        self.state["list"].append(0)
        return self.state | super().state_dict()


class TupleKeys(Counted):
    def state_dict(self):
        return {("a", "b"): 0, **super().state_dict()}


class OneBehind(Counted):
    def load_state_dict(self, state):
        super().load_state_dict(state | {"item": max(0, state["item"] - 1)})

    def state_dict(self):
        return {"item": min(10, self._item), "offset": self._offset}


class Restarting(Counted):
    replayable = True

    def __iter__(self):
        self._item = self._offset = 0
        yield from super().__iter__()


class WrongFetch(Counted):
    def fetch(self, ids):
        return super().fetch(["999"])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (WrongLength, "the length is 31"),
        (UnknownClasses, r"not among the classes: \['even'\]"),
        (Gap, "at offset 5 follows one that ends at 3"),
        (SameIds, "comes twice"),
        (NeverTheSame, "another stream"),
        (SharedState, "changed after it was returned"),
        (TupleKeys, "not plain data"),
        (OneBehind, "changed when it was loaded|other events follow"),
        (Restarting, "other events follow"),
        (WrongFetch, "fetch returned .000999., which was not"),
    ],
)
def test_a_broken_source_is_found(source, complaint):
    check_source(Counted)
    with pytest.raises(AssertionError, match=complaint):
        check_source(source)


class TakesAnything(RelativeRiseDetector):
    def update(self, loss):
        super().update(min(max(loss, 0.0), 9.0))


class NotesRefusals(RelativeRiseDetector):
    refused = 0

    def update(self, loss):
        self.refused += not abs(loss) < float("inf")
        super().update(loss)

    def state_dict(self):
        return super().state_dict() | {"refused": self.refused}


class Forgetful(RelativeRiseDetector):
    def load_state_dict(self, state):
        pass


class AlwaysSettled(RelativeRiseDetector):
    def update(self, loss):
        super().update(loss)
        self.plateau = "settled"


class Leaking(RelativeRiseDetector):
    seen: list[float] = []  # noqa: RUF012 - shared on purpose

    def update(self, loss):
        super().update(loss)
        self.seen.append(loss)

    def state_dict(self):
        return super().state_dict() | {"seen": self.seen}


@pytest.mark.parametrize(
    ("detector", "complaint"),
    [
        (TakesAnything, "was not refused"),
        (NotesRefusals, "refusing a loss of nan changed"),
        (Forgetful, "resumed before batch 1"),
        (AlwaysSettled, "a second plateau of one segment is reported at batch 1"),
        (Leaking, "changed after it was returned"),
    ],
)
def test_a_broken_detector_is_found(detector, complaint):
    check_detector(RelativeRiseDetector)
    with pytest.raises(AssertionError, match=complaint):
        check_detector(detector)

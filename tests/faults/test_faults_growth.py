"""F16: whatever a stream does, however long, what a checkpoint holds does not grow with it."""

from __future__ import annotations

import json
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from fault_sources import Always
from loop_runs import build

from streamcl.errors import BadRecord
from streamcl.processor.shift_handler import MAX_OFFSETS_IN_STATE
from streamcl.runs.summary import summarise
from streamcl.shift import river
from streamcl.shift.detector import build_detector
from streams.offsets import OffsetChecked
from streams.prefetch import Prefetcher
from streams.user.source import IterableSource

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import soak

pytestmark = [pytest.mark.faults, pytest.mark.long]

DETECTORS = {
    "relative_rise": {},
    "plateau": {"mean_threshold": 2.6, "variance_threshold": 0.03},
    **{name: {"name": name} for name in ("ADWIN", "PageHinkley", "KSWIN")},
}


class Consolidating(soak.Tiny):
    def consolidate(self):
        return {"settled": True}


def sizes(state):
    """Characters of each part of a state."""
    plain = {part: value for part, value in state.items() if part not in {"sinks", "meter", "random"}}
    return {part: len(json.dumps(value, default=np.ndarray.tolist)) for part, value in plain.items()}


def grown(processor, steps):
    """How much larger each part is after twice `steps` than after once `steps` events."""
    events = iter(processor.source)
    measured = []
    for _ in range(2):
        for event in islice(events, steps):
            processor.process(event)
        measured.append(sizes(processor.state_dict()))
    return {part: measured[1][part] - measured[0][part] for part in measured[0]}


def odd_records():
    """Records for ever: good, bad, of new domains and subjects, without labels."""
    image = np.zeros((4, 4, 3), np.uint8)
    for number in count():
        label = (f"class {number % 7}", None, -1)[number % 3]
        yield {"image": image, "label": label, "domain": f"d{number}", "subject": f"s{number}"}
        yield BadRecord("no picture")


def test_a_shift_and_a_consolidation_at_every_step_leave_the_newest_and_a_count(tmp_path):
    steps = MAX_OFFSETS_IN_STATE + 500
    processor = build(
        tmp_path, soak.Endless(2 * steps), learner=Consolidating(), detector=Always(), commit_every=None
    )
    assert grown(processor, steps)["shifts"] <= 2 * MAX_OFFSETS_IN_STATE + 10  # an offset has a digit more
    found = processor.shift_handler
    assert len(found.shifts) == len(found.consolidations) == MAX_OFFSETS_IN_STATE
    assert (found.shifts[-1], found.segment, found.consolidated) == (2 * steps,) * 3


def test_the_summary_tells_the_totals_and_judges_what_it_still_knows(tmp_path):
    steps = MAX_OFFSETS_IN_STATE + 500
    source = soak.Endless(steps)
    source.info = soak.StreamInfo("soak", steps, shifts=(100, 499, 501, 1000))
    processor = build(tmp_path, source, learner=Consolidating(), detector=Always(), commit_every=None)
    list(processor.run())
    summary = summarise(
        name="long",
        learner="tiny",
        processor=processor,
        batch_size=1,
        timing={},
    )
    shifts = summary["shifts"]
    assert (shifts["total"], shifts["judged_from"]) == (steps, 501)
    assert shifts["true"] == [501, 1000]
    assert (shifts["found"], shifts["missed"], shifts["false_alarms"]) == (2, 0, MAX_OFFSETS_IN_STATE - 2)
    assert (summary["consolidated"], len(summary["consolidations"])) == (steps, MAX_OFFSETS_IN_STATE)


@pytest.mark.parametrize(
    "detector",
    [each if each == "relative_rise" else pytest.param(each, marks=pytest.mark.slow) for each in DETECTORS],
)
def test_no_part_of_the_state_grows_under_odd_records(tmp_path, monkeypatch, detector):
    monkeypatch.setattr(river, "HISTORY_LIMIT", 64)  # losses; else it is long until none is added
    made = build_detector("river" if "name" in DETECTORS[detector] else detector, **DETECTORS[detector])
    source = IterableSource(odd_records, batch_size=4, deterministic=True)
    processor = build(
        tmp_path, Prefetcher(OffsetChecked(source), 0), learner=soak.Tiny(), detector=made, commit_every=None
    )
    growth = grown(processor, 1500)
    assert {part: more for part, more in growth.items() if more > (1600 if part == "detector" else 64)} == {}

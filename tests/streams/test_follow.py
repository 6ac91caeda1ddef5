"""Sources that grow after they have ended: followed by a running process, continued by a later one."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from fault_runs import lines, start, stop, streamcl, until, write_config
from live_readers import Clock

from streamcl.events import Batch, Idle
from streams.follow import Follow
from streams.user.source import IterableSource


def test_what_is_added_after_the_end_is_read_and_nothing_twice():
    image = np.zeros((4, 4, 3), np.uint8)
    records = [{"image": image, "label": "x", "id": f"r{k}"} for k in range(3)]
    data, clock = records[:2], Clock()

    def sleep(seconds):
        clock.now += seconds
        if len(data) < 3:
            data.append(records[2])

    source = Follow(IterableSource(lambda: data, batch_size=8), clock=clock, sleep=sleep)
    events = list(islice(source, 12))
    batches = [event for event in events if isinstance(event, Batch)]
    assert [(batch.offset, batch.end) for batch in batches] == [(0, 2), (2, 3)]
    assert isinstance(events[-1], Idle)


@pytest.fixture
def growing(tmp_path):
    (tmp_path / "count.txt").write_text("20")
    write_config(
        tmp_path, source={"class": "fault_sources:Growing", "args": {"file": "count.txt"}}, run_dir="run"
    )
    return tmp_path


def predicted(folder):
    return [each["id"] for each in lines(folder / "run", "predictions")]


def test_a_finished_run_goes_on_by_itself_where_its_source_has_more(growing):
    assert streamcl("run", "stream.yaml", folder=growing).code == 0
    again = streamcl("run", "stream.yaml", folder=growing)
    assert (again.code, len(predicted(growing))) == (0, 20)
    assert "holds a finished run; its source has nothing new" in again.err
    (growing / "count.txt").write_text("29")
    more = streamcl("run", "stream.yaml", folder=growing)
    assert more.code == 0, more.err
    assert "going on from offset 20" in more.err
    assert predicted(growing) == [f"{k:06d}" for k in range(29)]


@pytest.mark.long
def test_a_run_that_follows_its_source_does_not_end_with_it(growing):
    run = start("run", "stream.yaml", "--follow", folder=growing)
    until(lambda: len(predicted(growing)) >= 20, process=run)
    (growing / "count.txt").write_text("23")
    until(lambda: len(predicted(growing)) >= 23, process=run)
    assert stop(run).code == 143
    assert predicted(growing) == [f"{k:06d}" for k in range(23)]


def test_a_data_set_that_is_ordered_as_a_whole_cannot_be_followed(tmp_path):
    write_config(tmp_path, source={"name": "demo_digits"}, max_samples=8)
    done = streamcl("run", "stream.yaml", "--follow", folder=tmp_path)
    assert done.code == 2
    assert "use source: folder" in done.err

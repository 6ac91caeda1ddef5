"""Batches that are small while little of the stream has passed: the same rule in every source."""

import pytest
from live_readers import Clock, ScriptedReader, record
from streams_data import collection
from tiny_runs import configuration

from streamcl.config.load import config_from_dict
from streamcl.events import Batch
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash
from streamcl.testing.source_checks import check_source
from streams.batch_size import BatchSize
from streams.live.cutting import Cutting
from streams.live.source import LiveSource
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import as_is
from streams.user.source import IterableSource

GROWING = [1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 10]
COUNT = sum(GROWING)


def replay():
    train = collection([0, 1] * (COUNT // 2), 2)
    source = ReplaySource(train, as_is(train), 64)
    source.adapt_batch_size()
    return source


def iterable():
    pictures = [(record(number)["image"], number % 2) for number in range(COUNT)]
    source = IterableSource(lambda: pictures, batch_size=64)
    source.adapt_batch_size()
    return source


def live():
    clock = Clock()
    reader = ScriptedReader([(0.0, record(number)) for number in range(COUNT)], clock, ends=True)
    return LiveSource(reader, cutting=Cutting(size=64, adaptive=True, max_wait=None), clock=clock)


@pytest.mark.parametrize("make", [replay, iterable, live])
def test_batches_grow_with_what_has_passed(make):
    assert [len(each.samples) for each in make() if isinstance(each, Batch)] == GROWING


@pytest.mark.parametrize("make", [replay, iterable, live])
def test_a_source_continues_with_the_same_batches_from_anywhere(make):
    check_source(make)


def test_a_batch_that_time_has_cut_moves_those_after_it_and_no_further():
    clock = Clock()
    script = [(0.0, record(number)) for number in range(9)] + [
        (9.0, record(number)) for number in range(9, 14)
    ]
    reader = ScriptedReader(script, clock, ends=True)
    made = LiveSource(reader, cutting=Cutting(adaptive=True, max_wait=2.0), clock=clock)
    assert [len(each.samples) for each in made if isinstance(each, Batch)] == [1, 1, 1, 1, 2, 2, 1, 4, 1]


def test_a_size_that_is_named_is_kept_from_the_first_record_on():
    assert [BatchSize(5).at(offset) for offset in (0, 1, 1000)] == [5, 5, 5]
    assert [BatchSize(20, adaptive=True).at(offset) for offset in (32, 1000)] == [16, 20]


@pytest.mark.parametrize("written", [{}, {"batch": {"size": None}}, {"batch": {"max_wait": 1}}])
def test_a_run_adapts_where_the_configuration_does_not_say(written):
    options = config_from_dict({"source": "demo_digits", **written}).batch
    assert (options.size, options.largest) == (None, 64)
    assert config_from_dict({"source": "demo_digits", "batch": 8}).batch.largest == 8


@pytest.mark.long
def test_a_run_that_is_stopped_anywhere_learns_the_batches_of_one_that_was_not(tmp_path):
    def figures(folder, *limits):
        for limit in limits:
            config = configuration(folder, batch={}, max_samples=limit, checkpoint={"every_samples": 8})
            with open_run(config) as run:
                seen = list(run)
                state = state_hash(run.learner.state_dict())
        return [(each.id, each.label) for each in seen[-32:]], state

    assert figures(tmp_path / "parts", 3, 12, 32, 64) == figures(tmp_path / "whole", 64)

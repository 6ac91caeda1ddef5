"""Data sets whose labels come some records after their records, and what is learned of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import configuration, untimed

from streamcl.errors import ConfigError
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash
from streamcl.testing import check_source
from streams.replay.collection import Collection
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import iid

WAIT = {"max_waiting": 4000}


def options(folder, delay, **more):
    late = {} if delay is None else {"scenario": {"delay": delay}, "labels": WAIT}
    return configuration(folder, **late, **more)


def finished(folder, delay, **more):
    with open_run(options(folder, delay, **more)) as run:
        list(run)
        return run, run.finish()


def digits():
    """A stream that ends, of 150 pictures."""
    return {
        "source": {"class": "late_label_stream:DataSet"},
        "scenario": {"name": "as_is"},
        "max_samples": None,
    }


def test_without_delay_the_run_is_the_same_bit_for_bit(tmp_path):
    plain, expected = finished(tmp_path / "plain", None)
    late, found = finished(tmp_path / "late", 0)
    assert state_hash(late.learner.state_dict()) == state_hash(plain.learner.state_dict())
    assert untimed(late.folder / "predictions.jsonl") == untimed(plain.folder / "predictions.jsonl")
    for name in ("prequential", "holdout", "classes", "samples", "steps"):
        assert found[name] == expected[name], name


@pytest.mark.long
@pytest.mark.parametrize("delay", [1, 40, 10_000])
def test_with_a_delay_the_same_samples_are_learned_later(tmp_path, delay):
    labels = {"max_waiting": 20_000}
    late = digits()
    late["scenario"] = {**late["scenario"], "delay": delay}
    with open_run(configuration(tmp_path / "late", **late, labels=labels)) as run:
        made = [(record.offset, record.label) for record in run]
        summary = run.finish()
    with open_run(configuration(tmp_path / "plain", **digits())) as plain:
        list(plain)
        plain.finish()
    ends = [min(150, offset // 16 * 16 + 16) for offset in range(150)]  # of each record's batch
    late = [offset + delay >= end for offset, end in enumerate(ends)]
    assert [(offset, label is None) for offset, label in made] == list(enumerate(late))
    assert run.learner.head.statistics.total == 150
    assert sorted(run.learner.classes) == sorted(plain.learner.classes)
    assert summary["prequential"]["samples"] == 150
    assert summary["labels"] == {"in_time": 150, "waiting": 0}
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert sum(line.get("labelled_later", False) for line in lines) == sum(late)
    rows = []
    for each in (run, plain):
        lineage = Lineage(each.folder / LINEAGE)
        rows.append([(row.offset, row.id, row.label, row.learned) for row in lineage.subsample(1000)])
        lineage.close()
    assert rows[0] == rows[1]


@pytest.mark.long
@given(st.integers(1, 9), st.integers(0, 40))
def test_a_data_set_with_late_labels_keeps_the_promises_of_a_source(batch_size, delay):
    images = np.zeros((23, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(23)
    train = Collection("made", images, np.arange(23) % 3, ("a", "b", "c"), tuple(f"k{k}" for k in range(23)))
    make = lambda: ReplaySource(train, iid(train, 0), batch_size, label_delay=delay)  # noqa: E731
    check_source(make, limit=None)
    come, seen = [], []
    for batch in make():
        seen += [sample.id for sample in batch.samples]
        come += [label.id for label in batch.labels]
        assert come == seen[: max(len(come), batch.end - delay)]
        assert all(sample.label is None for sample in batch.samples)
    assert come == seen


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": None}, "labels: {max_waiting: 66}"),
        ({"labels": {"max_waiting": 65}}, "labels: {max_waiting: 66}"),
        ({"source": {"class": "late_label_stream:Pictures"}}, "name a scenario for a data set"),
        ({"source": {"name": "folder", "args": {"root": "."}}}, "cannot be made to come later"),
        ({"scenario": {"delay": "5s"}}, "scenario: {rate: 10}"),
        ({"scenario": {"delay": "5s", "rate": 10}, "labels": None}, "labels: {max_waiting: 66}"),
        ({"scenario": {"delay": -1}}, "no number of records"),
        ({"scenario": {"delay": "soon"}}, "is no duration"),
        ({"source": {"class": "late_label_stream:Pictures"}, "scenario": {"rate": 2}}, "scenario.rate"),
        ({"source": {"name": "folder", "args": {"root": "."}}, "scenario": {"rate": 2}}, "given a clock"),
    ],
)
def test_a_delay_that_cannot_be_is_refused(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        open_run(configuration(tmp_path, **{"scenario": {"delay": 50}, "labels": WAIT, **more}))


def test_a_delay_in_seconds_is_one_in_records_by_the_rate_of_the_clock(tmp_path):
    runs = []
    for name, delay in (("records", {"delay": 40}), ("seconds", {"delay": "4s", "rate": 10})):
        late = digits()
        late["scenario"] |= delay
        with open_run(configuration(tmp_path / name, **late, labels=WAIT)) as run:
            list(run)
            run.finish()
        runs.append((untimed(run.folder / "predictions.jsonl"), state_hash(run.learner.state_dict())))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("wait", "expired"), [("3900ms", 150), ("60s", 0)])
def test_by_the_clock_of_a_data_set_records_wait_too_long_for_their_labels(tmp_path, wait, expired):
    late = digits()
    late["scenario"] |= {"delay": "10s", "rate": 4}  # batches of 16 are 4 s apart
    with open_run(configuration(tmp_path, **late, labels={**WAIT, "wait": wait})) as run:
        list(run)
        summary = run.finish()
    assert summary["labels"].get("expired", 0) == expired
    assert summary["labels"].get("late", 0) == expired


def test_a_data_set_has_the_clock_of_its_rate():
    train = Collection("made", np.zeros((5, 2, 2, 3), np.uint8), np.zeros(5, int), ("a",), tuple("vwxyz"))
    clock = ReplaySource(train, iid(train, 0), 2, rate=4)
    assert [batch.time for batch in clock] == [0.5, 1.0, 1.25]
    later = ReplaySource(train, iid(train, 0), 2, label_delay=4, rate=4)
    assert [(batch.time, len(batch.labels)) for batch in later] == [
        (0.5, 0),
        (1.0, 0),
        (1.25, 1),
        (1.75, 2),
        (2.25, 2),
    ]

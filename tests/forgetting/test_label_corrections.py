"""Corrections of labels in whole runs: exact where the learner is a sum, refused with a reason elsewhere."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import torch
from forgetting_fakes import Opened
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from late_label_stream import CLASSES, Pictures, truth
from tiny_runs import configuration

from streamcl.events import ForgetRequest
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.heads.ncm import ClassSums
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash
from streamcl.testing import ScriptedSource, record_id
from streams.user.source import IterableSource

STREAM = "late_label_stream:Pictures"
COUNT = 64


def settings_of(folder, learner="ridge", *, fetch=True, wrong=None, **stream):
    stream["wrong"] = {str(number): name for number, name in (wrong or {}).items()}
    return configuration(
        folder,
        learner,
        source={"class": STREAM, "args": {"count": COUNT, **stream}, "deterministic": fetch},
        batch={"size": 8, "max_wait": None},
        labels={"wait": None},
        max_samples=None,
        backbone={**configuration(folder).backbone.model_dump(), "image_size": 16},
        checkpoint={"every_samples": 16},
    )


def finished(config):
    with open_run(config) as run:
        list(run)
        counts = run.processor.state_dict()["labels"]["counts"]
        return run.learner, counts, run


def logged(run, topic="events"):
    return [json.loads(line) for line in (run.folder / f"{topic}.jsonl").read_text().splitlines()]


def ordered(learner):
    """The sums of a learner's head, the classes in alphabetical order."""
    known = learner.head.statistics
    order = [learner.classes.index(name) for name in sorted(learner.classes)]
    if isinstance(known, ClassSums):
        return ClassSums(known.S[order], known.counts[order])
    return known.select(order)


def check_equal(one, other):
    """The same sums, up to rounding, and the same predictions; confidences follow those made before."""
    assert sorted(one.classes) == sorted(other.classes)
    mine, theirs = ordered(one), ordered(other)
    assert torch.equal(mine.counts, theirs.counts)
    assert mine.relative_error(theirs) <= 1e-9
    samples = [sample for sample in samples_of_stream() if int(sample.id[1:]) < 40]
    one.calibration.load_state_dict(other.calibration.state_dict())
    pairs = list(zip(one.predict(samples), other.predict(samples), strict=True))
    assert [a.label for a, _ in pairs] == [b.label for _, b in pairs]
    assert max(abs(a.confidence - b.confidence) for a, b in pairs) <= 1e-5


def samples_of_stream():
    source = IterableSource(Pictures, batch_size=COUNT)
    return next(iter(source)).samples


@pytest.fixture(scope="module")
def right_at_once(tmp_path_factory):
    """The learner of a stream that had every label right, by the learner's name."""
    found = {}

    def learner(name):
        if name not in found:
            found[name], _, _ = finished(settings_of(tmp_path_factory.mktemp(name), name))
        return found[name]

    return learner


wrong_labels = st.dictionaries(
    st.integers(0, COUNT - 1), st.sampled_from([*CLASSES, "typo"]), min_size=1, max_size=12
).map(lambda wrong: {k: name for k, name in wrong.items() if name != truth(k)})


@pytest.mark.long
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@example("ridge", {0: "typo", 1: "typo"}, None)
@given(st.sampled_from(["ridge", "ncm", "slda"]), wrong_labels, st.sampled_from([None, 0, 5, 20]))
def test_a_corrected_stream_is_learned_like_one_that_was_right_at_once(
    right_at_once, tmp_path_factory, name, wrong, delay
):
    folder = tmp_path_factory.mktemp("corrected")
    learner, counts, _ = finished(settings_of(folder, name, delay=delay, wrong=wrong))
    check_equal(learner, right_at_once(name))
    assert counts.get("corrected", 0) == len(wrong)
    assert set(counts) <= {"in_time", "corrected"}
    lineage = Lineage(folder / "run" / LINEAGE)
    assert all(lineage.learned_label(f"s{k}") == truth(k) for k in wrong)
    lineage.close()


some_numbers = st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=12)


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@example("ridge", {4, 5, 6}, {5}, 5)
@example(
    "slda", {5, 58}, {58}, 0
)  # withdrawn and labelled again in one batch: the last counts, as a correction
@given(
    st.sampled_from(["ridge", "ncm", "slda"]), some_numbers, some_numbers, st.sampled_from([None, 0, 5, 20])
)
@pytest.mark.long
def test_a_label_that_is_withdrawn_was_never_there(tmp_path_factory, name, withdrawn, again, delay):
    again &= withdrawn
    folder = tmp_path_factory.mktemp("withdrawn")
    stream = {"delay": delay, "withdrawn": sorted(withdrawn), "again": sorted(again)}
    learner, counts, run = finished(settings_of(folder / "one", name, **stream))
    never = {"delay": delay, "never": sorted(withdrawn - again)}
    other, expected, _ = finished(settings_of(folder / "other", name, **never))
    check_equal(learner, other)
    at_once = counts.get("corrected", 0)
    assert counts.get("withdrawn", 0) + at_once == counts["unlabelled"] == len(withdrawn)
    later = len(again if delay is None else withdrawn) - at_once
    assert counts.get("in_time", 0) == expected.get("in_time", 0) + later
    assert {json.loads(each)[0] for each in waiting_facts(run)} == {f"s{k}" for k in withdrawn - again}
    lineage = Lineage(folder / "one" / "run" / LINEAGE)
    for number in range(COUNT):
        label = None if number in withdrawn - again else truth(number)
        assert lineage.learned_label(f"s{number}") == label
    lineage.close()
    lines = [each for each in logged(run, "predictions") if each.get("label") is not None]
    assert len(lines) == len({each["id"] for each in lines}) == run.processor.parts.scores.samples


def test_stored_sums_lose_a_sample_whose_label_is_withdrawn(tmp_path):
    same = [k for k in range(COUNT) if truth(k) == truth(3)]
    config = settings_of(tmp_path, withdrawn=[3, 9])
    kept = config.model_copy(
        update={"forgetting": config.forgetting.model_copy(update={"keep_statistics": "per_class"})}
    )
    with open_run(kept) as run:
        list(run)
        before = run.learner.head.statistics.total
        run.forgetting.submit(ForgetRequest(id="r", label=truth(3)))
        run.processor.forget()
        assert [each for each in logged(run) if each.get("kind") == "forget"][-1]["outcome"] == "done"
        assert before == COUNT - 2
        assert run.learner.head.statistics.total == COUNT - len({*same, 3, 9})
        other, _, _ = finished(settings_of(tmp_path / "other", never=[9, *same]))
        check_equal(run.learner, other)


def test_stored_sums_are_corrected_too(tmp_path, right_at_once):
    config = settings_of(tmp_path, wrong={3: "bee" if truth(3) != "bee" else "cat", 9: "typo"})
    kept = config.model_copy(
        update={"forgetting": config.forgetting.model_copy(update={"keep_statistics": "per_class"})}
    )
    with open_run(kept) as run:
        list(run)
        run.forgetting.submit(ForgetRequest(id="r", label=truth(3)))
        run.processor.forget()
        assert run.processor.state_dict()["labels"]["counts"] == {"corrected": 2}
        receipts = [each for each in logged(run) if each.get("kind") == "forget"]
        assert receipts[-1]["outcome"] == "done"
        assert truth(3) not in run.learner.classes
        left = run.learner.head.statistics
    expected = right_at_once("ridge").head.statistics
    column = right_at_once("ridge").classes.index(truth(3))
    assert left.total == expected.total - int(expected.counts[column])


@pytest.mark.parametrize(
    ("learner", "fetch", "reason"),
    [
        ("naive_lora", True, "not a sum that samples can be taken out of"),
        ("ridge", False, "the source cannot fetch them by id"),
    ],
)
def test_a_correction_that_cannot_be_exact_is_refused_with_the_reason(tmp_path, learner, fetch, reason):
    config = settings_of(tmp_path, learner, fetch=fetch, wrong={3: "typo"})
    learner, counts, run = finished(config)
    assert counts == {"refused": 1}
    (said,) = [each for each in logged(run) if each.get("kind") == "label"]
    assert reason in said["reason"]
    assert "typo" in learner.classes


def test_a_withdrawal_that_cannot_be_exact_is_refused_with_the_reason(tmp_path):
    _, counts, run = finished(settings_of(tmp_path, "naive_lora", withdrawn=[3]))
    assert counts == {"refused": 1, "unlabelled": 1}
    (said,) = [each for each in logged(run) if each.get("kind") == "label"]
    assert (said["id"], said["label"], "not a sum" in said["reason"]) == ("s3", None, True)
    assert not waiting_facts(run)


@pytest.mark.long
def test_a_run_that_is_left_at_every_batch_is_corrected_alike(tmp_path):
    """Left after a batch that was not committed, so that lineage, sums and store go back each time."""
    options = {"delay": 5, "wrong": {2: "typo", 20: "typo", 21: "bee" if truth(21) != "bee" else "cat"}}
    options |= {"withdrawn": [4, 17, 30], "again": [17]}
    undisturbed, _, _ = finished(settings_of(tmp_path / "whole", **options))
    config = settings_of(tmp_path / "left", **options)
    left, ended = 0, False
    while not ended:
        with closing(open_run(config)) as run:  # as a crash leaves it
            events = iter(run.source)
            if (event := next(events, None)) is None:
                ended = True
                list(run)
                continue
            run.processor.process(event)
            run.processor.commit()
            if (lost := next(events, None)) is not None:
                run.processor.process(lost)
            left += 1
    assert left > 8
    with open_run(config) as run:
        assert state_hash(run.learner.state_dict()) == state_hash(undisturbed.state_dict())
    rows = []
    for folder in ("whole", "left"):
        lineage = Lineage(tmp_path / folder / "run" / LINEAGE)
        rows.append([(each.offset, each.id, each.label, each.learned) for each in lineage.subsample(1000)])
        lineage.close()
    assert rows[0] == rows[1]
    assert len(rows[0]) == COUNT - 2


@pytest.mark.parametrize("what", [{"ids": ("s10",)}, {"subject": "p0"}])
def test_what_is_forgotten_while_it_waits_is_not_learned_when_its_label_comes(tmp_path, what):
    config = settings_of(tmp_path, delay=20)
    gone = [k for k in range(COUNT) if "ids" not in what and k % 5 == 0] or [10]
    with open_run(config) as run:
        for record in run:
            if record.offset == 16:
                waiting = [json.loads(each)[0] for each in waiting_facts(run)]
                assert "s10" in waiting
                run.forgetting.submit(ForgetRequest(id="r", **what))
        assert not {f"s{k}" for k in gone} & {json.loads(each)[0] for each in waiting_facts(run)}
        counts = run.processor.state_dict()["labels"]["counts"]
    assert counts.get("late", 0) == sum(k >= 24 for k in gone)  # of a subject that was forgotten before
    receipt = json.loads((run.folder / "receipts" / "r.json").read_text())
    places = {each["name"]: each for each in receipt["locations"]}
    assert places["samples that wait for labels"]["status"] == "erased"
    assert sum(run.learner.head.counts) == COUNT - len(gone)
    for file in ("predictions.jsonl", "events.jsonl", LINEAGE):
        content = (run.folder / file).read_bytes()
        assert not [k for k in gone if b's%d"' % k in content]


def waiting_facts(run):
    return run.processor.labels.state_dict()["waiting"]["facts"]


def test_a_forgotten_class_is_named_by_no_waiting_prediction(tmp_path):
    config = settings_of(tmp_path, delay=20)
    with open_run(config) as run:
        for record in run:
            if record.offset == 48:
                before = {json.loads(each)[5] for each in waiting_facts(run)}
                run.forgetting.submit(ForgetRequest(id="r", label="ant"))
                run.processor.forget()
                after = {json.loads(each)[5] for each in waiting_facts(run)}
    assert "ant" in before
    assert "ant" not in after
    assert "ant" not in run.learner.classes


class CountingSource(ScriptedSource):
    """Notes which records are fetched."""

    def __init__(self, *values, **options):
        super().__init__(*values, **options)
        self.fetched = []

    def fetch(self, ids):
        self.fetched += ids
        return super().fetch(ids)


def test_a_correction_fetches_each_sample_once(tmp_path):
    source = CountingSource([4] * 3)
    with Opened(tmp_path, source) as run:
        run.run()
        taken = run.forgetting.corrections.take_out([record_id(5), record_id(2)])
        assert [(offset, sample.id) for offset, sample in taken] == [(2, record_id(2)), (5, record_id(5))]
        assert sorted(source.fetched) == [record_id(2), record_id(5)]
        assert not {record_id(2), record_id(5)} & set(run.learner.consumed)

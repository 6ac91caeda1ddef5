"""Retraining from a checkpoint: bit-equal to a run whose source refused the records at their places."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
from tiny_runs import call, configuration

from streamcl import open_run
from streamcl.distributed.process_group import SINGLE_PROCESS
from streamcl.errors import SourceError
from streamcl.events import Batch, ForgetRequest, RejectedRecord
from streamcl.factory.backbone import build_vit
from streamcl.factory.source import build_source
from streamcl.runs.assemble import assemble
from streamcl.runs.forecast import forecast_request
from streamcl.runs.open import begin_or_restore
from streamcl.sources.hidden_labels import hide_labels
from streamcl.sources.wrapper import SourceWrapper
from streamcl.storage.plain_state import state_hash

LEARNER = {"name": "online_lora", "learning_rate": 0.01, "first_block": 1, "hard_buffer_size": 4}
PLATEAUS = {"name": "plateau", "window": 3, "mean_threshold": 5.0, "variance_threshold": 5.0}
"""A plateau at nearly every third batch, so that the adapters are consolidated during the replay."""


class RefusingSource(SourceWrapper):
    """Refuses the records that a test names, at their places, and hides the labels at some offsets."""

    def __init__(self, source, refuses, unlabelled=frozenset()):
        super().__init__(source)
        self._refuses, self._unlabelled = refuses, unlabelled

    def __iter__(self):
        for event in self._source:
            if isinstance(event, Batch):
                pairs = list(zip(event.offsets, event.samples, strict=True))
                gone = [offset for offset, sample in pairs if self._refuses(offset, sample)]
                left = replace(
                    event,
                    samples=tuple(sample for offset, sample in pairs if offset not in gone),
                    rejected=tuple(RejectedRecord(offset, "", "refused") for offset in gone),
                )
                yield hide_labels(left, self._unlabelled)


class Undivided(SourceWrapper):
    """A source without held-out samples of its own."""

    @property
    def info(self):
        return replace(super().info, holdout=())


def config(folder, learner=LEARNER, **more):
    return configuration(
        folder, learner, **{"shift": PLATEAUS, "checkpoint": {"every_samples": 32, "keep": 20}, **more}
    )


def run_of(folder, stack, wrap, **more):
    """A run whose source is wrapped."""
    (folder / "run").mkdir(parents=True)
    run = assemble(
        config(folder, **more),
        folder / "run",
        stack,
        vit=build_vit,
        group=SINGLE_PROCESS,
        stream=lambda *given: wrap(build_source(*given)),
    )
    begin_or_restore(run, None)
    return run


def run_without(folder, refuses, unlabelled=frozenset(), **more):
    """The state of learner, detector and segments of a run whose source refuses these records."""
    with ExitStack() as stack:
        run = run_of(folder, stack, lambda source: RefusingSource(source, refuses, unlabelled), **more)
        for _ in run:
            pass
        return future_of(run)


def future_of(run):
    """Hashes of the states that decide what is learned from here on."""
    shifts = run.processor.shift_handler
    parts = {"learner": run.learner, "detector": run.processor.parts.detector, "shifts": shifts}
    return {name: state_hash(part.state_dict()) for name, part in parts.items()}


def receipt_of(folder, name):
    return json.loads((folder / "run" / "receipts" / f"{name}.json").read_text())


def run_with_request(folder, at, learner=LEARNER, **terms):
    """The run of the same stream that is asked at an offset to forget; its receipt and its end."""
    with open_run(config(folder, learner)) as run:
        name = None
        for prediction in run:
            if name is None and prediction.offset >= at - 1:
                name = run.forget(**terms)
        return receipt_of(folder, name), future_of(run)


@pytest.mark.long
@pytest.mark.parametrize(
    "learner", [LEARNER, {"name": "der_pp", "learning_rate": 0.01}], ids=["online_lora", "der_pp"]
)
def test_the_run_goes_on_as_one_whose_source_refused_the_records(tmp_path, learner):
    receipt, end = run_with_request(tmp_path / "a", 112, learner, offsets=(70, 90), on_return="learn")
    assert (receipt["outcome"], receipt["method"], receipt["guarantee"]) == (
        "done",
        "replay_from_checkpoint",
        "exact",
    )
    assert receipt["figures"]["checkpoint_offset"] == 64
    assert receipt["figures"]["records_replayed"] == receipt["offset"] - 64
    never = run_without(tmp_path / "b", lambda offset, _: 70 <= offset < 90, learner=learner)
    assert end == never


@pytest.mark.long
def test_records_that_are_held_out_stay_so_when_the_stream_is_learned_again(tmp_path):
    with ExitStack() as stack:
        run = run_of(tmp_path / "a", stack, Undivided, evaluate={"hold_out": "50%"})
        name = None
        for prediction in run:
            if name is None and prediction.offset >= 111:
                name = run.forget(offsets=(70, 90), on_return="learn")
        receipt, end = receipt_of(tmp_path / "a", name), future_of(run)
        held_out = frozenset(run.processor.parts.held_out.offsets)
    assert receipt["method"] == "replay_from_checkpoint"
    assert any(64 <= offset < 112 for offset in held_out)
    assert end == run_without(tmp_path / "b", lambda offset, _: 70 <= offset < 90, held_out)


def test_a_class_that_came_late_leaves_no_trace_in_any_weight(tmp_path):
    with open_run(config(tmp_path / "a")) as run:
        first = {}
        for prediction in run:
            first.setdefault(prediction.label, prediction.offset)
        late = max(first, key=first.get)
        name = run.forget(label=late)
        run.processor.forget()
        end = future_of(run)
        assert run.processor.shift_handler.consolidated > 0
    receipt = receipt_of(tmp_path / "a", name)
    assert receipt["method"] == "replay_from_checkpoint"
    assert receipt["figures"]["checkpoint_offset"] == first[late] // 32 * 32
    assert end == run_without(tmp_path / "b", lambda _, sample: sample.label == late)
    assert call("verify", tmp_path / "a" / "run" / "receipts" / f"{name}.json")[0] == 0


@pytest.mark.long
def test_requests_of_one_erasure_leave_what_none_of_them_selects(tmp_path):
    with open_run(config(tmp_path / "a")) as run:
        names = []
        for prediction in run:
            if not names and prediction.offset >= 111:
                names = [run.forget(offsets=span, on_return="learn") for span in ((80, 84), (100, 102))]
        end = future_of(run)
    assert [receipt_of(tmp_path / "a", each)["method"] for each in names] == ["replay_from_checkpoint"] * 2
    assert end == run_without(tmp_path / "b", lambda offset, _: offset in {*range(80, 84), 100, 101})


@pytest.mark.long
def test_the_plan_says_how_many_records_are_learned_again_and_for_how_long(tmp_path):
    with open_run(config(tmp_path)) as run:
        list(run)
    found = forecast_request(tmp_path / "run", ForgetRequest(offsets=(130, 140)))
    assert (found.method, found.guarantee, found.unknown) == ("replay_from_checkpoint", "exact", None)
    assert found.seconds["32 records learned again"] > 0.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "first", "reason"),
    [
        ({"forgetting": {"max_replay": 8}}, 130, "32 records would have to be learned again, more than"),
        ({"checkpoint": {"every_samples": 32, "keep": 1}}, 130, "no checkpoint is kept from before record"),
        ({"labels": {"max_waiting": 10}}, 130, "labels that came after their records"),
    ],
)
def test_where_it_is_not_possible_an_exact_request_is_refused_with_the_reason(
    tmp_path, options, first, reason
):
    with open_run(config(tmp_path, **options)) as run:
        list(run)
        name = run.forget(offsets=(first, 140), guarantee="exact")
        run.processor.forget()
    receipt = receipt_of(tmp_path, name)
    assert receipt["outcome"] == "refused"
    assert reason in receipt["reason"]


@pytest.mark.long
def test_a_replay_that_fails_leaves_the_learner_as_it_was(tmp_path, monkeypatch):
    with open_run(config(tmp_path)) as run:
        list(run)
        before = future_of(run)
        learn = type(run.learner).learn

        def fail_late(learner, batch):
            if batch.offset >= 144:
                raise SourceError("the disk is gone")
            return learn(learner, batch)

        monkeypatch.setattr(type(run.learner), "learn", fail_late)
        name = run.forget(offsets=(130, 140))
        run.processor.forget()
        assert future_of(run) == before
    assert receipt_of(tmp_path, name)["outcome"] == "failed"

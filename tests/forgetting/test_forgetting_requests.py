"""Requests as events of the stream: durable, carried out once, and then nothing of them is left."""

import json
from pathlib import Path

import numpy as np
import pytest
from forgetting_fakes import ForgettingLearner, Opened, holds
from pictures import make_batch

from streamcl.errors import BadRecord, ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.plain_state import state_hash
from streamcl.testing import FakeLearner, ScriptedSource, record_id


def source(*items):
    return ScriptedSource(items or [4] * 10, classes=("even", "odd"))


def lines(folder: Path, topic: str):
    return [json.loads(line) for line in (folder / f"{topic}.jsonl").read_text().splitlines()]


def ids(numbers):
    return [record_id(k) for k in numbers]


def receipt(folder: Path, name: str):
    return json.loads((folder / "receipts" / f"{name}.json").read_text())


def test_a_request_in_the_source_takes_effect_in_its_place(tmp_path):
    request = ForgetRequest(id="r1", ids=("000001", "000005"))
    with Opened(tmp_path, source(4, 4, request, 4)) as run:
        run.run()
        assert run.learner.consumed == ids(k for k in range(12) if k not in {1, 5})
        assert run.ledger.entry("r1").status == "done"
    assert receipt(tmp_path, "r1")["offset"] == 8
    assert receipt(tmp_path, "r1")["guarantee"] == "exact"
    (event,) = [line for line in lines(tmp_path, "events") if line["kind"] == "forget"]
    assert (event["offset"], event["samples"], event["outcome"]) == (8, 2, "done")


def test_a_scheduled_request_waits_for_its_offset(tmp_path):
    with Opened(tmp_path, source(), schedule=[ForgetRequest(subject="subject-1", offset=18, id="r1")]) as run:
        run.run()
        left = run.learner.consumed
    assert receipt(tmp_path, "r1")["offset"] == 20
    assert left == ids(k for k in range(40) if k % 3 != 1)  # the later ones have a tombstone
    assert receipt(tmp_path, "r1")["scope"]["learned"] == 7


def test_a_request_through_the_ledger_is_seen_before_the_next_batch(tmp_path):
    from streamcl.forgetting.ledger.ledger import LEDGER, Ledger

    with Opened(tmp_path, source()) as run:
        for prediction in run.processor.run():
            if prediction.offset == 9:
                with Ledger(tmp_path / LEDGER) as other:
                    other.submit(ForgetRequest(label="odd", id="r1").model_dump(mode="json"))
        assert run.learner.classes == ("even",)
        assert run.learner.consumed == ids(range(0, 40, 2))
    assert receipt(tmp_path, "r1")["offset"] == 12


def test_afterwards_nothing_in_the_run_directory_holds_the_samples(tmp_path):
    gone = ids([2, 3, 17])
    with Opened(tmp_path, source(), schedule=[ForgetRequest(ids=gone, offset=20, id="r1")]) as run:
        run.run()
        assert holds(tmp_path, *gone) == {}
        assert lines(tmp_path, "predictions")[2] == {"step": 1, "offset": 2, "erased": True}
        assert [line["offset"] for line in lines(tmp_path, "predictions")] == list(range(40))
    assert holds(tmp_path, *gone) == {}
    assert holds(tmp_path, record_id(4)) != {}


def test_afterwards_nothing_in_the_run_directory_names_the_class(tmp_path):
    names = ScriptedSource([4] * 10, classes=("zebra", "ibex"))
    with Opened(tmp_path, names, schedule=[ForgetRequest(label="ibex", offset=20, id="r1")]) as run:
        predictions = run.run()
        assert run.processor.parts.scores.per_class.keys() == {"zebra", "(forgotten)"}
    assert holds(tmp_path, "ibex") == {}
    assert holds(tmp_path, "zebra") != {}
    assert {p.predicted for p in predictions if p.offset >= 20} == {"zebra"}


@pytest.mark.parametrize("what", [{"label": "odd"}, {"subject": "subject-2"}, {"ids": ids([1, 30])}])
def test_what_comes_again_is_not_learned_again_unless_allowed(tmp_path, what):
    script = [4, 4, 4, *[4] * 10]
    for on_return in ("drop", "learn"):
        schedule = [ForgetRequest(**what, offset=8, id="r1", on_return=on_return)]
        with Opened(tmp_path / on_return, source(*script), schedule=schedule) as run:
            run.run()
            after = [name for name in run.learner.consumed if int(name) >= 8]
        allowed = 52 - 8
        assert (len(after) == allowed) is (on_return == "learn")


def test_the_same_request_twice_is_one(tmp_path):
    first = ForgetRequest(id="r1", label="odd", key="k")
    with Opened(tmp_path, source(4, first, 4, first, 4)) as run:
        run.run()
        assert len(run.ledger.entries()) == 1
    assert len(read_receipts(tmp_path)) == 1


def test_the_same_wish_under_another_name_reaches_nothing_more(tmp_path):
    schedule = [ForgetRequest(label="odd", offset=8, id="r1"), ForgetRequest(label="odd", offset=16, id="r2")]
    with Opened(tmp_path, source(), schedule=schedule) as run:
        run.run()
    assert receipt(tmp_path, "r2")["method"] == "no_op"
    assert receipt(tmp_path, "r2")["scope"]["learned"] == 0


def test_an_unknown_subject_is_kept_out_in_advance_and_an_unknown_class_is_refused(tmp_path):
    schedule = [
        ForgetRequest(subject="subject-9", offset=8, id="r1"),
        ForgetRequest(label="od", offset=8, id="r2"),
    ]
    with Opened(tmp_path, source(), schedule=schedule) as run:
        run.run()
        assert run.ledger.entry("r1").status == "done"
        assert run.ledger.entry("r2").status == "refused"
    assert "no class of that name has been seen" in receipt(tmp_path, "r2")["reason"]
    assert receipt(tmp_path, "r1")["method"] == "no_op"


CARRIED = {"id": "000001", "image": "AAAA", "shape": [1, 1, 3], "label": "odd"}


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "class"},
        {"samples": 5},
        {"samples": True, "label": "odd"},
        {"samples": "AAAA"},
        {"samples": {"000001": CARRIED}},
        {"samples": [5]},
        {"samples": [[["id", "000001"]]]},
        {"samples": [{**CARRIED, "image": 5}]},
        {"samples": [{**CARRIED, "shape": [3]}]},
        {"samples": [{**CARRIED, "id": ["000001"]}], "label": "odd"},
        {"samples": [{**CARRIED, "subject": {}}], "label": "odd"},
        {"samples": [CARRIED], "ids": None},
        {"samples": [CARRIED], "ids": "000003"},
        {"samples": [CARRIED], "ids": [["000003"]]},
        {"ids": {"000003": 1}},
        {"label": 10**4000, "offset": 10**4000},
        {"label": ["odd"]},
        {"offsets": [1, 2, 3]},
    ],
    ids=lambda body: f"{body}"[:60],
)
def test_a_malformed_request_in_the_ledger_is_refused_and_the_stream_goes_on(tmp_path, body):
    with Opened(tmp_path, source(4, 4)) as run:
        run.ledger.submit({"id": "r1", **body})
        run.run()
        assert len(run.learner.consumed) == 8
        assert run.ledger.entry("r1").status == "refused"
    receipt = tmp_path / "receipts" / "r1.json"
    assert "request 'r1' that cannot be read was refused" in " ".join(verify_receipt(receipt))
    assert "cannot be read" in receipt.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "needs a class, or one of subject"),
        ({"label": "a", "subject": "b"}, "excludes every other selection"),
        ({"ids": [3.5]}, "'ids.0' is not valid"),
        ({"label": ""}, "'label' is not valid"),
        ({"id_pattern": ""}, "'id_pattern' is not valid"),
        ({"id_pattern": "a*", "label": "b"}, "excludes every other selection"),
        ({"offsets": (-1, 5)}, "'offsets.0' is not valid"),
        ({"subject": "a", "offset": -1}, "'offset' is not valid"),
        ({"offsets": (5, 5)}, "'offsets' must be"),
        ({"subject": "a", "guarantee": "perfect"}, "'guarantee' is not valid: input should be 'exact'"),
        ({"subject": "a", "on_return": "maybe"}, "'on_return' is not valid"),
        ({"lable": "a"}, "has no field 'lable'"),
        ({"samples": [{"id": "a"}]}, "carries cannot be read"),
        ({"subject": "a", "deadline": float("nan")}, "'deadline' is not valid"),
        ({"subject": "a", "offset": 10**5000}, "'offset' is not valid.*found int"),  # too long to be shown
    ],
)
def test_the_reason_of_a_refusal_names_the_field(wrong, reason):
    with pytest.raises(ForgettingError, match=reason):
        ForgetRequest(**wrong)


def test_carried_samples_are_those_that_a_request_names_unless_it_selects_otherwise():
    (sample, *_) = make_batch(0, ["odd"]).samples
    request = ForgetRequest(ids=["a"], samples=[sample])
    assert (request.kind, request.ids) == ("samples", ("a", sample.id))
    assert ForgetRequest(label="odd", samples=[sample]).ids == ()
    body = request.model_dump_json()
    again = ForgetRequest.model_validate_json(body)
    assert again.model_dump_json() == body
    assert np.array_equal(again.samples[0].image, sample.image)


def test_a_request_without_id_that_a_source_yields_again_is_the_same(tmp_path):
    first, second = ForgetRequest(label="odd"), ForgetRequest(label="odd")
    assert first.id != second.id
    with Opened(tmp_path, source()) as run:
        run.forgetting.submit_from_stream(first)
        run.forgetting.submit_from_stream(second)
        run.forgetting.submit_from_stream(ForgetRequest(label="odd", offset=4))
        assert len(run.ledger.entries()) == 2


def test_a_method_that_cannot_keep_the_guarantee_is_not_taken(tmp_path):
    schedule = [
        ForgetRequest(subject="subject-1", guarantee="exact", offset=8, id="r1"),
        ForgetRequest(subject="subject-1", method="magic", offset=8, id="r2"),
        ForgetRequest(subject="subject-1", offset=8, id="r3"),
    ]
    with Opened(tmp_path, source(), learner=FakeLearner(), schedule=schedule) as run:
        before = state_hash(run.learner.state_dict())
        run.run()
        assert state_hash(run.learner.state_dict()) != before
        assert len(run.learner.consumed) == 40 - 10  # of those that came later nothing was learned
    assert receipt(tmp_path, "r1")["outcome"] == "refused"
    assert "not a sum" in receipt(tmp_path, "r1")["reason"]
    assert "names an unknown method" in receipt(tmp_path, "r2")["reason"]
    assert receipt(tmp_path, "r3")["guarantee"] == "approximate"
    assert "not a sum" in receipt(tmp_path, "r3")["method_reason"]


class Halfway(ForgettingLearner):
    def subtract(self, value):
        super().subtract(value)
        raise ForgettingError("the second half failed")


def test_a_failed_erasure_leaves_the_learner_as_it_was(tmp_path):
    with Opened(
        tmp_path, source(), learner=Halfway(), schedule=[ForgetRequest(label="odd", offset=8, id="r1")]
    ) as run:
        run.run()
        assert len(run.learner.consumed) == 40
        assert run.ledger.entry("r1").status == "failed"
    assert receipt(tmp_path, "r1")["outcome"] == "failed"


def test_samples_whose_pixels_changed_are_not_subtracted(tmp_path):
    class Altered(ScriptedSource):
        def fetch(self, wanted):
            for sample in super().fetch(wanted):
                sample.image[0, 0] = 255
                yield sample

    with Opened(tmp_path, Altered([4] * 5), schedule=[ForgetRequest(ids=ids([1]), offset=8, id="r1")]) as run:
        run.run()
        assert len(run.learner.consumed) == 20
    assert "other pixels than" in receipt(tmp_path, "r1")["reason"]


def test_a_source_that_fails_while_it_fetches_does_not_end_the_run(tmp_path):
    class Broken(ScriptedSource):
        def fetch(self, wanted):
            raise BadRecord(f"{wanted[0]} is torn")

    with Opened(tmp_path, Broken([4] * 5), schedule=[ForgetRequest(ids=ids([1]), offset=8, id="r1")]) as run:
        run.run()
        assert len(run.learner.consumed) == 20
        assert run.ledger.entry("r1").status == "failed"
    assert "BadRecord while" in receipt(tmp_path, "r1")["reason"]
    assert "000001" not in (tmp_path / "receipts" / "r1.json").read_text()


def test_older_checkpoints_go_with_the_samples(tmp_path):
    with Opened(
        tmp_path, source(), keep=5, schedule=[ForgetRequest(ids=ids([1]), offset=36, id="r1")]
    ) as run:
        run.run()
    for path in Checkpoints(tmp_path / "checkpoints", fingerprint={}).paths():
        assert "000001" not in (path / "state.json").read_text()
    assert receipt(tmp_path, "r1")["checkpoint"]["removed"] == 4

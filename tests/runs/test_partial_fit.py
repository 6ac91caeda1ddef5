"""`streamcl.load`: a run's model learns further images and forgets, with every promise of a run."""

import json
from contextlib import closing

import numpy as np
import pytest
import torch
from forgetting_fakes import holds
from pictures import picture
from PIL import Image
from tiny_runs import call, configuration

import streamcl
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.sources.appending import appended, source_position
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.plain_state import state_hash
from streams.appended import Appended
from streams.prefetch import Prefetcher
from streams.user.source import IterableSource


@pytest.fixture
def finished(tmp_path):
    with streamcl.open_run(configuration(tmp_path, max_samples=40)) as run:
        list(run)
    return run.folder


def bees(count, start=0):
    return [picture("bee", number) for number in range(start, start + count)]


def rows(folder):
    everything = streamcl.ForgetRequest(offsets=(0, 10**6))
    with closing(Lineage(folder / LINEAGE)) as lineage, closing(lineage.select(everything)) as selection:
        return [row for chunk in selection.chunks(learned=False) for row in chunk]


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_what_is_learned_is_recorded_like_every_other_record(finished):
    with streamcl.load(finished) as model:
        assert model.partial_fit(bees(3), ["bee"] * 3, subjects=["ann", None, "ann"]) is model
        assert model.classes[-1] == "bee"
        assert model.predict(bees(1)) == ["bee"]
    assert [(row.offset, row.id, row.label) for row in rows(finished)][40:] == [
        (offset, f"appended-{offset}", "bee") for offset in (40, 41, 42)
    ]
    assert [line["offset"] for line in lines(finished, "predictions")] == list(range(43))
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["finished"], summary["samples"], summary["class_names"][-1]) == (True, 43, "bee")
    again = streamcl.load(finished)
    assert (again.classes[-1], again.predict(bees(1))) == ("bee", ["bee"])


def test_images_and_labels_are_taken_in_every_form(finished, tmp_path):
    Image.fromarray(picture("bee", 1)).save(tmp_path / "one.png")
    forms = [picture("bee", 0), Image.open(tmp_path / "one.png"), tmp_path / "one.png"]
    with streamcl.load(finished) as model:
        model.partial_fit(forms, np.array(["bee"] * 3))
        model.partial_fit(torch.from_numpy(np.stack(bees(2))), torch.tensor([77, 78]))
        model.partial_fit(np.stack(bees(2)), [None, 79])
        assert model.classes[-4:] == ("bee", "77", "78", "79")
    assert [row.learned for row in rows(finished)][-7:] == [True] * 5 + [False, True]


def test_it_learns_as_a_source_with_the_same_records_would(tmp_path):
    with streamcl.open_run(configuration(tmp_path / "a", max_samples=32)) as run:
        list(run)
        order = [line["id"] for line in lines(run.folder, "predictions")]
        samples = sorted(run.source.fetch(order), key=lambda each: order.index(each.id))
    images, labels, ids = zip(*((each.image, each.label, each.id) for each in samples[16:]), strict=True)
    with streamcl.open_run(configuration(tmp_path / "b", max_samples=16)) as run:
        list(run)
    with streamcl.load(run.folder) as model:
        model.partial_fit(images, labels, ids=ids)
    learned, expected = (streamcl.load_learner(tmp_path / each / "run")[0] for each in "ba")
    assert state_hash(learned.state_dict()) == state_hash(expected.state_dict())


def test_without_save_nothing_is_durable_and_after_close_it_is_gone(finished):
    model = streamcl.load(finished)
    before = list_checkpoints(finished / "checkpoints")
    model.partial_fit(bees(1), ["bee"])
    assert "bee" in model.classes
    model.close()
    assert "bee" not in model.classes
    assert list_checkpoints(finished / "checkpoints") == before
    with pytest.raises(ZeroDivisionError), streamcl.load(finished) as model:
        model.partial_fit(bees(1), [1 / 0])
    model.partial_fit(bees(1), ["bee"])
    model.save()
    assert "bee" in streamcl.load(finished).classes
    model.close()
    assert len(rows(finished)) == 41


def test_one_writes_and_many_read(finished):
    with streamcl.load(finished) as model:
        model.partial_fit(bees(1), ["bee"])
        other = streamcl.load(finished)
        assert len(other.predict(bees(2))) == 2
        with pytest.raises(streamcl.RunBusy):
            other.partial_fit(bees(1), ["bee"])
    assert other.partial_fit(bees(1, 5), ["bee"]).classes[-1] == "bee"
    other.close()


def test_it_forgets_with_a_receipt(finished):
    with streamcl.load(finished) as model:
        known = model.classes
        model.partial_fit(bees(4), ["bee"] * 4, ids=[f"my-own-{k}" for k in range(4)], subjects=["ann"] * 4)
        images = {f"my-own-{k}": image for k, image in enumerate(bees(4))}
        receipt = model.forget(subject="ann", images=images)
        assert (receipt.outcome, receipt.scope.learned) == ("done", 4)
        assert model.classes == known
    assert holds(finished, *images) == {}
    assert call("verify", next((finished / "receipts").glob("*.json")))[0] == 0
    assert json.loads((finished / "summary.json").read_text())["samples"] == 44


def test_what_cannot_be_forgotten_is_an_error_that_says_why(finished):
    with streamcl.load(finished) as model:
        with pytest.raises(streamcl.ForgettingError, match="no sample of the class 'cta'"):
            model.forget(label="cta")
        model.partial_fit(bees(4), ["bee"] * 4)
        with pytest.raises(streamcl.ForgettingError, match=r"the erasure failed.*cannot be fetched"):
            model.forget(ids=["appended-40"], guarantee="exact")
        assert model.classes[-1] == "bee"


@pytest.mark.long
def test_an_interrupted_run_goes_on_after_what_was_put_in(tmp_path):
    config = configuration(tmp_path, max_samples=64)
    with streamcl.open_run(config) as run:
        for prediction in run:
            if prediction.offset == 31:
                run.processor.stop()
    first = [line["id"] for line in lines(run.folder, "predictions")]
    with streamcl.load(run.folder) as model:
        model.partial_fit(bees(5), ["bee"] * 5)
    assert not (run.folder / "summary.json").exists()
    with streamcl.open_run(config) as run:
        rest = list(run)
    with streamcl.open_run(configuration(tmp_path / "plain", max_samples=64)) as plain:
        expected = [prediction.id for prediction in plain]
    assert [prediction.offset for prediction in rest] == list(range(37, 69))
    assert first + [prediction.id for prediction in rest] == expected


@pytest.mark.parametrize(
    ("images", "labels", "more"),
    [
        (bees(2), ["bee"], {}),
        (bees(1), ["bee"], {"ids": []}),
        (bees(1)[0], ["bee"] * 32, {}),
        ([*bees(1), "absent.png"], ["bee"] * 2, {}),
        (bees(1), [b"\xff"], {}),
    ],
)
def test_what_is_no_image_or_has_no_label_is_refused_before_anything_is_learned(
    finished, images, labels, more
):
    with streamcl.load(finished) as model, pytest.raises(streamcl.BadRecord):
        model.partial_fit(images, labels, **more)
    assert len(rows(finished)) == 40


def test_the_stream_is_not_learned_again_without_what_was_put_in(tmp_path):
    adapters = {"name": "online_lora", "learning_rate": 0.01, "first_block": 1, "hard_buffer_size": 4}
    with streamcl.open_run(configuration(tmp_path, adapters, max_samples=40)) as run:
        list(run)
        assert run.processor.parts.forgetting is not None
    with streamcl.load(run.folder) as model:
        model.partial_fit(bees(2), ["bee"] * 2)
        with pytest.raises(streamcl.ForgettingError, match="learned by partial_fit"):
            model.forget(offsets=(36, 38), guarantee="exact")


def test_an_audit_refuses_a_run_whose_records_cannot_be_read_again(finished):
    with streamcl.load(finished) as model:
        model.partial_fit(bees(2), ["bee"] * 2)
        model.forget(ids=[row.id for row in rows(finished)[:3]])
    code, text = call("audit", finished)
    assert code == 6
    assert "2 records were learned by partial_fit" in text


def test_offsets_go_on_after_records_that_were_put_in():
    records = [{"image": np.zeros((4, 4, 3), np.uint8), "label": "x", "id": f"r{k}"} for k in range(6)]

    def source():
        return Appended(Prefetcher(IterableSource(lambda: records, batch_size=2), 4))

    made = source()
    events = iter(made)
    assert next(events).offset == 0
    plain = made.state_dict()
    assert appended(plain) == 0
    made.append(5)
    assert [event.offset for event in made.peek(2)] == [7]
    assert next(events).offset == 7
    position = made.state_dict()
    assert (appended(position), source_position(plain)) == (5, plain)
    again = source()
    again.load_state_dict(position)
    assert [event.offset for event in again] == [9]

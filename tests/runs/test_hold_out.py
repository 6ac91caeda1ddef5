"""Runs that hold a share of the stream out: never learned, evaluated on, erased like all else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forgetting_fakes import holds
from pictures import picture
from tiny_runs import configuration

from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.report.overview import complete_summary, text_summary
from streamcl.report.reading import read_run
from streamcl.requests.label import Label
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash

CLASSES = ("ant", "held")  # one is a word of the name of the column of held-out accuracy
HALF = {"hold_out": "50%", "every_samples": 32}


class Pictures:
    """120 pictures of two classes, of five subjects and two domains, read by index."""

    def __len__(self):
        return 120

    def __getitem__(self, index):
        label = CLASSES[index % 2]
        names = {"subject": f"p{index % 5}", "domain": "day" if index < 80 else "night"}
        return {"image": picture(label, index), "label": label, "id": f"picture-{index}", **names}


class WithOwn(Pictures):
    """The same, with held-out samples of its own."""

    holdout = ({"image": picture("ant", 1), "label": "ant", "id": "own"},)


def options(folder, evaluate=HALF, source="Pictures", **more):
    changed = {"source": {"class": f"{__name__}:{source}"}, "evaluate": evaluate, "batch": 8, **more}
    return configuration(folder, **{"max_samples": None, **changed})


def finished(folder, **more):
    with open_run(options(folder, **more)) as run:
        list(run)
        return run, run.finish()


def held_out(run):
    return [sample.id for sample in run.processor.parts.held_out]


def decided(run):
    """The hash of all that decides the future."""
    state = run.processor.state_dict()
    return state_hash({name: part for name, part in state.items() if name not in {"sinks", "meter"}})


def lines(run):
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


def test_held_out_records_are_predicted_and_never_learned(tmp_path):
    run, summary = finished(tmp_path)
    held = held_out(run)
    assert 15 < len(held) < 65
    assert run.learner.head.statistics.total == 120 - len(held)
    assert summary["prequential"]["samples"] == 120
    assert [line["id"] for line in lines(run) if line.get("held_out")] == held
    assert summary["holdout"]["A_Last"] is not None
    assert summary["held_out"] == len(held)
    page = (run.folder / "report.html").read_text()
    assert f"{len(held)} images of the classes seen, at the end" in page
    assert "Accuracy matrix" not in page, "of one part the chart says all"
    assert summary["holdout"]["matrix"]["parts"] == ["held out"]


def test_five_percent_is_the_default_and_a_percentage_is_a_share():
    assert config_from_dict({"source": {"name": "demo"}}).evaluate.hold_out == 0.05
    assert options(Path("x")).evaluate.hold_out == 0.5
    with pytest.raises(ConfigError, match="is no share"):
        options(Path("x"), evaluate={"hold_out": "few"})
    with pytest.raises(ConfigError, match="less than or equal to"):
        options(Path("x"), evaluate={"hold_out": "51%"})


@pytest.mark.parametrize(
    ("evaluate", "source"), [({"hold_out": 0}, "Pictures"), (HALF, "WithOwn")], ids=["off", "own"]
)
def test_nothing_is_held_out_where_it_is_off_and_where_the_source_has_its_own(tmp_path, evaluate, source):
    with open_run(options(tmp_path, evaluate=evaluate, source=source)) as run:
        list(run)
        summary = run.finish()
        assert run.learner.head.statistics.total == 120
        assert "held_out" not in run.processor.state_dict()
    assert summary["holdout"]["matrix"]["parts"] == ([] if source == "Pictures" else ["holdout"])


def test_a_run_that_was_stopped_holds_out_what_an_uninterrupted_one_does(tmp_path):
    with open_run(options(tmp_path / "whole")) as whole:
        list(whole)
        expected = held_out(whole), decided(whole)
    with open_run(options(tmp_path / "parts")) as run:
        for prediction in run:
            if prediction.offset == 71:
                run.processor.stop()
    with open_run(options(tmp_path / "parts")) as run:
        list(run)
        assert (held_out(run), decided(run)) == expected


REQUESTS = {
    "class": ({"label": "held"}, lambda number: number % 2 == 1),
    "ids": ({"ids": tuple(f"picture-{number}" for number in range(120))}, lambda number: True),
    "subject": ({"subject": "p3"}, lambda number: number % 5 == 3),
    "domain": ({"domain": "night"}, lambda number: number >= 80),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_held_out_samples_are_erased_like_all_others(tmp_path, kind):
    asked, reaches = REQUESTS[kind]
    with open_run(options(tmp_path)) as run:
        list(run)
        before = held_out(run)
        gone = [name for name in before if reaches(int(name.split("-")[1]))]
        assert gone
        run.forget(**asked)
        run.processor.forget()
        assert held_out(run) == [name for name in before if name not in gone]
        assert run.processor.parts.history.parts == ("held out",)
    assert holds(run.folder, *gone) == {}
    (receipt,) = (each for _, each in read_receipts(run.folder))
    (place,) = (each for each in receipt.locations if each.name == "held-out samples")
    assert (place.status, place.explanation) == ("erased", f"{len(gone)} samples were among them")


def test_an_erasure_is_measured_and_tested_again_on_them(tmp_path):
    with open_run(options(tmp_path)) as run:
        list(run)
        run.forget(subject="p3")
        run.processor.forget()
    (receipt,) = (each for _, each in read_receipts(run.folder))
    assert 0 < receipt.utility.samples <= len(held_out(run))


def corrected():
    """The same pictures, read once; then the label of each is corrected."""
    pictures = Pictures()
    yield from (pictures[index] for index in range(120))
    for index in range(120):
        yield Label(f"picture-{index}", CLASSES[(index + 1) % 2])
    yield pictures[0] | {"id": "last"}


SUMS = {"forgetting": {"keep_statistics": "per_class"}}  # for a source that cannot fetch


def test_a_label_of_a_held_out_record_is_corrected_and_it_stays_held_out(tmp_path):
    with open_run(options(tmp_path, source="corrected", labels={"max_waiting": 200}, **SUMS)) as run:
        list(run)
        store = run.processor.parts.held_out
        labels = {sample.id: sample.label for sample in store if sample.id != "last"}
        assert len(labels) > 15
        assert labels == {name: CLASSES[(int(name.split("-")[1]) + 1) % 2] for name in labels}
        assert run.learner.head.statistics.total == 121 - len(store)
        run.forget(label="ant")
        run.processor.forget()
        assert {sample.label for sample in store} == {"held"}
    gone = [name for name, label in labels.items() if label == "ant"]
    assert holds(run.folder, *gone) == {}


class Day(Pictures):
    """The pictures of the day alone."""

    def __len__(self):
        return 80


def calibration_location(run):
    (receipt,) = (each for _, each in read_receipts(run.folder))
    (place,) = (each for each in receipt.locations if each.name == "calibration")
    return place


@pytest.mark.parametrize("learner", ["ridge", "slda", "ncm"])
def test_confidences_after_an_erasure_are_those_of_a_run_that_never_saw_the_samples(tmp_path, learner):
    """The first 20 pictures of each class, after which some are held out, are all of the day."""
    changed = {"learner": {"name": learner, "blocks": [0, 1]}}
    with open_run(options(tmp_path / "never", source="Day", **changed)) as never:
        list(never)
    with open_run(options(tmp_path / "run", **changed)) as run:
        list(run)
        before = run.learner.calibration.held_out
        run.forget(domain="night")
        run.processor.forget()
        assert held_out(run) == held_out(never)
        probes = list(run.processor.parts.held_out)
        assert run.learner.calibration.held_out not in {None, before}
        assert run.learner.logits(probes).numpy() == pytest.approx(
            never.learner.logits(probes).numpy(), rel=1e-9
        )
        never.learner.calibration.restart()
        expected = never.learner.calibration.state_dict()
        assert run.learner.calibration.state_dict() == pytest.approx(expected, rel=1e-9)
    place = calibration_location(run)
    assert place.status == "erased"
    assert "held-out samples" in place.explanation


def test_without_held_out_samples_the_receipt_says_that_calibration_remains(tmp_path):
    with open_run(options(tmp_path, evaluate={"hold_out": 0})) as run:
        list(run)
        run.forget(domain="night")
        run.processor.forget()
    assert calibration_location(run).status == "remains"


def test_the_calibration_error_of_held_out_samples_is_in_log_summary_and_report(tmp_path):
    run, summary = finished(tmp_path)
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    newest = [each["calibration_error"] for each in metrics if each["kind"] == "holdout"][-1]
    assert 0 <= summary["holdout"]["calibration_error"] == newest <= 1
    assert 0 <= summary["prequential"]["calibration_error"] <= 1
    assert "prequential calibration error" in (run.folder / "report.html").read_text()


def test_figures_from_before_an_erasure_say_so_until_there_are_new_ones(tmp_path):
    with open_run(options(tmp_path, source="WithOwn")) as run:
        for prediction in run:
            if prediction.offset == 103:
                run.forget(subject="p3")
                run.processor.stop()
        run.processor.forget()
        assert run.summary()["holdout"]["older_than_erasure"]
        text = text_summary(complete_summary(read_run(run.folder)))
        assert "before the last erasure" in text
        assert "before samples were erased" in text
    with open_run(options(tmp_path, source="WithOwn")) as run:
        assert run.summary()["holdout"]["older_than_erasure"], "a process that starts knows it"
        list(run)
        summary = run.finish()
    assert "older_than_erasure" not in summary["holdout"]
    assert "before the last erasure" not in text_summary(complete_summary(read_run(run.folder)))

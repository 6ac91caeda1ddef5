"""One id with several pictures: each is erased as the one that was learned, where the source still has it."""

import json
from pathlib import Path

import numpy as np
import pytest
from canary_stream import CLASSES, ordinary_picture
from tiny_runs import configuration

from streamcl.events import Batch, ForgetRequest, Sample
from streamcl.runs.open import open_run

COUNT = 48
NAMED = range(5, COUNT, 7)
"""The records with the same id, no two with the same picture."""


def item(number):
    label = CLASSES[number % 3]
    name = "person-7" if number in NAMED else f"other-{number}"
    return {"image": ordinary_picture(label, number), "label": label, "id": name, "subject": f"p{number % 4}"}


class Indexed:
    """The records, read by index.

    lost: the number of one that is another picture once the file `since` exists.
    """

    def __init__(self, lost=-1, since="/nowhere"):
        self.lost, self.since = lost, Path(since)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        number = 1000 if index == self.lost and self.since.exists() else index
        return item(number) | {"id": item(index)["id"]}


def sent(**options):
    """Yield the records, which cannot be read again."""
    yield from map(item, range(COUNT))


SOURCES = {
    "read by index": {"class": "test_repeated_ids:Indexed"},
    "spooled": {"class": "test_repeated_ids:sent", "spool": {"recent_ids": 0}},
    "stopped and continued": {"class": "test_repeated_ids:Indexed"},
}


def options(folder, source, learner="ridge", **more):
    return configuration(
        folder, learner, source=source, max_samples=None, checkpoint={"every_samples": 16}, **more
    )


def receipt(folder, name="r1"):
    return json.loads((folder / "run" / "receipts" / f"{name}.json").read_text())


def never_learned(folder, learner):
    """Return a learner that has seen all but the records with the id, and its scores of these records."""
    with open_run(options(folder, SOURCES["read by index"], learner)) as run:
        kept = [Sample(**item(number)) for number in range(COUNT) if number not in NAMED]
        run.learner.learn(Batch(0, tuple(kept)))
        asked = [Sample(**item(number)) for number in range(COUNT)]
        return run.learner, run.learner.head.scores_refit(run.learner.read(asked)).numpy(), asked


@pytest.mark.long
@pytest.mark.parametrize("name", SOURCES)
def test_all_pictures_of_an_id_are_erased(tmp_path, name):
    config = options(tmp_path / "a", SOURCES[name])
    if name == "stopped and continued":
        with open_run(config) as run:
            next(prediction for prediction in run if prediction.offset == 30)
    with open_run(config) as run:
        list(run)
        run.forget(ids=("person-7",), id="r1")
        run.processor.forget()
        learner = run.learner
        other, expected, asked = never_learned(tmp_path / "b", "ridge")
        found = learner.head.scores_refit(learner.read(asked)).numpy()
    told = receipt(tmp_path / "a")
    assert (told["outcome"], told["guarantee"], told["scope"]["learned"]) == ("done", "exact", len(NAMED))
    assert learner.head.statistics.total == other.head.statistics.total == COUNT - len(NAMED)
    order = [other.classes.index(each) for each in learner.classes]
    assert np.abs(found - expected[:, order]).max() <= 1e-6 * np.abs(expected).max()


def test_one_of_them_is_erased_by_its_place_and_the_others_stay(tmp_path):
    with open_run(options(tmp_path, SOURCES["read by index"])) as run:
        list(run)
        run.forget(offsets=(NAMED[1], NAMED[1] + 1), id="r1")
        run.processor.forget()
        assert run.learner.head.statistics.total == COUNT - 1
    assert receipt(tmp_path)["guarantee"] == "exact"


def test_a_request_carries_all_the_pictures_that_a_source_cannot_give_again(tmp_path):
    pictures = tuple(Sample(**item(number)) for number in NAMED)
    with open_run(options(tmp_path, {"class": "test_repeated_ids:sent"})) as run:
        list(run)
        run.forgetting.submit(ForgetRequest(id="r1", ids=("person-7",), samples=pictures))
        run.processor.forget()
        assert run.learner.head.statistics.total == COUNT - len(NAMED)
    assert receipt(tmp_path)["outcome"] == "done"


def test_a_request_carries_the_one_picture_that_the_source_has_lost(tmp_path):
    lost = NAMED[2]
    since = tmp_path / "lost"
    source = {"class": "test_repeated_ids:Indexed", "args": {"lost": lost, "since": str(since)}}
    with open_run(options(tmp_path, source)) as run:
        list(run)
        since.touch()
        run.forget(ids=("person-7",), id="r1")
        run.processor.forget()
        assert run.learner.head.statistics.total == COUNT
        carried = (Sample(**item(lost)),)
        run.forgetting.submit(ForgetRequest(id="r2", ids=("person-7",), samples=carried))
        run.processor.forget()
        assert run.learner.head.statistics.total == COUNT - len(NAMED)
    assert receipt(tmp_path)["outcome"] != "done"
    assert f"1 of {len(NAMED)} samples have other pixels" in receipt(tmp_path)["reason"]
    assert receipt(tmp_path, "r2")["guarantee"] == "exact"

"""Single samples are forgotten by their traces: exactly, of a stream that passed once, and for good."""

import json
import sqlite3
from contextlib import closing

import pytest
import torch
from pictures import picture
from tiny_runs import call, configuration

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.events import Batch
from streamcl.forgetting.lineage.lineage import LINEAGE
from streamcl.runs.open import open_run

pytestmark = pytest.mark.long

KEYS = 128
COUNT = 96


def stream(count=COUNT):
    """Records that pass once."""
    for number in range(count):
        label = ["ant", "bee", "cat"][number % 3]
        subject = f"person {number % 5}"
        yield {"image": picture(label, number), "label": label, "subject": subject, "id": f"picture-{number}"}


def once(folder, **more):
    """A run whose source gives nothing a second time."""
    plain = configuration(folder, {"name": "keys", "keys": KEYS}, **more).model_dump(
        by_alias=True, exclude_unset=True
    )
    return config_from_dict({**plain, "source": {"class": "test_sample_traces:stream"}})


def sums_of(learner):
    """Every statistic of the learner's head, the classes in alphabetical order."""
    order = [learner.classes.index(name) for name in sorted(learner.classes)]
    known = learner.head.statistics
    return known.gram.full(), known.Q[:, order], known.counts[order]


def never(folder, keep):
    """A learner like the run's that was given only the samples for which `keep` is true."""
    with open_run(once(folder), fresh=True) as run:
        offset = 0
        for event in run.source:
            run.learner.learn(Batch(offset, tuple(sample for sample in event.samples if keep(sample))))
            offset = event.end
        return run.learner


REQUESTS = {
    "subject": ({"subject": "person 1"}, lambda sample: sample.subject != "person 1"),
    "ids": ({"ids": ["picture-7"]}, lambda sample: sample.id != "picture-7"),
    "class": ({"label": "cat"}, lambda sample: sample.label != "cat"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_samples_that_cannot_be_read_again_are_forgotten_to_the_bit(tmp_path, kind):
    wish, keep = REQUESTS[kind]
    with open_run(once(tmp_path / "a")) as run:
        list(run)
        name = run.forget(**wish, guarantee="exact")
        run.processor.forget()
        mine = sums_of(run.learner)
        receipt = json.loads((run.folder / "receipts" / f"{name}.json").read_text())
    assert (receipt["outcome"], receipt["method"], receipt["guarantee"]) == ("done", "closed_form", "exact")
    assert receipt["figures"]["from_traces"] == receipt["scope"]["learned"] > 0
    assert receipt["figures"]["rederived"] == 0
    places = {each["name"]: each["status"] for each in receipt["locations"]}
    assert places["sample traces"] == "erased"
    theirs = sums_of(never(tmp_path / "b", keep))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_a_trace_is_in_no_file_once_its_sample_is_forgotten(tmp_path):
    kept = {}
    with open_run(once(tmp_path)) as run:
        traces = capabilities_of(run.learner).traces
        traces.on_learned(
            lambda samples, found: kept.update(zip((s.id for s in samples), found, strict=True))
        )
        list(run)
        trace = kept["picture-7"]
        assert len(trace) == KEYS // 2
        assert trace in b"".join(path.read_bytes() for path in run.folder.glob(f"{LINEAGE}*"))
        run.forget(ids=["picture-7"], guarantee="exact")
        run.processor.forget()
    holding = [path for path in run.folder.rglob("*") if path.is_file() and trace in path.read_bytes()]
    assert holding == []


def test_a_second_request_reaches_nothing(tmp_path):
    with open_run(once(tmp_path)) as run:
        list(run)
        for learned in (1, 0):
            name = run.forget(ids=["picture-7"], guarantee="exact")
            run.processor.forget()
            receipt = json.loads((run.folder / "receipts" / f"{name}.json").read_text())
            assert receipt["scope"]["learned"] == learned
            assert receipt["outcome"] == "done"


def test_traces_of_before_a_stop_serve_after_it(tmp_path):
    with open_run(once(tmp_path, max_samples=48)) as run:
        list(run)
    code, text = call("forget", run.folder, "--subject", "person 1", "--guarantee", "exact", "--plan")
    assert code == 0, text
    assert "closed_form" in text
    assert "derived again" not in text
    with open_run(once(tmp_path, max_samples=48)) as run:
        name = run.forget(subject="person 1", guarantee="exact")
        run.processor.forget()
        receipt = json.loads((run.folder / "receipts" / f"{name}.json").read_text())
    assert receipt["outcome"] == "done", receipt
    assert call("verify", run.folder / "receipts" / f"{name}.json")[0] == 0


def test_a_learner_without_traces_refuses_the_same_request(tmp_path):
    """The guard seen failing: it is the trace that makes the samples superfluous."""
    plain = once(tmp_path).model_dump(by_alias=True, exclude_unset=True)
    with open_run(config_from_dict({**plain, "learner": "ridge"})) as run:
        list(run)
        name = run.forget(subject="person 1", guarantee="exact")
        run.processor.forget()
        receipt = json.loads((run.folder / "receipts" / f"{name}.json").read_text())
    assert receipt["outcome"] == "refused"


def test_sums_by_class_or_subject_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="keeps traces of single samples"):
        once(tmp_path, forgetting={"keep_statistics": "per_class"})


def test_a_row_without_its_trace_is_refused(tmp_path):
    with open_run(once(tmp_path)) as run:
        list(run)
    with closing(sqlite3.connect(run.folder / LINEAGE)) as file, file:
        file.execute("UPDATE samples SET features = NULL WHERE id = 'picture-7'")
    with open_run(once(tmp_path)) as run:
        before = sums_of(run.learner)
        name = run.forget(ids=["picture-7"], guarantee="exact")
        run.processor.forget()
        receipt = json.loads((run.folder / "receipts" / f"{name}.json").read_text())
    assert receipt["outcome"] == "failed"
    assert "lacks the traces" in receipt["reason"]
    assert all(torch.equal(one, other) for one, other in zip(before, sums_of(run.learner), strict=True))

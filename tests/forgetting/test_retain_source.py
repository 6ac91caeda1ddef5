"""What a run gives its repairs to hold on to: fetched samples, or the batches that come next."""

import json
from types import SimpleNamespace

from pictures import make_batch
from tiny_runs import configuration

from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting.erasure.retrieval import retain_source
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.runs.open import open_run


def lineage_of(folder, batch, learned=None):
    lineage = Lineage(folder / "lineage.sqlite")
    lineage.record(batch, learned=batch.labelled_offsets if learned is None else learned, segment=0)
    return lineage


def admit(batch):
    return batch


def test_a_spread_runs_evenly_from_the_beginning_to_the_end(tmp_path):
    lineage = lineage_of(tmp_path, make_batch(0, ["ant", "bee"] * 20))
    assert [trace.offset for trace in lineage.subsample(4)] == [9, 19, 29, 39]
    assert len(lineage.subsample(7)) == 7
    assert len(lineage.subsample(400)) == 40
    lineage.erase([9, 39])
    assert not {9, 39} & {trace.offset for trace in lineage.subsample(400)}
    lineage.close()


def test_what_was_only_predicted_is_not_in_it(tmp_path):
    lineage = lineage_of(tmp_path, make_batch(0, ["ant"] * 4), learned=())
    assert lineage.subsample(9) == []
    lineage.close()


def test_fetched_samples_have_the_labels_they_were_learned_with_and_what_is_gone_is_left_out(tmp_path):
    batch = make_batch(0, ["ant", "bee"] * 4)
    lineage = lineage_of(tmp_path, batch)
    there = {s.id: type(s)(s.id, s.image, "renamed") for s in batch.samples[2:]}
    source = SimpleNamespace(fetch=lambda ids: (there[name] for name in ids if name in there))
    found = retain_source(source, lineage, admit)(100)
    assert [s.id for s in found] == [s.id for s in batch.samples[2:]]
    assert {s.label for s in found} == {"ant", "bee"}
    lineage.close()


def test_a_source_that_cannot_fetch_is_looked_ahead_in_and_what_has_a_tombstone_is_left_out(tmp_path):
    batch = make_batch(0, ["ant", "bee"] * 8)
    asked = []

    def peek(records):
        asked.append(records)
        return [ForgetRequest(id="r", label="ant"), batch]

    found = retain_source(SimpleNamespace(peek=peek), None, lambda b: Batch(b.offset, b.samples[1:]))(9)
    assert [s.id for s in found] == [s.id for s in batch.samples[1:10]]
    assert asked == [9]
    assert retain_source(SimpleNamespace(), None, admit) is None


def test_a_run_repairs_shared_weights_with_what_its_source_gives(tmp_path):
    config = configuration(
        tmp_path, learner={"name": "online_lora", "learning_rate": 1e-2, "hard_buffer_size": 4}
    )
    with open_run(config) as run:
        for prediction in run:
            if prediction.offset == 111:
                for label, method in zip(run.learner.classes, ("gs_lora", "fast_ntk"), strict=False):
                    run.forget(label=label, method=method, id=method)
    for method in ("gs_lora", "fast_ntk"):
        receipt = json.loads((run.folder / "receipts" / f"{method}.json").read_text())
        assert receipt["outcome"] == "done", receipt["reason"]
        assert (receipt["method"], receipt["guarantee"]) == (method, "approximate")
        assert receipt["figures"]["retain_samples"] >= 32
        rows = {place["name"]: place["status"] for place in receipt["locations"]}
        assert (rows["adapters"], rows["head statistics"]) == ("remains", "erased")

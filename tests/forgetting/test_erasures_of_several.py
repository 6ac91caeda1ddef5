"""Requests that are due at once are one erasure: one commit, one pass over the files, many receipts."""

from __future__ import annotations

import json

import pytest
from forgetting_fakes import ForgettingLearner, Opened, RowsLearner
from signed_runs import KEY, KEYS, key_source

from streamcl.events import ForgetRequest
from streamcl.forgetting import service
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.forgetting.receipts.verify import ReceiptVerifier
from streamcl.testing import ScriptedSource, record_id

REQUESTS = [
    {"ids": [record_id(k) for k in (1, 5)]},
    {"ids": [record_id(k) for k in (5, 6, 17)]},  # of one nothing is left, one is yet to come
    {"subject": "subject-1"},
    {"label": "unheard of"},
    {"ids": [record_id(5)]},
    {"label": "zebra"},
    {"label": "zebra"},
    {"subject": "subject-1", "domain": "nowhere"},
    {"offsets": (0, 3), "on_return": "learn"},
    {"ids": [record_id(9)], "guarantee": "exact", "method": "head_only"},
]


def make_run(folder, learner, *, by=None):
    schedule = [ForgetRequest(**each, offset=12, id=f"r{k}") for k, each in enumerate(REQUESTS)]
    source = ScriptedSource([4] * 6, classes=("zebra", "ibex"))
    options = {"schedule": schedule, "signing_key": key_source(KEY), "by": by}
    with Opened(folder, source, learner=learner, **options) as run:
        run.run()
        state = {"learner": run.learner.state_dict(), "scores": run.processor.parts.scores.state_dict()}
    return state, (folder / "metrics.jsonl").read_text().count('"kind": "checkpoint"')


def comparable(folder):
    """What receipts state, but for what one erasure of all requests does once, and keyed hashes."""
    found = []
    for _, receipt in read_receipts(folder):
        body = receipt.to_json()
        names = ("request", "outcome", "method", "guarantee", "reason", "offset", "figures", "residual")
        stated = {name: body[name] for name in names} | {
            "locations": [each["name"] for each in body["locations"]]
        }
        counts = {
            name: each if name in {"learned", "passed"} else len(each or ())
            for name, each in body["scope"].items()
        }
        found.append(stated | counts)
    return found


@pytest.mark.parametrize("by", [None, "class", "subject"])
def test_it_comes_to_the_same_as_one_erasure_for_each_request(tmp_path, monkeypatch, by):
    learner = ForgettingLearner if by is None else RowsLearner
    together, saved = make_run(tmp_path / "together", learner(), by=by)
    monkeypatch.setattr(service, "REQUESTS_AT_ONCE", 1)
    one_by_one, more_saved = make_run(tmp_path / "one by one", learner(), by=by)
    assert comparable(tmp_path / "together") == comparable(tmp_path / "one by one")
    assert {each["outcome"] for each in comparable(tmp_path / "together")} == {"done", "refused"}
    assert repr(together) == repr(one_by_one)
    assert more_saved - saved == len(REQUESTS) - 1


def test_its_receipts_share_the_checkpoint_and_verify(tmp_path):
    make_run(tmp_path, ForgettingLearner())
    verifier = ReceiptVerifier(KEYS)
    chain = read_receipts(tmp_path)
    for path, _ in chain:
        assert verifier.verify(path)
    done = [receipt for _, receipt in chain if receipt.outcome == "done"]
    assert len(done) > 5
    assert len({receipt.checkpoint.name for receipt in done}) == 1
    assert len({(receipt.learner_before, receipt.learner_after) for receipt in done}) == 1
    assert f"for {len(done)} requests together" in json.dumps(done[0].to_json())


def test_an_erasure_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "ROWS_AT_ONCE", 3)
    make_run(tmp_path, ForgettingLearner())
    checkpoints = [each.checkpoint.name for _, each in read_receipts(tmp_path) if each.checkpoint]
    assert 2 < len(set(checkpoints)) < len(checkpoints)

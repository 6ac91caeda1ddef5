"""Kept statistics in whole runs: in step with the checkpoints wherever it is killed, and erased for good."""

import json
import os
import signal
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from forgetting_fakes import Opened, RowsLearner
from tiny_runs import call, configuration, untimed

from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.forgetting.service import ForgettingService
from streamcl.forgetting.statistics.block import StatisticsBlock, packed
from streamcl.forgetting.statistics.block_file import BlockFile
from streamcl.forgetting.statistics.store import STATISTICS, StatisticsStore
from streamcl.runs.doctor import check_run
from streamcl.runs.open import open_run
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.plain_state import state_hash
from streamcl.testing import FaultyDisk, ScriptedSource, in_child, until_done

pytestmark = pytest.mark.long


class Unfetched(ScriptedSource):
    """A stream that passes once: nothing can be brought back."""

    fetch = None


WISHES = {"class": {"label": "odd"}, "subject": {"subject": "subject-1"}}


def heads_in(folder):
    """The heads of which a run has stored sums."""
    with closing(BlockFile(folder / STATISTICS)) as file:
        return {head for cohort in file.cohorts() for head in file.count(cohort)}


def run_once(folder, by="class", disk=None):
    schedule = [
        ForgetRequest(**WISHES[by], offset=12, id="r1"),
        ForgetRequest(**WISHES[by], offset=20, id="r2"),
    ]
    source = Unfetched([4] * 8)
    with Opened(
        folder, source, learner=RowsLearner(), schedule=schedule, disk=disk, commit_every=8, by=by
    ) as run:
        run.run()


def outcome(folder):
    """What a run came to, without what times, file positions and salts decide."""
    found = Checkpoints(folder / "checkpoints", fingerprint={}).latest()
    state = {k: v for k, v in found.state.items() if k not in {"sinks", "meter", "random"}}
    receipt = json.loads((folder / "receipts" / "r1.json").read_text())
    kept = ("outcome", "method", "guarantee", "offset", "learner_after", "figures")
    return {
        "state": state_hash(state),
        "receipt": {name: receipt[name] for name in kept} | {"learned": receipt["scope"]["learned"]},
        "logs": [untimed(folder / f"{topic}.jsonl") for topic in ("predictions", "metrics")],
        "kept": sums(folder),
    }


def sums(folder):
    """Every block that the newest checkpoint has, whatever its cohort is called."""
    query = "SELECT head, samples, ranks, sums, root FROM blocks WHERE died IS NULL"
    with closing(sqlite3.connect(folder / STATISTICS)) as file:
        return sorted(file.execute(query).fetchall())


@pytest.mark.parametrize("by", WISHES)
def test_a_cohort_is_forgotten_without_its_samples(tmp_path, by):
    run_once(tmp_path, by)
    receipt = json.loads((tmp_path / "receipts" / "r1.json").read_text())
    assert (receipt["outcome"], receipt["guarantee"], receipt["method"]) == ("done", "exact", "closed_form")
    assert receipt["figures"]["from_stored_statistics"] == receipt["scope"]["learned"]
    rows = {place["name"]: place["status"] for place in receipt["locations"]}
    assert rows["stored statistics"] == "erased"
    assert len(receipt["scope"]["cohorts"]) == 1
    with closing(BlockFile(tmp_path / STATISTICS)) as file:
        assert not {cohort.hex() for cohort in file.cohorts()} & set(receipt["scope"]["cohorts"])
    assert any("stored statistics" in line for line in verify_receipt(tmp_path / "receipts" / "r1.json"))
    left = [k for k in range(32) if (k % 2 == 0 if by == "class" else k % 3 != 1)]
    rows = np.array([[1.0, k % 7, k % 5] for k in left])
    found = Checkpoints(tmp_path / "checkpoints", fingerprint={}).latest().state["learner"]
    assert np.abs(found["gram"] - rows.T @ rows).max() <= 1e-12 * np.abs(rows.T @ rows).max()


def test_without_them_it_is_refused(tmp_path):
    schedule = [ForgetRequest(label="odd", offset=12, id="r1")]
    with Opened(tmp_path, Unfetched([4] * 8), learner=RowsLearner(), schedule=schedule) as run:
        run.run()
    assert "carries no samples" in json.loads((tmp_path / "receipts" / "r1.json").read_text())["reason"]


@pytest.mark.parametrize("by", WISHES)
@pytest.mark.parametrize("other", ["class", "subject", "samples"])
def test_a_request_across_cohorts_leaves_the_rest_right(tmp_path, by, other):
    """First part of some cohorts is erased, by samples that are fetched, then one of these cohorts whole."""
    what = {"samples": {"offsets": (3, 11)}, **WISHES}[other]
    whole = {"class": {"label": "even"}, "subject": {"subject": "subject-2"}}[by]
    source = ScriptedSource([4] * 8)
    schedule = [ForgetRequest(**what, offset=12, id="r1"), ForgetRequest(**whole, offset=24, id="r2")]
    with Opened(tmp_path, source, learner=RowsLearner(), schedule=schedule, by=by) as run:
        for prediction in run.processor.run():
            if prediction.offset == 23:
                source.fetch = None  # from here on nothing can be brought back
        gram = run.learner.gram
    receipts = [json.loads((tmp_path / "receipts" / f"r{i}.json").read_text()) for i in (1, 2)]
    assert [receipt["outcome"] for receipt in receipts] == ["done", "done"]
    assert ("from_stored_statistics" in receipts[0]["figures"]) is (other == by)
    assert "from_stored_statistics" in receipts[1]["figures"]
    gone = {"class": lambda k: k % 2 == 1, "subject": lambda k: k % 3 == 1, "samples": lambda k: 3 <= k < 11}
    wholly = {"class": lambda k: k % 2 == 0, "subject": lambda k: k % 3 == 2}
    left = [k for k in range(32) if not gone[other](k) and not wholly[by](k)]
    rows = np.array([[1.0, k % 7, k % 5] for k in left]).reshape(-1, 3)
    assert np.abs(gram - rows.T @ rows).max() <= 1e-9


@pytest.mark.faults
@pytest.mark.parametrize(
    ("by", "stride"),
    [("class", 47), ("subject", 53), *(pytest.param(by, 1, marks=pytest.mark.slow) for by in WISHES)],
)
def test_killed_at_any_durable_call_it_ends_as_if_it_had_not_been(tmp_path, by, stride):
    disk = FaultyDisk()
    run_once(tmp_path / "whole", by, disk)
    expected, landed = outcome(tmp_path / "whole"), 0
    assert expected["kept"]
    for number in range(1, len(disk.calls) + 1, stride):
        folder = tmp_path / f"killed-{number}"
        landed += in_child(lambda n=number, f=folder: run_once(f, by, FaultyDisk(n, "kill"))) != 0
        assert until_done(lambda f=folder: run_once(f, by)) == 0
        assert outcome(folder) == expected, f"killed at call {number}: {disk.calls[number - 1]}"
        verify_receipt(folder / "receipts" / "r1.json")
    assert landed > 60 // stride


STEPS = [("restore", 1), ("commit", 2), ("commit", 4), ("flush", 1), ("flush", 4), ("select", 1),
         ("select", 2), ("drop", 1), ("accept", 1), ("accept", 2), ("purge", 1), ("purge", 2)]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_once(folder)
    return outcome(folder)


@pytest.mark.faults
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("verb", "nth"), STEPS)
def test_killed_around_any_change_of_the_file_it_ends_as_if_it_had_not_been(
    tmp_path, undisturbed, verb, when, nth
):
    def dying():
        owner = StatisticsStore if hasattr(StatisticsStore, verb) else BlockFile
        real, count = getattr(owner, verb), [0]

        def killed(*values, **options):
            count[0] += 1
            if count[0] == nth and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*values, **options)
            if count[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, verb, killed)
        run_once(tmp_path / "killed")

    assert in_child(dying) < 0
    run_once(tmp_path / "killed")
    assert outcome(tmp_path / "killed") == undisturbed


@pytest.mark.faults
def test_without_going_back_what_is_kept_would_hold_samples_twice(tmp_path, monkeypatch):
    """The guard seen failing: killed after some batches that no checkpoint has."""

    def dying():
        with Opened(tmp_path, Unfetched([4] * 8), learner=RowsLearner(), by="class") as run:
            for prediction in run.processor.run():
                if prediction.offset == 19:
                    run.kept.select({})  # which writes what waits
                    os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(dying) < 0
    monkeypatch.setattr(BlockFile, "restore", lambda self, moment: setattr(self, "moment", moment))
    run_once(tmp_path)
    reason = json.loads((tmp_path / "receipts" / "r1.json").read_text()).get("reason") or ""
    assert "carries no samples" in reason  # too many are kept, so they cannot be used


def test_an_older_checkpoint_finds_its_own_sums(tmp_path, undisturbed):
    """The newest checkpoint is damaged: what is kept goes back as well."""
    with Opened(tmp_path / "x", Unfetched([4] * 8), learner=RowsLearner(), by="class") as run:
        for prediction in run.processor.run():
            if prediction.offset == 11:
                run.processor.stop()
    newest = Checkpoints(tmp_path / "x" / "checkpoints", fingerprint={}).paths()[-1]
    (newest / "state.json").write_bytes(b"{}")
    run_once(tmp_path / "x")
    assert outcome(tmp_path / "x") == undisturbed


def test_sums_from_a_backup_are_noticed(tmp_path):
    run_once(tmp_path)
    for path in tmp_path.glob(f"{STATISTICS}*"):
        path.unlink()
    with pytest.raises(ForgettingError, match="does not know the checkpoint"):
        run_once(tmp_path)


def test_what_was_erased_is_overwritten(tmp_path, monkeypatch):
    """No byte of an erased sum is left in the file or its journal, nor of what superseded sums held of it."""
    written = {}
    row = StatisticsBlock.row

    def noted(block, cohort, head):
        written.setdefault(cohort, []).append(packed(block.root))
        return row(block, cohort, head)

    monkeypatch.setattr(StatisticsBlock, "row", noted)
    run_once(tmp_path)
    (gone,) = json.loads((tmp_path / "receipts" / "r1.json").read_text())["scope"]["cohorts"]
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.glob(f"{STATISTICS}*")))
    erased = written.pop(bytes.fromhex(gone))
    assert erased
    assert not [each for each in erased if each in content]
    assert any(each in content for kept in written.values() for each in kept)


def test_a_failed_erasure_leaves_the_sums_as_they_were(tmp_path, monkeypatch):
    def fails(self, sums):
        raise ForgettingError("no")

    monkeypatch.setattr(RowsLearner, "subtract", fails)
    run_once(tmp_path / "a")
    monkeypatch.setattr(ForgettingService, "before_batch", lambda self, offset: ())
    run_once(tmp_path / "b")
    assert sums(tmp_path / "a") == sums(tmp_path / "b")


def test_the_doctor_looks_at_them(tmp_path):
    run_once(tmp_path)
    (found,) = [each for each in check_run(tmp_path) if each.place == STATISTICS]
    assert found.level == "ok"
    assert "sums of 1 classes or subjects" in found.text
    with closing(sqlite3.connect(tmp_path / STATISTICS)) as file, file:
        file.execute("UPDATE blocks SET sums = zeroblob(LENGTH(sums))")
    (found,) = [each for each in check_run(tmp_path) if each.place == STATISTICS]
    assert found.level == "error"


@pytest.mark.parametrize("learner", ["ncm", "online_lora", "er"])
def test_learners_without_such_sums_are_refused(tmp_path, learner):
    with pytest.raises(ConfigError, match="no sums of squares to keep"):
        configuration(tmp_path, learner=learner, forgetting={"keep_statistics": "per_class"})


def stream(count=160):
    """Records that pass once, with subjects that come one after the other."""
    from pictures import picture

    for number in range(count):
        label = ["ant", "bee", "cat"][number % 3]
        yield {"image": picture(label, number), "label": label, "subject": f"person {number // 40}"}


def real(folder, learner, **more):
    plain = configuration(folder, learner=learner, **more).model_dump(by_alias=True, exclude_unset=True)
    return config_from_dict({**plain, "source": {"class": "test_statistics_store_runs:stream"}})


HYBRID = {"name": "ridge_lora", "lora": {"warmup_samples": 32, "rank": 2}}
WHOLE = {"per_class": {"label": "cat"}, "per_subject": {"subject": "person 1"}}


def never(config, keep):
    """A learner like the run's that was given only the samples for which `keep` is true."""
    with open_run(config, fresh=True) as run:
        learner = run.learner
        offset = 0
        for event in run.source:
            samples = tuple(s for s in event.samples if keep(s))
            learner.learn(Batch(offset, samples))
            offset = event.end
        return learner


def relative(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("statistics", WHOLE)
@pytest.mark.parametrize(("learner", "method"), [("ridge", "closed_form"), ("slda", "closed_form"),
                                                 (HYBRID, "any")])  # fmt: skip
def test_real_learners_forget_a_cohort_exactly_though_nothing_can_be_fetched(
    tmp_path, learner, method, statistics
):
    what = WHOLE[statistics]
    with open_run(real(tmp_path / "a", learner, forgetting={"keep_statistics": statistics})) as run:
        list(run)
        name = run.forget(**what, guarantee="exact")
        run.processor.forget()
        forgotten = run.learner
        receipt = json.loads((run.folder / "receipts" / f"{name}.json").read_text())
    assert receipt["outcome"] == "done", receipt
    late = learner is HYBRID and statistics == "per_subject"  # this subject came after the adapters settled
    assert receipt["method"] == ("closed_form" if method == "closed_form" or late else "drop_branch")
    assert receipt["figures"]["rederived"] == 0
    fresh = never(
        real(tmp_path / "b", learner),
        lambda s: s.label != "cat" if statistics == "per_class" else s.subject != "person 1",
    )
    assert set(forgotten.classes) == set(fresh.classes)
    mine, theirs = (getattr(each, "exact", each).head.statistics for each in (forgotten, fresh))
    assert relative(mine.gram.full(), theirs.gram.full()) <= 1e-9
    assert relative(mine.Q, theirs.Q[:, [fresh.classes.index(c) for c in forgotten.classes]]) <= 1e-9
    if learner is HYBRID:
        assert (forgotten.adapted is not None) is late
    if late:
        mine, theirs = (each.adapted.head.statistics for each in (forgotten, fresh))
        assert relative(mine.gram.full(), theirs.gram.full()) <= 1e-9
        assert relative(mine.Q, theirs.Q) <= 1e-9
        assert heads_in(run.folder) == {0, 1}


def test_what_a_dropped_branch_kept_goes_with_it(tmp_path):
    with open_run(real(tmp_path, HYBRID, forgetting={"keep_statistics": "per_class"})) as run:
        list(run)
        assert heads_in(run.folder) == {0, 1}
        run.forget(label="cat")
        run.processor.forget()
        assert heads_in(run.folder) == {0}
        run.forget(label="bee", guarantee="exact")
        run.processor.forget()
        assert run.learner.classes == ("ant",)


def test_the_command_line_verifies_the_receipt(tmp_path):
    with open_run(real(tmp_path, "ridge", forgetting={"keep_statistics": "per_class"})) as run:
        list(run)
    code, text = call("forget", run.folder, "--class", "cat", "--guarantee", "exact")
    assert code == 0, text
    with open_run(real(tmp_path, "ridge", forgetting={"keep_statistics": "per_class"})) as run:
        run.processor.forget()
    (receipt,) = run.folder.glob("receipts/*.json")
    assert call("verify", receipt)[0] == 0
    with pytest.raises(ConfigError, match="cannot be continued with this configuration"):
        open_run(real(tmp_path, "ridge"))

"""Killed anywhere between a request and its receipt: it is carried out, once, and nothing is left over."""

import contextlib
import json
import shutil
import sqlite3

import pytest
from forgetting_fakes import Opened, holds
from signed_runs import KEY, KEYS, key_source
from tiny_runs import untimed

from streamcl.errors import ForgettingError, StreamclError
from streamcl.events import ForgetRequest
from streamcl.forgetting import service as module
from streamcl.forgetting.ledger.ledger import Ledger
from streamcl.forgetting.ledger.tombstones import Tombstones
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.envelope import read_envelope
from streamcl.storage.hash_chain import HEAD
from streamcl.storage.plain_state import state_hash
from streamcl.testing import FaultyDisk, ScriptedSource, in_child, record_id, until_done

pytestmark = [pytest.mark.faults, pytest.mark.long]

GONE = [record_id(k) for k in (1, 5, 17)]
WISHES = {
    "samples": {"ids": GONE},
    "subject": {"subject": "subject-1"},
    "class": {"label": "odd"},
    "several": {"ids": GONE},
}
OTHERS = ({"subject": "subject-1"}, {"ids": [*GONE, record_id(7)]}, {"label": "unheard of"})


def run_once(folder, wish, disk=None):
    wishes = (WISHES[wish], *(OTHERS if wish == "several" else ()))
    schedule = [ForgetRequest(**each, offset=12, id=f"r{number}") for number, each in enumerate(wishes, 1)]
    options = {"schedule": schedule, "disk": disk, "commit_every": 16, "signing_key": key_source(KEY)}
    with Opened(folder, ScriptedSource([4] * 6), **options) as run:
        run.run()


def outcome(folder):
    """What a run came to, without what times and file positions decide."""
    found = Checkpoints(folder / "checkpoints", fingerprint={}).latest()
    receipt = json.loads((folder / "receipts" / "r1.json").read_text())
    state = {k: v for k, v in found.state.items() if k not in {"sinks", "meter", "random"}}
    kept = (
        "outcome",
        "method",
        "guarantee",
        "offset",
        "learner_after",
    )  # learner_before: under a run's own key
    return {
        "consumed": found.state["learner"]["consumed"],
        "state": state_hash(state),
        "receipt": {name: receipt[name] for name in kept} | {"learned": receipt["scope"]["learned"]},
        "places": [(each["name"], each["status"], each["explanation"]) for each in receipt["locations"]],
        "passed": receipt["scope"]["passed"],
        "removed": receipt["checkpoint"]["removed"],
        "logs": [untimed(folder / f"{topic}.jsonl") for topic in ("predictions", "metrics")],
    }


@pytest.mark.parametrize(
    ("wish", "stride"),
    [
        ("samples", 37),
        ("subject", 61),
        ("class", 41),
        *(pytest.param(wish, 1, marks=pytest.mark.slow) for wish in WISHES),
    ],
)
def test_killed_at_every_durable_call_it_is_carried_out_once(tmp_path, wish, stride):
    disk = FaultyDisk()
    assert in_child(lambda: run_once(tmp_path / "count", wish)) == 0
    run_once(tmp_path / "whole", wish, disk)
    expected = outcome(tmp_path / "whole")
    landed, folder = 0, tmp_path / "killed"
    numbers = range(1, len(disk.calls) + 1, stride)
    for number in numbers:
        died = in_child(lambda n=number: run_once(folder, wish, FaultyDisk(n, "kill"))) != 0
        landed += died
        assert until_done(lambda: run_once(folder, wish)) == 0
        assert outcome(folder) == expected, f"killed at call {number}: {disk.calls[number - 1]}"
        outcomes = ["done"] if wish != "several" else ["done", "done", "done", "refused"]
        chain = read_receipts(folder)
        assert [receipt.outcome for _, receipt in chain if receipt.attempt == 1] == outcomes
        assert wish not in {"samples", "several"} or holds(folder, *GONE) == {}
        for path, _ in chain:
            verify_receipt(path, KEYS)
        assert json.loads(read_envelope(folder / "receipts" / HEAD).payload)["number"] == len(chain)
        shutil.rmtree(folder)
    assert landed == len(numbers)
    assert len(disk.calls) > 60


@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_after_a_full_disk_at_any_durable_call_the_next_start_carries_it_out(tmp_path, stride):
    disk = FaultyDisk()
    run_once(tmp_path / "whole", "samples", disk)
    expected = outcome(tmp_path / "whole")
    for number in range(1, len(disk.calls) + 1, stride):
        folder = tmp_path / str(number)
        with contextlib.suppress(OSError, StreamclError):
            run_once(folder, "samples", FaultyDisk(number, "enospc"))
        run_once(folder, "samples")
        assert outcome(folder) == expected, f"full at call {number}: {disk.calls[number - 1]}"
        assert holds(folder, *GONE) == {}
        verify_receipt(folder / "receipts" / "r1.json", KEYS)


STEPS = [
    (Ledger, "submit"), (Ledger, "start"), (Ledger, "add_tombstones"), (Ledger, "finish"), (Ledger, "scrub"),
    (Lineage, "flush"), (Lineage, "erase"), (Lineage, "truncate"),
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of a run with a request for samples that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_once(folder, "samples")
    return outcome(folder)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "verb"), STEPS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_killed_around_every_step_in_the_database_it_is_carried_out_once(
    tmp_path, undisturbed, owner, verb, when
):
    def dying():
        real = getattr(owner, verb)

        def killed(*values, **options):
            import os
            import signal

            if when == "after":
                real(*values, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, verb, killed)
        run_once(tmp_path / "killed", "samples")

    assert in_child(dying) < 0
    run_once(tmp_path / "killed", "samples")
    assert outcome(tmp_path / "killed") == undisturbed
    assert holds(tmp_path / "killed", *GONE) == {}


@pytest.mark.parametrize("file", ["lineage.sqlite", "ledger.sqlite"])
def test_while_another_process_reads_nothing_is_called_done_that_is_not(tmp_path, file, monkeypatch):
    """A reader keeps SQLite from emptying its journal, which still holds what was deleted."""
    schedule = [ForgetRequest(ids=GONE, offset=12, id="r1")]
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **options: connect(path, **options | {"timeout": 0.02})
    )
    with Opened(tmp_path, ScriptedSource([4] * 6), schedule=schedule, signing_key=key_source(KEY)) as run:
        run.processor.commit()
        with sqlite3.connect(tmp_path / file, isolation_level=None) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT COUNT(*) FROM facts").fetchone()
            if file == "lineage.sqlite":
                with pytest.raises(ForgettingError, match="journal still holds"):
                    run.run()
                assert read_receipts(tmp_path) == []
                assert run.ledger.entry("r1").status == "started"
            else:
                run.run()
        reader.close()
    run_once(tmp_path, "samples")
    assert holds(tmp_path, *GONE) == {}
    ((path, receipt),) = read_receipts(tmp_path)
    assert len(receipt.scope.ids) == len(GONE)
    verify_receipt(path, KEYS)


def kill_after_commit(folder):
    """The moment at which a second subtraction would be possible: erased and committed, not yet sealed."""
    import os
    import signal

    module.ForgettingService.finalise = lambda self, order: os.kill(os.getpid(), signal.SIGKILL)
    run_once(folder, "samples")


def test_what_is_applied_is_part_of_the_checkpoint(tmp_path):
    assert in_child(lambda: kill_after_commit(tmp_path)) < 0
    found = Checkpoints(tmp_path / "checkpoints", fingerprint={}).latest()
    assert set(found.state["forgetting"]["applied"]) == {"r1"}
    run_once(tmp_path, "samples")
    assert outcome(tmp_path)["receipt"]["outcome"] == "done"


def test_without_it_the_samples_would_be_subtracted_twice(tmp_path, monkeypatch):
    """The guard seen failing."""
    assert in_child(lambda: kill_after_commit(tmp_path)) < 0
    load = module.ForgettingService.load_state_dict
    monkeypatch.setattr(
        module.ForgettingService, "load_state_dict", lambda self, s: load(self, {**s, "applied": {}})
    )
    run_once(tmp_path, "samples")
    receipt = json.loads((tmp_path / "receipts" / "r1.json").read_text())
    assert receipt["outcome"] == "failed"  # the fake learner notices; a sum would not


def test_without_purging_the_older_checkpoints_would_hold_the_samples(tmp_path, monkeypatch):
    """The guard seen failing."""
    monkeypatch.setattr(Checkpoints, "purge_before", lambda self, path: [])
    schedule = [ForgetRequest(ids=GONE, offset=20, id="r1")]
    with Opened(tmp_path, ScriptedSource([4] * 6), schedule=schedule, commit_every=8, keep=5) as run:
        run.run()
    assert holds(tmp_path / "checkpoints", *GONE) != {}
    with pytest.raises(ForgettingError, match="from before the erasure"):
        verify_receipt(tmp_path / "receipts" / "r1.json")


def test_without_tombstones_it_would_be_learned_again(tmp_path, monkeypatch):
    """The guard seen failing."""
    monkeypatch.setattr(Tombstones, "covers", lambda self, sample: False)
    run_once(tmp_path, "class")
    assert any(int(name) % 2 for name in outcome(tmp_path)["consumed"])


def test_a_ledger_from_a_backup_is_noticed(tmp_path):
    run_once(tmp_path, "samples")
    for path in tmp_path.glob("ledger.sqlite*"):
        path.unlink()
    with pytest.raises(ForgettingError, match="older than the checkpoint"):
        Opened(tmp_path, ScriptedSource([4] * 6))


def test_a_request_while_a_consolidation_is_due_comes_after_it(tmp_path):
    schedule = [ForgetRequest(ids=GONE[:2], offset=offset, id=f"r{offset}") for offset in (8, 12, 16)]
    with Opened(tmp_path, ScriptedSource([4] * 6), schedule=schedule) as run:
        run.run()
        assert run.learner.consolidated  # after the third batch, between two requests
        assert [entry.status for entry in run.ledger.entries()] == ["done"] * 3
        assert not set(GONE[:2]) & set(run.learner.consumed)


@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_the_disk_may_fail_at_any_call_and_the_request_is_not_lost(tmp_path, stride):
    disk = FaultyDisk()
    run_once(tmp_path / "whole", "samples", disk)
    folder, expected = tmp_path / "failed", outcome(tmp_path / "whole")["consumed"]
    for number in range(1, len(disk.calls) + 1, stride):
        code = in_child(lambda n=number: run_once(folder, "samples", FaultyDisk(n, "eio")))
        assert code in {0, 1}
        run_once(folder, "samples")
        assert outcome(folder)["consumed"] == expected
        shutil.rmtree(folder)

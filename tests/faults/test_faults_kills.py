"""F1: killed anywhere, resumed, killed again while resuming: the run ends as if it had not crashed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from fault_runs import Left, learned, left, start, streamcl, write_config

pytestmark = [pytest.mark.faults, pytest.mark.long]

RECORDS = 240
PHASES = (  # what is killed at its nth call, in this order, in one run directory
    ("RunLock.acquire", 1), ("Disk.mkdir", 1), ("StreamProcessor.begin", 1), ("Checkpoints.save", 1),
    ("Disk.create", 3), ("BackgroundSaver.save", 1), ("JsonlSink._drain", 2), ("StreamProcessor.commit", 2),
    ("StreamProcessor.restore", 1), ("StreamProcessor.restore", 1), ("IterableSource._next_event", 3),
    ("Quarantine.take", 3), ("Learner.learn", 4), ("Learner.load_state_dict", 1),
    ("Learner.load_state_dict", 1), ("PredictionLog.after_batch", 4), ("Learner.consolidate", 1),
    ("ShiftHandler._update_detector", 3), ("StepMetricsLog.after_batch", 3), ("Checkpoints.latest", 1),
    ("Checkpoints.sweep", 1), ("JsonlSink.load_state_dict", 1), ("Checkpoints._fill", 2), ("Disk.write", 9),
    ("Checkpoints._prune", 2), ("Disk.rmdir", 2), ("Disk.unlink", 4), ("Disk.replace", 5), ("Disk.fsync", 12),
    ("Disk.fsync_folder", 7), ("Learner.state_dict", 2), ("BackgroundSaver.wait", 2), ("Disk.truncate", 1),
    ("HoldoutEvaluation._evaluate", 1), ("HoldoutEvaluation._evaluate", 1), ("StreamProcessor.finish", 1),
    ("Run.finish", 1), ("Run.close", 1),
)  # fmt: skip
LINKS = (("Disk.link", 1), ("Disk.link", 5))
"""Where a learner has arrays that do not change."""
CLASS = {
    "online_lora": "OnlineLoRALearner",
    "latents": "LatentRidgeLoRALearner",
    "latent_replay": "OnlineLoRALearner",
    "ridge": "RidgeLearner",
}


def config(folder: Path, learner: str, **changes) -> None:
    source = {"class": "fault_sources:Pictures", "args": {"records": RECORDS}}
    write_config(folder, learner=learner, source=source, evaluate={"every_samples": 64}, **changes)


def uninterrupted(folder: Path, *hooks) -> Left:
    done = streamcl("run", "stream.yaml", "--set", "run_dir=whole", folder=folder, hooks=hooks)
    assert done.code == 0, done.err
    return left(folder / "whole")


def attempt(folder: Path, *hooks, **kill) -> tuple[int | None, str]:
    """One process on the run directory; how it ended and the last point it came by."""
    note = folder / "record"
    note.unlink(missing_ok=True)
    hook = ("fault_runs:kill_at", {"note": str(note), **kill})
    done = streamcl("run", "stream.yaml", "--set", "run_dir=killed", folder=folder, hooks=(*hooks, hook))
    assert done.code in (0, -signal.SIGKILL), done.err
    return done.code, note.read_text().split("\n")[-2] if note.exists() else ""


@pytest.mark.parametrize(
    "learner",
    [
        "online_lora",
        pytest.param("latents", marks=pytest.mark.long),
        pytest.param("latent_replay", marks=pytest.mark.long),
        pytest.param("ridge", marks=pytest.mark.slow),
    ],
)
def test_killed_in_every_phase_it_ends_as_if_it_had_not_been(tmp_path, learner):
    config(tmp_path, learner)
    stores = learner in {"latents", "latent_replay"}
    hooks = (("fault_runs:small_segments", {}),) if stores else ()
    phases = (*PHASES[:-3], *LINKS, *PHASES[-3:]) if stores else PHASES
    whole = uninterrupted(tmp_path, *hooks)
    killed = []
    for point, times in phases:
        of_learner = point.replace("Learner.", f"{CLASS[learner]}.")
        code, last = attempt(tmp_path, *hooks, point=of_learner, times=times)
        if code:
            killed.append(last)
    while attempt(tmp_path, *hooks)[0] != 0:
        pass
    assert learner != "latents" or "Disk.link" in killed
    assert len(set(killed)) >= 20, f"kills landed in {sorted(set(killed))} only"
    assert {"StreamProcessor.restore", f"{CLASS[learner]}.load_state_dict"} <= set(killed)
    assert left(tmp_path / "killed") == whole


@pytest.mark.slow
def test_two_hundred_kills_at_random_calls(tmp_path):
    config(tmp_path, "online_lora", checkpoint={"every_samples": 8})
    whole = uninterrupted(tmp_path)
    rng, killed, ends = random.Random(0), [], 0
    while len(killed) < 200:
        code, last = attempt(tmp_path, number=rng.randint(1, 130))
        if code == 0:  # it came through: begin again, so that all 200 land
            assert left(tmp_path / "killed") == whole
            (tmp_path / "killed").rename(tmp_path / f"killed-{ends}")
            ends += 1
        else:
            killed.append(last)
    assert attempt(tmp_path)[0] == 0
    assert left(tmp_path / "killed") == whole
    assert len(set(killed)) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["online_lora", "ridge"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_bit_identity_in_every_precision_with_and_without_read_ahead(tmp_path, learner, precision, prefetch):
    """Killed by the clock, from outside, some ten times."""
    source = {"class": "fault_sources:Shaken", "args": {"records": RECORDS}, "prefetch": prefetch}
    write_config(
        tmp_path, learner=learner, source=source, precision=precision, evaluate={"every_samples": 64}
    )
    whole = uninterrupted(tmp_path)
    rng, kills = random.Random(1), 0
    while True:
        process = start("run", "stream.yaml", "--set", "run_dir=killed", folder=tmp_path)
        done = process.wait(rng.uniform(0.1, 0.6) if kills < 10 else 60)
        if done.code == 0:
            break
        assert done.code is None, done.err
        kills += 1
    assert kills, "no kill landed: the test showed nothing"
    assert left(tmp_path / "killed") == whole


@pytest.mark.parametrize("prefetch", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_source_that_draws_from_the_process_wide_generators_resumes_exactly(tmp_path, prefetch):
    """The generators are those of the last event handed out, not of those read ahead."""
    source = {"class": "fault_sources:Shaken", "args": {"records": RECORDS}, "prefetch": prefetch}
    write_config(tmp_path, learner="ridge", source=source)
    whole = uninterrupted(tmp_path)
    for times in (4, 5, 6):
        assert attempt(tmp_path, point="RidgeLearner.learn", times=times)[0] == -signal.SIGKILL
    assert attempt(tmp_path)[0] == 0
    assert left(tmp_path / "killed") == whole


def test_the_hash_tells_states_apart(tmp_path):
    """The oracle can fail: another seed, another state."""
    config(tmp_path, "online_lora")
    for seed in (0, 1):
        assert (
            streamcl(
                "run", "stream.yaml", "--set", f"seed={seed}", "--set", f"run_dir=s{seed}", folder=tmp_path
            ).code
            == 0
        )
    assert learned(tmp_path / "s0") != learned(tmp_path / "s1")

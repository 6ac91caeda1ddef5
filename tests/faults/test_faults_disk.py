"""F5, F8, F9, F23: full, failing, read-only and odd places for a run; changed configurations."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fault_runs import left, lines, newest_state, start, streamcl, write_config

pytestmark = pytest.mark.faults

LEARN = "streamcl.learners.online_lora:OnlineLoRALearner.learn"
HALF = ("fault_runs:signal_at", {"point": LEARN, "times": 1})
"""Stops a run, gently, at its second batch."""


def run(folder, name="run", *more, code=0, **options):
    done = streamcl("run", "stream.yaml", "--set", f"run_dir={name}", *more, folder=folder, **options)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    return done


@pytest.mark.long
@pytest.mark.parametrize("calls", [(16, 60), pytest.param((30, 45, 52), marks=pytest.mark.slow)], ids=str)
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(tmp_path, calls):
    write_config(tmp_path, source={"class": "fault_sources:Pictures", "args": {"records": 240}})
    run(tmp_path, "whole")
    seen = set()
    for after in calls:
        hook = ("fault_runs:full_disk", {"after": after})
        done = run(tmp_path, "full", code=4, hooks=(hook,))
        assert "No space left" in done.err
        assert "hint:" in done.err
        if any((tmp_path / "full" / "checkpoints").glob("checkpoint-*")):
            seen.add(newest_state(tmp_path / "full")["progress"]["offset"])
    assert max(seen) >= 32  # several of them came to a checkpoint before the disk was full
    run(tmp_path, "full")
    assert left(tmp_path / "full") == left(tmp_path / "whole")


@pytest.mark.long
def test_a_failing_sync_voids_that_checkpoint_only(tmp_path):
    write_config(tmp_path)
    run(tmp_path, "whole")
    # Checkpoints are saved beside the loop; from the 21st sync on, the first one is complete on any timing.
    for after in (26, 30, 33):
        done = run(
            tmp_path, "failing", code=4, hooks=(("fault_runs:full_disk", {"after": after, "kind": "eio"}),)
        )
        assert "Input/output error" in done.err
        assert newest_state(tmp_path / "failing")["progress"]["offset"] < 96
    run(tmp_path, "failing")
    assert left(tmp_path / "failing") == left(tmp_path / "whole")


def test_a_full_disk_at_the_start_is_exit_2_before_anything_runs(tmp_path):
    write_config(tmp_path)
    done = run(tmp_path, "full", code=2, hooks=(("fault_runs:full_disk", {"after": 2}),))
    assert "cannot be written to: No space left" in done.err
    assert not (tmp_path / "full" / "config.yaml").exists()


def test_a_file_in_the_way_is_exit_2(tmp_path):
    write_config(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert "cannot be written to" in run(tmp_path, "taken", code=2).err
    assert "cannot be written to" in run(tmp_path, "taken/below", code=2).err


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a file system that nobody can write")
def test_a_read_only_place_is_exit_2(tmp_path):
    write_config(tmp_path)
    assert "cannot be written to" in run(tmp_path, "/proc/streamcl", code=2).err


def test_another_file_system_works(tmp_path):
    write_config(tmp_path)
    places = [place for place in (Path("/dev/shm"), Path.home()) if os.access(place, os.W_OK)]
    others = [place for place in places if place.stat().st_dev != tmp_path.stat().st_dev]
    if not others:
        pytest.skip("there is no second file system that can be written")
    other = others[0] / f"streamcl-test-{os.getpid()}"
    try:
        run(tmp_path, other)
        assert (other / "summary.json").exists()
    finally:
        shutil.rmtree(other, ignore_errors=True)


def test_an_odd_umask_does_not_lock_the_run_out(tmp_path):
    write_config(tmp_path)
    hook = ("fault_runs:umask", {"mask": 0o777})
    run(tmp_path, "odd", code=143, hooks=(hook, HALF))
    run(tmp_path, "odd", hooks=(hook,))
    run(tmp_path, "whole")
    assert left(tmp_path / "odd") == left(tmp_path / "whole")


@pytest.mark.long
def test_two_processes_one_directory_and_the_lock_of_a_dead_one(tmp_path):
    write_config(tmp_path, source={"class": "fault_sources:Slow"})
    first = start("run", "stream.yaml", "--set", "run_dir=run", folder=tmp_path)
    while not (tmp_path / "run" / "lock").exists() or not (tmp_path / "run" / "lock").read_text():
        pass
    done = run(tmp_path, code=2)
    assert f"process {first.pid} on" in done.err
    first.send(9)
    first.wait()
    run(tmp_path)  # the lock it left is no obstacle


@pytest.mark.long
def test_a_run_that_ended_at_its_limit_goes_on_under_a_higher_one(tmp_path):
    write_config(tmp_path)
    run(tmp_path, "parts", "--set", "max_samples=44")
    run(tmp_path, "parts", "--set", "max_samples=64")
    run(tmp_path, "parts")
    run(tmp_path, "parts")
    offsets = [record["offset"] for record in lines(tmp_path / "parts", "predictions")]
    assert offsets == list(range(96))


def test_differences_of_a_changed_configuration_are_printed_with_their_class(tmp_path):
    write_config(tmp_path)
    run(tmp_path, "run", "--set", "max_samples=32")
    done = run(tmp_path, "run", "--set", "max_samples=48", "--set", "learner.learning_rate=0.02")
    assert "max_samples: 32 -> 48 (safe)" in done.err
    assert "learner.learning_rate: 0.01 -> 0.02 (warn)" in done.err
    before = left(tmp_path / "run")
    done = run(tmp_path, "run", "--set", "learner.rank=2", "--set", "seed=1", code=2)
    assert "learner.rank: 4 -> 2 (refuse)" in done.err
    assert "seed: 0 -> 1 (refuse)" in done.err
    assert left(tmp_path / "run") == before


def test_spaces_unicode_and_links_in_every_path(tmp_path):
    place = tmp_path / "ein Ordner mit Äpfeln 🍎"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    write_config(place, "strøm 1.yaml")
    done = streamcl("run", "link/strøm 1.yaml", "--set", "run_dir=link/ru n ü", folder=tmp_path)
    assert done.code == 0, done.err
    for command in ("status", "report", "doctor"):
        assert streamcl(command, "link/ru n ü", folder=tmp_path).code == 0
    assert (place / "ru n ü" / "report.html").exists()


def test_no_home_no_network_and_no_write_outside(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    write_config(work)
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {
        "HOME": str(home / "missing"),
        "XDG_CACHE_HOME": str(home / "missing"),
        "TMPDIR": str(home),
        "STREAMCL_KEYS": str(tmp_path / "keys"),
    }
    before = {path.name for path in work.iterdir()}
    done = streamcl(
        "run", "stream.yaml", folder=work, env=environment, hooks=(("fault_runs:no_network", {}),)
    )
    assert done.code == 0, done.err
    made = {path.name for path in work.iterdir() if not path.name.startswith((".out", ".err"))}
    assert made - before == {"runs"}
    assert not list(home.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"work", "home", "keys"}


def test_the_clock_may_jump(tmp_path):
    """F21: order goes by offset, durations by a clock that only goes forward."""
    write_config(tmp_path)
    run(tmp_path, "whole")
    hook = ("fault_runs:odd_clock", {})
    run(tmp_path, "jumping", code=143, hooks=(hook, HALF))
    run(tmp_path, "jumping", hooks=(hook,))
    steps = [record for record in lines(tmp_path / "jumping", "metrics") if record["kind"] == "step"]
    seconds = [record["seconds"] for record in steps]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 3600  # the clock on the wall goes back an hour, forward a year
    assert [record["offset"] for record in steps] == sorted(record["offset"] for record in steps)
    assert left(tmp_path / "jumping") == left(tmp_path / "whole")

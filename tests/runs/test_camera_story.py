"""A camera that writes pictures into a folder, for days: nothing waits, is lost, or is doubled."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fault_runs import lines, newest_state, start, stop, streamcl, until, write_config
from PIL import Image

RUN = "runs/camera"


def put(folder: Path, name: str, *, at: float) -> None:
    """A picture whose colour says its class, as a camera leaves it: renamed once it is complete."""
    label = name.split("/", maxsplit=1)[0]
    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(int(at)).integers(0, 60, (16, 16, 3)).astype(np.uint8)
    pixels[..., 0 if label == "red" else 2] += 150
    Image.fromarray(pixels).save(path.with_suffix(".part"), format="png")
    path.with_suffix(".part").rename(path)
    os.utime(path, (at, at))


def predicted(folder: Path) -> list[str]:
    return [each["id"] for each in lines(folder / RUN, "predictions")]


@pytest.fixture
def camera(tmp_path):
    write_config(
        tmp_path,
        name="camera.yaml",
        learner="ridge",
        source={"name": "folder", "args": {"root": "pictures", "interval": 0.1}},
        batch={"size": 8, "max_wait": "300ms"},
        checkpoint={"every_samples": 1000, "every_seconds": "500ms", "delivery": "exactly_once"},
        flush="100ms",
        shift="none",
        run_dir=RUN,
    )
    (tmp_path / "pictures").mkdir()
    return tmp_path


@pytest.mark.long
@pytest.mark.faults
def test_the_story_of_a_camera(camera):
    """Few pictures; a quiet time; a kill; a clean-up and older pictures meanwhile; a stop; new pictures."""
    for number in range(20):
        put(camera, f"{'red' if number % 2 else 'blue'}/{number:03}.png", at=1000 + number)
    run = start("run", "camera.yaml", "--quiet", folder=camera)
    until(lambda: len(predicted(camera)) == 20, process=run)  # the last 4 are not held back
    put(camera, "red/late.png", at=2000)  # a single picture is learned, too
    until(lambda: len(predicted(camera)) == 21, process=run)
    until(lambda: newest_state(camera / RUN)["progress"]["offset"] == 21, process=run)  # idle, and committed
    run.send(signal.SIGKILL)
    run.wait()
    for number in range(20):  # the oldest are cleaned up
        (camera / "pictures" / f"{'red' if number % 2 else 'blue'}/{number:03}.png").unlink()
    for number in range(20):  # and others turn up, with older times and names
        put(camera, f"{'red' if number % 2 else 'blue'}/a{number:03}.png", at=100 + number)
    again = start("run", "camera.yaml", "--quiet", folder=camera)
    until(lambda: len(predicted(camera)) == 41, process=again)
    stopped = stop(again)
    assert stopped.code == 143
    assert "pictures delivers records exactly once" in stopped.err
    put(camera, "blue/new.png", at=3000)  # the next day
    third = start("run", "camera.yaml", "--quiet", folder=camera)
    until(lambda: len(predicted(camera)) == 42, process=third)
    assert stop(third).code == 143
    ids = predicted(camera)
    assert set(Counter(ids).values()) == {1}
    assert set(ids[21:41]) == {f"{'red' if k % 2 else 'blue'}/a{k:03}.png" for k in range(20)}
    assert newest_state(camera / RUN)["progress"]["offset"] == 42
    assert (camera / RUN / "arrivals.log").read_bytes().count(b"\n") < 42


def test_a_folder_that_is_not_there_is_an_error_and_leaves_no_run(camera):
    (camera / "pictures").rmdir()
    done = streamcl("run", "camera.yaml", folder=camera)
    assert done.code == 3
    assert "pictures is not a folder" in done.err
    assert not lines(camera / RUN, "events")


@pytest.mark.faults
def test_requests_are_carried_out_while_nothing_comes(camera):
    for number in range(8):
        put(camera, f"{'red' if number % 2 else 'blue'}/{number:03}.png", at=1000 + number)
    run = start("run", "camera.yaml", "--quiet", folder=camera)
    until(lambda: len(predicted(camera)) == 8, process=run)
    done = streamcl("forget", RUN, "--class", "red", "--wait", "60", folder=camera)
    assert done.code == 0, done.err
    (receipt,) = (camera / RUN / "receipts").glob("*.json")
    locations = {each["name"]: each for each in json.loads(receipt.read_text())["locations"]}
    assert locations["source data"]["explanation"].startswith(
        "pictures holds its files until somebody removes them; "
    )
    assert stop(run).code == 143

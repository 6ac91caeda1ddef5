"""F10 to F13 and F18 from the YAML down: what a source may do, and what becomes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fault_runs import learned, lines, newest_state, streamcl, write_config
from PIL import Image

pytestmark = [pytest.mark.faults, pytest.mark.long]


def go(folder, source, code=0, **changes):
    changes = {
        "learner": "ridge",
        "source": {"class": f"fault_sources:{source.pop('of')}", **source},
    } | changes
    write_config(folder, **changes)
    done = streamcl("run", "stream.yaml", folder=folder)
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err
    return folder / "runs" / "stream", done


def every_number(state):
    """All numbers in a state."""
    if isinstance(state, dict):
        for value in state.values():
            yield from every_number(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from every_number(value)
    elif isinstance(state, np.ndarray):
        yield from state.ravel().tolist() if state.dtype.kind == "f" else ()
    elif isinstance(state, float):
        yield state


REFUSED = ["label -1", "label float", "pixels nan", "shape", "text"]
SLOW = ["label -100", "label nan", "label list", "pixels inf", "pixels large", "channels", "dtype", "empty"]
SLOW += ["strip", "none"]
KINDS = [*REFUSED, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A run that the odd records never reach, because they hold no image at all."""
    return go(tmp_path_factory.mktemp("without"), {"of": "Odd", "args": {"kind": "none"}})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_odd_is_set_aside_and_leaves_no_trace_in_the_model(tmp_path, without, kind):
    run, _ = go(tmp_path, {"of": "Odd", "args": {"kind": kind}})
    aside = lines(run, "quarantine")
    assert [record["offset"] for record in aside] == list(range(0, 64, 4))
    assert all(record["id"] and record["reason"] for record in aside)
    assert len(lines(run, "predictions")) == 48
    learner = newest_state(run)["learner"]
    assert all(math.isfinite(number) for number in every_number(learner))
    assert learned(run) == learned(without)  # whatever was refused, what was learned is the same


@pytest.mark.parametrize("kind", ["label -1", "pixels nan", "text"])
def test_on_bad_record_fail_is_exit_3_with_the_reason(tmp_path, kind):
    policy = {"on_bad_record": "fail", "negative_label": "fail"}
    _, done = go(tmp_path, {"of": "Odd", "args": {"kind": kind}, "policy": policy}, code=3)
    assert done.err.count("\n") <= 3


@pytest.mark.parametrize(("kind", "policy", "learnt", "aside"), [
    ("label -1", {"negative_label": "class"}, 64, 0),
    ("label string", {}, 64, 0),
    ("label missing", {}, 48, 0),
    ("label missing", {"missing_label": "quarantine"}, 48, 16),
])  # fmt: skip
def test_labels_go_by_the_policy(tmp_path, kind, policy, learnt, aside):
    run, _ = go(tmp_path, {"of": "Odd", "args": {"kind": kind}, "policy": policy})
    assert len(lines(run, "quarantine")) == aside
    assert sum(record["label"] is not None for record in lines(run, "predictions")) == learnt


def test_no_more_classes_than_allowed(tmp_path):
    run, _ = go(tmp_path, {"of": "Odd", "args": {"kind": "label new"}, "policy": {"max_classes": 6}})
    assert len(newest_state(run)["learner"]["classes"]) == 6
    assert lines(run, "quarantine")


def test_a_missing_label_may_fail_the_run(tmp_path):
    _, done = go(
        tmp_path, {"of": "Odd", "args": {"kind": "label missing"}, "policy": {"missing_label": "fail"}}, 3
    )
    assert "no label" in done.err


def test_more_refused_records_than_allowed_end_the_run(tmp_path):
    policy = {"max_quarantined": 6}
    _run, done = go(tmp_path, {"of": "Odd", "args": {"kind": "label -1"}, "policy": policy}, 3)
    assert "8 records were set aside" in done.err
    assert "6 are allowed" in done.err
    assert "label is -1" in done.err
    policy = {"max_quarantined": 16}
    go(tmp_path, {"of": "Odd", "args": {"kind": "label -1"}, "policy": policy})


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 7, 200])
def test_batches_of_any_size_and_a_short_last_one(tmp_path, size):
    run, _ = go(tmp_path, {"of": "Pictures"}, batch=size)
    assert [record["offset"] for record in lines(run, "predictions")] == list(range(96))


def test_image_files_of_every_kind_in_a_folder(tmp_path):
    """Undecodable, truncated, empty and text files among good ones of odd modes (F10, F11)."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    for number, mode in enumerate(["RGB", "L", "P", "1", "LA", "RGBA", "I;16"]):
        picture.convert(mode).save(folder / f"good-{number}.png")
    picture.convert("CMYK").save(folder / "good-8.jpg")
    whole = (folder / "good-0.png").read_bytes()
    bad = {"empty.png": b"", "text.png": b"not a picture", "cut.png": whole[: len(whole) // 2]}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    go(tmp_path, {"of": "files"})
    run = tmp_path / "runs" / "stream"
    assert {record["id"] for record in lines(run, "quarantine")} == set(bad)
    assert len(lines(run, "predictions")) == 8


# -- sources that fail (F18) --------------------------------------------------------------------------------


def test_a_source_that_hangs_is_exit_3_in_time(tmp_path):
    _, done = go(tmp_path, {"of": "Hangs", "policy": {"stall_timeout": 1.0}}, 3)
    assert "stalled: no event within 1 seconds" in done.err


def test_a_source_that_raises_is_tried_again_then_exit_3_naming_the_offset(tmp_path):
    run, done = go(tmp_path, {"of": "Raises", "policy": {"retries": 2, "retry_delay": 0.01}}, 3)
    assert "failed at offset 40, 3 times: OSError: the camera is gone" in done.err
    assert newest_state(run)["progress"]["offset"] == 32  # the last commit stands


def test_a_source_that_ends_early_is_exit_3(tmp_path):
    _, done = go(tmp_path, {"of": "EndsEarly", "deterministic": True}, 3)
    assert "ended early, after 48 of 96" in done.err


def test_a_source_that_replays_shorter_is_exit_3(tmp_path):
    go(tmp_path, {"of": "shrinks", "deterministic": True}, 143, learner="ridge")
    _, done = go(tmp_path, {"of": "shrinks", "deterministic": True}, 3, learner="ridge")
    assert "ended early when it was read again" in done.err


def test_a_source_that_leaves_records_out_is_exit_3(tmp_path):
    _, done = go(tmp_path, {"of": "jumping", "args": {"by": 5}}, 3)
    assert "from offset 8 to 13" in done.err
    _run, _ = go(tmp_path, {"of": "jumping", "args": {"by": -5}}, run_dir="runs/back")
    offsets = [record["offset"] for record in lines(tmp_path / "runs" / "back", "predictions")]
    assert offsets == list(range(len(offsets)))


def test_a_stream_that_cannot_be_replayed_says_so_and_is_not_resumed(tmp_path):
    _, done = go(tmp_path, {"of": "once"}, 143)
    assert "cannot be replayed" in done.err
    _, done = go(tmp_path, {"of": "once"}, 4)
    assert "cannot go back there" in done.err
    assert "--fresh" in done.err


def test_a_guarantee_that_a_source_cannot_carry_is_refused_before_anything_runs(tmp_path):
    demanded = {"every_samples": 16, "delivery": "exactly_once"}
    run, done = go(tmp_path, {"of": "once"}, 2, checkpoint=demanded)
    assert "stream.yaml:1:" in done.err
    assert "checkpoint.delivery: once delivers at most once" in done.err
    assert not [path.name for path in run.glob("*") if path.name not in {"lock", ".lock"}]


@pytest.mark.parametrize("source", [{"of": "Pictures"}, {"of": "shrinks", "deterministic": True}])
def test_a_source_that_can_be_replayed_carries_it(tmp_path, source):
    code = 143 if source["of"] == "shrinks" else 0  # it stops itself the first time
    go(tmp_path, source, code, checkpoint={"every_samples": 16, "delivery": "exactly_once"})


@pytest.mark.parametrize("about", ["holdout", pytest.param("classes", marks=pytest.mark.slow)])
def test_a_source_that_raises_when_asked_about_itself_is_exit_3(tmp_path, about):
    _, done = go(tmp_path, {"of": "Mute", "args": {"about": about}}, 3)
    assert "Mute cannot be inspected" in done.err

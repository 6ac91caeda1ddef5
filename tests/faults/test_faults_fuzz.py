"""Fuzzers on what comes from outside: run directories, YAML, iterators, images. No traceback, no hang."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fault_runs import newest_state, streamcl, write_config
from fuzzing import DAMAGE, ITEM, QUIET, damage, sound
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from streamcl.errors import BadRecord, SourceError
from streamcl.events import Batch
from streamcl.testing import FakeLearner
from streams.offsets import OffsetChecked
from streams.user.images import ImageLimits, decode
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource

pytestmark = pytest.mark.faults


# -- the run directory -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A folder with a YAML file and a run that was stopped half-way, and has a report."""
    folder = tmp_path_factory.mktemp("stopped")
    write_config(folder, learner="ridge", checkpoint={"every_samples": 16, "keep": 2})
    learn = "streamcl.learners.ridge:RidgeLearner.learn"
    hook = ("fault_runs:signal_at", {"point": learn, "times": 1})
    for _ in range(3):
        assert streamcl("run", "stream.yaml", folder=folder, hooks=(hook,)).code == 143
    assert streamcl("report", "runs/stream", folder=folder).code == 0
    assert 32 <= newest_state(folder / "runs/stream")["progress"]["offset"] < 96
    return folder


def damaged_run_is_survived(stopped: Path, damages) -> None:
    folder = stopped.with_name(stopped.name + "-damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stopped, folder)
    run = folder / "runs" / "stream"
    for which, kind, where, byte in damages:
        files = sorted(path for path in run.rglob("*") if path.is_file())
        damage(files[int(which * len(files))], kind, where, byte)
    for command in ("doctor", "status", "report"):
        sound(streamcl(command, "runs/stream", folder=folder), {0, 1, 2, 4, 6})
    sound(streamcl("run", "stream.yaml", folder=folder), {0, 2, 4, 6})
    sound(streamcl("run", "stream.yaml", "--fresh", folder=folder), {0, 2})


@pytest.mark.long
@settings(max_examples=4, **QUIET)
@given(st.lists(DAMAGE, min_size=1, max_size=2))
def test_a_damaged_run_directory_is_never_a_surprise(stopped, damages):
    damaged_run_is_survived(stopped, damages)


@pytest.mark.slow
@settings(max_examples=60, phases=[Phase.generate], **(QUIET | {"derandomize": False}))
@given(st.lists(DAMAGE, min_size=1, max_size=3))
def test_many_damaged_run_directories(stopped, damages):
    damaged_run_is_survived(stopped, damages)


# -- the YAML ----------------------------------------------------------------------------------------------


@pytest.mark.long
@settings(max_examples=15, **QUIET)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from("\t\0:{}[]&*!|>%@`'\"#-,\n é\ud7ff7x"), st.booleans())
    )
)
def test_a_mutated_yaml_is_good_or_exit_2_with_a_place(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("yaml")
    text = json.dumps(json.loads(write_config(folder).read_text()), indent=1)
    for where, mark, replace in changes:
        at = int(where * len(text))
        text = text[:at] + mark + text[at + replace :]
    (folder / "stream.yaml").write_text(text)
    done = streamcl("validate", "stream.yaml", folder=folder, seconds=120)
    sound(done, {0, 2})
    assert done.code == 0 or "stream.yaml:" in done.err


# -- iterators ---------------------------------------------------------------------------------------------


@settings(max_examples=150, **QUIET)
@given(st.lists(ITEM, max_size=6), st.integers(1, 4))
def test_whatever_an_iterator_yields_the_stream_is_dense_or_a_source_error(items, size):
    learner, end = FakeLearner(), 0
    with contextlib.suppress(SourceError):
        for event in OffsetChecked(
            IterableSource(lambda: iter(items), batch_size=size, policy=RecordPolicy())
        ):
            assert isinstance(event, Batch)
            assert event.offset == end
            end = event.end
            for sample in event.samples:
                assert sample.image.dtype == np.uint8
                assert sample.image.ndim == 3
                assert sample.image.shape[2] == 3
                assert sample.label is None or isinstance(sample.label, str)
            learner.learn(event)


# -- image files -------------------------------------------------------------------------------------------


@settings(max_examples=120, **QUIET)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_mutated_image_files_are_pixels_or_bad_records(kind, changes, kept):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    for where, byte in changes:
        data[int(where * len(data))] = byte
    limits = ImageLimits(max_pixels=10_000, max_side=1000)
    with contextlib.suppress(BadRecord):
        pixels = decode(bytes(data[: int(kept * len(data)) if kept < 0.9 else None]), limits)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.size <= 3 * 10_000

"""The gallery: bounded, restartable, and without a trace of what was purged."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from streamcl.events import PredictionRecord, Sample
from streamcl.storage.files import Disk
from streamcl.storage.thumbnails import Thumbnails, thumbnail


def batch(start: int, count: int = 4) -> tuple[list[Sample], list[PredictionRecord]]:
    image = np.full((120, 200, 3), 7, np.uint8)
    samples = [
        Sample(f"id-{i}", image, label=f"class {i}", subject="Ada") for i in range(start, start + count)
    ]
    return samples, [PredictionRecord(s.id, 0, s.label, None, 0.25) for s in samples]


def pictures(folder) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(120, 200, (96, 58)), (8, 8, (8, 8)), (1, 5000, (96, 1)), (96, 96, (96, 96))],
)
def test_thumbnails_keep_their_proportions(height, width, size):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    assert Image.open(io.BytesIO(thumbnail(image))).size == size


def test_thumbnails_of_views_are_those_of_copies():
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    assert thumbnail(image[::-1, ::-1]) == thumbnail(image[::-1, ::-1].copy())


def test_the_first_few_of_each_shift_are_kept(tmp_path):
    gallery = Thumbnails(tmp_path / "samples", per_shift=5)
    for start in (0, 4, 8):
        gallery.keep(100, *batch(start))
    gallery.keep(900, *batch(50, 1))
    assert [entry["offset"] for entry in gallery.entries] == [100] * 5 + [900]
    assert gallery.entries[0]["label"] == "class 0"
    assert gallery.entries[0]["predicted"] is None
    name = hashlib.sha256(b"id-0").hexdigest() + ".png"
    assert gallery.entries[0]["file"] == name
    assert pictures(tmp_path / "samples") == {entry["file"] for entry in gallery.entries}
    written = (tmp_path / "samples" / "index.json").read_text()
    assert json.loads(written) == [dict(entry) for entry in gallery.entries]
    assert "id-" not in written
    assert "Ada" not in written


def test_a_shift_at_every_step_does_not_fill_the_disk(tmp_path):
    gallery = Thumbnails(tmp_path, per_shift=1, max_shifts=3)
    for step in range(50):
        gallery.keep(step, *batch(step))
    assert len(gallery.entries) == len(pictures(tmp_path)) == 3


def test_purged_samples_leave_no_trace(tmp_path):
    gallery = Thumbnails(tmp_path, per_shift=4)
    gallery.keep(1, *batch(0))
    gallery.keep(2, *batch(3))
    assert gallery.purge(["id-3", "id-0", "never seen"]) == 2
    assert not {"class 0", "class 3"} & {entry["label"] for entry in gallery.entries}
    assert "class 3" not in (tmp_path / "index.json").read_text()
    assert pictures(tmp_path) == {entry["file"] for entry in gallery.entries}
    assert gallery.purge(["id-3"]) == 0


def test_a_forgotten_class_has_no_thumbnails_and_is_named_nowhere(tmp_path):
    gallery = Thumbnails(tmp_path, per_shift=4)
    samples, predictions = batch(0)
    gallery.keep(1, samples, [replace(each, predicted="class 1") for each in predictions])
    gallery.forget_class("class 1")
    assert [entry["label"] for entry in gallery.entries] == ["class 0", "class 2", "class 3"]
    assert "class 1" not in (tmp_path / "index.json").read_text()
    assert pictures(tmp_path) == {entry["file"] for entry in gallery.entries}


def test_purging_finds_what_a_crash_left(tmp_path):
    Thumbnails(tmp_path).keep(1, *batch(0))
    assert Thumbnails(tmp_path).purge(["id-0"]) == 1


def test_a_restart_keeps_what_was_committed_and_sweeps_the_rest(tmp_path):
    gallery = Thumbnails(tmp_path, per_shift=2)
    gallery.keep(1, *batch(0))
    state = json.loads(json.dumps(gallery.state_dict()))
    gallery.keep(2, *batch(10))
    (tmp_path / "mine.png").write_bytes(b"")
    again = Thumbnails(tmp_path, per_shift=2)
    again.load_state_dict(state)
    assert len(again.entries) == 2
    assert pictures(tmp_path) == {entry["file"] for entry in again.entries} | {"mine.png"}
    assert len(json.loads((tmp_path / "index.json").read_text())) == 2


def test_a_restart_before_the_first_shift_makes_no_folder(tmp_path):
    Thumbnails(tmp_path / "samples").load_state_dict({"entries": []})
    assert not (tmp_path / "samples").exists()


def test_a_full_disk_surfaces(tmp_path):
    class Full(Disk):
        def write(self, handle, data):
            raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="full"):
        Thumbnails(tmp_path, disk=Full()).keep(1, *batch(0))
    assert not list(tmp_path.iterdir())

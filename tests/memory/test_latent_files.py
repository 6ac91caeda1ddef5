"""Where stored tokens lie: in files without a name; a removal replaces those of its samples alone."""

import resource
from pathlib import Path

import numpy as np
import pytest

from streamcl.errors import CheckpointError
from streamcl.memory.latent_store import LatentStore
from streamcl.storage import files
from streamcl.storage.plain_state import state_hash
from streamcl.testing import in_child

ROWS = 8  # of a segment, in the mean


def tokens_of(offsets):
    """Tokens of which each sample's say whose they are."""
    return np.stack([np.random.default_rng(offset).normal(0, 3, (5, 8)) for offset in offsets]).astype(
        np.float32
    )


def filled(folder, count=96, dtype="int8", batch=6):
    store = LatentStore(dtype, b"key", segment_rows=ROWS, folder=folder)
    for start in range(0, count, batch):
        offsets = range(start, start + batch)
        places = [store.place(f"s{offset}") for offset in offsets]
        store.add(tokens_of(offsets), ["ant"] * batch, offsets, places, trainings=0, weight=1)
    return store


def segments_of(store):
    return [part["codes"] for part in store.state_dict()["segments"]]


def maps_of(folder):
    """The maps of this process that lie in files of a folder."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize("dtype", ["int4", "int8", "float16"])
def test_full_segments_are_mapped_from_files_without_a_name(tmp_path, dtype):
    store = filled(tmp_path, dtype=dtype)
    *full, last = segments_of(store)
    assert len(full) >= 6
    assert not any(segment.flags.writeable for segment in full)
    assert last.flags.writeable
    assert {len(segment) for segment in full} <= set(range(ROWS // 2, 3 * ROWS))
    assert list(tmp_path.iterdir()) == []
    assert len(maps_of(tmp_path)) >= len(full)
    assert all("(deleted)" in line and line.split()[1].startswith("r--") for line in maps_of(tmp_path))
    del store, full, last
    assert maps_of(tmp_path) == []


@pytest.mark.parametrize("dtype", ["int4", "int8", "float16"])
def test_the_same_tokens_come_out_wherever_they_lie(tmp_path, dtype):
    mapped, in_memory = filled(tmp_path, dtype=dtype), filled(None, dtype=dtype)
    assert state_hash(mapped.state_dict()) == state_hash(in_memory.state_dict())
    for one, other in zip(mapped.groups, in_memory.groups, strict=True):
        assert np.array_equal(one.tokens.restored(), other.tokens.restored())
        expected = mapped.round_trip(tokens_of(one.offsets.tolist()))
        assert np.array_equal(one.tokens.restored(), expected)


def test_a_removal_leaves_the_segments_of_others_as_they_are(tmp_path):
    store = filled(tmp_path)
    before = segments_of(store)
    store.remove([40])
    after = segments_of(store)
    same = [one for one in before if any(one is other for other in after)]
    assert len(before) - 2 <= len(same) < len(before)
    for each in segments_of(filled(tmp_path)):
        assert sum(np.array_equal(each, other) for other in after) <= 1


def test_nothing_of_a_removed_sample_is_left_in_a_mapped_file(tmp_path):
    store = filled(tmp_path)
    (row,) = [group.tokens.select([40 % 6])[:] for group in store.groups if 40 in group.offsets]
    content = row.codes.tobytes()
    assert any(content in segment.tobytes() for segment in segments_of(store))
    store.remove([40])
    assert len(maps_of(tmp_path)) == len(segments_of(store)) - 1  # the earlier file is gone
    assert not any(content in segment.tobytes() for segment in segments_of(store))


def test_a_copy_has_the_same_arrays_and_goes_on_alike(tmp_path):
    store, other = filled(tmp_path), LatentStore("int8", b"key", segment_rows=ROWS, folder=tmp_path)
    other.load_state_dict(store.state_dict())
    pairs = zip(segments_of(store)[:-1], segments_of(other)[:-1], strict=True)
    assert all(one is loaded for one, loaded in pairs)
    for each in (store, other):
        each.add(tokens_of([96, 97]), ["bee"] * 2, [96, 97], [0.5, 0.6], trainings=1, weight=1)
        each.thin(0.5, trainings=1, weight=2)
    assert state_hash(store.state_dict()) == state_hash(other.state_dict())


def test_a_state_of_an_earlier_version_is_taken(tmp_path):
    store, other = filled(None), LatentStore("int8", b"key", segment_rows=ROWS, folder=tmp_path)
    state = store.state_dict()
    segments = state.pop("segments")
    state |= {name: np.concatenate([part[name] for part in segments]) for name in ("codes", "scales")}
    other.load_state_dict(state)
    assert state_hash(other.state_dict()) == state_hash(store.state_dict())
    other.remove([1])
    assert len(maps_of(tmp_path)) == len(segments_of(other)) - 1


def test_a_selection_of_a_group_copies_no_tokens(tmp_path):
    store = filled(tmp_path)
    whole = store.entered_before(1)
    assert len(whole) == len(store) == 96
    assert whole.tokens.nbytes == store.nbytes
    rows = np.array([90, 3, 3, 41])
    assert np.array_equal(
        whole.tokens[rows].restored(), store.round_trip(tokens_of(whole.offsets[rows].tolist()))
    )


@pytest.mark.faults
def test_a_disk_without_room_is_an_error_and_the_store_stays_as_it_was(tmp_path):
    def fill():
        store = filled(tmp_path, count=6)
        before = state_hash(store.state_dict())
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        offsets = range(6, 60)
        with pytest.raises(CheckpointError, match=f"could not be written to {tmp_path}: File too large"):
            store.add(tokens_of(offsets), ["ant"] * 54, offsets, [0.5] * 54, trainings=0, weight=1)
        assert state_hash(store.state_dict()) == before

    assert in_child(fill) == 0


def test_a_file_that_gets_a_name_for_a_moment_is_one_that_a_sweep_removes(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "tempfile.TemporaryFile", lambda **options: made.append(options) or (tmp_path / "x").open("w+b")
    )
    filled(tmp_path, count=30)
    assert made
    assert all(options["prefix"].startswith(files.TEMPORARY) for options in made)
    assert {options["dir"] for options in made} == {tmp_path}

"""Snapshots for serving: complete or absent, numbered for good, and none is left of before an erasure."""

import numpy as np
import pytest

from streamcl.storage import snapshots
from streamcl.storage.snapshots import (
    KEEP_SNAPSHOTS,
    Snapshots,
    TornSnapshot,
    list_snapshots,
    load_snapshot,
    newest_info,
)

STATE = {"W": np.arange(12.0).reshape(3, 4), "classes": ["ant", "bee"], "nothing": None}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "snapshots"


def test_a_snapshot_comes_back_bit_equal_with_its_version(folder):
    info = Snapshots(folder).publish(64, 2, STATE, {"finished": False})
    (path,) = list_snapshots(folder)
    found = load_snapshot(path)
    assert found.info == info == newest_info(folder)
    assert (info.number, info.offset, info.step, info.facts) == (1, 64, 2, {"finished": False})
    assert found.state["W"].tobytes() == STATE["W"].tobytes()
    assert list(found.state) == list(STATE)
    assert {each.stat().st_mode & 0o222 for each in path.iterdir()} == {0}


def test_the_newest_few_stay(folder):
    published = Snapshots(folder)
    for offset in range(KEEP_SNAPSHOTS + 2):
        published.publish(offset, offset, STATE)
    assert [path.name for path in list_snapshots(folder)] == [f"snapshot-{k:08d}" for k in (3, 4, 5)]


def test_a_number_is_never_used_again(folder):
    Snapshots(folder).publish(1, 1, STATE)
    assert Snapshots(folder).purge() == 1
    assert newest_info(folder) is None
    assert Snapshots(folder).publish(1, 1, STATE).number == 2


def test_a_purge_leaves_only_what_this_process_published_last(folder):
    Snapshots(folder).publish(1, 1, STATE)
    published = Snapshots(folder)
    published.publish(2, 2, STATE)
    published.publish(2, 2, STATE)
    assert published.purge() == 2
    assert [snapshots.number_of(path) for path in list_snapshots(folder)] == [3]


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_snapshot_that_was_cut_short_is_refused(folder, name, share):
    published = Snapshots(folder)
    published.publish(1, 1, STATE)
    published.publish(2, 2, STATE)
    path = list_snapshots(folder)[-1]
    whole = (path / name).read_bytes()
    (path / name).unlink()
    (path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TornSnapshot):
        load_snapshot(path)
    assert newest_info(folder).number == (1 if name == "manifest.json" else 2)


def test_a_reader_never_sees_a_part(folder):
    class Stopping(snapshots.UnsyncedDisk):
        def replace(self, old, new):
            assert list_snapshots(folder) == []
            super().replace(old, new)

    Snapshots(folder, disk=Stopping()).publish(1, 1, STATE)
    assert len(list_snapshots(folder)) == 1

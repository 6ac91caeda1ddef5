"""Arrays that do not change: linked and not written again, mapped, and damaged for one checkpoint only."""

import contextlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from checkpoint_faults import assert_kills_leave_old_or_new, assert_power_losses_leave_old_or_new
from log_messages import logged

from streamcl.errors import CheckpointError
from streamcl.storage.array_files import SHARED_BYTES
from streamcl.storage.canonical_json import canonical_json, sha256_of_json
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.checkpoint_format import verify_checkpoint
from streamcl.storage.files import DISK, Disk
from streamcl.storage.plain_state import state_hash
from streamcl.testing import FaultyDisk, durable_calls

COMMON = "array-*.bin"


def frozen(seed, count=SHARED_BYTES):
    array = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    array.setflags(write=False)
    return array


def state(step):
    """Two arrays that do not change, of which one is new at each step, and one that does."""
    return {
        "old": frozen(0).view(np.float16).reshape(-1, 8),
        "new": [frozen(step)],
        "sum": np.full(3 + step, step, np.float32),
    }


def open_at(folder, disk=DISK, keep=2):
    return Checkpoints(folder, fingerprint={}, keep=keep, disk=disk)


def filled(folder, steps=(1, 2, 3), **options):
    checkpoints = open_at(folder, **options)
    for step in steps:
        checkpoints.save(10 * step, step, state(step))
    return checkpoints


def members(path):
    return {each.name: each for each in path.glob(COMMON)}


def inodes(path):
    return {each.stat().st_ino for each in path.glob(COMMON)}


def assert_whole(folder, allowed):
    for path in open_at(folder).paths():
        verify_checkpoint(path)
    loaded = open_at(folder).latest()
    assert loaded is not None
    assert loaded.step in allowed
    assert state_hash(loaded.state) == state_hash(state(loaded.step))
    return loaded.step


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "checkpoints"
    filled(folder)
    return folder


def copy_of(folder, to):
    """A copy in which the files of two checkpoints that are one are one."""
    shutil.rmtree(to, ignore_errors=True)
    seen = {}

    def copy(source, target):
        known = seen.setdefault(Path(source).stat().st_ino, Path(target))
        return shutil.copy2(source, target) if known == Path(target) else Path(target).hardlink_to(known)

    shutil.copytree(folder, to, copy_function=copy)
    return to


class CountingDisk(Disk):
    def __init__(self):
        self.written, self.links = 0, 0

    def write(self, handle, data):
        self.written += len(data)
        return super().write(handle, data)

    def link(self, old, new):
        self.links += 1
        super().link(old, new)


# -- what is shared ----------------------------------------------------------------------------------------


def test_an_array_that_does_not_change_is_a_member_of_its_own(tmp_path):
    saved = open_at(tmp_path).save(10, 1, state(1))
    assert len(members(saved.path)) == 2
    assert saved.bytes == sum(each.stat().st_size for each in saved.path.iterdir())
    manifest = json.loads((saved.path / "manifest.json").read_bytes())
    assert manifest["format"] == 2
    assert {each["member"] for each in manifest["arrays"].values()} == members(saved.path).keys()
    assert all(name == f"array-{manifest['members'][name]['sha256']}.bin" for name in members(saved.path))
    assert_whole(tmp_path, {1})


def test_small_arrays_and_those_that_change_are_not(tmp_path):
    small, writable = frozen(1, SHARED_BYTES - 1), frozen(2).copy()
    saved = open_at(tmp_path).save(0, 0, {"small": small, "writable": writable})
    assert members(saved.path) == {}
    assert open_at(tmp_path).latest().state["writable"].flags.writeable


def test_equal_arrays_are_one_file_under_any_shape_and_kind(tmp_path):
    array = frozen(1)
    kept = {"flat": array, "grid": array.view(np.int16).reshape(4, -1), "bools": (array > 9).view()}
    kept["bools"].setflags(write=False)
    saved = open_at(tmp_path).save(0, 0, kept)
    assert len(members(saved.path)) == 2
    assert state_hash(open_at(tmp_path).latest().state) == state_hash(kept)


def test_what_has_not_changed_is_linked_and_not_written(tmp_path):
    checkpoints, disk = filled(tmp_path), CountingDisk()
    open_at(tmp_path, disk).save(40, 4, state(4))
    assert disk.links == 1
    assert disk.written < 2 * SHARED_BYTES
    last, newest = checkpoints.paths()
    assert len(inodes(newest)) == 2
    assert_whole(tmp_path, {4})
    shutil.rmtree(last)
    assert_whole(tmp_path, {4})  # a checkpoint is whole by itself


def test_two_checkpoints_in_a_row_have_no_file_in_common(tmp_path):
    checkpoints = open_at(tmp_path)
    before, seen = set(), []
    for step in range(1, 7):
        now = inodes(checkpoints.save(step, step, state(step)).path)
        assert not now & before
        before = now
        seen.append(now)
    assert seen[4] & seen[2]
    assert seen[5] & seen[3]


def test_where_one_is_kept_the_newest_is_the_one_to_link_to(tmp_path):
    filled(tmp_path, steps=(1, 2), keep=1)
    disk = CountingDisk()
    open_at(tmp_path, disk, keep=1).save(30, 3, state(3))
    assert disk.links == 1
    assert_whole(tmp_path, {3})


class WithoutLinks(Disk):
    def link(self, old, new):
        raise PermissionError("no links here")


def test_where_the_file_system_has_no_links_all_is_written(tmp_path):
    filled(tmp_path)
    open_at(tmp_path, WithoutLinks()).save(40, 4, state(4))
    assert_whole(tmp_path, {4})
    assert {each.stat().st_nlink for each in members(open_at(tmp_path).paths()[-1]).values()} == {1}


# -- what is loaded ----------------------------------------------------------------------------------------


def test_such_an_array_is_mapped_and_cannot_be_changed(base):
    loaded = open_at(base).latest().state
    assert not loaded["old"].flags.writeable
    assert loaded["sum"].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        loaded["old"][0] = 1
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(base) in line]
    assert maps
    assert all(line.split()[1].startswith("r--") for line in maps)


def test_a_loaded_array_is_linked_again(base, tmp_path):
    folder, disk = copy_of(base, tmp_path / "copy"), CountingDisk()
    loaded = open_at(folder).latest().state
    open_at(folder, disk).save(40, 4, loaded)
    assert disk.links == 1  # the other one is not in the checkpoint before the newest
    assert state_hash(open_at(folder).latest().state) == state_hash(loaded)


def test_a_checkpoint_of_format_1_is_still_read(base, tmp_path):
    folder = tmp_path / "older"
    kept = {"weights": np.arange(6.0)}
    path = open_at(folder).save(10, 1, kept).path
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"], manifest["arrays"]
    manifest["format"] = 1
    whole = canonical_json({**manifest, "sha256": sha256_of_json(manifest)})
    (path / "manifest.json").write_bytes(whole)
    assert state_hash(open_at(folder).latest().state) == state_hash(kept)


# -- damage ------------------------------------------------------------------------------------------------


def flip(path):
    with path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))


def to_link(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.faults
@pytest.mark.parametrize(
    "change",
    [flip, lambda path: os.truncate(path, 9), lambda path: path.unlink(), to_link, to_pipe],
    ids=["flip", "cut", "drop", "link", "pipe"],
)
def test_damage_is_named_and_the_one_before_is_used(base, tmp_path, change):
    folder = copy_of(base, tmp_path / "damaged")
    name, path = sorted(members(open_at(folder).paths()[-1]).items())[0]
    change(path)
    with logged() as messages:
        assert open_at(folder).latest().step == 2
    assert len(messages) == 1
    assert name in messages[0]


@pytest.mark.faults
def test_a_damaged_file_does_not_spread_by_links(base, tmp_path):
    folder = copy_of(base, tmp_path / "damaged")
    before = open_at(folder).paths()[0]
    for path in members(before).values():
        flip(path)
    open_at(folder).save(40, 4, state(4))
    assert not before.exists()
    assert assert_whole(folder, {4}) == 4


@pytest.mark.faults
def test_an_array_whose_file_was_changed_after_it_was_loaded_is_not_saved(base, tmp_path):
    folder = copy_of(base, tmp_path / "changed")
    checkpoints = open_at(folder)
    loaded = checkpoints.latest().state
    for path in members(checkpoints.paths()[-1]).values():
        flip(path)
    with pytest.raises(CheckpointError, match=r"array-[0-9a-f]{64}\.bin has been changed"):
        checkpoints.save(40, 4, loaded)
    with logged():
        assert open_at(folder).latest().step == 2


def rewritten(path, change):
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    change(manifest)
    whole = canonical_json({**manifest, "sha256": sha256_of_json(manifest)})
    (path / "manifest.json").write_bytes(whole)


def entry_with(**fields):
    def change(manifest):
        next(iter(manifest["arrays"].values())).update(fields)

    return change


def outside(manifest):
    name = next(name for name in manifest["members"] if name.startswith("array-"))
    manifest["members"]["../outside"] = manifest["members"].pop(name)


@pytest.mark.faults
@pytest.mark.parametrize(
    "change",
    [
        entry_with(dtype="|O"), entry_with(dtype="<f8,<f8"), entry_with(dtype=3), entry_with(shape=[3]),
        entry_with(shape="x"), entry_with(shape=[-1]), entry_with(shape=[1 << 70]),
        entry_with(member="state.json"), entry_with(member="../outside"), entry_with(member=None), outside,
        lambda manifest: manifest.update(arrays=[]), lambda manifest: manifest.update(arrays={"0": 1}),
        lambda manifest: manifest["arrays"].popitem(), lambda manifest: manifest["arrays"].clear(),
    ],
)  # fmt: skip
def test_a_forged_manifest_is_damage(base, tmp_path, change):
    folder = copy_of(base, tmp_path / "forged")
    rewritten(open_at(folder).paths()[-1], change)
    with logged() as messages:
        assert open_at(folder).latest().step == 2
    assert len(messages) == 1


# -- faults of the disk ------------------------------------------------------------------------------------


def save_fourth(folder, disk):
    return open_at(folder, disk).save(40, 4, state(4))


def places(base, tmp_path):
    return durable_calls(lambda disk: save_fourth(copy_of(base, tmp_path / "clean"), disk))


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["eio", "enospc", "short"])
def test_an_error_at_any_call_leaves_old_or_new(base, tmp_path, kind):
    calls = places(base, tmp_path)
    assert any(call.startswith("link") for call in calls)
    steps = set()
    for number, call in enumerate(calls, start=1):
        folder = copy_of(base, tmp_path / "faulty")
        with contextlib.suppress(CheckpointError):
            save_fourth(folder, FaultyDisk(number, kind))
        step = assert_whole(folder, {3, 4})
        assert step == 4 or len(open_at(folder).paths()) == 2, call
        steps.add(step)
    assert steps == {3, 4}


@pytest.mark.faults
def test_a_kill_at_any_call_leaves_old_or_new_and_the_next_start_sweeps(base, tmp_path):
    calls, copy = places(base, tmp_path), partial(copy_of, base, tmp_path / "killed")
    assert_kills_leave_old_or_new(
        calls, copy, save_fourth, assert_whole, lambda folder: open_at(folder).sweep(), {3, 4}
    )


@pytest.mark.faults
@pytest.mark.parametrize("survivors", [None, 0, 1, 2])
def test_a_loss_of_power_at_any_call_leaves_old_or_new(base, tmp_path, survivors):
    calls, copy = places(base, tmp_path), partial(copy_of, base, tmp_path / "dark")
    assert_power_losses_leave_old_or_new(calls, copy, save_fourth, assert_whole, {3, 4}, survivors)


# -- erasure -----------------------------------------------------------------------------------------------


def test_after_a_purge_no_file_holds_an_array_that_is_gone(tmp_path):
    checkpoints = filled(tmp_path, steps=(1, 1, 1))
    saved = checkpoints.save(20, 2, state(2))
    checkpoints.purge_before(saved.path)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(frozen(2).tobytes() in path.read_bytes() for path in found)
    assert not [path for path in found if frozen(1).tobytes()[:64] in path.read_bytes()]

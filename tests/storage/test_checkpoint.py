"""Checkpoints: every fault at every durable call, every damage, every state that a learner may have."""

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from checkpoint_faults import assert_kills_leave_old_or_new, assert_power_losses_leave_old_or_new
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from log_messages import logged

from streamcl.errors import CheckpointError
from streamcl.storage import checkpoint_format as module
from streamcl.storage.canonical_json import canonical_json, sha256_of_json
from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints
from streamcl.storage.checkpoint_format import verify_checkpoint
from streamcl.storage.files import DISK, Disk
from streamcl.storage.plain_state import state_hash
from streamcl.testing import FaultyDisk, PowerLoss, durable_calls, in_child

FINGERPRINT = {"backbone": "vit_small", "config": "ab12"}


def state(step):
    """Different at every step, also in size, so that a mix of two is neither."""
    return {
        "learner": {"weights": np.full((step + 1, 3), step, np.float32), "classes": ["cat"] * step},
        "random": list(random.Random(step).getstate()[1]),
        "generator": np.random.default_rng(step).bit_generator.state,
        "detector": {"mean": float("nan"), "step": step},
    }


def open_at(folder, disk=DISK, keep=2, **changed):
    return Checkpoints(folder, fingerprint={**FINGERPRINT, **changed}, keep=keep, disk=disk)


def filled(folder, steps=(1, 2)):
    checkpoints = open_at(folder)
    for step in steps:
        checkpoints.save(step * 10, step, state(step))
    return checkpoints


def newest(folder, said=None, **options):
    """The newest good checkpoint; its messages are added to `said`, without which there must be none."""
    with logged() as messages:
        try:
            loaded = open_at(folder).latest(**options)
        finally:
            if said is not None:
                said += messages
    assert said is not None or messages == []
    return loaded


def assert_whole(folder, allowed):
    """What loads is one of the allowed steps, complete, and nothing under a checkpoint's name is damaged."""
    for path in open_at(folder).paths():
        verify_checkpoint(path)
    loaded = newest(folder)
    step = None if loaded is None else loaded.step
    assert step in allowed
    if loaded is not None:
        assert loaded.offset == step * 10
        assert state_hash(loaded.state) == state_hash(state(step))
    return step


def copy_of(folder, to):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


# -- what comes back ---------------------------------------------------------------------------------------


def test_the_newest_comes_back_and_the_older_ones_go(tmp_path):
    checkpoints = filled(tmp_path / "checkpoints", steps=range(5))
    assert [path.name for path in checkpoints.paths()] == [
        "checkpoint-00000004-step-3",
        "checkpoint-00000005-step-4",
    ]
    assert assert_whole(tmp_path / "checkpoints", {4}) == 4


def test_nothing_saved_yet_is_none(tmp_path):
    assert newest(tmp_path / "missing") is None
    (tmp_path / "empty").mkdir()
    assert newest(tmp_path / "empty", strict=True) is None


def test_two_checkpoints_of_one_step_do_not_collide(tmp_path):
    filled(tmp_path, steps=(3, 3))
    assert assert_whole(tmp_path, {3}) == 3


def test_saved_says_size_and_time(tmp_path):
    saved = open_at(tmp_path).save(0, 0, state(0))
    assert saved.bytes == sum(member.stat().st_size for member in saved.path.iterdir())
    assert saved.seconds > 0


def test_keep_must_leave_something(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, fingerprint={}, keep=0)


arrays = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="="),
        hnp.unsigned_integer_dtypes(endianness="="),
        hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), arrays)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4) | st.sampled_from(["$array", "$int", "$$", "a/b"]), inner),
    ),
    max_leaves=8,
)


def assert_identical(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_identical(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_identical(one, other)
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()
        assert right.flags.writeable
    else:
        assert repr(left) == repr(right)


@pytest.mark.long
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(kept=st.dictionaries(st.text(max_size=4), values, max_size=4))
def test_any_state_comes_back_bit_equal(tmp_path, kept):
    folder = tmp_path / "any"
    open_at(folder).save(1, 1, kept)
    loaded = newest(folder)
    assert_identical(kept, loaded.state)
    assert state_hash(kept) == state_hash(loaded.state)
    shutil.rmtree(folder)


def test_random_generators_survive(tmp_path):
    dice, generator = random.Random(5), np.random.default_rng(5)
    kept = {"python": dice.getstate(), "numpy": generator.bit_generator.state}
    open_at(tmp_path).save(0, 0, kept)
    expected = [dice.random(), generator.random()]
    loaded = newest(tmp_path).state
    dice.setstate(loaded["python"])
    generator.bit_generator.state = loaded["numpy"]
    assert [dice.random(), generator.random()] == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float32(1), "float32"),
        (np.int64(1), "int64"),
        (object(), "object"),
        ({1: 2}, "int"),
        ({"a"}, "set"),
        (np.array(["a"]), "array of <U1"),
        (np.array([None]), "array of object"),
        (np.array([1j]), "array of complex128"),
        (b"x", "bytes"),
    ],
)
def test_what_a_state_cannot_hold_is_named(tmp_path, value, kind):
    with pytest.raises(TypeError, match=rf"{kind} at /head"):
        open_at(tmp_path).save(0, 0, {"head": value})
    assert list(tmp_path.iterdir()) == []


def test_hash_sees_every_difference_and_no_order_of_keys():
    same = [{"a": 1, "b": [2.0]}, {"b": [2.0], "a": 1}]
    assert state_hash(same[0]) == state_hash(same[1])
    different = [
        {"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": None}, {"a": [1]}, {"a": (1,)}, {"a": 0.0},
        {"a": -0.0}, {"a": np.array(1)}, {"a": np.array([1])}, {"a": np.array([1], np.int32)},
        {"a": np.zeros((2, 3))}, {"a": np.zeros((3, 2))}, {"a": 1 << 70}, {"a": hex(1 << 70)}, {"a": {}}, {},
    ]  # fmt: skip
    assert len({state_hash(each) for each in different}) == len(different)


def test_hash_does_not_depend_on_memory_layout_or_machine():
    grid = np.arange(6.0).reshape(2, 3)
    hashes = {state_hash({"a": each}) for each in (grid, np.asfortranarray(grid), grid.astype(">f8"))}
    assert hashes == {"a039825bcbf0ec64d2b11cca97ac1eac5cecffd7e5f769c928d008c46802b5c8"}


# -- faults of the disk ------------------------------------------------------------------------------------


def save_third(folder, disk):
    return open_at(folder, disk).save(30, 3, state(3))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "checkpoints"
    filled(folder)
    return folder


def places(base, tmp_path):
    return durable_calls(lambda disk: save_third(copy_of(base, tmp_path / "clean"), disk))


def test_a_save_makes_the_calls_that_durability_needs(base, tmp_path):
    calls = places(base, tmp_path)
    assert len([call for call in calls if call.startswith("fsync")]) == 7
    assert {call.split()[0] for call in calls} == {
        "create", "write", "fsync", "mkdir", "replace", "unlink", "rmdir", "fsync_folder",
    }  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["eio", "enospc", "short"])
def test_an_error_at_any_call_leaves_old_or_new(base, tmp_path, kind):
    steps = set()
    for number, call in enumerate(places(base, tmp_path), start=1):
        folder = copy_of(base, tmp_path / "faulty")
        disk = FaultyDisk(number, kind)
        committed = commits(folder, disk)
        assert disk.fired, call
        step = assert_whole(folder, {2, 3})
        # Before the commit every old one is kept; a failure after it may only be one of tidying up.
        assert (step == 3) == committed, call
        assert committed or len(open_at(folder).paths()) == 2
        steps.add(step)
    assert steps == {2, 3}


def commits(folder, disk):
    """Save on a faulty disk; whether the new checkpoint has its name afterwards."""
    try:
        save_third(folder, disk)
    except CheckpointError as refused:
        error = refused
    else:
        error = None
    assert error is None or isinstance(error.__cause__, OSError)
    return any(path.name.endswith("step-3") for path in open_at(folder).paths())


@pytest.mark.faults
def test_a_failed_sync_voids_the_checkpoint_and_deletes_nothing(base, tmp_path):
    for number, call in enumerate(places(base, tmp_path), start=1):
        if "replace .tmp-" in call:
            break  # from here on the new one is durable, and old ones are being removed
        if not call.startswith("fsync"):
            continue
        folder = copy_of(base, tmp_path / "faulty")
        with pytest.raises(CheckpointError):
            save_third(folder, FaultyDisk(number, "eio"))
        assert [path.name[-1] for path in open_at(folder).paths()] == ["1", "2"]


@pytest.mark.faults
def test_a_kill_at_any_call_leaves_old_or_new_and_the_next_start_sweeps(base, tmp_path):
    calls, copy = places(base, tmp_path), partial(copy_of, base, tmp_path / "killed")
    assert_kills_leave_old_or_new(
        calls, copy, save_third, assert_whole, lambda folder: open_at(folder).sweep(), {2, 3}
    )


@pytest.mark.faults
@pytest.mark.parametrize("survivors", [None, *range(8)])
def test_a_loss_of_power_at_any_call_leaves_old_or_new(base, tmp_path, survivors):
    calls, copy = places(base, tmp_path), partial(copy_of, base, tmp_path / "dark")
    assert_power_losses_leave_old_or_new(calls, copy, save_third, assert_whole, {2, 3}, survivors)


@pytest.mark.faults
def test_what_was_saved_survives_a_loss_of_power(base, tmp_path):
    folder, disk = copy_of(base, tmp_path / "dark"), FaultyDisk()
    save_third(folder, disk)
    disk.lose_power()
    assert assert_whole(folder, {3}) == 3
    assert len(open_at(folder).paths()) == 2


@pytest.mark.faults
def test_the_first_checkpoint_too(tmp_path):
    def save(disk):
        open_at(tmp_path / "run" / "checkpoints", disk).save(30, 3, state(3))

    calls = durable_calls(save)
    for number in range(1, len(calls) + 1):
        for kind in ("eio", "drop_unsynced"):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            with pytest.raises((CheckpointError, PowerLoss)):
                save(FaultyDisk(number, kind))
            assert_whole(tmp_path / "run" / "checkpoints", {None, 3})


class Careless(Disk):
    """Says that it synced folders."""

    def __init__(self, inner):
        self._inner = inner

    def __getattribute__(self, name):
        if name in {"_inner", "fsync_folder"}:
            return super().__getattribute__(name)
        return getattr(super().__getattribute__("_inner"), name)

    def fsync_folder(self, folder):
        pass


@pytest.mark.faults
def test_without_the_sync_of_the_folder_the_loss_of_power_would_be_seen(base, tmp_path):
    folder, disk = copy_of(base, tmp_path / "dark"), FaultyDisk()
    save_third(folder, Careless(disk))
    disk.lose_power()
    assert assert_whole(folder, {2}) == 2  # the checkpoint that was acknowledged is lost


# -- damage ------------------------------------------------------------------------------------------------


def damage_newest(base, to, change):
    folder = copy_of(base, to)
    change(open_at(folder).paths()[-1])
    return folder


def append(member):
    return lambda path: (path / member).write_bytes((path / member).read_bytes() + b" ")


def cut(member, size):
    return lambda path: os.truncate(path / member, size)


def drop(member):
    return lambda path: (path / member).unlink()


def link(member):
    def change(path):
        (path / member).rename(path.parent / "elsewhere")
        (path / member).symlink_to(path.parent / "elsewhere")

    return change


def pipe(member):
    def change(path):
        (path / member).unlink()
        os.mkfifo(path / member)

    return change


MEMBERS = ["arrays.safetensors", "state.json", "manifest.json"]
DAMAGES = [
    *((f"{do.__name__} {name}", do(name), name) for do in (append, drop, link, pipe) for name in MEMBERS),
    *((f"cut {member} to {size}", cut(member, size), member) for size in (0, 1, 40) for member in MEMBERS),
    ("stray", lambda path: (path / "notes.txt").write_text("hello"), "notes.txt"),
    ("stray folder", lambda path: (path / "more").mkdir(), "more"),
    ("huge manifest", lambda path: os.truncate(path / "manifest.json", 1 << 40), "manifest.json"),
    ("nested manifest", lambda path: (path / "manifest.json").write_text("[" * 100_000), "manifest.json"),
    ("list as manifest", lambda path: (path / "manifest.json").write_text("[]"), "manifest.json"),
    ("empty folder", lambda path: [member.unlink() for member in path.iterdir()], "manifest.json"),
    ("file in its place", lambda path: (shutil.rmtree(path), path.write_text("x")), "manifest.json"),
]  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize(
    ("change", "named"), [each[1:] for each in DAMAGES], ids=[each[0] for each in DAMAGES]
)
def test_damage_is_named_and_the_one_before_is_used(base, tmp_path, change, named):
    folder = damage_newest(base, tmp_path / "damaged", change)
    said = []
    assert newest(folder, said).step == 1
    assert len(said) == 1
    assert "checkpoint-00000002-step-2" in said[0]
    assert named in said[0]
    with pytest.raises(CheckpointError, match=named):
        newest(folder, strict=True)


@pytest.mark.faults
def test_a_truncation_is_named_as_one(base, tmp_path):
    folder = damage_newest(base, tmp_path / "cut", cut("arrays.safetensors", 40))
    with pytest.raises(CheckpointError, match=r"arrays\.safetensors has 40 bytes, its manifest says \d+"):
        newest(folder, strict=True)


@pytest.mark.faults
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_flipped_bit_is_found(base, tmp_path, data):
    member = data.draw(st.sampled_from(MEMBERS))
    folder = tmp_path / "flipped"
    if not folder.exists():
        copy_of(base, folder)
    path = open_at(folder).paths()[-1] / member
    good = path.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    said = []
    assert newest(folder, said).step == 1
    assert member in said[0]
    path.write_bytes(good)


@pytest.mark.faults
def test_every_byte_of_the_manifest_counts(base, tmp_path):
    folder = copy_of(base, tmp_path / "flipped")
    path = open_at(folder).paths()[-1]
    good = (path / "manifest.json").read_bytes()
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1
        (path / "manifest.json").write_bytes(flipped)
        with pytest.raises(module.CorruptCheckpoint):
            verify_checkpoint(path)


@pytest.mark.faults
def test_none_usable_is_an_error_never_a_start_from_scratch(base, tmp_path):
    folder = copy_of(base, tmp_path / "damaged")
    for path in open_at(folder).paths():
        os.truncate(path / "arrays.safetensors", 3)
    said = []
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints") as caught:
        newest(folder, said)
    assert len(said) == 2
    assert "--fresh" in caught.value.hint


@pytest.mark.faults
def test_members_of_two_checkpoints_are_never_mixed(base, tmp_path):
    def mix(path):
        shutil.copy(open_at(path.parent).paths()[0] / "arrays.safetensors", path / "arrays.safetensors")

    folder = damage_newest(base, tmp_path / "mixed", mix)
    said = []
    assert newest(folder, said).step == 1
    assert "arrays.safetensors" in said[0]


def rewrite(path, **changes):
    """A manifest that is consistent in itself."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest = {**manifest, **changes}
    del manifest["sha256"]
    manifest["sha256"] = sha256_of_json(manifest)
    (path / "manifest.json").write_bytes(canonical_json(manifest))


@pytest.mark.faults
def test_a_newer_format_is_refused_not_skipped(base, tmp_path):
    folder = damage_newest(base, tmp_path / "newer", lambda path: rewrite(path, format=3, streamcl="9.0"))
    with pytest.raises(CheckpointError, match=r"format 3, written by streamcl 9\.0"):
        newest(folder)


@pytest.mark.faults
@pytest.mark.parametrize(
    "changes",
    [
        {"members": {}},
        {"members": {"../../outside": {"bytes": 1, "sha256": "0"}}},
        {"members": dict.fromkeys(MEMBERS[:2])},
        {"members": 3},
        {"offset": "many"},
        {"fingerprint": None},
        {"format": "x"},
    ],
)
def test_a_forged_manifest_is_damage(base, tmp_path, changes):
    folder = damage_newest(base, tmp_path / "forged", lambda path: rewrite(path, **changes))
    said = []
    assert newest(folder, said).step == 1
    assert len(said) == 1


@pytest.mark.faults
def test_another_configuration_or_backbone_is_named(base):
    with pytest.raises(CheckpointError, match=r"another backbone: .* 'vit_small', .* 'vit_base'"):
        open_at(base, backbone="vit_base").latest()
    with pytest.raises(CheckpointError, match="another config"):
        open_at(base, config="cd34").latest()
    with pytest.raises(CheckpointError, match="another weights: it was written for None"):
        open_at(base, weights="x").latest()


class Bomb:
    def __init__(self, sign):
        self._sign = sign

    def __reduce__(self):
        return (Path.touch, (self._sign,))


@pytest.mark.faults
@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("member", ["arrays.safetensors", "state.json", "manifest.json", "state.pkl"])
def test_a_pickle_is_never_executed(base, tmp_path, member, consistent):
    sign = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(sign))

    def plant(path):
        (path / member).write_bytes(bomb)
        if consistent and member != "manifest.json":
            members = json.loads((path / "manifest.json").read_bytes())["members"]
            facts = {"bytes": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
            rewrite(path, members={**members, member: facts})

    said = []
    loaded = newest(damage_newest(base, tmp_path / "evil", plant), said)
    assert loaded.step == 1
    assert len(said) == 1
    assert not sign.exists()
    pickle.loads(bomb)
    assert sign.exists()  # the bomb was live


@pytest.mark.faults
def test_a_damaged_one_is_no_reserve(base, tmp_path):
    folder = damage_newest(base, tmp_path / "damaged", drop("state.json"))
    checkpoints = open_at(folder)
    assert checkpoints.latest().step == 1
    checkpoints.save(30, 3, state(3))
    assert [path.name[-1] for path in checkpoints.paths()] == ["1", "3"]


# -- the past after an erasure -----------------------------------------------------------------------------


def test_purge_removes_what_is_older_and_says_so(tmp_path):
    checkpoints = open_at(tmp_path, keep=3)
    old = [checkpoints.save(step, step, state(step)).path for step in range(2)]
    saved = checkpoints.save(2, 2, state(2))
    assert checkpoints.purge_before(saved.path) == old
    assert checkpoints.paths() == [saved.path]
    assert list(tmp_path.iterdir()) == [saved.path]
    assert checkpoints.purge_before(saved.path) == []


def test_purge_keeps_the_old_ones_until_a_good_one_replaces_them(base, tmp_path):
    folder = damage_newest(base, tmp_path / "damaged", cut("state.json", 9))
    with pytest.raises(CheckpointError, match=r"state\.json"):
        open_at(folder).purge_before(open_at(folder).paths()[-1])
    assert len(open_at(folder).paths()) == 2


@pytest.mark.faults
def test_a_purge_that_is_cut_short_can_be_done_again(base, tmp_path):
    def purge(folder, disk):
        checkpoints = open_at(folder, disk)
        checkpoints.sweep()
        checkpoints.purge_before(checkpoints.paths()[-1])

    calls = durable_calls(lambda disk: purge(copy_of(base, tmp_path / "clean"), disk))
    for number in range(1, len(calls) + 1):
        folder = copy_of(base, tmp_path / "cut")
        with pytest.raises(PowerLoss):
            purge(folder, FaultyDisk(number, "drop_unsynced"))
        assert assert_whole(folder, {2}) == 2
        purge(folder, DISK)
        assert [path.name for path in folder.iterdir()] == ["checkpoint-00000002-step-2"]


def test_a_purge_takes_what_a_crash_left_too_and_says_what_the_disk_refused(base, tmp_path):
    folder = copy_of(base, tmp_path / "purged")
    (folder / ".tmp-checkpoint-1-ab").mkdir()
    with pytest.raises(CheckpointError, match=r"could not be removed: .*Input/output"):
        open_at(folder, FaultyDisk(1, "eio")).purge_before(open_at(folder).paths()[-1])
    removed = open_at(folder).purge_before(open_at(folder).paths()[-1])
    assert [path.name for path in removed] == ["checkpoint-00000001-step-1", ".tmp-checkpoint-1-ab"]
    assert [path.name for path in folder.iterdir()] == ["checkpoint-00000002-step-2"]


def test_a_reader_is_not_misled_by_a_process_that_replaces_what_it_reads(base, tmp_path, monkeypatch):
    folder = copy_of(base, tmp_path / "live")
    read, writer = module.read_regular_file, open_at(folder, keep=1)

    def replaced_meanwhile(path, limit):
        if path.parent.name.endswith("step-2"):
            monkeypatch.setattr(module, "read_regular_file", read)
            writer.save(30, 3, state(3))
        return read(path, limit=limit)

    monkeypatch.setattr(module, "read_regular_file", replaced_meanwhile)
    assert newest(folder).step == 3


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody who may not read")
def test_a_folder_that_may_not_be_read_is_an_error_never_a_start_from_scratch(base):
    def read():
        os.setuid(65534)  # pytest's folders are closed to others, so this process cannot look into ours
        with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
            newest(base)

    assert in_child(read) == 0


# -- in the background -------------------------------------------------------------------------------------


class Slow(Disk):
    def __init__(self):
        self.gate = threading.Event()

    def mkdir(self, folder):
        assert self.gate.wait(120)
        super().mkdir(folder)


def test_the_stream_goes_on_while_a_checkpoint_is_written(tmp_path):
    disk = Slow()
    saver = BackgroundSaver(open_at(tmp_path, disk))
    assert saver.save(10, 1, state(1)) is None
    assert newest(tmp_path) is None  # and yet save has returned
    disk.gate.set()
    assert saver.save(20, 2, state(2)).path.name == "checkpoint-00000001-step-1"
    assert saver.close().path.name == "checkpoint-00000002-step-2"
    assert saver.close() is None
    assert assert_whole(tmp_path, {2}) == 2


def test_a_failure_in_the_background_is_raised_by_the_next_call(tmp_path):
    saver = BackgroundSaver(open_at(tmp_path, FaultyDisk(2, "enospc")))
    saver.save(10, 1, state(1))
    with pytest.raises(CheckpointError, match="No space left"):
        saver.save(20, 2, state(2))
    assert saver.close() is None


def test_no_torch_is_needed():
    code = "import sys, streamcl.storage.checkpoint, streamcl.testing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Files that appear whole or not at all, under every error, kill and loss of power."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest

from streamcl.errors import ConfigError
from streamcl.storage import files
from streamcl.storage.files import DISK, Disk, atomic_write, is_temporary
from streamcl.testing import FaultyDisk, PowerLoss, durable_calls, in_child

pytestmark = pytest.mark.faults

OLD, NEW = b"old content", b"the new content, which is longer"


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "a folder é"
    folder.mkdir()
    (folder / "summary.json").write_bytes(OLD)
    return folder / "summary.json"


def write(path, disk=DISK):
    atomic_write(path, NEW, disk=disk)


def calls(path):
    found = durable_calls(lambda disk: write(path, disk))
    path.write_bytes(OLD)
    return found


def strays(folder):
    return [each for each in folder.iterdir() if is_temporary(each)]


# -- one file ----------------------------------------------------------------------------------------------


def test_a_write_is_synced_before_and_after_its_rename(path):
    assert [call.split()[0] for call in calls(path)] == [
        "create",
        "write",
        "fsync",
        "replace",
        "fsync_folder",
    ]


def test_a_file_appears_with_its_content(path):
    write(path)
    write(path.with_name("other"))
    assert path.read_bytes() == path.with_name("other").read_bytes() == NEW
    assert strays(path.parent) == []


@pytest.mark.parametrize("kind", ["eio", "enospc", "short"])
def test_an_error_at_any_call_leaves_old_or_new_and_no_temporary(path, kind):
    for number, call in enumerate(calls(path), start=1):
        path.write_bytes(OLD)
        disk = FaultyDisk(number, kind)
        with pytest.raises(OSError, match=r"Input/output|No space"):
            write(path, disk)
        assert path.read_bytes() == (NEW if "folder" in call else OLD)
        assert strays(path.parent) == []


def test_a_kill_at_any_call_leaves_old_or_new_and_the_sweep_the_rest(path):
    seen = set()
    for number in range(1, len(calls(path)) + 1):
        path.write_bytes(OLD)
        assert in_child(lambda: write(path, FaultyDisk(number, "kill"))) == -9  # noqa: B023
        seen.add(path.read_bytes())
        left = strays(path.parent)
        assert files.sweep(path.parent) == left
        assert list(path.parent.iterdir()) == [path]
    assert seen == {OLD, NEW}


@pytest.mark.parametrize("survivors", [None, *range(10)])
def test_a_loss_of_power_at_any_call_leaves_old_or_new(path, survivors):
    for number in range(1, len(calls(path)) + 1):
        path.write_bytes(OLD)
        with pytest.raises(PowerLoss):
            write(path, FaultyDisk(number, "drop_unsynced", survivors=survivors))
        assert path.read_bytes() in {OLD, NEW}


def test_what_returned_survives_a_loss_of_power(path):
    disk = FaultyDisk()
    write(path, disk)
    disk.lose_power()
    assert path.read_bytes() == NEW


class NoSync(FaultyDisk):
    def fsync(self, handle):
        pass


class NoFolderSync(FaultyDisk):
    def fsync_folder(self, folder):
        pass


class InPlace(FaultyDisk):
    """What a write without a temporary would be."""

    def create(self, path):
        target = path.with_name("summary.json")
        target.write_bytes(b"")
        return super().append(target)

    def replace(self, old, new):
        pass


@pytest.mark.parametrize("unsafe", [NoSync, NoFolderSync, InPlace])
def test_each_of_the_steps_is_needed(path, unsafe):
    results = set()
    for survivors in (None, *range(10)):
        path.write_bytes(OLD)
        disk = unsafe(survivors=survivors)
        write(path, disk)
        disk.lose_power()
        results.add(path.read_bytes())
        with contextlib.suppress(OSError):
            path.write_bytes(OLD)
            write(path, unsafe(2, "short"))
        results.add(path.read_bytes())
    assert results - {NEW}  # acknowledged, and yet lost or torn


def test_a_link_is_replaced_not_followed(path, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(OLD)
    path.unlink()
    path.symlink_to(outside)
    write(path)
    assert outside.read_bytes() == OLD
    assert path.read_bytes() == NEW


def test_a_long_name_fits(path):
    write(path.with_name("é" * 127))
    assert path.with_name("é" * 127).read_bytes() == NEW


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o277, 0o777])
def test_under_any_umask_the_owner_can_read_and_write(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.make_folder(tmp_path / "a" / "b")
        write(tmp_path / "a" / "b" / "file")
        with files.open_append(tmp_path / "a" / "b" / "log") as log:
            log.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o700 == 0o700
    assert all(each.stat().st_mode & 0o600 == 0o600 for each in (tmp_path / "a" / "b").iterdir())


# -- folders -----------------------------------------------------------------------------------------------


def test_a_folder_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        files.commit_folder(tmp_path / "there", lambda folder: files.write_new(folder / "a", NEW))
    assert list((tmp_path / "there").iterdir()) == []
    assert strays(tmp_path) == []


def test_an_error_of_the_filler_leaves_nothing(tmp_path):
    def fill(folder):
        files.write_new(folder / "a", NEW)
        raise OSError("enough")

    with pytest.raises(OSError, match="enough"):
        files.commit_folder(tmp_path / "new", fill)
    assert list(tmp_path.iterdir()) == []


def tree(folder):
    (folder / "gone" / "deep").mkdir(parents=True)
    (folder / "gone" / "deep" / "a").write_bytes(OLD)
    (folder / "gone" / "b").write_bytes(OLD)
    return folder / "gone"


def whole(folder):
    return (folder / "deep" / "a").read_bytes() == (folder / "b").read_bytes() == OLD


@pytest.mark.parametrize("survivors", [None, *range(6)])
def test_a_removal_that_loses_power_leaves_all_or_nothing(tmp_path, survivors):
    number, fired = 0, True
    while fired:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        disk = FaultyDisk(number, "drop_unsynced", survivors=survivors)
        with contextlib.suppress(PowerLoss):
            files.remove(tree(folder), disk=disk)
        fired = disk.fired
        assert not (folder / "gone").exists() or whole(folder / "gone")
        files.sweep(folder)
        assert strays(folder) == []
    assert number > 5
    assert list(folder.iterdir()) == []


def test_a_link_to_a_folder_is_removed_not_followed(tmp_path):
    outside = tree(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-link").symlink_to(outside)
    (tmp_path / "run" / "link").symlink_to(outside)
    files.sweep(tmp_path / "run")
    files.remove(tmp_path / "run" / "link")
    assert list((tmp_path / "run").iterdir()) == []
    assert whole(outside)


def test_a_sweep_takes_temporaries_only_and_needs_no_folder(tmp_path):
    (tmp_path / "tmp-kept").write_bytes(OLD)
    (tmp_path / ".tmp-x").mkdir()
    assert files.sweep(tmp_path) == [tmp_path / ".tmp-x"]
    assert [each.name for each in tmp_path.iterdir()] == ["tmp-kept"]
    assert files.sweep(tmp_path / "missing") == []


# -- the wrong place ---------------------------------------------------------------------------------------


def test_a_writable_place_is_made_and_left_empty(tmp_path):
    files.ensure_writable(tmp_path / "runs" / "one")
    assert list((tmp_path / "runs" / "one").iterdir()) == []


def test_a_run_folder_is_made_for_its_owner_alone(tmp_path):
    files.ensure_writable(tmp_path / "runs" / "a")
    assert (tmp_path / "runs" / "a").stat().st_mode & 0o777 == 0o700


class SweptByAnother(Disk):
    """A process that holds the folder's lock removes temporaries, the probe of this one among them."""

    def unlink(self, path):
        files.sweep(path.parent)
        super().unlink(path)


def test_another_process_may_sweep_the_probe(tmp_path):
    files.ensure_writable(tmp_path, disk=SweptByAnother())


def test_links_are_found_at_any_depth_and_not_followed(tmp_path):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "link").symlink_to(tmp_path)
    (tmp_path / "run" / "samples" / "a.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "outside")
    found = files.links_below(tmp_path / "run")
    assert [path.name for path in found] == ["checkpoints", "a.png"]


def test_a_log_that_is_a_link_is_not_opened(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        files.open_append(tmp_path / "log")


def test_a_file_in_the_way_fails_at_the_start(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot be written to") as caught:
            files.ensure_writable(folder)
        assert "writable" in caught.value.hint


def test_a_read_only_or_full_place_fails_at_the_start(tmp_path):
    for kind in ("eio", "enospc"):
        for number in range(1, 5):
            with pytest.raises(ConfigError, match=r"Input/output|No space|cannot"):
                files.ensure_writable(tmp_path / f"{kind}{number}", disk=FaultyDisk(number, kind))


READ_ONLY = """
import os, sys
from pathlib import Path
from streamcl.storage import files
from streamcl.errors import ConfigError
os.setuid(65534)
try:
    files.ensure_writable(Path(sys.argv[1]))
except ConfigError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody who may not write")
def test_a_folder_of_somebody_else_fails_at_the_start():
    folder = "/etc"
    ended = subprocess.run(
        [sys.executable, "-c", READ_ONLY, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert ended.returncode == 1
    assert "/etc cannot be written to: Permission denied" in ended.stderr


# -- logs --------------------------------------------------------------------------------------------------


def test_a_log_is_appended_synced_and_cut_back(tmp_path):
    path, disk = tmp_path / "log", FaultyDisk()
    with files.open_append(path, disk=disk) as log:
        files.write_all(log, b"one\n", disk=disk)
        disk.fsync(log)
        files.write_all(log, b"two\n", disk=disk)
        disk.lose_power()
        assert path.read_bytes() == b"one\n"
    with files.open_append(path) as log:
        files.write_all(log, b"three\n")
    files.truncate(path, 4)
    files.truncate(path, 4)
    assert path.read_bytes() == b"one\n"
    with pytest.raises(ValueError, match="has 4 bytes, fewer than the 9"):
        files.truncate(path, 9)


def test_a_new_log_keeps_its_name_after_a_loss_of_power(tmp_path):
    disk = FaultyDisk()
    files.open_append(tmp_path / "log", disk=disk).close()
    disk.lose_power()
    assert (tmp_path / "log").exists()


class Sparing(Disk):
    """Takes three bytes at a time."""

    def write(self, handle, data):
        return super().write(handle, data[:3])


def test_short_writes_go_on_where_they_stopped(path):
    atomic_write(path, NEW, disk=Sparing())
    assert path.read_bytes() == NEW


def test_free_space_is_a_number(tmp_path):
    assert 0 < files.free_bytes(tmp_path) < shutil.disk_usage(tmp_path).total

"""A checkpoint that is saved on a disk which fails at each of its calls in turn: old or new is whole."""

import pytest

from streamcl.storage.files import DISK, is_temporary
from streamcl.testing import FaultyDisk, PowerLoss, in_child


def assert_kills_leave_old_or_new(calls, copy, save, whole, sweep, steps):
    """At each call a process is killed; the next start sweeps what it left, and saves.

    copy: returns a fresh folder of checkpoints. save: (folder, disk). whole: (folder, allowed steps) returns
    the step that loads. sweep: of a folder. steps: the old one and the new one.
    """
    found, new = set(), max(steps)
    for number in range(1, len(calls) + 1):
        folder = copy()
        assert in_child(lambda: save(folder, FaultyDisk(number, "kill"))) == -9  # noqa: B023
        found.add(whole(folder, steps))
        sweep(folder)
        assert not [path for path in folder.iterdir() if is_temporary(path)]
        save(folder, DISK)
        assert whole(folder, {new}) == new
    assert found == steps
    assert len(calls) >= 20


def assert_power_losses_leave_old_or_new(calls, copy, save, whole, steps, survivors):
    """At each call the power fails, and so many unsynced changes survive; see above for the rest."""
    found = set()
    for number in range(1, len(calls) + 1):
        folder = copy()
        with pytest.raises(PowerLoss):
            save(folder, FaultyDisk(number, "drop_unsynced", survivors=survivors))
        found.add(whole(folder, steps))
    assert found == steps

"""One process a run directory, whatever became of the one before."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from streamcl.errors import ConfigError, RunBusy
from streamcl.storage.lock import LOCK, RunLock, holder_of
from streamcl.testing import in_child

pytestmark = pytest.mark.faults


HOLD = """
import sys, time
from pathlib import Path
from streamcl.storage.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
HOLD_WITH_A_WORKER = """
import os, sys, time
from pathlib import Path
from streamcl.storage.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if worker := os.fork():
        print(worker, flush=True)
    time.sleep(600)
"""


def started(script, folder):
    """A process, and the line by which it says that it holds the lock."""
    command = [sys.executable, "-c", script, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline()


def end(process):
    process.kill()
    process.wait(60)
    process.stdout.close()


def test_the_second_process_is_refused_and_the_holder_named(tmp_path):
    holder, _ = started(HOLD, tmp_path)
    child = holder.pid
    with pytest.raises(RunBusy, match=rf"process {child} on \S+, running since 2") as caught:
        RunLock(tmp_path).acquire()
    assert f"kill {child}" in caught.value.hint
    assert holder_of(tmp_path).pid == child
    end(holder)


def test_a_killed_holder_is_no_obstacle(tmp_path):
    end(started(HOLD, tmp_path)[0])
    assert (tmp_path / LOCK).read_bytes() != b""
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        assert holder_of(tmp_path).pid == os.getpid()


def test_of_many_at_once_one_gets_in(tmp_path):
    inside, refused, start = [], [], threading.Barrier(8)

    def run():
        lock = RunLock(tmp_path)
        start.wait()
        try:
            lock.acquire()
        except RunBusy:
            refused.append(lock)
        else:
            inside.append(lock)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)
    inside[0].release()


def test_released_it_is_free_for_the_next(tmp_path):
    lock = RunLock(tmp_path)
    with lock:
        lock.acquire()  # twice is the same as once
    lock.release()
    assert in_child(lambda: RunLock(tmp_path).acquire()) == 0


def test_a_forked_worker_does_not_keep_the_lock_of_a_dead_parent(tmp_path):
    holder, worker = started(HOLD_WITH_A_WORKER, tmp_path)
    end(holder)
    with RunLock(tmp_path):
        pass
    os.kill(int(worker), signal.SIGKILL)


def test_a_signature_that_cannot_be_read_is_no_licence(tmp_path):
    with RunLock(tmp_path):
        (tmp_path / LOCK).write_text("{torn")
        assert holder_of(tmp_path).pid == 0
        with pytest.raises(RunBusy, match="unknown host"):
            RunLock(tmp_path).acquire()


def test_a_place_without_a_folder_or_behind_a_link_is_refused(tmp_path):
    assert holder_of(tmp_path / "missing") is None
    with pytest.raises(ConfigError, match="No such file"):
        RunLock(tmp_path / "missing").acquire()
    (tmp_path / "other").write_text("keep me")
    (tmp_path / LOCK).symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="cannot be locked"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "other").read_text() == "keep me"

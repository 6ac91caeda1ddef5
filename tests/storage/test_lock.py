"""One process a run directory, whatever became of the one before."""

import os
import signal
import threading
import time

import pytest

from streamcl.errors import ConfigError, RunBusy
from streamcl.storage.lock import LOCK, RunLock, holder_of
from streamcl.testing import in_child

pytestmark = pytest.mark.faults


def forked(run):
    """A child that runs on; the parent goes on when the child says so."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run(lambda: os.write(tell, b"1"))
        finally:
            os._exit(0)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(tell)
    return child


def hold(folder):
    def run(tell):
        with RunLock(folder):
            tell()
            time.sleep(60)

    return forked(run)


def end(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_second_process_is_refused_and_the_holder_named(tmp_path):
    child = hold(tmp_path)
    with pytest.raises(RunBusy, match=rf"process {child} on \S+, running since 2") as caught:
        RunLock(tmp_path).acquire()
    assert f"kill {child}" in caught.value.hint
    assert holder_of(tmp_path).pid == child
    end(child)


def test_a_killed_holder_is_no_obstacle(tmp_path):
    end(hold(tmp_path))
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
    def run(tell):
        with RunLock(tmp_path):
            worker = forked(lambda ready: (ready(), time.sleep(60)))
            (tmp_path / "worker").write_text(str(worker))
            tell()
            time.sleep(60)

    end(forked(run))
    with RunLock(tmp_path):
        pass
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


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

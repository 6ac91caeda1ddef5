"""The append-only log: groups are there or not, numbers stay, redaction leaves no bytes behind."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress

import pytest
from live_readers import Clock
from log_messages import logged

from streamcl.storage import files, segment, segment_log
from streamcl.storage.segment import SEGMENT_SUFFIX, DamagedLog
from streamcl.storage.segment_log import SegmentLog
from streamcl.testing import FaultyDisk, PowerLoss, durable_calls, in_child

pytestmark = pytest.mark.faults

CANARY = b"a face that must go"


def group(start, count=3):
    return [(b"head %d" % k, b"body %d " % k * 5) for k in range(start, start + count)]


def read_all(log, start=0):
    return log.read(start, limit=10_000, max_bytes=2**30)


def pairs(records):
    return [(each.head, each.body) for each in records]


def filled(folder, groups=4, **options):
    log = SegmentLog(folder, **options)
    for number in range(groups):
        log.append(group(3 * number), note=b"note %d" % number)
    return log


def segments(folder):
    return sorted(folder.glob(f"*{SEGMENT_SUFFIX}"))


def content(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_records_are_numbered_and_come_back_in_a_new_process(tmp_path):
    filled(tmp_path / "log").close()
    log = SegmentLog(tmp_path / "log")
    found = read_all(log)
    assert [each.sequence for each in found] == list(range(12))
    assert pairs(found) == group(0, 12)
    assert (log.first, log.end, log.note) == (0, 12, b"note 3")
    assert list(log.append(group(12), note=None)) == [12, 13, 14]
    assert log.note == b"note 3"
    log.close()


def test_a_read_is_bounded_and_goes_on_where_it_was(tmp_path):
    log = filled(tmp_path / "log", segment_bytes=150)
    found = []
    while batch := log.read(len(found), limit=2, max_bytes=2**30):
        assert len(batch) <= 2
        found += batch
    assert pairs(found) == group(0, 12)
    assert len(log.read(0, limit=100, max_bytes=1)) == 1
    assert pairs(log.read(7, limit=1, max_bytes=2**30)) == group(7, 1)
    log.close()


@pytest.mark.parametrize("segment_bytes", [150, 2**20])
def test_reading_at_the_tail_reads_each_record_once(tmp_path, monkeypatch, segment_bytes):
    log, read, found = SegmentLog(tmp_path / "log", segment_bytes=segment_bytes), [], []

    def counted(path, start, end):
        for each in segment.frames(path, start, end):
            read.append(each[1])
            yield each

    monkeypatch.setattr(segment_log, "frames", counted)
    for number in range(40):
        log.append(group(3 * number))
        found += read_all(log, len(found))
        assert not read_all(log, len(found))
    assert pairs(found) == group(0, 120)
    assert [each.sequence for each in read if not each.is_note] == list(range(120))
    log.close()


@pytest.mark.parametrize("dropped", [0, 5])
@pytest.mark.parametrize("start", [0, 1, 12, 13, 58, 59])
def test_whatever_is_behind_a_number_is_found_and_redacted(tmp_path, start, dropped):
    log = SegmentLog(tmp_path / "log", segment_bytes=60)
    for number in range(60):
        log.append(group(number, 1))
    assert len(segments(tmp_path / "log")) > 20
    log.drop(dropped, older_than=-1.0, max_bytes=0)
    first = max(start, log.first)
    assert [each.sequence for each in log.find(lambda _: True, start)] == list(range(first, 60))
    assert log.redact(lambda each: b"gone" if each.sequence >= start else None, start) == 60 - first
    assert [each.head for each in read_all(log)].count(b"gone") == 60 - first
    assert not list(log.find(lambda _: True, 60))
    log.close()


def test_a_group_is_synced_once_before_its_numbers_are_returned(tmp_path):
    def append(disk):
        log = SegmentLog(tmp_path / disk_name(disk), disk=disk)
        disk.calls.clear()
        log.append(group(0, 50))
        log.close()

    assert durable_calls(append) == ["truncate", "append 00000000000000000000.segment", "write", "fsync"][1:]


def disk_name(disk):
    return f"log-{id(disk)}"


def test_a_file_cut_at_any_byte_keeps_every_complete_group_and_nothing_else(tmp_path):
    filled(tmp_path / "log").close()
    (path,) = segments(tmp_path / "log")
    data, ends = path.read_bytes(), []
    for number in range(1, 5):
        filled(tmp_path / f"part {number}", groups=number).close()
        ends.append(segments(tmp_path / f"part {number}")[0].stat().st_size)
    for cut in range(ends[0], len(data) + 1):
        path.write_bytes(data[:cut])
        log = SegmentLog(tmp_path / "log", disk=FaultyDisk())
        complete = sum(end <= cut for end in ends)
        assert pairs(read_all(log)) == group(0, 3 * complete)
        assert (log.end, log.note) == (3 * complete, b"note %d" % (complete - 1))
        log.append(group(3 * complete))
        assert pairs(read_all(log)) == group(0, 3 * complete + 3)
        log.close()


def test_garbage_in_the_last_group_at_any_byte_loses_no_group_before_it(tmp_path):
    filled(tmp_path / "log").close()
    filled(tmp_path / "part", groups=3).close()
    (path,), (part,) = segments(tmp_path / "log"), segments(tmp_path / "part")
    data = path.read_bytes()
    for place in range(part.stat().st_size, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        log = SegmentLog(tmp_path / "log", disk=FaultyDisk())
        assert pairs(read_all(log)) == group(0, 9)
        log.close()


def test_damage_before_the_last_group_is_an_error_and_nothing_is_cut(tmp_path):
    filled(tmp_path / "log").close()
    (path,) = segments(tmp_path / "log")
    data = path.read_bytes()
    for place in range(len(data) - 600):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        try:
            log = SegmentLog(tmp_path / "log")
        except DamagedLog:
            pass
        else:  # a body: its record has none, the others are as they were
            damaged = [each for each in read_all(log) if each.body is None]
            assert len(damaged) == 1
            assert len(read_all(log)) == 12
            log.close()
        assert path.stat().st_size == len(data)


def test_what_is_cut_off_is_logged(tmp_path):
    filled(tmp_path / "log").close()
    (path,) = segments(tmp_path / "log")
    path.write_bytes(path.read_bytes()[:-1])
    with logged() as messages:
        SegmentLog(tmp_path / "log").close()
    assert any("cut short are removed" in each for each in messages)


# -- errors of the disk ------------------------------------------------------------------------------------


def two_groups(folder, disk):
    log = SegmentLog(folder, segment_bytes=100, disk=disk)
    acknowledged = []
    for number in range(3):
        acknowledged += log.append(group(3 * number))
    log.close()
    return acknowledged


def calls_of_two_groups(tmp_path):
    return len(durable_calls(lambda disk: two_groups(tmp_path / "count", disk)))


@pytest.mark.parametrize("kind", ["eio", "enospc", "short"])
def test_after_an_error_at_any_call_a_group_is_there_or_not_and_the_next_append_works(tmp_path, kind):
    for number in range(1, calls_of_two_groups(tmp_path) + 1):
        folder, disk = tmp_path / f"{kind}-{number}", FaultyDisk(number, kind)
        written = []
        try:
            log = SegmentLog(folder, segment_bytes=100, disk=disk)
        except OSError:
            log = SegmentLog(folder, segment_bytes=100)
        for start in (0, 3, 6):
            try:
                written += log.append(group(start))
            except OSError:
                disk.repair()
                written += log.append(group(start))
        log.close()
        assert written == list(range(9))
        again = SegmentLog(folder)
        assert pairs(read_all(again)) == pairs(read_all(log)) == group(0, 9)
        again.close()


@pytest.mark.parametrize("survivors", [None, *range(6)])
def test_after_a_loss_of_power_at_any_call_what_was_acknowledged_is_there(tmp_path, survivors):
    for number in range(1, calls_of_two_groups(tmp_path) + 1):
        folder, acknowledged = tmp_path / f"{survivors}-{number}", []
        disk = FaultyDisk(number, "drop_unsynced", survivors=survivors)
        with suppress(PowerLoss), ExitStack() as stack:
            log = SegmentLog(folder, segment_bytes=100, disk=disk)
            stack.callback(log.close)
            for start in (0, 3, 6):
                acknowledged += log.append(group(start))
            disk.lose_power()
        log = SegmentLog(folder)
        found = pairs(read_all(log))
        assert found == group(0, len(found))
        assert len(found) % 3 == 0
        assert len(found) >= len(acknowledged)
        log.close()


def test_a_kill_at_any_call_leaves_complete_groups(tmp_path):
    for number in range(1, calls_of_two_groups(tmp_path) + 1):
        folder = tmp_path / f"kill-{number}"
        assert in_child(lambda: two_groups(folder, FaultyDisk(number, "kill"))) == -9  # noqa: B023
        log = SegmentLog(folder)
        found = pairs(read_all(log))
        assert found == group(0, len(found))
        assert len(found) % 3 == 0
        log.close()


class NoSync(FaultyDisk):
    def fsync(self, handle):
        self._call("fsync", handle.fileno(), space=False)


def test_without_its_sync_a_loss_of_power_would_take_a_group(tmp_path):
    disk = NoSync()
    log = SegmentLog(tmp_path / "log", disk=disk)
    log.append(group(0))
    log.close()
    disk.lose_power()
    with pytest.raises(DamagedLog):
        SegmentLog(tmp_path / "log")


# -- retention ---------------------------------------------------------------------------------------------


def test_segments_go_by_age_and_by_size_and_never_beyond_what_was_acknowledged(tmp_path):
    clock = Clock()
    log = SegmentLog(tmp_path / "log", segment_bytes=1, clock=clock)
    for number in range(4):
        log.append(group(3 * number))
        clock.now += 10
    assert log.drop(0, older_than=0, max_bytes=0) == 0
    assert log.drop(5, older_than=0, max_bytes=0) == 1
    assert log.first == 3
    assert log.drop(12, older_than=35, max_bytes=1e9) == 0
    clock.now += 6
    assert log.drop(12, older_than=35, max_bytes=1e9) == 1
    assert log.first == 6
    assert log.drop(12, older_than=1e9, max_bytes=log.size - 1) == 1
    assert pairs(read_all(log)) == group(9)
    assert log.drop(12, older_than=0, max_bytes=1e9) == 1
    assert (log.first, log.end, read_all(log)) == (12, 12, [])
    log.close()
    again = SegmentLog(tmp_path / "log")
    assert list(again.append(group(12))) == [12, 13, 14]
    again.close()


def test_a_segment_to_which_little_comes_ends_by_its_age(tmp_path):
    clock = Clock()
    log = SegmentLog(tmp_path / "log", segment_seconds=60, clock=clock)
    log.append(group(0))
    clock.now = 61
    log.drop(0, older_than=1e9, max_bytes=1e9)
    log.append(group(3))
    assert len(segments(tmp_path / "log")) == 2
    log.close()


# -- redaction ---------------------------------------------------------------------------------------------


def redacted(log, *numbers):
    return log.redact(lambda record: b"gone" if record.sequence in numbers else None)


def with_canaries(folder, disk=files.DISK):
    log = SegmentLog(folder, segment_bytes=100, disk=disk)
    for number in range(4):
        log.append([(CANARY + b" %d" % number, CANARY * 2), *group(number, 1)])
    return log


def test_a_redacted_record_keeps_its_number_and_time_and_no_file_has_its_bytes(tmp_path):
    log = with_canaries(tmp_path / "log")
    before = read_all(log)
    assert redacted(log, 0, 2, 4, 6) == 4
    assert CANARY not in content(tmp_path / "log")
    found = read_all(log)
    assert [(each.sequence, each.time) for each in found] == [(each.sequence, each.time) for each in before]
    assert pairs(found)[::2] == [(b"gone", b"")] * 4
    assert pairs(found)[1::2] == pairs(before)[1::2]
    assert redacted(log, 0, 2, 4, 6) == 0
    assert list(log.append(group(8, 1))) == [8]
    assert pairs(log.read(7, limit=5, max_bytes=2**30)) == [*group(3, 1), *group(8, 1)]
    log.close()
    assert CANARY not in content(tmp_path / "log")


@pytest.mark.parametrize("kind", ["eio", "enospc", "short", "drop_unsynced"])
def test_a_redaction_that_fails_at_any_call_can_be_repeated(tmp_path, kind):
    with_canaries(tmp_path / "model").close()
    calls = 10  # create, three frames and more, fsync, replace, fsync_folder; the later segments are alike
    for number in range(1, calls):
        folder = tmp_path / f"{kind}-{number}"
        shutil.copytree(tmp_path / "model", folder)
        log = SegmentLog(folder, disk=FaultyDisk(number, kind))
        with pytest.raises((OSError, PowerLoss)):
            redacted(log, 0, 2, 4, 6)
        if kind != "drop_unsynced":
            assert len(read_all(log)) == 8  # the same process goes on
        log.close()
        log = SegmentLog(folder)
        assert len(read_all(log)) == 8
        redacted(log, 0, 2, 4, 6)
        assert CANARY not in content(folder)
        assert pairs(read_all(log))[1::2] == [each for k in range(4) for each in group(k, 1)]
        log.close()


def test_records_are_found_by_their_heads(tmp_path):
    log = filled(tmp_path / "log", segment_bytes=150)
    wanted = {b"head 2", b"head 9"}
    found = list(log.find(lambda record: record.head in wanted))
    assert pairs(found) == [*group(2, 1), *group(9, 1)]
    assert [each.sequence for each in log.find(lambda _: True, 10, bodies=False)] == [10, 11]
    log.close()

"""A watched folder: every complete file once, in any order of names and times, across restarts."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from live_configs import ids_learned
from live_readers import Clock
from PIL import Image

from streamcl.errors import BadRecord, SourceError
from streamcl.events import Batch
from streamcl.sources.live_reader import LiveReader
from streamcl.storage.plain_state import state_hash
from streamcl.testing import check_live_reader
from streams.build import named_source
from streams.live.files.folder import FolderReader
from streams.live.files.listing import READ_AT_ONCE
from streams.live.source import LiveSource
from streams.user.records import RecordPolicy


def put(root: Path, name: str, shade: int = 0, *, at: float = 1000.0) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(path)
    os.utime(path, (at, at))
    return path


class Folder:
    """A folder being watched, whose scans happen when the test says so."""

    def __init__(self, root: Path, **options) -> None:
        self.clock = Clock()
        self.reader = FolderReader(root, clock=self.clock, sleep=self.sleep, **options)

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds

    def scan(self):
        """Return what the next scan finds."""
        self.clock.now += 100
        found = list(self.reader.poll(0.0))
        while len(found) % READ_AT_ONCE == 0 and found and (more := self.reader.poll(0.0)):
            found += more
        return found

    def settled(self):
        """Return what two scans find: files that are complete."""
        return [*self.scan(), *self.scan()]

    def take(self, arrivals) -> None:
        self.reader.advance([each.key for each in arrivals])


def ids(arrivals) -> list[str]:
    return [each.value["id"] for each in arrivals]


def test_files_come_in_the_order_of_their_times_with_their_folders_as_labels(tmp_path):
    put(tmp_path, "cat/b.png", at=30)
    put(tmp_path, "dog/a.png", at=20)
    put(tmp_path, "dog/deep/er/c.webp", at=10)
    folder = Folder(tmp_path)
    assert isinstance(folder.reader, LiveReader)
    arrivals = folder.settled()
    assert ids(arrivals) == ["dog/deep/er/c.webp", "dog/a.png", "cat/b.png"]
    assert [each.value["label"] for each in arrivals] == ["dog", "dog", "cat"]


@pytest.mark.long
def test_it_keeps_the_promises_of_a_live_reader(tmp_path):
    for number in range(5):
        put(tmp_path, f"cat/{number}.png", shade=number, at=number)
    check_live_reader(lambda: Folder(tmp_path).reader, timeout=2.0)  # by a clock that waits for nobody


def test_domains_and_flat_folders(tmp_path):
    put(tmp_path, "night/cat/b.png")
    (arrival,) = Folder(tmp_path, layout="domains").settled()
    assert (arrival.value["domain"], arrival.value["label"]) == ("night", "cat")
    (arrival,) = Folder(tmp_path, layout="flat").settled()
    assert arrival.value["label"] is None


def test_a_file_that_is_still_being_written_waits(tmp_path):
    path = put(tmp_path, "cat/a.png")
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    folder = Folder(tmp_path)
    assert folder.scan() == []
    path.write_bytes(whole)
    assert folder.scan() == []
    assert ids(folder.scan()) == ["cat/a.png"]


def test_older_names_and_times_that_come_later_are_new(tmp_path):
    put(tmp_path, "cat/m.png", at=500)
    folder = Folder(tmp_path)
    folder.take(folder.settled())
    for number in range(20):
        put(tmp_path, f"cat/a{number:02}.png", at=100 + number)
    assert len(folder.settled()) == 20


def test_hidden_files_and_other_endings_are_not_looked_at(tmp_path):
    put(tmp_path, "cat/.a.png")
    put(tmp_path, ".git/a.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "a.png.part").write_bytes(b"half")
    assert Folder(tmp_path).settled() == []


@pytest.mark.parametrize("taken", range(6))
def test_a_position_is_the_set_of_files_taken(tmp_path, taken):
    for number in range(6):
        put(tmp_path, f"cat/{number}.png", at=number)
    first = Folder(tmp_path)
    first.take(first.settled()[:taken])
    position = first.reader.position()
    for number in range(taken):
        (tmp_path / f"cat/{number}.png").unlink()  # cleaned up meanwhile: nothing is skipped for that
    put(tmp_path, "cat/older.png", at=-5)
    second = Folder(tmp_path)
    second.reader.open(position)
    assert ids(second.settled()) == ["cat/older.png", *(f"cat/{number}.png" for number in range(taken, 6))]


def test_a_position_does_not_show_how_often_it_was_opened(tmp_path):
    """Otherwise it would grow by a block with each restart."""
    for number in range(6):
        put(tmp_path, f"cat/{number}.png", at=number)
    steady, restarted = Folder(tmp_path), Folder(tmp_path)
    arrivals = steady.settled()
    for arrival in arrivals:
        steady.take([arrival])
        restarted.take([arrival])
        restarted.reader.open(restarted.reader.position())
    assert state_hash(restarted.reader.position()) == state_hash(steady.reader.position())


def test_a_position_of_thousands_of_files_shares_its_blocks(tmp_path):
    folder = Folder(tmp_path)
    keys = [[f"cat/{number}.png", 5, number] for number in range(10_000)]
    folder.reader.advance(keys)
    before, after = folder.reader.position(), folder.reader.position()
    assert before["000000000"] is after["000000000"]
    assert sum(len(block) for block in before.values()) == 10_000
    again = Folder(tmp_path)
    again.reader.open(before)
    assert {name: block.tolist() for name, block in again.reader.position().items()} == {
        name: block.tolist() for name, block in before.items()
    }


@pytest.mark.parametrize(("replaced", "expected"), [("new_record", ["cat/a.png@9000000000"]), ("skip", [])])
def test_a_replaced_file_is_a_new_record_or_left_out(tmp_path, replaced, expected):
    put(tmp_path, "cat/a.png")
    folder = Folder(tmp_path, replaced=replaced)
    folder.take(folder.settled())
    put(tmp_path, "cat/a.png", shade=200, at=9)
    assert ids(folder.settled()) == expected


def test_a_replaced_file_can_end_the_run(tmp_path):
    put(tmp_path, "cat/a.png")
    folder = Folder(tmp_path, replaced="fail")
    folder.take(folder.settled())
    put(tmp_path, "cat/a.png", shade=200, at=9)
    with pytest.raises(SourceError, match="another content"):
        folder.settled()


def test_a_replaced_file_has_the_same_id_in_a_replay_though_the_first_is_not_yet_taken(tmp_path):
    put(tmp_path, "cat/a.png")
    folder = Folder(tmp_path)
    first = folder.settled()
    put(tmp_path, "cat/a.png", shade=200, at=9)
    second = folder.settled()
    assert ids([*first, *second]) == ["cat/a.png", "cat/a.png@9000000000"]
    again = Folder(tmp_path)
    (replayed,) = again.reader.replay([second[0].key])
    assert replayed.value["id"] == "cat/a.png@9000000000"


def test_a_name_with_an_at_sign_is_fetched_by_its_id(tmp_path):
    put(tmp_path, "cat/a@2x.png")
    folder = Folder(tmp_path)
    folder.take(folder.settled())
    assert list(dict(folder.reader.fetch(["cat/a@2x.png"]))) == ["cat/a@2x.png"]


def test_replayed_records_that_are_gone_or_replaced_are_bad_records(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path, f"cat/{name}.png")
    folder = Folder(tmp_path)
    keys = [each.key for each in folder.settled()]
    (tmp_path / "cat/a.png").unlink()
    put(tmp_path, "cat/b.png", shade=9, at=9)
    gone, replaced, same = Folder(tmp_path).reader.replay(keys)
    assert isinstance(gone.value, BadRecord)
    assert isinstance(replaced.value, BadRecord)
    assert same.value["id"] == "cat/c.png"
    assert [gone.key, replaced.key, same.key] == keys


def test_only_what_was_learned_can_be_fetched(tmp_path):
    put(tmp_path, "cat/a.png")
    put(tmp_path, "cat/b.png")
    folder = Folder(tmp_path)
    folder.take(folder.settled()[:1])
    assert list(dict(folder.reader.fetch(["cat/a.png", "cat/b.png", "../up.png"]))) == ["cat/a.png"]
    put(tmp_path, "cat/a.png", shade=7, at=7)
    assert not list(folder.reader.fetch(["cat/a.png"]))


def test_a_folder_that_is_not_there_is_refused_and_one_that_vanishes_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        FolderReader(tmp_path / "wrong")
    root = tmp_path / "root"
    root.mkdir()
    folder = Folder(root)
    root.rmdir()
    with pytest.raises(SourceError, match="is gone"):
        folder.scan()


def test_as_a_source_it_brings_batches(tmp_path):
    for number in range(5):
        put(tmp_path, f"cat/{number}.png", shade=number, at=number)
    folder = Folder(tmp_path)
    events = islice(LiveSource(folder.reader, clock=folder.clock), 40)
    (batch,) = [event for event in events if isinstance(event, Batch)]
    assert [sample.id for sample in batch.samples] == [f"cat/{number}.png" for number in range(5)]
    assert [int(sample.image[0, 0, 0]) for sample in batch.samples] == list(range(5))


def test_the_shipped_configuration_learns_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMCL_FOLDER", str(tmp_path / "pictures"))
    for number in range(8):
        put(tmp_path / "pictures", f"cat/{number}.png", at=number)
    learned = ids_learned("live_folder", tmp_path / "run", "source.args.interval=0.01")
    assert learned == [f"cat/{number}.png" for number in range(8)]


def test_many_files_are_read_a_few_at_a_time(tmp_path):
    for number in range(READ_AT_ONCE + 5):
        put(tmp_path, f"cat/{number:03}.png", at=number)
    folder = Folder(tmp_path)
    folder.scan()
    folder.clock.now += 100
    assert [len(folder.reader.poll(0.0)) for _ in range(3)] == [READ_AT_ONCE, 5, 0]


@pytest.mark.long
def test_a_file_above_the_limit_is_a_bad_record_and_is_not_read(tmp_path):
    put(tmp_path, "cat/a.png")
    large = tmp_path / "cat" / "large.png"
    large.touch()
    os.truncate(large, 2**30)  # it takes no room on the disk
    folder = Folder(tmp_path, policy=RecordPolicy(max_file_bytes=1000))
    found = {each.key[0]: each.value for each in folder.settled()}
    assert found["cat/a.png"]["label"] == "cat"
    assert str(found["cat/large.png"]) == f"cat/large.png has {2**30} bytes; 1000 allowed"
    assert isinstance(found["cat/large.png"], BadRecord)
    configured = named_source("folder", {"root": str(tmp_path)}, policy=RecordPolicy(max_file_bytes=1000))
    (batch,) = list(islice((each for each in configured if isinstance(each, Batch)), 1))
    assert [each.id for each in batch.samples] == ["cat/a.png"]
    assert "1000 allowed" in batch.rejected[0].reason
    configured.close()

"""One stream for several ranks, replicated and sharded; here each rank is a thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rank_threads import Threads

from streamcl.errors import SourceError
from streamcl.events import Batch, ForgetRequest, Sample
from streamcl.sources.remote_sample import RemoteSample
from streams.build import named_source
from streams.distributed.replicated import Replicated
from streams.distributed.sharded import Sharded, shard_size
from streams.user.source import IterableSource


class Records:
    """A data set that notes which of its images were asked for; some are none."""

    def __init__(self, count: int = 22, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.count:
            raise IndexError(index)
        return {"image": Noted(self, index), "label": f"c{index % 3}", "id": f"r{index}"}


class Noted:
    """An image that notes when it is read."""

    def __init__(self, records: Records, index: int) -> None:
        self.records, self.index = records, index

    def __array__(self, *_: Any, **__: Any) -> np.ndarray[Any, Any]:
        self.records.decoded.append(self.index)
        level = np.nan if self.index in self.records.bad else self.index / 100
        return np.full((4, 4, 3), level, np.float32)


def iterated(records: Any, size: int = 8) -> IterableSource:
    return IterableSource(lambda: records, batch_size=size, deterministic=True)


def described(batch: Batch) -> Any:
    samples = [(s.id, s.label, s.subject, s.domain, s.privacy) for s in batch.samples]
    return batch.offset, samples, [(r.offset, r.id, r.reason) for r in batch.rejected]


def replicated(member: Any, records: Records) -> Replicated:
    source = iterated(records)
    source.read_slice(member.rank, member.world_size)
    return Replicated(source, member, lambda: None)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_slices_together_are_the_stream_and_each_rank_decodes_its_own(world):
    group = Threads(world)
    all_records = [Records(bad=(3, 4)) for _ in range(world)]
    read = group.each(lambda m: list(replicated(m, all_records[m.rank])))
    expected = [described(batch) for batch in iterated(Records(bad=(3, 4)))]
    for rank, batches in enumerate(read):
        assert [described(batch) for batch in batches] == expected
        assert all_records[rank].decoded == list(range(rank, 22, world))
        for batch in batches:
            for sample in batch.samples:
                holder = int(sample.id[1:]) % world
                assert isinstance(sample, RemoteSample) == (holder != rank)
                assert holder == rank or sample.rank == holder


def test_a_slice_continues_where_one_process_stopped_and_the_other_way_round():
    single = iterated(Records())
    events = iter(single)
    next(events)
    group, state = Threads(2), single.state_dict()

    def rest(member: Any) -> Any:
        source = replicated(member, Records())
        source.load_state_dict(state)
        found = iter(source)
        return described(next(found)), source.state_dict()

    (first, there), (second, also) = group.each(rest)
    assert first == second == described(next(events))
    assert there == also == single.state_dict()


def test_index_based_sources_leave_images_of_others_alone(tmp_path):
    path = tmp_path / "digits.npz"
    np.savez(path, x=np.zeros((9, 4, 4, 3), np.uint8), y=np.arange(9) % 2)
    source = named_source("npz", {"path": str(path)}, ("as_is", {}), batch_size=9)
    source.read_slice(1, 2)  # type: ignore[attr-defined]
    (batch,) = source
    assert [sample.image.size > 0 for sample in batch.samples] == [i % 2 == 1 for i in range(len(batch))]


def test_ranks_with_different_records_raise():
    group = Threads(2)
    found = group.each(lambda m: list(replicated(m, Records(22 - 7 * m.rank))))
    assert all(isinstance(each, SourceError) and "reads another stream" in str(each) for each in found)


def test_what_one_rank_raises_all_raise():
    class Torn(Records):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 9:
                raise OSError("torn")
            return super().__getitem__(index)

    group = Threads(2)
    kinds = [Records, Torn]

    def read(member: Any) -> list[Any]:
        source = IterableSource(kinds[member.rank], batch_size=8, retries=0)
        return list(Replicated(source, member, lambda: None))

    found = group.each(read)
    assert [type(each) for each in found] == [SourceError, SourceError]
    assert str(found[0]) == str(found[1])
    assert "torn" in str(found[0])


def test_a_stop_asked_of_one_rank_stops_all_and_loses_nothing():
    group = Threads(2)

    def read(member: Any) -> Any:
        stopped: list[bool] = []
        source = iterated(Records())
        shared = Replicated(source, member, lambda: stopped.append(True))
        events = iter(shared)
        first = next(events)
        if member.rank == 1:
            shared.interrupt()
        return described(first), list(events), shared.state_dict()["offset"], stopped

    for first, rest, offset, stopped in group.each(read):
        assert first[0] == 0
        assert (rest, offset, stopped) == ([], 8, [True])


class Part:
    """Records of one part, with requests in between."""

    def __init__(self, lengths: tuple[int, ...], requests: dict[int, int] | None = None) -> None:
        self.lengths, self.requests = lengths, requests or {}

    def shard(self, rank: int, world: int) -> list[Any]:
        items: list[Any] = [
            Sample(f"{rank}-{i}", np.zeros((4, 4, 3), np.uint8), "c") for i in range(self.lengths[rank])
        ]
        if (at := self.requests.get(rank)) is not None:
            items.insert(at, ForgetRequest(id=f"of-{rank}", offset=at, label="c"))
        return items

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def sharded(member: Any, made: Part, size: int = 5) -> Sharded:
    whole = IterableSource(lambda: made, batch_size=size, deterministic=True)
    part = whole.shard(member.rank, member.world_size, shard_size(size, member))
    return Sharded(part, whole, member, lambda: None)


def test_parts_end_to_end_in_the_order_of_ranks():
    group = Threads(2)
    read = group.each(lambda m: list(sharded(m, Part((8, 3)))))
    ids = [[sample.id for sample in batch.samples] for batch in read[0]]
    assert ids == [["0-0", "0-1", "0-2", "1-0", "1-1"], ["0-3", "0-4", "0-5", "1-2"], ["0-6", "0-7"]]
    assert [batch.offset for batch in read[0]] == [0, 5, 9]
    assert [described(batch) for batch in read[0]] == [described(batch) for batch in read[1]]
    for rank, batches in enumerate(read):
        held = [s for batch in batches for s in batch.samples if not isinstance(s, RemoteSample)]
        assert {sample.id[0] for sample in held} == {str(rank)}


def test_a_request_in_one_part_is_every_ranks_and_comes_first():
    group = Threads(2)
    for events in group.each(lambda m: list(sharded(m, Part((5, 5), {1: 2})))):
        kinds = [e.id if isinstance(e, ForgetRequest) else len(e) for e in events]
        assert kinds == [5, "of-1", 4, 1]
        assert [e.offset for e in events] == [0, 5, 5, 9]


@pytest.mark.parametrize("requests", [{0: 4}, {0: 2, 1: 2}])
@pytest.mark.parametrize("stop", range(1, 5))
def test_parts_continue_from_every_event(stop, requests):
    made = Part((9, 6), requests)
    whole = Threads(2).each(
        lambda m: [repr(e.id if isinstance(e, ForgetRequest) else described(e)) for e in sharded(m, made)]
    )

    assert [each for each in whole[0] if "of-" in each] == [f"'of-{rank}'" for rank in requests]

    def begun(member: Any) -> Any:
        source = sharded(member, made)
        events = iter(source)
        for _ in range(stop):
            next(events)
        return source.state_dict()

    states = Threads(2).each(begun)
    assert states[0] == states[1]

    def rest(member: Any) -> Any:
        source = sharded(member, made)
        source.load_state_dict(states[0])
        return [repr(e.id if isinstance(e, ForgetRequest) else described(e)) for e in source]

    assert Threads(2).each(rest) == [events[stop:] for events in whole]


def test_parts_are_for_as_many_ranks_as_left_them():
    (state, _) = Threads(2).each(lambda m: sharded(m, Part((2, 2))).state_dict())

    def loaded(member: Any) -> None:
        sharded(member, Part((2, 2, 2))).load_state_dict(state)

    assert all("that of 2 shards" in str(each) for each in Threads(3).each(loaded))


def test_a_source_without_parts_says_so():
    (error,) = Threads(1).each(lambda m: iterated(Records()).shard(0, 1, 4))
    assert isinstance(error, SourceError)
    assert "shard(rank, world)" in str(error)


def test_shards_of_tar_files_are_dealt_out(tmp_path):
    import io
    import tarfile

    from PIL import Image

    for number in range(3):
        with tarfile.open(tmp_path / f"s{number}.tar", "w") as archive:
            for i in range(2):
                content = io.BytesIO()
                Image.new("RGB", (4, 4)).save(content, "PNG")
                for ending, data in (("png", content.getvalue()), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{number}-{i}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    source = named_source("webdataset", {"shards": str(tmp_path / "s{0..2}.tar")}, batch_size=4)
    read = [[s.id for b in source.shard(rank, 2, 2) for s in b.samples] for rank in (0, 1)]  # type: ignore[attr-defined]
    assert read == [["0-0", "0-1", "2-0", "2-1"], ["1-0", "1-1"]]

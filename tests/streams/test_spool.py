"""The spool: durable before "received", each id once, bounded, replayed alike, without what is forgotten."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from forgetting_fakes import Opened
from live_readers import Clock, ScriptedReader, record
from log_messages import logged
from PIL import Image

from streamcl.errors import BadRecord, RefusedRequest, RunBusy, SourceError, SpoolFull
from streamcl.events import Batch, ForgetRequest, RejectedRecord, Sample
from streamcl.requests.label import Label
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.storage.files import DISK
from streamcl.testing import FaultyDisk, PowerLoss, check_live_reader, each_exactly_once
from streams.live.arrival_log import ArrivalLog
from streams.live.cutting import Cutting
from streams.live.source import LiveSource
from streams.live.spool.spool import Retention, Spool
from streams.live.spool.spool_producers import IterableProducer, ReaderProducer
from streams.live.spool.spool_reader import SpoolReader
from streams.live.spool.spool_record import SpoolFormat
from streams.live.spool.spool_writer import SpoolWriter
from streams.user.records import RecordPolicy
from streams.user.retrying import RetryingReader

CANARY = b"\xffcanary of a face\xfe"
MEGABYTE = 2**20


class Nothing:
    """A producer that brings nothing and waits."""

    name = "camera"
    guarantee = DeliveryGuarantee("exactly_once", "from the spool on")

    def run(self, writer, stop):
        stop.wait()


class Sends:
    """A producer that appends the records of a list, each durably, and ends."""

    name = "camera"
    guarantee = Nothing.guarantee

    def __init__(self, records):
        self.records, self.received = records, []

    def run(self, writer, stop):
        for each in self.records:
            self.received.append(writer.append(each))


def reader_of(folder, producer=None, retention=None, **options):
    retention = retention or Retention(reserve=0)
    return SpoolReader(Spool(folder / "spool", retention), producer or Nothing(), **options)


@contextmanager
def opened(reader, position=None):
    reader.open(position)
    try:
        yield reader
    finally:
        reader.close()


@contextmanager
def writing(folder, retention=None, *, disk=None, **options):
    with open_spool(folder, retention, disk=disk or DISK) as spool:
        yield SpoolWriter(spool, "camera", **options)


@contextmanager
def open_spool(folder, retention=None, **options):
    spool = Spool(folder / "spool", retention or Retention(reserve=0), **options)
    spool.open()
    try:
        yield spool
    finally:
        spool.close()


def everything(reader, *, ended=True):
    found = []
    while (arrivals := reader.poll(0.05)) is not None:
        found += arrivals
        if not ended and not arrivals:
            break
    return found


def ids(arrivals):
    return [each.value["id"] for each in arrivals]


def content(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# -- the form of a record ----------------------------------------------------------------------------------


def test_encoded_images_are_kept_byte_for_byte_and_arrays_pixel_for_pixel(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=50)
    encoded = (tmp_path / "a.jpg").read_bytes()
    records = [
        {"image": encoded, "label": 3, "id": "bytes", "subject": "p", "domain": "d", "privacy": "user"},
        {"image": str(tmp_path / "a.jpg"), "label": "x", "id": "path"},
        {"image": pixels, "label": None, "id": "array"},
        {"image": pixels / 255.0, "label": "x", "id": "floats"},
        (Image.fromarray(pixels), "x", "pil"),
        Sample("sample", pixels, "x"),
    ]
    with opened(reader_of(tmp_path, Sends(records))) as reader:
        first, path, *arrays = (each.value for each in everything(reader))
    expected = {"id": "bytes", "label": "3", "subject": "p", "domain": "d", "privacy": "user"}
    assert first == {"image": encoded, **expected}
    assert path["image"] == encoded
    assert [each["id"] for each in arrays] == ["array", "floats", "pil", "sample"]
    assert all(np.array_equal(each["image"], pixels) for each in arrays)
    assert arrays[0]["label"] is None


def test_a_record_without_an_id_is_called_by_its_number(tmp_path):
    with opened(reader_of(tmp_path, Sends([(np.zeros((2, 2, 3), np.uint8), "x")] * 3))) as reader:
        assert ids(everything(reader)) == ["camera-0", "camera-1", "camera-2"]


def test_a_bad_record_takes_a_number_and_is_rejected_later_or_ends_the_producer(tmp_path):
    bad = [{"image": "no such file", "label": "x", "id": "lost"}, {"label": "x"}, (object(), 1)]
    with opened(reader_of(tmp_path, Sends([*bad, record(3)]))) as reader:
        *rejected, good = (each.value for each in everything(reader))
    assert all(isinstance(each, RejectedRecord) for each in rejected)
    assert ["cannot be read" in each.reason for each in rejected] == [True, False, False]
    assert good["id"] == "r3"
    strict = SpoolFormat(RecordPolicy(on_bad_record="fail"))
    reader = reader_of(tmp_path / "strict", Sends(bad), form=strict)
    with opened(reader), pytest.raises(BadRecord, match="cannot be read"):
        everything(reader)


def test_requests_and_labels_pass_in_their_order(tmp_path):
    request, label = ForgetRequest(subject="p7", key="k"), Label("r0", "b")
    refused = RefusedRequest("cannot be read", hint="write JSON")
    sent = [record(0), request, label, label, refused, record(1)]
    with opened(reader_of(tmp_path, Sends(sent))) as reader:
        values = [each.value for each in everything(reader)]
    assert values[1:4] == [request, label, label]
    assert (str(values[4]), values[4].hint) == ("cannot be read", "write JSON")
    assert [values[0]["id"], values[5]["id"]] == ["r0", "r1"]


def test_labels_come_as_mappings_or_with_any_names_and_one_that_cannot_be_read_has_its_fault(tmp_path):
    sent = [{"label_of": "r0", "label": "b"}, {"label_of": 7, "label": np.int64(1)}, Label("r1 ", " cat")]
    sent += [{"label_of": "r0", "withdraw": True}, Label("r1", None)]
    sent += [{"label_of": "r2"}, {"label_of": None, "label": "b"}, Label("r3", 2.5), Label("r4", "b", "late")]
    form = SpoolFormat(class_names=["ant", "bee"])
    with opened(reader_of(tmp_path, Sends(sent), form=form)) as reader:
        *good, blank, nameless, half, late = (each.value for each in everything(reader))
    assert good == [
        Label("r0", "b"),
        Label("7", "bee"),
        Label("r1 ", "cat"),
        Label("r0", None),
        Label("r1", None),
    ]
    assert [each.id for each in (blank, nameless, half)] == ["r2", "<NoneType>", "r3"]
    assert all(each.fault for each in (blank, nameless, half))
    assert late == Label("r4", "b", "late")
    strict = SpoolFormat(RecordPolicy(on_bad_record="fail"))
    reader = reader_of(tmp_path / "strict", Sends([{"label_of": "r2"}]), form=strict)
    with opened(reader), pytest.raises(BadRecord, match="no label"):
        everything(reader)


def test_a_record_whose_label_has_come_before_it_is_no_repetition_after_a_restart(tmp_path):
    with writing(tmp_path) as writer:
        assert writer.append(Label("r0", "b")) == 0
    with writing(tmp_path) as writer:
        assert writer.append(record(0)) == 1
        assert writer.append(record(0)) == 1


def test_a_batch_is_not_appended_as_one_record(tmp_path):
    with writing(tmp_path) as writer:
        with pytest.raises(BadRecord, match="2 records"):
            writer.append([record(0), record(1)])
        assert writer.append(record(0)) == 0


def test_names_are_kept_in_their_one_spelling_so_that_a_request_finds_them(tmp_path):
    sent = {**record(0), "subject": " cafe\u0301 ", "domain": "door "}
    with opened(reader_of(tmp_path, Sends([sent]))) as reader:
        (found,) = everything(reader)
    assert (found.value["subject"], found.value["domain"]) == ("caf\u00e9", "door")
    spool = Spool(tmp_path / "spool", Retention(reserve=0))
    assert spool.erase([(ForgetRequest(subject="cafe\u0301"), [])]) == 1
    assert b"caf" not in content(tmp_path)


def test_a_batch_of_labels_that_were_erased_after_it_was_cut_is_replayed_as_nothing(tmp_path):
    with writing(tmp_path) as writer:
        for each in (record(0), Label("r0", "b"), Label("r0", "c"), ForgetRequest(subject="p"), record(1)):
            writer.append(each)

    def source():
        log = ArrivalLog(tmp_path / "arrivals.log")
        cutting = Cutting(size=1, max_wait=None)
        return LiveSource(reader_of(tmp_path, Sends([])), cutting=cutting, log=log, clock=Clock())

    first = source()
    events = iter(first)
    state = first.state_dict()
    numbers = [len(next(events).labels) for _ in range(3)]
    assert numbers == [0, 1, 1]
    first.close()
    Spool(tmp_path / "spool", Retention(reserve=0)).erase([(ForgetRequest(ids=("r0",)), ["r0"])])
    again = source()
    again.load_state_dict(state)
    found = list(again)
    again.close()
    assert [each.offset for each in found] == [0, 1, 1, 1, 1]
    assert [each.id for event in found if isinstance(event, Batch) for each in event.samples] == ["r1"]


# -- exactly once ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_it_keeps_the_promises_of_a_live_reader(tmp_path):
    with writing(tmp_path) as writer:
        for number in range(5):
            writer.append(record(number))
        writer.append(ForgetRequest(subject="p7", key="k"))
    check_live_reader(lambda: reader_of(tmp_path, recent_ids=0), timeout=0.02)


@pytest.mark.faults
@pytest.mark.parametrize("survivors", [None, 1, 2])
def test_what_was_confirmed_survives_a_loss_of_power_at_any_call(tmp_path, survivors):
    number, fired = 0, True
    while fired:
        number += 1
        folder, disk = tmp_path / str(number), FaultyDisk(number, "drop_unsynced", survivors=survivors)
        confirmed = []
        with suppress(PowerLoss), writing(folder, disk=disk) as writer:
            for each in range(4):
                confirmed.append(writer.append(record(each)))
        fired = disk.fired
        with opened(reader_of(folder, Sends([record(k) for k in range(4)]))) as reader:  # sent again
            found = everything(reader)
        each_exactly_once(ids(found), [f"r{k}" for k in range(4)])
        assert [each.key for each in found][: len(confirmed)] == confirmed
    assert number > 8


def test_a_repetition_is_not_written_again_within_the_window_also_after_a_restart(tmp_path):
    with writing(tmp_path, recent_ids=3) as writer:
        assert [writer.append(record(k)) for k in (0, 1, 0, 2, 1)] == [0, 1, 0, 2, 1]
        assert writer.repetitions == 2
    with writing(tmp_path, recent_ids=3) as writer:
        assert [writer.append(record(k)) for k in (2, 3, 0)] == [2, 3, 4]  # 0 is too long ago
    with writing(tmp_path, recent_ids=0) as writer:
        assert writer.append(record(3)) == 5
        assert writer.append_entries([*writer.form.entries_of(record(3))] * 2) == [6, 7]


def test_a_repetition_within_a_group_is_not_written_either(tmp_path):
    with writing(tmp_path) as writer:
        entries = [entry for k in (0, 1, 0) for entry in writer.form.entries_of(record(k))]
        assert writer.append_entries(entries) == [0, 1, 0]


def test_records_without_ids_are_never_repetitions(tmp_path):
    blank = (np.zeros((2, 2, 3), np.uint8), "x")
    with writing(tmp_path) as writer:
        assert [writer.append(blank) for _ in range(3)] == [0, 1, 2]


def test_a_position_that_the_spool_does_not_hold_is_a_gap(tmp_path):
    retention = Retention(keep=0, reserve=0, max_bytes=16)
    with open_spool(tmp_path) as spool:
        writer = SpoolWriter(spool, "camera")
        writer.append(record(0))
        spool.log.drop(1, older_than=-1, max_bytes=0)
        writer.append(record(1))
    for position in ({"next": 0}, {"next": 3}):
        with pytest.raises(SourceError, match="lost"):
            reader_of(tmp_path, retention=retention).open(position)


def test_one_process_at_a_time(tmp_path):
    with opened(reader_of(tmp_path)), pytest.raises(RunBusy):
        reader_of(tmp_path).open(None)


@pytest.mark.parametrize("after", range(1, 6))
def test_a_source_over_a_spool_goes_on_alike_after_every_event(tmp_path, after):
    with writing(tmp_path) as writer:
        for number in range(10):
            writer.append(record(number))

    def source():
        clock = Clock()
        reader = reader_of(tmp_path, Sends([]))
        log = ArrivalLog(tmp_path / "arrivals.log")
        return LiveSource(reader, cutting=Cutting(size=3), log=log, clock=clock)

    first = source()
    events, state, seen = iter(first), first.state_dict(), []
    for _ in range(after):
        with suppress(StopIteration):
            seen.append([each.id for each in next(events).samples])
    first.close()
    again = source()
    again.load_state_dict(state)
    everything_again = [[each.id for each in event.samples] for event in again]
    again.close()
    assert everything_again[: len(seen)] == seen
    assert [name for names in everything_again for name in names] == [f"r{k}" for k in range(10)]


# -- back-pressure and retention ---------------------------------------------------------------------------


def large(number):
    return {"image": bytes([number]) * MEGABYTE, "label": "x", "id": f"r{number}"}


def test_a_full_spool_lets_its_producer_wait_until_records_are_learned(tmp_path):
    producer = Sends([large(k) for k in range(40)])
    reader = reader_of(tmp_path, producer, Retention(max_bytes=16 * MEGABYTE, reserve=0))
    with logged() as messages, opened(reader):
        found = list(reader.poll(0.0))
        until(lambda: any("has no room" in each for each in messages))
        while len(found) < 40:
            arrivals = reader.poll(0.05)
            assert arrivals is not None
            found += arrivals
            reader.advance([each.key for each in found])
            assert reader.lag() <= 16
            reader.acknowledge(reader.position())
    assert ids(found) == [f"r{k}" for k in range(40)]
    assert "the source waits" in next(each for each in messages if "has no room" in each)
    assert any("has room again" in each for each in messages)


def until(true, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def test_a_producer_that_would_not_wait_is_refused_and_nothing_is_written(tmp_path):
    with open_spool(tmp_path, Retention(max_bytes=2 * MEGABYTE, reserve=0)) as spool:
        writer = SpoolWriter(spool, "camera")
        writer.append(large(0))
        with pytest.raises(SpoolFull, match="max_bytes"):
            writer.append(large(1), timeout=0.0)
        spool.acknowledge(1)
        assert writer.append(large(1), timeout=0.0) == 1


def taken(reader, count):
    """Read and learn records until there are `count`."""
    found = []
    while len(found) < count:
        arrivals = reader.poll(0.05)
        assert arrivals is not None
        found += arrivals
        if arrivals:
            reader.advance([each.key for each in arrivals])
            reader.acknowledge(reader.position())
    return found


@pytest.mark.parametrize("kind", ["iterable", "reader"])
def test_what_comes_at_once_may_be_more_than_the_spool_has_room_for(tmp_path, kind):
    records = [large(number) for number in range(40)]
    scripted = ScriptedReader([(0.0, each) for each in records], Clock(), ends=True)
    of_reader = ReaderProducer(scripted, SpoolFormat())
    producer = of_reader if kind == "reader" else iterable(lambda: iter(records))
    with opened(reader_of(tmp_path, producer, Retention(max_bytes=16 * MEGABYTE, reserve=0))) as reader:
        assert ids(taken(reader, 40)) == [f"r{number}" for number in range(40)]


def test_a_record_that_never_has_room_is_a_bad_one(tmp_path):
    retention = Retention(max_bytes=2 * MEGABYTE, reserve=0)
    huge = {**large(0), "image": bytes(3 * MEGABYTE)}
    with opened(reader_of(tmp_path, Sends([huge, large(1)]), retention)) as reader:
        bad, good = (each.value for each in taken(reader, 2))
    assert (bad.id, good["id"]) == ("r0", "r1")
    assert "max_bytes" in bad.reason
    strict = SpoolFormat(RecordPolicy(on_bad_record="fail"))
    reader = reader_of(tmp_path / "strict", Sends([huge]), retention, form=strict)
    with opened(reader), pytest.raises(BadRecord, match="spool may have"):
        taken(reader, 1)


def test_the_reserve_of_the_disk_stays_free(tmp_path):
    with writing(tmp_path, Retention(reserve=2**60)) as writer, pytest.raises(SpoolFull, match="disk"):
        writer.append(large(0), timeout=0.0)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["enospc", "short"])
def test_a_disk_that_is_full_lets_the_producer_wait_and_loses_nothing(tmp_path, kind):
    disk = FaultyDisk()
    with logged() as messages, writing(tmp_path, disk=disk) as writer:
        writer.append(record(0))
        disk.fail_later(1, kind)
        thread = threading.Thread(target=lambda: [writer.append(record(k)) for k in (1, 2)])
        thread.start()
        until(lambda: any("disk is full" in each for each in messages))
        disk.repair()
        thread.join()
    with opened(reader_of(tmp_path, Sends([]))) as reader:
        assert ids(everything(reader)) == ["r0", "r1", "r2"]


@pytest.mark.faults
def test_a_disk_that_fails_ends_the_producer_with_its_error(tmp_path):
    disk = FaultyDisk()
    with writing(tmp_path, disk=disk) as writer:
        disk.fail_later(2, "eio")
        with pytest.raises(SourceError, match=r"Input/output"):
            writer.append(record(0))
        assert writer.append(record(0)) == 0


def test_learned_records_are_kept_for_a_while_and_then_dropped(tmp_path):
    clock = Clock()
    spool = Spool(tmp_path / "spool", Retention(keep=160, reserve=0), clock=clock)
    reader = SpoolReader(spool, Nothing())
    with opened(reader):
        for number in range(20):
            reader.writer.append(record(number))
            clock.now += 11
        found = everything(reader, ended=False)
        reader.advance([each.key for each in found])
        assert set(dict(reader.fetch(["r0", "r19"]))) == {"r0", "r19"}
        reader.acknowledge(reader.position())
        assert set(dict(reader.fetch(["r0", "r19"]))) == {"r19"}
        clock.now += 1000
        reader.acknowledge(reader.position())
        assert not list(reader.fetch(["r19"]))
        assert reader.writer.append(record(20)) == 20


# -- forgetting --------------------------------------------------------------------------------------------


def with_faces(folder):
    """Records of two subjects and two classes; every second one holds the canary."""
    with writing(folder) as writer:
        for number in range(12):
            names = {"subject": f"p{number % 2}", "domain": "door", "privacy": ("core", "user")[number % 2]}
            image = CANARY * 3 if number % 2 else b"another"
            writer.append({"image": image, "label": "ab"[number % 2], "id": f"r{number}", **names})
        writer.append(ForgetRequest(subject="p1", key="of p1", id="of p1"))
    return Spool(folder / "spool", Retention(reserve=0))


@pytest.mark.parametrize(
    ("request_", "ids_"),
    [
        (ForgetRequest(subject="p1"), ()),
        (ForgetRequest(label="b"), ()),
        (ForgetRequest(all_users=True), ()),
        (ForgetRequest(domain="door", subject="p1"), tuple(f"r{k}" for k in range(1, 12, 2))),
    ],
)
def test_an_erasure_leaves_no_byte_of_what_is_forgotten_and_every_place(tmp_path, request_, ids_):
    spool = with_faces(tmp_path)
    assert content(tmp_path).count(CANARY) == 18
    assert spool.count([(request_, ids_)]) == 6
    assert spool.erase([(request_, ids_)]) == 6
    assert CANARY not in content(tmp_path)
    assert b"r11" not in content(tmp_path)
    assert spool.erase([(request_, ids_)]) == 0
    with opened(reader_of(tmp_path, Sends([]))) as reader:
        values = [each.value for each in everything(reader)]
    assert [each["id"] for each in values[0:12:2]] == [f"r{k}" for k in range(0, 12, 2)]
    assert values[1:12:2] == [RejectedRecord(0, "", "forgotten")] * 6


def test_where_it_may_be_learned_again_only_samples_that_have_passed_are_erased(tmp_path):
    spool = with_faces(tmp_path)
    assert spool.erase([(ForgetRequest(subject="p1", on_return="learn"), ["r1", "r3"])]) == 2
    assert content(tmp_path).count(CANARY) == 12


def test_a_request_leaves_the_spool_with_what_it_names(tmp_path):
    for number, request in enumerate(
        [ForgetRequest(subject="p9", key="of p1"), ForgetRequest(id="of p1", subject="x")]
    ):
        spool = with_faces(tmp_path / str(number))
        assert b'"of p1"' in content(tmp_path / str(number))
        spool.scrub(request)
        assert b'"of p1"' not in content(tmp_path / str(number))
        with opened(reader_of(tmp_path / str(number), Sends([]))) as reader:
            values = [each.value for each in everything(reader)]
        assert len(values) == 13
        assert values[12].end == 0  # no record, and no place in the stream


def test_what_is_erased_while_it_waits_does_not_end_a_strict_run(tmp_path):
    spool = with_faces(tmp_path)
    spool.erase([(ForgetRequest(label="b"), ())])
    source = LiveSource(
        reader_of(tmp_path, Sends([])), cutting=Cutting(size=12), policy=RecordPolicy(on_bad_record="fail")
    )
    with pytest.raises(BadRecord):  # the others are no images
        next(iter(source))
    source.close()
    spool.erase([(ForgetRequest(label="a"), ())])
    batch = next(iter(source))
    source.close()
    assert {each.reason for each in batch.rejected} == {"forgotten"}


def test_records_that_wait_are_not_fetched(tmp_path):
    with_faces(tmp_path)
    with opened(reader_of(tmp_path)) as reader:
        everything(reader, ended=False)
        reader.advance([0, 1])
        assert set(dict(reader.fetch(["r0", "r1", "r2"]))) == {"r0", "r1"}


def test_whatever_comes_again_of_what_is_forgotten_leaves_the_spool(tmp_path):
    """Also a record whose image is broken, and labels: of a forgotten record, and of a forgotten class."""
    forgotten = threading.Event()

    def records():
        yield from [record(8) | {"label": "intruder"}, *map(record, range(4))]
        assert forgotten.wait(60.0)
        yield from [{"image": CANARY, "label": "a", "id": "face-1"}, Label("face-2", "a")]
        yield from [
            Label("r0", "intruder"),
            Batch(0, (), rejected=(RejectedRecord(0, "face-3", "too large"),)),
        ]
        yield from map(record, (4, 6, 10))

    faces = ForgetRequest(ids=("face-1", "face-2", "face-3"), id="faces")
    intruder = ForgetRequest(label="intruder", offset=2, id="class")
    source = LiveSource(reader_of(tmp_path, Sends(records())), cutting=Cutting(size=2, max_wait=None))
    with Opened(tmp_path / "run", source, schedule=[faces, intruder]) as opened:
        predicted = []
        for each in opened.processor.run():
            predicted.append(each.id)
            if each.offset == 2:
                forgotten.set()
    source.close()
    assert predicted == ["r8", "r0", "r1", "r2", "r3", "r4", "r6", "r10"]
    for canary in (CANARY, b"face-", b"intruder"):
        assert canary not in content(tmp_path / "spool")
    assert content(tmp_path / "spool").count(b'"label":"a"') == 5


# -- producers ---------------------------------------------------------------------------------------------


def iterable(make, *, deterministic=False):
    reader = RetryingReader(
        make, "mine", deterministic=deterministic, retries=0, backoff=0.0, sleep=lambda _: None
    )
    return IterableProducer(reader, "mine", SpoolFormat())


@pytest.mark.parametrize("stop_after", [0, 1, 5, 99])
def test_an_iterable_that_can_go_back_continues_where_the_spool_ends(tmp_path, stop_after):
    items = [(np.full((2, 2, 3), k, np.uint8), "x") for k in range(12)]
    with opened(reader_of(tmp_path, iterable(lambda: items))) as reader:
        found = []
        while len(found) < min(stop_after, 12):
            found += reader.poll(0.1)
    with opened(reader_of(tmp_path, iterable(lambda: items))) as reader:
        values = [each.value["image"][0, 0, 0] for each in everything(reader)]
    assert values == list(range(12))


def test_a_generator_is_read_once_and_its_records_stay(tmp_path):
    def generator():
        yield from (record(k) for k in range(5))
        raise OSError("the cable is out")

    for _ in range(2):  # begun anew, its records are known by their ids
        reader = reader_of(tmp_path, iterable(generator))
        with opened(reader), pytest.raises(SourceError, match="cable"):
            everything(reader)
    with opened(reader_of(tmp_path)) as reader:
        assert ids(everything(reader, ended=False)) == [f"r{k}" for k in range(5)]
    assert "lost" in str(iterable(generator).guarantee)
    assert iterable(generator).guarantee.kind == "exactly_once"


def test_a_live_reader_is_acknowledged_what_the_spool_holds(tmp_path):
    clock = Clock()
    scripted = ScriptedReader([(0.0, record(k)) for k in range(6)], clock, ends=True)
    with opened(reader_of(tmp_path, ReaderProducer(scripted, SpoolFormat()))) as reader:
        assert ids(everything(reader)) == [f"r{k}" for k in range(6)]
        held = reader.retained.log.end
    assert [each["next"] for each in scripted.acknowledged] == [held]
    again = ScriptedReader([(0.0, record(k)) for k in range(9)], Clock(), ends=True)
    with opened(reader_of(tmp_path, ReaderProducer(again, SpoolFormat()), recent_ids=0)) as reader:
        assert ids(everything(reader)) == [f"r{k}" for k in range(9)]

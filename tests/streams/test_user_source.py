import random
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import river.stream
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.events import Batch, ForgetRequest, RejectedRecord, Sample
from streamcl.registry import import_callable
from streamcl.requests.label import Label
from streamcl.storage.plain_state import state_hash
from streamcl.testing.source_checks import check_source, fingerprints, first_events, samples_of
from streams.user.inner_state import from_plain, to_plain
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)


def pairs(count=23):
    return [(picture(i), i % 4) for i in range(count)]


def source(made, **options):
    return IterableSource(lambda: made, **({"name": "s", "batch_size": 5, "backoff": 0.0} | options))


class Counting:
    """Its own iterator, with a state; yields groups of the given sizes (0: a single record)."""

    def __init__(self, sizes, requests=()):
        self.sizes, self.requests = list(sizes), set(requests)
        self.place = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.place >= len(self.sizes):
            raise StopIteration
        place = self.place
        self.place += 1
        if place in self.requests:
            return ForgetRequest(id=f"r{place}", label="1")
        size = self.sizes[place]
        if size == 0:
            return picture(place), place % 3
        return np.stack([picture(place * 100 + i) for i in range(size)]), [place % 3] * size

    def state_dict(self):
        return {"place": self.place, "nested": ((1, b"x"), {2: self.place})}

    def load_state_dict(self, state):
        assert state["nested"] == ((1, b"x"), {2: state["place"]})
        self.place = state["place"]


class Images(Dataset):
    def __len__(self):
        return 17

    def __getitem__(self, index):
        return torch.from_numpy(picture(index)).permute(2, 0, 1), index % 3


class Endless(IterableDataset):
    def __iter__(self):
        return iter(pairs(12))


@pytest.mark.parametrize(
    "make",
    [
        lambda: source(pairs()),
        lambda: source(Images()),
        lambda: source(TensorDataset(torch.zeros(9, 3, 4, 4), torch.arange(9))),
        lambda: source((np.stack([picture(i) for i in range(12)]), list("abcabcabcabc"))),
        lambda: source({"image": [picture(i) for i in range(12)], "label": [None] * 12}),
        lambda: source([(np.stack([picture(i) for i in range(13)]), [1] * 13)] * 3),
        lambda: IterableSource(lambda: Counting([0] * 23), batch_size=5),
        lambda: IterableSource(lambda: Counting([13, 0, 0, 7, 2, 40, 1]), batch_size=5),
        lambda: IterableSource(lambda: Counting([3, 9, 0, 0, 3, 2, 4], requests=[2, 3, 6]), batch_size=5),
        lambda: IterableSource(lambda: iter(pairs()), batch_size=4, deterministic=True),
        lambda: IterableSource(lambda: DataLoader(Images(), batch_size=4), batch_size=3, deterministic=True),
        lambda: IterableSource(Endless, batch_size=5, deterministic=True),
        lambda: source([(picture(0), 1), (None, 2), "?", (picture(3), -1), (picture(4), 2)] * 3),
    ],
)
def test_every_kind_of_iterable_is_a_source(make):
    check_source(make)


@pytest.mark.long
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=12),
    st.sets(st.integers(0, 11), max_size=3),
    st.integers(1, 6),
)
def test_any_mix_of_items_can_be_resumed_anywhere(sizes, requests, batch_size):
    check_source(lambda: IterableSource(lambda: Counting(sizes, requests), batch_size=batch_size), limit=None)


def test_what_can_be_resumed_says_so():
    assert source(pairs()).replayable
    assert source(Images()).replayable
    assert IterableSource(lambda: Counting([0])).replayable
    assert IterableSource(lambda: iter(pairs()), deterministic=True).replayable
    for made in (
        iter(pairs()),
        DataLoader(Images(), batch_size=2),
        Endless(),
        river.stream.iter_array([[1]], [1]),
    ):
        assert not source(made).replayable


def test_a_state_is_kept_by_the_object_or_by_its_iterator():
    class Held:
        """Like Hugging Face's iterable data sets: the object keeps the state of the iteration it started."""

        def __init__(self):
            self.start = self.now = 0

        def __iter__(self):
            for number in range(self.start + 1, 14):
                self.now = number
                yield picture(number), 1

        def state_dict(self):
            return {"now": self.now}

        def load_state_dict(self, state):
            self.start = self.now = state["now"]

    class Maker:
        def __iter__(self):
            return Counting([0] * 8)

    check_source(lambda: IterableSource(Held, batch_size=3))
    check_source(lambda: IterableSource(Maker, batch_size=3))


@pytest.mark.parametrize("sizes", [[13, 0, 0, 7, 2, 40, 1], [0] * 20, [3, 9, 4, 4]])
def test_the_states_after_a_restart_are_those_of_the_uninterrupted_run(sizes):
    whole = source(Counting(sizes))
    states = [whole.state_dict() for _ in whole]
    for index, state in enumerate(states):
        restored = source(Counting(sizes))
        restored.load_state_dict(state)
        assert [restored.state_dict() for _ in restored] == states[index + 1 :]


def test_an_iterator_that_begins_anew_at_its_end_is_not_resumed_into_a_second_pass():
    class Rewinding(Counting):
        def __next__(self):
            if self.place == len(self.sizes):
                self.place = 0
                raise StopIteration
            return super().__next__()

    check_source(lambda: source(Rewinding([0] * 12)))


def test_the_users_state_is_asked_for_once_a_batch_at_most():
    class Asked(Counting):
        asked = 0

        def state_dict(self):
            self.asked += 1
            return super().state_dict()

    made = Asked([0] * 20)
    stream = source(made)
    for _ in stream:
        stream.state_dict()
    assert made.asked <= 4


def test_one_whole_batch_may_be_the_source():
    images = np.stack([picture(i) for i in range(7)])
    for made in ((images, list("abcabca")), {"image": images, "label": list("abcabca")}):
        assert [sample.label for sample in samples_of(first_events(source(made)))] == list("abcabca")


def test_records_become_batches_with_default_ids():
    events = first_events(source(pairs(12)))
    assert [(event.offset, len(event)) for event in events] == [(0, 5), (5, 5), (10, 2)]
    assert [sample.id for sample in samples_of(events)] == [f"s-{i}" for i in range(12)]
    assert [sample.label for sample in samples_of(events)] == [str(i % 4) for i in range(12)]


def test_a_request_flushes_what_is_pending_and_takes_its_place():
    request = ForgetRequest(id="r", label="1")
    events = first_events(source([*pairs(7), request, *pairs(2)]))
    assert [(event.offset, event.end) for event in events] == [(0, 5), (5, 7), (7, 7), (7, 9)]
    assert isinstance(events[2], ForgetRequest)


def batch(offset, count, first=None):
    start = offset if first is None else first
    return Batch(offset, tuple(Sample(f"b{start + i}", picture(start + i), "x") for i in range(count)))


def test_batches_of_the_users_own_pass_as_they_are():
    events = first_events(source([batch(0, 3), batch(3, 8), *pairs(2), batch(13, 1)]))
    assert [(event.offset, len(event)) for event in events] == [(0, 3), (3, 8), (11, 2), (13, 1)]


def test_duplicates_are_dropped_and_overlaps_cut():
    events = first_events(source([batch(0, 4), batch(0, 4), batch(2, 5), batch(7, 1), batch(3, 2)]))
    assert [sample.id for sample in samples_of(events)] == [f"b{i}" for i in range(8)]
    assert [(event.offset, event.end) for event in events] == [(0, 4), (4, 7), (7, 8)]


def test_a_gap_is_an_error():
    stream = iter(source([batch(0, 4), batch(5, 4)]))
    next(stream)
    with pytest.raises(SourceError, match="from offset 4 to 5"):
        next(stream)


def test_samples_of_the_users_own_batches_are_checked():
    bad = Sample("b1", np.zeros((4, 4, 3), np.float64) * np.nan, "x")
    rejected = RejectedRecord(2, "b2", "blurred")
    (event,) = first_events(source([Batch(0, (batch(0, 1).samples[0], bad), (rejected,))]))
    assert [sample.id for sample in event.samples] == ["b0"]
    assert [(one.offset, one.id) for one in event.rejected] == [(1, "b1"), (2, "b2")]


def test_bad_records_are_quarantined_or_end_the_stream():
    records = [(picture(0), 1), (np.full((4, 4, 3), np.inf), 1), (picture(2), 1)]
    (event,) = first_events(source(records))
    assert [sample.id for sample in event.samples] == ["s-0", "s-2"]
    assert [(one.offset, one.id) for one in event.rejected] == [(1, "s-1")]
    with pytest.raises(BadRecord, match="infinite"):
        first_events(source(records, policy=RecordPolicy(on_bad_record="fail")))


def test_a_class_over_the_limit_is_refused_also_after_a_restart():
    records = [(picture(i), label) for i, label in enumerate("aabcabcdb")]
    policy = RecordPolicy(max_classes=2)
    events = first_events(source(records, policy=policy, batch_size=2))
    assert "".join(sample.label for sample in samples_of(events)) == "aababb"
    assert all("max_classes" in one.reason for event in events for one in event.rejected)
    check_source(lambda: source(records, policy=policy, batch_size=2))
    with pytest.raises(BadRecord, match="one class more"):
        first_events(source(records, policy=RecordPolicy(max_classes=2, on_bad_record="fail")))


def test_the_position_has_no_class_name_in_it():
    """A forgotten class would stay in checkpoints by the list that counts against the limit."""
    made = source([(picture(i), label) for i, label in enumerate(["peregrine", "owl"] * 4)], batch_size=4)
    first_events(made)
    state = made.state_dict()
    assert len(state["seen"]) == 2
    assert "peregrine" not in repr(state)


def test_a_data_set_may_refuse_a_record_itself():
    class Picky(Images):
        def __getitem__(self, index):
            if index == 3:
                raise BadRecord("out of focus")
            return super().__getitem__(index)

    events = first_events(source(Picky()))
    assert [one.offset for one in events[0].rejected] == [3]
    assert events[0].rejected[0].reason == "out of focus"


def test_what_an_object_says_of_itself_is_the_info():
    made = Images()
    made.classes = ["cat", "dog", "emu"]
    made.shifts = [5, 10]
    made.holdout = {"early": pairs(3), "late": (np.stack([picture(0)] * 2), [2, 1])}
    info = source(made).info
    assert (info.name, info.length, info.classes, info.shifts) == ("s", 17, ("cat", "dog", "emu"), (5, 10))
    assert [(part.name, len(part.samples)) for part in info.holdout] == [("early", 3), ("late", 2)]
    assert [sample.label for sample in info.holdout[1].samples] == ["emu", "dog"]
    assert info.holdout[0].samples[-1].id == "s-early-2"
    part = source(_with(made, holdout={"early": [(picture(0), 9)]})).info.holdout[0]
    with pytest.raises(SourceError, match="s-early-0 cannot be used: label is 9"):
        part.samples[0]


def _with(made, **attributes):
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def test_a_length_is_given_only_where_it_counts_records():
    assert source(pairs(7)).info.length == 7
    assert source([batch(0, 4)]).info.length is None
    assert source([(np.zeros((3, 4, 4, 3), np.uint8), [1, 2, 3])]).info.length is None
    assert source(DataLoader(Images(), batch_size=4)).info.length is None
    assert source(iter(pairs())).info.length is None
    assert source(_with(Endless(), length=12)).info.length == 12


def test_labels_of_hugging_face_have_names():
    class Table:
        """The part of `datasets.Dataset` that counts: columns with features, rows as mappings."""

        def __init__(self):
            self.features = {"img": None, "fine_label": SimpleNamespace(names=["ant", "bee"])}

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"img": {"bytes": None, "path": None}, "fine_label": index % 2, "img2": 1} | {
                "img": picture(index)
            }

    columns = {"label": "fine_label"}
    events = first_events(source(Table(), columns=columns))
    assert [sample.label for sample in samples_of(events)] == ["ant", "bee", "ant", "bee"]
    assert source(Table(), columns=columns).info.classes == ("ant", "bee")
    check_source(lambda: source(Table(), columns=columns))


def test_integers_as_classes_are_labels_not_places():
    made = _with(Endless(), classes=[5, 7])
    assert source(made).info.classes == ("5", "7")
    assert samples_of(first_events(source(made)))[0].label == "0"


def test_river_pairs_go_in_and_its_features_are_refused_with_a_word():
    features = source(river.stream.iter_array(np.ones((2, 3)), [0, 1]))
    (event,) = first_events(features)
    assert len(event.rejected) == 2
    assert "learns from images" in event.rejected[0].reason
    (event,) = first_events(source(iter(pairs(2))))
    assert len(event) == 2


class Flaky:
    """Raises at the given places, the given number of times in all."""

    def __init__(self, failures, places=(0, 3, 11)):
        self.failures, self.places = failures, places

    def __len__(self):
        return 14

    def __getitem__(self, index):
        if index in self.places and self.failures.get(index, 0) < 2:
            self.failures[index] = self.failures.get(index, 0) + 1
            raise OSError("the network blinked")
        return picture(index), index


def test_a_replayable_source_that_raises_is_tried_again():
    pauses, failures = [], {}
    stream = IterableSource(
        lambda: Flaky(failures), name="s", batch_size=5, retries=2, backoff=0.5, sleep=pauses.append
    )
    assert [sample.label for sample in samples_of(first_events(stream))] == [str(i) for i in range(14)]
    assert pauses == [0.5, 1.0] * 3


def test_a_stateful_iterator_is_restored_and_brought_forward():
    failures = []

    class Failing(Counting):
        def __next__(self):
            if self.place not in failures:
                failures.append(self.place)
                raise ValueError("broken pipe")
            return super().__next__()

    steady = first_events(IterableSource(lambda: Counting([3] * 12), name="s", batch_size=5))
    flaky = first_events(
        IterableSource(lambda: Failing([3] * 12), name="s", batch_size=5, sleep=lambda seconds: None)
    )
    assert failures == list(range(13))
    assert fingerprints(flaky) == fingerprints(steady)


def test_after_the_last_try_the_error_names_the_offset_and_the_cause():
    class Broken(Images):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    pauses = []
    stream = source(Broken(), retries=3, backoff=1.0, sleep=pauses.append)
    with pytest.raises(
        SourceError, match=r"s failed at offset 7, 4 times: OSError: the disk is gone"
    ) as caught:
        first_events(stream)
    assert isinstance(caught.value.__cause__, OSError)
    assert pauses == [1.0, 2.0, 4.0]


def test_a_generator_that_raises_is_not_tried_again():
    def broken():
        yield picture(0), 1
        raise KeyError("key")

    with pytest.raises(SourceError, match="s failed at offset 1: KeyError"):
        first_events(IterableSource(broken, name="s", sleep=lambda seconds: pytest.fail("tried again")))


def test_shorter_on_replay_is_an_error():
    stream = source(pairs(20))
    states = [stream.state_dict() for _ in stream]
    for made in (pairs(12), iter(pairs(12)), Counting([0] * 12)):
        short = source(made, deterministic=True)
        if not isinstance(made, Counting):
            short.load_state_dict(states[-1])
            with pytest.raises(SourceError, match=r"shorter|ended early"):
                first_events(short)
    whole = source(Counting([8] * 3))
    last = [whole.state_dict() for _ in whole][-2]
    short = source(Counting([8] * 2))
    short.load_state_dict(last)
    with pytest.raises(SourceError, match=r"shorter|ended early"):
        first_events(short)


def test_an_end_before_the_promised_length_is_an_error():
    class Loader:
        def __len__(self):
            return 9

        def __iter__(self):
            return iter(pairs(5))

    with pytest.raises(SourceError, match="ended early, after 5 of 9"):
        first_events(source(Loader()))


def test_a_stream_read_once_cannot_be_resumed():
    stream = source(iter(pairs()))
    next(iter(stream))
    state = stream.state_dict()
    with pytest.raises(SourceError, match="cannot be resumed"):
        source(iter(pairs())).load_state_dict(state)
    fresh = source(iter(pairs()))
    fresh.load_state_dict(source(iter(pairs())).state_dict())
    assert len(samples_of(first_events(fresh))) == 23


@pytest.mark.parametrize("made", [5, "text", object(), None])
def test_what_is_no_stream_is_an_error(made):
    with pytest.raises(SourceError, match="not a stream of records"):
        first_events(source(made))


def test_an_asynchronous_iterator_is_refused_with_a_word():
    async def records():
        yield picture(0), 1

    with pytest.raises(SourceError) as caught:
        first_events(source(records()))
    assert "asynchronous" in caught.value.hint


def test_a_make_that_raises_is_a_source_error():
    with pytest.raises(SourceError, match="could not be made: ZeroDivisionError"):
        IterableSource(lambda: 1 // 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def test_a_file_beside_the_yaml_is_found(folder):
    (folder / "my_stream.py").write_text(
        "import numpy as np\n"
        "def pictures(count, label='cat'):\n"
        "    for i in range(count):\n"
        "        yield np.full((4, 4, 3), i, np.uint8), label\n"
        "def nothing():\n"
        "    pass\n"
        "number = 5\n"
    )
    stream = IterableSource.of("my_stream:pictures", {"count": 3, "label": "dog"}, batch_size=2)
    assert [sample.id for sample in samples_of(first_events(stream))] == [f"pictures-{i}" for i in range(3)]
    with pytest.raises(ConfigError, match="my_stream:pictures has no argument 'counts'"):
        IterableSource.of("my_stream:pictures", {"counts": 3})
    with pytest.raises(SourceError, match="returned None"):
        IterableSource.of("my_stream:nothing")
    with pytest.raises(ConfigError, match="cannot be called"):
        import_callable("my_stream:number")
    with pytest.raises(ConfigError) as caught:
        import_callable("my_stream:picture")
    assert "pictures" in caught.value.hint


def test_causes_of_a_failed_import_are_distinguished(folder):
    (folder / "my_broken.py").write_text("raise RuntimeError('at import')\n")
    (folder / "my_needy.py").write_text("import my_missing_package\n")
    (folder / "my_exit.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ConfigError, match="no module 'my_nowhere'"):
        import_callable("my_nowhere:f")
    with pytest.raises(ConfigError, match="no module 'my_nowhere'"):
        import_callable("my_nowhere.deeper:f")
    with pytest.raises(SourceError, match="RuntimeError: at import"):
        import_callable("my_broken:f")
    with pytest.raises(SourceError, match="my_missing_package"):
        import_callable("my_needy:f")
    with pytest.raises(SourceError, match=r"sys\.exit\(3\) was called"):
        import_callable("my_exit:f")
    for dotted in ("my_stream.pictures", "my-stream:f", ":f", "my_stream:", "a b:c", ""):
        with pytest.raises(ConfigError, match="does not name a callable"):
            import_callable(dotted)


def test_states_of_any_plain_shape_come_back():
    rng = random.Random(3)
    state = {
        "python": rng.getstate(),
        "numpy": np.random.default_rng(1).bit_generator.state,
        1: [b"\0\xff", (None, True), np.float32(2.5)],
        "array": np.arange(3),
    }
    plain = to_plain(state)
    state_hash(plain)
    back = from_plain(plain)
    assert back["python"] == state["python"]
    assert back["numpy"] == state["numpy"]
    assert back[1] == state[1]
    assert np.array_equal(back["array"], state["array"])
    plain_array = to_plain(state["array"])
    state["array"][:] = 9
    assert plain_array.tolist() == [0, 1, 2]
    with pytest.raises(SourceError, match=r"\['a'\]\[1\] is a lock"):
        to_plain({"a": [1, threading.Lock()]})


def test_labels_of_earlier_records_come_with_the_next_batch_and_take_no_offset():
    image = np.zeros((4, 4, 3), np.uint8)
    records = [(image, None, f"r{k}") for k in range(5)]
    late = [{"label_of": "r0", "label": 3}, Label("r1", "cat"), {"label_of": "r2", "label": None}]
    make = lambda: [*records[:2], *late[:2], *records[2:], late[2]]  # noqa: E731
    source = IterableSource(make, name="s", batch_size=4)
    batches = list(source)
    assert [(batch.offset, batch.end) for batch in batches] == [(0, 4), (4, 5)]
    assert batches[0].labels == (Label("r0", "3"), Label("r1", "cat"))
    (bad,) = batches[1].labels
    assert bad.id == "r2"
    assert "no label" in bad.fault
    check_source(lambda: IterableSource(make, name="s", batch_size=2, deterministic=True), limit=None)
    alone = IterableSource(lambda: iter(late[:2]), name="s", batch_size=1)
    assert [(batch.end, len(batch.labels)) for batch in alone] == [(0, 1), (0, 1)]


def test_of_an_endless_stream_only_what_has_been_read_is_fetched():
    """An id that is gone would otherwise be searched for without end."""

    def endless():
        number = 0
        while True:
            yield {"image": picture(number), "label": "a", "id": f"n{number}"}
            number += 1

    made = IterableSource(endless, deterministic=True, batch_size=4)
    events = iter(made)
    next(events), next(events)
    assert [each.id for each in made.fetch(["n3", "n5", "gone"])] == ["n3", "n5"]
    continued = IterableSource(endless, deterministic=True, batch_size=4)
    continued.load_state_dict(made.state_dict())
    assert [each.id for each in continued.fetch(["n3", "n5", "gone"])] == ["n3", "n5"]

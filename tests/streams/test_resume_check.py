"""Sources of other libraries that keep a state: resumed without a lost record, or refused."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from streamcl.errors import ConfigError, SourceError
from streamcl.events import Sample
from streamcl.factory.source import build_source
from streamcl.storage.plain_state import pack, unpack
from streamcl.storage.rng_state import capture_generators, restore_generators
from streamcl.testing.source_checks import check_source, fingerprints, first_events, samples_of
from streams.user.inner_state import from_plain, to_plain
from streams.user.readers import lost_by_state
from streams.user.resume_check import ResumeCheck
from streams.user.source import IterableSource


def record(number):
    return {"image": np.full((4, 4, 3), number, np.uint8), "label": "ab"[number % 2], "id": f"k{number}"}


pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # by torchdata


class Numbers(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return record(index)


def columns(rows):
    return {key: [row[key] for row in rows] for key in rows[0]}


def loader(workers=0):
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(
        Numbers(),
        batch_size=5,
        shuffle=True,
        collate_fn=columns,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )


def hugging_face(buffer=0, batched=False):
    import datasets

    rows = datasets.Dataset.from_dict({"k": list(range(60))}).to_iterable_dataset(num_shards=3)
    rows = rows.shuffle(seed=1, buffer_size=buffer) if buffer else rows
    return rows.map(lambda row: record(row["k"]), remove_columns=["k"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_dataloader_that_shuffles_is_resumed_anywhere(workers):
    make = lambda: IterableSource(lambda: loader(workers), batch_size=4)  # noqa: E731
    whole = make()
    states = [pack(whole.state_dict()) for _ in whole]  # as in a checkpoint
    expected = fingerprints(first_events(make()))
    assert len(samples_of(first_events(make()))) == 60
    for done, state in enumerate(states[:4], 1):
        source = make()
        source.load_state_dict(unpack(*state))
        assert fingerprints(first_events(source)) == expected[done:]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64, torch.bool, torch.complex64])
def test_tensors_in_a_source_state_come_back_bit_equal(dtype):
    value = torch.arange(6).reshape(2, 3).to(dtype)
    tree, arrays = pack(to_plain({"a": [value, value[0, 0], value[:0]]}))
    back = from_plain(unpack(tree, arrays))["a"]
    assert all(
        torch.equal(each, other) for each, other in zip(back, [value, value[0, 0], value[:0]], strict=True)
    )
    assert {each.dtype for each in back} == {dtype}


def test_an_iterable_data_set_of_hugging_face_is_resumed_anywhere():
    check_source(lambda: IterableSource(hugging_face, batch_size=4))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_shuffle_buffer_that_no_state_holds_is_recognised(wrapped, caplog):
    def make():
        if not wrapped:
            return hugging_face(16)
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(hugging_face(16), batch_size=5, collate_fn=columns)

    assert lost_by_state(make()) == "the shuffle buffer of 16 records"
    assert lost_by_state(hugging_face(1)) is None
    assert not IterableSource(make, name="rows").replayable
    assert "rows: its own state lacks the shuffle buffer of 16 records, so it is read once" in caplog.text
    check_source(lambda: IterableSource(make, batch_size=4, deterministic=True))


class Shuffling:
    """Like a shuffle buffer: the state is the position of what was read in, not of what was handed out."""

    def __init__(self, buffer=8, faithful=False, own_ids=True):
        self.place, self.buffer, self.faithful, self.own_ids = 0, buffer, faithful, own_ids
        self.held = []

    def __iter__(self):
        return self

    def __next__(self):
        while self.place < 60 and len(self.held) < self.buffer:
            self.held.append(self.place)
            self.place += 1
        if not self.held:
            raise StopIteration
        number = self.held.pop(self.place % len(self.held))
        made = record(number)
        return made if self.own_ids else (made["image"], made["label"])

    def state_dict(self):
        return {"place": self.place, "held": list(self.held) if self.faithful else []}

    def load_state_dict(self, state):
        self.place, self.held = state["place"], state["held"]


def checked(make, **options):
    plain = lambda: IterableSource(make, name="s", batch_size=4, **options)  # noqa: E731
    return ResumeCheck(
        plain(), plain, required=True, capture_rng=capture_generators, restore_rng=restore_generators
    )


@pytest.mark.parametrize("own_ids", [True, False])
def test_a_state_that_loses_records_is_an_error_at_the_second_batch(own_ids):
    events = iter(checked(lambda: Shuffling(own_ids=own_ids)))
    next(events)
    with pytest.raises(
        SourceError, match="s does not continue where it stopped: resumed at offset 4"
    ) as caught:
        next(events)
    assert "random generator" in caught.value.hint
    faithful = lambda: checked(lambda: Shuffling(faithful=True, own_ids=own_ids))  # noqa: E731
    check_source(faithful)


def test_records_after_one_that_is_rejected_are_compared_too():
    numbers = iter(range(99))

    def changing():
        for place in range(9):
            yield "no picture" if place == 4 else np.full((4, 4, 3), next(numbers), np.uint8), "a"

    events = iter(checked(changing, deterministic=True))
    next(events)
    with pytest.raises(SourceError, match="it gives another record at offset 5"):
        next(events)


def test_a_generator_that_is_not_deterministic_after_all_is_an_error():
    def shuffled():
        numbers = list(range(60))
        np.random.default_rng().shuffle(numbers)
        yield from map(record, numbers)

    with pytest.raises(SourceError, match="resumed at offset 4, it gives the record 'k"):
        first_events(checked(shuffled, deterministic=True))


def test_the_check_leaves_the_random_generators_and_a_shared_object_as_they_were():
    class Drawing(Shuffling):
        def __next__(self):
            made = super().__next__()
            return made | {"image": made["image"] + np.uint8(random.randrange(9) + np.random.randint(9))}

    def read(source):
        random.seed(0)
        np.random.seed(0)
        return fingerprints(first_events(source))

    plain = read(IterableSource(lambda: Drawing(faithful=True), name="s", batch_size=4))
    assert read(checked(lambda: Drawing(faithful=True))) == plain
    shared = Drawing(faithful=True)
    assert read(checked(lambda: shared)) == plain


def test_augmentations_of_records_with_ids_of_their_own_may_differ():
    class Noisy(Shuffling):
        def __next__(self):
            made = super().__next__()
            return made | {"image": np.random.default_rng().integers(0, 255, (4, 4, 3)).astype(np.uint8)}

    assert len(samples_of(first_events(checked(lambda: Noisy(faithful=True))))) == 60


def test_a_run_demands_it_where_each_record_is_to_be_learned_once(tmp_path, monkeypatch, caplog):
    from tiny_runs import configuration

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mysource.py").write_text(
        "from test_resume_check import Shuffling, hugging_face\n"
        "def lossy(): return Shuffling()\n"
        "def buffered(): return hugging_face(16)\n"
    )
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    once = {"checkpoint": {"every_samples": 8, "delivery": "exactly_once"}, "batch": 4}
    lossy = {"source": {"class": "mysource:lossy"}}
    with pytest.raises(SourceError, match="does not continue where it stopped"):
        first_events(build_source(configuration(tmp_path, **lossy, **once)))
    events = first_events(build_source(configuration(tmp_path, **lossy, batch=4)))
    assert all(isinstance(sample, Sample) for sample in samples_of(events))
    assert "if this run is interrupted, records are lost or repeated" in caplog.text

    from streamcl.runs.open import open_run

    buffered = configuration(tmp_path, source={"class": "mysource:buffered"}, **once)
    with pytest.raises(ConfigError, match="delivers at most once"):
        open_run(buffered)

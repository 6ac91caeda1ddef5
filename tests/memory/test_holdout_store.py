"""Samples held out of a stream: chosen by id, kept within bounds, erasable, the same after a restart."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import picture

from streamcl.events import Batch, Sample, StepResult
from streamcl.memory import holdout_store
from streamcl.memory.holdout_store import FIRST_LEARNED, HoldoutStore
from streamcl.protocols import BatchRecord
from streamcl.sources.remote_sample import RemoteSample
from streamcl.storage.plain_state import state_hash


def sample(number, label="ant", image=None, name=None):
    pixels = picture("ant", number) if image is None else image
    return Sample(name or f"s{number}", pixels, label, f"p{number % 3}", "d", "user")


def passed(store, samples, offset=0):
    """What the loop does with a batch; the offsets of it that were held out."""
    batch = Batch(offset, tuple(samples))
    chosen = store.choose(batch)
    learned = tuple(at for at in batch.labelled_offsets if at not in chosen)
    store.after_batch(BatchRecord(batch, (), StepResult((), (), learned), None, 0, 0, held_out=chosen))
    return chosen


def streamed(count, *, batch=8, label=lambda number: "ant", **options):
    """A store after so many samples, and the numbers of those that were not learned."""
    store, chosen = HoldoutStore(**{"share": 0.25, "seed": 1, **options}), set()
    for start in range(0, count, batch):
        numbers = range(start, min(count, start + batch))
        chosen |= passed(store, [sample(number, label(number)) for number in numbers], start)
    return store, chosen


def test_the_first_of_each_class_are_learned_and_then_a_share_of_them_is_held_out():
    store, chosen = streamed(1000, label=lambda number: ("ant", "bee")[number % 2])
    assert min(chosen) >= FIRST_LEARNED
    assert 0.2 < len(chosen) / 1000 < 0.3
    assert [int(each.id[1:]) for each in store] == sorted(chosen)
    assert all(np.array_equal(each.image, picture("ant", int(each.id[1:]))) for each in store[:5])


def test_the_choice_depends_on_the_id_and_the_seed_and_not_on_the_batches():
    assert streamed(400)[1] == streamed(400, batch=1)[1] == streamed(400, batch=400)[1]
    assert streamed(400)[1] != streamed(400, seed=2)[1]


def test_beyond_the_bound_the_largest_numbers_leave_and_the_rest_is_learned():
    (every, _), (store, chosen), (fewer, _) = (streamed(2000, max_samples=most) for most in (10**6, 20, 10))
    assert (len(store), len(fewer)) == (20, 10)
    assert {each.id for each in fewer} < {each.id for each in store} < {each.id for each in every}
    assert len(chosen) < 0.1 * 2000


def test_pixels_are_bounded_by_their_bytes(monkeypatch):
    monkeypatch.setattr(holdout_store, "MAX_PIXEL_BYTES", 20_000)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    store = HoldoutStore(0.5)
    for number in range(200):
        passed(store, [sample(number, image=noise)], number)
    assert 2 <= len(store) <= 20_000 // 3000


def test_an_image_is_scaled_to_what_the_backbone_sees():
    store = HoldoutStore(0.5, side=16)
    for number in range(60):
        passed(store, [sample(number, image=np.zeros((24, 48, 3), np.uint8))], number)
    assert {each.image.shape for each in store} == {(16, 32, 3)}


def test_what_is_unlabelled_or_only_predicted_is_not_held_out():
    store, _ = streamed(40)
    assert not store.choose(Batch(40, tuple(sample(number, None) for number in range(40, 80))))
    assert not store.choose(Batch(40, tuple(sample(number) for number in range(40, 80)), predict_only=True))


def test_a_held_out_record_that_comes_again_is_held_out_again_and_kept_once():
    store, chosen = streamed(200)
    again = passed(store, [sample(min(chosen), "another class")], 200)
    assert again == {200}
    assert len(store) == len(chosen)


def test_without_a_share_nothing_is_held_out_and_no_state_is_kept():
    store, chosen = streamed(100, share=0.0)
    assert not chosen
    assert (len(store), store.parts, store.state_dict()) == (0, (), {})


def test_a_restored_store_goes_on_as_the_one_that_was_saved():
    store, _ = streamed(300, max_samples=15)
    again = HoldoutStore(0.25, max_samples=15, seed=1)
    again.load_state_dict(store.state_dict())
    later = [sample(number) for number in range(300, 500)]
    assert passed(store, later, 300) == passed(again, later, 300)
    assert state_hash(store.state_dict()) == state_hash(again.state_dict())
    again.load_state_dict({})
    assert len(again) == 0
    off = HoldoutStore(0.0)
    off.load_state_dict(store.state_dict())
    assert len(off) == 0


def test_samples_are_purged_by_id_and_by_class_and_nothing_names_them():
    store, chosen = streamed(400, label=lambda number: ("ant", "bee")[number % 2])
    version = store.version
    assert store.purge([f"s{min(chosen)}", "unknown"]) == 1
    assert store.version != version
    bees = sum(number % 2 for number in chosen if number != min(chosen))
    assert store.forget_class("bee") == bees
    state = store.state_dict()
    assert "bee" not in repr(state)
    assert f's{min(chosen)}"' not in repr(state)
    assert not store.choose(Batch(400, (sample(max(n for n in chosen if n % 2), "bee"),)))


def test_a_label_is_corrected_by_taking_the_sample_out():
    store, chosen = streamed(100)
    number = min(chosen)
    assert store.label_of(f"s{number}") == "ant"
    offset, found = store.take(f"s{number}")
    assert (offset, found.label) == (number, "ant")
    assert np.array_equal(found.image, picture("ant", number))
    assert store.label_of(f"s{number}") is None
    again = HoldoutStore(0.25, seed=1)
    again.load_state_dict(store.state_dict())
    assert passed(again, [sample(number, "bee")], 100) == {100}
    assert again.label_of(f"s{number}") == "bee"


class Ranks:
    """Two ranks, each of which has every second sample, seen from one of them."""

    world_size = 2

    def __init__(self, rank, sent):
        self.rank, self._sent = rank, sent

    def all_gather_object(self, value):
        self._sent[self.rank] = value
        return [self._sent[0], self._sent[1]]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_keeps_the_pixels_of_all(rank):
    numbers, sent = range(200), {}
    alone = HoldoutStore(0.25)
    passed(alone, [sample(number) for number in numbers[:FIRST_LEARNED]])
    passed(alone, [sample(number) for number in numbers[FIRST_LEARNED:]], FIRST_LEARNED)
    held = [int(each.id[1:]) for each in alone]
    for other in (1 - rank, rank):
        sent[other] = [holdout_store.to_png(picture("ant", n)) for n in held if n % 2 == other]
    store = HoldoutStore(0.25, group=Ranks(rank, sent))

    def seen(number):
        own = sample(number)
        return own if number % 2 == rank else RemoteSample.of(own, number % 2)

    passed(store, [seen(number) for number in numbers[:FIRST_LEARNED]])
    passed(store, [seen(number) for number in numbers[FIRST_LEARNED:]], FIRST_LEARNED)
    assert state_hash(store.state_dict()) == state_hash(alone.state_dict())

"""Images of concurrent requests share a batch; the queue has an end; a predictor's death loses none."""

import asyncio

import pytest

from streamcl.serving.prediction.batching import Batcher, ImageOutcome, NoPredictor, QueueFull
from streamcl.storage.snapshots import SnapshotInfo

MODEL = SnapshotInfo(1, 0, 0, 0.0)


def images(batch):
    return [each.image for each in batch]


def test_what_waits_makes_one_batch_up_to_its_size():
    async def run():
        batcher = Batcher(max_batch=3, max_delay=60.0, capacity=10)
        batcher.submit([b"1", b"2"], 1)
        batcher.submit([b"3", b"4"], 1)
        return images(await batcher.next_batch()), len(batcher)

    assert asyncio.run(run()) == ([b"1", b"2", b"3"], 1)


def test_a_batch_that_is_not_full_is_taken_after_its_delay():
    async def run():
        batcher = Batcher(max_batch=8, max_delay=0.05, capacity=10)
        taking = asyncio.create_task(batcher.next_batch())
        await asyncio.sleep(0)
        batcher.submit([b"1"], 1)
        await asyncio.sleep(0.01)
        batcher.submit([b"2"], 1)
        return images(await taking)

    assert asyncio.run(run()) == [b"1", b"2"]


def test_clients_that_wait_for_their_answers_fill_batches_of_powers_of_two():
    """32 clients ask again as soon as they are answered, while a predictor works on the next batch."""

    async def run():
        batcher, sizes = Batcher(max_batch=32, max_delay=0.0, capacity=64), []
        batcher.submit([b"x"] * 17, 1)
        working = await batcher.next_batch()
        batcher.submit([b"x"] * 15, 1)
        for _ in range(20):
            following = await batcher.next_batch()
            sizes.append(len(following))
            batcher.submit([b"x"] * len(working), 1)
            working = following
        return sizes

    assert asyncio.run(run()) == [16] * 20


def test_a_full_queue_takes_all_images_of_a_request_or_none():
    async def run():
        batcher = Batcher(max_batch=8, max_delay=0.0, capacity=3)
        batcher.submit([b"1", b"2"], 1)
        with pytest.raises(QueueFull, match="2 images wait; 3 may"):
            batcher.submit([b"3", b"4"], 1)
        return images(await batcher.next_batch())

    assert asyncio.run(run()) == [b"1", b"2"]


def test_a_batch_comes_back_in_its_order_and_an_image_that_ends_predictors_fails():
    async def run():
        batcher = Batcher(max_batch=8, max_delay=0.0, capacity=10)
        pending = batcher.submit([b"1", b"2"], 1)
        batcher.return_batch(await batcher.next_batch(), attempts=2)
        batcher.submit([b"3", b"4"], 1)
        second = await batcher.next_batch()
        batcher.return_batch(second, attempts=2)
        third = await batcher.next_batch()
        third[0].outcome.set_result(ImageOutcome(MODEL, ()))
        return images(second), images(third), await asyncio.gather(*pending, return_exceptions=True)

    second, third, outcomes = asyncio.run(run())
    assert (second, third) == ([b"1", b"2", b"3", b"4"], [b"3", b"4"])
    assert [type(each) for each in outcomes] == [NoPredictor, NoPredictor]


def test_a_request_that_has_given_up_is_not_predicted():
    async def run():
        batcher = Batcher(max_batch=8, max_delay=0.0, capacity=10)
        (gone,) = batcher.submit([b"1"], 1)
        gone.cancel()
        batcher.submit([b"2"], 1)
        return images(await batcher.next_batch())

    assert asyncio.run(run()) == [b"2"]


def test_a_taker_that_is_cancelled_takes_nothing():
    async def run():
        batcher = Batcher(max_batch=8, max_delay=0.2, capacity=10)
        first = asyncio.create_task(batcher.next_batch())
        await asyncio.sleep(0)
        batcher.submit([b"1"], 1)
        await asyncio.sleep(0.01)
        first.cancel()
        return images(await batcher.next_batch())

    assert asyncio.run(run()) == [b"1"]


def test_images_with_a_deadline_and_others_share_no_batch():
    async def run():
        batcher = Batcher(max_batch=8, max_delay=0.0, capacity=10)
        batcher.submit([b"1", b"2"], 1)
        batcher.submit([b"3", b"4"], 1, 5.0)
        batcher.submit([b"5"], 1)
        batches = [await batcher.next_batch() for _ in range(3)]
        return [(images(batch), {each.deadline for each in batch}) for batch in batches]

    assert asyncio.run(run()) == [([b"1", b"2"], {None}), ([b"3", b"4"], {5.0}), ([b"5"], {None})]

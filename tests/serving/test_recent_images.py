"""Recent images are few, in memory only, and gone as soon as anything is to be forgotten."""

import multiprocessing
import threading

import numpy as np
import pytest
from pictures import encoded_picture, picture

from streamcl.events import Batch, PredictionRecord, Sample
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.protocols import BatchRecord, StepResult
from streamcl.serving import image_channel
from streamcl.serving.image_channel import ImageSender, unpack_image
from streamcl.serving.page.recent_images import MAX_IMAGES, MAX_RECENT_BYTES, RecentImages
from streamcl.serving.schemas import ImageResult

RESULT = ImageResult(label="owl", confidence=0.5, top=())


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / LEDGER) as opened:
        yield opened


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def record(*names):
    samples = tuple(Sample(name, picture("owl", number), "owl") for number, name in enumerate(names))
    made = tuple(PredictionRecord(name, at, "owl", "bee", 0.5) for at, name in enumerate(names))
    return BatchRecord(Batch(0, samples), made, StepResult((), (), ()), None, False, 0)


def sent(clock, *names):
    """The messages of a sender that has been given one batch."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    ImageSender(theirs, clock=clock).after_batch(record(*names))
    return [ours.recv_bytes() for _ in names[-image_channel.IMAGES_AT_ONCE :]]


def test_the_last_images_of_a_batch_are_sent_small_with_their_labels():
    (*_, message) = sent(Clock(), *"abcdef")
    image, png = unpack_image(message)
    assert (image.record, image.label, image.predicted, image.learned) == ("f", "owl", "bee", 100.0)
    assert png.startswith(b"\x89PNG")
    assert len(sent(Clock(), *"abcdef")) == 4


def test_a_learner_is_not_kept_waiting():
    ours, theirs = multiprocessing.Pipe(duplex=False)
    clock = Clock()
    sender = ImageSender(theirs, clock=clock)
    huge = Sample("a", np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8), "owl")
    batch = BatchRecord(
        Batch(0, (huge,)),
        (PredictionRecord("a", 0, "owl", "owl", 1.0),),
        StepResult((), (), ()),
        None,
        False,
        0,
    )
    for _ in range(200):  # nobody reads: the pipe is full after a few
        clock.now += 2
        sender.after_batch(batch)
    ours.close()


def test_few_are_kept_and_the_newest_are_shown_first(tmp_path, ledger):
    recent = RecentImages(tmp_path)
    for number in range(MAX_IMAGES + 5):
        recent.add_predicted([encoded_picture("owl", number)], [RESULT])
    numbers = [each.number for each in recent.newest()]
    assert numbers == list(range(MAX_IMAGES + 5, 5, -1))
    assert recent.find(numbers[0]).data == encoded_picture("owl", MAX_IMAGES + 4)
    assert recent.find(1) is None


def test_only_pictures_that_a_browser_shows_are_kept(tmp_path, ledger):
    recent = RecentImages(tmp_path)
    failed = ImageResult(label=None, confidence=0.0, top=(), error="not an image")
    large = b"\x89PNG" + b"0" * MAX_RECENT_BYTES
    recent.add_predicted([b"<svg onload=x>", large, b"\x89PNG"], [RESULT, RESULT, failed])
    assert recent.newest() == []


def test_whoever_asks_to_forget_all_are_dropped_at_once(tmp_path, ledger):
    clock = Clock()
    recent = RecentImages(tmp_path, clock=clock)
    clock.now += 1
    before = sent(clock, "a")
    recent.add_learned(*before)
    recent.add_predicted([encoded_picture("owl", 1)], [RESULT])
    assert len(recent.newest()) == 2
    ledger.submit({"id": "r", "label": "owl"})  # in another process, with `streamcl forget`
    assert recent.newest() == []

    clock.now += 1
    learned_meanwhile = sent(clock, "b")
    recent.add_learned(*learned_meanwhile)
    assert recent.newest() == []
    ledger.start("r")
    ledger.finish("r")
    clock.now += 1
    assert recent.newest() == []
    recent.add_learned(*learned_meanwhile)  # it was on its way when the erasure ended
    assert recent.newest() == []
    clock.now += 1
    recent.add_learned(*sent(clock, "c"))
    assert [each.record for each in recent.newest()] == ["c"]
    recent.drop()
    assert recent.newest() == []


def test_receiving_ends_with_the_learner(tmp_path, ledger):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    recent = RecentImages(tmp_path)
    thread = threading.Thread(target=recent.receive, args=(ours,))
    thread.start()
    theirs.send_bytes(*sent(lambda: 1e12, "a"))
    theirs.close()
    thread.join(60)
    assert not thread.is_alive()
    assert [each.record for each in recent.newest()] == ["a"]

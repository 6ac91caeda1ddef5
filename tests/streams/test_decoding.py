"""Pictures that are decoded in threads: the same records in the same order, bad ones in their places."""

from __future__ import annotations

import io

import numpy as np
import pytest
from live_readers import Clock, ScriptedReader
from PIL import Image

from streamcl.errors import BadRecord
from streamcl.testing.source_checks import fingerprints
from streams.live.cutting import Cutting
from streams.live.source import LiveSource
from streams.user.decoding import DecodingPool, PendingImage
from streams.user.images import ImageLimits
from streams.user.records import RecordPolicy


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def values():
    found = [{"image": jpeg(number), "label": "a", "id": f"r{number}"} for number in range(40)]
    found[7]["image"] = b"no picture"
    found[9]["image"] = b""
    found[11] = BadRecord("gone")
    found[13] = {"image": np.zeros((2, 2, 3), np.uint8), "label": "b"}
    found[15] = (jpeg(15), "a", "tuple")
    found[17] = {"label_of": "r3", "label": "b"}
    return found


def events(monkeypatch, threads, **options):
    monkeypatch.setattr(
        "streams.live.source.DecodingPool", lambda limits, image: DecodingPool(limits, image, threads)
    )
    clock = Clock()
    reader = ScriptedReader([(0.0, value) for value in values()], clock, ends=True)
    source = LiveSource(reader, cutting=Cutting(size=6), clock=clock, now=clock, **options)
    try:
        return list(source)
    finally:
        source.close()


def test_a_live_source_brings_the_same_events_whether_threads_decode_or_not(monkeypatch):
    found, expected = events(monkeypatch, 3), events(monkeypatch, 1)
    assert fingerprints(found) == fingerprints(expected)
    bad = [(each.offset, each.reason) for event in found for each in event.rejected]
    assert [offset for offset, _ in bad] == [7, 9, 11]
    assert bad == [(each.offset, each.reason) for event in expected for each in event.rejected]


def test_where_a_bad_record_ends_the_run_it_does_with_those_before_it(monkeypatch):
    with pytest.raises(BadRecord, match="not an image"):
        events(monkeypatch, 3, policy=RecordPolicy(on_bad_record="fail"))


def test_the_limits_hold_in_the_threads_and_other_keys_are_left_alone():
    pool = DecodingPool(ImageLimits(max_side=39), "x", threads=2)
    large, other = pool.ahead([{"x": jpeg(0)}, {"image": jpeg(1)}])
    assert isinstance(large["x"], PendingImage)
    with pytest.raises(BadRecord, match="a side may have 39"):
        large["x"].pixels()
    assert other == {"image": jpeg(1)}
    pool.close()


def test_with_one_thread_or_one_record_nothing_is_decoded_ahead():
    single = [{"image": jpeg(0)}]
    assert list(DecodingPool(ImageLimits(), threads=1).ahead(single * 2)) == single * 2
    assert list(DecodingPool(ImageLimits(), threads=2).ahead(single)) == single

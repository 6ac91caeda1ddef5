"""Frames of video files: by rate and by change, each once across restarts; damaged files; labels by time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from live_configs import ids_learned
from log_messages import logged
from video_files import shade_of, write_video

from streamcl.errors import BadRecord, ConfigError, MissingExtra, SourceError
from streamcl.testing import check_live_reader
from streams.live.video import frame_decoder, video
from streams.live.video.video import VideoReader

pytest.importorskip("av", reason="PyAV is not installed: no video is read")

pytestmark = pytest.mark.long

SHADES = [8 * number for number in range(1, 31)]  # 3 s at 10 frames a second


def read(reader, *, limit: int = 10_000):
    """Return what comes until the reader ends, at most `limit` arrivals."""
    found = []
    while len(found) < limit and (arrivals := reader.poll(2.0)) is not None:
        found += arrivals
    return found[:limit]


def shades(arrivals) -> list[int]:
    return [shade_of(each.value["image"]) for each in arrivals]


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_video(tmp_path / "clip.mp4", SHADES)


@pytest.mark.parametrize(("every", "step"), [(0, 1), (0.1, 1), (0.5, 5), (0.3, 3)])
def test_frames_by_rate(clip, every, step):
    reader = VideoReader(str(clip), every=every, label="cat")
    arrivals = read(reader)
    assert shades(arrivals) == SHADES[::step]
    assert {each.value["label"] for each in arrivals} == {"cat"}
    assert len({each.value["id"] for each in arrivals}) == len(arrivals)
    reader.close()


def test_frames_by_change(tmp_path):
    path = write_video(tmp_path / "a.mp4", [80] * 10 + [88] * 10 + [160] * 10 + [80] * 5)
    reader = VideoReader(str(path), every=0, change=0.1)
    assert shades(read(reader)) == [80, 160, 80]


@pytest.mark.long
@pytest.mark.parametrize("change", [None, 0.05])
def test_it_keeps_the_promises_of_a_live_reader(tmp_path, change):
    write_video(tmp_path / "in" / "b.mp4", SHADES[:9])
    write_video(tmp_path / "in" / "a.mkv", SHADES[10:22])
    check_live_reader(lambda: VideoReader(str(tmp_path / "in"), every=0.4, change=change), timeout=5.0)


def test_a_restart_compares_with_the_frame_before_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", [80, 80, 80, 160, 160, 160] * 2)
    check_live_reader(lambda: VideoReader(str(path), every=0, change=0.1), timeout=5.0)


def test_a_file_that_comes_later_is_read_wherever_its_name_sorts(tmp_path):
    write_video(tmp_path / "m.mp4", SHADES[:3])
    reader = VideoReader(str(tmp_path), every=0)
    first = read(reader)
    reader.advance([each.key for each in first])
    position = reader.position()
    reader.close()
    write_video(tmp_path / "a.mp4", SHADES[3:5])
    (tmp_path / "m.mp4").unlink()  # cleaned up after its end: nothing is lacking
    again = VideoReader(str(tmp_path), every=0)
    again.open(position)
    assert shades(read(again)) == SHADES[3:5]


def test_a_file_that_changed_or_went_in_the_middle_is_refused(clip):
    reader = VideoReader(str(clip), every=0)
    reader.advance([each.key for each in read(reader, limit=4)])
    position = reader.position()
    reader.close()
    write_video(clip, SHADES[::-1])
    with pytest.raises(SourceError, match="is gone or has changed"):
        VideoReader(str(clip), every=0).open(position)


def test_a_file_that_cannot_be_opened_is_one_bad_record_once(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    write_video(tmp_path / "b.mp4", SHADES[:2])
    reader = VideoReader(str(tmp_path), every=0)
    bad, *good = read(reader)
    assert isinstance(bad.value, BadRecord)
    assert "a.mp4 cannot be decoded" in str(bad.value)
    assert shades(good) == SHADES[:2]
    reader.advance([bad.key])
    again = VideoReader(str(tmp_path), every=0)
    again.open(reader.position())
    assert shades(read(again)) == SHADES[:2]
    reader.close()


def test_damaged_packets_are_counted_and_the_others_are_read(tmp_path):
    path = write_video(tmp_path / "a.avi", SHADES, gop=1)
    data = bytearray(path.read_bytes())
    begin = data.index(b"\x00\x00\x01\xb6", len(data) // 2)
    data[begin : begin + 12] = b"\xff" * 12
    path.write_bytes(data)
    reader = VideoReader(str(path), every=0)
    with logged() as lines:
        found = shades(read(reader))
    assert len(SHADES) - 2 <= len(found) < len(SHADES)
    assert any("damaged" in line for line in lines)


PROGRAMS = {
    "hung": "import time\ntime.sleep(100)",
    "dies": "import os\nos.abort()",
    "garbage": "import sys\nsys.stdout.write('x' * 5)",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_decoder_that_hangs_or_dies_is_started_again_and_cannot_hang_the_run(
    clip, kind, monkeypatch, tmp_path
):
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[kind])
    monkeypatch.setattr(frame_decoder, "PROGRAM", program)
    reader = VideoReader(str(clip), timeout=0.2)
    (arrival,) = read(reader)
    assert isinstance(arrival.value, BadRecord)
    reader.close()


def test_a_decoder_that_dies_half_way_is_started_again_where_it_was(clip, monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    real = frame_decoder.PROGRAM.read_text(encoding="utf-8")
    program.write_text(real.replace("def _send(", DYING))
    monkeypatch.setattr(frame_decoder, "PROGRAM", program)
    reader = VideoReader(str(clip), every=0)
    assert shades(read(reader)) == SHADES


DYING = """def _send(out, message, sent=[]):
    sent.append(message)
    _really_send(out, message) if len(sent) < 5 else os._exit(9)


def _really_send("""


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_labels_by_time_from_a_file_beside_the_video(clip, suffix):
    rows = [{"start": 0, "end": 1, "label": "cat"}, {"start": 2, "end": 9.5, "label": "dog"}]
    lines = ["start,end,label", *(f"{row['start']},{row['end']},{row['label']}" for row in rows)]
    text = json.dumps(rows) if suffix == "json" else "\n".join(lines)
    clip.with_suffix(f".{suffix}").write_text(text)
    reader = VideoReader(str(clip), every=0.5, sidecar=True)
    arrivals = read(reader)
    assert [each.value["label"] for each in arrivals] == ["cat", "cat", None, None, "dog", "dog"]
    reader.advance([each.key for each in arrivals])
    third = dict(reader.fetch([arrivals[4].value["id"], f"{clip.name}@7", "absent.mp4@3"]))
    assert third == {arrivals[4].value["id"]: arrivals[4].value}


def test_a_frame_is_fetched_from_a_decoder_that_is_slow_to_begin(clip, monkeypatch, tmp_path):
    reader = VideoReader(str(clip), every=0.5)
    arrivals = read(reader)
    reader.advance([each.key for each in arrivals])
    program = tmp_path / "program.py"
    real = frame_decoder.PROGRAM.read_text(encoding="utf-8")
    program.write_text(real.replace("def run_decoder() -> None:", "def run_decoder():\n    time.sleep(1.2)"))
    monkeypatch.setattr(frame_decoder, "PROGRAM", program)
    third = arrivals[2].value
    assert list(reader.fetch([third["id"]])) == [(third["id"], third)]


def test_frames_that_are_polled_during_a_fetch_have_the_labels_of_their_own_file(tmp_path, monkeypatch):
    write_video(tmp_path / "cat.mp4", SHADES[:2])
    reader = VideoReader(str(tmp_path), every=0, sidecar=True)
    polled = []

    class Labels:
        """The name of the file as the label; a fetch that asks for it lets the other thread poll first."""

        def __init__(self, video):
            self.name = video.stem

        def at(self, seconds):
            if fetching:
                fetching.pop()
                polled.extend(reader.poll(2.0) or ())
            return self.name

    fetching = []
    monkeypatch.setattr(video, "sidecar_of", Labels)
    first = read(reader)
    reader.advance([each.key for each in first])
    write_video(tmp_path / "dog.mp4", SHADES[:4])
    while not polled:
        polled.extend(reader.poll(2.0) or ())
    fetching.append(True)
    found = dict(reader.fetch([first[0].value["id"]]))
    reader.close()
    assert [each["label"] for each in found.values()] == ["cat"]
    assert {each.value["label"] for each in polled} == {"dog"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("start,label\n0,cat", "no labels by time"),
        ("start,end,label\n3,2,cat", "has no length"),
        ("start,end,label\n0,5,cat\n4,6,dog", "two labels at 4.0 s"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(clip, text, said):
    clip.with_suffix(".csv").write_text(text)
    with pytest.raises(SourceError, match=said):
        read(VideoReader(str(clip), sidecar=True))


def test_mistakes_are_named(clip, tmp_path, monkeypatch):
    for path in ("absent.mp4", str(tmp_path / "x" / "*.mp4")):
        with pytest.raises(ConfigError, match="there is no video"):
            VideoReader(path)
    with pytest.raises(ConfigError, match="expected a number of seconds"):
        VideoReader(str(clip), every="0.5s")
    with pytest.raises(ConfigError, match="both given"):
        VideoReader(str(clip), label="cat", sidecar=True)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(frame_decoder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        VideoReader(str(clip))
    assert caught.value.hint == 'pip install "streamcl[video]"'


def test_the_shipped_configuration_learns_the_frames_of_a_folder(tmp_path, monkeypatch):
    write_video(tmp_path / "data" / "videos" / "a.mp4", SHADES * 2)
    (tmp_path / "data" / "videos" / "a.csv").write_text("start,end,label\n0,2,cat\n2,9,dog")
    monkeypatch.setenv("STREAMCL_DATA", str(tmp_path / "data"))
    assert len(set(ids_learned("live_video", tmp_path / "run"))) == 8

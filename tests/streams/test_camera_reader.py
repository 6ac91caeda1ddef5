"""Cameras: pictures as they come, a frozen picture, a hung or lost connection, a reader that is too slow."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import video_files
from live_configs import ids_learned
from log_messages import logged
from ports import free_port

from streamcl.errors import BadRecord
from streamcl.sources.live_reader import LiveReader, Rejoining
from streams.live.source import LiveSource
from streams.live.video.camera import CameraReader

av = pytest.importorskip("av", reason="PyAV is not installed: no camera is read")


class Camera:
    """A camera that sends JPEGs over HTTP: those that the test shows, then others as its `mood` says.

    mood: "moving", another picture each time; "frozen", the last one again; "silent", none; "gone", it hangs
    up after each picture.
    """

    def __init__(self) -> None:
        self.pictures: queue.Queue[int] = queue.Queue()
        self.connections, self.mood, self.shade, self.noisy = 0, "moving", 8, False
        camera = self

        class Stream(BaseHTTPRequestHandler):
            def do_GET(self):
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=frame")
                self.end_headers()
                for shade in camera.shades():
                    picture = video_files.noise(shade) if camera.noisy else video_files.jpeg(shade)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    try:
                        self.wfile.write(head.encode() + picture + b"\r\n")
                    except OSError:
                        return

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Stream)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/stream.mjpg"

    def shades(self) -> Iterator[int]:
        while self.mood != "gone":
            time.sleep(0.005)
            if not self.pictures.empty():
                self.shade = self.pictures.get()
            elif self.mood == "moving":
                self.shade = self.shade % 240 + 8
            if self.mood != "silent":
                yield self.shade

    def show(self, *shades: int) -> None:
        for shade in shades:
            self.pictures.put(shade)

    def close(self) -> None:
        self.mood = "gone"
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def camera() -> Iterator[Camera]:
    made = Camera()
    yield made
    made.close()


@pytest.fixture
def reader(camera) -> Iterator[Callable[..., CameraReader]]:
    """Make readers of the camera, which are closed in the end."""
    made = []

    def make(**options) -> CameraReader:
        made.append(CameraReader(camera.address, **{"every": 0, "timeout": 20.0, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def until(reader: CameraReader, count: int) -> list:
    """Return at least `count` pictures, however long they take."""
    found: list = []
    while len(found) < count:
        found += reader.poll(0.2)
    return found


def shades(arrivals) -> list[int]:
    return [video_files.shade_of(each.value["image"]) for each in arrivals]


def test_pictures_come_with_the_camera_s_name_and_time(camera, reader):
    camera.show(*range(8, 80, 8))
    made = reader(name="door", label="cat")
    assert isinstance(made, LiveReader)
    assert isinstance(made, Rejoining)
    found = until(made, 8)
    assert shades(found)[:8] == list(range(8, 72, 8))
    assert {each.value["label"] for each in found} == {"cat"}
    assert len({each.value["id"] for each in found}) == len(found)
    assert all(each.value["id"] == each.key and each.key.startswith("door-20") for each in found)


def test_pictures_by_change(camera, reader):
    camera.mood = "frozen"
    camera.show(*[80] * 20, *[160] * 20, *[80] * 20, 88)
    assert shades(until(reader(change=0.1), 3)) == [80, 160, 80]


def test_a_frozen_camera_is_said_and_brings_nothing_until_it_moves(camera, reader):
    made = reader(frozen_after=0.3)
    with logged() as lines:
        until(made, 1)
        camera.mood = "frozen"
        while not any("shows the same picture for 0.3 s" in line for line in lines):
            made.poll(0.2)
        still = [each for _ in range(10) for each in made.poll(0.05)]
        camera.mood = "moving"
        until(made, 1)
    assert still == []
    assert any("moves again" in line for line in lines)


@pytest.mark.long
def test_a_camera_that_sends_nothing_or_hangs_up_is_connected_to_again(camera, reader):
    waits: list[float] = []
    made = reader(timeout=3.0, sleep=waits.append, clock=lambda: sum(waits))
    with logged() as lines:
        until(made, 1)
        camera.mood = "silent"
        while camera.connections < 2:
            made.poll(0.5)
        camera.mood = "moving"
        until(made, 1)
        camera.mood = "gone"
        before = len(lines)
        while len(lines) == before:
            made.poll(0.5)
        camera.mood = "moving"
        until(made, 1)
    assert any("no picture within 3 s; connecting again in 1 s" in line for line in lines)


def test_delays_between_attempts_grow_and_end(reader):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        waits: list[float] = []
        made = CameraReader(
            f"http://127.0.0.1:{closed.getsockname()[1]}/x",
            sleep=waits.append,
            clock=lambda: sum(waits),
        )
        with logged() as lines:
            while len(lines) < 3:
                assert list(made.poll(1000.0)) == []
        made.close()
    assert [line.rpartition(" in ")[2] for line in lines] == ["1 s", "2 s", "4 s"]


def test_pictures_that_nobody_reads_are_dropped_and_counted(camera, reader):
    camera.noisy = True
    made = reader()
    with logged() as lines:
        while not any("pictures were dropped" in line for line in lines):
            time.sleep(0.3)  # the reader is slow
            made.poll(0.2)


def test_a_restarted_run_goes_on_with_what_comes(reader):
    made = reader()
    source = LiveSource(made)
    assert source.replayable
    assert source.guarantee.kind == "at_most_once"
    assert made.fetch is None
    (lost,) = made.replay(["camera-1"])
    assert isinstance(lost.value, BadRecord)
    made.open({"read": 7})
    made.advance(["camera-2"])
    assert made.position() == {"read": 8}


def test_a_password_is_in_no_message():
    made = CameraReader("http://user:word@127.0.0.1:1/stream")
    with logged() as lines:
        while not lines:
            made.poll(0.5)
    made.close()
    assert "word" not in lines[0]
    assert made.name == "127.0.0.1"


def test_an_rtsp_stream_is_read():
    """The camera pushes its stream to the reader, as libav has no RTSP server: the protocol is the same."""
    address = f"rtsp://127.0.0.1:{free_port()}/camera"
    options = {"rtsp_flags": "listen", "listen_timeout": "120"}
    made = CameraReader(address, every=0, options=options, timeout=30.0)
    stop = threading.Event()
    thread = threading.Thread(target=push, args=(address, stop))
    thread.start()
    try:
        assert shades(until(made, 2))[0] % 8 == 0
    finally:
        stop.set()
        made.close()
        thread.join()


def push(address: str, stop: threading.Event) -> None:
    """Push pictures to an RTSP address until told to stop."""
    while not stop.is_set():
        try:
            with av.open(address, "w", format="rtsp", options={"rtsp_transport": "tcp"}) as container:
                stream = container.add_stream("mpeg4", rate=20)
                stream.width = stream.height = video_files.SIZE
                stream.pix_fmt = "yuv420p"
                for number in range(10_000):
                    if stop.is_set():
                        return
                    frame = av.VideoFrame.from_ndarray(video_files.picture_of(8 * (number % 30)))
                    for packet in stream.encode(frame):
                        container.mux(packet)
                    time.sleep(0.05)
        except OSError:
            time.sleep(0.1)  # the reader does not listen yet, or no longer


def test_the_shipped_configuration_learns_what_a_camera_shows(camera, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMCL_CAMERA", camera.address)
    ids = ids_learned("live_camera", tmp_path, "source.args.every=0", "source.args.options={}")
    assert len(set(ids)) == 8


def test_a_camera_with_a_spool_is_exactly_once_from_there_on(camera, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMCL_CAMERA", camera.address)
    spooled = ("source.args.every=0", "source.args.options={}", 'source.spool={"keep": "1d"}')
    durable = ("checkpoint.delivery=exactly_once", "checkpoint.every_seconds=1")
    assert len(set(ids_learned("live_camera", tmp_path, *spooled, *durable))) == 8
    assert list((tmp_path / "spool").glob("*.segment"))

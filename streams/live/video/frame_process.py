"""The program that decodes one video or camera, run by `FrameDecoder`: if it hangs or dies, the run does not.

It imports nothing of streamcl. Its standard input begins with a line of JSON (see `Spec`) and stays open;
when that ends, it exits. To its standard output it writes messages: the lengths of two parts as eight bytes,
a part of JSON, and a part of bytes, the PNG of a frame.
"""

from __future__ import annotations

import io
import json
import os
import queue
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import floor
from typing import Any, BinaryIO, TypedDict

import av
import numpy as np

COMPARED_SIDE = 32  # of the picture on which two frames are compared, in pixels
ALIVE_INTERVAL = 1.0  # seconds after which a decoder that brings no frame says that it is at work
MAX_WAITING_FRAMES = 8  # frames of a camera that wait for a slow reader; then the oldest is dropped

FrameMessage = tuple[dict[str, Any], bytes]


class Spec(TypedDict):
    """The video to decode, and the frames to send.

    address: a file, a URL, or a device. format: of libav, where the address does not say it. options: of
    libav. every: seconds between two frames; 0: all. change: the smallest mean difference in [0, 1] from the
    frame sent before; null: any. after: the time stamp of the last frame that is not wanted; null: none.
    live: whether it is a camera. frozen_after: seconds of the same picture after which it counts as frozen.
    """

    address: str
    format: str | None
    options: dict[str, str]
    every: float
    change: float | None
    after: int | None
    live: bool
    frozen_after: float


class FrameSelection:
    """Selects frames by rate and by change.

    The first frame in each interval of `every` seconds is compared with the last one selected, so that the
    choice after any frame depends on that frame alone.
    """

    def __init__(self, every: float, change: float | None) -> None:
        self._every, self._change = Fraction(str(every)), change
        self._interval: int | None = None
        self._selected: np.ndarray[Any, Any] | None = None

    def wants(self, seconds: Fraction, small: Callable[[], np.ndarray[Any, Any]]) -> bool:
        """Return whether the frame at `seconds` is selected; `small` returns it small and grey."""
        if not self._begins_interval(seconds):
            return False
        if self._change is None:
            return True
        now = small().astype(np.int16)
        different = self._selected is None or np.abs(now - self._selected).mean() / 255 >= self._change
        if different:
            self._selected = now
        return different

    def skip(self, seconds: Fraction, small: Callable[[], np.ndarray[Any, Any]] | None) -> None:
        """Pass a frame; `small` is given for the one that was selected last."""
        self._begins_interval(seconds)
        if small is not None:
            self._selected = small().astype(np.int16)

    def _begins_interval(self, seconds: Fraction) -> bool:
        interval = floor(seconds / self._every) if self._every else None
        begins = interval is None or interval != self._interval
        self._interval = interval
        return begins


def decoded(spec: Spec) -> Iterator[FrameMessage]:
    """Yield the selected frames of a file after `after`, then "end" with the number of damaged packets."""
    selection = FrameSelection(spec["every"], spec["change"])
    after, damaged, found = spec["after"], 0, spec["after"] is None
    said = time.monotonic()
    with av.open(spec["address"], format=spec["format"], options=spec["options"]) as container:
        stream = container.streams.video[0]
        last = None
        if after is not None:
            container.seek(after, stream=stream, backward=True)
        for frame in _frames(container, stream):
            if frame is None or frame.pts is None or (last is not None and frame.pts <= last):
                damaged += 1  # or out of order, where the time stamps do not name a frame
                continue
            last = frame.pts
            seconds, small = frame.pts * frame.time_base, _small_of(frame)
            if after is not None and frame.pts <= after:
                found |= frame.pts == after
                selection.skip(seconds, small if frame.pts == after else None)
            elif not found:
                raise ValueError(f"the frame {after} is no longer in the file")
            elif selection.wants(seconds, small):
                said = time.monotonic()
                yield {"kind": "frame", "pts": frame.pts, "seconds": float(seconds)}, _png(frame)
            elif time.monotonic() - said > ALIVE_INTERVAL:
                said = time.monotonic()
                yield {"kind": "alive"}, b""
    if not found:
        raise ValueError(f"the frame {after} is no longer in the file")
    yield {"kind": "end", "damaged": damaged}, b""


def captured(spec: Spec) -> Iterator[FrameMessage]:
    """Yield the selected frames of a camera, and say when its picture freezes and when it moves again."""
    selection, began = FrameSelection(spec["every"], spec["change"]), time.monotonic()
    picture, since, frozen, said = 0, began, False, 0.0
    with av.open(spec["address"], format=spec["format"], options=spec["options"]) as container:
        for frame in _frames(container, container.streams.video[0]):
            if frame is None:
                continue
            now = time.monotonic()
            before, picture = picture, zlib.crc32(frame.to_ndarray().tobytes())
            if picture != before:
                since = now
            if frozen != (now - since >= spec["frozen_after"]):
                frozen = not frozen
                yield {"kind": "frozen" if frozen else "moving"}, b""
            if not frozen and selection.wants(Fraction(now - began), _small_of(frame)):
                yield {"kind": "frame", "at": time.time()}, _png(frame)
            elif now - said > ALIVE_INTERVAL:
                said = now
                yield {"kind": "alive"}, b""
    yield {"kind": "end", "damaged": 0}, b""


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield frames in the order of display; None for a packet that cannot be decoded."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except (av.error.InvalidDataError, av.error.UndefinedError):
            yield None


def _small_of(frame: Any) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: frame.reformat(COMPARED_SIDE, COMPARED_SIDE, format="gray").to_ndarray()


def _png(frame: Any) -> bytes:
    file, image = io.BytesIO(), frame.to_image()
    if turned := getattr(frame, "rotation", 0):  # of a phone held upright
        image = image.rotate(turned, expand=True)
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _send(out: BinaryIO, message: FrameMessage) -> None:
    head = json.dumps(message[0]).encode()
    out.write(struct.pack("<II", len(head), len(message[1])) + head + message[1])
    out.flush()


def _send_newest(out: BinaryIO, spec: Spec) -> None:
    """Send a camera's messages while a thread makes them; frames that nobody takes in time are dropped."""
    waiting: queue.Queue[FrameMessage | None] = queue.Queue(MAX_WAITING_FRAMES)
    dropped = 0

    def put(message: FrameMessage | None) -> None:
        nonlocal dropped
        while True:
            try:
                waiting.put_nowait(message)
            except queue.Full:
                if (gone := waiting.get()) is not None:
                    dropped += gone[0]["kind"] == "frame"
            else:
                return

    def make() -> None:
        try:
            for message in captured(spec):
                put(message)
        except Exception as error:  # of libav: the reader says it
            put(_failure(error, spec))
        put(None)

    threading.Thread(target=make, daemon=True).start()
    while (message := waiting.get()) is not None:
        _send(out, ({**message[0], "dropped": dropped}, message[1]))


def _failure(error: Exception, spec: Spec) -> FrameMessage:
    """Return the message of an error; the address, which may hold a password, is left out."""
    reason = f"{type(error).__name__}: {error}".replace(repr(spec["address"]), "it").replace(
        spec["address"], "it"
    )
    return {"kind": "error", "reason": reason[:300]}, b""


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def run_decoder() -> None:
    """Decode what the first line of the standard input says."""
    spec: Spec = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    out = sys.stdout.buffer
    try:
        if spec["live"]:
            _send_newest(out, spec)
        else:
            for message in decoded(spec):
                _send(out, message)
    except Exception as error:  # of libav, or a file without a video: the reader says it
        _send(out, _failure(error, spec))
    os._exit(0)  # not waiting for a thread that hangs


if __name__ == "__main__":
    run_decoder()

"""Reads frames from a decoder in another process, which is killed when it hangs."""

from __future__ import annotations

import importlib.util
import json
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from streamcl.errors import ConfigError, MissingExtra
from streams.bounded_queue import put_until

PROGRAM = Path(__file__).with_name("frame_process.py")
READ_AHEAD = 4  # messages read ahead


class DecoderMessage(NamedTuple):
    """A message of the decoder. kind: frame, alive, frozen, moving, end, error, or hung.

    facts: see `streams.live.video.frame_process`. image: the PNG of a frame.
    """

    kind: str
    facts: Mapping[str, Any]
    image: bytes


def check_decoder() -> None:
    """Raise MissingExtra where PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise MissingExtra("videos and cameras need the package av", hint='pip install "streamcl[video]"')


def check_seconds(name: str, value: Any) -> float:
    """Return a number of seconds. Raise ConfigError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ConfigError(f"{name} is {value!r}; expected a number of seconds", hint=f"{name}: 0.5")
    return float(value)


class FrameDecoder:
    """One decoder process, from its start to its end.

    Args:
        spec: see `streams.live.video.frame_process.Spec`.
        frame_timeout: seconds without a message, while one is waited for, after which the decoder hangs.
    """

    def __init__(self, spec: Mapping[str, Any], frame_timeout: float) -> None:
        self._frame_timeout, self._waited = frame_timeout, 0.0
        self._messages: queue.Queue[DecoderMessage] = queue.Queue(READ_AHEAD)
        self._last: DecoderMessage | None = None
        # -P: the folder of the program, which has modules named like packages, is not on its path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died at once, which the thread notices
            self._process.stdin.write(json.dumps(spec).encode() + b"\n")  # a URL may hold a password
            self._process.stdin.flush()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="streamcl-frames", daemon=True)
        self._thread.start()

    def take(self, timeout: float) -> DecoderMessage | None:
        """Return the next message, None where none comes in time; the last one again and again."""
        if self._last is not None:
            return self._last
        timeout = min(timeout, self._frame_timeout - self._waited)
        try:
            message = self._messages.get(timeout=timeout) if timeout > 0 else self._messages.get_nowait()
        except queue.Empty:
            self._waited += timeout
            if timeout <= 0 or self._waited < self._frame_timeout:
                return None
            message = DecoderMessage("hung", {}, b"")
        self._waited = 0.0
        if message.kind in {"end", "error", "hung"}:
            self._last = message
        return message

    def close(self) -> None:
        """Kill the process."""
        self._stopped.set()
        self._process.kill()
        self._thread.join()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        """Put every message into the queue, then an error where the process ends without its last one."""
        ended = False
        while not ended and not self._stopped.is_set():
            message = self._message()
            ended = message.kind in {"end", "error"}
            put_until(self._messages, message, self._stopped)

    def _message(self) -> DecoderMessage:
        assert self._process.stdout is not None
        pipe = self._process.stdout
        head = pipe.read(8)
        if len(head) == 8:
            sizes = struct.unpack("<II", head)
            facts, image = pipe.read(sizes[0]), pipe.read(sizes[1])
            if (len(facts), len(image)) == sizes:
                known = json.loads(facts)
                return DecoderMessage(known["kind"], known, image)
        reason = f"the decoder has died (exit code {self._process.wait()})"
        return DecoderMessage("error", {"reason": reason}, b"")

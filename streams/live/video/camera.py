"""Reads the pictures of a camera: RTSP, MJPEG over HTTP, or a device of this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from streamcl.errors import BadRecord
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, RecordKey
from streams.live.video.frame_decoder import DecoderMessage, FrameDecoder, check_decoder, check_seconds
from streams.live.video.frame_reader import FrameReader

logger = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts to connect


class CameraReader(FrameReader):
    """Pictures of a camera by rate or by change, each at most once: what nobody reads is lost.

    A camera that does not answer is connected to again, with growing delays, and one whose picture freezes
    brings nothing until it moves; both are logged. Pictures that come faster than they are read are dropped,
    counted and logged.

    Args:
        address: "rtsp://...", "http://...", or a device such as "/dev/video0"; it is in no message.
        every: seconds from one picture to the next.
        change: the mean difference in [0, 1] that a picture must have from the last one taken; None: any.
        label: of every picture.
        frozen_after: seconds of exactly the same picture after which the camera counts as frozen.
        timeout: seconds without a picture after which it is connected to again.
        options: of libav, such as {"rtsp_transport": "tcp"}.
        name: of the stream.
        clock: returns the time in seconds.
        sleep: waits that many seconds.
    """

    delivery = DeliveryGuarantee(
        "at_most_once", "a camera cannot go back; a spool in front of it keeps what has come"
    )
    frames_at_once = 8
    rejoins = True

    def __init__(
        self,
        address: str,
        every: float = 1.0,
        change: float | None = None,
        *,
        label: str | None = None,
        frozen_after: float = 30.0,
        timeout: float = 10.0,
        options: Mapping[str, str] | None = None,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_decoder()
        self._timeout = check_seconds("timeout", timeout)
        self._label, self._clock, self._sleep = label, clock, sleep
        self.name = name or urlsplit(address).hostname or address.rpartition("/")[2] or "camera"
        self._spec = {
            "address": address,
            "format": "v4l2" if address.startswith("/dev/") else None,
            "options": {key: str(value) for key, value in (options or {}).items()},
            "every": check_seconds("every", every),
            "change": change,
            "after": None,
            "live": True,
            "frozen_after": check_seconds("frozen_after", frozen_after),
        }
        self.open(None)

    def open(self, position: State | None) -> None:
        """Go on with what the camera shows from now on; what it showed since `position` is lost."""
        self.close()
        self._read = 0 if position is None else position["read"]
        self._next_attempt, self._delay, self._dropped = 0.0, 0.0, 0

    def poll(self, timeout: float) -> Sequence[Arrival]:
        """Return the pictures that have come."""
        if self._decoder is None:
            if (now := self._clock()) < self._next_attempt:
                self._sleep(min(timeout, self._next_attempt - now))
                return ()
            self._decoder = FrameDecoder(self._spec, self._timeout)
        return self._frames(timeout)

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return a BadRecord for each: a picture that was learned before a crash cannot be had again."""
        return [Arrival(BadRecord(f"{key} was lost with the interruption"), key) for key in keys]

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Count the pictures."""
        self._read += len(keys)

    def position(self) -> State:
        """Return how many pictures were read."""
        return {"read": self._read}

    @property
    def fetch(self) -> None:
        """None: no picture can be had again."""
        return

    def _taken(self, message: DecoderMessage) -> Arrival | None:
        """Return the picture of a message; None for others, which are logged."""
        self._log_dropped(message.facts.get("dropped", 0))
        match message.kind:
            case "frame":
                self._delay = 0.0
                at = datetime.fromtimestamp(message.facts["at"], UTC)
                key = f"{self.name}-{at:%Y%m%dT%H%M%S.%fZ}"
                return Arrival({"image": message.image, "label": self._label, "id": key}, key)
            case "frozen":
                limit = self._spec["frozen_after"]
                logger.warning("%s shows the same picture for %g s; it is not read", self.name, limit)
            case "moving":
                logger.info("%s moves again", self.name)
            case "hung":
                self._reconnect(f"no picture within {self._timeout:g} s")
            case "error" | "end":
                self._reconnect(message.facts.get("reason", "the stream has ended"))
        return None

    def _reconnect(self, reason: str) -> None:
        self.close()
        self._delay = min(LONGEST_PAUSE, max(FIRST_DELAY, 2 * self._delay))
        logger.warning("%s: %s; connecting again in %g s", self.name, reason, self._delay)
        self._next_attempt, self._dropped = self._clock() + self._delay, 0

    def _log_dropped(self, dropped: int) -> None:
        """Log how many pictures were dropped, each time that the number has doubled."""
        if dropped >= max(1, 2 * self._dropped):
            logger.warning(
                "%s: %d pictures were dropped: they come faster than they are read", self.name, dropped
            )
            self._dropped = dropped

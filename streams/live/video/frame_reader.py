"""The part that readers of videos and of cameras share: the frames that a decoder process brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival
from streams.live.video.frame_decoder import DecoderMessage, FrameDecoder


class FrameReader:
    """Reads frames of a decoder process; a subclass starts it and makes records of its messages.

    delivery: the guarantee. frames_at_once: that a poll returns at most.
    """

    delivery: ClassVar[DeliveryGuarantee]
    frames_at_once: ClassVar[int]

    _decoder: FrameDecoder | None = None

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """How often each frame is learned."""
        return self.delivery

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Do nothing: neither files nor cameras take commits."""

    def lag(self) -> None:
        """Nobody knows how many frames there still are."""

    def close(self) -> None:
        """End the decoder."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _taken(self, message: DecoderMessage) -> Arrival | None:
        """Return the frame of a message; None for others."""
        raise NotImplementedError

    def _frames(self, timeout: float) -> Sequence[Arrival]:
        """Return the frames that the decoder has brought; wait for the first message only."""
        found = list[Arrival]()
        while len(found) < self.frames_at_once and self._decoder is not None:
            message = self._decoder.take(0.0 if found else timeout)
            if message is None:
                break
            if (arrival := self._taken(message)) is not None:
                found.append(arrival)
            elif not found:
                break
        return found

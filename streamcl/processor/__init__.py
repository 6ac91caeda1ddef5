"""The streaming loop and what it asks of its parts."""

from streamcl.processor.loop import StreamProcessor
from streamcl.processor.parts import Pace

__all__ = ["Pace", "StreamProcessor"]

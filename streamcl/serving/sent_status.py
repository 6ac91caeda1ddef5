"""Notes with which status an ASGI application answers."""

from __future__ import annotations

from starlette.types import Message, Send


class SentStatus:
    """Passes messages on to `send`; status: of the answer that has begun, 500 while none has."""

    def __init__(self, send: Send) -> None:
        self.status = 500
        self._send = send

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

"""The states of a request to forget, from its submission to its end."""

from __future__ import annotations

from typing import Literal, TypeAlias

RequestStatus: TypeAlias = Literal["received", "started", "done", "failed", "refused"]

PENDING: frozenset[RequestStatus] = frozenset({"received", "started"})
"""Not carried out yet."""

ENDED: frozenset[RequestStatus] = frozenset({"done", "failed", "refused"})
"""Over, with a receipt; of these only what has failed may become pending again."""

"""A sample as JSON, as a request carries it where the source cannot fetch it."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt


class PackedSample(BaseModel):
    """The fields of a packed sample; `image` has its pixels, uint8 RGB [H, W, 3], in base64."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str
    shape: Annotated[tuple[NonNegativeInt, NonNegativeInt, Literal[3]], Field(strict=False)]
    id: str
    label: str | None = None
    subject: str | None = None
    domain: str | None = None
    privacy: Literal["core", "user"] = "core"

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return uint8 RGB [H, W, 3]. Raise ValueError where the text is no base64 or has another size."""
        raw = np.frombuffer(base64.b64decode(self.image, validate=True), np.uint8)
        return raw.reshape(self.shape)

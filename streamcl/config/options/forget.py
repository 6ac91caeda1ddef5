"""Options of a request to forget."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from streamcl.config.options.base import Options
from streamcl.events import Name, Offset, RequestTerms


class ForgetOptions(RequestTerms, Options):
    """A request to forget that falls due at an offset of the stream."""

    model_config = ConfigDict(populate_by_name=True)

    offset: Offset = Field(0, alias="at", description="Carried out before the first batch at or past it.")
    label: Name | None = Field(None, alias="class", description="A class, all of it.")

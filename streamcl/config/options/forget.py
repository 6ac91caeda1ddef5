"""Options of a request to forget."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import Options


class ForgetOptions(Options):
    """A request to forget that falls due at an offset of the stream."""

    model_config = ConfigDict(populate_by_name=True)

    at: int = Field(0, ge=0, lt=2**62, description="Carried out before the first batch at or past it.")
    class_: str | int | None = Field(None, alias="class", description="A class, all of it.")
    subject: str | int | None = Field(None, description="Everything of a subject.")
    all_users: bool = Field(False, description="Every sample whose privacy is user.")
    ids: list[str | int] | None = Field(None, min_length=1, description="Samples by their ids.")
    id_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Samples by what their ids look like: * stands for any letters, ? for one.",
    )
    domain: str | int | None = Field(None, description="Samples of a domain.")
    offsets: list[int] | None = Field(
        None, min_length=2, max_length=2, description="Samples from the first offset to before the second."
    )
    guarantee: Literal["exact", "bounded", "approximate"] | None = Field(
        None, description="The weakest guarantee that will do; null: the strongest that there is."
    )
    method: str = Field("auto", min_length=1, max_length=200, description="auto, or a method by name.")
    relearn: Literal["deny", "allow"] = Field(
        "deny", description="What happens when the stream brings it again: drop it, or learn it anew."
    )

    @model_validator(mode="after")
    def _something(self) -> ForgetOptions:
        narrow = [self.ids, self.id_pattern, self.domain, self.offsets]
        if self.class_ is not None and any(each is not None for each in (self.subject, *narrow)):
            raise PydanticCustomError("both", "'class' stands alone: a class is forgotten whole")
        if self.all_users:
            if any(each is not None for each in (self.class_, self.subject, *narrow)):
                raise PydanticCustomError("both", "'all_users' stands alone")
            return self
        if self.class_ is None and self.subject is None and not any(each is not None for each in narrow):
            raise PydanticCustomError(
                "none", "needs one of 'class', 'subject', 'ids', 'id_pattern', 'domain' and 'offsets'"
            )
        return self

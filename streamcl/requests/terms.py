"""Which samples a request to forget reaches, and how."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal, Self, TypeAlias

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Kind: TypeAlias = Literal["samples", "subject", "class"]
Guarantee: TypeAlias = Literal["exact", "bounded", "approximate"]
OnReturn: TypeAlias = Literal["drop", "learn"]


def canonical_name(name: str) -> str:
    r"""Return the one spelling of a class, subject or domain: in composed characters (NFC), blanks cut off.

    >>> canonical_name("cat "), canonical_name("cafe\u0301") == "caf\u00e9"
    ('cat', True)
    """
    return unicodedata.normalize("NFC", name).strip() or name


_digits = pydantic.BeforeValidator(lambda value: str(value) if type(value) is int else value)
Name: TypeAlias = Annotated[
    str, pydantic.StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]+$"), _digits,
    pydantic.WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer"}]}),
]  # fmt: skip
"""Of a class, subject, domain or sample; an integer is the name of its digits, as in a label."""

CanonicalName: TypeAlias = Annotated[Name, pydantic.AfterValidator(canonical_name)]
"""Of a class, subject or domain, in the one spelling that the records of a stream have."""

Id: TypeAlias = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=200)]
Offset: TypeAlias = Annotated[int, Field(ge=0, le=2**62)]
Span: TypeAlias = tuple[Offset, Offset]
SELECTING = ("label", "subject", "all_users", "ids", "id_pattern", "domain", "offsets")


class RequestTerms(BaseModel):
    """Which samples a request reaches, and how, in YAML, CLI and Python; fields are joined by "and"."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    offset: Offset = Field(0, description="Carried out before the first batch at or past it.")
    label: CanonicalName | None = Field(None, description="A class, all of it.")
    subject: CanonicalName | None = Field(None, description="Everything of a subject.")
    all_users: bool = Field(False, description="Every sample whose privacy is user.")
    ids: tuple[Name, ...] = Field((), strict=False, description="Samples by their ids.")
    id_pattern: Name | None = Field(None, description="Samples by their ids: * is any letters, ? is one.")
    domain: CanonicalName | None = Field(None, description="Samples of a domain.")
    offsets: Span | None = Field(None, strict=False, description="Samples from one offset to another.")
    guarantee: Guarantee | None = Field(None, description="The weakest that will do; null: the strongest.")
    method: Id = Field("auto", description="auto, or a method by name.")
    on_return: OnReturn = Field(
        "drop", description="Samples of it that the stream brings again: drop or learn them."
    )

    @property
    def kind(self) -> Kind:
        """The kind of the request: "class" or "subject" where it selects one of these alone."""
        given = set(self.selection) - {"subject", "all_users"}
        return "class" if given == {"label"} else "samples" if given else "subject"

    @property
    def selection(self) -> dict[str, Any]:
        """The fields that select samples and are set."""
        return {name: each for name in SELECTING if (each := getattr(self, name)) not in (None, False, ())}

    @model_validator(mode="after")
    def _one_selection(self) -> Self:
        given = self.selection.keys()
        if len(given) > 1 and given & {"label", "all_users"}:
            raise PydanticCustomError("selection", "a class or 'all_users' excludes every other selection")
        if not given:
            raise PydanticCustomError("selection", "needs a class, or one of " + ", ".join(SELECTING[1:]))
        if self.offsets is not None and self.offsets[0] >= self.offsets[1]:
            raise PydanticCustomError("offsets", "'offsets' must be two offsets, the first before the second")
        return self

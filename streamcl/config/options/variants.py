"""Which of several blocks one stands for: by its name, a class of the user's own, or a plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, Field

from streamcl.config.options.base import DOTTED, Args, Options


def variant(value: Any) -> str | None:
    """Which member of a union a block means: what its `name` says, or "class" or "plugin"."""
    if isinstance(value, BaseModel):
        return str(getattr(value, "name", "class" if "class_" in type(value).model_fields else "plugin"))
    if isinstance(value, Mapping):
        if isinstance(name := value.get("name"), str):
            return name
        return next((kind for kind in ("class", "plugin") if "name" not in value and kind in value), None)
    return None


def by_name(default: str | None = None) -> BeforeValidator:
    """Lets a bare name stand for its block, and a block without a name for the default one."""

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if default and isinstance(value, Mapping) and not {"name", "class", "plugin"} & set(value):
            return {"name": default, **value}
        return value

    return BeforeValidator(expand)


class ByClass(Options):
    """A part of your own, by its dotted path."""

    class_: str = Field(
        alias="class",
        pattern=DOTTED,
        examples=["package.module:callable"],
        description="A callable that makes it.",
    )
    args: Args = Field({}, description="Keyword arguments for the callable.")


class ByPlugin(Options):
    """A part that an installed package registers as an entry point."""

    plugin: str = Field(min_length=1, max_length=200, description="The entry point's name.")
    args: Args = Field({}, description="Keyword arguments for the plugin.")

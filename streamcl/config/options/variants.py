"""Unions of options that differ by a name, a class of the user's own, or a plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, Field

from streamcl.config.options.base import IMPORT_PATH, Args, Options


def variant(value: Any) -> str | None:
    """Return the tag of the union's member that a block means: its `name`, or "class" or "plugin"."""
    if isinstance(value, BaseModel):
        return str(getattr(value, "name", "class" if "class_" in type(value).model_fields else "plugin"))
    if isinstance(value, Mapping):
        if isinstance(name := value.get("name"), str):
            return name
        return next((kind for kind in ("class", "plugin") if "name" not in value and kind in value), None)
    return None


def by_name(default: str | None = None) -> BeforeValidator:
    """Return a validator that expands a name to its block and gives a nameless block the default name."""

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if default and isinstance(value, Mapping) and not {"name", "class", "plugin"} & set(value):
            return {"name": default, **value}
        return value

    return BeforeValidator(expand)


class ClassOptions(Options):
    """A part of your own, by its import path."""

    class_: str = Field(
        alias="class",
        pattern=IMPORT_PATH,
        examples=["package.module:callable"],
        description="A callable that makes it.",
    )
    args: Args = Field({}, description="Keyword arguments for the callable.")


class PluginOptions(Options):
    """A part that an installed package registers as an entry point."""

    plugin: str = Field(min_length=1, max_length=200, description="The entry point's name.")
    args: Args = Field({}, description="Keyword arguments for the plugin.")

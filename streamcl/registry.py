"""Finds the callable that a dotted path names, and says plainly what is wrong where it does not."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from streamcl.errors import ConfigError, SourceError

FORM = 'write "package.module:callable"'


def import_callable(dotted: str) -> Callable[..., Any]:
    """The callable at "package.module:callable".

    The working directory comes first on the path, so that a file beside the YAML is found. Raises ConfigError
    where the module or the name does not exist or cannot be called, SourceError where importing it raises.
    """
    module_name, colon, attribute = dotted.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ConfigError(f"{dotted!r} does not name a callable", hint=FORM)
    found: Any = _module(module_name)
    for part in attribute.split("."):
        found = _attribute(found, part, dotted)
    if not callable(found):
        raise ConfigError(f"{dotted} is a {type(found).__name__}, which cannot be called", hint=FORM)
    return found  # type: ignore[no-any-return]


def bind_arguments(dotted: str, args: Mapping[str, Any]) -> Callable[[], Any]:
    """A function of no arguments that calls the callable at `dotted` with `args`.

    Raises ConfigError where the callable does not take them. What it returns None for is a SourceError.
    """
    function = import_callable(dotted)
    _check_arguments(function, dotted, args)

    def make() -> Any:
        made = function(**args)
        if made is None:
            raise SourceError(f"{dotted} returned None", hint="return an iterable of records, or yield them")
        return made

    return make


def _module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            hint = "give the file's name without .py; files are looked for in the working directory"
            raise ConfigError(f"there is no module {error.name!r}", hint=hint) from error
        raise SourceError(f"importing {name} failed: {error}", hint="install what it imports") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise SourceError(f"importing {name} failed: {type(error).__name__}: {error}") from error


def _attribute(owner: Any, name: str, dotted: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        near = get_close_matches(name, dir(owner), 1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise ConfigError(f"{dotted}: {owner.__name__} has no {name!r}", hint=hint) from error


def _check_arguments(function: Callable[..., Any], dotted: str, args: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-ins tell nothing of themselves
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        raise ConfigError(f"{dotted}{signature} does not take these args: {error}") from error

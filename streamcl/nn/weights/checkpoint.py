"""Finds a model's tensors in a pickled checkpoint, whatever a trainer has put beside and around them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from streamcl.errors import WeightsError

logger = logging.getLogger(__name__)

# The first that is there is opened: trained weights before their averages, DINO's teacher before its student.
_NESTINGS = (
    *("state_dict", "model", "teacher", "model_state_dict", "model_state", "module", "net", "network"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema", "target_encoder", "encoder", "student"),
)
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # at any place in a name
_ANCHOR = re.compile(r"^(.*?)(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight$")
_PREFIXES = ("module.", "backbone.", "model.")  # of models without such a weight


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pth, .pt or .bin file by name. No code in it runs.

    Objects other than tensors and plain data (a Namespace of arguments, a configuration) are left out. Raise
    WeightsError where no mapping of tensors is found, and whatever torch raises for damaged files.
    """
    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file of before torch 1.6, which torch cannot inspect
        foreign = []
    with safe_globals([(_ignored(name), name) for name in foreign]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return _unwrapped(content, path)


def _ignored(name: str) -> type:
    """Return a class that stands for a foreign one in a pickle: it takes everything and does nothing."""

    def ignore(self: object, *_: Any, **__: Any) -> None:
        pass

    module, _, leaf = name.rpartition(".")
    return type(
        leaf, (), {"__module__": module, "__init__": ignore, "__new__": _bare, "__setstate__": ignore}
    )


def _bare(cls: type, *_: Any, **__: Any) -> Any:
    return object.__new__(cls)


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, out of the mappings that trainers put around them."""
    while isinstance(content, Mapping):
        inner = [
            str(key) for key, value in content.items() if isinstance(value, Mapping) and _has_tensors(value)
        ]
        chosen = next((name for name in _NESTINGS if name in inner), None)
        if chosen is None and any(isinstance(value, Tensor) and value.ndim for value in content.values()):
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if chosen is None and len(inner) != 1:
            found = ", ".join(map(str, list(content)[:10])) or "no key at all"
            raise WeightsError(
                f"{path}: no weights found under {found}",
                hint="save the model's state dict alone, or under the key state_dict",
            )
        content = content[chosen or inner[0]]
        others = [name for name in inner if name in _NESTINGS and name != chosen]
        if others:
            logger.info("%s: of several models %s is used, not %s", path, chosen, ", ".join(others))
    raise WeightsError(f"{path}: holds a {type(content).__name__}, not a mapping of names to tensors")


def _has_tensors(value: Any) -> bool:
    """Return whether it is a mapping with names of tensors, at any depth; an optimizer's have numbers."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and (isinstance(each, Tensor) or _has_tensors(each))
        for key, each in value.items()
    )


def without_prefixes(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors by name, without what wrappers (DDP, Lightning, torch.compile) put before names.

    Args:
        state: a state dict.
        path: of the file, for the log.
    """
    clean = dict[str, Tensor]()
    for key, value in state.items():
        for wrapper in _WRAPPERS:
            key = key.replace(wrapper, "")  # noqa: PLW2901 - one name after the other
        clean[key] = value
    prefixes = [match[1] for key in clean if (match := _ANCHOR.match(key))]
    if not prefixes:
        for prefix in _PREFIXES:
            clean = {key.removeprefix(prefix): value for key, value in clean.items()}
        return clean
    prefix = min(prefixes, key=lambda each: (each.count("."), prefixes.index(each)))
    if len(prefixes) > 1:
        others = ", ".join(repr(each) for each in prefixes if each != prefix)
        logger.info("%s: of several models %r is used, not %s", path, prefix, others)
    own = {key.removeprefix(prefix): value for key, value in clean.items() if key.startswith(prefix)}
    return {key: value for key, value in clean.items() if not key.startswith(prefix)} | own

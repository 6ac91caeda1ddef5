"""Checks that a file's weights fill a model: every one there, in shape, and what is dropped is said."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from streamcl.errors import WeightsError

logger = logging.getLogger(__name__)

_SHOWN = 8  # names in one message; a wrong file has hundreds


def fitting(state: Mapping[str, Tensor], model: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """The part of `state` that fills `model`, both as state dicts of one naming.

    Logs which parts are dropped (a classifier, blocks past the kept depth). Raises WeightsError
    where names are missing or shapes differ.
    """
    missing = [key for key in model if key not in state]
    if missing:
        raise WeightsError(
            f"{path}: {len(missing)} of {len(model)} weights are missing: {_some(missing)}",
            hint="is it the file of this model, and not of another size or family?",
        )
    wrong = [key for key in model if state[key].shape != model[key].shape]
    if wrong:
        shapes = [f"{key} is {list(state[key].shape)}, not {list(model[key].shape)}" for key in wrong]
        raise WeightsError(f"{path}: weights of another shape: {_some(shapes)}")
    dropped = Counter(_part(key) for key in state if key not in model)
    if dropped:
        parts = [f"{part} ({count})" for part, count in sorted(dropped.items())]
        logger.info("%s: %d weights are not used: %s", path, dropped.total(), _some(parts))
    return {key: state[key] for key in model}


def _part(key: str) -> str:
    """The block of a weight, or the first part of its name: what one drops as a whole."""
    block = re.match(r"(?:layers\.\d+\.)?blocks\.\d+", key)
    return block.group() if block else key.partition(".")[0]


def refuse_other_patches(state: Mapping[str, Tensor], model: Mapping[str, Tensor], path: str) -> None:
    """Raise WeightsError for a patch embedding of another size: resampled, it would be another model."""
    key = "patch_embed.proj.weight"
    if key in state and state[key].ndim == 4 and state[key].shape != model[key].shape:
        raise WeightsError(f"{path}: {key} is {list(state[key].shape)}, not {list(model[key].shape)}")


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")

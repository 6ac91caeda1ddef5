"""What an audit works on: features and labels of what stayed, was forgotten, and was never learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.errors import ForgettingError
from streamcl.heads.statistics import Statistics

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Scorer: TypeAlias = Callable[[Tensor], Tensor]
"""Class scores [N, C] of features [N, D]; minus infinity for a class that cannot be named."""

Sums: TypeAlias = Statistics | tuple[Statistics, ...]
"""What a model of one head knows, or of each of two heads whose scores are joined."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """features [N, D] of the frozen map, and the class column of each, int64 [N]."""

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                f"features {tuple(self.features.shape)} and labels {tuple(self.labels.shape)} do not fit: "
                "expected [N, D] and [N]"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> Examples:
        """Those of a mask or of indices."""
        return Examples(self.features[rows], self.labels[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Everything of one erasure.

    retain: what the audited model has learned and may know. forget: what was erased from it. test: samples
    that no model has learned, of the classes that stay. columns: C. gone: the column of a forgotten class;
    None for requests of kind samples and subject. unseen: held-out samples of that class, for relearn time.
    base: sums of what every model has learned as well, and none can go without.
    """

    retain: Examples
    forget: Examples
    test: Examples
    columns: int
    gone: int | None = None
    unseen: Examples | None = None
    base: Sums | None = None

    def __post_init__(self) -> None:
        for name, found in (("retained", self.retain), ("forgotten", self.forget), ("held-out", self.test)):
            if not len(found):
                raise ForgettingError(f"there are no {name} samples to audit with")

    @property
    def counts(self) -> dict[str, int]:
        """How many samples of each kind there are; those in `base` are retained too."""
        parts = self.base if isinstance(self.base, tuple) else () if self.base is None else (self.base,)
        below = parts[0].total if parts else 0
        return {
            "retain": len(self.retain) + below,
            "forget": len(self.forget),
            "test": len(self.test),
        }

    @property
    def width(self) -> int:
        """D."""
        return self.retain.features.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Audited:
    """What is audited: the sums of a closed form (two of them for two heads), or scores alone.

    With sums the audit makes as many models of them as there are references, each without a share of the
    retained samples, so that both are draws of one kind; scores alone are one model.
    """

    statistics: Sums | None = None
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        if (self.statistics is None) == (self.scorer is None):
            raise ValueError("give either statistics or a scorer")


def drawn(examples: Examples, most: int, seed: int) -> tuple[Examples, Tensor]:
    """At most `most` of the examples, drawn without replacement, and which rows they are, in order."""
    if len(examples) <= most:
        rows = torch.arange(len(examples))
    else:
        chosen = np.random.default_rng(seed).choice(len(examples), most, replace=False)
        rows = torch.from_numpy(np.sort(chosen))
    return examples.at(rows), rows

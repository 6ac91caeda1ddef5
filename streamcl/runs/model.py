"""The model of a run as an object that names the classes of images, in the manner of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.config.options.learner import learner_name
from streamcl.errors import BadRecord
from streamcl.events import Sample
from streamcl.factory.request_image import image_sample
from streamcl.protocols import Learner, ProbabilisticLearner
from streamcl.runs.learner import load_learner

ManyImages: TypeAlias = Sequence[Any] | npt.NDArray[Any]
"""Several images, each in any form that a source takes, or one array or tensor of them with four axes."""


class RunModel:
    """The model of a run as its newest checkpoint holds it. It learns no further: the run does.

    Attributes:
        folder: the run's directory.
        classes: the names of the classes, in the order of the columns of `predict_proba`.
    """

    def __init__(self, folder: Path, learner: Learner, name: str) -> None:
        self.folder, self.classes = folder, learner.classes
        self._learner, self._name = learner, name

    def __repr__(self) -> str:
        return f"RunModel({str(self.folder)!r}, learner={self._name!r}, classes={len(self.classes)})"

    def predict(self, images: ManyImages) -> list[str | None]:
        """Return the name of each image's class; None where none is known.

        images: several, each in any form that a source takes, or one array or tensor [N, H, W, C] or
            [N, C, H, W], uint8 or floating point in [0, 1].

        Raise BadRecord for what is no image.
        """
        return [each.label for each in self._learner.predict(_samples(images))]

    def predict_proba(self, images: ManyImages) -> npt.NDArray[np.float64]:
        """Return the probability of each class, float64 [N, C] in the order of `classes`.

        images: as for `predict`, for example uint8 [N, H, W, 3].

        A learner that gives no probability of every class has its confidence in the class that it names, and
        divides the rest among the others. Raise BadRecord for what is no image.
        """
        samples = _samples(images)
        if not samples or not self.classes:
            return np.zeros((len(samples), len(self.classes)))
        if isinstance(self._learner, ProbabilisticLearner):
            chances = self._learner.logits(samples).double().softmax(dim=1)
            return np.asarray(chances.cpu().numpy(), np.float64)
        others = max(1, len(self.classes) - 1)
        found = np.empty((len(samples), len(self.classes)))
        for row, each in zip(found, self._learner.predict(samples), strict=True):
            row[:] = (1.0 - each.confidence) / others
            if each.label is not None:
                row[self.classes.index(each.label)] = each.confidence
        return found


def load(run: str | PathLike[str]) -> RunModel:
    """Return the model that a run has learned so far; the run may be going on.

    Args:
        run: the run's directory.

    Raises:
        ConfigError: it holds no run.
        CheckpointError: it holds no checkpoint.
    """
    folder = Path(run)
    learner, config = load_learner(folder, fitted=True)
    return RunModel(folder, learner, learner_name(config.learner))


def _samples(images: ManyImages) -> list[Sample]:
    if isinstance(images, str | bytes | PathLike | Mapping) or not hasattr(images, "__len__"):
        raise BadRecord(f"expected several images, found a {type(images).__name__}", hint="write [image]")
    if getattr(images, "ndim", 4) != 4:
        raise BadRecord(f"expected images with four axes, found {images.ndim}", hint="write [image]")  # type: ignore[union-attr]
    return [image_sample(image, f"image-{number}") for number, image in enumerate(images)]

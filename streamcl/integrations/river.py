"""A River classifier over images, for pipelines and evaluators that speak River."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from river import base

from streamcl.config.load import config_from_dict
from streamcl.config.options.run import RunConfig
from streamcl.errors import BadRecord
from streamcl.events import Batch, Pixels, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.protocols import Learner, ProbabilisticLearner


class RiverClassifier(base.Classifier):  # type: ignore[misc]
    """`learn_one(x, y)` and `predict_one(x)` of images: uint8 [H, W, 3], or {"image": such an array}.

    config: the `backbone`, `learner`, `precision`, `device` and `seed` of a configuration, as a mapping or a
        RunConfig; its sources are not used.
    batch_size: samples of a learning step. 1 learns at once, as River expects; more is faster and learns the
        same samples a little later.
    """

    def __init__(self, config: Mapping[str, Any] | RunConfig | None = None, batch_size: int = 1) -> None:
        self.config = config
        self.batch_size = batch_size
        if not isinstance(config, RunConfig):
            config = config_from_dict({"source": {"name": "river"}, **(config or {})})
        compute = build_compute(config)
        self._learner = build_learner(config, build_vit(config, compute), compute)
        self._waiting: list[Sample] = []
        self._names: dict[str, Hashable] = {}
        self._seen = 0

    @property
    def _multiclass(self) -> bool:
        return True

    @property
    def learner(self) -> Learner:
        """The wrapped learner."""
        return self._learner

    def learn_one(self, x: Any, y: Any) -> None:
        """Take one labelled image, uint8 [H, W, 3]; every `batch_size` images make a learning step."""
        self._names[str(y)] = y
        self._waiting.append(Sample(f"river-{self._seen}", _image(x), str(y)))
        self._seen += 1
        if len(self._waiting) >= self.batch_size:
            self._learner.learn(Batch(self._seen - len(self._waiting), tuple(self._waiting)))
            self._waiting.clear()

    def predict_one(self, x: Any) -> Any:
        """Return the class of one image, of the type in which it was learned; None while none is known."""
        predicted = self._learner.predict([Sample("river", _image(x))])[0]
        return None if predicted.label is None else self._names[predicted.label]

    def predict_proba_one(self, x: Any) -> dict[Any, float]:
        """Return the probability of each known class, by class; nothing while none is known."""
        sample = Sample("river", _image(x))
        if not self._learner.classes:
            return {}
        if not isinstance(self._learner, ProbabilisticLearner):
            predicted = self._learner.predict([sample])[0]
            return {} if predicted.label is None else {self._names[predicted.label]: predicted.confidence}
        chances = self._learner.logits([sample])[0].softmax(dim=0).tolist()
        names = [self._names[name] for name in self._learner.classes]
        return {name: chance for name, chance in zip(names, chances, strict=True) if math.isfinite(chance)}


def _image(x: Any) -> Pixels:
    image = np.asarray(x["image"] if isinstance(x, Mapping) and "image" in x else x)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}"
        raise BadRecord(f"expected an image, uint8 [H, W, 3], found {found}", hint='or {"image": array}')
    return image

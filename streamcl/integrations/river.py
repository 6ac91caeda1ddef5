"""A River classifier over images, for pipelines and evaluators that speak River."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from river import base

from streamcl.config.load import config_from_dict
from streamcl.config.options.run import RunConfig
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.factory.request_image import image_sample
from streamcl.protocols import Learner, ProbabilisticLearner


class RiverClassifier(base.Classifier):  # type: ignore[misc]
    """`learn_one(x, y)` and `predict_one(x)` of images in any form that a source takes, or {"image": one}.

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
        """Take one labelled image; every `batch_size` images make a learning step."""
        self._names[str(y)] = y
        self._waiting.append(_sample(x, f"river-{self._seen}", str(y)))
        self._seen += 1
        if len(self._waiting) >= self.batch_size:
            self._learner.learn(Batch(self._seen - len(self._waiting), tuple(self._waiting)))
            self._waiting.clear()

    def predict_one(self, x: Any) -> Any:
        """Return the class of one image, of the type in which it was learned; None while none is known."""
        predicted = self._learner.predict([_sample(x, "river")])[0]
        return None if predicted.label is None else self._names[predicted.label]

    def predict_proba_one(self, x: Any) -> dict[Any, float]:
        """Return the probability of each known class, by class; nothing while none is known."""
        sample = _sample(x, "river")
        if not self._learner.classes:
            return {}
        if not isinstance(self._learner, ProbabilisticLearner):
            predicted = self._learner.predict([sample])[0]
            return {} if predicted.label is None else {self._names[predicted.label]: predicted.confidence}
        chances = self._learner.logits([sample])[0].softmax(dim=0).tolist()
        names = [self._names[name] for name in self._learner.classes]
        return {name: chance for name, chance in zip(names, chances, strict=True) if math.isfinite(chance)}


def _sample(x: Any, name: str, label: str | None = None) -> Sample:
    image = x["image"] if isinstance(x, Mapping) and "image" in x else x
    return replace(image_sample(image, name), label=label)

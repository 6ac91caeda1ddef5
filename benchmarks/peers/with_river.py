"""The work by River: deep-river's classifier on LoRA, and River's Gaussian naive Bayes on frozen features.

River has no nearest class mean; naive Bayes, which keeps a variance of each feature and class too, stands in.
"""

from __future__ import annotations

import pandas as pd
import torch
from deep_river.classification import Classifier
from measure import Prepared
from river import metrics, naive_bayes
from work import Work


def naive_lora(work: Work) -> Prepared:
    model = Classifier(work.adapted(), loss_fn="cross_entropy", optimizer_fn="adam", lr=work.rate)
    accuracy = metrics.Accuracy()

    def learn() -> None:
        for images, labels in zip(work.images.split(work.batch), work.labels.split(work.batch), strict=True):
            frame = _frame(images)
            if model.observed_classes:
                for label, known in zip(labels.tolist(), model.predict_many(frame), strict=True):
                    accuracy.update(label, known)
            model.learn_many(frame, pd.Series(labels.numpy()))

    def predict(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor(model.predict_many(_frame(images)).to_numpy())

    return Prepared(learn, predict)


def _frame(images: torch.Tensor) -> pd.DataFrame:
    flat = images.flatten(1).numpy()
    return pd.DataFrame(flat, columns=[f"pixel{number:06}" for number in range(flat.shape[1])])


def ncm(work: Work) -> Prepared:
    features = work.features().eval()
    model, accuracy = naive_bayes.GaussianNB(), metrics.Accuracy()

    def rows(images: torch.Tensor) -> list[dict[int, float]]:
        with torch.no_grad():
            return [dict(enumerate(row)) for row in features(images).tolist()]

    def learn() -> None:
        for images, labels in zip(work.images.split(work.batch), work.labels.split(work.batch), strict=True):
            for row, label in zip(rows(images), labels.tolist(), strict=True):
                accuracy.update(label, model.predict_one(row))
                model.learn_one(row, label)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([model.predict_one(row) for row in rows(images)])

    return Prepared(learn, predict)


METHODS = {"naive_lora": naive_lora, "ncm": ncm}

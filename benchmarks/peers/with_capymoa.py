"""The work by CapyMOA: its fine-tuning, nearest class mean and streaming LDA, in its own loop."""

from __future__ import annotations

from typing import Any

import torch
from capymoa.classifier import Finetune
from capymoa.ocl.evaluation import ocl_train_eval_loop
from capymoa.ocl.strategy import NCM, SLDA
from capymoa.stream import Schema
from measure import Prepared
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset
from work import Work


def naive_lora(work: Work) -> Prepared:
    model = work.adapted()
    optimizer = Adam([each for each in model.parameters() if each.requires_grad], lr=work.rate)
    return _prepared(work, Finetune(_schema(work), model=model, optimizer=optimizer))


def ncm(work: Work) -> Prepared:
    return _prepared(work, _closed_form(NCM, work))


def slda(work: Work) -> Prepared:
    return _prepared(work, _closed_form(SLDA, work))


def _closed_form(kind: Any, work: Work) -> Any:
    features = work.features().eval()
    return kind(_schema(work), pre_processor=features, num_features=features[1].num_features)


def _schema(work: Work) -> Schema:
    names = [str(number) for number in range(work.images[0].numel())]
    labels = [str(number) for number in range(work.classes)]
    return Schema.from_custom(features=[*names, "class"], target="class", categories={"class": labels})


def _prepared(work: Work, learner: Any) -> Prepared:
    stream = DataLoader(TensorDataset(work.images, work.labels), batch_size=work.batch)
    # The loop predicts each batch, trains on it, and ends with a test: of one image, as others have none.
    test = DataLoader(TensorDataset(work.test_images[:1], work.test_labels[:1]))

    def learn() -> None:
        ocl_train_eval_loop(learner, [stream], [test])

    def predict(images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1).to(dtype=learner.x_dtype)
        classes: torch.Tensor = learner.batch_predict(flat)
        return classes

    return Prepared(learn, predict)


METHODS = {"naive_lora": naive_lora, "ncm": ncm, "slda": slda}

"""The work by Avalanche: its Naive strategy on LoRA, and its streaming LDA."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive, StreamingLDA
from measure import Prepared
from torch import nn
from torch.optim import Adam
from work import Work


def naive_lora(work: Work) -> Prepared:
    model = work.adapted()
    optimizer = Adam([each for each in model.parameters() if each.requires_grad], lr=work.rate)
    return _prepared(work, Naive(model=model, optimizer=optimizer, **_common(work)))


def slda(work: Work) -> Prepared:
    model = work.features()
    strategy = StreamingLDA(
        slda_model=model, input_size=model[1].num_features, num_classes=work.classes, **_common(work)
    )
    return _prepared(work, strategy)


def _common(work: Work) -> dict[str, Any]:
    """Its evaluator counts what the training pass predicts before each step: test, then train."""
    return {
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": work.batch,
        "train_epochs": 1,
        "eval_mb_size": work.batch,
        "evaluator": EvaluationPlugin(accuracy_metrics(epoch=True)),
    }


def _prepared(work: Work, strategy: Any) -> Prepared:
    stream = tensors_benchmark(
        train_tensors=[(work.images, work.labels)],
        test_tensors=[(work.test_images, work.test_labels)],
        task_labels=[0],
    ).train_stream

    def learn() -> None:
        strategy.train(stream, shuffle=False)

    def predict(images: torch.Tensor) -> torch.Tensor:
        strategy.model.eval()
        strategy.mbatch = [images, None, torch.zeros(len(images))]
        scores: torch.Tensor = strategy.forward()
        return scores.argmax(1)

    return Prepared(learn, predict)


METHODS = {"naive_lora": naive_lora, "slda": slda}

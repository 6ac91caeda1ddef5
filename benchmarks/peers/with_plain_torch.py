"""Online-LoRA's own loop as arXiv 2411.05663 describes it, in plain torch, and a loop without any of it.

Per batch one step on the loss of the batch, of the 4 hardest samples so far, and of LoRA's factors weighted
by their importance. Where losses reach a plateau after a peak, importance is measured on the hard samples,
and the pairs are folded into the frozen weights and begin anew: the published code adds the factors
themselves, which changes the model's outputs. Thresholds are the paper's for CIFAR-100.
"""

from __future__ import annotations

import math
from statistics import fmean, pvariance

import torch
import torch.nn.functional as F
from measure import Prepared
from torch import Tensor, nn
from torch.optim import Adam
from work import RANK, LoRA, Work

LAMBDA, HARD, WINDOW, MEAN, VARIANCE = 2000.0, 4, 5, 2.6, 0.03


class OnlineLoRA:
    """The model, its hard samples, its window of losses and the importance of its factors."""

    def __init__(self, work: Work) -> None:
        self.model, self.rate = work.adapted(), work.rate
        self.adapters = [each for each in self.model.modules() if isinstance(each, LoRA)]
        self.factors = [factor for each in self.adapters for factor in (each.A, each.B)]
        self.importance = [torch.zeros_like(each) for each in self.factors]
        self.optimizer = self._new_optimizer()
        self.hard_images, self.hard_labels = work.images[:0], work.labels[:0]
        self.window: list[float] = []
        self.threshold, self.peak, self.consolidations = -math.inf, True, 0
        self.right = 0

    def step(self, images: Tensor, labels: Tensor) -> None:
        scores = self.model(images)
        self.right += int((scores.argmax(1) == labels).sum())  # test, then train
        losses = F.cross_entropy(scores, labels, reduction="none")
        data = losses.mean()
        if len(self.hard_labels):
            hard = F.cross_entropy(self.model(self.hard_images), self.hard_labels, reduction="none")
            losses, data = torch.cat([losses, hard]), data + hard.mean()
        moved = [(weight * each**2).sum() for weight, each in zip(self.importance, self.factors, strict=True)]
        self.optimizer.zero_grad()
        (data + LAMBDA / 2 * torch.stack(moved).sum()).backward()
        self.optimizer.step()
        self._keep_hardest(images, labels, losses.detach())
        self._watch(float(data.detach()))

    def consolidate(self) -> None:
        found = [torch.zeros_like(each) for each in self.factors]
        for image, label in zip(self.hard_images, self.hard_labels, strict=True):
            loss = F.cross_entropy(self.model(image[None]), label[None])
            for total, gradient in zip(found, torch.autograd.grad(loss, self.factors), strict=True):
                total.add_(gradient**2 / len(self.hard_labels))
        self.consolidations += 1
        for weight, new in zip(self.importance, found, strict=True):
            weight.add_((new - weight) / self.consolidations)
        with torch.no_grad():
            for each in self.adapters:
                _fold(each)
        self.optimizer = self._new_optimizer()

    def _keep_hardest(self, images: Tensor, labels: Tensor, losses: Tensor) -> None:
        hardest = losses.topk(HARD).indices
        self.hard_images = torch.cat([images, self.hard_images])[hardest]
        self.hard_labels = torch.cat([labels, self.hard_labels])[hardest]

    def _watch(self, loss: float) -> None:
        self.window = [*self.window, loss][-WINDOW:]
        if len(self.window) < WINDOW:
            return
        mean, variance = fmean(self.window), pvariance(self.window)
        self.peak = self.peak or mean > self.threshold
        if self.peak and mean < MEAN and variance < VARIANCE:
            self.threshold, self.peak = mean + math.sqrt(variance), False
            self.consolidate()

    def _new_optimizer(self) -> Adam:
        return Adam([each for each in self.model.parameters() if each.requires_grad], lr=self.rate)


def _fold(adapter: LoRA) -> None:
    width = adapter.frozen.in_features
    query, value = adapter.B
    adapter.frozen.weight[:width] += query @ adapter.A[:RANK]
    adapter.frozen.weight[2 * width :] += value @ adapter.A[RANK:]
    nn.init.kaiming_uniform_(adapter.A, a=math.sqrt(5))
    nn.init.zeros_(adapter.B)


def online_lora(work: Work) -> Prepared:
    learner = OnlineLoRA(work)

    def learn() -> None:
        for images, labels in zip(work.images.split(work.batch), work.labels.split(work.batch), strict=True):
            learner.step(images, labels)

    def predict(images: Tensor) -> Tensor:
        scores: Tensor = learner.model(images)
        return scores.argmax(1)

    return Prepared(learn, predict)


def naive_lora(work: Work) -> Prepared:
    """Return a plain loop, which no library makes slower."""
    model = work.adapted()
    optimizer = Adam([each for each in model.parameters() if each.requires_grad], lr=work.rate)

    def learn() -> None:
        for images, labels in zip(work.images.split(work.batch), work.labels.split(work.batch), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    def predict(images: Tensor) -> Tensor:
        scores: Tensor = model(images)
        return scores.argmax(1)

    return Prepared(learn, predict)


METHODS = {"naive_lora": naive_lora, "online_lora": online_lora}

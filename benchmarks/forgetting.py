"""Prints what five requests in sequence cost and leave behind, for every method, beside retraining.

    python benchmarks/forgetting.py [--quick] [--classes 20] [--requests 5] [--passes 2]

Real images (CIFAR-100, a tenth of it) on a pretrained ViT-S; skipped with a word where either is absent.
Forgotten: accuracy on held-out images of the class with its old row put back into the head, which shows what
the features still know. Seconds are those of the processor, on one thread, so they do not depend on load.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamcl.backbone import Backbone, build_backbone
from streamcl.compute import resolve_compute
from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, Sample
from streamcl.forgetting.closed_form import ClosedForm
from streamcl.forgetting.fast_ntk import FastNTK
from streamcl.forgetting.gs_lora import GSLoRA
from streamcl.forgetting.head_rows import HeadRows
from streamcl.forgetting.protocol import Context, Method, Scope, Trace
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.fused import fused_width
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge import RidgeLearner

BATCH = 32
BLOCKS = (6, 7, 8, 9, 10)


@dataclass(frozen=True)
class Data:
    """Samples to learn, to test on, and a live stream's next ones, without labels and never learned."""

    train: list[Sample]
    test: list[Sample]
    live: list[Sample]

    def without(self, labels: Sequence[str]) -> list[Sample]:
        return [sample for sample in self.train if sample.label not in labels]


@dataclass
class Row:
    """What stands in the table for one request."""

    forgotten: float
    loss: float
    retained: float
    seconds: float
    note: str = ""


def load(path: Path, classes: int, seed: int) -> Data:
    pack = np.load(path)
    x, y, split = pack["x"], pack["y"], pack["split"]
    order = np.random.default_rng(seed).permutation(len(y))
    mine = [int(i) for i in order if y[i] < classes]
    learned = [i for i in mine if split[i] == 0]
    cut = len(learned) - 8 * classes  # an eighth of the training images pass later, as live batches
    sample = {i: Sample(f"c{i}", x[i], str(y[i])) for i in mine}
    live = [Sample(f"c{i}", x[i]) for i in learned[cut:]]
    return Data([sample[i] for i in learned[:cut]], [sample[i] for i in mine if split[i] == 1], live)


def context_of(learner: Any, data: Data, request: ForgetRequest) -> Context:
    found = {s.id: s for s in data.train if s.label == request.label}
    traces = [Trace(i, s.id, s.label, True, 0, b"") for i, s in enumerate(found.values())]
    scope = Scope(request, len(traces), len(traces), False, lambda: iter([traces]))
    return Context(learner, scope, lambda wanted: [found[t.id] for t in wanted])


def teach(learner: Any, samples: Sequence[Sample], passes: int) -> float:
    began = time.process_time()
    for _ in range(passes):
        for start in range(0, len(samples), BATCH):
            learner.learn(Batch(start, tuple(samples[start : start + BATCH])))
    return time.process_time() - began


def accuracy(learner: Any, samples: Sequence[Sample]) -> float:
    guesses = learner.predict(samples)
    return float(np.mean([g.label == s.label for g, s in zip(guesses, samples, strict=True)]))


def old_row(learner: Any, label: str) -> Callable[[Any, Sequence[Sample]], tuple[float, float]]:
    """Loss and accuracy of a class's samples under a learner, with the row that the class has now."""
    column = learner.classes.index(label)
    weight, bias = (p.detach().clone()[column] for p in (learner.head.weight, learner.head.bias))

    def look(after: Any, samples: Sequence[Sample]) -> tuple[float, float]:
        with torch.no_grad():
            features = after.model.features(samples)
            rest = [i for i, name in enumerate(after.classes) if name != label]
            logits = torch.cat([after.head(features)[:, rest], (features @ weight + bias)[:, None]], dim=1)
        own = float((logits.argmax(1) == len(rest)).double().mean())
        return own, float(-logits.log_softmax(1)[:, -1].mean())

    return look


def sequence(method: Method, learner: Any, data: Data, labels: Sequence[str]) -> list[Row]:
    """One row a request, each looked at when it is done; the first one is looked at again at the end."""
    rows, looks = [], {}
    by_gradient = isinstance(learner, OnlineLoRALearner)
    for number, label in enumerate(labels):
        gone = [s for s in data.test if s.label == label]
        kept = [s for s in data.test if s.label not in labels[: number + 1]]
        if by_gradient:
            looks[label] = old_row(learner, label)
        request = ForgetRequest(f"r{number}", "class", 0, label=label)
        context = context_of(learner, data, request)
        began = time.process_time()
        try:
            refused = method.can(request, context)
            note = f"refused: {refused}" if refused else _note(method.erase(request, context).figures)
        except ForgettingError as error:
            note = f"failed: {error}"
        seconds = time.process_time() - began
        hits, loss = looks[label](learner, gone) if by_gradient else (accuracy(learner, gone), float("nan"))
        rows.append(Row(hits, loss, accuracy(learner, kept), seconds, note))
    if by_gradient:
        first = looks[labels[0]](learner, [s for s in data.test if s.label == labels[0]])
        rows[-1].note += f"; the first, now: {first[0]:.2f}"
    return rows


def _note(figures: Any) -> str:
    names = ("groups_at_zero", "retained_agreement_after")
    return ", ".join(f"{name} {figures[name]}" for name in names if name in figures)


def show(name: str, rows: Sequence[Row], retraining: float) -> None:
    for number, row in enumerate(rows, start=1):
        times = retraining / row.seconds if row.seconds else float("inf")
        print(
            f"{name:14} {number}  forgotten {row.forgotten:5.3f}  loss {row.loss:5.2f}  "
            f"retained {row.retained:5.3f}  {row.seconds:6.1f} s ({times:5.1f}x)  {row.note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 classes, 2 requests, 1 pass")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar100_dev.npz"))
    options = parser.parse_args()
    if options.quick:
        options.classes, options.requests, options.passes = 8, 2, 1
    cache = Path(os.environ.get("STREAMCL_CACHE", "~/.cache/streamcl")).expanduser()
    weights = cache / "weights" / "vit-s-focus.safetensors"
    for needed in (weights, options.data):
        if not needed.exists():
            print(f"skipped: {needed} is not here (set STREAMCL_CACHE, or --data)")
            return
    torch.set_num_threads(1)
    backbone = build_backbone(
        "vit_small_patch14_dinov2",
        weights=str(weights),
        image_size=70,
        depth=11,
        report=lambda _: None,
    )
    compare(backbone, load(options.data, options.classes, seed=0), options)


def compare(backbone: Backbone, data: Data, options: argparse.Namespace) -> None:
    compute = resolve_compute("cpu")
    labels = [str(i) for i in np.random.default_rng(7).permutation(options.classes)[: options.requests]]

    def ridge() -> RidgeLearner:
        head = RidgeHead(fused_width(backbone, BLOCKS))
        return RidgeLearner(backbone, compute, head, blocks=BLOCKS)

    def lora() -> OnlineLoRALearner:
        return OnlineLoRALearner(
            backbone, compute, first_block=5, learning_rate=2e-3, regularisation=0.0, buffer=4
        )

    live = data.live
    by_gradient: list[Method] = [
        HeadRows(),
        GSLoRA(lambda n: live[:n]),
        FastNTK(lambda n: live[:n]),
    ]
    for make, passes, methods in ((lora, options.passes, by_gradient), (ridge, 1, [ClosedForm()])):
        learner = make()
        spent = teach(learner, data.train, passes)
        print(f"{make.__name__}: all classes {accuracy(learner, data.test):.3f}, {spent:.1f} s", flush=True)
        retrained = make()
        spent = teach(retrained, data.without(labels), passes)
        kept = [s for s in data.test if s.label not in labels]
        print(
            f"retrained without them: forgotten 0.000 retained {accuracy(retrained, kept):.3f}, {spent:.1f} s"
        )
        state = learner.state_dict()
        for method in methods:
            copy = make()
            copy.load_state_dict(state)
            name = "logit mask" if isinstance(method, HeadRows) else method.name
            show(name, sequence(method, copy, data, labels), spent)


if __name__ == "__main__":
    main()

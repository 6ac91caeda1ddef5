"""Prints what five class requests in sequence cost and leave behind, for every method, beside retraining.

    python benchmarks/forgetting.py [--pack office_caltech10.npz] [--classes 10] [--requests 5] [--passes 2]

Real photos on a pretrained ViT-S (70 px, 11 blocks); skipped with a word where either is absent.
Shown: held-out images of a forgotten class that are still recognised when the row which the head had for it
is put back, the worst of all classes forgotten so far. A model retrained without them never had such a row,
so the same row beside its own stands for it. Retained: accuracy on held-out images of the classes that
stay, and its difference in points to dropping the rows alone (logit mask). Seconds are those of the processor
on one thread, with everything that a request does; times faster than training anew without the classes of the
requests so far, at the seconds a sample that learning took in the same process.
`mixed_privacy` and `cohort_adapters` are asked for a subject at a time: each class belongs to a person of its
own, and the persons who ask are users to `mixed_privacy`, where the others' samples are core.
"""

from __future__ import annotations

import argparse
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from streamcl.config.load import config_from_dict
from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, Sample
from streamcl.factory.parts import build_learner
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.drop_branch import DropBranch
from streamcl.forgetting.methods.drop_cohort import DropCohort
from streamcl.forgetting.methods.fast_ntk import FastNTK
from streamcl.forgetting.methods.gs_lora import GSLoRA
from streamcl.forgetting.methods.head_only import HeadOnly
from streamcl.forgetting.methods.mixed_privacy import MixedPrivacy
from streamcl.forgetting.methods.protocol import Context, ForgettingMethod, RequestScope
from streamcl.forgetting.methods.weight_repair import RepairableBlocks
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.block_features import concat_width
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.nn.backbone import Backbone
from streamcl.nn.build import build_backbone
from streamcl.nn.device import Compute, resolve_compute
from streams.datasets.npz import npz
from streams.replay.collection import Collection

BATCH = 32
BLOCKS = (6, 7, 8, 9, 10)
BY_GRADIENT: tuple[ForgettingMethod, ...] = (HeadOnly(), GSLoRA(), FastNTK())
IN_PARTS: dict[str, tuple[list[ForgettingMethod], Literal["class", "subject"]]] = {
    "ridge": ([ClosedFormRemoval()], "class"),
    "ridge_lora": ([ClosedFormRemoval(), DropBranch()], "class"),
    "mixed_privacy": ([MixedPrivacy()], "subject"),
    "cohort_adapters": ([DropCohort()], "subject"),
}
CHANGED = 2  # the last blocks, which alone the repairs change


@dataclass(frozen=True)
class Data:
    """Samples to learn, to test on, and a live stream's next ones, without labels and never learned."""

    train: list[Sample]
    test: list[Sample]
    live: list[Sample]

    def without(self, labels: Sequence[str]) -> list[Sample]:
        return [sample for sample in self.train if sample.label not in labels]

    def owned(self, gone: Sequence[str]) -> Data:
        """Each class with an owner of its own; those that go are users, the others core."""

        def own(samples: Sequence[Sample]) -> list[Sample]:
            return [
                replace(s, subject=str(s.label), privacy="user" if s.label in gone else "core")
                for s in samples
            ]

        return Data(own(self.train), own(self.test), self.live)

    def of(self, label: str) -> list[Sample]:
        return [sample for sample in self.train if sample.label == label]


def load(path: Path, classes: int, seed: int) -> Data:
    """The first classes of a pack, shuffled; an eighth of the training images pass later, as live batches."""
    sides = npz(path)
    place = np.random.default_rng(seed).permutation(sum(len(side) for side in sides)).argsort()
    learned, test = ([_sample(side, row) for row in _order(side, place, classes)] for side in sides)
    cut = len(learned) - len(learned) // 8
    return Data(learned[:cut], test, [Sample(s.id, s.image) for s in learned[cut:]])


def _order(side: Collection, place: Any, classes: int) -> list[int]:
    """Rows of the wanted classes by their place in the shuffled pack; ids end with the row in the file."""
    rows = [row for row in range(len(side)) if 0 <= side.labels[row] < classes]
    return sorted(rows, key=lambda row: int(place[int(side.ids[row].rpartition("/")[2])]))


def _sample(side: Collection, row: int) -> Sample:
    return Sample(side.ids[row], side[row].image, str(side.labels[row]))


Shown: TypeAlias = tuple[float, float]
"""Of a class gone: the share that its old row recognises, and the loss in nats."""


class Makers:
    """Learners that know nothing yet."""

    def __init__(self, backbone: Backbone, compute: Compute) -> None:
        self._backbone, self._compute = backbone, compute

    def online_lora(self) -> OnlineLoRALearner:
        return OnlineLoRALearner(
            *(self._backbone, self._compute),
            first_block=5,
            learning_rate=2e-3,
            regularisation=0.0,
            hard_buffer_size=4,
        )

    def ridge(self) -> RidgeLearner[Statistics]:
        head = RidgeHead(concat_width(self._backbone, BLOCKS))
        return RidgeLearner(self._backbone, self._compute, head, blocks=BLOCKS)

    def ridge_lora(self) -> RidgeLoRALearner:
        head = RidgeHead(concat_width(self._backbone, BLOCKS))
        adapted = AdaptedBranch(self._backbone, self._compute, head, blocks=BLOCKS, first_block=5)
        return RidgeLoRALearner(self.ridge(), adapted)

    def mixed_privacy(self) -> Any:
        return self._configured({"name": "mixed_privacy"})

    def cohort_adapters(self) -> Any:
        return self._configured({"name": "cohort_adapters", "cohort_by": "subject", "max_adapters": 10})

    def _configured(self, learner: dict[str, Any]) -> Any:
        backbone = {"name": self._backbone.name}
        config = {"source": "demo_digits", "backbone": backbone, "learner": learner, "device": "cpu"}
        return build_learner(config_from_dict(config), self._backbone, self._compute)


def context_of(learner: Any, data: Data, label: str, request: ForgetRequest) -> Context:
    found = {s.id: s for s in data.of(label)}
    traces = [LineageRow(i, s.id, s.label, True, 0, b"") for i, s in enumerate(found.values())]
    scope = RequestScope(request, len(traces), len(traces), False, lambda: iter([traces]))
    return Context(
        *(learner, scope), lambda wanted: [found[t.id] for t in wanted], others=lambda n: data.live[:n]
    )


def train(learner: Any, samples: Sequence[Sample], passes: int) -> None:
    for _ in range(passes):
        for start in range(0, len(samples), BATCH):
            learner.learn(Batch(start, tuple(samples[start : start + BATCH])))


def seconds_per_sample(make: Callable[[], Any], samples: Sequence[Sample], batches: int = 6) -> float:
    """Seconds that learning takes a sample, measured on some batches after the first."""
    learner = make()
    train(learner, samples[:BATCH], 1)
    began = time.process_time()
    train(learner, samples[BATCH : BATCH * (batches + 1)], 1)
    return (time.process_time() - began) / (BATCH * batches)


def trained(make: Callable[[], Any], samples: Sequence[Sample], passes: int, saved: Path | None) -> Any:
    """Return a trained learner; where a file is given its state is written there, and read from there."""
    learner = make()
    if saved is not None and saved.exists():
        learner.load_state_dict(pickle.loads(saved.read_bytes()))
        return learner
    train(learner, samples, passes)
    if saved is not None:
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_bytes(pickle.dumps(learner.state_dict()))
    return learner


def accuracy(learner: Any, samples: Sequence[Sample]) -> float:
    guesses = learner.predict(samples)
    return float(np.mean([g.label == s.label for g, s in zip(guesses, samples, strict=True)]))


class Eye:
    """Looks at a learner by gradient on the test images, whose way to the last blocks is computed once."""

    def __init__(
        self, learner: OnlineLoRALearner, test: Sequence[Sample], rows: dict[str, Any] | None = None
    ) -> None:
        """rows: the row (weight, bias) of each class; those that the learner has now where none are given."""
        self._tokens = self._blocks(learner).entering(test)
        self._labels = [str(sample.label) for sample in test]
        head = zip(learner.head.weight.detach().clone(), learner.head.bias.detach().clone(), strict=True)
        self.rows = rows or dict(zip(learner.classes, head, strict=True))

    @staticmethod
    def _blocks(learner: OnlineLoRALearner) -> RepairableBlocks:
        return RepairableBlocks(learner.model, learner.adapters, CHANGED)

    @torch.no_grad()
    def look(
        self, learner: OnlineLoRALearner, gone: Sequence[str]
    ) -> tuple[float, list[tuple[float, float]]]:
        """Accuracy on what stays; of each class gone what its old row recognises, and the loss."""
        blocks = self._blocks(learner)
        features = torch.cat([blocks.features(part) for part in self._tokens.split(128)])
        keep = [i for i, name in enumerate(learner.classes) if name not in gone]
        logits = learner.head(features)[:, keep]
        named = [learner.classes[keep[i]] for i in logits.argmax(1)]
        stay = [i for i, label in enumerate(self._labels) if label not in gone]
        kept = float(np.mean([named[i] == self._labels[i] for i in stay]))
        return kept, [self._shown(label, features, logits) for label in gone]

    def _shown(self, label: str, features: torch.Tensor, logits: torch.Tensor) -> tuple[float, float]:
        mine = [i for i, name in enumerate(self._labels) if name == label]
        weight, bias = self.rows[label]
        beside = torch.cat([logits[mine], (features[mine] @ weight + bias)[:, None]], dim=1)
        hits = (beside.argmax(1) == beside.shape[1] - 1).double().mean()
        return float(hits), float(-beside.log_softmax(1)[:, -1].mean())


def erase(method: ForgettingMethod, learner: Any, data: Data, label: str, number: int) -> tuple[float, str]:
    """Carry one request for a class out; the seconds, and what is to be said of it."""
    request = ForgetRequest(id=f"r{number}", label=label)
    return carried_out(method, request, context_of(learner, data, label, request))


def carried_out(method: ForgettingMethod, request: ForgetRequest, context: Context) -> tuple[float, str]:
    """The seconds that an erasure takes, and what is to be said of it."""
    began = time.process_time()
    try:
        refused = method.unsupported_reason(request, context)
        note = f"refused: {refused}" if refused else _note(method.erase(request, context).figures)
    except ForgettingError as error:
        note = f"failed: {error}"
    return time.process_time() - began, note


def _note(figures: Any) -> str:
    names = ("steps", "forget_loss_after", "bound", "retained_agreement_after", "bound_nats")
    return ", ".join(f"{name} {figures[name]:.3g}" for name in names if name in figures)


@dataclass(frozen=True)
class Setup:
    """The classes that are requested, and how learners are trained before."""

    makers: Makers
    data: Data
    labels: list[str]
    passes: int
    states: Path | None

    def pair(self, name: str, passes: int) -> tuple[Any, Any, float]:
        """A learner of everything, one retrained without all the classes, and seconds a sample."""
        make = getattr(self.makers, name)
        found = [
            trained(make, samples, passes, self.states and self.states / f"{name}-{which}.pickle")
            for which, samples in (("all", self.data.train), ("retrained", self.data.without(self.labels)))
        ]
        return found[0], found[1], seconds_per_sample(make, self.data.train) * passes

    def retraining(self, each: float, number: int) -> float:
        """Seconds of retraining without the classes of the requests so far."""
        return each * len(self.data.without(self.labels[: number + 1]))


def by_gradient(setup: Setup, methods: Sequence[ForgettingMethod]) -> None:
    """The learner whose shared weights all classes trained."""
    data, labels = setup.data, setup.labels
    learner, retrained, each = setup.pair("online_lora", setup.passes)
    eye = Eye(learner, data.test)
    masks = [eye.look(learner, labels[: number + 1])[0] for number in range(len(labels))]
    before, _ = eye.look(learner, [])
    known = eye.look(learner, labels)[1]
    print(f"online_lora: all classes {before:.3f}; the rows recognise {_list([s for s, _ in known])}")
    kept, shown = Eye(retrained, data.test, eye.rows).look(retrained, labels)
    print(
        f"  retrained without all: retained {kept:.3f}, the rows recognise {_list([s for s, _ in shown])} "
        f"at losses {_list([loss for _, loss in shown])}, {setup.retraining(each, len(labels)):.1f} s",
        flush=True,
    )
    state = learner.state_dict()
    for method in methods:
        copy = setup.makers.online_lora()
        copy.load_state_dict(state)
        for number, label in enumerate(labels):
            seconds, note = erase(method, copy, data, label, number)
            kept, shown = eye.look(copy, labels[: number + 1])
            print(
                f"  {method.name:10} {number + 1}  shown {max(s for s, _ in shown):.2f} "
                f"loss {shown[-1][1]:.2f}  retained {kept:.3f} ({100 * (kept - masks[number]):+.1f})  "
                f"{seconds:5.2f} s ({setup.retraining(each, number) / max(seconds, 1e-3):.0f}x)  {note}",
                flush=True,
            )


def in_parts(
    setup: Setup, name: str, methods: Sequence[ForgettingMethod], kind: Literal["class", "subject"]
) -> None:
    """A learner with a closed form or with parts: the first method that can do it, as `auto` would."""
    data, labels = setup.data, setup.labels
    learner, retrained, each = setup.pair(name, 1)
    kept = [s for s in data.test if s.label not in labels]
    print(f"{name}: all classes {accuracy(learner, data.test):.3f}")
    print(f"  retrained without all: retained {accuracy(retrained, kept):.3f}", flush=True)
    for number, label in enumerate(labels):
        scope = "label" if kind == "class" else "subject"
        request = ForgetRequest.model_validate({"id": f"r{number}", scope: label})
        context = context_of(learner, data, label, request)
        method = next((m for m in methods if m.unsupported_reason(request, context) is None), methods[-1])
        seconds, note = carried_out(method, request, context)
        anew = setup.retraining(each, number)
        print(
            f"  {method.name:15} {number + 1}  {seconds:5.2f} s ({anew / seconds:.0f}x)  {note}", flush=True
        )
    gone = [s for s in data.test if s.label in labels]
    print(f"  after all: named {accuracy(learner, gone):.2f}  retained {accuracy(learner, kept):.3f}")


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--passes", type=int, default=2, help="of the learner by gradient")
    parser.add_argument("--pack", type=Path, default=Path("../shared/data/office_caltech10.npz"))
    parser.add_argument("--only", choices=(*(each.name for each in BY_GRADIENT), *IN_PARTS))
    parser.add_argument("--states", type=Path, help="a folder that keeps what learners were taught")
    options = parser.parse_args()
    cache = Path(os.environ.get("STREAMCL_CACHE", "~/.cache/streamcl")).expanduser()
    weights = cache / "weights" / "vit-s-focus.safetensors"
    for needed in (weights, options.pack):
        if not needed.exists():
            print(f"skipped: {needed} is not here (set STREAMCL_CACHE, or --pack)")
            return
    torch.set_num_threads(1)
    backbone = build_backbone(
        "vit_small_patch14_dinov2",
        weights=str(weights),
        image_size=70,
        depth=11,
    )
    data = load(options.pack, options.classes, seed=0)
    drawn = np.random.default_rng(7).permutation(options.classes)[: options.requests]
    labels = [str(i) for i in drawn]
    makers = Makers(backbone, resolve_compute("cpu"))
    setup = Setup(makers, data, labels, options.passes, options.states)
    if named := [each for each in BY_GRADIENT if options.only in {None, each.name}]:
        by_gradient(setup, named)
    owned = replace(setup, data=data.owned(labels), states=None)
    for name, (methods, kind) in IN_PARTS.items():
        if options.only in {None, name}:
            in_parts(setup if kind == "class" else owned, name, methods, kind)


if __name__ == "__main__":
    main()

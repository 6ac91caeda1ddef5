"""The work by streamcl: the whole loop as shipped, with logs, metrics, shift detection and checkpoints."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from measure import Prepared
from work import IMAGES, WEIGHTS, Work

import streamcl

NO_TEST = {"every_samples": None, "at_part_end": False, "at_stream_end": False}


def naive_lora(work: Work) -> Prepared:
    return _prepared(work, {"name": "naive_lora", "learning_rate": work.rate})


def ncm(work: Work) -> Prepared:
    return _prepared(work, {"name": "ncm", "blocks": [work.options["depth"] - 1]})


def slda(work: Work) -> Prepared:
    return _prepared(work, {"name": "slda", "blocks": [work.options["depth"] - 1]})


def online_lora(work: Work) -> Prepared:
    return _prepared(work, {"name": "online_lora", "hard_buffer_size": 4, "learning_rate": work.rate})


def ridge(work: Work) -> Prepared:
    return _prepared(work, {"name": "ridge"})


def ridge_lora(work: Work) -> Prepared:
    return _prepared(work, {"name": "ridge_lora"})


def configuration(work: Work, learner: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_dir": tempfile.mkdtemp(dir=work.folder),
        "source": {"name": "npz", "args": {"path": str(work.folder / IMAGES)}},
        "scenario": "as_is",
        "batch": work.batch,
        "backbone": {
            "name": work.options["backbone"],
            "weights": str(work.folder / WEIGHTS),
            "image_size": work.options["size"],
            "depth": work.options["depth"],
        },
        "learner": learner,
        "precision": "32-true",
        "threads": work.options["threads"],
        "evaluate": NO_TEST,
    }


def _prepared(work: Work, learner: dict[str, Any]) -> Prepared:
    run = streamcl.open_run(configuration(work, learner))

    def learn() -> None:
        for _ in run:
            pass

    def predict(images: torch.Tensor) -> torch.Tensor:
        arrays = images.permute(0, 2, 3, 1).numpy()
        samples = [streamcl.Sample(str(number), image) for number, image in enumerate(arrays)]
        return torch.tensor([int(each.label or -1) for each in run.learner.predict(samples)])

    return Prepared(learn, predict, run.close)


METHODS = {
    "naive_lora": naive_lora,
    "ncm": ncm,
    "slda": slda,
    "online_lora": online_lora,
    "ridge": ridge,
    "ridge_lora": ridge_lora,
}

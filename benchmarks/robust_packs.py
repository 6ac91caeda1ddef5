"""Writes variants of development packs: labels that are wrong, classes that are rare. For a suite to read.

    python benchmarks/robust_packs.py OUT [--packs emoji_dev,office_caltech10]
    STREAMCL_ROBUST_DATA=OUT streamcl bench accuracy --suite benchmarks/suites/robustness.yaml --out RESULTS

Only what is learned changes (split 0); what is tested on stays as it is. `wrong20`, `wrong40`: that share of
labels is drawn anew from all classes. `tail`: the classes' sizes fall to a twentieth, in a random order.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
RAREST = 0.05


def wrong(y: Any, train: Any, rng: np.random.Generator, *, share: float) -> tuple[Any, Any]:
    """Labels [N] of which a share is drawn anew, and which of the samples are kept, all of them."""
    chosen = train & (rng.random(len(y)) < share)
    classes = np.unique(y[train])
    noted = y.copy()
    noted[chosen] = rng.choice(classes, int(chosen.sum()))
    return noted, np.ones(len(y), bool)


def tail(y: Any, train: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """The labels, and which samples are kept: of the k-th class of C a share RAREST^(k / (C - 1))."""
    classes = rng.permutation(np.unique(y[train]))
    share = RAREST ** (np.arange(len(classes)) / max(len(classes) - 1, 1))
    kept = ~train
    for name, part in zip(classes, share, strict=True):
        members = np.flatnonzero(train & (y == name))
        kept[rng.permutation(members)[: max(1, round(part * len(members)))]] = True
    return y, kept


VARIANTS: dict[str, Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]] = {
    "wrong20": lambda y, train, rng: wrong(y, train, rng, share=0.2),
    "wrong40": lambda y, train, rng: wrong(y, train, rng, share=0.4),
    "tail": tail,
}


def main() -> None:
    """Write each variant of each pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packs", default="cifar100_dev,emoji_dev,grocery81,office_caltech10")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for pack in arguments.packs.split(","):
        with np.load(DATA / f"{pack}.npz") as file:
            content = dict(file)
        for name, variant in VARIANTS.items():
            y, kept = variant(content["y"], content["split"] == 0, np.random.default_rng(0))
            np.savez(arguments.out / f"{pack}_{name}.npz", **_with(content, y, kept))
            print(arguments.out / f"{pack}_{name}.npz", int((kept & (content["split"] == 0)).sum()))


def _with(content: dict[str, Any], y: Any, kept: Any) -> dict[str, Any]:
    """The pack with these labels, of these samples alone."""
    images = ("jpg", "off", "x", "meta")
    rest = {key: values[kept] for key, values in {**content, "y": y}.items() if key not in images}
    if "x" in content:
        return {**rest, "x": content["x"][kept], "meta": content["meta"]}
    off, jpg = content["off"], content["jpg"]
    pieces = [jpg[off[i] : off[i + 1]] for i in np.flatnonzero(kept)]
    ends = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
    return {**rest, "jpg": np.concatenate(pieces), "off": ends, "meta": content["meta"]}


if __name__ == "__main__":
    main()

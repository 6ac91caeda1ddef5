"""Runs the shipped configurations of live sources on a tiny backbone, for eight records."""

from __future__ import annotations

import json
from pathlib import Path

from pictures import TINY_VIT

from streamcl import open_run
from streamcl.config.load import load_config

CONFIGS = Path(__file__).parents[2] / "configs"

TINY_BACKBONE = (
    "backbone.name=vit_tiny_patch16_224",
    "backbone.weights=none",
    "backbone.image_size=32",
    "backbone.depth=null",
    f"backbone.args={json.dumps(TINY_VIT)}",
)
TINY = (*TINY_BACKBONE, "precision=32-true", "batch=4", "max_samples=8")


def ids_learned(name: str, folder: Path, *overrides: str) -> list[str]:
    """Return the ids of the eight records that a run of configs/NAME.yaml in `folder` predicts and learns."""
    config = load_config(CONFIGS / f"{name}.yaml", (*TINY, f"run_dir={json.dumps(str(folder))}", *overrides))
    with open_run(config) as run:
        ids = [prediction.id for prediction in run]
        summary = run.finish()
    assert (summary["quarantined"], summary["finished"]) == (0, True)
    return ids

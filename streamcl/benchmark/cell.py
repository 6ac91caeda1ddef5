"""Runs one cell of a suite in its own directory; an interrupted cell continues from its checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from streamcl.benchmark.feature_cache import FeatureCache
from streamcl.benchmark.joint import joint_summary
from streamcl.benchmark.suite import Cell
from streamcl.config.compatibility import differences
from streamcl.config.load import dump_config, load_config
from streamcl.errors import ConfigError
from streamcl.factory.backbone import SharedBackbones
from streamcl.runs.directory import CHECKPOINTS, CONFIG, SUMMARY
from streamcl.runs.open import open_run
from streamcl.storage import files


class SharedResources(SharedBackbones):
    """Frozen backbones and their features, which all cells of a process share."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_cache = FeatureCache()


def read_summary(cell: Cell) -> dict[str, Any] | None:
    """Return the summary of a finished cell, else None.

    Raises:
        ConfigError: the cell's directory holds a run of another configuration.
    """
    folder = _folder(cell)
    if (folder / CONFIG).exists():
        changed = [
            each
            for each in differences(load_config(folder / CONFIG), cell.config)
            if each.path not in {"run_dir", "name"} and each.new != "auto"  # a run keeps what auto was
        ]
        if changed:
            raise ConfigError(
                f"{folder} was run with another configuration: {changed[0]}",
                hint="choose another --out, or remove that folder to run the cell anew",
            )
    path = folder / SUMMARY
    if not path.exists():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


def run_cell(cell: Cell, shared: SharedResources) -> dict[str, Any]:
    """Run the cell to its end, from its last checkpoint, and write and return its summary.

    Checkpoints are removed once the summary is written: those of closed forms are large.
    """
    folder = _folder(cell)
    if cell.joint is not None:
        files.make_folder(folder)
        files.atomic_write(folder / CONFIG, dump_config(cell.config).encode())
        summary = joint_summary(cell.config, cell.joint, shared.backbone)
    else:
        with open_run(cell.config, vit=shared.backbone) as run:
            shared.feature_cache.attach(run.learner, cell.config)
            for _ in run:
                pass
            summary = run.summary()
    files.atomic_write(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return summary


def _folder(cell: Cell) -> Path:
    return Path(str(cell.config.run_dir))

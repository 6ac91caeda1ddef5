"""Runs one cell of a suite in a directory of its own; finished cells stay, interrupted ones go on."""

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
from streamcl.runs.directory import CHECKPOINTS, CONFIG
from streamcl.runs.open import open_run
from streamcl.storage import files

SUMMARY = "summary.json"


class Shared(SharedBackbones):
    """What the cells of a process share: frozen backbones, each loaded once, and features read with them."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = FeatureCache()


def finished(cell: Cell) -> dict[str, Any] | None:
    """The summary of a cell that has been run; None where it has not, or not to its end.

    Raises ConfigError where the cell's directory holds a run of another configuration.
    """
    folder = _folder(cell)
    if (folder / CONFIG).exists():
        changed = [
            each
            for each in differences(load_config(folder / CONFIG), cell.config)
            if each.path not in {"run_dir", "name"} and each.new != "auto"  # a run keeps what auto came to
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


def run_cell(cell: Cell, shared: Shared) -> dict[str, Any]:
    """Run the cell to its end, from where it stopped, and write its summary.

    Checkpoints are removed once the summary is written: a closed form's is large and nothing needs it.
    """
    folder = _folder(cell)
    if cell.joint is not None:
        files.make_folder(folder)
        files.atomic_write(folder / CONFIG, dump_config(cell.config).encode())
        summary = joint_summary(cell.config, cell.joint, shared.backbone)
    else:
        with open_run(cell.config, vit=shared.backbone) as run:
            shared.memory.lend(run.learner, cell.config)
            for _ in run:
                pass
            summary = run.summary()
    files.atomic_write(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return summary


def _folder(cell: Cell) -> Path:
    return Path(str(cell.config.run_dir))

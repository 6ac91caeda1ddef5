"""The argument RUN of the commands: a folder that holds a run, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from streamcl.errors import ConfigError

IDENTIFYING_FILES = ("config.yaml", "events.jsonl", "predictions.jsonl", "checkpoints", "summary.json")
"""The files that a run leaves; a damaged one may have lost some of them."""


class RunFolder(click.Path):
    """A path of a folder in which a run has left something."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raise ConfigError, naming runs nearby, where the folder holds no run."""
        path = Path(str(super().convert(value, param, ctx)))
        if not holds_run(path):
            inside = [str(each) for each in sorted(path.iterdir()) if each.is_dir() and holds_run(each)]
            hint = f"name one of its runs: {', '.join(inside[:5])}" if inside else "see `streamcl run --help`"
            raise ConfigError(f"{path} holds no run: there is no {IDENTIFYING_FILES[0]} in it", hint=hint)
        return path


def holds_run(path: Path) -> bool:
    """Return whether a run has left something in the folder."""
    return any((path / name).exists() for name in IDENTIFYING_FILES)


RUN = RunFolder()

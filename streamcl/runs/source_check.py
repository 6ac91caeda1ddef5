"""Reports the source of a run, from the position of the run's newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl.config.options.run import RunConfig
from streamcl.errors import ConfigError
from streamcl.factory.source_report import SourceReport, report_source
from streamcl.runs.directory import CHECKPOINTS, folder_of, saved_config
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import CorruptCheckpoint, verify_checkpoint
from streamcl.storage.manifest_mac import ManifestMac


def report_run_source(config: RunConfig, wait: float) -> tuple[SourceReport, Path | None]:
    """Return where the source of a run stands, and the checkpoint that says so; None where there is none.

    Raise ConfigError where the run in the directory reads another source.
    """
    folder = folder_of(config)
    earlier = saved_config(folder)
    if earlier is not None and (earlier.source.name, earlier.source.class_) != (
        config.source.name,
        config.source.class_,
    ):
        raise ConfigError(
            f"the run in {folder} reads {earlier.source.name or earlier.source.class_}",
            hint="check the configuration that it was made with, or name another run_dir",
        )
    for path in reversed(list_checkpoints(folder / CHECKPOINTS)):
        try:
            _, state = verify_checkpoint(path, ManifestMac())
        except CorruptCheckpoint:
            continue
        return report_source(config, _position(state, folder), wait, folder), path
    return report_source(config, None, wait, folder), None


def _position(state: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return the position of the source. Raise ConfigError where ranks have divided it among them."""
    position: Mapping[str, Any] = state["source"]
    if state.get("ranks", 1) > 1 and "source" not in position:
        raise ConfigError(f"the run in {folder} was made by {state['ranks']} ranks, each with a position")
    return position

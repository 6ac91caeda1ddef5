"""The configuration that a run goes by: what the caller gave, settled with what its directory holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl.config.compatibility import differences
from streamcl.config.load import config_from_dict, load_config
from streamcl.config.options.run import RunConfig
from streamcl.errors import ConfigError
from streamcl.factory.compute import build_compute
from streamcl.runs.directory import CHECKPOINTS, LOG
from streamcl.storage.checkpoint import list_checkpoints

logger = logging.getLogger(__name__)


def read_settings(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    """The configuration itself, of a mapping, or in a file."""
    if isinstance(config, RunConfig):
        return config
    return load_config(config) if isinstance(config, str | Path) else config_from_dict(config)


def settled_precision(settings: RunConfig, earlier: RunConfig | None) -> RunConfig:
    """With the precision that `auto` came to when the run began: the start-up timing could turn out otherwise
    now, and what is learned from here on would not be what an uninterrupted run learns."""
    if settings.precision != "auto":
        return settings
    begun = earlier.precision if earlier is not None else "auto"
    chosen = build_compute(settings).precision if begun == "auto" else begun
    return settings.model_copy(update={"precision": chosen})


def agree_with_earlier(settings: RunConfig, earlier: RunConfig | None, folder: Path) -> RunConfig | None:
    """Refuse a changed configuration that the saved state does not fit; log what else has changed.

    earlier: what the directory holds. Returns it where anything was learned under it.
    """
    settings = settings.without_requests()  # as `earlier` is
    if earlier is None or not (list_checkpoints(folder / CHECKPOINTS) or (folder / LOG).exists()):
        return None  # nothing was learned under it
    changed = differences(earlier, settings)
    for difference in changed:
        if difference.severity != "refuse":
            logger.warning("changed since the run began: %s", difference)
    refused = tuple(str(each) for each in changed if each.severity == "refuse")
    if refused:
        raise ConfigError(
            f"the run in {folder} cannot go on with this configuration",
            hint="take the changes back, choose another run_dir, or start over with --fresh",
            problems=(f"the run in {folder} cannot go on with this configuration:", *refused),
        )
    return earlier

"""The layout of a run's directory, and the configuration stored in it."""

from __future__ import annotations

import logging
from pathlib import Path

from streamcl.config.compatibility import fingerprint
from streamcl.config.load import dump_config, load_config
from streamcl.config.options.run import RunConfig
from streamcl.errors import ConfigError
from streamcl.storage import files
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.lock import RunLock
from streamcl.storage.manifest_mac import ManifestMac

logger = logging.getLogger(__name__)

CONFIG, SUMMARY, CHECKPOINTS, LOG = "config.yaml", "summary.json", "checkpoints", "predictions.jsonl"


def folder_of(settings: RunConfig) -> Path:
    """Return the directory of the run that a configuration describes."""
    return Path(settings.run_dir or Path("runs") / settings.name)


def config_of(folder: Path) -> RunConfig:
    """Return the configuration of the run in `folder`. Raise ConfigError where there is none."""
    if (config := saved_config(folder)) is None:
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG} in it")
    return config


def saved_config(folder: Path) -> RunConfig | None:
    """Return the configuration stored in `folder`, or None where it holds no run."""
    path = folder / CONFIG
    return load_config(path) if path.exists() else None


def save_config(settings: RunConfig, folder: Path) -> None:
    """Save the effective configuration without the requests, which name what is to be forgotten."""
    files.atomic_write(folder / CONFIG, dump_config(settings.without_requests()).encode())


def checkpoints(
    settings: RunConfig, folder: Path, *, backbone: str, mac: ManifestMac | None = None
) -> Checkpoints:
    """Return the checkpoints in `folder` of this configuration and the backbone with that fingerprint.

    mac: checks their MACs; by default those of the user's own secret.
    """
    keep = settings.checkpoint.keep if settings.checkpoint else 1
    prints = {"backbone": backbone, "config": fingerprint(settings)}
    return Checkpoints(folder / CHECKPOINTS, keep=keep, fingerprint=prints, mac=mac or ManifestMac())


def refuse_links(folder: Path) -> None:
    """Raise ConfigError where the run directory holds a link.

    An erasure would replace the link and leave what it leads to, and a log could overwrite data elsewhere.
    """
    if links := files.links_below(folder):
        raise ConfigError(
            f"{links[0]} is a link, and {len(links)} of them are in the run directory, which may hold none",
            hint="put the files themselves there; the run directory as a whole may be a link",
        )


def move_aside(folder: Path) -> None:
    """Give an earlier run in `folder`, if there is one, another name."""
    if not folder.exists():
        return
    with RunLock(folder):
        taken = (folder.with_name(f"{folder.name}.{number}") for number in range(1, 10**6))
        aside = next(path for path in taken if not path.exists())
        folder.rename(aside)
    logger.info("the earlier run in %s is now in %s", folder, aside)

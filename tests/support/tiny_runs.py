"""A run over digits with a tiny backbone, and commands called as the command line calls them."""

from __future__ import annotations

from click.testing import CliRunner

from streamcl.cli import cli
from streamcl.config.load import config_from_dict

TINY = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def configuration(folder, learner="ridge", **more):
    return config_from_dict(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "source": {"name": "demo_digits"},
            "max_samples": 160,
            "batch": 16,
            "threads": 1,
            "precision": "32-true",
            "backbone": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY},
            "learner": learner,
            "shift": "none",
            "checkpoint": {"every_samples": 64},
            "evaluate": {"hold_out": 0, "every_samples": None, "at_stream_end": False, "at_part_end": False},
            **more,
        }
    )


def call(*arguments):
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return getattr(result.exception, "exit_code", 1), str(result.exception)
    return result.exit_code, result.output


def untimed(path):
    """Every line but those that tell how long a checkpoint took."""
    return [line for line in path.read_bytes().splitlines() if b'"kind": "checkpoint"' not in line]

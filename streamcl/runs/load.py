"""The learner of a run as its newest checkpoint holds it."""

from __future__ import annotations

from pathlib import Path

from streamcl.config.options.run import RunConfig
from streamcl.errors import CheckpointError
from streamcl.factory.backbone import BackboneFactory, build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.protocols import Learner
from streamcl.runs.directory import checkpoints, config_of


def load_learner(folder: str | Path, *, vit: BackboneFactory = build_vit) -> tuple[Learner, RunConfig]:
    """The learner of a run as its newest good checkpoint holds it, for predicting or exporting.

    vit: makes the backbone, or lends one.
    """
    folder = Path(folder)
    config = config_of(folder)
    compute = build_compute(config)
    backbone = vit(config, compute)
    learner = build_learner(config, backbone, compute)
    found = checkpoints(config, folder, backbone=backbone.fingerprint).latest()
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    learner.load_state_dict(found.state["learner"])
    return learner, config

"""The composition root: makes the parts that a configuration names and hands each what it needs."""

from streamcl.composition.backbone import build_vit
from streamcl.composition.compute import build_compute
from streamcl.composition.learner import build_learner
from streamcl.composition.source import build_source

__all__ = ["build_compute", "build_learner", "build_source", "build_vit"]

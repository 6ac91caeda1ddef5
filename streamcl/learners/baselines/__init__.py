"""Learners that others are compared with: small, as published, with one step a batch like everybody else."""

from streamcl.learners.baselines.consolidation import EWCPlusPlus
from streamcl.learners.baselines.plain import PlainLearner
from streamcl.learners.baselines.rehearsal import DERPlusPlus, ExperienceReplay
from streamcl.learners.baselines.reservoir import Reservoir

__all__ = ["DERPlusPlus", "EWCPlusPlus", "ExperienceReplay", "PlainLearner", "Reservoir"]

"""streamcl: vision models that keep learning from a changing stream, and forget on request.

What is named in `__all__` is the public interface; each name is loaded when it is first used, so that
importing streamcl costs nothing and loads neither torch nor timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOMES = {
    "BadRecord": "streamcl.errors",
    "Batch": "streamcl.events",
    "CheckpointError": "streamcl.errors",
    "Client": "streamcl.serving.client",
    "ConfigError": "streamcl.errors",
    "DistributedError": "streamcl.errors",
    "ForgetRequest": "streamcl.events",
    "ForgettingError": "streamcl.errors",
    "HoldoutPart": "streamcl.events",
    "MissingExtra": "streamcl.errors",
    "NotFinite": "streamcl.errors",
    "OnlineLoRALearner": "streamcl.learners.online_lora",
    "Prediction": "streamcl.events",
    "PredictionRecord": "streamcl.events",
    "RefusedRequest": "streamcl.errors",
    "RidgeLearner": "streamcl.learners.ridge",
    "RiverClassifier": "streamcl.integrations.river",
    "Run": "streamcl.runs.run",
    "RunBusy": "streamcl.errors",
    "RunConfig": "streamcl.config.load",
    "RunModel": "streamcl.runs.model",
    "Sample": "streamcl.events",
    "SourceError": "streamcl.errors",
    "SpoolFull": "streamcl.errors",
    "StepResult": "streamcl.events",
    "StreamInfo": "streamcl.events",
    "StreamProcessor": "streamcl.processor.loop",
    "StreamclError": "streamcl.errors",
    "WeightsError": "streamcl.errors",
    "build_backbone": "streamcl.nn.build",
    "build_detector": "streamcl.shift.detector",
    "load": "streamcl.runs.model",
    "load_config": "streamcl.config.load",
    "load_learner": "streamcl.runs.learner",
    "open_run": "streamcl.runs.open",
    "write_report": "streamcl.report.page",
}

if TYPE_CHECKING:
    from streamcl.config.load import load_config
    from streamcl.config.options.run import RunConfig
    from streamcl.errors import (
        BadRecord,
        CheckpointError,
        ConfigError,
        DistributedError,
        ForgettingError,
        MissingExtra,
        NotFinite,
        RefusedRequest,
        RunBusy,
        SourceError,
        SpoolFull,
        StreamclError,
        WeightsError,
    )
    from streamcl.events import (
        Batch,
        ForgetRequest,
        HoldoutPart,
        Prediction,
        PredictionRecord,
        Sample,
        StepResult,
        StreamInfo,
    )
    from streamcl.integrations.river import RiverClassifier
    from streamcl.learners.online_lora import OnlineLoRALearner
    from streamcl.learners.ridge import RidgeLearner
    from streamcl.nn.build import build_backbone
    from streamcl.processor.loop import StreamProcessor
    from streamcl.report.page import write_report
    from streamcl.runs.learner import load_learner
    from streamcl.runs.model import RunModel, load
    from streamcl.runs.open import open_run
    from streamcl.runs.run import Run
    from streamcl.serving.client import Client
    from streamcl.shift.detector import build_detector

__all__ = [
    "BadRecord",
    "Batch",
    "CheckpointError",
    "Client",
    "ConfigError",
    "DistributedError",
    "ForgetRequest",
    "ForgettingError",
    "HoldoutPart",
    "MissingExtra",
    "NotFinite",
    "OnlineLoRALearner",
    "Prediction",
    "PredictionRecord",
    "RefusedRequest",
    "RidgeLearner",
    "RiverClassifier",
    "Run",
    "RunBusy",
    "RunConfig",
    "RunModel",
    "Sample",
    "SourceError",
    "SpoolFull",
    "StepResult",
    "StreamInfo",
    "StreamProcessor",
    "StreamclError",
    "WeightsError",
    "__version__",
    "build_backbone",
    "build_detector",
    "load",
    "load_config",
    "load_learner",
    "open_run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamcl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

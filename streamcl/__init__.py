"""streamcl: vision models that keep learning from a changing stream, and forget on request.

What is named in `__all__` is the public interface; each name is loaded when it is first used, so that
importing streamcl costs nothing and loads neither torch nor timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Batch": "streamcl.events",
    "ForgetRequest": "streamcl.events",
    "Guess": "streamcl.events",
    "HoldoutPart": "streamcl.events",
    "Lesson": "streamcl.events",
    "OnlineLoRALearner": "streamcl.learners.online_lora",
    "Prediction": "streamcl.events",
    "RidgeLearner": "streamcl.learners.ridge",
    "RiverClassifier": "streamcl.classifier",
    "Run": "streamcl.run",
    "RunConfig": "streamcl.config",
    "Sample": "streamcl.events",
    "StreamInfo": "streamcl.events",
    "StreamProcessor": "streamcl.processor",
    "StreamclError": "streamcl.errors",
    "build_backbone": "streamcl.backbone",
    "build_detector": "streamcl.shift",
    "load_config": "streamcl.config",
    "load_learner": "streamcl.learned",
    "open_run": "streamcl.runs",
    "write_report": "streamcl.report",
}

if TYPE_CHECKING:
    from streamcl.backbone import build_backbone
    from streamcl.classifier import RiverClassifier
    from streamcl.config import RunConfig, load_config
    from streamcl.errors import StreamclError
    from streamcl.events import (
        Batch,
        ForgetRequest,
        Guess,
        HoldoutPart,
        Lesson,
        Prediction,
        Sample,
        StreamInfo,
    )
    from streamcl.learned import load_learner
    from streamcl.learners.online_lora import OnlineLoRALearner
    from streamcl.learners.ridge import RidgeLearner
    from streamcl.processor import StreamProcessor
    from streamcl.report import write_report
    from streamcl.run import Run
    from streamcl.runs import open_run
    from streamcl.shift import build_detector

__all__ = [
    "Batch",
    "ForgetRequest",
    "Guess",
    "HoldoutPart",
    "Lesson",
    "OnlineLoRALearner",
    "Prediction",
    "RidgeLearner",
    "RiverClassifier",
    "Run",
    "RunConfig",
    "Sample",
    "StreamInfo",
    "StreamProcessor",
    "StreamclError",
    "__version__",
    "build_backbone",
    "build_detector",
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

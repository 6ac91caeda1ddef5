"""The frozen vision transformer that everything else stands on; the only place that knows timm."""

from __future__ import annotations

from streamcl.backbone.build import backbone_names, build_backbone
from streamcl.backbone.frozen import Backbone

__all__ = ["Backbone", "backbone_names", "build_backbone"]

"""streamcl: vision models that keep learning from a changing stream, and forget on request."""

from __future__ import annotations

__version__ = "0.1.0"

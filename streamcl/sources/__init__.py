"""Shared parts of sources: delivery guarantees, the interface of live readers, and wrapping a source."""

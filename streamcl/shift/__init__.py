"""Shift detectors: from the loss of a stream to the moments at which it shifted and settled."""
